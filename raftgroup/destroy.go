package raftgroup

import (
	"context"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"

	"dfsd/dfs"
)

// A replica that is no member any more is destroyed in two steps. A start that
// finds the first without the second does what is left.
//
//	1  log store, synced: nothing of the group but a tombstone
//	2  state store, flushed: none of the group's keys
//
// The tombstone holds the last term of the replica, in which and in every
// earlier one it may have voted and acknowledged. A replica that joins again
// begins one term later, without a vote:
//
//   - What the destroyed one sent, however late it arrives, is of an earlier term
//     than that of any leader that the new one follows, and so counts nowhere. A
//     leader of that term or an earlier one steps down at the new one's first
//     answer.
//   - As long as it has no log it votes for nobody, in any term: a node that has
//     missed the removal would count that vote in its old configuration, and the
//     destroyed log, which stood against it, is gone. The log that it is sent has the
//     removal.

// DestroyReplica destroys this node's replica of a group of which it is no
// member any more. Confirm must find that out: by asking a leader, who has it
// confirmed by a majority that it leads; or it says that the group is dissolved,
// of which no replica counts any more. Nothing is destroyed when it returns an
// error, which is returned, or when a leader of a group that is not dissolved has
// spoken to the replica since it was called: Busy. A replica that has ended, in quarantine
// or set aside for a recovery, is destroyed likewise: it hears no leader, but promises
// nothing either. Unavailable: another takes its place, or ctx ended first, in which case
// what was begun goes on without the caller.
func (h *Host) DestroyReplica(ctx context.Context, g dfs.GroupID, confirm func(context.Context) (dissolved bool, err error)) error {
	const op = "destroy replica"
	r, err := h.find(g)
	if err != nil {
		return err
	}
	if !h.enter() {
		return errClosing(op)
	}
	defer h.leave()
	r.setLeaving()
	dissolved, err := confirm(ctx)
	if err != nil {
		return err
	}
	buried := make(chan struct{})
	if err := h.beginDying(ctx, r, dissolved, buried); err != nil {
		return err
	}
	ended := make(chan error, 1)
	if !h.spawn(func() { ended <- h.finishDying(r, buried) }) {
		return h.finishDying(r, buried)
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return dfs.Errorf(dfs.Unavailable, op, "%v: what is under way in the replica has not ended yet", g)
	}
}

// finishDying removes what is left of a replica once its burial is synced, after an
// install that was under way.
func (h *Host) finishDying(r *replica, buried chan struct{}) error {
	g := r.id
	defer h.endDying(g)
	select {
	case <-buried:
	case <-h.closing:
		r.state.gate.Lock()
		r.spoilTransfers()
		r.state.gate.Unlock()
		return errClosing("destroy replica") // the next start finds what was written
	}
	h.destroyStep(g, 1)
	r.state.gate.Lock()
	r.spoilTransfers()
	err := h.wipeState(g)
	r.state.gate.Unlock()
	if err != nil {
		h.fail(err)
		return err
	}
	h.destroyStep(g, 2)
	if err := h.forgetHeld(r); err != nil { // the next start removes the files
		h.log.Warn("received snapshot not removed", "group", uint16(g), "cause", err)
	}
	h.log.Info("replica destroyed", "group", uint16(g))
	return nil
}

// beginDying ends a replica for good and takes it out of the host, at once for
// whoever would put another in its place: a recovery.
func (h *Host) beginDying(ctx context.Context, r *replica, dissolved bool, buried chan struct{}) error {
	if err := h.own(ctx, r.id); err != nil {
		return err
	}
	defer h.disown(r.id)
	if h.replica(r.id) != r {
		return dfs.Errorf(dfs.Unavailable, "destroy replica", "%v: another replica has taken its place", r.id)
	}
	if err := r.bury(dissolved, buried); err != nil {
		return err
	}
	h.setDying(r)
	return nil
}

// setDying takes a replica out of the host. Messages of its group are dropped
// until nothing is left of it.
func (h *Host) setDying(r *replica) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.groups, r.id)
	h.order = nil
	h.dying[r.id] = true
}

func (h *Host) endDying(g dfs.GroupID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.dying, g)
}

// vacant reports whether a replica of a group may be made here.
func (h *Host) vacant(g dfs.GroupID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.groups[g] == nil && !h.dying[g]
}

func (h *Host) destroyStep(g dfs.GroupID, step int) {
	if f := h.opts.Hooks.DestroyStep; f != nil {
		f(g, step)
	}
}

// setLeaving begins to watch for a leader's word.
func (r *replica) setLeaving() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaving = true
}

// bury ends the replica for good, unless a leader of a group that is not dissolved
// has spoken to it since it began to leave. Buried is closed once the log store says so.
func (r *replica) bury(dissolved bool, buried chan struct{}) error {
	const op = "destroy replica"
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.fault != nil && r.ill == nil && !r.aside:
		return unavailable(op, r.fault)
	case r.fault == nil && !dissolved && (!r.leaving || r.role == raft.StateLeader):
		return dfs.Errorf(dfs.Busy, op, "%v: a leader has spoken to the replica", r.id)
	}
	term, err := r.termLocked()
	if err != nil {
		return err
	}
	r.endLocked(dfs.Errorf(dfs.Unavailable, op, "%v: the replica on node %v is destroyed", r.id, r.h.opts.Node))
	r.h.writer.push(&logWrite{r: r, tombstone: term + 1, buried: buried, sync: true})
	return nil
}

// termLocked is the last term in which the replica may have promised anything. The library
// of one that has ended is not asked: it may be what is broken.
func (r *replica) termLocked() (uint64, error) {
	if r.fault == nil {
		return r.raw.BasicStatus().GetTerm(), nil
	}
	hard, err := r.l.hardState()
	return max(hard.GetTerm(), r.logTerm), err
}

// stageBurial is step 1.
func stageBurial(b *pebble.Batch, g dfs.GroupID, term, generation uint64) error {
	start := groupKey(g, 0)[:3]
	if err := b.DeleteRange(start, prefixEnd(start), nil); err != nil {
		return err
	}
	if generation > 0 {
		if err := b.Set(groupKey(g, logGeneration), encodeGeneration(generation), nil); err != nil {
			return err
		}
	}
	return b.Set(groupKey(g, logTombstone), encodeTombstone(term), nil)
}

func encodeTombstone(term uint64) []byte { return appendUints([]byte{recordVersion}, term) }

// tombstone returns the term in which a replica of the group may begin, 0 when
// none was ever destroyed here.
func (h *Host) tombstone(g dfs.GroupID) (uint64, error) {
	return h.store.getNumber(g, logTombstone, "tombstone")
}

// wipeState is step 2.
func (h *Host) wipeState(g dfs.GroupID) error {
	start, end := stateSpan(g)
	if err := h.state.DeleteRange(start, end, pebble.NoSync); err != nil {
		return wrapStore("destroy replica", g.String(), err)
	}
	return wrapStore("destroy replica", g.String(), h.state.Flush())
}

// wipeRest does what a crash left of a replica's end: the state, and the record
// of a snapshot whose stream outlived the replica.
func (h *Host) wipeRest(g dfs.GroupID) error {
	if v, err := h.store.get(groupKey(g, logHeld)); err != nil {
		return err
	} else if v != nil {
		if err := h.removeRecord(g); err != nil {
			return err
		}
	}
	a, err := readApplied(h.state, g, false)
	if err != nil || a.index == 0 {
		return err
	}
	h.log.Info("the rest of a destroyed replica is removed", "group", uint16(g))
	return h.wipeState(g)
}
