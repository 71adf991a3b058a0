package raftgroup

import (
	"context"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// Change is one step of a membership change.
type Change struct {
	Node dfs.NodeID
	To   Membership
}

// Membership is what a node is to become.
type Membership uint8

// The memberships.
const (
	Learner Membership = iota + 1 // receives the log, has no vote
	Voter
	None // no member
)

// AddLearner makes a node a learner of a group. It must have, or accept, an
// empty replica. Only the leader can; errors are those of Propose.
func (h *Host) AddLearner(ctx context.Context, g dfs.GroupID, node dfs.NodeID) error {
	return h.ChangeMembers(ctx, g, Change{node, Learner})
}

// Promote makes a learner that has caught up a voter. Busy: it has not.
func (h *Host) Promote(ctx context.Context, g dfs.GroupID, node dfs.NodeID) error {
	return h.ChangeMembers(ctx, g, Change{node, Voter})
}

// RemoveReplica removes a node from a group. A leader that removes itself steps
// down once it is done.
func (h *Host) RemoveReplica(ctx context.Context, g dfs.GroupID, node dfs.NodeID) error {
	return h.ChangeMembers(ctx, g, Change{node, None})
}

// ChangeMembers applies changes to a group's members, all at once: several go
// through a joint configuration, in which both the old and the new majority
// must agree, and which the group leaves by itself. What is so already is left
// out. Errors are those of Propose; also Busy while another change is under way
// or a node to be made a voter has not caught up, and Invalid when no voter
// would be left.
func (h *Host) ChangeMembers(ctx context.Context, g dfs.GroupID, changes ...Change) error {
	r, err := h.find(g)
	if err != nil {
		return err
	}
	st := r.status()
	if st.Fault != nil {
		return unavailable("change members", st.Fault)
	}
	if st.Role != RoleLeader {
		return &dfs.Error{Kind: dfs.NotLeader, Op: "change members", Object: g.String(), LeaderHint: st.Leader}
	}
	singles, err := plan(&st, changes)
	if err != nil || len(singles) == 0 {
		return err
	}
	id := h.newProposalID()
	cc := &pb.ConfChangeV2{Context: id.append(nil), Changes: singles}
	typ, data, err := pb.MarshalConfChange(cc)
	if err != nil {
		return err
	}
	_, err = r.propose(ctx, id, &pb.Entry{Type: typ.Enum(), Data: data}, 1)
	return err
}

// plan turns the changes that are not so already into the library's.
func plan(st *Status, changes []Change) ([]*pb.ConfChangeSingle, error) {
	const op = "change members"
	if st.Joint {
		return nil, dfs.Errorf(dfs.Busy, op, "%v: another change is under way", st.Group)
	}
	voters := slices.Clone(st.Voters)
	var out []*pb.ConfChangeSingle
	for _, c := range changes {
		typ := pb.ConfChangeType_ConfChangeRemoveNode
		voter, learner := slices.Contains(st.Voters, c.Node), slices.Contains(st.Learners, c.Node)
		switch {
		case c.Node == 0 || c.To < Learner || c.To > None:
			return nil, dfs.Errorf(dfs.Invalid, op, "%v: node %v to membership %d", st.Group, c.Node, c.To)
		case c.To == Learner && learner, c.To == Voter && voter, c.To == None && !voter && !learner:
			continue
		case c.To == Voter && !st.CaughtUp(c.Node):
			return nil, dfs.Errorf(dfs.Busy, op, "%v: node %v has not caught up", st.Group, c.Node)
		case c.To == Voter:
			typ = pb.ConfChangeType_ConfChangeAddNode
			voters = append(voters, c.Node)
		case c.To == Learner:
			typ = pb.ConfChangeType_ConfChangeAddLearnerNode
		}
		if c.To != Voter {
			voters = slices.DeleteFunc(voters, func(n dfs.NodeID) bool { return n == c.Node })
		}
		out = append(out, &pb.ConfChangeSingle{Type: typ.Enum(), NodeId: proto.Uint64(uint64(c.Node))})
	}
	if len(voters) == 0 {
		return nil, dfs.Errorf(dfs.Invalid, op, "%v: no voter would be left", st.Group)
	}
	return out, nil
}

// countLearnerLocked is Hooks.CountLearners.
func (r *replica) countLearnerLocked(m *pb.Message) {
	st := r.raw.Status()
	if _, learner := st.Config.Learners[m.GetFrom()]; !learner {
		return
	}
	for id := range st.Config.Voters[0] {
		if id != uint64(r.h.opts.Node) {
			_ = r.raw.Step(&pb.Message{Type: m.Type, From: proto.Uint64(id), To: m.To, Term: m.Term, Index: m.Index, Commit: m.Commit})
		}
	}
}

// tellRemovedLocked answers a campaign of a node that this leader has removed:
// nothing else reaches it.
func (r *replica) tellRemovedLocked(m *pb.Message, rd *round) {
	if r.role != raft.StateLeader {
		return
	}
	if _, member := r.progressLocked()[m.GetFrom()]; !member {
		rd.removed = append(rd.removed, dfs.NodeID(m.GetFrom()))
		rd.removedAt = r.confDone
	}
}

// removedLocked takes a leader's word that a change at index removed this node.
// A replica that has applied as much knows better.
func (r *replica) removedLocked(index uint64) {
	if r.confDone >= index || r.confFloor >= index || r.role == raft.StateLeader {
		return
	}
	if !r.passive {
		r.h.log.Info("removed from the group", "group", uint16(r.id), "index", index)
	}
	r.passive = true
}

// TransferLeader hands a group's leadership to another voter and returns once
// that one leads. NotLeader: this node does not lead. Invalid: the other is no
// voter. Unavailable: it did not take over within two election time-outs.
func (h *Host) TransferLeader(ctx context.Context, g dfs.GroupID, to dfs.NodeID) error {
	const op = "move leader"
	r, err := h.find(g)
	if err != nil {
		return err
	}
	if err := r.beginTransfer(to); err != nil {
		return err
	}
	late := time.NewTimer(2 * time.Duration(h.opts.ElectionTicks) * h.opts.Tick)
	defer late.Stop()
	for {
		lead, changed := r.leader()
		if lead == to {
			return nil
		}
		select {
		case <-changed:
		case <-late.C:
			return dfs.Errorf(dfs.Unavailable, op, "%v: node %v did not take over", g, to)
		case <-ctx.Done():
			return dfs.Errorf(dfs.Unavailable, op, "%v: node %v did not take over in the time given", g, to)
		case <-h.closing:
			return errClosing(op)
		}
	}
}

// leader returns the leader, 0 when none is known, and what is closed when that
// changes.
func (r *replica) leader() (dfs.NodeID, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return dfs.NodeID(r.lead), r.changed
}

func (r *replica) beginTransfer(to dfs.NodeID) error {
	const op = "move leader"
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault != nil {
		return unavailable(op, r.fault)
	}
	st := r.raw.Status()
	if st.RaftState != raft.StateLeader {
		return &dfs.Error{Kind: dfs.NotLeader, Op: op, Object: r.id.String(), LeaderHint: dfs.NodeID(st.Lead)}
	}
	if _, ok := st.Config.Voters.IDs()[uint64(to)]; !ok {
		return dfs.Errorf(dfs.Invalid, op, "%v: node %v is no voter", r.id, to)
	}
	r.guardLocked(func() {
		r.wakeLocked()
		r.busy = r.ticks
		r.raw.TransferLeader(uint64(to))
	})
	r.h.workers.schedule(r)
	return r.fault
}

// TransferAll hands over the leadership of every group that this node leads
// and another voter could, as far as the time given allows.
func (h *Host) TransferAll(ctx context.Context) {
	done := make(chan error)
	n := 0
	for _, st := range h.Statuses() {
		to := successor(&st, h.opts.Node)
		if to == 0 {
			continue
		}
		if h.spawn(func() {
			done <- h.TransferLeader(ctx, st.Group, to)
		}) {
			n++
		}
	}
	kept := 0
	var last error
	for range n {
		if err := <-done; err != nil {
			kept, last = kept+1, err
		}
	}
	if kept > 0 { // the others may be stopping too
		h.log.Info("leadership not handed over", "groups", kept, "of", n, "cause", last)
	}
}

// successor is the other voter with the longest log that is known, of those that
// answer if any does; 0 when there is no other voter.
func successor(st *Status, self dfs.NodeID) dfs.NodeID {
	if st.Role != RoleLeader {
		return 0
	}
	var best Progress
	for _, p := range st.Peers {
		switch {
		case p.Node == self || p.Learner:
		case best.Node == 0, p.Active && !best.Active, p.Active == best.Active && p.Match > best.Match:
			best = p
		}
	}
	return best.Node
}
