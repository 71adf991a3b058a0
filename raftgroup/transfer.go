package raftgroup

import (
	"bytes"
	"context"
	"errors"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"dfsd/dfs"
)

// transfer is a snapshot on its way to a peer, through as many streams as that
// takes:
//
//	           stream broke
//	sending ───────────────▶ waiting ── too long, too many, state replaced ─▶ ended
//	 │   ▲                      │
//	 │   └───── asked again ────┘
//	 └── installed ──▶ following ── caught up, silent, not led from here ──▶ ended
//
// The log after its index stays in all of them: see replica.trim.
type transfer struct {
	r      *replica
	to     dfs.NodeID
	number uint64

	// Of the stream under way, which alone changes them. They are nothing
	// before open.
	id     snapshotID
	snap   *pebble.Snapshot
	passed []passed // ascending, at most maxPassed

	bytes, keys atomic.Uint64 // sent so far, what went on from a point counted once

	// Guarded by r.mu.
	phase   phase
	term    uint64             // of the leader that sends it; 0: the state alone
	cancel  context.CancelFunc // of the stream under way
	index   uint64             // the log after it stays; the peer has it, or the snapshot will
	goal    uint64             // following: the entry that ends it
	resumed int
	since   time.Time // when the last stream that came under way ended
	began   bool      // the stream has come under way
	spoiled bool      // the state was replaced under it; set under state.gate too
}

type phase uint8

const (
	sending phase = iota
	waiting
	following
)

// beginSending returns the transfer whose stream may begin now, nil when one is
// under way.
func (r *replica) beginSending(to dfs.NodeID, term uint64) *transfer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault != nil || r.state.missing() || r.h.opts.OpenSnapshot == nil {
		return nil
	}
	t := r.sending[to]
	if t != nil && t.phase == sending {
		return nil
	}
	if t != nil && t.phase == waiting {
		r.h.waiting.Add(-1)
		t.phase, t.term = sending, term
		if first, _ := r.l.bounds(); t.id.at.index+1 >= first {
			return t
		}
		t.close() // the peer could not go on from it
	}
	// The log from here on stays until the peer can follow it.
	t = &transfer{r: r, to: to, number: r.h.sequence.Add(1), term: term, index: r.state.now().index, since: time.Now()}
	r.sending[to] = t
	return t
}

// endSending notes how a stream ended and tells the library.
func (r *replica) endSending(t *transfer, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.began {
		t.since, t.began = time.Now(), false
	}
	t.cancel = nil
	switch {
	case err == nil:
		r.h.snaps.delivered.Add(1)
		t.close()
		t.phase = following
		_, t.goal = r.l.bounds()
	case t.snap != nil && !t.spoiled && goesOn(err) && r.h.mayWait():
		t.phase = waiting
	default:
		t.close()
		delete(r.sending, t.to)
	}
	if r.fault != nil {
		return
	}
	status := raft.SnapshotFinish
	if err != nil {
		status = raft.SnapshotFailure
	}
	r.guardLocked(func() { r.raw.ReportSnapshot(uint64(t.to), status) })
	r.h.workers.schedule(r)
}

// goesOn reports whether a transfer is worth another stream after an error.
func goesOn(err error) bool {
	switch dfs.KindOf(err) {
	case dfs.Exist, dfs.NotExist, dfs.Invalid, dfs.Corrupt, dfs.Internal, dfs.TooLarge, dfs.NoSpace, dfs.Stale, dfs.Permission:
		return false
	}
	return true
}

// mayWait takes one of the places for transfers that wait, of which each keeps
// files of the state store from being removed.
func (h *Host) mayWait() bool {
	if h.waiting.Add(1) <= int64(h.opts.MaxSnapshots) {
		return true
	}
	h.waiting.Add(-1)
	return false
}

// open takes the moment of the group that is sent, once for all streams.
func (t *transfer) open() error {
	if t.snap != nil {
		return nil
	}
	g, s := t.r.id, &t.r.state
	t.r.h.snapStep(g, SnapSendOpen)
	s.gate.RLock()
	defer s.gate.RUnlock()
	snap := s.db.NewSnapshot()
	at, err := readApplied(snap, g, false)
	if err == nil && at.index == 0 {
		err = wrapStore("send snapshot", g.String(), errors.New("no state"))
	}
	if err == nil && !isMember(at.conf, t.to) {
		err = dfs.Errorf(dfs.Busy, "send snapshot", "%v: node %v is no member at entry %d", g, t.to, at.index)
	}
	if err != nil {
		return firstError(err, snap.Close())
	}
	t.snap = snap
	t.id = snapshotID{group: g, start: t.r.h.store.starts, number: t.number, at: at}
	return nil
}

// close gives the moment back.
func (t *transfer) close() {
	if t.snap != nil {
		_ = t.snap.Close() // of a reader: fails only when it is closed twice
	}
	t.snap, t.passed = nil, nil
}

// pass notes a point.
func (t *transfer) pass(p passed) {
	if len(t.passed) == maxPassed {
		t.passed = append(t.passed[:0], t.passed[1:]...)
	}
	t.passed = append(t.passed, p)
}

// resume returns the point to go on from: the one that the receiver has, when it
// holds what was sent up to there, else the beginning.
func (t *transfer) resume(have point) (*passed, error) {
	start := &passed{point: point{sum: t.id.newSum().Sum(nil)}}
	n := slices.IndexFunc(t.passed, func(p passed) bool { return p.keys == have.keys && bytes.Equal(p.sum, have.sum) })
	if n >= 0 {
		start = &t.passed[n]
	}
	t.passed = slices.Clone(t.passed[:n+1]) // the stream passes the others again
	t.bytes.Store(start.bytes)
	t.keys.Store(start.keys)
	t.begin(start.keys > 0)
	if start.keys > 0 {
		t.r.h.snaps.resumed.Add(1)
		t.r.h.log.Info("snapshot goes on", "group", uint16(t.id.group), "to", uint32(t.to), "bytes", start.bytes, "keys", start.keys)
	}
	return start, nil
}

func (t *transfer) begin(resumed bool) {
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	t.began = true
	if resumed {
		t.resumed++
	}
}

// iterator reads the group's rows after a point. It goes on seeing them when a
// snapshot takes the group's place meanwhile, which the store's own snapshot does not.
func (t *transfer) iterator(from *passed) (*pebble.Iterator, error) {
	s := &t.r.state
	s.gate.RLock()
	defer s.gate.RUnlock()
	if t.spoiled {
		return nil, dfs.Errorf(dfs.Stale, "send snapshot", "%v: the state was replaced meanwhile", t.r.id)
	}
	lower := bytes.Clone(s.prefix)
	if from.keys > 0 {
		lower = append(append(lower, from.key...), 0) // the next key that there can be
	}
	it, err := t.snap.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: prefixEnd(s.prefix)})
	return it, wrapStore("send snapshot", t.r.id.String(), err)
}

// spoilTransfers ends what waits to go on and keeps what is under way from
// waiting. The caller holds state.gate for writing.
func (r *replica) spoilTransfers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.sending {
		t.spoiled = true
		if t.phase != sending {
			r.dropTransferLocked(t)
		}
	}
}

// dropTransferLocked ends a transfer that no stream uses.
func (r *replica) dropTransferLocked(t *transfer) {
	if t.phase == waiting {
		r.h.waiting.Add(-1)
	}
	t.close()
	delete(r.sending, t.to)
}

// closeTransfers gives back what a replica's transfers hold, once no stream of
// this host is left.
func (r *replica) closeTransfers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.sending {
		t.close()
	}
}

// tidyTransfers ends what has waited for too long, and moves on with the peers
// that follow.
func (r *replica) tidyTransfers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.sending {
		switch t.phase {
		case waiting:
			if time.Since(t.since) >= r.h.opts.SnapshotKeep {
				r.h.log.Info("snapshot given up", "group", uint16(r.id), "to", uint32(t.to), "bytes", t.bytes.Load())
				r.dropTransferLocked(t)
			}
		case following:
			r.followLocked(t)
		case sending:
			if t.cancel != nil && r.deposedLocked(t) {
				t.cancel() // it waits: this node may lead again
			}
		}
	}
}

// deposedLocked reports whether the leader that sends a snapshot is none any more:
// then it would not be installed, and keeps the next leader's from coming.
func (r *replica) deposedLocked(t *transfer) bool {
	return t.term > 0 && (r.role != raft.StateLeader || r.term != t.term)
}

// streams notes how to end the stream under way.
func (t *transfer) streams(cancel context.CancelFunc) {
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	t.cancel = cancel
}

// followLocked moves the place from which the log stays with the peer, until it
// has what was there when its snapshot was installed.
func (r *replica) followLocked(t *transfer) {
	match, live := uint64(0), false
	if r.fault == nil && r.role == raft.StateLeader {
		r.raw.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
			if id == uint64(t.to) {
				match, live = p.Match, r.liveLocked(id)
			}
		})
	}
	if !live || match >= t.goal {
		r.dropTransferLocked(t)
		return
	}
	t.index = max(t.index, match)
}

// liveLocked reports whether a peer was heard of lately.
func (r *replica) liveLocked(id uint64) bool {
	seen, ok := r.seen[id]
	return ok && r.timeLocked()-seen <= liveTimeouts*uint64(r.h.opts.ElectionTicks)
}

// transfersFrom returns the index after which transfers need the log; ok is false
// without any.
func (r *replica) transfersFrom() (index uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	index = math.MaxUint64
	for _, t := range r.sending {
		index = min(index, t.index)
	}
	return index, len(r.sending) > 0
}

// logSlack is by how much a log may be larger than LogBytes for the sake of
// transfers: by as much as they have sent. So a peer reaches the live log
// whenever its snapshot arrives faster than the log grows; when it does not,
// no log would be long enough.
func (r *replica) logSlack() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var most uint64
	for _, t := range r.sending {
		most = max(most, t.bytes.Load())
	}
	return most
}
