package engine

import (
	"math/rand/v2"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestKilledThenPowerLoss kills the process before each change of the disk,
// starts another on what the page cache holds, and cuts the power of that one:
// what either said must be there. A start that takes for durable what it only
// reads from the page cache fails here.
func TestKilledThenPowerLoss(t *testing.T) {
	for n := 1; ; n++ {
		done := false
		bubble.Test(t, func(t *testing.T) { done = killAt(t, n) })
		if done {
			if n < 60 {
				t.Fatalf("only %d changes", n)
			}
			return
		}
	}
}

// killAt reports whether the first process was finished before the n-th change.
func killAt(t *testing.T, n int) bool {
	fs := &crashFS{MemFS: vfs.NewCrashableMem()}
	fs.armKill(n)
	stored, epoch := map[uint64]bool{}, dfs.Epoch(0)
	life := func(first uint64, e dfs.Epoch) {
		s, err := Open(testOptions(fs))
		if err != nil {
			if !fs.isKilled() {
				t.Fatalf("killed before change %d: %v", n, err)
			}
			return
		}
		epoch = max(epoch, s.MapEpoch())
		if s.SetEpochs(e, fences(e)) == nil {
			epoch = e
		}
		for b := first; b < first+12; b++ {
			if s.Put(t.Context(), putRequest(b, 30_000, e)) == nil {
				stored[b] = true
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second) // the mark moves, segments are made ready
		if s.SetEpochs(e+1, fences(e+1)) == nil {
			epoch = e + 1
		}
		_ = s.Close()
	}
	life(0, 1)
	finished := !fs.isKilled()
	fs.armKill(0)

	s := mustOpen(t, testOptions(fs))
	epoch = max(epoch, s.MapEpoch())
	if err := s.SetEpochs(epoch, fences(epoch)); err != nil {
		t.Fatal(err)
	}
	for b := uint64(100); b < 104; b++ {
		mustPut(t, s, b, 5000, epoch)
		stored[b] = true
	}
	clone := fs.CrashClone(vfs.CrashCloneCfg{RNG: rand.New(rand.NewPCG(1, 1))})
	mustClose(t, s)

	s = mustOpen(t, testOptions(clone))
	defer mustClose(t, s)
	if s.MapEpoch() < epoch {
		t.Errorf("killed before change %d: map epoch %d, it was %d before the power was cut", n, s.MapEpoch(), epoch)
	}
	if s.DamagedUnnamed() {
		t.Errorf("killed before change %d: damage %+v", n, s.Damage())
	}
	for b := range stored {
		if _, err := read(t, s, b); err != nil {
			t.Fatalf("killed before change %d: block %d: %v", n, b, err)
		}
	}
	if err := checkStore(s); err != nil {
		t.Errorf("killed before change %d: %v", n, err)
	}
	return finished
}

// TestIndexProvesTheLastBatch: an index that was flushed knows of a batch of
// which the mark does not know yet. Rot in that batch is no torn tail: nothing
// may be written over what is still good of it.
func TestIndexProvesTheLastBatch(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewCrashableMem()
		s := openPGs(t, testOptions(fs), 1)
		mustPut(t, s, 0, 100, 1)
		time.Sleep(time.Second)
		putTogether(t, s, 1, 4)
		if err := s.index.checkpoint(); err != nil {
			t.Fatal(err)
		}
		clone := cloneAll(fs)
		mustClose(t, s)
		p := fileBytes(t, clone, "segments/"+segmentName(1))
		p[2*pageSize+batchHeaderLen+recordHeaderLen+chunkLen+10] ^= 1 // in the first record's payload
		s = openPGs(t, testOptions(clone), 1)
		for n := range uint64(10) {
			mustPut(t, s, 10+n, 2000, 1)
		}
		bad := 0
		for n := range uint64(5) {
			if _, err := read(t, s, n); err != nil {
				wantKind(t, err, dfs.Corrupt)
				bad++
			}
		}
		if bad != 1 {
			t.Errorf("%d blocks are bad, one was spoiled", bad)
		}
		closeSpoiled(t, s)
	})
}

// putTogether puts count blocks from first as one batch.
func putTogether(t testing.TB, s *Store, first uint64, count int) {
	t.Helper()
	before := s.Stats().Batches
	var ops []*op
	for n := range uint64(count) {
		req := putRequest(first+n, 900, 1)
		r := record{kind: kindPut, epoch: 1, id: req.ID, info: req.Info, stored: uint32(len(req.Payload)), hint: req.Hint}
		o := newOp(r, req.Payload)
		if err := s.queue.reserve(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		s.pg(o.rec.id.PG, false).startLocked(o)
		ops = append(ops, o)
	}
	s.queue.mu.Lock()
	s.queue.ops = append(s.queue.ops, ops...)
	s.queue.mu.Unlock()
	s.queue.signal()
	for _, o := range ops {
		if err := o.wait(); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Stats().Batches - before; n != 1 {
		t.Fatalf("%d batches", n)
	}
}

// TestNoFooterHidesRot: a record's header rots while its segment is written to,
// the segment is sealed by a later start, and then the index is lost. The
// block must not become one that was never there.
func TestNoFooterHidesRot(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 1)
	for n := range uint64(4) {
		mustPut(t, s, n, 3000, 1)
	}
	mustClose(t, s)
	fileBytes(t, fs, "segments/"+segmentName(1))[2*pageSize+batchHeaderLen+50] ^= 1 // block 1
	s = openPGs(t, testOptions(fs), 1)
	for n := range uint64(20) {
		mustPut(t, s, 10+n, 30_000, 1) // seals the segment
	}
	closeSpoiled(t, s)
	if err := fs.RemoveAll(dir + indexName); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, testOptions(fs))
	defer closeSpoiled(t, s)
	_, err := read(t, s, 1)
	if dfs.KindOf(err) == dfs.NotExist && !s.DamagedUnnamed() {
		t.Error("block 1 is gone, and the store says that it holds everything")
	}
	for _, n := range []uint64{0, 2, 3, 10, 29} {
		if _, err := read(t, s, n); err != nil {
			t.Errorf("block %d: %v", n, err)
		}
	}
}

// TestLastBatchWithoutHeaders: the footer of a segment, the header of its last
// batch and a record's in the middle of that batch are damaged, and the index
// is lost: the sequence numbers around the gap fit, and yet a record is gone.
func TestLastBatchWithoutHeaders(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := testOptions(fs)
		s := openPGs(t, o, 1)
		for n := range uint64(7) {
			mustPut(t, s, 100+n, 31_000, 1)
		}
		putTogether(t, s, 1, 5)
		g := *s.segs.byNumber.Load()
		if len(g) != 1 {
			t.Fatalf("%d segments: the test does not fit its size", len(g))
		}
		end := g[1].end.Load()
		for n := range uint64(4) {
			mustPut(t, s, 200+n, 31_000, 1)
		}
		mustClose(t, s)
		p := fileBytes(t, fs, "segments/"+segmentName(1))
		start := end - 2*pageSize
		if string(p[start:start+4]) != "DBAT" {
			t.Fatal("the last batch is elsewhere")
		}
		p[start+9] ^= 1
		p[len(p)-1] ^= 1
		second := start + batchHeaderLen + int64(alignUp(recordHeaderLen+chunkLen+900, recordAlign))
		if string(p[second:second+4]) != "DREC" {
			t.Fatal("the second record is elsewhere")
		}
		p[second+50] ^= 1
		_ = fs.RemoveAll(dir + indexName)
		s = mustOpen(t, o)
		defer closeSpoiled(t, s)
		if _, err := read(t, s, 2); dfs.KindOf(err) == dfs.NotExist && !s.DamagedUnnamed() {
			t.Error("block 2 is gone, and the store says that it holds everything")
		}
	})
}
