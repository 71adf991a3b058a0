package repair

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"dfsd/dfs"
)

// walk is a random life of a world: writes, refills, reports, plans and their
// application all take their time and overlap with deaths and resets.
type walk struct {
	*world
	rng   *rand.Rand
	fault fault

	acked   []block
	deletes []*deletion            // the delete queue
	gone    map[block]bool         // whose delete everybody who acted has acknowledged
	floors  map[dfs.PGID]dfs.Epoch // the highest there ever was
	dropped int                    // tombstones
	nextID  int
	clients []*dfs.Map // what clients know: newer or older maps
	writes  []*write
	copies  []*copying
	reports []report // refills done, on their way to the control group
	plans   [][]Decision
	log     []string // what happened
	moves   int      // activations seen
	resets  int
}

// fault is a planted bug of the model's own, to show that the walk finds such.
type fault uint8

const (
	noFault         fault = iota
	ignorePersisted       // activate without waiting for the members
	ignoreEpoch           // stores take writes of superseded epochs
	countActing           // Rules.CountActingAsComplete
	earlyReport           // a refill is reported before it has copied all
	trustOld              // who is complete through nothing keeps its old blocks without asking
	floorOfActing         // the tombstone floor does not heed members that are away or refill
)

type write struct {
	b    block
	left []dfs.StoreID
}

// deletion is a row of the delete queue. It goes to all acting members under one
// epoch, and when one does not take it, to all of them anew.
type deletion struct {
	b     block
	epoch dfs.Epoch
	left  []dfs.StoreID
}

type copying struct {
	pg     dfs.PGID
	member dfs.StoreID
	source dfs.StoreID
	joined dfs.Epoch
	mark   uint64
	tombs  map[block]dfs.Epoch
	left   []block
	taken  bool // the first of left has come from the source, and is on its way to the disk
	doubt  bool // as the source said of it
}

type report struct {
	pg     dfs.PGID
	store  dfs.StoreID
	mark   uint64
	joined dfs.Epoch
}

func newWalk(seed uint64, f fault) *walk {
	rng := rand.New(rand.NewPCG(seed, 3))
	k := &walk{
		world: newWorld(dfs.Replicated(1+rng.IntN(4)), 1+rng.IntN(4)), rng: rng, fault: f,
		gone: map[block]bool{}, floors: map[dfs.PGID]dfs.Epoch{},
	}
	k.set.Rules.CountActingAsComplete = f == countActing
	if rng.IntN(2) == 0 {
		k.set.MaxMoves, k.set.MaxRefills = 1, 2
	}
	for range 2 + rng.IntN(3) {
		k.addNode(1+rng.IntN(5)/4, nil)
	}
	return k
}

func (k *walk) note(format string, args ...any) { k.log = append(k.log, fmt.Sprintf(format, args...)) }

// pick returns a random element, and whether there is one.
func pick[T any](rng *rand.Rand, list []T) (v T, ok bool) {
	if len(list) == 0 {
		return v, false
	}
	return list[rng.IntN(len(list))], true
}

// step does one random thing.
func (k *walk) step() error {
	before, acked, gone := k.m, len(k.acked), len(k.gone)
	switch n := k.rng.IntN(120); {
	case n >= 114:
		k.compact()
	case n >= 112:
		k.ask()
	case n >= 103:
		k.advanceDelete()
	case n >= 100:
		k.startDelete()
	case n < 8:
		k.startWrite()
	case n < 34:
		k.advanceWrite()
	case n < 46:
		k.learn()
	case n < 62:
		k.decide()
	case n < 78:
		k.copyOn()
	case n < 86:
		k.deliver()
	case n < 95:
		k.fail()
	default:
		k.now = k.now.Add(time.Duration(k.rng.IntN(8)) * time.Minute)
	}
	if k.m == before && len(k.acked) == acked && len(k.gone) == gone {
		return nil // a block more somewhere breaks nothing
	}
	if err := k.compare(before); err != nil {
		return err
	}
	return k.checkAll()
}

func (k *walk) checkAll() error {
	if err := k.checkDeleted(); err != nil {
		return err
	}
	return k.check(k.acked)
}

// checkDeleted checks that no complete member has a block that was deleted and about
// which it will not ask: nobody would ever delete it.
func (k *walk) checkDeleted() error {
	for _, pg := range k.m.PGs {
		for _, s := range pg.Complete() {
			d := k.disks[s]
			for b := range d.blocks {
				if b.pg == pg.ID && k.gone[b] && !d.doubt[b] {
					return fmt.Errorf("%v: %v is complete and keeps block %d of epoch %d, which was deleted", pg.ID, s, b.id, b.epoch)
				}
			}
		}
	}
	return nil
}

// checkFloors checks what the proof at dfs.PG.TombstoneFloor says of the floors
// that stores may have learned.
func (k *walk) checkFloors() error {
	for _, pg := range k.m.PGs {
		f := max(k.floors[pg.ID], pg.TombstoneFloor())
		k.floors[pg.ID] = f
		for _, m := range pg.Members {
			if m.Complete > 0 && f > m.Complete+1 || m.Complete == 0 && m.Joined > 0 && f > m.Joined {
				return fmt.Errorf("%v: a floor was %d, %v is complete through %d, joined %d", pg.ID, f, m.Store, m.Complete, m.Joined)
			}
		}
	}
	return nil
}

// startDelete releases a block that was acknowledged.
func (k *walk) startDelete() {
	b, ok := pick(k.rng, k.acked)
	if !ok {
		return
	}
	k.acked = slices.DeleteFunc(k.acked, func(o block) bool { return o == b })
	k.deletes = append(k.deletes, &deletion{b: b})
}

// advanceDelete brings one tombstone to one more of its stores.
func (k *walk) advanceDelete() {
	del, ok := pick(k.rng, k.deletes)
	if !ok {
		return
	}
	pg := k.m.PG(del.b.pg)
	if len(del.left) == 0 {
		if !pg.Writable() {
			return
		}
		del.epoch, del.left = pg.Active.Epoch, slices.Clone(pg.Active.Stores)
	}
	i := k.rng.IntN(len(del.left))
	d := k.disks[del.left[i]]
	if !d.alive || d.newest[pg.ID] > del.epoch {
		del.left = nil
		return
	}
	d.bury(del.b, del.epoch)
	if del.left = slices.Delete(del.left, i, i+1); len(del.left) == 0 {
		k.note("deleted block %d of epoch %d in %v, at %d", del.b.id, del.b.epoch, pg.ID, del.epoch)
		k.gone[del.b] = true
		k.deletes = slices.DeleteFunc(k.deletes, func(o *deletion) bool { return o == del })
	}
}

// ask has a store ask about some of the blocks that it has to ask about.
func (k *walk) ask() {
	id, _ := pick(k.rng, sortedKeys(k.disks))
	d := k.disks[id]
	if !d.alive {
		return
	}
	for _, b := range sortedBlocks(d.doubt) {
		switch {
		case slices.Contains(k.acked, b):
			delete(d.doubt, b)
		case k.gone[b] && k.rng.IntN(3) == 0: // the trash was emptied
			d.bury(b, b.epoch)
		}
	}
}

// compact has a store learn the floors, or drop tombstones below those that it knows.
func (k *walk) compact() {
	id, _ := pick(k.rng, sortedKeys(k.disks))
	d := k.disks[id]
	if !d.alive {
		return
	}
	for _, pg := range k.m.PGs {
		f := pg.TombstoneFloor()
		if k.fault == floorOfActing {
			f = pg.Active.Epoch + 1
		}
		d.floors[pg.ID] = max(d.floors[pg.ID], f)
	}
	for _, b := range sortedBlocks(d.tombs) {
		if d.tombs[b] < d.floors[b.pg] && k.rng.IntN(2) == 0 {
			delete(d.tombs, b)
			k.dropped++
		}
	}
}

func sortedBlocks[V any](m map[block]V) []block {
	var out []block
	for b := range m {
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b block) int { return a.id - b.id })
	return out
}

// startWrite begins a write of a client that knows some map.
func (k *walk) startWrite() {
	m, ok := pick(k.rng, k.clients)
	if !ok || k.rng.IntN(3) > 0 {
		m = k.m
	}
	k.clients = append(k.clients[max(0, len(k.clients)-4):], k.m)
	pg, ok := pick(k.rng, m.PGs)
	if !ok || !pg.Writable() {
		return
	}
	k.nextID++
	k.writes = append(k.writes, &write{b: block{pg.ID, pg.Active.Epoch, k.nextID}, left: slices.Clone(pg.Active.Stores)})
}

// advanceWrite brings one block to one more of its stores.
func (k *walk) advanceWrite() {
	w, ok := pick(k.rng, k.writes)
	if !ok {
		return
	}
	i := k.rng.IntN(len(w.left))
	d := k.disks[w.left[i]]
	took := d.put(w.b) || k.fault == ignoreEpoch && d.alive
	if took {
		d.blocks[w.b] = true // also when it ignores the epoch
		w.left = slices.Delete(w.left, i, i+1)
	}
	if took && len(w.left) > 0 {
		return
	}
	if took {
		k.acked = append(k.acked, w.b)
		k.note("acked block %d of epoch %d in %v", w.b.id, w.b.epoch, w.b.pg)
	}
	k.writes = slices.DeleteFunc(k.writes, func(o *write) bool { return o == w })
}

// learn makes some stores persist the map, and the leader hear of some.
func (k *walk) learn() {
	for _, id := range sortedKeys(k.disks) {
		d := k.disks[id]
		if !d.alive || k.rng.IntN(2) == 0 {
			continue
		}
		told, known := k.persisted[id]
		k.persist(id)
		if k.rng.IntN(4) > 0 {
			continue
		}
		if k.persisted[id] = told; !known {
			delete(k.persisted, id)
		}
	}
}

// decide plans, or applies a plan made some time ago.
func (k *walk) decide() {
	if k.rng.IntN(20) == 0 {
		k.note("another leader, who was told nothing yet")
		k.persisted, k.plans = map[dfs.StoreID]dfs.Epoch{}, nil
		return
	}
	if len(k.plans) > 0 && k.rng.IntN(3) > 0 {
		k.applyPlan(k.plans[0])
		k.plans = k.plans[1:]
		return
	}
	in := Input{Map: k.m, Persisted: k.persisted, Tally: k.tally, Now: k.now, Settings: k.set}
	if k.fault == ignorePersisted {
		in.Persisted = k.everythingPersisted()
	}
	if out := Plan(in); len(out.Decisions) > 0 {
		if k.rng.IntN(3) == 0 {
			k.plans = append(k.plans, out.Decisions)
		} else {
			k.applyPlan(out.Decisions)
		}
	}
}

func (k *walk) everythingPersisted() map[dfs.StoreID]dfs.Epoch {
	all := map[dfs.StoreID]dfs.Epoch{}
	for id := range k.disks {
		all[id] = k.m.Epoch
	}
	return all
}

func (k *walk) applyPlan(decisions []Decision) {
	if k.fault == ignorePersisted {
		told := k.persisted
		k.persisted = k.everythingPersisted()
		defer func() { k.persisted = told }()
	}
	for _, d := range decisions {
		k.note("%v", d)
	}
	for _, err := range k.apply(decisions) {
		k.note("refused: %v", err)
	}
}

// copyOn begins a refill, or copies a block of one, or ends it.
func (k *walk) copyOn() {
	if c, ok := pick(k.rng, k.copies); ok && k.rng.IntN(5) > 0 {
		done := k.copyBlock(c)
		if !done && k.fault == earlyReport && k.rng.IntN(4) == 0 {
			done = true
			k.reports = append(k.reports, report{c.pg, c.member, c.mark, c.joined})
		}
		if done {
			k.copies = slices.DeleteFunc(k.copies, func(o *copying) bool { return o == c })
		}
		return
	}
	pg, ok := pick(k.rng, k.m.PGs)
	if !ok || pg.Active.Epoch == 0 {
		return
	}
	m, _ := pick(k.rng, pg.Members)
	source, ok := pick(k.rng, pg.Complete())
	if !ok || m.Joined == 0 || pg.IsComplete(m.Store) || !k.disks[m.Store].alive || !k.disks[source].alive {
		return
	}
	if slices.ContainsFunc(k.copies, func(c *copying) bool { return c.pg == pg.ID && c.member == m.Store }) {
		return // one pass after the other
	}
	c := &copying{pg: pg.ID, member: m.Store, source: source, joined: m.Joined, mark: m.Mark, tombs: map[block]dfs.Epoch{}}
	if m.Complete == 0 && k.fault != trustOld {
		k.disks[m.Store].doubtOld(pg.ID, m.Joined)
	}
	for b, e := range k.disks[source].tombs {
		if b.pg == pg.ID && e > m.Complete && e < m.Joined {
			c.tombs[b] = e
		}
	}
	for b := range k.disks[source].blocks {
		if b.pg == pg.ID && b.epoch > m.Complete && b.epoch < m.Joined {
			c.left = append(c.left, b)
		}
	}
	slices.SortFunc(c.left, func(a, b block) int { return a.id - b.id })
	k.copies = append(k.copies, c)
}

// copyBlock copies one block and reports whether the refill has ended.
func (k *walk) copyBlock(c *copying) (done bool) {
	if m := k.m.PG(c.pg).Member(c.member); m == nil || m.Joined != c.joined || k.m.PG(c.pg).IsComplete(c.member) {
		return true // the map does not ask for it any more
	}
	if !k.disks[c.member].alive || !k.disks[c.source].alive {
		return true
	}
	to := k.disks[c.member]
	for b, e := range c.tombs {
		to.bury(b, e)
	}
	clear(c.tombs)
	if len(c.left) == 0 {
		k.reports = append(k.reports, report{c.pg, c.member, c.mark, c.joined})
		return true
	}
	b := c.left[0]
	if !c.taken {
		if from := k.disks[c.source]; from.blocks[b] {
			c.taken, c.doubt = true, from.doubt[b]
			return false
		}
		return true
	}
	to.take(b, c.doubt)
	c.left, c.taken = c.left[1:], false
	return false
}

// deliver brings a report of a finished refill, sometimes again.
func (k *walk) deliver() {
	if len(k.reports) == 0 {
		return
	}
	i := k.rng.IntN(len(k.reports))
	r := k.reports[i]
	if k.rng.IntN(4) > 0 {
		k.reports = slices.Delete(k.reports, i, i+1)
	}
	err := k.refillDone(r.pg, r.store, r.mark, r.joined)
	k.note("%v reports its refill of %v since %d: %v", r.store, r.pg, r.joined, err)
}

// fail kills, suspects, restarts or damages stores, or adds a node.
func (k *walk) fail() {
	id, _ := pick(k.rng, sortedKeys(k.disks))
	d := k.disks[id]
	switch n := k.rng.IntN(20); {
	case n < 3 && d.alive:
		k.note("%v dies", id)
		d.alive = false
		k.copies = slices.DeleteFunc(k.copies, func(c *copying) bool { return c.member == id })
	case n < 11 && !d.alive || n == 3:
		voter := dfs.NodeID(1 + k.rng.IntN(3))
		if !slices.Contains(k.tally.By[id], voter) {
			k.tally.By[id] = append(k.tally.By[id], voter)
			slices.Sort(k.tally.By[id])
		}
	case n < 18 && (!d.alive || k.m.Store(id).State != dfs.StoreUp):
		k.note("%v starts", id)
		k.register(id)
		k.persist(id) // a store takes no write before it has read the map
	case n == 18 && k.mayReset(id):
		k.note("%v is damaged", id)
		k.resets++
		for _, b := range k.acked {
			if k.rng.IntN(2) == 0 {
				delete(d.blocks, b)
			}
		}
		for _, b := range sortedBlocks(k.gone) { // or it is as it was before they were deleted
			if k.rng.IntN(4) == 0 {
				d.blocks[b] = true
				delete(d.tombs, b)
				delete(d.doubt, b)
			}
		}
		k.copies = slices.DeleteFunc(k.copies, func(c *copying) bool { return c.member == id })
		k.reset(id)
	case n == 19 && len(k.m.Nodes) < 7:
		k.note("a node joins")
		k.addNode(1, nil)
	}
}

// mayReset reports whether no PG loses its last complete member.
func (k *walk) mayReset(id dfs.StoreID) bool {
	return !slices.ContainsFunc(k.m.PGs, func(pg *dfs.PG) bool { return pg.IsComplete(id) && len(pg.Complete()) == 1 })
}

// compare holds the PGs against what they were a step before.
func (k *walk) compare(before *dfs.Map) error {
	if err := k.checkFloors(); err != nil {
		return err
	}
	for _, pg := range k.m.PGs {
		old := before.PG(pg.ID)
		if old == nil || old.Active.Epoch == 0 {
			continue
		}
		if len(pg.Complete()) == 0 {
			return fmt.Errorf("%v has no complete member left", pg.ID)
		}
		if pg.Active.Epoch == old.Active.Epoch {
			continue
		}
		k.moves++
		if pg.Active.Epoch < old.Newest() {
			return fmt.Errorf("%v went back from epoch %d to %d", pg.ID, old.Newest(), pg.Active.Epoch)
		}
		if !slices.ContainsFunc(pg.Active.Stores, old.IsComplete) {
			return fmt.Errorf("%v was activated without a survivor of %v", pg.ID, old.Active.Stores)
		}
	}
	return nil
}

// end lets all stores live and be trusted, and checks that everything converges.
func (k *walk) end() error {
	k.tally.By = map[dfs.StoreID][]dfs.NodeID{}
	k.writes, k.copies, k.plans = nil, nil, nil
	for _, id := range sortedKeys(k.disks) {
		if !k.disks[id].alive || k.m.Store(id).State != dfs.StoreUp {
			k.register(id)
		}
	}
	if _, err := k.settle(); err != nil {
		return err
	}
	width := min(k.m.DefaultClass.Width(), len(k.m.Stores))
	for _, pg := range k.m.PGs {
		if !slices.Equal(pg.Active.Stores, pg.Target) || len(pg.Complete()) != width || pg.Proposed.Epoch != 0 {
			return fmt.Errorf("%v has not converged:\n%s", pg.ID, k.world)
		}
	}
	return k.checkAll()
}

// run lives one life and returns the first broken invariant.
func (k *walk) run() error {
	for range 3600 {
		if err := k.step(); err != nil {
			return err
		}
	}
	return k.end()
}

// TestWalk checks that no life loses an acknowledged block, has a complete member
// keep a deleted one, activates a set without a survivor, or fails to converge when
// all are well.
func TestWalk(t *testing.T) {
	acked, activations, resets, gone, dropped := 0, 0, 0, 0, 0
	for seed := range uint64(120) {
		k := newWalk(seed, noFault)
		if err := k.run(); err != nil {
			t.Fatalf("seed %d, %v: %v\n%s\n%s", seed, k.m.DefaultClass, err, k.world, strings.Join(k.log[max(0, len(k.log)-60):], "\n"))
		}
		acked += len(k.acked) + len(k.deletes) + len(k.gone)
		activations += k.moves
		resets += k.resets
		gone += len(k.gone)
		dropped += k.dropped
	}
	t.Logf("%d blocks acknowledged, %d of them deleted, %d tombstones dropped, %d activations after the first, %d resets", acked, gone, dropped, activations, resets)
	if acked < 5000 || gone < 1000 || dropped < 1000 || activations < 1500 || resets < 100 {
		t.Error("the walk is too quiet to show anything")
	}
}

// TestWalkFindsFaults plants bugs and shows that the walk notices each.
func TestWalkFindsFaults(t *testing.T) {
	for f, name := range map[fault]string{
		ignorePersisted: "activation that does not wait for the members",
		ignoreEpoch:     "stores that take writes of superseded epochs",
		countActing:     "acting members counted as complete",
		earlyReport:     "refills reported before they are done",
		trustOld:        "members that come back from nothing and are trusted",
		floorOfActing:   "a tombstone floor that heeds acting members only",
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(300) {
				if err := newWalk(seed, f).run(); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Error("no life in 300 showed it")
		})
	}
}
