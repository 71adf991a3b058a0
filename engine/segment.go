package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// segment is one segment file. Its bytes are written by the writer alone.
//
//	           taken by the writer      sealed by it        nothing needed, checkpoint
//	┌───────┐ ─────────────────▶ ┌────────┐ ────────▶ ┌────────┐ ─────────────▶ gone, or
//	│ ready │                    │ active │           │ sealed │                ready under
//	└───────┘                    └────────┘           └────────┘                a new number
type segment struct {
	number uint64
	size   int64
	fs     vfs.FS
	path   string
	open   *atomic.Int64 // the store's count of open segment files

	end    atomic.Int64 // past the last durable batch
	sealed atomic.Bool
	stream stream       // set before sealed
	read   atomic.Bool  // since closeIdle last looked
	used   atomic.Int64 // when closeIdle last found it read, Unix nanoseconds
	aged   atomic.Int64 // when it was sealed, Unix nanoseconds; 0: in an earlier life
	stuck  atomic.Int64 // until when compaction leaves it alone, Unix nanoseconds

	// refs counts who uses the file. It is far below zero while the file is being
	// closed, so that whoever comes then waits for mu.
	refs    atomic.Int64
	file    atomic.Pointer[openFile] // nil: not open
	retired atomic.Bool              // no new readers

	// mu guards what follows, and is held by who opens or closes the file.
	mu   sync.Mutex
	idle chan struct{} // a token when the last reader has left; set before retired
}

// openFile is the file of a segment, in one word.
type openFile struct{ vfs.File }

// closing is added to refs while the file is being closed.
const closing = -1 << 40

// acquire returns the open file, for reads at positions. NotExist: the segment
// has been given up. The caller calls release.
func (g *segment) acquire() (vfs.File, error) {
	if g.refs.Add(1) > 0 {
		if f := g.file.Load(); f != nil && !g.retired.Load() {
			return f.File, nil
		}
	}
	g.release()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.retired.Load() {
		return nil, dfs.Errorf(dfs.NotExist, "open segment", "%s has been given up", segmentName(g.number))
	}
	f := g.file.Load()
	if f == nil {
		if _, err := g.fs.Stat(g.path); err != nil { // OpenReadWrite would make it
			return nil, err
		}
		opened, err := g.fs.OpenReadWrite(g.path, vfs.WriteCategoryUnspecified)
		if err != nil {
			return nil, err
		}
		f = &openFile{opened}
		g.file.Store(f)
		g.open.Add(1)
	}
	g.refs.Add(1)
	return f.File, nil
}

// seal notes that no stream appends to it any more.
func (g *segment) seal(st stream) {
	g.stream = st
	g.sealed.Store(true)
}

func (g *segment) sealedAt() time.Time      { return at(g.aged.Load()) }
func (g *segment) stuckUntil() time.Time    { return at(g.stuck.Load()) }
func (g *segment) setStuck(until time.Time) { g.stuck.Store(until.UnixNano()) }

// touch notes a read.
func (g *segment) touch() {
	if !g.read.Load() {
		g.read.Store(true)
	}
}

func (g *segment) release() {
	if g.refs.Add(-1) == 0 && g.retired.Load() {
		signal(g.idle)
	}
}

// retire lets no new reader in, waits for those that are in, and closes the
// file.
func (g *segment) retire() error {
	g.mu.Lock()
	if g.retired.Load() {
		g.mu.Unlock()
		return nil
	}
	g.idle = make(chan struct{}, 1)
	g.retired.Store(true)
	g.mu.Unlock()
	for {
		// Who comes now leaves at once, and leaves a token.
		if closed, err := g.closeFile(); closed {
			return err
		}
		<-g.idle
	}
}

// closeFile closes the file when nobody uses it, and reports whether that is so.
func (g *segment) closeFile() (closed bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.refs.CompareAndSwap(0, closing) {
		return false, nil
	}
	defer g.refs.Add(-closing)
	f := g.file.Swap(nil)
	if f == nil {
		return true, nil
	}
	g.open.Add(-1)
	return true, f.Close()
}

// segments is the table of all segments of a store.
type segments struct {
	open atomic.Int64 // open files

	// byNumber is replaced as a whole, so that readers take no lock.
	byNumber atomic.Pointer[map[uint64]*segment]

	// mu guards what follows and every replacement of byNumber.
	mu     sync.Mutex
	ready  []*segment          // in the order of their numbers, which is the order of their use
	next   uint64              // the next number. Invariant: above that of every file, but one that could not be finished
	onDisk map[uint64]struct{} // the numbers under which a file may be there, after a crash too
}

func (t *segments) get(n uint64) *segment { return (*t.byNumber.Load())[n] }

// changeLocked replaces the table by a copy that fn has changed.
func (t *segments) changeLocked(fn func(m map[uint64]*segment)) {
	old := *t.byNumber.Load()
	m := make(map[uint64]*segment, len(old)+1)
	for n, g := range old {
		m[n] = g
	}
	fn(m)
	t.byNumber.Store(&m)
}

func (t *segments) remove(n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changeLocked(func(m map[uint64]*segment) { delete(m, n) })
}

// takeReady moves the first ready segment into the table; nil when there are
// not more than keep.
func (t *segments) takeReady(keep int) *segment {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.ready) <= keep {
		return nil
	}
	g := t.ready[0]
	t.ready = t.ready[1:]
	t.changeLocked(func(m map[uint64]*segment) { m[g.number] = g })
	return g
}

// fresh reports whether so little is in use that there is nothing to be freed.
func (t *segments) fresh() bool {
	return len(*t.byNumber.Load()) <= keepForDeletes+keepForMoves
}

func (t *segments) addReady(g *segment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ready = append(t.ready, g)
	t.next = g.number + 1
}

func (t *segments) counts() (inUse, ready int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(*t.byNumber.Load()), len(t.ready)
}

// nextNumber is the number of the segment that is made next: the same until one
// is ready, so that no number is left out. A file may have it from now on.
func (t *segments) nextNumber() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onDisk[t.next] = struct{}{}
	return t.next
}

// note says that there is a file with that number.
func (t *segments) note(n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onDisk[n] = struct{}{}
}

// forget says that there is, durably, no file with that number any more.
func (t *segments) forget(n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.onDisk, n)
}

// span returns the lowest number under which a file may be there, or come back with
// a crash, and the highest that was given out.
func (t *segments) span() (lowest, last uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	lowest = t.next
	for n := range t.onDisk {
		lowest = min(lowest, n)
	}
	return lowest, t.next - 1
}

// mayExist reports whether a file with that number may be there, or come back
// with a crash.
func (t *segments) mayExist(n uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.onDisk[n]
	return ok
}
