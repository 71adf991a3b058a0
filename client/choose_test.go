package client

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
)

func testPG(id dfs.PGID, class dfs.Class, stores ...dfs.StoreID) *dfs.PG {
	p := &dfs.PG{ID: id, Class: class, Target: stores, Active: dfs.ActingSet{Epoch: 3, Stores: stores}}
	for _, s := range stores {
		p.Members = append(p.Members, dfs.Member{Store: s, Complete: 3, Joined: 3})
	}
	return p
}

func TestChoosePG(t *testing.T) {
	rep3, rep2 := dfs.Replicated(3), dfs.Replicated(2)
	whole := testPG(1, rep3, 1, 2, 3)
	whole2 := testPG(2, rep3, 4, 5, 6)
	partial := testPG(3, rep3, 7, 8)
	single := testPG(4, rep3, 9)
	proposed := testPG(5, rep3, 10, 11, 12)
	proposed.Proposed = dfs.ActingSet{Epoch: 4, Stores: []dfs.StoreID{10, 11}}
	fresh := testPG(6, rep3, 1, 4, 7)
	fresh.Active.Epoch = 0
	other := testPG(7, rep2, 1, 2)
	gone := testPG(8, rep3, 1, 2, 13)
	var stores []*dfs.Store
	for id := dfs.StoreID(1); id <= 13; id++ {
		stores = append(stores, &dfs.Store{ID: id, State: dfs.StoreUp})
	}
	stores[12].State = dfs.StoreDown
	for _, tc := range []struct {
		name  string
		pgs   []*dfs.PG
		avoid []dfs.StoreID
		want  []dfs.PGID // any of them; none: there is none
		clean bool
	}{
		{"whole sets first", []*dfs.PG{whole, whole2, partial, single, proposed, fresh, other}, nil, []dfs.PGID{1, 2}, true},
		{"no member to avoid", []*dfs.PG{whole, whole2, partial}, []dfs.StoreID{2}, []dfs.PGID{2}, true},
		{"a partial set before one to avoid", []*dfs.PG{whole, whole2, partial}, []dfs.StoreID{2, 6}, []dfs.PGID{3}, true},
		{"whatever takes writes", []*dfs.PG{whole, whole2, partial}, []dfs.StoreID{2, 6, 7}, []dfs.PGID{1, 2, 3}, false},
		{"too few members", []*dfs.PG{single}, nil, nil, false},
		{"a later proposal", []*dfs.PG{proposed}, nil, nil, false},
		{"never activated", []*dfs.PG{fresh}, nil, nil, false},
		{"a member that is down", []*dfs.PG{gone}, nil, nil, false},
		{"another class", []*dfs.PG{other}, nil, nil, false},
	} {
		avoid := map[dfs.StoreID]bool{}
		for _, s := range tc.avoid {
			avoid[s] = true
		}
		found := map[dfs.PGID]bool{}
		for n := range uint64(40) {
			next := n
			pg, clean := choosePG(&dfs.Map{Stores: stores, PGs: tc.pgs}, rep3, avoid, func() uint64 { next = next*7 + 3; return next >> 1 }, func(a, b *dfs.PG) bool { return false })
			if pg == nil {
				found[0] = true
			} else {
				found[pg.ID] = true
				if clean != tc.clean {
					t.Errorf("%s: pg %v, clean %v", tc.name, pg.ID, clean)
				}
			}
		}
		for id := range found {
			if id == 0 && tc.want != nil || id != 0 && !slices.Contains(tc.want, id) {
				t.Errorf("%s: chose %v, want %v", tc.name, id, tc.want)
			}
		}
		if len(found) < len(tc.want) {
			t.Errorf("%s: chose only %v of %v", tc.name, found, tc.want)
		}
	}
	busy := func(a, b *dfs.PG) bool { return a.ID == 2 && b.ID == 1 } // 2 is less busy
	picks := []uint64{0, 1}
	pg, _ := choosePG(&dfs.Map{Stores: stores, PGs: []*dfs.PG{whole, whole2}}, rep3, nil, func() uint64 { n := picks[0]; picks = picks[1:]; return n }, busy)
	if pg.ID != 2 {
		t.Errorf("chose %v, the busier of two", pg.ID)
	}
}

func TestNoPGSaysWhatHelps(t *testing.T) {
	m := &dfs.Map{DefaultClass: dfs.Replicated(3), Stores: []*dfs.Store{{ID: 1, Node: 1, State: dfs.StoreUp}, {ID: 2, Node: 1, State: dfs.StoreUp}, {ID: 3, Node: 2, State: dfs.StoreDown}}}
	err := noPG(m, dfs.Replicated(5))
	for _, want := range []string{"rep5", "needs 5", "at least 3", "2 are up, on 1 nodes", "default_class", "rep3"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("it does not say %q: %v", want, err)
		}
	}
}

func TestReadOrder(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := &Client{health: newHealth(DefaultHedge, DefaultHedgeFactor)}
		c.opts.Rand = rand.New(rand.NewPCG(1, 1)).Uint64
		p := testPG(1, dfs.Replicated(3), 1, 2, 3, 4)
		p.Members[3].Complete = 2                                        // 4 is acting and not complete
		p.Members = append(p.Members, dfs.Member{Store: 5, Complete: 2}) // 5 acted once
		m := &dfs.Map{PGs: []*dfs.PG{p}}
		for id := dfs.StoreID(1); id <= 5; id++ {
			m.Stores = append(m.Stores, &dfs.Store{ID: id, State: dfs.StoreUp})
		}
		order := func() []dfs.StoreID {
			stores, complete := c.readOrder(m, p)
			if complete != 3 || len(stores) != 5 {
				t.Fatalf("%v, %d of them complete", stores, complete)
			}
			if tail := stores[3:]; !slices.Contains(tail, 4) || !slices.Contains(tail, 5) {
				t.Errorf("%v: incomplete stores are not last", stores)
			}
			return stores
		}
		first := map[dfs.StoreID]bool{}
		for range 50 {
			first[order()[0]] = true
		}
		if len(first) != 3 {
			t.Errorf("equal stores: first are only %v", first)
		}
		c.health.readDone(1, 100*time.Millisecond)
		c.health.readDone(2, time.Millisecond)
		c.health.readDone(3, 30*time.Millisecond)
		if got := order()[:3]; !slices.Equal(got, []dfs.StoreID{2, 3, 1}) {
			t.Errorf("by speed: %v", got)
		}
		c.health.fail(2)
		if got := order()[:3]; !slices.Equal(got, []dfs.StoreID{3, 1, 2}) {
			t.Errorf("after a failure of s2: %v", got)
		}
		m.Stores[2].State = dfs.StoreDown
		if got := order()[:3]; !slices.Equal(got, []dfs.StoreID{1, 2, 3}) {
			t.Errorf("with s3 down: %v", got)
		}
		time.Sleep(failedLately)
		m.Stores[2].State = dfs.StoreUp
		if got := order()[:3]; !slices.Equal(got, []dfs.StoreID{2, 3, 1}) {
			t.Errorf("later: %v", got)
		}
	})
}

func TestHedgeDelayAndBudget(t *testing.T) {
	h := newHealth(DefaultHedge, DefaultHedgeFactor)
	if d := h.readHedge(); d != DefaultHedge {
		t.Errorf("with nothing known: %v", d)
	}
	for i := range samples {
		h.readDone(1, time.Duration(i)*time.Millisecond)
	}
	if d := h.readHedge(); d < 3*110*time.Millisecond || d > 3*samples*time.Millisecond {
		t.Errorf("three times the 95th percentile: %v", d)
	}
	if d := h.writeHedge(); d != DefaultHedge {
		t.Errorf("writes are not reads: %v", d)
	}
	for range maxHedges {
		if !h.mayHedge() {
			t.Fatal("the reserve is not full")
		}
	}
	taken := 0
	for range 1000 {
		h.request()
		if h.mayHedge() {
			taken++
		}
	}
	if taken < 95 || taken > 101 {
		t.Errorf("%d second requests for 1000", taken)
	}
}
