package raftgroup

import (
	"testing"
	"time"
)

// TestDirectoryVanishes removes the directory below a host that works: it ends,
// sooner or later, and Close comes back.
func TestDirectoryVanishes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 1, testGroups(2)...)
		c.boot()
		c.propose(0, "put a 1")
		c.propose(1, "put a 1")
		if err := c.nodes[1].fs.RemoveAll("data"); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			_, _ = c.h(1).Propose(t.Context(), 0, []byte("put b 2"))
			time.Sleep(time.Second)
		}
		done := make(chan error)
		go func() { done <- c.h(1).Close() }()
		select {
		case err := <-done:
			if err == nil {
				t.Error("closed as if nothing had happened")
			}
		case <-time.After(time.Hour):
			t.Fatal("Close hangs")
		}
	})
}
