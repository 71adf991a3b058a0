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
	for i := range r.plan.Workers {
		w := newWorker(r.c, i, r.trace)
		r.workers = append(r.workers, w)
		if err := w.open(ctx); err != nil {
			return err
		}
		if err := w.setup(ctx); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	if err := r.work(ctx); err != nil {
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

// work runs the workers and the faults side by side, until both have done
// enough: no fault meets an idle cluster.
func (r *run) work(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(r.workers)+1)
	enough := make(chan struct{})
	for i, w := range r.workers {
		wg.Go(func() {
			if errs[i] = w.run(ctx, r.plan.Operations/len(r.workers), enough); errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Go(func() {
		defer close(enough)
		if errs[len(r.workers)] = r.faults(ctx); errs[len(r.workers)] != nil {
			cancel()
		}
	})
	wg.Wait()
	for _, err := range errs { // the first that is not only a consequence
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return errors.Join(errs...)
}

// faults breaks things until there were enough crashes.
func (r *run) faults(ctx context.Context) error {
	for r.counts["crashes"] < r.plan.Crashes {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(r.rand.Int64N(int64(r.plan.Pause)))):
		}
		if err := r.fault(); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) fault() error {
	metas, stores := r.c.cfg.Metas, len(r.c.nodes)-r.c.cfg.Metas
	switch pick := r.rand.IntN(100); {
	case pick < 34:
		return r.bounce("storage crash", metas+r.rand.IntN(stores))
	case pick < 52:
		return r.bounce("meta crash", r.rand.IntN(metas))
	case pick < 62:
		return r.bounce("two storage crashes", metas+r.rand.IntN(stores), metas+r.rand.IntN(stores))
	case pick < 70:
		return r.bounce("meta and storage crash", r.rand.IntN(metas), metas+r.rand.IntN(stores))
	case pick < 76:
		r.counts["power loss of all"]++
		r.counts["crashes"] += len(r.c.Up())
		r.trace("fault: power loss of all")
		r.c.CrashAll()
		r.rest(5 * time.Second)
		return r.c.StartAll()
	case pick < 84:
		i := metas + r.rand.IntN(stores)
		r.counts["store without metas"]++
		r.trace("fault: %s and the meta nodes do not reach each other", r.c.nodes[i].name)
		for m := range metas {
			r.c.net.Block(r.c.nodes[i].name, r.c.nodes[m].name)
			r.c.net.Block(r.c.nodes[m].name, r.c.nodes[i].name)
		}
		r.rest(15 * time.Second)
		r.c.net.Heal()
	case pick < 92:
		i := r.rand.IntN(len(r.c.nodes))
		r.counts["partition"]++
		r.trace("fault: %s is cut off", r.c.nodes[i].name)
		r.c.net.Isolate(r.c.nodes[i].name)
		r.rest(15 * time.Second)
		r.c.net.Heal()
	default:
		a, b := r.rand.IntN(len(r.c.nodes)), r.rand.IntN(len(r.c.nodes))
		r.counts["one-way cut"]++
		r.trace("fault: %s does not reach %s", r.c.nodes[a].name, r.c.nodes[b].name)
		r.c.net.Block(r.c.nodes[a].name, r.c.nodes[b].name)
		r.rest(10 * time.Second)
		r.c.net.Heal()
	}
	return nil
}

// bounce crashes nodes at the same moment and starts them a while later.
func (r *run) bounce(what string, nodes ...int) error {
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)
	r.counts[what]++
	for _, i := range nodes {
		r.trace("fault: %s of %s", what, r.c.nodes[i].name)
		r.counts["crashes"]++
		r.c.Crash(i)
	}
	r.rest(12 * time.Second)
	for _, i := range nodes {
		if err := r.c.Start(i); err != nil {
			return err
		}
	}
	return nil
}

// rest waits for up to d of virtual time.
func (r *run) rest(d time.Duration) { time.Sleep(time.Duration(r.rand.Int64N(int64(d)))) }

// heal brings every node back and waits until the cluster is whole.
func (r *run) heal(ctx context.Context) error {
	r.trace("heal")
	r.c.net.Heal()
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
	if err := r.checkBlocks(ctx); err != nil {
		return err
	}
	return r.checkReplicas()
}

func (r *run) verifyFiles(ctx context.Context) error {
	for _, w := range r.workers {
		for _, path := range slices.Sorted(maps.Keys(w.files)) {
			r.counts["files verified"]++
			if err := w.check(ctx, path, w.files[path]); err != nil {
				return fmt.Errorf("%s: at the end: %w", w.name, err)
			}
		}
		if err := w.list(ctx); err != nil {
			return fmt.Errorf("%s: at the end: %w", w.name, err)
		}
	}
	return nil
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
