package engine

import (
	"strings"
	"sync"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// cachingFS is a disk with a page cache over its segments: what was written is
// read from memory until it is dropped, whatever became of it below.
type cachingFS struct {
	*vfs.MemFS

	// mu guards what follows.
	mu    sync.Mutex
	spoil func(p []byte, off int64) bool // what the disk makes of a write: it may change p
	over  map[string][]cached            // by file: what memory has and the disk has not
	drops int
}

// cached is what memory has at a place.
type cached struct {
	off int64
	p   []byte
}

func (fs *cachingFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.MemFS.OpenReadWrite(name, c, o...)
	if err != nil || !strings.HasSuffix(name, segmentSuffix) {
		return f, err
	}
	return cachingFile{f, fs, name}, nil
}

type cachingFile struct {
	vfs.File
	fs   *cachingFS
	name string
}

func (f cachingFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	below := append([]byte(nil), p...)
	if f.fs.spoil != nil && f.fs.spoil(below, off) {
		f.fs.over[f.name] = append(f.fs.over[f.name], cached{off, append([]byte(nil), p...)})
	}
	return f.File.WriteAt(below, off)
}

func (f cachingFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n, err := f.File.ReadAt(p, off)
	for _, x := range f.fs.over[f.name] {
		from, to := max(off, x.off), min(off+int64(n), x.off+int64(len(x.p)))
		if from < to {
			copy(p[from-off:to-off], x.p[from-x.off:])
		}
	}
	return n, err
}

func (f cachingFile) DropCache(off, length int64) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.fs.drops++
	var left []cached
	for _, x := range f.fs.over[f.name] {
		if x.off+int64(len(x.p)) <= off || off+length <= x.off {
			left = append(left, x)
		}
	}
	f.fs.over[f.name] = left
}

// TestReadBackPastTheCache: copies and repairs are compared with what the disk
// has, not with what memory has of them: one that the disk lost, unlike memory, is
// found before it takes its original's place.
func TestReadBackPastTheCache(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := &cachingFS{MemFS: vfs.NewMem(), over: map[string][]cached{}}
		s := openPGs(t, testOptions(fs), 1)
		fs.spoil = func(p []byte, off int64) bool {
			if len(p) < 5*pageSize || stream(p[5]) != movedStream {
				return false
			}
			p[4*pageSize+9] ^= 1
			return true
		}
		fillAndThin(t, s, 120, 4)
		time.Sleep(5 * time.Second)
		if st := s.Stats(); fs.drops == 0 || st.State != StateFailed || dfs.KindOf(s.failure()) != dfs.Unavailable || !strings.Contains(s.failure().Error(), "does not hold what was written") {
			t.Errorf("%d drops, %v", fs.drops, s.failure())
		}
		wantKind(t, s.Close(), dfs.Unavailable)

		fs.spoil = nil
		s = openPGs(t, testOptions(fs), 1)
		wantThinned(t, s, 120, 4)
		w, err := s.index.get(blockKey(blockID(4), 0))
		if err != nil {
			t.Fatal(err)
		}
		flip(t, fs.MemFS, dir+segmentsName+"/"+segmentName(w.segment), w.payloadAt()+17)
		_, err = read(t, s, 4)
		wantKind(t, err, dfs.Corrupt)
		fs.spoil = func(p []byte, off int64) bool {
			if len(p) < 2*pageSize || stream(p[5]) != logStream {
				return false
			}
			p[pageSize+9] ^= 1
			return true
		}
		drops := fs.drops
		wantKind(t, s.Put(t.Context(), putRequest(4, 10_000, 1)), dfs.Unavailable)
		if fs.drops == drops {
			t.Error("a repair was read back from memory")
		}
		wantKind(t, s.Close(), dfs.Unavailable)
	})
}
