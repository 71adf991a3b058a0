package transport

import (
	"cmp"
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"dfsd/dfs"
)

// Policy says how Retry repeats. The zero value is the default.
type Policy struct {
	Base   time.Duration // bound of the first pause; 0: 50 ms
	Factor float64       // by which the bound grows; 0: 2
	Max    time.Duration // where it stops to grow; 0: 2 s

	// Attempts bounds the calls of fn; 0: the context alone does.
	Attempts int

	// Idempotent says that a request whose outcome is not known may be sent
	// again: a read, or a mutation that takes effect once however often it
	// comes. Then Unknown, and Deadline while the context lives, are repeated.
	Idempotent bool

	Budget *Budget // nil: none

	// Random returns numbers in [0, 1), from many goroutines where the policy
	// is shared; nil: the process's generator.
	Random func() float64
}

// Delay returns the pause after a number of failed attempts, from 1 up: full
// jitter, between 0 and Base × Factor^(attempt−1), at most Max.
func (p *Policy) Delay(attempt int) time.Duration {
	bound, limit := float64(cmp.Or(p.Base, 50*time.Millisecond)), float64(cmp.Or(p.Max, 2*time.Second))
	for range attempt - 1 {
		if bound >= limit {
			break
		}
		bound *= cmp.Or(p.Factor, 2)
	}
	random := p.Random
	if random == nil {
		random = rand.Float64
	}
	return time.Duration(random() * min(bound, limit))
}

// repeats reports whether a call that ended with err may be made again.
func (p *Policy) repeats(err error) bool {
	kind := dfs.KindOf(err)
	return kind.Retryable() || p.Idempotent && (kind == dfs.Unknown || kind == dfs.Deadline)
}

// Retry calls fn until it succeeds, fails in a way that repeating does not
// help, the context ends, or attempts or budget are used up. It returns fn's
// last error.
func Retry(ctx context.Context, policy Policy, fn func(context.Context) error) error {
	policy.Budget.request()
	for attempt := 1; ; attempt++ {
		err := fn(ctx)
		if err == nil || !policy.repeats(err) || attempt == policy.Attempts || ctx.Err() != nil || !policy.Budget.retry() {
			return err
		}
		pause := time.NewTimer(policy.Delay(attempt))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return err
		}
	}
}

// The budget of retries.
const (
	budgetRatio   = 0.1 // of the requests
	budgetPerSec  = 10  // retries that are always allowed, so that a process with few requests rides out a change of leader
	budgetReserve = 100 // the most that is saved up
)

// Budget bounds the retries of a process to a tenth of its requests and a few
// per second, so that a cluster in trouble is not buried under repetitions.
// It is a token bucket; a nil Budget allows everything.
type Budget struct {
	mu     sync.Mutex // guards what follows
	tokens float64    // Invariant: 0 <= tokens <= budgetReserve
	filled time.Time
}

// NewBudget returns a full budget.
func NewBudget() *Budget { return &Budget{tokens: budgetReserve, filled: time.Now()} }

func (b *Budget) request() {
	if b != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.tokens = min(b.tokens+budgetRatio, budgetReserve)
	}
}

// retry takes a token, and reports false when there is none.
func (b *Budget) retry() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.tokens = min(b.tokens+now.Sub(b.filled).Seconds()*budgetPerSec, budgetReserve)
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
