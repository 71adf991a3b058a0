package raftgroup

import (
	"fmt"
	"strings"
	"testing"

	"dfsd/dfs"
)

// TestProposeMany: each command of many has an outcome of its own, they are
// applied in their order, and those that the leader took together share syncs.
func TestProposeMany(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		c.tune = func(o *Options) { o.MaxProposalBytes = 100; o.MaxProposals = 50 }
		defer c.stop()
		c.boot()
		c.propose(0, "put a 0")
		lead := c.leader(0)
		h := c.h(lead)

		before := h.LogStats()
		var cmds [][]byte
		for i := range 50 {
			cmds = append(cmds, fmt.Appendf(nil, "put a %d", i+1))
		}
		cmds[7] = []byte(strings.Repeat("x", 101))
		last := "0"
		for i, o := range h.ProposeMany(t.Context(), 0, cmds) {
			if i == 7 {
				wantKind(t, o.Err, dfs.TooLarge)
				continue
			}
			if o.Err != nil || string(o.Reply) != last {
				t.Errorf("command %d: reply %q and %v, want %q", i, o.Reply, o.Err, last)
			}
			last = fmt.Sprint(i + 1)
		}
		if after := h.LogStats(); after.Syncs-before.Syncs > 10 || after.Bytes <= before.Bytes {
			t.Errorf("%d syncs for 49 commands, of %d bytes", after.Syncs-before.Syncs, after.Bytes-before.Bytes)
		}

		busy := 0
		cmds[7] = []byte("put b 1")
		for _, o := range h.ProposeMany(t.Context(), 0, append(cmds, cmds...)) {
			if o.Err != nil {
				wantKind(t, o.Err, dfs.Busy)
				busy++
			}
		}
		if busy != 50 {
			t.Errorf("%d of 100 commands found no room among 50", busy)
		}
		for _, o := range c.h(lead%3+1).ProposeMany(t.Context(), 0, cmds) {
			wantKind(t, o.Err, dfs.NotLeader)
		}
		for _, o := range h.ProposeMany(t.Context(), 77, cmds) {
			wantKind(t, o.Err, dfs.NotExist)
		}
		c.converge(c.all()...)
	})
}

// TestProposeBatch: a command that holds several takes the places of so many.
func TestProposeBatch(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 1, 0)
		c.tune = func(o *Options) { o.MaxProposals = 50 }
		defer c.stop()
		c.boot()
		c.propose(0, "put a 0")
		h := c.h(c.leader(0))
		for range 3 { // what they took is given back
			reply, err := h.ProposeBatch(t.Context(), 0, []byte("put a 0"), 50)
			if err != nil || string(reply) != "0" {
				t.Fatalf("reply %q, %v", reply, err)
			}
		}
		_, err := h.ProposeBatch(t.Context(), 0, []byte("put a 1"), 51)
		wantKind(t, err, dfs.Busy)

		r := h.replica(0)
		id := h.newProposalID()
		waiting, err := r.begin(id, id.entry([]byte("put a 2")), 30)
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.ProposeBatch(t.Context(), 0, []byte("put a 1"), 21)
		wantKind(t, err, dfs.Busy)
		if _, err = h.ProposeBatch(t.Context(), 0, []byte("put a 1"), 20); err != nil {
			t.Fatal(err)
		}
		if _, err = waiting.await(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	})
}
