package storage

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
	"storj.io/drpc"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// Service is the storage role of one node.
type Service struct {
	opts   Options
	log    *slog.Logger
	ctx    context.Context // ends with Close, or when the service fails
	cancel context.CancelFunc
	wg     sync.WaitGroup // loops and handlers

	stores []*store // as Options.Engines
	maps   *follower
	beats  *beats
	beat   sync.Once // starts beats
	refill *refiller

	memory  *semaphore.Weighted // bytes of puts under way, Options.PutMemory
	reads   *semaphore.Weighted // reads under way, maxReads
	buffers buffers
	count   counters

	// registered is the map epoch that holds the node's last registration, 0
	// before there is one.
	registered  atomic.Uint64
	begun       time.Time     // of this start
	registerNow chan struct{} // a meta node does not know this start

	mu     sync.Mutex // guards what follows
	closed bool
	err    error // why the service cannot serve any more
}

// counters are what Stats reports.
type counters struct {
	puts, gets, deletes, scans, busy, corrupt, repaired, pulled, pulledBytes atomic.Uint64
	garbage, emptied, rescued, doubted, forgotten                            atomic.Uint64
}

// New makes a Service that is not started. Errors: Invalid.
func New(opts Options) (*Service, error) {
	opts.setDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	s := &Service{
		opts: opts, log: opts.Logger.With("role", "storage"),
		memory: semaphore.NewWeighted(opts.PutMemory), reads: semaphore.NewWeighted(maxReads),
		registerNow: make(chan struct{}, 1), begun: time.Now(),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for i, e := range opts.Engines {
		st := newStore(s, e)
		if i < len(opts.Disks) {
			st.disk = opts.Disks[i]
		}
		s.stores = append(s.stores, st)
	}
	s.maps = newFollower(s)
	s.beats = newBeats(s)
	limit := rate.Inf
	if opts.RefillRate > 0 {
		limit = rate.Limit(opts.RefillRate)
	}
	s.refill = newRefiller(s, rate.NewLimiter(limit, refillBurst))
	return s, nil
}

// Register makes the block service known to a server.
func (s *Service) Register(mux drpc.Mux) error {
	return wire.DRPCRegisterBlock(mux, (*blockServer)(s))
}

// blockServer is what the generated code calls.
type blockServer Service

// Start registers the node and serves, in the background.
func (s *Service) Start() {
	for _, st := range s.stores {
		s.wg.Go(st.measure)
	}
	s.wg.Go(s.run)
}

// Close stops everything and waits for it. The caller closes the server before
// and the engines after.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// Err returns why the service cannot serve, nil while it may.
func (s *Service) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Ready reports whether every store that has not failed takes writes as far as
// the map allows.
func (s *Service) Ready() bool {
	if s.Err() != nil {
		return false
	}
	ready := 0
	for _, st := range s.stores {
		if m, _ := st.applied.get(); m != nil {
			ready++
		} else if !st.failed() {
			return false
		}
	}
	return ready > 0
}

// Refused returns why stores of this node are not taken by the cluster, nil when
// none was refused.
func (s *Service) Refused() error {
	var errs []error
	for _, st := range s.stores {
		if err := st.refused.Load(); err != nil {
			errs = append(errs, *err)
		}
	}
	return errors.Join(errs...)
}

// fail ends the service.
func (s *Service) fail(err error) {
	s.mu.Lock()
	first := s.err == nil && !s.closed
	if first {
		s.err = err
	}
	s.mu.Unlock()
	if first {
		s.log.Error("the storage role cannot serve", "cause", err)
	}
	s.cancel()
}

// begin admits a request. The context ends with the service; done must be
// called. Errors: Unavailable.
func (s *Service) begin(ctx context.Context) (_ context.Context, done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return nil, nil, &dfs.Error{Kind: dfs.Unavailable, Op: "serve", Text: "the storage role has ended", Err: s.err}
	case s.closed:
		return nil, nil, dfs.Errorf(dfs.Unavailable, "serve", "this node is shutting down")
	}
	s.wg.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		s.wg.Done()
	}, nil
}

// run is the life of the service.
func (s *Service) run() {
	epoch, ok := s.register()
	if !ok || !s.firstMap(epoch) {
		return
	}
	for _, st := range s.stores {
		s.wg.Go(st.follow)
		s.wg.Go(st.mendDamage)
		s.wg.Go(st.mendLoop)
		s.wg.Go(st.collect)
		s.wg.Go(st.forget)
	}
	s.wg.Go(s.maps.poll)
	s.wg.Go(s.maps.fetch)
	s.startBeats()
	s.wg.Go(s.refill.run)
	s.wg.Go(s.refill.report)
	for {
		select {
		case <-s.registerNow:
			if s.isRegistered() {
				continue
			}
			if _, ok := s.register(); !ok {
				return
			}
		case <-s.ctx.Done():
			return
		}
	}
}

// startBeats lets the node be heard: once it is registered, or may be without
// knowing it.
func (s *Service) startBeats() { s.beat.Do(func() { s.wg.Go(s.beats.run) }) }

// startTime is how long a start may wait for the others before that is worth a
// warning: nodes of a cluster start one after the other.
const startTime = 30 * time.Second

// worry is the level at which it is logged that the others do not answer yet.
func (s *Service) worry() slog.Level {
	if time.Since(s.begun) < startTime {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// sleep waits for a time or the end of the service, and reports whether the
// service goes on.
func (s *Service) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// backoff returns the pause after a number of failures, from 1 up: full
// jitter under 50 ms × 2^(n−1), at most limit.
func (s *Service) backoff(failures int, limit time.Duration) time.Duration {
	bound := min(50*time.Millisecond<<min(failures-1, 16), limit)
	return time.Duration(s.opts.Random()*float64(bound)) + time.Millisecond
}

// store finds the store that a request names. Errors: Stale, since the
// caller's map must be old.
func (s *Service) store(id uint32) (*store, error) {
	for _, st := range s.stores {
		// A copy that was refused has the number of its original.
		if id != 0 && st.ID() == dfs.StoreID(id) && st.refused.Load() == nil {
			return st, nil
		}
	}
	return nil, dfs.Errorf(dfs.Stale, "find store", "store s%d is not on this node", id)
}

// poke fills a channel of one element that wakes a loop.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
