package meta

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"dfsd/dfs"
	"dfsd/meta/control"
	"dfsd/raftgroup"
	"dfsd/repair"
	"dfsd/transport/wire"
)

// Status implements the meta service: what the control leader knows of the
// whole cluster, and why it does not take reads or writes where it does not.
func (s *Service) Status(ctx context.Context, _ *wire.StatusRequest) (*wire.StatusReply, error) {
	h, err := s.controlLeader()
	if err != nil {
		return nil, err
	}
	if err := h.Read(ctx, dfs.ControlGroup, nothing); err != nil {
		return nil, err // not the leader any more
	}
	s.publish()
	m := s.maps.current()
	if m == nil {
		return nil, dfs.Errorf(dfs.Unavailable, "status", "the cluster is not formed yet")
	}
	reply := &wire.StatusReply{
		Map: wire.FromMap(m), Leader: uint32(s.opts.Identity.Membership().Node), Formed: s.maps.isFormed(),
	}
	if ss, _, err := s.readSessions(ctx, h); err == nil {
		reply.Sessions = uint64(len(ss.Live))
	}
	reply.MetaUp = s.metaUp(h)
	s.statusGroups(reply)
	s.statusStores(reply, m)
	s.statusRedundancy(reply, m)
	reply.Problems = s.problems(reply, m)
	reply.Recovered = s.maps.recovery()
	reply.Width = uint32(control.Width(s.controlState().GetForm()))
	s.plan.mu.Lock()
	reply.Notes = slices.Clone(s.plan.notes)
	s.plan.mu.Unlock()
	reply.Notes = append(reply.Notes, s.beats.ailments()...)
	s.statusSpace(reply)
	return reply, nil
}

// metaUp lists the meta nodes that were heard of lately: by their reports, or in
// the control group, where one that has just joined answers before it reports.
func (s *Service) metaUp(h *raftgroup.Host) []uint32 {
	var up []uint32
	for id := range s.beats.freshVotes() {
		up = append(up, uint32(id))
	}
	if st, ok := h.Status(dfs.ControlGroup); ok {
		for _, p := range st.Peers {
			if p.Active {
				up = append(up, uint32(p.Node))
			}
		}
	}
	slices.Sort(up)
	return slices.Compact(up)
}

func (s *Service) statusGroups(reply *wire.StatusReply) {
	leaders := s.beats.leadersNow()
	for _, g := range s.beats.groupBeats() {
		reply.Groups = append(reply.Groups, &wire.GroupStatus{
			Group: g.Group, Leader: uint32(leaders[g.Group]), Voters: g.Voters, Learners: g.Learners, Applied: g.Applied, Inodes: g.Inodes,
			LogBytes: g.LogBytes, Transactions: g.Transactions, Shares: g.Shares, Level: g.Level,
		})
	}
	// A leader that has just taken over has not reported yet: what the replica
	// here knows of the group serves until then.
	for _, st := range s.Groups() {
		g := uint32(st.Group)
		i, told := slices.BinarySearchFunc(reply.Groups, g, func(x *wire.GroupStatus, g uint32) int { return cmp.Compare(x.Group, g) })
		if told || st.Leader == 0 {
			continue
		}
		gs := &wire.GroupStatus{Group: g, Leader: uint32(st.Leader), Voters: wire.Ints(st.Voters), Learners: wire.Ints(st.Learners), Applied: st.Applied, LogBytes: st.LogBytes}
		if g != 0 {
			b := s.countGroup(s.host.Load(), st.Group)
			gs.Inodes, gs.Transactions, gs.Shares, gs.Level = b.Inodes, b.Transactions, b.Shares, b.Level
		}
		reply.Groups = slices.Insert(reply.Groups, i, gs)
	}
}

func (s *Service) statusStores(reply *wire.StatusReply, m *dfs.Map) {
	tally := s.tally()
	for _, st := range m.Stores {
		ss := &wire.StoreStatus{Beat: &wire.StoreBeat{Store: uint32(st.ID)}, BeatAge: -1, Suspect: st.State == dfs.StoreUp && tally.Suspected(st.ID)}
		if b, ok := s.beats.beat(st.ID); ok && b.Incarnation.GetMark() == st.Incarnation.Mark {
			ss.Beat, ss.BeatAge = b.StoreBeat, time.Since(b.at).Milliseconds()
			ss.Current = st.State == dfs.StoreUp && dfs.Epoch(b.Persisted) >= m.Epoch && b.Incarnation.ToDFS() == st.Incarnation
		}
		reply.Stores = append(reply.Stores, ss)
	}
}

func (s *Service) statusRedundancy(reply *wire.StatusReply, m *dfs.Map) {
	sum := repair.Summarize(m)
	r := &wire.Redundancy{
		Pgs: uint32(sum.PGs), Full: uint32(sum.Full), Degraded: uint32(sum.Degraded), BelowMinimum: uint32(sum.BelowMinimum), Stalled: uint32(sum.Stalled),
		AllFull: sum.Whole() && reply.Formed,
	}
	for _, ss := range reply.Stores {
		for _, b := range ss.Beat.Refills {
			r.BytesToRepair += b.Left
		}
		if st := m.Store(dfs.StoreID(ss.Beat.Store)); st.State == dfs.StoreUp {
			r.AllFull = r.AllFull && ss.Current && !ss.Suspect
		}
	}
	s.plan.mu.Lock()
	r.AllFull = r.AllFull && s.plan.content == m.Epoch // a store that has just joined may have no share yet
	s.plan.mu.Unlock()
	reply.Redundancy = r
}

// problems says why the cluster does not take reads or writes; none: it does.
func (s *Service) problems(reply *wire.StatusReply, m *dfs.Map) []string {
	var out []string
	if !reply.Formed { // whatever else is missing follows from it
		return []string{"the cluster is forming: not every listed meta node votes in every group yet"}
	}
	led := map[uint32]bool{}
	for _, g := range reply.Groups {
		led[g.Group] = true
	}
	var leaderless []string
	for _, g := range m.Groups {
		if !led[uint32(g.ID)] && g.Ready() {
			leaderless = append(leaderless, strconv.Itoa(int(g.ID)))
		}
	}
	switch n := len(leaderless); {
	case n == 1:
		out = append(out, fmt.Sprintf("group %s has no leader", leaderless[0]))
	case n > 1:
		out = append(out, fmt.Sprintf("groups %s and %s have no leader", strings.Join(leaderless[:n-1], ", "), leaderless[n-1]))
	}
	up := 0
	for _, st := range m.Stores {
		if st.State == dfs.StoreUp {
			up++
		}
	}
	full := fullStores(reply, m)
	made, writable, held, unreadable := 0, 0, 0, 0 // held: writable but for a store that is full
	for _, p := range m.PGs {
		if p.Class == m.DefaultClass && p.Active.Epoch > 0 {
			made++
		}
		readable, acting := 0, 0
		for _, id := range p.Active.Stores {
			if st := m.Store(id); st != nil && st.State == dfs.StoreUp {
				acting++
				if p.IsComplete(id) {
					readable++
				}
			}
		}
		switch {
		case p.Class != m.DefaultClass || !p.Writable() || acting < p.Active.Size():
		case slices.ContainsFunc(p.Active.Stores, func(id dfs.StoreID) bool { return full[id] != "" }):
			held++
		default:
			writable++
		}
		if p.Active.Epoch > 0 && readable < p.Class.NeedComplete() {
			unreadable++
		}
	}
	if unreadable > 0 {
		out = append(out, fmt.Sprintf("%d placement groups have no complete copy on a store that is up", unreadable))
	}
	switch need := m.DefaultClass.MinActing(); {
	case writable > 0:
	case held > 0:
		out = append(out, fmt.Sprintf("no placement group of class %v takes writes: each has a store that is full to its reserve: %s; add stores, or delete",
			m.DefaultClass, strings.Join(slices.Sorted(maps.Values(full)), ", ")))
	case made == 0 && up >= need:
		out = append(out, fmt.Sprintf("the placement groups of class %v are being made", m.DefaultClass))
	default:
		out = append(out, fmt.Sprintf("no placement group of class %v takes writes: it needs %d stores up, %d are", m.DefaultClass, need, up))
	}
	return out
}

// fullStores are those up that take no writes for lack of space, with their nodes.
func fullStores(reply *wire.StatusReply, m *dfs.Map) map[dfs.StoreID]string {
	full := map[dfs.StoreID]string{}
	for _, ss := range reply.Stores {
		st := m.Store(dfs.StoreID(ss.Beat.Store))
		if st.State == dfs.StoreUp && ss.Beat.State == storeReadOnly {
			full[st.ID] = fmt.Sprintf("%v on %s", st.ID, m.Node(st.Node).Name)
		}
	}
	return full
}
