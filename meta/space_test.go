package meta

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// fullNodes makes the picture in which the disks of these nodes are full.
func fullNodes(ids ...dfs.NodeID) map[dfs.NodeID]*wire.MetaDisk {
	out := map[dfs.NodeID]*wire.MetaDisk{}
	for _, id := range ids {
		out[id] = &wire.MetaDisk{Node: uint32(id), Full: true}
	}
	return out
}

// without makes a node silent.
func without(st *raftgroup.Status, ids ...dfs.NodeID) *raftgroup.Status {
	for _, id := range ids {
		st.Peers[id-1].Active = false
	}
	return st
}

func TestFullHasHysteresis(t *testing.T) {
	was := false
	for _, step := range []struct {
		free uint64
		want bool
	}{{1000, false}, {800, false}, {799, true}, {800, true}, {999, true}, {1000, false}, {800, false}, {0, true}} {
		if was = fullAt(was, step.free, 800); was != step.want {
			t.Fatalf("%d free: full %v", step.free, was)
		}
	}
}

func TestRoomOf(t *testing.T) {
	for _, c := range []struct {
		name   string
		voters int
		full   []dfs.NodeID
		away   []dfs.NodeID
		want   room
	}{
		{name: "nobody is full", voters: 3, want: roomy},
		{name: "one away is no question of space", voters: 3, away: []dfs.NodeID{2, 3}, want: roomy},
		{name: "one full", voters: 3, full: []dfs.NodeID{3}, want: roomy},
		{name: "the leader full", voters: 3, full: []dfs.NodeID{1}, want: roomy},
		{name: "one full, one away", voters: 3, full: []dfs.NodeID{3}, away: []dfs.NodeID{2}, want: away},
		{name: "the full one away", voters: 3, full: []dfs.NodeID{3}, away: []dfs.NodeID{3}, want: roomy},
		{name: "two full", voters: 3, full: []dfs.NodeID{1, 3}, want: none},
		{name: "two full, one away", voters: 3, full: []dfs.NodeID{1, 3}, away: []dfs.NodeID{2}, want: none},
		{name: "all full", voters: 3, full: []dfs.NodeID{1, 2, 3}, want: none},
		{name: "alone", voters: 1, full: []dfs.NodeID{1}, want: none},
		{name: "one of two", voters: 2, full: []dfs.NodeID{2}, want: none},
		{name: "two of five", voters: 5, full: []dfs.NodeID{2, 4}, want: roomy},
		{name: "two of five, one away", voters: 5, full: []dfs.NodeID{2, 4}, away: []dfs.NodeID{5}, want: away},
		{name: "three of five", voters: 5, full: []dfs.NodeID{2, 4, 5}, want: none},
		{name: "no member of this group", voters: 3, full: []dfs.NodeID{9, 10}, want: roomy},
	} {
		if got := roomOf(1, without(healthy(1, c.voters), c.away...), fullNodes(c.full...)); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestRefuge(t *testing.T) {
	for _, c := range []struct {
		name  string
		full  []dfs.NodeID
		led   map[dfs.NodeID]int
		spoil func(*raftgroup.Status)
		want  dfs.NodeID
	}{
		{name: "space here", full: []dfs.NodeID{2}},
		{name: "the one that leads fewest", full: []dfs.NodeID{1}, led: map[dfs.NodeID]int{2: 3, 3: 2}, want: 3},
		{name: "not a full one", full: []dfs.NodeID{1, 3}, led: map[dfs.NodeID]int{2: 3}, want: 2},
		{name: "all full", full: []dfs.NodeID{1, 2, 3}},
		{name: "away", full: []dfs.NodeID{1, 3}, spoil: func(st *raftgroup.Status) { st.Peers[1].Active = false }},
		{name: "behind", full: []dfs.NodeID{1, 3}, spoil: func(st *raftgroup.Status) { st.Peers[1].Match-- }},
		{name: "learner", full: []dfs.NodeID{1, 3}, spoil: func(st *raftgroup.Status) { st.Peers[1].Learner = true }},
		{name: "snapshot", full: []dfs.NodeID{1, 3}, spoil: func(st *raftgroup.Status) { st.Peers[1].Snapshot = true }},
		{name: "joint", full: []dfs.NodeID{1}, spoil: func(st *raftgroup.Status) { st.Joint = true }},
		{name: "no leader", full: []dfs.NodeID{1}, spoil: func(st *raftgroup.Status) { st.Role = raftgroup.RoleFollower }},
	} {
		st := healthy(1, 3)
		if c.spoil != nil {
			c.spoil(st)
		}
		if got := refuge(1, st, fullNodes(c.full...), c.led); got != c.want {
			t.Errorf("%s: to %v, want %v", c.name, got, c.want)
		}
	}
}

// TestHeirHasSpace: balance spreads what there is over those with space.
func TestHeirHasSpace(t *testing.T) {
	for _, c := range []struct {
		name   string
		me     dfs.NodeID
		counts []int
		full   []dfs.NodeID
		want   dfs.NodeID
	}{
		{name: "not to a full one", me: 1, counts: []int{9, 0, 0}, full: []dfs.NodeID{2}, want: 3},
		{name: "even without it", me: 1, counts: []int{5, 4, 0}, full: []dfs.NodeID{3}},
		{name: "uneven without it", me: 1, counts: []int{6, 3, 0}, full: []dfs.NodeID{3}, want: 2},
		{name: "all others full", me: 1, counts: []int{9, 0, 0}, full: []dfs.NodeID{2, 3}},
		{name: "this one full", me: 1, counts: []int{9, 0, 0}, full: []dfs.NodeID{1}},
		{name: "all full", me: 1, counts: []int{9, 0, 0}, full: []dfs.NodeID{1, 2, 3}},
	} {
		if got := heir(c.me, leads(c.counts...), fairShare(len(leads(c.counts...)), 3-len(c.full)), healthy(c.me, 3), fullNodes(c.full...)); got != c.want {
			t.Errorf("%s: to %v, want %v", c.name, got, c.want)
		}
	}
}

// TestEveryOperationIsJudged goes through all operations of a command: only what
// is listed here is taken without space.
func TestEveryOperationIsJudged(t *testing.T) {
	free := map[protoreflect.Name]bool{"unlink": true, "rmdir": true, "rmdir_freeze": true, "rmdir_commit": true, "resolve": true}
	cmd := (&wire.Command{}).ProtoReflect()
	ops := cmd.Descriptor().Oneofs().ByName("op").Fields()
	for i := range ops.Len() {
		f := ops.Get(i)
		c := &wire.Command{}
		c.ProtoReflect().Set(f, c.ProtoReflect().NewField(f))
		if grows(c) == free[f.Name()] {
			t.Errorf("%s: grows %v", f.Name(), grows(c))
		}
	}
	size, mode := int64(0), uint32(0o644)
	if grows(&wire.Command{Op: &wire.Command_SetAttr{SetAttr: &wire.SetAttrOp{Size: &size}}}) ||
		!grows(&wire.Command{Op: &wire.Command_SetAttr{SetAttr: &wire.SetAttrOp{Mode: &mode}}}) || !grows(&wire.Command{}) {
		t.Error("a truncation frees, and no other change of attributes does")
	}
}
