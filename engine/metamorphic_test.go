package engine

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
)

var (
	metaSeeds = flag.Int("seeds", 0, "random lives of TestMetamorphic; 200 with -full, else 12")
	metaSteps = flag.Int("steps", 0, "operations in each of them; 20,000 with -full, else 2,000")
	metaSeed  = flag.Uint64("seed", 0, "the first seed")
)

// operations on one block, and how often each is drawn.
var operations = weighted{
	{"put", 24}, {"put again", 6}, {"put other bytes", 2}, {"put without patience", 2}, {"delete", 10}, {"delete again", 3},
	{"refill", 8}, {"refill delete", 3}, {"get", 12}, {"get a range", 20}, {"stat", 4}, {"answer", 8},
}

// actions of a world, and how often each is drawn: with 996 of 1,000 for the
// quiet ones, 4 for the others.
var (
	quiet = weighted{{"burst", 80}, {"wait", 4}, {"epoch", 4}, {"renew", 10}, {"list", 3}, {"purge", 1}, {"compare", 1}, {"floor", 1}, {"empty", 1}, {"forget", 1}}
	rough = weighted{{"crash", 2}, {"reopen", 1}, {"fault", 3}}
)

// weighted is a list to draw from.
type weighted []struct {
	name   string
	weight int
}

func (l weighted) draw(rng *rand.Rand) string {
	sum := 0
	for _, x := range l {
		sum += x.weight
	}
	n := rng.IntN(sum)
	for _, x := range l {
		if n -= x.weight; n < 0 {
			return x.name
		}
	}
	panic("not reached")
}

func (l weighted) names() (names []string) {
	for _, x := range l {
		names = append(names, x.name)
	}
	return names
}

// act runs one random operation on a block and checks its answer.
func (w *world) act(b *modelBlock, what string, e dfs.Epoch, rng *rand.Rand) error {
	switch what {
	case "get":
		return w.get(b, 0, dfs.MaxBlockSize)
	case "get a range":
		return w.get(b, uint32(rng.IntN(b.size+10)), uint32(rng.IntN(b.size+10)))
	case "stat":
		return w.stat(b)
	case "answer":
		return w.answer(b)
	}
	return w.change(b, what, e, rng)
}

func (w *world) stat(b *modelBlock) error {
	e, err := w.store.Stat(blockID(b.n), b.shard())
	switch {
	case b.may != 0: // nobody answered for the last operation on it
		return nil
	case err != nil && w.faults.excuseReads():
		return nil
	case b.fate == absent && dfs.KindOf(err) == dfs.NotExist:
		return nil
	case err != nil || b.fate == absent || e.Tombstone != (b.fate == deleted) || b.epoch != 0 && e.Epoch != b.epoch:
		return fmt.Errorf("stat of block %d, fate %d, epoch %d: %+v, %v", b.n, b.fate, b.epoch, e, err)
	}
	return nil
}

// answer says what is to become of the block.
func (w *world) answer(b *modelBlock) error {
	w.mu.Lock()
	b.settled = true
	w.mu.Unlock()
	say := w.store.Decide
	if b.garbage() {
		say = w.store.Trash
	}
	err := say([]Key{{ID: blockID(b.n), Shard: b.shard()}})
	if dfs.KindOf(err) == dfs.NoSpace || w.excused(err) {
		return nil
	}
	return err
}

// empty deletes what is in the trash, and sees what is left.
func (w *world) empty() error {
	w.mu.Lock()
	for i := range w.blocks {
		b := &w.blocks[i]
		if !b.garbage() || !b.settled || b.fate != present && b.may&present.bit() == 0 {
			continue
		}
		// Below the floor its tombstone may be dropped at once.
		if b.may |= deleted.bit(); w.floors[blockID(b.n).PG] > 0 {
			b.may |= absent.bit()
		}
	}
	w.mu.Unlock()
	n, err := w.store.EmptyTrash(context.Background(), time.Now().Add(time.Hour))
	w.counts.add("emptied", n)
	if err != nil && dfs.KindOf(err) != dfs.NoSpace && !w.excused(err) {
		return err
	}
	if st := w.store.Stats(); err == nil && st.Trash > 0 {
		return fmt.Errorf("%d blocks are left in the trash", st.Trash)
	}
	if w.store.failure() != nil {
		return nil
	}
	return w.compare()
}

// change puts or deletes the block.
func (w *world) change(b *modelBlock, what string, e dfs.Epoch, rng *rand.Rand) error {
	ctx, stale := context.Background(), e < w.epoch
	refill, remove := strings.HasPrefix(what, "refill"), strings.Contains(what, "delete")
	req := b.put(e)
	req.Refill, req.Decided = refill, refill && !b.garbage()
	run := func() error { return w.store.Put(ctx, req) }
	switch {
	case remove:
		run = func() error {
			return w.store.Delete(ctx, DeleteRequest{ID: req.ID, Shard: req.Shard, Epoch: e, Refill: refill})
		}
	case what == "put without patience":
		var stop context.CancelFunc
		ctx, stop = context.WithCancel(ctx)
		stop()
	case what == "put other bytes" && b.fate == present && b.may == 0:
		p := slices.Clone(req.Payload)
		p[0] ^= 1
		req.Info, req.Payload = describe(req.ID, req.Shard, p), p
		err := run()
		if kind := dfs.KindOf(err); kind != dfs.Exist && kind != dfs.NoSpace && !(stale && kind == dfs.Stale) && !w.excused(err) {
			return fmt.Errorf("%s of block %d: %v", what, b.n, err)
		}
		return nil
	}

	w.mu.Lock()
	before, goal := b.fate, present
	if remove || before == deleted {
		goal = deleted
	}
	changes := goal != before || remove && e > b.epoch
	below := remove && e < w.floors[req.ID.PG]
	if changes && (!stale || refill) || w.hooks.SkipEpochCheck {
		if b.may |= goal.bit(); below {
			b.may |= absent.bit()
		}
	}
	b.settled = b.settled || req.Decided && !remove
	w.mu.Unlock()
	err := run()
	w.mu.Lock()
	defer w.mu.Unlock()
	kind := dfs.KindOf(err)
	if kind == dfs.Unavailable && w.excused(err) {
		return nil // it may be done or not, until somebody looks
	}
	b.may = 0
	switch {
	case kind == dfs.Deadline && what == "put without patience", kind == dfs.NoSpace:
		w.counts.add(map[bool]string{true: "no space", false: "gave up waiting"}[kind == dfs.NoSpace], 1)
		return nil
	case !refill && stale, !refill && !remove && before == deleted:
		if kind != dfs.Stale {
			return fmt.Errorf("%s of block %d at epoch %d, now %d, fate %d: %v", what, b.n, e, w.epoch, before, err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("%s of block %d: %w", what, b.n, err)
	}
	if changes {
		b.fate, b.epoch, b.below = goal, e, below
	}
	return nil
}

// excused reports whether an error is what an injected one may come to.
func (w *world) excused(err error) bool {
	return err != nil && w.faults.fired.Load() > 0 && (w.store.failure() != nil || dfs.KindOf(err) == dfs.NoSpace || w.faults.excuseReads())
}

// burst runs operations on different blocks side by side. A store that fails
// meanwhile without an error of its disk is in error.
func (w *world) burst(width int) error {
	width = min(width, len(w.slots))
	errs := make([]error, width)
	var wg sync.WaitGroup
	for i, at := range w.rng.Perm(len(w.slots))[:width] {
		b := &w.blocks[w.slots[at]]
		if b.below {
			continue
		}
		what := operations.draw(w.rng)
		e := w.epoch
		if w.rng.IntN(6) == 0 && e > 1 {
			e--
		}
		w.counts.add(what, 1)
		w.ops++
		rng := rand.New(rand.NewPCG(w.rng.Uint64(), 3))
		wg.Go(func() { errs[i] = w.act(b, what, e, rng) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := w.store.failure(); err != nil && w.faults.fired.Load() == 0 {
		return err
	}
	return nil
}

// raise fences the PGs while puts under the old epoch run. What was listed
// below the new epoch when SetEpochs returned is all there ever is.
func (w *world) raise() error {
	next, old := w.epoch+1, w.epoch
	errs := make([]error, len(w.slots))
	var wg sync.WaitGroup
	for i, at := range w.slots {
		b := &w.blocks[at]
		if b.fate != absent || b.may != 0 || b.below || i%3 != 0 {
			continue
		}
		w.mu.Lock()
		b.may = present.bit()
		w.mu.Unlock()
		w.ops++
		w.counts.add("put", 1)
		wg.Go(func() {
			err := w.store.Put(context.Background(), b.put(old))
			w.mu.Lock()
			defer w.mu.Unlock()
			switch kind := dfs.KindOf(err); {
			case err == nil:
				b.fate, b.epoch, b.may = present, old, 0
			case kind == dfs.Stale, kind == dfs.NoSpace:
				b.may = 0
			case !w.excused(err):
				errs[i] = err
			}
		})
	}
	err := w.store.SetEpochs(next, fences(next))
	w.mu.Lock()
	if err == nil {
		w.epoch = next
	}
	w.mu.Unlock()
	below, err2 := w.below(next)
	wg.Wait()
	later, err3 := w.below(next)
	if w.excused(errors.Join(err, err2, err3)) {
		return errors.Join(errs...)
	}
	if err := errors.Join(append(errs, err, err2, err3)...); err != nil {
		return err
	}
	if below < later { // compaction may drop tombstones
		return fmt.Errorf("%d blocks below epoch %d when it was persisted, %d later", below, next, later)
	}
	return nil
}

func (w *world) below(e dfs.Epoch) (int, error) {
	n := 0
	for pg := range dfs.PGID(4) {
		list, _, err := w.store.ScanEpochs(pg+1, 0, e, nil, maxPage)
		if err != nil {
			return 0, err
		}
		n += len(list)
	}
	return n, nil
}

// list reads a few pages of a list from somewhere on: they are in order.
func (w *world) list() error {
	pg, after := dfs.PGID(1+w.rng.IntN(4)), dfs.Epoch(w.rng.IntN(int(w.epoch)))
	var cursor []byte
	last := Entry{Epoch: after}
	for range 3 {
		page, next, err := w.store.ScanEpochs(pg, after, w.epoch+1, cursor, 1+w.rng.IntN(40))
		if err != nil {
			return err
		}
		for _, e := range page {
			if e.Epoch < last.Epoch || e.Epoch <= after || e.Epoch > w.epoch || e.ID.PG != pg {
				return fmt.Errorf("%+v after %+v in a list after epoch %d", e, last, after)
			}
			last = e
		}
		if cursor = next; next == nil {
			break
		}
	}
	return nil
}

// purge deletes most of what there is, so that segments die.
func (w *world) purge() error {
	errs := make([]error, len(w.slots))
	var wg sync.WaitGroup
	for i, at := range w.slots {
		if !w.blocks[at].below && w.rng.IntN(5) > 0 {
			w.ops++
			w.counts.add("delete", 1)
			wg.Go(func() { errs[i] = w.change(&w.blocks[at], "delete", w.epoch, nil) })
		}
	}
	wg.Wait()
	time.Sleep(time.Second)
	return errors.Join(errs...)
}

// floor lets the store drop old tombstones of a PG.
func (w *world) floor() error {
	if err := w.compare(); err != nil { // so that nothing is unknown
		return err
	}
	pg, floor := dfs.PGID(1+w.rng.IntN(4)), 1+dfs.Epoch(w.rng.IntN(int(w.epoch)))
	w.floors[pg] = max(w.floors[pg], floor)
	for i := range w.blocks {
		b := &w.blocks[i]
		b.below = b.below || b.fate == deleted && blockID(b.n).PG == pg && b.epoch < floor
	}
	w.renew()
	if err := w.store.SetTombstoneFloor(pg, floor); err != nil && !w.excused(err) {
		return err
	}
	return nil
}

// forget has the store forget a PG. What is put to it afterwards is new, also where
// the name was there before.
func (w *world) forget() error {
	pg := dfs.PGID(1 + w.rng.IntN(4))
	w.mu.Lock()
	before := map[int]uint8{} // what the blocks of the PG may have been
	for i := range w.blocks {
		if b := &w.blocks[i]; blockID(b.n).PG == pg && (b.fate != absent || b.may != 0) {
			before[i] = b.may
			b.may |= absent.bit()
		}
	}
	w.mu.Unlock()
	f, err := w.store.Forget(pg, w.epoch)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch kind := dfs.KindOf(err); {
	case err == nil:
		w.counts.add("forgotten", int(f.Blocks))
		for i := range before {
			b := &w.blocks[i]
			b.fate, b.may, b.epoch, b.settled = absent, 0, 0, false
		}
	case kind == dfs.NoSpace:
		for i, may := range before {
			w.blocks[i].may = may
		}
	case !w.excused(err):
		return err
	}
	return nil
}

// run is one life of a world.
func (w *world) run(steps int) (err error) {
	defer func() {
		w.faults.disarm()
		if w.store != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if err := w.open(); err != nil {
		return err
	}
	for w.ops < steps {
		what := quiet.draw(w.rng)
		if w.rng.IntN(1000) >= w.knobs.calm {
			what = rough.draw(w.rng)
		}
		w.counts.add(what, 1)
		if err := w.step(what); err != nil {
			return fmt.Errorf("after %d operations, %s: %w", w.ops, what, err)
		}
	}
	return w.compare()
}

func (w *world) step(what string) error {
	if what != "burst" {
		w.book.note(fmt.Sprintf("%d operations, %d blocks: %s", w.ops, len(w.blocks), what))
	}
	switch what {
	case "burst":
		return w.burst(1 + w.rng.IntN(16))
	case "crash":
		return w.crash()
	case "reopen":
		return w.reopen()
	case "fault":
		return w.disturbed()
	case "epoch":
		return w.raise()
	case "renew":
		w.renew()
	case "purge":
		return w.purge()
	case "list":
		return w.list()
	case "floor":
		return w.floor()
	case "empty":
		return w.empty()
	case "forget":
		return w.forget()
	case "wait":
		time.Sleep(pick(w.rng, 200*time.Millisecond, time.Second, 5*time.Second, 2*time.Minute))
	case "compare":
		return w.compare()
	}
	return nil
}

// TestMetamorphic lets stores with random options live random lives, and
// compares them with a simple model: with -full, 200 of 20,000 operations.
func TestMetamorphic(t *testing.T) {
	seeds, steps := 12, 2000
	if *full {
		seeds, steps = 200, 20_000
	}
	if *metaSeeds > 0 {
		seeds = *metaSeeds
	}
	if *metaSteps > 0 {
		steps = *metaSteps
	}
	var total tally
	workers := runtime.GOMAXPROCS(0)
	t.Run("lives", func(t *testing.T) {
		for worker := range workers {
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				for i := worker; i < seeds; i += workers {
					live(t, *metaSeed+uint64(i), steps, &total)
				}
			})
		}
	})
	t.Logf("%d lives of %d operations: %v", seeds, steps, total.n)
	if seeds < 12 || steps < 2000 {
		return
	}
	want := append(append(operations.names(), quiet.names()...), rough.names()...)
	want = append(want, "crashed", "crash in open", "unsynced data kept", "rebuild", "given up", "compacted", "moved", "failed", "emptied", "forgotten")
	if *full {
		want = append(want, "tombstones dropped", "scrubbed", "no space", "failed, then power lost", "fault in open", "read in vain")
		for _, k := range faultKinds {
			want = append(want, "fault: "+k.name)
		}
	}
	for _, k := range want {
		if total.of(k) == 0 {
			t.Errorf("no %s in any life", k)
		}
	}
}

// live is one seed. It says how it is run again.
func live(t *testing.T, seed uint64, steps int, total *tally) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(seed, Hooks{})
		err := w.run(steps)
		for k, n := range w.counts.n {
			total.add(k, n)
		}
		if err != nil {
			t.Errorf("seed %d, %+v: %v\n%s\n\nonce more: go test ./engine -run 'TestMetamorphic$' -seed %d -seeds 1 -steps %d", seed, w.knobs, err, &w.book, seed, steps)
		}
	})
}

// TestSoakMetamorphic lives fresh lives for as long as DFSD_TEST_SOAK says.
func TestSoakMetamorphic(t *testing.T) {
	limit, err := time.ParseDuration(os.Getenv("DFSD_TEST_SOAK"))
	if err != nil {
		t.Skip("DFSD_TEST_SOAK does not say how long: see make soak")
	}
	var total tally
	begun := time.Now()
	lives := 0
	for seed := uint64(begun.UnixNano()); time.Since(begun) < limit && !t.Failed(); seed++ {
		live(t, seed, 100_000, &total)
		lives++
	}
	t.Logf("%d lives of 100,000 operations: %v", lives, total.n)
}

// TestPlantedBugsAreFound proves that the test above can fail.
func TestPlantedBugsAreFound(t *testing.T) {
	for _, c := range []struct {
		name  string
		hooks Hooks
	}{
		{"ack before sync", Hooks{AckBeforeSync: true}},
		{"skip epoch check", Hooks{SkipEpochCheck: true}},
		{"drop tombstone", Hooks{DropTombstone: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(200) {
				var err error
				bubble.Test(t, func(t *testing.T) { err = newWorld(seed, c.hooks).run(3000) })
				if err != nil {
					t.Logf("found by seed %d: %v", seed, err)
					return
				}
			}
			t.Error("not found")
		})
	}
}
