package raftgroup

import (
	"testing"
	"time"

	"dfsd/dfs"
)

// TestLeaderIsWhatStatusSays: the cheap answer about a group's leader is the
// careful one, whoever leads, and costs no memory.
func TestLeaderIsWhatStatusSays(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, testGroups(3)...)
		defer c.stop()
		c.boot()
		check := func() {
			t.Helper()
			for _, id := range c.all() {
				for _, g := range c.groups {
					st, _ := c.h(id).Status(g)
					if o, ok := c.h(id).Leader(g); !ok || o.Leader != st.Leader || o.Term != st.Term {
						t.Errorf("%v on node %v: %+v, the status says node %v in term %d", g, id, o, st.Leader, st.Term)
					}
				}
			}
		}
		for _, g := range c.groups {
			c.propose(g, "put a 1")
		}
		c.converge(c.all()...)
		check()
		lead := c.leader(0)
		if err := c.h(lead).TransferLeader(t.Context(), 0, lead%3+1); err != nil {
			t.Fatal(err)
		}
		c.converge(c.all()...)
		check()
		lead = c.leader(1)
		c.isolate(lead, true)
		time.Sleep(10 * time.Second)
		if o, _ := c.h(lead).Leader(1); o.Leader != 0 {
			t.Errorf("cut off from all others, node %v still takes node %v for the leader", lead, o.Leader)
		}
		check()
		c.heal()
		c.converge(c.all()...)
		check()
		if _, ok := c.h(1).Leader(77); ok {
			t.Error("a group without a replica has a leader")
		}
		if n := testing.AllocsPerRun(100, func() { c.h(1).Leader(2) }); n > 0 {
			t.Errorf("the question allocates %v times", n)
		}
		if r := c.h(1).replica(2); r != nil {
			r.quarantine(dfs.Errorf(dfs.Internal, "test", "broken"))
		}
		if o, ok := c.h(1).Leader(2); !ok || o.Leader != 0 {
			t.Errorf("a replica in quarantine takes node %v for the leader", o.Leader)
		}
	})
}
