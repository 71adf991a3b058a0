package meta

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/sim/bubble"
	"dfsd/transport/wire"
)

// membersOf makes the leader's status of a group from words: a number is a
// voter, with l a learner, with - one that does not answer, with < one behind.
func membersOf(me dfs.NodeID, words string) *raftgroup.Status {
	st := &raftgroup.Status{Group: 1, Role: raftgroup.RoleLeader, Leader: me, Last: 10_000}
	for w := range strings.FieldsSeq(words) {
		n := dfs.NodeID(w[0] - '0')
		p := raftgroup.Progress{Node: n, Match: 10_000, Active: !strings.Contains(w, "-"), Learner: strings.Contains(w, "l")}
		if strings.Contains(w, "<") {
			p.Match = 1
		}
		if p.Learner {
			st.Learners = append(st.Learners, n)
		} else {
			st.Voters = append(st.Voters, n)
		}
		st.Peers = append(st.Peers, p)
	}
	return st
}

func (s step) String() string {
	if s.handTo != 0 {
		return fmt.Sprintf("hand to %v", s.handTo)
	}
	var out []string
	for _, c := range s.changes {
		out = append(out, fmt.Sprintf("%v %s", c.Node, [...]string{"", "learner", "voter", "out"}[c.To]))
	}
	return strings.Join(out, ", ")
}

func TestNextStep(t *testing.T) {
	for _, c := range []struct {
		name    string
		control bool
		list    string // of the map
		members string // of the group
		spoil   func(*dfs.Map, *raftgroup.Status)
		want    string
	}{
		{name: "as listed", list: "123", members: "1 2 3"},
		{name: "a node comes in", list: "12", members: "1", want: "n2 learner"},
		{name: "both are filled at a time", list: "123", members: "1 2l<", want: "n3 learner"},
		{name: "one has caught up", list: "123", members: "1 2l 3l<", want: "n2 voter"},
		{name: "the others wait", list: "123", members: "1 2l< 3l<"},
		{name: "one does not answer", list: "123", members: "1 2l- 3l-"},
		{name: "a swap begins with a learner", list: "124", members: "1 2 3", want: "n4 learner"},
		{name: "the old one stays meanwhile", list: "124", members: "1 2 3 4l<"},
		{name: "a swap", list: "124", members: "1 2 3- 4l", want: "n4 voter, n3 out"},
		{name: "the rest of a swap", list: "124", members: "1 2 3 4", want: "n3 out"},
		{name: "the silent one goes first", list: "125", members: "1 2 3 4- 5l", want: "n5 voter, n4 out"},
		{name: "the leader hands over before it goes", list: "234", members: "1 2 3 4l", want: "hand to n2"},
		{name: "alone it promotes first", list: "2", members: "1 2l", want: "n2 voter"},
		{name: "then hands over", list: "2", members: "1 2", want: "hand to n2"},
		{name: "nobody to hand to", list: "2", members: "1 2-"},
		{name: "no removal that leaves no majority", list: "12", members: "1 2- 3"},
		{name: "a learner that is not listed", list: "12", members: "1 2 3l", want: "n3 out"},
		{name: "joint", list: "124", members: "1 2 3 4l", spoil: func(_ *dfs.Map, st *raftgroup.Status) { st.Joint = true }},
		{name: "a replaced one is not filled", list: "124", members: "1 2", spoil: func(m *dfs.Map, _ *raftgroup.Status) { m.Nodes[3].Replaced = true }},
		{name: "all others learn the control group", control: true, list: "123", members: "1 2 3", want: "n4 learner"},
		{name: "and stay", control: true, list: "123", members: "1 2 3 4l 5l"},
		{name: "but for replaced ones", control: true, list: "123", members: "1 2 3 4l 5l", spoil: func(m *dfs.Map, _ *raftgroup.Status) { m.Nodes[4].Replaced = true }, want: "n5 out"},
		{name: "one that was a voter too", control: true, list: "124", members: "1 2 3 4l 5l", want: "n4 voter, n3 learner"},
		{name: "but for replaced voters", control: true, list: "124", members: "1 2 3- 4l 5l", spoil: func(m *dfs.Map, _ *raftgroup.Status) { m.Nodes[2].Replaced = true }, want: "n4 voter, n3 out"},
	} {
		m := &dfs.Map{}
		for i := range dfs.NodeID(5) {
			m.Nodes = append(m.Nodes, &dfs.Node{ID: i + 1, Roles: dfs.RoleMeta})
		}
		row := &dfs.Group{ID: 1}
		if c.control {
			row.ID = dfs.ControlGroup
		}
		for _, n := range c.list {
			row.Replicas = append(row.Replicas, dfs.NodeID(n-'0'))
		}
		st := membersOf(1, c.members)
		if c.spoil != nil {
			c.spoil(m, st)
		}
		if got := nextStep(1, m, row, st).String(); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestPlacerUsesWhatIsReady: groups whose numbers are not in a row.
func TestPlacerUsesWhatIsReady(t *testing.T) {
	p := newPlacer()
	groups := []dfs.GroupID{1, 4, 9}
	seen := map[dfs.GroupID]int{}
	for i := range 300 {
		g := p.choose(1, 0, groups, &wire.PlaceDirQuery{Name: fmt.Append(nil, i), Parent: uint64(dfs.RootIno)})
		if !slices.Contains(groups, g) {
			t.Fatalf("a directory goes to %v", g)
		}
		seen[g]++
	}
	for _, g := range groups {
		if seen[g] < 90 {
			t.Errorf("%v", seen)
		}
	}
}

// TestFounderIsRefusedOnce: a node that had a replica of a group which it is to
// found makes no second one, and says so once, however often it looks.
func TestFounderIsRefusedOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		h, err := raftgroup.Open(raftgroup.Options{
			FS: vfs.NewMem(), Dir: "data", Node: 1, CacheSize: 1 << 20, MemTableSize: 256 << 10,
			StateMachine: func(dfs.GroupID) raftgroup.StateMachine { return nil },
			Send:         func(dfs.NodeID, raftgroup.Lane, []byte) bool { return false },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		dissolved := func(context.Context) (bool, error) { return true, nil }
		if err := cmp.Or(h.JoinGroup(5), h.DestroyReplica(t.Context(), 5, dissolved)); err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		s := &Service{opts: Options{Identity: stranger{}}, log: slog.New(slog.NewTextHandler(&said, nil))}
		m := &dfs.Map{Groups: []*dfs.Group{{ID: 5, Founder: 1, Replicas: []dfs.NodeID{1, 2, 3}}}}
		refused := map[dfs.GroupID]bool{}
		for range 10 {
			s.foundGroups(h, m, refused)
		}
		if n := strings.Count(said.String(), "a group is not founded here"); n != 1 {
			t.Errorf("said %d times: %s", n, &said)
		}
		if _, ok := h.Leader(5); ok {
			t.Error("the group has begun a second time")
		}
	})
}

func TestMayLead(t *testing.T) {
	for _, c := range []struct {
		members string
		want    dfs.Kind
	}{
		{"1 2 3", 0},
		{"1 2- 3", dfs.Invalid},
		{"1 2< 3", dfs.Busy},
		{"1 2<- 3", dfs.Invalid},
		{"1 3", 0},     // no voter: told by raftgroup
		{"1 2l< 3", 0}, // likewise
		{"1 2 3-", 0},
	} {
		if err := mayLead(membersOf(1, c.members), 2, "m2"); dfs.KindOf(err) != c.want || (err == nil) != (c.want == 0) {
			t.Errorf("%s: %v, want %v", c.members, err, c.want)
		}
	}
}
