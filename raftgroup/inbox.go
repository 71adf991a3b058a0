package raftgroup

import (
	"slices"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/raft/v3/raftpb"

	"dfsd/dfs"
)

// maxTicks bounds the ticks that wait for a worker: a host that was busy must
// not take its own delay for a leader's silence.
const maxTicks = 2

// budget bounds the bytes that all groups of a host hold together.
type budget struct {
	limit int64
	used  atomic.Int64 // 0 <= used <= limit, but for the moment of a refusal
}

func newBudget(limit int) *budget { return &budget{limit: int64(limit)} }

// take reserves n bytes; false says that they are not there.
func (b *budget) take(n int) bool {
	if b.used.Add(int64(n)) <= b.limit {
		return true
	}
	b.give(n)
	return false
}

func (b *budget) give(n int) { b.used.Add(-int64(n)) }

// inbox is what waits for a worker to step it into a replica.
type inbox struct {
	limit int // bytes of frames; Raft sends again what is dropped
	all   *budget

	mu    sync.Mutex
	load  inboxLoad
	bytes int // of load.frames
}

// inboxLoad is one round's work.
type inboxLoad struct {
	frames      []frame
	local       []*pb.Message // answers of the own storage: never dropped, bounded by what it was given
	unreachable []dfs.NodeID  // each at most once
	installs    []*install    // at most one: state.receiving
	ticks       int           // 0 <= ticks <= maxTicks
	proposals   []*proposal   // bounded by proposals.limit
	reminder    bool          // of what the replica holds
}

func (in *inbox) take() inboxLoad {
	in.mu.Lock()
	defer in.mu.Unlock()
	got := in.load
	in.all.give(in.bytes)
	in.load, in.bytes = inboxLoad{}, 0
	return got
}

// addFrame queues a peer's message; false says that the inbox is full.
func (in *inbox) addFrame(f frame) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	n := 64 + f.size
	if in.bytes+n > in.limit || !in.all.take(n) {
		return false
	}
	in.bytes += n
	in.load.frames = append(in.load.frames, f)
	return true
}

func (in *inbox) addLocal(m *pb.Message) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.load.local = append(in.load.local, m)
}

func (in *inbox) addInstall(i *install) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.load.installs = append(in.load.installs, i)
}

func (in *inbox) addUnreachable(to dfs.NodeID) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if slices.Contains(in.load.unreachable, to) {
		return false
	}
	in.load.unreachable = append(in.load.unreachable, to)
	return true
}

func (in *inbox) addTick() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.load.ticks = min(in.load.ticks+1, maxTicks)
}

func (in *inbox) addReminder() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.load.reminder = true
}

func (in *inbox) addProposal(p *proposal) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.load.proposals = append(in.load.proposals, p)
}
