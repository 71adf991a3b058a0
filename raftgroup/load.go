package raftgroup

import (
	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"dfsd/dfs"
)

// A group begins with its log cut at (firstIndex, firstTerm), where its state
// is empty. So a replica that joins with nothing is always sent a snapshot, and
// with it the members, which no entry of the log names.
const (
	firstIndex = 1
	firstTerm  = 1
)

func confState(voters []uint64) *pb.ConfState { return &pb.ConfState{Voters: voters} }

// addReplica writes the beginning of a group's log, synced, and starts it.
func (h *Host) addReplica(g dfs.GroupID, t truncated, hard *pb.HardState) error {
	if !h.enter() {
		return errClosing("add replica")
	}
	defer h.leave()
	if err := h.own(h.ctx, g); err != nil {
		return err
	}
	defer h.disown(g)
	return h.addOwned(g, t, hard)
}

// addOwned is addReplica for whoever owns the group.
func (h *Host) addOwned(g dfs.GroupID, t truncated, hard *pb.HardState) error {
	if !h.vacant(g) {
		return dfs.Errorf(dfs.Exist, "add replica", "%v has a replica on node %v", g, h.opts.Node)
	}
	term, err := h.tombstone(g)
	switch {
	case err != nil:
		return err
	case term > 0 && t.index > 0: // of old: a group begins once
		return dfs.Errorf(dfs.Exist, "add replica", "%v had a replica on node %v, which was destroyed", g, h.opts.Node)
	case term > 0:
		hard = hardState(term, raft.None, 0)
	}
	b := h.store.db.NewBatch()
	defer b.Close()
	if err := b.Delete(groupKey(g, logTombstone), nil); err != nil {
		return err
	}
	if err := b.Set(groupKey(g, logTruncated), t.encode(), nil); err != nil {
		return err
	}
	if err := b.Set(groupKey(g, logHardState), encodeHardState(hard), nil); err != nil {
		return err
	}
	if err := h.store.commit(b, true); err != nil {
		return err
	}
	return h.startReplica(g, nil)
}

// startReplica starts a group's replica from the stores, in place of one that was
// stopped; ill is that one's quarantine, which a start from the same log and state
// does not end.
func (h *Host) startReplica(g dfs.GroupID, ill error) error {
	r, err := h.loadReplica(g)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.inheritLocked(ill)
	r.mu.Unlock()
	h.mu.Lock()
	h.groups[g], h.order = r, nil
	h.mu.Unlock()
	h.begin(r)
	return nil
}

// loadReplica starts a group's replica from the stores. Corrupt: its log lost
// entries, and so the log store did.
func (h *Host) loadReplica(g dfs.GroupID) (*replica, error) {
	if err := h.finishInstall(g); err != nil {
		return nil, err
	}
	l, err := loadGroupLog(h.store, g, h.opts.EntryCache)
	if l == nil || err != nil {
		return nil, err
	}
	r := h.newReplica(g, l)
	aside, err := h.loadGeneration(r)
	if err != nil {
		return nil, err
	}
	cur, err := readApplied(h.state, g, false)
	if err != nil {
		return nil, inState(err)
	}
	hard, err := l.hardState()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.place(cur, hard); err != nil {
		return nil, err
	}
	r.guardLocked(func() {
		var err error
		if r.raw, err = raft.NewRawNode(r.startConfig()); err != nil {
			panic(err.Error())
		}
		r.logTerm = r.raw.BasicStatus().GetTerm()
	})
	if aside > 0 && r.fault == nil {
		r.term = r.logTerm
		r.setAsideLocked(aside)
	}
	return r, h.loadHeld(r)
}

func (h *Host) newReplica(g dfs.GroupID, l *groupLog) *replica {
	r := &replica{
		h: h, id: g, l: l, sm: h.opts.StateMachine(g),
		in:      inbox{limit: h.opts.MaxInbox, all: h.messages},
		changed: make(chan struct{}),
		seen:    map[uint64]uint64{}, answered: map[uint64]uint64{},
		sending: map[dfs.NodeID]*transfer{}, reports: map[uint64]checkpoint{},
	}
	r.office.Store(&Office{})
	r.state.open(h.state, g)
	r.proposals = proposals{
		g: g, limit: h.opts.MaxProposals, limitBytes: h.opts.MaxProposalQueue, all: h.queued,
		bySeq: map[uint64]*proposal{}, byIndex: map[uint64]*proposal{},
	}
	r.reads = reads{
		g: g, limit: h.opts.MaxReads, retry: uint64(max(1, h.opts.ElectionTicks/2)),
		asked: map[uint64]*readBatch{},
	}
	l.snapshot = r.snapshotMetadata
	return r
}

// place finds where a replica continues and what the library starts from. It
// returns what makes that impossible.
func (r *replica) place(cur applied, hard *pb.HardState) error {
	t := r.l.truncation()
	_, r.logEnd = r.l.bounds()
	switch {
	case cur.index > r.logEnd:
		return dfs.Errorf(dfs.Corrupt, "open replica", "%v: the state is at entry %d, the log ends at %d: the log lost entries", r.id, cur.index, r.logEnd)
	case hard.GetCommit() > r.logEnd:
		return dfs.Errorf(dfs.Corrupt, "open replica", "%v: entry %d was committed, the log ends at %d: the log lost entries", r.id, hard.GetCommit(), r.logEnd)
	case cur.index < t.index:
		// Without a state, or with one that is older than the log's beginning.
		// At the first index the state is empty, and no replica has less.
		r.state.lost = t.index > firstIndex
		cur = applied{index: t.index, term: t.term, confIndex: t.confIndex, conf: t.conf}
	case r.h.opts.Hooks.ApplyTwice && cur.index > t.index:
		cur.index--
	}
	r.state.cur = cur
	r.confDone = cur.confIndex
	commit := max(hard.GetCommit(), cur.index)
	r.l.initialHard = hardState(hard.GetTerm(), hard.GetVote(), commit)
	r.l.initialConf = cur.conf
	return nil
}

func (r *replica) startConfig() *raft.Config {
	c := r.config()
	c.Applied = r.state.cur.index
	return c
}

func (s *state) open(db *pebble.DB, g dfs.GroupID) {
	s.db, s.g, s.prefix = db, g, stateKey(g, stateData)
	s.incoming = map[uint64]*install{}
	s.cur.conf = confState(nil)
}
