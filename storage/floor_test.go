package storage

import (
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/repair"
)

// TestTombstonesOfAStableClusterAreDropped: nothing fails, no epoch changes, and
// the tombstones go all the same.
func TestTombstonesOfAStableClusterAreDropped(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b := c.small("a"), c.small("b")
		c.plane.create(1, dfs.Replicated(2))
		c.plane.activate(t, 1, a.store(0), b.store(0))
		all := c.content()
		all.churn(1)
		time.Sleep(time.Minute)
		for _, n := range []*node{a, b} {
			if st := n.engines[0].Stats(); st.TombstonesDropped < churned/2 || st.Tombstones > churned/2 {
				t.Errorf("%s: %d tombstones dropped, %d are left of %d", n.name, st.TombstonesDropped, st.Tombstones, churned)
			}
		}
		all.check(a.store(0))
	})
}

// TestAMemberThatIsAwayHoldsTheFloor: while the group remembers what a member is
// complete through, the others keep what it lacks.
func TestAMemberThatIsAwayHoldsTheFloor(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b, x := c.small("a"), c.small("b"), c.small("x")
		c.plane.create(1, dfs.Replicated(2))
		c.plane.activate(t, 1, a.store(0), b.store(0), x.store(0))
		all := c.content()
		all.fill(1, 20, 10_000)
		x.crash()
		e := c.plane.activate(t, 1, a.store(0), b.store(0))
		all.remove(10)
		gone := all.deleted
		all.churn(1)
		time.Sleep(time.Minute)
		for _, n := range []*node{a, b} {
			if st := n.engines[0].Stats(); st.TombstonesDropped != 0 || st.Tombstones != 10+churned {
				t.Errorf("%s: %d tombstones dropped, %d are left, at epoch %d", n.name, st.TombstonesDropped, st.Tombstones, e)
			}
		}
		x.run()
		x.ready()
		c.plane.activate(t, 1, a.store(0), b.store(0), x.store(0))
		eventually(t, "x is complete", func() bool { return c.plane.complete(1, x.store(0)) })
		for _, id := range gone {
			c.wantStates(x, "returned", map[dfs.BlockID]string{id: "deleted"})
		}
		if st := x.service.Stats(); st.Doubted != 0 {
			t.Errorf("%d blocks doubted by a member that lacked nothing but what it was told", st.Doubted)
		}
		all.churn(1)
		time.Sleep(time.Minute)
		if st := a.engines[0].Stats(); st.TombstonesDropped == 0 {
			t.Error("no tombstone is dropped when it has returned")
		}
	})
}

// forgetOthers makes the acting set the target: whoever else was a member is
// forgotten.
func (p *plane) forgetOthers(id dfs.PGID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pg, err := repair.Retarget(p.m.PG(id), p.m.PG(id).Active.Stores, func(dfs.StoreID) dfs.StoreState { return dfs.StoreUp })
	if err != nil {
		panic(err)
	}
	p.setPGLocked(pg)
}

// small starts a node with one store of small segments that is compacted soon.
func (c *cluster) small(name string, tune ...func(*Options)) *node {
	n := c.newNode(name, 1)
	n.tuneEng = func(_ int, o *engine.Options) { o.SegmentSize, o.CompactAge, o.DeadPercent = 1<<20, time.Second, 5 }
	for _, fn := range tune {
		n.tune = fn
	}
	n.run()
	n.ready()
	return n
}

// churned is how many blocks churn puts and deletes: some segments full.
const churned = 150

// churn puts blocks and deletes them, at every acting member.
func (x *content) churn(pg dfs.PGID) {
	x.c.t.Helper()
	time.Sleep(2 * collectCheck) // floors are learned: a tombstone that is moved stays for long
	for range churned {
		id, data := x.c.block(pg, 60_000)
		if err := x.c.putAll(id, data); err != nil {
			x.c.t.Fatal(err)
		}
		if err := x.c.deleteAll(id); err != nil {
			x.c.t.Fatal(err)
		}
		x.deleted = append(x.deleted, id)
	}
}

// TestAMemberFromBeforeTheFloor: a store that was relieved of its share comes back
// when nobody has the tombstones any more. It asks about what it has: what is named
// is decided again, what is not goes to the trash.
func TestAMemberFromBeforeTheFloor(t *testing.T) {
	if left := comeBack(t, Hooks{}, false); left > 0 {
		t.Errorf("%d deleted blocks are kept for ever", left)
	}
}

// The same, with a crash when the refill has begun.
func TestAMemberFromBeforeTheFloorCrashes(t *testing.T) {
	if left := comeBack(t, Hooks{}, true); left > 0 {
		t.Errorf("%d deleted blocks are kept for ever", left)
	}
}

func TestTrustedOldBlocksAreKept(t *testing.T) {
	if left := comeBack(t, Hooks{TrustOldBlocks: true}, false); left == 0 {
		t.Error("nothing is left though nobody was asked")
	}
}

func comeBack(t *testing.T, hooks Hooks, crash bool) (left int) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b := c.small("a"), c.small("b")
		x := c.small("x", func(o *Options) { slowRefill(o); o.Hooks = hooks })
		all, named := c.content(), map[dfs.BlockID]bool{}
		name := func() {
			c.plane.set(func() {
				clear(named)
				for id := range all.blocks {
					named[id] = true
				}
				c.plane.judge = func(id dfs.BlockID) dfs.Verdict {
					if named[id] {
						return dfs.Referenced
					}
					return dfs.Garbage
				}
			})
		}
		c.plane.create(1, dfs.Replicated(2))
		c.plane.activate(t, 1, a.store(0), b.store(0), x.store(0))
		all.fill(1, 40, 10_000)
		name()
		time.Sleep(3 * DefaultUndecidedAge)
		for id := range all.blocks {
			c.wantStates(x, "at first", map[dfs.BlockID]string{id: "decided"})
		}

		// It leaves and is forgotten.
		c.plane.activate(t, 1, a.store(0), b.store(0))
		c.plane.forgetOthers(1)
		time.Sleep(2 * collectCheck)
		all.remove(30)
		gone := all.deleted
		name()
		all.churn(1)
		time.Sleep(time.Minute)
		for _, n := range []*node{a, b} {
			for _, id := range gone {
				c.wantStates(n, "forgotten", map[dfs.BlockID]string{id: "absent"})
			}
		}
		all.fill(1, 40, 10_000)
		name()

		c.plane.activate(t, 1, a.store(0), b.store(0), x.store(0))
		if crash {
			c.halfway(x, 40*10_000)
			x.crash()
			x.run()
			x.ready()
		}
		eventually(t, "x is complete", func() bool { return c.plane.complete(1, x.store(0)) })
		if !crash {
			asked := x.service.Stats().Doubted
			if want := uint64(40); (asked == want) == hooks.TrustOldBlocks {
				t.Errorf("%d blocks doubted, it had %d from before", asked, want)
			}
		}
		time.Sleep(3 * DefaultUndecidedAge)
		for id := range all.blocks {
			c.wantStates(x, "asked anew", map[dfs.BlockID]string{id: "decided"})
		}
		all.deleted = nil
		all.check(x.store(0))
		for _, id := range gone {
			e, err := x.engines[0].Stat(id, 0)
			if err == nil && !e.Tombstone && !e.Trashed {
				left++
			}
		}
	})
	return left
}
