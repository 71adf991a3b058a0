package raftgroup

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"dfsd/dfs"
)

// TestLostAnswerOfAnInstall loses what a follower says once it has installed a
// snapshot. The leader sends another, of which the follower has no need: that
// must tell the leader how far it is, or a group that needs this follower for a
// majority would send snapshots for ever.
func TestLostAnswerOfAnInstall(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		defer c.stop()
		var lead atomic.Uint32
		c.tune = func(o *Options) {
			o.Hooks.SnapshotStep = func(_ dfs.GroupID, step SnapshotStep) {
				if to := dfs.NodeID(lead.Load()); step == SnapDone && lead.CompareAndSwap(uint32(to), 0) {
					c.mu.Lock()
					defer c.mu.Unlock()
					c.cut[[2]dfs.NodeID{o.Node, to}] = true
				}
			}
		}
		sleeper, _ := c.sleeper(1000)
		lead.Store(uint32(c.leader(0)))
		third := 6 - sleeper - c.leader(0)
		c.heal()
		c.isolate(third, true)
		for lead.Load() != 0 {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
		c.heal()
		c.isolate(third, true)
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			_, err := c.h(c.leader(0)).Propose(ctx, 0, []byte("put new value"))
			cancel()
			if err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("nothing is committed in a minute; %d snapshots were sent", c.snapshots)
	})
}
