package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

// storeFormat is what new stores are written in. Its write-ahead log tells a
// torn tail from rot better than older ones. An old store is upgraded when it
// is opened; a newer one is refused by Pebble.
const storeFormat = pebble.FormatValueSeparation

// maxMemTables is how many memtables a store has at a time: one takes writes while
// the other is flushed.
const maxMemTables = 2

// maxOpenFiles bounds the file descriptors of one store.
const maxOpenFiles = 500

// filterBits is what each key of the state store takes in the filters, which know
// of a key that is missing without a look into the table: one in a hundred of them
// is looked for in vain.
const filterBits = 10

// storeLogger is what Pebble tells about one store. Pebble takes Fatalf for the
// end of the process; here it is the end of this host only: the gate is shut
// before Fatalf returns, and nothing is acknowledged after it.
type storeLogger struct {
	log *slog.Logger
	g   *gate
}

func (l *storeLogger) Infof(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug(fmt.Sprintf(format, args...))
	}
}

func (l *storeLogger) Errorf(format string, args ...any) {
	l.log.Warn(fmt.Sprintf(format, args...))
}

func (l *storeLogger) Fatalf(format string, args ...any) {
	kind := dfs.Corrupt
	for _, a := range args { // most often what a write or sync ended with
		if err, ok := a.(error); ok && vfs.IsNoSpaceError(err) {
			kind = dfs.NoSpace
		}
	}
	l.g.fail(kind, fmt.Errorf(format, args...))
}

// storeKind is what a Pebble database is for.
type storeKind uint8

const (
	newLog     storeKind = iota // a log store, made when missing
	knownLog                    // one that is there: Pebble would take the rest of one that lost its manifest for new
	stateStore                  // a state store, made when missing: the log is its write-ahead log
)

// openStore opens or makes a Pebble database in a directory. Fail is told of the
// first failure of the disk after which nothing is written there any more.
func openStore(o *Options, dir string, kind storeKind, fail func(error)) (*pebble.DB, error) {
	g := newGate(dir, fail)
	log := &storeLogger{log: o.Logger.With("store", o.FS.PathBase(dir)), g: g}
	po := &pebble.Options{
		FS:           gateFS{o.FS, g},
		CacheSize:    cacheSize(o, kind),
		MemTableSize: o.MemTableSize,

		MemTableStopWritesThreshold: maxMemTables,
		MaxOpenFiles:                maxOpenFiles,
		FormatMajorVersion:          storeFormat,
		DisableWAL:                  kind == stateStore,
		Logger:                      log,
		EventListener:               g.listener(),
		ErrorIfNotExists:            kind == knownLog,
	}
	if kind == stateStore { // most entries ask for rows that are not there
		for i := range po.Levels {
			po.Levels[i].FilterPolicy = bloom.FilterPolicy(filterBits)
		}
	}
	// A snapshot's files go under the state at once instead of waiting in
	// a queue that only a write-ahead log makes durable.
	po.Experimental.DisableIngestAsFlushable = func() bool { return true }
	po.EventListener.EnsureDefaults(log)
	db, err := pebble.Open(dir, po)
	if why := g.failure(); why != nil {
		if err == nil {
			_ = db.Close() // nothing of it reaches the disk
		}
		return nil, dfs.Wrap("open raft store", "", why)
	}
	if err != nil {
		if isIncomplete(err) {
			err = &dfs.Error{Kind: dfs.Corrupt, Err: err}
		}
		return nil, wrapStore("open raft store", dir, err)
	}
	return db, nil
}

// cacheSize is what a store is given for its block cache, of which Pebble takes its
// memtables off: as much is added. Of the log little is read twice, and what is
// recent lies in its groups' own caches.
func cacheSize(o *Options, kind storeKind) int64 {
	memtables := maxMemTables * int64(o.MemTableSize)
	if kind != stateStore {
		return o.CacheSize/8 + memtables
	}
	return o.CacheSize - o.CacheSize/8 + memtables
}

// isIncomplete reports whether Pebble's Open missed a file, or found one of another
// size than its manifest says. It has no mark for the latter.
func isIncomplete(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, pebble.ErrDBDoesNotExist) || errors.Is(err, pebble.ErrDBNotPristine) || strings.Contains(err.Error(), "object size mismatch")
}

// wrapStore gives an error of Pebble its kind.
func wrapStore(op, object string, err error) error {
	if err == nil {
		return nil
	}
	kind := dfs.Other
	switch {
	case dfs.KindOf(err) != dfs.Other:
		kind = dfs.KindOf(err)
	case pebble.IsCorruptionError(err), errors.Is(err, record.ErrInvalidChunk):
		kind = dfs.Corrupt
		err = fmt.Errorf("what this meta node holds is damaged (check its disk, and replace the node while the others are a majority): %w", err)
	case vfs.IsNoSpaceError(err):
		kind = dfs.NoSpace
	}
	return &dfs.Error{Kind: kind, Op: op, Object: object, Err: err}
}

// exists reports whether a file or directory is there.
func exists(f vfs.FS, path string) (bool, error) {
	_, err := f.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func syncDir(f vfs.FS, path string) error {
	d, err := f.OpenDir(path)
	if err != nil {
		return err
	}
	return firstError(d.Sync(), d.Close())
}

// makeDir makes a directory and the missing ones above it, durably.
func makeDir(f vfs.FS, path string) error {
	var parents []string
	for p := path; ; {
		there, err := exists(f, p)
		if err != nil {
			return err
		}
		up := f.PathDir(p)
		if there || up == p {
			break
		}
		parents = append(parents, up)
		p = up
	}
	if err := f.MkdirAll(path, 0o755); err != nil {
		return err
	}
	for _, p := range parents {
		if err := syncDir(f, p); err != nil {
			return err
		}
	}
	return nil
}

// closeInto closes c and keeps its error in *err unless that has one already,
// which stays as it is.
func closeInto(err *error, c io.Closer) {
	if cerr := c.Close(); *err == nil {
		*err = cerr
	}
}

// firstError returns the first error that is one, as it is: a joined error
// would hide its kind.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
