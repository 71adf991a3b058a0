package client

import (
	"slices"
	"sync"
	"time"

	"dfsd/dfs"
)

const (
	// failedLately is how long a store that failed, or that another one
	// overtook, is put behind the others: about as long as the cluster takes to
	// leave a dead one out.
	failedLately = 5 * time.Second

	// samples is over how many of the last requests the 95th percentile is
	// taken, and reckon after how many of them it is computed anew.
	samples = 128
	reckon  = 16
)

// health is what this client has seen of the stores.
type health struct {
	least  time.Duration // the shortest hedge delay
	factor float64       // the hedge delay in 95th percentiles

	mu     sync.Mutex
	stores map[dfs.StoreID]*storeHealth
	reads  latencies // all stores together
	writes latencies

	// hedges is how many more second requests may be sent. Each request adds a
	// tenth. Invariant: 0 <= hedges <= maxHedges.
	hedges float64
}

// maxHedges is how many second requests are saved up for a moment when one store fails.
const maxHedges = 32

// storeHealth is what was seen of one store.
type storeHealth struct {
	mean   time.Duration // of reads, moving
	failed time.Time     // the last failure; zero after a success
	lagged time.Time     // when another store answered a read first that this one was asked earlier; likewise
	busy   int           // blocks being written to it by this client
}

// latencies keeps the last requests' times.
type latencies struct {
	ring []time.Duration // Invariant: len <= samples
	next int
	p95  time.Duration // as last computed; 0: not yet
}

func newHealth(least time.Duration, factor float64) *health {
	return &health{least: least, factor: factor, stores: map[dfs.StoreID]*storeHealth{}, hedges: maxHedges}
}

func (h *health) storeLocked(id dfs.StoreID) *storeHealth {
	s := h.stores[id]
	if s == nil {
		s = &storeHealth{}
		h.stores[id] = s
	}
	return s
}

func (l *latencies) add(d time.Duration) {
	if len(l.ring) < samples {
		l.ring = append(l.ring, d)
	} else {
		l.ring[l.next%samples] = d
	}
	l.next++
	if l.next%reckon == 0 {
		sorted := slices.Sorted(slices.Values(l.ring))
		l.p95 = sorted[len(sorted)*95/100]
	}
}

// readDone notes that a store answered a read.
func (h *health) readDone(id dfs.StoreID, took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.storeLocked(id)
	s.failed, s.lagged = time.Time{}, time.Time{}
	if s.mean == 0 {
		s.mean = took
	}
	s.mean += (took - s.mean) / 8
	h.reads.add(took)
}

// writeBegun and writeDone stand around a write to a store.
func (h *health) writeBegun(id dfs.StoreID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.storeLocked(id).busy++
}

func (h *health) writeDone(id dfs.StoreID, took time.Duration, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.storeLocked(id)
	s.busy--
	if ok {
		s.failed = time.Time{}
		h.writes.add(took)
	}
}

// fail notes that a store failed this client.
func (h *health) fail(id dfs.StoreID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.storeLocked(id).failed = time.Now()
}

// lag notes that a store was overtaken in a read: it may be dead, without a word.
func (h *health) lag(id dfs.StoreID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.storeLocked(id).lagged = time.Now()
}

func lately(t, now time.Time) bool { return !t.IsZero() && now.Sub(t) < failedLately }

// failing lists the stores that have just failed.
func (h *health) failing() map[dfs.StoreID]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[dfs.StoreID]bool{}
	now := time.Now()
	for id, s := range h.stores {
		if lately(s.failed, now) {
			out[id] = true
		}
	}
	return out
}

// load is how much this client asks of the busiest of some stores now.
func (h *health) load(stores []dfs.StoreID) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	most := 0
	for _, id := range stores {
		if s := h.stores[id]; s != nil {
			most = max(most, s.busy)
		}
	}
	return most
}

// order sorts stores for reading: those that failed or lagged lately last, the faster
// first. Stores of equal standing keep their order.
func (h *health) order(stores []dfs.StoreID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	rank := func(id dfs.StoreID) (bad bool, mean time.Duration) {
		s := h.stores[id]
		if s == nil {
			return false, 0
		}
		// Coarse steps, so that a microsecond does not send all readers to one store.
		return lately(s.failed, now) || lately(s.lagged, now), s.mean.Truncate(5 * time.Millisecond)
	}
	slices.SortStableFunc(stores, func(a, b dfs.StoreID) int {
		abad, amean := rank(a)
		bbad, bmean := rank(b)
		switch {
		case abad != bbad && abad, abad == bbad && amean > bmean:
			return 1
		case abad != bbad || amean < bmean:
			return -1
		}
		return 0
	})
}

// readHedge and writeHedge return after what time a store is slow.
func (h *health) readHedge() time.Duration  { return h.hedge(&h.reads) }
func (h *health) writeHedge() time.Duration { return h.hedge(&h.writes) }

func (h *health) hedge(l *latencies) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(h.least, time.Duration(h.factor*float64(l.p95)))
}

// request notes a block request, which earns a tenth of a second one.
func (h *health) request() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hedges = min(h.hedges+0.1, maxHedges)
}

// mayHedge takes leave for a second request.
func (h *health) mayHedge() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hedges < 1 {
		return false
	}
	h.hedges--
	return true
}
