package placement

import (
	"cmp"
	"slices"

	"dfsd/dfs"
)

// pointsPerStore is how many points a store of average weight has on the ring:
// enough that the order of preference follows the weights to some 12 %; the
// bounds do the rest.
const pointsPerStore = 64

// maxPointsPerStore keeps one giant among dwarfs from filling the memory.
const maxPointsPerStore = 64 * pointsPerStore

// point is a virtual node.
type point struct {
	at    uint64
	store int // index of the store
}

// ring is the circle of virtual nodes, sorted by place.
type ring []point

// newRing places every store at points that depend on its own ID alone; how
// many they are follows its weight against the average.
func newRing(stores []Store) ring {
	var total float64
	for _, s := range stores {
		total += float64(s.Weight)
	}
	var r ring
	for i, s := range stores {
		n := int(float64(pointsPerStore)*float64(s.Weight)*float64(len(stores))/total + 0.5)
		seed := mix(uint64(s.ID))
		for j := range min(max(n, 1), maxPointsPerStore) {
			r = append(r, point{at: mix(seed + uint64(j)), store: i})
		}
	}
	slices.SortFunc(r, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.store, b.store))
	})
	return r
}

// preference returns all stores in the order in which the circle meets them
// from the group's place onwards.
func (r ring) preference(g dfs.PGID, stores int) []int {
	order := make([]int, 0, stores)
	seen := make([]bool, stores)
	start, _ := slices.BinarySearchFunc(r, mix(^uint64(g)), func(p point, at uint64) int { return cmp.Compare(p.at, at) })
	for i := range r {
		if s := r[(start+i)%len(r)].store; !seen[s] {
			seen[s] = true
			if order = append(order, s); len(order) == stores {
				break
			}
		}
	}
	return order
}

// mix is the finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of
// the argument changes every bit of the result with probability one half.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
