package raftgroup

import (
	"maps"
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"dfsd/dfs"
)

// What a leader has to say to a follower is worth more when it is said at once:
// a message, a batch of either store and an acknowledgement cost the same for one
// entry as for a hundred.
//
//   - A commit that is news for a follower waits for what carries it too, or for a
//     moment: for the next entries that go there, or the heartbeat by which a read
//     of that follower is confirmed. Nobody waits for it on the leader.
//   - Proposals wait while the leader's own append is under way. Before its end
//     the log store would not begin to sync them, and the library has nothing applied
//     on the leader that is not synced there.

// holdTime is how long a commit waits at least, and twice that at most: what is
// read without asking the leader, such as the map, is old by so much.
const holdTime = 5 * time.Millisecond

// heldCommit is an append without entries.
type heldCommit struct {
	f   frame
	old bool // a moment has passed since
}

// appendsLocked reports whether, on a leader, an append of its own is under way.
func (r *replica) appendsLocked() bool {
	_, last := r.l.bounds()
	return r.role == raft.StateLeader && last < r.logEnd
}

// peerState is what a leader knows of a member.
type peerState struct {
	match      uint64 // acknowledged
	replicates bool   // it takes entries as they come
}

// peersLocked returns, on a leader with something to say, what it knows of whom.
func (r *replica) peersLocked(ms []*pb.Message) map[uint64]peerState {
	if r.role != raft.StateLeader {
		return nil
	}
	for _, m := range ms {
		if t := m.GetType(); t == pb.MsgApp || t == pb.MsgHeartbeat {
			out := map[uint64]peerState{}
			r.raw.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
				out[id] = peerState{p.Match, p.State == tracker.StateReplicate}
			})
			return out
		}
	}
	return nil
}

// sendLocked sends a message of the library, or holds it.
func (r *replica) sendLocked(m *pb.Message, peers map[uint64]peerState, out *outbox) {
	to := m.GetTo()
	f := frame{kind: frameRaft, group: r.id, generation: r.generation, msg: m, acked: peers[to].match}
	switch m.GetType() {
	case pb.MsgHeartbeat, pb.MsgHeartbeatResp:
		f.checkIndex, f.checkHash = r.state.checkpoint()
	case pb.MsgApp:
		if len(m.GetEntries()) == 0 && peers[to].replicates {
			r.holdLocked(to, f)
			return
		}
		delete(r.held, to)
	}
	out.add(dfs.NodeID(to), laneOf(m), &f)
}

func (r *replica) holdLocked(to uint64, f frame) {
	if r.held == nil {
		r.held = map[uint64]*heldCommit{}
	}
	if h := r.held[to]; h != nil {
		h.f = f // it says what the one before said
		return
	}
	r.held[to] = &heldCommit{f: f}
	r.holdsLocked()
}

// holdsLocked has the replica asked for what it holds in a moment.
func (r *replica) holdsLocked() {
	if !r.holding {
		r.holding = true
		r.h.holders.add(r)
	}
}

// sayLocked sends what is held for a peer.
func (r *replica) sayLocked(to uint64, out *outbox) {
	if h := r.held[to]; h != nil {
		delete(r.held, to)
		out.add(dfs.NodeID(to), LaneBulk, &h.f)
	}
}

// ageLocked sends what has been held for a moment.
func (r *replica) ageLocked(out *outbox) {
	for _, to := range slices.Sorted(maps.Keys(r.held)) {
		if h := r.held[to]; !h.old {
			h.old = true
			r.holdsLocked()
			continue
		}
		r.sayLocked(to, out)
	}
}

// releaseLocked sends what is held for all.
func (r *replica) releaseLocked(out *outbox) {
	for _, to := range slices.Sorted(maps.Keys(r.held)) {
		r.sayLocked(to, out)
	}
}

// holders are the replicas that hold something.
type holders struct {
	some chan struct{} // one buffered: the list is not empty any more

	mu   sync.Mutex
	list []*replica // each at most once, see replica.holding
}

func (s *holders) add(r *replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list = append(s.list, r); len(s.list) == 1 {
		select {
		case s.some <- struct{}{}:
		default:
		}
	}
}

func (s *holders) take() []*replica {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := s.list
	s.list = nil
	return got
}

// remind asks the replicas that hold something for it, until the host ends.
func (h *Host) remind() {
	for {
		select {
		case <-h.holders.some:
		case <-h.ctx.Done():
			return
		}
		select {
		case <-time.After(holdTime):
		case <-h.ctx.Done():
			return
		}
		for _, r := range h.holders.take() {
			r.in.addReminder()
			h.workers.schedule(r)
		}
	}
}
