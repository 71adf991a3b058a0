package raftgroup

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"dfsd/dfs"
)

// appends counts the appends that a leader sends to one peer from now on.
func (c *cluster) appends(lead, to dfs.NodeID) (full, empty *atomic.Int64) {
	full, empty = new(atomic.Int64), new(atomic.Int64)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tap = func(from, dest dfs.NodeID, msg []byte) {
		fs, err := parseBatch(msg, from, dest)
		if err != nil {
			c.t.Error(err)
		}
		for _, f := range fs {
			switch {
			case from != lead || dest != to || f.kind != frameRaft || f.msg.GetType() != pb.MsgApp:
			case len(f.msg.GetEntries()) > 0:
				full.Add(1)
			default:
				empty.Add(1)
			}
		}
	}
	return full, empty
}

// calm makes heartbeats rare, which tell of commits too.
func calm(o *Options) { o.HeartbeatTicks, o.ElectionTicks, o.QuiesceTicks = 100, 300, 1000 }

// TestCommitTravelsWithTheNextEntries: one message to each follower for each of the
// entries that follow each other, and one more at the end, a moment after the last.
func TestCommitTravelsWithTheNextEntries(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		c.tune = calm
		defer c.stop()
		c.boot()
		c.propose(0, "put a 0")
		lead := c.leader(0)
		peer := lead%3 + 1
		time.Sleep(4 * holdTime)
		full, empty := c.appends(lead, peer)
		const entries = 100
		for i := range entries {
			c.propose(0, fmt.Sprintf("put a %d", i))
		}
		if f, e := full.Load(), empty.Load(); f != entries || e != 0 {
			t.Errorf("%d entries took %d appends with entries and %d without", entries, f, e)
		}
		time.Sleep(2*holdTime + 2*time.Millisecond)
		if e := empty.Load(); e != 1 {
			t.Errorf("%d appends without entries after the last one, want 1", e)
		}
		want, _ := c.h(lead).Status(0)
		for _, id := range c.all() {
			if got, _ := c.h(id).Status(0); got.Applied != want.Applied {
				t.Errorf("node %v has applied entries through %d, its leader through %d", id, got.Applied, want.Applied)
			}
		}
	})
}

// TestFollowerReadBringsTheCommit: a follower's read does not wait until the
// leader would have told of the commit.
func TestFollowerReadBringsTheCommit(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		c.tune = calm
		defer c.stop()
		c.boot()
		c.propose(0, "put a 0")
		lead := c.leader(0)
		peer := lead%3 + 1
		for i := range 20 {
			c.propose(0, fmt.Sprintf("put a %d", i))
			begun := time.Now()
			if got, err := c.read(peer, 0, "a"); err != nil || got != fmt.Sprint(i) {
				t.Fatalf("read %q, %v, want %d", got, err, i)
			}
			if took := time.Since(begun); took >= holdTime {
				t.Fatalf("read %d took %v", i, took) // 4 messages of a millisecond
			}
		}
	})
}

// TestProposalsShareTheNextAppend: what comes while the leader syncs is one append
// after it, and not one each before it.
func TestProposalsShareTheNextAppend(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var slow atomic.Bool
		c := newCluster(t, 1, 3, 0)
		c.tune = func(o *Options) {
			calm(o)
			o.Hooks.Failpoint = func(_ dfs.GroupID, at Failpoint) {
				if at == FailStaged && slow.Load() {
					time.Sleep(50 * time.Millisecond) // a sync
				}
			}
		}
		defer c.stop()
		c.boot()
		c.propose(0, "put a 0")
		lead := c.leader(0)
		time.Sleep(4 * holdTime)
		full, _ := c.appends(lead, lead%3+1)
		slow.Store(true)
		var callers sync.WaitGroup
		for i := range 40 {
			callers.Go(func() { c.propose(0, fmt.Sprintf("put k%d x", i)) })
			time.Sleep(time.Millisecond)
		}
		callers.Wait()
		slow.Store(false)
		if f := full.Load(); f != 2 {
			t.Errorf("40 proposals during one sync took %d appends, want 2: the first, and all others", f)
		}
	})
}

// TestNoSleepOverAHeldCommit: a leader that would sleep before it has said of the last
// commit says it first. The followers would not sleep, and elect another.
func TestNoSleepOverAHeldCommit(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		c.tune = func(o *Options) {
			o.Tick = time.Millisecond
			o.HeartbeatTicks, o.ElectionTicks, o.QuiesceTicks = 10, 200, 1
		}
		defer c.stop()
		c.boot()
		c.propose(0, "put a 0")
		c.converge(1, 2, 3)
		time.Sleep(time.Second)
		before, _ := c.h(c.leader(0)).Status(0)
		for i := range 40 {
			c.propose(0, fmt.Sprintf("put a %d", i))
			time.Sleep(time.Second)
		}
		c.converge(1, 2, 3)
		if after, _ := c.h(c.leader(0)).Status(0); after.Term != before.Term {
			t.Errorf("the group went from term %d to %d", before.Term, after.Term)
		}
	})
}
