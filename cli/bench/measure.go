package bench

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"syscall"
	"time"
)

// pause is the rest before each round, for what the one before it left to the
// kernel.
const pause = 100 * time.Millisecond

// sample is what one round gave.
type sample struct {
	ops  float64
	took time.Duration
	late *histogram // of single operations; nil: not known
}

func (s sample) rate() float64 { return s.ops / s.took.Seconds() }

// cpuTime is processor time, of user and kernel.
type cpuTime struct{ self, servers time.Duration }

func (c cpuTime) sub(o cpuTime) cpuTime { return cpuTime{c.self - o.self, c.servers - o.servers} }
func (c cpuTime) add(o cpuTime) cpuTime { return cpuTime{c.self + o.self, c.servers + o.servers} }

// selfCPU is the processor time that this process has used.
func selfCPU() (cpuTime, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return cpuTime{}, fmt.Errorf("processor time: %w", err)
	}
	return cpuTime{self: time.Duration(u.Utime.Nano() + u.Stime.Nano())}, nil
}

// loop lets workers repeat an operation for d. An operation that was begun is
// finished, and counts; the round is as long as that takes. The first error
// ends it, and a worker that says errEnough ends.
func loop(ctx context.Context, d time.Duration, workers int, op func(ctx context.Context, worker int) error) (sample, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := make([]histogram, workers)
	var work sync.WaitGroup
	begun := time.Now()
	for i := range workers {
		work.Go(func() {
			for at := begun; at.Sub(begun) < d && ctx.Err() == nil; {
				if err := op(ctx, i); errors.Is(err, errEnough) {
					return
				} else if err != nil {
					cancel(err)
					return
				}
				now := time.Now()
				late[i].add(now.Sub(at))
				at = now
			}
		})
	}
	work.Wait()
	s := sample{took: time.Since(begun), late: &late[0]}
	for i := range late[1:] {
		s.late.merge(&late[i+1])
	}
	s.ops = float64(s.late.count)
	return s, context.Cause(ctx)
}

// errEnough ends a worker that has done what it should.
var errEnough = errors.New("enough")

// result is a measured figure.
type result struct {
	figure
	rates, ratios []float64 // of the rounds
	ops           float64   // of all rounds
	late          histogram
	cpu           cpuTime // of all rounds
}

// measure opens a figure, takes its rounds, and closes it.
func (e *env) measure(ctx context.Context, f figure) (_ *result, err error) {
	fmt.Fprintf(e.opts.Log, "bench: %s beside %s\n", f.name, f.of)
	p, err := f.open(ctx, e)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := p.close(); err == nil {
			err = cerr
		}
	}()
	r := &result{figure: f}
	for i := -1; i < e.opts.Rounds; i++ { // the first warms up
		work, cpu, err := p.round(ctx, p.work, e.opts.Round)
		if err != nil {
			return nil, err
		}
		base, _, err := p.round(ctx, p.base, e.opts.Round)
		if err != nil {
			return nil, fmt.Errorf("baseline %s: %w", f.of, err)
		}
		if i >= 0 {
			r.take(work, base, cpu)
		}
	}
	return r, nil
}

// round takes one round of either side.
func (p *pair) round(ctx context.Context, side func(context.Context, time.Duration) (sample, error), d time.Duration) (sample, cpuTime, error) {
	select {
	case <-ctx.Done():
		return sample{}, cpuTime{}, context.Cause(ctx)
	case <-time.After(pause):
	}
	if p.settle != nil {
		if err := p.settle(ctx); err != nil {
			return sample{}, cpuTime{}, err
		}
	}
	before, err := p.cpu()
	if err != nil {
		return sample{}, cpuTime{}, err
	}
	s, err := side(ctx, d)
	if err != nil {
		return sample{}, cpuTime{}, err
	}
	after, err := p.cpu()
	return s, after.sub(before), err
}

// take adds a round of the work and the round of the baseline after it.
func (r *result) take(work, base sample, cpu cpuTime) {
	r.rates = append(r.rates, work.rate())
	r.ratios = append(r.ratios, work.rate()/base.rate())
	r.ops += work.ops
	r.cpu = r.cpu.add(cpu)
	if work.late != nil {
		r.late.merge(work.late)
	}
}

// median is the middle of the values, or between the two in the middle.
// REQUIRES: there is one.
func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// spread is how far the values lie apart, in units of their median.
func spread(v []float64) float64 { return (slices.Max(v) - slices.Min(v)) / median(v) }

// subBits make 32 buckets out of each power of two: a quantile is too high by
// at most 3 %.
const subBits = 5

// histogram counts durations in nanoseconds. The zero value is empty.
type histogram struct {
	count   uint64
	buckets [(64 - subBits + 1) << subBits]uint64
}

func bucketOf(ns uint64) int {
	if ns < 1<<subBits {
		return int(ns)
	}
	shift := bits.Len64(ns) - subBits - 1
	return shift<<subBits + int(ns>>shift)
}

// bucketMax is the longest duration in a bucket.
func bucketMax(i int) uint64 {
	if i < 1<<(subBits+1) {
		return uint64(i)
	}
	shift := i>>subBits - 1
	return (uint64(i)-uint64(shift)<<subBits+1)<<shift - 1
}

func (h *histogram) add(d time.Duration) {
	h.count++
	h.buckets[bucketOf(uint64(max(d, 0)))]++
}

func (h *histogram) merge(o *histogram) {
	h.count += o.count
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
}

// quantile is the duration that the share q of all does not exceed; 0 of none.
func (h *histogram) quantile(q float64) time.Duration {
	seen := uint64(0)
	for i, n := range h.buckets {
		if seen += n; n > 0 && float64(seen) >= q*float64(h.count) {
			return time.Duration(bucketMax(i))
		}
	}
	return 0
}
