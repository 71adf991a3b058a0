package raftgroup

import (
	"cmp"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"dfsd/dfs"
)

// Role is what a replica is in its group.
type Role uint8

// The roles.
const (
	RoleFollower Role = iota
	RoleCandidate
	RoleLeader
	RoleLearner
	RoleOutsider    // no member: joined and not yet added, or removed
	RoleQuarantined // takes no part; Status.Fault says why
)

func (r Role) String() string {
	names := [...]string{"follower", "candidate", "leader", "learner", "outsider", "quarantined"}
	if int(r) < len(names) {
		return names[r]
	}
	return "unknown"
}

// caughtUpSlack is how many entries a learner may lack and still be promoted:
// what a busy group appends in a few rounds.
const caughtUpSlack = 1000

// Progress is what a leader knows of a member.
type Progress struct {
	Node     dfs.NodeID
	Match    uint64 // the highest entry that it has acknowledged
	Learner  bool
	Active   bool // heard of within half an election time-out
	Snapshot bool // is being sent one, or waits for it
}

// Status describes one replica.
type Status struct {
	Group    dfs.GroupID
	Role     Role
	Leader   dfs.NodeID // 0 is none known
	Term     uint64
	Voters   []dfs.NodeID // ascending, of both halves of a joint configuration
	Learners []dfs.NodeID // ascending
	Joint    bool         // a change is half done
	Asleep   bool         // the group is idle

	Applied uint64
	Commit  uint64
	First   uint64 // the first entry that is kept
	Last    uint64
	Hash    StateHash // of what was applied through Applied

	LogBytes  uint64     // of the entries that are kept
	Peers     []Progress // on the leader only; by node, this one included
	NeedState bool       // the state was lost and is being fetched
	Fault     error      // why the replica is quarantined
}

// CaughtUp reports whether a member's log is close enough to the leader's for it
// to become a voter. Only a leader's status knows.
func (s *Status) CaughtUp(n dfs.NodeID) bool {
	i := slices.IndexFunc(s.Peers, func(p Progress) bool { return p.Node == n })
	if i < 0 {
		return false
	}
	p := s.Peers[i]
	return p.Active && !p.Snapshot && p.Match > 0 && p.Match+caughtUpSlack >= s.Last
}

// Office is who leads a group in which term, as a replica knows it.
type Office struct {
	Leader dfs.NodeID // 0 is none known
	Term   uint64
}

// Leader returns who leads a group; ok is false when there is no replica here.
// It waits for no round of the group: for questions that every request asks.
func (h *Host) Leader(g dfs.GroupID) (o Office, ok bool) {
	r := h.replica(g)
	if r == nil {
		return Office{}, false
	}
	return *r.office.Load(), true
}

// Status describes a group's replica here; ok is false when there is none.
func (h *Host) Status(g dfs.GroupID) (st Status, ok bool) {
	r := h.replica(g)
	if r == nil {
		return Status{}, false
	}
	return r.status(), true
}

// Statuses describes every replica, by group.
func (h *Host) Statuses() []Status {
	rs := h.sorted()
	out := make([]Status, 0, len(rs))
	for _, r := range rs {
		out = append(out, r.status())
	}
	return out
}

// Groups lists the groups that have a replica here, ascending.
func (h *Host) Groups() []dfs.GroupID {
	rs := h.sorted()
	out := make([]dfs.GroupID, len(rs))
	for i, r := range rs {
		out[i] = r.id
	}
	return out
}

// Nap returns in which of its sleeps a group's replica is, 0 while it is awake or
// quarantined, or there is none. Within one its status stays as it is, but for a log
// that is cut, of which logBytes tells. For those who look at many groups.
func (h *Host) Nap(g dfs.GroupID) (nap, logBytes uint64) {
	r := h.replica(g)
	if r == nil {
		return 0, 0
	}
	return r.nap.Load(), r.l.size()
}

// LogStats describes the log store, which all groups of a host share.
type LogStats struct {
	Syncs uint64 // batches synced since the start
	Bytes uint64 // of these batches
	Queue int    // writes that wait for the next batch
}

// LogStats returns what the log store does.
func (h *Host) LogStats() LogStats {
	return LogStats{Syncs: h.store.syncs.Load(), Bytes: h.store.bytes.Load(), Queue: h.writer.waiting()}
}

func (r *replica) status() Status {
	a := r.state.now()
	st := Status{
		Group: r.id, Applied: a.index, Hash: a.hash,
		LogBytes: r.l.size(), NeedState: r.state.missing(),
	}
	st.First, st.Last = r.l.bounds()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault != nil {
		st.Role, st.Fault = RoleQuarantined, r.fault
		st.Term = r.term
		return st
	}
	basic := r.raw.BasicStatus()
	st.Leader, st.Term, st.Commit = dfs.NodeID(basic.Lead), basic.GetTerm(), basic.GetCommit()
	st.Voters = nodeIDs(a.conf.GetVoters(), a.conf.GetVotersOutgoing())
	st.Learners = nodeIDs(a.conf.GetLearners())
	st.Joint = len(a.conf.GetVotersOutgoing()) > 0
	st.Role = r.roleIn(&st, basic.RaftState)
	st.Asleep = r.asleep
	if basic.RaftState != raft.StateLeader {
		return st
	}
	r.raw.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		st.Peers = append(st.Peers, Progress{
			Node: dfs.NodeID(id), Match: p.Match, Learner: p.IsLearner,
			Active: r.heardLocked(id), Snapshot: p.State == tracker.StateSnapshot,
		})
	})
	slices.SortFunc(st.Peers, func(a, b Progress) int { return cmp.Compare(a.Node, b.Node) })
	return st
}

// heardLocked reports whether a member answers this leader's heartbeats. The
// library's own note of it is wiped every so often.
func (r *replica) heardLocked(id uint64) bool {
	limit := uint64(max(r.h.opts.ElectionTicks/2, 2*r.h.opts.HeartbeatTicks+1))
	if id == uint64(r.h.opts.Node) {
		return true
	}
	if r.asleep {
		age, ok := r.h.beats.heardSince(dfs.NodeID(id), r.slept)
		return ok && age < limit
	}
	at, ok := r.answered[id]
	return ok && r.ticks-at < limit
}

func (r *replica) roleIn(st *Status, state raft.StateType) Role {
	self := r.h.opts.Node
	switch {
	case r.passive || !slices.Contains(st.Voters, self) && !slices.Contains(st.Learners, self):
		return RoleOutsider
	case slices.Contains(st.Learners, self):
		return RoleLearner
	case state == raft.StateLeader:
		return RoleLeader
	case state == raft.StateFollower:
		return RoleFollower
	default:
		return RoleCandidate
	}
}

func nodeIDs(lists ...[]uint64) []dfs.NodeID {
	var out []dfs.NodeID
	for _, l := range lists {
		for _, id := range l {
			out = append(out, dfs.NodeID(id))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// progressLocked returns, on a leader, what each member has acknowledged.
func (r *replica) progressLocked() map[uint64]uint64 {
	out := map[uint64]uint64{}
	r.raw.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) { out[id] = p.Match })
	return out
}
