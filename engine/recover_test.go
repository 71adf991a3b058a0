package engine

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const dir = "/disk/store/"

// fileBytes is a file's contents; changes to it change the file.
func fileBytes(t testing.TB, fs *vfs.MemFS, name string) []byte {
	t.Helper()
	p, err := fs.UnsafeGetFileDataBuffer(dir + name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// cloneAll copies a whole disk, synced or not.
func cloneAll(fs *vfs.MemFS) *vfs.MemFS {
	return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
}

// TestTornTail cuts the last batch short in every way a crash can, and some
// that only rot can.
func TestTornTail(t *testing.T) {
	const at, size = 4*2*pageSize + pageSize, 9000 // the last batch: three pages
	for _, c := range []struct {
		name    string
		spoil   func(segment []byte)
		present bool // the last block is there
		unnamed bool
	}{
		{"nothing", func([]byte) {}, true, false},
		{"never written", func(p []byte) { clear(p[at : at+3*pageSize]) }, false, false},
		{"first page lost", func(p []byte) { clear(p[at : at+pageSize]) }, false, false},
		{"middle page lost", func(p []byte) { clear(p[at+pageSize : at+2*pageSize]) }, false, false},
		{"last page lost", func(p []byte) { clear(p[at+2*pageSize : at+3*pageSize]) }, false, false},
		{"batch header", func(p []byte) { p[at+9] ^= 1 }, false, false},
		{"record header", func(p []byte) { p[at+batchHeaderLen+50] ^= 1 }, false, false},
		{"payload", func(p []byte) { p[at+5000] ^= 1 }, false, false},
		{"padding", func(p []byte) { p[at+3*pageSize-1] ^= 1 }, true, false},
		{"below the mark", func(p []byte) { p[pageSize+batchHeaderLen+50] ^= 1 }, true, true},
	} {
		bubble.Test(t, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			s := openPGs(t, testOptions(fs), 1)
			for n := range uint64(4) {
				mustPut(t, s, n, 4097, 1)
			}
			time.Sleep(time.Second) // the mark moves
			mustPut(t, s, 4, size, 1)
			clone := cloneAll(fs)
			mustClose(t, s)
			c.spoil(fileBytes(t, clone, "segments/"+segmentName(1)))
			if r, err := verifyDir(clone, "/disk/store"); err != nil || r.OK() == c.unnamed {
				t.Errorf("%s, before it is opened: %v %+v", c.name, err, r)
			}
			for round := range 3 {
				s = openPGs(t, testOptions(clone), 1)
				if s.DamagedUnnamed() != c.unnamed {
					t.Fatalf("%s: unnamed damage is %v: %+v", c.name, s.DamagedUnnamed(), s.Damage())
				}
				first := uint64(0)
				if c.unnamed {
					first = 1
				}
				for n := first; n < 4; n++ {
					wantBlock(t, s, n, 4097)
				}
				if c.present {
					wantBlock(t, s, 4, size)
				} else {
					_, err := read(t, s, 4)
					wantKind(t, err, dfs.NotExist)
				}
				for n := range uint64(round) {
					wantBlock(t, s, 10+n, 500)
				}
				mustPut(t, s, 10+uint64(round), 500, 1)
				if err := checkStore(s); err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				mustClose(t, s)
				if round == 1 {
					if err := clone.RemoveAll(dir + indexName); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// TestFlippedBytesOnDisk is TestFlippedBytes through the whole store, with and
// without the index, for some positions.
func TestFlippedBytesOnDisk(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openPGs(t, testOptions(fs), 1)
	const blocks = 24
	for n := range uint64(blocks) {
		mustPut(t, s, n, 1000+int(n)*900, 1)
	}
	mustDelete(t, s, 3, 1)
	mustClose(t, s)
	name := "segments/" + segmentName(1)
	sealed := bytes.Contains(fileBytes(t, fs, name), []byte("DFTR"))
	if !sealed {
		t.Fatal("the first segment is not sealed: the test is too small")
	}
	lost := 0
	for i := range 60 {
		clone := cloneAll(fs)
		at := (i*4409 + i%13) % (256 << 10)
		fileBytes(t, clone, name)[at] ^= 0x40
		if i%2 == 0 {
			if err := clone.RemoveAll(dir + indexName); err != nil {
				t.Fatal(err)
			}
		}
		s := mustOpen(t, testOptions(clone))
		if s.DamagedUnnamed() {
			t.Errorf("byte %d: a sealed segment's footer names every loss", at)
		}
		for n := range uint64(blocks) {
			p, err := read(t, s, n)
			switch {
			case n == 3:
				wantKind(t, err, dfs.NotExist)
			case err == nil:
				if !bytes.Equal(p, content(n, 1000+int(n)*900)) {
					t.Fatalf("byte %d: wrong bytes of block %d", at, n)
				}
			default:
				wantKind(t, err, dfs.Corrupt)
				lost++
			}
		}
		closeSpoiled(t, s)
	}
	if lost < 20 {
		t.Errorf("only %d blocks were hit", lost)
	}
}

func TestLostIndexIsRebuilt(t *testing.T) {
	for _, c := range []struct {
		name   string
		verify bool // maybe found by nothing but the look at all of it after the start
		spoil  func(t *testing.T, fs *vfs.MemFS)
	}{
		{"removed", false, func(t *testing.T, fs *vfs.MemFS) { _ = fs.RemoveAll(dir + indexName) }},
		{"manifest damaged", false, func(t *testing.T, fs *vfs.MemFS) { spoilIndex(t, fs, "MANIFEST-", -1) }},
		{"tables damaged", false, func(t *testing.T, fs *vfs.MemFS) { spoilIndex(t, fs, ".sst", -1) }},
		{"a byte of a table damaged", true, func(t *testing.T, fs *vfs.MemFS) { spoilIndex(t, fs, ".sst", 100) }},
		{"another store's", false, func(t *testing.T, fs *vfs.MemFS) {
			other := vfs.NewMem()
			o := testOptions(other)
			o.NewMark = func() uint64 { return 5 }
			mustClose(t, openPGs(t, o, 1))
			_ = fs.RemoveAll(dir + indexName)
			if ok, err := vfs.Clone(other, fs, dir+indexName, dir+indexName); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewMem()
			s := openPGs(t, testOptions(fs), 1)
			for n := range uint64(60) {
				mustPut(t, s, n, 20<<10, 1)
			}
			for n := range uint64(20) { // their puts lie in older segments than their tombstones
				mustDelete(t, s, n, 1)
			}
			mustClose(t, s)
			c.spoil(t, fs)
			var log bytes.Buffer // read when the store is closed
			o := testOptions(fs)
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
			s = mustOpen(t, o)
			<-s.verifyDone
			if s.Stats().State == StateFailed { // the next start makes the index anew
				if !c.verify {
					t.Error("found after the start only")
				}
				wantKind(t, s.Close(), dfs.Unavailable)
				s = mustOpen(t, o)
			}
			for n := range uint64(60) {
				if n < 20 {
					_, err := read(t, s, n)
					wantKind(t, err, dfs.NotExist)
					continue
				}
				wantBlock(t, s, n, 20<<10)
			}
			if s.DamagedUnnamed() {
				t.Error("nothing is lost, and yet the store calls itself incomplete")
			}
			if err := checkStore(s); err != nil {
				t.Error(err)
			}
			mustClose(t, s)
			if got := strings.Contains(log.String(), "made anew"); got == (c.name == "removed") {
				t.Errorf("the log says that the index was damaged: %v", got)
			}
		})
	}
}

// spoilIndex damages one byte of the largest of some files, or with -1 every
// byte of all. The largest table holds rows that no start looks at.
func spoilIndex(t *testing.T, fs *vfs.MemFS, part string, at int) {
	t.Helper()
	names, err := fs.List(dir + indexName)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	var largest []byte
	for _, name := range names {
		if strings.Contains(name, part) {
			p := fileBytes(t, fs, indexName+"/"+name)
			if len(p) > len(largest) {
				largest = p
			}
			for i := range p {
				if at < 0 {
					p[i] ^= 0x55
				}
			}
			n++
		}
	}
	if at >= 0 && at < len(largest) {
		largest[at] ^= 0x55
	}
	if n == 0 {
		t.Fatalf("no %s in %v", part, names)
	}
}

// TestRolledBack puts a part of the directory, or all of it, back to an
// earlier state.
func TestRolledBack(t *testing.T) {
	for _, c := range []struct {
		name    string
		back    []string // what is put back
		noticed bool     // by the store itself
	}{
		{"segments", []string{segmentsName}, true},
		{"segments and index", []string{segmentsName, indexName}, true},
		{"segments, index and mark", []string{segmentsName, indexName, markName}, true},
		{"everything", []string{segmentsName, indexName, markName, epochName, storeName}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			o := numberedOptions(fs)
			s := openPGs(t, o, 1)
			mustPut(t, s, 1, 5000, 1)
			mustClose(t, s)
			old := cloneAll(fs)
			s = openPGs(t, o, 1)
			if err := errors.Join(s.OfferStart(), s.SetIdentity(dfs.ClusterID{9}, 1, 2)); err != nil {
				t.Fatal(err)
			}
			registered := s.Identity().Incarnation.Start
			for n := range uint64(50) {
				mustPut(t, s, 200+n, 9000, 1)
			}
			if err := s.SetEpochs(2, fences(2)); err != nil {
				t.Fatal(err)
			}
			mustClose(t, s)
			for _, name := range c.back {
				if err := fs.RemoveAll(dir + name); err != nil {
					t.Fatal(err)
				}
				if ok, err := vfs.Clone(old, fs, dir+name, dir+name); !ok || err != nil {
					t.Fatal(ok, err)
				}
			}
			for n := range uint64(2) { // the verdict outlives a restart
				s = openPGs(t, o, 2)
				id := s.Identity()
				if id.RolledBack != c.noticed || s.DamagedUnnamed() != c.noticed {
					t.Errorf("rolled back: %v", id.RolledBack)
				}
				if err := s.OfferStart(); err != nil {
					t.Fatal(err)
				}
				if l := s.Lineage(); l.Holds(registered) != c.noticed {
					t.Errorf("%x was registered, the directory knows %x", registered, l)
				}
				mustPut(t, s, 100+n, 10, 2)
				closeSpoiled(t, s)
			}
			s = mustOpen(t, o)
			if err := s.AcknowledgeDamage(); err != nil {
				t.Fatal(err)
			}
			closeSpoiled(t, s)
			s = mustOpen(t, o)
			if s.DamagedUnnamed() {
				t.Error("damage came back after it was acknowledged")
			}
			closeSpoiled(t, s)
		})
	}
}

// TestRolledBackOnce: what was acknowledged does not come back with a restart before
// the next record, nor with a new epoch, and no number of a lost record is given out
// again. Another loss is another.
func TestRolledBackOnce(t *testing.T) {
	for _, names := range [][]string{{segmentsName}, {segmentsName, indexName}} {
		t.Run(fmt.Sprint(names), func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			o := numberedOptions(fs)
			s := openPGs(t, o, 1)
			mustPut(t, s, 1, 5000, 1)
			mustClose(t, s)
			old := cloneAll(fs)
			s = openPGs(t, o, 1)
			for n := range uint64(10) {
				mustPut(t, s, 200+n, 9000, 1)
			}
			mustClose(t, s)
			back := func() {
				for _, name := range names {
					if err := fs.RemoveAll(dir + name); err != nil {
						t.Fatal(err)
					}
					if ok, err := vfs.Clone(old, fs, dir+name, dir+name); !ok || err != nil {
						t.Fatal(ok, err)
					}
				}
			}
			reopen := func(lost bool) {
				t.Helper()
				s = mustOpen(t, o)
				if s.DamagedUnnamed() != lost {
					t.Errorf("incomplete: %v", s.DamagedUnnamed())
				}
			}
			back()
			reopen(true)
			if err := s.AcknowledgeDamage(); err != nil {
				t.Fatal(err)
			}
			mustClose(t, s)
			reopen(false)
			if err := s.SetEpochs(2, fences(2)); err != nil {
				t.Fatal(err)
			}
			mustClose(t, s)
			reopen(false)
			if last := s.Stats().LastSeq; last != 11 {
				t.Errorf("the last record is %d, 11 was durable once", last)
			}
			if err := s.SetEpochs(2, fences(2)); err != nil {
				t.Fatal(err)
			}
			mustPut(t, s, 300, 9000, 2)
			mustClose(t, s)
			reopen(false)
			mustClose(t, s)
			back()
			reopen(true)
			closeSpoiled(t, s)
		})
	}
}

// TestUnnamedDamageStays until it is acknowledged, over restarts and
// checkpoints, and does not come back with the index.
func TestUnnamedDamageStays(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 1)
	for n := range uint64(5) {
		mustPut(t, s, n, 3000, 1)
	}
	mustClose(t, s)
	p := fileBytes(t, fs, "segments/"+segmentName(1))
	p[pageSize+batchHeaderLen+30] ^= 1
	_ = fs.RemoveAll(dir + indexName)
	for n := range uint64(3) {
		s = openPGs(t, testOptions(fs), 1)
		if list := s.Damage(); !s.DamagedUnnamed() || len(list) != 1 || list[0].Named || list[0].Segment != 1 {
			t.Fatalf("%v %+v", s.DamagedUnnamed(), list)
		}
		mustPut(t, s, 10+n, 10, 1)
		mustClose(t, s)
	}
	s = mustOpen(t, testOptions(fs))
	if err := s.AcknowledgeDamage(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	s = mustOpen(t, testOptions(fs))
	defer mustClose(t, s)
	if s.DamagedUnnamed() || len(s.Damage()) != 0 {
		t.Errorf("%+v", s.Damage())
	}
}

// TestDamagedBlockIsReplaced by a refill's put of the same bytes, and by
// nothing else.
func TestDamagedBlockIsReplaced(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 3)
	for n := range uint64(30) {
		mustPut(t, s, n, 20<<10, 3)
	}
	mustClose(t, s)
	p := fileBytes(t, fs, "segments/"+segmentName(1))
	p[pageSize+batchHeaderLen+30] ^= 1          // block 0: its header, named by the footer when the index is lost
	p[2*pageSize+5*pageSize+pageSize+4000] ^= 1 // block 1: its payload
	for _, rebuild := range []bool{false, true} {
		if rebuild {
			_ = fs.RemoveAll(dir + indexName)
		}
		s = openPGs(t, testOptions(fs), 4)
		var bad []uint64
		for n := range uint64(30) {
			if _, err := read(t, s, n); err != nil {
				wantKind(t, err, dfs.Corrupt)
				bad = append(bad, n)
			}
		}
		// With its index a store reads a block whose header is damaged, and
		// lists it; when the index is lost too, the footer names it. By then
		// the one with the damaged payload was replaced.
		headers := 1
		if rebuild {
			headers = 0
		}
		if len(bad) != 1 || s.DamagedUnnamed() || len(s.Damage()) != 1+headers {
			t.Fatalf("rebuilt %v: bad blocks %v, damage %+v", rebuild, bad, s.Damage())
		}
		for _, n := range bad {
			wrong := putRequest(n, 77, 1)
			wrong.Refill = true
			wantKind(t, s.Put(t.Context(), wrong), dfs.Exist)
			r := putRequest(n, 20<<10, 1)
			r.Refill = true
			if err := s.Put(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			wantBlock(t, s, n, 20<<10)
			if e, _ := s.Stat(blockID(n), 0); e.Epoch != 3 || e.Lost {
				t.Errorf("%+v", e)
			}
		}
		if len(s.Damage()) != headers {
			t.Errorf("%+v", s.Damage())
		}
		if err := checkStore(s); (err == nil) != rebuild {
			t.Errorf("rebuilt %v: %v", rebuild, err)
		}
		if rebuild {
			mustClose(t, s)
		} else {
			closeSpoiled(t, s)
		}
	}
	s = mustOpen(t, testOptions(fs))
	defer mustClose(t, s)
	for n := range uint64(30) {
		wantBlock(t, s, n, 20<<10)
	}
}

// TestMissingSegment: blocks of a segment that is gone are damaged, not absent.
func TestMissingSegment(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 1)
	for n := range uint64(30) {
		mustPut(t, s, n, 20<<10, 1)
	}
	mustClose(t, s)
	if err := fs.Remove(dir + "segments/" + segmentName(1)); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, testOptions(fs))
	defer closeSpoiled(t, s)
	if !s.DamagedUnnamed() {
		t.Error("not noticed")
	}
	_, err := read(t, s, 0)
	wantKind(t, err, dfs.Corrupt)
	wantBlock(t, s, 29, 20<<10)
}

// TestMissingSegmentOfTheAnchor: so it is when the segment that is gone is the
// one where the index stands, and later ones are there.
func TestMissingSegmentOfTheAnchor(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openPGs(t, testOptions(fs), 1)
	for n := range uint64(15) {
		mustPut(t, s, n, 20<<10, 1)
	}
	if err := s.checkpoint(); err != nil {
		t.Fatal(err)
	}
	gone := s.index.position()[logStream].segment
	for n := uint64(15); n < 40; n++ {
		mustPut(t, s, n, 20<<10, 1)
	}
	fs = fs.CrashClone(vfs.CrashCloneCfg{})
	mustClose(t, s)
	if err := fs.Remove(dir + "segments/" + segmentName(gone)); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, testOptions(fs))
	defer closeSpoiled(t, s)
	if !s.DamagedUnnamed() {
		t.Error("not noticed")
	}
	wantBlock(t, s, 0, 20<<10)
	wantBlock(t, s, 39, 20<<10)
}

// TestSlotsSurviveRot in one of their two copies.
func TestSlotsSurviveRot(t *testing.T) {
	for _, name := range []string{storeName, epochName, markName} {
		for slot := range 2 {
			fs := vfs.NewMem()
			s := openPGs(t, testOptions(fs), 7)
			mustPut(t, s, 1, 10, 7)
			if err := s.SetIdentity(dfs.ClusterID{9}, 1, 2); err != nil {
				t.Fatal(err)
			}
			mustClose(t, s)
			fileBytes(t, fs, name)[slot*slotLen+slotHeadLen+3] ^= 1
			s = mustOpen(t, testOptions(fs))
			if s.MapEpoch() != 7 || s.Identity().Store != 2 || s.DamagedUnnamed() {
				t.Errorf("%s slot %d: epoch %d, %+v", name, slot, s.MapEpoch(), s.Identity())
			}
			wantBlock(t, s, 1, 10)
			mustClose(t, s)
		}
	}
}

// TestLostSmallFiles: without its epoch or mark a store cannot prove that it
// holds everything.
func TestLostSmallFiles(t *testing.T) {
	for _, name := range []string{epochName, markName} {
		fs := vfs.NewMem()
		s := openPGs(t, testOptions(fs), 1)
		for n := range uint64(30) {
			mustPut(t, s, n, 20<<10, 1)
		}
		mustClose(t, s)
		if err := fs.Remove(dir + name); err != nil {
			t.Fatal(err)
		}
		s = openPGs(t, testOptions(fs), 2)
		if !s.DamagedUnnamed() {
			t.Errorf("%s: not noticed", name)
		}
		for n := range uint64(30) {
			wantBlock(t, s, n, 20<<10)
		}
		mustPut(t, s, 50, 10, 2)
		mustClose(t, s)
		s = mustOpen(t, testOptions(fs))
		wantBlock(t, s, 50, 10)
		mustClose(t, s)
	}
}

// TestCrashWhileFormatting leaves a directory that can be formatted again, or
// a store.
func TestCrashWhileFormatting(t *testing.T) {
	for n := 1; ; n++ {
		fs := &crashFS{MemFS: vfs.NewCrashableMem()}
		fs.arm(n, n%3*50, rand.New(rand.NewPCG(uint64(n), 1)), func() {})
		s, err := Open(testOptions(fs))
		if err != nil {
			t.Fatal(err)
		}
		clone := fs.crashed()
		mustClose(t, s)
		if clone == nil {
			if n < 10 {
				t.Fatalf("only %d changes", n)
			}
			return
		}
		s, err = Open(testOptions(clone))
		if err != nil {
			t.Fatalf("after change %d: %v", n, err)
		}
		mustClose(t, s)
	}
}
