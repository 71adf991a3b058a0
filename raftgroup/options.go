package raftgroup

import (
	"context"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

// Lane is one of the two message streams to a peer.
type Lane uint8

// The lanes. What is small and urgent never waits behind what is big.
const (
	LaneControl Lane = iota // votes, heartbeats, ReadIndex
	LaneBulk                // appends and their answers
	NumLanes
)

func (l Lane) String() string {
	switch l {
	case LaneControl:
		return "control"
	case LaneBulk:
		return "bulk"
	}
	return "unknown"
}

// Entry is one committed command.
type Entry struct {
	Index uint64 // from 2, growing, with gaps where Raft put entries of its own
	Term  uint64
	Data  []byte // the bytes given to Propose; read-only
}

// StateMachine is one group's deterministic apply step. Apply is called for
// one entry at a time, in order, on every replica; it may use nothing but tx and
// e. The reply goes to the proposer on the node that proposed. A refusal is a
// reply; an error says that an invariant is broken, and the replica is
// quarantined with nothing of the entry kept.
type StateMachine interface {
	Apply(tx Tx, e Entry) (reply []byte, err error)
}

// SnapshotStream is one end of a stream between two nodes that carries one
// snapshot, or the rest of one that broke off.
type SnapshotStream interface {
	// Send sends one chunk, which is the stream's until Send returns.
	Send(chunk []byte) error
	// Recv returns the next chunk of the other end. When the peer's
	// ReceiveSnapshot has failed it returns that error, of its kind.
	Recv() ([]byte, error)
	// Close releases the stream.
	Close() error
}

// Hooks change behaviour for tests. All are off by default. The flags are
// planted bugs, each of which a test must find.
type Hooks struct {
	AckBeforeSync  bool // acknowledgements do not wait for the sync
	ApplyTwice     bool // the last applied entry is applied once more after a restart
	ForgetVote     bool // hard states are written without the vote
	CountUnsynced  bool // a leader counts its own append before it is synced
	CountLearners  bool // a leader counts a learner's acknowledgement as a voter's
	LeaseReads     bool // a leader answers ReadIndex without asking a majority
	StaleReads     bool // reads do not wait for a leader's word
	ConfBeforeSync bool // a configuration change does not wait for its hard state
	CutUnflushed   bool // logs are cut above what the state store has flushed
	IgnoreDamage   bool // a replica that is known to be damaged takes part

	IgnoreGeneration bool // frames and snapshots of another generation are taken
	BeginUnsynced    bool // a recovery begins before its batch is synced

	// Failpoint is called, perhaps under locks, at each moment of the way of a
	// proposal. It must not call the host.
	Failpoint func(g dfs.GroupID, at Failpoint)
	// DestroyStep is called after each of the two steps of a replica's end.
	DestroyStep func(g dfs.GroupID, step int)
	// RecoverStep is called after each step of a recovery, see recover.go.
	RecoverStep func(g dfs.GroupID, step RecoverStep)
	// SnapshotStep is called before each step of a snapshot's way.
	SnapshotStep func(g dfs.GroupID, step SnapshotStep)
}

// SnapshotStep is a step of a snapshot's way from store to store.
type SnapshotStep uint8

// The steps: of the sender, of the receiver, of the install.
const (
	SnapSendOpen  SnapshotStep = iota + 1 // a moment of the state is taken
	SnapSendData                          // a chunk leaves
	SnapSendPoint                         // a point leaves
	SnapSendEnd                           // the end leaves

	SnapRecvStart   // the first row is stored
	SnapRecvSeal    // at a point: the table is finished and synced
	SnapRecvNote    // it is noted
	SnapRecvNoted   // the stream goes on
	SnapRecvEnd     // at the end: the last table is finished and synced
	SnapForget      // the note of what is not needed is removed
	SnapForgetFiles // its tables are removed

	SnapIntent  // the intent is written
	SnapFlush   // the old state is flushed out of the way
	SnapIngest  // the tables take its place
	SnapRestart // the log begins anew
	SnapDone    // the replica goes on

	NumSnapshotSteps
)

// Options configure a Host. FS, Dir, Node, StateMachine and Send are required;
// the zero value of every other field is its default.
//
// The jitter of elections is the Raft library's own, from crypto/rand; a test
// that wants it repeatable sets testing/cryptotest.SetGlobalRandom.
type Options struct {
	FS   vfs.FS
	Dir  string     // holds raft-log/, raft-state/, raft-snap/ and raft-mark; made when missing
	Node dfs.NodeID // this node's number, never 0; the directory remembers it

	Tick           time.Duration // the unit of the next two; default 100 ms
	ElectionTicks  int           // without a leader's word for 1 to 2 times this, a voter campaigns; default 10
	HeartbeatTicks int           // default 1
	QuiesceTicks   int           // a group that was idle for so long sleeps; default 10

	Workers      int    // goroutines that step groups, and as many that apply; default 4
	CacheSize    int64  // bytes of block cache, both stores together, memtables not counted; default 64 MiB
	MemTableSize uint64 // bytes of one memtable, of which either store has at most two; default 8 MiB

	MaxProposalBytes int // of one command; default 512 KiB, at most 900 KiB
	MaxProposals     int // of one group that wait for an answer; default 1,024
	MaxProposalQueue int // bytes of them; default 16 MiB
	MaxReads         int // of one group that wait for an answer; default 8,192
	MaxInbox         int // bytes of one group's messages that wait for a worker; default 32 MiB
	MaxInflight      int // append messages of one group to one peer without an answer; default 64
	MaxInflightBytes int // of their entries, at least 256 KiB; default 4 MiB
	MaxQueued        int // bytes of all groups' proposals that wait, and as many of their messages; default 256 MiB
	EntryCache       int // bytes of recent entries one group keeps in memory; default 256 KiB

	// KeepEntries is how many applied entries a log keeps so that a peer that
	// was away briefly needs no snapshot; default 10,000. LogBytes is the size
	// at which a log is cut all the same, whoever still needs it; default 64 MiB.
	KeepEntries int
	LogBytes    int64

	// MaxSnapshots is how many snapshots are sent, and how many received, at a
	// time; also how many that broke off are kept for going on. Default 2.
	// SnapshotFileBytes is the size of one received file, and about as much is
	// sent twice when a stream breaks; default 32 MiB.
	MaxSnapshots      int
	SnapshotFileBytes int

	// SnapshotKeep is how long a snapshot that broke off is kept by both ends;
	// default 2 min.
	SnapshotKeep time.Duration

	// SnapshotRate bounds the bytes a second of all snapshots that this node
	// sends and receives, together; at least SnapshotChunk. 0: no limit.
	SnapshotRate int64

	// Reserve is how many bytes are to stay free on the disk of Dir for entries
	// and compactions: a snapshot that would leave less than a quarter of it is
	// not received. 0: none.
	Reserve uint64

	// StateMachine returns the state machine of a group, once per replica.
	StateMachine func(g dfs.GroupID) StateMachine

	// Send queues a batch of messages to a peer without blocking; false says
	// that it was dropped. A batch is at most MaxBatch bytes and Send's to keep.
	Send func(to dfs.NodeID, lane Lane, msg []byte) bool

	// OpenSnapshot opens a snapshot stream to a peer. Without it, peers that
	// have slept past the log's cut stay behind.
	// The stream breaks when ctx ends.
	OpenSnapshot func(ctx context.Context, to dfs.NodeID) (SnapshotStream, error)

	// OnLeaderChange and OnApplied are called without locks and must not block:
	// the first when the leader (0: none) or its term changes, the second after
	// the state through index is visible.
	OnLeaderChange func(g dfs.GroupID, leader dfs.NodeID, term uint64)
	OnApplied      func(g dfs.GroupID, index uint64)

	// AcceptGroup says whether a message for a group without a replica makes an
	// empty one. Nil: never.
	AcceptGroup func(g dfs.GroupID) bool

	Logger *slog.Logger // default: discards
	Hooks  Hooks
}

// MaxBatch bounds one batch of messages: a megabyte message of the transport
// less room for its frame.
const MaxBatch = dfs.MaxMessage - 1<<10

// maxProposalBytes leaves room in a batch for the heads of entry and message.
const maxProposalBytes = 900 << 10

// SnapshotChunk is the largest chunk of a snapshot stream.
const SnapshotChunk = 256 << 10

func orDefault[T int | int64 | uint64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

func (o *Options) setDefaults() {
	orDefault(&o.Tick, 100*time.Millisecond)
	orDefault(&o.ElectionTicks, 10)
	orDefault(&o.HeartbeatTicks, 1)
	orDefault(&o.QuiesceTicks, 10)
	orDefault(&o.Workers, 4)
	orDefault(&o.CacheSize, 64<<20)
	orDefault(&o.MemTableSize, 8<<20)
	orDefault(&o.MaxProposalBytes, 512<<10)
	orDefault(&o.MaxProposals, 1024)
	orDefault(&o.MaxProposalQueue, 16<<20)
	orDefault(&o.MaxReads, 8192)
	orDefault(&o.MaxInbox, 32<<20)
	orDefault(&o.MaxInflight, 64)
	orDefault(&o.MaxInflightBytes, 4<<20)
	orDefault(&o.MaxQueued, 256<<20)
	orDefault(&o.EntryCache, 256<<10)
	orDefault(&o.KeepEntries, 10_000)
	orDefault(&o.LogBytes, 64<<20)
	orDefault(&o.MaxSnapshots, 2)
	orDefault(&o.SnapshotFileBytes, 32<<20)
	orDefault(&o.SnapshotKeep, 2*time.Minute)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

func (o *Options) validate() error {
	const op = "open raft host"
	switch {
	case o.FS == nil || o.Dir == "" || o.StateMachine == nil || o.Send == nil:
		return dfs.Errorf(dfs.Invalid, op, "FS, Dir, StateMachine and Send are required")
	case o.Node == 0:
		return dfs.Errorf(dfs.Invalid, op, "node number 0")
	case o.HeartbeatTicks < 1 || o.ElectionTicks <= o.HeartbeatTicks:
		return dfs.Errorf(dfs.Invalid, op, "heartbeat every %d ticks, election after %d: want at least 1, and more", o.HeartbeatTicks, o.ElectionTicks)
	case o.QuiesceTicks < 1:
		return dfs.Errorf(dfs.Invalid, op, "groups sleep after %d idle ticks: want at least 1", o.QuiesceTicks)
	case o.MaxProposalBytes < 1 || o.MaxProposalBytes > maxProposalBytes:
		return dfs.Errorf(dfs.Invalid, op, "largest proposal %d bytes: want 1 to %d", o.MaxProposalBytes, maxProposalBytes)
	case min(o.Workers, o.MaxProposals, o.MaxProposalQueue, o.MaxReads, o.MaxInbox, o.MaxInflight, o.MaxQueued, o.EntryCache, o.KeepEntries, o.MaxSnapshots, o.SnapshotFileBytes) < 0:
		return dfs.Errorf(dfs.Invalid, op, "a limit is negative")
	case o.MaxInflightBytes < maxMessageEntries:
		return dfs.Errorf(dfs.Invalid, op, "%d bytes in flight: want at least %d", o.MaxInflightBytes, maxMessageEntries)
	case o.Tick < 0 || o.LogBytes < 0 || o.CacheSize < 0 || o.SnapshotKeep < 0 || o.SnapshotRate < 0:
		return dfs.Errorf(dfs.Invalid, op, "a size or time is negative")
	}
	return nil
}
