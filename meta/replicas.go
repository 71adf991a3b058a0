package meta

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/meta/control"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/repair"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

// hostTick is how often a node looks for replicas that it should not have any
// more; a new map has it look at once.
const hostTick = time.Second

// hostLoop brings the replicas of this node to the map: it makes the first one of
// a group that it founds and destroys those of groups that it is no member of. All
// others begin with a message of their leader, see acceptGroup.
func (s *Service) hostLoop() {
	refused := map[dfs.GroupID]bool{}
	for {
		h := s.host.Load() // another one after damage
		m, next := s.maps.watch()
		if m != nil {
			s.foundGroups(h, m, refused)
			s.leaveGroups(h, m)
		}
		select {
		case <-next:
		case <-time.After(hostTick):
		case <-s.ctx.Done():
			return
		}
	}
}

// acceptGroup says whether a message of a leader makes an empty replica here: of
// a group that lists this node, but for its founder, which begins it.
func (s *Service) acceptGroup(g dfs.GroupID) bool {
	m := s.maps.current()
	if m == nil {
		return false
	}
	me, row := s.opts.Identity.Membership().Node, m.Group(g)
	return row != nil && row.Has(me) && row.Founder != me
}

// foundGroups makes the first replica of each forming group that this node is to
// found. It is this node's alone to make, and its Raft stores know if they had
// one before: so no group begins twice, whatever map is found after a restart. Those
// for which that is refused are noted: it is for good, until the planner abandons
// them, and said once.
func (s *Service) foundGroups(h *raftgroup.Host, m *dfs.Map, refused map[dfs.GroupID]bool) {
	me := s.opts.Identity.Membership().Node
	for _, g := range m.Groups {
		if g.Founder != me {
			continue
		}
		if _, ok := h.Leader(g.ID); ok {
			continue
		}
		s.formStep(g.ID, FormFirst)
		if err := h.CreateGroup(g.ID, []dfs.NodeID{me}); err != nil && !refused[g.ID] {
			refused[g.ID] = true
			s.log.Info("a group is not founded here", "group", uint16(g.ID), "cause", err)
		}
	}
}

// leaveGroups destroys the replicas of groups that do not list this node any
// more, once their leader confirms that it has been removed. All are asked at the
// same time, MaxGroups at the most: one without a leader keeps no other waiting.
func (s *Service) leaveGroups(h *raftgroup.Host, m *dfs.Map) {
	me := s.opts.Identity.Membership().Node
	ctx, cancel := context.WithTimeout(s.ctx, metas.AttemptTimeout)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, g := range h.Groups() {
		if row := m.Group(g); g == dfs.ControlGroup || row != nil && row.Has(me) {
			continue
		}
		wg.Go(func() {
			err := h.DestroyReplica(ctx, g, func(ctx context.Context) (bool, error) { return s.confirmLeft(ctx, h, g) })
			if err != nil {
				s.log.Debug("replica kept", "group", uint16(g), "cause", err)
			}
		})
	}
}

// confirmLeft finds out whether this node is neither listed in a group, as the
// control group has it, nor a member of it, as its leader has it: both confirmed
// by a majority. A group that the control group does not have was abandoned, and
// never held anything.
func (s *Service) confirmLeft(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) (abandoned bool, err error) {
	const op = "leave group"
	me := s.opts.Identity.Membership().Node
	var row *dfs.Group
	err = h.Read(ctx, dfs.ControlGroup, func(r raftgroup.Reader) (err error) {
		if row, err = control.ReadGroup(r, g); err == nil && row == nil {
			var st *wire.ControlState
			st, err = control.ReadState(r)
			abandoned = control.MayDissolve(st, g)
		}
		return err
	})
	switch {
	case err != nil:
		return false, err
	case row == nil && !abandoned: // what the control group has lost, or not seen yet, is not gone for that
		return false, dfs.Errorf(dfs.Unavailable, op, "the control group has not made %v, as far as it knows", g)
	case row == nil:
		return true, nil
	case row.Has(me):
		return false, dfs.Errorf(dfs.Unavailable, op, "%v lists this node", g)
	}
	return false, s.opts.Metas.Call(ctx, g, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		reply, err := c.Replica(ctx, &wire.ReplicaRequest{Group: uint32(g), Leader: true})
		if err == nil && (slices.Contains(reply.Voters, uint32(me)) || slices.Contains(reply.Learners, uint32(me))) {
			return dfs.Errorf(dfs.Invalid, op, "%v has this node as a member", g) // final: asked again at the next look
		}
		return err
	})
}

// Replica implements the meta service.
func (s *Service) Replica(ctx context.Context, req *wire.ReplicaRequest) (*wire.ReplicaReply, error) {
	h, err := s.raft()
	if err != nil {
		return nil, err
	}
	g := dfs.GroupID(req.Group)
	me := s.opts.Identity.Membership().Node
	if req.Leader {
		if o, ok := h.Leader(g); !ok || o.Leader != me || req.Group > maxGroup {
			return nil, &dfs.Error{Kind: dfs.NotLeader, Op: "ask group", Object: g.String(), LeaderHint: s.leaderOf(h, g)}
		}
		if err := h.Read(ctx, g, nothing); err != nil {
			return nil, err
		}
	}
	reply := &wire.ReplicaReply{Node: uint32(me)}
	st, ok := h.Status(g)
	switch {
	case req.Leader && st.Role != raftgroup.RoleLeader: // not any more; without a replica it knows no leader either
		return nil, &dfs.Error{Kind: dfs.NotLeader, Op: "ask group", Object: g.String(), LeaderHint: st.Leader}
	case !ok || req.Group > maxGroup:
		return reply, nil
	}
	reply.Role, reply.Leader, reply.Term = uint32(st.Role)+1, uint32(st.Leader), st.Term
	reply.Voters, reply.Learners = wire.Ints(st.Voters), wire.Ints(st.Learners)
	reply.Applied, reply.Commit, reply.First, reply.Last, reply.LogBytes = st.Applied, st.Commit, st.First, st.Last, st.LogBytes
	reply.Hash, reply.NeedState = st.Hash[:], st.NeedState
	if st.Fault != nil {
		reply.Fault = wire.Text(st.Fault.Error())
	}
	if st.Role == raftgroup.RoleLeader {
		for _, p := range st.Peers {
			reply.Peers = append(reply.Peers, &wire.PeerProgress{Node: uint32(p.Node), Match: p.Match, Active: p.Active, Snapshot: p.Snapshot})
		}
	}
	return reply, nil
}

// maxGroup is the highest number that a group can have.
const maxGroup = 1<<16 - 1

// leaderOf returns who leads a group, 0 when that is not known: by the replica
// here, or as the control leader said.
func (s *Service) leaderOf(h *raftgroup.Host, g dfs.GroupID) dfs.NodeID {
	if o, ok := h.Leader(g); ok && o.Leader != 0 {
		return o.Leader
	}
	s.beats.mu.Lock()
	defer s.beats.mu.Unlock()
	return s.beats.lead[g]
}

// FormStep is a step on the way of a new group.
type FormStep uint8

// The steps.
const (
	FormEntry  FormStep = iota + 1 // the control leader proposes the group, which has no number yet
	FormFirst                      // the founder makes the first replica
	FormInit                       // the group's leader proposes the first state
	FormMember                     // and each change of members
	FormFence                      // and, once the whole list votes, the sessions that have ended
	FormReady                      // and tells the control leader that the group is ready
	FormOpen                       // which proposes that
)

func (s *Service) formStep(g dfs.GroupID, step FormStep) {
	if f := s.opts.FormStep; f != nil {
		f(g, step)
	}
}

// formGroup gives a forming group its first state and, once its whole list votes,
// has the control group open it. Every step may be repeated, by any leader.
func (s *Service) formGroup(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) error {
	m := s.maps.current()
	row := m.Group(g)
	st, ok := h.Status(g)
	if row == nil || row.Ready() || !ok {
		return nil
	}
	begun := false
	err := h.ReadLocal(g, func(r raftgroup.Reader) (err error) {
		begun, err = namespace.Begun(r)
		return err
	})
	if err == nil && !begun {
		s.formStep(g, FormInit)
		err = s.initGroup(ctx, h, g, s.knownBy(ctx, m, row.Replicas))
	}
	if err != nil {
		return err
	}
	if !slices.Equal(st.Voters, row.Replicas) || len(st.Learners) > 0 {
		return nil
	}
	ss, _, err := s.readSessions(ctx, h)
	if err != nil {
		return err
	}
	s.formStep(g, FormFence)
	res, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Fence{Fence: fenceOf(ss)}})
	if err != nil {
		return err
	}
	if err := res.ToError("fence", g.String()); err != nil {
		return err
	}
	s.formStep(g, FormReady)
	return s.opts.Metas.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		_, err := c.GroupReady(ctx, &wire.GroupReadyOp{Group: uint32(g), Replicas: wire.Ints(row.Replicas), SessionIndex: ss.Index})
		return err
	})
}

// initGroup gives a group its first state, which it takes once, at a feature level.
func (s *Service) initGroup(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, level uint32) error {
	data, err := proto.Marshal(&wire.LogEntry{Version: s.clockVersion(), Entry: &wire.LogEntry_Init{Init: &wire.InitOp{Group: uint32(g), Level: level}}})
	if err != nil {
		return err
	}
	_, err = h.Propose(ctx, g, data)
	return err
}

// CreateGroup implements the meta service.
func (s *Service) CreateGroup(ctx context.Context, req *wire.CreateGroupRequest) (*wire.CreateGroupReply, error) {
	if _, err := s.controlLeader(); err != nil {
		return nil, err
	}
	if !s.maps.isFormed() {
		return nil, s.notFormed()
	}
	if len(req.Replicas) == 0 {
		chosen, err := repair.NewGroup(s.groupInput(s.maps.current()))
		if err != nil {
			return nil, err
		}
		req = &wire.CreateGroupRequest{Replicas: wire.Ints(chosen)}
	}
	s.formStep(0, FormEntry)
	reply, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_CreateGroup{CreateGroup: req}})
	if err != nil {
		return nil, err
	}
	s.log.Info("group created", "group", reply.GetCreateGroup().GetGroup(), "replicas", req.Replicas)
	return reply.GetCreateGroup(), nil
}

// ChangeReplicas implements the meta service.
func (s *Service) ChangeReplicas(ctx context.Context, req *wire.ChangeReplicasRequest) (*wire.ChangeReplicasReply, error) {
	if _, err := s.controlLeader(); err != nil {
		return nil, err
	}
	if req.Remove != 0 {
		s.awaitView(ctx, dfs.GroupID(req.Group))
	}
	if err := s.checkChange(req); err != nil {
		return nil, err
	}
	if _, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_ChangeReplicas{ChangeReplicas: req}}); err != nil {
		return nil, err
	}
	s.log.Info("replicas changed by an operator", "group", req.Group, "add", req.Add, "remove", req.Remove)
	return &wire.ChangeReplicasReply{}, nil
}

// awaitView waits until a leader of a group has reported, for no longer than a report
// counts: between the last of one leader and the first of the next there is none.
func (s *Service) awaitView(ctx context.Context, g dfs.GroupID) {
	ctx, cancel := context.WithTimeout(ctx, voteFresh)
	defer cancel()
	for s.beats.groupViews()[g] == nil {
		select {
		case <-time.After(planTick):
		case <-ctx.Done():
			return
		}
	}
}

// checkChange refuses a removal after which no majority of a group would answer,
// as far as its leader said lately, and an addition that cannot be filled.
func (s *Service) checkChange(req *wire.ChangeReplicasRequest) error {
	const op = "change replicas"
	m := s.maps.current()
	if m == nil {
		return dfs.Errorf(dfs.Unavailable, op, "this node has no map yet")
	}
	in := s.groupInput(m)
	row := in.Map.Group(dfs.GroupID(req.Group))
	if row == nil || req.Group > maxGroup {
		return nil // refused when it is applied, with the reason
	}
	add := dfs.NodeID(req.Add)
	switch n := in.Map.Node(add); {
	case add == 0 || n == nil:
	case !in.Up[add]:
		return dfs.Errorf(dfs.Invalid, op, "meta node %s (%v) was not heard of lately: start it first", n.Name, add)
	case in.Full[add]:
		return dfs.Errorf(dfs.NoSpace, op, "the disk of meta node %s (%v) is full to its reserve: free space on it first", n.Name, add)
	}
	if req.Remove == 0 || add == 0 && len(row.Replicas) <= in.Width {
		return nil // refused when it is applied
	}
	v := in.Views[row.ID]
	if v == nil {
		return dfs.Errorf(dfs.Invalid, op, "%v has no leader that was heard of lately: bring a majority of its meta nodes back; see dfsd group show %d", row.ID, row.ID)
	}
	left, there := 0, 0
	for _, n := range v.Voters {
		if n != dfs.NodeID(req.Remove) {
			left++
			if slices.Contains(v.Heard, n) {
				there++
			}
		}
	}
	if there <= left/2 {
		return dfs.Errorf(dfs.Invalid, op, "without n%d only %d of %d voters of %v would answer: start the others first, or add one with dfsd group add-replica %d NODE", req.Remove, there, left, row.ID, row.ID)
	}
	return nil
}

// GroupReady implements the meta service.
func (s *Service) GroupReady(ctx context.Context, op *wire.GroupReadyOp) (*wire.GroupReadyReply, error) {
	if _, err := s.controlLeader(); err != nil {
		return nil, err
	}
	if err := metaOnly(ctx, s.maps.current()); err != nil {
		return nil, err
	}
	s.formStep(dfs.GroupID(op.Group), FormOpen)
	if _, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_GroupReady{GroupReady: op}}); err != nil {
		return nil, err
	}
	s.log.Info("group ready", "group", op.Group)
	return &wire.GroupReadyReply{}, nil
}

// MoveLeader implements the meta service.
func (s *Service) MoveLeader(ctx context.Context, req *wire.MoveLeaderRequest) (*wire.MoveLeaderReply, error) {
	h, err := s.raft()
	if err != nil {
		return nil, err
	}
	g, to, me := dfs.GroupID(req.Group), dfs.NodeID(req.Node), s.opts.Identity.Membership().Node
	m := s.maps.current()
	_, behind := s.controlLeader()
	switch {
	case req.Group > maxGroup || behind == nil && m != nil && m.Group(g) == nil: // others may not know of it yet
		return nil, dfs.Errorf(dfs.NotExist, "move leader", "there is no group %d: dfsd group ls lists them", req.Group)
	case s.leaderOf(h, g) != me:
		return nil, &dfs.Error{Kind: dfs.NotLeader, Op: "move leader", Object: g.String(), LeaderHint: s.leaderOf(h, g)}
	case m == nil:
		return nil, dfs.Errorf(dfs.Unavailable, "move leader", "this node has no map yet")
	case to == me:
		return &wire.MoveLeaderReply{}, nil
	case s.space.full()[to] != nil:
		return nil, dfs.Errorf(dfs.NoSpace, "move leader", "the disk of meta node %s is full to its reserve: it leads nothing", nodeName(m, to))
	}
	if st, ok := h.Status(g); ok {
		if err := mayLead(&st, to, nodeName(m, to)); err != nil {
			return nil, err
		}
	}
	if err := h.TransferLeader(ctx, g, to); err != nil {
		return nil, err
	}
	s.log.Info("leadership handed over", "group", uint16(g), "to", uint32(to), "why", "an operator asked for it")
	return &wire.MoveLeaderReply{}, nil
}

// mayLead refuses to hand a group, of which st is the leader's, to a voter that could
// not take it over at once: it takes no changes until then, or until that is given up.
func mayLead(st *raftgroup.Status, to dfs.NodeID, name string) error {
	const op = "move leader"
	for _, p := range st.Peers {
		switch {
		case p.Node != to || p.Learner:
		case !p.Active:
			return dfs.Errorf(dfs.Invalid, op, "meta node %s (%v) does not answer the leader: start it first", name, to)
		case p.Snapshot || p.Match+handoverSlack < st.Last:
			return dfs.Errorf(dfs.Busy, op, "meta node %s (%v) has not caught up: it has entry %d of %d", name, to, p.Match, st.Last)
		}
	}
	return nil
}
