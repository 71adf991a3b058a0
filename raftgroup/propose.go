package raftgroup

import (
	"context"
	"encoding/binary"
	"sync"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// The data of an entry starts with who proposed it, so that the proposer knows
// its entry when it is applied: version, node (32 bits), start counter and
// sequence (64 bits each), all big endian; then the command.
const (
	entryVersion  = 1
	proposalHead  = 1 + proposalKey
	proposalKey   = 4 + 8 + 8
	proposalExtra = 64 // of memory for each that waits
)

// proposalID names a proposal for ever: the start counter of a node's log store
// never repeats.
type proposalID struct {
	node  dfs.NodeID
	start uint64
	seq   uint64
}

func (id proposalID) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(id.node))
	b = binary.BigEndian.AppendUint64(b, id.start)
	return binary.BigEndian.AppendUint64(b, id.seq)
}

func parseProposalID(b []byte) (proposalID, bool) {
	if len(b) < proposalKey {
		return proposalID{}, false
	}
	return proposalID{
		node:  dfs.NodeID(binary.BigEndian.Uint32(b)),
		start: binary.BigEndian.Uint64(b[4:]),
		seq:   binary.BigEndian.Uint64(b[12:]),
	}, true
}

// splitEntry takes an entry's data apart; ok is false for data that Propose
// never makes.
func splitEntry(data []byte) (id proposalID, cmd []byte, ok bool) {
	if len(data) < proposalHead || data[0] != entryVersion {
		return proposalID{}, nil, false
	}
	id, ok = parseProposalID(data[1:])
	return id, data[proposalHead:], ok
}

// proposal is a command or a membership change that waits for its outcome.
//
//	queued ──step──▶ stepped ──applied, overtaken, orphaned, given up──▶ finished
//	   └──refused, given up: surely not applied────────────────────────────▲
type proposal struct {
	set    *proposals
	id     proposalID
	entry  *pb.Entry
	weight int          // proposals that it counts as, 1 at least
	done   chan outcome // one buffered

	// Guarded by set.mu.
	stepped  bool
	finished bool
	index    uint64 // where the entry is in the log; 0 until it is known
	deadline uint64 // tick at which an orphan is given up; 0 is none
}

type outcome struct {
	reply []byte
	err   error
}

// proposals holds one replica's proposals that have no outcome yet.
type proposals struct {
	g                 dfs.GroupID
	limit, limitBytes int
	all               *budget

	mu      sync.Mutex
	count   int // 0 <= count <= limit
	bytes   int // 0 <= bytes <= limitBytes
	bySeq   map[uint64]*proposal
	byIndex map[uint64]*proposal
	orphans bool  // some have a deadline
	closed  error // why nothing is taken any more
}

func (ps *proposals) add(p *proposal) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.closed != nil {
		return unavailable("propose", ps.closed)
	}
	n := len(p.entry.GetData()) + proposalExtra
	if ps.count+p.weight > ps.limit || ps.bytes+n > ps.limitBytes {
		return dfs.Errorf(dfs.Busy, "propose", "%v has %d proposals of %d bytes waiting", ps.g, ps.count, ps.bytes)
	}
	if !ps.all.take(n) {
		return dfs.Errorf(dfs.Busy, "propose", "all groups have proposals of %d bytes waiting", ps.all.limit)
	}
	ps.count += p.weight
	ps.bytes += n
	return nil
}

// none reports whether nothing waits.
func (ps *proposals) none() bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.count == 0
}

// finishLocked gives p its outcome, once.
func (p *proposal) finishLocked(o outcome) {
	if p.finished {
		return
	}
	p.finished = true
	p.set.count -= p.weight
	n := len(p.entry.GetData()) + proposalExtra
	p.set.bytes -= n
	p.set.all.give(n)
	if p.set.bySeq[p.id.seq] == p {
		delete(p.set.bySeq, p.id.seq)
	}
	if p.set.byIndex[p.index] == p {
		delete(p.set.byIndex, p.index)
	}
	p.done <- o
}

// finishUnapplied ends a proposal that has not been, and will not be, in any log.
func (p *proposal) finishUnapplied(err error) {
	p.set.mu.Lock()
	defer p.set.mu.Unlock()
	p.finishLocked(outcome{err: unavailable("propose", err)})
}

// unavailable keeps the kinds that promise that nothing was applied and turns
// every other into Unavailable.
func unavailable(op string, err error) error {
	switch dfs.KindOf(err) {
	case dfs.NotLeader, dfs.Busy, dfs.Unavailable:
		return err
	}
	return &dfs.Error{Kind: dfs.Unavailable, Op: op, Err: err}
}

// endedUnknown is the outcome of a proposal that may be in the log of a host, or a
// replica, that has ended.
func endedUnknown(g dfs.GroupID, why error) error {
	return &dfs.Error{Kind: dfs.Unknown, Op: "propose", Object: g.String(), Text: "it may have been applied", Err: why}
}

func unknown(g dfs.GroupID, why string) error {
	return dfs.Errorf(dfs.Unknown, "propose", "%v: %s; it may have been applied", g, why)
}

// giveUp ends a proposal whose caller does not wait any longer, or whose host has
// ended, which says why.
func (p *proposal) giveUp(ended error) {
	p.set.mu.Lock()
	defer p.set.mu.Unlock()
	switch {
	case ended != nil && p.stepped:
		p.finishLocked(outcome{err: endedUnknown(p.set.g, ended)})
	case ended != nil:
		p.finishLocked(outcome{err: unavailable("propose", ended)})
	case p.stepped:
		p.finishLocked(outcome{err: unknown(p.set.g, "no outcome in the time given")})
	default:
		p.finishLocked(outcome{err: dfs.Errorf(dfs.Unavailable, "propose", "%v: not started in the time given", p.set.g)})
	}
}

// step marks p as possibly in the log; false when it has an outcome already.
func (ps *proposals) step(p *proposal) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.finished {
		return false
	}
	p.stepped = true
	ps.bySeq[p.id.seq] = p
	return true
}

// place notes the log index of own proposals that are being appended.
func (ps *proposals) place(entries []*pb.Entry) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if len(ps.bySeq) == 0 {
		return
	}
	for _, e := range entries {
		id, ok := entryID(e)
		if p := ps.bySeq[id.seq]; ok && p != nil && p.id == id {
			p.index = e.GetIndex()
			ps.byIndex[p.index] = p
		}
	}
}

func entryID(e *pb.Entry) (proposalID, bool) {
	switch e.GetType() {
	case pb.EntryNormal:
		id, _, ok := splitEntry(e.GetData())
		return id, ok
	case pb.EntryConfChangeV2:
		cc := &pb.ConfChangeV2{}
		if proto.Unmarshal(e.GetData(), cc) != nil {
			return proposalID{}, false
		}
		return parseProposalID(cc.GetContext())
	}
	return proposalID{}, false
}

// applied gives the entry at index its reply. A proposal that was appended at
// this index and is not that entry can never be applied any more.
func (ps *proposals) applied(index uint64, id proposalID, reply []byte) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.bySeq[id.seq]; p != nil && p.id == id {
		p.finishLocked(outcome{reply: reply})
	}
	if p := ps.byIndex[index]; p != nil {
		p.finishLocked(outcome{err: dfs.Errorf(dfs.NotLeader, "propose", "%v: another leader's entry took its place", ps.g)})
	}
}

// skipped ends the proposals whose entries a snapshot through index covers.
func (ps *proposals) skipped(index uint64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for i, p := range ps.byIndex {
		if i <= index {
			p.finishLocked(outcome{err: unknown(ps.g, "a snapshot took the place of the log")})
		}
	}
}

// orphan gives what was proposed under a lost leadership until a tick to be
// decided by the next leader.
func (ps *proposals) orphan(deadline uint64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.bySeq {
		if p.deadline == 0 {
			p.deadline = deadline
			ps.orphans = true
		}
	}
}

func (ps *proposals) expire(tick uint64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if !ps.orphans {
		return
	}
	ps.orphans = false
	for _, p := range ps.bySeq {
		switch {
		case p.deadline == 0:
		case p.deadline <= tick:
			p.finishLocked(outcome{err: unknown(ps.g, "leadership was lost")})
		default:
			ps.orphans = true
		}
	}
}

// close ends all: what may be in the log is unknown. Queued ones end when the
// worker that takes them, or the host's Close, sees them.
func (ps *proposals) close(err error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.closed = err
	for _, p := range ps.bySeq {
		p.finishLocked(outcome{err: endedUnknown(ps.g, err)})
	}
}

// proposeLocked steps what is queued.
func (r *replica) proposeLocked(queued []*proposal) {
	var batch []*proposal
	size := 0
	for _, p := range queued {
		n := len(p.entry.GetData())
		if len(batch) > 0 && (size+n > maxMessageEntries || p.entry.GetType() != pb.EntryNormal) {
			r.stepProposalsLocked(batch)
			batch, size = nil, 0
		}
		batch, size = append(batch, p), size+n
	}
	r.stepProposalsLocked(batch)
}

func (r *replica) stepProposalsLocked(batch []*proposal) {
	m := &pb.Message{Type: pb.MsgProp.Enum(), From: proto.Uint64(uint64(r.h.opts.Node))}
	live := batch[:0]
	for _, p := range batch {
		if r.proposals.step(p) {
			live = append(live, p)
			m.Entries = append(m.Entries, p.entry)
		}
	}
	if len(live) == 0 {
		return
	}
	err := r.notLeaderLocked()
	if err == nil {
		if r.raw.Step(m) != nil {
			err = r.droppedLocked()
		}
	}
	for i, p := range live {
		switch {
		case err != nil:
			p.finishUnapplied(err)
		case p.entry.GetType() != m.Entries[i].GetType():
			// The library put an empty entry in the place of a change.
			p.finishUnapplied(dfs.Errorf(dfs.Busy, "change members", "%v: another change is under way", r.id))
		}
	}
}

// notLeaderLocked refuses when this replica does not lead, with a hint.
func (r *replica) notLeaderLocked() error {
	st := r.raw.BasicStatus()
	if st.RaftState == raft.StateLeader {
		return nil
	}
	return &dfs.Error{Kind: dfs.NotLeader, Op: "propose", Object: r.id.String(), LeaderHint: dfs.NodeID(st.Lead)}
}

// droppedLocked explains why a leader's library dropped a proposal.
func (r *replica) droppedLocked() error {
	if err := r.notLeaderLocked(); err != nil {
		return err
	}
	if r.raw.BasicStatus().LeadTransferee != raft.None {
		return dfs.Errorf(dfs.Unavailable, "propose", "%v: leadership is being handed over", r.id)
	}
	return dfs.Errorf(dfs.Busy, "propose", "%v: too many entries wait for a majority", r.id)
}

// Propose commits a command and returns the reply of the group's state machine
// as applied on this node. The command is the host's from now on. Errors by
// kind: NotLeader (with a hint), Busy and Unavailable promise that the command
// was not and will not be applied; with Unknown it may have been, or may yet
// be. TooLarge: over MaxProposalBytes. NotExist: no such group here.
func (h *Host) Propose(ctx context.Context, g dfs.GroupID, cmd []byte) ([]byte, error) {
	return h.ProposeBatch(ctx, g, cmd, 1)
}

// ProposeBatch is Propose for a command that holds so many of its callers': it
// takes their places among those that wait.
func (h *Host) ProposeBatch(ctx context.Context, g dfs.GroupID, cmd []byte, commands int) ([]byte, error) {
	if len(cmd) > h.opts.MaxProposalBytes {
		return nil, h.tooLarge(g, cmd)
	}
	r, err := h.find(g)
	if err != nil {
		return nil, err
	}
	id := h.newProposalID()
	return r.propose(ctx, id, id.entry(cmd), commands)
}

// Outcome is what became of one of many commands.
type Outcome struct {
	Reply []byte
	Err   error // of the kinds of Propose
}

// ProposeMany commits several commands, each as by Propose, in the order given
// as far as they are taken. It returns when all have an outcome.
func (h *Host) ProposeMany(ctx context.Context, g dfs.GroupID, cmds [][]byte) []Outcome {
	out := make([]Outcome, len(cmds))
	r, err := h.find(g)
	if err != nil {
		for i := range out {
			out[i].Err = err
		}
		return out
	}
	begun := make([]*proposal, len(cmds))
	for i, cmd := range cmds {
		if len(cmd) > h.opts.MaxProposalBytes {
			out[i].Err = h.tooLarge(g, cmd)
			continue
		}
		id := h.newProposalID()
		begun[i], out[i].Err = r.begin(id, id.entry(cmd), 1)
	}
	h.workers.schedule(r)
	for i, p := range begun {
		if p != nil {
			out[i].Reply, out[i].Err = p.await(ctx, h)
		}
	}
	return out
}

func (h *Host) tooLarge(g dfs.GroupID, cmd []byte) error {
	return dfs.Errorf(dfs.TooLarge, "propose", "%v: %d bytes, at most %d", g, len(cmd), h.opts.MaxProposalBytes)
}

// entry makes the log entry of a command.
func (id proposalID) entry(cmd []byte) *pb.Entry {
	data := id.append(append(make([]byte, 0, proposalHead+len(cmd)), entryVersion))
	return &pb.Entry{Type: pb.EntryNormal.Enum(), Data: append(data, cmd...)}
}

func (r *replica) propose(ctx context.Context, id proposalID, e *pb.Entry, weight int) ([]byte, error) {
	p, err := r.begin(id, e, weight)
	if err != nil {
		return nil, err
	}
	r.h.workers.schedule(r)
	return p.await(ctx, r.h)
}

// begin queues a proposal for the next round of the replica, which the caller
// has to schedule.
func (r *replica) begin(id proposalID, e *pb.Entry, weight int) (*proposal, error) {
	p := &proposal{set: &r.proposals, id: id, entry: e, weight: weight, done: make(chan outcome, 1)}
	if err := r.proposals.add(p); err != nil {
		return nil, err
	}
	r.in.addProposal(p)
	return p, nil
}

// await returns the outcome, which the end of ctx or the host's brings about.
func (p *proposal) await(ctx context.Context, h *Host) ([]byte, error) {
	select {
	case o := <-p.done:
		return o.reply, o.err
	case <-ctx.Done():
		p.giveUp(nil)
	case <-h.closing:
		why := h.failure()
		if why == nil {
			why = errClosing("propose")
		}
		p.giveUp(why)
	}
	o := <-p.done // buffered: giveUp or an outcome before it filled it
	return o.reply, o.err
}
