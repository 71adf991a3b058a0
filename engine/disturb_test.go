package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// faults injects one error, or from one on all of its kind, into the
// operations of a disk. It is an errorfs.Injector.
type faults struct {
	fired   atomic.Int64 // errors that were injected so far
	misread atomic.Bool  // some of them into reads of segments: sound blocks are listed as damaged

	// mu guards what follows.
	mu     sync.Mutex
	what   faultKind
	left   int        // operations of this kind until the error; 0: none is coming
	sticky bool       // all that come after it fail too
	came   bool       // since it was armed
	op     errorfs.Op // the last one that failed
}

// faultKind is a kind of operations that may fail.
type faultKind struct {
	name string
	ops  []errorfs.OpKind
	word string // in the path
	err  error
}

var faultKinds = []faultKind{
	{"segment write", []errorfs.OpKind{errorfs.OpFileWriteAt}, segmentSuffix, errFault},
	{"segment sync", []errorfs.OpKind{errorfs.OpFileSyncData}, segmentSuffix, errFault},
	{"segment filled", []errorfs.OpKind{errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileSync}, segmentSuffix, errFault},
	{"segment renamed or removed", []errorfs.OpKind{errorfs.OpRename, errorfs.OpRemove}, segmentSuffix, errFault},
	{"segment read", []errorfs.OpKind{errorfs.OpFileReadAt, errorfs.OpOpen}, segmentSuffix, errFault},
	{"mark", []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSyncData}, markName, errFault},
	{"epoch", []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSyncData}, epochName, errFault},
	{"table", []errorfs.OpKind{errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData}, tableSuffix, errFault},
	{"table read", []errorfs.OpKind{errorfs.OpFileReadAt, errorfs.OpOpen}, tableSuffix, errFault},
	{"manifest", []errorfs.OpKind{errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData}, "MANIFEST", errFault},
	{"directory sync", []errorfs.OpKind{errorfs.OpFileSync}, segmentsName, errFault},
	{"ledger", []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSync}, ledgerName, errFault},
	{"any write", []errorfs.OpKind{
		errorfs.OpCreate, errorfs.OpRename, errorfs.OpRemove, errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFileSync, errorfs.OpFileSyncData,
	}, "", errFault},
	{"no space for a segment", []errorfs.OpKind{errorfs.OpCreate, errorfs.OpFileWrite}, segmentSuffix, syscall.ENOSPC},
	{"no space for a table", []errorfs.OpKind{errorfs.OpCreate, errorfs.OpFileWrite}, tableSuffix, syscall.ENOSPC},
}

func (k *faultKind) reads() bool { return strings.HasSuffix(k.name, "read") }

func (f *faults) String() string { return "faults" }

// MaybeError implements errorfs.Injector.
func (f *faults) MaybeError(op errorfs.Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left == 0 || !f.matchesLocked(op) {
		return nil
	}
	if f.left > 1 {
		f.left--
		return nil
	}
	if !f.sticky {
		f.left = 0
	}
	f.came, f.op = true, op
	if f.what.reads() && strings.HasSuffix(op.Path, segmentSuffix) {
		f.misread.Store(true)
	}
	f.fired.Add(1)
	return fmt.Errorf("%s: %w", f.what.name, f.what.err)
}

func (f *faults) matchesLocked(op errorfs.Op) bool {
	for _, k := range f.what.ops {
		if k == op.Kind {
			return strings.Contains(op.Path, f.what.word)
		}
	}
	return false
}

func (f *faults) arm(what faultKind, left int, sticky bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.what, f.left, f.sticky, f.came = what, left, sticky, false
}

func (f *faults) disarm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = 0
}

// excuseReads reports whether a read that fails is what an injected error has
// led to: the last one that was armed is one of reads, and has come. What is
// open keeps some of them in mind.
func (f *faults) excuseReads() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.what.reads() && f.came
}

// disturbed lets an error come soon, and goes on until the store has failed of
// it, or has outlived it. A failed store is closed and opened again, after a
// power cut or not.
func (w *world) disturbed() error {
	kind := faultKinds[w.rng.IntN(len(faultKinds))]
	sticky := w.rng.IntN(3) == 0
	before := w.faults.fired.Load()
	left := 1 + w.rng.IntN(pick(w.rng, 2, 20)) // some come seldom
	w.book.note(fmt.Sprintf("fault: %s after %d, sticky %v", kind.name, left, sticky))
	w.faults.arm(kind, left, sticky)
	defer w.faults.disarm()
	for i := 0; i < 100 && w.store.failure() == nil; i++ {
		if err := w.burst(1 + w.rng.IntN(8)); err != nil {
			return err
		}
		if w.rng.IntN(4) == 0 {
			time.Sleep(time.Duration(w.rng.IntN(1500)) * time.Millisecond)
		}
		if w.rng.IntN(20) == 0 {
			if err := w.raise(); err != nil {
				return err
			}
		}
		if w.rng.IntN(40) == 0 && w.faults.fired.Load() == before {
			if err := w.forget(); err != nil {
				return err
			}
		}
		if !sticky && w.faults.fired.Load() > before && w.rng.IntN(4) == 0 {
			break
		}
	}
	if w.faults.fired.Load() > before {
		w.counts.add("fault: "+kind.name, 1)
	}
	if w.store.failure() == nil {
		w.faults.disarm()
		time.Sleep(2 * fullRetry) // a full disk is looked at again
		return w.settle()
	}
	w.counts.add("failed", 1)
	if w.rng.IntN(2) == 0 {
		w.faults.disarm()
	}
	if err := w.close(); err != nil {
		return err
	}
	w.faults.disarm()
	if w.rng.IntN(2) == 0 {
		w.counts.add("failed, then power lost", 1)
		w.fs = &crashFS{MemFS: w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: w.unsynced(), RNG: w.rng})}
	}
	return w.reindex()
}

// settle lets no answer be outstanding in the model of a store that runs on.
func (w *world) settle() error {
	if w.store.failure() != nil {
		return w.reopen()
	}
	return w.compare()
}

func (w *world) unsynced() int { return pick(w.rng, 0, 0, 20, 60, 100) }

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
		if w.rng.IntN(20) == 0 {
			if err := w.forget(); err != nil {
				return err
			}
		}
		time.Sleep(time.Duration(w.rng.IntN(200)) * time.Millisecond)
	}
	clone := w.fs.crashed()
	if clone == nil {
		w.fs.arm(0, 0, nil, nil)
		return nil // nothing is written any more: all blocks are deleted, or the store is full
	}
	w.counts.add("crashed", 1)
	if err := w.close(); err != nil {
		return err
	}
	w.restart(clone)
	return w.reindex()
}

// arm lets a crash come soon.
func (w *world) arm() {
	unsynced := w.unsynced()
	if unsynced > 0 {
		w.counts.add("unsynced data kept", 1)
	}
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
// more crashes or errors before it is open.
func (w *world) reindex() error {
	for {
		if w.rng.IntN(3) == 0 {
			w.counts.add("rebuild", 1)
			w.book.note("the index is removed")
			if err := w.fs.RemoveAll("/disk/store/" + indexName); err != nil {
				return err
			}
		}
		crash := w.rng.IntN(3) == 0
		if crash {
			w.arm()
		} else if w.rng.IntN(6) == 0 {
			if err := w.openInVain(); err != nil {
				return err
			}
		}
		err := w.open()
		clone := w.fs.crashed()
		if err != nil || clone == nil {
			w.fs.arm(0, 0, nil, nil)
			return err
		}
		w.counts.add("crash in open", 1)
		if err := w.close(); err != nil {
			return err
		}
		w.restart(clone)
	}
}

// openInVain opens the store while an error comes. When the store bears it
// nevertheless it is closed again.
func (w *world) openInVain() error {
	kind := faultKinds[w.rng.IntN(len(faultKinds))]
	before := w.faults.fired.Load()
	w.book.note("fault in open: " + kind.name)
	w.faults.arm(kind, 1+w.rng.IntN(6), w.rng.IntN(2) == 0)
	defer w.faults.disarm()
	err := w.open()
	if fired := w.faults.fired.Load() > before; fired {
		w.counts.add("fault in open", 1)
	} else if err != nil {
		return err
	}
	if w.store == nil {
		return nil
	}
	if s := w.store; err != nil && s.failure() == nil && !kind.reads() {
		return errors.Join(err, w.close())
	}
	return w.close()
}

// reopen closes the store and opens it again.
func (w *world) reopen() error {
	if err := w.close(); err != nil {
		return err
	}
	return w.reindex()
}
