package repair

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"dfsd/dfs"
)

var start = time.Unix(1_000_000, 0)

// beatFor lets a store beat for a while, each interval drawn, and returns the
// time of the last heartbeat. It fails when the store is suspected in between.
func beatFor(t *testing.T, d *Detector, id dfs.StoreID, from time.Time, n int, interval func() time.Duration) time.Time {
	t.Helper()
	for i := range n {
		next := from.Add(interval())
		for at := from; at.Before(next); at = at.Add(50 * time.Millisecond) {
			if d.Suspect(id, at) {
				t.Fatalf("suspected %v after heartbeat %d of a living store", at.Sub(from), i)
			}
		}
		d.Observe(id, next, Health{})
		from = next
	}
	return from
}

// silenceUntilSuspect asks every 50 ms, and returns how long it takes.
func silenceUntilSuspect(t *testing.T, d *Detector, id dfs.StoreID, last time.Time) time.Duration {
	t.Helper()
	for gap := time.Duration(0); gap < time.Minute; gap += 50 * time.Millisecond {
		if d.Suspect(id, last.Add(gap)) {
			return gap
		}
	}
	t.Fatal("never suspected")
	return 0
}

func regular() time.Duration { return 500 * time.Millisecond }

func within(t *testing.T, what string, got, low, high time.Duration) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s: suspected after %v, want %v to %v", what, got, low, high)
	}
}

func TestModes(t *testing.T) {
	for _, c := range []struct {
		check     HealthCheck
		low, high time.Duration
	}{
		{HealthCheck{}, 1900 * time.Millisecond, 2100 * time.Millisecond},
		{HealthCheck{Mode: Fixed}, 2 * time.Second, 2050 * time.Millisecond},
		{HealthCheck{Mode: Exponential}, 2 * time.Second, 2050 * time.Millisecond},
		{HealthCheck{Mode: Fixed, MaxFailures: 8}, 4 * time.Second, 4050 * time.Millisecond},
		{HealthCheck{Mode: Adaptive, MaxFailures: 8}, 4 * time.Second, 4050 * time.Millisecond},
		{HealthCheck{Timeout: 5 * time.Second}, 4900 * time.Millisecond, 5100 * time.Millisecond},
	} {
		if err := c.check.Validate(); err != nil {
			t.Fatal(err)
		}
		d := NewDetector(c.check, start)
		last := beatFor(t, d, 1, start, 300, regular)
		within(t, c.check.Mode.String(), silenceUntilSuspect(t, d, 1, last), c.low, c.high)
	}
}

// TestAdaptiveJitter shows that the adaptive mode keeps its nerve on a bad
// network, and takes longer there to declare a loss, but not for ever.
func TestAdaptiveJitter(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, c := range []struct {
		name      string
		interval  func() time.Duration
		low, high time.Duration
	}{
		{"jitter of 200 ms", func() time.Duration {
			return 400*time.Millisecond + time.Duration(rng.IntN(200))*time.Millisecond
		}, 1800 * time.Millisecond, 2200 * time.Millisecond},
		{"every tenth heartbeat lost", func() time.Duration {
			return time.Duration(1+max(0, rng.IntN(10)-8)) * 500 * time.Millisecond
		}, 1900 * time.Millisecond, 2300 * time.Millisecond},
		{"delays up to 1.4 s", func() time.Duration {
			return 200*time.Millisecond + time.Duration(rng.IntN(1200))*time.Millisecond
		}, 2200 * time.Millisecond, 4 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := NewDetector(HealthCheck{}, start)
			last := beatFor(t, d, 1, start, 5000, c.interval)
			within(t, c.name, silenceUntilSuspect(t, d, 1, last), c.low, c.high)
		})
	}
}

// TestOutageIsNoRhythm shows that an hour's absence does not make the detector
// patient for the next.
func TestOutageIsNoRhythm(t *testing.T) {
	d := NewDetector(HealthCheck{}, start)
	last := beatFor(t, d, 1, start, 200, regular)
	back := last
	for ; back.Sub(last) < time.Hour; back = back.Add(500 * time.Millisecond) {
		d.Suspect(1, back)
	}
	d.Observe(1, back, Health{})
	last = beatFor(t, d, 1, back, 3, regular)
	within(t, "after an outage", silenceUntilSuspect(t, d, 1, last), 1900*time.Millisecond, 2300*time.Millisecond)
}

func TestExponentialGrowsAndForgives(t *testing.T) {
	d := NewDetector(HealthCheck{Mode: Exponential}, start)
	last := beatFor(t, d, 1, start, 10, regular)
	for i, want := range []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 16 * time.Second} {
		gap := silenceUntilSuspect(t, d, 1, last)
		if gap != want {
			t.Errorf("suspicion %d after %v, want %v", i, gap, want)
		}
		last = last.Add(gap)
		d.Observe(1, last, Health{}) // it was wrong
	}
	last = beatFor(t, d, 1, last, 3*calmBeats, regular)
	within(t, "after quiet times", silenceUntilSuspect(t, d, 1, last), 2*time.Second, 2050*time.Millisecond)
}

// TestWatchedLongEnough shows that nobody is suspected before the detector has
// watched for a time-out: since its start, since it knows the store, since it
// was asleep.
func TestWatchedLongEnough(t *testing.T) {
	d := NewDetector(HealthCheck{}, start)
	within(t, "never heard of", silenceUntilSuspect(t, d, 1, start), 2*time.Second, 2100*time.Millisecond)
	within(t, "first asked later", silenceUntilSuspect(t, d, 2, start.Add(2*time.Second)), 1900*time.Millisecond, 2100*time.Millisecond)

	d = NewDetector(HealthCheck{}, start)
	last := beatFor(t, d, 1, start, 50, regular)
	woken := last.Add(time.Minute) // nobody called in between
	if d.Suspect(1, woken) {
		t.Error("a detector that was asleep suspects at once")
	}
	if !d.Suspect(1, woken.Add(time.Second)) && !d.Suspect(1, woken.Add(2*time.Second)) {
		t.Error("a detector that was asleep never suspects again")
	}
}

func TestSickDisk(t *testing.T) {
	for _, c := range []struct {
		name   string
		health Health
		want   bool
	}{
		{"idle", Health{}, false},
		{"a slow sync", Health{SyncAge: 5 * time.Second}, false},
		{"a stuck sync", Health{SyncAge: 10 * time.Second}, true},
		{"a stuck write", Health{WriteAge: 11 * time.Second}, true},
		{"a stuck read", Health{ReadAge: time.Hour}, true},
		{"given up", Health{Failed: true}, true},
	} {
		d := NewDetector(HealthCheck{}, start)
		last := beatFor(t, d, 1, start, 20, regular)
		last = last.Add(500 * time.Millisecond)
		d.Observe(1, last, c.health)
		if got := d.Suspect(1, last); got != c.want {
			t.Errorf("%s: suspect %v at level %.2f", c.name, got, d.Level(1, last))
		}
		d.Observe(1, last.Add(500*time.Millisecond), Health{})
		if d.Suspect(1, last.Add(500*time.Millisecond)) {
			t.Errorf("%s: suspect though it is well again", c.name)
		}
	}
}

func TestLevelGrows(t *testing.T) {
	d := NewDetector(HealthCheck{}, start)
	last := beatFor(t, d, 1, start, 200, regular)
	before := -1.0
	for gap := time.Duration(0); gap < 10*time.Second; gap += 100 * time.Millisecond {
		level := d.Level(1, last.Add(gap))
		if level < before || math.IsNaN(level) {
			t.Fatalf("level %.3f after %v, %.3f before", level, gap, before)
		}
		before = level
	}
}

func TestHealthCheckValidate(t *testing.T) {
	if err := (HealthCheck{}).Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	bad := HealthCheck{Mode: 9, Interval: time.Second, Timeout: time.Second, MaxFailures: 17, DiskTimeout: time.Millisecond}
	err := bad.Validate()
	if err == nil {
		t.Fatal("no fault found")
	}
	for _, want := range []string{"mode 9", "timeout 1s", "max_failures 17", "disk_timeout 1ms"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not named in %q", want, err)
		}
	}
	if err := (HealthCheck{Interval: -1}).Validate(); err == nil {
		t.Error("a negative interval is taken")
	}
	for _, m := range []Mode{Adaptive, Fixed, Exponential} {
		if got, err := ParseMode(m.String()); got != m || err != nil {
			t.Errorf("ParseMode(%q) = %v, %v", m, got, err)
		}
	}
	if _, err := ParseMode("phi"); dfs.KindOf(err) != dfs.Invalid {
		t.Errorf("ParseMode(phi): %v", err)
	}
}
