package raftgroup

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"dfsd/dfs"
)

// TestProposalsOfAllGroupsAreBounded: what waits in one group leaves less room
// to the others, and what has ended gives it back.
func TestProposalsOfAllGroupsAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, testGroups(3)...)
		c.tune = func(o *Options) { o.MaxQueued = 10_000 }
		defer c.stop()
		c.boot()
		for _, g := range c.groups {
			c.propose(g, "put a 0")
			c.retry("move leader", func() error {
				if c.leader(g) == 1 {
					return nil
				}
				return c.h(c.leader(g)).TransferLeader(t.Context(), g, 1)
			})
		}
		cmd := []byte("put a " + strings.Repeat("x", 4000))
		c.isolate(1, true)
		errs := make(chan error, 2)
		for _, g := range c.groups[:2] {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := c.h(1).Propose(ctx, g, cmd)
				errs <- err
			}()
		}
		time.Sleep(10 * time.Millisecond)
		_, err := c.h(1).Propose(t.Context(), c.groups[2], cmd)
		wantKind(t, err, dfs.Busy)
		wantKind(t, <-errs, dfs.Unknown)
		wantKind(t, <-errs, dfs.Unknown)
		if used := c.h(1).queued.used.Load(); used != 0 {
			t.Errorf("%d bytes are taken, and nothing waits", used)
		}
		c.heal()
		for _, g := range c.groups {
			c.retry("put", func() error { // a leader that was cut off may lose its office
				_, err := c.h(c.leader(g)).Propose(t.Context(), g, []byte("put a 1"))
				return err
			})
		}
		c.converge(c.all()...)
		synctest.Wait()
		for _, id := range c.all() {
			if used := c.h(id).messages.used.Load(); used != 0 {
				t.Errorf("node %v: %d bytes of messages are taken, and none waits", id, used)
			}
		}
	})
}

// TestInboxes: one that is full has no room, nor have those that share what is
// full, until something is taken.
func TestInboxes(t *testing.T) {
	all := newBudget(300)
	a, b := inbox{limit: 200, all: all}, inbox{limit: 200, all: all}
	add := func(in *inbox, want bool) {
		t.Helper()
		if got := in.addFrame(frame{kind: frameRemoved}); got != want { // counts as 64 bytes
			t.Errorf("taken %v, want %v; %d, %d of %d", got, want, a.bytes, b.bytes, all.used.Load())
		}
	}
	for range 3 {
		add(&a, true)
	}
	add(&a, false)
	add(&b, true)
	add(&b, false)
	a.take()
	add(&b, true)
	add(&b, true)
	add(&b, false)
	add(&a, true)
	b.take()
	a.take()
	if n := all.used.Load(); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
}

// TestAppendsInFlightAreBounded: a follower that answers nothing is sent no more
// than may be in flight, and what it missed once it answers again.
func TestAppendsInFlightAreBounded(t *testing.T) {
	const limit = maxMessageEntries
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		c.tune = func(o *Options) { o.MaxInflightBytes, o.LogBytes = limit, 16<<20 }
		defer c.stop()
		c.boot()
		c.propose(0, "put a 0")
		lead := c.leader(0)
		mute := lead%3 + 1
		sent := 0
		c.mu.Lock()
		c.lose = func(from, to dfs.NodeID, f *frame) bool {
			if f.kind == frameRaft && f.msg.GetType() == pb.MsgApp && to == mute {
				for _, e := range f.msg.GetEntries() {
					sent += len(e.GetData())
				}
			}
			return from == mute && f.kind == frameRaft && f.msg.GetType() == pb.MsgAppResp
		}
		c.mu.Unlock()
		const size = 100_000
		for range 10 {
			c.propose(0, "put a "+strings.Repeat("x", size))
		}
		c.mu.Lock()
		if sent < size || sent > limit+size+1000 {
			t.Errorf("%d bytes are on their way to a follower that answers nothing, want at most %d and the one that goes beyond", sent, limit)
		}
		c.lose = nil
		c.mu.Unlock()
		c.converge(c.all()...)
	})
}

// TestReadsGivenUp: reads of which the callers have gone take no place, wherever
// they are, and those that others wait for are answered.
func TestReadsGivenUp(t *testing.T) {
	const limit = 8
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		c.tune = func(o *Options) { o.MaxReads = limit }
		defer c.stop()
		c.boot()
		c.propose(0, "put a 0")
		c.converge(c.all()...)
		lone := c.leader(0)
		c.isolate(lone, true)
		h := c.h(lone)
		nothing := func(Reader) error { return nil }
		for i := range 3 * limit { // more than maxReadBatches of them are asked one by one
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			err := h.Read(ctx, 0, nothing)
			cancel()
			if dfs.KindOf(err) != dfs.Unavailable {
				t.Fatalf("read %d without a majority: %v", i, err)
			}
		}
		if !h.replica(0).reads.none() {
			t.Error("reads that nobody waits for are counted")
		}
		var wg sync.WaitGroup
		for i := range limit {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if i%2 == 1 {
					cancel()
				}
				if err := h.Read(ctx, 0, nothing); (err == nil) != (i%2 == 0) {
					t.Errorf("read %d: %v", i, err)
				}
			})
		}
		time.Sleep(5 * time.Second)
		c.heal()
		wg.Wait()
		if !h.replica(0).reads.none() {
			t.Error("answered reads are counted")
		}
	})
}
