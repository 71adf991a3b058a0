package raftgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// maxApplyBatch bounds the entries of one state batch, in bytes of their data:
// the first reply waits for the last entry of its batch.
const maxApplyBatch = 1 << 20

// applyItem is a run of committed entries from one Ready.
type applyItem struct {
	entries []*pb.Entry
	resp    []*pb.Message // to the library, once all are applied
	closed  bool          // waits for a synced hard state; guarded by applyQueue.mu once queued
}

func newApplyItem(m *pb.Message) *applyItem {
	return &applyItem{entries: m.GetEntries(), resp: m.GetResponses()}
}

func isConfChange(e *pb.Entry) bool { return e.GetType() != pb.EntryNormal }

func (it *applyItem) hasConfChange() bool {
	for _, e := range it.entries {
		if isConfChange(e) {
			return true
		}
	}
	return false
}

// applyQueue holds one replica's committed entries in order. The library
// bounds it by MaxCommittedSizePerReady.
type applyQueue struct {
	mu    sync.Mutex
	items []*applyItem
}

func (q *applyQueue) push(it *applyItem) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append(q.items, it)
}

func (q *applyQueue) open(it *applyItem) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it.closed = false
}

// head returns the first item, nil when there is none that may be applied.
func (q *applyQueue) head() *applyItem {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 || q.items[0].closed {
		return nil
	}
	return q.items[0]
}

// pop drops the first item and reports whether another may be applied.
func (q *applyQueue) pop() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items[0] = nil
	q.items = q.items[1:]
	return len(q.items) > 0 && !q.items[0].closed
}

// applyNext applies the first item of the queue and reports whether it did: then
// the library has an answer to look at. One at a time calls it for a replica.
func (r *replica) applyNext() bool {
	if r.state.failed() != nil || r.state.missing() {
		return false
	}
	it := r.queue.head()
	if it == nil {
		return false
	}
	r.h.failpoint(r.id, FailCommitted)
	for rest := it.entries; len(rest) > 0; {
		n := applyRun(rest)
		switch err := r.applyEntries(rest[:n]); {
		case err == errNoState: // the item waits for one
			return false
		case err != nil:
			r.quarantine(err)
			return false
		}
		rest = rest[n:]
	}
	more := r.queue.pop()
	for _, m := range it.resp {
		r.in.addLocal(m)
	}
	if more {
		r.h.appliers.schedule(r)
	}
	return true
}

// applyRun is how many entries make one batch: a configuration change is
// applied alone.
func applyRun(es []*pb.Entry) int {
	size := 0
	for i, e := range es {
		if isConfChange(e) {
			return max(i, 1)
		}
		if size += len(e.GetData()); size >= maxApplyBatch {
			return i + 1
		}
	}
	return len(es)
}

func (r *replica) quarantine(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.quarantineLocked(err)
}

// reply is what one applied entry came to.
type reply struct {
	index uint64
	id    proposalID
	data  []byte
}

// errNoState says that the state was given up before an entry was applied.
var errNoState = errors.New("no state")

// applyEntries applies a run in one state batch and then answers the proposers.
func (r *replica) applyEntries(es []*pb.Entry) error {
	s := &r.state
	s.gate.RLock()
	if s.missing() {
		s.gate.RUnlock()
		return errNoState
	}
	conf, err := r.applyConf(es[0])
	if err != nil {
		s.gate.RUnlock()
		return err
	}
	next := s.now()
	for len(es) > 0 && es[0].GetIndex() <= next.index {
		es = es[1:] // a snapshot has them, or a restart applied them before
	}
	if len(es) == 0 || s.failed() != nil || r.superseded(es[0].GetIndex()) {
		s.gate.RUnlock()
		return nil
	}
	replies, checks, err := r.commitEntries(es, &next, conf)
	s.gate.RUnlock()
	if err != nil {
		return err
	}
	r.h.failpoint(r.id, FailApplied)
	s.advance(next, checks)
	for _, re := range replies {
		r.proposals.applied(re.index, re.id, re.data)
	}
	r.reads.applied(next.index)
	r.h.failpoint(r.id, FailReplied)
	if f := r.h.opts.OnApplied; f != nil {
		f(r.id, next.index)
	}
	return nil
}

// superseded reports whether the library has restored a snapshot that covers
// index and that is being installed: what was handed out before it is void.
func (r *replica) superseded(index uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return index <= r.confFloor
}

// applyConf makes a configuration change current in the library. It returns
// the configuration after it, nil for any other entry.
func (r *replica) applyConf(e *pb.Entry) (conf *pb.ConfState, err error) {
	if !isConfChange(e) {
		return nil, nil
	}
	cc := &pb.ConfChangeV2{}
	if e.GetType() != pb.EntryConfChangeV2 || proto.Unmarshal(e.GetData(), cc) != nil {
		return nil, dfs.Errorf(dfs.Corrupt, "apply", "%v: entry %d is no configuration change that this version knows", r.id, e.GetIndex())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault != nil {
		return nil, r.fault
	}
	if e.GetIndex() <= r.confFloor || e.GetIndex() <= r.confDone {
		return nil, nil
	}
	r.guardLocked(func() { conf = r.raw.ApplyConfChange(cc) })
	if removes(cc) {
		r.h.beats.alarm() // the removed may sleep, and is sent nothing any more
	}
	r.confDone = e.GetIndex()
	r.signalLocked()
	r.h.workers.schedule(r)
	return conf, r.fault
}

// commitEntries commits the writes of es with the record that follows from them.
func (r *replica) commitEntries(es []*pb.Entry, next *applied, conf *pb.ConfState) ([]reply, []checkpoint, error) {
	tx := applyTx(r.state.db, r.state.prefix)
	defer func() { _ = tx.b.Close() }()
	var replies []reply
	var checks []checkpoint
	for _, e := range es {
		if e.GetIndex() != next.index+1 {
			return nil, nil, dfs.Errorf(dfs.Internal, "apply", "%v: entry %d after %d", r.id, e.GetIndex(), next.index)
		}
		re, writes, err := r.applyEntry(tx, e)
		if err != nil {
			return nil, nil, err
		}
		r.h.failpoint(r.id, FailApplying)
		next.index, next.term = e.GetIndex(), e.GetTerm()
		next.hash = next.hash.extend(e, writes, re.data)
		if isConfChange(e) {
			next.confIndex = e.GetIndex()
			if conf != nil {
				next.conf = conf
			}
		}
		replies = append(replies, re)
		if e.GetIndex()%checkEvery == 0 {
			checks = append(checks, checkpoint{e.GetIndex(), binary.BigEndian.Uint64(next.hash[:])})
		}
	}
	if err := tx.flush(); err != nil {
		return nil, nil, err
	}
	if err := tx.b.Set(stateKey(r.id, stateApplied), next.encode(), nil); err != nil {
		return nil, nil, err
	}
	if err := tx.b.Commit(pebble.NoSync); err != nil {
		return nil, nil, wrapStore("apply", r.id.String(), err)
	}
	return replies, checks, r.h.failure()
}

// applyEntry lets the state machine apply one entry.
func (r *replica) applyEntry(tx *batchTx, e *pb.Entry) (re reply, writes uint64, err error) {
	re.index = e.GetIndex()
	if isConfChange(e) || len(e.GetData()) == 0 {
		re.id, _ = entryID(e)
		return re, 0, nil
	}
	id, cmd, ok := splitEntry(e.GetData())
	if !ok {
		return re, 0, dfs.Errorf(dfs.Corrupt, "apply", "%v: entry %d has a head that this version does not know", r.id, e.GetIndex())
	}
	re.id = id
	defer func() {
		if p := recover(); p != nil {
			r.h.log.Error("state machine panicked", "group", uint16(r.id), "index", e.GetIndex(), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = dfs.Errorf(dfs.Internal, "apply", "%v: entry %d: %v", r.id, e.GetIndex(), p)
		}
	}()
	tx.writes = 0
	re.data, err = r.sm.Apply(tx, Entry{Index: e.GetIndex(), Term: e.GetTerm(), Data: cmd})
	if err != nil {
		return re, 0, dfs.Wrap("apply", fmt.Sprintf("%v entry %d", r.id, e.GetIndex()), err)
	}
	return re, tx.writes, nil
}
