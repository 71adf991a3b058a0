package engine

import (
	"cmp"
	"log/slog"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The bounds of a store, each with its reason.
const (
	// DefaultSegmentSize is what is zero-filled, sealed and given up at a time.
	DefaultSegmentSize = 256 << 20

	// MinSegmentSize holds a header, a footer and a batch with a chunk.
	MinSegmentSize = 256 << 10

	// MaxSegmentSize keeps offsets and batch lengths far from 32 bits.
	MaxSegmentSize = 1 << 30

	// readySegments are kept zero-filled ahead of the streams: one to go on with,
	// one for the time that filling takes, and those that puts leave to others.
	readySegments = 2 + keepForDeletes + keepForMoves

	// gatherBytes is where a batch stops growing: past a few MiB the disk's
	// own speed decides, and a longer batch only delays its first caller. The
	// last record may go beyond it.
	gatherBytes = 4 << 20

	// directBytes: longer payloads are written from where their callers have
	// them; of shorter ones a copy costs less than a piece of a write.
	directBytes = 32 << 10

	// minQueueCost is what the smallest record counts for in the queue's
	// bytes, so that the bound on bytes bounds their number too.
	minQueueCost = 4 << 10

	// keepForDeletes and keepForMoves of the ready segments are left to deletes and
	// to compaction, so that a disk that turns out to be full can be freed.
	keepForDeletes, keepForMoves = 1, 1

	// tombstoneRoom is the part of a segment (1/tombstoneRoom of it) that puts
	// leave to deletes when no other segment is to be had.
	tombstoneRoom = 16

	// indexShare is the part of the reserve (1/indexShare of it) that segments
	// leave to the index: with the usual sizes, 32 of its memtables.
	indexShare = 4

	// markLag is how long the mark file may lag behind the last sync.
	markLag = 100 * time.Millisecond

	// maxOpenSegments bounds the open files of a store that nobody reads now.
	maxOpenSegments = 256

	// maxDamage bounds the list of damaged blocks that is kept in memory.
	maxDamage = 4096

	// maxPage bounds the entries of one answer of ScanEpochs or Inventory.
	maxPage = 10_000
)

// Hooks plant known bugs, so that the tests that should find them can prove
// that they do. All are off unless a test sets them.
type Hooks struct {
	AckBeforeSync  bool // a put is acknowledged after the write; the data sync follows ackLead later
	SkipEpochCheck bool // a put or delete under a superseded epoch is admitted
	DropTombstone  bool // a delete takes the block out of the index and leaves no tombstone there
}

// ackLead is how far AckBeforeSync acknowledges ahead of the sync.
const ackLead = 20 * time.Millisecond

// Options say how a store is opened. Zero values mean the defaults; FS, Dir
// and NewMark have none.
type Options struct {
	FS  vfs.FS
	Dir string // the data directory; made when it does not exist

	// NewMark draws random numbers, never 0: the mark of a new store and one for
	// each start.
	NewMark func() uint64

	// PID is written into the directory, so that a second process that is
	// refused can say who holds it. 0: not known.
	PID int

	SegmentSize   int64  // bytes, MinSegmentSize to MaxSegmentSize, a multiple of 4096; 256 MiB
	CacheSize     int64  // bytes of the index's block cache, which gives way to its memtables; 32 MiB
	MemTableSize  int64  // bytes of one of the index's memtables; 8 MiB
	MaxQueueBytes int64  // bytes of puts that wait or are being written; 64 MiB
	Capacity      uint64 // bytes that the store may take; the size of the file system, which must be given where it cannot tell
	ReserveBytes  uint64 // bytes that puts leave free; 4 segments

	// CompactRate is how many bytes a second compaction copies, when neither space
	// is short nor too much is dead; 64 MiB.
	CompactRate int64

	// CompactAge is how long a full segment is left alone before it is compacted,
	// unless space is short: what is deleted soon need not be copied; 1 minute.
	CompactAge time.Duration

	// ScrubPeriod is how often every record is read and checked; 14 days.
	// ScrubRate bounds the bytes a second that are read for it; 32 MiB.
	ScrubPeriod time.Duration
	ScrubRate   int64

	// DeadPercent of the bytes of full segments may be dead before compaction
	// begins, 1 to 90; 20.
	DeadPercent int

	// CheckpointBytes is how much of the log a start is meant to replay at most; 1
	// segment. A checkpoint begins at half of it. More is replayed when the other half
	// fills before the checkpoint is there, or when there is no space for one.
	CheckpointBytes int64

	Logger *slog.Logger // none: nothing is logged
	Hooks  Hooks

	still bool // the index is not compacted: what it is on the disk stays there
}

func (o *Options) setDefaults() {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&o.SegmentSize, DefaultSegmentSize)
	set(&o.CacheSize, 32<<20)
	set(&o.MemTableSize, 8<<20)
	set(&o.CompactRate, 64<<20)
	set((*int64)(&o.CompactAge), int64(time.Minute))
	o.DeadPercent = cmp.Or(o.DeadPercent, 20)
	set((*int64)(&o.ScrubPeriod), int64(14*24*time.Hour))
	set(&o.ScrubRate, 32<<20)
	set(&o.MaxQueueBytes, 64<<20)
	set(&o.CheckpointBytes, o.SegmentSize)
	if o.ReserveBytes == 0 {
		o.ReserveBytes = 4 * uint64(o.SegmentSize)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// newMark draws a random number.
func (o *Options) newMark() (uint64, error) {
	if n := o.NewMark(); n != 0 {
		return n, nil
	}
	return 0, dfs.Errorf(dfs.Invalid, "", "NewMark returned 0")
}

// Validate names the first option that cannot be used.
func (o *Options) Validate() error {
	switch {
	case o.FS == nil, o.Dir == "", o.NewMark == nil:
		return dfs.Errorf(dfs.Invalid, "", "FS, Dir and NewMark must be given")
	case o.SegmentSize < MinSegmentSize || o.SegmentSize > MaxSegmentSize || o.SegmentSize%pageSize != 0:
		return dfs.Errorf(dfs.Invalid, "", "segment size %d: want %d to %d, a multiple of %d", o.SegmentSize, MinSegmentSize, MaxSegmentSize, pageSize)
	case o.CompactRate < 1<<10 || o.CompactAge < 0 || o.DeadPercent < 1 || o.DeadPercent > 90:
		return dfs.Errorf(dfs.Invalid, "", "compaction at %d bytes a second, after %v, from %d %% dead: want 1024 or more, no negative time, 1 to 90", o.CompactRate, o.CompactAge, o.DeadPercent)
	case o.ScrubPeriod < time.Minute || o.ScrubRate < scrubLeast:
		return dfs.Errorf(dfs.Invalid, "", "scrub in %v at %d bytes a second: want a minute or more, and %d or more", o.ScrubPeriod, o.ScrubRate, scrubLeast)
	case o.CacheSize < 0 || o.MemTableSize < 64<<10 || o.MaxQueueBytes < minQueueCost || o.CheckpointBytes < 0:
		return dfs.Errorf(dfs.Invalid, "", "cache %d, memtable %d, queue %d, checkpoint %d bytes: too small", o.CacheSize, o.MemTableSize, o.MaxQueueBytes, o.CheckpointBytes)
	}
	return nil
}
