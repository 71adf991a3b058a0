package storage

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/transport/wire"
)

// content is what a placement group should hold.
type content struct {
	c       *cluster
	blocks  map[dfs.BlockID][]byte
	deleted []dfs.BlockID
}

// fill puts n blocks at every acting member.
func (x *content) fill(pg dfs.PGID, n, size int) {
	x.c.t.Helper()
	for range n {
		id, data := x.c.block(pg, size)
		if err := x.c.putAll(id, data); err != nil {
			x.c.t.Fatal(err)
		}
		x.blocks[id] = data
	}
}

// remove deletes n blocks at every acting member.
func (x *content) remove(n int) {
	x.c.t.Helper()
	ids := make([]dfs.BlockID, 0, len(x.blocks))
	for id := range x.blocks {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b dfs.BlockID) int { return bytes.Compare(a.Bytes(), b.Bytes()) })
	for _, id := range ids[:n] {
		if err := x.c.deleteAll(id); err != nil {
			x.c.t.Fatal(err)
		}
		delete(x.blocks, id)
		x.deleted = append(x.deleted, id)
	}
}

// check reads everything at a store.
func (x *content) check(store dfs.StoreID) {
	x.c.t.Helper()
	for id, data := range x.blocks {
		x.c.holds(store, id, data)
		if head, _, err := x.c.get(store, id, 0, 0); err != nil || head.Hint.ToDFS() != (dfs.Hint{Ino: id.Ino, Offset: 11, Version: 12}) {
			x.c.t.Errorf("%v at %v: hint %v, %v", id, store, head.GetHint(), err)
		}
	}
	for _, id := range x.deleted {
		_, _, err := x.c.get(store, id, 0, 0)
		wantKind(x.c.t, fmt.Sprintf("deleted %v at %v", id, store), err, dfs.NotExist)
	}
}

func (c *cluster) content() *content { return &content{c: c, blocks: map[dfs.BlockID][]byte{}} }

// sameEntries fails unless stores have the same blocks under the same epochs.
func (c *cluster) sameEntries(pg dfs.PGID, nodes ...*node) {
	c.t.Helper()
	var want []engine.Entry
	for i, n := range nodes {
		got, _, err := n.engines[0].ScanEpochs(pg, 0, 1<<60, nil, 10_000)
		if err != nil {
			c.t.Fatal(err)
		}
		if i == 0 {
			want = got
		} else if !slices.Equal(got, want) {
			c.t.Errorf("%s has %d entries, %s has %d, or they differ", n.name, len(got), nodes[0].name, len(want))
		}
	}
}

func TestRefillPullsTheDelta(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b, x := c.node("a", 1), c.node("b", 1), c.node("x", 1)
		c.plane.create(1, dfs.Replicated(2))
		c.plane.activate(t, 1, a.store(0), b.store(0))
		all := c.content()
		all.fill(1, 20, 100_000)
		all.remove(5)

		// From nothing.
		c.plane.activate(t, 1, a.store(0), b.store(0), x.store(0))
		eventually(t, "x is complete", func() bool { return c.plane.complete(1, x.store(0)) })
		all.check(x.store(0))
		c.sameEntries(1, a, b, x)
		if st := x.service.Stats(); st.Pulled != 15 || st.PulledBytes != 15*100_000 {
			t.Errorf("the first refill: %+v", st)
		}

		// An absence: what was put and deleted meanwhile, and no more.
		c.plane.activate(t, 1, a.store(0), b.store(0))
		all.fill(1, 7, 3000)
		all.remove(4) // blocks that x has
		c.plane.activate(t, 1, a.store(0), b.store(0), x.store(0))
		eventually(t, "x is complete again", func() bool { return c.plane.complete(1, x.store(0)) })
		all.check(x.store(0))
		c.sameEntries(1, a, b, x)
		if st := x.service.Stats(); st.Pulled != 15+7 {
			t.Errorf("the second refill: %+v", st)
		}
		eventually(t, "no refill is left", func() bool { return len(x.service.Stats().Stores[0].Refills) == 0 })
		eventually(t, "beats tell of none", func() bool { return len(c.plane.beat(x.store(0)).Refills) == 0 })
	})
}

// Many placement groups, of which several are refilled at a time, are reported
// in few requests.
func TestRefillOfManyGroups(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, x := c.node("a", 1), c.node("x", 2)
		all := c.content()
		for pg := range dfs.PGID(40) {
			c.plane.create(pg+1, dfs.Replicated(1))
			c.plane.propose(t, pg+1, a.store(0))
		}
		eventually(t, "all are active", func() bool { return c.plane.complete(40, a.store(0)) })
		for pg := range dfs.PGID(40) {
			all.fill(pg+1, 3, 5000)
		}
		for pg := range dfs.PGID(40) {
			c.plane.propose(t, pg+1, a.store(0), x.store(int(pg)%2))
		}
		eventually(t, "x is complete", func() bool {
			for pg := range dfs.PGID(40) {
				if !c.plane.complete(pg+1, x.store(int(pg)%2)) {
					return false
				}
			}
			return true
		})
		for id, data := range all.blocks {
			c.holds(x.store(int(id.PG-1)%2), id, data)
		}
		c.plane.mu.Lock()
		defer c.plane.mu.Unlock()
		if c.plane.reports >= 40 {
			t.Errorf("%d reports for 40 refills", c.plane.reports)
		}
	})
}

// slowRefill makes a refill take long enough to meddle with it.
func slowRefill(o *Options) { o.RefillRate = 25_000 }

// halfway waits until about half of a refill's bytes were pulled.
func (c *cluster) halfway(n *node, total int) {
	c.t.Helper()
	eventually(c.t, "half of the refill", func() bool { return n.service.Stats().PulledBytes > uint64(total/2) })
	if c.plane.complete(1, n.store(0)) {
		c.t.Fatal("the refill is over before it was disturbed")
	}
}

const (
	slowBlocks = 200
	slowSize   = 4000 // in all 800 kB: some 20 s at 25 kB/s after the first burst
)

func TestRefillSurvivesItsSource(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b, x := c.node("a", 1), c.node("b", 1), c.node("x", 1, slowRefill)
		c.plane.create(1, dfs.Replicated(2))
		c.plane.activate(t, 1, a.store(0), b.store(0))
		all := c.content()
		all.fill(1, slowBlocks, slowSize)
		all.remove(10)
		c.plane.activate(t, 1, a.store(0), b.store(0), x.store(0))
		c.halfway(x, slowBlocks*slowSize)
		progress := c.plane.beat(x.store(0)).Refills
		if len(progress) != 1 || progress[0].Pg != 1 || progress[0].Done == 0 || progress[0].Left == 0 {
			t.Errorf("the beat tells of %v", progress)
		}
		a.crash()
		eventually(t, "x is complete from b alone", func() bool { return c.plane.complete(1, x.store(0)) })
		all.check(x.store(0))
		c.sameEntries(1, b, x)
		if st := x.service.Stats(); st.Pulled > slowBlocks+refillFetches {
			t.Errorf("%d blocks were pulled: the half that was there was not skipped", st.Pulled)
		}
	})
}

func TestRefillAmongPutsAndDeletes(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b, x := c.node("a", 1), c.node("b", 1), c.node("x", 1, slowRefill)
		c.plane.create(1, dfs.Replicated(2))
		c.plane.activate(t, 1, a.store(0), b.store(0))
		all := c.content()
		all.fill(1, slowBlocks, slowSize)
		c.plane.activate(t, 1, a.store(0), b.store(0), x.store(0))
		c.halfway(x, slowBlocks*slowSize)
		for range 20 {
			all.fill(1, 2, 1000)
			all.remove(5) // among them blocks that the scan has listed
			time.Sleep(50 * time.Millisecond)
		}
		// The refill goes on over maps that do not touch the member.
		c.plane.activate(t, 1, a.store(0), b.store(0), x.store(0))
		all.fill(1, 5, 1000)
		if c.plane.complete(1, x.store(0)) {
			t.Fatal("the refill is over before it was disturbed")
		}
		eventually(t, "x is complete", func() bool { return c.plane.complete(1, x.store(0)) })
		all.check(x.store(0))
		c.sameEntries(1, a, b, x)
	})
}

func TestRefillGoesOnAfterACrash(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b, x := c.node("a", 1), c.node("b", 1), c.node("x", 1, slowRefill)
		c.plane.create(1, dfs.Replicated(2))
		c.plane.activate(t, 1, a.store(0), b.store(0))
		all := c.content()
		all.fill(1, slowBlocks, slowSize)
		all.remove(20)
		c.plane.activate(t, 1, a.store(0), b.store(0), x.store(0))
		c.halfway(x, slowBlocks*slowSize)
		x.crash()
		x.run()
		x.ready()
		eventually(t, "x is complete", func() bool { return c.plane.complete(1, x.store(0)) })
		if st := x.service.Stats(); st.Pulled > slowBlocks*2/3 {
			t.Errorf("%d blocks were pulled after the crash: what was durable was not skipped", st.Pulled)
		}
		all.check(x.store(0))
		x.crash()
		x.run()
		x.ready()
		all.check(x.store(0))
		c.sameEntries(1, a, b, x)
	})
}

// What was reported is durable: a crash right after the report loses nothing.
func TestARefillIsReportedWhenItIsDurable(t *testing.T) {
	if lost := crashAtReport(t, Hooks{}); lost > 0 {
		t.Errorf("%d blocks of a complete member are gone", lost)
	}
}

func TestAnEarlyReportIsCaught(t *testing.T) {
	if lost := crashAtReport(t, Hooks{RefillDoneBeforeDurable: true}); lost == 0 {
		t.Error("nothing is lost though the refill was reported before it was durable")
	}
}

func crashAtReport(t *testing.T, hooks Hooks) (lost int) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, x := c.node("a", 1), c.node("x", 1, func(o *Options) { o.Hooks = hooks })
		c.plane.create(1, dfs.Replicated(1))
		c.plane.activate(t, 1, a.store(0))
		all := c.content()
		all.fill(1, 50, 100_000)
		// The file system as it is at the moment when the control group
		// commits the report.
		var after *vfs.MemFS
		c.plane.mu.Lock()
		c.plane.onDone = func(*wire.RefillDoneRequest) { after = x.fs[0].CrashClone(vfs.CrashCloneCfg{}) }
		c.plane.mu.Unlock()
		c.plane.activate(t, 1, a.store(0), x.store(0))
		eventually(t, "x is complete", func() bool { return c.plane.complete(1, x.store(0)) })
		x.crash()
		x.fs[0] = after
		x.run()
		x.ready()
		for id := range all.blocks {
			if _, _, err := c.get(x.store(0), id, 0, 0); err != nil {
				lost++
			}
		}
	})
	return lost
}

func TestRefillIsReportedUntilTheMapSaysSo(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, x := c.node("a", 1), c.node("x", 1)
		c.plane.create(1, dfs.Replicated(1))
		c.plane.activate(t, 1, a.store(0))
		all := c.content()
		all.fill(1, 5, 1000)
		c.plane.mu.Lock()
		c.plane.noDone = true
		c.plane.mu.Unlock()
		c.plane.activate(t, 1, a.store(0), x.store(0))
		time.Sleep(time.Minute)
		if c.plane.complete(1, x.store(0)) {
			t.Fatal("complete without a report")
		}
		// Incomplete still: what it does not have it does not deny.
		id, _ := c.block(1, 1)
		_, _, err := c.get(x.store(0), id, 0, 0)
		wantKind(t, "an unknown block", err, dfs.Unknowable)
		c.plane.mu.Lock()
		c.plane.noDone = false
		c.plane.mu.Unlock()
		eventually(t, "x is complete", func() bool { return c.plane.complete(1, x.store(0)) })
		eventually(t, "x knows it", func() bool {
			_, _, err := c.get(x.store(0), id, 0, 0)
			return dfs.KindOf(err) == dfs.NotExist
		})
		all.check(x.store(0))
		if got := x.service.Stats().Pulled; got != 5 {
			t.Errorf("%d blocks were pulled, not 5", got)
		}
	})
}

// A source answers a scan only when it has persisted the epoch at which the
// asker joined, and holds everything itself.
func TestStaleScansAreRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b, x := c.node("a", 1), c.node("b", 1), c.node("x", 1)
		c.plane.create(1, dfs.Replicated(2))
		e := c.plane.activate(t, 1, a.store(0), b.store(0))
		all := c.content()
		all.fill(1, 3, 1000)
		scan := func(store dfs.StoreID, before dfs.Epoch) error {
			_, err := c.conn(c.peer, store).Scan(t.Context(), &wire.ScanRequest{Store: uint32(store), Pg: 1, Before: uint64(before), Limit: 10})
			return err
		}
		if err := scan(a.store(0), e); err != nil {
			t.Error(err)
		}
		wantKind(t, "an epoch that is not persisted", scan(a.store(0), e+100), dfs.Unavailable)
		c.plane.change(func(*dfs.Map, dfs.Epoch) {})
		wantKind(t, "an epoch at which the group did not change", scan(a.store(0), e+1), dfs.Stale)
		wantKind(t, "a store that does not act", scan(x.store(0), e), dfs.Stale)
		c.plane.mu.Lock()
		c.plane.noDone = true
		c.plane.mu.Unlock()
		j := c.plane.activate(t, 1, a.store(0), b.store(0), x.store(0))
		wantKind(t, "a store that is not complete", scan(x.store(0), j), dfs.Stale)
		if err := scan(b.store(0), j); err != nil {
			t.Error(err)
		}
	})
}

// damage flips the first byte of a block's stored bytes on a node's disk.
func (n *node) damage(data []byte) { n.c.t.Helper(); n.damageAt(data, 0) }

// damageAt flips the byte at a distance from the first of a block's stored
// bytes: before it lies the record's header.
func (n *node) damageAt(data []byte, distance int64) {
	n.c.t.Helper()
	fs := n.fs[0]
	names, err := fs.List("store/segments")
	if err != nil {
		n.c.t.Fatal(err)
	}
	for _, name := range names {
		f, err := fs.OpenReadWrite("store/segments/"+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			n.c.t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			n.c.t.Fatal(err)
		}
		raw := make([]byte, info.Size())
		if _, err := f.ReadAt(raw, 0); err != nil {
			n.c.t.Fatal(err)
		}
		at := bytes.Index(raw, data)
		if at >= 0 {
			spoilt := int64(at) + distance
			_, err = f.WriteAt([]byte{^raw[spoilt]}, spoilt)
		}
		if cerr := f.Close(); err != nil || cerr != nil {
			n.c.t.Fatal(err, cerr)
		}
		if at >= 0 {
			return
		}
	}
	n.c.t.Fatal("the block is not on the disk")
}

func TestADamagedBlockIsRepairedAfterARead(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b := c.node("a", 1), c.node("b", 1)
		c.plane.create(1, dfs.Replicated(2))
		c.plane.activate(t, 1, a.store(0), b.store(0))
		id, data := c.block(1, 150_000)
		if err := c.putAll(id, data); err != nil {
			t.Fatal(err)
		}
		a.damage(data)
		_, _, err := c.get(a.store(0), id, 0, 0)
		wantKind(t, "the damaged copy", err, dfs.Corrupt)
		eventually(t, "the repair", func() bool { return a.service.Stats().Repaired == 1 })
		c.holds(a.store(0), id, data)
		c.sameEntries(1, a, b)

		// Where no good copy is left it stays damaged, and is said to be.
		a.damage(data)
		b.damage(data)
		_, _, err = c.get(a.store(0), id, 0, 0)
		wantKind(t, "the damaged copy", err, dfs.Corrupt)
		time.Sleep(time.Minute)
		_, _, err = c.get(a.store(0), id, 0, 0)
		wantKind(t, "the damaged copy", err, dfs.Corrupt)
	})
}

// TestRepairsDoNotWaitForRefills: the blocks of refills into a store whose disk hangs
// hold all the memory of the node's refills.
func TestRepairsDoNotWaitForRefills(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b := c.node("a", 1), c.node("b", 1)
		c.plane.create(1, dfs.Replicated(2))
		c.plane.activate(t, 1, a.store(0), b.store(0))
		id, data := c.block(1, 150_000)
		if err := c.putAll(id, data); err != nil {
			t.Fatal(err)
		}
		if !a.service.refill.memory.TryAcquire(refillMemory) {
			t.Fatal("something is being refilled")
		}
		defer a.service.refill.memory.Release(refillMemory)
		a.damage(data)
		_, _, err := c.get(a.store(0), id, 0, 0)
		wantKind(t, "the damaged copy", err, dfs.Corrupt)
		eventually(t, "the repair", func() bool { return a.service.Stats().Repaired == 1 })
	})
}

// A record whose header is damaged still serves its bytes, and is replaced by a
// whole one.
func TestADamagedHeaderIsRepairedAfterARead(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b := c.node("a", 1), c.node("b", 1)
		c.plane.create(1, dfs.Replicated(2))
		c.plane.activate(t, 1, a.store(0), b.store(0))
		id, data := c.block(1, 1000)
		if err := c.putAll(id, data); err != nil {
			t.Fatal(err)
		}
		a.damageAt(data, -40)
		c.holds(a.store(0), id, data)
		eventually(t, "the repair", func() bool { return a.service.Stats().Repaired == 1 })
		head, _, err := c.get(a.store(0), id, 0, 0)
		if err != nil || head.Hint.ToDFS() != (dfs.Hint{Ino: id.Ino, Offset: 11, Version: 12}) || len(a.engines[0].Damage()) != 0 {
			t.Errorf("%v %v, %+v", head, err, a.engines[0].Damage())
		}
		c.sameEntries(1, a, b)
	})
}

func TestRefillFromDamagedSources(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b, x := c.node("a", 1), c.node("b", 1), c.node("x", 1)
		c.plane.create(1, dfs.Replicated(2))
		c.plane.activate(t, 1, a.store(0), b.store(0))
		all := c.content()
		all.fill(1, 10, 10_000)
		both, data := c.block(1, 10_000)
		if err := c.putAll(both, data); err != nil {
			t.Fatal(err)
		}
		for id, d := range all.blocks {
			a.damage(d)
			_ = id
			break
		}
		a.damage(data)
		b.damage(data)
		c.plane.activate(t, 1, a.store(0), b.store(0), x.store(0))
		time.Sleep(time.Minute)
		if c.plane.complete(1, x.store(0)) {
			t.Fatal("the refill was reported without a block that is damaged everywhere")
		}
		all.check(x.store(0)) // everything else is there
		// A copy turns up: the refill ends by itself.
		if err := b.engines[0].Put(t.Context(), engine.PutRequest{ID: both, Epoch: 1, Info: describe(both, data), Payload: data, Refill: true}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "x is complete", func() bool { return c.plane.complete(1, x.store(0)) })
		c.holds(x.store(0), both, data)
	})
}
