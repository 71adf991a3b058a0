package meta

import (
	"context"
	"slices"

	"dfsd/dfs"
	"dfsd/raftgroup"
)

// step is one change of a group's members, or what must come before it.
type step struct {
	changes []raftgroup.Change // all at once
	handTo  dfs.NodeID         // hand the leadership over first; 0: no need
}

// nextStep brings a group a step closer to its list, in the eyes of its leader:
// listed nodes become learners, and voters once they have caught up, at once with
// the removal of one that is not listed any more. Every other meta node is a
// learner of the control group, so that it has the map and the sessions.
func nextStep(me dfs.NodeID, m *dfs.Map, row *dfs.Group, st *raftgroup.Status) step {
	if st.Joint {
		return step{}
	}
	surplus := surplusVoters(m, row, st)
	pending := false // a listed node does not vote yet
	for _, n := range row.Replicas {
		switch {
		case slices.Contains(st.Voters, n):
			continue
		case !slices.Contains(st.Learners, n):
			if x := m.Node(n); x != nil && !x.Replaced {
				return step{changes: []raftgroup.Change{{Node: n, To: raftgroup.Learner}}}
			}
		case st.CaughtUp(n):
			changes := []raftgroup.Change{{Node: n, To: raftgroup.Voter}}
			if len(surplus) == 0 {
				return step{changes: changes}
			}
			if surplus[0] != me {
				return step{changes: append(changes, dismissal(m, row, surplus[0]))}
			}
			if to := listedHeir(me, row, st); to != 0 {
				return step{handTo: to}
			}
			return step{changes: changes} // then it can be handed to this one
		}
		pending = true
	}
	switch {
	case pending: // the swap comes later
	case len(surplus) > 0 && surplus[0] == me:
		return step{handTo: listedHeir(me, row, st)}
	case len(surplus) > 0 && majorityWithout(surplus[0], st):
		return step{changes: []raftgroup.Change{dismissal(m, row, surplus[0])}}
	}
	for _, n := range st.Learners {
		if !row.Has(n) && dismissal(m, row, n).To == raftgroup.None {
			return step{changes: []raftgroup.Change{{Node: n, To: raftgroup.None}}}
		}
	}
	if row.ID == dfs.ControlGroup {
		for _, n := range m.MetaNodes() {
			if !slices.Contains(st.Voters, n.ID) && !slices.Contains(st.Learners, n.ID) {
				return step{changes: []raftgroup.Change{{Node: n.ID, To: raftgroup.Learner}}}
			}
		}
	}
	return step{}
}

// dismissal is what a node becomes that is not listed any more.
func dismissal(m *dfs.Map, row *dfs.Group, n dfs.NodeID) raftgroup.Change {
	if x := m.Node(n); row.ID == dfs.ControlGroup && x != nil && !x.Replaced && x.Roles.Has(dfs.RoleMeta) {
		return raftgroup.Change{Node: n, To: raftgroup.Learner}
	}
	return raftgroup.Change{Node: n, To: raftgroup.None}
}

// surplusVoters lists the voters that are not listed, those first that do not
// answer, and the leader last.
func surplusVoters(m *dfs.Map, row *dfs.Group, st *raftgroup.Status) []dfs.NodeID {
	var out []dfs.NodeID
	for _, n := range st.Voters {
		if !row.Has(n) {
			out = append(out, n)
		}
	}
	rank := func(n dfs.NodeID) int {
		x := m.Node(n)
		switch {
		case x == nil || x.Replaced:
			return 0
		case n == st.Leader:
			return 3
		case !active(st, n):
			return 1
		}
		return 2
	}
	slices.SortStableFunc(out, func(a, b dfs.NodeID) int { return rank(a) - rank(b) })
	return out
}

func active(st *raftgroup.Status, n dfs.NodeID) bool {
	return slices.ContainsFunc(st.Peers, func(p raftgroup.Progress) bool { return p.Node == n && p.Active })
}

// listedHeir returns the listed voter to hand a group to whose leader is not
// listed, 0 for none: the one with the longest log of those that answer.
func listedHeir(me dfs.NodeID, row *dfs.Group, st *raftgroup.Status) dfs.NodeID {
	var best raftgroup.Progress
	for _, p := range st.Peers {
		if p.Node != me && row.Has(p.Node) && !p.Learner && p.Active && !p.Snapshot && (best.Node == 0 || p.Match > best.Match) {
			best = p
		}
	}
	return best.Node
}

// majorityWithout reports whether a majority of the other voters answers.
func majorityWithout(gone dfs.NodeID, st *raftgroup.Status) bool {
	others, there := 0, 0
	for _, v := range st.Voters {
		if v != gone {
			others++
			if active(st, v) {
				there++
			}
		}
	}
	return there > others/2
}

// tendMembers brings the group's members to its list, one change at a time.
func (s *Service) tendMembers(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) error {
	m := s.maps.current()
	st, ok := h.Status(g)
	if m == nil || !ok || m.Group(g) == nil {
		return nil
	}
	next := nextStep(s.opts.Identity.Membership().Node, m, m.Group(g), &st)
	switch {
	case next.handTo != 0:
		return h.TransferLeader(ctx, g, next.handTo)
	case len(next.changes) > 0:
		if !m.Group(g).Ready() {
			s.formStep(g, FormMember)
		}
		return h.ChangeMembers(ctx, g, next.changes...)
	}
	return nil
}
