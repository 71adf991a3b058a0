package placement

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"dfsd/dfs"
)

// shape makes a random cluster.
type shape struct {
	rng    *rand.Rand
	stores []Store
	next   dfs.StoreID
	flat   bool // one store a host, no other domain, weights alike
}

func (sh *shape) addHost() int {
	sh.next++
	host := fmt.Sprintf("h%d", sh.next)
	domains := []string{host}
	n := 1
	if !sh.flat {
		n = 1 + sh.rng.IntN(3)
		domains = append(domains, fmt.Sprintf("r%d", sh.rng.IntN(4)), fmt.Sprintf("z%d", sh.rng.IntN(3)))
	}
	for range n {
		sh.next++
		w := uint64(1000)
		if !sh.flat {
			w += uint64(sh.rng.IntN(2000))
		}
		sh.stores = append(sh.stores, Store{ID: sh.next, Weight: w, Domains: domains})
	}
	return n
}

// change adds or removes a few stores.
func (sh *shape) change() string {
	n := 1 + sh.rng.IntN(3)
	if sh.rng.IntN(2) == 0 || len(sh.stores) < 6 {
		added := 0
		for range n {
			added += sh.addHost()
		}
		return fmt.Sprintf("add %d", added)
	}
	for range n {
		i := sh.rng.IntN(len(sh.stores))
		sh.stores = slices.Delete(sh.stores, i, i+1)
	}
	return fmt.Sprintf("remove %d", n)
}

// leastMoves is a lower bound of the members that must change: all beyond a
// store's cap must leave it, all below its floor must arrive.
func leastMoves(a *assignment, groups []Group) int {
	load := map[dfs.StoreID]int{}
	total := 0
	for _, g := range groups {
		for _, s := range g.Current {
			load[s]++
			total++
		}
	}
	excess, deficit := 0, 0
	for i, s := range a.stores {
		excess += max(0, load[s.ID]-a.caps[i])
		deficit += max(0, a.floors[i]-load[s.ID])
		delete(load, s.ID)
	}
	for _, n := range load {
		excess += n
	}
	return max(excess, deficit)
}

func check(t *testing.T, stores []Store, width int, groups []Group) Result {
	t.Helper()
	res := Assign(stores, width, groups)
	byID := map[dfs.StoreID]int{}
	sorted := slices.Clone(stores)
	slices.SortFunc(sorted, func(a, b Store) int { return int(a.ID) - int(b.ID) })
	for i, s := range sorted {
		byID[s.ID] = i
	}
	take := min(width, len(stores))
	a := newAssignment(sorted, take, groups)
	loads := make([]int, len(sorted))
	for g, target := range res.Targets {
		if len(target) != take || !slices.IsSorted(target) || len(slices.Compact(slices.Clone(target))) != take {
			t.Fatalf("group %d: target %v, want %d distinct sorted stores", g, target, take)
		}
		taken := make([]int, len(a.tree.domains))
		for _, id := range target {
			loads[byID[id]]++
			for i, d := range a.tree.paths[byID[id]] {
				if taken[d]++; taken[d] > a.tree.limits[i+1] {
					t.Fatalf("group %d: target %v has over %d members in a domain of level %d", g, target, a.tree.limits[i+1], i+1)
				}
			}
		}
	}
	for i, n := range loads {
		if n > a.caps[i] || n < a.floors[i] {
			t.Fatalf("store %v has %d slots, quota %.2f, want %d to %d", sorted[i].ID, n, a.quotas[i], a.floors[i], a.caps[i])
		}
	}
	return res
}

// TestAssignProperties walks random clusters through changes and checks the
// bounds of load, domains and moves after each.
func TestAssignProperties(t *testing.T) {
	for seed := range uint64(30) {
		sh := &shape{rng: rand.New(rand.NewPCG(seed, 1)), flat: seed%3 == 0}
		for range 4 + sh.rng.IntN(12) {
			sh.addHost()
		}
		width := 1 + sh.rng.IntN(4)
		groups := make([]Group, 64+sh.rng.IntN(192))
		for i := range groups {
			groups[i].ID = dfs.PGID(1000*seed + uint64(i) + 1)
		}
		for step := range 8 {
			what := "start"
			if step > 0 {
				what = sh.change()
			}
			res := check(t, sh.stores, width, groups)
			sorted := slices.Clone(sh.stores)
			slices.SortFunc(sorted, func(a, b Store) int { return int(a.ID) - int(b.ID) })
			least := leastMoves(newAssignment(sorted, min(width, len(sorted)), groups), groups)
			if step > 0 && float64(res.Moves) > 1.1*float64(least) {
				// The domains ask for more than the simple bound knows of, or we do too much.
				least = exactMoves(newAssignment(sorted, min(width, len(sorted)), groups), groups)
				if float64(res.Moves) > 1.1*float64(least) {
					t.Errorf("seed %d step %d, %s: %d stores, width %d, %d groups: %d moves, %d would do", seed, step, what, len(sh.stores), width, len(groups), res.Moves, least)
				}
			}
			for i := range groups {
				groups[i].Current = res.Targets[i]
			}
			if again := Assign(sh.stores, width, groups); again.Moves != 0 {
				t.Fatalf("seed %d step %d: a second Assign moves %d", seed, step, again.Moves)
			}
		}
	}
}

// TestAssignFlat holds equal stores, one a host, against plain arithmetic:
// nobody over 1.05 of the fair share (or the next whole slot), and a change of
// n stores moves at most 1.1 times what n stores hold.
func TestAssignFlat(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 2))
		sh := &shape{rng: rng, flat: true}
		const width, count = 3, 256
		for range 4 + rng.IntN(20) {
			sh.addHost()
		}
		groups := make([]Group, count)
		for i := range groups {
			groups[i].ID = dfs.PGID(i + 1)
		}
		for step := range 6 {
			before := len(sh.stores)
			lost := 0
			if step > 0 {
				old := slices.Clone(sh.stores)
				sh.change()
				for _, g := range groups {
					for _, s := range old {
						if !slices.ContainsFunc(sh.stores, func(n Store) bool { return n.ID == s.ID }) && slices.Contains(g.Current, s.ID) {
							lost++
						}
					}
				}
			}
			res := Assign(sh.stores, width, groups)
			fair := float64(width*count) / float64(len(sh.stores))
			if limit := max(1+Slack, math.Ceil(fair)/fair); res.Bound > limit+1e-9 {
				t.Errorf("seed %d step %d: bound %.3f with %d stores, want %.3f", seed, step, res.Bound, len(sh.stores), limit)
			}
			least := float64(lost)
			if added := len(sh.stores) - before; added > 0 {
				least = fair * float64(added)
			}
			if step > 0 && float64(res.Moves) > 1.1*least {
				t.Errorf("seed %d step %d: from %d to %d stores: %d moves, least %.1f", seed, step, before, len(sh.stores), res.Moves, least)
			}
			for i := range groups {
				groups[i].Current = res.Targets[i]
			}
		}
	}
}

// TestAssignOrder shows that the answer does not depend on the order of the
// stores, and that weightless and repeated stores change nothing.
func TestAssignOrder(t *testing.T) {
	sh := &shape{rng: rand.New(rand.NewPCG(7, 7))}
	for range 9 {
		sh.addHost()
	}
	groups := make([]Group, 128)
	for i := range groups {
		groups[i].ID = dfs.PGID(i + 1)
	}
	want := Assign(sh.stores, 3, groups)
	other := slices.Clone(sh.stores)
	slices.Reverse(other)
	other = append(other, other[0], Store{ID: 4000, Weight: 0, Domains: []string{"zero"}})
	if got := Assign(other, 3, groups); !reflect.DeepEqual(got, want) {
		t.Error("another order of the stores gives another assignment")
	}
}

func BenchmarkAssign(b *testing.B) {
	sh := &shape{rng: rand.New(rand.NewPCG(1, 1))}
	for range 60 {
		sh.addHost()
	}
	groups := make([]Group, 1024)
	for i := range groups {
		groups[i].ID = dfs.PGID(i + 1)
	}
	full := slices.Clone(groups)
	for i, target := range Assign(sh.stores, 3, groups).Targets {
		full[i].Current = target
	}
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			Assign(sh.stores, 3, groups)
		}
	})
	b.Run("settled", func(b *testing.B) {
		for b.Loop() {
			Assign(sh.stores, 3, full)
		}
	})
	b.Run("lose", func(b *testing.B) {
		for b.Loop() {
			Assign(sh.stores[3:], 3, full)
		}
	})
}
