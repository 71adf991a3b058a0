package placement

import "dfsd/dfs"

// minCost is the textbook way to the least number of moves: a flow of minimum
// cost over the whole network, by successive shortest paths (Bellman and Ford
// with a queue). Far too slow for use, and an oracle for the tests.
type minCost struct {
	to, room, cost, next []int
	head                 []int
}

func newMinCost(nodes int) *minCost {
	f := &minCost{head: make([]int, nodes)}
	for i := range f.head {
		f.head[i] = -1
	}
	return f
}

func (f *minCost) edge(from, to, room, cost int) {
	add := func(from, to, room, cost int) {
		f.to, f.room, f.cost = append(f.to, to), append(f.room, room), append(f.cost, cost)
		f.next = append(f.next, f.head[from])
		f.head[from] = len(f.to) - 1
	}
	add(from, to, room, cost)
	add(to, from, 0, -cost)
}

// run sends all it can from node 0 to node 1 and returns the flow and its cost.
func (f *minCost) run() (flow, cost int) {
	const far = 1 << 60
	for {
		dist := make([]int, len(f.head))
		via := make([]int, len(f.head))
		queued := make([]bool, len(f.head))
		for i := range dist {
			dist[i] = far
		}
		dist[0] = 0
		for queue := []int{0}; len(queue) > 0; {
			at := queue[0]
			queue, queued[at] = queue[1:], false
			for e := f.head[at]; e >= 0; e = f.next[e] {
				if d := dist[at] + f.cost[e]; f.room[e] > 0 && d < dist[f.to[e]] {
					dist[f.to[e]], via[f.to[e]] = d, e
					if !queued[f.to[e]] {
						queued[f.to[e]] = true
						queue = append(queue, f.to[e])
					}
				}
			}
		}
		if dist[1] == far {
			return flow, cost
		}
		for at := 1; at != 0; at = f.to[via[at]^1] {
			f.room[via[at]]--
			f.room[via[at]^1]++
		}
		flow++
		cost += dist[1]
	}
}

// exactMoves is the least number of moves that any assignment within the
// limits, floors and caps of a needs.
func exactMoves(a *assignment, groups []Group) int {
	const reward = 1 << 20 // for filling a floor: more than all moves cost
	store := func(s int) int { return 2 + s }
	node := func(g, d int) int { return 2 + len(a.stores) + g*len(a.tree.domains) + d }
	f := newMinCost(node(len(groups), 0))
	for g, group := range groups {
		current := map[dfs.StoreID]bool{}
		for _, s := range group.Current {
			current[s] = true
		}
		f.edge(0, node(g, 0), a.width, 0)
		for _, d := range a.tree.domains {
			for _, c := range d.children {
				f.edge(node(g, d.index), node(g, c.index), a.tree.limits[c.level], 0)
			}
			for _, s := range d.stores {
				cost := 1
				if current[a.stores[s].ID] {
					cost = 0
				}
				f.edge(node(g, d.index), store(s), 1, cost)
			}
		}
	}
	floors := 0
	for s := range a.stores {
		f.edge(store(s), 1, a.floors[s], -reward)
		f.edge(store(s), 1, a.caps[s]-a.floors[s], 0)
		floors += a.floors[s]
	}
	_, cost := f.run()
	return cost + floors*reward
}
