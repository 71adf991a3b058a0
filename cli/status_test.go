package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// statusAt is the clock of the golden answers.
func statusAt() time.Time { return time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC) }

// healthy is what the control leader says of a cluster of one meta node and
// three stores where nothing is amiss.
func healthy() *wire.StatusReply {
	m := &dfs.Map{Cluster: dfs.ClusterID{1, 2, 3}, Epoch: 12, DefaultClass: dfs.Replicated(2), BlockSize: 4 << 20}
	m.Nodes = append(m.Nodes, &dfs.Node{ID: 1, Name: "meta1", Addr: "127.0.0.1:7400", Roles: dfs.RoleMeta, Release: "v1"})
	m.Nodes = append(m.Nodes, &dfs.Node{ID: 2, Name: "gone", Roles: dfs.RoleMeta, Replaced: true})
	r := &wire.StatusReply{Leader: 1, Formed: true, MetaUp: []uint32{1}, Sessions: 2}
	for i := range 3 {
		id := dfs.NodeID(3 + i)
		m.Nodes = append(m.Nodes, &dfs.Node{
			ID: id, Name: "store" + string(rune('1'+i)), Addr: "127.0.0.1:741" + string(rune('0'+i)), Roles: dfs.RoleStorage, Release: "v1",
			Labels: map[string]string{"rack": "r1"},
		})
		m.Stores = append(m.Stores, &dfs.Store{
			ID: dfs.StoreID(1 + i), Node: id, Capacity: 10 << 30, State: dfs.StoreUp, StateSince: statusAt().Add(-time.Minute).UnixMilli(),
		})
		r.Stores = append(r.Stores, &wire.StoreStatus{
			Beat: &wire.StoreBeat{Store: uint32(1 + i), Capacity: 10 << 30, Used: 1 << 30, Live: 900 << 20, Device: "8:" + string(rune('1'+i)), Blocks: 100, Persisted: 12}, BeatAge: 250, Current: true,
		})
	}
	for i, stores := range [][]dfs.StoreID{{1, 2}, {1, 3}, {2, 3}} {
		pg := &dfs.PG{ID: dfs.PGID(1 + i), Class: dfs.Replicated(2), Target: stores, Active: dfs.ActingSet{Epoch: 10, Stores: stores}}
		for _, s := range stores {
			pg.Members = append(pg.Members, dfs.Member{Store: s, Complete: 10, Joined: 10})
		}
		m.PGs = append(m.PGs, pg)
	}
	for g := range uint32(3) {
		m.Groups = append(m.Groups, &dfs.Group{ID: dfs.GroupID(g), Replicas: []dfs.NodeID{1}})
		r.Groups = append(r.Groups, &wire.GroupStatus{Group: g, Leader: 1, Voters: []uint32{1}, Applied: uint64(100 + g), Inodes: uint64(g)})
	}
	r.Redundancy = &wire.Redundancy{Pgs: 3, Full: 3, AllFull: true}
	r.Map = wire.FromMap(m)
	return r
}

// change makes one of the other states of the cluster.
func change(t *testing.T, state string) *wire.StatusReply {
	r := healthy()
	m, err := r.Map.ToDFS()
	if err != nil {
		t.Fatal(err)
	}
	switch state {
	case "healthy":
	case "down": // one store, just now
		m.Stores[2].State = dfs.StoreDown
		for _, pg := range m.PGs[1:] {
			pg.Active = dfs.ActingSet{Epoch: 11, Stores: pg.Target[:1]}
			pg.Members[0].Complete = 11
		}
		r.Stores[2].Current, r.Stores[2].BeatAge = false, 3000
		r.Redundancy = &wire.Redundancy{Pgs: 3, Full: 1, Degraded: 2}
	case "many-down": // too many to declare any of them out
		m.Stores[1].State, m.Stores[2].State = dfs.StoreDown, dfs.StoreDown
		r.Redundancy = &wire.Redundancy{Pgs: 3, Degraded: 2, Stalled: 1}
		r.Notes = []string{"no store is declared out: 2 of 3 stores are missing"}
	case "refill": // the store is out, another one takes over
		m.Stores[2].State = dfs.StoreOut
		pg := m.PGs[1]
		pg.Target = []dfs.StoreID{1, 2}
		pg.Active = dfs.ActingSet{Epoch: 12, Stores: pg.Target}
		pg.Members = []dfs.Member{{Store: 1, Complete: 12, Joined: 10}, {Store: 2, Joined: 12}, {Store: 3, Complete: 10}}
		r.Stores[1].Beat.Refills = []*wire.RefillBeat{{Pg: 2, Done: 3 << 20, Left: 1 << 20}}
		r.Redundancy = &wire.Redundancy{Pgs: 3, Full: 1, Degraded: 2, BytesToRepair: 1 << 20}
	case "suspect":
		r.Stores[0].Suspect = true
		r.Redundancy.AllFull = false
	case "failed": // the disks of two stores
		for i, s := range r.Stores[1:] {
			s.Beat.State = 2
			m.Stores[1+i].State = []dfs.StoreState{dfs.StoreUp, dfs.StoreDown}[i]
		}
		r.Redundancy = &wire.Redundancy{Pgs: 3, Full: 1, Degraded: 2}
	case "shared": // a disk holds two of the three stores; one of another machine has the same name
		m.Nodes[4].Addr = "10.0.0.3:7412"
		r.Stores[1].Beat.Device, r.Stores[2].Beat.Device = "8:1", "8:1"
	case "one-disk": // as of dfsd dev
		r.Stores[1].Beat.Device, r.Stores[2].Beat.Device = "8:1", "8:1"
	case "disk-full": // of the meta node: it is the only one
		r.Disks = []*wire.MetaDisk{{Node: 1, Full: true, Free: 100 << 20, Capacity: 10 << 30, Reserve: 512 << 20, Dir: "/var/lib/dfsd/raft"}}
		r.Problems = []string{"the disk of meta node meta1 is full: …"}
	case "meta-down", "meta-replaced": // one of three; the other two can lose nothing more
		m.Nodes = append(m.Nodes, &dfs.Node{ID: 6, Name: "meta2", Addr: "127.0.0.1:7401", Roles: dfs.RoleMeta, Release: "v1", Replaced: state == "meta-replaced"})
		m.Nodes = append(m.Nodes, &dfs.Node{ID: 7, Name: "meta3", Addr: "127.0.0.1:7402", Roles: dfs.RoleMeta, Release: "v1"})
		r.MetaUp = []uint32{1, 7}
		for i, g := range m.Groups {
			g.Replicas, r.Groups[i].Voters = []dfs.NodeID{1, 6, 7}, []uint32{1, 6, 7}
		}
		if state == "meta-replaced" { // by one that is heard
			m.Nodes = append(m.Nodes, &dfs.Node{ID: 8, Name: "meta2", Addr: "127.0.0.1:7401", Roles: dfs.RoleMeta, Release: "v1"})
			r.MetaUp = append(r.MetaUp, 8)
		}
	case "meta-moving": // the place of one that is down goes to another in group 0; in group 1 one moves for balance
		for i := range dfs.NodeID(3) {
			name := fmt.Sprintf("meta%d", 2+i)
			m.Nodes = append(m.Nodes, &dfs.Node{ID: 6 + i, Name: name, Addr: name + ":7400", Roles: dfs.RoleMeta, Release: "v1"})
		}
		r.MetaUp = []uint32{1, 7, 8}
		m.Groups[0].Replicas, r.Groups[0].Voters, r.Groups[0].Learners = []dfs.NodeID{1, 7, 8}, []uint32{1, 6, 7}, []uint32{8}
		m.Groups[1].Replicas, r.Groups[1].Voters, r.Groups[1].Learners = []dfs.NodeID{1, 8}, []uint32{1, 7}, []uint32{8}
	case "meta-spare": // one is down, and another can take its place in some of the groups
		m.Nodes = append(m.Nodes, &dfs.Node{ID: 6, Name: "meta2", Addr: "127.0.0.1:7401", Roles: dfs.RoleMeta, Release: "v1"})
		m.Nodes = append(m.Nodes, &dfs.Node{ID: 7, Name: "meta3", Addr: "127.0.0.1:7402", Roles: dfs.RoleMeta, Release: "v1"})
		r.MetaUp = []uint32{1, 7}
		m.Groups[1].Replicas = []dfs.NodeID{1, 6}
	case "forming":
		r.Formed, r.MetaUp, r.Groups = false, nil, nil
		r.Problems = []string{"the cluster is forming: not every listed meta node votes in every group yet"}
	case "leaderless":
		r.Groups = r.Groups[:2]
		r.Problems = []string{"group 2 has no leader"}
	default:
		t.Fatalf("state %q", state)
	}
	r.Map = wire.FromMap(m)
	return r
}

// TestStatus prints answers of the control leader, for people and as JSON.
func TestStatus(t *testing.T) {
	datadriven.RunTest(t, "testdata/status.txt", func(t *testing.T, d *datadriven.TestData) string {
		var state string
		d.ScanArgs(t, "state", &state)
		s, err := toStatus(change(t, state), statusAt())
		if err != nil {
			return err.Error()
		}
		if d.HasArg("progress") {
			earlier, err := toStatus(change(t, state), statusAt())
			if err != nil {
				return err.Error()
			}
			earlier.Repair.Refills[0].Done -= 1 << 20
			s.progress(earlier, 2*time.Second)
		}
		var out bytes.Buffer
		switch d.Cmd {
		case "text":
			err = s.print(&out)
		case "json":
			e := json.NewEncoder(&out)
			e.SetIndent("", " ")
			err = e.Encode(s)
		case "verdict":
			if err := s.verdict(); err != nil {
				return errorLine(err)
			}
			return "serves"
		}
		if err != nil {
			return err.Error()
		}
		return out.String()
	})
}

// TestHeard: a store that died before the wait began has not reported since.
func TestHeard(t *testing.T) {
	s, err := toStatus(change(t, "healthy"), statusAt())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		since time.Duration
		age   int64
		want  bool
	}{{0, 0, false}, {200 * time.Millisecond, 250, false}, {251 * time.Millisecond, 250, true}, {time.Hour, -1, false}} {
		s.Stores[1].BeatAge, s.Stores[0].BeatAge, s.Stores[2].BeatAge = c.age, 0, 0
		if got := s.heard(c.since); got != c.want {
			t.Errorf("%v after a wait began and %d ms after a report: %v", c.since, c.age, got)
		}
	}
	s.Stores[1].BeatAge, s.Stores[1].State = 1<<40, "down"
	if !s.heard(time.Second) {
		t.Error("a store that is down need not report")
	}
}

// TestThinGroups: a list that is shorter than the cluster wants it is said, whoever is
// there: after a recovery one disk may be all that a group has.
func TestThinGroups(t *testing.T) {
	r := &wire.StatusReply{Width: 3}
	s := &status{m: &dfs.Map{Groups: []*dfs.Group{{ID: 0, Replicas: []dfs.NodeID{1}}, {ID: 1, Replicas: []dfs.NodeID{1, 2, 3}}, {ID: 2, Replicas: []dfs.NodeID{1, 2, 3, 4}}}}}
	if n := s.thinGroups(r); n != 1 {
		t.Errorf("%d groups are thin, want 1", n)
	}
	s.addRepair(r, time.Now())
	if want := "1 group with fewer than the 3 replicas"; !slices.ContainsFunc(s.Repair.Why, func(why string) bool { return strings.Contains(why, want) }) {
		t.Errorf("%q lacks %q", s.Repair.Why, want)
	}
}

// TestReplacedMembersAreTold: a node that was replaced or given up is not taken for the one
// that has its name now.
func TestReplacedMembersAreTold(t *testing.T) {
	r := healthy()
	m, err := r.Map.ToDFS()
	if err != nil {
		t.Fatal(err)
	}
	m.Nodes[1].Name = "meta1"
	m.Groups[1].Replicas = []dfs.NodeID{1, 2}
	r.Groups[1].Voters, r.Groups[1].Learners, r.Groups[1].Leader = []uint32{2}, []uint32{1}, 2
	r.Map = wire.FromMap(m)
	s, err := toStatus(r, statusAt())
	if err != nil {
		t.Fatal(err)
	}
	g := s.Groups[1]
	if fmt.Sprintf("%v %v %v %v %v", g.Target, g.Members, g.Learners, g.Leader, g.Away) != "[meta1 meta1(n2)] [meta1(n2)] [meta1] meta1(n2) [meta1(n2)]" {
		t.Errorf("group 1 is %+v", g)
	}
}
