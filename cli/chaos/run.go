package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"dfsd/dfs"
)

// HangGuard bounds every wait: a cluster that needs longer hangs.
const HangGuard = 10 * time.Minute

// Options says how to run a scenario.
type Options struct {
	Binary string // dfsd
	Dir    string // an empty directory for data, logs and trees
	Log    func(format string, args ...any)

	// UID and GID run the client as another user; -1: as this one. With another
	// user the trees belong to it.
	UID, GID int
}

// Runner runs one scenario.
type Runner struct {
	opts  Options
	s     *Scenario
	trees map[string]string // made so far

	mu    sync.Mutex // guards procs
	procs map[string]*proc
}

// proc is a node's process.
type proc struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once it has ended
	err  error         // of Wait; read after done
}

// Run runs the scenario and ends every process it started.
func Run(ctx context.Context, s *Scenario, opts Options) (err error) {
	r := &Runner{opts: opts, s: s, trees: map[string]string{}, procs: map[string]*proc{}}
	defer func() {
		if err != nil {
			r.logTails()
		}
		r.killAll()
		makeWritable(r.opts.Dir)
	}()
	for i, st := range s.Steps {
		begun := time.Now()
		what, err := r.step(ctx, st)
		if err != nil {
			return fmt.Errorf("%s: step %d (%s): %w", s.Name, i+1, what, err)
		}
		opts.Log("%-60s %8.1f s", what, time.Since(begun).Seconds())
	}
	return nil
}

func (r *Runner) step(ctx context.Context, st Step) (string, error) {
	switch {
	case st.Start != nil:
		return "start " + strings.Join(st.Start, " "), r.start(st.Start)
	case st.Kill != nil:
		return "kill -9 " + strings.Join(st.Kill, " "), r.kill(ctx, st.Kill)
	case st.Stop != nil:
		return "stop " + strings.Join(st.Stop, " "), r.stop(st.Stop)
	case st.Wait != "":
		return "wait " + st.Wait, r.wait(ctx, st.Wait)
	case st.Put != nil:
		return r.transfer(ctx, "put", st.Put, st.During, r.put)
	case st.Get != nil:
		return r.transfer(ctx, "get", st.Get, st.During, r.get)
	case st.Spread != nil:
		return "spread of inodes", r.spread(ctx, st.Spread)
	default:
		return "a write is refused", r.refuse(ctx, st.Refuse)
	}
}

func (r *Runner) names(list []string) []string {
	if slices.Contains(list, "all") {
		return r.s.Cluster.Nodes
	}
	return list
}

func (r *Runner) start(names []string) error {
	for _, name := range r.names(names) {
		r.mu.Lock()
		running := r.procs[name] != nil
		r.mu.Unlock()
		if running {
			continue
		}
		if err := r.startOne(name); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runner) startOne(name string) error {
	config, err := filepath.Abs(filepath.Join(r.s.Cluster.Configs, name+".yaml"))
	if err != nil {
		return err
	}
	role := "storage"
	if strings.HasPrefix(name, "meta") {
		role = "meta"
	}
	log, err := os.OpenFile(r.logFile(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(r.opts.Binary, "--role="+role, "--config", config)
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.opts.Dir, log, log
	cmd.Env = os.Environ()
	for k, v := range r.s.Cluster.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	p := &proc{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	r.mu.Lock()
	r.procs[name] = p
	r.mu.Unlock()
	return nil
}

func (r *Runner) logFile(name string) string { return filepath.Join(r.opts.Dir, name+".log") }

// take removes the node's process from the running ones.
func (r *Runner) take(name string) *proc {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.procs[name]
	delete(r.procs, name)
	return p
}

func (r *Runner) kill(ctx context.Context, names []string) error {
	list := slices.Clone(r.names(names))
	for i, name := range list {
		if name == "leader" {
			leader, err := r.leader(ctx)
			if err != nil {
				return err
			}
			list[i] = leader
		}
	}
	var dead []*proc
	for _, name := range list {
		if p := r.take(name); p != nil {
			_ = p.cmd.Process.Kill()
			dead = append(dead, p)
		}
	}
	for _, p := range dead {
		<-p.done
	}
	return nil
}

func (r *Runner) killAll() {
	_ = r.kill(context.Background(), []string{"all"})
}

func (r *Runner) stop(names []string) error {
	for _, name := range r.names(names) {
		p := r.take(name)
		if p == nil {
			continue
		}
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		select {
		case <-p.done:
			if p.err != nil {
				return fmt.Errorf("%s after SIGTERM: %w", name, p.err)
			}
		case <-time.After(HangGuard):
			_ = p.cmd.Process.Kill()
			return fmt.Errorf("%s did not end within %v of SIGTERM", name, HangGuard)
		}
	}
	return nil
}

// result is what a client command said.
type result struct {
	code     int
	out, err string
}

// dfsd runs a client command.
func (r *Runner) dfsd(ctx context.Context, asUser bool, args ...string) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, HangGuard)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.opts.Binary, args...)
	var out, errOut bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.opts.Dir, &out, &errOut
	if asUser && r.opts.UID >= 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(r.opts.UID), Gid: uint32(r.opts.GID)}}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil {
		return result{}, fmt.Errorf("dfsd %s: no end within %v: %s", strings.Join(args, " "), HangGuard, errOut.String())
	}
	if err != nil && !errors.As(err, &exit) {
		return result{}, err
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}, nil
}

// must runs a client command that has to succeed.
func (r *Runner) must(ctx context.Context, args ...string) (string, error) {
	res, err := r.dfsd(ctx, false, args...)
	if err == nil && res.code != 0 {
		err = fmt.Errorf("dfsd %s: exit code %d: %s", strings.Join(args, " "), res.code, res.err)
	}
	return res.out, err
}

// wait waits until the cluster is ready or full. Full counts only once what was
// killed is known to be gone: nobody notices in the first moments.
func (r *Runner) wait(ctx context.Context, what string) error {
	for deadline := time.Now().Add(HangGuard); what == "full"; time.Sleep(200 * time.Millisecond) {
		st, err := r.status(ctx)
		if err == nil && !slices.ContainsFunc(st.Stores, func(s storeState) bool { return s.State == "up" && !r.isRunning(s.Node) }) {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("a killed store still counts as up after %v: %+v, %v", HangGuard, st.Stores, err)
		}
	}
	_, err := r.must(ctx, "status", "--wait", what, "--timeout", HangGuard.String())
	return err
}

// status is what a scenario needs of dfsd status --json.
type status struct {
	Groups []struct {
		Group  int    `json:"group"`
		Leader string `json:"leader"`
		Inodes int    `json:"inodes"`
	} `json:"groups"`
	Stores []storeState `json:"stores"`
}

type storeState struct {
	Node  string `json:"node"`
	State string `json:"state"`
}

func (r *Runner) status(ctx context.Context) (status, error) {
	var st status
	res, err := r.dfsd(ctx, false, "status", "--json")
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal([]byte(res.out), &st); err != nil {
		return st, fmt.Errorf("dfsd status --json (exit code %d): %w: %s", res.code, err, res.err)
	}
	return st, nil
}

func (s status) inodes() int {
	n := 0
	for _, g := range s.Groups {
		n += g.Inodes
	}
	return n
}

func (r *Runner) leader(ctx context.Context) (string, error) {
	st, err := r.status(ctx)
	if err != nil {
		return "", err
	}
	for _, g := range st.Groups {
		if g.Group == 0 && g.Leader != "" {
			return g.Leader, nil
		}
	}
	return "", errors.New("the control group has no leader")
}

func (r *Runner) spread(ctx context.Context, want *Spread) error {
	// Counts travel with reports: ask until they have settled.
	for deadline := time.Now().Add(HangGuard); ; {
		st, err := r.status(ctx)
		if err != nil {
			return err
		}
		worst, least := 0, 100.0
		for _, g := range st.Groups {
			if share := 100 * float64(g.Inodes) / float64(max(st.inodes(), 1)); g.Group != 0 && share < least {
				worst, least = g.Group, share
			}
		}
		if len(st.Groups) > 1 && least >= want.Percent {
			r.opts.Log("  the smallest group, %d, has %.1f %% of %d inodes", worst, least, st.inodes())
			return nil
		}
		if time.Now().After(deadline.Add(-HangGuard + 30*time.Second)) {
			return fmt.Errorf("group %d has %.1f %% of %d inodes: want %.0f %% at least", worst, least, st.inodes(), want.Percent)
		}
		time.Sleep(time.Second)
	}
}

func (r *Runner) refuse(ctx context.Context, want *Refuse) error {
	file := filepath.Join(r.opts.Dir, "refused")
	if err := os.WriteFile(file, bytes.Repeat([]byte("refuse me "), 10000), 0o644); err != nil {
		return err
	}
	res, err := r.dfsd(ctx, false, "--timeout", "15s", "put", file, want.Path)
	if err != nil {
		return err
	}
	if res.code != 1 || !strings.Contains(res.err, want.Text) {
		return fmt.Errorf("put: exit code %d, %q: want 1 and an error with %q", res.code, res.err, want.Text)
	}
	return nil
}

// tree makes a declared tree once and returns its directory.
func (r *Runner) tree(ctx context.Context, name string) (string, error) {
	if dir := r.trees[name]; dir != "" {
		return dir, nil
	}
	if r.s.Trees[name].From == "goroot-src" {
		out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
		if err != nil {
			return "", fmt.Errorf("go env GOROOT: %w", err)
		}
		r.trees[name] = filepath.Join(strings.TrimSpace(string(out)), "src")
		return r.trees[name], nil
	}
	dir := filepath.Join(r.opts.Dir, "tree-"+name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if err := makeOdd(dir, dfs.DefaultBlockSize, 200<<20); err != nil {
		return "", err
	}
	r.trees[name] = dir
	if r.opts.UID < 0 {
		return dir, nil
	}
	return dir, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if err := os.Lchown(p, r.opts.UID, r.opts.GID); err != nil || info.Mode()&fs.ModeSymlink != 0 {
			return err
		}
		return os.Chmod(p, info.Mode()) // chown clears setuid
	})
}

// makeWritable lets whoever made a tree remove it.
func makeWritable(dir string) {
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(p, 0o755)
		}
		return nil
	})
}

// logTails shows the last lines of every node's log.
func (r *Runner) logTails() {
	for _, name := range r.s.Cluster.Nodes {
		raw, err := os.ReadFile(r.logFile(name))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
		r.opts.Log("%s:\n  %s", name, strings.Join(lines[max(0, len(lines)-15):], "\n  "))
	}
}
