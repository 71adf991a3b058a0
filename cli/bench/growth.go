package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"sync/atomic"
	"time"

	"dfsd/client"
)

const (
	// growthWorkers is how many callers the figures of growth have.
	growthWorkers = 64

	// fullShare is which part of Options.Inodes the full directory has entries: a
	// million of ten.
	fullShare = 10

	// fillers is how many callers fill it, through as many clients as metaWorkers asks for.
	fillers = 256

	// fewEntries is how many a directory has beside which the full one is listed.
	fewEntries = 1000
)

// growthFigures are of what should not depend on how much there is: the rate of a
// group beside that of one alone, and of a directory with many entries beside an
// empty one.
func growthFigures() (out []figure) {
	for _, n := range []int{2, 4, 8} {
		name := fmt.Sprintf("meta/create-%dg-w%d", n, growthWorkers)
		out = append(out, figure{name: name, of: "create-1g", open: func(ctx context.Context, e *env) (*pair, error) {
			return openGroups(ctx, e, name, n)
		}})
	}
	add := func(name, of string, workers int, fn func(*fullDir) (work, base func(context.Context, int) error)) {
		name = fmt.Sprintf("meta-large/dir-%s-w%d", name, workers)
		out = append(out, figure{name: name, of: of, open: func(ctx context.Context, e *env) (*pair, error) {
			return openFull(ctx, e, workers, fn)
		}})
	}
	add("create", "empty-dir", growthWorkers, (*fullDir).creates)
	add("lookup", "small-dir", growthWorkers, (*fullDir).lookups)
	add("list", "small-dir", 1, (*fullDir).lists)
	return out
}

// openGroups measures creates in a cluster of some namespace groups beside those in
// one of a single group. Both are there all the time, and one has work.
func openGroups(ctx context.Context, e *env, name string, groups int) (_ *pair, err error) {
	var rigs []*metaRig
	closeAll := func() (err error) {
		for _, r := range rigs {
			r.closeClients()
			err = errors.Join(err, r.cluster.stop(), os.RemoveAll(r.cluster.dir))
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()
	for _, n := range []int{groups, 1} {
		sh := metaCluster
		sh.name, sh.settings = fmt.Sprintf("%s-%d", name, n), fmt.Sprintf("groups: %d\n", n)
		r := &metaRig{name: name, workers: growthWorkers, spread: true}
		if r.cluster, err = e.newCluster(ctx, sh); err != nil {
			return nil, err
		}
		rigs = append(rigs, r)
		if err := r.furnish(ctx, e); err != nil {
			return nil, err
		}
	}
	creates := func(r *metaRig) func(context.Context, time.Duration) (sample, error) {
		return func(ctx context.Context, d time.Duration) (sample, error) { return loop(ctx, d, r.workers, r.create) }
	}
	return &pair{work: creates(rigs[0]), base: creates(rigs[1]), cpu: rigs[0].cluster.cpu, close: closeAll}, nil
}

// fullDir is a directory with many entries, in the cluster for metadata.
type fullDir struct {
	cluster *cluster
	full    client.Inode
	entries uint64        // that it began with
	made    atomic.Uint64 // since

	above string       // what all of these directories are in
	spare client.Inode // the empty one
	few   client.Inode // the small one, of fewEntries
}

// fullDirectory makes the directory once for all figures. It is gone with its cluster.
func (e *env) fullDirectory(ctx context.Context) (*fullDir, error) {
	c, err := e.cluster(ctx, metaCluster)
	if err != nil {
		return nil, err
	}
	if e.full != nil && e.full.cluster == c {
		return e.full, nil
	}
	f := &fullDir{cluster: c, entries: uint64(e.opts.Inodes / fullShare), above: "/large"}
	if err := f.fill(ctx, e); err != nil {
		return nil, err
	}
	e.full = f
	return f, nil
}

func (f *fullDir) fill(ctx context.Context, e *env) error {
	var clients []*client.Client // of metaWorkers callers each
	for range fillers / metaWorkers {
		c, done, err := f.cluster.connectClient(ctx, e, client.Options{})
		if err != nil {
			return err
		}
		defer done()
		clients = append(clients, c)
	}
	a, err := clients[0].MkdirAll(ctx, path.Join(f.above, "full"), 0o755)
	if err != nil {
		return err
	}
	begun, stop, told := time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		f.tell(e, stop)
	}()
	_, err = loop(ctx, fillTime, fillers, func(ctx context.Context, worker int) error {
		n := f.made.Add(1)
		if n > f.entries {
			return errEnough
		}
		_, err := clients[worker/metaWorkers].Inode(a.Ino).PutFile(ctx, fileName(n), client.PutOptions{Mode: 0o644}, nil)
		return err
	})
	close(stop)
	<-told
	if err != nil {
		return err
	}
	if f.made.Load() < f.entries {
		return fmt.Errorf("%d of %d entries made in %v", f.made.Load(), f.entries, time.Since(begun))
	}
	f.made.Store(0)
	fmt.Fprintf(e.opts.Log, "bench:   a directory of %d entries after %v\n", f.entries, time.Since(begun).Round(time.Second))
	f.full = f.cluster.client.Inode(a.Ino)
	few, err := f.cluster.client.Mkdir(ctx, path.Join(f.above, "few"), 0o755)
	if err != nil {
		return err
	}
	f.few = f.cluster.client.Inode(few.Ino)
	for i := range uint64(fewEntries) {
		if _, err := f.few.PutFile(ctx, fileName(i+1), client.PutOptions{Mode: 0o644}, nil); err != nil {
			return err
		}
	}
	return nil
}

// tell says now and then how far the directory is.
func (f *fullDir) tell(e *env, stop <-chan struct{}) {
	t := time.NewTicker(10 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			fmt.Fprintf(e.opts.Log, "bench:   %d of %d entries\n", f.made.Load(), f.entries)
		case <-stop:
			return
		}
	}
}

// openFull measures an operation in the full directory beside another one, of
// which the empty one is made anew before each round.
func openFull(ctx context.Context, e *env, workers int, fn func(*fullDir) (work, base func(context.Context, int) error)) (*pair, error) {
	f, err := e.fullDirectory(ctx)
	if err != nil {
		return nil, err
	}
	work, base := fn(f)
	rounds := func(op func(context.Context, int) error) func(context.Context, time.Duration) (sample, error) {
		return func(ctx context.Context, d time.Duration) (sample, error) { return loop(ctx, d, workers, op) }
	}
	spares := 0
	return &pair{
		work: rounds(work), base: rounds(base), cpu: f.cluster.cpu, close: func() error { return nil },
		settle: func(ctx context.Context) error {
			spares++
			a, err := f.cluster.client.MkdirAll(ctx, path.Join(f.above, fmt.Sprintf("empty-%d-%d", f.made.Load(), spares)), 0o755)
			if err == nil {
				f.spare = f.cluster.client.Inode(a.Ino)
			}
			return err
		},
	}, nil
}

// creates adds entries.
func (f *fullDir) creates() (work, base func(context.Context, int) error) {
	in := func(dir func() client.Inode) func(context.Context, int) error {
		return func(ctx context.Context, _ int) error {
			_, err := dir().PutFile(ctx, fileName(f.entries+f.made.Add(1)), client.PutOptions{Mode: 0o644}, nil)
			return err
		}
	}
	return in(func() client.Inode { return f.full }), in(func() client.Inode { return f.spare })
}

// lookups asks for names that exist.
func (f *fullDir) lookups() (work, base func(context.Context, int) error) {
	return func(ctx context.Context, _ int) error {
			_, err := f.full.Lookup(ctx, fileName(1+rand.Uint64N(f.entries)))
			return err
		}, func(ctx context.Context, _ int) error {
			_, err := f.few.Lookup(ctx, fileName(1+rand.Uint64N(fewEntries)))
			return err
		}
}

// lists reads as many entries as the small directory has: from anywhere in the full
// one, and from the beginning of the small one.
func (f *fullDir) lists() (work, base func(context.Context, int) error) {
	return func(ctx context.Context, _ int) error {
			return list(ctx, f.full, fileName(1+rand.Uint64N(f.entries/2)))
		}, func(ctx context.Context, _ int) error {
			return list(ctx, f.few, "")
		}
}

func list(ctx context.Context, dir client.Inode, after string) error {
	left := fewEntries
	for _, err := range dir.List(ctx, after, false) {
		if err != nil {
			return err
		}
		if left--; left == 0 {
			break
		}
	}
	return nil
}
