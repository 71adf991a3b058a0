package raftgroup

import "sync"

// slot is a replica's place in one scheduler. Guarded by the scheduler's mu.
//
//	idle ──schedule──▶ queued ──take──▶ running ──done──▶ idle
//	                     ▲                 │ schedule: again
//	                     └──────done───────┘
type slot struct {
	queued  bool
	running bool
	again   bool
}

// minShare is how many replicas a worker takes at least, if there are as many:
// fewer are not worth a batch of messages of their own.
const minShare = 8

// scheduler hands replicas that have work to a fixed set of workers, in the
// order in which the work came. A replica is with one worker at a time, so
// what a worker does for it stays in order.
type scheduler struct {
	slot func(*replica) *slot

	mu     sync.Mutex
	ready  sync.Cond
	queue  []*replica // each replica at most once, so it is bounded by their number
	closed bool
}

func newScheduler(slotOf func(*replica) *slot) *scheduler {
	s := &scheduler{slot: slotOf}
	s.ready.L = &s.mu
	return s
}

// schedule sees to it that a worker takes r after this call.
func (s *scheduler) schedule(r *replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl := s.slot(r)
	switch {
	case sl.queued:
	case sl.running:
		sl.again = true
	default:
		sl.queued = true
		s.queue = append(s.queue, r)
		s.ready.Signal()
	}
}

// claim takes r at once when nobody has it: done must follow. Otherwise it is as
// schedule, and returns false.
func (s *scheduler) claim(r *replica) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl := s.slot(r)
	switch {
	case sl.queued:
	case sl.running:
		sl.again = true
	case s.closed:
	default:
		sl.running = true
		return true
	}
	return false
}

// take waits for work and appends one worker's share of it to buf: what came
// together, within most, is sent together, but not all of it by one worker.
// Nothing is returned once the scheduler is closed.
func (s *scheduler) take(buf []*replica, workers, most int) []*replica {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == 0 && !s.closed {
		s.ready.Wait()
	}
	if s.closed {
		return buf
	}
	n := min(len(s.queue), most, max(minShare, len(s.queue)/workers))
	for _, r := range s.queue[:n] {
		sl := s.slot(r)
		sl.queued, sl.running = false, true
		buf = append(buf, r)
	}
	rest := copy(s.queue, s.queue[n:])
	clear(s.queue[rest:])
	s.queue = s.queue[:rest]
	return buf
}

// done returns a replica that take handed out.
func (s *scheduler) done(r *replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl := s.slot(r)
	sl.running = false
	if sl.again {
		sl.again, sl.queued = false, true
		s.queue = append(s.queue, r)
		s.ready.Signal()
	}
}

// close ends every take. Queued work is left undone.
func (s *scheduler) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.ready.Broadcast()
}
