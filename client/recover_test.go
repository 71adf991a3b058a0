package client

import (
	"slices"
	"strings"
	"testing"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// TestRecoveryPlans makes plans from what meta nodes say: n1 to n5 are called a to e.
func TestRecoveryPlans(t *testing.T) {
	m := &dfs.Map{}
	for i, name := range []string{"a", "b", "c", "d", "e"} {
		m.Nodes = append(m.Nodes, &dfs.Node{ID: dfs.NodeID(i + 1), Name: name, Addr: name + ":1", Roles: dfs.RoleMeta})
	}
	m.Nodes = append(m.Nodes, &dfs.Node{ID: 6, Name: "s", Addr: "s:1", Roles: dfs.RoleStorage})
	m.Groups = []*dfs.Group{{ID: 0, Replicas: []dfs.NodeID{1, 2, 3}}, {ID: 1, Replicas: []dfs.NodeID{1, 2, 3}}}
	abc := []uint32{1, 2, 3}
	whole := &wire.Survivor{Group: 0, Last: 9, LastTerm: 2, Voters: []uint32{1, 4, 5}}
	sv := func(term, last, commit uint64) *wire.Survivor {
		return &wire.Survivor{Group: 1, LastTerm: term, Last: last, Commit: commit, Term: term, Voters: abc}
	}
	with := func(s *wire.Survivor, change func(*wire.Survivor)) *wire.Survivor {
		change(s)
		return s
	}
	type says map[dfs.NodeID][]*wire.Survivor
	for _, c := range []struct {
		name   string
		says   says // by those that answer; all others are silent
		lost   string
		groups []dfs.GroupID
		chosen dfs.NodeID // of group 1; 0: it is not recovered
		want   string     // in the error, or in the losses
	}{
		{name: "one of three is left", says: says{1: {whole, sv(2, 7, 7)}, 4: {whole}, 5: {whole}}, lost: "b,c", chosen: 1, want: "entry 7"},
		{name: "the longest log of two", says: says{1: {whole, sv(2, 7, 7)}, 2: {sv(2, 8, 7)}, 4: {whole}, 5: {whole}}, lost: "c", want: ""},
		{name: "five voters, the later term", says: says{
			1: {whole, with(sv(2, 9, 7), func(s *wire.Survivor) { s.Voters = []uint32{1, 2, 3, 4, 5} })},
			2: {with(sv(3, 8, 7), func(s *wire.Survivor) { s.Voters = []uint32{1, 2, 3, 4, 5} })},
		}, lost: "c,d,e", groups: []dfs.GroupID{1}, want: "comes first"},
		{name: "the longest is unfit", says: says{
			1: {with(sv(2, 9, 9), func(s *wire.Survivor) { s.Unfit = "no state"; s.Voters = []uint32{1, 2, 3, 4, 5} }), {Group: 0, Last: 1, LastTerm: 1, Voters: []uint32{1}}},
			2: {with(sv(2, 8, 8), func(s *wire.Survivor) { s.Voters = []uint32{1, 2, 3, 4, 5} })},
		}, lost: "c,d,e", chosen: 2, want: "entries 9 to 9, which a knows"},
		{name: "an earlier generation does not count", says: says{
			1: {whole, with(sv(2, 9, 9), func(s *wire.Survivor) { s.Generation = 5; s.Voters = []uint32{1} })},
			2: {sv(3, 30, 30)}, 4: {whole}, 5: {whole},
		}, lost: "c", chosen: 0},
		{name: "joint, one half is lost", says: says{
			1: {whole, with(sv(2, 9, 9), func(s *wire.Survivor) { s.Voters, s.Outgoing = []uint32{1, 4, 5}, abc })}, 4: {whole, sv(2, 8, 8)}, 5: {whole, sv(2, 8, 8)},
		}, lost: "b,c", chosen: 1},
		{name: "no survivor has log and state", says: says{1: {whole, with(sv(2, 9, 9), func(s *wire.Survivor) { s.Unfit = "no state" })}, 4: {whole}, 5: {whole}}, lost: "b,c", want: "no survivor has log and state: a (n1): no state"},
		{name: "no replica at all", says: says{4: {whole}, 5: {whole}}, lost: "a,b,c", want: "has no replica with a log"},
		{name: "an empty one is none", says: says{4: {whole, {Group: 1}}, 5: {whole}}, lost: "a,b,c", want: "has no replica with a log"},
		{name: "a lost node answers", says: says{1: {whole, sv(2, 7, 7)}, 2: {sv(2, 7, 7)}}, lost: "b,c", want: "b (n2) is not lost: it answers at b:1"},
		{name: "a silent voter is not called lost", says: says{1: {whole, sv(2, 7, 7)}, 4: {whole}, 5: {whole}}, lost: "b", want: "c (n3) votes in g1, does not answer"},
		{name: "nothing is lost", says: says{1: {whole, sv(2, 7, 7)}, 2: {sv(2, 7, 7)}, 4: {whole}, 5: {whole}}, lost: "c", groups: []dfs.GroupID{1}, want: "has its majority"},
		{name: "unreadable on a voter", says: says{1: {whole, sv(2, 7, 7)}, 2: {{Group: 1, Unreadable: "rot"}}, 4: {whole}, 5: {whole}}, lost: "c", want: "b (n2) votes in g1 and cannot read what it has of it (rot)"},
		{name: "unreadable on a voter of another group", says: says{1: {whole, sv(2, 7, 7)}, 4: {{Group: 0, Unreadable: "rot"}}, 5: {whole}}, lost: "b,c", groups: []dfs.GroupID{1}, chosen: 1},
		{name: "unreadable on a learner", says: says{1: {whole, sv(2, 7, 7)}, 4: {whole, {Group: 1, Unreadable: "rot"}}, 5: {whole}}, lost: "b,c", chosen: 1},
		{name: "unreadable everywhere", says: says{4: {whole, {Group: 1, Unreadable: "rot"}}, 5: {whole}}, lost: "a,b,c", want: "has no replica with a log that can be read: d (n4): rot"},
		{name: "unreadable, and a majority without it", says: says{1: {whole, sv(2, 7, 7)}, 2: {sv(2, 7, 7)}, 3: {{Group: 1, Unreadable: "rot"}}, 4: {whole}}, lost: "e", groups: []dfs.GroupID{1}, want: "has its majority"},
		{name: "it has a leader", says: says{1: {whole, with(sv(2, 7, 7), func(s *wire.Survivor) { s.Leader = 2 })}, 4: {whole}, 5: {whole}}, lost: "b,c", want: "a (n1) follows b (n2) as its leader in g1"},
		{name: "nobody is called lost", says: says{1: {whole}}, want: "no lost node is named"},
		{name: "a storage node", says: says{1: {whole}}, lost: "s", want: "s is no meta node"},
		{name: "nobody answers", lost: "b,c", want: "no meta node answers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := recoveryInput{m: m, groups: c.groups, now: 100}
			for _, n := range m.Nodes[:5] {
				a := survivorAnswer{addr: n.Addr}
				if groups, ok := c.says[n.ID]; ok {
					a.probe = &wire.ProbeReply{Cluster: make([]byte, 16), Node: uint32(n.ID)}
					a.reply = &wire.SurvivorsReply{Name: n.Name, Node: uint32(n.ID), Groups: groups}
				}
				in.answers = append(in.answers, a)
			}
			var names []string
			if c.lost != "" {
				names = strings.Split(c.lost, ",")
			}
			var p *RecoveryPlan
			var err error
			if in.lost, err = in.find(names); err == nil {
				p, err = in.plan()
			}
			got, losses := dfs.NodeID(0), ""
			if err != nil {
				losses = err.Error()
			} else {
				for _, g := range p.Groups {
					if g.Group == 1 {
						got, losses = g.Nodes[g.Chosen].ID, strings.Join(g.Losses, "; ")
					}
				}
			}
			if got != c.chosen || !strings.Contains(losses, c.want) || err != nil && c.chosen != 0 {
				t.Errorf("goes on from %v: %s; want %v: %s", got, losses, c.chosen, c.want)
			}
		})
	}
}

// TestDamagedNodeInPlans: one that answers, and does not say what it has, is not told to run on.
func TestDamagedNodeInPlans(t *testing.T) {
	m := &dfs.Map{}
	for i, name := range []string{"a", "b", "c"} {
		m.Nodes = append(m.Nodes, &dfs.Node{ID: dfs.NodeID(i + 1), Name: name, Addr: name + ":1", Roles: dfs.RoleMeta})
	}
	probe := func(id uint32) *wire.ProbeReply { return &wire.ProbeReply{Cluster: make([]byte, 16), Node: id} }
	answers := []survivorAnswer{
		{addr: "a:1", probe: probe(1), reply: &wire.SurvivorsReply{Name: "a", Node: 1, Groups: []*wire.Survivor{
			{Group: 0, Last: 9, LastTerm: 2, Voters: []uint32{1, 2, 3}},
		}}},
		{addr: "b:1", err: dfs.Errorf(dfs.Unavailable, "dial", "refused")},
		{addr: "c:1", probe: probe(3), err: dfs.Errorf(dfs.Unavailable, "meta", "its Raft log is damaged")},
	}
	for lost, want := range map[string]string{
		"b,c": "c (n3) answers at c:1, but does not say what it has (meta: its Raft log is damaged). If its log is damaged and nothing brings it back, stop it for good",
		"b":   "c (n3) votes in g0, answers at c:1 without saying what it has (meta: its Raft log is damaged), and is not called lost",
		"c":   "stop it for good",
	} {
		in := recoveryInput{m: m, answers: answers, now: 100}
		var err error
		if in.lost, err = in.find(strings.Split(lost, ",")); err == nil {
			_, err = in.plan()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("lost %s: %v, want %q", lost, err, want)
		}
	}
}

// TestAsideOfRecoveredGroupsStays: what is taken back is of groups that nobody recovered.
func TestAsideOfRecoveredGroupsStays(t *testing.T) {
	says := func(node uint32, svs ...*wire.Survivor) survivorAnswer {
		return survivorAnswer{addr: "x:1", reply: &wire.SurvivorsReply{Name: "x", Node: node, Groups: svs}}
	}
	var got []uint32
	for _, s := range asideOf([]survivorAnswer{
		says(1, &wire.Survivor{Group: 0, Generation: 50}, &wire.Survivor{Group: 1}, &wire.Survivor{Group: 2, Generation: 50}, &wire.Survivor{Group: 3, Aside: 60}),
		says(2, &wire.Survivor{Group: 0, Aside: 50}, &wire.Survivor{Group: 1, Aside: 50}, &wire.Survivor{Group: 2, Aside: 60}, &wire.Survivor{Group: 3}),
		{addr: "y:1"},
	}) {
		if s.req.Step != wire.RecoverRequest_TAKE_BACK {
			t.Errorf("step %v", s.req)
		}
		got = append(got, s.req.Group, s.req.Node)
	}
	// Of group 2 a second recovery was called off, of which the first was done.
	if want := []uint32{3, 1, 1, 2, 2, 2}; !slices.Equal(got, want) {
		t.Errorf("taken back are %v (group, node), want %v", got, want)
	}
}

// TestDonePlans: a plan is done only when the lost nodes were given up and all groups have
// heard of it.
func TestDonePlans(t *testing.T) {
	for _, c := range []struct {
		name               string
		replaced, unfenced bool
		voters             []uint32
		want               bool
	}{
		{"done", true, false, []uint32{1}, true},
		{"not given up yet", false, false, []uint32{1}, false},
		{"not told all groups yet", true, true, []uint32{1}, false},
		{"a group is left to recover", true, false, []uint32{1, 2}, false},
	} {
		m := &dfs.Map{Nodes: []*dfs.Node{{ID: 1, Name: "a", Roles: dfs.RoleMeta}, {ID: 2, Name: "b", Roles: dfs.RoleMeta, Replaced: c.replaced}}}
		in := recoveryInput{m: m, now: 100, answers: []survivorAnswer{{
			addr: "a:1", probe: &wire.ProbeReply{Cluster: make([]byte, 16), Node: 1}, reply: &wire.SurvivorsReply{Name: "a", Node: 1, Groups: []*wire.Survivor{
				{Group: 0, Last: 9, LastTerm: 2, Voters: c.voters}, {Group: 1, Last: 9, LastTerm: 2, Voters: c.voters, Unfenced: c.unfenced},
			}},
		}}}
		var err error
		if in.lost, err = in.find([]string{"b"}); err != nil {
			t.Fatal(err)
		}
		p, err := in.plan()
		if err != nil || p.Done != c.want {
			t.Errorf("%s: %+v, %v", c.name, p, err)
		}
	}
}
