package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// lopsided are the numbers of blocks of which PG 1 has some more than go at a time,
// and PGs 2 and 3 a few each.
func lopsided() (all, first []uint64) {
	for i := range uint64(setBatch + 8) {
		first = append(first, 4*i)
		if all = append(all, 4*i); i%8 == 0 {
			all = append(all, 4*i+1, 4*i+2)
		}
	}
	return all, first
}

// holds reports how many blocks and tombstones of a PG a store has, by every list.
func holds(t testing.TB, s *Store, pg dfs.PGID) int {
	t.Helper()
	inventory, _, err := s.Inventory(pg, nil, maxPage)
	if err != nil {
		t.Fatal(err)
	}
	epochs, _, err := s.ScanEpochs(pg, 0, 1<<40, nil, maxPage)
	if err != nil {
		t.Fatal(err)
	}
	if len(inventory) != len(epochs) {
		t.Fatalf("%s: %d in the inventory, %d by epoch", pg, len(inventory), len(epochs))
	}
	for _, list := range []func([]byte, int) ([]Entry, []byte, error){s.Undecided, s.Trashed} {
		entries, _, err := list(nil, maxPage)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if len(inventory) == 0 && e.ID.PG == pg {
				t.Fatalf("%s is empty, and %+v is in a list", pg, e)
			}
		}
	}
	return len(inventory)
}

func mustForget(t testing.TB, s *Store, pg dfs.PGID) Forgotten {
	t.Helper()
	f, err := s.Forget(pg, s.MapEpoch())
	if err != nil {
		t.Fatalf("forget %s: %v", pg, err)
	}
	return f
}

func loseIndex(t testing.TB, fs vfs.FS) {
	t.Helper()
	if err := fs.RemoveAll(dir + indexName); err != nil {
		t.Fatal(err)
	}
}

// TestForget: nothing of the PG is left, whatever it was; nothing of another PG is
// touched; the space comes back; and what is put afterwards stays, over restarts and
// an index made anew.
func TestForget(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		all, gone := lopsided()
		mem := vfs.NewMem()
		fs := &countingFS{FS: mem}
		o := testOptions(fs)
		s := openPGs(t, o, 3)
		for _, i := range all {
			mustPut(t, s, i, 3000, 3)
		}
		var decided, trashed []Key
		for i, b := range gone {
			switch i % 4 {
			case 0:
				decided = append(decided, Key{ID: blockID(b)})
			case 1:
				trashed = append(trashed, Key{ID: blockID(b)})
			case 2:
				mustDelete(t, s, b, 3)
			}
		}
		if err := s.Decide(decided); err != nil {
			t.Fatal(err)
		}
		if err := s.Trash(trashed); err != nil {
			t.Fatal(err)
		}
		w, err := s.index.get(blockKey(blockID(gone[0]), 0))
		if err != nil {
			t.Fatal(err)
		}
		flip(t, mem, dir+segmentsName+"/"+segmentName(w.segment), w.payloadAt()+5)
		if _, err := read(t, s, gone[0]); dfs.KindOf(err) != dfs.Corrupt {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		before, syncs := s.Stats(), fs.syncs.Load()
		f := mustForget(t, s, 1)
		deleted := uint64(len(gone)+1) / 4
		if f.Tombstones != deleted || f.Blocks != uint64(len(gone))-deleted || f.Bytes < f.Blocks*3000 {
			t.Errorf("%+v", f)
		}
		if more := fs.syncs.Load() - syncs; more > 4 {
			t.Errorf("%d syncs of segments", more)
		}
		after := s.Stats()
		if after.Forgotten != f.Blocks || after.Blocks != before.Blocks-f.Blocks || after.Tombstones != before.Tombstones-f.Tombstones ||
			after.LiveBytes != before.LiveBytes-f.Bytes || after.Trash != 0 {
			t.Errorf("before %+v\nafter %+v", before, after)
		}
		check := func(when string, put []uint64) {
			t.Helper()
			if got := holds(t, s, 1); got != len(put) {
				t.Fatalf("%s: %d blocks of the PG, want %d", when, got, len(put))
			}
			for _, i := range all {
				switch here := blockID(i).PG != 1 || slices.Contains(put, i); {
				case here:
					wantBlock(t, s, i, 3000)
				default:
					if _, err := read(t, s, i); dfs.KindOf(err) != dfs.NotExist {
						t.Fatalf("%s: block %d: %v", when, i, err)
					}
				}
			}
			if len(s.Damage()) > 0 || s.DamagedUnnamed() {
				t.Fatalf("%s: damage %v", when, s.Damage())
			}
			if err := checkStore(s); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
		}
		check("forgotten", nil)
		if again := mustForget(t, s, 1); again != (Forgotten{}) {
			t.Errorf("once more: %+v", again)
		}
		if err := s.SetEpochs(4, fences(4)); err != nil {
			t.Fatal(err)
		}
		var put []uint64
		for i, b := range gone {
			if i%3 == 0 { // among them some that were deleted
				mustPut(t, s, b, 3000, 4)
				put = append(put, b)
			}
		}
		check("put again", put)
		time.Sleep(time.Minute)
		if st := s.Stats(); st.Compactions == 0 || st.SegmentsGiven == 0 {
			t.Errorf("nothing was given back: %+v", st)
		}
		check("compacted", put)
		for i := range 4 {
			mustClose(t, s)
			if i%2 == 1 {
				loseIndex(t, mem)
			}
			s = openPGs(t, o, 4)
			check(fmt.Sprint("start ", i), put)
		}
		mustClose(t, s)
	})
}

// TestForgetIsOrdered: a map that is newer than the caller's, or something of the PG
// that is under way, and nothing is forgotten. A map that comes meanwhile finds the
// PG shut until it is done.
func TestForgetIsOrdered(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openPGs(t, testOptions(vfs.NewMem()), 3)
		for i := range uint64(40) {
			mustPut(t, s, i, 100, 3)
		}
		_, err := s.Forget(0, 3)
		wantKind(t, err, dfs.Invalid)
		for _, at := range []dfs.Epoch{2, 4} {
			_, err = s.Forget(1, at)
			wantKind(t, err, dfs.Stale)
		}
		p, o := s.pg(1, false), newOp(record{kind: kindTombstone, id: blockID(0)}, nil)
		p.mu.Lock()
		p.startLocked(o)
		p.mu.Unlock()
		_, err = s.Forget(1, 3)
		wantKind(t, err, dfs.Unavailable)
		p.finish(o)
		if n := holds(t, s, 1); n != 10 {
			t.Fatalf("%d blocks are left", n)
		}

		s.index.turn <- struct{}{}
		done := make(chan error)
		go func() {
			_, err := s.Forget(1, 3)
			done <- err
		}()
		time.Sleep(time.Second)
		if err := s.SetEpochs(4, fences(4)); err != nil { // it does not wait for all of it
			t.Fatal(err)
		}
		req := putRequest(0, 100, 4)
		wantKind(t, s.Put(t.Context(), req), dfs.Unavailable)
		req.Refill = true
		wantKind(t, s.Put(t.Context(), req), dfs.Unavailable)
		wantKind(t, s.Delete(t.Context(), DeleteRequest{ID: req.ID, Epoch: 4}), dfs.Unavailable)
		_, err = s.Stat(req.ID, 0)
		wantKind(t, err, dfs.Unavailable)
		_, _, err = s.Inventory(1, nil, 10)
		wantKind(t, err, dfs.Unavailable)
		_, err = s.Doubt(t.Context(), 1, 4)
		wantKind(t, err, dfs.Unavailable)
		_, err = s.Forget(1, 4)
		wantKind(t, err, dfs.Unavailable)
		wantBlock(t, s, 0, 100)
		wantBlock(t, s, 1, 100)
		<-s.index.turn
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n := holds(t, s, 1); n != 0 {
			t.Fatalf("%d blocks are left", n)
		}
		if err := s.Put(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if n := holds(t, s, 1); n != 1 {
			t.Fatalf("%d blocks, one was put", n)
		}
		mustClose(t, s)
	})
}

// TestForgetEndsWithTheStore: one that is closed meanwhile goes on at the next start.
func TestForgetEndsWithTheStore(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		s := openPGs(t, testOptions(fs), 1)
		for i := range uint64(4 * 3 * setBatch) {
			mustPut(t, s, i, 10, 1)
		}
		s.index.turn <- struct{}{}
		done, closed := make(chan error), make(chan error)
		go func() {
			_, err := s.Forget(1, 1)
			done <- err
		}()
		time.Sleep(time.Second)
		go func() { closed <- s.Close() }()
		time.Sleep(time.Second)
		<-s.index.turn
		wantKind(t, <-done, dfs.Unavailable)
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		s = openPGs(t, testOptions(fs), 1)
		if n := holds(t, s, 1); n != 0 {
			t.Errorf("%d blocks are left", n)
		}
		if n := holds(t, s, 2); n != 3*setBatch {
			t.Errorf("%d blocks of another PG", n)
		}
		mustClose(t, s)
	})
}

// TestForgetCrashes cuts the power before each change of the disk while a PG is
// forgotten, put to again, and compacted: all of it is forgotten or nothing, with the
// index and without. Without -full it is before each of the first and each twelfth.
func TestForgetCrashes(t *testing.T) {
	all, gone := lopsided()
	crashes, kept, step := 0, 0, 12
	if *full {
		step = 1
	}
	for at := 1; ; at++ {
		if at > 4 && at%step != 0 {
			continue
		}
		ended := false
		bubble.Test(t, func(t *testing.T) {
			fs := &crashFS{MemFS: vfs.NewCrashableMem()}
			o := testOptions(fs)
			o.CheckpointBytes, o.MemTableSize = 32<<10, 64<<10 // tables are written on the way
			s := openPGs(t, o, 1)
			for _, i := range all {
				mustPut(t, s, i, 600, 1)
			}
			for _, b := range gone[:20] {
				mustDelete(t, s, b, 1)
			}
			time.Sleep(2 * time.Second)
			var done atomic.Bool // what was said before the crash
			var again atomic.Int64
			var doneThen bool
			var againThen int
			fs.arm(at, []int{0, 30, 100}[at%3], rand.New(rand.NewPCG(uint64(at), 1)), func() { doneThen, againThen = done.Load(), int(again.Load()) })
			mustForget(t, s, 1)
			done.Store(true)
			for _, b := range gone[10:30] {
				mustPut(t, s, b, 600, 1)
				again.Add(1)
			}
			time.Sleep(5 * time.Second)
			clone := fs.crashed()
			fs.arm(0, 0, nil, nil)
			mustClose(t, s)
			if ended = clone == nil; ended {
				return
			}
			crashes++
			check := func(when string) {
				t.Helper()
				for _, i := range all {
					if blockID(i).PG != 1 {
						wantBlock(t, s, i, 600)
					}
				}
				switch got := holds(t, s, 1); {
				case got == len(gone) && !doneThen: // the bound was not written
					kept++
					mustForget(t, s, 1)
					if left := holds(t, s, 1); left != 0 {
						t.Fatalf("crash before change %d, %s: %d blocks are left", at, when, left)
					}
					doneThen = true
				case got < againThen || got > againThen+1:
					t.Fatalf("crash before change %d, %s: %d blocks, %d were put since, forgotten %v", at, when, got, againThen, doneThen)
				default:
					againThen, doneThen = got, true
					for _, b := range gone[10 : 10+got] {
						wantBlock(t, s, b, 600)
					}
				}
				if s.DamagedUnnamed() || len(s.Damage()) > 0 {
					t.Fatalf("crash before change %d, %s: damage %v", at, when, s.Damage())
				}
				if err := checkStore(s); err != nil {
					t.Fatalf("crash before change %d, %s: %v", at, when, err)
				}
			}
			if at%2 == 0 {
				loseIndex(t, clone)
			}
			o.FS = clone
			s = openPGs(t, o, 1)
			check("started")
			time.Sleep(5 * time.Second)
			check("later")
			mustClose(t, s)
			loseIndex(t, clone)
			s = openPGs(t, o, 1)
			check("made anew")
			mustClose(t, s)
		})
		if ended || t.Failed() {
			break
		}
	}
	if t.Logf("%d crashes, %d before it was decided", crashes, kept); crashes < 8 || kept == 0 || kept == crashes {
		t.Errorf("%d crashes only, %d before it was decided", crashes, kept)
	}
}

// TestForgetMeetsCompaction: what compaction has read before the PG was forgotten, and
// writes afterwards, does not come back with an index that is made anew, though it
// lies in a segment that did not exist then.
func TestForgetMeetsCompaction(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const pg = dfs.PGID(4) // of the record that is copied first: a tombstone
		fs := vfs.NewMem()
		o := testOptions(fs)
		s := openPGs(t, o, 1)
		for i := range uint64(200) {
			mustPut(t, s, i, 10_000, 1)
		}
		for i := range uint64(160) {
			if blockID(i).PG > 1 {
				mustDelete(t, s, i, 1)
			}
		}
		// Who changes the index waits in turn: first the one who forgets, then the one
		// whose copy is on the disk.
		s.index.turn <- struct{}{}
		done := make(chan error)
		go func() {
			_, err := s.Forget(pg, 1)
			done <- err
		}()
		time.Sleep(5 * time.Second)
		copied := uint64(0)
		for _, g := range *s.segs.byNumber.Load() {
			p := segmentBytes(t, fs, g)
			h, ok, err := decodeBatch(p[pageSize:], place{testMark, g.number, pageSize})
			if ok && err == nil && h.stream == movedStream && blockOfRecord(p[pageSize+batchHeaderLen:]).PG == pg {
				copied = g.number
			}
		}
		if copied == 0 {
			t.Fatal("no copy was under way: the test does not fit what compaction does first")
		}
		<-s.index.turn
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if list := s.ledger.bounds(); len(list) != 1 || list[0].Through < copied {
			t.Fatalf("%v, and a copy is in %d", list, copied)
		}
		for i := range 3 {
			if n := holds(t, s, pg); n != 0 {
				t.Fatalf("start %d: %d blocks are back", i, n)
			}
			if n := holds(t, s, 2); n != 50 {
				t.Fatalf("start %d: %d blocks of another PG", i, n)
			}
			mustClose(t, s)
			loseIndex(t, fs)
			s = openPGs(t, o, 1)
			time.Sleep(time.Duration(i) * time.Minute)
		}
		mustClose(t, s)
	})
}

// blockOfRecord is the block that a record is about.
func blockOfRecord(p []byte) dfs.BlockID {
	id, _ := dfs.ParseBlockID(p[48:72])
	return id
}

// segmentBytes is what is in a segment's file.
func segmentBytes(t testing.TB, fs vfs.FS, g *segment) []byte {
	t.Helper()
	p, err := readWhole(fs, g.path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestBoundEnds: once no segment is left in which a forgotten record may lie.
func TestBoundEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := testOptions(fs)
		s := openPGs(t, o, 1)
		for i := range uint64(20) {
			mustPut(t, s, i, 40_000, 1)
		}
		mustForget(t, s, 1)
		mustForget(t, s, 2)
		time.Sleep(2 * time.Second)
		if list := s.ledger.bounds(); len(list) != 2 || list[0].Through == 0 || list[1].Through == 0 {
			t.Fatalf("%+v", list)
		}
		for pg := range dfs.PGID(2) {
			mustForget(t, s, pg+3)
		}
		for round := range uint64(8) { // fills the segments that the streams are in
			for i := range uint64(30) {
				mustPut(t, s, 1000*(round+1)+i, 60_000, 1)
				mustDelete(t, s, 1000*(round+1)+i, 1)
			}
			time.Sleep(time.Minute)
		}
		lowest, _ := s.segs.span()
		if list := s.ledger.bounds(); len(list) != 0 || s.forgotten() != 0 {
			t.Errorf("the first segment is %d: %+v", lowest, list)
		}
		if rows, err := s.index.swept(); err != nil || len(rows) != 0 {
			t.Errorf("rows %+v: %v", rows, err)
		}
		mustClose(t, s)
		s = openPGs(t, o, 1) // the lines are still in the file
		time.Sleep(time.Minute)
		if list := s.ledger.bounds(); len(list) != 0 {
			t.Errorf("%+v after a start", list)
		}
		mustClose(t, s)
	})
}

// TestForgottenStaysForgotten: what is around the segments is lost or put back.
func TestForgottenStaysForgotten(t *testing.T) {
	all, _ := lopsided()
	build := func(t *testing.T) (fs, before *vfs.MemFS) {
		fs = vfs.NewCrashableMem()
		s := openPGs(t, testOptions(fs), 1)
		for _, i := range all {
			mustPut(t, s, i, 600, 1)
		}
		if err := s.checkpoint(); err != nil {
			t.Fatal(err)
		}
		before = cloneAll(fs)
		mustForget(t, s, 1)
		mustPut(t, s, 0, 600, 1)
		mustClose(t, s)
		return fs, before
	}
	for _, c := range []struct {
		name       string
		spoil      func(t *testing.T, fs, before *vfs.MemFS)
		incomplete bool
	}{
		{"the index of before", func(t *testing.T, fs, before *vfs.MemFS) {
			loseIndex(t, fs)
			copyDir(t, before, fs, dir+indexName)
		}, false},
		{"no ledger", func(t *testing.T, fs, _ *vfs.MemFS) {
			if err := fs.Remove(dir + ledgerName); err != nil {
				t.Fatal(err)
			}
			s := openPGs(t, testOptions(fs), 1) // the index knows, and tells the new ledger
			time.Sleep(5 * time.Second)
			mustClose(t, s)
			loseIndex(t, fs)
		}, false},
		{"a damaged ledger and no index", func(t *testing.T, fs, _ *vfs.MemFS) {
			s := openPGs(t, testOptions(fs), 1)
			time.Sleep(5 * time.Second) // a line that is not the last may not be one that was never finished
			mustClose(t, s)
			p := fileBytes(t, fs, ledgerName)
			for i := range p {
				if bytes.HasPrefix(p[i:], []byte("forgotten")) {
					p[i] ^= 1
				}
			}
			loseIndex(t, fs)
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				fs, before := build(t)
				c.spoil(t, fs, before)
				s := openPGs(t, testOptions(fs), 1)
				defer closeSpoiled(t, s)
				if s.DamagedUnnamed() != c.incomplete {
					t.Errorf("incomplete: %v", s.DamagedUnnamed())
				}
				if c.incomplete {
					return // the cluster fills it again
				}
				if got := holds(t, s, 1); got != 1 {
					t.Errorf("%d blocks, one was put since", got)
				}
				wantBlock(t, s, 0, 600)
				if got := holds(t, s, 2); got != (setBatch+8)/8 {
					t.Errorf("%d blocks of another PG", got)
				}
				if err := checkStore(s); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// copyDir copies the files of a directory.
func copyDir(t testing.TB, from, to vfs.FS, name string) {
	t.Helper()
	if err := to.MkdirAll(name, 0o755); err != nil {
		t.Fatal(err)
	}
	names, err := from.List(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range names {
		p, err := readWhole(from, name+"/"+x)
		if err != nil {
			t.Fatal(err)
		}
		f, err := to.Create(name+"/"+x, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
}

// TestLogBelowABound: numbers that a bound covers are never given out again, though
// the log and all else that tells of them were lost.
func TestLogBelowABound(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 1)
	mustPut(t, s, 0, 100, 1)
	last := s.Stats().LastSeq
	if err := s.ledger.add([]ledgerLine{{accounted: accounted{Forgotten: bounds{{PG: 1, Seq: last + 50}}}}}); err != nil {
		t.Fatal(err)
	}
	closeSpoiled(t, s)
	s = openPGs(t, testOptions(fs), 1)
	if !s.DamagedUnnamed() {
		t.Error("it does not know that records are lost")
	}
	mustPut(t, s, 4, 100, 1)
	if seq := s.Stats().LastSeq; seq <= last+50 {
		t.Errorf("number %d was given out again", seq)
	}
	closeSpoiled(t, s)
	loseIndex(t, fs)
	s = openPGs(t, testOptions(fs), 1)
	wantBlock(t, s, 4, 100)
	closeSpoiled(t, s)
}

// TestBounds: of two of one PG the later counts.
func TestBounds(t *testing.T) {
	var l bounds
	for _, b := range []bound{{5, 10, 0}, {1, 3, 2}, {5, 8, 9}, {5, 10, 4}, {5, 10, 0}, {9, 1, 0}, {1, 3, 1}} {
		before := slices.Clone(l)
		next := l.with(bounds{b})
		if !slices.Equal(l, before) {
			t.Fatal("a list was changed")
		}
		l = next
	}
	if want := (bounds{{1, 3, 2}, {5, 10, 4}, {9, 1, 0}}); !slices.Equal(l, want) {
		t.Errorf("%v", l)
	}
	for _, c := range []struct {
		pg   dfs.PGID
		seq  uint64
		want bool
	}{{1, 3, true}, {1, 4, false}, {2, 1, false}, {5, 10, true}, {5, 11, false}, {9, 1, true}, {10, 0, false}} {
		if l.cover(c.pg, c.seq) != c.want {
			t.Errorf("%s, %d: %v", c.pg, c.seq, !c.want)
		}
	}
	if left := l.without(bounds{{1, 3, 2}, {5, 9, 4}}); !slices.Equal(left, bounds{{5, 10, 4}, {9, 1, 0}}) || l.highest() != 10 {
		t.Errorf("%v, highest %d", left, l.highest())
	}
	for _, text := range []string{`[1,2]`, `[0,2,3]`, `[1,0,3]`, `[4294967296,2,3]`, `"x"`} {
		if err := new(bound).UnmarshalJSON([]byte(text)); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
}

// TestDumpOfForgotten: what lies in a segment and was forgotten is shown as that.
func TestDumpOfForgotten(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 1)
	for i := range uint64(8) {
		mustPut(t, s, i, 100, 1)
	}
	mustForget(t, s, 1)
	mustClose(t, s)
	in, err := Inspect(fs, "/disk/store")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var got strings.Builder
	err = in.Dump(t.Context(), 1, func(p Piece) error {
		if p.Record != nil {
			fmt.Fprintf(&got, "%s:%v ", p.Record.ID.PG, p.Record.Forgotten)
		}
		return nil
	})
	o, err2 := in.Overview(t.Context())
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	one := fmt.Sprintf("%s:true %s:false %s:false %s:false ", dfs.PGID(1), dfs.PGID(2), dfs.PGID(3), dfs.PGID(4))
	if got.String() != one+one || o.Forgotten != 1 || o.Blocks != 6 {
		t.Errorf("%s, %+v", &got, o)
	}
}
