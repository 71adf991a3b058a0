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
)

type write struct {
	b    block
	left []dfs.StoreID
}

type copying struct {
	pg     dfs.PGID
	member dfs.StoreID
	source dfs.StoreID
	joined dfs.Epoch
	mark   uint64
	left   []block
}

type report struct {
	pg     dfs.PGID
	store  dfs.StoreID
	mark   uint64
	joined dfs.Epoch
}

func newWalk(seed uint64, f fault) *walk {
	rng := rand.New(rand.NewPCG(seed, 3))
	k := &walk{world: newWorld(dfs.Replicated(1+rng.IntN(4)), 1+rng.IntN(4)), rng: rng, fault: f}
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
	before, acked := k.m, len(k.acked)
	switch n := k.rng.IntN(100); {
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
	if k.m == before && len(k.acked) == acked {
		return nil // a block more somewhere breaks nothing
	}
	if err := k.compare(before); err != nil {
		return err
	}
	return k.check(k.acked)
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
		d.blocks[w.b] = true
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
	c := &copying{pg: pg.ID, member: m.Store, source: source, joined: m.Joined, mark: m.Mark}
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
	if !k.disks[c.member].alive || !k.disks[c.source].alive {
		return true
	}
	if len(c.left) == 0 {
		k.reports = append(k.reports, report{c.pg, c.member, c.mark, c.joined})
		return true
	}
	b := c.left[0]
	if !k.disks[c.source].blocks[b] {
		return true
	}
	k.disks[c.member].blocks[b] = true
	c.left = c.left[1:]
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
	return k.check(k.acked)
}

// run lives one life and returns the first broken invariant.
func (k *walk) run() error {
	for range 3000 {
		if err := k.step(); err != nil {
			return err
		}
	}
	return k.end()
}

// TestWalk checks that no life loses an acknowledged block, activates a set
// without a survivor, or fails to converge when all are well.
func TestWalk(t *testing.T) {
	acked, activations, resets := 0, 0, 0
	for seed := range uint64(120) {
		k := newWalk(seed, noFault)
		if err := k.run(); err != nil {
			t.Fatalf("seed %d, %v: %v\n%s\n%s", seed, k.m.DefaultClass, err, k.world, strings.Join(k.log[max(0, len(k.log)-60):], "\n"))
		}
		acked += len(k.acked)
		activations += k.moves
		resets += k.resets
	}
	t.Logf("%d blocks acknowledged, %d activations after the first, %d resets", acked, activations, resets)
	if acked < 5000 || activations < 1500 || resets < 100 {
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
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(100) {
				if err := newWalk(seed, f).run(); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Error("no life in 100 showed it")
		})
	}
}
