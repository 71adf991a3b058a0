package storage

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"storj.io/drpc"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/transport/metas"
)

// Defaults and limits, each with its reason.
const (
	// DefaultHeartbeat lets a silence of two seconds be four lost heartbeats.
	DefaultHeartbeat = 500 * time.Millisecond

	// DefaultRefillParallel placement groups are refilled at a time into one
	// store: enough that a slow source does not stop the disk.
	DefaultRefillParallel = 4

	// DefaultPutMemory bounds the payloads that are being received or written
	// at a time: sixteen blocks of the greatest size, sixty-four of the usual.
	DefaultPutMemory = 256 << 20

	// refillFetches is how many blocks one refill fetches at a time: with
	// DefaultRefillParallel it keeps a disk's writer in whole batches and holds
	// 128 MiB of the usual blocks.
	refillFetches = 8

	// refillBurst is what refills may take at once of their bytes per second:
	// small, so that the limit holds within a second.
	refillBurst = 256 << 10

	// maxReads bounds the reads that hold a window of a block in memory, with
	// readWindow 128 MiB.
	maxReads   = 128
	readWindow = 16 * dfs.ChunkSize

	// queueWait is how long a request waits for memory before it is told that
	// this node is busy: longer than a burst, shorter than a caller's hedge
	// budget.
	queueWait = time.Second

	// mapWait is how long a request under a newer epoch waits until its store
	// has persisted that epoch.
	mapWait = 3 * time.Second

	// receiveLimit is how long a put may take to arrive: a block of 16 MiB at
	// half a MiB per second. Its memory is held meanwhile.
	receiveLimit = 30 * time.Second

	// maxDeletes bounds the items of one delete; deletesAtOnce of them share
	// the disk's syncs.
	maxDeletes    = 1024
	deletesAtOnce = 64

	// maxScan bounds the entries of one scan: they fit a message.
	maxScan = 4096

	// pollWait is how long a meta node may keep a request for a newer map.
	pollWait = 10 * time.Second

	// stuckAfter is when a disk that does not complete what waits for it is
	// not called healthy any more, so that a store which was declared down for
	// it does not register as up again.
	stuckAfter = 2 * time.Second

	// capacityEvery heartbeats the space of the disks is looked at.
	capacityEvery = 10
)

// Registration is what a node says of itself to the control group.
type Registration struct {
	Name    string // unique in the cluster
	Addr    string // host:port where clients and peers reach the node
	Roles   dfs.Role
	Release string
	Labels  map[string]string
}

// Hooks plant faults for tests. All are off by default.
type Hooks struct {
	// RefillDoneBeforeDurable reports a refill as done when its blocks are
	// listed, before they are fetched and on disk.
	RefillDoneBeforeDurable bool

	// SkipEpochCheck admits puts and deletes under any epoch that is not in
	// the future; the engine has a hook of its own for its second check.
	SkipEpochCheck bool

	// TrustOldBlocks lets a member that is complete through nothing keep what it
	// has from before, without asking.
	TrustOldBlocks bool
}

// Options configures a Service. Node, Cluster, Engines, Dial, Metas,
// Registration, Offer and SaveNode are needed; the zero value of any other field means
// its default.
type Options struct {
	// Node and Cluster say what the node's directory knows: 0 and the zero
	// value before the control group has answered a registration of it (the
	// number that a founding meta node gives itself is none yet). Offer makes
	// this start durable in the lineage of the node's directory, which it
	// returns, before a registration is sent. SaveNode stores what was answered,
	// durably: this start is on record since a map epoch.
	Node     func() dfs.NodeID
	Cluster  func() dfs.ClusterID
	Offer    func() (dfs.Lineage, error)
	SaveNode func(cluster dfs.ClusterID, node dfs.NodeID, since dfs.Epoch) error

	// Incarnation is that of this start. It changes, and Node with it, when the meta
	// role of the process joins anew; Renewing says that it is about to. Nil: never.
	Incarnation func() dfs.Incarnation
	Renewing    func() bool

	Engines      []*engine.Store // one a disk; the caller closes them after Close
	Disks        []string        // what disk each engine is on; "" and what is missing: one of its own
	Dial         func(addr string) drpc.Conn
	Metas        *metas.Book
	Registration Registration

	Heartbeat      time.Duration // DefaultHeartbeat
	RefillRate     int64         // bytes per second that the node pulls; 0: no limit
	RefillParallel int           // placement groups a store; DefaultRefillParallel
	PutMemory      int64         // bytes; at least dfs.MaxBlockSize; DefaultPutMemory

	UndecidedAge time.Duration // how old a block is when its group is asked whether metadata names it; DefaultUndecidedAge
	TrashKeep    time.Duration // how long garbage stays readable before it is deleted; DefaultTrashKeep

	// Capacity gives a disk's size and what is free of it, in bytes; nil: what
	// the engine says.
	Capacity func(*engine.Store) (total, available uint64)

	OnMap  func(*dfs.Map) // told of every newer map, one at a time; nil: not
	Logger *slog.Logger   // nil: nothing is logged

	// Random returns numbers in [0, 1), from many goroutines; it spreads
	// retries and the choice of sources. nil: the process's generator.
	Random func() float64

	Hooks Hooks
}

func (o *Options) setDefaults() {
	o.Heartbeat = cmp.Or(o.Heartbeat, DefaultHeartbeat)
	o.RefillParallel = cmp.Or(o.RefillParallel, DefaultRefillParallel)
	o.PutMemory = cmp.Or(o.PutMemory, DefaultPutMemory)
	o.UndecidedAge = cmp.Or(o.UndecidedAge, DefaultUndecidedAge)
	o.TrashKeep = cmp.Or(o.TrashKeep, DefaultTrashKeep)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Random == nil {
		o.Random = rand.Float64
	}
	if o.Capacity == nil {
		o.Capacity = func(e *engine.Store) (uint64, uint64) {
			st := e.Stats()
			return st.Capacity, st.Capacity - min(st.Capacity, st.Used)
		}
	}
}

// validate lists every fault.
func (o *Options) validate() error {
	var faults []error
	fault := func(wrong bool, format string, args ...any) {
		if wrong {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	fault(o.Node == nil || o.Cluster == nil || o.Offer == nil || o.SaveNode == nil, "Node, Cluster, Offer and SaveNode are needed")
	fault(o.Dial == nil || o.Metas == nil, "Dial and Metas are needed")
	fault(len(o.Engines) == 0, "no engine: a storage node has at least one store")
	fault(o.Heartbeat < 0, "Heartbeat %v: want a positive time", o.Heartbeat)
	fault(o.RefillRate < 0, "RefillRate %d: want bytes per second, or 0 for no limit", o.RefillRate)
	fault(o.RefillParallel < 0, "RefillParallel %d: want a positive number", o.RefillParallel)
	fault(o.PutMemory < dfs.MaxBlockSize, "PutMemory %d: want at least the %d bytes of the greatest block", o.PutMemory, dfs.MaxBlockSize)
	fault(o.UndecidedAge < 0 || o.TrashKeep < 0, "UndecidedAge %v, TrashKeep %v: want positive times", o.UndecidedAge, o.TrashKeep)
	if len(faults) == 0 {
		return nil
	}
	return &dfs.Error{Kind: dfs.Invalid, Op: "make storage role", Err: errors.Join(faults...)}
}
