package meta

import (
	"maps"
	"slices"
	"testing"

	"dfsd/dfs"
	"dfsd/raftgroup"
)

// leads makes the picture in which node i+1 leads counts[i] groups, the first
// the control group too.
func leads(counts ...int) map[dfs.GroupID]dfs.NodeID {
	out := map[dfs.GroupID]dfs.NodeID{}
	for i, n := range counts {
		for range n {
			out[dfs.GroupID(len(out))] = dfs.NodeID(i + 1)
		}
	}
	return out
}

// healthy is the status of a group in the eyes of its leader.
func healthy(me dfs.NodeID, voters int) *raftgroup.Status {
	st := &raftgroup.Status{Role: raftgroup.RoleLeader, Leader: me, Last: 1000}
	for v := range dfs.NodeID(voters) {
		st.Voters = append(st.Voters, v+1)
		st.Peers = append(st.Peers, raftgroup.Progress{Node: v + 1, Match: 1000 - handoverSlack, Active: true})
	}
	return st
}

func TestOver(t *testing.T) {
	for _, c := range []struct {
		counts []int
		voters int
		want   int
	}{
		{[]int{9, 0, 0}, 3, 6},
		{[]int{4, 3, 3}, 3, 0}, // the share is rounded up
		{[]int{2, 4, 4}, 3, -2},
		{[]int{9}, 1, 0},
		{[]int{1001, 0, 0}, 3, 667},
	} {
		if got := over(1, leads(c.counts...), c.voters); got != c.want {
			t.Errorf("%v: %d more than the share among %d, want %d", c.counts, got, c.voters, c.want)
		}
	}
}

func absent(n dfs.NodeID) func(*raftgroup.Status) {
	return func(st *raftgroup.Status) { st.Peers[n-1].Active = false }
}

func TestHeir(t *testing.T) {
	for _, c := range []struct {
		name   string
		me     dfs.NodeID
		counts []int
		spoil  func(*raftgroup.Status)
		want   dfs.NodeID
	}{
		{name: "all on one", me: 1, counts: []int{9, 0, 0}, want: 2},
		{name: "the fewest", me: 1, counts: []int{6, 2, 1}, want: 3},
		{name: "even", me: 1, counts: []int{3, 3, 3}},
		{name: "as even as can be", me: 1, counts: []int{4, 3, 3}},
		{name: "share rounded up", me: 1, counts: []int{4, 4, 2}},
		{name: "not the one with too many", me: 2, counts: []int{6, 2, 1}},
		{name: "ring order", me: 3, counts: []int{1, 1, 7}, want: 1},
		{name: "the next in the ring", me: 2, counts: []int{1, 7, 1}, want: 3},
		{name: "alone", me: 1, counts: []int{9}},
		{name: "two", me: 1, counts: []int{9, 0}, want: 2},
		{name: "more nodes than groups", me: 1, counts: []int{2, 1, 0, 0, 0}, want: 3},
		{name: "a member away", me: 1, counts: []int{9, 0, 0}, spoil: absent(3), want: 2},
		{name: "the one with the fewest away", me: 1, counts: []int{6, 3, 0}, spoil: absent(3), want: 2},
		{name: "even among those that are there", me: 1, counts: []int{5, 4, 0}, spoil: absent(3)},
		{name: "nobody else there", me: 1, counts: []int{9, 0}, spoil: absent(2)},
		{name: "a member away that was behind", me: 1, counts: []int{9, 0, 0}, spoil: func(st *raftgroup.Status) {
			absent(3)(st)
			st.Peers[2].Match, st.Peers[2].Snapshot = 0, true
		}, want: 2},
		{name: "a member behind", me: 1, counts: []int{9, 0, 0}, spoil: func(st *raftgroup.Status) { st.Peers[1].Match-- }},
		{name: "a snapshot", me: 1, counts: []int{9, 0, 0}, spoil: func(st *raftgroup.Status) { st.Peers[1].Snapshot = true }},
		{name: "a learner", me: 1, counts: []int{9, 0, 0}, spoil: func(st *raftgroup.Status) { st.Learners = []dfs.NodeID{4} }},
		{name: "joint", me: 1, counts: []int{9, 0, 0}, spoil: func(st *raftgroup.Status) { st.Joint = true }},
		{name: "no leader any more", me: 1, counts: []int{9, 0, 0}, spoil: func(st *raftgroup.Status) { st.Role = raftgroup.RoleFollower }},
	} {
		st := healthy(c.me, len(c.counts))
		if c.spoil != nil {
			c.spoil(st)
		}
		if got := heir(c.me, leads(c.counts...), fairShare(len(leads(c.counts...)), len(c.counts)), st, nil); got != c.want {
			t.Errorf("%s: node %v hands to %v, want %v", c.name, c.me, got, c.want)
		}
	}
}

func TestExcess(t *testing.T) {
	if got := excess(1, leads(3, 3, 3)); !slices.Equal(got, []dfs.GroupID{1, 2}) {
		t.Errorf("node 1 might hand over %v: the control group stays", got)
	}
	if got := excess(2, leads(3, 3, 3)); !slices.Equal(got, []dfs.GroupID{3, 4, 5}) {
		t.Errorf("node 2 might hand over %v", got)
	}
	unled := leads(3, 3, 3)
	unled[8] = 0
	if got := excess(1, unled); got != nil {
		t.Errorf("%v might move while a group has no leader", got)
	}
}

func TestByLoad(t *testing.T) {
	for _, c := range []struct {
		name  string
		rates map[dfs.GroupID]uint32
		want  []dfs.GroupID
	}{
		{"nothing to do: by number", nil, []dfs.GroupID{1, 2, 3, 4}},
		{"it does all: what is nearest to the half of it", map[dfs.GroupID]uint32{1: 10, 2: 500, 3: 300, 4: 190}, []dfs.GroupID{2, 3, 4, 1}},
		{"it does less than the other: the idle ones", map[dfs.GroupID]uint32{1: 50, 2: 0, 3: 20, 4: 0, 5: 900}, []dfs.GroupID{2, 4, 3, 1}},
	} {
		loads := map[dfs.GroupID]groupLoad{}
		for g, r := range c.rates {
			loads[g] = groupLoad{rate: r}
		}
		leaders := leads(5, 1)
		own := excess(1, leaders)
		if byLoad(own, 1, leaders, loads, 2); !slices.Equal(own, c.want) {
			t.Errorf("%s: %v, want %v", c.name, own, c.want)
		}
	}
}

// TestBalanceEnds lets every node that leads too many groups hand one over at
// the same moment, again and again, from every beginning: in the end no two differ by
// more than one, and then nothing moves. So it is while one of them is away.
func TestBalanceEnds(t *testing.T) {
	const groups = 9
	for _, gone := range []dfs.NodeID{0, 1} {
		balanceEnds(t, groups, gone)
	}
}

func balanceEnds(t *testing.T, groups int, gone dfs.NodeID) {
	for _, nodes := range []int{2, 3, 5, 7} {
		var begin func(counts []int, left int)
		begin = func(counts []int, left int) {
			if len(counts) < nodes-1 {
				for n := range left + 1 {
					begin(append(counts, n), left-n)
				}
				return
			}
			there := nodes
			if gone > 0 {
				if there--; counts[gone-1] > 0 {
					return // it leads nothing
				}
			}
			picture := leads(append(slices.Clone(counts), left)...)
			var all []*dfs.Node
			for n := range dfs.NodeID(nodes) {
				all = append(all, &dfs.Node{ID: n + 1})
			}
			for step, calm := 0, balanceCalm; ; step++ {
				next := maps.Clone(picture)
				for me := range dfs.NodeID(nodes) {
					keep := fairShare(groups, nodes)
					if turn(me+1, picture, all, calm) {
						keep = 0
					}
					st := healthy(me+1, nodes)
					if gone > 0 {
						absent(gone)(st)
					}
					for _, g := range excess(me+1, picture) {
						if to := heir(me+1, picture, keep, st, nil); to != 0 {
							next[g] = to
							break
						}
					}
				}
				if maps.Equal(next, picture) {
					if calm += balanceCalm; calm > balanceCalm*(nodes+1) {
						break // everybody had a turn
					}
					continue
				}
				calm = balanceCalm
				if picture = next; step > 3*groups*nodes {
					t.Fatalf("%d nodes, from %v %d: no end, now %v", nodes, counts, left, picture)
				}
			}
			led := map[dfs.NodeID]int{}
			for _, n := range picture {
				led[n]++
			}
			for i := range dfs.NodeID(nodes) {
				if n, have := i+1, led[i+1]; n != gone && (have > fairShare(groups, there) || have < groups/there) {
					t.Fatalf("%d nodes, from %v %d: node %v leads %d in the end", nodes, counts, left, n, have)
				}
			}
		}
		begin(nil, groups)
	}
}
