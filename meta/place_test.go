package meta

import (
	"fmt"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
	"dfsd/transport/wire"
)

// TestRates: what was done lately counts, and what was done long ago does not.
func TestRates(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := newRates()
		if r.of(1) != 0 {
			t.Errorf("nothing was done, and the rate is %d", r.of(1))
		}
		for range 60 { // a minute of 100 a second
			for range 10 {
				time.Sleep(100 * time.Millisecond)
				r.add(1, 10)
			}
		}
		if got := r.of(1); got < 99 || got > 101 {
			t.Errorf("100 a second give a rate of %d", got)
		}
		if r.of(2) != 0 {
			t.Error("another group has a rate")
		}
		time.Sleep(rateDecay)
		if got := r.of(1); got < 36 || got > 38 { // 100/e
			t.Errorf("after %v of rest the rate is %d", rateDecay, got)
		}
		time.Sleep(10 * rateDecay)
		if r.of(1) != 0 || len(r.counts) != 0 {
			t.Errorf("after a long rest the rate is %d, and %d groups are counted", r.of(1), len(r.counts))
		}
	})
}

// TestPlacerBurdens says where the next hundred directories go.
func TestPlacerBurdens(t *testing.T) {
	for _, c := range []struct {
		name   string
		loads  []groupLoad // of groups 1 up
		parent dfs.GroupID
		level  int
		want   []int // at least
		most   []int
	}{
		{name: "alike: by hash", loads: make([]groupLoad, 4), parent: 1, want: []int{20, 20, 20, 20}, most: []int{30, 30, 30, 30}},
		{name: "fewest inodes", loads: []groupLoad{{10_000, 0}, {10_000, 0}, {1000, 0}}, parent: 1, want: []int{0, 0, 100}, most: []int{0, 0, 100}},
		{name: "until it has as many", loads: []groupLoad{{1000, 0}, {1000, 0}, {520, 0}}, parent: 1, want: []int{20, 20, 50}, most: []int{30, 30, 60}},
		{name: "least to do", loads: []groupLoad{{100_000, 900}, {100_000, 100}, {100_000, 900}}, parent: 1, want: []int{0, 100, 0}, most: []int{0, 100, 0}},
		{name: "both", loads: []groupLoad{{100_000, 0}, {110_000, 900}, {500_000, 0}}, parent: 1, want: []int{100, 0, 0}, most: []int{100, 0, 0}},
		{name: "a new group that has all the work already", loads: []groupLoad{{100_000, 0}, {100_000, 0}, {0, 1000}}, parent: 1, want: []int{45, 45, 0}, most: []int{55, 55, 0}},
		{name: "next to nothing is no work", loads: []groupLoad{{1000, 0}, {100, 2}, {1000, 0}}, parent: 1, want: []int{0, 50, 0}, most: []int{50, 100, 50}},
		{name: "deep ones stay", loads: []groupLoad{{10_000, 900}, {10_000, 0}, {9000, 0}}, parent: 1, level: spreadLevels, want: []int{100, 0, 0}, most: []int{100, 0, 0}},
		{name: "but in a group far above the mean", loads: []groupLoad{{100_000, 0}, {10_000, 0}, {1000, 0}}, parent: 1, level: 9, want: []int{0, 0, 100}, most: []int{0, 0, 100}},
	} {
		p, loads := newPlacer(), map[dfs.GroupID]groupLoad{}
		var groups []dfs.GroupID
		for i, l := range c.loads {
			g := dfs.GroupID(i + 1)
			loads[g], groups = l, append(groups, g)
		}
		p.settle(loads)
		got := make([]int, len(groups))
		for i := range 100 {
			got[p.choose(c.parent, c.level, groups, &wire.PlaceDirQuery{Name: fmt.Append(nil, i), Parent: uint64(dfs.RootIno)})-1]++
		}
		for i, n := range got {
			if n < c.want[i] || n > c.most[i] {
				t.Errorf("%s: %v, want %v to %v", c.name, got, c.want, c.most)
				break
			}
		}
	}
}
