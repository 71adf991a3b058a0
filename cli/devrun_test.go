package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dfsd/node"
)

// TestMain lets the test binary be dfsd: dfsd dev starts its own executable.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "dev" || strings.HasPrefix(os.Args[1], "--role=")) {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := Main(ctx, os.Args[1:], Process{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Environ(), Serve: node.Run})
		stop()
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// devProcess is a running dfsd dev.
type devProcess struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string // of its output; closed at its end
	pids  map[string]int
}

// startDev starts dfsd dev and waits until it is ready; nil when a port is busy.
func startDev(t *testing.T, dir string, args ...string) *devProcess {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	d := &devProcess{t: t, cmd: exec.Command(binary, append([]string{"dev", "--dir", dir}, args...)...), lines: make(chan string, 100), pids: map[string]int{}}
	d.cmd.Stdout, d.cmd.Stderr = w, w
	d.cmd.Env = append(os.Environ(), "DFSD_RESERVE=1MiB", "DFSD_PGS_PER_CLASS=8", "DFSD_GROUPS=2")
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = d.cmd.Wait() // the test looks at the process's state
		_ = w.Close()
	}()
	go func() {
		defer close(d.lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			d.lines <- s.Text()
		}
	}()
	t.Cleanup(func() { d.end(syscall.SIGKILL) })
	row := regexp.MustCompile(`^((?:meta|store)\d+) +(\d+) +127\.0\.0\.1:`)
	for line := range d.lines {
		switch m := row.FindStringSubmatch(line); {
		case m != nil:
			d.pids[m[1]], _ = strconv.Atoi(m[2])
		case strings.Contains(line, "address already in use"):
			return nil
		case strings.HasPrefix(line, "Ready after"):
			return d
		}
	}
	t.Fatalf("dfsd dev ended before it was ready: %v", d.cmd.ProcessState)
	return nil
}

// end sends a signal, unless it has ended, waits for the end, and returns what
// was printed meanwhile.
func (d *devProcess) end(sig os.Signal) string {
	_ = d.cmd.Process.Signal(sig)
	var out []string
	for line := range d.lines {
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// until reads output until a line holds a text.
func (d *devProcess) until(text string) {
	d.t.Helper()
	for line := range d.lines {
		if strings.Contains(line, text) {
			return
		}
	}
	d.t.Fatalf("dfsd dev ended without printing %q", text)
}

// gone waits until none of the processes is left. The test's deadline ends a
// wait in vain.
func gone(t *testing.T, pids map[string]int) {
	for name, pid := range pids {
		for runs(pid) {
			if t.Context().Err() != nil {
				t.Fatalf("%s (PID %d) still runs", name, pid)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// runs reports whether a process is there and has not ended: one that nobody
// waits for is there for ever in some containers.
func runs(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// dfsd dev is ready when all its stores are up, or some time after the rest.
func TestDevReadyLine(t *testing.T) {
	with := func(health string, states ...string) *status {
		s := &status{Cluster: clusterStatus{ID: "c1", Health: health}}
		for _, state := range states {
			s.Stores = append(s.Stores, storeStatus{State: state})
		}
		return s
	}
	for _, c := range []struct {
		s      *status
		served time.Duration
		want   string
	}{
		{with(healthUnavailable), 0, ""},
		{with(healthUnavailable, "up", "up", "up"), time.Hour, ""},
		{with("ok", "up", "up", "up"), 0, "cluster c1, 3 stores"},
		{with("degraded", "up", "up"), 0, ""},
		{with("degraded", "up", "up", "down"), storesPatience - 1, ""},
		{with("degraded", "up", "up", "down"), storesPatience, "cluster c1, 2 of 3 stores"},
		{with("ok", "up", "up", "up", "out"), 0, "cluster c1, 3 stores"},
	} {
		if got := readyText(c.s, 3, c.served); got != c.want {
			t.Errorf("%s with %d stores after %v: %q, want %q", c.s.Cluster.Health, len(c.s.Stores), c.served, got, c.want)
		}
	}
}

// TestDevProcesses runs dfsd dev with real processes: it reports one that dies,
// stops all, goes on with the same data, and takes all with it when it is killed.
func TestDevProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	var d *devProcess
	port := 0
	for d == nil {
		port = 20000 + rand.IntN(10000)
		d = startDev(t, dir, "--meta", "1", "--storage", "2", "--port", strconv.Itoa(port))
	}
	use := Process{Env: []string{fmt.Sprintf("DFSD_META=127.0.0.1:%d", port)}, In: strings.NewReader("remember me")}
	if code, _, stderr := run(t.Context(), use, "put", "-", "/f"); code != 0 {
		t.Fatal(stderr)
	}
	if code, _, stderr := run(t.Context(), Process{}, "dev", "--dir", dir+"2", "--port", strconv.Itoa(port)); code != 1 || !strings.Contains(stderr, "address already in use") {
		t.Errorf("a second one on the same ports: exit code %d: %s", code, stderr)
	}
	if err := syscall.Kill(d.pids["store2"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.until(fmt.Sprintf("store2 (PID %d) ended: signal: killed", d.pids["store2"]))
	d.until("--role=storage --config " + filepath.Join(dir, "store2.yaml"))
	d.end(syscall.SIGTERM)
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	gone(t, d.pids)

	if d = startDev(t, dir, "--storage", "3"); d == nil {
		t.Fatal("the ports are busy at the second start")
	}
	if len(d.pids) != 4 {
		t.Errorf("runs %v", d.pids)
	}
	if code, stdout, stderr := run(t.Context(), use, "cat", "/f"); code != 0 || stdout != "remember me" {
		t.Errorf("exit code %d, %q: %s", code, stdout, stderr)
	}
	if code, stdout, stderr := run(t.Context(), use, "status", "--wait", "full"); code != 0 {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	d.end(syscall.SIGKILL)
	gone(t, d.pids) // the kernel closed the pipe
}
