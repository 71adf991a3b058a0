package engine

import (
	"cmp"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// faultFS fails changes of the files whose path contains a word, and counts
// the changes that it let through after the first failure.
type faultFS struct {
	*vfs.MemFS
	word  string
	op    string // open, write, sync or read
	err   error  // what a hit returns
	armed atomic.Bool
	hits  atomic.Int64
}

var errFault = errors.New("injected fault")

func (f *faultFS) hit(op, name string) error {
	if f.armed.Load() && f.op == op && strings.Contains(name, f.word) {
		f.hits.Add(1)
		return f.err
	}
	return nil
}

func (f *faultFS) wrap(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return faultFile{file, f, name}, nil
}

func (f *faultFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.MemFS.Create(name, c)
	return f.wrap(name, file, err)
}

func (f *faultFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	if err := f.hit("open", name); err != nil {
		return nil, err
	}
	file, err := f.MemFS.OpenReadWrite(name, c, o...)
	return f.wrap(name, file, err)
}

func (f *faultFS) OpenDir(name string) (vfs.File, error) {
	file, err := f.MemFS.OpenDir(name)
	return f.wrap(name, file, err)
}

type faultFile struct {
	vfs.File
	fs   *faultFS
	name string
}

func (f faultFile) Write(p []byte) (int, error) {
	if err := cmp.Or(f.fs.hit("write", f.name), f.fs.hit("fill", f.name)); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f faultFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.hit("write", f.name); err != nil {
		return len(p) / 2, err
	}
	return f.File.WriteAt(p, off)
}

func (f faultFile) Sync() error {
	if err := cmp.Or(f.fs.hit("sync", f.name), f.fs.hit("dir sync", f.name)); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f faultFile) SyncData() error {
	if err := f.fs.hit("sync", f.name); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f faultFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fs.hit("read", f.name); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

// TestFailedWriteFailsTheStore: at once, for good, and for writes only.
func TestFailedWriteFailsTheStore(t *testing.T) {
	for _, c := range []struct{ word, op string }{
		{segmentSuffix, "write"}, {segmentSuffix, "sync"}, {epochName, "write"}, {epochName, "sync"},
		{storeName, "sync"}, {markName, "sync"}, {".sst", "write"}, {".sst", "sync"}, {"MANIFEST", "write"}, {"MANIFEST", "sync"}, {indexName, "dir sync"},
	} {
		t.Run(c.word+" "+c.op, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				fs := &faultFS{MemFS: vfs.NewMem(), word: c.word, op: c.op, err: errFault}
				s := openPGs(t, testOptions(fs), 1)
				for n := range uint64(10) {
					mustPut(t, s, n, 3000, 1)
				}
				time.Sleep(time.Second) // two segments are ready
				fs.armed.Store(true)
				switch c.word {
				case epochName:
					wantKind(t, s.SetEpochs(9, nil), dfs.Unavailable)
				case storeName:
					wantKind(t, s.SetIdentity(dfs.ClusterID{1}, 1, 1), dfs.Unavailable)
				case ".sst", "MANIFEST", indexName:
					if s.checkpoint() == nil {
						t.Error("the checkpoint succeeded")
					}
				default:
					_ = s.Put(t.Context(), putRequest(20, 10, 1))
				}
				time.Sleep(time.Second)
				if st := s.Stats(); st.State != StateFailed || st.Err == nil {
					t.Fatalf("state %s", st.State)
				}
				hits := fs.hits.Load()
				wantKind(t, s.Put(t.Context(), putRequest(21, 10, 1)), dfs.Unavailable)
				wantKind(t, s.Delete(t.Context(), DeleteRequest{ID: blockID(1), Epoch: 1}), dfs.Unavailable)
				wantKind(t, s.SetEpochs(10, nil), dfs.Unavailable)
				time.Sleep(time.Minute)
				if fs.hits.Load() != hits {
					t.Errorf("%d more tries after the failure", fs.hits.Load()-hits)
				}
				for n := range uint64(10) {
					wantBlock(t, s, n, 3000)
				}
				wantKind(t, s.Close(), dfs.Unavailable)
				fs.armed.Store(false)
				s = openPGs(t, testOptions(fs), max(1, s.MapEpoch()))
				for n := range uint64(10) {
					wantBlock(t, s, n, 3000)
				}
				mustPut(t, s, 30, 10, max(1, s.MapEpoch()))
				mustClose(t, s)
			})
		})
	}
}

// TestFatalCallsOfPebble fail the store and nothing else.
func TestFatalCallsOfPebble(t *testing.T) {
	var failed, corrupt error
	g := newGate(func(err error) { failed = err })
	pebbleLog{testOptions(nil).logger(), g}.Fatalf("cannot %s", "go on")
	if failed == nil || g.check() == nil {
		t.Error("a fatal call did not shut the gate")
	}
	g = newGate(func(err error) { failed = err })
	g.listener(func(err error) { corrupt = err }).DataCorruption(pebble.DataCorruptionInfo{Path: "x", Details: errFault})
	if corrupt == nil || g.check() == nil {
		t.Error("corruption did not shut the gate")
	}
}

func (o Options) logger() *slog.Logger { o.setDefaults(); return o.Logger }

// TestFailedReadsOfTheIndex fail the store, and its index is left in peace then:
// a compaction that cannot read its tables is not begun again and again.
func TestFailedReadsOfTheIndex(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const most = 2000
		var armed atomic.Bool
		var hits atomic.Int64
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			reads := op.Kind == errorfs.OpFileReadAt || op.Kind == errorfs.OpOpen
			if armed.Load() && reads && strings.HasSuffix(op.Path, tableSuffix) && hits.Add(1) < most {
				return errFault
			}
			return nil
		}))
		o := testOptions(fs)
		o.CacheSize = 1
		s := openPGs(t, o, 1)
		for n := range uint64(50) {
			mustPut(t, s, n, 100, 1)
		}
		armed.Store(true)
		for n := range dfs.Epoch(20) { // rows that nothing is read for; each becomes a table
			_ = s.SetTombstoneFloor(1, n+1)
			_ = s.checkpoint()
		}
		time.Sleep(time.Minute)
		if st := s.Stats(); st.State != StateFailed {
			t.Errorf("state %s", st.State)
		}
		if n := hits.Load(); n == 0 || n >= most {
			t.Errorf("%d reads were tried", n)
		}
		armed.Store(false)
		wantKind(t, s.Close(), dfs.Unavailable)
		s = mustOpen(t, o)
		for n := range uint64(50) {
			wantBlock(t, s, n, 100)
		}
		mustClose(t, s)
	})
}

// TestCompactionOfWhatCannotBeRead: a segment of which nothing can be read, not
// even what there is, is left alone for a while and not tried again at once.
func TestCompactionOfWhatCannotBeRead(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const most = 20_000
		var armed atomic.Bool
		var hits atomic.Int64
		o := testOptions(errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if armed.Load() && op.Kind == errorfs.OpFileReadAt && strings.HasSuffix(op.Path, segmentName(1)) && hits.Add(1) < most {
				return errFault
			}
			return nil
		})))
		s := openPGs(t, o, 1)
		for n := range uint64(20) {
			mustPut(t, s, n, 30_000, 1)
		}
		armed.Store(true)
		for n := range uint64(6) { // of the seven in segment 1
			mustDelete(t, s, n, 1)
		}
		time.Sleep(30 * time.Second)
		if n := hits.Load(); n == 0 || n >= most {
			t.Errorf("%d reads were tried", n)
		}
		armed.Store(false)
		time.Sleep(stuckPause + time.Minute)
		if s.Stats().SegmentsGiven == 0 {
			t.Error("it is never compacted")
		}
		for n := range uint64(14) {
			wantBlock(t, s, 6+n, 30_000)
		}
		mustClose(t, s)
	})
}

// TestFailedManifest: a flush of nothing, which makes no table, is not repeated
// without end when its line in the manifest cannot be written.
func TestFailedManifest(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := &faultFS{MemFS: vfs.NewMem(), word: manifestPrefix, op: "write", err: errFault}
		s := openPGs(t, testOptions(fs), 1)
		mustPut(t, s, 1, 100, 1)
		if err := s.checkpoint(); err != nil {
			t.Fatal(err)
		}
		fs.armed.Store(true)
		wantKind(t, s.checkpoint(), dfs.Unavailable)
		time.Sleep(time.Minute) // of virtual time, which stands still while something is repeated
		if n := fs.hits.Load(); n == 0 || n > 100 {
			t.Errorf("%d writes of the manifest", n)
		}
		wantBlock(t, s, 1, 100)
		wantKind(t, s.Close(), dfs.Unavailable)
		fs.armed.Store(false)
		s = mustOpen(t, testOptions(fs))
		wantBlock(t, s, 1, 100)
		mustClose(t, s)
	})
}

// TestFailedReadsAreNamed: a sector that cannot be read is a damaged block,
// and the store works on.
func TestFailedReadsAreNamed(t *testing.T) {
	fs := &faultFS{MemFS: vfs.NewMem(), word: segmentSuffix, op: "read", err: errFault}
	s := openPGs(t, testOptions(fs), 1)
	defer mustClose(t, s)
	mustPut(t, s, 1, 3000, 1)
	fs.armed.Store(true)
	_, err := read(t, s, 1)
	wantKind(t, err, dfs.Corrupt)
	fs.armed.Store(false)
	if list := s.Damage(); len(list) != 1 || list[0].ID != blockID(1) {
		t.Errorf("%+v", list)
	}
	mustPut(t, s, 1, 3000, 1) // the same bytes once more mend it
	if len(s.Damage()) != 0 || s.Stats().Puts != 2 {
		t.Errorf("%+v", s.Damage())
	}
	wantBlock(t, s, 1, 3000)
}

// TestTornTailIsNotGuessed: when the end of the log cannot be read, nobody
// knows whether a promised record is there, and the store does not open.
func TestTornTailIsNotGuessed(t *testing.T) {
	fs := &faultFS{MemFS: vfs.NewMem(), word: segmentName(1), op: "read", err: errFault}
	s := openPGs(t, testOptions(fs), 1)
	mustPut(t, s, 1, 3000, 1)
	mustClose(t, s)
	fs.armed.Store(true)
	if _, err := Open(testOptions(fs)); err == nil {
		t.Fatal("opened")
	}
	fs.armed.Store(false)
	s = mustOpen(t, testOptions(fs))
	defer mustClose(t, s)
	wantBlock(t, s, 1, 3000)
	if s.DamagedUnnamed() {
		t.Error("a failed start left a verdict")
	}
}

// TestFullDisk: puts stop above the reserve, deletes go on, and puts do again
// once space is back.
func TestFullDisk(t *testing.T) {
	for _, how := range []string{"capacity", "file system", "no space error"} {
		t.Run(how, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				fs := &faultFS{MemFS: vfs.NewMem(), word: segmentSuffix, op: "fill", err: syscall.ENOSPC}
				o := testOptions(fs)
				o.ReserveBytes = 2 * uint64(o.SegmentSize)
				if how == "capacity" {
					o.Capacity = 10 * uint64(o.SegmentSize)
				}
				s := openPGs(t, o, 1)
				var stored []uint64
				for n := range uint64(4000) {
					err := s.Put(t.Context(), putRequest(n, 10_000, 1))
					if err != nil {
						wantKind(t, err, dfs.NoSpace)
						break
					}
					stored = append(stored, n)
					switch {
					case len(stored) == 50 && how == "file system":
						fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: o.ReserveBytes + 100})
						time.Sleep(time.Second)
					case len(stored) == 50 && how == "no space error":
						time.Sleep(time.Second) // segments are ready; only filling more fails
						fs.armed.Store(true)
					}
				}
				if st := s.Stats(); st.State != StateReadOnly || st.Available != 0 || len(stored) < 50 || len(stored) > 3000 {
					t.Fatalf("%d stored, %+v", len(stored), st)
				}
				used := s.Stats().Used
				var wg sync.WaitGroup
				for _, n := range stored[:len(stored)-20] {
					wg.Go(func() { deleteInTime(t, s, n) })
				}
				wg.Wait()
				if how == "capacity" && used > o.Capacity-o.ReserveBytes+uint64(o.SegmentSize) {
					t.Errorf("%d bytes used of %d: the reserve is gone", used, o.Capacity)
				}
				time.Sleep(5 * time.Second) // the dead segments are given up
				fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 1 << 29})
				fs.armed.Store(false)
				time.Sleep(5 * time.Second)
				if st := s.Stats(); st.State != StateOK || st.SegmentsGiven == 0 || st.Available == 0 {
					t.Fatalf("%+v", st)
				}
				for n := range uint64(30) {
					mustPut(t, s, 5000+n, 10_000, 1)
				}
				for _, n := range stored[len(stored)-20:] {
					wantBlock(t, s, n, 10_000)
				}
				if err := checkStore(s); err != nil {
					t.Error(err)
				}
				mustClose(t, s)
			})
		})
	}
}

// deleteInTime deletes a block of a full store. A delete alone takes a page: when
// the segment that is kept for them is full, what they have freed is given back
// within seconds.
func deleteInTime(t testing.TB, s *Store, n uint64) {
	for range 20 {
		err := s.Delete(t.Context(), DeleteRequest{ID: blockID(n), Epoch: 1})
		if err == nil {
			return
		}
		wantKind(t, err, dfs.NoSpace)
		time.Sleep(3 * time.Second)
	}
	t.Errorf("block %d cannot be deleted", n)
}

// TestDeadSegments: space comes back, readers are waited for, tombstones are
// carried along, and an index made anew brings nothing back.
func TestDeadSegments(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := testOptions(fs)
		s := openPGs(t, o, 1)
		r, err := (*Read)(nil), error(nil)
		for round := range uint64(10) {
			for n := range uint64(20) {
				mustPut(t, s, round*100+n, 20_000, 1)
			}
			if round == 0 {
				if r, err = s.Get(t.Context(), blockID(0), 0, 0, 100); err != nil {
					t.Fatal(err)
				}
			}
			for n := range uint64(20) {
				mustDelete(t, s, round*100+n, 1)
			}
			time.Sleep(time.Second)
		}
		if st := s.Stats(); st.SegmentsGiven < 10 || st.Segments > 8 || st.Tombstones != 200 || st.Blocks != 0 {
			t.Errorf("%+v", st)
		}
		if len(r.Data) != 20_000 {
			t.Errorf("%d bytes", len(r.Data))
		}
		r.Release()
		if err := checkStore(s); err != nil {
			t.Error(err)
		}
		mustClose(t, s)
		if err := fs.RemoveAll(dir + indexName); err != nil {
			t.Fatal(err)
		}
		s = openPGs(t, o, 1)
		if st := s.Stats(); st.Tombstones != 200 || st.Blocks != 0 || s.DamagedUnnamed() {
			t.Errorf("after a rebuild: %+v", st)
		}
		wantKind(t, s.Put(t.Context(), putRequest(5, 20_000, 1)), dfs.Stale)
		mustClose(t, s)
	})
}

// TestManySegments: idle files are closed, and opened again for a read.
func TestManySegments(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openPGs(t, testOptions(vfs.NewMem()), 1)
		for n := range uint64(30) {
			mustPut(t, s, n, 60_000, 1)
		}
		for _, g := range *s.segs.byNumber.Load() {
			if _, err := g.closeFile(); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.segs.open.Load(); n > 1 {
			t.Errorf("%d files are open", n)
		}
		for n := range uint64(30) {
			wantBlock(t, s, n, 60_000)
		}
		mustClose(t, s)
	})
}
