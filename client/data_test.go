package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"dfsd/client"
	"dfsd/dfs"
)

func put(t *testing.T, c *client.Client, path string, data []byte) *client.Attr {
	t.Helper()
	a, err := c.PutFile(t.Context(), path, client.PutOptions{Mode: 0o644, Replace: true}, bytes.NewReader(data))
	noErr(t, err)
	return a
}

func TestSizes(t *testing.T) {
	for codec := dfs.CodecNone; codec.Known(); codec++ {
		set := func(m *dfs.Map) { m.Settings = []dfs.ClassSetting{{Class: m.DefaultClass, Codec: codec}} }
		inWorld(t, worldOptions{setMap: set}, func(t *testing.T, w *world) {
			c, ctx := w.client(nil), t.Context()
			for i, n := range []int{0, 1, dfs.ChunkSize - 1, dfs.ChunkSize, dfs.ChunkSize + 1, blockSize - 1, blockSize, blockSize + 1, 9*blockSize + 12345} {
				path := fmt.Sprintf("/f%d", n)
				data := content(uint64(i), n)
				put(t, c, path, data)
				wantContent(t, c, path, data)
				f, err := c.Open(ctx, path)
				noErr(t, err)
				r := rand.New(rand.NewPCG(3, uint64(n)))
				for range 8 {
					off := r.IntN(n + 10)
					p := make([]byte, r.IntN(2*blockSize))
					got, err := f.ReadAt(ctx, p, int64(off))
					want := data[min(off, n):min(off+len(p), n)]
					if !bytes.Equal(p[:got], want) || (err == io.EOF) != (got < len(p)) {
						t.Fatalf("%s: %d bytes at %d gave %d, %v", path, len(p), off, got, err)
					}
				}
				got, err := io.ReadAll(io.NewSectionReader(f.At(ctx), int64(n/2), int64(n)))
				if err != nil || !bytes.Equal(got, data[n/2:]) {
					t.Errorf("%s: the second half reads as %d bytes, %v", path, len(got), err)
				}
			}
			for id, s := range w.stores {
				if s.gets == 0 {
					t.Errorf("store %v was never read", id)
				}
			}
		})
	}
}

// TestManyExtents puts a file that one commit cannot hold.
func TestManyExtents(t *testing.T) {
	inWorld(t, worldOptions{class: dfs.Replicated(1)}, func(t *testing.T, w *world) {
		c, ctx := w.client(func(o *client.Options) { o.BlockSize = 128; o.Uncompressed = true }), t.Context()
		data := content(1, 128*(2*dfs.MaxExtentsPerCommit+10))
		when := time.Unix(1000, 5)
		opts := client.PutOptions{Mode: 0o4711, Mtime: when}
		a, err := c.PutFile(ctx, "/big", opts, bytes.NewReader(data))
		noErr(t, err)
		if a.Mode != 0o4711 || !a.Mtime.Equal(when) || a.Size != int64(len(data)) {
			t.Errorf("attributes %+v", a)
		}
		wantContent(t, c, "/big", data)
		_, err = c.PutFile(ctx, "/big", opts, bytes.NewReader(data))
		wantKind(t, err, dfs.Exist)
		opts.Replace = true
		opts.Owner = &client.Owner{UID: 5, GID: 6}
		name := strings.Repeat("n", 255)
		a, err = c.PutFile(ctx, "/"+name, opts, strings.NewReader("x"))
		noErr(t, err)
		if a.UID != 5 || a.GID != 6 || a.Mode != 0o4711 || !a.Mtime.Equal(when) {
			t.Errorf("attributes %+v", a)
		}
		var names []string
		for e := range c.ReadDir(ctx, "/", false) {
			names = append(names, e.Name)
		}
		if len(names) != 2 {
			t.Errorf("temporary names stay: %q", names)
		}
		n := 0
		root, err := c.Resolve(ctx, "/big")
		noErr(t, err)
		for e, err := range root.Extents(ctx) {
			noErr(t, err)
			if e.Offset != int64(n)*128 {
				t.Fatalf("extent %d at %d", n, e.Offset)
			}
			n++
		}
		if n != len(data)/128 {
			t.Errorf("%d extents", n)
		}
		w.meta.check(t)
	})
}

func TestSourceFails(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c := w.client(nil)
		boom := errors.New("boom")
		r := io.MultiReader(bytes.NewReader(content(1, 3*blockSize)), iotest.ErrReader(boom))
		_, err := c.PutFile(t.Context(), "/f", client.PutOptions{}, r)
		if !errors.Is(err, boom) {
			t.Errorf("error %v", err)
		}
		_, err = c.Stat(t.Context(), "/f")
		wantKind(t, err, dfs.NotExist)
	})
}

// failing makes a store refuse every put.
func failing(kind dfs.Kind) func(context.Context, dfs.BlockID, dfs.Epoch) error {
	return func(context.Context, dfs.BlockID, dfs.Epoch) error {
		return dfs.Errorf(kind, "put", "as the test says")
	}
}

func hang(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestAStoreFails(t *testing.T) {
	for _, tc := range []struct {
		name  string
		onPut func(context.Context, dfs.BlockID, dfs.Epoch) error
		limit time.Duration
	}{
		{"refuses", failing(dfs.NoSpace), 2 * time.Second},
		{"fails", failing(dfs.Unavailable), 2 * time.Second},
		{"is another's", failing(dfs.WrongCluster), 2 * time.Second},
		{"hangs", func(ctx context.Context, _ dfs.BlockID, _ dfs.Epoch) error { return hang(ctx) }, 5 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, worldOptions{stores: 6}, func(t *testing.T, w *world) {
				c := w.client(nil)
				put(t, c, "/warm", nil)
				w.stores[2].set(tc.onPut, nil)
				start := time.Now()
				data := content(1, 6*blockSize)
				put(t, c, "/f", data)
				if took := time.Since(start); took > tc.limit {
					t.Errorf("it took %v, want at most %v", took, tc.limit)
				}
				if n := len(w.stores[2].held()); n > 0 {
					t.Errorf("store 2 holds %d blocks", n)
				}
				wantContent(t, c, "/f", data)
			})
		})
	}
}

// TestEveryStoreRefuses: the error comes soon where waiting cannot help.
func TestEveryStoreRefuses(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c := w.client(nil)
		for _, s := range w.stores {
			s.set(failing(dfs.Unsupported), nil)
		}
		start := time.Now()
		_, err := c.PutFile(t.Context(), "/f", client.PutOptions{}, strings.NewReader("x"))
		wantKind(t, err, dfs.Unsupported)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// TestNoOtherGroup has three stores of which one dies: nothing can be stored
// until the map says so, and then on the two that are left.
func TestNoOtherGroup(t *testing.T) {
	inWorld(t, worldOptions{stores: 3}, func(t *testing.T, w *world) {
		c := w.client(nil)
		w.stores[1].set(failing(dfs.Unavailable), nil)
		time.AfterFunc(3*time.Second, func() {
			w.meta.publish(func(m *dfs.Map) {
				for _, p := range m.PGs {
					p.Active = dfs.ActingSet{Epoch: m.Epoch, Stores: []dfs.StoreID{2, 3}}
				}
			})
		})
		start := time.Now()
		put(t, c, "/f", content(1, 1000))
		if took := time.Since(start); took < 3*time.Second || took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		wantContent(t, c, "/f", content(1, 1000))
	})
}

func TestTooFewStores(t *testing.T) {
	down := func(m *dfs.Map) {
		for _, p := range m.PGs {
			p.Active.Stores = []dfs.StoreID{1}
		}
		m.Stores[1].State, m.Stores[2].State = dfs.StoreDown, dfs.StoreOut
	}
	inWorld(t, worldOptions{stores: 3, setMap: down}, func(t *testing.T, w *world) {
		c := w.client(func(o *client.Options) { o.Timeout = 10 * time.Second })
		_, err := c.PutFile(t.Context(), "/f", client.PutOptions{}, strings.NewReader("x"))
		wantKind(t, err, dfs.Unavailable)
		for _, want := range []string{"put /f", "rep3", "needs 3", "at least 2", "1 are up", "default_class"} {
			if !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("the error does not say %q: %v", want, err)
			}
		}
		_, err = c.Stat(t.Context(), "/f")
		wantKind(t, err, dfs.NotExist)
		_, err = c.PutFile(t.Context(), "/g", client.PutOptions{Class: dfs.Replicated(2)}, strings.NewReader("x"))
		if !strings.Contains(fmt.Sprint(err), "no placement group of storage class rep2") {
			t.Errorf("error %v", err)
		}
	})
}

// TestStaleEpoch has stores that know of a later epoch: the client fetches that
// map and stores the block under a new name.
func TestStaleEpoch(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c := w.client(nil)
		put(t, c, "/warm", []byte("x")) // the client waits for news of the map from here on
		var refused atomic.Int64
		for _, s := range w.stores {
			s.set(func(_ context.Context, _ dfs.BlockID, e dfs.Epoch) error {
				if e < 6 {
					refused.Add(1)
					return dfs.Errorf(dfs.Stale, "put", "epoch %d is over", e)
				}
				return nil
			}, nil)
		}
		// The client must ask: it has no word of the map yet.
		w.meta.mu.Lock()
		m := *w.meta.m
		m.PGs = nil
		for _, p := range w.meta.m.PGs {
			p = p.Clone()
			p.Active.Epoch = 6
			for i := range p.Members {
				p.Members[i].Complete = 6
			}
			m.PGs = append(m.PGs, p)
		}
		m.Epoch = 6
		w.meta.m = &m
		w.meta.mu.Unlock()
		start := time.Now()
		put(t, c, "/f", content(1, 1000))
		if took := time.Since(start); took > time.Second || refused.Load() == 0 {
			t.Errorf("it took %v, with %d refusals", took, refused.Load())
		}
		wantContent(t, c, "/f", content(1, 1000))
	})
}

func TestReadFailsOver(t *testing.T) {
	flip := func(w *world, ids ...dfs.StoreID) {
		for _, id := range ids {
			for bid, b := range w.stores[id].held() {
				bad := bytes.Clone(b.payload)
				bad[len(bad)/2] ^= 0x40
				w.stores[id].mu.Lock()
				w.stores[id].blocks[bid] = &block{desc: b.desc, payload: bad}
				w.stores[id].mu.Unlock()
			}
		}
	}
	lose := func(w *world, ids ...dfs.StoreID) {
		for _, id := range ids {
			w.stores[id].mu.Lock()
			clear(w.stores[id].blocks)
			w.stores[id].mu.Unlock()
		}
	}
	onGet := func(f func(context.Context, dfs.BlockID) error) func(*world, ...dfs.StoreID) {
		return func(w *world, ids ...dfs.StoreID) {
			for _, id := range ids {
				w.stores[id].set(nil, f)
			}
		}
	}
	refuse := onGet(func(context.Context, dfs.BlockID) error { return dfs.Errorf(dfs.Unavailable, "get", "no") })
	ignorant := onGet(func(context.Context, dfs.BlockID) error { return dfs.Errorf(dfs.Unknowable, "get", "incomplete") })
	slow := onGet(func(ctx context.Context, _ dfs.BlockID) error { return hang(ctx) })
	for _, tc := range []struct {
		name   string
		damage func(*world, ...dfs.StoreID)
		limit  time.Duration // to read 1 block while one or two stores are broken
		all    dfs.Kind      // when all three are
		says   string
	}{
		{"corrupt", flip, time.Second, dfs.Corrupt, "checksum"},
		{"lost", lose, time.Second, dfs.Corrupt, "is lost"},
		{"refuses", refuse, time.Second, dfs.Unavailable, "its copies are on s1"},
		{"does not know", ignorant, time.Second, dfs.Unavailable, "its copies are on s1"},
		{"hangs", slow, 2 * time.Second, dfs.Unavailable, "its copies are on s1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, worldOptions{stores: 3}, func(t *testing.T, w *world) {
				c := w.client(nil)
				data := content(1, 3*blockSize)
				put(t, c, "/f", data)
				for n := range 2 {
					tc.damage(w, dfs.StoreID(n+1))
					start := time.Now()
					wantContent(t, c, "/f", data)
					if took := time.Since(start); took > tc.limit {
						t.Errorf("%d stores: it took %v", n+1, took)
					}
				}
				tc.damage(w, 3)
				f, err := c.Open(t.Context(), "/f")
				noErr(t, err)
				var got bytes.Buffer
				_, err = f.WriteTo(t.Context(), &got)
				wantKind(t, err, tc.all)
				if !strings.Contains(fmt.Sprint(err), tc.says) {
					t.Errorf("the error does not say %q: %v", tc.says, err)
				}
				p := make([]byte, len(data))
				_, err = f.ReadAt(t.Context(), p, 10)
				wantKind(t, err, tc.all)
				if got.Len() > 0 {
					t.Errorf("%d bytes were written in spite of all", got.Len())
				}
			})
		})
	}
}

// TestReplacedWhileRead drops a file's old blocks as soon as it has new ones: a
// read starts again from the new extents.
func TestReplacedWhileRead(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c, ctx := w.client(nil), t.Context()
		old, fresh := content(1, 1000), content(2, 1000)
		put(t, c, "/f", old)
		f, err := c.Open(ctx, "/f")
		noErr(t, err)
		var once sync.Once
		gone := func(context.Context, dfs.BlockID) error {
			once.Do(func() {
				g, err := c.Open(ctx, "/f")
				noErr(t, err)
				_, err = g.WriteAt(ctx, fresh, 0)
				noErr(t, err)
				before := map[dfs.StoreID][]dfs.BlockID{}
				for id, s := range w.stores {
					for b := range s.held() {
						before[id] = append(before[id], b)
					}
				}
				noErr(t, g.Close(ctx))
				for id, blocks := range before {
					s := w.stores[id]
					s.mu.Lock()
					for _, b := range blocks {
						delete(s.blocks, b)
					}
					s.mu.Unlock()
				}
			})
			return dfs.Errorf(dfs.NotExist, "get", "trimmed")
		}
		for _, s := range w.stores {
			s.set(nil, func(ctx context.Context, id dfs.BlockID) error {
				err := gone(ctx, id)
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.blocks[id] != nil {
					return nil
				}
				return err
			})
		}
		p := make([]byte, 1000)
		if n, err := f.ReadAt(ctx, p, 0); n != 1000 || err != nil || !bytes.Equal(p, fresh) {
			t.Errorf("%d bytes, %v, fresh %v", n, err, bytes.Equal(p, fresh))
		}
	})
}

// TestFileAgainstModel writes, truncates and reads at random, and compares with
// bytes in memory.
func TestFileAgainstModel(t *testing.T) {
	for seed := range uint64(4) {
		inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
			c, ctx := w.client(func(o *client.Options) { o.BlockSize = 1000 }), t.Context()
			put(t, c, "/f", nil)
			f, err := c.Open(ctx, "/f")
			noErr(t, err)
			r := rand.New(rand.NewPCG(seed, 99))
			var model []byte
			grow := func(n int) {
				for len(model) < n {
					model = append(model, make([]byte, n-len(model))...)
				}
			}
			for range 200 {
				switch r.IntN(10) {
				case 0:
					noErr(t, f.Sync(ctx))
				case 1:
					n := r.IntN(12000)
					noErr(t, f.Truncate(ctx, int64(n)))
					grow(n)
					model = model[:n]
				case 2, 3, 4:
					off, p := r.IntN(12000), make([]byte, r.IntN(6000))
					n, err := f.ReadAt(ctx, p, int64(off))
					want := model[min(off, len(model)):min(off+len(p), len(model))]
					if err != nil && err != io.EOF || !bytes.Equal(p[:n], want) {
						t.Fatalf("seed %d: read of %d at %d gave %d of %d bytes, %v", seed, len(p), off, n, len(want), err)
					}
				default:
					off, p := r.IntN(9000), content(r.Uint64(), 1+r.IntN(3000))
					n, err := f.WriteAt(ctx, p, int64(off))
					noErr(t, err)
					grow(off + n)
					copy(model[off:], p)
				}
			}
			noErr(t, f.Close(ctx))
			wantContent(t, c, "/f", model)
			w.meta.check(t)
		})
	}
}

// TestHoles reads zeros where nothing was written, and nowhere else.
func TestHoles(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c, ctx := w.client(nil), t.Context()
		put(t, c, "/f", nil)
		f, err := c.Open(ctx, "/f")
		noErr(t, err)
		want := make([]byte, 5*blockSize)
		for _, off := range []int{100, 2*blockSize + 7, 4 * blockSize} {
			copy(want[off:], "island")
			_, err := f.WriteAt(ctx, []byte("island"), int64(off))
			noErr(t, err)
		}
		noErr(t, f.Truncate(ctx, int64(len(want))))
		wantContent(t, c, "/f", want)
	})
}
