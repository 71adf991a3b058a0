package engine

import (
	"fmt"
	"io"
	iofs "io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// gatePause is how long a shut gate holds back a new file. Pebble tries a
// failed flush again at once and for ever; this makes that one try a second.
const gatePause = time.Second

// gate stands between Pebble and the disk. After the first failure it is shut,
// and nothing more reaches the disk through it, whatever Pebble does next:
// what a failed sync left behind is never built upon. Reads go on.
//
// That is also what makes Pebble's fatal calls harmless. Its Logger.Fatalf is
// meant to end the process; here it shuts the gate and returns, and the paths
// behind it either return the error to their caller or go on in memory only.
type gate struct {
	once   sync.Once
	shut   chan struct{} // closed by the first failure
	opened atomic.Bool   // Pebble is open: until then it retries nothing, and holds its mutex
	closed chan struct{} // closed when the store closes, to end pauses
	failed func(error)   // told of the first failure; must not block or call Pebble
}

func newGate(failed func(error)) *gate {
	return &gate{shut: make(chan struct{}), closed: make(chan struct{}), failed: failed}
}

func (g *gate) fail(err error) {
	g.once.Do(func() {
		close(g.shut)
		g.failed(err)
	})
}

// check returns an error when the gate is shut.
func (g *gate) check() error {
	select {
	case <-g.shut:
		return dfs.Errorf(dfs.Unavailable, "write index", "the store has failed")
	default:
		return nil
	}
}

// result shuts the gate when a write or sync failed.
func (g *gate) result(err error) error {
	if err != nil {
		g.fail(err)
	}
	return err
}

// gateFS is the file system that Pebble is given.
type gateFS struct {
	vfs.FS
	g *gate
}

func (f gateFS) open(file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, f.g.result(err)
	}
	return gateFile{file, f.g}, nil
}

func (f gateFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.g.check(); err != nil {
		if f.g.opened.Load() {
			select {
			case <-f.g.closed:
			case <-time.After(gatePause):
			}
		}
		return nil, err
	}
	return f.open(f.FS.Create(name, c))
}

func (f gateFS) Link(oldname, newname string) error {
	if err := f.g.check(); err != nil {
		return err
	}
	return f.g.result(f.FS.Link(oldname, newname))
}

func (f gateFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := f.g.check(); err != nil {
		return nil, err
	}
	return f.open(f.FS.OpenReadWrite(name, c, opts...))
}

func (f gateFS) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return gateDir{d, f.g}, nil
}

// Remove and RemoveAll are not failures of the disk when they fail: Pebble
// removes what may be gone already.
func (f gateFS) Remove(name string) error {
	if err := f.g.check(); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

func (f gateFS) RemoveAll(name string) error {
	if err := f.g.check(); err != nil {
		return err
	}
	return f.FS.RemoveAll(name)
}

func (f gateFS) Rename(oldname, newname string) error {
	if err := f.g.check(); err != nil {
		return err
	}
	return f.g.result(f.FS.Rename(oldname, newname))
}

func (f gateFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.g.check(); err != nil {
		return nil, err
	}
	return f.open(f.FS.ReuseForWrite(oldname, newname, c))
}

func (f gateFS) MkdirAll(dir string, perm iofs.FileMode) error {
	if err := f.g.check(); err != nil {
		return err
	}
	return f.g.result(f.FS.MkdirAll(dir, perm))
}

func (f gateFS) Lock(name string) (io.Closer, error) { return f.FS.Lock(name) }

func (f gateFS) Unwrap() vfs.FS { return f.FS }

type gateFile struct {
	vfs.File
	g *gate
}

func (f gateFile) Write(p []byte) (int, error) {
	if err := f.g.check(); err != nil {
		return 0, err
	}
	n, err := f.File.Write(p)
	return n, f.g.result(err)
}

func (f gateFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.g.check(); err != nil {
		return 0, err
	}
	n, err := f.File.WriteAt(p, off)
	return n, f.g.result(err)
}

func (f gateFile) Sync() error {
	if err := f.g.check(); err != nil {
		return err
	}
	return f.g.result(f.File.Sync())
}

func (f gateFile) SyncData() error {
	if err := f.g.check(); err != nil {
		return err
	}
	return f.g.result(f.File.SyncData())
}

func (f gateFile) SyncTo(length int64) (bool, error) {
	if err := f.g.check(); err != nil {
		return false, err
	}
	full, err := f.File.SyncTo(length)
	return full, f.g.result(err)
}

// gateDir is a directory. Pebble panics, and so ends the process, when it
// cannot sync one: it is told that it could. The gate is shut then, and whoever
// asks for something durable looks at it afterwards.
type gateDir struct {
	vfs.File
	g *gate
}

func (d gateDir) Sync() error {
	if d.g.check() == nil {
		_ = d.g.result(d.File.Sync())
	}
	return nil
}

// pebbleLog turns Pebble's log lines into ours and its fatal calls into a
// failure of this store alone.
type pebbleLog struct {
	log *slog.Logger
	g   *gate
}

func (l pebbleLog) Infof(format string, args ...any) {
	l.log.Debug("index: " + fmt.Sprintf(format, args...))
}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.log.Warn("index: " + fmt.Sprintf(format, args...))
}

func (l pebbleLog) Fatalf(format string, args ...any) {
	l.g.fail(dfs.Errorf(dfs.Internal, "index", format, args...))
}

// listener reports what Pebble finds damaged or cannot write.
func (g *gate) listener(corrupt func(error)) *pebble.EventListener {
	return &pebble.EventListener{
		BackgroundError: g.fail,
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			err := dfs.Errorf(dfs.Corrupt, "index", "%s", info)
			corrupt(err)
			g.fail(err)
		},
	}
}
