package dfs

import "testing"

// TestTombstoneFloor: the floor follows the acting set while all is well, and is
// held by each member that lacks something.
func TestTombstoneFloor(t *testing.T) {
	m := func(s StoreID, c Epoch) Member { return Member{Store: s, Complete: c} }
	pg := func(active Epoch, members ...Member) PG {
		return PG{ID: 1, Class: Replicated(3), Active: ActingSet{active, []StoreID{1, 2, 3}}, Members: members}
	}
	for what, x := range map[string]struct {
		pg   PG
		want Epoch
	}{
		"never activated":                {PG{ID: 1, Class: Replicated(3), Proposed: ActingSet{4, []StoreID{1}}}, 0},
		"all complete":                   {pg(12, m(1, 12), m(2, 12), m(3, 12)), 13},
		"one refills what it missed":     {pg(12, m(1, 12), m(2, 12), m(3, 7)), 8},
		"one refills everything":         {pg(12, m(1, 12), m(2, 12), m(3, 0)), 1},
		"one that does not act is known": {pg(12, m(1, 12), m(2, 12), m(3, 12), m(4, 9)), 10},
		"an erasure code":                {PG{ID: 1, Class: Class{Data: 2, Parity: 1}, Active: ActingSet{12, []StoreID{1, 2, 3}}}, 0},
	} {
		if got := x.pg.TombstoneFloor(); got != x.want {
			t.Errorf("%s: %d, want %d", what, got, x.want)
		}
	}
}
