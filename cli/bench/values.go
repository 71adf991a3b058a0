package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"dfsd/engine"
)

// engineValues are the figures that are compared with a bound and not with a
// baseline.
func engineValues() []figure {
	reopen := func(name string, bytes int64) figure {
		return figure{name: name, value: func(ctx context.Context, e *env) (string, error) { return reopenFigure(ctx, e, name, bytes) }}
	}
	return []figure{
		{name: "engine/heap-1m", value: func(ctx context.Context, e *env) (string, error) { return heapFigure(ctx, e, 1_000_000) }},
		reopen("engine/reopen-1g", 1<<30),
		{name: "engine/write-amp", value: writeAmpFigure},
		reopen("engine-large/reopen-10g", 10<<30),
	}
}

const mib = 1 << 20

func mibs(n float64) string { return number(n/mib) + "MiB" }

// memory is what a store holds of it.
type memory struct{ heap, cache, memtables uint64 }

func (r *engineRig) memory() memory {
	runtime.GC()
	runtime.GC() // what pools let go of
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	cache, memtables := r.store.IndexMemory()
	return memory{m.HeapAlloc, cache, memtables}
}

// heapFigure says how much memory more a store takes with so many blocks of 4 KiB
// than with none. In a build without cgo cache and memtables are in Go's heap, and
// count twice here.
func heapFigure(ctx context.Context, e *env, blocks uint64) (_ string, err error) {
	r, err := openEngine(e, "engine/heap-1m", 0)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	before := r.memory()
	if err := r.fill(ctx, e, blocks, 4<<10); err != nil {
		return "", err
	}
	after := r.memory()
	grown := func(a, b uint64) float64 { return float64(a) - float64(b) }
	heap, cache, memtables := grown(after.heap, before.heap), grown(after.cache, before.cache), grown(after.memtables, before.memtables)
	return fmt.Sprintf("%8s grown    heap=%s cache=%s memtables=%s blocks=%d limit=64MiB",
		mibs(heap+cache+memtables), mibs(heap), mibs(cache), mibs(memtables), r.store.Stats().Blocks), nil
}

// reopenFigure says what opening a store costs after a crash, when so many bytes
// in blocks of 4 KiB had been put.
func reopenFigure(ctx context.Context, e *env, name string, bytes int64) (_ string, err error) {
	r, err := openEngine(e, name, 0)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.fill(ctx, e, uint64(bytes)/(4<<10), 4<<10); err != nil {
		return "", err
	}
	r.disk.off.Store(true)
	_ = r.store.Close() // it fails: the disk is off
	r.disk = newDisk()
	before, err := selfCPU()
	if err != nil {
		return "", err
	}
	begun := time.Now()
	s, err := r.open(e)
	if err != nil {
		return "", err
	}
	took := time.Since(begun)
	r.store = s
	after, err := selfCPU()
	if err != nil {
		return "", err
	}
	st := s.Stats()
	if want := r.next.Load(); st.Blocks < want-64 || st.Blocks > want {
		return "", fmt.Errorf("%d blocks of %d are there", st.Blocks, want)
	}
	return fmt.Sprintf("%8s cpu    limit=2s read=%s read-limit=%s took=%s blocks=%d",
		number(after.sub(before).self.Seconds())+"s", mibs(float64(r.disk.segmentReads.Load())), mibs(float64(e.opts.segment)),
		number(took.Seconds())+"s", st.Blocks), nil
}

// remove deletes blocks, from many callers.
func (r *engineRig) remove(ctx context.Context, blocks []uint64) error {
	var next atomic.Int64
	_, err := loop(ctx, fillTime, 64, func(ctx context.Context, _ int) error {
		i := next.Add(1) - 1
		if i >= int64(len(blocks)) {
			return errEnough
		}
		return r.store.Delete(ctx, engine.DeleteRequest{ID: blockID(blocks[i]), Epoch: 1})
	})
	return err
}

// Write amplification is measured in a store of so many segments, three quarters
// full of blocks of this size.
const (
	ampSegments = 32
	ampBlock    = 64 << 10
)

// writeAmpFigure says how many bytes are written to segments and index for each
// byte that is put, while blocks of a store that is three quarters full are
// replaced in random order: deleted, and another put. As many are replaced as
// half of what there is.
func writeAmpFigure(ctx context.Context, e *env) (_ string, err error) {
	reserve := 4 * uint64(e.opts.segment)
	capacity := ampSegments*uint64(e.opts.segment) + reserve
	r, err := openEngine(e, "engine/write-amp", capacity)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	blocks := ampSegments * uint64(e.opts.segment) / ampBlock * 3 / 4
	if err := r.fill(ctx, e, blocks, ampBlock); err != nil {
		return "", err
	}
	live := make([]uint64, blocks)
	for i := range live {
		live[i] = uint64(i) + 1
	}
	rand.Shuffle(len(live), func(i, j int) { live[i], live[j] = live[j], live[i] })
	first := r.disk.written()
	seg, index, zeros := r.disk.batches.Load(), r.disk.index.Load(), r.disk.zeros.Load()
	again := blocks / 2
	for done := uint64(0); done < again; {
		n := min(again-done, 1024)
		if err := r.remove(ctx, live[done:done+n]); err != nil {
			return "", err
		}
		if err := r.fill(ctx, e, n, ampBlock); err != nil {
			return "", err
		}
		done += n
	}
	put := float64(again * ampBlock)
	all := float64(r.disk.written())
	return fmt.Sprintf("%8s of replacing    limit=2.5 segments=%s index=%s zeros=%s in-all=%s",
		number((all-float64(first))/put), number(float64(r.disk.batches.Load()-seg)/put), number(float64(r.disk.index.Load()-index)/put),
		number(float64(r.disk.zeros.Load()-zeros)/put), number(all/float64((blocks+again)*ampBlock))), nil
}
