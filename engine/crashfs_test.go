package engine

import (
	"math/rand/v2"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// crashFS takes a crash clone before the n-th change of the disk from now.
type crashFS struct {
	*vfs.MemFS

	// mu guards what follows.
	mu    sync.Mutex
	left  int // changes until the crash; 0: none is coming
	cfg   vfs.CrashCloneCfg
	fired func() // called with the clone taken; nothing is changed before it returns
	clone *vfs.MemFS
}

func (f *crashFS) arm(n, unsynced int, rng *rand.Rand, fired func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left, f.fired, f.clone = n, fired, nil
	f.cfg = vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rng}
}

func (f *crashFS) tick() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left == 0 {
		return
	}
	if f.left--; f.left == 0 {
		f.fired()
		f.clone = f.CrashClone(f.cfg)
	}
}

// crashed returns the clone, nil while none was taken.
func (f *crashFS) crashed() *vfs.MemFS {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.clone
}

func (f *crashFS) wrap(file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return crashFile{file, f}, nil
}

func (f *crashFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f.tick()
	return f.wrap(f.MemFS.Create(name, c))
}

func (f *crashFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return f.wrap(f.MemFS.OpenReadWrite(name, c, o...))
}

func (f *crashFS) OpenDir(name string) (vfs.File, error) { return f.wrap(f.MemFS.OpenDir(name)) }

func (f *crashFS) Rename(a, b string) error {
	f.tick()
	return f.MemFS.Rename(a, b)
}

func (f *crashFS) Remove(name string) error {
	f.tick()
	return f.MemFS.Remove(name)
}

type crashFile struct {
	vfs.File
	fs *crashFS
}

func (f crashFile) Write(p []byte) (int, error) {
	f.fs.tick()
	return f.File.Write(p)
}

func (f crashFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.tick()
	return f.File.WriteAt(p, off)
}

func (f crashFile) Sync() error {
	f.fs.tick()
	return f.File.Sync()
}

func (f crashFile) SyncData() error {
	f.fs.tick()
	return f.File.SyncData()
}
