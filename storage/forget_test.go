package storage

import (
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/repair"
)

// left is a placement group of two members that a third has left: a and x have
// it, b has its blocks from before.
type left struct {
	*content
	a, b, x *node
}

const leftKeep = 2 * time.Minute

// leave makes one. full: the acting set is the target, too.
func (c *cluster) leave(t *testing.T, full bool, tune ...func(*engine.Options)) *left {
	t.Helper()
	keep := func(o *Options) { o.TrashKeep = leftKeep }
	l := &left{content: c.content(), a: c.node("a", 1, keep), x: c.node("x", 1, keep), b: c.newNode("b", 1)}
	l.b.tune = keep
	l.b.tuneEng = func(_ int, o *engine.Options) {
		o.SegmentSize, o.CompactAge, o.DeadPercent = 1<<20, time.Second, 5
		for _, fn := range tune {
			fn(o)
		}
	}
	l.b.run()
	l.b.ready()
	c.plane.create(1, dfs.Replicated(2))
	c.plane.activate(t, 1, l.a.store(0), l.b.store(0))
	l.fill(1, 60, 60_000)
	l.remove(5)
	c.plane.activate(t, 1, l.a.store(0), l.x.store(0))
	eventually(t, "x is complete", func() bool { return c.plane.complete(1, l.x.store(0)) })
	if full {
		c.plane.forgetOthers(1)
	}
	return l
}

// has is how many blocks and tombstones of the placement group b has.
func (l *left) has(t *testing.T) int {
	t.Helper()
	list, _, err := l.b.engines[0].Inventory(1, nil, 1000)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestALeftShareIsForgotten: when it has been left for the time, and not before. When
// the store becomes a member again it is filled like one that is new.
func TestALeftShareIsForgotten(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		l := c.leave(t, true)
		before := l.b.engines[0].Stats()
		time.Sleep(leftKeep - 30*time.Second)
		if n := l.has(t); n != 60 {
			t.Fatalf("%d of 60 entries are left before the time", n)
		}
		time.Sleep(time.Minute)
		if n := l.has(t); n != 0 {
			t.Fatalf("%d entries are left after the time", n)
		}
		if st := l.b.service.Stats(); st.Forgotten != 55 {
			t.Errorf("%+v", st)
		}
		after := l.b.engines[0].Stats()
		if after.Stored != 0 || after.Blocks != 0 || after.Segments >= before.Segments || after.SegmentsGiven == 0 {
			t.Errorf("before %+v\nafter %+v", before, after)
		}
		if n := l.x.service.Stats().Forgotten + l.a.service.Stats().Forgotten; n != 0 {
			t.Errorf("%d blocks were forgotten by members", n)
		}
		l.check(l.a.store(0))
		l.check(l.x.store(0))

		c.plane.set(func() { c.plane.noDone = true })
		c.plane.activate(t, 1, l.a.store(0), l.b.store(0))
		if m := c.plane.current().PG(1).Member(l.b.store(0)); m.Complete != 0 {
			t.Errorf("it came back as %+v", m)
		}
		c.plane.set(func() { c.plane.noDone = false })
		eventually(t, "b is complete again", func() bool { return c.plane.complete(1, l.b.store(0)) })
		l.check(l.b.store(0))
		if st := l.b.service.Stats(); st.Doubted != 0 {
			t.Errorf("%d blocks from before, and it was said that there are none", st.Doubted)
		}
		l.b.crash()
		l.b.run()
		l.b.ready()
		l.check(l.b.store(0))
	})
}

// TestALeftShareIsKept: as long as one thing is missing, and the time counts from when
// nothing is.
func TestALeftShareIsKept(t *testing.T) {
	for _, c := range []struct {
		name  string
		full  bool
		begin func(t *testing.T, c *cluster, l *left)
		end   func(t *testing.T, c *cluster, l *left)
	}{
		{"the target is another", false, nil, func(_ *testing.T, c *cluster, _ *left) { c.plane.forgetOthers(1) }},
		{"something is proposed", true, func(t *testing.T, c *cluster, l *left) {
			c.plane.set(func() { c.plane.held = true })
			c.plane.propose(t, 1, l.a.store(0), l.x.store(0))
		}, func(t *testing.T, c *cluster, _ *left) {
			c.plane.set(func() { c.plane.held = false })
			eventually(t, "activation", func() bool { return c.plane.current().PG(1).Full() })
		}},
		{"a member is not complete", true, func(t *testing.T, c *cluster, l *left) {
			c.plane.set(func() { c.plane.noDone = true })
			x := l.x.store(0)
			c.plane.change(func(m *dfs.Map, _ dfs.Epoch) { m.PGs[0] = repair.ResetMember(m.PGs[0], x, m.Store(x).Incarnation.Mark) })
			c.plane.activate(t, 1, l.a.store(0), x)
		}, func(t *testing.T, c *cluster, _ *left) {
			c.plane.set(func() { c.plane.noDone = false })
			eventually(t, "x is complete", func() bool { return c.plane.current().PG(1).Full() })
		}},
		{"a member is down", true, func(_ *testing.T, c *cluster, l *left) {
			x := l.x.store(0)
			l.x.crash()
			c.plane.setState(x, dfs.StoreDown)
		}, func(_ *testing.T, _ *cluster, l *left) {
			l.x.run()
			l.x.ready()
		}},
		{"there is no current map", true, func(_ *testing.T, c *cluster, _ *left) {
			c.plane.set(func() { c.plane.foreign = true })
		}, func(_ *testing.T, c *cluster, _ *left) { c.plane.set(func() { c.plane.foreign = false }) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, k *cluster) {
				l := k.leave(t, c.full)
				if c.begin != nil {
					time.Sleep(leftKeep / 2)
					c.begin(t, k, l)
				}
				time.Sleep(2 * leftKeep)
				if n := l.has(t); n != 60 {
					t.Fatalf("%d of 60 entries are left", n)
				}
				c.end(t, k, l)
				if c.name != "there is no current map" { // else it was only not known
					time.Sleep(leftKeep - 30*time.Second)
					if n := l.has(t); n != 60 {
						t.Fatalf("%d of 60 entries are left before the time", n)
					}
				}
				time.Sleep(time.Minute)
				if n := l.has(t); n != 0 {
					t.Errorf("%d entries are left in the end", n)
				}
				l.check(l.a.store(0))
				l.check(l.x.store(0))
			})
		})
	}
}

// TestALeftShareMakesRoom: a store that is short of space does not wait, and takes puts
// again.
func TestALeftShareMakesRoom(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		l := c.leave(t, true, func(o *engine.Options) { o.Capacity, o.ReserveBytes = 11<<20, 1<<20 })
		time.Sleep(time.Minute)
		st := l.b.engines[0].Stats()
		if n := l.has(t); n != 60 {
			t.Fatalf("%d of 60 entries are left, with %d bytes free", n, st.Available)
		}
		c.plane.create(2, dfs.Replicated(1))
		c.plane.activate(t, 2, l.b.store(0))
		mine := c.content()
		for range 200 {
			id, data := c.block(2, 60_000)
			err := c.put(l.b.store(0), id, c.plane.current().PG(2).Active.Epoch, data)
			if dfs.KindOf(err) == dfs.NoSpace && err != nil {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			mine.blocks[id] = data
		}
		time.Sleep(time.Minute)
		if n := l.has(t); n != 0 {
			t.Fatalf("%d entries are left, with %d bytes free", n, l.b.engines[0].Stats().Available)
		}
		if n := l.b.service.Stats().Forgotten; n != 55 {
			t.Errorf("%d blocks were forgotten", n)
		}
		mine.check(l.b.store(0))
		id, data := c.block(2, 60_000)
		if err := c.put(l.b.store(0), id, c.plane.current().PG(2).Active.Epoch, data); err != nil {
			t.Error(err)
		}
	})
}

// TestHasLeft: each clause.
func TestHasLeft(t *testing.T) {
	const me, other, third = 1, 2, 3
	for _, c := range []struct {
		name  string
		want  bool
		spoil func(m *dfs.Map, pg *dfs.PG)
	}{
		{"left", true, func(*dfs.Map, *dfs.PG) {}},
		{"listed, complete through nothing", true, func(_ *dfs.Map, pg *dfs.PG) { pg.Members = append([]dfs.Member{{Store: me}}, pg.Members...) }},
		{"listed, complete through something", false, func(_ *dfs.Map, pg *dfs.PG) {
			pg.Members = append([]dfs.Member{{Store: me, Complete: 1}}, pg.Members...)
		}},
		{"never active", false, func(_ *dfs.Map, pg *dfs.PG) { pg.Active = dfs.ActingSet{} }},
		{"active", false, func(_ *dfs.Map, pg *dfs.PG) {
			pg.Active.Stores, pg.Target = []dfs.StoreID{me, other}, []dfs.StoreID{me, other}
			pg.Members = []dfs.Member{{Store: me, Complete: 7, Joined: 7}, {Store: other, Complete: 7, Joined: 7}}
		}},
		{"target", false, func(_ *dfs.Map, pg *dfs.PG) { pg.Target = []dfs.StoreID{me, other} }},
		{"proposed", false, func(_ *dfs.Map, pg *dfs.PG) { pg.Proposed = dfs.ActingSet{Epoch: 8, Stores: []dfs.StoreID{me, other}} }},
		{"others proposed", false, func(_ *dfs.Map, pg *dfs.PG) {
			pg.Proposed = dfs.ActingSet{Epoch: 8, Stores: []dfs.StoreID{other, third}}
		}},
		{"too few", false, func(_ *dfs.Map, pg *dfs.PG) { pg.Active.Stores, pg.Target = []dfs.StoreID{other}, []dfs.StoreID{other} }},
		{"not complete", false, func(_ *dfs.Map, pg *dfs.PG) { pg.Members[1].Complete = 6 }},
		{"down", false, func(m *dfs.Map, _ *dfs.PG) { m.Stores[2].State = dfs.StoreDown }},
		{"gone", false, func(m *dfs.Map, _ *dfs.PG) { m.Stores = m.Stores[:2] }},
	} {
		m := &dfs.Map{Epoch: 9}
		for id := range dfs.StoreID(3) {
			m.Stores = append(m.Stores, &dfs.Store{ID: id + 1, State: dfs.StoreUp})
		}
		pg := &dfs.PG{
			ID: 1, Class: dfs.Replicated(2), Target: []dfs.StoreID{other, third}, Active: dfs.ActingSet{Epoch: 7, Stores: []dfs.StoreID{other, third}},
			Members: []dfs.Member{{Store: other, Complete: 7, Joined: 3}, {Store: third, Complete: 7, Joined: 7}},
		}
		c.spoil(m, pg)
		if got := hasLeft(m, pg, me); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
