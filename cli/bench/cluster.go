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

// shape is what a cluster consists of.
type shape struct {
	name          string // of its directory
	metas, stores int
	settings      string // lines of the meta nodes' configuration beside what every node needs
}

// The clusters that are measured: one for files, one for metadata alone.
var (
	wholeCluster = shape{name: "cluster", metas: 3, stores: 4}
	metaCluster  = shape{name: "metas", metas: 3}
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
	shape
	dir    string
	nodes  []*node
	parent *os.File // what the nodes hold
	alive  *os.File // its other end: it closes when this process ends, however it does
	client *client.Client
	close  func() // the client; nil: there is none
	work   sync.WaitGroup

	mu       sync.Mutex // guards stopping, and that of the nodes
	stopping bool       // a node that ends is no fault
}

// node is one process.
type node struct {
	role, name   string
	listen, http string
	cmd          *exec.Cmd     // nil: not started
	ended        chan struct{} // closed when the process is gone
	stopping     bool          // it is no fault that it ends; guarded by the cluster's mu
}

// cluster returns a running cluster of a shape. There is one at a time: one of
// another shape is ended.
func (e *env) cluster(ctx context.Context, sh shape) (*cluster, error) {
	if e.shared != nil {
		if e.shared.shape == sh {
			return e.shared, nil
		}
		old := e.shared
		e.shared = nil
		if err := errors.Join(old.stop(), os.RemoveAll(old.dir)); err != nil {
			return nil, err
		}
	}
	c, err := e.newCluster(ctx, sh)
	if err == nil {
		e.shared = c
	}
	return c, err
}

func (e *env) newCluster(ctx context.Context, sh shape) (*cluster, error) {
	dir, err := e.subdir(sh.name)
	if err != nil {
		return nil, err
	}
	c := &cluster{shape: sh, dir: dir}
	begun := time.Now()
	if err := c.start(ctx, e); err != nil {
		return nil, errors.Join(fmt.Errorf("start a cluster: %w", err), c.stop())
	}
	fmt.Fprintf(e.opts.Log, "bench: a cluster of %d meta and %d storage nodes is ready after %v\n", sh.metas, sh.stores, time.Since(begun).Round(time.Millisecond))
	for _, n := range c.nodes {
		fmt.Fprintf(e.opts.Log, "bench:   %s PID %d profiles http://%s/debug/pprof/\n", n.name, n.cmd.Process.Pid, n.http)
	}
	return c, nil
}

func (c *cluster) start(ctx context.Context, e *env) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := c.launchAll(e); err != nil {
		return err
	}
	return c.connect(ctx, e)
}

// launchAll starts the processes.
func (c *cluster) launchAll(e *env) error {
	addrs, err := freeAddrs(2 * (c.metas + c.stores))
	if err != nil {
		return err
	}
	for i := range c.metas + c.stores {
		n := &node{role: "meta", name: fmt.Sprintf("meta%d", i+1), listen: addrs[2*i], http: addrs[2*i+1]}
		if i >= c.metas {
			n.role, n.name = "storage", fmt.Sprintf("store%d", i-c.metas+1)
		}
		c.nodes = append(c.nodes, n)
	}
	if c.parent, c.alive, err = os.Pipe(); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := c.launch(n, e); err != nil {
			return err
		}
	}
	return nil
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
func (c *cluster) launch(n *node, e *env) error {
	conf, log := filepath.Join(c.dir, n.name+".yaml"), filepath.Join(c.dir, n.name+".log")
	if err := os.WriteFile(conf, c.config(n), 0o644); err != nil {
		return err
	}
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(e.opts.Binary, "--role="+n.role, "--config", conf, "--parent-fd=3")
	cmd.Env = plainEnv()
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, []*os.File{c.parent}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for this process, which ends the others in order
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	n.cmd, n.ended = cmd, ended
	c.work.Go(func() {
		defer close(ended)
		err := cmd.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.stopping && !n.stopping {
			e.cancel(fmt.Errorf("%s ended: %w: %s", n.name, cmpErr(err, errors.New("exit code 0")), lastLine(log)))
		}
	})
	return nil
}

// end ends one node by a signal and waits for it. It may be launched again.
func (c *cluster) end(n *node, by syscall.Signal) error {
	c.mu.Lock()
	n.stopping = true
	c.mu.Unlock()
	if err := n.cmd.Process.Signal(by); err != nil {
		return err
	}
	select {
	case <-n.ended:
	case <-time.After(stopTime):
		return fmt.Errorf("%s does not end", n.name)
	}
	c.mu.Lock()
	n.stopping = false
	c.mu.Unlock()
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
	for _, m := range c.nodes[:c.metas] {
		fmt.Fprintf(&b, "  - %s=%s\n", m.name, m.listen)
	}
	if n.role == "meta" {
		b.WriteString(c.settings)
	}
	if n.role == "storage" {
		b.WriteString("segment_size: 64MiB # all stores share one disk, as in dfsd dev\n")
	}
	return b.Bytes()
}

// connect waits until there are all copies of everything, or directories can be
// made where there are no stores, and opens a client.
func (c *cluster) connect(ctx context.Context, e *env) (err error) {
	if c.stores == 0 {
		if c.client, c.close, err = c.connectClient(ctx, e, client.Options{}); err == nil {
			_, err = c.client.MkdirAll(ctx, "/bench", 0o755)
		}
		return err
	}
	var metas []string
	for _, n := range c.nodes[:c.metas] {
		metas = append(metas, n.listen)
	}
	wait := exec.CommandContext(ctx, e.opts.Binary, "status", "--wait", "full", "--meta", strings.Join(metas, ","))
	wait.Env = plainEnv()
	var said bytes.Buffer
	wait.Stderr = &said
	if err := wait.Run(); err != nil {
		return fmt.Errorf("wait for it: %w: %s", cmpErr(context.Cause(ctx), err), strings.TrimSpace(said.String()))
	}
	c.client, c.close, err = c.connectClient(ctx, e, client.Options{})
	return err
}

// connectClient opens one more client. Where the cluster is, is filled in here.
func (c *cluster) connectClient(ctx context.Context, e *env, o client.Options) (*client.Client, func(), error) {
	for _, n := range c.nodes[:c.metas] {
		o.Metas = append(o.Metas, n.listen)
	}
	o.Holder, o.ConnectTimeout = fmt.Sprintf("bench:%d", os.Getpid()), startTime
	o.Logger = slog.New(slog.NewTextHandler(e.opts.Log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return client.Connect(ctx, transport.PoolOptions{Network: transport.TCP()}, o)
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
		err = errors.Join(err, c.alive.Close(), c.parent.Close())
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
