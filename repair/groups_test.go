package repair

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"dfsd/dfs"
)

// groupWorld is meta nodes 1 to n and groups whose leaders do at once what their
// lists say, where nodes that they need are up.
type groupWorld struct {
	in    GroupInput
	moved int // replicas that were made
}

func newGroupWorld(nodes, width int, lists ...string) *groupWorld {
	w := &groupWorld{in: GroupInput{
		Map: &dfs.Map{}, Width: width, Views: map[dfs.GroupID]*GroupView{},
		Up: map[dfs.NodeID]bool{}, Gone: map[dfs.NodeID]bool{}, Full: map[dfs.NodeID]bool{},
	}}
	for i := range nodes {
		id := dfs.NodeID(i + 1)
		w.in.Map.Nodes = append(w.in.Map.Nodes, &dfs.Node{ID: id, Roles: dfs.RoleMeta})
		w.in.Up[id] = true
	}
	for i, list := range lists {
		g := &dfs.Group{ID: dfs.GroupID(i), Replicas: nodesOf(list)}
		w.in.Map.Groups = append(w.in.Map.Groups, g)
		w.view(g)
	}
	return w
}

// nodesOf reads numbers of one digit each.
func nodesOf(list string) (out []dfs.NodeID) {
	for _, c := range list {
		out = append(out, dfs.NodeID(c-'0'))
	}
	return out
}

// view has a group's leader say that all is as listed.
func (w *groupWorld) view(g *dfs.Group) {
	v := &GroupView{Leader: g.Replicas[0], Voters: slices.Clone(g.Replicas)}
	for _, n := range g.Replicas {
		if w.in.Up[n] {
			v.Heard = append(v.Heard, n)
		}
	}
	w.in.Views[g.ID] = v
}

func (w *groupWorld) down(n dfs.NodeID) {
	w.in.Up[n], w.in.Gone[n] = false, true
	for _, g := range w.in.Map.Groups {
		w.view(g)
	}
}

func draw(ds []Decision) string {
	var out []string
	for _, d := range ds {
		out = append(out, d.String())
	}
	return strings.Join(out, "\n")
}

func TestPlanGroups(t *testing.T) {
	for _, c := range []struct {
		name  string
		nodes int
		width int
		lists []string
		spoil func(*groupWorld)
		want  string
	}{
		{name: "alone", nodes: 1, width: 1, lists: []string{"1", "1"}},
		{name: "founded", nodes: 3, width: 3, lists: []string{"1", "1"},
			want: "replicas of g0 = [n1 n2 n3], were [n1]: it has too few\nreplicas of g1 = [n1 n2 n3], were [n1]: it has too few"},
		{name: "founded, one has not come yet", nodes: 2, width: 3, lists: []string{"1"},
			want: "replicas of g0 = [n1 n2], were [n1]: it has too few"},
		{name: "nobody to fill with", nodes: 2, width: 3, lists: []string{"12"}},
		{name: "all well", nodes: 3, width: 3, lists: []string{"123", "123"}},
		{name: "gone, no spare", nodes: 3, width: 3, lists: []string{"123"}, spoil: func(w *groupWorld) { w.down(3) }},
		{name: "gone", nodes: 5, width: 3, lists: []string{"123", "345"}, spoil: func(w *groupWorld) { w.down(3) },
			want: "replicas of g0 = [n1 n2 n4], were [n1 n2 n3]: n3 is gone\nreplicas of g1 = [n1 n4 n5], were [n3 n4 n5]: n3 is gone"},
		{name: "down, not gone yet", nodes: 4, width: 3, lists: []string{"123"}, spoil: func(w *groupWorld) {
			w.down(3)
			w.in.Gone[3] = false
		}},
		{name: "gone for all but the group's leader", nodes: 4, width: 3, lists: []string{"123"}, spoil: func(w *groupWorld) {
			w.in.Up[3], w.in.Gone[3] = false, true
		}},
		{name: "gone, and the group has no leader", nodes: 4, width: 3, lists: []string{"123"}, spoil: func(w *groupWorld) {
			w.down(3)
			delete(w.in.Views, 0)
		}},
		{name: "replaced by one of its name", nodes: 4, width: 3, lists: []string{"123"}, spoil: func(w *groupWorld) { w.in.Map.Nodes[2].Replaced = true },
			want: "replicas of g0 = [n1 n2 n4], were [n1 n2 n3]: n3 is gone"},
		{name: "two gone: one after the other", nodes: 7, width: 5, lists: []string{"12345"}, spoil: func(w *groupWorld) {
			w.down(4)
			w.down(5)
		}, want: "replicas of g0 = [n1 n2 n3 n5 n6], were [n1 n2 n3 n4 n5]: n4 is gone"},
		{name: "all of the list is given up, after a recovery from another", nodes: 6, width: 3, lists: []string{"234"}, spoil: func(w *groupWorld) {
			for _, n := range w.in.Map.Nodes[1:4] {
				n.Replaced = true
			}
			w.in.Views[0].Voters, w.in.Views[0].Heard = nodesOf("1"), nodesOf("1")
		}, want: "replicas of g0 = [n1 n3 n4], were [n2 n3 n4]: n2 is gone"},
		{name: "and a step later", nodes: 6, width: 3, lists: []string{"134"}, spoil: func(w *groupWorld) {
			for _, n := range w.in.Map.Nodes[1:4] {
				n.Replaced = true
			}
			w.in.Views[0].Voters, w.in.Views[0].Heard = nodesOf("1"), nodesOf("1")
		}, want: "replicas of g0 = [n1 n4 n5], were [n1 n3 n4]: n3 is gone"},
		{name: "the one that is to come in is gone", nodes: 5, width: 3, lists: []string{"124"}, spoil: func(w *groupWorld) {
			w.down(4)
			w.in.Views[0].Voters = nodesOf("123")
		}, want: "replicas of g0 = [n1 n2 n3], were [n1 n2 n4]: n4 is gone"},
		{name: "an earlier exchange is under way", nodes: 6, width: 5, lists: []string{"12346"}, spoil: func(w *groupWorld) {
			w.down(2)
			w.in.Views[0].Voters = nodesOf("12345")
		}},
		{name: "a removal is under way", nodes: 6, width: 3, lists: []string{"123"}, spoil: func(w *groupWorld) {
			w.down(2)
			w.in.Views[0].Voters = nodesOf("1234")
		}},
		{name: "a full disk takes nothing", nodes: 5, width: 3, lists: []string{"123"}, spoil: func(w *groupWorld) {
			w.down(3)
			w.in.Full[4] = true
		}, want: "replicas of g0 = [n1 n2 n5], were [n1 n2 n3]: n3 is gone"},
		{name: "balance, not what the node leads, the control group last", nodes: 4, width: 3, lists: []string{"123", "123", "123"},
			want: "replicas of g1 = [n1 n2 n4], were [n1 n2 n3]: n3 has 3 replicas and n4 0"},
		{name: "balance waits for a learner", nodes: 4, width: 3, lists: []string{"123", "123", "123"}, spoil: func(w *groupWorld) {
			w.in.Views[2].Voters = nodesOf("12")
		}},
		{name: "balance waits for a member that is away", nodes: 4, width: 3, lists: []string{"123", "123", "123"}, spoil: func(w *groupWorld) {
			w.in.Views[2].Heard = nodesOf("12")
		}},
		{name: "balance leaves alone what an operator widened", nodes: 5, width: 1, lists: []string{"12", "12"}},
		{name: "forming", nodes: 4, width: 3, lists: []string{"123", "123"}, spoil: func(w *groupWorld) {
			w.in.Map.Groups[1].Founder = 2
			delete(w.in.Views, 1)
		}},
		{name: "the founder is gone", nodes: 4, width: 3, lists: []string{"134", "234"}, spoil: func(w *groupWorld) {
			w.in.Map.Groups[1].Founder = 2
			w.down(2)
		}, want: "abandon g1, whose founder n2 is gone; the next one on [n1 n3 n4]"},
		{name: "the founder is gone, and nobody to begin with", nodes: 3, width: 3, lists: []string{"123", "123"}, spoil: func(w *groupWorld) {
			w.in.Map.Groups[1].Founder = 2
			w.down(2)
		}},
	} {
		w := newGroupWorld(c.nodes, c.width, c.lists...)
		if c.spoil != nil {
			c.spoil(w)
		}
		if got := draw(PlanGroups(w.in)); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

// TestPlanGroupsEnds lets nodes come, go and return at random, with leaders that
// follow their lists at once or not at all: no list ever falls below the width or
// changes by more than one node, and in the end the replicas are spread evenly.
func TestPlanGroupsEnds(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		nodes, width := 3+rng.IntN(5), 1+rng.IntN(3)
		var lists []string
		for range 1 + rng.IntN(20) {
			lists = append(lists, "123"[:width])
		}
		w := newGroupWorld(nodes, width, lists...)
		for range 40 {
			n := dfs.NodeID(1 + rng.IntN(nodes))
			switch up := len(w.in.Up) - len(w.in.Gone); {
			case w.in.Gone[n]:
				delete(w.in.Gone, n)
				w.in.Up[n] = true
			case up > width+1 && rng.IntN(2) == 0:
				w.down(n)
			}
			if rng.IntN(3) > 0 {
				w.settle(t)
			}
		}
		clear(w.in.Gone)
		for _, n := range w.in.Map.Nodes {
			w.in.Up[n.ID] = true
		}
		for _, g := range w.in.Map.Groups {
			w.view(g)
		}
		w.settle(t)
		count := map[dfs.NodeID]int{}
		for _, g := range w.in.Map.Groups {
			for _, n := range g.Replicas {
				count[n]++
			}
		}
		least, most := len(lists), 0
		for _, n := range w.in.Map.Nodes {
			least, most = min(least, count[n.ID]), max(most, count[n.ID])
		}
		if most-least > 1 {
			t.Errorf("seed %d: %d nodes, %d groups of %d: %v", seed, nodes, len(lists), width, count)
		}
	}
}

// settle carries decisions out until there are no more.
func (w *groupWorld) settle(t *testing.T) {
	t.Helper()
	for range 10_000 {
		ds := PlanGroups(w.in)
		if len(ds) == 0 {
			return
		}
		for _, d := range ds {
			r := d.(SetReplicas)
			g := w.in.Map.Groups[r.Group]
			if !slices.Equal(g.Replicas, r.Was) || len(r.To) < w.in.Width || len(r.To) != len(r.Was) || !slices.IsSorted(r.To) {
				t.Fatalf("%v", d)
			}
			left := 0
			for _, n := range r.Was {
				if !slices.Contains(r.To, n) {
					left++
				}
			}
			if left != 1 {
				t.Fatalf("%d nodes leave at once: %v", left, d)
			}
			w.in.Map.Groups[r.Group] = &dfs.Group{ID: g.ID, Replicas: r.To}
			w.view(w.in.Map.Groups[r.Group])
			w.moved++
		}
	}
	t.Fatal(fmt.Sprint("the planner does not come to an end: ", w.moved))
}
