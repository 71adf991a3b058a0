package client_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
)

// TestOneStuckGroup: a group that does not answer holds up its own commands
// only, however long that lasts: here a mkdir that goes on without its caller.
func TestOneStuckGroup(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		w.meta.place = func(dfs.Ino, []byte) dfs.GroupID { return 3 }
		c, ctx := w.client(nil), t.Context()
		w.meta.intercept(func(ctx context.Context, g dfs.GroupID) error {
			if g == 3 {
				return hang(ctx)
			}
			return nil
		})
		_, err := c.Mkdir(ctx, "/stuck", 0o755)
		wantKind(t, err, dfs.Unknown)
		start := time.Now()
		for i := range 1200 {
			_, err := c.Symlink(ctx, "target", fmt.Sprintf("/l%d", i), client.PutOptions{})
			noErr(t, err)
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("1,200 commands of another group took %v", took)
		}
		w.meta.intercept(nil)
		time.Sleep(time.Minute)
		_, err = c.Stat(ctx, "/stuck")
		noErr(t, err)
		w.meta.check(t)
	})
}

// TestManyStuckDirectories: however many of them go on without their callers,
// there is room for the commands of other groups.
func TestManyStuckDirectories(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		w.meta.place = func(dfs.Ino, []byte) dfs.GroupID { return 3 }
		c := w.client(nil)
		put(t, c, "/f", nil) // the session
		w.meta.intercept(func(ctx context.Context, g dfs.GroupID) error {
			if g == 3 {
				return hang(ctx)
			}
			return nil
		})
		var wg sync.WaitGroup
		kinds := make([]dfs.Kind, 400)
		for i := range kinds {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				_, err := c.Mkdir(ctx, fmt.Sprintf("/d%d", i), 0o755)
				kinds[i] = dfs.KindOf(err)
			})
		}
		wg.Wait()
		start := time.Now()
		for i := range 10 {
			_, err := c.Symlink(t.Context(), "target", fmt.Sprintf("/l%d", i), client.PutOptions{})
			noErr(t, err)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("10 commands of another group took %v", took)
		}
		w.meta.intercept(nil)
		time.Sleep(time.Minute)
		for i, kind := range kinds {
			_, err := c.Stat(t.Context(), fmt.Sprintf("/d%d", i))
			switch { // Unknown: it goes on; else it was not begun
			case kind == dfs.Unknown:
				noErr(t, err)
			case kind == dfs.Deadline:
				wantKind(t, err, dfs.NotExist)
			default:
				t.Errorf("mkdir %d: %v", i, kind)
			}
		}
		w.meta.check(t)
	})
}

// TestSessionLossAfterTheCommit: what the parent's group has committed is done,
// though the session is lost before its intent is ended.
func TestSessionLossAfterTheCommit(t *testing.T) {
	for _, verb := range []string{"mkdir", "rmdir"} {
		t.Run(verb, func(t *testing.T) {
			inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
				w.meta.place = func(dfs.Ino, []byte) dfs.GroupID { return 3 }
				c, ctx := w.client(nil), t.Context()
				if verb == "rmdir" {
					_, err := c.Mkdir(ctx, "/d", 0o755)
					noErr(t, err)
				}
				calls := 0
				w.meta.intercept(func(ctx context.Context, g dfs.GroupID) error {
					if g != 3 {
						return nil
					}
					if calls++; calls > 1 { // the first is prepare or freeze, the next ends the intent
						w.meta.expire()
					}
					return nil
				})
				var err error
				if verb == "mkdir" {
					_, err = c.Mkdir(ctx, "/d", 0o755)
				} else {
					err = c.Rmdir(ctx, "/d")
				}
				noErr(t, err)
				_, err = c.Stat(ctx, "/d")
				if exists := err == nil; exists != (verb == "mkdir") {
					t.Errorf("after %s: %v", verb, err)
				}
			})
		})
	}
}
