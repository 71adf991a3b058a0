package chaos

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// transfer runs a put or get with its faults beside it.
func (r *Runner) transfer(ctx context.Context, verb string, t *Transfer, faults []Fault, run func(context.Context, *Transfer) (int64, error)) (string, error) {
	what := fmt.Sprintf("%s %s %s", verb, t.Tree, t.Path)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	faulty := make(chan error, 1)
	go func() { faulty <- r.inject(ctx, faults, ended) }()
	begun := time.Now()
	size, err := run(ctx, t)
	took := time.Since(begun).Seconds()
	close(ended)
	if ferr := <-faulty; err == nil {
		err = ferr
	}
	return fmt.Sprintf("%s: %.1f MB, %.1f MB/s", what, float64(size)/1e6, float64(size)/1e6/took), err
}

// inject carries the faults out one after the other, each once the cluster has
// grown by its number of inodes, or, when the transfer has ended before, then.
func (r *Runner) inject(ctx context.Context, faults []Fault, ended <-chan struct{}) error {
	if len(faults) == 0 {
		return nil
	}
	base := -1
	var killed []string
	for _, f := range faults {
		for {
			st, err := r.status(ctx)
			if err == nil && base < 0 {
				base = st.inodes()
			}
			if err == nil && st.inodes() >= base+f.After {
				break
			}
			select {
			case <-ended:
				return fmt.Errorf("the transfer ended before the cluster had %d more inodes: the fault %v %v never happened", f.After, f.Kill, f.Start)
			case <-time.After(200 * time.Millisecond):
			}
		}
		r.opts.Log("  fault: kill %v start %v", f.Kill, f.Start)
		before := r.running()
		if err := r.kill(ctx, f.Kill); err != nil {
			return err
		}
		for _, name := range before {
			if !r.isRunning(name) {
				killed = append(killed, name)
			}
		}
		for _, name := range f.Start {
			names := []string{name}
			if name == "killed" {
				names, killed = killed, nil
			}
			if err := r.start(names); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Runner) running() []string {
	var out []string
	for _, name := range r.s.Cluster.Nodes {
		if r.isRunning(name) {
			out = append(out, name)
		}
	}
	return out
}

func (r *Runner) isRunning(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.procs[name] != nil
}

// put stores a tree. As an ordinary user the files that he cannot read are
// reported, and everything else is stored.
func (r *Runner) put(ctx context.Context, t *Transfer) (int64, error) {
	dir, err := r.tree(ctx, t.Tree)
	if err != nil {
		return 0, err
	}
	res, err := r.dfsd(ctx, true, "put", "-r", dir, t.Path)
	if err != nil {
		return 0, err
	}
	want := 0
	if len(r.unreadable(dir)) > 0 {
		want = 1
	}
	if res.code != want {
		return 0, fmt.Errorf("exit code %d, want %d: %s", res.code, want, tail(res.err))
	}
	return treeSize(dir), nil
}

// get reads a tree back into an empty directory and compares.
func (r *Runner) get(ctx context.Context, t *Transfer) (int64, error) {
	dir, err := r.tree(ctx, t.Tree)
	if err != nil {
		return 0, err
	}
	back, err := os.MkdirTemp(r.opts.Dir, "back-")
	if err != nil {
		return 0, err
	}
	if r.opts.UID >= 0 {
		if err := os.Chown(back, r.opts.UID, r.opts.GID); err != nil {
			return 0, err
		}
	}
	to := filepath.Join(back, "tree")
	res, err := r.dfsd(ctx, true, "get", "-r", t.Path, to)
	if err != nil {
		return 0, err
	}
	if res.code != 0 {
		return 0, fmt.Errorf("exit code %d: %s", res.code, tail(res.err))
	}
	files, size, err := compare(dir, to, r.unreadable(dir))
	if err != nil {
		return 0, err
	}
	r.opts.Log("  %d entries are equal", files)
	makeWritable(back)
	return size, os.RemoveAll(back)
}

// unreadable lists what an ordinary user cannot read, relative to dir.
func (r *Runner) unreadable(dir string) map[string]bool {
	out := map[string]bool{}
	if r.opts.UID < 0 && os.Geteuid() == 0 {
		return out
	}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o400 == 0 {
			rel, _ := filepath.Rel(dir, p)
			out[rel] = true
		}
		return nil
	})
	return out
}

func treeSize(dir string) int64 {
	var n int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}

// tail is the end of a long output.
func tail(s string) string {
	const most = 4000
	if len(s) > most {
		return "…" + s[len(s)-most:]
	}
	return s
}
