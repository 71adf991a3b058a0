package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"dfsd/dfs"
)

// Plan is what one run does.
type Plan struct {
	Workers    int           // client processes; default 4
	Operations int           // of all workers together; default 2,000
	Crashes    int           // at least; default 20
	Pause      time.Duration // between faults, at most; default 4 s, virtual
	Trace      func(format string, args ...any)
}

func (p *Plan) setDefaults() {
	if p.Workers == 0 {
		p.Workers = 4
	}
	if p.Operations == 0 {
		p.Operations = 2000
	}
	if p.Crashes == 0 {
		p.Crashes = 20
	}
	if p.Pause == 0 {
		p.Pause = 4 * time.Second
	}
	if p.Trace == nil {
		p.Trace = func(string, ...any) {}
	}
}

// maxHeal is how long a healed cluster may take to be full again: a share of
// the simulated data moves in seconds.
const maxHeal = 20 * time.Minute

// Run runs a workload under faults in a new cluster, heals it, and checks it.
// The first broken promise is returned as an error. It must be called inside a
// bubble.
func Run(ctx context.Context, cfg Config, plan Plan) (Counts, error) {
	plan.setDefaults()
	begun := time.Now()
	trace := func(format string, args ...any) {
		plan.Trace("%9.3f "+format, append([]any{time.Since(begun).Seconds()}, args...)...)
	}
	c, err := New(cfg)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r := &run{c: c, plan: plan, trace: trace, rand: rand.New(rand.NewPCG(cfg.Seed, 2)), counts: Counts{}}
	err = r.all(ctx)
	for _, w := range r.workers {
		for k, n := range w.counts {
			r.counts[k] += n
		}
		if w.peer != nil {
			w.peer.Close()
		}
	}
	r.counts["virtual seconds"] += int(time.Since(begun).Seconds())
	return r.counts, err
}

type run struct {
	c       *Cluster
	plan    Plan
	trace   func(string, ...any)
	rand    *rand.Rand
	workers []*worker
	counts  Counts
}

func (r *run) all(ctx context.Context) error {
	if err := r.workload(ctx); err != nil {
		return err
	}
	if err := r.heal(ctx); err != nil {
		return err
	}
	if err := r.verify(ctx); err != nil {
		return err
	}
	return r.loseCopies(ctx)
}

// maxWork is how long a workload may take under faults: several times what it
// does while the cluster comes back after each.
const maxWork = 40 * time.Minute

func (r *run) workload(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, maxWork, fmt.Errorf("the cluster does not come back: the workload is not done after %v", maxWork))
	defer cancel()
	for i := range r.plan.Workers {
		w := newWorker(r.c, i, r.trace)
		r.workers = append(r.workers, w)
		err := w.open(ctx)
		if err == nil {
			err = w.setup(ctx)
		}
		if err != nil {
			return errors.Join(context.Cause(ctx), fmt.Errorf("%s: %w", w.name, err))
		}
	}
	return r.work(ctx)
}

// work runs the workers and the faults side by side, until both have done
// enough: no fault meets an idle cluster. It returns the first error; the others
// are its consequences.
func (r *run) work(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	enough := make(chan struct{})
	for _, w := range r.workers {
		wg.Go(func() {
			if err := w.run(ctx, r.plan.Operations/len(r.workers), enough); err != nil {
				cancel(err)
			}
		})
	}
	wg.Go(func() {
		defer close(enough)
		if err := r.faults(ctx); err != nil {
			cancel(err)
		}
	})
	wg.Wait()
	return context.Cause(ctx)
}

// heal brings every node back and waits until the cluster is whole.
func (r *run) heal(ctx context.Context) error {
	r.trace("heal")
	r.c.net.Heal()
	for i := range r.c.nodes {
		r.slow(i, 0)
	}
	if err := r.c.StartAll(); err != nil {
		return err
	}
	return r.waitFull(ctx)
}

func (r *run) waitFull(ctx context.Context) error {
	begun := time.Now()
	why := "no status"
	for time.Since(begun) < maxHeal {
		st, err := r.workers[0].peer.Status(ctx)
		if err == nil && st.Redundancy.AllFull && len(st.Problems) == 0 {
			r.trace("full after %v", time.Since(begun))
			return nil
		}
		why = fmt.Sprint(err)
		if err == nil {
			why = fmt.Sprintf("redundancy %v, problems %s", st.Redundancy, strings.Join(st.Problems, "; "))
		}
		time.Sleep(time.Second)
	}
	return fmt.Errorf("repair does not converge: not full after %v: %s\n%s", maxHeal, why, r.describeMap())
}

// describeMap draws the placement groups that are not full.
func (r *run) describeMap() string {
	var b strings.Builder
	for _, i := range r.c.Up() {
		n := r.c.nodes[i].node
		if n.Meta() == nil || n.Meta().Map() == nil {
			continue
		}
		m := n.Meta().Map()
		fmt.Fprintf(&b, "map of %s, epoch %d\n", r.c.nodes[i].name, m.Epoch)
		for _, s := range m.Stores {
			fmt.Fprintf(&b, "  store %v of node %v %v %v\n", s.ID, s.Node, s.State, s.Incarnation)
		}
		for _, p := range m.PGs {
			if !p.Full() {
				fmt.Fprintf(&b, "  %v target %v active %v proposed %v members %v\n", p.ID, p.Target, p.Active, p.Proposed, p.Members)
			}
		}
		break
	}
	return b.String()
}

// verify checks everything that was promised, on a whole cluster.
func (r *run) verify(ctx context.Context) error {
	if err := r.verifyFiles(ctx); err != nil {
		return err
	}
	time.Sleep(3 * time.Minute) // history is trimmed
	if err := r.waitReleased(); err != nil {
		return err
	}
	if err := r.waitFull(ctx); err != nil {
		return err
	}
	if err := r.waitDecided(); err != nil {
		return err
	}
	if err := r.checkBlocks(ctx); err != nil {
		return err
	}
	return r.checkReplicas()
}

// verifyFiles reads everything: the cluster is well, so there must be an answer.
func (r *run) verifyFiles(ctx context.Context) error {
	for _, w := range r.workers {
		for _, path := range slices.Sorted(maps.Keys(w.files)) {
			r.counts["files verified"]++
			if err := insist(func() error { return w.check(ctx, path, w.files[path]) }); err != nil {
				return fmt.Errorf("%s: at the end: %w", w.name, err)
			}
		}
		if err := insist(func() error { return w.list(ctx) }); err != nil {
			return fmt.Errorf("%s: at the end: %w", w.name, err)
		}
	}
	return nil
}

// maxSilence is how long a cluster that is well may leave a question without
// an answer: clients still know nodes that are gone.
const maxSilence = time.Minute

// insist asks until there is an answer.
func insist(ask func() error) error {
	begun := time.Now()
	for {
		err := ask()
		if !errors.Is(err, errNoAnswer) || time.Since(begun) > maxSilence {
			return err
		}
		time.Sleep(time.Second)
	}
}

// loseCopies ends all stores but one copy's worth for good and reads
// everything once more: what is called full must survive that.
func (r *run) loseCopies(ctx context.Context) error {
	var storage []int
	for i := range r.c.nodes {
		if r.c.nodes[i].roles.Has(dfs.RoleStorage) {
			storage = append(storage, i)
		}
	}
	r.rand.Shuffle(len(storage), func(i, j int) { storage[i], storage[j] = storage[j], storage[i] })
	for _, i := range storage[:r.c.cfg.Class.Width()-1] {
		r.trace("%s is lost for good", r.c.nodes[i].name)
		r.counts["lost for good"]++
		r.c.Crash(i)
	}
	time.Sleep(10 * time.Second)
	return r.verifyFiles(ctx)
}

func (c Counts) add(other Counts) {
	for k, n := range other {
		c[k] += n
	}
}

// String lists the counts by name.
func (c Counts) String() string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(c)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, c[k]))
	}
	return strings.Join(parts, ", ")
}
