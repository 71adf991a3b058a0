package engine

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestNoRoomForTheIndex: something else has filled the disk to the last byte,
// the reserve too. The store takes no writes until there is room again, and has
// not failed; it may be closed and opened meanwhile.
func TestNoRoomForTheIndex(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := &faultFS{MemFS: vfs.NewMem(), word: tableSuffix, op: "fill", err: syscall.ENOSPC}
		s := openPGs(t, testOptions(fs), 1)
		n, stored := uint64(0), []uint64(nil)
		fill := func() {
			t.Helper()
			for range 4000 { // each leaves a row or two of some 100 bytes in memtables of 128 KiB
				n++
				if err := s.Put(t.Context(), putRequest(n, 100, 1)); err != nil {
					wantKind(t, err, dfs.NoSpace)
					return
				}
				stored = append(stored, n)
			}
			t.Fatal("every put was taken")
		}
		refused := func() {
			t.Helper()
			if st := s.Stats(); st.State != StateReadOnly || st.Available != 0 {
				t.Errorf("%+v", st)
			}
			wantKind(t, s.Delete(t.Context(), DeleteRequest{ID: blockID(stored[0]), Epoch: 1}), dfs.NoSpace)
			for _, n := range stored {
				wantBlock(t, s, n, 100)
			}
		}
		mustPut(t, s, 9000, 100, 1)
		fs.armed.Store(true)
		fill()
		refused()
		time.Sleep(time.Minute)
		refused()
		if hits := fs.hits.Load(); hits > 200 {
			t.Errorf("a full disk was tried %d times in a minute", hits)
		}

		fs.armed.Store(false)
		time.Sleep(5 * time.Second)
		if st := s.Stats(); st.State != StateOK || st.Available == 0 {
			t.Errorf("with room again: %+v", st)
		}
		mustDelete(t, s, stored[0], 1)
		stored = stored[1:]
		mustPut(t, s, 9001, 100, 1)
		if err := checkStore(s); err != nil {
			t.Error(err)
		}

		fs.armed.Store(true)
		fill()
		mustClose(t, s)
		if s, err := Open(testOptions(fs)); err == nil {
			for _, n := range stored {
				wantBlock(t, s, n, 100)
			}
			mustClose(t, s)
		} else if !vfs.IsNoSpaceError(err) { // there is more to replay than the memtables hold
			t.Error(err)
		}
		fs.armed.Store(false)
		s = openPGs(t, testOptions(fs), 1)
		for _, n := range append(stored, 9000, 9001) {
			wantBlock(t, s, n, 100)
		}
		if err := checkStore(s); err != nil {
			t.Error(err)
		}
		mustClose(t, s)
	})
}

// TestReserveKeepsRoomForTheIndex: segments for deletes do not take all of it.
func TestReserveKeepsRoomForTheIndex(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := testOptions(fs)
		s := openPGs(t, o, 1)
		size := uint64(o.SegmentSize)
		for _, c := range []struct {
			free       uint64
			above, any bool
		}{
			{o.ReserveBytes + size, true, true},
			{o.ReserveBytes + size - 1, false, true},
			{o.ReserveBytes/4 + size, false, true},
			{o.ReserveBytes/4 + size - 1, false, false},
			{0, false, false},
		} {
			fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: c.free})
			if above, any := s.space(); above != c.above || any != c.any {
				t.Errorf("%d bytes free: above the reserve %v, any %v", c.free, above, any)
			}
		}
		mustClose(t, s)
	})
}

// TestCloseWithoutRoomForTheIndex: compaction does not go on filling memory with
// rows that cannot be written. It would wait for room in the end, and Close for it.
func TestCloseWithoutRoomForTheIndex(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := &faultFS{MemFS: vfs.NewMem(), word: tableSuffix, op: "fill", err: syscall.ENOSPC}
		o := testOptions(fs)
		o.CompactAge, o.CompactRate, o.MemTableSize = 10*time.Second, 1<<40, 64<<10
		s := openPGs(t, o, 1)
		const n = 3_500
		for i := range uint64(n) {
			mustPut(t, s, i, 100, 1)
		}
		for i := range uint64(n) {
			if i%4 == 0 {
				mustDelete(t, s, i, 1)
			}
		}
		if err := s.checkpoint(); err != nil {
			t.Fatal(err)
		}
		fs.armed.Store(true)
		time.Sleep(time.Minute)
		done := make(chan error, 1)
		go func() { done <- s.Close() }()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the store does not close")
		}
		fs.armed.Store(false)
		if t.Failed() {
			<-done
		}
		s = openPGs(t, o, 1)
		for i := range uint64(n) {
			if i%4 != 0 {
				wantBlock(t, s, i, 100)
			} else if _, err := read(t, s, i); dfs.KindOf(err) != dfs.NotExist {
				t.Errorf("block %d: %v", i, err)
			}
		}
		mustClose(t, s)
	})
}

// TestNoRoomForTheLedger: segments that are dead wait until there is room for a
// line about them, and the store takes writes.
func TestNoRoomForTheLedger(t *testing.T) {
	for _, op := range []string{"write", "open"} {
		t.Run(op, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				fs := &faultFS{MemFS: vfs.NewMem(), word: "/" + ledgerName, op: op, err: syscall.ENOSPC}
				o := testOptions(fs)
				s := openPGs(t, o, 1)
				fs.armed.Store(true)
				for n := range uint64(60) {
					mustPut(t, s, n, 10_000, 1)
				}
				for n := range uint64(60) {
					mustDelete(t, s, n, 1)
				}
				time.Sleep(time.Minute)
				if st := s.Stats(); st.Err != nil || st.SegmentsGiven != 0 {
					t.Errorf("%+v", st)
				}
				if n := fs.hits.Load(); n == 0 || n > 300 {
					t.Errorf("it was tried %d times", n)
				}
				mustPut(t, s, 100, 10_000, 1)
				fs.armed.Store(false)
				time.Sleep(5 * time.Second)
				if st := s.Stats(); st.SegmentsGiven == 0 {
					t.Errorf("with room again: %+v", st)
				}
				mustClose(t, s)
			})
		})
	}
}

// TestReadOnlyIsTakenBack: a put may be refused by what the preparer has seen
// before space came back. The preparer looks once more then, or nobody would.
func TestReadOnlyIsTakenBack(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openPGs(t, testOptions(vfs.NewMem()), 1)
		n := uint64(0)       // blocks of nearly whole pages: compaction has nothing to win
		for ; n < 100; n++ { // more than the segments of a store in which nothing can be freed
			mustPut(t, s, n, 12_000, 1)
		}
		time.Sleep(time.Minute)
		s.segs.mu.Lock()
		s.segs.ready = s.segs.ready[:keepForDeletes+keepForMoves] // as if they had not been ready yet
		s.segs.mu.Unlock()
		s.full.Store(true)
		for ; ; n++ {
			if err := s.Put(t.Context(), putRequest(n, 12_000, 1)); err != nil {
				wantKind(t, err, dfs.NoSpace)
				break
			}
		}
		time.Sleep(time.Minute)
		if st := s.Stats(); st.State != StateOK {
			t.Errorf("%+v", st)
		}
		mustPut(t, s, n, 12_000, 1)
		mustClose(t, s)
	})
}

// TestSegmentsWithoutRoom: no file and no number is left behind by segments that
// could not be made, neither anew nor out of dead ones.
func TestSegmentsWithoutRoom(t *testing.T) {
	for _, c := range []struct {
		name string
		ops  []errorfs.OpKind
	}{
		{"created", []errorfs.OpKind{errorfs.OpCreate, errorfs.OpRename}},
		{"written", []errorfs.OpKind{errorfs.OpFileWrite, errorfs.OpRename}},
		{"used again", []errorfs.OpKind{errorfs.OpFileWrite, errorfs.OpFileWriteAt}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var armed atomic.Bool
				fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
					unused := op.Kind != errorfs.OpFileWriteAt || op.Offset == 0 // of a segment: its header
					if armed.Load() && unused && slices.Contains(c.ops, op.Kind) && strings.HasSuffix(op.Path, segmentSuffix) {
						return syscall.ENOSPC
					}
					return nil
				}))
				s := openPGs(t, testOptions(fs), 1)
				for n := range uint64(60) {
					mustPut(t, s, n, 10_000, 1)
				}
				time.Sleep(time.Second)
				armed.Store(true)
				for n := range uint64(60) {
					mustDelete(t, s, n, 1)
				}
				time.Sleep(10 * time.Minute)
				if s.Stats().SegmentsGiven == 0 {
					t.Fatalf("%+v", s.Stats())
				}
				check := func() {
					t.Helper()
					names, err := fs.List(dir + segmentsName)
					if err != nil {
						t.Fatal(err)
					}
					inUse, ready := s.segs.counts()
					if n := inUse + ready + s.dead.count(); len(names) != n || len(s.segs.onDisk) != n {
						t.Errorf("%d files and %d numbers, for %d segments in use, %d ready and %d dead", len(names), len(s.segs.onDisk), inUse, ready, s.dead.count())
					}
				}
				check()
				armed.Store(false)
				time.Sleep(5 * time.Second)
				check()
				for n := range uint64(60) {
					mustPut(t, s, 100+n, 10_000, 1)
				}
				mustClose(t, s)
				s = openPGs(t, testOptions(fs), 1)
				if s.DamagedUnnamed() {
					t.Error("something is taken for lost")
				}
				mustClose(t, s)
			})
		})
	}
}

// TestRecyclingWithoutSpace: a dead segment's file that cannot be used again, as
// its directory finds no room, is given back: it does not lie there unknown.
func TestRecyclingWithoutSpace(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpRename, errorfs.OpFileSync, errorfs.OpFileWriteAt} {
		bubble.Test(t, func(t *testing.T) {
			var renamed, hits atomic.Int64
			mem := vfs.NewMem()
			o := testOptions(errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				inSegments := strings.Contains(op.Path, segmentsName)
				if op.Kind == errorfs.OpRename && inSegments {
					renamed.Store(1)
				}
				header := op.Kind != errorfs.OpFileWriteAt || op.Offset == 0 // else it is the writer's, of a batch
				if op.Kind == kind && inSegments && header && renamed.CompareAndSwap(1, 2) {
					hits.Add(1)
					return syscall.ENOSPC
				}
				return nil
			})))
			s := openPGs(t, o, 1)
			put := func(n uint64) {
				for range 5 {
					err := s.Put(t.Context(), putRequest(n, 30_000, 1))
					if err == nil {
						return
					}
					wantKind(t, err, dfs.NoSpace)
					time.Sleep(2 * fullRetry)
				}
				t.Errorf("block %d is refused for good", n)
			}
			for n := range uint64(60) {
				put(n)
				deleteInTime(t, s, n)
			}
			time.Sleep(10 * time.Second)
			for n := range uint64(40) {
				put(100 + n)
			}
			time.Sleep(10 * time.Second)
			names, err := mem.List(dir + segmentsName)
			if err != nil {
				t.Fatal(err)
			}
			inUse, ready := s.segs.counts()
			if known := inUse + ready + s.dead.count(); hits.Load() == 0 || len(names) != known {
				t.Errorf("operation %d failed %d times: %d files, %d are known", kind, hits.Load(), len(names), known)
			}
			for n := range uint64(40) {
				wantBlock(t, s, 100+n, 30_000)
			}
			mustClose(t, s)
		})
	}
}

// TestRecyclingForgetsBothNumbers: a dead segment whose file was renamed and then
// given back has neither its old name nor its new one any more.
func TestRecyclingForgetsBothNumbers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var armed atomic.Bool
		s := openPGs(t, testOptions(errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileSync && strings.HasSuffix(op.Path, segmentsName) && armed.CompareAndSwap(true, false) {
				return syscall.ENOSPC
			}
			return nil
		}))), 1)
		time.Sleep(10 * time.Second) // all segments are ready, and nobody makes another
		dead, err := s.fill(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.segs.mu.Lock()
		s.segs.next++
		s.segs.mu.Unlock()
		if err := dead.retire(); err != nil {
			t.Fatal(err)
		}
		armed.Store(true)
		if _, err := s.recycle(dead); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		for n := dead.number; n <= dead.number+1; n++ {
			if s.segs.mayExist(n) {
				t.Errorf("%s may still be there", segmentName(n))
			}
		}
		mustClose(t, s)
	})
}
