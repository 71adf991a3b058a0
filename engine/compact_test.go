package engine

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// fillAndThin stores blocks 0 to n-1 of 10,000 bytes and deletes all but each
// keep-th.
func fillAndThin(t testing.TB, s *Store, n, keep uint64) {
	t.Helper()
	for i := range n {
		mustPut(t, s, i, 10_000, 1)
	}
	for i := range n {
		if i%keep != 0 {
			mustDelete(t, s, i, 1)
		}
	}
}

// wantThinned checks that exactly the blocks that fillAndThin kept are there.
func wantThinned(t testing.TB, s *Store, n, keep uint64) {
	t.Helper()
	for i := range n {
		if i%keep == 0 {
			wantBlock(t, s, i, 10_000)
		} else if _, err := read(t, s, i); dfs.KindOf(err) != dfs.NotExist {
			t.Fatalf("deleted block %d: %v", i, err)
		}
	}
	if err := checkStore(s); err != nil {
		t.Fatal(err)
	}
	if s.DamagedUnnamed() || len(s.Damage()) > 0 {
		t.Fatalf("false alarm: %+v", s.Damage())
	}
}

// TestCompaction: what is needed moves, the rest is given back, and neither a
// restart nor an index made anew tells the difference.
func TestCompaction(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := testOptions(fs)
		s := openPGs(t, o, 1)
		fillAndThin(t, s, 300, 5)
		before := s.Stats()
		time.Sleep(10 * time.Second)
		st := s.Stats()
		if st.Compactions == 0 || st.MovedRecords < 60 || st.Segments > before.Segments/3 {
			t.Errorf("before %+v\nafter %+v", before, st)
		}
		if st.DeadBytes*100 > (st.LiveBytes+st.DeadBytes)*60 { // the segments that are not full count
			t.Errorf("%d bytes dead, %d live", st.DeadBytes, st.LiveBytes)
		}
		wantThinned(t, s, 300, 5)
		time.Sleep(time.Hour)
		if again := s.Stats(); again.MovedRecords > st.MovedRecords+300 {
			t.Errorf("%d records were moved, and %d for nothing", st.MovedRecords, again.MovedRecords-st.MovedRecords)
		}
		mustClose(t, s)
		for range 2 {
			s = openPGs(t, o, 1)
			wantThinned(t, s, 300, 5)
			if st := s.Stats(); st.Blocks != 60 || st.Tombstones != 240 {
				t.Errorf("%+v", st)
			}
			mustClose(t, s)
			if err := fs.RemoveAll(dir + indexName); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestCompactionCrashes cuts the power before each change of the disk while
// segments are compacted and given up, and opens what is left with and without
// its index. Without -full it is before each fifth.
func TestCompactionCrashes(t *testing.T) {
	const blocks, keep = 120, 4
	crashes, step := 0, 5
	if *full {
		step = 1
	}
	for n := 1; ; n += step {
		ended := false
		bubble.Test(t, func(t *testing.T) {
			fs := &crashFS{MemFS: vfs.NewCrashableMem()}
			o := testOptions(fs)
			s := openPGs(t, o, 1)
			fillAndThin(t, s, blocks, keep)
			fs.arm(n, []int{0, 30, 100}[n%3], rand.New(rand.NewPCG(uint64(n), 1)), func() {})
			time.Sleep(5 * time.Second)
			clone := fs.crashed()
			fs.arm(0, 0, nil, nil)
			wantThinned(t, s, blocks, keep)
			if st := s.Stats(); st.Compactions == 0 || st.SegmentsGiven == 0 {
				t.Fatalf("nothing was compacted: %+v", st)
			}
			mustClose(t, s)
			if ended = clone == nil; ended {
				return
			}
			crashes++
			if n%2 == 0 {
				if err := clone.RemoveAll(dir + indexName); err != nil {
					t.Fatal(err)
				}
			}
			o.FS = clone
			s = openPGs(t, o, 1)
			wantThinned(t, s, blocks, keep)
			time.Sleep(5 * time.Second) // it goes on
			wantThinned(t, s, blocks, keep)
			mustClose(t, s)
			if err := clone.RemoveAll(dir + indexName); err != nil {
				t.Fatal(err)
			}
			s = openPGs(t, o, 1)
			wantThinned(t, s, blocks, keep)
			mustClose(t, s)
		})
		if ended || t.Failed() {
			break
		}
	}
	if t.Logf("%d crashes", crashes); crashes < 30 {
		t.Errorf("%d crashes only", crashes)
	}
}

// TestTombstonesAreDropped: below the floor, and only once no put of the block
// is left on the disk.
func TestTombstonesAreDropped(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := testOptions(fs)
		s := openPGs(t, o, 1)
		// The puts lie in segments with blocks that stay, the tombstones in later
		// ones with little else: these are compacted first and outlived by those.
		for n := range uint64(40) {
			mustPut(t, s, n, 10_000, 1)
			mustPut(t, s, 1000+n, 40_000, 1)
		}
		for n := range uint64(40) {
			mustDelete(t, s, n, 1)
		}
		for n := range uint64(40) { // to fill the segments that the tombstones are in
			mustPut(t, s, 2000+n, 10_000, 1)
			mustDelete(t, s, 2000+n, 1)
		}
		for _, p := range fences(1) {
			if err := s.SetTombstoneFloor(p.PG, 2); err != nil {
				t.Fatal(err)
			}
		}
		check := func(what string) {
			t.Helper()
			for n := range uint64(40) {
				if _, err := read(t, s, n); dfs.KindOf(err) != dfs.NotExist {
					t.Fatalf("%s: deleted block %d: %v", what, n, err)
				}
				wantBlock(t, s, 1000+n, 40_000)
			}
			if err := checkStore(s); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		time.Sleep(10 * time.Second)
		check("after compaction")
		st := s.Stats()
		if st.TombstonesDropped == 0 || st.Tombstones < 40 {
			t.Errorf("%+v", st)
		}
		rebuild := func() {
			t.Helper()
			mustClose(t, s)
			if err := fs.RemoveAll(dir + indexName); err != nil {
				t.Fatal(err)
			}
			s = openPGs(t, o, 1)
		}
		rebuild()
		check("made anew")
		if s.floor(1) != 0 {
			t.Error("a floor came out of nothing")
		}
		for _, p := range fences(1) {
			if err := s.SetTombstoneFloor(p.PG, 2); err != nil {
				t.Fatal(err)
			}
		}
		// Now the puts' segments go too.
		for n := range uint64(40) {
			mustDelete(t, s, 1000+n, 2)
		}
		for n := range uint64(60) {
			mustPut(t, s, 3000+n, 10_000, 2)
			mustDelete(t, s, 3000+n, 3)
		}
		time.Sleep(time.Minute)
		if left := s.Stats().Tombstones; left > 150 {
			t.Errorf("%d tombstones are left", left)
		}
		below := 0
		for _, p := range fences(1) {
			list, _, err := s.ScanEpochs(p.PG, 0, 2, nil, maxPage)
			if err != nil {
				t.Fatal(err)
			}
			below += len(list)
		}
		if below > 20 { // some are in the segments that the streams append to
			t.Errorf("%d tombstones are below the floor and still there", below)
		}
		rebuild()
		for n := range uint64(40) {
			for _, n := range []uint64{n, 1000 + n} {
				if _, err := read(t, s, n); dfs.KindOf(err) != dfs.NotExist {
					t.Fatalf("block %d is back: %v", n, err)
				}
			}
		}
		mustClose(t, s)
	})
}

// TestCompactionLeavesRot: a record that cannot be read is named and stays
// where it is, everything else moves; once it was put again its segment goes.
func TestCompactionLeavesRot(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := testOptions(fs)
		s := openPGs(t, o, 1)
		for i := range uint64(60) {
			mustPut(t, s, i, 10_000, 1)
		}
		w, err := s.index.get(blockKey(blockID(0), 0))
		if err != nil {
			t.Fatal(err)
		}
		flip(t, fs, dir+segmentsName+"/"+segmentName(w.segment), w.payloadAt()+5)
		for i := range uint64(60) {
			if i%5 != 0 {
				mustDelete(t, s, i, 1)
			}
		}
		time.Sleep(time.Minute)
		if g := s.segs.get(w.segment); g == nil {
			t.Fatal("the segment with the damaged block is gone")
		}
		if list := s.Damage(); len(list) != 1 || list[0].ID != blockID(0) {
			t.Fatalf("%+v", list)
		}
		if use := s.index.usageOf()[w.segment]; use.puts != 1 || use.tombstones != 0 {
			t.Errorf("left behind: %+v", use)
		}
		r := putRequest(0, 10_000, 1)
		r.Refill = true
		if err := s.Put(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		time.Sleep(stuckPause + time.Minute)
		if s.segs.get(w.segment) != nil {
			t.Error("the segment is still there")
		}
		for i := uint64(0); i < 60; i += 5 {
			wantBlock(t, s, i, 10_000)
		}
		if err := checkStore(s); err != nil {
			t.Error(err)
		}
		mustClose(t, s)
	})
}

// flip inverts a byte of a file.
func flip(t testing.TB, fs vfs.FS, name string, at int64) {
	t.Helper()
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	var p [1]byte
	if _, err := f.ReadAt(p[:], at); err != nil {
		t.Fatal(err)
	}
	p[0] ^= 0xff
	if _, err := f.WriteAt(p[:], at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCompactionFreesAFullDisk: a store that is full to its reserve, with its
// dead bytes spread over all segments, takes puts again after deletes.
func TestCompactionFreesAFullDisk(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := testOptions(vfs.NewMem())
		o.Capacity = 24 * uint64(o.SegmentSize)
		o.CompactAge = time.Hour // not to be waited for when space is short
		s := openPGs(t, o, 1)
		n := uint64(0)
		for ; ; n++ {
			if err := s.Put(t.Context(), putRequest(n, 10_000, 1)); err != nil {
				wantKind(t, err, dfs.NoSpace)
				break
			}
		}
		for i := range n {
			if i%3 == 0 {
				deleteInTime(t, s, i)
			}
		}
		time.Sleep(time.Minute)
		st := s.Stats()
		if st.State != StateOK || st.SegmentsGiven == 0 || st.Used > o.Capacity {
			t.Fatalf("%d blocks: %+v", n, st)
		}
		for i := range n / 5 {
			mustPut(t, s, 10_000+i, 10_000, 1)
			time.Sleep(100 * time.Millisecond) // compaction looks once a second
		}
		for i := range n {
			if i%3 != 0 {
				wantBlock(t, s, i, 10_000)
			}
		}
		if err := checkStore(s); err != nil {
			t.Error(err)
		}
		mustClose(t, s)
	})
}

// forgetfulFS forgets what is written to segments of the moved stream.
type forgetfulFS struct {
	vfs.FS
}

func (f *forgetfulFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, opts...)
	if _, ok := parseSegmentName(f.PathBase(name)); !ok || err != nil {
		return file, err
	}
	return forgetfulFile{file}, nil
}

type forgetfulFile struct{ vfs.File }

func (f forgetfulFile) WriteAt(p []byte, off int64) (int, error) {
	if len(p) > pageSize && p[5] == byte(movedStream) && off > 0 {
		return len(p), nil
	}
	return f.File.WriteAt(p, off)
}

// TestCopiesAreReadBack: a disk that does not hold the copies fails the store,
// and no original is given up.
func TestCopiesAreReadBack(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := &forgetfulFS{FS: vfs.NewMem()}
		o := testOptions(fs)
		s := openPGs(t, o, 1)
		fillAndThin(t, s, 120, 5)
		time.Sleep(time.Minute)
		if err := s.Stats().Err; err == nil || !strings.Contains(fmt.Sprint(err), "does not hold what was written") {
			t.Errorf("%v", err)
		}
		for i := uint64(0); i < 120; i += 5 {
			wantBlock(t, s, i, 10_000)
		}
		if err := s.Close(); err == nil {
			t.Error("a failed store closes without an error")
		}
		o.FS = fs.FS
		s = openPGs(t, o, 1)
		wantThinned(t, s, 120, 5)
		mustClose(t, s)
	})
}

// TestReadsWhileMoving: readers never see a block that is not there while
// segments are compacted under them.
func TestReadsWhileMoving(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := testOptions(vfs.NewMem())
		s := openPGs(t, o, 1)
		done := make(chan struct{})
		errs := make(chan error, 4)
		for i := range uint64(200) {
			mustPut(t, s, i, 10_000, 1)
		}
		for range 4 {
			go func() {
				for i := uint64(0); ; i = (i + 5) % 600 {
					select {
					case <-done:
						errs <- nil
						return
					default:
					}
					if _, err := read(t, s, i); err != nil && (i < 200 || dfs.KindOf(err) != dfs.NotExist) {
						errs <- fmt.Errorf("block %d: %w", i, err)
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
			}()
		}
		for i := range uint64(600) {
			if i >= 200 {
				mustPut(t, s, i, 10_000, 1)
			}
			if i%5 != 0 {
				mustDelete(t, s, i, 1)
			}
		}
		time.Sleep(5 * time.Second)
		close(done)
		for range 4 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if st := s.Stats(); st.Compactions == 0 {
			t.Errorf("%+v", st)
		}
		mustClose(t, s)
	})
}

// TestSegmentsOfAnotherSize: what was filled under another setting is removed
// when it is dead, and not kept for a use that never comes.
func TestSegmentsOfAnotherSize(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := testOptions(fs)
		s := openPGs(t, o, 1)
		fillAndThin(t, s, 60, 60)
		mustClose(t, s)
		o.SegmentSize *= 2
		s = openPGs(t, o, 1)
		for n := range uint64(60) { // the log goes on in a segment of the new size
			mustPut(t, s, 100+n, 10_000, 1)
		}
		time.Sleep(time.Minute)
		names, err := fs.List(dir + segmentsName)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			n, _ := parseSegmentName(name)
			if info, err := fs.Stat(dir + segmentsName + "/" + name); err != nil {
				t.Fatal(err)
			} else if info.Size() != o.SegmentSize && s.segs.get(n) == nil {
				t.Errorf("%s of %d bytes is kept for nothing", name, info.Size())
			}
		}
		mustClose(t, s)
	})
}

// TestNothingFreshIsGivenUp: a segment that compaction fills and seals while
// another goroutine looks for dead ones is none.
func TestNothingFreshIsGivenUp(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.CompactAge, o.CompactRate = time.Millisecond, 1<<40
	s := openPGs(t, o, 1)
	done := make(chan struct{})
	var looking sync.WaitGroup
	for range 2 {
		looking.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if err := s.giveUp(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for round := range uint64(4) {
		for i := range uint64(300) {
			mustPut(t, s, round*1000+i, 10_000, 1)
		}
		for i := range uint64(300) {
			if i%3 != 0 {
				mustDelete(t, s, round*1000+i, 1)
			}
		}
		for range 500 {
			if g, _ := s.victim(); g == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	close(done)
	looking.Wait()
	if s.Stats().Compactions == 0 {
		t.Error("nothing was compacted")
	}
	for round := range uint64(4) {
		for i := uint64(0); i < 300; i += 3 {
			wantBlock(t, s, round*1000+i, 10_000)
		}
	}
	if err := checkStore(s); err != nil {
		t.Error(err)
	}
	mustClose(t, s)
}

// TestCompactionOfWhatIsGone: a segment may be given up between the choice and
// the work, since all that was needed of it was deleted; and one that cannot be
// opened now is left alone for a while. Neither fails the store.
func TestCompactionOfWhatIsGone(t *testing.T) {
	for _, given := range []bool{true, false} {
		t.Run(fmt.Sprintf("given up %v", given), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var armed atomic.Bool
				o := testOptions(errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
					if armed.Load() && op.Kind == errorfs.OpOpen && strings.HasSuffix(op.Path, segmentName(1)) {
						return syscall.EMFILE
					}
					return nil
				})))
				o.CompactAge = 24 * time.Hour // the store's own compactor has nothing to do
				s := openPGs(t, o, 1)
				const n, first = 20, 7 // blocks, and how many of them are in segment 1
				for i := range uint64(n) {
					mustPut(t, s, i, 30_000, 1)
				}
				gone := uint64(first - 1)
				if given {
					gone++
				}
				g := s.segs.get(1)
				for i := range gone {
					mustDelete(t, s, i, 1)
				}
				time.Sleep(time.Minute)
				if (s.segs.get(1) == nil) != given {
					t.Fatalf("given up: %v", !given)
				}
				if !given {
					if closed, err := g.closeFile(); !closed || err != nil {
						t.Fatal(closed, err)
					}
				}
				armed.Store(true)
				c := newCompactor(appender{s: s, stream: movedStream})
				if err := c.compact(t.Context(), g, true); err != nil {
					t.Errorf("the store would fail: %v", err)
				}
				if left := time.Now().Before(g.stuckUntil()); left == given {
					t.Errorf("it is left alone: %v", left)
				}
				armed.Store(false)
				for i := gone; i < n; i++ {
					wantBlock(t, s, i, 30_000)
				}
				mustClose(t, s)
			})
		})
	}
}

// TestBlocksTooLargeForNewSegments: a block that was stored under a larger
// segment size, and fits no segment of the present one, stays where it is: what is near it is copied all the same.
func TestBlocksTooLargeForNewSegments(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := testOptions(fs)
		o.SegmentSize = 1 << 20
		s := openPGs(t, o, 1)
		for n := range uint64(10) {
			mustPut(t, s, n, 300_000, 1)
		}
		mustDelete(t, s, 1, 1)
		mustDelete(t, s, 2, 1)
		mustClose(t, s)
		o.SegmentSize = 256 << 10
		s = openPGs(t, o, 1)
		for n := range uint64(60) {
			mustPut(t, s, 100+n, 10_000, 1)
		}
		time.Sleep(time.Minute)
		for n := range uint64(60) {
			mustDelete(t, s, 100+n, 1)
		}
		time.Sleep(time.Minute)
		if st := s.Stats(); st.Compactions == 0 {
			t.Errorf("%+v", st)
		}
		for n := range uint64(10) {
			if n != 1 && n != 2 {
				wantBlock(t, s, n, 300_000)
			}
		}
		mustClose(t, s)
		if err := fs.RemoveAll(dir + indexName); err != nil {
			t.Fatal(err)
		}
		s = openPGs(t, o, 1)
		for n := range uint64(10) {
			if n != 1 && n != 2 {
				wantBlock(t, s, n, 300_000)
			}
		}
		mustClose(t, s)
	})
}

// TestCompactionOfSmallBlocks: a batch of copies takes the memory of its bytes,
// however many blocks they are of.
func TestCompactionOfSmallBlocks(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openPGs(t, testOptions(vfs.NewMem()), 1)
		putTogether(t, s, 0, 100)
		for n := range uint64(20) {
			mustPut(t, s, 1000+n, 30_000, 1)
			mustDelete(t, s, 1000+n, 1)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		time.Sleep(5 * time.Second)
		runtime.ReadMemStats(&after)
		if st := s.Stats(); st.MovedRecords < 100 {
			t.Fatalf("%+v", st)
		}
		if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 5 {
			t.Errorf("100 blocks of 900 bytes took %d MiB", n)
		}
		for n := range uint64(100) {
			wantBlock(t, s, n, 900)
		}
		mustClose(t, s)
	})
}
