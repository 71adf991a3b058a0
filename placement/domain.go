package placement

import (
	"math"
	"slices"
)

// domain is a node of the tree of failure domains.
//
//	root ─ zone ─ rack ─ host ─ stores
//
// Every leaf path has all levels; a label that is missing is the empty one.
type domain struct {
	name     string
	level    int // 0 root, 1 the widest labelled level, …, levels the host
	children []*domain
	stores   []int // indexes; of a host only
	index    int   // in tree.domains
}

// tree is the failure domains of a set of stores, with what one group may take
// of each.
type tree struct {
	domains []*domain // parents before children
	levels  int       // of domains, without the root
	paths   [][]int   // store → its domains' indexes, widest first, without the root
	limits  []int     // level → the most members of one group in one domain; [0] is the width
}

// newTree builds the tree, and finds the least limits under which width stores
// can be picked. The host comes first: no other domain is worth two members on
// one machine. Then the widest, down to the narrowest. REQUIRES: width is at
// most the number of stores.
func newTree(stores []Store, width int) *tree {
	t := &tree{paths: make([][]int, len(stores)), domains: []*domain{{name: "all"}}}
	for _, s := range stores {
		t.levels = max(t.levels, len(s.Domains))
	}
	t.levels = max(t.levels, 1)
	byHost := map[string][]string{}
	for i, s := range stores {
		labels := make([]string, t.levels) // widest first
		for j, label := range s.Domains {
			labels[t.levels-1-j] = label
		}
		host := labels[t.levels-1]
		if byHost[host] == nil {
			byHost[host] = labels
		}
		t.insert(i, byHost[host])
	}
	t.limits = slices.Repeat([]int{width}, t.levels+1)
	t.tighten(t.levels, stores, width)
	for level := 1; level < t.levels; level++ {
		t.tighten(level, stores, width)
	}
	return t
}

func (t *tree) insert(store int, labels []string) {
	at := t.domains[0]
	for level, label := range labels {
		i := slices.IndexFunc(at.children, func(d *domain) bool { return d.name == label })
		if i < 0 {
			i = len(at.children)
			at.children = append(at.children, &domain{name: label, level: level + 1, index: len(t.domains)})
			t.domains = append(t.domains, at.children[i])
		}
		at = at.children[i]
		t.paths[store] = append(t.paths[store], at.index)
	}
	at.stores = append(at.stores, store)
}

// tighten finds the least limit of a level that still admits width stores.
func (t *tree) tighten(level int, stores []Store, width int) {
	for limit := 1; limit <= width; limit++ {
		t.limits[level] = limit
		if t.load(t.domains[0], stores, 1, math.Inf(1)) >= float64(width) {
			return
		}
	}
}

// demand is how many slots the stores of a domain take if each takes up to
// rate slots per unit of weight, within the limits of the domains inside.
func (t *tree) demand(d *domain, stores []Store, groups, rate float64) float64 {
	var sum float64
	for _, c := range d.children {
		sum += t.load(c, stores, groups, rate)
	}
	for _, s := range d.stores {
		sum += min(rate*float64(stores[s].Weight), groups)
	}
	return sum
}

// load is demand within the domain's own limit.
func (t *tree) load(d *domain, stores []Store, groups, rate float64) float64 {
	return min(t.demand(d, stores, groups, rate), groups*float64(t.limits[d.level]))
}

// quotas splits all slots over the stores, in proportion to their weights as
// far as the limits allow: where a domain is full, its stores share what it can
// take and all others take more.
func (t *tree) quotas(stores []Store, groups float64) []float64 {
	out := make([]float64, len(stores))
	t.pour(t.domains[0], stores, groups, math.Inf(1), out)
	return out
}

// pour fills a domain at the given rate, or at the lower one at which it is
// just full.
func (t *tree) pour(d *domain, stores []Store, groups, rate float64, out []float64) {
	full := groups * float64(t.limits[d.level])
	if t.demand(d, stores, groups, rate) >= full {
		rate = t.rateOf(d, stores, groups, full)
	}
	for _, c := range d.children {
		t.pour(c, stores, groups, rate, out)
	}
	for _, s := range d.stores {
		out[s] = min(rate*float64(stores[s].Weight), groups)
	}
}

// rateOf finds by bisection the least rate at which the demand of a domain is
// want. REQUIRES: there is one.
func (t *tree) rateOf(d *domain, stores []Store, groups, want float64) float64 {
	low, high := 0.0, groups // every weight is 1 at least, so all stores are full at this rate
	for {
		mid := (low + high) / 2
		if mid <= low || mid >= high {
			return high
		}
		if t.demand(d, stores, groups, mid) < want {
			low = mid
		} else {
			high = mid
		}
	}
}
