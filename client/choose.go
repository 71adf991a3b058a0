package client

import (
	"fmt"

	"dfsd/dfs"
)

// choosePG picks the placement group for a new block of a class: at random, the
// less busy of two. Groups of which no member is to be avoided come first, and
// among them those whose acting set is whole; it returns nil when no group of
// the class takes writes, and clean false when a member of the choice is to be
// avoided. Less is asked which of two groups is less busy; random gives numbers.
func choosePG(m *dfs.Map, class dfs.Class, avoid map[dfs.StoreID]bool, random func() uint64, less func(a, b *dfs.PG) bool) (pg *dfs.PG, clean bool) {
	const ranks = 3
	var found [ranks][]*dfs.PG // best first
	for _, p := range m.PGs {
		if p.Class == class && takesWrites(m, p) {
			r := rankPG(p, avoid)
			found[r] = append(found[r], p)
		}
	}
	for r, pgs := range found {
		if n := uint64(len(pgs)); n > 0 {
			a, b := pgs[random()%n], pgs[random()%n]
			if less(b, a) {
				a = b
			}
			return a, r < ranks-1
		}
	}
	return nil, false
}

// takesWrites reports whether the members accept blocks under the group's active
// epoch: one that has seen a later proposal refuses them, and one that is down
// answers nothing, while every member must.
func takesWrites(m *dfs.Map, p *dfs.PG) bool {
	if !p.Writable() || p.Proposed.Epoch > p.Active.Epoch {
		return false
	}
	for _, id := range p.Active.Stores {
		if s := m.Store(id); id != 0 && (s == nil || s.State != dfs.StoreUp) {
			return false
		}
	}
	return true
}

func rankPG(p *dfs.PG, avoid map[dfs.StoreID]bool) int {
	for _, s := range p.Active.Stores {
		if avoid[s] {
			return 2
		}
	}
	if p.Active.Size() < p.Class.Width() {
		return 1
	}
	return 0
}

// noPG says why no placement group of a class takes writes, and what helps.
func noPG(m *dfs.Map, class dfs.Class) error {
	up, hosts, groups := 0, map[dfs.NodeID]bool{}, 0
	for _, s := range m.Stores {
		if s.State == dfs.StoreUp {
			up++
			hosts[s.Node] = true
		}
	}
	for _, p := range m.PGs {
		if p.Class == class {
			groups++
		}
	}
	what := fmt.Sprintf("storage class %v needs %d stores (at least %d to take writes), and %d are up, on %d nodes",
		class, class.Width(), class.MinActing(), up, len(hosts))
	if groups == 0 {
		what = fmt.Sprintf("there is no placement group of storage class %v; %s", class, what)
	}
	return dfs.Errorf(dfs.Unavailable, "choose placement group",
		"%s: start more storage nodes, or choose another class (default_class in the meta nodes' configuration, now %v, or the directory's policy)", what, m.DefaultClass)
}

// readOrder lists the stores to ask for a block, best first, and how many of
// them are complete: these decide together whether it exists. After them come
// stores that may hold a copy all the same.
func (c *Client) readOrder(m *dfs.Map, p *dfs.PG) (stores []dfs.StoreID, complete int) {
	stores = p.Complete()
	complete = len(stores)
	c.sortForReading(m, stores)
	var others []dfs.StoreID
	for _, s := range p.Active.Stores {
		if s != 0 && !p.IsComplete(s) {
			others = append(others, s)
		}
	}
	for _, mem := range p.Members {
		if !p.Active.Has(mem.Store) {
			others = append(others, mem.Store)
		}
	}
	c.sortForReading(m, others)
	return append(stores, others...), complete
}

// sortForReading puts stores that are up first, then the healthier; equals are
// shuffled, so that readers spread.
func (c *Client) sortForReading(m *dfs.Map, stores []dfs.StoreID) {
	for i := len(stores) - 1; i > 0; i-- {
		j := int(c.opts.Rand() % uint64(i+1))
		stores[i], stores[j] = stores[j], stores[i]
	}
	c.health.order(stores)
	down := func(id dfs.StoreID) bool {
		s := m.Store(id)
		return s == nil || s.State != dfs.StoreUp
	}
	up := 0
	for i, s := range stores { // stable: what is up moves forward, the rest keeps its order
		if !down(s) {
			copy(stores[up+1:i+1], stores[up:i])
			stores[up] = s
			up++
		}
	}
}
