package client

import (
	"context"
	"slices"
	"sync"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

const (
	// maxAsking bounds the requests of a client that one group has at a time;
	// what else there is to ask shares the next ones. One on its way there, one
	// that is worked on, one on its way back, and one to spare.
	maxAsking = 4

	// maxShared and maxSharedBytes bound what shares one request: the servers take
	// no more, and what one waits for the others to be read is short.
	maxShared      = 128
	maxSharedBytes = 256 << 10

	// maxSharedItem keeps a long command from holding up short ones.
	maxSharedItem = 16 << 10

	// maxSharedNames is how long a path may be that shares a request: the answers
	// of all of them fit into one.
	maxSharedNames = 16
)

// turn is what one caller got.
type turn[A any] struct {
	answer A
	err    error
	maybe  bool // it may have been carried out, whatever err says
	alone  bool // neither answer nor err count: the caller has to ask by itself
}

// turnOf is the turn of an answer that came with others. What another attempt may
// change is for the caller to ask again.
func turnOf[A any](answer A, refusal *wire.Refusal) turn[A] {
	if refusal == nil {
		return turn[A]{answer: answer}
	}
	err := refusal.ToError()
	kind := dfs.KindOf(err)
	again := kind.Retryable() && kind != dfs.Stale || kind == dfs.Unknown || kind == dfs.Deadline
	return turn[A]{err: err, alone: again}
}

// sharer lets callers that ask one group at the same time share requests. While
// few are under way each asks for itself; else callers wait, and the first of
// them asks for all once a request has ended.
//
//	      fewer than maxAsking under way
//	do ────────────────────────────────────▶ asking ──▶ done
//	 └────▶ waiting ──the first of them──────▲   │
//	           └──another asks for it──▶ taken ──┴─▶ done, or has to ask alone
//
// It has no goroutine of its own: who asks does so with his own context. After a
// request that failed each has to ask alone, so that what one waits for, or is
// refused, is not the others' fate.
type sharer[Q, A any] struct {
	size func(Q) int
	one  func(context.Context, Q) turn[A]
	// many returns the turns of the first queries, and whether one that is not among
	// them may have been carried out.
	many func(context.Context, []Q) (first []turn[A], maybe bool)

	mu      sync.Mutex // guards what follows
	asking  int        // requests under way. Invariant: 0 <= asking <= maxAsking
	waiting []*waiter[Q, A]
}

type waiter[Q, A any] struct {
	q    Q
	done chan turn[A]         // one buffered
	lead chan []*waiter[Q, A] // likewise: it is to ask for these, itself the first
}

// do asks, alone or with others.
func (s *sharer[Q, A]) do(ctx context.Context, q Q) turn[A] {
	s.mu.Lock()
	if s.asking < maxAsking {
		s.asking++
		s.mu.Unlock()
		defer s.next()
		return s.one(ctx, q)
	}
	w := &waiter[Q, A]{q: q, done: make(chan turn[A], 1), lead: make(chan []*waiter[Q, A], 1)}
	s.waiting = append(s.waiting, w)
	s.mu.Unlock()
	select {
	case t := <-w.done:
		return t
	case batch := <-w.lead:
		return s.ask(ctx, batch)
	case <-ctx.Done():
		return s.leave(ctx, w)
	}
}

// leave ends the wait of a caller whose context has ended.
func (s *sharer[Q, A]) leave(ctx context.Context, w *waiter[Q, A]) turn[A] {
	s.mu.Lock()
	i := slices.Index(s.waiting, w)
	if i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	s.mu.Unlock()
	if i >= 0 {
		return turn[A]{alone: true} // which tells it, in the way of all requests, that its time is over
	}
	select {
	case batch := <-w.lead: // the others must not wait for it
		return s.ask(ctx, batch)
	default:
		return turn[A]{err: ended(ctx), maybe: true}
	}
}

// ask sends the request of a batch whose first waiter is the caller.
func (s *sharer[Q, A]) ask(ctx context.Context, batch []*waiter[Q, A]) turn[A] {
	defer s.next()
	if len(batch) == 1 {
		return s.one(ctx, batch[0].q)
	}
	qs := make([]Q, len(batch))
	for i, w := range batch {
		qs[i] = w.q
	}
	turns, maybe := s.many(ctx, qs)
	for len(turns) < len(batch) {
		turns = append(turns, turn[A]{alone: true, maybe: maybe})
	}
	for i, w := range batch[1:] {
		w.done <- turns[i+1]
	}
	return turns[0]
}

// next has the first of those who wait ask for as many as fit.
func (s *sharer[Q, A]) next() {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, bytes := 0, 0
	for n < len(s.waiting) && n < maxShared {
		if bytes += s.size(s.waiting[n].q); bytes > maxSharedBytes && n > 0 {
			break
		}
		n++
	}
	if n == 0 {
		s.asking--
		return
	}
	batch := slices.Clone(s.waiting[:n])
	s.waiting = slices.Delete(s.waiting, 0, n)
	batch[0].lead <- batch
}
