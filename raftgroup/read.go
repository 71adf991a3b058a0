package raftgroup

import (
	"context"
	"slices"
	"sync"

	"dfsd/dfs"
)

// readKeyLen is the length of what names a ReadIndex request: a proposalID, so
// that an answer to an earlier start of this node is never taken for ours.
const readKeyLen = proposalKey

// maxReadBatches bounds the ReadIndex requests of one replica without an
// answer; reads that come meanwhile share the next one.
const maxReadBatches = 4

// reads holds one replica's linearizable reads that wait.
//
//	queue ──issue──▶ asked ──confirmed──▶ waiting for apply ──▶ done
type reads struct {
	g     dfs.GroupID
	limit int
	retry uint64 // ticks after which an unanswered request is sent again

	mu      sync.Mutex
	count   int // that somebody waits for, in all three places; 0 <= count <= limit
	queue   []*read
	asked   map[uint64]*readBatch // by sequence
	waiting []*readBatch          // confirmed, not applied yet
	closed  error
}

type read struct {
	done chan error // one buffered
}

type readBatch struct {
	id    proposalID
	reads []*read
	index uint64 // once confirmed
	tick  uint64 // last sent
}

func (rs *reads) add(rd *read) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.closed != nil {
		return rs.closed
	}
	if rs.count >= rs.limit {
		return dfs.Errorf(dfs.Busy, "read", "%v has %d reads waiting", rs.g, rs.count)
	}
	rs.count++
	rs.queue = append(rs.queue, rd)
	return nil
}

// none reports whether nothing waits.
func (rs *reads) none() bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.count == 0
}

// pending reports whether a request can be issued.
func (rs *reads) pending() bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return len(rs.queue) > 0 && len(rs.asked) < maxReadBatches
}

// issue makes a request of all that is queued, nil when there is none.
func (rs *reads) issue(id proposalID, tick uint64) []byte {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if len(rs.queue) == 0 || len(rs.asked) >= maxReadBatches {
		return nil
	}
	rs.asked[id.seq] = &readBatch{id: id, reads: rs.queue, tick: tick}
	rs.queue = nil
	return id.append(nil)
}

// overdue returns the requests to send again: the library drops them silently
// when there is no leader, and so does the network.
func (rs *reads) overdue(tick uint64) (keys [][]byte) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, b := range rs.asked {
		if tick-b.tick >= rs.retry {
			b.tick = tick
			keys = append(keys, b.id.append(nil))
		}
	}
	return keys
}

// confirm takes the leader's answer: the reads may run once index is applied.
// The state is looked at under mu, so that what is applied meanwhile is either
// seen here or comes through applied.
func (rs *reads) confirm(key []byte, index uint64, s *state) {
	id, ok := parseProposalID(key)
	rs.mu.Lock()
	defer rs.mu.Unlock()
	b := rs.asked[id.seq]
	if !ok || b == nil || b.id != id {
		return
	}
	delete(rs.asked, id.seq)
	b.index = index
	rs.waiting = append(rs.waiting, b)
	rs.releaseLocked(s.now().index)
}

// applied releases the reads that waited for index.
func (rs *reads) applied(index uint64) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.releaseLocked(index)
}

func (rs *reads) releaseLocked(applied uint64) {
	keep := rs.waiting[:0]
	for _, b := range rs.waiting {
		if b.index > applied {
			keep = append(keep, b)
			continue
		}
		rs.finishLocked(b.reads, nil)
	}
	clear(rs.waiting[len(keep):])
	rs.waiting = keep
}

// drop ends a read that nobody waits for any more: where no leader answers it
// would take the place of others for as long as that lasts, and keep its replica
// awake.
func (rs *reads) drop(rd *read) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.takeLocked(&rs.queue, rd) {
		return
	}
	for seq, b := range rs.asked {
		if rs.takeLocked(&b.reads, rd) {
			if len(b.reads) == 0 {
				delete(rs.asked, seq)
			}
			return
		}
	}
	for _, b := range rs.waiting { // a batch of none stays until its index is applied
		if rs.takeLocked(&b.reads, rd) {
			return
		}
	}
}

func (rs *reads) takeLocked(list *[]*read, rd *read) bool {
	i := slices.Index(*list, rd)
	if i < 0 {
		return false
	}
	*list = slices.Delete(*list, i, i+1)
	rs.count--
	return true
}

func (rs *reads) finishLocked(rds []*read, err error) {
	for _, rd := range rds {
		rd.done <- err
	}
	rs.count -= len(rds)
}

func (rs *reads) close(err error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	err = unavailable("read", err)
	rs.closed = err
	rs.finishLocked(rs.queue, err)
	for _, b := range rs.asked {
		rs.finishLocked(b.reads, err)
	}
	for _, b := range rs.waiting {
		rs.finishLocked(b.reads, err)
	}
	rs.queue, rs.waiting = nil, nil
	clear(rs.asked)
}

func (r *replica) issueReadsLocked() {
	if !r.reads.pending() {
		return
	}
	if key := r.reads.issue(r.h.newProposalID(), r.ticks); key != nil {
		r.raw.ReadIndex(key)
	}
}

// Read calls fn with the group's state as of some moment between the call and
// fn: every proposal acknowledged before Read was called, by any node, is in it.
// It works on every replica that a leader can reach. fn must not block and must
// not call the host. Unavailable: no leader confirmed it in time, or the replica
// cannot serve. Busy: too many reads wait.
func (h *Host) Read(ctx context.Context, g dfs.GroupID, fn func(Reader) error) error {
	r, err := h.find(g)
	if err != nil {
		return err
	}
	if h.opts.Hooks.StaleReads {
		return r.view(fn)
	}
	rd := &read{done: make(chan error, 1)}
	if err := r.reads.add(rd); err != nil {
		return err
	}
	h.workers.schedule(r)
	select {
	case err := <-rd.done:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		r.reads.drop(rd)
		return dfs.Errorf(dfs.Unavailable, "read", "%v: no leader confirmed it in the time given", g)
	case <-h.closing:
		return errClosing("read")
	}
	return r.view(fn)
}

// ReadLocal calls fn with what this replica has applied, which may be stale. fn
// must not block and must not call the host.
func (h *Host) ReadLocal(g dfs.GroupID, fn func(Reader) error) error {
	r, err := h.find(g)
	if err != nil {
		return err
	}
	return r.view(fn)
}
