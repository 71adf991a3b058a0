package transport_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
	"dfsd/transport"
)

func TestDelay(t *testing.T) {
	full, half := func() float64 { return 1 }, func() float64 { return 0.5 }
	for _, c := range []struct {
		policy  transport.Policy
		attempt int
		want    time.Duration
	}{
		{transport.Policy{Random: full}, 1, 50 * time.Millisecond},
		{transport.Policy{Random: full}, 2, 100 * time.Millisecond},
		{transport.Policy{Random: half}, 3, 100 * time.Millisecond},
		{transport.Policy{Random: full}, 6, 1600 * time.Millisecond},
		{transport.Policy{Random: full}, 7, 2 * time.Second},
		{transport.Policy{Random: full}, 1 << 40, 2 * time.Second},
		{transport.Policy{Base: time.Second, Factor: 3, Max: 5 * time.Second, Random: full}, 2, 3 * time.Second},
		{transport.Policy{Base: time.Second, Factor: 3, Max: 5 * time.Second, Random: full}, 3, 5 * time.Second},
		{transport.Policy{Random: func() float64 { return 0 }}, 5, 0},
	} {
		if got := c.policy.Delay(c.attempt); got != c.want {
			t.Errorf("attempt %d: %v, want %v", c.attempt, got, c.want)
		}
	}
}

// What was certainly not applied is repeated; what may have been is not,
// unless the caller says that it does no harm.
func TestRetryKinds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		retried := map[dfs.Kind]bool{dfs.NotLeader: true, dfs.Unavailable: true, dfs.Busy: true, dfs.Stale: true, dfs.Frozen: true}
		idempotent := map[dfs.Kind]bool{dfs.Unknown: true, dfs.Deadline: true}
		for kind := dfs.Other; kind <= dfs.Frozen; kind++ {
			for _, again := range []bool{false, true} {
				calls := 0
				err := transport.Retry(t.Context(), transport.Policy{Attempts: 3, Idempotent: again}, func(context.Context) error {
					calls++
					return dfs.Errorf(kind, "test", "no")
				})
				want := 1
				if retried[kind] || again && idempotent[kind] {
					want = 3
				}
				if calls != want || dfs.KindOf(err) != kind {
					t.Errorf("%v, idempotent %v: %d calls, want %d; %v", kind, again, calls, want, err)
				}
			}
		}
	})
}

func TestRetryEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		calls := 0
		err := transport.Retry(t.Context(), transport.Policy{}, func(context.Context) error {
			if calls++; calls < 5 {
				return dfs.Busy
			}
			return nil
		})
		if err != nil || calls != 5 {
			t.Errorf("%v after %d calls", err, calls)
		}
		start := time.Now()
		err = transport.Retry(within(t, 10*time.Second), transport.Policy{}, func(context.Context) error { return dfs.Busy })
		if took := time.Since(start); took != 10*time.Second || !errors.Is(err, dfs.Busy) {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// In trouble a process sends a tenth more than it would, and a few per second.
func TestBudget(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		policy := transport.Policy{Budget: transport.NewBudget(), Random: func() float64 { return 0 }, Attempts: 10}
		calls := 0
		attempt := func(context.Context) error { calls++; return dfs.Unavailable }
		for range 1000 {
			_ = transport.Retry(t.Context(), policy, attempt)
		}
		if retries := calls - 1000; retries < 190 || retries > 201 { // what was saved up, and a tenth
			t.Errorf("%d retries of 1000 requests", retries)
		}
		time.Sleep(3 * time.Second)
		calls = 0
		for range 20 {
			_ = transport.Retry(t.Context(), policy, attempt)
		}
		if retries := calls - 20; retries < 29 || retries > 33 {
			t.Errorf("%d retries of 20 requests after 3 s", retries)
		}
	})
}
