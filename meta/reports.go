package meta

import (
	"cmp"
	"maps"
	"slices"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// A report and its answer carry what changed since the last ones, so that many
// groups in which nothing happens cost nothing.
//
//	node ── number 7 upon 6: groups that changed, groups left ──▶ control leader
//	     ◀── the loads that changed since the version that the node has ──
//
// The leader builds a report upon the last one that it has of the same start of
// the node. If that is another, since it has just been elected or an answer was
// lost, it asks for everything, and has it in the same exchange.

// reporter is the node's side: what it told the control leader, and what that one
// told it. It belongs to the report loop.
type reporter struct {
	number uint64 // of the last report
	base   uint64 // the last one that was answered; 0: everything has to be said
	told   []*wire.GroupBeat
	term   uint64 // of the control leader whose loads this node has, and
	loads  uint64 // their version
}

// fill adds to a report what changed in the groups that this node leads, which
// are ascending.
func (p *reporter) fill(rep *wire.MetaReport, beats []*wire.GroupBeat) {
	p.number++
	rep.Number, rep.Base, rep.Term, rep.Loads = p.number, p.base, p.term, p.loads
	rep.Left = nil
	if p.base == 0 {
		rep.Groups = beats
		return
	}
	rep.Groups, rep.Left = changedBeats(p.told, beats)
}

// answered notes that the leader has the report of these groups, and the loads
// that came with the answer.
func (p *reporter) answered(beats []*wire.GroupBeat, reply *wire.MetaReportReply) {
	p.base, p.told = p.number, beats
	p.term, p.loads = reply.Term, reply.Loads
}

// exchange sends a report of these groups, and all of it if the leader asks for it.
func (p *reporter) exchange(rep *wire.MetaReport, beats []*wire.GroupBeat, send func(*wire.MetaReport) (*wire.MetaReportReply, error)) (*wire.MetaReportReply, error) {
	p.fill(rep, beats)
	reply, err := send(rep)
	if err == nil && reply.Again {
		p.forget()
		p.fill(rep, beats)
		reply, err = send(rep)
	}
	if err != nil || reply.Again {
		p.forget()
		return nil, cmp.Or(err, dfs.Errorf(dfs.Unavailable, "report", "everything was said, and not taken"))
	}
	p.answered(beats, reply)
	return reply, nil
}

// forget has everything said again, and asked for.
func (p *reporter) forget() { *p = reporter{number: p.number} }

// changedBeats returns what of next, which is ascending like old, is not in old,
// and which groups of old next has not.
func changedBeats(old, next []*wire.GroupBeat) (changed []*wire.GroupBeat, left []uint32) {
	i := 0
	for _, b := range next {
		for ; i < len(old) && old[i].Group < b.Group; i++ {
			left = append(left, old[i].Group)
		}
		if i < len(old) && old[i].Group == b.Group {
			if i++; sameBeat(old[i-1], b) {
				continue
			}
		}
		changed = append(changed, b)
	}
	for _, b := range old[i:] {
		left = append(left, b.Group)
	}
	return changed, left
}

func sameBeat(a, b *wire.GroupBeat) bool {
	return a == b || a.Group == b.Group && a.Term == b.Term && a.Applied == b.Applied && a.Inodes == b.Inodes && a.LogBytes == b.LogBytes && a.Rate == b.Rate &&
		a.Transactions == b.Transactions && a.Shares == b.Shares && a.Level == b.Level &&
		slices.Equal(a.Voters, b.Voters) && slices.Equal(a.Learners, b.Learners) && slices.Equal(a.Heard, b.Heard)
}

// mergeBeats is what changedBeats was made of. Moved reports whether another leads
// a group, or its inodes or its rate are others. Old stays as it is: others read it.
func mergeBeats(old, changed []*wire.GroupBeat, left []uint32) (next []*wire.GroupBeat, moved bool) {
	if len(changed)+len(left) == 0 {
		return old, false
	}
	moved = len(left) > 0
	next = make([]*wire.GroupBeat, 0, len(old)+len(changed))
	for _, b := range old {
		for len(changed) > 0 && changed[0].Group < b.Group {
			next, changed, moved = append(next, changed[0]), changed[1:], true
		}
		switch {
		case len(changed) > 0 && changed[0].Group == b.Group:
			moved = moved || changed[0].Term != b.Term || changed[0].Inodes != b.Inodes || changed[0].Rate != b.Rate
			next, changed = append(next, changed[0]), changed[1:]
		case !slices.Contains(left, b.Group):
			next = append(next, b)
		}
	}
	return append(next, changed...), moved || len(changed) > 0
}

// board is the control leader's side: who leads each group, how many inodes it has
// and what it does, and since which version. Guarded by registry.mu.
type board struct {
	term    uint64 // in which this node leads the control group
	version uint64 // grows with each change; 0 is none
	rows    map[uint32]*boardRow

	// Of what it was made: nothing else changes it.
	fresh []dfs.NodeID // whose word counted, ascending
	moved bool         // it is another since
}

type boardRow struct {
	leader dfs.NodeID // 0: nobody said lately that it leads
	load   groupLoad
	since  uint64 // version
}

// update brings the board to what was said lately. Of two that say that they lead
// a group, the one of the later term does.
func (b *board) update(term uint64, votes map[dfs.NodeID]vote) {
	fresh := slices.Sorted(maps.Keys(votes))
	if !b.moved && b.term == term && slices.Equal(b.fresh, fresh) {
		return
	}
	if b.term != term || b.rows == nil {
		*b = board{term: term, rows: map[uint32]*boardRow{}}
	}
	b.fresh, b.moved = fresh, false
	type led struct {
		*wire.GroupBeat
		by dfs.NodeID
	}
	now := make(map[uint32]led, len(b.rows))
	for _, id := range fresh {
		for _, g := range votes[id].groups {
			if old := now[g.Group]; old.GroupBeat == nil || old.Term < g.Term {
				now[g.Group] = led{g, id}
			}
		}
	}
	next := b.version + 1
	for g, l := range now {
		if b.rows[g] == nil {
			b.rows[g] = &boardRow{}
		}
		if row := b.rows[g]; row.since == 0 || row.leader != l.by || row.load != (groupLoad{l.Inodes, l.Rate}) {
			*row = boardRow{leader: l.by, load: groupLoad{l.Inodes, l.Rate}, since: next}
			b.version = next
		}
	}
	for g, row := range b.rows {
		if now[g].GroupBeat == nil && row.leader != 0 {
			row.leader, row.since = 0, next
			b.version = next
		}
	}
}

// answer adds to a reply the loads that changed since the version of a term that
// the asker has, or all of them.
func (b *board) answer(reply *wire.MetaReportReply, term, version uint64) {
	reply.Term, reply.Loads = b.term, b.version
	reply.All = term != b.term || version == 0 || version > b.version
	if !reply.All && version == b.version {
		return
	}
	for g, row := range b.rows {
		if reply.All && row.leader != 0 || !reply.All && row.since > version {
			reply.Groups = append(reply.Groups, &wire.GroupLoad{Group: g, Inodes: row.load.inodes, Leader: uint32(row.leader), Rate: row.load.rate})
		}
	}
	slices.SortFunc(reply.Groups, func(a, b *wire.GroupLoad) int { return cmp.Compare(a.Group, b.Group) })
}
