package raftgroup

import (
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/confchange"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// Survivor is what one replica could be recovered from: what is durable here.
type Survivor struct {
	Group      dfs.GroupID
	Generation uint64 // 0: the group was never recovered
	Aside      uint64 // the generation for which this replica is set aside; 0: it is not

	Term, Vote, Commit    uint64 // as synced
	First, Last, LastTerm uint64 // of the log
	Applied               uint64
	Hash                  StateHash // of the state at Applied

	// The members at the end of the log, committed or not; Outgoing are the voters of the
	// other half of a joint configuration.
	Voters, Outgoing, Learners []dfs.NodeID

	Leader dfs.NodeID // whom it hears, or itself: then the group has a majority; 0: nobody
	Unfit  error      // why nothing can be recovered from it; nil: it can

	// Unreadable is why the stores do not say what this replica is; nil: they do. Only
	// Group is known then.
	Unreadable error
}

// Survivor describes the replica of a group here for a recovery; ok is false when
// there is none. One that cannot be read is described as that: it is no error, and the
// other groups have theirs to say. Unavailable: the host ends.
func (h *Host) Survivor(g dfs.GroupID) (out Survivor, ok bool, err error) {
	if !h.enter() {
		return out, false, errClosing("describe replica")
	}
	defer h.leave()
	r := h.replica(g)
	if r == nil {
		return out, false, nil
	}
	if out, _, err = h.survey(r); err != nil {
		out = Survivor{Group: g, Unreadable: err}
	}
	return out, true, nil
}

// ReadRemnant calls fn with the state that a replica has, whether it is served or not: for
// questions about what could be recovered. NotExist: there is no replica.
func (h *Host) ReadRemnant(g dfs.GroupID, fn func(Reader) error) (err error) {
	if !h.enter() {
		return errClosing("read")
	}
	defer h.leave()
	r, err := h.find(g)
	if err != nil {
		return err
	}
	r.state.gate.RLock()
	defer r.state.gate.RUnlock()
	snap := h.state.NewSnapshot()
	defer closeInto(&err, snap)
	return fn(NewReader(snap, r.state.prefix))
}

// remnant is what a recovery of a replica builds upon.
type remnant struct {
	l    *groupLog
	hard *pb.HardState
	conf *tail
}

// survey reads what is durable of a replica.
func (h *Host) survey(r *replica) (out Survivor, rest remnant, err error) {
	out = Survivor{Group: r.id, Generation: r.generation, Leader: r.led()}
	if out.Aside, err = h.store.getNumber(r.id, logAside, "aside record"); err != nil {
		return out, rest, err
	}
	if rest.l, err = loadGroupLog(h.store, r.id, 0); err != nil {
		return out, rest, err
	}
	if rest.l == nil {
		return out, rest, dfs.Errorf(dfs.Unavailable, "describe replica", "%v is being destroyed", r.id)
	}
	if rest.hard, err = rest.l.hardState(); err != nil {
		return out, rest, err
	}
	cur, err := readApplied(h.state, r.id, false)
	if err != nil {
		return out, rest, err
	}
	out.Term, out.Vote, out.Commit = rest.hard.GetTerm(), rest.hard.GetVote(), rest.hard.GetCommit()
	out.First, out.Last = rest.l.bounds()
	out.Applied, out.Hash = cur.index, cur.hash
	if out.LastTerm, err = rest.l.Term(out.Last); err != nil {
		return out, rest, err
	}
	begin := cur
	if t := rest.l.truncation(); cur.index < t.index {
		begin = applied{index: t.index, conf: t.conf}
	}
	if rest.conf, err = readTail(rest.l, begin); err != nil {
		return out, rest, err
	}
	cs := rest.conf.tracker.ConfState()
	out.Voters, out.Outgoing = nodeIDs(cs.GetVoters()), nodeIDs(cs.GetVotersOutgoing())
	out.Learners = nodeIDs(cs.GetLearners(), cs.GetLearnersNext())
	out.Unfit = h.unfit(r, &out)
	return out, rest, nil
}

// led returns the leader that a replica hears, or is itself, 0 for none. A learner never
// forgets its leader, so silence counts here.
func (r *replica) led() dfs.NodeID {
	r.mu.Lock()
	defer r.mu.Unlock()
	self := uint64(r.h.opts.Node)
	if r.fault != nil || r.lead == raft.None || r.lead != self && !r.asleep && r.silentLeaderLocked() {
		return 0
	}
	return dfs.NodeID(r.lead)
}

// checkLost refuses to touch the replica of a group that has a leader: whatever whoever
// asks for a recovery can or cannot reach, a majority is there, or was a moment ago.
func (r *replica) checkLost(op string) error {
	if lead := r.led(); lead != 0 {
		return dfs.Errorf(dfs.Busy, op, "%v follows node %v here: a majority is not lost, or has just been: look again in some seconds", r.id, lead)
	}
	return nil
}

// unfit says why a group cannot be recovered from a replica.
func (h *Host) unfit(r *replica, s *Survivor) error {
	const op = "recover group"
	r.mu.Lock()
	fault, ill, busy := r.fault, r.ill, r.dropping
	r.mu.Unlock()
	switch {
	case s.Last < firstIndex:
		return dfs.Errorf(dfs.NotExist, op, "%v: the replica has no log: it was never sent the group's state", r.id)
	case ill != nil:
		return unavailable(op, ill)
	case r.state.missing() || busy:
		return dfs.Errorf(dfs.Corrupt, op, "%v: the state was lost, and is not in the log any more", r.id)
	case r.state.unfit():
		return dfs.Errorf(dfs.Busy, op, "%v: the state is in doubt, for some seconds more", r.id)
	case fault != nil && s.Aside == 0:
		return fault
	}
	return nil
}

// tail is the configuration at the end of a log.
type tail struct{ tracker tracker.ProgressTracker }

// readTail applies the configuration changes after an index to its configuration.
func readTail(l *groupLog, from applied) (*tail, error) {
	t := &tail{tracker: tracker.MakeProgressTracker(1, 0)}
	last := l.last
	if len(from.conf.GetVoters()) > 0 {
		cfg, progress, err := confchange.Restore(confchange.Changer{Tracker: t.tracker, LastIndex: last}, from.conf)
		if err != nil {
			return nil, badConf(l.g, from.index, err)
		}
		t.tracker.Config, t.tracker.Progress = cfg, progress
	}
	for i := from.index + 1; i <= last; {
		es, err := l.readRange(i, last+1, maxLogBatch)
		if err != nil {
			return nil, err
		}
		for _, e := range es {
			if !isConfChange(e) {
				continue
			}
			cc := &pb.ConfChangeV2{}
			if err := proto.Unmarshal(e.GetData(), cc); err != nil {
				return nil, badConf(l.g, e.GetIndex(), err)
			}
			if err := t.apply(cc, last); err != nil {
				return nil, badConf(l.g, e.GetIndex(), err)
			}
		}
		i += uint64(len(es))
	}
	return t, nil
}

func badConf(g dfs.GroupID, index uint64, err error) error {
	return dfs.Errorf(dfs.Corrupt, "read raft log", "%v: the members at entry %d: %v", g, index, err)
}

// apply makes a change current, as the library will.
func (t *tail) apply(cc *pb.ConfChangeV2, last uint64) error {
	chg := confchange.Changer{Tracker: t.tracker, LastIndex: last}
	var err error
	switch auto, joint := cc.EnterJoint(); {
	case cc.LeaveJoint():
		t.tracker.Config, t.tracker.Progress, err = chg.LeaveJoint()
	case joint:
		t.tracker.Config, t.tracker.Progress, err = chg.EnterJoint(auto, cc.Changes...)
	default:
		t.tracker.Config, t.tracker.Progress, err = chg.Simple(cc.Changes...)
	}
	return err
}

// alone lists the changes that leave one node as the only member: out of a joint
// configuration, the node in, then the others out, one by one, so that none of them is
// joint.
func (t *tail) alone(self uint64) ([]*pb.ConfChangeV2, error) {
	var out []*pb.ConfChangeV2
	do := func(typ pb.ConfChangeType, node uint64) error {
		cc := &pb.ConfChangeV2{}
		if node != 0 {
			cc.Changes = []*pb.ConfChangeSingle{{Type: typ.Enum(), NodeId: proto.Uint64(node)}}
		}
		out = append(out, cc)
		return t.apply(cc, 1)
	}
	if len(t.tracker.Voters[1]) > 0 {
		if err := do(0, 0); err != nil {
			return nil, err
		}
	}
	if _, votes := t.tracker.Voters[0][self]; !votes {
		if err := do(pb.ConfChangeType_ConfChangeAddNode, self); err != nil {
			return nil, err
		}
	}
	var others []uint64
	for id := range t.tracker.Progress {
		if id != self {
			others = append(others, id)
		}
	}
	slices.Sort(others)
	for _, id := range others {
		if err := do(pb.ConfChangeType_ConfChangeRemoveNode, id); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// check refuses a recovery that is not the one that was shown, or cannot be.
func (s *Survivor) check(rec *Recovery) error {
	if s.Unfit != nil {
		return s.Unfit
	}
	return s.moved(rec)
}

func (s *Survivor) moved(rec *Recovery) error {
	if s.Generation != rec.Was || s.Aside != rec.Aside {
		return dfs.Errorf(dfs.Stale, "recover group", "%v: the replica is of generation %d and set aside for %d by now, not of %d and for %d: somebody else recovers the group: look again",
			s.Group, s.Generation, s.Aside, rec.Was, rec.Aside)
	}
	if s.Last != rec.Last || s.LastTerm != rec.LastTerm {
		return dfs.Errorf(dfs.Stale, "recover group", "%v: the log ends at entry %d of term %d by now, not at %d of %d: look again",
			s.Group, s.Last, s.LastTerm, rec.Last, rec.LastTerm)
	}
	return nil
}
