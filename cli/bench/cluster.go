package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"dfsd/client"
	"dfsd/transport"
)

// The cluster that is measured.
const (
	metaNodes    = 3
	storageNodes = 4
)

const (
	// startTime is for the cluster to form and every store to report.
	startTime = 2 * time.Minute

	// stopTime is for a node to finish what it accepted; then it is killed.
	stopTime = 20 * time.Second

	// tick is the unit of /proc/PID/stat: USER_HZ, which is 100 on every
	// architecture of Linux that this program is built for.
	tick = 10 * time.Millisecond
)

// cluster is processes of the program on loopback, and a client of them.
type cluster struct {
	dir    string
	groups int // of namespaces; 0: the default
	nodes  []*node
	alive  *os.File // the nodes hold the other end: it closes when this process ends, however it does
	client *client.Client
	close  func() // the client; nil: there is none
	work   sync.WaitGroup

	mu       sync.Mutex // guards stopping
	stopping bool       // a node that ends is no fault
}

// node is one process.
type node struct {
	role, name   string
	listen, http string
	cmd          *exec.Cmd     // nil: not started
	ended        chan struct{} // closed when the process is gone
}

// cluster returns the cluster of this run, which the first figure that asks for
// it starts.
func (e *env) cluster(ctx context.Context) (*cluster, error) {
	if e.shared != nil {
		return e.shared, nil
	}
	dir, err := e.subdir("cluster")
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir}
	begun := time.Now()
	if err := c.start(ctx, e); err != nil {
		return nil, errors.Join(fmt.Errorf("start a cluster: %w", err), c.stop())
	}
	fmt.Fprintf(e.opts.Log, "bench: a cluster of %d meta and %d storage nodes is ready after %v\n", metaNodes, storageNodes, time.Since(begun).Round(time.Millisecond))
	for _, n := range c.nodes {
		fmt.Fprintf(e.opts.Log, "bench:   %s PID %d profiles http://%s/debug/pprof/\n", n.name, n.cmd.Process.Pid, n.http)
	}
	e.shared = c
	return c, nil
}

func (c *cluster) start(ctx context.Context, e *env) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	addrs, err := freeAddrs(2 * (metaNodes + storageNodes))
	if err != nil {
		return err
	}
	for i := range metaNodes + storageNodes {
		n := &node{role: "meta", name: fmt.Sprintf("meta%d", i+1), listen: addrs[2*i], http: addrs[2*i+1], ended: make(chan struct{})}
		if i >= metaNodes {
			n.role, n.name = "storage", fmt.Sprintf("store%d", i-metaNodes+1)
		}
		c.nodes = append(c.nodes, n)
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		return err
	}
	c.alive = ours
	defer theirs.Close()
	for _, n := range c.nodes {
		if err := c.launch(n, e, theirs); err != nil {
			return err
		}
	}
	return c.connect(ctx, e)
}

// freeAddrs returns addresses that nothing listens on now.
func freeAddrs(n int) (out []string, err error) {
	for range n {
		l, lerr := net.Listen("tcp", "127.0.0.1:0")
		if lerr != nil {
			return nil, lerr
		}
		defer func() { err = errors.Join(err, l.Close()) }() // at the end, so that no two are the same
		out = append(out, l.Addr().String())
	}
	return out, nil
}

// launch starts the process of a node.
func (c *cluster) launch(n *node, e *env, parent *os.File) error {
	conf, log := filepath.Join(c.dir, n.name+".yaml"), filepath.Join(c.dir, n.name+".log")
	if err := os.WriteFile(conf, c.config(n), 0o644); err != nil {
		return err
	}
	out, err := os.Create(log)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(e.opts.Binary, "--role="+n.role, "--config", conf, "--parent-fd=3")
	cmd.Env = plainEnv()
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, []*os.File{parent}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for this process, which ends the others in order
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd = cmd
	c.work.Go(func() {
		defer close(n.ended)
		err := cmd.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.stopping {
			e.cancel(fmt.Errorf("%s ended: %w: %s", n.name, cmpErr(err, errors.New("exit code 0")), lastLine(log)))
		}
	})
	return nil
}

// cmpErr is the first error that is one.
func cmpErr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// lastLine is the end of a log.
func lastLine(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b)
	return string(b[bytes.LastIndexByte(b, '\n')+1:])
}

// plainEnv is the environment without settings of the program, so that figures
// are those of the defaults.
func plainEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "DFSD_") })
}

// config is the configuration file of a node.
func (c *cluster) config(n *node) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "role: %s\nname: %s\ndir: %q\nlisten: %s\nhttp: %s\nmeta:\n", n.role, n.name, filepath.Join(c.dir, n.name), n.listen, n.http)
	for _, m := range c.nodes[:metaNodes] {
		fmt.Fprintf(&b, "  - %s=%s\n", m.name, m.listen)
	}
	if c.groups > 0 {
		fmt.Fprintf(&b, "groups: %d\n", c.groups)
	}
	if n.role == "storage" {
		b.WriteString("segment_size: 64MiB # all stores share one disk, as in dfsd dev\n")
	}
	return b.Bytes()
}

// connect waits until there are all copies of everything, and opens a client.
func (c *cluster) connect(ctx context.Context, e *env) error {
	var metas []string
	for _, n := range c.nodes[:metaNodes] {
		metas = append(metas, n.listen)
	}
	wait := exec.CommandContext(ctx, e.opts.Binary, "status", "--wait", "full", "--meta", strings.Join(metas, ","))
	wait.Env = plainEnv()
	var said bytes.Buffer
	wait.Stderr = &said
	if err := wait.Run(); err != nil {
		return fmt.Errorf("wait for it: %w: %s", cmpErr(context.Cause(ctx), err), strings.TrimSpace(said.String()))
	}
	var err error
	c.client, c.close, err = client.Connect(ctx, transport.PoolOptions{Network: transport.TCP()}, client.Options{
		Metas: metas, Holder: fmt.Sprintf("bench:%d", os.Getpid()),
		Logger: slog.New(slog.NewTextHandler(e.opts.Log, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	return err
}

// stop ends what was started and waits for it.
func (c *cluster) stop() error {
	if c.close != nil {
		c.close()
	}
	c.mu.Lock()
	c.stopping = true
	c.mu.Unlock()
	var late []string
	timer := time.AfterFunc(stopTime, func() {
		for _, n := range c.nodes {
			if n.cmd != nil {
				_ = n.cmd.Process.Kill() // it may have ended
			}
		}
	})
	for _, n := range c.nodes {
		if n.cmd != nil {
			_ = n.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		}
	}
	c.work.Wait()
	if !timer.Stop() {
		for _, n := range c.nodes {
			if n.cmd != nil && !n.cmd.ProcessState.Exited() {
				late = append(late, n.name)
			}
		}
	}
	var err error
	if len(late) > 0 {
		err = fmt.Errorf("%s: killed, did not end within %v", strings.Join(late, ", "), stopTime)
	}
	if c.alive != nil {
		err = errors.Join(err, c.alive.Close())
	}
	return err
}

// cpu is the processor time of this process and of the nodes.
func (c *cluster) cpu() (cpuTime, error) {
	t, err := selfCPU()
	if err != nil {
		return t, err
	}
	for _, n := range c.nodes {
		used, err := n.cpu()
		if err != nil {
			return t, err
		}
		t.servers += used
	}
	return t, nil
}

// cpu is the processor time of a node.
func (n *node) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	used, err := parseStat(string(b))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", n.name, err)
	}
	return used, nil
}

// parseStat reads user and kernel time out of /proc/PID/stat.
func parseStat(text string) (time.Duration, error) {
	_, rest, ok := cutLast(text, ")") // the name before it may hold anything
	f := strings.Fields(rest)
	if !ok || len(f) < 13 {
		return 0, fmt.Errorf("process statistics %q", text)
	}
	var sum uint64
	for _, field := range f[11:13] { // utime and stime
		v, err := strconv.ParseUint(field, 10, 48)
		if err != nil {
			return 0, fmt.Errorf("process statistics %q: %w", text, err)
		}
		sum += v
	}
	return time.Duration(sum) * tick, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
