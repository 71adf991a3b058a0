package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"dfsd/client"
	"dfsd/config"
	"dfsd/dfs"
)

// devStop is how long the processes may take to end before they are killed:
// longer than a node takes to finish what it accepted.
const devStop = 20 * time.Second

// devHost is where everything listens: nobody else reaches it.
const devHost = "127.0.0.1"

// devNode is a process of a dev cluster.
type devNode struct {
	dir  string // of the cluster
	name string
	role dfs.Role
	port int

	cmd *exec.Cmd // nil: not started
	err error     // of its end
}

// nodes lists the nodes of a plan.
func (p devPlan) nodes(dir string) (out []*devNode) {
	for i := range p.Meta {
		out = append(out, &devNode{dir: dir, name: fmt.Sprintf("meta%d", i+1), role: dfs.RoleMeta, port: p.Port + i})
	}
	for i := range p.Storage {
		out = append(out, &devNode{dir: dir, name: fmt.Sprintf("store%d", i+1), role: dfs.RoleStorage, port: p.Port + devStoragePort + i})
	}
	return out
}

func (n *devNode) data() string   { return filepath.Join(n.dir, n.name) }
func (n *devNode) config() string { return n.data() + ".yaml" }
func (n *devNode) log() string    { return n.data() + ".log" }
func (n *devNode) addr() string   { return net.JoinHostPort(devHost, strconv.Itoa(n.port)) }
func (n *devNode) http() string   { return net.JoinHostPort(devHost, strconv.Itoa(n.port+devHTTPPort)) }

// command is what a user types to start the node again, with the settings that
// it got from the environment.
func (n *devNode) command(binary string, env []string) string {
	var b strings.Builder
	for _, kv := range devEnv(env) {
		if name, value, _ := strings.Cut(kv, "="); config.IsSetting(name) {
			fmt.Fprintf(&b, "%s=%s ", name, quote(value))
		}
	}
	fmt.Fprintf(&b, "%s --role=%s --config %s", quote(binary), n.role, quote(n.config()))
	return b.String()
}

// checkSettings looks at what the processes will read before any is started. A
// cluster that is yet to be made gets the storage class that the settings say.
func (d *dev) checkSettings(fresh bool) error {
	for _, n := range d.nodes {
		cfg, err := config.LoadServer(config.Input{
			Env:      append(devEnv(d.a.proc.Env), "DFSD_CONFIG="+n.config()),
			ReadFile: func(string) ([]byte, error) { return d.config(n), nil },
		})
		if err != nil {
			return err
		}
		if fresh && n.role == dfs.RoleMeta {
			d.plan.Class = cfg.DefaultClass.String()
		}
	}
	return nil
}

// checkPorts refuses to start beside something that uses a port.
func (d *dev) checkPorts() error {
	for _, n := range d.nodes {
		for _, at := range []struct{ setting, addr string }{{"listen", n.addr()}, {"http", n.http()}} {
			l, err := net.Listen("tcp", at.addr)
			if err == nil {
				err = l.Close()
			}
			if err == nil {
				continue
			}
			var who string
			if pid, err := os.ReadFile(filepath.Join(n.data(), "PID")); err == nil && alive(pid) {
				who = ": " + n.name + pidText(pid) + " may still run from an earlier start"
			}
			var in *os.SyscallError
			if errors.As(err, &in) {
				err = in.Err
			}
			return withHint(fmt.Errorf("%s, %s of %s: %w%s", at.addr, at.setting, n.name, err, who), "end what uses it, or give a new cluster other ports with --port and --dir")
		}
	}
	return nil
}

// alive reports whether the process whose number a file holds runs.
func alive(file []byte) bool {
	pid, err := strconv.Atoi(strings.TrimSpace(string(file)))
	return err == nil && pid > 0 && syscall.Kill(pid, 0) == nil
}

// run starts the processes and waits until ctx ends or all of them have.
func (d *dev) run(ctx context.Context) (err error) {
	if err := d.checkPorts(); err != nil {
		return err
	}
	if err := d.save(); err != nil {
		return err
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	// However this process ends, the kernel closes its end of the pipe.
	var ownEnds []*os.File
	ended := make(chan *devNode, len(d.nodes))
	var work sync.WaitGroup
	defer func() {
		err = errors.Join(err, d.stop(ended))
		for _, end := range ownEnds {
			err = errors.Join(err, end.Close())
		}
		work.Wait()
	}()
	for _, n := range d.nodes {
		childEnd, ownEnd, err := os.Pipe() // one for each: whether reads of it block is said once for all who share it
		if err != nil {
			return err
		}
		ownEnds = append(ownEnds, ownEnd)
		err = n.start(binary, d.a.proc.Env, childEnd)
		_ = childEnd.Close()
		if err != nil {
			return fmt.Errorf("start %s: %w", n.name, err)
		}
		work.Go(func() {
			n.err = n.cmd.Wait()
			ended <- n
		})
	}
	d.greet()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan string, 1)
	work.Go(func() { ready <- d.awaitReady(ctx) })
	return d.watch(ctx, binary, ended, ready)
}

// start starts the process of a node.
func (n *devNode) start(binary string, env []string, parent *os.File) error {
	log, err := os.OpenFile(n.log(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(binary, "--role="+n.role.String(), "--config", n.config(), parentFlag+"3")
	cmd.Env = devEnv(env)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{parent}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for this process, which ends the others in order
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd = cmd
	return nil
}

// devEnv is the environment of the processes: without what would give all of
// them the same identity.
func devEnv(env []string) (out []string) {
	own := map[string]bool{}
	for _, s := range []string{"CONFIG", "ROLE", "NAME", "DIR", "STORES", "LISTEN", "ADVERTISE", "HTTP", "META", "CLUSTER_ID", "LABELS"} {
		own["DFSD_"+s] = true
	}
	for _, kv := range env {
		if name, _, _ := strings.Cut(kv, "="); !own[name] {
			out = append(out, kv)
		}
	}
	return out
}

// greet says what runs where.
func (d *dev) greet() {
	w := d.a.proc.Out
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "NODE\tPID\tADDRESS\tHTTP\tLOG\n")
	for _, n := range d.nodes {
		fmt.Fprintf(t, "%s\t%d\t%s\thttp://%s\t%s\n", n.name, n.cmd.Process.Pid, n.addr(), n.http(), shortPath(n.log()))
	}
	_ = t.Flush() // what a closed terminal does not show is no reason to stop
	fmt.Fprintf(w, "\nAll copies of your data (%s) are on this one machine, below %s: this is a cluster to try things out.\n", d.plan.Class, shortPath(d.dir))
	me := os.Args[0]
	if d.plan.Port != devPort {
		me += " --meta " + strings.Join(d.metas(), ",")
	}
	fmt.Fprintf(w, "In another terminal:\n\n    %s status\n    %s put -r SOME-DIRECTORY /\n    %s ls -l /\n\nCtrl-C stops all. Starting …\n", me, me, me)
}

// shortPath is a path as seen from the working directory.
func shortPath(path string) string {
	wd, err := os.Getwd()
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(wd, path); err == nil && len(rel) < len(path) && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return path
}

func (d *dev) metas() (out []string) {
	for _, n := range d.nodes {
		if n.role == dfs.RoleMeta {
			out = append(out, n.addr())
		}
	}
	return out
}

// storesPatience is how long dev waits for its last stores in a cluster that
// takes reads and writes already.
const storesPatience = 10 * time.Second

// readyText says which cluster is ready, with how many stores; "" while it
// is not. served: for how long it has taken reads and writes.
func readyText(s *status, stores int, served time.Duration) string {
	up := 0
	for _, st := range s.Stores {
		if st.State == "up" {
			up++
		}
	}
	switch {
	case s.Cluster.Health == healthUnavailable || up < stores && served < storesPatience:
		return ""
	case up < stores:
		return fmt.Sprintf("cluster %s, %d of %s", s.Cluster.ID, up, plural(stores, "store"))
	}
	return fmt.Sprintf("cluster %s, %s", s.Cluster.ID, plural(up, "store"))
}

// awaitReady waits until the cluster takes reads and writes with all its stores,
// or without some that do not come, and says so; "" when ctx ended first.
func (d *dev) awaitReady(ctx context.Context) string {
	begun := time.Now()
	cfg, err := config.LoadClient(config.Input{Env: devEnv(d.a.proc.Env), ReadFile: os.ReadFile})
	if err != nil {
		return errorLine(err)
	}
	cfg.Meta, cfg.Timeout = nil, lookTimeout
	for _, addr := range d.metas() {
		cfg.Meta = append(cfg.Meta, config.MetaNode{Addr: addr})
	}
	p := &poll{a: d.a, look: func(ctx context.Context) (*client.Client, func(), error) { return d.a.connectTo(ctx, cfg) }}
	defer p.close()
	var served time.Time // since when it takes reads and writes
	for {
		s, err := p.next(ctx)
		if err == nil {
			if served.IsZero() && s.Cluster.Health != healthUnavailable {
				served = time.Now()
			}
			if text := readyText(s, d.plan.Storage, time.Since(served)); text != "" {
				return fmt.Sprintf("Ready after %s: %s.", ageText(time.Since(begun)), text)
			}
		}
		if !pause(ctx, waitInterval) {
			return ""
		}
	}
}

// watch reports processes that end. It returns when ctx ended, or when nothing
// runs any more.
func (d *dev) watch(ctx context.Context, binary string, ended <-chan *devNode, ready <-chan string) error {
	running := len(d.nodes)
	for {
		select {
		case <-ctx.Done():
			fmt.Fprintln(d.a.proc.Out, "Stopping …")
			return nil
		case text := <-ready:
			if text != "" {
				fmt.Fprintln(d.a.proc.Out, text)
			}
			ready = nil
		case n := <-ended:
			running--
			n.report(d.a.proc.Out, n.command(binary, d.a.proc.Env))
			n.cmd = nil
			if running == 0 {
				return errors.New("all processes have ended")
			}
		}
	}
}

// report says that a process ended, and how to start it again.
func (n *devNode) report(w io.Writer, command string) {
	how := "exit code 0"
	if n.err != nil {
		how = n.err.Error()
	}
	fmt.Fprintf(w, "%s (PID %d) ended: %s", n.name, n.cmd.Process.Pid, how)
	if line := lastLine(n.log()); line != "" && n.cmd.ProcessState.Exited() {
		fmt.Fprintf(w, ": %s", printable(line))
	}
	fmt.Fprintf(w, "\nStart it again with\n\n    %s\n\nin a terminal of its own, whose Ctrl-C stops it: the one here stops the others only.\n\n", command)
}

// lastLine is the last line of a log.
func lastLine(name string) string {
	const most = 4096 // bytes; a longer line is cut
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	b := make([]byte, min(size, most))
	if _, err := f.ReadAt(b, size-int64(len(b))); err != nil && err != io.EOF {
		return ""
	}
	text := strings.TrimRight(string(b), "\n")
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// stop asks what runs to end, and waits for it; what takes too long is killed.
func (d *dev) stop(ended <-chan *devNode) error {
	running := 0
	for _, n := range d.nodes {
		if n.cmd != nil {
			running++
			_ = n.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		}
	}
	late := time.NewTimer(devStop)
	defer late.Stop()
	var errs []error
	for running > 0 {
		select {
		case n := <-ended:
			running--
			n.cmd = nil
			if n.err != nil {
				errs = append(errs, fmt.Errorf("%s: %w; see %s", n.name, n.err, shortPath(n.log())))
			}
		case <-late.C:
			for _, n := range d.nodes {
				if n.cmd != nil {
					_ = n.cmd.Process.Kill() // it may have ended by itself
				}
			}
		}
	}
	return errors.Join(errs...)
}
