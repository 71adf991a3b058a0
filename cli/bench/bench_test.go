package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dfsd/meta/namespace"
	"dfsd/raftgroup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMedianAndSpread(t *testing.T) {
	for _, c := range []struct {
		v              []float64
		median, spread float64
	}{
		{[]float64{7}, 7, 0},
		{[]float64{9, 1, 5}, 5, 1.6},
		{[]float64{4, 1, 3, 2}, 2.5, 1.2},
		{[]float64{100, 1, 100, 100, 100}, 100, 0.99},
	} {
		before := slices.Clone(c.v)
		if got := median(c.v); got != c.median {
			t.Errorf("median of %v: %v, want %v", c.v, got, c.median)
		}
		if got := spread(c.v); math.Abs(got-c.spread) > 1e-9 {
			t.Errorf("spread of %v: %v, want %v", c.v, got, c.spread)
		}
		if !slices.Equal(c.v, before) {
			t.Errorf("%v became %v", before, c.v)
		}
	}
}

// TestHistogram: the buckets follow each other without a gap, and no quantile is
// lower than the true one or more than 1/32 above it.
func TestHistogram(t *testing.T) {
	last := len(histogram{}.buckets) - 1
	for i := range last {
		if top := bucketMax(i); bucketOf(top) != i || bucketOf(top+1) != i+1 {
			t.Fatalf("bucket %d ends with %d, which is in bucket %d, and the next in %d", i, top, bucketOf(top), bucketOf(top+1))
		}
	}
	if got := bucketOf(math.MaxUint64); got != last {
		t.Errorf("the longest duration is in bucket %d of %d", got, last)
	}
	var h, o histogram
	if got := h.quantile(0.5); got != 0 {
		t.Errorf("median of nothing: %v", got)
	}
	for i := 1; i <= 1000; i++ {
		if i%3 == 0 {
			o.add(time.Duration(i) * time.Microsecond)
		} else {
			h.add(time.Duration(i) * time.Microsecond)
		}
	}
	h.merge(&o)
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{0.001, time.Microsecond}, {0.5, 500 * time.Microsecond}, {0.99, 990 * time.Microsecond}, {1, time.Millisecond}} {
		if got := h.quantile(c.q); got < c.want || got > c.want+c.want/32 {
			t.Errorf("quantile %v: %v, want %v", c.q, got, c.want)
		}
	}
}

func TestLine(t *testing.T) {
	r := &result{figure: figure{name: "engine/put-4k-w16", of: "raw-append", bytes: 4096}}
	for i := range 5 {
		late := &histogram{}
		for range 99 {
			late.add(10 * time.Nanosecond)
		}
		late.add(20 * time.Nanosecond)
		r.take(sample{ops: float64(31000 + 100*i), took: time.Second, late: late}, sample{ops: float64(60000 - 500*i), took: 2 * time.Second}, cpuTime{self: time.Second})
	}
	want := "engine/put-4k-w16       31200 op/s    ratio=1.06 of=raw-append    p50=0.0000ms p99=0.0000ms spread=1% cpu=0.0321ms"
	if got := r.line(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}

	r = &result{figure: figure{name: "client/put-4m-w1", of: "local-files", bytes: 4 << 20}}
	late := &histogram{}
	late.add(25 * time.Millisecond)
	r.take(sample{ops: 40, took: time.Second, late: late}, sample{ops: 800, took: time.Second}, cpuTime{self: 400 * time.Millisecond, servers: 1600 * time.Millisecond})
	want = "client/put-4m-w1         40.0 op/s    ratio=0.0500 of=local-files    p50=25.2ms p99=25.2ms bytes=168MB/s spread=0% cpu=50.0ms cpu-client=10.0ms"
	if got := r.line(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestSelected(t *testing.T) {
	all := figures()
	metas := len(metaFigures()) + 1 + 3 + len(idleFigures())
	names := map[string]bool{}
	for _, f := range all {
		if names[f.name] || !regexp.MustCompile(`^(engine|engine-large|client|meta|meta-large)/[a-z0-9-]+$`).MatchString(f.name) || strings.ContainsAny(f.of, " =") {
			t.Errorf("figure %q of %q: not a name of its own", f.name, f.of)
		}
		names[f.name] = true
	}
	for _, c := range []struct {
		patterns []string
		want     int // -1: refused
	}{
		{nil, len(all) - 6},
		{[]string{"all"}, len(all) - 6},
		{[]string{"engine"}, len(all) - 6 - len(clientFigures()) - metas},
		{[]string{"client", "engine", "client"}, len(all) - 6 - metas},
		{[]string{"engine-large"}, 1},
		{[]string{"meta"}, metas},
		{[]string{"meta-large"}, 5},
		{[]string{"all", "engine-large", "meta-large"}, len(all)},
		{[]string{"client/put-*"}, 3},
		{[]string{"client/stat-w1"}, 1},
		{[]string{"s3"}, -1},
		{[]string{"engine", "client/none"}, -1},
		{[]string{"client/[a"}, -1},
		{[]string{""}, -1},
	} {
		got, err := selected(c.patterns)
		if c.want < 0 {
			if err == nil {
				t.Errorf("%q is not refused", c.patterns)
			}
			continue
		}
		if err != nil || len(got) != c.want {
			t.Errorf("%q: %d figures and %v, want %d", c.patterns, len(got), err, c.want)
		}
	}
}

func TestParseStat(t *testing.T) {
	const line = "4242 (d) f (s) S 1 4242 4242 0 -1 4194560 11 22 33 44 150 50 7 8 20 0 12 0 99"
	if got, err := parseStat(line); err != nil || got != 2*time.Second {
		t.Errorf("%v and %v, want 2s", got, err)
	}
	for _, bad := range []string{"", "1 (x) S 1", "1 x S " + strings.Repeat("1 ", 40), "1 (x) S 1 1 1 1 1 1 1 1 1 1 x 5 1"} {
		if got, err := parseStat(bad); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}

// TestLoop: every operation that was begun is counted and none is missing from
// the latencies; an error ends all workers.
func TestLoop(t *testing.T) {
	var done [3]int
	s, err := loop(t.Context(), 5*time.Millisecond, 3, func(_ context.Context, worker int) error {
		done[worker]++
		time.Sleep(time.Millisecond)
		return nil
	})
	if err != nil || int(s.ops) != done[0]+done[1]+done[2] || uint64(s.ops) != s.late.count || s.ops == 0 {
		t.Errorf("%v operations, %d with a time, and %v; %v were done", s.ops, s.late.count, err, done)
	}
	bad := errors.New("bad")
	if _, err := loop(t.Context(), time.Hour, 3, func(_ context.Context, worker int) error {
		if worker == 2 {
			return bad
		}
		time.Sleep(time.Millisecond)
		return nil
	}); err != bad {
		t.Errorf("the error is %v, want %v", err, bad)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := loop(ended, time.Hour, 1, func(context.Context, int) error { return nil }); err != context.Canceled {
		t.Errorf("an ended context gives %v", err)
	}
}

// TestMeasureAlternates: work and baseline take turns, the first turn of each
// only warms up, and the work's is the time that is printed.
func TestMeasureAlternates(t *testing.T) {
	var log []string
	turn := func(name string, rate float64) func(context.Context, time.Duration) (sample, error) {
		return func(_ context.Context, d time.Duration) (sample, error) {
			log = append(log, name)
			return sample{ops: rate * d.Seconds(), took: d}, nil
		}
	}
	e := &env{opts: Options{Round: time.Second, Rounds: 5, Log: &bytes.Buffer{}}}
	r, err := e.measure(t.Context(), figure{name: "engine/x", of: "y", open: func(context.Context, *env) (*pair, error) {
		return &pair{
			work: turn("w", 50), base: turn("b", 200), cpu: selfCPU,
			settle: func(context.Context) error { log = append(log, "s"); return nil },
			close:  func() error { log = append(log, "c"); return nil },
		}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(log, ""), strings.Repeat("swsb", 6)+"c"; got != want {
		t.Errorf("turns %s, want %s", got, want)
	}
	if median(r.rates) != 50 || median(r.ratios) != 0.25 || len(r.rates) != 5 {
		t.Errorf("rates %v, ratios %v", r.rates, r.ratios)
	}
}

// TestBaselineErrors: a figure that failed in part is not one, and is closed.
func TestBaselineErrors(t *testing.T) {
	bad := errors.New("bad")
	fine := func(_ context.Context, d time.Duration) (sample, error) { return sample{ops: 1, took: d}, nil }
	fails := func(context.Context, time.Duration) (sample, error) { return sample{}, bad }
	for name, p := range map[string]*pair{
		"work": {work: fails, base: fine}, "base": {work: fine, base: fails}, "close": {work: fine, base: fine},
	} {
		closed := 0
		p.cpu = selfCPU
		p.close = func() error {
			closed++
			if name == "close" {
				return bad
			}
			return nil
		}
		e := &env{opts: Options{Round: time.Second, Rounds: 5, Log: &bytes.Buffer{}}}
		_, err := e.measure(t.Context(), figure{name: "engine/x", open: func(context.Context, *env) (*pair, error) { return p, nil }})
		if !errors.Is(err, bad) || closed != 1 {
			t.Errorf("%s: error %v, closed %d times", name, err, closed)
		}
	}
}

func TestOptionsAndCommandLine(t *testing.T) {
	usage := errors.New("usage")
	for _, args := range []string{"s3", "--rounds 0", "--rounds 4", "--rounds -1", "--rounds 100", "--round 0s", "--round 1ms", "--round 2m", "--inodes 0", "--inodes 10"} {
		cmd := Command(func(format string, args ...any) error {
			return fmt.Errorf("%w: "+format, append([]any{usage}, args...)...)
		})
		cmd.SetArgs(strings.Fields(args))
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetErr(&out)
		if err := cmd.ExecuteContext(t.Context()); !errors.Is(err, usage) || out.Len() > 0 || args != "s3" && !strings.Contains(err.Error(), "want ") {
			t.Errorf("%s: %v, printed %q", args, err, out.String())
		}
	}
}

// TestEngineFigure measures for real: one line comes out, in its form, and
// nothing is left behind.
func TestEngineFigure(t *testing.T) {
	dir := t.TempDir()
	var out, log bytes.Buffer
	err := Run(t.Context(), Options{Figures: []string{"engine/put-4k-w16", "engine/get-4k-w1"}, Round: minRound, Dir: dir, Out: &out, Log: &log, segment: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^(engine/put-4k-w16 +[0-9.]+ op/s    ratio=[0-9.]+ of=raw-append|engine/get-4k-w1 +[0-9.]+ op/s    ratio=[0-9.]+ of=pread-crc)    p50=[0-9.]+ms p99=[0-9.]+ms spread=[0-9]+% cpu=[0-9.]+ms$`)
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 2 {
		t.Errorf("%d lines: %q", len(lines), out.String())
	}
	for _, l := range lines {
		if !form.MatchString(l) {
			t.Errorf("line %q", l)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, and %v", left, err)
	}
}

// TestRawSocketAndFiles: baselines do what they say.
func TestRawSocketAndFiles(t *testing.T) {
	e := &env{data: make([]byte, 64<<10)}
	raw, err := openRawSocket(2, e.data)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := raw.rounds(4<<10)(t.Context(), minRound); err != nil || s.ops == 0 {
		t.Errorf("%v requests and %v", s.ops, err)
	}
	if err := raw.close(); err != nil {
		t.Error(err)
	}
	dir := t.TempDir()
	round, err := rawFiles(e, dir, 4<<10, 2)
	if err != nil {
		t.Fatal(err)
	}
	s, err := round(t.Context(), minRound)
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for i := range 2 {
		list, err := os.ReadDir(dir + "/" + workerName(i))
		if err != nil {
			t.Fatal(err)
		}
		files += len(list)
	}
	if float64(files) != s.ops {
		t.Errorf("%d files of %v", files, s.ops)
	}
}

// TestRunFails: a cluster that does not start leaves no process and no file
// behind, and says what its node said.
func TestRunFails(t *testing.T) {
	dir := t.TempDir()
	binary := dir + "/node"
	if err := os.WriteFile(binary, []byte("#!/bin/sh\ncase $1 in --role=*) echo begun; echo no such luck; exit 5;; esac\nexec sleep 100\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var out, log bytes.Buffer
	err := Run(t.Context(), Options{Figures: []string{"client/stat-w1"}, Dir: dir, Binary: binary, Out: &out, Log: &log})
	if err == nil || !strings.Contains(err.Error(), "no such luck") || out.Len() > 0 {
		t.Errorf("error %v, printed %q", err, out.String())
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v is left, and %v", left, err)
	}
}

// TestGenerator loads some inodes by itself, and measures what they take on disk.
func TestGenerator(t *testing.T) {
	e := &env{opts: Options{Log: &bytes.Buffer{}}, dir: t.TempDir()}
	dir := e.dir + "/stores"
	g, err := openGenerator(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.found(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.run(t.Context(), e, dirFiles+7); err != nil || g.made.Load() != dirFiles+7 {
		t.Errorf("%d files and %v, want %d", g.made.Load(), err, dirFiles+7)
	}
	err = g.host.ReadLocal(loadGroup, func(r raftgroup.Reader) error {
		n, err := namespace.Inodes(r)
		if want := uint64(1 + 2 + dirFiles + 7); n != want {
			t.Errorf("%d inodes, want %d", n, want)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := g.host.Close(); err != nil {
		t.Fatal(err)
	}
	state, err := compactedSize(dir + "/raft-state")
	if err != nil || state < 20*dirFiles || state > 1000*dirFiles {
		t.Errorf("%v bytes of %d files, and %v", state, dirFiles, err)
	}
}

// TestProcField reads this process.
func TestProcField(t *testing.T) {
	if rss, err := residentSize(os.Getpid()); err != nil || rss < 1<<20 {
		t.Errorf("%v bytes resident, %v", rss, err)
	}
	if n, err := bytesRead(os.Getpid()); err != nil || n == 0 {
		t.Errorf("%v bytes read, %v", n, err)
	}
	if _, err := procField("/proc/self/status", "NoSuch:"); err == nil {
		t.Error("a field that is missing is read")
	}
}

// TestReplayOfNodes: the baseline of changes writes as many syncs as each node made.
func TestReplayOfNodes(t *testing.T) {
	e := &env{data: make([]byte, 64<<10)}
	r := &metaRig{ops: 30, last: logged{{syncs: 3, bytes: 3000}, {syncs: 2, bytes: 100}}}
	for range r.last {
		raw, err := openRawAppend(t.TempDir(), 1<<20, e.data)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.file.Close()
		r.raw = append(r.raw, raw)
	}
	s, err := r.replay(t.Context(), 0)
	if err != nil || s.ops != 30 || r.raw[0].at != 3000 || r.raw[1].at != 100 {
		t.Errorf("%v operations, %d and %d bytes, %v", s.ops, r.raw[0].at, r.raw[1].at, err)
	}
}
