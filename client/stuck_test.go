package client_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dfsd/client"
	"dfsd/dfs"
)

// TestOneStuckGroup: a group that does not answer holds up its own commands
// only, however long that lasts: here some mkdirs that need it.
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
		for i := range 20 {
			go func() { _, _ = c.Mkdir(ctx, fmt.Sprintf("/stuck%d", i), 0o755) }()
		}
		synctest.Wait()
		start := time.Now()
		for i := range 900 {
			_, err := c.Symlink(ctx, "target", fmt.Sprintf("/l%d", i), client.PutOptions{})
			noErr(t, err)
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("900 commands of another group took %v", took)
		}
		w.meta.intercept(nil)
		time.Sleep(time.Minute)
		_, err := c.Stat(ctx, "/stuck7")
		noErr(t, err)
		w.meta.check(t)
	})
}

// TestManyStuckDirectories: however many of them are stuck, there is room for the
// commands of other groups.
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
		synctest.Wait()
		start := time.Now()
		for i := range 10 {
			_, err := c.Symlink(t.Context(), "target", fmt.Sprintf("/l%d", i), client.PutOptions{})
			noErr(t, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("10 commands of another group took %v", took)
		}
		wg.Wait()
		w.meta.intercept(nil)
		for i, kind := range kinds {
			if kind != dfs.Unknown && kind != dfs.Deadline && kind != dfs.Unavailable {
				t.Errorf("mkdir %d: %v", i, kind)
			}
		}
		w.meta.check(t)
	})
}
