package repair

import (
	"slices"
	"testing"

	"dfsd/dfs"
)

// group is a PG of rep3 that acts on s1 s2 s3 at epoch 10: s1 and s2 complete,
// s3 refilling since epoch 8.
func group() *dfs.PG {
	return &dfs.PG{
		ID: 1, Class: dfs.Replicated(3), Target: []dfs.StoreID{1, 2, 3},
		Active: dfs.ActingSet{Epoch: 10, Stores: []dfs.StoreID{1, 2, 3}},
		Members: []dfs.Member{
			{Store: 1, Mark: 101, Complete: 10, Joined: 3}, {Store: 2, Mark: 102, Complete: 10, Joined: 3},
			{Store: 3, Mark: 103, Complete: 5, Joined: 8}, {Store: 9, Mark: 109, Complete: 6},
		},
	}
}

func states(down ...dfs.StoreID) func(dfs.StoreID) dfs.StoreState {
	return func(s dfs.StoreID) dfs.StoreState {
		switch {
		case s > 9:
			return 0
		case slices.Contains(down, s):
			return dfs.StoreDown
		}
		return dfs.StoreUp
	}
}

func TestCheckPropose(t *testing.T) {
	fresh := &dfs.PG{ID: 2, Class: dfs.Replicated(3)}
	ec := &dfs.PG{
		ID: 3, Class: dfs.Class{Data: 2, Parity: 2}, Active: dfs.ActingSet{Epoch: 4, Stores: []dfs.StoreID{4, 1, 3, 2}},
		Members: []dfs.Member{{Store: 1, Complete: 4, Joined: 4}, {Store: 2, Complete: 4, Joined: 4}, {Store: 3, Complete: 4, Joined: 4}, {Store: 4, Joined: 4}},
	}
	for _, c := range []struct {
		name   string
		pg     *dfs.PG
		acting []dfs.StoreID
		down   dfs.StoreID
		want   dfs.Kind // Other: allowed
	}{
		{"the same", group(), []dfs.StoreID{1, 2, 3}, 0, dfs.Other},
		{"one complete survivor", group(), []dfs.StoreID{2, 3}, 0, dfs.Other},
		{"a survivor and strangers", group(), []dfs.StoreID{1, 4, 5, 6}, 0, dfs.Other},
		{"below the minimum", group(), []dfs.StoreID{1}, 0, dfs.Unavailable},
		{"none", group(), nil, 0, dfs.Unavailable},
		{"an acting member is no copy", group(), []dfs.StoreID{3, 4, 5}, 0, dfs.Unavailable},
		{"a former member is no copy", group(), []dfs.StoreID{3, 9}, 0, dfs.Unavailable},
		{"a member is down", group(), []dfs.StoreID{1, 2, 3}, 3, dfs.Unavailable},
		{"a member is unknown", group(), []dfs.StoreID{1, 2, 10}, 0, dfs.Unavailable},
		{"not sorted", group(), []dfs.StoreID{2, 1}, 0, dfs.Invalid},
		{"twice the same", group(), []dfs.StoreID{1, 1, 2}, 0, dfs.Invalid},
		{"a hole", group(), []dfs.StoreID{0, 1, 2}, 0, dfs.Invalid},
		{"too many", group(), slices.Repeat([]dfs.StoreID{1}, dfs.MaxShards+1), 0, dfs.Invalid},
		{"any first set", fresh, []dfs.StoreID{7, 8}, 0, dfs.Other},
		{"a first set below the minimum", fresh, []dfs.StoreID{7}, 0, dfs.Unavailable},
		{"ec, a hole for the lost", ec, []dfs.StoreID{0, 1, 3, 2}, 0, dfs.Other},
		{"ec, a newcomer in the hole", ec, []dfs.StoreID{7, 1, 3, 2}, 0, dfs.Other},
		{"ec, k complete survivors", ec, []dfs.StoreID{4, 1, 3, 0}, 0, dfs.Other},
		{"ec, fewer than k complete", ec, []dfs.StoreID{4, 1, 7, 8}, 0, dfs.Unavailable},
		{"ec, below the minimum", ec, []dfs.StoreID{0, 1, 3, 0}, 0, dfs.Unavailable},
		{"ec, a survivor changes position", ec, []dfs.StoreID{4, 3, 1, 2}, 0, dfs.Invalid},
		{"ec, too short", ec, []dfs.StoreID{4, 1, 3}, 0, dfs.Invalid},
		{"ec, twice the same", ec, []dfs.StoreID{7, 1, 3, 7}, 0, dfs.Invalid},
	} {
		err := CheckPropose(c.pg, c.acting, states(c.down))
		if (err == nil) != (c.want == dfs.Other) || dfs.KindOf(err) != c.want {
			t.Errorf("%s: %v, want kind %q", c.name, err, c.want)
		}
	}
}

func TestCheckActivate(t *testing.T) {
	proposed := Propose(group(), 12, []dfs.StoreID{2, 3, 4})
	at := func(epochs ...dfs.Epoch) func(dfs.StoreID) dfs.Epoch {
		return func(s dfs.StoreID) dfs.Epoch { return epochs[s] }
	}
	if err := CheckActivate(group(), at(0, 99, 99, 99, 99)); dfs.KindOf(err) != dfs.Stale {
		t.Errorf("nothing proposed: %v", err)
	}
	if err := CheckActivate(proposed, at(0, 0, 12, 15, 12)); err != nil {
		t.Errorf("every member of the new set knows: %v", err)
	}
	for _, p := range [][]dfs.Epoch{{0, 99, 11, 15, 12}, {0, 99, 12, 12, 11}, {0, 99, 12, 0, 12}} {
		if err := CheckActivate(proposed, at(p...)); dfs.KindOf(err) != dfs.Unavailable {
			t.Errorf("persisted %v: %v", p, err)
		}
	}
	// The survivor is damaged between the two steps.
	if err := CheckActivate(ResetMember(proposed, 2, 102), at(0, 99, 99, 99, 99)); dfs.KindOf(err) != dfs.Unavailable {
		t.Errorf("no survivor: %v", err)
	}
}

func marks(s dfs.StoreID) uint64 { return 100 + uint64(s) }

func TestActivate(t *testing.T) {
	got := Activate(Propose(group(), 12, []dfs.StoreID{2, 3, 4}), marks)
	want := []dfs.Member{
		{Store: 1, Mark: 101, Complete: 10},            // left complete
		{Store: 2, Mark: 102, Complete: 12, Joined: 3}, // stays complete
		{Store: 3, Mark: 103, Complete: 5, Joined: 8},  // goes on refilling
		{Store: 4, Mark: 104, Joined: 12},              // joins with nothing
		{Store: 9, Mark: 109, Complete: 6},             // was away and stays away
	}
	if !slices.Equal(got.Members, want) || got.Active.Epoch != 12 || got.Proposed.Epoch != 0 {
		t.Errorf("got %+v", got)
	}
	// A former member returns with what it had, s3 leaves incomplete.
	got = Activate(Propose(got, 14, []dfs.StoreID{2, 4, 9}), marks)
	want = []dfs.Member{
		{Store: 1, Mark: 101, Complete: 10}, {Store: 2, Mark: 102, Complete: 14, Joined: 3}, {Store: 3, Mark: 103, Complete: 5},
		{Store: 4, Mark: 104, Joined: 12}, {Store: 9, Mark: 109, Complete: 6, Joined: 14},
	}
	if !slices.Equal(got.Members, want) {
		t.Errorf("got %+v", got.Members)
	}
	// A reset member joins anew with the same set.
	got = Activate(Propose(ResetMember(group(), 2, 202), 12, []dfs.StoreID{1, 2, 3}), marks)
	if m := *got.Member(2); m != (dfs.Member{Store: 2, Mark: 202, Joined: 12}) {
		t.Errorf("reset: %+v", m)
	}
	// The first activation.
	got = Activate(Propose(&dfs.PG{ID: 2, Class: dfs.Replicated(2)}, 7, []dfs.StoreID{3, 5}), marks)
	want = []dfs.Member{{Store: 3, Mark: 103, Complete: 7, Joined: 7}, {Store: 5, Mark: 105, Complete: 7, Joined: 7}}
	if !slices.Equal(got.Members, want) {
		t.Errorf("first: %+v", got.Members)
	}
	// A shard that leaves is forgotten.
	ec := &dfs.PG{ID: 3, Class: dfs.Class{Data: 2, Parity: 1}}
	ec = Activate(Propose(ec, 7, []dfs.StoreID{3, 5, 1}), marks)
	ec = Activate(Propose(ec, 8, []dfs.StoreID{3, 6, 1}), marks)
	want = []dfs.Member{{Store: 1, Mark: 101, Complete: 8, Joined: 7}, {Store: 3, Mark: 103, Complete: 8, Joined: 7}, {Store: 6, Mark: 106, Joined: 8}}
	if !slices.Equal(ec.Members, want) {
		t.Errorf("ec: %+v", ec.Members)
	}
}

func TestRefillDone(t *testing.T) {
	for _, c := range []struct {
		name   string
		pg     *dfs.PG
		store  dfs.StoreID
		mark   uint64
		joined dfs.Epoch
		ok     bool
	}{
		{"as it should be", group(), 3, 103, 8, true},
		{"again", group(), 1, 101, 3, true},
		{"another mark", group(), 3, 203, 8, false},
		{"an earlier time of acting", group(), 3, 103, 5, false},
		{"not acting", group(), 9, 109, 0, false},
		{"unknown", group(), 5, 105, 8, false},
		{"reset", ResetMember(group(), 3, 103), 3, 103, 8, false},
		{"reset, no time", ResetMember(group(), 3, 103), 3, 103, 0, false},
		{"never activated", &dfs.PG{Members: []dfs.Member{{Store: 3, Mark: 103, Joined: 8}}}, 3, 103, 8, false},
	} {
		before := c.pg.Clone()
		got, err := RefillDone(c.pg, c.store, c.mark, c.joined)
		if !slices.Equal(before.Members, c.pg.Members) {
			t.Errorf("%s: the argument was changed", c.name)
		}
		switch {
		case c.ok && (err != nil || !got.IsComplete(c.store)):
			t.Errorf("%s: %v", c.name, err)
		case !c.ok && dfs.KindOf(err) != dfs.Stale:
			t.Errorf("%s: %v, want stale", c.name, err)
		}
	}
	// All complete and in place: who is away is forgotten.
	got, _ := RefillDone(group(), 3, 103, 8)
	if len(got.Members) != 3 || got.Member(9) != nil {
		t.Errorf("members %+v", got.Members)
	}
}

func TestRetarget(t *testing.T) {
	for _, c := range []struct {
		target []dfs.StoreID
		want   dfs.Kind
	}{
		{[]dfs.StoreID{2, 3, 4}, dfs.Other},
		{[]dfs.StoreID{2}, dfs.Other},
		{nil, dfs.Invalid},
		{[]dfs.StoreID{1, 2, 3, 4}, dfs.Invalid},
		{[]dfs.StoreID{3, 2}, dfs.Invalid},
		{[]dfs.StoreID{2, 3, 10}, dfs.Unavailable},
	} {
		got, err := Retarget(group(), c.target, states(2))
		if dfs.KindOf(err) != c.want || err == nil && !slices.Equal(got.Target, c.target) {
			t.Errorf("%v: %v", c.target, err)
		}
	}
}

func TestCheckFindsBrokenInvariants(t *testing.T) {
	if err := Check(group()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*dfs.PG){
		"proposal not above":   func(p *dfs.PG) { p.Proposed.Epoch = 10 },
		"below the minimum":    func(p *dfs.PG) { p.Active.Stores = []dfs.StoreID{1} },
		"target not sorted":    func(p *dfs.PG) { p.Target = []dfs.StoreID{3, 1} },
		"members not sorted":   func(p *dfs.PG) { slices.Reverse(p.Members) },
		"complete too far":     func(p *dfs.PG) { p.Members[0].Complete = 11 },
		"joined too late":      func(p *dfs.PG) { p.Members[0].Joined = 11 },
		"away and joined":      func(p *dfs.PG) { p.Members[3].Joined = 4 },
		"complete, not joined": func(p *dfs.PG) { p.Members[0].Joined = 0 },
		"acting, no member":    func(p *dfs.PG) { p.Members = p.Members[1:] },
	} {
		pg := group()
		spoil(pg)
		if err := Check(pg); dfs.KindOf(err) != dfs.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestProposeNeedsANewEpoch(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("an epoch was used twice")
		}
	}()
	Propose(Propose(group(), 12, []dfs.StoreID{1, 2}), 12, []dfs.StoreID{1, 3})
}
