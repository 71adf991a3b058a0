package engine

import (
	"sync/atomic"
	"time"
)

// State is whether a store takes writes.
type State uint8

// The states of a store. Numbers are on the wire.
const (
	StateOK       State = iota
	StateReadOnly       // full: puts are refused, deletes are not
	StateFailed         // a write or sync failed: reads only, until it is opened again
)

func (t State) String() string {
	switch t {
	case StateOK:
		return "ok"
	case StateReadOnly:
		return "read-only"
	case StateFailed:
		return "failed"
	}
	return "unknown"
}

// Stats are figures of a store. Counters begin at Open.
type Stats struct {
	State State
	Err   error // why it failed

	Blocks     uint64
	Undecided  uint64 // blocks of which nobody has said whether metadata names them
	Trash      uint64 // blocks that are to be deleted
	TrashBytes uint64 // their share of LiveBytes
	Tombstones uint64
	LiveBytes  uint64 // of records that are needed, tombstones included
	Logical    uint64 // bytes of the blocks before compression
	Stored     uint64 // bytes of their chunks as they lie on the disk
	DeadBytes  uint64 // of sealed segments and the log of the active one, not needed
	Segments   int    // in use
	Ready      int    // zero-filled, not yet used
	Capacity   uint64 // bytes; 0: not known
	Used       uint64 // bytes of segment files
	Available  uint64 // bytes that puts may still take

	Puts, Deletes uint64 // that were written
	Batches       uint64
	Syncs         uint64 // data syncs of batches
	BytesWritten  uint64 // to segments by batches
	Conflicts     uint64 // puts of an existing block with other bytes
	Forgotten     uint64 // blocks that went with placement groups which the store has left
	SegmentsGiven uint64 // given up as wholly dead

	Compactions       uint64 // segments that were compacted
	MovedRecords      uint64 // that compaction copied
	MovedBytes        uint64 // of the batches they were in
	TombstonesDropped uint64
	ScrubFound        uint64 // damaged records that the reading of everything has found

	QueueDepth int   // records that wait or are being written
	QueueBytes int64 // their share of MaxQueueBytes

	LastSeq uint64 // the last durable one

	// WriteAge and SyncAge are how long the batch in hand has waited for its
	// write or its sync; 0: none is in hand. A sick disk shows here.
	WriteAge, SyncAge             time.Duration
	LastWrite, LastSync, LastRead time.Time // when one was last completed, a read by the call of Stats that came next; zero: never
}

// counters are the figures that only grow.
type counters struct {
	puts, deletes, batches, bytes atomic.Uint64
	conflicts, given, forgotten   atomic.Uint64
	compactions, dropped          atomic.Uint64
	moved, movedBytes, scrubFound atomic.Uint64
	sinceCheckpoint               atomic.Int64 // bytes of log
}

func (c *counters) batch(ops []*op, length int64) {
	for _, o := range ops {
		if o.rec.kind == kindPut {
			c.puts.Add(1)
		} else {
			c.deletes.Add(1)
		}
	}
	c.batches.Add(1)
	c.bytes.Add(uint64(length))
	c.sinceCheckpoint.Add(length)
}

// clock remembers when the disk last answered. All in Unix nanoseconds, 0 is
// never.
type clock struct {
	writing, syncing              atomic.Int64 // since when; 0: not
	lastWrite, lastSync, lastRead atomic.Int64
	seen                          atomic.Bool // a read was completed since lastRead
	syncs                         atomic.Uint64
}

func (c *clock) begin() { c.writing.Store(time.Now().UnixNano()) }

func (c *clock) wrote() {
	now := time.Now().UnixNano()
	c.writing.Store(0)
	c.lastWrite.Store(now)
	c.syncing.Store(now)
}

func (c *clock) synced() {
	c.lastSync.Store(time.Now().UnixNano())
	c.syncing.Store(0)
	c.syncs.Add(1)
}

func (c *clock) end() {
	c.writing.Store(0)
	c.syncing.Store(0)
}

// read notes a read. A clock is not looked at for each: lastRead is when Stats
// came across it.
func (c *clock) read() {
	if !c.seen.Load() {
		c.seen.Store(true)
	}
}

// readAt returns when a read was last completed.
func (c *clock) readAt() int64 {
	if c.seen.Swap(false) {
		c.lastRead.Store(time.Now().UnixNano())
	}
	return c.lastRead.Load()
}

func since(t int64) time.Duration {
	if t == 0 {
		return 0
	}
	return max(1, time.Duration(time.Now().UnixNano()-t))
}

func at(t int64) time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.Unix(0, t)
}

// Stats returns the present figures.
func (s *Store) Stats() Stats {
	st := Stats{
		Puts: s.counters.puts.Load(), Deletes: s.counters.deletes.Load(), Batches: s.counters.batches.Load(), Syncs: s.clock.syncs.Load(),
		BytesWritten: s.counters.bytes.Load(), Conflicts: s.counters.conflicts.Load(), SegmentsGiven: s.counters.given.Load(), Forgotten: s.counters.forgotten.Load(),
		Compactions: s.counters.compactions.Load(), MovedRecords: s.counters.moved.Load(), MovedBytes: s.counters.movedBytes.Load(), TombstonesDropped: s.counters.dropped.Load(),
		ScrubFound: s.counters.scrubFound.Load(),
		LastSeq:    s.durableSeq.Load(), WriteAge: since(s.clock.writing.Load()), SyncAge: since(s.clock.syncing.Load()),
		LastWrite: at(s.clock.lastWrite.Load()), LastSync: at(s.clock.lastSync.Load()), LastRead: at(s.clock.readAt()),
	}
	if s.isReadOnly() {
		st.State = StateReadOnly
	}
	if err := s.failure(); err != nil {
		st.State, st.Err = StateFailed, err
	}
	st.QueueDepth, st.QueueBytes = s.queue.depth()
	sets := s.index.setsNow()
	st.Undecided, st.Trash, st.TrashBytes = sets.undecided, sets.trash, sets.trashBytes
	use := s.index.usageOf()
	for _, u := range use {
		st.Blocks += u.puts
		st.Tombstones += u.tombstones
		st.LiveBytes += u.putBytes + u.tombstoneBytes
		st.Logical += u.logical
		st.Stored += u.payload
	}
	var logged, room uint64
	for _, g := range *s.segs.byNumber.Load() {
		logged += uint64(g.end.Load())
		if !g.sealed.Load() {
			room += uint64(g.size - g.end.Load())
		}
	}
	st.DeadBytes = logged - min(logged, st.LiveBytes)
	st.Segments, st.Ready = s.segs.counts()
	size := uint64(s.opts.SegmentSize)
	st.Used = uint64(st.Segments+st.Ready+s.dead.count()) * size
	st.Capacity, st.Available = s.capacity(st.Used)
	if st.State == StateOK {
		st.Available += room + uint64(st.Ready)*size
	} else {
		st.Available = 0
	}
	return st
}

// capacity is the bytes that the store may take in all, and how many of them
// above the reserve are not yet taken.
func (s *Store) capacity(used uint64) (total, free uint64) {
	total = s.opts.Capacity
	usage, err := s.opts.FS.GetDiskUsage(s.opts.Dir)
	if err == nil && (total == 0 || usage.TotalBytes < total) {
		total = usage.TotalBytes
	}
	free = total - min(total, used)
	if err == nil {
		free = min(free, usage.AvailBytes)
	}
	return total, free - min(free, s.opts.ReserveBytes)
}

// IndexMemory returns the bytes that the index's block cache and its memtables
// take now.
func (s *Store) IndexMemory() (cache, memtables uint64) {
	m := s.index.db.Metrics()
	return uint64(m.BlockCache.Size), m.MemTable.Size + m.MemTable.ZombieSize
}
