package engine

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// misplacingFS reports writes of segments as done that it did not do, or did
// elsewhere.
type misplacingFS struct {
	*vfs.MemFS

	// mu guards what follows.
	mu     sync.Mutex
	writes int // batches from now until the lie; 0: none is coming
	lie    func(f vfs.File, p []byte, off int64) error
	told   bool
}

func (f *misplacingFS) arm(writes int, lie func(f vfs.File, p []byte, off int64) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes, f.lie, f.told = writes, lie, false
}

func (f *misplacingFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.MemFS.OpenReadWrite(name, c, o...)
	if err != nil || !strings.HasSuffix(name, segmentSuffix) {
		return file, err
	}
	return misplacingFile{file, f}, nil
}

type misplacingFile struct {
	vfs.File
	fs *misplacingFS
}

func (f misplacingFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.writes > 0 && string(p[:4]) == "DBAT" {
		if f.fs.writes--; f.fs.writes == 0 {
			f.fs.told = true
			return len(p), f.fs.lie(f.File, p, off)
		}
	}
	return f.File.WriteAt(p, off)
}

// TestWritesThatLie: a write that the disk reports as done and that is lost,
// lies elsewhere, or over something else; followed by other writes or by none,
// in a segment that is sealed or not, with the index and without. What is
// missing is damaged or makes the store incomplete; it is never absent, never
// something else, and nothing that was deleted comes back.
func TestWritesThatLie(t *testing.T) {
	other := func(fs *misplacingFS, number uint64) vfs.File { // another segment's file
		f, err := fs.MemFS.OpenReadWrite(dir+"segments/"+segmentName(number), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, c := range []struct {
		name string
		lie  func(fs *misplacingFS) func(f vfs.File, p []byte, off int64) error
	}{
		{"lost", func(*misplacingFS) func(vfs.File, []byte, int64) error {
			return func(vfs.File, []byte, int64) error { return nil }
		}},
		{"half of it", func(*misplacingFS) func(vfs.File, []byte, int64) error {
			return func(f vfs.File, p []byte, off int64) error {
				_, err := f.WriteAt(p[:len(p)/2/512*512], off)
				return err
			}
		}},
		{"all but its first page", func(*misplacingFS) func(vfs.File, []byte, int64) error {
			return func(f vfs.File, p []byte, off int64) error {
				if len(p) <= pageSize {
					return nil
				}
				_, err := f.WriteAt(p[pageSize:], off+pageSize)
				return err
			}
		}},
		{"further on", func(*misplacingFS) func(vfs.File, []byte, int64) error {
			return func(f vfs.File, p []byte, off int64) error {
				_, err := f.WriteAt(p, 160<<10)
				return err
			}
		}},
		{"over the first batch", func(*misplacingFS) func(vfs.File, []byte, int64) error {
			return func(f vfs.File, p []byte, off int64) error {
				_, err := f.WriteAt(p, pageSize)
				return err
			}
		}},
		{"over the batch before", func(*misplacingFS) func(vfs.File, []byte, int64) error {
			return func(f vfs.File, p []byte, off int64) error {
				_, err := f.WriteAt(p, off-2*pageSize)
				return err
			}
		}},
		{"over the header", func(*misplacingFS) func(vfs.File, []byte, int64) error {
			return func(f vfs.File, p []byte, off int64) error {
				_, err := f.WriteAt(p, 0)
				return err
			}
		}},
		{"into a segment that is ready", func(fs *misplacingFS) func(vfs.File, []byte, int64) error {
			return func(_ vfs.File, p []byte, off int64) error {
				f := other(fs, 3)
				defer f.Close()
				_, err := f.WriteAt(p, off)
				return err
			}
		}},
	} {
		for at := 1; at <= 6; at++ {
			for _, later := range []int{0, 1, 8} {
				for _, index := range []bool{true, false} {
					name := fmt.Sprintf("%s/write=%d,later=%d,index=%v", c.name, at, later, index)
					t.Run(name, func(t *testing.T) {
						bubble.Test(t, func(t *testing.T) { writeLies(t, at, later, index, c.lie) })
					})
				}
			}
		}
	}
}

func writeLies(t *testing.T, at, later int, index bool, lie func(*misplacingFS) func(vfs.File, []byte, int64) error) {
	fs := &misplacingFS{MemFS: vfs.NewMem()}
	sp := &specimen{fs: fs.MemFS, blocks: map[uint64][]byte{}, epoch: 1}
	s := openPGs(t, testOptions(fs), 1)
	step := func(n uint64) {
		t.Helper()
		if n%4 == 3 {
			mustDelete(t, s, n-2, 1)
			delete(sp.blocks, n-2)
			sp.deleted = append(sp.deleted, n-2)
			return
		}
		mustPut(t, s, n, 5000, 1)
		sp.blocks[n] = content(n, 5000)
	}
	mustPut(t, s, 100, 5000, 1)
	sp.blocks[100] = content(100, 5000)
	time.Sleep(time.Second) // two segments are ready
	fs.arm(at, lie(fs))
	for n := range uint64(at + later) {
		step(n)
	}
	if !fs.told {
		t.Fatal("nothing was written")
	}
	if later == 8 { // the segment is sealed
		for n := range uint64(5) {
			mustPut(t, s, 200+n, 60_000, 1)
			sp.blocks[200+n] = content(200+n, 60_000)
		}
	}
	time.Sleep(time.Second) // the mark moves
	live, err := sp.look(s)
	if err != nil {
		t.Errorf("before the restart: %v", err)
	}
	closeSpoiled(t, s)
	if !index {
		if err := fs.RemoveAll(dir + indexName); err != nil {
			t.Fatal(err)
		}
	}
	how, err := sp.check(fs.MemFS)
	if err != nil {
		t.Errorf("noticed by reads: %q; after the restart: %v", live, err)
	}
	again, err := sp.check(fs.MemFS)
	if err != nil || again != how {
		t.Errorf("%q after the restart, %q after another: %v", how, again, err)
	}
}

// TestSwappedSegments exchanges the names of two segments, or puts another
// file in a segment's place, with the index and without.
func TestSwappedSegments(t *testing.T) {
	build := func(mark uint64, first uint64) *specimen {
		sp := &specimen{fs: vfs.NewMem(), blocks: map[uint64][]byte{}, epoch: 1}
		o := testOptions(sp.fs)
		o.NewMark = func() uint64 { return mark }
		s := openPGs(t, o, 1)
		for n := range uint64(28) {
			mustPut(t, s, first+n, 40_000, 1)
			sp.blocks[first+n] = content(first+n, 40_000)
			if n%5 == 4 {
				mustDelete(t, s, first+n-1, 1)
				delete(sp.blocks, first+n-1)
				sp.deleted = append(sp.deleted, first+n-1)
			}
		}
		if st := s.Stats(); st.Segments != 5 {
			t.Fatalf("%d segments", st.Segments)
		}
		closeSpoiled(t, s)
		return sp
	}
	name := func(n uint64) string { return dir + "segments/" + segmentName(n) }
	copyTo := func(t *testing.T, from, to *vfs.MemFS, a, b uint64) {
		if ok, err := vfs.Clone(from, to, name(a), name(b)); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	mine, foreign := build(testMark, 0), build(5, 1000)
	last := uint64(5)
	for _, c := range []struct {
		name    string
		refused bool
		spoil   func(t *testing.T, fs *vfs.MemFS)
	}{
		{"two sealed ones", false, func(t *testing.T, fs *vfs.MemFS) {
			copyTo(t, mine.fs, fs, 2, 3)
			copyTo(t, mine.fs, fs, 3, 2)
		}},
		{"a sealed one and the last", false, func(t *testing.T, fs *vfs.MemFS) {
			copyTo(t, mine.fs, fs, 2, last)
			copyTo(t, mine.fs, fs, last, 2)
		}},
		{"a copy of another", false, func(t *testing.T, fs *vfs.MemFS) { copyTo(t, mine.fs, fs, 1, 2) }},
		{"an unused one", false, func(t *testing.T, fs *vfs.MemFS) {
			h := segmentHeader{mark: testMark, segment: last + 1, size: 256 << 10}
			p := fileBytes(t, fs, "segments/"+segmentName(2))
			clear(p)
			copy(p, h.page())
		}},
		{"the same with its name in its header", false, func(t *testing.T, fs *vfs.MemFS) {
			h := segmentHeader{mark: testMark, segment: 2, size: 256 << 10}
			p := fileBytes(t, fs, "segments/"+segmentName(2))
			copy(p, fileBytes(t, mine.fs, "segments/"+segmentName(3)))
			copy(p, h.page())
		}},
		{"zeros", false, func(t *testing.T, fs *vfs.MemFS) { clear(fileBytes(t, fs, "segments/"+segmentName(2))) }},
		{"another store's", true, func(t *testing.T, fs *vfs.MemFS) { copyTo(t, foreign.fs, fs, 2, 2) }},
		{"another store's with our mark in its header", false, func(t *testing.T, fs *vfs.MemFS) {
			h := segmentHeader{mark: testMark, segment: 2, size: 256 << 10}
			p := fileBytes(t, fs, "segments/"+segmentName(2))
			copy(p, fileBytes(t, foreign.fs, "segments/"+segmentName(2)))
			copy(p, h.page())
		}},
	} {
		for _, index := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s,index=%v", c.name, index), func(t *testing.T) {
				fs := mine.clone(t, index)
				c.spoil(t, fs)
				if c.refused {
					_, err := Open(testOptions(fs))
					wantKind(t, err, dfs.Invalid)
					return
				}
				how, err := mine.check(fs)
				if err != nil || how == "" {
					t.Errorf("noticed as %q: %v", how, err)
				}
				if again, err := mine.check(fs); err != nil || again != how {
					t.Errorf("%q at first, %q after a restart: %v", how, again, err)
				}
			})
		}
	}
}
