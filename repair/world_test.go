package repair

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"dfsd/dfs"
)

// world is a model of a cluster for the tests: the map as the control group
// would keep it, and disks that hold blocks. It applies decisions as the
// control group's state machine does.
type world struct {
	m         *dfs.Map
	set       Settings
	now       time.Time
	tally     Tally
	persisted map[dfs.StoreID]dfs.Epoch // what the leader was told
	disks     map[dfs.StoreID]*disk
	notBefore time.Time
}

// disk is what one store has on its platters.
type disk struct {
	alive  bool
	epoch  dfs.Epoch // newest map epoch persisted
	newest map[dfs.PGID]dfs.Epoch
	blocks map[block]bool

	tombs   map[block]dfs.Epoch    // deleted blocks, under which epoch
	doubt   map[block]bool         // of blocks: the owner will be asked about it
	doubted map[dfs.PGID]dfs.Epoch // for which refill, by its j, old blocks were doubted
	floors  map[dfs.PGID]dfs.Epoch // the highest tombstone floor it has learned
}

func newDisk() *disk {
	return &disk{
		alive: true, newest: map[dfs.PGID]dfs.Epoch{}, blocks: map[block]bool{},
		tombs: map[block]dfs.Epoch{}, doubt: map[block]bool{}, doubted: map[dfs.PGID]dfs.Epoch{}, floors: map[dfs.PGID]dfs.Epoch{},
	}
}

type block struct {
	pg    dfs.PGID
	epoch dfs.Epoch
	id    int
}

func newWorld(class dfs.Class, pgs int) *world {
	return &world{
		m:     &dfs.Map{Epoch: 1, DefaultClass: class},
		set:   Settings{PGsPerClass: pgs},
		now:   time.Unix(1_000_000, 0),
		tally: Tally{Voters: 3, By: map[dfs.StoreID][]dfs.NodeID{}}, persisted: map[dfs.StoreID]dfs.Epoch{},
		disks: map[dfs.StoreID]*disk{},
	}
}

// addNode adds a storage node with as many stores.
func (w *world) addNode(stores int, labels map[string]string) {
	id := dfs.NodeID(len(w.m.Nodes) + 1)
	m := w.edit()
	m.Nodes = append(m.Nodes, &dfs.Node{ID: id, Name: "node" + id.String()[1:], Roles: dfs.RoleStorage, Labels: labels})
	for range stores {
		s := dfs.StoreID(len(m.Stores) + 1)
		m.Stores = append(m.Stores, &dfs.Store{
			ID: s, Node: id, Incarnation: dfs.Incarnation{Mark: uint64(s), Start: 1}, Capacity: 1000,
			State: dfs.StoreUp, StateSince: w.now.UnixMilli(),
		})
		w.disks[s] = newDisk()
	}
	w.publish(m)
}

// edit returns a copy of the map whose lists may be changed.
func (w *world) edit() *dfs.Map {
	m := *w.m
	m.Nodes, m.Stores, m.PGs = slices.Clone(m.Nodes), slices.Clone(m.Stores), slices.Clone(m.PGs)
	return &m
}

func (w *world) publish(m *dfs.Map) {
	m.Epoch++
	w.m = m
}

func setPG(m *dfs.Map, pg *dfs.PG) {
	i := slices.IndexFunc(m.PGs, func(old *dfs.PG) bool { return old.ID == pg.ID })
	m.PGs[i] = pg
}

func setState(m *dfs.Map, id dfs.StoreID, state dfs.StoreState, now time.Time) {
	i := slices.IndexFunc(m.Stores, func(s *dfs.Store) bool { return s.ID == id })
	s := *m.Stores[i]
	s.State, s.StateSince = state, now.UnixMilli()
	m.Stores[i] = &s
}

func (w *world) plan() Output {
	return Plan(Input{Map: w.m, Persisted: w.persisted, Tally: w.tally, Now: w.now, NoDownBefore: w.notBefore, Settings: w.set})
}

// apply applies decisions as one entry, each if it still holds, and returns
// why some did not.
func (w *world) apply(decisions []Decision) []error {
	m := w.edit()
	state := func(id dfs.StoreID) dfs.StoreState {
		if s := m.Store(id); s != nil {
			return s.State
		}
		return 0
	}
	var errs []error
	for _, d := range decisions {
		if err := w.applyOne(m, d, state); err != nil {
			errs = append(errs, err)
		}
	}
	w.publish(m)
	return errs
}

func (w *world) applyOne(m *dfs.Map, d Decision, state func(dfs.StoreID) dfs.StoreState) error {
	stale := func(s dfs.StoreID, inc dfs.Incarnation, from dfs.StoreState) error {
		if st := m.Store(s); st.Incarnation != inc || st.State != from {
			return dfs.Errorf(dfs.Stale, "apply", "%v is %v in %v", s, st.State, st.Incarnation)
		}
		return nil
	}
	switch d := d.(type) {
	case MarkDown:
		if err := stale(d.Store, d.Incarnation, dfs.StoreUp); err != nil {
			return err
		}
		setState(m, d.Store, dfs.StoreDown, w.now)
	case MarkOut:
		if err := stale(d.Store, d.Incarnation, dfs.StoreDown); err != nil {
			return err
		}
		setState(m, d.Store, dfs.StoreOut, w.now)
	case CreatePGs:
		if len(m.PGs) > 0 {
			return dfs.Errorf(dfs.Exist, "apply", "class %v has placement groups", d.Class)
		}
		for range d.Count {
			m.PGs = append(m.PGs, &dfs.PG{ID: dfs.PGID(len(m.PGs) + 1), Class: d.Class})
		}
	case SetTarget:
		pg, err := Retarget(m.PG(d.PG), d.Target, state)
		if err != nil {
			return err
		}
		setPG(m, pg)
	case ProposeSet:
		pg := m.PG(d.PG)
		if pg.Newest() != d.Newest {
			return dfs.Errorf(dfs.Stale, "apply", "%v has moved on", pg.ID)
		}
		if err := w.set.Rules.CheckPropose(pg, d.Acting, state); err != nil {
			return err
		}
		setPG(m, Propose(pg, m.Epoch+1, d.Acting))
	case ActivateSet:
		pg := m.PG(d.PG)
		if pg.Proposed.Epoch != d.Epoch {
			return dfs.Errorf(dfs.Stale, "apply", "%v has moved on", pg.ID)
		}
		if err := w.set.Rules.CheckActivate(pg, func(s dfs.StoreID) dfs.Epoch { return w.persisted[s] }); err != nil {
			return err
		}
		setPG(m, w.set.Rules.Activate(pg, func(s dfs.StoreID) uint64 { return m.Store(s).Incarnation.Mark }))
	}
	return nil
}

// register brings a store up again, as a new start of the same disk.
func (w *world) register(id dfs.StoreID) {
	m := w.edit()
	setState(m, id, dfs.StoreUp, w.now)
	m.Store(id).Incarnation.Start++
	w.publish(m)
	w.disks[id].alive = true
	delete(w.tally.By, id)
}

// reset damages a store: it may lack anything.
func (w *world) reset(id dfs.StoreID) {
	m := w.edit()
	for _, pg := range m.PGs {
		setPG(m, ResetMember(pg, id, m.Store(id).Incarnation.Mark))
	}
	w.publish(m)
}

// persist makes a store know the newest map, durably, and the leader know that.
func (w *world) persist(id dfs.StoreID) {
	d := w.disks[id]
	d.epoch = w.m.Epoch
	for _, pg := range w.m.PGs {
		d.newest[pg.ID] = pg.Newest()
	}
	w.persisted[id] = d.epoch
}

// put offers a block to one store of the active set, which refuses what it
// knows to be superseded.
func (d *disk) put(b block) bool {
	if !d.alive || d.newest[b.pg] > b.epoch || d.tombs[b] > 0 {
		return false
	}
	d.take(b, true)
	return true
}

// take stores a block unless it is here or deleted.
func (d *disk) take(b block, doubt bool) {
	if d.tombs[b] > 0 || d.blocks[b] {
		return
	}
	d.blocks[b] = true
	if doubt {
		d.doubt[b] = true
	}
}

// bury deletes a block, whether or not it is here.
func (d *disk) bury(b block, epoch dfs.Epoch) {
	delete(d.blocks, b)
	delete(d.doubt, b)
	d.tombs[b] = max(d.tombs[b], epoch)
}

// doubtOld has the owners asked about what a member that is complete through
// nothing has from before, once for each refill.
func (d *disk) doubtOld(pg dfs.PGID, joined dfs.Epoch) {
	if d.doubted[pg] == joined {
		return
	}
	d.doubted[pg] = joined
	for b := range d.blocks {
		if b.pg == pg && b.epoch < joined {
			d.doubt[b] = true
		}
	}
}

// refill copies what a member lacks from a source that is complete, and says
// whether there was one.
func (w *world) refill(pg *dfs.PG, member, source dfs.StoreID) bool {
	m := pg.Member(member)
	if m == nil || m.Joined == 0 || !pg.IsComplete(source) || !w.disks[source].alive {
		return false
	}
	from, to := w.disks[source], w.disks[member]
	if m.Complete == 0 {
		to.doubtOld(pg.ID, m.Joined)
	}
	for b, e := range from.tombs {
		if b.pg == pg.ID && e > m.Complete && e < m.Joined {
			to.bury(b, e)
		}
	}
	for b := range from.blocks {
		if b.pg == pg.ID && b.epoch > m.Complete && b.epoch < m.Joined {
			to.take(b, from.doubt[b])
		}
	}
	return true
}

func (w *world) refillDone(pg dfs.PGID, store dfs.StoreID, mark uint64, joined dfs.Epoch) error {
	next, err := RefillDone(w.m.PG(pg), store, mark, joined)
	if err != nil {
		return err
	}
	m := w.edit()
	setPG(m, next)
	w.publish(m)
	return nil
}

// settle runs plans, and everything they wait for, until nothing is left to do.
// It returns the number of plans.
func (w *world) settle() (int, error) {
	for round := range 500 {
		for _, s := range w.m.Stores {
			if w.disks[s.ID].alive {
				w.persist(s.ID)
			}
		}
		idle := true
		for _, pg := range w.m.PGs {
			for _, m := range pg.Members {
				if !pg.Active.Has(m.Store) || pg.IsComplete(m.Store) || !w.disks[m.Store].alive {
					continue
				}
				for _, src := range pg.Complete() {
					if w.refill(pg, m.Store, src) {
						if err := w.refillDone(pg.ID, m.Store, m.Mark, m.Joined); err != nil {
							return round, err
						}
						idle = false
						break
					}
				}
			}
		}
		if out := w.plan(); len(out.Decisions) > 0 {
			w.apply(out.Decisions)
		} else if idle {
			return round, nil
		}
	}
	return 500, dfs.Errorf(dfs.Internal, "settle", "no end after 500 plans:\n%s", w)
}

// String draws stores that are not up, and the PGs.
func (w *world) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "epoch %d", w.m.Epoch)
	for _, s := range w.m.Stores {
		if s.State != dfs.StoreUp {
			fmt.Fprintf(&b, ", %v %v", s.ID, s.State)
		}
	}
	b.WriteString("\n")
	for _, pg := range w.m.PGs {
		fmt.Fprintf(&b, "%v target %v", pg.ID, pg.Target)
		if pg.Active.Epoch > 0 {
			fmt.Fprintf(&b, ", active %d %v", pg.Active.Epoch, pg.Active.Stores)
		}
		if pg.Proposed.Epoch > 0 {
			fmt.Fprintf(&b, ", proposed %d %v", pg.Proposed.Epoch, pg.Proposed.Stores)
		}
		b.WriteString("\n")
		for _, m := range pg.Members {
			what := "away"
			switch {
			case pg.IsComplete(m.Store):
				what = "complete"
			case pg.Active.Has(m.Store) && m.Joined == 0:
				what = "reset"
			case pg.Active.Has(m.Store):
				what = "refilling"
			}
			fmt.Fprintf(&b, "    %v %s, through %d, joined %d\n", m.Store, what, m.Complete, m.Joined)
		}
	}
	r := Summarize(w.m)
	fmt.Fprintf(&b, "%d PGs:", r.PGs)
	for _, c := range []struct {
		n    int
		name string
	}{{r.Full, "full"}, {r.Moving, "moving"}, {r.Degraded, "degraded"}, {r.BelowMinimum, "below minimum"}, {r.Stalled, "stalled"}, {r.New, "new"}} {
		if c.n > 0 {
			fmt.Fprintf(&b, " %d %s", c.n, c.name)
		}
	}
	b.WriteString("\n")
	return b.String()
}

// check returns the first broken invariant. acked are the acknowledged blocks.
func (w *world) check(acked []block) error {
	for _, pg := range w.m.PGs {
		if err := Check(pg); err != nil {
			return err
		}
		for _, m := range pg.Members {
			for _, b := range acked {
				if b.pg == pg.ID && b.epoch <= m.Complete && !w.disks[m.Store].blocks[b] {
					return dfs.Errorf(dfs.Internal, "check", "%v: %v is complete through %d and lacks block %d of epoch %d", pg.ID, m.Store, m.Complete, b.id, b.epoch)
				}
			}
		}
	}
	return nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	var out []K
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
