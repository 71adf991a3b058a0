package engine

import (
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// crashFS takes a crash clone before the n-th change of the disk from now, or
// refuses that change and all later ones, as if the process had been killed:
// what it wrote before is in the page cache, synced or not. The index's files
// are not refused: a Pebble that cannot be opened leaves a goroutine behind.
type crashFS struct {
	*vfs.MemFS

	// mu guards what follows.
	mu    sync.Mutex
	left  int // changes until the crash; 0: none is coming
	cfg   vfs.CrashCloneCfg
	fired func() // called with the clone taken; nothing is changed before it returns
	clone *vfs.MemFS
	kill  int // changes until the process dies; 0: it does not. -1: it is dead
}

var errKilled = errors.New("the process is dead")

func (f *crashFS) armKill(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kill = n
}

func (f *crashFS) isKilled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kill < 0
}

func (f *crashFS) arm(n, unsynced int, rng *rand.Rand, fired func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left, f.fired, f.clone = n, fired, nil
	f.cfg = vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rng}
}

func (f *crashFS) tick(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	inIndex := strings.Contains(name, "/"+indexName)
	if f.kill > 0 && !inIndex {
		if f.kill--; f.kill == 0 {
			f.kill = -1
		}
	}
	if f.kill < 0 && !inIndex {
		return errKilled
	}
	if f.left == 0 {
		return nil
	}
	if f.left--; f.left == 0 {
		f.fired()
		f.clone = f.CrashClone(f.cfg)
	}
	return nil
}

// crashed returns the clone, nil while none was taken.
func (f *crashFS) crashed() *vfs.MemFS {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.clone
}

func (f *crashFS) wrap(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return crashFile{file, f, name}, nil
}

func (f *crashFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.tick(name); err != nil {
		return nil, err
	}
	file, err := f.MemFS.Create(name, c)
	return f.wrap(name, file, err)
}

func (f *crashFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.MemFS.OpenReadWrite(name, c, o...)
	return f.wrap(name, file, err)
}

func (f *crashFS) OpenDir(name string) (vfs.File, error) {
	file, err := f.MemFS.OpenDir(name)
	return f.wrap(name, file, err)
}

func (f *crashFS) MkdirAll(name string, perm os.FileMode) error {
	if err := f.tick(name); err != nil {
		return err
	}
	return f.MemFS.MkdirAll(name, perm)
}

func (f *crashFS) Rename(a, b string) error {
	if err := f.tick(b); err != nil {
		return err
	}
	return f.MemFS.Rename(a, b)
}

func (f *crashFS) Remove(name string) error {
	if err := f.tick(name); err != nil {
		return err
	}
	return f.MemFS.Remove(name)
}

type crashFile struct {
	vfs.File
	fs   *crashFS
	name string
}

func (f crashFile) Write(p []byte) (int, error) {
	if err := f.fs.tick(f.name); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f crashFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.tick(f.name); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f crashFile) Sync() error {
	if err := f.fs.tick(f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f crashFile) SyncData() error {
	if err := f.fs.tick(f.name); err != nil {
		return err
	}
	return f.File.SyncData()
}
