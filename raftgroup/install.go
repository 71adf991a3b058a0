package raftgroup

import (
	"context"
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/raft/v3/raftpb"

	"dfsd/dfs"
)

// An install goes through three steps, each durable before the next. A start
// that finds the intent does what is left.
//
//	1  log store: intent (where to, files, hard state); the record of what was
//	   held goes, the files are the intent's
//	2  state store: the files take the place of all of the group's keys
//	3  log store: the log begins after the snapshot, hard state, no intent
//
// Until step 2 the old state and the old log stand; after it the log, which no
// longer fits the state, is not used before step 3.

// expect notes a stored snapshot that the library is about to see.
func (s *state) expect(inst *install) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.incoming[inst.token] = inst
}

func (s *state) forget(inst *install) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.incoming, inst.token)
}

// received returns the install that the library's snapshot names.
func (s *state) received(snap *pb.Snapshot) *install {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(snap.GetData()) != 8 {
		return nil
	}
	token := binary.BigEndian.Uint64(snap.GetData())
	inst := s.incoming[token]
	delete(s.incoming, token)
	return inst
}

// startInstall installs a snapshot in a task of its own; the replica's other
// writes wait for it, those of other replicas do not.
func (h *Host) startInstall(lw *logWrite) {
	ok := h.spawn(func() {
		switch done, err := h.install(lw); {
		case err != nil:
			lw.install.done <- err
			h.fail(err)
		case !done:
			lw.install.done <- errClosing("install snapshot")
		}
	})
	if !ok {
		lw.install.done <- errClosing("install snapshot")
	}
}

// leftToStart reports whether the host closes: what is left of an install is the next
// start's, so that a stop waits for no more than the step under way.
func (h *Host) leftToStart() bool {
	select {
	case <-h.closing:
		return true
	default:
		return false
	}
}

// install reports false when it left the rest to the next start.
func (h *Host) install(lw *logWrite) (done bool, err error) {
	r, inst := lw.r, lw.install
	in := intent{to: inst.to, hard: lw.hard, files: inst.files, stateOnly: inst.term == 0}
	if in.hard == nil {
		old, err := r.l.hardState()
		if err != nil {
			return false, err
		}
		in.hard = hardState(old.GetTerm(), old.GetVote(), max(old.GetCommit(), inst.to.index))
	}
	h.snapStep(r.id, SnapIntent)
	if err := h.writeIntent(r.id, &in); err != nil {
		return false, err
	}
	h.snapStep(r.id, SnapFlush)
	if h.leftToStart() {
		return false, nil
	}
	// Most of what ingest flushes is flushed before the group stands still.
	if err := h.state.Flush(); err != nil {
		return false, wrapStore("install snapshot", r.id.String(), err)
	}
	if h.leftToStart() {
		return false, nil
	}
	r.state.gate.Lock()
	r.spoilTransfers()
	err = h.ingest(r.id, &in)
	if err == nil {
		r.state.replaced(inst.to)
	}
	r.state.gate.Unlock()
	if err != nil {
		return false, err
	}
	h.snapStep(r.id, SnapRestart)
	b := h.store.db.NewBatch()
	defer b.Close()
	if err := in.stageEnd(b, r.id); err != nil {
		return false, err
	}
	if !in.stateOnly {
		r.l.reset(in.truncated())
	}
	staged, err := r.l.stage(b, lw.entries)
	if err != nil {
		return false, err
	}
	r.l.retract(staged)
	if err := h.store.commit(b, true); err != nil {
		return false, err
	}
	r.l.publish(staged)
	h.snapStep(r.id, SnapDone)
	h.installed(lw)
	return true, nil
}

// installed continues the replica after its install.
func (h *Host) installed(lw *logWrite) {
	r, index := lw.r, lw.install.to.index
	h.log.Info("snapshot installed", "group", uint16(r.id), "index", index)
	r.proposals.skipped(index)
	r.reads.applied(index)
	out := newOutbox(h)
	h.writer.deliver(lw, out)
	out.flush()
	h.writer.resume(r)
	h.appliers.schedule(r)
	h.workers.schedule(r)
	if f := h.opts.OnApplied; f != nil {
		f(r.id, index)
	}
	lw.install.done <- nil
}

func (h *Host) snapStep(g dfs.GroupID, step SnapshotStep) {
	if f := h.opts.Hooks.SnapshotStep; f != nil {
		f(g, step)
	}
}

// replaced makes an installed snapshot's record current.
func (s *state) replaced(to applied) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cur, s.lost = to, false
	s.checks, s.newest = [checkKept]checkpoint{}, checkpoint{}
}

func (n *intent) truncated() truncated {
	return truncated{index: n.to.index, term: n.to.term, confIndex: n.to.confIndex, conf: n.to.conf}
}

func (h *Host) writeIntent(g dfs.GroupID, n *intent) error {
	b := h.store.db.NewBatch()
	defer b.Close()
	if err := b.Set(groupKey(g, logIntent), n.encode(), nil); err != nil {
		return err
	}
	if err := b.Delete(groupKey(g, logHeld), nil); err != nil {
		return err
	}
	return h.store.commit(b, true)
}

// stageEnd is step 3.
func (n *intent) stageEnd(b *pebble.Batch, g dfs.GroupID) error {
	if err := b.Delete(groupKey(g, logIntent), nil); err != nil {
		return err
	}
	if n.stateOnly {
		return nil
	}
	if err := b.DeleteRange(entryKey(g, 0), groupKey(g, logEntry+1), nil); err != nil {
		return err
	}
	t := n.truncated()
	if err := b.Set(groupKey(g, logTruncated), t.encode(), nil); err != nil {
		return err
	}
	return b.Set(groupKey(g, logHardState), encodeHardState(n.hard), nil)
}

// ingest is step 2. It returns once the state store has it durably.
//
// The memtable is flushed first: if it had keys of the group, the store would
// hold up the writes of every group until it has flushed it. So it holds up this
// one alone, whose gate the caller holds.
func (h *Host) ingest(g dfs.GroupID, n *intent) error {
	paths := make([]string, len(n.files))
	for i, f := range n.files {
		paths[i] = h.opts.FS.PathJoin(h.snapDir(), f)
	}
	if err := h.state.Flush(); err != nil {
		return wrapStore("install snapshot", g.String(), err)
	}
	h.snapStep(g, SnapIngest)
	start, end := stateSpan(g)
	// Not the host's context: a shutdown waits for the step under way.
	_, err := h.state.IngestAndExcise(context.Background(), paths, nil, nil, pebble.KeyRange{Start: start, End: end})
	if err != nil {
		return wrapStore("install snapshot", g.String(), err)
	}
	a, err := readApplied(h.state, g, true)
	if err != nil {
		return err
	}
	if a.index != n.to.index || a.term != n.to.term {
		return dfs.Errorf(dfs.Internal, "install snapshot", "%v is at entry %d after an install of %d", g, a.index, n.to.index)
	}
	return nil
}

// finishInstall does what a crash left of an install. Files that are gone or
// damaged end it: nothing was acknowledged, and the leader sends another.
func (h *Host) finishInstall(g dfs.GroupID) error {
	v, err := h.store.get(groupKey(g, logIntent))
	if v == nil || err != nil {
		return err
	}
	n, err := decodeIntent(v, g)
	if err != nil {
		return err
	}
	a, err := readApplied(h.state, g, true)
	if err != nil {
		return inState(err)
	}
	b := h.store.db.NewBatch()
	defer b.Close()
	if a.index < n.to.index {
		err = h.ingest(g, &n)
	}
	if err != nil {
		h.log.Warn("snapshot install abandoned", "group", uint16(g), "index", n.to.index, "cause", err)
		if err := b.Delete(groupKey(g, logIntent), nil); err != nil {
			return err
		}
		return h.store.commit(b, true)
	}
	h.log.Info("snapshot install finished", "group", uint16(g), "index", n.to.index)
	if err := n.stageEnd(b, g); err != nil {
		return err
	}
	return h.store.commit(b, true)
}
