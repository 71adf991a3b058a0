package placement

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"dfsd/dfs"
)

// Slack is how far over (and under) its quota a store may be: small enough to
// fill disks evenly, big enough that little moves.
const Slack = 0.05

// Store is a place for members of groups.
type Store struct {
	ID     dfs.StoreID
	Weight uint64 // in proportion to which it is loaded; 0 takes nothing

	// Domains are the failure domains the store is in, the narrowest first:
	// host, rack, zone. Stores of one host are taken to share the other
	// labels of the first of them. A rack's name counts within its zone.
	Domains []string
}

// Group is a placement group.
type Group struct {
	ID      dfs.PGID
	Current []dfs.StoreID // where it should be so far; nil for a new one

	// Near are stores that hold some of it already: of several moves that do
	// equally well, one to such a store is made.
	Near []dfs.StoreID
}

// Result is an assignment.
type Result struct {
	// Targets has the stores of each group, sorted, in the order of the
	// groups given. A target is short when there are fewer stores than width.
	Targets [][]dfs.StoreID

	// Bound is the highest ratio of a store's slots to its plain fair share by
	// weight: 1.05 but for rounding to whole slots, unless the failure domains
	// ask for more. 0 when there are no stores.
	Bound float64

	// Moves is how many members of Targets are not in their group's Current,
	// groups without a Current not counted.
	Moves int

	// Notes says in full sentences what could not be had.
	Notes []string
}

// Assign gives every group width distinct stores, or as many as there are. All
// groups belong to one class: each class is spread by itself, since bytes per
// group differ between them. The order of the stores does not matter.
func Assign(stores []Store, width int, groups []Group) Result {
	usable := slices.DeleteFunc(slices.Clone(stores), func(s Store) bool { return s.Weight == 0 || s.ID == 0 })
	slices.SortFunc(usable, func(a, b Store) int { return cmp.Compare(a.ID, b.ID) })
	usable = slices.CompactFunc(usable, func(a, b Store) bool { return a.ID == b.ID })
	res := Result{Targets: make([][]dfs.StoreID, len(groups))}
	take := min(width, len(usable))
	if take < width {
		res.Notes = append(res.Notes, fmt.Sprintf("%d stores are too few for width %d", len(usable), width))
	}
	if take == 0 || len(groups) == 0 {
		return res
	}
	a := newAssignment(usable, take, groups)
	a.balance()
	for g := range groups {
		for _, s := range a.members[g] {
			res.Targets[g] = append(res.Targets[g], usable[s].ID)
			if groups[g].Current != nil && !slices.Contains(groups[g].Current, usable[s].ID) {
				res.Moves++
			}
		}
		slices.Sort(res.Targets[g])
	}
	var total float64
	for _, s := range usable {
		total += float64(s.Weight)
	}
	for i, s := range usable {
		fair := float64(take*len(groups)) * float64(s.Weight) / total
		res.Bound = max(res.Bound, float64(a.loads[i])/fair)
	}
	res.Notes = append(res.Notes, a.notes()...)
	return res
}

// notes says which rules gave way.
func (a *assignment) notes() []string {
	var notes []string
	if n := a.tree.limits[a.tree.levels]; n > 1 {
		notes = append(notes, fmt.Sprintf("up to %d members of a group share a host: there are fewer hosts than the width of %d", n, a.width))
	}
	var total float64
	for _, s := range a.stores {
		total += float64(s.Weight)
	}
	over := 0
	for i, s := range a.stores {
		if fair := float64(a.width*len(a.members)) * float64(s.Weight) / total; a.quotas[i] > fair*(1+Slack) {
			over++
		}
	}
	if over > 0 {
		notes = append(notes, fmt.Sprintf("%d stores take more than %.2f of their fair share: the failure domains leave no other place", over, 1+Slack))
	}
	return notes
}

// assignment is a flow from groups to stores in the making.
type assignment struct {
	stores []Store
	width  int
	tree   *tree
	ring   ring
	ids    []dfs.PGID // of the groups
	prefer [][]int    // group → stores in the order of the ring, made when asked for
	quotas []float64
	floors []int // store → least slots
	caps   []int // store → most slots

	near    [][]int // group → stores that hold some of it
	members [][]int // group → stores. Invariant: within the tree's limits
	held    [][]int // store → groups, the inverse
	taken   [][]int // group → domain index → members in it
	loads   []int   // store → slots. Invariant: len(held)
}

// newAssignment starts from what the groups have, as far as the limits allow.
func newAssignment(stores []Store, width int, groups []Group) *assignment {
	a := &assignment{
		stores: stores, width: width, tree: newTree(stores, width),
		members: make([][]int, len(groups)), taken: make([][]int, len(groups)),
		held: make([][]int, len(stores)), loads: make([]int, len(stores)),
		ids: make([]dfs.PGID, len(groups)), prefer: make([][]int, len(groups)), near: make([][]int, len(groups)),
	}
	a.quotas = a.tree.quotas(stores, float64(len(groups)))
	for _, q := range a.quotas {
		const fuzz = 1e-6 // quotas come from a bisection
		a.caps = append(a.caps, int(max(math.Ceil(q-fuzz), math.Floor(q*(1+Slack)+fuzz))))
		a.floors = append(a.floors, int(min(math.Floor(q+fuzz), math.Ceil(q*(1-Slack)-fuzz))))
	}
	indexes := func(ids []dfs.StoreID) (out []int) {
		for _, id := range ids {
			if s, ok := slices.BinarySearchFunc(stores, id, func(s Store, id dfs.StoreID) int { return cmp.Compare(s.ID, id) }); ok {
				out = append(out, s)
			}
		}
		return out
	}
	have := make([][]int, len(groups))
	counts := make([]int, len(stores))
	for g, group := range groups {
		a.ids[g] = group.ID
		a.taken[g] = make([]int, len(a.tree.domains))
		have[g], a.near[g] = indexes(group.Current), indexes(group.Near)
		for _, s := range have[g] {
			counts[s]++
		}
	}
	for g := range groups {
		// The least loaded stay first: if the limits were looser when the group
		// was placed, the most loaded have to go, as they might anyway.
		slices.SortFunc(have[g], func(x, y int) int {
			return cmp.Or(cmp.Compare(float64(counts[x])*a.quotas[y], float64(counts[y])*a.quotas[x]), cmp.Compare(x, y))
		})
		for _, s := range have[g] {
			if a.allowed(g, -1, s) {
				a.add(g, s)
			} else {
				counts[s]--
			}
		}
	}
	return a
}

// preference returns the stores in the order in which group g takes them. An
// assignment that is as it should be never asks, and so costs next to nothing.
func (a *assignment) preference(g int) []int {
	if a.ring == nil {
		a.ring = newRing(a.stores)
	}
	if a.prefer[g] == nil {
		a.prefer[g] = a.ring.preference(a.ids[g], len(a.stores))
	}
	return a.prefer[g]
}

// allowed reports whether a group may take store to when it gives up store
// from (-1: none): every domain that to does not share with from has room.
func (a *assignment) allowed(g, from, to int) bool {
	if from < 0 && len(a.members[g]) >= a.width || slices.Contains(a.members[g], to) {
		return false
	}
	for i, d := range a.tree.paths[to] {
		if from >= 0 && a.tree.paths[from][i] == d {
			continue
		}
		if a.taken[g][d] >= a.tree.limits[i+1] {
			return false
		}
	}
	return true
}

func (a *assignment) add(g, s int) {
	a.members[g] = append(a.members[g], s)
	a.held[s] = append(a.held[s], g)
	a.loads[s]++
	for _, d := range a.tree.paths[s] {
		a.taken[g][d]++
	}
}

func (a *assignment) remove(g, s int) {
	a.members[g] = slices.DeleteFunc(a.members[g], func(m int) bool { return m == s })
	a.held[s] = slices.DeleteFunc(a.held[s], func(m int) bool { return m == g })
	a.loads[s]--
	for _, d := range a.tree.paths[s] {
		a.taken[g][d]--
	}
}

// balance completes the groups and brings every store between its floor and
// its cap. What must move goes first to where something is missing.
func (a *assignment) balance() {
	underfull := func(s int) bool { return a.loads[s] < a.floors[s] }
	roomy := func(s int) bool { return a.loads[s] < a.caps[s] }
	overfull := func(s int) bool { return a.loads[s] > a.caps[s] }
	spare := func(s int) bool { return a.loads[s] > a.floors[s] }
	a.shift(overfull, underfull)
	a.shift(overfull, roomy)
	a.shift(spare, underfull)
}

// shift gives groups that lack members stores that are a sink, and moves
// members from stores that are a source to stores that are a sink, by the
// shortest chains first, until there is no way any more.
func (a *assignment) shift(source, sink func(int) bool) {
	a.bringHome(source, sink)
	for {
		order := a.order()
		if !slices.ContainsFunc(order, sink) {
			return
		}
		var from, lacking []int
		for g := range a.members {
			if len(a.members[g]) < a.width {
				lacking = append(lacking, g)
			}
		}
		for _, s := range order {
			if source(s) {
				from = append(from, s)
			}
		}
		if !a.augment(lacking, from, sink) {
			return
		}
	}
}

// bringHome makes those moves from a source to a sink that lead to a store that
// holds some of the group already.
func (a *assignment) bringHome(source, sink func(int) bool) {
	for g, near := range a.near {
		for _, to := range near {
			if !sink(to) || slices.Contains(a.members[g], to) {
				continue
			}
			if a.allowed(g, -1, to) {
				a.add(g, to)
				continue
			}
			from := slices.IndexFunc(a.members[g], func(s int) bool {
				return source(s) && !slices.Contains(near, s) && a.allowed(g, s, to)
			})
			if from >= 0 {
				a.remove(g, a.members[g][from])
				a.add(g, to)
			}
		}
	}
}

// order is all stores, the one with the highest ratio of load to quota first.
func (a *assignment) order() []int {
	out := make([]int, len(a.stores))
	for i := range out {
		out[i] = i
	}
	slices.SortStableFunc(out, func(x, y int) int {
		return cmp.Compare(float64(a.loads[y])*a.quotas[x], float64(a.loads[x])*a.quotas[y])
	})
	return out
}

// step is how an augmenting path reached a store: group moved there from store
// from, which is -1 where the group lacked a member.
type step struct {
	group, from int
}

// augment finds the shortest chain of moves that ends in a sink and begins
// with a group that lacks a member or with a store of from, and makes it.
// It reports whether there was one.
//
// Every move is allowed by itself in the present assignment, and a shortest
// chain never passes through the same domain of the same group twice (it could
// take the short cut), so all its moves are allowed together.
func (a *assignment) augment(lacking, from []int, sink func(int) bool) bool {
	reached := make([]*step, len(a.stores))
	queue := slices.Clone(from)
	for _, s := range from {
		reached[s] = &step{group: -1}
	}
	visit := func(group, from int) (end int, found bool) {
		for _, to := range a.preference(group) {
			if reached[to] != nil || !a.allowed(group, from, to) {
				continue
			}
			reached[to] = &step{group: group, from: from}
			if sink(to) {
				return to, true
			}
			queue = append(queue, to)
		}
		return 0, false
	}
	for _, g := range lacking {
		if end, ok := visit(g, -1); ok {
			a.follow(end, reached)
			return true
		}
	}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		for _, group := range a.held[s] {
			if end, ok := visit(group, s); ok {
				a.follow(end, reached)
				return true
			}
		}
	}
	return false
}

// follow makes the moves of a path, back from its end.
func (a *assignment) follow(end int, reached []*step) {
	for at := end; ; {
		st := reached[at]
		if st.group < 0 {
			return
		}
		if st.from >= 0 {
			a.remove(st.group, st.from)
		}
		a.add(st.group, at)
		if st.from < 0 {
			return
		}
		at = st.from
	}
}
