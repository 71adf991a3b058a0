package raftgroup

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/raft/v3/raftpb"

	"dfsd/dfs"
)

// maxLogBatch bounds the entries of one synced batch, in bytes: enough to make
// a sync worth its while, little enough to hold in memory twice.
const maxLogBatch = 8 << 20

// logWrite is what one replica has to write to the log store.
type logWrite struct {
	r         *replica
	hard      *pb.HardState // nil: unchanged
	entries   []*pb.Entry
	responses []*pb.Message // to deliver once everything up to here is synced
	sync      bool          // responses or opens lean on it
	opens     *applyItem    // may be applied once this is synced
	install   *install      // a snapshot takes the place of log and state first
	cut       *truncated    // drop the log up to here
	tombstone uint64        // nothing of the group stays but this term, 0: none; the last write of a replica
	last      bool          // so is this: nothing of the replica is written after it
	buried    chan struct{} // closed once either is done, a tombstone synced
}

// logWriter is the one goroutine that appends to the log store. Each round it
// takes what all replicas have, writes it in one batch, syncs once, and then
// delivers what waited for it.
type logWriter struct {
	h   *Host
	out *outbox

	mu    sync.Mutex
	ready sync.Cond
	// queue is bounded by what the library leaves in flight for each group: its
	// uncommitted entries on a leader, the inbox on a follower.
	queue  []*logWrite
	parked map[*replica][]*logWrite // of replicas that install a snapshot, in order
	closed bool
}

func newLogWriter(h *Host) *logWriter {
	w := &logWriter{h: h, out: newOutbox(h), parked: map[*replica][]*logWrite{}}
	w.ready.L = &w.mu
	return w
}

func (w *logWriter) push(lw *logWrite) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if list, ok := w.parked[lw.r]; ok {
		w.parked[lw.r] = append(list, lw)
		return
	}
	w.queue = append(w.queue, lw)
	w.ready.Signal()
}

// resume continues a replica's writes after an install.
func (w *logWriter) resume(r *replica) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, w.parked[r]...)
	delete(w.parked, r)
	w.ready.Signal()
}

// waiting returns how many writes wait for the next round.
func (w *logWriter) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue)
}

func (w *logWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.ready.Broadcast()
}

// logRound is one batch in the making.
type logRound struct {
	writes   []*logWrite
	entries  map[*replica][]*pb.Entry // of one run of indexes each
	installs []*logWrite
	sync     bool
}

// take waits for work and returns a round of it, nil once closed.
func (w *logWriter) take() *logRound {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) == 0 && !w.closed {
		w.ready.Wait()
	}
	if w.closed {
		return nil
	}
	rd := &logRound{entries: map[*replica][]*pb.Entry{}}
	var rest []*logWrite
	size, full := 0, false
	for _, lw := range w.queue {
		if list, ok := w.parked[lw.r]; ok {
			w.parked[lw.r] = append(list, lw)
			continue
		}
		if full || !rd.continues(lw) {
			full = true
			rest = append(rest, lw)
			continue
		}
		if lw.install != nil {
			rd.installs = append(rd.installs, lw)
			w.parked[lw.r] = nil
			continue
		}
		for _, e := range lw.entries {
			size += entrySize(e)
		}
		rd.add(lw)
		full = size >= maxLogBatch
	}
	w.queue = rest
	return rd
}

// continues reports whether a write's entries follow those of the same replica
// that are in the round; entries that replace them wait for the next.
func (rd *logRound) continues(lw *logWrite) bool {
	have := rd.entries[lw.r]
	if len(have) == 0 || len(lw.entries) == 0 {
		return true
	}
	return lw.entries[0].GetIndex() == have[len(have)-1].GetIndex()+1
}

func (rd *logRound) add(lw *logWrite) {
	rd.writes = append(rd.writes, lw)
	rd.sync = rd.sync || lw.sync
	if len(lw.entries) > 0 {
		have := rd.entries[lw.r]
		rd.entries[lw.r] = append(have[:len(have):len(have)], lw.entries...)
	}
}

func (w *logWriter) run() {
	for {
		rd := w.take()
		if rd == nil {
			return
		}
		if err := w.write(rd); err != nil {
			w.h.failLog(err)
			return
		}
		for _, lw := range rd.writes {
			w.deliver(lw, w.out)
		}
		w.out.flush()
		w.wake(rd)
		for _, lw := range rd.writes {
			w.h.failpoint(lw.r.id, FailDelivered)
		}
		for _, lw := range rd.installs {
			w.h.startInstall(lw)
		}
	}
}

// write commits a round and makes it visible to the library.
func (w *logWriter) write(rd *logRound) error {
	if len(rd.writes) == 0 {
		return nil
	}
	b := w.h.store.db.NewBatch()
	defer b.Close()
	staged := make(map[*replica][]cached, len(rd.entries))
	for _, lw := range rd.writes {
		if es := rd.entries[lw.r]; es != nil && staged[lw.r] == nil {
			var err error
			if staged[lw.r], err = lw.r.l.stage(b, es); err != nil {
				return err
			}
		}
		if err := lw.stageRest(b); err != nil {
			return err
		}
	}
	for _, lw := range rd.writes {
		w.h.failpoint(lw.r.id, FailStaged)
	}
	// Readers see the batch before it is synced: an entry that it takes away must
	// be gone for them by then, and not missing.
	for r, cs := range staged {
		r.l.retract(cs)
	}
	for _, lw := range rd.writes {
		switch {
		case lw.r.l.ended:
			lw.r.l.cut(lw.r.l.end())
		case lw.cut != nil:
			lw.r.l.cut(*lw.cut)
		}
	}
	if err := w.h.store.commit(b, rd.sync); err != nil {
		return err
	}
	for r, cs := range staged {
		r.l.publish(cs)
	}
	for _, lw := range rd.writes {
		if lw.cut != nil {
			w.h.failpoint(lw.r.id, FailCut)
		}
		w.h.failpoint(lw.r.id, FailSynced)
	}
	return nil
}

// stageRest adds everything but the entries.
func (lw *logWrite) stageRest(b *pebble.Batch) error {
	g := lw.r.id
	if lw.r.l.ended {
		return nil // a cut that was under way
	}
	if lw.hard != nil {
		if err := b.Set(groupKey(g, logHardState), encodeHardState(lw.hard), nil); err != nil {
			return err
		}
	}
	if lw.tombstone > 0 {
		lw.r.l.ended = true
		return stageBurial(b, g, lw.tombstone, lw.r.generation)
	}
	lw.r.l.ended = lw.last
	if lw.cut == nil {
		return nil
	}
	if lw.cut.index <= lw.r.l.truncation().index {
		lw.cut = nil // a snapshot came first
		return nil
	}
	if err := b.DeleteRange(entryKey(g, 0), entryKey(g, lw.cut.index+1), nil); err != nil {
		return err
	}
	return b.Set(groupKey(g, logTruncated), lw.cut.encode(), nil)
}

// wake has the replicas of a round look at its outcome. What comes of that is most
// often the next write, so a single one is driven here.
func (w *logWriter) wake(rd *logRound) {
	alone := true
	for _, lw := range rd.writes {
		alone = alone && lw.r == rd.writes[0].r
	}
	for _, lw := range rd.writes {
		switch {
		case len(lw.responses) == 0:
		case alone:
			if w.h.workers.claim(lw.r) {
				w.h.drive(lw.r, w.out, false)
			}
			return
		default:
			w.h.workers.schedule(lw.r)
		}
	}
}

// deliver hands on what waited for a write. A replica in quarantine
// acknowledges nothing.
func (w *logWriter) deliver(lw *logWrite, out *outbox) {
	if lw.buried != nil {
		close(lw.buried)
	}
	if lw.opens != nil {
		lw.r.queue.open(lw.opens)
		w.h.appliers.schedule(lw.r)
	}
	if lw.r.state.failed() != nil {
		return
	}
	for _, m := range lw.responses {
		if m.GetTo() == uint64(w.h.opts.Node) {
			lw.r.in.addLocal(m)
			continue
		}
		out.add(dfs.NodeID(m.GetTo()), laneOf(m), &frame{kind: frameRaft, group: lw.r.id, generation: lw.r.generation, msg: m})
	}
}
