package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"dfsd/dfs"
)

// retry calls fn until it succeeds or fails for good.
func (c *cluster) retry(what string, fn func() error) {
	c.t.Helper()
	var err error
	for range 600 {
		if err = fn(); err == nil {
			return
		}
		if !dfs.KindOf(err).Retryable() && dfs.KindOf(err) != dfs.Unknown {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatalf("%s: %v", what, err)
}

// grow makes nodes voters of a group, one after the other.
func (c *cluster) grow(g dfs.GroupID, ids ...dfs.NodeID) {
	c.t.Helper()
	for _, id := range ids {
		if err := c.h(id).JoinGroup(g); err != nil && !errors.Is(err, dfs.Exist) {
			c.t.Fatal(err)
		}
		c.retry("add learner", func() error { return c.h(c.leader(g)).AddLearner(c.t.Context(), g, id) })
		c.retry("promote", func() error { return c.h(c.leader(g)).Promote(c.t.Context(), g, id) })
	}
}

// found starts all nodes and a group whose only voter is the first.
func (c *cluster) found(g dfs.GroupID) {
	c.t.Helper()
	for _, id := range c.all() {
		if err := c.nodes[id].start(); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := c.h(1).CreateGroup(g, []dfs.NodeID{1}); err != nil {
		c.t.Fatal(err)
	}
}

func TestMembersComeAndGo(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 4, 0)
		defer c.stop()
		c.found(0)
		c.propose(0, "put a 1")
		c.grow(0, 2, 3)
		c.propose(0, "put a 2")
		c.converge(1, 2, 3)
		st, _ := c.h(1).Status(0)
		if !slices.Equal(st.Voters, []dfs.NodeID{1, 2, 3}) || len(st.Learners) != 0 {
			t.Fatalf("members %+v", st)
		}

		c.retry("move leader", func() error { return c.h(c.leader(0)).TransferLeader(t.Context(), 0, 2) })
		if got := c.leader(0); got != 2 {
			t.Fatalf("leader is node %v, want 2", got)
		}

		// A removed node is told, stops campaigning, and does so after a restart.
		c.isolate(1, true)
		c.retry("remove", func() error { return c.h(c.leader(0)).RemoveReplica(t.Context(), 0, 1) })
		c.propose(0, "put a 3")
		c.isolate(1, false)
		for _, when := range []string{"removed", "restarted"} {
			time.Sleep(20 * time.Second)
			st, _ = c.h(1).Status(0)
			if st.Role != RoleOutsider {
				t.Errorf("%s: node 1 is %+v", when, st)
			}
			c.crash(1, 0)
		}
		if got := c.leader(0); got != 2 {
			t.Errorf("a removed node disturbed the leader: it is node %v now", got)
		}

		// It may come back.
		c.grow(0, 1)
		c.propose(0, "put a 4")
		c.converge(1, 2, 3)
		if st, _ := c.h(1).Status(0); st.Role != RoleFollower {
			t.Errorf("node 1 is %+v", st)
		}
	})
}

func TestJointChange(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 4, 0)
		defer c.stop()
		c.found(0)
		c.grow(0, 2, 3)
		if err := c.h(4).JoinGroup(0); err != nil {
			t.Fatal(err)
		}
		c.retry("add learner", func() error { return c.h(c.leader(0)).AddLearner(t.Context(), 0, 4) })
		c.retry("replace 1 by 4", func() error {
			return c.h(c.leader(0)).ChangeMembers(t.Context(), 0, Change{4, Voter}, Change{1, None})
		})
		c.retry("put", func() error { // the leader may be the one that goes
			_, err := c.h(c.leader(0)).Propose(t.Context(), 0, []byte("put a 1"))
			return err
		})
		time.Sleep(5 * time.Second)
		st, _ := c.h(c.leader(0)).Status(0)
		if !slices.Equal(st.Voters, []dfs.NodeID{2, 3, 4}) || st.Joint {
			t.Errorf("members %+v", st)
		}
		c.converge(2, 3, 4)
	})
}

func TestMemberErrors(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		defer c.stop()
		c.found(0)
		c.leader(0)
		h, ctx := c.h(1), t.Context()
		wantKind(t, h.RemoveReplica(ctx, 0, 1), dfs.Invalid)
		wantKind(t, h.Promote(ctx, 0, 2), dfs.Busy)
		wantKind(t, h.AddLearner(ctx, 0, 0), dfs.Invalid)
		wantKind(t, h.AddLearner(ctx, 9, 2), dfs.NotExist)
		wantKind(t, h.TransferLeader(ctx, 0, 2), dfs.Invalid)
		wantKind(t, h.CreateGroup(0, []dfs.NodeID{1}), dfs.Exist)
		wantKind(t, h.CreateGroup(7, []dfs.NodeID{2}), dfs.Invalid)
		if err := h.RemoveReplica(ctx, 0, 3); err != nil {
			t.Errorf("removing a stranger: %v", err)
		}
		c.grow(0, 2)
		wantKind(t, c.h(2).AddLearner(ctx, 0, 3), dfs.NotLeader)

		// The other voter is away: the change waits, and a second is refused.
		c.isolate(2, true)
		errs := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			defer cancel()
			errs <- h.AddLearner(ctx, 0, 3)
		}()
		time.Sleep(100 * time.Millisecond)
		wantKind(t, h.AddLearner(ctx, 0, 3), dfs.Busy)
		wantKind(t, <-errs, dfs.Unknown)
	})
}

func TestTransferAll(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, testGroups(9)...)
		defer c.stop()
		c.boot()
		for _, g := range c.groups {
			c.propose(g, "put a 1")
		}
		for _, id := range c.all() {
			c.h(id).TransferAll(t.Context())
			for _, st := range c.h(id).Statuses() {
				if st.Role == RoleLeader {
					t.Errorf("node %v still leads %v", id, st.Group)
				}
			}
		}
		c.converge(c.all()...)
	})
}

// TestMembersChangeThroughCrashes changes members at random while nodes crash
// and clients write.
func TestMembersChangeThroughCrashes(t *testing.T) {
	changed, crashed := 0, 0
	for seed := uint64(1); seed <= 6; seed++ {
		inBubble(t, func(t *testing.T) {
			c := newCluster(t, seed, 4, 0)
			c.tune = func(o *Options) { o.KeepEntries, o.LogBytes, o.QuiesceTicks = 8, 2<<10, 1 }
			defer c.stop()
			c.found(0)
			c.grow(0, 2, 3)
			if err := c.h(4).JoinGroup(0); err != nil {
				t.Fatal(err)
			}
			h := newHistory()
			var wg sync.WaitGroup
			stop := make(chan struct{})
			for i := range 3 {
				rng := rand.New(rand.NewPCG(seed, uint64(i)))
				wg.Go(func() { c.client(h, i, rng.IntN, 2, stop) })
			}
			rng := rand.New(rand.NewPCG(seed, 9))
			for range 12 {
				if err := c.shuffleMember(rng); err == nil {
					changed++
				}
				if rng.IntN(2) == 0 {
					crashed++
					c.crash(dfs.NodeID(1+rng.IntN(4)), rng.IntN(2)*100)
				}
				time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
			}
			close(stop)
			wg.Wait()
			c.grow(0, 1, 2, 3, 4)
			c.converge(c.all()...)
			if err := h.check(func(at place) (string, error) { return c.read(1, at.g, at.key) }); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		})
	}
	t.Logf("%d changes, %d crashes", changed, crashed)
	if changed < 20 {
		t.Errorf("only %d changes went through", changed)
	}
}

// shuffleMember adds, promotes or removes one node, keeping two voters.
func (c *cluster) shuffleMember(rng *rand.Rand) error {
	lead, err := c.findLeader(0)
	if err != nil {
		return err
	}
	st, _ := c.h(lead).Status(0)
	id := dfs.NodeID(1 + rng.IntN(4))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	switch {
	case slices.Contains(st.Learners, id):
		return c.h(lead).Promote(ctx, 0, id)
	case !slices.Contains(st.Voters, id):
		return c.h(lead).AddLearner(ctx, 0, id)
	case len(st.Voters) > 2:
		return c.h(lead).RemoveReplica(ctx, 0, id)
	}
	return fmt.Errorf("node %v has to stay", id)
}

// TestStaleSnapshotMakesNoMember: of the leaders that offer a snapshot, one of an
// earlier term says nothing about who is a member now.
func TestStaleSnapshotMakesNoMember(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 1, 0)
		defer c.stop()
		c.boot()
		c.propose(0, "put a 0")
		r := c.h(1).replica(0)
		now := r.state.now()
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, term := range []uint64{r.logTerm - 1, r.logTerm} {
			r.passive = true
			r.guardLocked(func() {
				r.stepInstallLocked(&install{to: now, term: term, from: 1, token: term, done: make(chan error, 1)})
			})
			if want := term < r.logTerm; r.passive != want {
				t.Errorf("after a snapshot of term %d, in term %d: passive %v, want %v", term, r.logTerm, r.passive, want)
			}
		}
		r.passive = false
	})
}

// TestSuccessor: who is handed a group when its leader's node stops.
func TestSuccessor(t *testing.T) {
	for _, c := range []struct {
		what  string
		peers []Progress
		want  dfs.NodeID
	}{
		{"nobody else", []Progress{{Node: 1, Active: true, Match: 9}}, 0},
		{"the longest log", []Progress{{Node: 1, Active: true, Match: 9}, {Node: 2, Active: true, Match: 7}, {Node: 3, Active: true, Match: 8}}, 3},
		{"no learner", []Progress{{Node: 1, Active: true, Match: 9}, {Node: 2, Active: true, Match: 7}, {Node: 3, Active: true, Match: 8, Learner: true}}, 2},
		{"one that died in an idle group", []Progress{{Node: 1, Active: true, Match: 9}, {Node: 2, Match: 9}, {Node: 3, Active: true, Match: 9}}, 3},
		{"one that died with more", []Progress{{Node: 1, Active: true, Match: 9}, {Node: 2, Active: true, Match: 7}, {Node: 3, Match: 8}}, 2},
		{"nobody has answered yet", []Progress{{Node: 1, Active: true, Match: 9}, {Node: 2, Match: 7}, {Node: 3, Match: 8}}, 3},
	} {
		if got := successor(&Status{Role: RoleLeader, Peers: c.peers}, 1); got != c.want {
			t.Errorf("%s: node %v, want %v", c.what, got, c.want)
		}
	}
}
