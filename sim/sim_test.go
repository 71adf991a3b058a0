package sim

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/sim/bubble"
)

// testLogger writes to stderr when DFSD_TEST_LOG is set: the test's own log
// belongs to another bubble.
func testLogger() *slog.Logger {
	if os.Getenv("DFSD_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestPutCrashAllGet(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, err := New(Config{Seed: 1, Logger: slog.New(checkedLog{Handler: testLogger().Handler(), t: t})})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p, err := c.Client(t.Context(), "client", 1)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		begun := time.Now()
		data := bytes.Repeat([]byte("dfsd "), 100_000)
		for {
			_, err := p.PutFile(t.Context(), "/file", client.PutOptions{Mode: 0o644, Replace: true}, bytes.NewReader(data))
			if err == nil {
				break
			}
			t.Logf("put: %v", err)
			if time.Since(begun) > 5*time.Minute {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		t.Logf("stored after %v", time.Since(begun))
		c.CrashAll()
		if err := c.StartAll(); err != nil {
			t.Fatal(err)
		}
		f, err := p.Open(t.Context(), "/file")
		if err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		if _, err := f.WriteTo(t.Context(), &buf); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf.Bytes(), data) {
			t.Fatalf("%d bytes came back, want %d", buf.Len(), len(data))
		}
	})
}

// TestRun runs the workload under faults for fixed seeds.
func TestRun(t *testing.T) {
	first, n := uint64(1), seeds
	if s := os.Getenv("DFSD_TEST_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, n = v, 1
	}
	var mu sync.Mutex
	total := Counts{}
	for seed := first; seed < first+uint64(n); seed++ {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			counts := simulate(t, Config{Seed: seed}, Plan{})
			mu.Lock()
			defer mu.Unlock()
			total.add(counts)
		})
	}
	t.Cleanup(func() {
		t.Logf("in all: %v", total)
		if total["tombstones dropped"] == 0 && !t.Failed() {
			t.Error("no tombstone was dropped: nothing is shown about what comes back afterwards")
		}
	})
}

// TestSoak runs fresh seeds for as long as DFSD_TEST_SOAK says, and prints each.
func TestSoak(t *testing.T) {
	limit, err := time.ParseDuration(os.Getenv("DFSD_TEST_SOAK"))
	if err != nil {
		t.Skip("DFSD_TEST_SOAK does not say how long: see make soak")
	}
	begun := time.Now()
	for seed := uint64(begun.UnixNano()); time.Since(begun) < limit && !t.Failed(); seed++ {
		simulate(t, Config{Seed: seed}, Plan{})
	}
}

// simulate runs one seed in a bubble and fails the test on a broken promise.
func simulate(t *testing.T, cfg Config, plan Plan) Counts {
	var counts Counts
	cfg.Logger, cfg.Skewed = testLogger(), true
	if os.Getenv("DFSD_TEST_TRACE") != "" {
		plan.Trace = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	}
	bubble.Test(t, func(t *testing.T) {
		var err error
		if counts, err = Run(t.Context(), cfg, plan); err != nil {
			t.Errorf("seed %d: %v\n%v", cfg.Seed, err, counts)
		}
	})
	t.Logf("seed %d: %v", cfg.Seed, counts)
	return counts
}
