package control

import (
	"cmp"
	"math"
	"slices"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// Width returns how many replicas a group of the cluster has: as many as meta
// nodes were listed when it was formed, within MaxReplicas.
func Width(form *wire.FormOp) int { return min(len(form.GetMetas()), dfs.MaxReplicas) }

// founded lists the groups of a new cluster. The founder, node 1, is the only
// member of each; the planner adds the others as they register.
func founded(op *wire.FormOp) []*dfs.Group {
	var out []*dfs.Group
	for g := range op.Groups + 1 {
		out = append(out, &dfs.Group{ID: dfs.GroupID(g), Replicas: []dfs.NodeID{1}})
	}
	return out
}

// group gives the row for change, nil when there is no such group.
func (ev *entry) group(id uint32) *dfs.Group {
	i, ok := slices.BinarySearchFunc(ev.m.Groups, id, func(g *dfs.Group, id uint32) int { return cmp.Compare(uint32(g.ID), id) })
	if !ok {
		return nil
	}
	if g := ev.m.Groups[i]; !ev.groups[g.ID] {
		c := *g
		ev.m.Groups[i] = &c
		ev.groups[g.ID] = true
	}
	return ev.m.Groups[i]
}

// checkReplicas refuses a list that no group may have. What was in it before is
// not judged again.
func (ev *entry) checkReplicas(op string, replicas, was []dfs.NodeID) error {
	if n := len(replicas); n == 0 || n > dfs.MaxReplicas {
		return dfs.Errorf(dfs.Invalid, op, "%d replicas: 1 to %d", n, dfs.MaxReplicas)
	}
	for i, id := range replicas {
		n := ev.m.Node(id)
		switch {
		case i > 0 && replicas[i-1] == id:
			return dfs.Errorf(dfs.Invalid, op, "%v is listed twice", id)
		case i > 0 && replicas[i-1] > id:
			return dfs.Errorf(dfs.Invalid, op, "replicas %v are out of order", replicas)
		case slices.Contains(was, id):
		case n == nil || !n.Roles.Has(dfs.RoleMeta):
			return dfs.Errorf(dfs.Invalid, op, "%v is no meta node of the cluster", id)
		case n.Replaced:
			return dfs.Errorf(dfs.Stale, op, "%v was replaced by another node of its name", id)
		}
	}
	return nil
}

// setReplicas applies a decision of the planner, which never makes a list
// shorter and takes one node out of it at the most.
func (ev *entry) setReplicas(d *wire.ReplicasDecision) error {
	const op = "place replicas"
	g := ev.m.Group(dfs.GroupID(d.Group))
	if g == nil || d.Group > math.MaxUint16 || !slices.Equal(wire.Ints(g.Replicas), d.Was) {
		return dfs.Errorf(dfs.Stale, op, "group %d has moved on", d.Group)
	}
	next := wire.IDs[dfs.NodeID](d.Replicas)
	for _, n := range g.Replicas {
		if slices.Contains(next, n) {
			continue
		}
		if len(next) < len(g.Replicas) || without(g.Replicas, next) > 1 || n == g.Founder {
			return dfs.Errorf(dfs.Invalid, op, "group %d from %v to %v is no single step", d.Group, g.Replicas, next)
		}
	}
	if err := ev.checkReplicas(op, next, g.Replicas); err != nil {
		return err
	}
	ev.group(d.Group).Replicas = next
	ev.changed = true
	return nil
}

// without counts what is in a and not in b.
func without(a, b []dfs.NodeID) int {
	n := 0
	for _, id := range a {
		if !slices.Contains(b, id) {
			n++
		}
	}
	return n
}

// changeReplicas is an operator's change of the list.
func (ev *entry) changeReplicas(op *wire.ChangeReplicasRequest) error {
	const what = "change replicas"
	g := ev.m.Group(dfs.GroupID(op.Group))
	add, remove := dfs.NodeID(op.Add), dfs.NodeID(op.Remove)
	switch {
	case g == nil || op.Group > math.MaxUint16:
		return dfs.Errorf(dfs.NotExist, what, "there is no group %d: dfsd group ls lists them", op.Group)
	case !g.Ready():
		return dfs.Errorf(dfs.Invalid, what, "%v is forming: wait until dfsd group ls calls it ready", g.ID)
	case add == 0 && remove == 0:
		return dfs.Errorf(dfs.Invalid, what, "%v: no node is given", g.ID)
	case add != 0 && g.Has(add):
		return dfs.Errorf(dfs.Exist, what, "%v is listed in %v already", add, g.ID)
	case remove != 0 && !g.Has(remove):
		return dfs.Errorf(dfs.NotExist, what, "%v is not listed in %v: it lists %v", remove, g.ID, g.Replicas)
	}
	next := slices.DeleteFunc(slices.Clone(g.Replicas), func(n dfs.NodeID) bool { return n == remove })
	if add != 0 {
		next = append(next, add)
		slices.Sort(next)
	}
	if width := Width(ev.st.Form); add == 0 && len(next) < width {
		return dfs.Errorf(dfs.Invalid, what, "%v would have %d replicas, this cluster keeps %d: first dfsd group add-replica %d NODE", g.ID, len(next), width, op.Group)
	}
	if err := ev.checkReplicas(what, next, g.Replicas); err != nil {
		return err
	}
	ev.group(op.Group).Replicas = next
	ev.changed = true
	return nil
}

// createGroup enters a forming group under the next number. Its founder alone
// makes its first replica, so that it never begins twice.
func (ev *entry) createGroup(replicas []uint32) (*wire.CreateGroupReply, error) {
	const op = "create group"
	sorted := wire.IDs[dfs.NodeID](replicas)
	slices.Sort(sorted)
	if err := ev.checkReplicas(op, sorted, nil); err != nil {
		return nil, err
	}
	switch width := Width(ev.st.Form); {
	case len(sorted) < width:
		return nil, dfs.Errorf(dfs.Invalid, op, "%d replicas: this cluster keeps %d", len(sorted), width)
	case len(ev.m.Groups) > dfs.MaxGroups || ev.st.LastGroup >= math.MaxUint16:
		return nil, dfs.Errorf(dfs.TooLarge, op, "there are %d groups, the last is number %d: at most %d, and numbers up to %d", len(ev.m.Groups), ev.st.LastGroup, dfs.MaxGroups, math.MaxUint16)
	}
	ev.st.LastGroup++
	g := &dfs.Group{ID: dfs.GroupID(ev.st.LastGroup), Founder: dfs.NodeID(replicas[0]), Replicas: sorted}
	ev.m.Groups = append(ev.m.Groups, g)
	ev.groups[g.ID] = true
	ev.changed = true
	return &wire.CreateGroupReply{Group: ev.st.LastGroup}, nil
}

// groupReady lets a group be used whose listed replicas all vote, and which has
// fenced every session that has ended.
func (ev *entry) groupReady(op *wire.GroupReadyOp) error {
	g := ev.m.Group(dfs.GroupID(op.Group))
	switch {
	case g == nil || op.Group > math.MaxUint16 || !slices.Equal(wire.Ints(g.Replicas), op.Replicas):
		return dfs.Errorf(dfs.Stale, "open group", "group %d has moved on", op.Group)
	case g.Ready():
		return nil
	case op.SessionIndex != ev.st.SessionIndex: // one that has ended since could still write there
		return dfs.Errorf(dfs.Stale, "open group", "%v has fenced the sessions of index %d, not %d", g.ID, op.SessionIndex, ev.st.SessionIndex)
	}
	ev.group(op.Group).Founder = 0
	ev.changed = true
	return nil
}

// abandon gives up a forming group and begins again under the next number. What
// there is of it holds nothing, and never will: it is not ready.
func (ev *entry) abandon(d *wire.AbandonDecision) error {
	g := ev.m.Group(dfs.GroupID(d.Group))
	if g == nil || d.Group > math.MaxUint16 || g.Ready() || g.Founder != dfs.NodeID(d.Founder) {
		return dfs.Errorf(dfs.Stale, "abandon group", "group %d has moved on", d.Group)
	}
	if _, err := ev.createGroup(d.Replicas); err != nil {
		return err
	}
	ev.m.Groups = slices.DeleteFunc(ev.m.Groups, func(x *dfs.Group) bool { return x.ID == g.ID })
	ev.groups[g.ID] = true
	ev.changed = true
	return nil
}
