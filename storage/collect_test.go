package storage

import (
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/engine"
)

// wantStates compares what a store says of blocks.
func (c *cluster) wantStates(n *node, when string, want map[dfs.BlockID]string) {
	c.t.Helper()
	for id, state := range want {
		e, err := n.engines[0].Stat(id, 0)
		got := "decided"
		switch {
		case dfs.KindOf(err) == dfs.NotExist && err != nil:
			got = "absent"
		case err != nil:
			c.t.Fatal(err)
		case e.Tombstone:
			got = "deleted"
		case e.Undecided:
			got = "undecided"
		case e.Trashed:
			got = "trashed"
		}
		if got != state {
			c.t.Errorf("%s: block %v is %s, want %s", when, id, got, state)
		}
	}
}

// three puts a block for each verdict on a store and has the plane answer so.
func (c *cluster) three(n *node) (referenced, garbage, pending dfs.BlockID) {
	c.t.Helper()
	var ids []dfs.BlockID
	for range 3 {
		id, data := c.block(1, 5000)
		if err := c.put(n.store(0), id, c.plane.current().PG(1).Active.Epoch, data); err != nil {
			c.t.Fatal(err)
		}
		ids = append(ids, id)
	}
	c.plane.set(func() {
		c.plane.judge = func(id dfs.BlockID) dfs.Verdict {
			switch id {
			case ids[0]:
				return dfs.Referenced
			case ids[1]:
				return dfs.Garbage
			}
			return dfs.Pending
		}
	})
	return ids[0], ids[1], ids[2]
}

// TestGarbageIsCollected: each block is asked about once, but one that its group
// cannot tell of yet, and that one only every few minutes.
func TestGarbageIsCollected(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		const keep = time.Hour // a day of heartbeats takes long
		a := c.node("a", 1, func(o *Options) { o.TrashKeep = keep })
		c.plane.create(1, dfs.Replicated(1))
		c.plane.activate(t, 1, a.store(0))
		referenced, garbage, pending := c.three(a)
		time.Sleep(DefaultUndecidedAge - 2*time.Second)
		c.wantStates(a, "young", map[dfs.BlockID]string{referenced: "undecided", garbage: "undecided", pending: "undecided"})
		c.plane.set(func() {
			if len(c.plane.asked) > 0 {
				t.Errorf("asked about young blocks: %v", c.plane.asked)
			}
		})
		time.Sleep(2 * DefaultUndecidedAge)
		c.wantStates(a, "asked", map[dfs.BlockID]string{referenced: "decided", garbage: "trashed", pending: "undecided"})
		b := c.plane.beat(a.store(0))
		if b.Undecided != 1 || b.Trash != 1 || b.TrashBytes < 5000 {
			t.Errorf("heartbeat: %v", b)
		}

		time.Sleep(keep - 5*time.Minute)
		c.wantStates(a, "before the time", map[dfs.BlockID]string{referenced: "decided", garbage: "trashed", pending: "undecided"})
		time.Sleep(10 * time.Minute)
		c.wantStates(a, "after it", map[dfs.BlockID]string{referenced: "decided", garbage: "deleted", pending: "undecided"})
		c.plane.set(func() {
			n := c.plane.asked
			if most := int((2 * keep) / (DefaultUndecidedAge * 3 / 4)); n[referenced] != 1 || n[garbage] != 1 || n[pending] > most {
				t.Errorf("asked %v times", n)
			}
			c.plane.judge = func(dfs.BlockID) dfs.Verdict { return dfs.Garbage }
		})
		time.Sleep(2 * DefaultUndecidedAge)
		c.wantStates(a, "told at last", map[dfs.BlockID]string{referenced: "decided", pending: "trashed"})
		if st := a.service.Stats(); st.Garbage != 2 || st.Emptied != 1 || st.Rescued != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// TestNothingIsConcludedFromSilence: what nobody answers for stays, and so does
// what an answer cannot be read for.
func TestNothingIsConcludedFromSilence(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 1)
		c.plane.create(1, dfs.Replicated(1))
		c.plane.activate(t, 1, a.store(0))
		referenced, garbage, pending := c.three(a)
		all := map[dfs.BlockID]string{referenced: "undecided", garbage: "undecided", pending: "undecided"}
		judge := c.plane.judge
		c.plane.set(func() { c.plane.judge = nil })
		time.Sleep(10 * time.Minute)
		c.wantStates(a, "not answered", all)
		c.plane.set(func() {
			c.plane.judge = judge
			c.plane.told = func(v []byte) []byte { return v[:len(v)-1] }
		})
		time.Sleep(10 * time.Minute)
		c.wantStates(a, "answers cut short", all)
		c.plane.set(func() {
			c.plane.told = func(v []byte) []byte {
				for i := range v {
					v[i] += 100
				}
				return v
			}
		})
		time.Sleep(10 * time.Minute)
		c.wantStates(a, "answers of a later release", all)
		c.plane.set(func() { c.plane.told = nil })
		time.Sleep(2 * DefaultUndecidedAge)
		c.wantStates(a, "answered", map[dfs.BlockID]string{referenced: "decided", garbage: "trashed", pending: "undecided"})
	})
}

// TestGarbageGoesAtOnceWhereSpaceIsShort: a store that is full does not wait for
// blocks to grow old, nor for the trash.
func TestGarbageGoesAtOnceWhereSpaceIsShort(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		n := c.newNode("a", 1)
		n.tuneEng = func(_ int, o *engine.Options) { o.Capacity, o.ReserveBytes = 16<<20, 4<<20 }
		n.run()
		n.ready()
		c.plane.create(1, dfs.Replicated(1))
		c.plane.activate(t, 1, n.store(0))
		referenced, garbage, pending := c.three(n)
		for range (collectCheck + urgentPause + time.Second) / time.Second {
			for full := false; !full; {
				id, data := c.block(1, 100_000)
				err := c.put(n.store(0), id, c.plane.current().PG(1).Active.Epoch, data)
				if full = dfs.KindOf(err) == dfs.NoSpace; err != nil && !full {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second)
		}
		c.wantStates(n, "full", map[dfs.BlockID]string{referenced: "decided", garbage: "deleted", pending: "undecided"})
	})
}

// TestAPulledBlockKeepsItsState: a member that is refilled asks about what its
// source has not been told of.
func TestAPulledBlockKeepsItsState(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b := c.node("a", 1), c.node("b", 1)
		c.plane.create(1, dfs.Replicated(1))
		c.plane.activate(t, 1, a.store(0))
		referenced, garbage, pending := c.three(a)
		time.Sleep(3 * DefaultUndecidedAge)
		c.wantStates(a, "source", map[dfs.BlockID]string{referenced: "decided", garbage: "trashed", pending: "undecided"})
		c.plane.set(func() { c.plane.judge = nil })
		c.plane.activate(t, 1, a.store(0), b.store(0))
		eventually(t, "b is complete", func() bool { return c.plane.complete(1, b.store(0)) })
		c.wantStates(b, "refilled", map[dfs.BlockID]string{referenced: "decided", garbage: "undecided", pending: "undecided"})
		if st := a.service.Stats(); st.Rescued != 0 {
			t.Errorf("a pull has taken %d blocks out of the trash", st.Rescued)
		}
	})
}

// TestTheTrashIsReadable: somebody who reads a block that no file names is a
// reason to ask anew.
func TestTheTrashIsReadable(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 1)
		c.plane.create(1, dfs.Replicated(1))
		c.plane.activate(t, 1, a.store(0))
		_, garbage, _ := c.three(a)
		time.Sleep(3 * DefaultUndecidedAge)
		c.wantStates(a, "asked", map[dfs.BlockID]string{garbage: "trashed"})
		if _, data, err := c.get(a.store(0), garbage, 0, 0); err != nil || len(data) != 5000 {
			t.Fatalf("%d bytes, %v", len(data), err)
		}
		c.wantStates(a, "read", map[dfs.BlockID]string{garbage: "undecided"})
		c.plane.set(func() { c.plane.judge = func(dfs.BlockID) dfs.Verdict { return dfs.Referenced } })
		time.Sleep(3 * DefaultUndecidedAge)
		c.wantStates(a, "asked anew", map[dfs.BlockID]string{garbage: "decided"})
		if st := a.service.Stats(); st.Rescued != 1 {
			t.Errorf("%+v", st)
		}
	})
}
