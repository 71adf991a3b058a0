package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/transport/wire"
)

// TestSequenceAndFloor runs many mutations side by side, with refusals, silence
// and failures, and checks what the groups were sent.
func TestSequenceAndFloor(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c, ctx := w.client(nil), t.Context()
		var n atomic.Int64
		w.meta.intercept(func(ctx context.Context, _ dfs.GroupID) error {
			switch n.Add(1) % 7 {
			case 0:
				return hang(ctx)
			case 1:
				return dfs.Errorf(dfs.Unavailable, "change", "an election")
			case 2:
				return dfs.Errorf(dfs.Busy, "change", "too much to do")
			}
			return nil
		})
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				_, err := c.PutFile(ctx, fmt.Sprintf("/f%d", i), client.PutOptions{}, nil)
				noErr(t, err)
			})
		}
		wg.Wait()
		w.meta.intercept(nil)
		put(t, c, "/last", nil)

		bySeq := map[uint64]*wire.Command{}
		var highest uint64
		for _, cmd := range w.meta.take() {
			if cmd.Floor > cmd.Seq || cmd.Session != 1 {
				t.Fatalf("command %d of session %d with floor %d", cmd.Seq, cmd.Session, cmd.Floor)
			}
			if old := bySeq[cmd.Seq]; old != nil && !bytes.Equal(old.GetCreate().GetName(), cmd.GetCreate().GetName()) {
				t.Fatalf("command %d is used twice", cmd.Seq)
			}
			bySeq[cmd.Seq] = cmd
			highest = max(highest, cmd.Seq)
		}
		if len(bySeq) != 301 || highest != 301 || bySeq[301].Floor != 301 {
			t.Errorf("%d commands up to %d, the last with floor %d", len(bySeq), highest, bySeq[highest].GetFloor())
		}
		w.meta.check(t)
	})
}

// TestSameBytes checks that what may have been carried out is sent again byte
// for byte.
func TestSameBytes(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c, ctx := w.client(nil), t.Context()
		var n atomic.Int64
		w.meta.intercept(func(ctx context.Context, _ dfs.GroupID) error {
			if n.Add(1) < 3 {
				return dfs.Errorf(dfs.Unknown, "change", "the leader stepped down")
			}
			return nil
		})
		_, err := c.PutFile(ctx, "/f", client.PutOptions{}, nil)
		noErr(t, err)
		sent := w.meta.take()
		if len(sent) != 3 || sent[0].String() != sent[1].String() || sent[1].String() != sent[2].String() {
			t.Errorf("commands: %v", sent)
		}
	})
}

func TestSessionLoss(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c, ctx := w.client(nil), t.Context()
		put(t, c, "/f", content(1, 100))
		time.Sleep(10 * sessionTTL) // renewed all the while
		put(t, c, "/g", content(1, 100))
		if last := w.meta.take(); last[len(last)-1].Session != 1 {
			t.Errorf("session %d after a while", last[len(last)-1].Session)
		}

		// Definitely not carried out: the group refuses the session.
		w.meta.expire()
		_, err := c.PutFile(ctx, "/h", client.PutOptions{}, nil)
		wantKind(t, err, dfs.Fenced)
		put(t, c, "/h", content(2, 100)) // under a new one
		if last := w.meta.take(); last[len(last)-1].Session != 2 {
			t.Errorf("session %d after the loss", last[len(last)-1].Session)
		}

		// Under way when it is lost: nobody knows.
		w.meta.intercept(func(ctx context.Context, _ dfs.GroupID) error { return hang(ctx) })
		done := make(chan error)
		go func() {
			_, err := c.PutFile(ctx, "/i", client.PutOptions{}, nil)
			done <- err
		}()
		time.Sleep(time.Second)
		w.meta.expire()
		err = <-done
		wantKind(t, err, dfs.Unknown)
		w.meta.intercept(nil)
		for _, cmd := range w.meta.take() {
			if cmd.Session > 2 {
				t.Errorf("it was sent again under session %d", cmd.Session)
			}
		}
		put(t, c, "/j", nil)
		w.meta.check(t)
	})
}

// TestBlocksOfALostSession: contents stored under a lost session are not
// committed under another.
func TestBlocksOfALostSession(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c, ctx := w.client(nil), t.Context()
		put(t, c, "/f", content(1, 100))
		f, err := c.Open(ctx, "/f")
		noErr(t, err)
		_, err = f.WriteAt(ctx, []byte("new"), 0)
		noErr(t, err)
		w.meta.expire()
		time.Sleep(sessionTTL)
		_, err = f.WriteAt(ctx, []byte("er"), 3)
		wantKind(t, err, dfs.Unknown)
		wantKind(t, f.Sync(ctx), dfs.Unknown) // nothing of it is there
		noErr(t, f.Sync(ctx))
		wantContent(t, c, "/f", content(1, 100))
		_, err = f.WriteAt(ctx, []byte("NEW"), 0)
		noErr(t, err)
		noErr(t, f.Close(ctx))
		wantContent(t, c, "/f", append([]byte("NEW"), content(1, 100)[3:]...))
	})
}

// TestUnansweredPastTheDeadline: the outcome is unknown, the floor passes it, and
// a late arrival is refused.
func TestUnansweredPastTheDeadline(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c := w.client(func(o *client.Options) { o.Timeout = 12 * time.Second })
		ctx := t.Context()
		put(t, c, "/f", nil)
		w.meta.take()
		w.meta.intercept(func(ctx context.Context, _ dfs.GroupID) error { return hang(ctx) })
		start := time.Now()
		_, err := c.PutFile(ctx, "/late", client.PutOptions{}, nil)
		wantKind(t, err, dfs.Unknown)
		if took := time.Since(start); took > 13*time.Second {
			t.Errorf("it took %v", took)
		}
		late := w.meta.take()[0]
		w.meta.intercept(func(context.Context, dfs.GroupID) error { return dfs.Errorf(dfs.Unavailable, "change", "no quorum") })
		_, err = c.PutFile(ctx, "/never", client.PutOptions{}, nil)
		wantKind(t, err, dfs.Unavailable) // certainly not carried out
		w.meta.intercept(nil)
		put(t, c, "/next", nil)
		res := w.meta.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_Command{Command: late}})
		if dfs.Kind(res.Kind) != dfs.Stale {
			t.Errorf("the late command gives %v", res)
		}
		_, err = c.Stat(ctx, "/late")
		wantKind(t, err, dfs.NotExist)
	})
}

// TestRacingDirectories has many clients make and remove the same directory: one
// wins each time, and nothing is left over.
func TestRacingDirectories(t *testing.T) {
	inWorld(t, worldOptions{maxLatency: 20 * time.Millisecond}, func(t *testing.T, w *world) {
		w.meta.place = func(dfs.Ino, []byte) dfs.GroupID { return 2 }
		var clients []*client.Client
		for i := range 4 {
			clients = append(clients, w.client(func(o *client.Options) {
				next := atomic.Uint64{}
				o.Rand = func() uint64 { return next.Add(1)*0x9E3779B97F4A7C15 + uint64(i)<<32 }
			}))
		}
		for range 5 {
			for _, verb := range []func(*client.Client) error{
				func(c *client.Client) error { _, err := c.Mkdir(t.Context(), "/d", 0o755); return err },
				func(c *client.Client) error { return c.Rmdir(t.Context(), "/d") },
			} {
				var wg sync.WaitGroup
				var won atomic.Int64
				for _, c := range clients {
					wg.Go(func() {
						err := verb(c)
						if err == nil {
							won.Add(1)
						} else if kind := dfs.KindOf(err); kind != dfs.Exist && kind != dfs.NotExist {
							t.Errorf("error %v", err)
						}
					})
				}
				wg.Wait()
				if won.Load() != 1 {
					t.Errorf("%d clients won", won.Load())
				}
				w.meta.check(t)
			}
		}
	})
}

func TestReadOnly(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		put(t, w.client(nil), "/f", content(1, 100))
		c := w.client(func(o *client.Options) { o.ReadOnly = true })
		wantContent(t, c, "/f", content(1, 100))
		_, err := c.Mkdir(t.Context(), "/d", 0o755)
		wantKind(t, err, dfs.ReadOnly)
		if w.meta.highest != 1 {
			t.Errorf("%d sessions were opened", w.meta.highest)
		}
	})
}

func TestOpen(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		_, err := w.open(func(o *client.Options) { o.Cluster = dfs.ClusterID{0xbb} })
		wantKind(t, err, dfs.WrongCluster)
		start := time.Now()
		_, err = w.open(func(o *client.Options) { o.Metas = []string{"nowhere:1", "m9:7400"} })
		wantKind(t, err, dfs.Unavailable)
		for _, want := range []string{"nowhere:1", "m9:7400"} {
			if !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("the error does not name %s: %v", want, err)
			}
		}
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
		_, err = w.open(func(o *client.Options) { o.Metas = nil })
		wantKind(t, err, dfs.Invalid)
		c := w.client(func(o *client.Options) { o.Metas = []string{"nowhere:1", "m1:1"}; o.Cluster = testCluster })
		if c.Cluster() != testCluster || c.Map().Epoch != 5 {
			t.Errorf("cluster %v, epoch %d", c.Cluster(), c.Map().Epoch)
		}
	})
}

func TestClose(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c := w.client(nil)
		put(t, c, "/f", content(1, 100))
		w.meta.intercept(func(ctx context.Context, _ dfs.GroupID) error { return hang(ctx) })
		done := make(chan error, 1)
		go func() {
			_, err := c.Mkdir(t.Context(), "/d", 0o755)
			done <- err
		}()
		synctest.Wait()
		c.Close()
		if err := <-done; err == nil {
			t.Error("an operation survived its client")
		}
		if len(w.meta.sessions) != 0 {
			t.Errorf("%d sessions are open", len(w.meta.sessions))
		}
		_, err := c.Stat(t.Context(), "/f")
		wantKind(t, err, dfs.Unavailable)
		c.Close()
	})
}

func TestCancel(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c := w.client(nil)
		put(t, c, "/f", content(1, 100))
		for _, s := range w.stores {
			s.set(func(ctx context.Context, _ dfs.BlockID, _ dfs.Epoch) error { return hang(ctx) }, func(ctx context.Context, _ dfs.BlockID) error { return hang(ctx) })
		}
		for name, op := range map[string]func(context.Context) error{
			"put": func(ctx context.Context) error {
				_, err := c.PutFile(ctx, "/g", client.PutOptions{}, strings.NewReader("x"))
				return err
			},
			"read": func(ctx context.Context) error {
				f, err := c.Open(ctx, "/f")
				noErr(t, err)
				_, err = f.WriteTo(ctx, &bytes.Buffer{})
				return err
			},
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			why := errors.New("the user has seen enough")
			time.AfterFunc(time.Second, func() { cancel(why) })
			start := time.Now()
			if err := op(ctx); err == nil {
				t.Errorf("%s: no error", name)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("%s: it took %v", name, took)
			}
		}
	})
}
