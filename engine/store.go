package engine

import (
	"cmp"
	"context"
	"errors"
	"io"
	iofs "io/fs"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// Store is one open data directory. All methods may be called at the same
// time; none but Identity, Stats and the like after Close.
type Store struct {
	opts   Options
	log    *slog.Logger
	mark   uint64 // of the store; in every record
	lock   io.Closer
	files  records
	index  *index
	segs   segments
	queue  *queue
	writer *writer
	bufs   buffers

	// identTurn is held by who changes ident and the STORE file, so that a disk
	// that hangs keeps nobody from reading ident.
	identTurn sync.Mutex

	// identMu guards ident.
	identMu sync.Mutex
	ident   identityRecord
	start   uint64 // random number of this start; set by open

	epochTurn chan struct{} // holds a token while SetEpochs or SetTombstoneFloor runs
	mapEpoch  atomic.Uint64

	// pgMu guards pgs and floors. Entries stay for ever: their number is that of the PGs.
	pgMu   sync.RWMutex
	pgs    map[dfs.PGID]*pg
	floors map[dfs.PGID]dfs.Epoch // SetTombstoneFloor

	newest newest

	durableSeq atomic.Uint64 // every record up to it is on the disk
	full       atomic.Bool   // another segment would take from the reserve
	exhausted  atomic.Bool   // not even the reserve has room for another segment
	readOnly   atomic.Bool   // a put was refused for want of space, and there is still none
	mayBeDead  atomic.Bool   // something was deleted since the keeper last looked

	// markTurn holds a token of who changes marked and the MARK file. A channel and
	// not a mutex: the holder waits for the disk.
	markTurn chan struct{}
	marked   markRecord

	failOnce sync.Once
	failed   chan struct{} // closed by the first failure
	failErr  error         // set before failed is closed
	badIndex atomic.Bool   // the index itself is damaged

	damage      damageList
	damageFound chan struct{} // holds a token when something was added to damage
	clock       clock
	counters    counters

	noSpace       bool          // the preparer's own: the last segment could not be made
	prepareWake   chan struct{} // to the preparer: look whether segments are wanted
	prepared      chan struct{} // to the writer: the preparer has looked
	preparedMoved chan struct{} // to the compactor: likewise
	keeperWake    chan struct{} // to the keeper: something was written
	keeperArmed   atomic.Bool   // it will look in a moment, and need not be woken
	dead          deadList
	ledger        ledger
	missing       numbers // segments that the start did not find; set by open
	rebuilt       bool    // the start made the index anew; set by open

	giveUpTurn chan struct{} // holds a token of who gives segments up

	// scrubMu guards scrubbed.
	scrubMu  sync.Mutex
	scrubbed scrubRecord

	calls   atomic.Int64
	closing atomic.Bool
	idle    chan struct{} // a token when calls may have reached zero while closing

	closeOnce     sync.Once
	closeErr      error
	stopKeeper    context.CancelFunc
	stopPreparer  context.CancelFunc
	keeperDone    chan struct{}
	verifyDone    chan struct{}
	compactorDone chan struct{}
	scrubberDone  chan struct{}
	preparerDone  chan struct{}
	writerDone    chan struct{}
}

// Open opens the store in a directory, and makes an empty directory a store.
// It brings the index up to the end of the log and cuts what a crash left
// unfinished. It refuses, with the reason in the error, a directory that
// another process has open, that is no store, whose segments are another
// store's, or that has a version this release does not know.
func Open(opts Options) (*Store, error) {
	opts.setDefaults()
	if err := opts.Validate(); err != nil {
		return nil, dfs.Wrap("open store", opts.Dir, err)
	}
	s, w, c, err := attempt(&opts)
	if err != nil && s.badIndex.Load() {
		// The index gave way while it was in use. It is marked by now, and the
		// next attempt makes it anew.
		s, w, c, err = attempt(&opts)
	}
	if err != nil {
		return nil, dfs.Wrap("open store", opts.Dir, err)
	}
	s.writer = w
	s.index.gate.serving.Store(true)
	keeperCtx, stopKeeper := context.WithCancel(context.Background())
	preparerCtx, stopPreparer := context.WithCancel(context.Background())
	s.stopKeeper, s.stopPreparer = stopKeeper, stopPreparer
	go func() { defer close(s.writerDone); w.run() }()
	go func() { defer close(s.keeperDone); s.keep(keeperCtx) }()
	go func() { defer close(s.verifyDone); s.verify(keeperCtx) }()
	go func() { defer close(s.compactorDone); c.run(keeperCtx) }()
	go func() { defer close(s.scrubberDone); s.scrub(keeperCtx) }()
	go func() { defer close(s.preparerDone); s.prepare(preparerCtx) }()
	return s, nil
}

// attempt opens the store up to its first goroutine. With an error everything
// is closed again.
func attempt(opts *Options) (*Store, *writer, *compactor, error) {
	s := &Store{
		opts: *opts, log: opts.Logger, queue: newQueue(opts.MaxQueueBytes), pgs: map[dfs.PGID]*pg{},
		epochTurn: make(chan struct{}, 1), markTurn: make(chan struct{}, 1), giveUpTurn: make(chan struct{}, 1), failed: make(chan struct{}), prepareWake: make(chan struct{}, 1),
		prepared: make(chan struct{}, 1), preparedMoved: make(chan struct{}, 1), damageFound: make(chan struct{}, 1), keeperWake: make(chan struct{}, 1), idle: make(chan struct{}, 1),
		keeperDone: make(chan struct{}), verifyDone: make(chan struct{}), compactorDone: make(chan struct{}), scrubberDone: make(chan struct{}), preparerDone: make(chan struct{}), writerDone: make(chan struct{}),
	}
	w, c, err := s.open()
	if err != nil {
		s.abandon()
	}
	return s, w, c, err
}

func (s *Store) path(name string) string { return s.opts.FS.PathJoin(s.opts.Dir, name) }

// open does the work of Open up to the first goroutine.
func (s *Store) open() (*writer, *compactor, error) {
	fs := s.opts.FS
	s.ledger.fs, s.ledger.path = fs, s.path(ledgerName)
	s.segs.onDisk = map[uint64]struct{}{}
	if err := fs.MkdirAll(s.opts.Dir, 0o700); err != nil {
		return nil, nil, err
	}
	if err := s.takeLock(); err != nil {
		return nil, nil, err
	}
	if err := s.checkCapacity(); err != nil {
		return nil, nil, err
	}
	if _, err := fs.Stat(s.path(storeName)); isNotExist(err) {
		if err := format(&s.opts); err != nil {
			return nil, nil, err
		}
	} else if err != nil {
		return nil, nil, err
	}
	return s.recoverLog()
}

// checkCapacity refuses a store that could hold nothing.
func (s *Store) checkCapacity() error {
	least := s.opts.ReserveBytes + (readySegments+1)*uint64(s.opts.SegmentSize)
	total, _ := s.capacity(0)
	switch {
	case total == 0:
		return dfs.Errorf(dfs.Invalid, "check capacity", "the file system does not say how big it is: the capacity must be given")
	case total < least:
		return dfs.Errorf(dfs.Invalid, "check capacity", "%d bytes: the reserve and %d segments take %d; use smaller segments or a smaller reserve", total, readySegments+1, least)
	}
	return nil
}

// takeLock takes the exclusive lock of the directory, and says who has it.
func (s *Store) takeLock() error {
	fs := s.opts.FS
	lock, err := lockDir(fs, s.opts.Dir)
	if err != nil {
		return err
	}
	s.lock = lock
	f, err := fs.Create(s.path(holderName), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if s.opts.PID != 0 {
		_, err = f.Write([]byte(strconv.Itoa(s.opts.PID)))
	}
	return cmp.Or(err, f.Close())
}

// lockDir takes the exclusive lock of a directory. Unavailable: another process
// has it.
func lockDir(fs vfs.FS, dir string) (io.Closer, error) {
	lock, err := fs.Lock(fs.PathJoin(dir, lockName))
	if err == nil || errors.Is(err, iofs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return lock, err
	}
	holder := "another process"
	if pid := lockHolder(fs, dir, errors.Is(err, syscall.EAGAIN)); pid != "" {
		holder = "process " + pid
	}
	if errors.Is(err, syscall.EAGAIN) {
		err = nil // somebody has it, and that is all it says
	}
	return nil, &dfs.Error{Kind: dfs.Unavailable, Op: "lock", Text: "the directory is in use by " + holder, Err: err}
}

// lockHolder is the PID of the process that has a directory's lock, "" when it is not
// known. The kernel knows it, also of an offline tool, which writes no HOLDER; but of
// no process in another PID namespace. It is asked only when another process has
// the lock: to close the file would give up this one's.
func lockHolder(fs vfs.FS, dir string, another bool) string {
	if another {
		if pid := kernelHolder(fs, fs.PathJoin(dir, lockName)); pid > 0 {
			return strconv.Itoa(pid)
		}
	}
	f, err := fs.Open(fs.PathJoin(dir, holderName))
	if err != nil {
		return ""
	}
	p, _ := io.ReadAll(io.LimitReader(f, 32))
	_ = f.Close()
	return string(p)
}

// kernelHolder is the PID of the process that has a file's lock; 0 when the file
// system or the kernel cannot say.
func kernelHolder(fs vfs.FS, name string) int {
	f, err := fs.Open(name)
	if err != nil {
		return 0
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if f.Fd() == vfs.InvalidFd || unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l) != nil {
		return 0
	}
	return int(l.Pid)
}

// abandon closes what a failed open had opened.
func (s *Store) abandon() {
	if s.index != nil {
		_ = s.index.close()
	}
	s.condemnIndex()
	s.closeFiles()
}

// closeFiles closes everything but the index, and gives up the lock last.
func (s *Store) closeFiles() {
	if m := s.segs.byNumber.Load(); m != nil {
		for _, g := range *m {
			_, _ = g.closeFile()
		}
	}
	for _, g := range s.segs.ready {
		_, _ = g.closeFile()
	}
	s.files.close()
	s.ledger.close()
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// enter begins a call. Unavailable: the store is closed.
func (s *Store) enter() error {
	s.calls.Add(1)
	if s.closing.Load() {
		s.exit()
		return dfs.Errorf(dfs.Unavailable, "use store", "%s is closed", s.opts.Dir)
	}
	return nil
}

func (s *Store) exit() {
	if s.calls.Add(-1) == 0 && s.closing.Load() {
		signal(s.idle)
	}
}

// Close finishes every call that was begun, makes the index durable, and gives
// the directory up. It returns the failure of a store that has failed. It may
// be called more than once.
func (s *Store) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	s.closing.Store(true)
	for s.calls.Load() > 0 {
		<-s.idle
	}
	s.stopKeeper()
	<-s.keeperDone
	<-s.verifyDone
	<-s.compactorDone
	<-s.scrubberDone
	s.condemnIndex() // if the keeper did not come to it
	s.queue.close()
	<-s.writerDone
	s.stopPreparer()
	<-s.preparerDone
	err := s.failure()
	if err == nil {
		err = s.syncMark()
	}
	if err == nil {
		err = s.index.checkpoint()
	}
	if dfs.KindOf(err) == dfs.NoSpace {
		s.log.Warn("no space for a checkpoint of the index: the next start replays the log", "dir", s.opts.Dir)
		err = nil
	}
	if cerr := s.index.close(); err == nil {
		err = cerr
	}
	s.closeFiles()
	return err
}

// fail makes the store refuse every later write. The first cause stays.
func (s *Store) fail(cause error) {
	s.failOnce.Do(func() {
		s.log.Error("store failed: no more writes until it is opened again", "dir", s.opts.Dir, "cause", cause)
		s.failErr = &dfs.Error{Kind: dfs.Unavailable, Op: "write", Object: s.opts.Dir, Text: "the store has failed", Err: cause}
		close(s.failed)
	})
}

// failure is the error of a failed store, nil while it works.
func (s *Store) failure() error {
	select {
	case <-s.failed:
		return s.failErr
	default:
		return nil
	}
}

// Failed is closed when the store fails.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Identity returns what the directory says of itself.
func (s *Store) Identity() Identity {
	r := s.identity()
	return Identity{
		Cluster: r.cluster, Node: r.node, Store: r.store,
		Incarnation: dfs.Incarnation{Mark: r.mark, Start: s.start}, RolledBack: r.rolledBack,
	}
}

// Dir returns the directory of the store.
func (s *Store) Dir() string { return s.opts.Dir }

// Lineage returns what the directory remembers of its starts.
func (s *Store) Lineage() dfs.Lineage { return s.identity().lineage }

func (s *Store) identity() identityRecord {
	s.identMu.Lock()
	defer s.identMu.Unlock()
	return s.ident
}

// OfferStart adds this start to the lineage, durably: before anything that
// carries it is sent to the control group. Repeating it is allowed.
func (s *Store) OfferStart() error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.exit()
	s.identTurn.Lock()
	defer s.identTurn.Unlock()
	next := s.identity()
	if next.lineage.Holds(s.start) {
		return nil
	}
	next.lineage = next.lineage.Offer(s.start)
	return s.writeIdent(next)
}

// SetIdentity records, durably, that the control group has registered this start
// and what it called this store. Repeating it is allowed; another name than
// before is refused with WrongCluster or Invalid.
func (s *Store) SetIdentity(cluster dfs.ClusterID, node dfs.NodeID, store dfs.StoreID) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.exit()
	if cluster.IsZero() || node == 0 || store == 0 {
		return dfs.Errorf(dfs.Invalid, "identify store", "cluster %s, node %s, store %s", cluster, node, store)
	}
	s.identTurn.Lock()
	defer s.identTurn.Unlock()
	next := s.identity()
	if !next.cluster.IsZero() {
		switch {
		case next.cluster != cluster:
			return dfs.Errorf(dfs.WrongCluster, "identify store", "%s belongs to cluster %s, not %s", s.opts.Dir, next.cluster, cluster)
		case next.store != store:
			return dfs.Errorf(dfs.Invalid, "identify store", "%s is %s, not %s", s.opts.Dir, next.store, store)
		case next.node == node && next.lineage.Accepted == s.start:
			return nil
		}
	}
	next.cluster, next.node, next.store = cluster, node, store
	next.lineage = dfs.Lineage{Accepted: s.start}
	return s.writeIdent(next)
}

// writeIdent makes a record durable. REQUIRES: identTurn is held.
func (s *Store) writeIdent(next identityRecord) error {
	if err := s.failure(); err != nil {
		return err
	}
	if err := s.files.store.both(next.encode()); err != nil {
		s.fail(err)
		return s.failure()
	}
	s.identMu.Lock()
	defer s.identMu.Unlock()
	s.ident = next
	return nil
}

func isNotExist(err error) bool { return errors.Is(err, iofs.ErrNotExist) }
