package meta

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/meta/control"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// What an operator does about groups that have lost a majority: dfsd group recover asks
// every meta node what it has, and takes the steps of its plan at each of them. No
// leader is needed. What raftgroup does is in raftgroup/recover.go; the recovered group
// begins with an entry that says so.

// Survivors implements the meta service.
func (s *Service) Survivors(context.Context, *wire.SurvivorsRequest) (*wire.SurvivorsReply, error) {
	h, err := s.raft()
	if err != nil {
		return nil, err
	}
	ms := s.opts.Identity.Membership()
	reply := &wire.SurvivorsReply{Name: s.opts.Name, Cluster: ms.Cluster.Bytes(), Node: uint32(ms.Node)}
	if m := s.maps.current(); m != nil {
		reply.Epoch = uint64(m.Epoch)
	}
	for _, g := range h.Groups() {
		sv, ok, err := h.Survivor(g)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		out := survivorOf(&sv)
		if sv.Unreadable == nil {
			out.Begun, out.Unfenced = s.begun(h, g)
		} else {
			s.log.Warn("a replica cannot be read for a recovery", "group", uint16(g), "cause", sv.Unreadable)
		}
		reply.Groups = append(reply.Groups, out)
	}
	return reply, nil
}

func survivorOf(sv *raftgroup.Survivor) *wire.Survivor {
	if sv.Unreadable != nil {
		return &wire.Survivor{Group: uint32(sv.Group), Unreadable: wire.Text(sv.Unreadable.Error())}
	}
	out := &wire.Survivor{
		Group: uint32(sv.Group), Generation: sv.Generation, Aside: sv.Aside, Term: sv.Term, Vote: sv.Vote, Commit: sv.Commit,
		First: sv.First, Last: sv.Last, LastTerm: sv.LastTerm, Applied: sv.Applied, Hash: sv.Hash[:],
		Voters: wire.Ints(sv.Voters), Outgoing: wire.Ints(sv.Outgoing), Learners: wire.Ints(sv.Learners), Leader: uint32(sv.Leader),
	}
	if sv.Unfit != nil {
		out.Unfit = sv.Unfit.Error()
	}
	return out
}

// begun reports whether a namespace group has its first state here, and whether it is
// unfenced after a recovery. A replica that is set aside answers no question; what it has
// counts all the same.
func (s *Service) begun(h *raftgroup.Host, g dfs.GroupID) (begun, unfenced bool) {
	if g == dfs.ControlGroup {
		return false, false
	}
	err := h.ReadRemnant(g, func(r raftgroup.Reader) (err error) {
		if begun, err = namespace.Begun(r); err == nil {
			unfenced, err = namespace.Unfenced(r)
		}
		return err
	})
	return err == nil && begun, err == nil && unfenced
}

// Recover implements the meta service. Every step may be repeated.
func (s *Service) Recover(_ context.Context, req *wire.RecoverRequest) (*wire.RecoverReply, error) {
	const op = "recover group"
	h, err := s.raft()
	if err != nil {
		return nil, err
	}
	me := s.opts.Identity.Membership().Node
	switch {
	case dfs.NodeID(req.Node) != me:
		return nil, dfs.Errorf(dfs.Invalid, op, "this is node %v, and the step is node n%d's", me, req.Node)
	case slices.Contains(req.Lost, uint32(me)):
		return nil, dfs.Errorf(dfs.Invalid, op, "node %v is called lost, and answers", me)
	case req.Group > maxGroup:
		return nil, dfs.Errorf(dfs.Invalid, op, "there is no group %d", req.Group)
	case req.Generation == 0 && req.Step != wire.RecoverRequest_TAKE_BACK:
		return nil, dfs.Errorf(dfs.Invalid, op, "no generation is given")
	}
	if m := s.maps.current(); m != nil {
		for _, n := range wire.IDs[dfs.NodeID](req.Lost) {
			if err := control.CheckLost(m, n); err != nil { // before anything is written
				return nil, err
			}
		}
	}
	g := dfs.GroupID(req.Group)
	s.log.Warn("an operator recovers a group", "group", req.Group, "step", req.Step.String(), "generation", req.Generation, "lost", req.Lost)
	switch req.Step {
	case wire.RecoverRequest_SET_ASIDE:
		err = h.SetAside(recoveryOf(req))
	case wire.RecoverRequest_TAKE_BACK:
		err = h.TakeBack(g)
	case wire.RecoverRequest_BEGIN:
		err = s.beginRecovered(h, g, req)
	default:
		err = dfs.Errorf(dfs.Unsupported, op, "step %v", req.Step)
	}
	if err != nil {
		return nil, err
	}
	return &wire.RecoverReply{}, nil
}

// beginRecovered makes the replica here the only voter, and lets the group begin with an
// entry that says what was lost.
func (s *Service) beginRecovered(h *raftgroup.Host, g dfs.GroupID, req *wire.RecoverRequest) error {
	var first proto.Message
	if g == dfs.ControlGroup {
		first = &wire.ControlEntry{Now: s.opts.Now().UnixMilli(), Entry: &wire.ControlEntry_Recovered{Recovered: &wire.RecoveredOp{
			Generation: req.Generation, Lost: req.Lost, Found: req.Found, Persisted: s.beats.persisted(),
		}}}
	} else {
		first = &wire.LogEntry{Version: s.clockVersion(), Entry: &wire.LogEntry_Recovered{Recovered: &wire.NamespaceRecoveredOp{Generation: req.Generation}}}
	}
	data, err := proto.Marshal(first)
	if err != nil {
		return err
	}
	rec := recoveryOf(req)
	rec.Commands = [][]byte{data}
	return h.Recover(rec)
}

// recoveryOf is a step that is taken at one replica.
func recoveryOf(req *wire.RecoverRequest) raftgroup.Recovery {
	return raftgroup.Recovery{
		Group: dfs.GroupID(req.Group), Generation: req.Generation, Term: req.Term,
		Was: req.Was, Aside: req.Aside, Last: req.Last, LastTerm: req.LastTerm,
	}
}

// GiveUp implements the meta service.
func (s *Service) GiveUp(ctx context.Context, req *wire.GiveUpRequest) (*wire.GiveUpReply, error) {
	const op = "give nodes up"
	h, err := s.controlLeader()
	if err != nil {
		return nil, err
	}
	m := s.maps.current()
	if m == nil {
		return nil, dfs.Errorf(dfs.Unavailable, op, "this node has no map yet")
	}
	for began := time.Now(); ; {
		n := s.heardAmong(h, m, wire.IDs[dfs.NodeID](req.Lost))
		if n == 0 {
			break
		}
		if time.Since(began) > 2*voteFresh || !s.sleep(heardLook) { // its last words count for a while
			return nil, dfs.Errorf(dfs.Invalid, op, "%s (%v) was heard of lately: it is not lost", nodeName(m, n), n)
		}
	}
	_, err = s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_GiveUp{GiveUp: &wire.GiveUpOp{Generation: req.Generation, Lost: req.Lost}}})
	if err != nil {
		return nil, err
	}
	s.log.Warn("nodes are given up as lost", "group", 0, "nodes", req.Lost)
	s.wakeControl()
	return &wire.GiveUpReply{}, nil
}

// heardLook is how often it is looked whether nodes that are given up are silent.
const heardLook = 250 * time.Millisecond

// heardAmong returns one of the nodes that was heard of lately, 0 for none.
func (s *Service) heardAmong(h *raftgroup.Host, m *dfs.Map, nodes []dfs.NodeID) dfs.NodeID {
	st, _ := h.Status(dfs.ControlGroup)
	up := s.groupInput(m).Up
	for _, n := range nodes {
		if x := m.Node(n); x != nil && x.Replaced {
			continue // it was given up before
		}
		if up[n] || active(&st, n) || n == s.opts.Identity.Membership().Node {
			return n
		}
	}
	return 0
}

// Acknowledge implements the meta service.
func (s *Service) Acknowledge(ctx context.Context, req *wire.AcknowledgeRequest) (*wire.AcknowledgeReply, error) {
	if req.Group == 0 {
		return s.acknowledgeControl(ctx, req.Look)
	}
	g, h, err := s.namespaceLeader(req.Group)
	if err != nil {
		return nil, err
	}
	held, err := s.heldNow(ctx, h, g)
	if err != nil || !held || req.Look {
		return &wire.AcknowledgeReply{Held: held}, err
	}
	res, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Acknowledge{Acknowledge: &wire.NamespaceAcknowledgeOp{}}})
	if err != nil {
		return nil, err
	}
	return &wire.AcknowledgeReply{Held: true}, res.ToError("acknowledge recovery", g.String())
}

// acknowledgeControl ends what the control group holds back, in all groups.
func (s *Service) acknowledgeControl(ctx context.Context, look bool) (*wire.AcknowledgeReply, error) {
	h, err := s.controlLeader()
	if err != nil {
		return nil, err
	}
	held := false
	err = h.Read(ctx, dfs.ControlGroup, func(r raftgroup.Reader) error {
		st, err := control.ReadState(r)
		held = st.GetRecovery() != nil
		return err
	})
	if err != nil || !held || look {
		return &wire.AcknowledgeReply{Held: held}, err
	}
	_, err = s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_Acknowledge{Acknowledge: &wire.AcknowledgeOp{}}})
	if err != nil {
		return nil, err
	}
	s.log.Info("the recovery is acknowledged: deletes go on", "group", 0)
	return &wire.AcknowledgeReply{Held: true}, nil
}

// held reports whether nothing of a group is deleted since a recovery, of this or any other
// group, has not been acknowledged, as far as this node has applied it.
func (s *Service) held(h *raftgroup.Host, g dfs.GroupID) bool {
	var own uint64
	err := h.ReadLocal(g, func(r raftgroup.Reader) (err error) {
		own, err = namespace.Recovered(r)
		return err
	})
	return err != nil || own > 0 || s.maps.recovery() > 0
}

// heldNow is held by the word of the group's leader: what it says nothing of is not deleted
// by mistake.
func (s *Service) heldNow(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) (held bool, err error) {
	var own uint64
	err = h.Read(ctx, g, func(r raftgroup.Reader) (err error) {
		own, err = namespace.Recovered(r)
		return err
	})
	return own > 0 || s.maps.recovery() > 0, err
}
