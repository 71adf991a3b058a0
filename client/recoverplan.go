package client

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// RecoveryPlan is what an operator is shown before groups that have lost a majority of
// their voters for good are made to go on, and what is done then, no more and no less.
type RecoveryPlan struct {
	Generation uint64 // that the groups get: when this was planned, milliseconds since 1970
	Lost       []RecoveryNode
	Groups     []GroupRecovery // to be recovered, the control group first
	Whole      []dfs.GroupID   // that have their majority without the lost nodes, and are left alone
	Nodes      []RecoveryNode  // that answer

	// Done says that nothing is left to do: no group has lost its majority, the lost nodes
	// were given up before, and all groups have heard of it.
	Done bool
}

// RecoveryNode is a meta node of a plan.
type RecoveryNode struct {
	ID   dfs.NodeID
	Name string
	Addr string // "" when it is not known
}

func (n RecoveryNode) String() string { return fmt.Sprintf("%s (%v)", n.Name, n.ID) }

// GroupRecovery is how one group is to go on.
type GroupRecovery struct {
	Group     dfs.GroupID
	Voters    []dfs.NodeID     // that it has, of both halves of a change that is half done
	Survivors []*wire.Survivor // that answer, in the order of Nodes
	Nodes     []RecoveryNode   // the survivors' nodes
	Chosen    int              // of Survivors: what the group goes on from
	Losses    []string         // what may be lost, in words

	// Unreadable are replicas on nodes that answer and cannot read them. Those of voters
	// are in the way of a plan; any other is left as it is.
	Unreadable []UnreadableReplica
}

// UnreadableReplica is a replica that its node cannot describe.
type UnreadableReplica struct {
	Node  RecoveryNode
	Cause string
}

// survivorAnswer is what one address said.
type survivorAnswer struct {
	addr  string
	probe *wire.ProbeReply     // nil: nobody answers there
	reply *wire.SurvivorsReply // nil: it cannot say
	err   error
}

// recoveryInput is what a plan is made from.
type recoveryInput struct {
	m       *dfs.Map
	answers []survivorAnswer
	lost    []RecoveryNode
	groups  []dfs.GroupID // none: all
	now     uint64
}

func noRecovery(format string, args ...any) error {
	return dfs.Errorf(dfs.Invalid, "plan recovery", format, args...)
}

// name describes a node.
func (in *recoveryInput) name(id dfs.NodeID) RecoveryNode {
	out := RecoveryNode{ID: id, Name: id.String()}
	if n := in.m.Node(id); n != nil {
		out.Name, out.Addr = n.Name, n.Addr
	}
	for _, a := range in.answers {
		if a.reply != nil && dfs.NodeID(a.reply.Node) == id {
			out.Name, out.Addr = a.reply.Name, a.addr
		}
	}
	return out
}

// find finds the nodes that are called lost. A name is that of the node which has it now,
// or else of the last that had it: so a plan can be made again after the node was given up.
func (in *recoveryInput) find(names []string) (out []RecoveryNode, err error) {
	if len(names) == 0 {
		return nil, noRecovery("no lost node is named")
	}
	for _, name := range names {
		var best *dfs.Node
		for _, n := range in.m.Nodes {
			if n.ID.String() == name {
				best = n
				break
			}
			if n.Name == name && (best == nil || best.Replaced) {
				best = n
			}
		}
		if best == nil || !best.Roles.Has(dfs.RoleMeta) {
			return nil, noRecovery("%s is no meta node of this cluster, as far as any that answers knows", name)
		}
		if !slices.ContainsFunc(out, func(n RecoveryNode) bool { return n.ID == best.ID }) {
			out = append(out, in.name(best.ID))
		}
	}
	slices.SortFunc(out, func(a, b RecoveryNode) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

func (in *recoveryInput) isLost(id dfs.NodeID) bool {
	return slices.ContainsFunc(in.lost, func(n RecoveryNode) bool { return n.ID == id })
}

// plan checks the wish and makes the plan.
func (in *recoveryInput) plan() (*RecoveryPlan, error) {
	p := &RecoveryPlan{Generation: in.now, Lost: in.lost}
	rows := map[dfs.GroupID]*GroupRecovery{}
	row := func(g dfs.GroupID) *GroupRecovery {
		if rows[g] == nil {
			rows[g] = &GroupRecovery{Group: g}
		}
		return rows[g]
	}
	for _, a := range in.answers {
		if a.probe != nil && len(a.probe.Cluster) > 0 && in.isLost(dfs.NodeID(a.probe.Node)) {
			n := in.name(dfs.NodeID(a.probe.Node))
			if a.reply == nil {
				return nil, noRecovery("%v answers at %s, but does not say what it has (%v). If its log is damaged and nothing brings it back, stop it for good, and then call it lost", n, a.addr, a.err)
			}
			return nil, noRecovery("%v is not lost: it answers at %s. With its disks nothing is given up: let it run", n, a.addr)
		}
		if a.reply == nil {
			continue
		}
		node := in.name(dfs.NodeID(a.reply.Node))
		node.Addr = a.addr
		if slices.ContainsFunc(p.Nodes, func(n RecoveryNode) bool { return n.ID == node.ID }) {
			continue // two addresses of one node
		}
		p.Nodes = append(p.Nodes, node)
		for _, sv := range a.reply.Groups {
			rec := row(dfs.GroupID(sv.Group))
			if sv.Unreadable != "" {
				rec.Unreadable = append(rec.Unreadable, UnreadableReplica{node, sv.Unreadable})
				continue
			}
			rec.Survivors, rec.Nodes = append(rec.Survivors, sv), append(rec.Nodes, node)
			p.Generation = max(p.Generation, sv.Generation+1, sv.Aside+1)
		}
	}
	if len(p.Nodes) == 0 {
		return nil, noRecovery("no meta node answers")
	}
	given := !slices.ContainsFunc(p.Lost, func(n RecoveryNode) bool { x := in.m.Node(n.ID); return x == nil || !x.Replaced })
	wanted := in.groups
	if len(wanted) == 0 {
		for _, g := range in.m.Groups {
			row(g.ID)
		}
		wanted = slices.Sorted(maps.Keys(rows))
	}
	for _, g := range wanted {
		rec := row(g)
		whole, err := in.judge(rec)
		switch {
		case err != nil:
			return nil, err
		case !whole:
			p.Groups = append(p.Groups, *rec)
		case len(in.groups) > 0:
			return nil, noRecovery("%v has its majority without the lost nodes: nothing is lost. See dfsd group show %d; who is gone is replaced by itself when another meta node is there", g, g)
		default:
			p.Whole = append(p.Whole, g)
		}
	}
	p.Done = given && len(p.Groups) == 0 && !slices.ContainsFunc(in.answers, survivorAnswer.unfenced)
	return p, in.checkControl(row(dfs.ControlGroup))
}

// unfenced reports whether some group has not heard yet that it was recovered.
func (a survivorAnswer) unfenced() bool {
	return slices.ContainsFunc(a.reply.GetGroups(), func(sv *wire.Survivor) bool { return sv.Unfenced })
}

// checkControl refuses to leave the control group behind: without it no other goes far.
func (in *recoveryInput) checkControl(control *GroupRecovery) error {
	if len(in.groups) == 0 || slices.Contains(in.groups, dfs.ControlGroup) {
		return nil
	}
	if whole, err := in.judge(control); err != nil || !whole {
		return noRecovery("the control group has lost its majority too, and comes first: use --all, or name 0 as well")
	}
	return nil
}

// judge finds whether a group has its majority without the lost nodes, and else what it
// goes on from. Only replicas of the latest generation count.
func (in *recoveryInput) judge(rec *GroupRecovery) (whole bool, err error) {
	g := rec.Group
	latest := uint64(0)
	for _, sv := range rec.Survivors {
		if sv.Last > 0 {
			latest = max(latest, sv.Generation)
		}
	}
	rec.Chosen = -1
	end := -1 // the longest log, fit or not: it has the members
	for i, sv := range rec.Survivors {
		if sv.Generation != latest || sv.Last == 0 {
			continue
		}
		if end < 0 || longer(sv, rec.Survivors[end]) {
			end = i
		}
		if sv.Unfit == "" && (rec.Chosen < 0 || longer(sv, rec.Survivors[rec.Chosen])) {
			rec.Chosen = i
		}
	}
	if end < 0 {
		if len(rec.Unreadable) > 0 {
			return false, noRecovery("%v has no replica with a log that can be read: %s. Without it: --group with the others", g, rec.unreadable())
		}
		return false, noRecovery("%v has no replica with a log on any meta node that answers: nothing of it is left to recover. Without it: --group with the others", g)
	}
	last := rec.Survivors[end]
	voters, outgoing := wire.IDs[dfs.NodeID](last.Voters), wire.IDs[dfs.NodeID](last.Outgoing)
	whole = in.majority(voters, in.kept) && (len(outgoing) == 0 || in.majority(outgoing, in.kept))
	answers := func(v dfs.NodeID) bool {
		return slices.ContainsFunc(rec.Nodes, func(n RecoveryNode) bool { return n.ID == v })
	}
	if whole && in.majority(voters, answers) && (len(outgoing) == 0 || in.majority(outgoing, answers)) {
		return true, nil
	}
	rec.Voters = slices.Compact(slices.Sorted(slices.Values(append(voters, outgoing...))))
	for _, u := range rec.Unreadable {
		if slices.Contains(rec.Voters, u.Node.ID) {
			return false, noRecovery("%v votes in %v and cannot read what it has of it (%s): it may have more than the others. Restart it; if that does not help, stop it for good, and then call it lost. Without %v: --group with the others",
				u.Node, g, u.Cause, g)
		}
	}
	for _, v := range rec.Voters {
		if in.kept(v) && !answers(v) {
			return false, noRecovery("%v votes in %v, %s, and is not called lost: start it, or name it with --lost if it is gone for good", in.name(v), g, in.silence(v))
		}
	}
	if rec.Chosen < 0 {
		var why []string
		for i, sv := range rec.Survivors {
			if sv.Unfit != "" {
				why = append(why, fmt.Sprintf("%v: %s", rec.Nodes[i], sv.Unfit))
			}
		}
		return whole, noRecovery("%v: no survivor has log and state: %s", g, strings.Join(why, "; "))
	}
	for i, sv := range rec.Survivors {
		if sv.Leader != 0 && sv.Generation == latest {
			return false, dfs.Errorf(dfs.Busy, "plan recovery", "%v follows %v as its leader in %v: so a majority is there, though it may not be reached from here", rec.Nodes[i], in.name(dfs.NodeID(sv.Leader)), g)
		}
	}
	rec.Losses = in.losses(rec)
	return whole, nil
}

// unreadable says which replicas of a group cannot be read, and why.
func (rec *GroupRecovery) unreadable() string {
	var out []string
	for _, u := range rec.Unreadable {
		out = append(out, fmt.Sprintf("%v: %s", u.Node, u.Cause))
	}
	return strings.Join(out, "; ")
}

// silence says what kind of no answer a node gives.
func (in *recoveryInput) silence(id dfs.NodeID) string {
	for _, a := range in.answers {
		if a.probe != nil && dfs.NodeID(a.probe.Node) == id {
			return fmt.Sprintf("answers at %s without saying what it has (%v)", a.addr, a.err)
		}
	}
	return "does not answer"
}

func longer(a, b *wire.Survivor) bool {
	return cmp.Or(cmp.Compare(a.LastTerm, b.LastTerm), cmp.Compare(a.Last, b.Last)) > 0
}

// majority reports whether the voters for which ok holds are one.
func (in *recoveryInput) majority(voters []dfs.NodeID, ok func(dfs.NodeID) bool) bool {
	left := 0
	for _, v := range voters {
		if ok(v) {
			left++
		}
	}
	return left > len(voters)/2
}

func (in *recoveryInput) kept(id dfs.NodeID) bool { return !in.isLost(id) }

// losses says what may be lost of a group.
func (in *recoveryInput) losses(rec *GroupRecovery) []string {
	chosen, node := rec.Survivors[rec.Chosen], rec.Nodes[rec.Chosen]
	out := []string{fmt.Sprintf("what the lost nodes acknowledged and %s never received: how much cannot be known; it has the log through entry %d, and knew of commits through %d",
		node.Name, chosen.Last, chosen.Commit)}
	for i, sv := range rec.Survivors {
		if sv.Commit > chosen.Last && sv.Generation == chosen.Generation {
			out = append(out, fmt.Sprintf("entries %d to %d, which %s knows to have been committed and cannot give back", chosen.Last+1, sv.Commit, rec.Nodes[i].Name))
		}
	}
	if rec.Group == dfs.ControlGroup {
		return append(out,
			"registrations, placement decisions and settings among them; blocks that were stored under placements it does not know may not be found, though stores keep them",
			"every session: clients open new ones, and what they had not closed is lost to them")
	}
	return append(out, "so files that were made or changed last may be missing or as they were, and files that were removed may be back without their content")
}
