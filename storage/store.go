package storage

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"dfsd/dfs"
	"dfsd/engine"
)

// store is one engine and what the service knows of it.
type store struct {
	*engine.Store
	s *Service

	id      atomic.Uint32 // dfs.StoreID; 0 before the first registration
	applied *latest       // the newest map whose epoch is on this store's disk

	// registered is the map epoch that holds the first registration of this
	// start, 0 before there is one: an older map tells nothing about the store.
	registered atomic.Uint64
	entered    chan struct{} // registered was set

	refused atomic.Pointer[error] // why the cluster does not take the store; nil: it was not refused

	disk string // what disk it is on, to know which stores share one; "": one of its own

	offering sync.Once
	offered  chan struct{} // closed once this start is durable in the store's lineage

	measured chan struct{} // closed once there is a first sample
	weight   uint64        // the capacity in it, in bytes: what is registered; set before measured is closed
	sample   atomic.Pointer[sample]
	writing  waits
	reading  waits

	mends mends
}

// sample is how a store was at a moment.
type sample struct {
	engine.Stats
	at             time.Time
	capacity, used uint64 // bytes of the disk
}

func newStore(s *Service, e *engine.Store) *store {
	st := &store{Store: e, s: s, applied: newLatest(), entered: make(chan struct{}, 1), measured: make(chan struct{}), offered: make(chan struct{}), mends: newMends()}
	st.id.Store(uint32(e.Identity().Store))
	return st
}

// ID is 0 before the store was ever registered.
func (st *store) ID() dfs.StoreID { return dfs.StoreID(st.id.Load()) }

func (st *store) log() *slog.Logger { return st.s.log.With("store", st.ID()) }

// mark is the incarnation mark that the map's facts must carry to be about
// this store.
func (st *store) mark() uint64 { return st.Identity().Incarnation.Mark }

// failed reports whether the store is of no use until the next start: its disk
// has failed, or the cluster has refused it.
func (st *store) failed() bool {
	if st.refused.Load() != nil {
		return true
	}
	select {
	case <-st.Failed():
		return true
	default:
		return false
	}
}

// ages are for how long the disk has not completed a write, a sync and a read
// while one waits; 0: none waits. A disk that does not even let itself be
// looked at has not completed a write since.
func (st *store) ages() (write, sync, read time.Duration) {
	write, read = st.writing.age(), st.reading.age()
	if x := st.sample.Load(); x != nil {
		write, sync = max(write, x.WriteAge), x.SyncAge
		if late := time.Since(x.at); late > st.s.opts.Heartbeat+stuckAfter/2 {
			write = max(write, late)
		}
	}
	return write, sync, read
}

// healthy reports whether the store can be called up: it has not failed and
// what waits for its disk has not waited long.
func (st *store) healthy() bool {
	w, s, r := st.ages()
	return !st.failed() && max(w, s, r) < stuckAfter
}

// follow persists the epochs of every newer map, and then lets it be acted on.
func (st *store) follow() {
	failures := 0
	for {
		m, next := st.s.maps.current.get()
		if old, _ := st.applied.get(); st.inMap(m) && (old == nil || m.Epoch > old.Epoch) {
			err := st.writing.do(func() error { return st.SetEpochs(m.Epoch, newestEpochs(m)) })
			if err == nil {
				failures = 0
				st.applied.set(m)
				st.s.beats.wake()
				poke(st.s.refill.wake)
				continue
			}
			failures++
			if failures == 1 {
				st.log().Error("the epochs of a newer map cannot be persisted", "epoch", m.Epoch, "cause", err)
			}
			if !st.s.sleep(st.s.backoff(failures, 5*time.Second)) {
				return
			}
			continue
		}
		select {
		case <-next:
		case <-st.entered:
		case <-st.s.ctx.Done():
			return
		}
	}
}

// inMap reports whether a map holds the registration of this start: what was
// decided while the store was away is in it.
func (st *store) inMap(m *dfs.Map) bool {
	at := st.registered.Load()
	return m != nil && at != 0 && uint64(m.Epoch) >= at
}

func newestEpochs(m *dfs.Map) []engine.PGEpoch {
	out := make([]engine.PGEpoch, 0, len(m.PGs))
	for _, p := range m.PGs {
		out = append(out, engine.PGEpoch{PG: p.ID, Newest: p.Newest()})
	}
	return out
}

// measure looks at the store every heartbeat. It has a goroutine of its own
// since a sick disk may keep it waiting. A store that was not measured in time
// is not registered with the others, but as soon as it is.
func (st *store) measure() {
	for n := 0; ; n++ {
		x := &sample{Stats: st.Stats()}
		if old := st.sample.Load(); old != nil && n%capacityEvery != 0 {
			x.capacity, x.used = old.capacity, old.used
		} else {
			total, available := st.s.opts.Capacity(st.Store)
			x.capacity, x.used = total, total-min(total, available)
		}
		x.at = time.Now()
		st.sample.Store(x)
		if n == 0 {
			st.weight = x.capacity
			close(st.measured)
			poke(st.s.registerNow)
		}
		if !st.s.sleep(st.s.opts.Heartbeat) {
			return
		}
	}
}

// isMeasured waits for the first measurement until ctx ends.
func (st *store) isMeasured(ctx context.Context) bool { return isClosed(ctx, st.measured) }

// isOffered makes this start durable in the store's lineage, and waits for that
// until ctx ends. A store that is late is registered as soon as it has done it.
func (st *store) isOffered(ctx context.Context) bool {
	st.offering.Do(func() {
		st.s.wg.Go(func() {
			if err := st.OfferStart(); err != nil {
				st.log().Error("the store cannot be registered: its start cannot be recorded", "cause", err)
				return
			}
			close(st.offered)
			poke(st.s.registerNow)
		})
	})
	return isClosed(ctx, st.offered)
}

// isClosed waits until a channel is closed, or ctx ends.
func isClosed(ctx context.Context, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
	}
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}

// waits knows the operations of one kind that wait for the disk, to say for
// how long none has been completed.
type waits struct {
	mu     sync.Mutex // guards what follows
	next   uint64
	starts map[uint64]time.Time // Invariant: at most one a request, refill fetch or epoch
	last   time.Time            // when one succeeded last
}

// do runs an operation.
func (w *waits) do(op func() error) error {
	w.mu.Lock()
	w.next++
	n := w.next
	if w.starts == nil {
		w.starts = map[uint64]time.Time{}
	}
	w.starts[n] = time.Now()
	w.mu.Unlock()

	err := op()

	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.starts, n)
	if err == nil {
		w.last = time.Now()
	}
	return err
}

// age is the time since an operation succeeded last, or since the oldest one
// began if that is later; 0 when none waits.
func (w *waits) age() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var oldest time.Duration
	for _, t := range w.starts {
		oldest = max(oldest, time.Since(t))
	}
	return min(oldest, time.Since(w.last))
}
