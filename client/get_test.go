package client_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
)

// TestGetFileAsksOnce: the answer that finds a file says where its bytes are; only
// a directory in another group and a long list of extents take another request.
func TestGetFileAsksOnce(t *testing.T) {
	inWorld(t, worldOptions{class: dfs.Replicated(1)}, func(t *testing.T, w *world) {
		c, ctx := w.client(func(o *client.Options) { o.BlockSize = 128 }), t.Context()
		_, err := c.Mkdir(ctx, "/d", 0o755)
		noErr(t, err)
		group := func(path string) dfs.GroupID {
			a, err := c.Stat(ctx, path)
			noErr(t, err)
			return a.Ino.Group()
		}
		hop := 0
		if group("/d") != group("/") {
			hop = 1
		}
		put(t, c, "/short", content(1, 100))
		put(t, c, "/d/short", content(2, 64*128))
		put(t, c, "/long", content(3, 64*128+1))
		put(t, c, "/empty", nil)
		_, err = c.Symlink(ctx, "/short", "/link", client.PutOptions{})
		noErr(t, err)
		for _, x := range []struct {
			path  string
			bytes int64
			want  int // requests
		}{
			{"/short", 100, 1}, {"/empty", 0, 1}, {"/d/short", 64 * 128, 1 + hop}, {"/link", 100, 2}, {"/long", 64*128 + 1, 2},
		} {
			w.meta.mu.Lock()
			w.meta.queries = 0
			w.meta.mu.Unlock()
			n, err := c.GetFile(ctx, x.path, io.Discard)
			noErr(t, err)
			w.meta.mu.Lock()
			if n != x.bytes || w.meta.queries != x.want {
				t.Errorf("%s: %d bytes after %d requests, want %d after %d", x.path, n, w.meta.queries, x.bytes, x.want)
			}
			w.meta.mu.Unlock()
		}
		for path, kind := range map[string]dfs.Kind{"/d": dfs.IsDir, "/": dfs.IsDir, "/none": dfs.NotExist, "/short/x": dfs.NotDir, "/short/": dfs.NotDir, "x": dfs.Invalid} {
			_, err := c.GetFile(ctx, path, io.Discard)
			wantKind(t, err, kind)
		}
	})
}

// TestGetFileReplacedMeanwhile: extents that came with the name and are gone when
// their blocks are read are asked for again.
func TestGetFileReplacedMeanwhile(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c, ctx := w.client(nil), t.Context()
		old, fresh := content(1, 1000), content(2, 1000)
		put(t, c, "/f", old)
		var once sync.Once
		for _, s := range w.stores {
			s.set(nil, func(context.Context, dfs.BlockID) error {
				once.Do(func() {
					before := map[dfs.StoreID]map[dfs.BlockID]*block{}
					for id, s := range w.stores {
						before[id] = s.held()
					}
					f, err := c.Open(ctx, "/f")
					noErr(t, err)
					_, err = f.WriteAt(ctx, fresh, 0)
					noErr(t, err)
					noErr(t, f.Close(ctx))
					for id, blocks := range before {
						s := w.stores[id]
						s.mu.Lock()
						for b := range blocks {
							delete(s.blocks, b)
						}
						s.mu.Unlock()
					}
				})
				return dfs.Errorf(dfs.NotExist, "get", "trimmed")
			})
		}
		for _, s := range w.stores { // what is there is sent, from the second request on
			refuse := s.onGet
			s.set(nil, func(ctx context.Context, id dfs.BlockID) error {
				s.mu.Lock()
				there := s.blocks[id] != nil
				s.mu.Unlock()
				err := refuse(ctx, id)
				s.mu.Lock()
				defer s.mu.Unlock()
				if there && s.blocks[id] != nil {
					return nil
				}
				return err
			})
		}
		var got bytes.Buffer
		if _, err := c.GetFile(ctx, "/f", &got); err != nil || !bytes.Equal(got.Bytes(), fresh) {
			t.Errorf("%d bytes, %v, fresh %v", got.Len(), err, bytes.Equal(got.Bytes(), fresh))
		}
	})
}

// TestReadsPastDeadStores has two of three stores that refuse, or that do not
// answer at all, and the map that says nothing about it at first and then that
// they are down: few reads of many meet them.
func TestReadsPastDeadStores(t *testing.T) {
	const files = 60
	for _, tc := range []struct {
		name  string
		onGet func(context.Context, dfs.BlockID) error
	}{
		{"refuse", func(context.Context, dfs.BlockID) error {
			return dfs.Errorf(dfs.Unavailable, "get", "as the test says")
		}},
		{"hang", func(ctx context.Context, _ dfs.BlockID) error { return hang(ctx) }},
	} {
		for _, down := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, down in the map %v", tc.name, down), func(t *testing.T) {
				inWorld(t, worldOptions{stores: 3}, func(t *testing.T, w *world) {
					writer := w.client(nil)
					for i := range files {
						put(t, writer, fmt.Sprint("/", i), content(uint64(i), 1000))
					}
					for id := dfs.StoreID(1); id <= 2; id++ {
						w.stores[id].set(nil, tc.onGet)
						w.stores[id].gets = 0
					}
					if down {
						w.meta.publish(func(m *dfs.Map) {
							stores := m.Stores
							m.Stores = nil
							for _, s := range stores {
								x := *s
								if x.ID <= 2 {
									x.State = dfs.StoreDown
								}
								m.Stores = append(m.Stores, &x)
							}
						})
					}
					c := w.client(nil)
					start := time.Now()
					for i := range files {
						wantContent(t, c, fmt.Sprint("/", i), content(uint64(i), 1000))
					}
					took := time.Since(start)
					met := w.stores[1].gets + w.stores[2].gets
					t.Logf("%v, and %d requests to dead stores", took, met)
					if down && met > 0 {
						t.Errorf("%d requests to stores that are down", met)
					}
					if met > 20 || took > 10*time.Second {
						t.Errorf("%d requests to dead stores, %v for all reads", met, took)
					}
				})
			})
		}
	}
}
