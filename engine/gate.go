package engine

import (
	"fmt"
	"io"
	iofs "io/fs"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// gatePause is how long a new file is held back by a gate that is shut, and on a
// full disk. Pebble tries a failed flush again at once and for ever; this makes
// that one try a second.
const gatePause = time.Second

// gate stands between Pebble and the disk. After the first failure it is shut,
// and nothing more reaches the disk through it, whatever Pebble does next:
// what a failed sync left behind is never built upon. Reads go on.
//
// That is also what makes Pebble's fatal calls harmless. Its Logger.Fatalf is
// meant to end the process; here it shuts the gate and returns, and the paths
// behind it either return the error to their caller or go on in memory only.
//
// A full disk is no failure for a table: Pebble throws what it has of it away,
// keeps the rows in memory and tries again. The gate stays open and says that it
// is starved, so that nothing is put in front of it until a table was written.
type gate struct {
	once    sync.Once
	shut    chan struct{} // closed by the first failure
	cause   error         // of it; written before shut is closed
	serving atomic.Bool   // the store is open: until then a full disk is a failure, since recovery cannot wait
	starved atomic.Bool   // there was no room for the last table
	hungry  chan struct{} // a token whenever there is no room for a table
	flushed chan struct{} // a token whenever a flush or compaction has ended
	opened  atomic.Bool   // Pebble is open
	closed  chan struct{} // closed when the store closes, to end pauses
	failed  func(error)   // told of the first failure; must not block or call Pebble
}

func newGate(failed func(error)) *gate {
	return &gate{shut: make(chan struct{}), hungry: make(chan struct{}, 1), flushed: make(chan struct{}, 1), closed: make(chan struct{}), failed: failed}
}

func (g *gate) fail(err error) {
	g.once.Do(func() {
		g.cause = err
		close(g.shut)
		g.failed(err)
	})
}

// check returns an error when the gate is shut.
func (g *gate) check() error {
	select {
	case <-g.shut:
		return &dfs.Error{Kind: dfs.Unavailable, Op: "write index", Text: "the store has failed", Err: g.cause}
	default:
		return nil
	}
}

// discards reports whether what Pebble writes is thrown away, and it is told that
// it was written. While Pebble opens nothing can close it, and it repeats a flush
// that failed without end: so it sees no failure, and the gate is looked at when it
// is open. On the disk lies what a crash at the first failure would have left.
func (g *gate) discards() bool { return !g.opened.Load() && g.check() != nil }

// admit returns what a change of the disk comes to when it must not be tried.
func (g *gate) admit() (try bool, err error) {
	err = g.check()
	if g.discards() {
		return false, nil
	}
	return err == nil, err
}

// nowhere is a file for what is thrown away.
func nowhere() (vfs.File, error) {
	return vfs.NewMem().Create("nowhere", vfs.WriteCategoryUnspecified)
}

// result shuts the gate when a write or sync failed.
func (g *gate) result(err error) error {
	if err == nil {
		return nil
	}
	g.fail(err)
	if g.discards() {
		return nil
	}
	return err
}

// noRoom reports whether an error says that the disk is full, and that it may
// be waited for.
func (g *gate) noRoom(err error) bool { return g.serving.Load() && vfs.IsNoSpaceError(err) }

// table is result for a table.
func (g *gate) table(err error) error {
	if err != nil && g.noRoom(err) {
		g.starved.Store(true)
		signal(g.hungry)
		return err
	}
	return g.result(err)
}

// written notes that a flush or compaction has ended.
func (g *gate) written(err error) {
	if err == nil {
		g.starved.Store(false)
	}
}

// pause holds Pebble back for a while before it tries again.
func (g *gate) pause() {
	select {
	case <-g.closed:
	case <-time.After(gatePause):
	}
}

// gateScheduler starts no compaction behind a gate that is shut: one that cannot
// read its tables fails at once, and Pebble would begin it again without end.
type gateScheduler struct {
	pebble.CompactionScheduler
	g *gate
}

// Register implements pebble.CompactionScheduler.
func (s gateScheduler) Register(goroutines int, db pebble.DBForCompaction) {
	s.CompactionScheduler.Register(goroutines, gateDB{db, s.g})
}

type gateDB struct {
	pebble.DBForCompaction
	g *gate
}

// GetAllowedWithoutPermission implements pebble.DBForCompaction: it says how
// many compactions may run.
func (d gateDB) GetAllowedWithoutPermission() int {
	if d.g.check() != nil {
		return 0
	}
	return d.DBForCompaction.GetAllowedWithoutPermission()
}

// gateFS is the file system that Pebble is given.
type gateFS struct {
	vfs.FS
	g *gate
}

func (f gateFS) open(file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		if err = f.g.result(err); err == nil {
			return nowhere()
		}
		return nil, err
	}
	return gateFile{file, f.g, f.g.result}, nil
}

func (f gateFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if f.g.discards() {
		return nowhere()
	}
	if err := f.g.check(); err != nil {
		f.g.pause()
		return nil, err
	}
	if strings.HasPrefix(f.FS.PathBase(name), manifestPrefix) {
		file, err := f.open(f.FS.Create(name, c))
		if err != nil {
			return nil, err
		}
		return gateManifest{file}, nil
	}
	if !strings.HasSuffix(name, tableSuffix) {
		return f.open(f.FS.Create(name, c))
	}
	if f.g.starved.Load() {
		f.g.pause()
	}
	file, err := f.FS.Create(name, c)
	if err != nil {
		if err = f.g.table(err); err == nil {
			return nowhere()
		}
		return nil, err
	}
	return gateFile{file, f.g, f.g.table}, nil
}

const (
	tableSuffix    = ".sst"
	manifestPrefix = "MANIFEST-"
)

func (f gateFS) Link(oldname, newname string) error {
	if try, err := f.g.admit(); !try {
		return err
	}
	return f.g.result(f.FS.Link(oldname, newname))
}

func (f gateFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if f.g.discards() {
		return nowhere()
	}
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
	if try, err := f.g.admit(); !try {
		return err
	}
	return f.FS.Remove(name)
}

func (f gateFS) RemoveAll(name string) error {
	if try, err := f.g.admit(); !try {
		return err
	}
	return f.FS.RemoveAll(name)
}

func (f gateFS) Rename(oldname, newname string) error {
	if try, err := f.g.admit(); !try {
		return err
	}
	return f.g.result(f.FS.Rename(oldname, newname))
}

func (f gateFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if f.g.discards() {
		return nowhere()
	}
	if err := f.g.check(); err != nil {
		return nil, err
	}
	return f.open(f.FS.ReuseForWrite(oldname, newname, c))
}

func (f gateFS) MkdirAll(dir string, perm iofs.FileMode) error {
	if try, err := f.g.admit(); !try {
		return err
	}
	return f.g.result(f.FS.MkdirAll(dir, perm))
}

func (f gateFS) Lock(name string) (io.Closer, error) { return f.FS.Lock(name) }

func (f gateFS) Unwrap() vfs.FS { return f.FS }

type gateFile struct {
	vfs.File
	g      *gate
	result func(error) error // of the gate
}

func (f gateFile) Write(p []byte) (int, error) {
	try, err := f.g.admit()
	if try {
		var n int
		if n, err = f.File.Write(p); f.result(err) != nil {
			return n, err
		}
	} else if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f gateFile) WriteAt(p []byte, off int64) (int, error) {
	try, err := f.g.admit()
	if try {
		var n int
		if n, err = f.File.WriteAt(p, off); f.result(err) != nil {
			return n, err
		}
	} else if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f gateFile) Sync() error {
	if try, err := f.g.admit(); !try {
		return err
	}
	return f.result(f.File.Sync())
}

func (f gateFile) SyncData() error {
	if try, err := f.g.admit(); !try {
		return err
	}
	return f.result(f.File.SyncData())
}

func (f gateFile) SyncTo(length int64) (bool, error) {
	if try, err := f.g.admit(); !try {
		return err == nil, err
	}
	full, err := f.File.SyncTo(length)
	return full, f.result(err)
}

// gateManifest is a manifest. When it cannot be written Pebble repeats the flush
// at once and for ever, without anything on its way that could be held back: it
// is told that it was written. The gate is shut then. What Pebble has in memory
// stays right, since no table is made or removed any more.
type gateManifest struct{ vfs.File }

func (m gateManifest) Write(p []byte) (int, error) {
	_, _ = m.File.Write(p)
	return len(p), nil
}

func (m gateManifest) WriteAt(p []byte, off int64) (int, error) {
	_, _ = m.File.WriteAt(p, off)
	return len(p), nil
}

func (m gateManifest) Sync() error {
	_ = m.File.Sync()
	return nil
}

func (m gateManifest) SyncData() error {
	_ = m.File.SyncData()
	return nil
}

func (m gateManifest) SyncTo(length int64) (bool, error) {
	full, err := m.File.SyncTo(length)
	return full || err != nil, nil
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
		BackgroundError: func(err error) {
			if !g.noRoom(err) {
				g.fail(err)
			}
		},
		FlushEnd: func(info pebble.FlushInfo) {
			g.written(info.Err)
			signal(g.flushed)
		},
		CompactionEnd: func(info pebble.CompactionInfo) {
			g.written(info.Err)
			signal(g.flushed)
		},
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			err := dfs.Errorf(dfs.Corrupt, "index", "%s", info)
			corrupt(err)
			g.fail(err)
		},
	}
}
