package engine

import (
	"context"
	"sync"

	"dfsd/dfs"

	"golang.org/x/sync/semaphore"
)

// op is one record on its way to the disk.
type op struct {
	rec     record // its place is filled in by the writer
	key     string // blockKey
	payload []byte // the caller's; not touched after done
	pg      *pg
	cost    int64 // taken from the queue's budget

	// fresh: the index had no row of the key at the admission,
	// and nothing else of the key was under way. Invariant: it is still so when
	// the writer comes to it, since all that follows stands behind it.
	fresh bool

	// repair: it replaces a copy that is known to be bad, once it was read back.
	repair bool

	done chan struct{} // closed when err is final
	err  error
}

func newOp(r record, payload []byte) *op {
	return &op{rec: r, key: string(blockKey(r.id, r.shard)), payload: payload, done: make(chan struct{})}
}

// wait returns when the record is durable, or an error. Callers wait without
// their context: the writer may still be copying the payload, and the queue is
// bounded.
func (o *op) wait() error {
	<-o.done
	return o.err
}

// queue holds what waits for the writer, in the order in which it was
// admitted, which is the order in which it is written.
type queue struct {
	budget *semaphore.Weighted // of Options.MaxQueueBytes
	size   int64
	wake   chan struct{} // holds one token when there may be something to take

	// mu guards what follows.
	mu     sync.Mutex
	ops    []*op
	bytes  int64 // budget in use, what is being written included
	count  int
	closed bool
}

func newQueue(size int64) *queue {
	return &queue{budget: semaphore.NewWeighted(size), size: size, wake: make(chan struct{}, 1)}
}

// reserve takes room for a record, and waits for it until ctx ends.
func (q *queue) reserve(ctx context.Context, o *op) error {
	o.cost = min(max(int64(o.rec.length()), minQueueCost), q.size)
	if err := q.budget.Acquire(ctx, o.cost); err != nil {
		return &dfs.Error{Kind: dfs.Deadline, Op: "write block", Object: o.rec.id.String(), Text: "the store's queue stayed full", Err: err}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes += o.cost
	q.count++
	return nil
}

// unreserve gives the room back.
func (q *queue) unreserve(o *op) {
	q.mu.Lock()
	q.bytes -= o.cost
	q.count--
	q.mu.Unlock()
	q.budget.Release(o.cost)
}

// push queues the record. Whoever appends must then be told, by lead or by
// signal.
func (q *queue) push(o *op) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ops = append(q.ops, o)
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// waiting reports whether there is something to take.
func (q *queue) waiting() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.ops) > 0
}

// wait returns when there is something to take; false when the queue is closed
// and empty.
func (q *queue) wait() bool {
	for {
		q.mu.Lock()
		waiting, closed := len(q.ops) > 0, q.closed
		q.mu.Unlock()
		if waiting || closed {
			return waiting
		}
		<-q.wake
	}
}

// take returns as many records as make a batch; nil when there are none.
func (q *queue) take() []*op {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, bytes := 0, 0
	for n < len(q.ops) && bytes < gatherBytes {
		bytes += q.ops[n].rec.length()
		n++
	}
	taken := q.ops[:n:n]
	q.ops = q.ops[n:]
	if len(q.ops) == 0 {
		q.ops = nil
	}
	return taken
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
}

// depth returns the number and bytes of records not yet answered.
func (q *queue) depth() (count int, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.count, q.bytes
}

// pg is one placement group's gate for appends.
type pg struct {
	// mu guards what follows. It is never held while waiting for the writer.
	mu      sync.Mutex
	open    bool           // false after Open, until SetEpochs names the PG
	fence   dfs.Epoch      // client appends below it are refused. It only grows
	latest  map[string]*op // by block: the last one admitted and not finished
	running map[*op]struct{}

	forgetting bool // see Forget: nothing is let in
}

func newPG() *pg {
	return &pg{latest: map[string]*op{}, running: map[*op]struct{}{}}
}

// startLocked makes the operation known until finish.
func (p *pg) startLocked(o *op) {
	o.pg = p
	p.latest[o.key] = o
	p.running[o] = struct{}{}
}

func (p *pg) finish(o *op) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.latest[o.key] == o {
		delete(p.latest, o.key)
	}
	delete(p.running, o)
}

// admitsLocked reports whether a client's append under the epoch may start.
func (p *pg) admitsLocked(e dfs.Epoch) error {
	if !p.open {
		return dfs.Errorf(dfs.Stale, "write block", "the store has not read the map since it started")
	}
	if e < p.fence {
		return dfs.Errorf(dfs.Stale, "write block", "epoch %d: this store knows %d", e, p.fence)
	}
	return nil
}

// raise closes the PG to appends under epochs below e and returns those that
// are still running.
func (p *pg) raise(e dfs.Epoch) []*op {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open, p.fence = true, max(p.fence, e)
	var older []*op
	for o := range p.running {
		if o.rec.epoch < p.fence {
			older = append(older, o)
		}
	}
	return older
}
