package raftgroup

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
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
	r.aside = true
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
	if err := h.own(h.ctx, g); err != nil {
		h.leave()
		return nil, nil, err
	}
	r, err := h.find(g)
	if err != nil {
		h.disown(g)
		h.leave()
		return nil, nil, err
	}
	return r, func() { h.disown(g); h.leave() }, nil
}

// restart stops a replica, changes its records in the log store in one synced batch,
// and starts it from there. After an error the old one is started again, unless the
// host has ended. A replica in quarantine stays there.
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
	r.mu.Lock()
	ill := r.ill
	r.mu.Unlock()
	return firstError(err, h.startReplica(r.id, ill))
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
	if err := h.own(h.ctx, r.id); err != nil {
		h.endDying(r.id)
		return err
	}
	defer h.disown(r.id)
	h.endDying(r.id)
	if err := h.addOwned(r.id, truncated{conf: confState(nil)}, hardState(0, raft.None, 0)); err != nil {
		return err
	}
	h.recoverStep(r.id, RecoverEmpty)
	return nil
}

// buryOvertaken ends a replica whose group has gone on without it, unless another
// has taken its place by now.
func (h *Host) buryOvertaken(r *replica, generation uint64) (bool, error) {
	if err := h.own(h.ctx, r.id); err != nil {
		return false, err
	}
	defer h.disown(r.id)
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
