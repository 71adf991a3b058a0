package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// fate is what the model knows of a block.
type fate int

const (
	absent fate = iota
	present
	deleted
)

// modelBlock is one block of the model. At most one operation on it runs at a
// time.
type modelBlock struct {
	n       uint64
	size    int
	fate    fate
	epoch   dfs.Epoch // of the put or delete
	running fate      // what the operation that runs would make it; absent: none runs
	next    dfs.Epoch // its epoch
}

// world is a store, its disk, and the model that they are compared with.
type world struct {
	rng    *rand.Rand
	hooks  Hooks
	fs     *crashFS
	store  *Store
	counts map[string]int

	// mu guards what follows.
	mu      sync.Mutex
	blocks  []modelBlock
	epoch   dfs.Epoch // the last that SetEpochs returned for
	atCrash *world    // the model when the clone was taken; only blocks and epoch
}

const modelBlocks = 60

func newWorld(seed uint64, hooks Hooks) *world {
	w := &world{
		rng: rand.New(rand.NewPCG(seed, 1)), hooks: hooks, fs: &crashFS{MemFS: vfs.NewCrashableMem()},
		counts: map[string]int{}, epoch: 1,
	}
	for n := range uint64(modelBlocks) {
		w.blocks = append(w.blocks, w.freshBlock(n))
	}
	return w
}

func (w *world) freshBlock(n uint64) modelBlock {
	size := 1 + w.rng.IntN(12<<10)
	if w.rng.IntN(8) == 0 {
		size = 1 + w.rng.IntN(100<<10)
	}
	return modelBlock{n: n, size: size}
}

func (w *world) open() error {
	o := testOptions(w.fs)
	o.Hooks = w.hooks
	o.CheckpointBytes = int64(1+w.rng.IntN(8)) * (64 << 10)
	s, err := Open(o)
	if err != nil {
		return err
	}
	w.store = s
	if s.DamagedUnnamed() || len(s.Damage()) > 0 {
		return fmt.Errorf("false alarm: rolled back %v, damage %+v", s.Identity().RolledBack, s.Damage())
	}
	if s.MapEpoch() < w.epoch && w.counts["epoch"] > 0 {
		return fmt.Errorf("map epoch %d: %d was persisted", s.MapEpoch(), w.epoch)
	}
	w.epoch = max(w.epoch, s.MapEpoch())
	if err := w.compare(); err != nil {
		return err
	}
	r := putRequest(999, 10, w.epoch)
	if err := s.Put(context.Background(), r); dfs.KindOf(err) != dfs.Stale && !w.hooks.SkipEpochCheck {
		return fmt.Errorf("a put before SetEpochs: %v", err)
	}
	return s.SetEpochs(w.epoch, fences(w.epoch))
}

// compare checks every block, and takes over what operations that were cut
// short have become.
func (w *world) compare() error {
	if err := checkStore(w.store); err != nil {
		return err
	}
	w.mu.Lock() // a crash may be coming, and takes a copy of the blocks
	defer w.mu.Unlock()
	listed := map[dfs.BlockID]fate{}
	for pg := range dfs.PGID(4) {
		list, _, err := w.store.Inventory(pg+1, nil, maxPage)
		if err != nil {
			return err
		}
		for _, e := range list {
			listed[e.ID] = present
			if e.Tombstone {
				listed[e.ID] = deleted
			}
		}
	}
	for i := range w.blocks {
		b := &w.blocks[i]
		got := listed[blockID(b.n)]
		p, err := w.get(b)
		switch {
		case err == nil && got != present, err == nil && !bytes.Equal(p, content(b.n, b.size)):
			return fmt.Errorf("block %d: wrong bytes, or bytes of what is not there", b.n)
		case err != nil && (got == present || dfs.KindOf(err) != dfs.NotExist):
			return fmt.Errorf("block %d: %w", b.n, err)
		}
		if got != b.fate && (b.running == absent || got != b.running) {
			return fmt.Errorf("block %d is %d, want %d (or %d)", b.n, got, b.fate, b.running)
		}
		switch {
		case got != b.fate:
			b.epoch = b.next
		case b.running == got:
			b.epoch = 0 // a tombstone that was stamped anew, or not: the lists will say
		}
		b.fate, b.running = got, absent
	}
	return w.compareListsLocked()
}

// compareListsLocked checks Inventory, ScanEpochs and Stats against the model.
func (w *world) compareListsLocked() error {
	want := map[dfs.BlockID]*modelBlock{}
	for i := range w.blocks {
		if b := &w.blocks[i]; b.fate != absent {
			want[blockID(b.n)] = b
		}
	}
	for _, list := range []func(pg dfs.PGID, cursor []byte) ([]Entry, []byte, error){
		func(pg dfs.PGID, c []byte) ([]Entry, []byte, error) { return w.store.Inventory(pg, c, 7) },
		func(pg dfs.PGID, c []byte) ([]Entry, []byte, error) { return w.store.ScanEpochs(pg, 0, 1<<40, c, 5) },
	} {
		seen := 0
		for pg := range dfs.PGID(4) {
			var cursor []byte
			for {
				page, next, err := list(pg+1, cursor)
				if err != nil {
					return err
				}
				for _, e := range page {
					b := want[e.ID]
					if b == nil || e.Tombstone != (b.fate == deleted) || e.ID.PG != pg+1 || (b.fate == present && int(e.Length) != b.size) {
						return fmt.Errorf("listed: %+v, model: %+v", e, b)
					}
					if b.epoch != 0 && e.Epoch != b.epoch {
						return fmt.Errorf("block %d has epoch %d, want %d", b.n, e.Epoch, b.epoch)
					}
					b.epoch = e.Epoch
					seen++
				}
				if cursor = next; next == nil {
					break
				}
			}
		}
		if seen != len(want) {
			return fmt.Errorf("%d blocks and tombstones listed, want %d", seen, len(want))
		}
	}
	return nil
}

func (w *world) get(b *modelBlock) ([]byte, error) {
	r, err := w.store.Get(context.Background(), blockID(b.n), 0, 0, dfs.MaxBlockSize)
	if err != nil {
		return nil, err
	}
	defer r.Release()
	return bytes.Clone(r.Data), nil
}

// act runs one random operation on a block and checks its answer.
func (w *world) act(b *modelBlock, what string, e dfs.Epoch) error {
	goal, stale := present, e < w.epoch
	req := putRequest(b.n, b.size, e)
	run := func() error { return w.store.Put(context.Background(), req) }
	switch what {
	case "delete", "refill-delete":
		goal = deleted
		d := DeleteRequest{ID: req.ID, Epoch: e, Refill: what == "refill-delete"}
		run = func() error { return w.store.Delete(context.Background(), d) }
	case "refill":
		req.Refill = true
	}
	refill := what == "refill" || what == "refill-delete"
	w.mu.Lock()
	before := b.fate
	if goal == present && before == deleted {
		goal = deleted
	}
	changes := goal != before || goal == deleted && (what == "delete" || what == "refill-delete") && e > b.epoch
	if changes && (!stale || refill) {
		b.running, b.next = goal, e
	}
	w.mu.Unlock()
	err := run()
	w.mu.Lock()
	defer w.mu.Unlock()
	b.running = absent
	switch {
	case stale && !refill, what == "put" && before == deleted:
		if dfs.KindOf(err) != dfs.Stale {
			return fmt.Errorf("%s of block %d at epoch %d, now %d, fate %d: %v", what, b.n, e, w.epoch, before, err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("%s of block %d: %w", what, b.n, err)
	}
	if changes {
		b.fate, b.epoch = goal, e
	}
	return nil
}

// burst runs operations on different blocks side by side.
func (w *world) burst(width int) error {
	errs := make([]error, width)
	var wg sync.WaitGroup
	for i, at := range w.rng.Perm(len(w.blocks))[:width] {
		b := &w.blocks[at]
		what := []string{"put", "put", "put", "delete", "refill", "refill-delete"}[w.rng.IntN(6)]
		e := w.epoch
		if w.rng.IntN(6) == 0 && e > 1 {
			e--
		}
		w.counts[what]++
		wg.Go(func() { errs[i] = w.act(b, what, e) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// raise fences the PGs while puts under the old epoch run. What was listed
// below the new epoch when SetEpochs returned is all there ever is.
func (w *world) raise() error {
	var wg sync.WaitGroup
	next := w.epoch + 1
	for i := range w.blocks {
		b := &w.blocks[i]
		if b.fate != absent || i%3 != 0 {
			continue
		}
		w.mu.Lock()
		b.running, b.next = present, w.epoch
		w.mu.Unlock()
		req := putRequest(b.n, b.size, w.epoch)
		wg.Go(func() {
			err := w.store.Put(context.Background(), req)
			w.mu.Lock()
			defer w.mu.Unlock()
			if err == nil {
				b.fate, b.epoch = present, req.Epoch
			}
			b.running = absent
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
	if err := errors.Join(err, err2, err3); err != nil {
		return err
	}
	if below != later {
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

// crash cuts the power while operations run, or between them, and opens what
// is left.
func (w *world) crash() error {
	w.arm()
	for range 200 {
		if err := w.burst(1 + w.rng.IntN(6)); err != nil {
			return err
		}
		if w.fs.crashed() != nil {
			break
		}
		time.Sleep(time.Duration(w.rng.IntN(200)) * time.Millisecond)
	}
	clone := w.fs.crashed()
	if clone == nil {
		return nil // every block is deleted: nothing is written any more
	}
	if err := w.close(); err != nil {
		return err
	}
	w.restart(clone)
	if err := fsckErr(w.fs, "/disk/store"); err != nil {
		return fmt.Errorf("after the crash: %w", err)
	}
	return w.reindex()
}

// close closes the store, whose directory must be sound then.
func (w *world) close() error {
	err := w.store.Close()
	w.store = nil
	return errors.Join(err, fsckErr(w.fs, "/disk/store"))
}

// arm lets a crash come soon.
func (w *world) arm() {
	unsynced := []int{0, 0, 20, 60, 100}[w.rng.IntN(5)]
	w.fs.arm(1+w.rng.IntN(30), unsynced, rand.New(rand.NewPCG(w.rng.Uint64(), 2)), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.atCrash = &world{blocks: append([]modelBlock(nil), w.blocks...), epoch: w.epoch}
	})
}

// restart makes a crash's clone the disk, and the model what it was then.
func (w *world) restart(clone *vfs.MemFS) {
	w.fs = &crashFS{MemFS: clone}
	w.blocks, w.epoch = w.atCrash.blocks, w.atCrash.epoch
}

// reindex opens the store again, at times without its index, and at times with
// more crashes before it is open.
func (w *world) reindex() error {
	for {
		if w.rng.IntN(3) == 0 {
			w.counts["rebuild"]++
			if err := w.fs.RemoveAll("/disk/store/" + indexName); err != nil {
				return err
			}
		}
		if w.rng.IntN(3) == 0 {
			w.arm()
		}
		err := w.open()
		clone := w.fs.crashed()
		if err != nil || clone == nil {
			w.fs.arm(0, 0, nil, nil)
			return err
		}
		w.counts["crash in open"]++
		if err := w.close(); err != nil {
			return err
		}
		w.restart(clone)
	}
}

// purge deletes most of what there is, so that segments die.
func (w *world) purge() error {
	errs := make([]error, len(w.blocks))
	var wg sync.WaitGroup
	for i := range w.blocks {
		if w.rng.IntN(5) > 0 {
			wg.Go(func() { errs[i] = w.act(&w.blocks[i], "delete", w.epoch) })
		}
	}
	wg.Wait()
	time.Sleep(time.Second)
	return errors.Join(errs...)
}

func (w *world) reopen() error {
	if err := w.close(); err != nil {
		return err
	}
	return w.reindex()
}

// renew replaces blocks that were deleted by new ones, so that there is always
// something to do; the old ones' tombstones stay and are still compared.
func (w *world) renew() {
	if len(w.blocks) >= 4*modelBlocks {
		return
	}
	for range 10 {
		w.blocks = append(w.blocks, w.freshBlock(uint64(len(w.blocks))))
	}
}

// run is one life of a world.
func (w *world) run(steps int) (err error) {
	defer func() {
		if w.store != nil {
			w.counts["given"] += int(w.store.Stats().SegmentsGiven)
			err = errors.Join(err, w.close())
		}
	}()
	if err := w.open(); err != nil {
		return err
	}
	for i := range steps {
		what := "burst"
		switch n := w.rng.IntN(100); {
		case n < 5:
			what = "crash"
		case n < 8:
			what = "reopen"
		case n < 14:
			what = "epoch"
		case n < 20:
			what = "wait"
		case n < 30:
			what = "renew"
		case n < 34:
			what = "purge"
		}
		w.counts[what]++
		var err error
		switch what {
		case "burst":
			err = w.burst(1 + w.rng.IntN(8))
		case "crash":
			err = w.crash()
		case "reopen":
			w.counts["given"] += int(w.store.Stats().SegmentsGiven)
			err = w.reopen()
		case "epoch":
			err = w.raise()
		case "renew":
			w.renew()
		case "purge":
			err = w.purge()
		case "wait":
			time.Sleep(time.Second)
			err = w.compare()
		}
		if err != nil {
			return fmt.Errorf("step %d, %s: %w", i, what, err)
		}
	}
	return w.compare()
}

func TestMetamorphic(t *testing.T) {
	const seeds, steps = 20, 50
	total := map[string]int{}
	for seed := range uint64(seeds) {
		var err error
		bubble.Test(t, func(t *testing.T) {
			w := newWorld(seed, Hooks{})
			err = w.run(steps)
			for k, n := range w.counts {
				total[k] += n
			}
		})
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	t.Logf("%d seeds: %v", seeds, total)
	for _, k := range []string{"put", "delete", "refill", "refill-delete", "burst", "crash", "crash in open", "reopen", "rebuild", "epoch", "renew", "purge", "wait", "given"} {
		if total[k] == 0 {
			t.Errorf("no %s in any seed", k)
		}
	}
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
			for seed := range uint64(20) {
				var err error
				bubble.Test(t, func(t *testing.T) { err = newWorld(seed, c.hooks).run(120) })
				if err != nil {
					t.Logf("found by seed %d: %v", seed, err)
					return
				}
			}
			t.Error("not found")
		})
	}
}
