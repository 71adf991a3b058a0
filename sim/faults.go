package sim

import (
	"context"
	"slices"
	"time"

	"dfsd/dfs"
)

// kind is one way to break things.
type kind struct {
	name   string
	weight int
	do     func() error
}

func (r *run) kinds() []kind {
	return []kind{
		{"storage crash", 26, func() error { return r.bounce(r.stores(1)...) }},
		{"meta crash", 14, func() error { return r.bounce(r.metas(1)...) }},
		{"two storage crashes", 8, func() error { return r.bounce(r.stores(2)...) }},
		{"meta and storage crash", 6, func() error { return r.bounce(append(r.metas(1), r.stores(1)...)...) }},
		{"meta and two storage crashes", 5, func() error { return r.bounce(append(r.metas(1), r.stores(2)...)...) }},
		{"power loss of all", 6, r.powerLoss},
		{"crash after a refill", 10, r.crashAfterRefill},
		{"slow disk", 4, r.slowDisk},
		{"store without metas", 6, r.storeWithoutMetas},
		{"clients without stores", 5, func() error { r.cutClients(); return r.mend(15 * time.Second) }},
		{"partition", 5, r.partition},
		{"one-way cut", 5, func() error { r.cutOneWay(); return r.mend(10 * time.Second) }},
		{"cut between metas", 5, r.cutMetas},
	}
}

// faults breaks things until there were enough crashes.
func (r *run) faults(ctx context.Context) error {
	kinds, total := r.kinds(), 0
	for _, k := range kinds {
		total += k.weight
	}
	for r.counts["crashes"] < r.plan.Crashes {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(r.rand.Int64N(int64(r.plan.Pause)))):
		}
		pick := r.rand.IntN(total)
		for _, k := range kinds {
			if pick -= k.weight; pick < 0 {
				r.counts[k.name]++
				r.trace("fault: %s", k.name)
				if err := k.do(); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// metas picks n meta nodes.
func (r *run) metas(n int) []int { return r.rand.Perm(r.c.cfg.Metas)[:n] }

// stores picks n storage nodes.
func (r *run) stores(n int) []int {
	out := r.rand.Perm(len(r.c.nodes) - r.c.cfg.Metas)[:n]
	for i := range out {
		out[i] += r.c.cfg.Metas
	}
	return out
}

// crash ends nodes at the same moment.
func (r *run) crash(nodes ...int) {
	for _, i := range nodes {
		if r.c.nodes[i].node != nil {
			r.counts["crashes"]++
			r.trace("crash of %s", r.c.nodes[i].name)
		}
	}
	r.c.Crash(nodes...)
}

func (r *run) start(nodes ...int) error {
	for _, i := range nodes {
		r.trace("start of %s", r.c.nodes[i].name)
		if err := r.c.Start(i); err != nil {
			return err
		}
	}
	return nil
}

// bounce crashes nodes and starts them a while later, now and then while the
// network does not do what it should, or with disks that are slow from then on.
func (r *run) bounce(nodes ...int) error {
	sick := false
	switch r.rand.IntN(6) {
	case 0:
		r.counts["crash with a cut"]++
		r.cutOneWay()
	case 1:
		r.counts["crash with a cut"]++
		r.cutClients()
	case 2:
		r.counts["crash before a slow disk"]++
		sick = true
	}
	r.crash(nodes...)
	r.rest(12 * time.Second)
	if err := r.start(nodes...); err != nil {
		return err
	}
	for _, i := range nodes {
		if sick { // until the next crash, or the end
			r.slow(i, sickSync)
		}
	}
	return r.mend(2 * time.Second)
}

func (r *run) powerLoss() error {
	r.crash(r.c.Up()...)
	r.rest(5 * time.Second)
	return r.c.StartAll()
}

// maxPromise is how long a store that has come back may take until one of its
// refills is counted.
const maxPromise = 15 * time.Second

// crashAfterRefill crashes a store for long enough to miss something, and
// again, its disk being slow, at the moment when it counts as a copy once more:
// what was promised must be on the disk.
func (r *run) crashAfterRefill() error {
	victim := r.stores(1)
	r.crash(victim...)
	time.Sleep(4 * time.Second)
	r.rest(8 * time.Second)
	if err := r.start(victim...); err != nil {
		return err
	}
	r.slow(victim[0], sickSync)
	id := r.storeOf(victim[0])
	before := completeGroups(r.c.newestMap(), id)
	for begun := time.Now(); time.Since(begun) < maxPromise; time.Sleep(time.Millisecond) {
		now := completeGroups(r.c.newestMap(), id)
		if slices.ContainsFunc(now, func(pg dfs.PGID) bool { return !slices.Contains(before, pg) }) {
			r.counts["crash at a promise"]++
			return r.bounce(victim...)
		}
		before = now
	}
	r.slow(victim[0], 0)
	return nil
}

// storeOf is the number of a running node's only store.
func (r *run) storeOf(node int) dfs.StoreID {
	return r.c.nodes[node].node.Engines()[0].Identity().Store
}

// completeGroups are the placement groups of which a store is a complete member.
func completeGroups(m *dfs.Map, id dfs.StoreID) (out []dfs.PGID) {
	if m == nil {
		return nil
	}
	for _, pg := range m.PGs {
		if pg.IsComplete(id) {
			out = append(out, pg.ID)
		}
	}
	return out
}

// slow sets how long a node's data syncs take, at most; 0: as if it were well.
func (r *run) slow(node int, sync int64) { r.c.nodes[node].slow.Store(sync) }

func (r *run) slowDisk() error {
	victim := r.stores(1)[0]
	r.slow(victim, sickSync)
	r.rest(15 * time.Second)
	r.slow(victim, 0)
	return nil
}

// storeWithoutMetas cuts a store off from the meta nodes, but not from its
// peers and clients.
func (r *run) storeWithoutMetas() error {
	i := r.stores(1)[0]
	for m := range r.c.cfg.Metas {
		r.cut(r.c.nodes[i].name, r.c.nodes[m].name)
	}
	return r.mend(15 * time.Second)
}

func (r *run) partition() error {
	name := r.c.nodes[r.rand.IntN(len(r.c.nodes))].name
	r.trace("%s is cut off", name)
	r.c.net.Isolate(name)
	return r.mend(15 * time.Second)
}

func (r *run) cutOneWay() {
	a, b := r.c.nodes[r.rand.IntN(len(r.c.nodes))].name, r.c.nodes[r.rand.IntN(len(r.c.nodes))].name
	r.trace("%s does not reach %s", a, b)
	r.c.net.Block(a, b)
}

// cutMetas ends the traffic of one pair of meta nodes, or that in one direction,
// while both reach the third.
func (r *run) cutMetas() error {
	two := r.metas(2)
	a, b := r.c.nodes[two[0]].name, r.c.nodes[two[1]].name
	if r.rand.IntN(2) == 0 {
		r.counts["one-way cut between metas"]++
		r.trace("%s does not reach %s", a, b)
		r.c.net.Block(a, b)
	} else {
		r.cut(a, b)
	}
	return r.mend(20 * time.Second)
}

// cutClients cuts clients off from single stores that the meta nodes find up.
func (r *run) cutClients() {
	for _, client := range r.c.clientNames() {
		for _, i := range r.stores(1 + r.rand.IntN(2)) {
			r.cut(client, r.c.nodes[i].name)
		}
	}
}

// cut ends all traffic between two hosts.
func (r *run) cut(a, b string) {
	r.trace("%s and %s do not reach each other", a, b)
	r.c.net.Partition([]string{a}, []string{b})
}

// mend makes the network whole after up to d.
func (r *run) mend(d time.Duration) error {
	r.rest(d)
	r.c.net.Heal()
	return nil
}

// rest waits for up to d of virtual time.
func (r *run) rest(d time.Duration) { time.Sleep(time.Duration(r.rand.Int64N(int64(d)))) }
