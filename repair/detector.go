package repair

import (
	"errors"
	"fmt"
	"math"
	"time"

	"dfsd/dfs"
)

// Mode is how silence turns into suspicion.
type Mode uint8

// The modes.
const (
	// Adaptive is the phi-accrual detector (Hayashibara, Défago, Yared and
	// Katayama, SRDS 2004): suspicion grows with how unlikely the silence is,
	// given the intervals seen lately. A network that jitters gets more time.
	Adaptive Mode = iota

	// Fixed suspects after one time-out.
	Fixed

	// Exponential suspects after a time-out that doubles whenever the suspicion
	// proved wrong (Chandra and Toueg, JACM 1996) and shrinks in quiet times.
	Exponential
)

var modeNames = [...]string{"adaptive", "fixed", "exponential"}

func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// ParseMode reads what String writes.
func ParseMode(s string) (Mode, error) {
	for i, name := range modeNames {
		if s == name {
			return Mode(i), nil
		}
	}
	return 0, dfs.Errorf(dfs.Invalid, "parse", "health check mode %q: want adaptive, fixed or exponential", s)
}

// HealthCheck is the setting health_check. Zero fields mean the defaults.
type HealthCheck struct {
	Mode Mode

	// Interval is the time between heartbeats; default 500 ms.
	Interval time.Duration

	// Timeout is the silence after which a store whose heartbeats came
	// regularly is suspected; default 2 s. It must be above Interval.
	Timeout time.Duration

	// MaxFailures is how many heartbeats in a row must be missing at least; in
	// exponential mode also how often the time-out doubles at most; default 3.
	MaxFailures int

	// DiskTimeout is how long a write, sync or read may wait on a disk that
	// completes none before the store is suspected, heartbeats or not;
	// default 10 s: a slow disk is slow, a stuck one is gone.
	DiskTimeout time.Duration
}

// withDefaults fills in the zero fields.
func (h HealthCheck) withDefaults() HealthCheck {
	if h.Interval == 0 {
		h.Interval = 500 * time.Millisecond
	}
	if h.Timeout == 0 {
		h.Timeout = max(2*time.Second, 4*h.Interval)
	}
	if h.MaxFailures == 0 {
		h.MaxFailures = 3
	}
	if h.DiskTimeout == 0 {
		h.DiskTimeout = 10 * time.Second
	}
	return h
}

// Validate reports all faults of a check, zero fields being the defaults.
func (h HealthCheck) Validate() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, dfs.Errorf(dfs.Invalid, "health_check", format, args...))
	}
	d := h.withDefaults()
	if int(d.Mode) >= len(modeNames) {
		fault("mode %d: want adaptive, fixed or exponential", d.Mode)
	}
	if d.Interval < time.Millisecond {
		fault("interval %v: want 1ms or more", d.Interval)
	}
	if d.Timeout <= d.Interval {
		fault("timeout %v: want more than the interval of %v", d.Timeout, d.Interval)
	}
	if d.MaxFailures < 1 || d.MaxFailures > dfs.MaxMissedBeats {
		fault("max_failures %d: want 1 to %d", d.MaxFailures, dfs.MaxMissedBeats)
	}
	if d.DiskTimeout < d.Interval {
		fault("disk_timeout %v: want the interval of %v or more", d.DiskTimeout, d.Interval)
	}
	return errors.Join(faults...)
}

// Health is what a heartbeat says of a store's disk.
type Health struct {
	Failed bool // the store has given up: a write or sync failed

	// How long ago the last operation of a kind completed, while one waits; 0
	// when none waits.
	WriteAge, SyncAge, ReadAge time.Duration
}

const (
	// phiThreshold is the suspicion at which a store is suspect: a silence that
	// regular heartbeats would show once in 10^8.
	phiThreshold = 8

	// sigmas is how many standard deviations of a normal distribution lie
	// between the mean and that silence.
	sigmas = 5.612

	// window is how many intervals are remembered: a minute of the default
	// heartbeats, long enough to know the jitter and short enough to forget.
	window = 128

	// calmBeats is after how many heartbeats without a suspicion the
	// exponential mode takes one doubling back.
	calmBeats = 64
)

// Detector is one meta node's suspicion of the stores that report to it. It
// watches at most the stores it is asked about. Its owner serialises all calls
// and hands in times that never go back.
//
// It suspects nobody before it has watched for a full time-out: since its
// start, since it first heard of the store, and since it was itself last
// asleep (nobody called it for a time-out, as after a suspended machine).
type Detector struct {
	check HealthCheck
	since time.Time // watching without a break
	last  time.Time // of the last call
	seen  map[dfs.StoreID]*watch
}

// watch is what the detector knows of one store.
type watch struct {
	last      time.Time // of the last heartbeat, or since when it is expected
	health    Health
	intervals []time.Duration // the latest, at most window; a ring
	next      int             // place of the next interval in the ring
	doublings int             // exponential: wrong suspicions not yet forgiven
	calm      int             // exponential: heartbeats since the last of them
}

// NewDetector returns a detector that starts to watch at start. check has been
// validated.
func NewDetector(check HealthCheck, start time.Time) *Detector {
	return &Detector{check: check.withDefaults(), since: start, last: start, seen: map[dfs.StoreID]*watch{}}
}

// Observe notes a heartbeat of a store.
func (d *Detector) Observe(store dfs.StoreID, now time.Time, health Health) {
	w := d.watch(store, now)
	gap := now.Sub(w.last)
	if d.check.Mode == Exponential {
		if gap >= d.patience(w) {
			w.doublings, w.calm = min(w.doublings+1, d.check.MaxFailures), 0
		} else if w.calm++; w.calm >= calmBeats {
			w.doublings, w.calm = max(w.doublings-1, 0), 0
		}
	}
	if gap > 0 {
		w.add(min(gap, d.check.Timeout)) // an outage says nothing about the rhythm
	}
	w.last, w.health = now, health
}

// Suspect reports whether the store is suspect now.
func (d *Detector) Suspect(store dfs.StoreID, now time.Time) bool { return d.Level(store, now) >= 1 }

// Level is the suspicion of a store: 0 none, from 1 up it is suspect.
func (d *Detector) Level(store dfs.StoreID, now time.Time) float64 {
	w := d.watch(store, now)
	if now.Sub(d.since) < d.check.Timeout {
		return 0
	}
	if w.health.Failed {
		return math.Inf(1)
	}
	sick := float64(max(w.health.WriteAge, w.health.SyncAge, w.health.ReadAge)) / float64(d.check.DiskTimeout)
	return max(sick, d.silence(w, now.Sub(w.last)))
}

// watch returns the store's record, and notices when the detector was asleep.
func (d *Detector) watch(store dfs.StoreID, now time.Time) *watch {
	if now.Sub(d.last) >= d.check.Timeout {
		d.since = now
	}
	d.last = now
	w := d.seen[store]
	if w == nil {
		w = &watch{last: now}
		d.seen[store] = w
	}
	return w
}

// silence is the suspicion that a gap since the last heartbeat stands for.
func (d *Detector) silence(w *watch, gap time.Duration) float64 {
	least := time.Duration(d.check.MaxFailures) * d.check.Interval
	if d.check.Mode != Adaptive {
		return float64(gap) / float64(max(d.patience(w), least))
	}
	level := d.phi(w, gap) / phiThreshold
	return min(level, float64(gap)/float64(least))
}

// patience is the time-out of the modes that have one.
func (d *Detector) patience(w *watch) time.Duration { return d.check.Timeout << w.doublings }

// phi is -log10 of the probability that a heartbeat comes later than gap after
// the last one, if intervals are normally distributed as they were lately.
// The mean is never below the interval agreed on, and the deviation never below
// what makes regular heartbeats suspect exactly at the time-out.
func (d *Detector) phi(w *watch, gap time.Duration) float64 {
	mean, deviation := w.moments()
	mean = max(mean, d.check.Interval.Seconds())
	deviation = max(deviation, (d.check.Timeout-d.check.Interval).Seconds()/sigmas)
	return -math.Log10(math.Erfc((gap.Seconds()-mean)/deviation/math.Sqrt2) / 2)
}

func (w *watch) add(gap time.Duration) {
	if len(w.intervals) < window {
		w.intervals = append(w.intervals, gap)
		return
	}
	w.intervals[w.next] = gap
	w.next = (w.next + 1) % window
}

// moments returns mean and standard deviation of the intervals in seconds.
func (w *watch) moments() (mean, deviation float64) {
	if len(w.intervals) == 0 {
		return 0, 0
	}
	n := float64(len(w.intervals))
	for _, v := range w.intervals {
		mean += v.Seconds() / n
	}
	for _, v := range w.intervals {
		deviation += (v.Seconds() - mean) * (v.Seconds() - mean) / n
	}
	return mean, math.Sqrt(deviation)
}
