package meta

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/repair"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// voteFresh is how long a meta node's report counts: two heartbeats lost in a
// row silence it. What arrives that long after something else was said after it:
// no call takes longer to arrive.
const voteFresh = 2 * time.Second

// beat is the last heartbeat about one store.
type beat struct {
	*wire.StoreBeat
	at time.Time // when it reached this node, or the node that told this one
}

// vote is what one meta node says.
type vote struct {
	suspects []dfs.StoreID
	groups   []*wire.GroupBeat // ascending; never changed
	heard    []uint32          // the nodes that answer in any of them
	disk     *wire.MetaDisk    // nil: its file system does not tell
	at       time.Time
	inc      dfs.Incarnation
	number   uint64 // of the report
}

// word is the last sign of life of a node's start.
type word struct {
	inc dfs.Incarnation
	at  time.Time
}

// registry keeps in memory what heartbeats and reports say. Nothing here
// decides: a new leader starts without it.
type registry struct {
	s *Service

	mu     sync.Mutex
	detect *repair.Detector
	beats  map[dfs.StoreID]beat
	votes  map[dfs.NodeID]vote
	board  board                      // what the control leader makes of them
	words  map[dfs.NodeID]word        // the last of each node
	claims map[claim]time.Time        // when each was first made
	loads  map[dfs.GroupID]groupLoad  // from the control leader
	lead   map[dfs.GroupID]dfs.NodeID // who leads each group, from the control leader
	heard  map[dfs.NodeID]time.Time   // when a meta node was last heard of, by anybody
	formed bool                       // as the control leader says
	ailing map[string]damage          // by name
}

func newRegistry(s *Service) *registry {
	return &registry{
		s: s, detect: repair.NewDetector(s.opts.Health, time.Now()),
		beats: map[dfs.StoreID]beat{}, votes: map[dfs.NodeID]vote{}, loads: map[dfs.GroupID]groupLoad{},
		lead: map[dfs.GroupID]dfs.NodeID{}, heard: map[dfs.NodeID]time.Time{},
		words: map[dfs.NodeID]word{}, claims: map[claim]time.Time{}, ailing: map[string]damage{},
	}
}

// hear notes a heartbeat that reached this node itself.
func (r *registry) hear(n *dfs.Node, stores []*wire.StoreBeat) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.words[n.ID] = word{n.Incarnation, now}
	for _, b := range stores {
		id := dfs.StoreID(b.Store)
		r.beats[id] = beat{b, now}
		r.detect.Observe(id, now, repair.Health{
			Failed: b.State == storeFailed, WriteAge: time.Duration(b.WriteAge) * time.Millisecond,
			SyncAge: time.Duration(b.SyncAge) * time.Millisecond, ReadAge: time.Duration(b.ReadAge) * time.Millisecond,
		})
	}
}

// persisted lists the map epochs that stores have on disk, as their heartbeats said last.
func (r *registry) persisted() (out []*wire.PersistedMark) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(r.beats)) {
		b := r.beats[id]
		out = append(out, &wire.PersistedMark{Store: uint32(id), Mark: b.Incarnation.GetMark(), Epoch: b.Persisted})
	}
	return out
}

// Of wire.StoreBeat.state.
const (
	storeReadOnly = 1
	storeFailed   = 2
)

// suspects lists the stores that this node itself suspects, sorted.
func (r *registry) suspects(m *dfs.Map) []dfs.StoreID {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []dfs.StoreID
	for _, s := range m.Stores {
		if r.detect.Suspect(s.ID, now) { // of those that are down too, see mayReturn
			out = append(out, s.ID)
		}
	}
	return out
}

// Heartbeat implements the meta service.
func (s *Service) Heartbeat(ctx context.Context, req *wire.HeartbeatRequest) (*wire.HeartbeatReply, error) {
	h, err := s.raft()
	if err != nil {
		return nil, err
	}
	m := s.maps.current()
	if m == nil {
		return nil, dfs.Errorf(dfs.Unavailable, "heartbeat", "this node has no map yet")
	}
	reply := &wire.HeartbeatReply{Epoch: uint64(m.Epoch)}
	if o, ok := h.Leader(dfs.ControlGroup); ok {
		reply.Leader = uint32(o.Leader)
	}
	n := m.Node(dfs.NodeID(req.Node))
	if n == nil || n.Incarnation != req.Incarnation.ToDFS() {
		reply.Register = true
		return reply, nil
	}
	if err := nodeAt(ctx, n.Addr); err != nil {
		return nil, err
	}
	var known []*wire.StoreBeat
	for _, b := range req.Stores {
		st := m.Store(dfs.StoreID(b.Store))
		if st == nil || st.Node != n.ID || st.Incarnation.Mark != b.Incarnation.GetMark() {
			reply.Register = true
			continue
		}
		reply.Register = reply.Register || st.Incarnation != b.Incarnation.ToDFS() || st.State != dfs.StoreUp && b.State != storeFailed
		known = append(known, b)
	}
	s.beats.hear(n, known)
	if _, leads := s.leads(dfs.ControlGroup); leads {
		s.plan.heard(m, known)
	}
	return reply, nil
}

// reportLoop tells the control leader what this node sees.
func (s *Service) reportLoop() {
	var p reporter
	var c census
	for s.sleep(s.opts.Heartbeat) {
		var rep *wire.MetaReport
		if rep, c = s.report(c); rep == nil {
			continue
		}
		reply, err := s.tell(&p, rep, c.beats)
		if err != nil {
			s.log.Debug("report to the control leader", "cause", err)
			continue
		}
		s.beats.learn(reply)
		s.space.learn(reply.Full)
	}
}

// tell reports to the control leader, which may be this node.
func (s *Service) tell(p *reporter, rep *wire.MetaReport, beats []*wire.GroupBeat) (reply *wire.MetaReportReply, err error) {
	if term, leads := s.leads(dfs.ControlGroup); leads {
		return p.exchange(rep, beats, func(rep *wire.MetaReport) (*wire.MetaReportReply, error) {
			return s.takeReport(rep, s.opts.Identity.Incarnation(), term), nil
		})
	}
	ctx, cancel := context.WithTimeout(s.ctx, max(s.opts.Heartbeat, time.Second))
	defer cancel()
	err = s.opts.Metas.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, c wire.DRPCMetaClient) (err error) {
		reply, err = p.exchange(rep, beats, func(rep *wire.MetaReport) (*wire.MetaReportReply, error) { return c.Report(ctx, rep) })
		return err
	})
	return reply, err
}

// takeReport notes a report and answers it, as the leader of the control group in
// a term.
func (s *Service) takeReport(rep *wire.MetaReport, inc dfs.Incarnation, term uint64) *wire.MetaReportReply {
	if !s.beats.take(rep, inc) {
		return &wire.MetaReportReply{Again: true}
	}
	reply := &wire.MetaReportReply{Formed: s.maps.isFormed(), Full: s.beats.fullDisks()}
	s.beats.answer(reply, term, rep)
	return reply
}

// census is what was said of the groups that this node led, ascending.
type census struct {
	beats []*wire.GroupBeat
	naps  []uint64 // of each: in which sleep that was, see raftgroup.Host.Nap
}

// report assembles what this node sees, and of the groups that it leads, ascending;
// nil while it has no map, or no host. Of a group that has slept since the last
// report the same is said again, and of one that was awake what was counted, if
// nothing happened in it since.
func (s *Service) report(last census) (*wire.MetaReport, census) {
	m := s.maps.current()
	h, err := s.raft()
	if m == nil || err != nil {
		return nil, last
	}
	me := s.opts.Identity.Membership().Node
	rep := &wire.MetaReport{Node: uint32(me), Suspects: wire.Ints(s.beats.suspects(m)), Disk: s.space.disk()}
	led, changed := s.agenda.leads()
	c := census{make([]*wire.GroupBeat, 0, len(led)), make([]uint64, 0, len(led))}
	i := 0
	for _, g := range led {
		o, _ := h.Leader(g)
		if o.Leader != me {
			continue
		}
		for i < len(last.beats) && last.beats[i].Group < uint32(g) {
			i++
		}
		var old *wire.GroupBeat // what was said in this term, while it is true
		if i < len(last.beats) && last.beats[i].Group == uint32(g) && last.beats[i].Term == o.Term && !changed[g] {
			old = last.beats[i]
		}
		nap, logBytes := h.Nap(g)
		c.naps = append(c.naps, nap)
		if old != nil && nap != 0 && nap == last.naps[i] && logBytes == old.LogBytes && s.rates.of(g) == old.Rate {
			c.beats = append(c.beats, old)
			continue
		}
		gb := s.groupBeat(h, g)
		switch {
		case g == dfs.ControlGroup:
		case old != nil:
			takeRows(gb, old)
		default:
			takeRows(gb, s.countGroup(h, g))
		}
		c.beats = append(c.beats, gb)
	}
	return rep, c
}

// groupBeat is what this node, which leads a group, says of its replicas.
func (s *Service) groupBeat(h *raftgroup.Host, g dfs.GroupID) *wire.GroupBeat {
	st, _ := h.Status(g)
	gb := &wire.GroupBeat{
		Group: uint32(g), Term: st.Term, Applied: st.Applied, Voters: wire.Ints(st.Voters), Learners: wire.Ints(st.Learners),
		LogBytes: st.LogBytes, Rate: s.rates.of(g),
	}
	for _, p := range st.Peers {
		if p.Active {
			gb.Heard = append(gb.Heard, uint32(p.Node))
		}
	}
	return gb
}

// Report implements the meta service.
func (s *Service) Report(ctx context.Context, rep *wire.MetaReport) (*wire.MetaReportReply, error) {
	if _, err := s.controlLeader(); err != nil {
		return nil, err
	}
	term, leads := s.leads(dfs.ControlGroup)
	if !leads { // lost meanwhile: the term is another's
		return nil, dfs.Errorf(dfs.NotLeader, "report", "this node does not lead the control group")
	}
	m := s.maps.current()
	if err := metaOnly(ctx, m); err != nil {
		return nil, err
	}
	p, _ := transport.PeerFrom(ctx)
	if n := m.Node(dfs.NodeID(rep.Node)); n == nil || n.Incarnation != p.Incarnation {
		return nil, dfs.Errorf(dfs.Stale, "report", "start %v of n%d is not on record", p.Incarnation, rep.Node)
	}
	return s.takeReport(rep, p.Incarnation, term), nil
}

// take notes a report and the start that it is from. It reports false, and notes
// nothing, when the report builds upon one that is not the last of that start here.
func (r *registry) take(rep *wire.MetaReport, inc dfs.Incarnation) bool {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	id := dfs.NodeID(rep.Node)
	last, moved := r.votes[id], true
	v := vote{suspects: wire.IDs[dfs.StoreID](rep.Suspects), groups: rep.Groups, disk: rep.Disk, at: now, inc: inc, number: rep.Number}
	if rep.Base != 0 {
		if last.number != rep.Base || last.inc != inc {
			return false
		}
		v.groups, moved = mergeBeats(last.groups, rep.Groups, rep.Left)
	}
	if v.heard = last.heard; rep.Base == 0 || len(rep.Groups)+len(rep.Left) > 0 {
		v.heard = whoAnswers(v.groups)
	}
	r.board.moved = r.board.moved || moved
	r.votes[id] = v
	r.words[id] = word{inc, now}
	r.heard[id] = now
	for _, n := range v.heard {
		r.heard[dfs.NodeID(n)] = now
	}
	return true
}

// whoAnswers lists the nodes that answer the leader of any of the groups.
func whoAnswers(groups []*wire.GroupBeat) []uint32 {
	seen := map[uint32]bool{}
	for _, g := range groups {
		for _, n := range g.Heard {
			seen[n] = true
		}
	}
	return slices.Collect(maps.Keys(seen))
}

// freshVotes returns what was said lately.
func (r *registry) freshVotes() map[dfs.NodeID]vote {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.freshLocked()
}

func (r *registry) freshLocked() map[dfs.NodeID]vote {
	out := map[dfs.NodeID]vote{}
	for id, v := range r.votes {
		if time.Since(v.at) < voteFresh {
			out[id] = v
		}
	}
	return out
}

// groupBeats returns the newest word of each group's leader, by group.
func (r *registry) groupBeats() []*wire.GroupBeat {
	votes, n := r.freshVotes(), 0
	for _, v := range votes {
		n += len(v.groups)
	}
	newest := make(map[uint32]*wire.GroupBeat, n)
	for _, v := range votes {
		for _, g := range v.groups {
			if old := newest[g.Group]; old == nil || old.Term < g.Term {
				newest[g.Group] = g
			}
		}
	}
	out := make([]*wire.GroupBeat, 0, len(newest))
	for _, g := range newest {
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *wire.GroupBeat) int { return int(a.Group) - int(b.Group) })
	return out
}

// answer adds to a reply the loads that a node has not, as the leader of the
// control group in a term knows them.
func (r *registry) answer(reply *wire.MetaReportReply, term uint64, rep *wire.MetaReport) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.board.update(term, r.freshLocked())
	r.board.answer(reply, rep.Term, rep.Loads)
}

// groupViews returns what the leaders said lately of their groups.
func (r *registry) groupViews() map[dfs.GroupID]*repair.GroupView {
	leaders := r.leadersNow()
	out := map[dfs.GroupID]*repair.GroupView{}
	for _, g := range r.groupBeats() {
		out[dfs.GroupID(g.Group)] = &repair.GroupView{
			Leader: leaders[g.Group], Voters: wire.IDs[dfs.NodeID](g.Voters), Learners: wire.IDs[dfs.NodeID](g.Learners), Heard: wire.IDs[dfs.NodeID](g.Heard),
		}
	}
	return out
}

// hearMembers notes who answers in a group that this node leads.
func (r *registry) hearMembers(st *raftgroup.Status) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range st.Peers {
		if p.Active {
			r.heard[p.Node] = now
		}
	}
}

// lastHeard is when anybody last heard of a meta node, as far as this node knows.
func (r *registry) lastHeard(id dfs.NodeID) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.heard[id]
}

// leadersNow returns who said lately that it leads a group, in the latest term.
func (r *registry) leadersNow() map[uint32]dfs.NodeID {
	terms, out := map[uint32]uint64{}, map[uint32]dfs.NodeID{}
	for id, v := range r.freshVotes() {
		for _, g := range v.groups {
			if g.Term > terms[g.Group] {
				terms[g.Group], out[g.Group] = g.Term, id
			}
		}
	}
	return out
}

// learn notes the loads that the control leader handed out.
func (r *registry) learn(reply *wire.MetaReportReply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if reply.All {
		clear(r.lead)
	}
	for _, l := range reply.Groups {
		if l.Leader == 0 {
			delete(r.lead, dfs.GroupID(l.Group))
			continue
		}
		r.lead[dfs.GroupID(l.Group)] = dfs.NodeID(l.Leader)
		if l.Group != 0 {
			r.loads[dfs.GroupID(l.Group)] = groupLoad{l.Inodes, l.Rate}
		}
	}
	r.formed = reply.Formed
	if len(reply.Groups) > 0 {
		r.s.place.settle(r.loads)
	}
}

// groupLoads returns what each group has and does, as the control leader last said.
func (r *registry) groupLoads() map[dfs.GroupID]groupLoad {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.loads)
}

// beat returns the last heartbeat of a store.
func (r *registry) beat(id dfs.StoreID) (beat, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.beats[id]
	return b, ok
}
