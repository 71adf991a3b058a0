package engine

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// gappedStore is a directory in which segment 1 was given up, and 2 to 5 have
// blocks that are needed.
func gappedStore(t *testing.T) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewCrashableMem()
	o := testOptions(fs)
	s := openPGs(t, o, 1)
	for n := range uint64(28) {
		mustPut(t, s, n, 40_000, 1)
	}
	for n := range uint64(6) {
		mustDelete(t, s, n, 1)
	}
	if err := s.giveUp(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	_ = fs.Remove(dir + "segments/" + segmentName(1)) // if it was kept for use again
	if err := syncDir(fs, dir+"segments"); err != nil {
		t.Fatal(err)
	}
	return fs
}

// TestLostSegmentIsNoticed: a segment that is missing without a line in the
// ledger makes the store incomplete, also when no index says that anything of it
// was needed. What was given up is not missing.
func TestLostSegmentIsNoticed(t *testing.T) {
	built := gappedStore(t)
	for _, c := range []struct {
		name    string
		spoil   []string
		missing uint64 // 0: nothing is noticed
	}{
		{"nothing", nil, 0},
		{"the index", []string{indexName}, 0},
		{"the mark and the index", []string{markName, indexName}, 0},
		{"a segment and the index", []string{"segments/" + segmentName(3), indexName}, 3},
		{"the ledger", []string{ledgerName}, 0},
		{"the ledger and the index", []string{ledgerName, indexName}, 1},
		{"an unused segment and the index", []string{"segments/" + segmentName(7), indexName}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := cloneAll(built)
			for _, name := range c.spoil {
				if err := fs.RemoveAll(dir + name); err != nil {
					t.Fatal(err)
				}
			}
			r, err := verifyDir(fs, "/disk/store")
			if err != nil {
				t.Fatal(err)
			}
			named := false
			for _, f := range r.Faults {
				named = named || strings.Contains(f.Text, segmentName(max(c.missing, 1))) && strings.Contains(f.Text, "missing")
			}
			if named != (c.missing != 0) {
				t.Errorf("verify says %v", r.Faults)
			}
			markLost := strings.HasPrefix(c.name, "the mark")
			s := mustOpen(t, testOptions(fs))
			if s.DamagedUnnamed() != (c.missing != 0 || markLost) {
				t.Errorf("incomplete: %v", s.DamagedUnnamed())
			}
			if err := s.AcknowledgeDamage(); err != nil {
				t.Fatal(err)
			}
			closeSpoiled(t, s)
			for range 2 { // what was said once is not said again, with this index or another
				s = mustOpen(t, testOptions(fs))
				if s.DamagedUnnamed() {
					t.Error("it is incomplete again")
				}
				mustClose(t, s)
				if err := fs.RemoveAll(dir + indexName); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestRebuiltIndexKnowsLostSegments: RebuildIndex says which are missing.
func TestRebuiltIndexKnowsLostSegments(t *testing.T) {
	fs := gappedStore(t)
	if err := fs.Remove(dir + "segments/" + segmentName(3)); err != nil {
		t.Fatal(err)
	}
	r, err := RebuildIndex(t.Context(), testOptions(fs), nil)
	if err != nil || !r.Unnamed || len(r.Missing) != 1 || r.Missing[0] != [2]uint64{3, 3} {
		t.Errorf("rebuilt as %+v: %v", r, err)
	}
}

// TestLostSegmentAboveTheAnchor: the index that is there does not know what was
// in it.
func TestLostSegmentAboveTheAnchor(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openPGs(t, testOptions(fs), 1)
	mustPut(t, s, 0, 100, 1)
	if err := s.checkpoint(); err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n < 28; n++ {
		mustPut(t, s, n, 40_000, 1)
	}
	crashed := fs.CrashClone(vfs.CrashCloneCfg{})
	closeSpoiled(t, s)
	if err := crashed.Remove(dir + "segments/" + segmentName(3)); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, testOptions(crashed))
	defer closeSpoiled(t, s)
	if !s.DamagedUnnamed() {
		t.Error("not noticed")
	}
}

// TestLedger: its lines outlive torn writes, rot and becoming too many.
func TestLedger(t *testing.T) {
	const path = "/LEDGER"
	fs := vfs.NewMem()
	open := func() *ledger {
		l := &ledger{fs: fs, path: path}
		if err := l.load(); err != nil {
			t.Fatal(err)
		}
		return l
	}
	add := func(l *ledger, from, to uint64) {
		t.Helper()
		for n := from; n <= to; n++ {
			if err := l.add([]ledgerLine{{Segment: segmentName(n), Stream: "log"}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(l *ledger, gone ...[2]uint64) {
		t.Helper()
		if !slices.Equal(l.known.Gone, gone) {
			t.Errorf("gone are %v, want %v", l.known.Gone, gone)
		}
	}
	l := open()
	add(l, 3, 4)
	add(l, 7, 7)
	want(l, [2]uint64{3, 4}, [2]uint64{7, 7})
	l.close()
	l = open()
	want(l, [2]uint64{3, 4}, [2]uint64{7, 7})
	l.close()

	p, err := fs.UnsafeGetFileDataBuffer(path)
	if err != nil {
		t.Fatal(err)
	}
	sound := string(p)
	write := func(text string) {
		f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	write(sound[:len(sound)-9]) // the last line is torn
	l = open()
	want(l, [2]uint64{3, 4})
	add(l, 9, 9)
	l.close()
	l = open()
	want(l, [2]uint64{3, 4}, [2]uint64{9, 9})
	if len(l.bad) > 0 {
		t.Errorf("bad lines %v", l.bad)
	}
	l.close()

	for at := range sound { // a flipped bit makes no other line
		flipped := []byte(sound)
		flipped[at] ^= 1
		write(string(flipped))
		_ = fs.Remove(path + ".old")
		l = open()
		if l.known.Gone.has(2) || l.known.Gone.has(5) || l.known.Gone.has(6) || len(l.bad) == 0 {
			t.Fatalf("byte %d: %v, bad %v", at, l.known.Gone, l.bad)
		}
		l.close()
	}

	write(sound)
	l = open()
	l.max = 1000
	add(l, 10, 200)
	want(l, [2]uint64{3, 4}, [2]uint64{7, 7}, [2]uint64{10, 200})
	l.close()
	if info, err := fs.Stat(path); err != nil || info.Size() > 2000 {
		t.Errorf("%v bytes, %v", info.Size(), err)
	}
	if err := fs.Remove(path + ".old"); err != nil {
		t.Fatal(err)
	}
	l = open()
	want(l, [2]uint64{3, 4}, [2]uint64{7, 7}, [2]uint64{10, 200})
	l.close()
}

// TestNumberRanges against a plain set.
func TestNumberRanges(t *testing.T) {
	var r numbers
	set := map[uint64]bool{}
	for i := range uint64(200) {
		from := i * 37 % 101
		to := from + i%4
		r = r.union(numbers{{from, to}})
		for n := from; n <= to; n++ {
			set[n] = true
		}
		hole := numbers{{i * 13 % 89, i*13%89 + i%3}}
		r = r.without(hole)
		for n := hole[0][0]; n <= hole[0][1]; n++ {
			delete(set, n)
		}
		for n := range uint64(120) {
			if r.has(n) != set[n] {
				t.Fatalf("step %d: %v has %d: %v", i, r, n, r.has(n))
			}
		}
		for j := 1; j < len(r); j++ {
			if r[j][0] <= r[j-1][1]+1 {
				t.Fatalf("%v is not sorted and joined", r)
			}
		}
	}
}

// ledgerLines are those of docs/FORMATS.md.
const ledgerLines = `{"time":"2000-01-02T03:04:05.000006Z","gone":[[1,4],[9,9]],"lost":[[7,7]],"crc":"2659dfd6"}
{"time":"2000-01-02T03:04:05.000006Z","segment":"000000000000000a.seg","stream":"log","bytes":249856,"seq":34,"crc":"97c8e292"}
{"time":"2000-01-02T03:04:05.000006Z","forgotten":[[3,34,0],[9,30,11]],"crc":"0b81cc6a"}
`

// TestLedgerBytes pins the lines: they never change for version 1.
func TestLedgerBytes(t *testing.T) {
	at := time.Date(2000, 1, 2, 3, 4, 5, 6000, time.UTC)
	var got []byte
	for _, x := range []ledgerLine{
		{Time: at, accounted: accounted{Gone: numbers{{1, 4}, {9, 9}}, Lost: numbers{{7, 7}}}},
		{Time: at, Segment: segmentName(10), Stream: logStream.String(), Bytes: 249856, Seq: 34},
		{Time: at, accounted: accounted{Forgotten: bounds{{3, 34, 0}, {9, 30, 11}}}},
	} {
		p, err := x.encode()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p...)
	}
	if string(got) != ledgerLines {
		t.Errorf("the same lines make other bytes:\n%s", got)
	}
}

// FuzzLedger feeds the reader of lines any bytes. A line that it takes has sound
// ranges, and says the same when it is written again.
func FuzzLedger(f *testing.F) {
	for line := range strings.Lines(ledgerLines) {
		f.Add([]byte(line[:len(line)-1-ledgerSumLen]))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		// Without its checksum nothing would pass.
		p = fmt.Appendf(p, ledgerSum, checksum(p))
		x, ok := decodeLedgerLine(p)
		if !ok {
			return
		}
		again, err := x.encode()
		if err != nil {
			return // a time that JSON does not take
		}
		y, ok := decodeLedgerLine(again[:len(again)-1])
		if !ok || !slices.Equal(x.Gone, y.Gone) || !slices.Equal(x.Lost, y.Lost) || x.Segment != y.Segment || !x.Gone.valid() || !x.Lost.valid() {
			t.Errorf("%q is %+v, then %+v", p, x, y)
		}
	})
}

// TestStoreOfTheReleaseBefore: its ledger has no checksums and not every number,
// and its index does not say which session is the highest. Nothing is taken for
// lost, and with the first start all of that is as it is now.
func TestStoreOfTheReleaseBefore(t *testing.T) {
	line := "\n{\"time\":\"2026-01-01T00:00:00Z\",\"segment\":\"" + segmentName(2) + "\",\"stream\":\"log\",\"bytes\":249856,\"seq\":34}\n"
	for _, c := range []struct {
		name    string
		ledger  string
		crashed bool // and the anchor lies before the number that is missing
	}{
		{"given up", line, false},
		{"given up, after a crash", line, true},
		{"left out", "", false},
		{"left out, after a crash", "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewMem()
			s := openPGs(t, testOptions(fs), 1)
			mustPut(t, s, 0, 40_000, 1)
			at := s.index.position()
			for n := uint64(1); n < 28; n++ {
				mustPut(t, s, n, 40_000, 1)
			}
			for n := uint64(6); n < 12; n++ {
				mustDelete(t, s, n, 1)
			}
			if err := s.giveUp(); err != nil || s.segs.get(2) != nil {
				t.Fatalf("segment 2 is %v: %v", s.segs.get(2), err)
			}
			if !c.crashed {
				at = s.index.position()
			}
			old := at.encode(s.mark, 0)[:oldAnchorLen]
			if err := s.index.update(func(c *change) error { return c.b.Set([]byte(metaKey), old, nil) }); err != nil {
				t.Fatal(err)
			}
			closeSpoiled(t, s)
			f, err := fs.Create(dir+ledgerName, vfs.WriteCategoryUnspecified)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write([]byte(c.ledger)); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if r, err := verifyDir(fs, "/disk/store"); err != nil || len(r.Faults) > 0 {
				t.Errorf("verify says %+v: %v", r, err)
			}
			for start := range 3 {
				if start == 2 { // by now the ledger says enough
					if err := fs.RemoveAll(dir + indexName); err != nil {
						t.Fatal(err)
					}
				}
				s = mustOpen(t, testOptions(fs))
				if s.DamagedUnnamed() || s.index.old != (start == 0) || s.index.session != blockID(0).Session {
					t.Errorf("incomplete: %v; the highest session is %d", s.DamagedUnnamed(), s.index.session)
				}
				for n := uint64(12); n < 28; n++ {
					wantBlock(t, s, n, 40_000)
				}
				mustClose(t, s)
			}
		})
	}
}
