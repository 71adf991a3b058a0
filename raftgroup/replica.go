package raftgroup

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// maxRound bounds the Readies of one round of one replica, so that a busy
// group does not keep a worker from the others.
const maxRound = 16

// replica is one group's member on this host.
//
//	              library panic, broken invariant
//	serving ───────────────────────────────────────────▶ quarantined
//	 │   ▲                                                    ▲
//	 │   └── state installed ── needs state ──────────────────┘
//	 ├── leader says: removed ──▶ passive ── leader's append ──▶ serving
//	 ├── no member, as a leader confirms, ended or not ──▶ destroyed, see DestroyReplica
//	 └── set aside for a recovery, recovered, overtaken by one: see recover.go
//
// Locks are taken in the order state.gate, mu, any other; nothing that waits
// for another node or for time happens under any of them.
type replica struct {
	h  *Host
	id dfs.GroupID
	sm StateMachine
	l  *groupLog

	generation uint64 // of the group, see recover.go; of another one a replica object of its own

	work, apply slot // of the two schedulers

	in        inbox
	proposals proposals
	reads     reads
	queue     applyQueue
	state     state

	// office is who leads, for those who must not wait for a round; written
	// under mu.
	office atomic.Pointer[Office]
	nap    atomic.Uint64 // see Nap; written likewise

	mu  sync.Mutex // guards what follows; held while the RawNode is stepped
	raw *raft.RawNode

	lead, term uint64 // as last told to OnLeaderChange
	role       raft.StateType
	ticks      uint64 // counted since the start

	// logEnd and logTerm are the last index handed to the log writer and the
	// term then: what a leader may hold this replica to.
	logEnd, logTerm uint64

	fault     error         // why the replica does and answers nothing any more; nil while it does
	ill       error         // the fault that put it into quarantine, for the life of this host; nil: none
	aside     bool          // it was set aside for a recovery
	overtaken bool          // a later generation of the group takes its place
	passive   bool          // a leader said that this node is no longer a member
	leaving   bool          // about to be destroyed, and no leader has spoken since: see DestroyReplica
	changed   chan struct{} // closed and replaced when lead, term or members change

	// confDone is the index of the last configuration change that the library
	// was given. confFloor is the index of the last snapshot that the library restored: it
	// has the configuration up to there, and what was handed out before is void.
	confDone, confFloor uint64

	// asleep says that the replica does not tick, see quiesce.go, and slept since
	// which tick of the host. busy is the tick at which it last had something to
	// do, lastFrame that of the last message of any peer.
	asleep          bool
	slept           uint64
	busy, lastFrame uint64
	naps            uint64 // how often it went to sleep

	// held is, on a leader, what has no more to say to a peer than a commit, see
	// coalesce.go; holding says that a reminder will come. waiting are proposals
	// that wait for an append that is under way.
	held    map[uint64]*heldCommit
	holding bool
	waiting []*proposal

	// reports holds, on the leader of reportTerm, the newest checkpoint of each peer;
	// doubted is the tick since which the state is in doubt, 0: it is not.
	reports    map[uint64]checkpoint
	reportTerm uint64
	doubted    uint64
	doubt      error
	dropping   bool // the state is being given up

	// lastWants is the tick at which the state was last asked for.
	lastWants uint64
	// seen holds, for each peer, the tick of its last message.
	seen map[uint64]uint64
	// answered holds that of its last answer to a leader's append or heartbeat.
	answered map[uint64]uint64
	// sending holds the snapshots on their way to peers, and who follows one.
	sending map[dfs.NodeID]*transfer
}

// round is what one round of a replica does after its lock is released.
type round struct {
	leaderChanged bool
	lead, term    uint64
	snapshots     []*pb.Message
	removed       []dfs.NodeID // nodes to tell that they are no members
	removedAt     uint64
	differs       []differing
	wantState     []dfs.NodeID // to be asked for the state
	quiesce       *frame       // the last message that came, if it is one that asks to sleep
	apply         int          // entries that were given to the applier, who has to be woken
}

func (r *replica) config() *raft.Config {
	o := &r.h.opts
	reads := raft.ReadOnlySafe
	if o.Hooks.LeaseReads {
		reads = raft.ReadOnlyLeaseBased
	}
	return &raft.Config{
		ID:                        uint64(o.Node),
		ElectionTick:              o.ElectionTicks,
		HeartbeatTick:             o.HeartbeatTicks,
		Storage:                   r.l,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             maxMessageEntries,
		MaxCommittedSizePerReady:  maxApplyBytes,
		MaxUncommittedEntriesSize: uint64(o.MaxProposalQueue),
		MaxInflightMsgs:           o.MaxInflight,
		MaxInflightBytes:          uint64(o.MaxInflightBytes),
		CheckQuorum:               true,
		PreVote:                   true,
		ReadOnlyOption:            reads,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
		Logger:                    raftLogger{r.h.log.With("group", uint16(r.id))},
	}
}

// Sizes of the library's units of work, in bytes. One message stays well under
// MaxBatch unless one command alone is bigger.
const (
	maxMessageEntries = 256 << 10
	maxApplyBytes     = 4 << 20
)

// guardLocked runs fn and turns a panic of the library into a quarantine.
func (r *replica) guardLocked(fn func()) {
	defer func() {
		if p := recover(); p != nil {
			r.h.log.Error("raft library panicked", "group", uint16(r.id), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			r.quarantineLocked(dfs.Errorf(dfs.Internal, "step raft", "%v: %v", r.id, p))
		}
	}()
	fn()
}

// round works through the inbox and hands out what comes of it.
func (r *replica) round(out *outbox) round {
	got := r.in.take()
	r.h.failpoint(r.id, FailTaken)
	r.mu.Lock()
	defer r.mu.Unlock()
	var rd round
	if r.fault != nil {
		r.refuseLocked(got)
		return rd
	}
	r.holding = r.holding && !got.reminder
	r.guardLocked(func() {
		if r.asleep {
			if !r.rousedLocked(&got) {
				return
			}
			r.wakeLocked()
		}
		r.stepAllLocked(got, &rd)
		if got.reminder {
			r.ageLocked(out)
		}
		r.h.failpoint(r.id, FailStepped)
		for range maxRound {
			if r.fault != nil || !r.raw.HasReady() {
				break
			}
			r.readyLocked(out, &rd)
			r.h.failpoint(r.id, FailHandedOut)
		}
		if r.fault == nil {
			r.restLocked(&got, &rd, out)
		}
	})
	if r.fault != nil {
		r.refuseLocked(got)
		return rd
	}
	for _, inst := range got.installs {
		r.dropInstallLocked(inst)
	}
	if r.raw.HasReady() || r.reads.pending() {
		r.h.workers.schedule(r)
	}
	return rd
}

func (r *replica) stepAllLocked(got inboxLoad, rd *round) {
	if got.busy() || r.reads.pending() {
		r.busy = r.ticks
	}
	for i := range got.frames {
		if r.stepFrameLocked(&got.frames[i], rd); r.fault != nil {
			return
		}
	}
	for _, inst := range got.installs {
		r.stepInstallLocked(inst)
	}
	for _, m := range got.local {
		_ = r.raw.Step(m) // an answer of the own storage; the library ignores what is stale
	}
	for _, to := range got.unreachable {
		r.raw.ReportUnreachable(uint64(to))
	}
	for range got.ticks {
		r.tickLocked(rd)
	}
	r.waiting = append(r.waiting, got.proposals...)
	if !r.appendsLocked() {
		r.proposeLocked(r.waiting)
		r.waiting = nil
	}
	r.issueReadsLocked()
}

// tickLocked advances time by a tick. A replica without a say does not campaign.
func (r *replica) tickLocked(rd *round) {
	r.ticks++
	r.proposals.expire(r.ticks)
	for _, key := range r.reads.overdue(r.ticks) {
		r.raw.ReadIndex(key)
	}
	r.awaitVerdictLocked()
	if r.fault != nil {
		return
	}
	missing := r.state.missing()
	if !r.passive && !r.state.unfit() {
		if !r.drowsyLocked() {
			r.raw.Tick()
		}
		return
	}
	// The library's clock stands still, or it would campaign. So it has to be
	// told that its leader is silent: it votes for no other before. One that sleeps
	// is heard by its node, and is asked for the state there.
	if r.silentLeaderLocked() && !r.sleepsLocked(r.lead) {
		_ = r.raw.ForgetLeader()
	}
	if missing {
		r.wantStateLocked(rd)
	}
}

// silentLeaderLocked reports whether nothing came from the leader's replica for an
// election time-out.
func (r *replica) silentLeaderLocked() bool {
	return r.lead != raft.None && r.ticks-r.seen[r.lead] >= uint64(r.h.opts.ElectionTicks)
}

// stepFrameLocked steps one message of a peer, after it has been checked
// against what this replica promised.
func (r *replica) stepFrameLocked(f *frame, rd *round) {
	rd.quiesce = nil
	r.lastFrame = r.ticks
	switch f.kind {
	case frameRemoved:
		r.removedLocked(f.removed)
		return
	case frameQuiesce:
		rd.quiesce = f
		return
	case frameDiffers:
		r.verdictLocked(f.differs)
		return
	case frameNeedState, frameBeat, frameRecovered:
		return // taken by the host before it came here
	}
	m := f.msg
	r.seen[m.GetFrom()] = r.ticks
	if r.checkPromiseLocked(f); r.fault != nil {
		return
	}
	if f.checkIndex > 0 {
		r.checkLocked(m.GetFrom(), checkpoint{f.checkIndex, f.checkHash}, rd)
	}
	switch m.GetType() {
	case pb.MsgApp, pb.MsgHeartbeat:
		r.leaving = false
		if m.GetTerm() >= r.logTerm {
			r.passive = false // a leader that has us as a member
		}
	case pb.MsgAppResp, pb.MsgHeartbeatResp:
		r.answered[m.GetFrom()] = r.ticks
		if r.h.opts.Hooks.CountLearners {
			r.countLearnerLocked(m)
		}
	case pb.MsgTimeoutNow:
		if r.state.unfit() {
			return
		}
	case pb.MsgReadIndex:
		// A follower's library would pass it on in the asker's name. The
		// asker sends again once it knows the leader.
		if r.raw.BasicStatus().RaftState != raft.StateLeader {
			return
		}
	case pb.MsgPreVote, pb.MsgVote:
		if r.logEnd < firstIndex {
			return // without a log it stands for nothing, see DestroyReplica
		}
		// What tickLocked does not see: a leader that was given up while its node is heard.
		if (r.passive || r.state.unfit()) && r.silentLeaderLocked() {
			_ = r.raw.ForgetLeader()
		}
		r.tellRemovedLocked(m, rd)
	}
	_ = r.raw.Step(m) // errors: the sender is no member, which is no fault of ours
}

// checkPromiseLocked quarantines the replica when a leader of its term, or of
// a later one, knows it to have had entries that it has not. The library would
// panic on a commit index beyond the log, and be stuck on the rest.
func (r *replica) checkPromiseLocked(f *frame) {
	m, promised := f.msg, f.acked
	if m.GetType() == pb.MsgHeartbeat {
		promised = max(promised, m.GetCommit())
	}
	if m.GetTerm() >= r.logTerm && promised > r.logEnd {
		r.damagedLocked(dfs.Errorf(dfs.Corrupt, "follow leader", "%v acknowledged entry %d of term %d and has a log that ends at %d: it lost what it promised to keep", r.id, promised, m.GetTerm(), r.logEnd))
	}
}

// readyLocked hands out one Ready.
func (r *replica) readyLocked(out *outbox, rd *round) {
	ready := r.raw.Ready()
	if ready.SoftState != nil || !raft.IsEmptyHardState(ready.HardState) {
		r.observeLocked(rd)
	}
	for _, rs := range ready.ReadStates {
		r.reads.confirm(rs.RequestCtx, rs.Index, &r.state)
	}
	var write *logWrite
	var work *applyItem
	peers := r.peersLocked(ready.Messages)
	for _, m := range ready.Messages {
		switch {
		case m.GetTo() == raft.LocalAppendThread:
			write = r.newWriteLocked(m)
		case m.GetTo() == raft.LocalApplyThread:
			work = newApplyItem(m)
		case m.GetType() == pb.MsgSnap:
			rd.snapshots = append(rd.snapshots, m)
		default:
			r.sendLocked(m, peers, out)
		}
	}
	if work != nil && work.hasConfChange() {
		r.releaseLocked(out) // who is removed hears nothing after it
		if !r.h.opts.Hooks.ConfBeforeSync {
			write = r.gateLocked(write, work)
		}
	}
	if work != nil {
		r.queue.push(work)
		rd.apply += len(work.entries)
	}
	if write != nil {
		r.h.writer.push(write)
	}
}

// newWriteLocked makes a log write of the library's append message.
func (r *replica) newWriteLocked(m *pb.Message) *logWrite {
	w := &logWrite{r: r, entries: m.GetEntries(), responses: m.GetResponses(), sync: len(m.GetResponses()) > 0}
	if m.Term != nil {
		w.hard = hardState(m.GetTerm(), m.GetVote(), m.GetCommit())
		if r.h.opts.Hooks.ForgetVote {
			w.hard.Vote = nil
		}
	}
	if r.h.opts.Hooks.CountUnsynced && r.role == raft.StateLeader {
		w.sync = false
	}
	if m.GetSnapshot() != nil {
		if w.install = r.state.received(m.GetSnapshot()); w.install == nil {
			panic("a snapshot that was not received")
		}
		w.install.taken = true
		r.logEnd = m.GetSnapshot().GetMetadata().GetIndex()
		r.confFloor = r.logEnd
	}
	if n := len(w.entries); n > 0 {
		r.logEnd = w.entries[n-1].GetIndex()
		r.proposals.place(w.entries)
	}
	r.logTerm = r.raw.BasicStatus().GetTerm()
	return w
}

// gateLocked holds work, which has a configuration change, until a hard state
// that covers its commit index is synced.
func (r *replica) gateLocked(write *logWrite, work *applyItem) *logWrite {
	if write == nil {
		write = &logWrite{r: r}
	}
	hs := r.raw.BasicStatus().HardState
	write.hard = hardState(hs.GetTerm(), hs.GetVote(), hs.GetCommit())
	write.sync = true
	work.closed = true
	write.opens = work
	return write
}

// observeLocked notes who leads in which term.
func (r *replica) observeLocked(rd *round) {
	st := r.raw.BasicStatus()
	was := r.role
	r.role = st.RaftState
	if st.Lead == r.lead && st.GetTerm() == r.term {
		return
	}
	r.lead, r.term = st.Lead, st.GetTerm()
	r.office.Store(&Office{Leader: dfs.NodeID(r.lead), Term: r.term})
	clear(r.held)
	rd.leaderChanged, rd.lead, rd.term = true, r.lead, r.term
	if was == raft.StateLeader {
		r.proposals.orphan(r.ticks + uint64(r.h.opts.ElectionTicks))
	}
	r.signalLocked()
}

// signalLocked wakes who waits for a change of leader or members.
func (r *replica) signalLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// quarantineLocked takes the replica out of its group for the life of this
// host: it answers nothing any more. Only an empty one that takes its place, and
// is sent the state, is sound again.
func (r *replica) quarantineLocked(err error) {
	if r.fault != nil {
		return
	}
	r.h.log.Error("replica quarantined", "group", uint16(r.id), "cause", err)
	r.ill = err
	r.endLocked(err)
}

// inheritLocked keeps in quarantine what was started from the stores of a replica that is.
func (r *replica) inheritLocked(ill error) {
	if ill == nil {
		return
	}
	r.ill = ill
	if r.fault == nil {
		r.term = r.logTerm
		r.endLocked(ill)
	}
}

// endLocked lets the replica do and answer nothing any more.
func (r *replica) endLocked(err error) {
	r.fault = err
	r.nap.Store(0)
	r.office.Store(&Office{Term: r.term})
	r.state.fail(err)
	r.proposals.close(err)
	r.refuseWaitingLocked()
	r.reads.close(err)
	r.signalLocked()
	r.h.awake.remove(r)
	r.h.beats.alarm() // who sleeps under this replica hears of it in no other way
}

// damagedLocked takes the replica and its whole host out: the replica's log has
// lost what it acknowledged, so the log store has lost what it synced, and nobody
// knows of which other groups.
func (r *replica) damagedLocked(err error) {
	if r.fault != nil || r.h.opts.Hooks.IgnoreDamage {
		return
	}
	r.quarantineLocked(err)
	r.h.failLog(err)
}

// refuseWaitingLocked ends, in a replica that has ended, what waits for an append.
func (r *replica) refuseWaitingLocked() {
	for _, p := range r.waiting {
		p.finishUnapplied(r.fault)
	}
	r.waiting = nil
}

// refuseLocked answers what came for a quarantined replica.
func (r *replica) refuseLocked(got inboxLoad) {
	r.refuseWaitingLocked()
	for _, p := range got.proposals {
		p.finishUnapplied(r.fault)
	}
	for _, inst := range got.installs {
		r.dropInstallLocked(inst)
	}
	r.reads.close(r.fault)
}

// unreachable reports that a message to a peer was dropped.
func (r *replica) unreachable(to dfs.NodeID) {
	if r.in.addUnreachable(to) {
		r.h.workers.schedule(r)
	}
}

// snapshotMetadata describes the applied state for a peer that needs it whole.
func (r *replica) snapshotMetadata() (*pb.SnapshotMetadata, error) {
	a := r.state.now()
	if a.index == 0 || r.state.missing() || r.h.opts.OpenSnapshot == nil {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &pb.SnapshotMetadata{
		Index:     proto.Uint64(a.index),
		Term:      proto.Uint64(a.term),
		ConfState: proto.Clone(a.conf).(*pb.ConfState),
	}, nil
}
