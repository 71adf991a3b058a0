package repair

import (
	"cmp"
	"fmt"
	"slices"

	"dfsd/dfs"
)

// SetReplicas says who should vote in a Raft group.
type SetReplicas struct {
	Group dfs.GroupID
	Was   []dfs.NodeID // the list that the decision was made from
	To    []dfs.NodeID // ascending
	Why   string
}

// AbandonGroup gives up a forming group whose founder is gone, and begins again
// under the next number.
type AbandonGroup struct {
	Group    dfs.GroupID
	Founder  dfs.NodeID   // that is gone
	Replicas []dfs.NodeID // of the new one, its founder first
}

func (SetReplicas) decision()  {}
func (AbandonGroup) decision() {}

func (d SetReplicas) String() string {
	return fmt.Sprintf("replicas of %v = %v, were %v: %s", d.Group, d.To, d.Was, d.Why)
}

func (d AbandonGroup) String() string {
	return fmt.Sprintf("abandon %v, whose founder %v is gone; the next one on %v", d.Group, d.Founder, d.Replicas)
}

// GroupView is what a group's leader said lately of its members.
type GroupView struct {
	Leader   dfs.NodeID
	Voters   []dfs.NodeID
	Learners []dfs.NodeID
	Heard    []dfs.NodeID // members that answer the leader
}

// GroupInput is what the planner of groups decides from.
type GroupInput struct {
	Map   *dfs.Map
	Width int                        // replicas that a group is to have
	Views map[dfs.GroupID]*GroupView // nothing is known of the groups that are missing
	Up    map[dfs.NodeID]bool        // heard lately
	Gone  map[dfs.NodeID]bool        // nobody has heard it for the whole grace period
	Full  map[dfs.NodeID]bool        // its disk takes nothing more
}

// PlanGroups decides where replicas should be. A list below the width is filled
// up; a node that was replaced or is gone is exchanged for one that is up; and
// when all is well, one replica at a time moves to a node that has at least two
// fewer. Each list changes by one node, and not again before its group has
// followed. Where no node is available nothing happens.
func PlanGroups(in GroupInput) []Decision {
	p := newGroupPlan(in)
	var out []Decision
	for _, g := range in.Map.Groups {
		if d := p.mend(g); d != nil {
			out = append(out, d)
		}
	}
	if len(out) == 0 {
		if d := p.balance(); d != nil {
			out = append(out, d)
		}
	}
	return out
}

// NewGroup chooses the replicas of a new group, its founder first: the nodes with
// the fewest. Unavailable: too few are up and have space.
func NewGroup(in GroupInput) ([]dfs.NodeID, error) {
	p := newGroupPlan(in)
	spares := p.spares()
	if len(spares) < in.Width {
		return nil, dfs.Errorf(dfs.Unavailable, "create group", "it needs %d meta nodes that are up and have space, there are %d: start the others, or add one", in.Width, len(spares))
	}
	return spares[:in.Width], nil
}

func newGroupPlan(in GroupInput) *groupPlan {
	p := &groupPlan{GroupInput: in, count: map[dfs.NodeID]int{}}
	for _, g := range in.Map.Groups {
		for _, n := range g.Replicas {
			p.count[n]++
		}
	}
	return p
}

type groupPlan struct {
	GroupInput
	count map[dfs.NodeID]int // replicas listed, with what is decided already
}

// lost reports whether a node's place is to be taken by another.
func (p *groupPlan) lost(id dfs.NodeID) bool {
	n := p.Map.Node(id)
	return p.Gone[id] || n != nil && n.Replaced
}

// spares lists the nodes that may take a replica, those with the fewest first.
func (p *groupPlan) spares() []dfs.NodeID {
	var out []dfs.NodeID
	for _, n := range p.Map.MetaNodes() {
		if p.Up[n.ID] && !p.Gone[n.ID] && !p.Full[n.ID] {
			out = append(out, n.ID)
		}
	}
	slices.SortStableFunc(out, func(a, b dfs.NodeID) int { return cmp.Compare(p.count[a], p.count[b]) })
	return out
}

// spare returns the node to take a replica, 0 for none.
func (p *groupPlan) spare(not []dfs.NodeID) dfs.NodeID {
	for _, n := range p.spares() {
		if !slices.Contains(not, n) {
			return n
		}
	}
	return 0
}

// mend decides what one group needs, nil for nothing, or nothing that could be
// done.
func (p *groupPlan) mend(g *dfs.Group) Decision {
	if !g.Ready() && p.lost(g.Founder) {
		return p.abandon(g)
	}
	if len(g.Replicas) < p.Width {
		return p.fill(g)
	}
	for _, n := range g.Replicas {
		if p.lost(n) && p.mayGo(g, n) {
			if to := p.spare(g.Replicas); to != 0 {
				return p.exchange(g, n, to, fmt.Sprintf("%v is gone", n))
			}
		}
	}
	return nil
}

// mayGo reports whether a lost node may leave a list now: the group's leader
// does not hear it either, all others vote that are not lost as well, and nothing is
// left of an earlier change but that this node was to come in.
func (p *groupPlan) mayGo(g *dfs.Group, lost dfs.NodeID) bool {
	v := p.Views[g.ID]
	if v == nil || slices.Contains(v.Heard, lost) && p.Gone[lost] {
		return false
	}
	for _, n := range g.Replicas {
		if n != lost && !p.lost(n) && !slices.Contains(v.Voters, n) {
			return false
		}
	}
	return !slices.Contains(v.Voters, lost) || p.within(v.Voters, g.Replicas)
}

func (p *groupPlan) within(a, b []dfs.NodeID) bool {
	return !slices.ContainsFunc(a, func(n dfs.NodeID) bool { return !slices.Contains(b, n) })
}

func (p *groupPlan) fill(g *dfs.Group) Decision {
	to := slices.Clone(g.Replicas)
	for len(to) < p.Width {
		n := p.spare(to)
		if n == 0 {
			break
		}
		to = append(to, n)
		p.count[n]++
	}
	if len(to) == len(g.Replicas) {
		return nil
	}
	slices.Sort(to)
	return SetReplicas{Group: g.ID, Was: g.Replicas, To: to, Why: "it has too few"}
}

func (p *groupPlan) abandon(g *dfs.Group) Decision {
	to, err := NewGroup(p.GroupInput)
	if err != nil {
		return nil // until enough are there
	}
	for _, n := range to {
		p.count[n]++
	}
	return AbandonGroup{Group: g.ID, Founder: g.Founder, Replicas: to}
}

func (p *groupPlan) exchange(g *dfs.Group, from, to dfs.NodeID, why string) Decision {
	next := slices.DeleteFunc(slices.Clone(g.Replicas), func(n dfs.NodeID) bool { return n == from })
	next = append(next, to)
	slices.Sort(next)
	p.count[from]--
	p.count[to]++
	return SetReplicas{Group: g.ID, Was: g.Replicas, To: next, Why: why}
}

// balance moves one replica, when every group is as it should be, to a node that
// has at least two fewer. Each move makes the sum of the squares smaller, so
// they end. A group that an operator gave more than the width is left alone.
func (p *groupPlan) balance() Decision {
	for _, g := range p.Map.Groups {
		if !p.settled(g) {
			return nil
		}
	}
	spares := p.spares()
	for _, to := range spares {
		for _, from := range slices.Backward(spares) {
			if p.count[from]-p.count[to] < 2 {
				break
			}
			if g := p.movable(from, to); g != nil {
				return p.exchange(g, from, to, fmt.Sprintf("%v has %d replicas and %v %d", from, p.count[from], to, p.count[to]))
			}
		}
	}
	return nil
}

// movable returns the group whose replica to move from a node to another, nil
// for none: one that the node does not lead, if there is one, and the control
// group last.
func (p *groupPlan) movable(from, to dfs.NodeID) *dfs.Group {
	var best *dfs.Group
	rank := func(g *dfs.Group) int {
		r := 0
		if p.Views[g.ID].Leader == from {
			r++
		}
		if g.ID == dfs.ControlGroup {
			r += 2
		}
		return r
	}
	for _, g := range p.Map.Groups {
		if len(g.Replicas) == p.Width && g.Has(from) && !g.Has(to) && (best == nil || rank(g) < rank(best)) {
			best = g
		}
	}
	return best
}

// settled reports whether a group is ready, exactly its list votes, and all of it
// answers its leader.
func (p *groupPlan) settled(g *dfs.Group) bool {
	v := p.Views[g.ID]
	return g.Ready() && len(g.Replicas) >= p.Width && v != nil && slices.Equal(v.Voters, g.Replicas) && p.within(g.Replicas, v.Heard)
}
