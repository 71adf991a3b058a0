package raftgroup

import (
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/confchange"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// A group that has lost a majority of its voters for good goes on only when an
// operator makes one of the rest its only voter. From then on it is a group of a
// later generation, and nothing of an earlier one counts in it. A generation is the
// time at which its recovery was planned, in milliseconds since 1970, and above every
// generation that a survivor knows: so if what a first recovery began upon is lost
// too, and found again after a second one, the second one holds. Every message and snapshot of
// a group says of which generation it is:
//
//	lower than here    dropped, and its sender told: frameRecovered
//	higher than here   the replica here is destroyed, and begins again as an empty
//	                   one of that generation, to be sent everything as a learner
//
// So what comes back of the lost, or was behind, can neither vote nor acknowledge
// in the recovered group, nor can it form a majority with others that any member of
// the recovered group reaches.
//
//	SetAside, on every other survivor      Recover, on the chosen one
//	  1  log store, synced: aside            2  the replica is stopped
//	     it neither votes, nor serves,       3  log store, one synced batch: entries that take all
//	     nor acknowledges; log and              others out, the commands, a hard state that has
//	     state stay                             them committed, the generation
//	                                         4  the replica starts and is its own majority
//	  5  overtaken by a message of the
//	     new generation: log store, synced,
//	     a tombstone; 6 the state is wiped
//	  7  an empty replica
//
// First all others are set aside, then the chosen one begins: no majority of the old
// group can form among the survivors. A crash before 3 leaves the old replica, one
// after it the recovered one. One that is set aside loses nothing before 5, so that
// it can be recovered from should the chosen one be lost too, or be taken back.

// RecoverStep is one of these steps, for Hooks.RecoverStep.
type RecoverStep uint8

// The steps, each named by what is done.
const (
	RecoverAside RecoverStep = iota + 1
	RecoverStopped
	RecoverWritten
	RecoverStarted
	RecoverBuried
	RecoverWiped
	RecoverEmpty
	NumRecoverSteps
)

// termJump is by how much the term of a recovered group exceeds every term that a
// survivor knows. Generations are what keeps the old group out; that no lost
// member's term is above the group's either keeps terms what they are everywhere else: an
// order of what was written. A group has an election a second at the most, so this is
// one that was without a leader, and unknown to all survivors, for twelve days.
const termJump = 1 << 20

func (h *Host) recoverStep(g dfs.GroupID, step RecoverStep) {
	if f := h.opts.Hooks.RecoverStep; f != nil {
		f(g, step)
	}
}

func encodeGeneration(n uint64) []byte { return appendUints([]byte{recordVersion}, n) }

// loadGeneration reads the generation of a replica, and for which one it is set aside.
func (h *Host) loadGeneration(r *replica) (aside uint64, err error) {
	if r.generation, err = h.store.getNumber(r.id, logGeneration, "generation"); err != nil {
		return 0, err
	}
	return h.store.getNumber(r.id, logAside, "aside record")
}

// setAsideLocked ends a replica whose log and state stay.
func (r *replica) setAsideLocked(generation uint64) {
	r.endLocked(dfs.Errorf(dfs.Unavailable, "serve", "%v: this replica is set aside for the recovery of the group as generation %d: dfsd group recover", r.id, generation))
}

// stop ends a replica object, without a trace in the stores: once it returns nothing
// of it writes any more.
func (h *Host) stop(r *replica, why error) error {
	ended := make(chan struct{})
	r.mu.Lock()
	if r.fault == nil {
		r.endLocked(why)
	}
	h.writer.push(&logWrite{r: r, last: true, buried: ended})
	r.mu.Unlock()
	select {
	case <-ended: // an install that was under way has ended before
	case <-h.closing:
		return errClosing("stop replica")
	case <-h.failed:
		return h.failure()
	}
	r.state.gate.Lock()
	r.spoilTransfers()
	r.state.gate.Unlock()
	return nil
}

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
}

// Survivor describes the replica of a group here for a recovery; ok is false when
// there is none.
func (h *Host) Survivor(g dfs.GroupID) (out Survivor, ok bool, err error) {
	if !h.enter() {
		return out, false, errClosing("describe replica")
	}
	defer h.leave()
	r := h.replica(g)
	if r == nil {
		return out, false, nil
	}
	out, _, err = h.survey(r)
	return out, true, err
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
	fault, busy := r.fault, r.dropping
	r.mu.Unlock()
	switch {
	case s.Last < firstIndex:
		return dfs.Errorf(dfs.NotExist, op, "%v: the replica has no log: it was never sent the group's state", r.id)
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

// SetAside ends the replica of a group here, durably, before the group is recovered on
// another node. Log and state stay until a message of that generation comes. It may be
// repeated. Errors: Stale when the replica is not what was shown any more, such as after
// an install that was under way: it may be the one to go on from now, or somebody else
// recovers the group; Busy when it has a leader. Nothing was done then.
func (h *Host) SetAside(rec Recovery) error {
	const op = "set replica aside"
	r, done, err := h.beginRecovery(op, rec.Group)
	if err != nil {
		return err
	}
	defer done()
	if over, err := r.checkStep(op, &rec); over || err != nil {
		return err
	}
	switch aside, err := h.store.getNumber(rec.Group, logAside, "aside record"); {
	case err != nil:
		return err
	case aside == rec.Generation:
		return nil
	case aside > rec.Generation:
		return dfs.Errorf(dfs.Stale, op, "%v is set aside for generation %d here, by another recovery than that of %d: look again", rec.Group, aside, rec.Generation)
	}
	err = h.restart(r, op, func(b *pebble.Batch) error {
		now, _, err := h.survey(r)
		if err != nil {
			return err
		}
		if err := now.moved(&rec); err != nil {
			return err
		}
		return b.Set(groupKey(rec.Group, logAside), encodeGeneration(rec.Generation), nil)
	})
	if err == nil {
		h.recoverStep(rec.Group, RecoverAside)
		h.log.Warn("replica set aside for a recovery", "group", uint16(rec.Group), "generation", rec.Generation)
	}
	return err
}

// checkStep reports whether the replica has the generation of a recovery already, and
// refuses a step towards it that comes too late, or while the group has a leader.
func (r *replica) checkStep(op string, rec *Recovery) (over bool, err error) {
	switch {
	case r.generation == rec.Generation:
		return true, nil
	case r.generation > rec.Generation:
		return false, dfs.Errorf(dfs.Stale, op, "%v is of generation %d here, not below %d", rec.Group, r.generation, rec.Generation)
	}
	return false, r.checkLost(op)
}

// TakeBack undoes SetAside: the group was not recovered. It may be repeated.
func (h *Host) TakeBack(g dfs.GroupID) error {
	const op = "take replica back"
	r, done, err := h.beginRecovery(op, g)
	if err != nil {
		return err
	}
	defer done()
	aside, err := h.store.getNumber(g, logAside, "aside record")
	if err != nil || aside == 0 {
		return err
	}
	h.log.Warn("replica taken back, the recovery was called off", "group", uint16(g), "generation", aside)
	return h.restart(r, op, func(b *pebble.Batch) error { return b.Delete(groupKey(g, logAside), nil) })
}

// beginRecovery finds a replica and keeps all others from replacing it; done must be
// called.
func (h *Host) beginRecovery(op string, g dfs.GroupID) (*replica, func(), error) {
	if !h.enter() {
		return nil, nil, errClosing(op)
	}
	h.adding.Lock()
	r, err := h.find(g)
	if err != nil {
		h.adding.Unlock()
		h.leave()
		return nil, nil, err
	}
	return r, func() { h.adding.Unlock(); h.leave() }, nil
}

// restart stops a replica, changes its records in the log store in one synced batch,
// and starts it from there. After an error the old one is started again, unless the
// host has ended.
func (h *Host) restart(r *replica, op string, change func(b *pebble.Batch) error) error {
	if err := h.stop(r, dfs.Errorf(dfs.Unavailable, op, "%v is started anew", r.id)); err != nil {
		return err
	}
	h.recoverStep(r.id, RecoverStopped)
	b := h.store.db.NewBatch()
	defer b.Close()
	err := change(b)
	if err == nil {
		err = h.store.commit(b, !h.opts.Hooks.BeginUnsynced)
		if err != nil {
			h.failLog(err)
			return err
		}
		h.recoverStep(r.id, RecoverWritten)
	}
	return firstError(err, h.startReplica(r.id))
}

// Recovery makes one replica the only voter of a group. All others are set aside for it.
type Recovery struct {
	Group      dfs.GroupID
	Generation uint64 // that the group gets
	Term       uint64 // the highest that any survivor knows; nothing to SetAside

	// What the replica here is and where its log ends, as the operator was shown: see
	// Survivor. Another recovery that began meanwhile is noticed by that.
	Was, Aside     uint64
	Last, LastTerm uint64

	// Commands are the first that the recovered group applies; nothing to SetAside.
	Commands [][]byte
}

// Recover begins a later generation of a group here, with this replica as its only voter.
// What its log holds is committed by that, all of it. Every other survivor must have
// been set aside. It may be repeated: a group that has the generation is left as it
// is. Errors: Stale when the replica is not what was shown any more, Corrupt, NotExist and Unavailable when the
// replica is unfit, Busy when it has a leader or is in doubt, which passes; nothing was
// done then.
func (h *Host) Recover(rec Recovery) error {
	const op = "recover group"
	r, done, err := h.beginRecovery(op, rec.Group)
	if err != nil {
		return err
	}
	defer done()
	if over, err := r.checkStep(op, &rec); over || err != nil {
		return err
	}
	was, _, err := h.survey(r)
	if err == nil {
		err = was.check(&rec)
	}
	if err != nil {
		return err
	}
	err = h.restart(r, op, func(b *pebble.Batch) error {
		now, rest, err := h.survey(r)
		if err != nil {
			return err
		}
		if err := now.moved(&rec); err != nil { // with what was under way when it was stopped
			return err
		}
		if r.state.missing() {
			return dfs.Errorf(dfs.Corrupt, op, "%v: the state was given up meanwhile", rec.Group)
		}
		return h.stageRecovery(b, &rec, &now, rest)
	})
	if err != nil {
		return err
	}
	h.log.Error("group recovered: this node is its only voter, and what only lost nodes had is gone", "group", uint16(rec.Group),
		"generation", rec.Generation, "was", fmt.Sprint(was.Voters), "last", was.Last)
	h.recoverStep(rec.Group, RecoverStarted)
	return nil
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

// stageRecovery is step 3.
func (h *Host) stageRecovery(b *pebble.Batch, rec *Recovery, s *Survivor, rest remnant) error {
	self, g := uint64(h.opts.Node), rec.Group
	changes, err := rest.conf.alone(self)
	if err != nil {
		return badConf(g, s.Last, err)
	}
	term := max(rec.Term, s.Term, s.LastTerm) + termJump
	var entries []*pb.Entry
	add := func(typ pb.EntryType, data []byte) {
		entries = append(entries, &pb.Entry{
			Type: typ.Enum(), Term: proto.Uint64(term), Index: proto.Uint64(s.Last + uint64(len(entries)) + 1), Data: data,
		})
	}
	for _, cc := range changes {
		data, err := proto.Marshal(cc)
		if err != nil {
			return err
		}
		add(pb.EntryConfChangeV2, data)
	}
	for _, cmd := range rec.Commands {
		id := h.newProposalID()
		add(pb.EntryNormal, id.entry(cmd).Data)
	}
	if _, err := rest.l.stage(b, entries); err != nil {
		return err
	}
	hard := hardState(term, self, s.Last+uint64(len(entries)))
	if err := b.Set(groupKey(g, logHardState), encodeHardState(hard), nil); err != nil {
		return err
	}
	if err := b.Delete(groupKey(g, logAside), nil); err != nil {
		return err
	}
	return b.Set(groupKey(g, logGeneration), encodeGeneration(rec.Generation), nil)
}

// otherGeneration answers a message of another generation.
func (h *Host) otherGeneration(r *replica, from dfs.NodeID, generation uint64) {
	if generation < r.generation {
		out := newOutbox(h)
		out.add(from, LaneControl, &frame{kind: frameRecovered, group: r.id, generation: r.generation})
		out.flush()
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.overtaken {
		r.overtaken = h.spawn(func() {
			if err := h.overtake(r, generation); err != nil && h.failure() == nil {
				h.log.Error("a replica of an earlier generation is not destroyed", "group", uint16(r.id), "cause", err)
			}
		})
	}
}

// overtake puts an empty replica of a later generation in the place of one.
func (h *Host) overtake(r *replica, generation uint64) error {
	if gone, err := h.buryOvertaken(r, generation); !gone || err != nil {
		return err
	}
	h.recoverStep(r.id, RecoverBuried)
	r.state.gate.Lock()
	err := h.wipeState(r.id)
	r.state.gate.Unlock()
	if err != nil {
		h.endDying(r.id)
		h.fail(err)
		return err
	}
	h.recoverStep(r.id, RecoverWiped)
	if err := h.forgetHeld(r); err != nil { // the next start removes the files
		h.log.Warn("received snapshot not removed", "group", uint16(r.id), "cause", err)
	}
	h.adding.Lock()
	defer h.adding.Unlock()
	h.endDying(r.id)
	if err := h.addReplicaLocked(r.id, truncated{conf: confState(nil)}, hardState(0, raft.None, 0)); err != nil {
		return err
	}
	h.recoverStep(r.id, RecoverEmpty)
	return nil
}

// buryOvertaken ends a replica whose group has gone on without it, unless another
// has taken its place by now.
func (h *Host) buryOvertaken(r *replica, generation uint64) (bool, error) {
	h.adding.Lock()
	defer h.adding.Unlock()
	if h.replica(r.id) != r {
		return false, nil
	}
	h.log.Warn("the group was recovered without this replica, which begins again with nothing", "group", uint16(r.id), "was", r.generation, "generation", generation)
	if err := h.stop(r, dfs.Errorf(dfs.Unavailable, "serve", "%v was recovered without the replica on node %v", r.id, h.opts.Node)); err != nil {
		return false, err
	}
	hard, err := r.l.hardState()
	if err != nil {
		return false, err
	}
	b := h.store.db.NewBatch()
	defer b.Close()
	if err := stageBurial(b, r.id, hard.GetTerm()+1, generation); err != nil {
		return false, err
	}
	r.l.cut(r.l.end()) // whoever reads it meanwhile finds nothing missing
	if err := h.store.commit(b, true); err != nil {
		h.failLog(err)
		return false, err
	}
	h.setDying(r)
	return true, nil
}
