package cli

import (
	"fmt"
	"maps"
	"slices"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

type groupStatus struct {
	Group    uint32   `json:"group"`  // 0: the control group
	Leader   string   `json:"leader"` // name of a node; empty: none
	Members  []string `json:"members"`
	Learners []string `json:"learners"`
	Applied  uint64   `json:"applied"`
	Inodes   uint64   `json:"inodes"`
	State    string   `json:"state"`  // ready; forming: it is not used yet
	Target   []string `json:"target"` // nodes that should vote
	Away     []string `json:"away"`   // those that are missed: they vote, or should, and are down or were replaced
	LogBytes uint64   `json:"log_bytes"`

	Transactions uint64 `json:"transactions"` // that it coordinates and that are not over
	Shares       uint64 `json:"shares"`       // of transactions, its own among them
	Level        uint32 `json:"level"`        // feature level
}

// groupReady is the state of a group that may be used.
const groupReady = "ready"

func (s *status) memberName(id dfs.NodeID) string {
	if n := s.m.Node(id); n != nil && n.Replaced {
		return fmt.Sprintf("%s(%v)", n.Name, id)
	}
	return s.nodeName(id)
}

func (s *status) addGroups(r *wire.StatusReply) {
	s.Groups = []groupStatus{}
	known := map[uint32]*wire.GroupStatus{}
	for _, g := range r.GetGroups() {
		known[g.GetGroup()] = g
	}
	for _, row := range s.m.Groups {
		id := uint32(row.ID)
		g := known[id] // nil: no leader has reported
		out := groupStatus{Group: id, Applied: g.GetApplied(), Inodes: g.GetInodes(), Members: s.names(g.GetVoters()), Learners: s.names(g.GetLearners()),
			State: groupReady, Target: s.names(wire.Ints(row.Replicas)), LogBytes: g.GetLogBytes(),
			Transactions: g.GetTransactions(), Shares: g.GetShares(), Level: g.GetLevel(),
		}
		if !row.Ready() {
			out.State = "forming"
		}
		away, _ := s.awayFrom(r, row)
		out.Away = s.names(wire.Ints(away))
		if g.GetLeader() != 0 {
			out.Leader = s.memberName(dfs.NodeID(g.GetLeader()))
		}
		s.Groups = append(s.Groups, out)
	}
}

// awayFrom lists the nodes that are missed in a group: those that vote, or should, and
// are down or were replaced. One that only votes still is not missed when as many are
// left without it as should vote. That some of these do not yet is no fault: they are
// sent the group first.
func (s *status) awayFrom(r *wire.StatusReply, row *dfs.Group) (away []dfs.NodeID, left int) {
	voters := s.votersOf(r, row)
	if !r.GetFormed() {
		return nil, len(voters) // they are about to join
	}
	there := func(id dfs.NodeID) bool {
		n := s.m.Node(id)
		return n != nil && !n.Replaced && slices.Contains(r.GetMetaUp(), uint32(id))
	}
	for _, id := range voters {
		if there(id) {
			left++
		}
	}
	if left >= min(len(voters), len(row.Replicas)) && !slices.ContainsFunc(row.Replicas, func(id dfs.NodeID) bool { return !there(id) }) {
		return nil, left
	}
	for _, id := range slices.Concat(voters, row.Replicas) {
		if !there(id) && !slices.Contains(away, id) {
			away = append(away, id)
		}
	}
	return away, left
}

// votersOf lists who votes in a group, as far as its leader has said.
func (s *status) votersOf(r *wire.StatusReply, row *dfs.Group) []dfs.NodeID {
	for _, g := range r.GetGroups() {
		if g.GetGroup() == uint32(row.ID) && len(g.GetVoters()) > 0 {
			return wire.IDs[dfs.NodeID](g.GetVoters())
		}
	}
	return row.Replicas
}

// shortGroups counts the groups in which somebody is missed.
func (s *status) shortGroups() (n int) {
	for _, g := range s.Groups {
		if len(g.Away) > 0 {
			n++
		}
	}
	return n
}

// thinGroups counts the groups whose list is shorter than the cluster wants it.
func (s *status) thinGroups(r *wire.StatusReply) (n int) {
	for _, g := range s.m.Groups {
		if len(g.Replicas) < int(r.GetWidth()) {
			n++
		}
	}
	return n
}

// replicaReasons says which nodes are away from their groups, and what helps.
func (s *status) replicaReasons(r *wire.StatusReply) (out []string) {
	full := map[uint32]bool{}
	for _, d := range r.GetDisks() {
		full[d.GetNode()] = d.GetFull()
	}
	type place struct {
		groups int
		spare  bool // another node can take each of its places
	}
	places := map[dfs.NodeID]*place{}
	brink := 0
	for _, row := range s.m.Groups {
		away, left := s.awayFrom(r, row)
		if len(away) > 0 && left == len(s.votersOf(r, row))/2+1 {
			brink++
		}
		spare := slices.ContainsFunc(s.m.MetaNodes(), func(n *dfs.Node) bool {
			return !row.Has(n.ID) && slices.Contains(r.GetMetaUp(), uint32(n.ID)) && !full[uint32(n.ID)]
		})
		for _, id := range away {
			if places[id] == nil {
				places[id] = &place{spare: true}
			}
			places[id].groups++
			places[id].spare = places[id].spare && (spare || !row.Has(id))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(places)) {
		p, n := places[id], s.m.Node(id)
		text := fmt.Sprintf("meta node %s (%v) is down, with a place in %s: start it, or ", s.nodeName(id), id, plural(p.groups, "group"))
		switch {
		case n != nil && n.Replaced:
			text = fmt.Sprintf("meta node %s (%v) was replaced by another of its name, or given up: its place in %s is to be filled", n.Name, id, plural(p.groups, "group"))
		case p.spare:
			text += "wait: another meta node takes its place after the grace period"
		default:
			text += "add a meta node, which takes its place after the grace period"
		}
		out = append(out, text)
	}
	if brink > 0 {
		out = append(out, fmt.Sprintf("no other voter of %s may go: the rest would be no majority", plural(brink, "group")))
	}
	return out
}

// names names members of a group. One that was replaced or given up has its number behind
// its name: another may have that name by now.
func (s *status) names(ids []uint32) []string {
	out := []string{}
	for _, id := range ids {
		out = append(out, s.memberName(dfs.NodeID(id)))
	}
	slices.Sort(out)
	return out
}
