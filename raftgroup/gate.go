package raftgroup

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

// gate stands between a Pebble store and the disk. The first write or sync that
// fails shuts it, and nothing reaches the disk through it any more, whatever
// Pebble does next: what a failed sync left behind is never built upon.
//
// A shut gate feigns: it keeps in memory what is written, and says that all went
// well. Pebble would go on trying for ever inside its Open, and panic where it
// makes a log file or syncs a directory. So whoever asks for something durable
// looks at the host's failure afterwards: it is set before the first feigned
// answer.
type gate struct {
	dir    string
	once   sync.Once
	why    atomic.Pointer[error] // of the first failure; nil while the gate is open
	void   *vfs.MemFS            // what was made since
	failed func(error)           // told of the first failure; must not call Pebble
}

func newGate(dir string, failed func(error)) *gate {
	return &gate{dir: dir, void: vfs.NewMem(), failed: failed}
}

// fail shuts the gate. The text of an error of Pebble may be followed by a stack.
func (g *gate) fail(kind dfs.Kind, err error) {
	g.once.Do(func() {
		line, _, _ := strings.Cut(err.Error(), "\n")
		if vfs.IsNoSpaceError(err) {
			kind = dfs.NoSpace
		}
		why := error(&dfs.Error{Kind: kind, Op: "raft store", Object: g.dir, Text: line})
		g.why.Store(&why)
		g.failed(why)
	})
}

// listener tells the gate of what fails in the background, and of damage.
func (g *gate) listener() *pebble.EventListener {
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			// A snapshot that is installed cancels a flush that is in its way.
			// Pebble does it again.
			if !errors.Is(err, pebble.ErrCancelledCompaction) {
				g.fail(kindOfFailure(err), err)
			}
		},
		DataCorruption: func(i pebble.DataCorruptionInfo) { g.fail(dfs.Corrupt, fmt.Errorf("%v", i)) },
	}
}

func kindOfFailure(err error) dfs.Kind {
	if pebble.IsCorruptionError(err) {
		return dfs.Corrupt
	}
	return dfs.Other
}

// failure returns why the gate is shut, nil while it is open.
func (g *gate) failure() error {
	if p := g.why.Load(); p != nil {
		return *p
	}
	return nil
}

// result shuts the gate when a write or sync failed.
func (g *gate) result(err error) {
	if err != nil {
		g.fail(dfs.Other, err)
	}
}

// do carries a request out while the gate is open.
func (g *gate) do(what func() error) {
	if g.failure() == nil {
		g.result(what())
	}
}

// gateFS is the file system that Pebble is given.
type gateFS struct {
	vfs.FS
	g *gate
}

// file makes a file, in memory once the gate is shut.
func (f gateFS) file(name string, c vfs.DiskWriteCategory, open func() (vfs.File, error)) (vfs.File, error) {
	if f.g.failure() == nil {
		file, err := open()
		if err == nil {
			return gateFile{file, f.g}, nil
		}
		f.g.result(err)
	}
	if err := f.g.void.MkdirAll(f.PathDir(name), 0o755); err != nil {
		return nil, err
	}
	return f.g.void.Create(name, c)
}

func (f gateFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.file(name, c, func() (vfs.File, error) { return f.FS.Create(name, c) })
}

func (f gateFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.file(name, c, func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, opts...) })
}

func (f gateFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.file(newname, c, func() (vfs.File, error) { return f.FS.ReuseForWrite(oldname, newname, c) })
}

func (f gateFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if f.g.failure() != nil {
		if file, err := f.g.void.Open(name, opts...); err == nil {
			return file, nil
		}
	}
	return f.FS.Open(name, opts...)
}

func (f gateFS) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return gateDir{d, f.g}, nil
}

func (f gateFS) Link(oldname, newname string) error {
	f.g.do(func() error { return f.FS.Link(oldname, newname) })
	return nil
}

func (f gateFS) Rename(oldname, newname string) error {
	f.g.do(func() error { return f.FS.Rename(oldname, newname) })
	return nil
}

func (f gateFS) MkdirAll(dir string, perm iofs.FileMode) error {
	f.g.do(func() error { return f.FS.MkdirAll(dir, perm) })
	return nil
}

// Remove and RemoveAll are no failures of the disk when they fail: Pebble removes
// what may be gone already.
func (f gateFS) Remove(name string) error {
	if f.g.failure() != nil {
		return nil
	}
	return f.FS.Remove(name)
}

func (f gateFS) RemoveAll(name string) error {
	if f.g.failure() != nil {
		return nil
	}
	return f.FS.RemoveAll(name)
}

func (f gateFS) Lock(name string) (io.Closer, error) { return f.FS.Lock(name) }

func (f gateFS) Unwrap() vfs.FS { return f.FS }

type gateFile struct {
	vfs.File
	g *gate
}

func (f gateFile) Write(p []byte) (int, error) {
	f.g.do(func() error { _, err := f.File.Write(p); return err })
	return len(p), nil
}

func (f gateFile) WriteAt(p []byte, off int64) (int, error) {
	f.g.do(func() error { _, err := f.File.WriteAt(p, off); return err })
	return len(p), nil
}

// zeros is what a file is filled with, piece by piece.
var zeros [1 << 20]byte

// Preallocate fills the range with zeros where the file does not reach yet. Pebble
// asks for it at the beginning of a write-ahead log: a sync of bytes that are there
// already writes them and no more, while one of bytes that are merely reserved
// has to tell the file system too that they are written now. A log that is used
// again is as long already. A disk without the space is no failure yet: the log
// may need less.
func (f gateFile) Preallocate(off, length int64) error {
	f.g.do(func() error {
		info, err := f.File.Stat()
		if err != nil {
			return err
		}
		for at, end := max(off, info.Size()), off+length; at < end && err == nil; at += int64(len(zeros)) {
			_, err = f.File.WriteAt(zeros[:min(int64(len(zeros)), end-at)], at)
		}
		if vfs.IsNoSpaceError(err) {
			return nil
		}
		return err
	})
	return nil
}

func (f gateFile) Sync() error {
	f.g.do(f.File.Sync)
	return nil
}

func (f gateFile) SyncData() error {
	f.g.do(f.File.SyncData)
	return nil
}

func (f gateFile) SyncTo(length int64) (full bool, err error) {
	f.g.do(func() (err error) { full, err = f.File.SyncTo(length); return err })
	return full, nil
}

type gateDir struct {
	vfs.File
	g *gate
}

func (d gateDir) Sync() error {
	d.g.do(d.File.Sync)
	return nil
}
