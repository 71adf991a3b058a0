package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// sweeps are the kinds of errors that a life meets at each of its operations in
// turn.
var sweeps = []struct {
	faultKind
	sticky bool // from that operation on to the end of the life
	step   int  // without -full, from one operation to the next
	least  int  // operations that a life has
}{
	{faultKind{"any write", changes, "", errFault}, false, 61, 400},
	{faultKind{"any write, for want of space", changes, "", syscall.ENOSPC}, false, 67, 400},
	{faultKind{"no space", []errorfs.OpKind{errorfs.OpCreate, errorfs.OpFileWrite}, "", syscall.ENOSPC}, true, 17, 60},
	{faultKind{"any read", lookups, "", errFault}, false, 199, 1000},
}

// changes and lookups are all that a disk is asked for.
var changes, lookups = func() (changes, lookups []errorfs.OpKind) {
	for k := errorfs.OpCreate; k <= errorfs.OpFileFlush; k++ {
		if k.ReadOrWrite() == errorfs.OpIsWrite {
			changes = append(changes, k)
		} else {
			lookups = append(lookups, k)
		}
	}
	return changes, lookups
}()

// TestEveryFault lets one operation of the disk after the other fail in a life
// that has everything: puts, deletes, reads, compaction, scrubbing, checkpoints,
// an epoch, the trash and restarts. Nothing that was acknowledged is lost, the
// store has failed at once or the error is one that it may bear, and another
// store in the same process serves puts and reads all the time. With -full it is
// each operation, and a few under the race detector.
func TestEveryFault(t *testing.T) {
	var total tally
	for _, c := range sweeps {
		t.Run(c.name, func(t *testing.T) {
			step := c.step
			if *full {
				step = 1
			} else if bubble.Race {
				step *= 5
			}
			n := 1
			for ended := false; !ended; n += step {
				bubble.Test(t, func(t *testing.T) {
					l := newFaultyLife(t, uint64(n))
					met := l.faults // in the end there are others
					met.arm(c.faultKind, n, c.sticky)
					err := l.run()
					for k, n := range l.counts.n {
						total.add(k, n)
					}
					if ended = met.fired.Load() == 0; err != nil {
						t.Errorf("operation %d, %+v: %v\n%s", n, met.op, err, &l.book)
					}
				})
			}
			if t.Logf("%d operations", n-step); n < c.least {
				t.Errorf("%d operations only", n)
			}
		})
	}
	t.Log(total.n)
	if bubble.Race {
		return // too few for all of these
	}
	for _, k := range []string{"failed", "failed, then power lost", "fault in open", "borne", "compacted", "moved", "given up", "scrubbed", "emptied"} {
		if total.of(k) == 0 {
			t.Errorf("no %s", k)
		}
	}
}

// faultyLife is one life in which an error comes.
type faultyLife struct {
	*world
	t    *testing.T
	seen int64 // errors that were judged
}

func newFaultyLife(t *testing.T, seed uint64) *faultyLife {
	w := newWorld(1, Hooks{})
	w.rng = rand.New(rand.NewPCG(seed, 6))
	w.knobs = knobs{
		Segment: 256 << 10, MemTable: 64 << 10, Cache: 64 << 10, Queue: 4 << 20, Checkpoint: 128 << 10, Rate: 1 << 30,
		Age: time.Millisecond, Scrub: time.Minute, Dead: 5, Capacity: 16 << 20, Reserve: 1 << 20,
	}
	w.blocks, w.slots = nil, nil
	for n := range uint64(60) {
		w.blocks = append(w.blocks, modelBlock{n: n, size: []int{500, 20_000, 40_000}[n%3]})
	}
	return &faultyLife{world: w, t: t}
}

// run is the life, and a look at what it has left.
func (l *faultyLife) run() error {
	ctx, stop := context.WithCancel(context.Background())
	neighbour := make(chan error, 1)
	go func() { neighbour <- serve(ctx) }()
	err := l.live()
	l.faults.disarm()
	if l.store != nil {
		err = errors.Join(err, l.close())
	}
	if err == nil {
		// The disk is well again, and everything has to be.
		if !l.faults.misread.Load() {
			l.world.faults = &faults{}
		}
		if err = l.open(); err == nil {
			time.Sleep(2 * time.Minute)
			err = errors.Join(l.world.compare(), l.store.failure())
		}
		if l.store != nil {
			err = errors.Join(err, l.close())
		}
	}
	stop()
	return errors.Join(err, <-neighbour)
}

// serve is another store in the same process, on a disk of its own.
func serve(ctx context.Context) error {
	o := testOptions(vfs.NewMem())
	s, err := Open(o)
	if err == nil {
		err = s.SetEpochs(1, fences(1))
	}
	for n := uint64(0); err == nil && ctx.Err() == nil; n++ {
		if err = s.Put(context.Background(), putRequest(n, 500, 1)); err != nil {
			break
		}
		r, gerr := s.Get(context.Background(), blockID(n/2), 0, 0, dfs.MaxBlockSize)
		if err = gerr; err == nil {
			r.Release()
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
	if s != nil {
		err = errors.Join(err, s.Close())
	}
	if err != nil {
		return fmt.Errorf("the other store: %w", err)
	}
	return nil
}

// live does everything that a store can do.
func (l *faultyLife) live() error {
	each := func(what string, from, to, step int) func() error {
		return func() error {
			for i := from; i < to; i += step {
				if err := l.act(&l.blocks[i], what, l.epoch, l.rng); err != nil {
					return err
				}
			}
			return nil
		}
	}
	wait := func(d time.Duration) func() error {
		return func() error { time.Sleep(d); return nil }
	}
	for i, step := range []func() error{
		l.open,
		each("put", 0, 40, 1), each("get", 0, 40, 7), each("delete", 0, 30, 2), each("put again", 1, 40, 9),
		wait(1500 * time.Millisecond), // compaction
		each("put", 40, 50, 1), l.raise, each("answer", 3, 50, 4), l.empty, each("delete", 1, 30, 4),
		l.again,
		each("refill", 50, 60, 1), wait(2 * time.Minute), // scrubbing
		each("get", 0, 60, 1), each("delete", 40, 50, 3), func() error { _ = l.store.checkpoint(); return nil }, wait(2 * time.Second),
		l.again, each("get", 0, 60, 5),
		l.again, each("stat", 0, 60, 5),
	} {
		if l.store == nil && i > 0 {
			if err := l.open(); err != nil {
				return fmt.Errorf("step %d: open: %w", i, err)
			}
		}
		if err := l.judge(step()); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

// again closes the store and opens it again.
func (l *faultyLife) again() error {
	before, s := l.faults.fired.Load(), l.store
	if err := l.close(); err != nil {
		return err
	}
	if l.faults.fired.Load() > before && s.Close() == nil && !l.faults.bearable() {
		return fmt.Errorf("Close says nothing of %+v", l.faults.last())
	}
	l.seen = l.faults.fired.Load()
	return l.open()
}

// judge sees what became of an error that has come: err is what the step, or
// Open, has said. A failed store is closed, loses its power perhaps, and has to
// open when the error is over.
func (l *faultyLife) judge(err error) error {
	if l.faults.fired.Load() == l.seen {
		return err
	}
	l.seen = l.faults.fired.Load()
	if l.store != nil && l.store.failure() == nil {
		time.Sleep(time.Millisecond) // what has met the error says so
	}
	switch {
	case l.store == nil:
		l.counts.add("fault in open", 1)
		l.faults.disarm()
		return l.open()
	case l.store.failure() != nil:
		l.counts.add("failed", 1)
		l.faults.disarm()
		if err := l.close(); err != nil {
			return err
		}
		if l.rng.IntN(2) == 0 {
			l.counts.add("failed, then power lost", 1)
			l.fs = &crashFS{MemFS: l.fs.CrashClone(vfs.CrashCloneCfg{})}
		}
		return l.open()
	case err != nil && !l.excused(err):
		return err
	case err != nil: // a look at what could not be read shows that it is as it was
		if err := l.close(); err != nil {
			return err
		}
		return l.open()
	case !l.faults.bearable():
		return fmt.Errorf("the store has not failed of %+v", l.faults.last())
	}
	l.counts.add("borne", 1)
	time.Sleep(2 * fullRetry)
	return l.strays()
}

// strays are files of segments that the store has forgotten while it runs.
func (l *faultyLife) strays() error {
	if l.store.failure() != nil || l.faults.last().Kind == errorfs.OpRemove {
		return nil
	}
	names, err := l.fs.List("/disk/store/" + segmentsName)
	if err != nil {
		return err
	}
	inUse, ready := l.store.segs.counts()
	if dead := l.store.dead.count(); len(names) > inUse+ready+dead+1 { // one may be made now
		return fmt.Errorf("%d files for %d segments in use, %d ready and %d dead, after %+v", len(names), inUse, ready, dead, l.faults.last())
	}
	return nil
}

// last is the operation that met the last error.
func (f *faults) last() errorfs.Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.op
}

// bearable reports whether a store may go on after the last error.
func (f *faults) bearable() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.op.Kind {
	case errorfs.OpRemove, errorfs.OpRemoveAll, errorfs.OpFilePreallocate, errorfs.OpLock: // without its lock the index is made anew
		return true
	}
	if vfs.IsNoSpaceError(f.what.err) {
		switch {
		case strings.HasSuffix(f.op.Path, tableSuffix), strings.HasSuffix(f.op.Path, segmentSuffix):
			return true
		case strings.Contains(f.op.Path, "/"+ledgerName) && f.op.Kind != errorfs.OpFileSync:
			return true // dead segments stay a little longer
		}
	}
	// A dead segment that is not removed is tried again by the next start.
	return f.op.Kind.ReadOrWrite() == errorfs.OpIsRead || f.op.Kind == errorfs.OpFileSync && strings.HasSuffix(f.op.Path, segmentsName)
}
