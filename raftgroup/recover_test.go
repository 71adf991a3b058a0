package raftgroup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dfsd/dfs"
)

// survivor describes the replica of a node.
func (c *cluster) survivor(id dfs.NodeID, g dfs.GroupID) Survivor {
	c.t.Helper()
	var s Survivor
	c.retry("describe replica", func() (err error) {
		var ok bool
		if s, ok, err = c.h(id).Survivor(g); err == nil && !ok {
			err = dfs.Errorf(dfs.Unavailable, "wait", "one takes the place of another")
		}
		return cmp.Or(err, s.Unreadable)
	})
	return s
}

// recoverGroup does what the operator's tool does: all survivors but the best are set
// aside, and it becomes the only voter.
func (c *cluster) recoverGroup(g dfs.GroupID, generation uint64, survivors ...dfs.NodeID) (dfs.NodeID, error) {
	best, term, shown := Survivor{}, uint64(0), map[dfs.NodeID]Survivor{}
	chosen := dfs.NodeID(0)
	c.retry("forget the leader", func() error {
		for _, id := range survivors {
			if s := c.survivor(id, g); s.Leader != 0 {
				return dfs.Errorf(dfs.Busy, "wait", "node %v follows %v", id, s.Leader)
			}
		}
		return nil
	})
	for _, id := range survivors {
		s := c.survivor(id, g)
		term, shown[id] = max(term, s.Term), s
		if s.Unfit == nil && (chosen == 0 || s.LastTerm > best.LastTerm || s.LastTerm == best.LastTerm && s.Last > best.Last) {
			best, chosen = s, id
		}
	}
	if chosen == 0 {
		return 0, errors.New("no survivor is fit")
	}
	for _, id := range survivors {
		if id == chosen {
			continue
		}
		if err := c.h(id).SetAside(stepOf(shown[id], generation)); err != nil {
			return 0, err
		}
	}
	rec := stepOf(best, generation)
	rec.Term, rec.Commands = term, [][]byte{[]byte("put recovered yes")}
	return chosen, c.h(chosen).Recover(rec)
}

// stepOf is a step of a plan at the replica that was shown.
func stepOf(s Survivor, generation uint64) Recovery {
	return Recovery{Group: s.Group, Generation: generation, Was: s.Generation, Aside: s.Aside, Last: s.Last, LastTerm: s.LastTerm}
}

// setAside looks at a replica and sets it aside.
func (c *cluster) setAside(id dfs.NodeID, g dfs.GroupID, generation uint64) error {
	return c.h(id).SetAside(stepOf(c.survivor(id, g), generation))
}

// aloneOn waits until a node is the only voter and leads.
func (c *cluster) aloneOn(id dfs.NodeID, g dfs.GroupID) {
	c.t.Helper()
	c.retry("lead alone", func() error {
		if st, _ := c.h(id).Status(g); st.Role != RoleLeader || !slices.Equal(st.Voters, []dfs.NodeID{id}) || len(st.Learners) > 0 || st.Joint {
			return dfs.Errorf(dfs.Busy, "wait", "%+v", st)
		}
		return nil
	})
}

// TestRecoverLostMajority destroys two of three voters for good. What the survivor had
// is there, writes go on, and new nodes and the lost ones with their old disks come in.
func TestRecoverLostMajority(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const g = 0
		c := newCluster(t, 1, 4, g)
		defer c.stop()
		c.bootFirst(3)
		for i := range 40 {
			c.propose(g, fmt.Sprintf("put k%d v", i))
		}
		c.converge(1, 2, 3)
		c.isolate(2, true)
		c.isolate(3, true)
		time.Sleep(5 * time.Second)
		before := c.survivor(1, g)
		if before.Unfit != nil || !slices.Equal(before.Voters, []dfs.NodeID{1, 2, 3}) || before.Generation != 0 {
			t.Fatalf("the survivor is %+v", before)
		}
		// Not what the operator was shown.
		err := c.h(1).Recover(Recovery{Group: g, Generation: 7, Last: before.Last - 1, LastTerm: before.LastTerm})
		if dfs.KindOf(err) != dfs.Stale {
			t.Errorf("a recovery from another log: %v", err)
		}
		for range 2 { // the second changes nothing
			if err := c.h(1).Recover(Recovery{Group: g, Generation: 7, Term: 99, Last: before.Last, LastTerm: before.LastTerm, Commands: [][]byte{[]byte("put recovered yes")}}); err != nil {
				t.Fatal(err)
			}
		}
		c.aloneOn(1, g)
		after := c.survivor(1, g)
		if after.Generation != 7 || after.Term <= 99+termJump || after.LastTerm <= 99 {
			t.Errorf("recovered as %+v", after)
		}
		for _, key := range []string{"k0", "k39"} {
			if got, err := c.read(1, g, key); got != "v" || err != nil {
				t.Errorf("%s is %q, %v", key, got, err)
			}
		}
		c.propose(g, "put k0 after")
		if err := c.h(1).Recover(Recovery{Group: g, Generation: 6}); dfs.KindOf(err) != dfs.Stale {
			t.Errorf("an earlier generation: %v", err)
		}

		// A node with nothing hears of the generation and joins.
		c.grow(g, 4)
		c.propose(g, "put k1 after")
		c.converge(1, 4)
		if s := c.survivor(4, g); s.Generation != 7 {
			t.Errorf("the new member is of generation %d", s.Generation)
		}

		// The lost ones come back with what they had.
		c.heal()
		c.retry("overtake", func() error {
			for _, id := range []dfs.NodeID{2, 3} {
				if s := c.survivor(id, g); s.Generation != 7 || s.Last != 0 || s.Unfit == nil {
					return dfs.Errorf(dfs.Busy, "wait", "%+v", s)
				}
			}
			return nil
		})
		c.grow(g, 2, 3)
		c.propose(g, "put k2 after")
		c.converge(1, 2, 3, 4)
		for _, id := range c.all() {
			c.crash(id, 0)
		}
		c.propose(g, "put k3 after")
		c.converge(1, 2, 3, 4)
	})
}

// TestUnreadableSurvivor: a replica whose records are damaged says so, and the others are
// described as if nothing was.
func TestUnreadableSurvivor(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 1, 0, 1)
		defer c.stop()
		c.boot()
		for g := range dfs.GroupID(2) {
			c.propose(g, "put k v")
		}
		h := c.h(1)
		b := h.store.db.NewBatch()
		defer b.Close()
		if err := cmp.Or(b.Set(groupKey(0, logAside), []byte("rot"), nil), h.store.commit(b, true)); err != nil {
			t.Fatal(err)
		}
		for g := range dfs.GroupID(2) {
			s, ok, err := h.Survivor(g)
			if err != nil || !ok {
				t.Fatalf("%v: %v, %v", g, ok, err)
			}
			if damaged := g == 0; (dfs.KindOf(s.Unreadable) == dfs.Corrupt) != damaged || (s.Last == 0) != damaged || s.Group != g {
				t.Errorf("%v is described as %+v", g, s)
			}
		}
		if err := h.SetAside(Recovery{Group: 0, Generation: 7}); err == nil {
			t.Error("a replica that cannot be read is set aside")
		}
	})
}

// lostMajorityReturns has two nodes that were given up come back together: they had a
// majority once.
func lostMajorityReturns(c *cluster) error {
	c.lead(0, 2)
	c.propose(0, "put a 1")
	c.converge(1, 2, 3)
	c.cutAll(1, 2, 3)
	if _, err := c.recoverGroup(0, 7, 1); err != nil {
		return err
	}
	c.aloneOn(1, 0)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := c.h(1).Propose(ctx, 0, []byte("put a 2")); err != nil {
		return err
	}
	c.heal()
	// A group that sleeps says nothing. Its first word to any member of the recovered
	// one ends it.
	if _, err := c.h(2).Propose(ctx, 0, []byte("put b 1")); err != nil && !dfs.KindOf(err).Retryable() && dfs.KindOf(err) != dfs.Unknown {
		return err
	}
	time.Sleep(10 * time.Second)
	for _, id := range []dfs.NodeID{2, 3} {
		if st, _ := c.h(id).Status(0); st.Leader != 0 && st.Leader != 1 {
			return fmt.Errorf("node %v follows %v in the recovered group", id, st.Leader)
		}
	}
	for id := dfs.NodeID(1); id <= 3; id++ {
		if st, _ := c.h(id).Status(0); st.Fault != nil {
			return st.Fault
		}
	}
	got, err := c.read(1, 0, "a")
	if err == nil && got != "2" {
		err = fmt.Errorf("a is %q, and 2 was acknowledged", got)
	}
	return err
}

// recoverAndLosePower loses power right after a recovery has said that it is done.
func recoverAndLosePower(c *cluster) error {
	c.propose(0, "put a 1")
	c.converge(1, 2, 3)
	c.cutAll(1, 2, 3)
	time.Sleep(5 * time.Second)
	done := make(chan *node, 1)
	c.h(1).opts.Hooks.RecoverStep = func(_ dfs.GroupID, step RecoverStep) {
		if step == RecoverWritten {
			done <- c.cutOff(1, 0)
		}
	}
	old := c.h(1)
	if _, err := c.recoverGroup(0, 7, 1); err != nil {
		return err
	}
	n := <-done
	_ = old.Close()
	if err := n.start(); err != nil {
		return err
	}
	if s := c.survivor(1, 0); s.Generation != 7 {
		return fmt.Errorf("the group is of generation %d after a recovery as 7", s.Generation)
	}
	c.aloneOn(1, 0)
	return c.want("recovered", "yes")
}

// TestRecoverCrashes crosses every step of a recovery with a power loss of the node
// that takes it. Four of seven voters are lost, one survivor is behind; the
// operator goes on until it is done, and everything that the best survivor had
// is there on all.
func TestRecoverCrashes(t *testing.T) {
	for step := RecoverAside; step < NumRecoverSteps; step++ {
		keep := []int{0, 60}[step%2] // of what was not synced
		t.Run(fmt.Sprintf("step %d, %d %% kept", step, keep), func(t *testing.T) {
			inBubble(t, func(t *testing.T) { crossRecovery(t, step, keep) })
		})
	}
}

func crossRecovery(t *testing.T, step RecoverStep, keep int) {
	const g = 0
	c := newCluster(t, uint64(step)*2+uint64(keep), 7, g)
	defer c.stop()
	var mu sync.Mutex
	fell := map[dfs.NodeID]*node{}
	var orphans []*Host
	crashed := make(chan dfs.NodeID, 8)
	left := 1
	c.tune = func(o *Options) {
		id := o.Node
		o.Hooks.RecoverStep = func(_ dfs.GroupID, at RecoverStep) {
			mu.Lock()
			defer mu.Unlock()
			if at != step || left == 0 || fell[id] != nil {
				return
			}
			left--
			orphans = append(orphans, c.h(id))
			fell[id] = c.cutOff(id, keep)
			crashed <- id
		}
	}
	defer func() {
		for _, h := range orphans {
			_ = h.Close()
		}
	}()
	c.boot()
	for i := range 20 {
		c.propose(g, fmt.Sprintf("put k%d v", i))
	}
	c.converge(c.all()...)
	c.lead(g, 1)
	c.isolate(3, true) // it is behind
	c.propose(g, "put k0 last")
	for _, id := range []dfs.NodeID{4, 5, 6, 7} {
		c.isolate(id, true)
	}
	c.mu.Lock()
	for _, a := range []dfs.NodeID{1, 2} {
		c.cut[[2]dfs.NodeID{a, 3}], c.cut[[2]dfs.NodeID{3, a}] = false, false
	}
	c.mu.Unlock()
	time.Sleep(5 * time.Second)

	revive := func() {
		mu.Lock()
		defer mu.Unlock()
		for id, n := range fell {
			if err := n.start(); err != nil {
				t.Fatalf("node %v does not start: %v", id, err)
			}
			delete(fell, id)
		}
	}
	// Each attempt is a plan of its own, as after an interruption of the tool.
	for attempt := uint64(0); ; attempt++ {
		if attempt == 20 {
			t.Fatal("the recovery does not come to an end")
		}
		recovered := Survivor{}
		for _, id := range []dfs.NodeID{1, 2, 3} {
			if s := c.survivor(id, g); s.Generation > recovered.Generation {
				recovered = s
			}
		}
		if recovered.Generation > 0 && recovered.Last > 0 {
			break
		}
		_, err := c.recoverGroup(g, 100+attempt, 1, 2, 3)
		time.Sleep(time.Second)
		revive()
		if err != nil && !dfs.KindOf(err).Retryable() {
			t.Fatal(err)
		}
	}
	lead := c.leader(g)
	if lead == 3 {
		t.Error("the survivor that was behind leads")
	}
	var others []dfs.NodeID
	for _, id := range []dfs.NodeID{1, 2, 3} {
		if id != lead {
			others = append(others, id)
		}
	}
	c.retry("join again", func() error { return c.h(c.leader(g)).AddLearner(t.Context(), g, others[0]) })
	time.Sleep(5 * time.Second)
	revive()
	c.growFrom(g, others...)
	c.propose(g, "put k1 after")
	c.converge(1, 2, 3)
	for key, want := range map[string]string{"k0": "last", "k1": "after", "k19": "v", "recovered": "yes"} {
		if got, err := c.read(1, g, key); got != want || err != nil {
			t.Errorf("%s is %q, %v", key, got, err)
		}
	}
	select {
	case <-crashed:
	default:
		t.Error("nobody crashed")
	}
}

// wakeOld has an old leader say something, if there is one: what sleeps says nothing.
func (c *cluster) wakeOld(id dfs.NodeID, g dfs.GroupID) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Millisecond)
	defer cancel()
	_, _ = c.h(id).Propose(ctx, g, []byte("put lost forever"))
}

// growFrom makes nodes voters that may be learners, or be about to be overtaken.
func (c *cluster) growFrom(g dfs.GroupID, ids ...dfs.NodeID) {
	c.t.Helper()
	for _, id := range ids {
		if _, ok := c.h(id).Leader(g); !ok {
			if err := c.h(id).JoinGroup(g); err != nil && dfs.KindOf(err) != dfs.Exist {
				c.t.Fatal(err)
			}
		}
		c.retry("add learner", func() error { return c.h(c.leader(g)).AddLearner(c.t.Context(), g, id) })
		c.retry("promote", func() error { return c.h(c.leader(g)).Promote(c.t.Context(), g, id) })
	}
}

// TestSetAside: a replica that is set aside takes no part, over restarts, can be taken
// back, and can be recovered from.
func TestSetAside(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const g = 0
		c := newCluster(t, 1, 3, g)
		defer c.stop()
		c.boot()
		c.propose(g, "put k v")
		c.converge(1, 2, 3)
		// While there is a leader nothing is touched.
		s := c.survivor(2, g)
		for _, err := range []error{c.setAside(2, g, 7), c.h(2).Recover(Recovery{Group: g, Generation: 7, Last: s.Last, LastTerm: s.LastTerm})} {
			if dfs.KindOf(err) != dfs.Busy {
				t.Errorf("a recovery of a group that has a leader: %v", err)
			}
		}
		c.isolate(2, true)
		c.retry("set aside", func() error { return c.setAside(2, g, 7) })
		if err := c.setAside(2, g, 7); err != nil {
			t.Fatal(err)
		}
		c.crash(2, 0)
		c.isolate(2, false)
		c.isolate(3, true)
		time.Sleep(10 * time.Second)
		if st, _ := c.h(2).Status(g); st.Role != RoleQuarantined {
			t.Errorf("the replica is %v", st.Role)
		}
		if st, _ := c.h(1).Status(g); st.Role == RoleLeader {
			t.Error("a node leads with a voter that is set aside")
		}
		if s := c.survivor(2, g); s.Aside != 7 || s.Unfit != nil {
			t.Errorf("the survivor is %+v", s)
		}
		if err := c.h(2).TakeBack(g); err != nil {
			t.Fatal(err)
		}
		c.propose(g, "put k again") // 1 and 2 are a majority
		c.converge(1, 2)
		c.isolate(1, true)
		c.retry("set aside", func() error { return c.setAside(2, g, 8) })
		if _, err := c.recoverGroup(g, 9, 2); err != nil {
			t.Fatal(err)
		}
		c.aloneOn(2, g)
		if got, err := c.read(2, g, "k"); got != "again" || err != nil {
			t.Errorf("k is %q, %v", got, err)
		}
	})
}

// TestTwoRecoveriesAtOnce lets two operators, who were shown the same, recover a group from
// different survivors. Neither does over what the other has begun without a new look.
func TestTwoRecoveriesAtOnce(t *testing.T) {
	begin := func(t *testing.T) (c *cluster, step func(by string, on dfs.NodeID) error) {
		const g = 0
		c = newCluster(t, 1, 3, g)
		c.boot()
		c.propose(g, "put k v")
		c.converge(1, 2, 3)
		c.isolate(3, true)
		c.isolate(2, true)
		time.Sleep(10 * time.Second)
		shown := map[dfs.NodeID]Survivor{1: c.survivor(1, g), 2: c.survivor(2, g)}
		return c, func(by string, on dfs.NodeID) error {
			generation, chosen := uint64(100), dfs.NodeID(1)
			if by == "the later one" {
				generation, chosen = 101, 2
			}
			rec := stepOf(shown[on], generation)
			if on != chosen {
				return c.h(on).SetAside(rec)
			}
			rec.Term = max(shown[1].Term, shown[2].Term)
			return c.h(on).Recover(rec)
		}
	}
	const one, two = "the earlier one", "the later one"
	for _, tc := range []struct {
		name  string
		steps []string // one's or two's, on a node
		kinds []dfs.Kind
	}{
		{"both set aside first", []string{one, two, one, two}, []dfs.Kind{0, 0, dfs.Stale, dfs.Stale}},
		{"one is done", []string{one, one, two, two}, []dfs.Kind{0, 0, dfs.Stale, dfs.Stale}},
		{"the later one is done", []string{two, two, one, one}, []dfs.Kind{0, 0, dfs.Stale, dfs.Stale}},
		{"set aside for more", []string{two, one, two}, []dfs.Kind{0, 0, dfs.Stale}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c, step := begin(t)
				defer c.stop()
				taken := map[string]int{}
				for i, by := range tc.steps {
					on := dfs.NodeID(2) // each sets the other's choice aside, and then begins on its own
					if (by == one) == (taken[by] > 0) {
						on = 1
					}
					taken[by]++
					if err := step(by, on); dfs.KindOf(err) != tc.kinds[i] {
						t.Fatalf("step %d, by %s on node %v: %v, want kind %v", i, by, on, err, tc.kinds[i])
					}
				}
				// Who looks again gets on.
				c.retry("recover", func() error {
					_, err := c.recoverGroup(0, 102, 1, 2)
					if s := c.survivor(1, 0); err != nil && s.Leader == 1 {
						return nil // it has been recovered
					}
					return err
				})
			})
		})
	}
}

// TestSetAsideMeetsInstall shows an operator a replica whose snapshot is about to be
// installed. What it has afterwards is not set aside in favour of a shorter log.
func TestSetAsideMeetsInstall(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		defer c.stop()
		var sleeper atomic.Uint32
		installing, goOn := make(chan struct{}), make(chan struct{})
		var once sync.Once
		c.tune = func(o *Options) {
			id := uint32(o.Node)
			o.Hooks.SnapshotStep = func(_ dfs.GroupID, step SnapshotStep) {
				if step == SnapFlush && sleeper.Load() == id {
					once.Do(func() { close(installing); <-goOn })
				}
			}
		}
		id, _ := c.sleeper(7000)
		sleeper.Store(uint32(id))
		c.heal()
		<-installing
		for _, other := range c.all() {
			c.isolate(other, true)
		}
		c.retry("forget the leader", func() error {
			if s := c.survivor(id, 0); s.Leader != 0 {
				return dfs.Errorf(dfs.Busy, "wait", "it follows %v", s.Leader)
			}
			return nil
		})
		before := c.survivor(id, 0)
		done := make(chan error)
		go func() { done <- c.h(id).SetAside(stepOf(before, 7)) }()
		time.Sleep(time.Second)
		close(goOn)
		if err := <-done; dfs.KindOf(err) != dfs.Stale {
			t.Errorf("set aside after an install: %v", err)
		}
		after := c.survivor(id, 0)
		if after.Last <= before.Last || after.Aside != 0 || after.Unfit != nil {
			t.Errorf("before the install %+v, after it %+v", before, after)
		}
		if err := c.setAside(id, 0, 7); err != nil {
			t.Errorf("after a new look: %v", err)
		}
	})
}

// TestSetAsideLower: what is set aside for one recovery is not for an earlier one.
func TestSetAsideLower(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const g = 0
		c := newCluster(t, 1, 3, g)
		defer c.stop()
		c.boot()
		c.converge(1, 2, 3)
		c.isolate(2, true)
		c.retry("set aside", func() error { return c.setAside(2, g, 8) })
		if err := c.setAside(2, g, 7); dfs.KindOf(err) != dfs.Stale {
			t.Errorf("set aside for less: %v", err)
		}
		if s := c.survivor(2, g); s.Aside != 8 {
			t.Errorf("set aside for %d", s.Aside)
		}
	})
}

// TestRecoverFromAnyConfiguration leaves changes of members at the end of a survivor's
// log, committed, uncommitted and half done, and recovers from it.
func TestRecoverFromAnyConfiguration(t *testing.T) {
	for _, c := range []struct {
		name    string
		changes []Change
	}{
		{"a learner more", []Change{{4, Learner}}},
		{"one voter less", []Change{{3, None}}},
		{"a voter for another", []Change{{4, Voter}, {3, None}}},
		{"two out", []Change{{2, None}, {3, None}}},
		{"a voter made learner", []Change{{2, Learner}, {3, None}}},
	} {
		for _, committed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, committed %v", c.name, committed), func(t *testing.T) {
				inBubble(t, func(t *testing.T) { recoverFromChange(t, c.changes, committed) })
			})
		}
	}
}

func recoverFromChange(t *testing.T, changes []Change, committed bool) {
	const g = 0
	c := newCluster(t, 1, 4, g)
	defer c.stop()
	c.bootFirst(3)
	c.lead(g, 1)
	c.propose(g, "put k v")
	if slices.ContainsFunc(changes, func(ch Change) bool { return ch.Node == 4 && ch.To == Voter }) {
		c.retry("add learner", func() error { return c.h(1).AddLearner(t.Context(), g, 4) })
		c.retry("catch up", func() error {
			if st, _ := c.h(1).Status(g); !st.CaughtUp(4) {
				return dfs.Errorf(dfs.Busy, "wait", "not caught up")
			}
			return nil
		})
	}
	c.converge(1, 2, 3)
	if !committed {
		for _, id := range []dfs.NodeID{2, 3, 4} {
			c.isolate(id, true)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := c.h(1).ChangeMembers(ctx, g, changes...); committed && err != nil {
		t.Fatal(err)
	}
	for _, id := range []dfs.NodeID{2, 3, 4} {
		c.isolate(id, true)
	}
	time.Sleep(5 * time.Second)
	if _, err := c.recoverGroup(g, 7, 1); err != nil {
		t.Fatal(err)
	}
	c.aloneOn(1, g)
	if got, err := c.read(1, g, "k"); got != "v" || err != nil {
		t.Errorf("k is %q, %v", got, err)
	}
	c.crash(1, 0)
	c.aloneOn(1, g)
	c.propose(g, "put k after")
}

// TestUnfitForRecovery: nothing is recovered from a replica without its state.
func TestUnfitForRecovery(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const g = 0
		c := newCluster(t, 1, 4, g)
		defer c.stop()
		c.bootFirst(3)
		c.fill(g, 200, 100)
		c.converge(1, 2, 3)
		c.waitCut(1, g, 50)
		c.propose(g, "put k v") // so that the cut is synced
		c.converge(1, 2, 3)
		if s := c.survivor(4, g); dfs.KindOf(s.Unfit) != dfs.NotExist {
			t.Errorf("an empty replica: %+v", s)
		}
		for _, id := range []dfs.NodeID{2, 3, 4} {
			c.isolate(id, true)
		}
		n := c.kill(1, 100)
		if err := n.fs.RemoveAll("data/raft-state"); err != nil {
			t.Fatal(err)
		}
		c.revive(n)
		s := c.survivor(1, g)
		if dfs.KindOf(s.Unfit) != dfs.Corrupt {
			t.Errorf("a replica without its state: %+v", s)
		}
		err := c.h(1).Recover(Recovery{Group: g, Generation: 7, Last: s.Last, LastTerm: s.LastTerm})
		if dfs.KindOf(err) != dfs.Corrupt {
			t.Errorf("recovered from it: %v", err)
		}
	})
}

// TestStateLostInRecovery gives the state up between the look at a replica and its end: a
// group whose only voter has no state would have none for ever.
func TestStateLostInRecovery(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const g = 0
		c := newCluster(t, 1, 3, g)
		defer c.stop()
		c.tune = func(o *Options) {
			id := o.Node
			o.Hooks.RecoverStep = func(_ dfs.GroupID, step RecoverStep) {
				if id == 1 && step == RecoverStopped {
					s := &c.h(1).replica(g).state
					s.mu.Lock()
					s.lost = true
					s.mu.Unlock()
				}
			}
		}
		c.boot()
		c.converge(1, 2, 3)
		c.isolate(1, true)
		if _, err := c.recoverGroup(g, 7, 1); dfs.KindOf(err) != dfs.Corrupt {
			t.Errorf("recovered without a state: %v", err)
		}
		if s := c.survivor(1, g); s.Generation != 0 {
			t.Errorf("the group is of generation %d", s.Generation)
		}
	})
}

// TestRecoverLives lives through recoveries, with writers, members that come and go
// and a bad network, and lets everything that was lost come back.
func TestRecoverLives(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T) { recoverLife(t, seed) })
		})
	}
}

// TestSoakRecoverLives lives such lives with fresh seeds.
func TestSoakRecoverLives(t *testing.T) {
	limit, err := time.ParseDuration(os.Getenv("DFSD_TEST_SOAK"))
	if err != nil {
		t.Skip("DFSD_TEST_SOAK does not say how long: see make soak")
	}
	begun := time.Now()
	for seed := uint64(begun.UnixNano()); time.Since(begun) < limit && !t.Failed(); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T) { recoverLife(t, seed) })
		})
	}
}

func recoverLife(t *testing.T, seed uint64) {
	const g = 0
	c := newCluster(t, seed, 5, g)
	defer c.stop()
	rng := rand.New(rand.NewPCG(seed, 9))
	c.boot()
	for round := range 3 {
		c.mu.Lock()
		c.drop, c.dup, c.jitter = 0.02, 0.02, 20*time.Millisecond
		c.mu.Unlock()
		for i := range 30 {
			c.propose(g, fmt.Sprintf("put k%d r%d", i, round))
		}
		c.converge(c.all()...) // every survivor has what was acknowledged
		ids := c.all()
		rng.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		lost, kept := ids[:3], ids[3:]
		for _, id := range lost {
			c.cutAll(id, kept...)
		}
		if rng.IntN(2) == 0 {
			c.crash(kept[0], rng.IntN(100))
		}
		time.Sleep(time.Duration(rng.IntN(8000)) * time.Millisecond)
		var chosen dfs.NodeID
		c.retry("recover", func() (err error) {
			chosen, err = c.recoverGroup(g, uint64(round+1), kept...)
			return err
		})
		if rng.IntN(2) == 0 {
			c.crash(chosen, rng.IntN(100))
		}
		c.aloneOn(chosen, g)
		c.retry("write", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := c.h(chosen).Propose(ctx, g, fmt.Appendf(nil, "put alone r%d", round))
			return err
		})
		c.heal()
		var others []dfs.NodeID
		for _, id := range c.all() {
			if id != chosen {
				others = append(others, id)
			}
		}
		c.retry("overtake", func() error {
			for _, id := range lost {
				c.wakeOld(id, g)
				if s := c.survivor(id, g); s.Generation != uint64(round+1) {
					return dfs.Errorf(dfs.Busy, "wait", "%+v", s)
				}
			}
			return nil
		})
		c.growFrom(g, others...)
		c.converge(c.all()...)
		for i := range 30 {
			key := fmt.Sprintf("k%d", i)
			if got, err := c.read(chosen, g, key); got != fmt.Sprintf("r%d", round) || err != nil {
				t.Fatalf("round %d: %s is %q, %v", round, key, got, err)
			}
		}
		if got, err := c.read(chosen, g, "alone"); got != fmt.Sprintf("r%d", round) || err != nil {
			t.Fatalf("round %d: what was written alone is %q, %v", round, got, err)
		}
	}
}
