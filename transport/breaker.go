package transport

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/sony/gobreaker/v2"

	"dfsd/dfs"
)

// breakerWindow is the time that the counts of a breaker look back.
const (
	breakerWindow = 10 * time.Second
	breakerBucket = time.Second
)

// BreakerOptions configures the circuit breaker that each peer has. Failures of
// the connection and silence until the deadline count against the peer; what
// it answers does not, whatever it is.
//
//	         threshold reached               sleep window over
//	┌────────┐ ──────────▶ ┌──────┐ ───────────────────────────▶ ┌───────────┐
//	│ closed │             │ open │                              │ half-open │
//	└────────┘             └──────┘ ◀─────────────────────────── └───────────┘
//	    ▲                               the one request failed         │
//	    └──────────────────────────────────────────────────────────────┘
//	                        the one request was answered
type BreakerOptions struct {
	RequestVolumeThreshold   int           // ended requests within 10 s below which it stays closed; 0: 20
	ErrorThresholdPercentage int           // 1..100: it opens when as many failed; 0: 50
	SleepWindow              time.Duration // how long it stays open; 0: 5 s
}

// errNotCounted ends a request that says nothing about the peer.
var errNotCounted = errors.New("not counted")

type breaker = gobreaker.TwoStepCircuitBreaker[struct{}]

func newBreaker(addr string, opts BreakerOptions, changed func(addr, state string)) *breaker {
	volume := uint64(cmp.Or(opts.RequestVolumeThreshold, 20))
	percent := uint64(cmp.Or(opts.ErrorThresholdPercentage, 50))
	settings := gobreaker.Settings{
		Name:         addr,
		MaxRequests:  1,
		Interval:     breakerWindow,
		BucketPeriod: breakerBucket,
		Timeout:      cmp.Or(opts.SleepWindow, 5*time.Second),
		ReadyToTrip: func(c gobreaker.Counts) bool {
			ended := uint64(c.TotalSuccesses) + uint64(c.TotalFailures) // those under way say nothing yet
			return ended >= volume && uint64(c.TotalFailures)*100 >= percent*ended
		},
		IsExcluded: func(err error) bool { return errors.Is(err, errNotCounted) },
	}
	if changed != nil {
		settings.OnStateChange = func(name string, _, to gobreaker.State) { changed(name, to.String()) }
	}
	return gobreaker.NewTwoStepCircuitBreaker[struct{}](settings)
}

// admitted asks the breaker for leave. The returned function reports the
// outcome; it must be called. Error: Unavailable.
func (p *peer) admitted() (report func(error), err error) {
	done, err := p.breaker.Allow()
	if err != nil {
		text := "too many calls failed lately: not tried again yet"
		if last := p.failed.Load(); last != nil { // its text alone: what ended that call ends no other
			text += "; the last failure: " + *last
		}
		return nil, &dfs.Error{Kind: dfs.Unavailable, Op: "call", Object: p.addr, Text: text, Err: err}
	}
	return func(err error) {
		err = outcome(err)
		if err != nil && !errors.Is(err, errNotCounted) {
			text := err.Error()
			p.failed.Store(&text)
		}
		done(err)
	}, nil
}

// outcome is what a call's error says about the peer.
func outcome(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return errNotCounted
	case connectionFailed(err):
		return err
	}
	return nil
}
