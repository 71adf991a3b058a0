package control

import (
	"bytes"
	"cmp"
	"math"
	"slices"

	"dfsd/dfs"
	"dfsd/repair"
	"dfsd/transport/wire"
)

// A control group that has lost a majority goes on from what one survivor had. What it
// gave out since is not known: the recovery jumps over it, by more than any cluster
// can have used, and there is room for many jumps.
const (
	epochJump   = 1 << 32 // a map changes 50 times a second at the most: 2.7 years
	sessionJump = 1 << 32 // of 48 bits; a thousand a second for 49 days
	numberJump  = 1 << 16 // of nodes, stores and placement groups, which have 32 bits
	groupJump   = 1 << 8  // of groups, which have 16 bits
)

// recovered is the first entry of a control group that has lost a majority.
//
//   - The epoch jumps above every one that a store persisted. Every placement
//     group is proposed anew under it, so that once it is active no store takes a write
//     under what the lost may have decided, see trusted.
//   - Numbers of nodes, stores, placement groups, groups and sessions jump. Groups that
//     survivors have and the map has not are taken up; of other numbers that were jumped over
//     nothing is ever destroyed.
//   - All sessions end: one that was opened since is not known here, and one that is
//     known may have been fenced since. Clients open another.
//   - The lost nodes are given up, and deletes wait until somebody has looked. A name that
//     cannot be given up is passed over: it was refused when the step was asked for, and the
//     group must not begin without all the rest of this.
func (ev *entry) recovered(op *wire.RecoveredOp) error {
	known := dfs.Epoch(ev.st.Epoch)
	ev.st.Epoch += epochJump
	ev.changed = true
	ev.st.LastNode += numberJump
	ev.st.LastStore += numberJump
	ev.st.LastPg += numberJump
	ev.takeUp(op.Found)
	if err := ev.jumpSessions(); err != nil {
		return err
	}
	for _, p := range ev.m.PGs {
		acting := ev.trusted(p, known, op.Persisted)
		if !p.Class.Erasure() && p.Active.Epoch > 0 && ev.rules.CheckPropose(p, acting, ev.stateOf) == nil {
			ev.setPG(repair.Propose(p, ev.epoch(), acting))
		}
	}
	return ev.loseNodes(op.Generation, slices.DeleteFunc(slices.Clone(op.Lost), func(n uint32) bool { return ev.checkLost(n) != nil }))
}

// trusted lists the acting members of a placement group that are up and were not left out by
// an activation that only the lost knew of. Such a one had a later epoch than the last that is
// known, and all members of its set persisted it. So where some acting member has persisted
// a later epoch, those that have not were left out, if anybody was: they come back as members
// that lack something. Where all have, nobody can tell.
func (ev *entry) trusted(p *dfs.PG, known dfs.Epoch, persisted []*wire.PersistedMark) []dfs.StoreID {
	later := func(id dfs.StoreID) bool {
		s := ev.m.Store(id)
		return s != nil && slices.ContainsFunc(persisted, func(pm *wire.PersistedMark) bool {
			return dfs.StoreID(pm.Store) == id && pm.Mark == s.Incarnation.Mark && dfs.Epoch(pm.Epoch) > known
		})
	}
	some := slices.ContainsFunc(p.Active.Stores, later)
	return slices.DeleteFunc(slices.Clone(p.Active.Stores), func(id dfs.StoreID) bool {
		return ev.stateOf(id) != dfs.StoreUp || some && !later(id)
	})
}

// takeUp enters the groups that survivors have and that were made since, and jumps over
// all other numbers that may have been given out. One that was made before and is not
// in the map was abandoned.
func (ev *entry) takeUp(found []*wire.MapGroup) {
	last := ev.st.LastGroup
	for _, f := range found {
		last = max(last, min(f.Id, math.MaxUint16))
	}
	last = min(last+groupJump, math.MaxUint16)
	for _, f := range found {
		nodes := wire.IDs[dfs.NodeID](f.Replicas)
		slices.Sort(nodes)
		nodes = slices.Compact(nodes)
		g := &dfs.Group{ID: dfs.GroupID(f.Id), Replicas: nodes[:min(len(nodes), dfs.MaxReplicas)]}
		if f.Id <= ev.st.LastGroup || f.Id > math.MaxUint16 || len(nodes) == 0 || ev.m.Group(g.ID) != nil {
			continue
		}
		ev.m.Groups = append(ev.m.Groups, g)
		ev.groups[g.ID] = true
	}
	slices.SortFunc(ev.m.Groups, func(a, b *dfs.Group) int { return cmp.Compare(a.ID, b.ID) })
	if last > ev.st.LastGroup {
		ev.st.UnknownGroups = append(ev.st.UnknownGroups, &wire.GroupRange{First: ev.st.LastGroup + 1, Last: last})
		ev.st.LastGroup = last
	}
}

// jumpSessions ends every session and jumps over all that may have been opened.
func (ev *entry) jumpSessions() error {
	for _, tag := range []byte{tagSession, tagSessionMark} {
		var keys [][]byte
		err := ev.tx.Scan([]byte{tag}, []byte{tag + 1}, func(key, _ []byte) (bool, error) {
			keys = append(keys, bytes.Clone(key))
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, k := range keys {
			if err := ev.tx.Delete(k); err != nil {
				return err
			}
		}
	}
	ev.st.LastSession = min(ev.st.LastSession+sessionJump, uint64(dfs.MaxSessionID))
	ev.st.SessionIndex += sessionJump
	return nil
}

// giveUp gives nodes up after groups were recovered without them.
func (ev *entry) giveUp(op *wire.GiveUpOp) error {
	if len(op.Lost) == 0 {
		return dfs.Errorf(dfs.Invalid, giveUpNodes, "no node is named")
	}
	for _, n := range op.Lost {
		if err := ev.checkLost(n); err != nil {
			return err
		}
	}
	return ev.loseNodes(op.Generation, op.Lost)
}

const giveUpNodes = "give nodes up"

// checkLost refuses to give up what is no meta node, see CheckLost. A number that was
// given out and is not in the map is one that only lost nodes knew of.
func (ev *entry) checkLost(n uint32) error {
	if n > ev.st.LastNode {
		return dfs.Errorf(dfs.NotExist, giveUpNodes, "%v is no node of this cluster", dfs.NodeID(n))
	}
	return CheckLost(ev.m, dfs.NodeID(n))
}

// CheckLost refuses a node that cannot be given up as a lost meta node, as far as a map
// has it: one without the role has no replica of any group, and loses its blocks by
// another way.
func CheckLost(m *dfs.Map, id dfs.NodeID) error {
	if id == 0 {
		return dfs.Errorf(dfs.NotExist, giveUpNodes, "%v is no node of this cluster", id)
	}
	if n := m.Node(id); n != nil && !n.Roles.Has(dfs.RoleMeta) {
		return dfs.Errorf(dfs.Invalid, giveUpNodes, "%s (%v) is no meta node: its roles are %v", n.Name, id, n.Roles)
	}
	return nil
}

// loseNodes takes nodes that are lost for good out of every list: the planner fills the
// places. Their directories are refused when they come back.
func (ev *entry) loseNodes(generation uint64, nodes []uint32) error {
	lost := wire.IDs[dfs.NodeID](nodes)
	for _, id := range lost {
		if n := ev.m.Node(id); n != nil && !n.Replaced {
			ev.node(id).Replaced = true
		}
	}
	for _, g := range slices.Clone(ev.m.Groups) {
		left := slices.DeleteFunc(slices.Clone(g.Replicas), func(n dfs.NodeID) bool { return slices.Contains(lost, n) })
		if len(left) > 0 && len(left) < len(g.Replicas) {
			ev.group(uint32(g.ID)).Replicas = left
			ev.changed = true
		}
	}
	r := &wire.Recovery{Generation: generation, Lost: nodes}
	if old := ev.st.Recovery; old != nil {
		r.Generation = max(r.Generation, old.Generation)
		r.Lost = append(slices.Clone(old.Lost), nodes...)
	}
	r.Lost = slices.Compact(slices.Sorted(slices.Values(r.Lost)))
	ev.st.Recovery = r
	ev.sessions = true // so that every group is told anew which sessions have ended
	return nil
}

// acknowledge ends what a recovery holds back.
func (ev *entry) acknowledge() error {
	ev.st.Recovery = nil
	return nil
}

// MayDissolve reports whether a group that is not in the map may be taken for one that
// was abandoned: its number was given out, and not by a leader whose decisions are lost.
func MayDissolve(st *wire.ControlState, g dfs.GroupID) bool {
	n := uint32(g)
	unknown := slices.ContainsFunc(st.GetUnknownGroups(), func(r *wire.GroupRange) bool { return r.First <= n && n <= r.Last })
	return n <= st.GetLastGroup() && !unknown
}
