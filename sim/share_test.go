package sim

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
)

// TestSharedRequests: many callers of one client, which share requests, make,
// rename and find their files while leaders crash. Every answer is right for its
// own caller, and what was answered is there in the end.
func TestSharedRequests(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		const callers, rounds = 60, 20
		var work sync.WaitGroup
		for i := range callers {
			work.Go(func() { shareRounds(t, p, i, rounds) })
		}
		for i := range 3 {
			time.Sleep(2 * time.Second)
			c.Crash(i)
			time.Sleep(5 * time.Second)
			if err := c.Start(i); err != nil {
				t.Error(err)
			}
		}
		work.Wait()
		for i := range callers {
			for n := range rounds {
				if _, err := p.Lstat(t.Context(), fmt.Sprintf("/r%d-%d", i, n)); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

func shareRounds(t *testing.T, p *Peer, i, rounds int) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	for n := range rounds {
		name, renamed := fmt.Sprintf("/f%d-%d", i, n), fmt.Sprintf("/r%d-%d", i, n)
		a, err := p.Symlink(ctx, name, name, client.PutOptions{})
		if err != nil {
			t.Errorf("make %s: %v", name, err)
			return
		}
		if got, err := p.Lstat(ctx, name); err != nil || got.Ino != a.Ino {
			t.Errorf("stat %s: %v and %v, want inode %v", name, got, err, a.Ino)
		}
		if target, err := p.ReadLink(ctx, name); err != nil || target != name {
			t.Errorf("%s leads to %q, %v", name, target, err)
		}
		if err := p.Rename(ctx, name, renamed, true); err != nil {
			t.Errorf("rename %s: %v", name, err)
		}
		if _, err := p.Lstat(ctx, name); dfs.KindOf(err) != dfs.NotExist {
			t.Errorf("%s after it was renamed: %v", name, err)
		}
		time.Sleep(time.Second)
	}
}
