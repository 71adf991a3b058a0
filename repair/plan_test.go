package repair

import (
	"slices"
	"strings"
	"testing"
	"time"

	"dfsd/dfs"
)

// settled returns a world of nodes with one store each, all well.
func settledWorld(t testing.TB, class dfs.Class, pgs, nodes int) *world {
	t.Helper()
	w := newWorld(class, pgs)
	for range nodes {
		w.addNode(1, nil)
	}
	if _, err := w.settle(); err != nil {
		t.Fatal(err)
	}
	return w
}

func count[D Decision](out Output) (n int) {
	for _, d := range out.Decisions {
		if _, ok := d.(D); ok {
			n++
		}
	}
	return n
}

// TestPlanBounds shows that a plan stays within its limits, and that the next
// ones do the rest.
func TestPlanBounds(t *testing.T) {
	w := settledWorld(t, dfs.Replicated(3), 40, 6)
	w.set.MaxProposals, w.set.MaxActivations, w.set.MaxRefills = 7, 5, 3
	w.disks[1].alive = false
	w.tally.By[1] = []dfs.NodeID{1, 2}
	for round := range 200 {
		out := w.plan()
		if p, a := count[ProposeSet](out), count[ActivateSet](out); p > 7 || a > 5 {
			t.Fatalf("round %d: %d proposals, %d activations", round, p, a)
		}
		w.apply(out.Decisions)
		for _, s := range w.m.Stores {
			if w.disks[s.ID].alive {
				w.persist(s.ID)
			}
		}
		if round == 50 {
			w.now = w.now.Add(time.Hour)
		}
		if round < 120 {
			copying := 0
			for _, pg := range w.m.PGs {
				if slices.ContainsFunc(pg.Active.Stores, func(s dfs.StoreID) bool { return bulk(pg, s) }) {
					copying++
				}
			}
			if copying > 3 {
				t.Fatalf("round %d: %d PGs copy whole shares", round, copying)
			}
			if round == 119 && copying != 3 {
				t.Fatalf("%d PGs copy, 3 may and many must", copying)
			}
			continue
		}
		for _, pg := range w.m.PGs {
			for _, m := range pg.Members {
				if pg.Active.Has(m.Store) && !pg.IsComplete(m.Store) {
					if err := w.refillDone(pg.ID, m.Store, m.Mark, m.Joined); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	if r := Summarize(w.m); !r.Whole() {
		t.Errorf("not whole in the end:\n%s", w)
	}
}

// TestPlanPrefersTheWeakest shows that PGs with one copy come before PGs with two.
func TestPlanPrefersTheWeakest(t *testing.T) {
	w := settledWorld(t, dfs.Replicated(3), 40, 5)
	for _, id := range []dfs.StoreID{1, 2} {
		w.disks[id].alive = false
		w.tally.By[id] = []dfs.NodeID{1, 2}
	}
	copies, before := map[dfs.PGID]int{}, 0
	for _, pg := range w.m.PGs {
		for _, s := range pg.Active.Stores {
			if s > 2 {
				copies[pg.ID]++
			}
		}
	}
	seen := map[int]bool{}
	for _, d := range w.plan().Decisions {
		if p, ok := d.(ProposeSet); ok {
			if copies[p.PG] < before {
				t.Fatalf("%v with %d copies comes after one with %d", p.PG, copies[p.PG], before)
			}
			before = copies[p.PG]
			seen[before] = true
		}
	}
	if !seen[1] || !seen[2] {
		t.Errorf("no choice was to be made: %v", seen)
	}
}

// TestPlanTrims shows that targets that change faster than members refill do
// not widen an acting set without end.
func TestPlanTrims(t *testing.T) {
	w := newWorld(dfs.Replicated(3), 1)
	for range 9 {
		w.addNode(1, nil)
	}
	m := w.edit()
	pg := &dfs.PG{
		ID: 1, Class: dfs.Replicated(3), Target: []dfs.StoreID{7, 8, 9}, Active: dfs.ActingSet{Epoch: 8, Stores: []dfs.StoreID{1, 2, 3, 4, 5, 6}},
		Members: []dfs.Member{
			{Store: 1, Complete: 8, Joined: 2}, {Store: 2, Joined: 3}, {Store: 3, Joined: 4}, {Store: 4, Joined: 5}, {Store: 5, Joined: 6}, {Store: 6, Joined: 7},
		},
	}
	m.PGs = []*dfs.PG{pg}
	w.publish(m)
	out := w.plan()
	if want := "propose pg1 = [s1 s2 s3 s7 s8 s9] after epoch 8"; len(out.Decisions) != 1 || out.Decisions[0].String() != want {
		t.Errorf("got %v, want %s", out.Decisions, want)
	}
}

func TestPlanClasses(t *testing.T) {
	w := newWorld(dfs.Replicated(2), 3)
	w.addNode(1, nil)
	w.addNode(1, nil)
	in := Input{Map: w.m, Now: w.now, Settings: w.set, Classes: []dfs.Class{dfs.Replicated(1), dfs.Replicated(2), dfs.Replicated(5), {Data: 4, Parity: 2}}}
	out := Plan(in)
	var got []string
	for _, d := range out.Decisions {
		got = append(got, d.String())
	}
	if want := []string{"create 3 PGs of rep2", "create 3 PGs of rep1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, want := range []string{"class rep5 gets no placement groups yet: 2 stores are up, it needs 3", "class ec4+2"} {
		if !slices.ContainsFunc(out.Notes, func(n string) bool { return strings.Contains(n, want) }) {
			t.Errorf("%q is not in %q", want, out.Notes)
		}
	}
}

// TestPlanOutDuringRefill shows the two sides of the guard: a second node is not
// declared out while the first one's share is being copied, and is as soon as
// all that can be copied is.
func TestPlanOutDuringRefill(t *testing.T) {
	w := settledWorld(t, dfs.Replicated(3), 20, 7)
	lose := func(id dfs.StoreID) {
		w.disks[id].alive = false
		w.tally.By[id] = []dfs.NodeID{1, 2}
		w.apply(w.plan().Decisions)
		w.now = w.now.Add(time.Hour)
	}
	lose(1)
	if n := count[MarkOut](w.plan()); n != 1 {
		t.Fatalf("%d stores out after the first loss", n)
	}
	for range 5 { // the new members act, and have copied nothing yet
		for _, s := range w.m.Stores[1:] {
			w.persist(s.ID)
		}
		w.apply(w.plan().Decisions)
	}
	lose(2)
	if out := w.plan(); count[MarkOut](out) != 0 || len(out.Notes) == 0 {
		t.Fatalf("a second store is out while the first one's share is copied: %v", out)
	}
	if _, err := w.settle(); err != nil {
		t.Fatal(err)
	}
	if r := Summarize(w.m); !r.Whole() || w.m.Store(2).State != dfs.StoreOut {
		t.Errorf("s2 is %v and the cluster not whole:\n%s", w.m.Store(2).State, w)
	}
}

func BenchmarkPlan(b *testing.B) {
	w := settledWorld(b, dfs.Replicated(3), 1024, 40)
	b.Run("settled", func(b *testing.B) {
		for b.Loop() {
			w.plan()
		}
	})
	for _, id := range []dfs.StoreID{3, 4, 5} {
		w.tally.By[id] = []dfs.NodeID{1, 2}
	}
	b.Run("lose-three", func(b *testing.B) {
		for b.Loop() {
			w.plan()
		}
	})
}
