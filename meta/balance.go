package meta

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"
	"time"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

const (
	// balanceTick is how often a node looks whether it leads too many groups,
	// and so the least time between two that it hands over.
	balanceTick = 2 * time.Second

	// balanceCalm is for how many looks in a row nobody else may have taken over
	// or lost a group before one is moved: elections are still under way, or a
	// node is handing all of its groups over because it is about to end.
	balanceCalm = 3

	// balanceRest is how many looks a node rests after a group that it could not
	// hand over: for a moment each attempt keeps the group from working.
	balanceRest = 30

	// balanceShare is the part of its excess that a node hands over at one look, at
	// least one group: with many groups one at a time would take hours.
	balanceShare = 16

	// handoverSlack is how many entries the next leader may lack: the group takes
	// nothing until it has them.
	handoverSlack = 64
)

// balanceLoop evens out who leads. A node that leads more groups than its share
// hands some over at a time; nobody ever asks for one. Taking a group from one
// who has more than the share and giving it to one who has at least two fewer
// makes the spread smaller with every step, so it ends, and at its end nobody
// moves anything.
func (s *Service) balanceLoop() {
	me := s.opts.Identity.Membership().Node
	var seen map[dfs.GroupID]dfs.NodeID
	calm := 0
	for s.sleep(balanceTick) {
		h := s.host.Load()
		full := s.space.full()
		leaders := s.leaders(h)
		if maps.Equal(leaders, seen) {
			calm++
		} else {
			seen, calm = leaders, 0
		}
		if calm < balanceCalm {
			continue
		}
		// Without an excess over the smallest share that there may be, no group
		// needs a look.
		m := s.maps.current()
		if m == nil {
			continue
		}
		mine := turn(me, leaders, m.MetaNodes(), calm)
		if !mine && over(me, leaders, max(1, len(m.MetaNodes()))) <= 0 {
			continue
		}
		keep := fairShare(len(leaders), hosts(m, full))
		if mine {
			keep = 0
		}
		moves := 0
		own := excess(me, leaders)
		byLoad(own, me, leaders, s.beats.groupLoads(), hosts(m, full))
		for _, g := range own {
			st, _ := h.Status(g)
			to := heir(me, leaders, keep, &st, full)
			if to == 0 {
				continue
			}
			ctx, cancel := context.WithTimeout(s.ctx, metas.AttemptTimeout)
			err := h.TransferLeader(ctx, g, to)
			cancel()
			if err != nil {
				s.log.Debug("leadership not handed over", "group", uint16(g), "to", uint32(to), "cause", err)
				calm = -balanceRest
				break
			}
			s.log.Info("leadership handed over", "group", uint16(g), "to", uint32(to), "why", "it leads fewer groups")
			leaders[g], seen[g] = to, to // of one's own making, so not a reason to wait
			if moves++; moves > over(me, leaders, hosts(m, full))/balanceShare {
				break
			}
		}
	}
}

// leaders lists who leads each group, as far as this node knows.
func (s *Service) leaders(h *raftgroup.Host) map[dfs.GroupID]dfs.NodeID {
	m := s.maps.current()
	if m == nil {
		return nil
	}
	out := make(map[dfs.GroupID]dfs.NodeID, len(m.Groups))
	for _, g := range m.Groups {
		if g.Ready() {
			out[g.ID] = s.leaderOf(h, g.ID)
		}
	}
	return out
}

// excess lists the groups that a node might hand over, lowest first: those that
// it leads, but for the control group, whose next leader would have to hear
// of everything anew. None while a group is without a leader.
func excess(me dfs.NodeID, leaders map[dfs.GroupID]dfs.NodeID) []dfs.GroupID {
	var own []dfs.GroupID
	for g, n := range leaders {
		switch n {
		case 0:
			return nil
		case me:
			if g != dfs.ControlGroup {
				own = append(own, g)
			}
		}
	}
	slices.Sort(own)
	return own
}

// byLoad orders the groups that a node might hand over: first the one that brings
// what the node does nearest to the mean of so many nodes, which is an idle one where
// it does less. Of equals the order stays.
func byLoad(own []dfs.GroupID, me dfs.NodeID, leaders map[dfs.GroupID]dfs.NodeID, loads map[dfs.GroupID]groupLoad, nodes int) {
	mine, all := 0.0, 0.0
	for g, n := range leaders {
		all += float64(loads[g].rate)
		if n == me {
			mine += float64(loads[g].rate)
		}
	}
	surplus := max(mine-all/float64(max(nodes, 1)), 0)
	slices.SortStableFunc(own, func(a, b dfs.GroupID) int {
		return cmp.Compare(math.Abs(float64(loads[a].rate)-surplus), math.Abs(float64(loads[b].rate)-surplus))
	})
}

// hosts counts the meta nodes with space that should have a replica of some group.
func hosts(m *dfs.Map, full map[dfs.NodeID]*wire.MetaDisk) int {
	seen := map[dfs.NodeID]bool{}
	for _, g := range m.Groups {
		for _, n := range g.Replicas {
			if full[n] == nil {
				seen[n] = true
			}
		}
	}
	return len(seen)
}

// over is how many groups more than its share among so many voters a node leads.
func over(me dfs.NodeID, leaders map[dfs.GroupID]dfs.NodeID, voters int) int {
	led := 0
	for _, n := range leaders {
		if n == me {
			led++
		}
	}
	return led - fairShare(len(leaders), voters)
}

// fairShare is how many groups each of so many nodes leads at the most when they are even.
func fairShare(groups, nodes int) int { return (groups + nodes - 1) / max(nodes, 1) }

// turn reports whether a node should look for one that leads at least two fewer,
// though it may have no more than its share. Of those who lead the most one at a time
// does, for a few looks: all at once they would make the other one lead the most.
// Their calm, and so whose turn it is, begins with the last change that all saw; where
// two differ about it, two groups move, which is no harm.
func turn(me dfs.NodeID, leaders map[dfs.GroupID]dfs.NodeID, nodes []*dfs.Node, calm int) bool {
	led := map[dfs.NodeID]int{}
	for _, n := range leaders {
		led[n]++
	}
	most, least := 0, len(leaders)
	for _, n := range nodes {
		most, least = max(most, led[n.ID]), min(least, led[n.ID])
	}
	if most-least < 2 {
		return false
	}
	var busiest []dfs.NodeID
	for _, n := range nodes {
		if led[n.ID] == most {
			busiest = append(busiest, n.ID)
		}
	}
	slices.Sort(busiest)
	return busiest[calm/balanceCalm%len(busiest)] == me
}

// heir returns the voter to hand a group to, 0 for none: the one that leads the
// fewest, if this node leads more groups than it is to keep. Those whose disk is full have
// none, and what they lead goes elsewhere by settleSpace. Members that are away get
// nothing. Nothing moves while one that is there is behind or has no vote yet: a
// new leader would begin its snapshot anew.
func heir(me dfs.NodeID, leaders map[dfs.GroupID]dfs.NodeID, keep int, st *raftgroup.Status, full map[dfs.NodeID]*wire.MetaDisk) dfs.NodeID {
	absent := func(n dfs.NodeID) bool {
		return n != me && slices.ContainsFunc(st.Peers, func(p raftgroup.Progress) bool { return p.Node == n && !p.Active })
	}
	voters := slices.DeleteFunc(slices.Clone(st.Voters), func(v dfs.NodeID) bool { return full[v] != nil || absent(v) })
	if !slices.Contains(voters, me) || st.Role != raftgroup.RoleLeader || st.Joint || len(st.Learners) > 0 {
		return 0
	}
	for _, p := range st.Peers {
		if p.Node != me && p.Active && (p.Snapshot || p.Match+handoverSlack < st.Last) {
			return 0
		}
	}
	led := map[dfs.NodeID]int{}
	for _, n := range leaders {
		led[n]++
	}
	if led[me] <= keep {
		return 0
	}
	// Of equals the next after this node in the ring: two that hand over at the
	// same moment rarely choose the same.
	self, n := slices.Index(voters, me), len(voters)
	to := dfs.NodeID(0)
	for i := 1; i < n; i++ {
		if v := voters[(self+i)%n]; to == 0 || led[v] < led[to] {
			to = v
		}
	}
	if to == 0 || led[me]-led[to] < 2 {
		return 0
	}
	return to
}
