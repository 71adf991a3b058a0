package meta

import (
	"context"
	"slices"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/meta/control"
	"dfsd/raftgroup"
	"dfsd/repair"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

const (
	planTick  = 250 * time.Millisecond // how often the control leader plans when nothing wakes it
	groupRest = time.Second            // between two plans of who holds which group, once the cluster is formed
	planRest  = 20 * time.Millisecond  // at least this long between two plans: what woke it may bring company
)

// planner is the control leader's memory between two plans.
type planner struct {
	s *Service

	mu        sync.Mutex
	term      uint64 // that elected and the following hold for
	elected   time.Time
	notBefore time.Time // nobody is declared down before
	led       time.Time // when this node last knew of a control leader
	persisted map[dfs.StoreID]*wire.PersistedMark
	notes     []string
	grouped   time.Time // of the last plan of who holds which group
	content   dfs.Epoch // of the last map that left the planner nothing to decide
}

func newPlanner(s *Service) *planner {
	return &planner{s: s, persisted: map[dfs.StoreID]*wire.PersistedMark{}}
}

// heard notes which epochs stores have on disk, and plans at once when that
// may let a proposal become active.
func (p *planner) heard(m *dfs.Map, beats []*wire.StoreBeat) {
	p.mu.Lock()
	news := false
	for _, b := range beats {
		id := dfs.StoreID(b.Store)
		st := m.Store(id)
		if st == nil || st.Incarnation.Mark != b.Incarnation.GetMark() {
			continue
		}
		if old := p.persisted[id]; old == nil || old.Mark != st.Incarnation.Mark || old.Epoch < b.Persisted {
			p.persisted[id] = &wire.PersistedMark{Store: b.Store, Mark: st.Incarnation.Mark, Epoch: b.Persisted}
			news = true
		}
	}
	p.mu.Unlock()
	if news {
		p.s.wakeControl()
	}
}

// lead notes the start of a term. What stores persisted is a fact and stays.
func (p *planner) lead(term uint64, leaderless time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term != term {
		p.term, p.elected = term, time.Now()
		p.notBefore = repair.NoDownBefore(p.elected, leaderless)
	}
}

// ledFor is how long this node has led in a term.
func (p *planner) ledFor(term uint64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term != term {
		return 0
	}
	return time.Since(p.elected)
}

// controlLoop plans while this node leads the control group.
func (s *Service) controlLoop() {
	s.plan.led = time.Now()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.wake.control:
			if !s.sleep(planRest) {
				return
			}
		case <-time.After(planTick):
		}
		h := s.host.Load()
		o, _ := h.Leader(dfs.ControlGroup)
		if o.Leader == 0 {
			continue
		}
		if o.Leader != s.opts.Identity.Membership().Node {
			s.plan.led = time.Now()
			continue
		}
		s.plan.lead(o.Term, time.Since(s.plan.led))
		s.plan.led = time.Now()
		ctx, cancel := context.WithTimeout(s.ctx, metas.AttemptTimeout)
		if err := s.planOnce(ctx); err != nil && s.ctx.Err() == nil {
			s.log.Debug("plan", "group", 0, "cause", err)
		}
		cancel()
	}
}

// planOnce makes one plan and commits it.
func (s *Service) planOnce(ctx context.Context) error {
	m := s.maps.current()
	if m == nil {
		return nil
	}
	var decisions []repair.Decision
	if time.Since(s.plan.grouped) >= groupRest || !s.maps.isFormed() {
		decisions = repair.PlanGroups(s.groupInput(m))
		s.plan.grouped = time.Now()
	}
	if !s.maps.isFormed() {
		if len(decisions) == 0 {
			return s.checkFormed(ctx)
		}
	} else {
		out := repair.Plan(s.planInput(m))
		s.plan.mu.Lock()
		s.plan.notes = out.Notes
		if len(out.Decisions) == 0 {
			s.plan.content = m.Epoch
		}
		s.plan.mu.Unlock()
		decisions = append(decisions, out.Decisions...)
	}
	if len(decisions) == 0 {
		return nil
	}
	op := &wire.PlanOp{}
	for _, d := range decisions {
		op.Decisions = append(op.Decisions, s.encode(d))
		switch d.(type) {
		case repair.MarkDown, repair.MarkOut, repair.CreatePGs, repair.SetReplicas, repair.AbandonGroup:
			s.log.Info("decided", "group", 0, "decision", d.String())
		}
	}
	_, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_Plan{Plan: op}})
	return err
}

// tally counts who suspects whom, by what the voters of the control group said
// lately.
func (s *Service) tally() repair.Tally {
	var votes []repair.Vote
	for id, v := range s.beats.freshVotes() {
		votes = append(votes, repair.Vote{Voter: id, Suspects: v.suspects, At: v.at})
	}
	return repair.Count(s.controlVoters(), votes, time.Now(), voteFresh)
}

func (s *Service) planInput(m *dfs.Map) repair.Input {
	in := repair.Input{
		Map: m, Persisted: map[dfs.StoreID]dfs.Epoch{}, Tally: s.tally(), Now: s.opts.Now(), Settings: s.opts.Planner,
	}
	in.Settings.Grace = s.opts.Grace
	if st := s.controlState(); st != nil {
		in.Settings.PGsPerClass = int(st.Form.PgsPerClass) // of the founder: settled for good
		for _, name := range st.Classes {
			if c, err := dfs.ParseClass(name); err == nil {
				in.Classes = append(in.Classes, c)
			}
		}
	}
	s.plan.mu.Lock()
	defer s.plan.mu.Unlock()
	in.NoDownBefore = in.Now.Add(time.Until(s.plan.notBefore)) // by the wall clock, as the stamps of the map are
	for id, pm := range s.plan.persisted {
		if st := m.Store(id); st != nil && st.Incarnation.Mark == pm.Mark {
			in.Persisted[id] = dfs.Epoch(pm.Epoch)
		}
	}
	return in
}

// groupInput is what the planner of groups decides from.
func (s *Service) groupInput(m *dfs.Map) repair.GroupInput {
	in := repair.GroupInput{
		Map: m, Width: control.Width(s.controlState().GetForm()), Views: s.beats.groupViews(),
		Up: map[dfs.NodeID]bool{}, Gone: map[dfs.NodeID]bool{}, Full: map[dfs.NodeID]bool{},
	}
	if h := s.host.Load(); h != nil {
		if st, ok := h.Status(dfs.ControlGroup); ok {
			s.beats.hearMembers(&st)
		}
	}
	s.plan.mu.Lock()
	elected := s.plan.elected
	s.plan.mu.Unlock()
	for _, n := range m.MetaNodes() {
		at := s.beats.lastHeard(n.ID)
		in.Up[n.ID] = time.Since(at) < voteFresh
		if at.Before(elected) {
			at = elected // before, others listened: a new leader gives everybody the whole period
		}
		in.Gone[n.ID] = time.Since(at) >= s.opts.Grace
	}
	for id := range s.space.full() {
		in.Full[id] = true
	}
	return in
}

// controlState reads the control group's counters and settings as this node has
// applied them; nil when that cannot be.
func (s *Service) controlState() (st *wire.ControlState) {
	err := s.host.Load().ReadLocal(dfs.ControlGroup, func(r raftgroup.Reader) (err error) {
		st, err = control.ReadState(r)
		return err
	})
	if err != nil {
		return nil
	}
	return st
}

// WantClass implements the meta service.
func (s *Service) WantClass(ctx context.Context, req *wire.WantClassRequest) (*wire.WantClassReply, error) {
	if _, err := s.controlLeader(); err != nil {
		return nil, err
	}
	if _, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_WantClass{WantClass: req}}); err != nil {
		return nil, err
	}
	s.wakeControl()
	return &wire.WantClassReply{}, nil
}

// SetClass implements the meta service.
func (s *Service) SetClass(ctx context.Context, req *wire.SetClassRequest) (*wire.SetClassReply, error) {
	if _, err := s.controlLeader(); err != nil {
		return nil, err
	}
	if c := req.GetSetting().GetCodec(); c > 255 || !dfs.Codec(c).Known() {
		return nil, dfs.Errorf(dfs.Unsupported, "set class", "codec %d: this release knows none, s2 and zstd", c)
	}
	if _, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_SetClass{SetClass: req}}); err != nil {
		return nil, err
	}
	return &wire.SetClassReply{}, nil
}

// controlVoters lists the voters of the control group, as this node knows them.
func (s *Service) controlVoters() []dfs.NodeID {
	st, _ := s.host.Load().Status(dfs.ControlGroup)
	return st.Voters
}

// encode turns a decision into the form of the log.
func (s *Service) encode(d repair.Decision) *wire.Decision {
	switch d := d.(type) {
	case repair.MarkDown:
		return &wire.Decision{Decision: &wire.Decision_State{State: &wire.StateDecision{
			Store: uint32(d.Store), State: uint32(dfs.StoreDown), Incarnation: wire.FromIncarnation(d.Incarnation), Voters: wire.Ints(d.Voters),
			Electorate: wire.Ints(s.controlVoters()),
		}}}
	case repair.MarkOut:
		return &wire.Decision{Decision: &wire.Decision_State{State: &wire.StateDecision{
			Store: uint32(d.Store), State: uint32(dfs.StoreOut), Incarnation: wire.FromIncarnation(d.Incarnation),
			Grace: s.opts.Grace.Milliseconds(),
		}}}
	case repair.SetTarget:
		return &wire.Decision{Decision: &wire.Decision_Target{Target: &wire.TargetDecision{Pg: uint32(d.PG), Stores: wire.Ints(d.Target)}}}
	case repair.ProposeSet:
		return &wire.Decision{Decision: &wire.Decision_Propose{Propose: &wire.ProposeDecision{
			Pg: uint32(d.PG), Newest: uint64(d.Newest), Stores: wire.Ints(d.Acting),
		}}}
	case repair.ActivateSet:
		return &wire.Decision{Decision: &wire.Decision_Activate{Activate: &wire.ActivateDecision{
			Pg: uint32(d.PG), Epoch: uint64(d.Epoch), Persisted: s.marksOf(d.PG),
		}}}
	case repair.SetReplicas:
		return &wire.Decision{Decision: &wire.Decision_Replicas{Replicas: &wire.ReplicasDecision{
			Group: uint32(d.Group), Was: wire.Ints(d.Was), Replicas: wire.Ints(d.To),
		}}}
	case repair.AbandonGroup:
		return &wire.Decision{Decision: &wire.Decision_Abandon{Abandon: &wire.AbandonDecision{
			Group: uint32(d.Group), Founder: uint32(d.Founder), Replicas: wire.Ints(d.Replicas),
		}}}
	case repair.CreatePGs:
		return &wire.Decision{Decision: &wire.Decision_Create{Create: &wire.CreatePGsDecision{Class: d.Class.String(), Count: uint32(d.Count)}}}
	}
	panic("meta: a decision of an unknown kind")
}

// marksOf lists what the proposed members of a placement group have persisted.
func (s *Service) marksOf(id dfs.PGID) []*wire.PersistedMark {
	p := s.maps.current().PG(id)
	s.plan.mu.Lock()
	defer s.plan.mu.Unlock()
	var out []*wire.PersistedMark
	for _, st := range p.Proposed.Stores {
		if pm := s.plan.persisted[st]; pm != nil {
			out = append(out, pm)
		}
	}
	return out
}

// checkFormed opens the cluster for mutations once every listed meta node has
// registered and every group's list, of full width, votes.
func (s *Service) checkFormed(ctx context.Context) error {
	m, st := s.maps.current(), s.controlState()
	for _, p := range s.opts.Peers {
		if !slices.ContainsFunc(m.MetaNodes(), func(n *dfs.Node) bool { return n.Name == p.Name }) {
			return nil
		}
	}
	views := s.beats.groupViews()
	for _, g := range m.Groups {
		if v := views[g.ID]; v == nil || len(g.Replicas) < control.Width(st.GetForm()) || !slices.Equal(v.Voters, g.Replicas) {
			return nil
		}
	}
	_, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_Formed{Formed: &wire.FormedOp{}}})
	if err == nil {
		s.log.Info("every listed meta node votes: the cluster takes changes", "group", 0)
	}
	return err
}

// RefillDone implements the meta service.
func (s *Service) RefillDone(ctx context.Context, req *wire.RefillDoneRequest) (*wire.RefillDoneReply, error) {
	if _, err := s.controlLeader(); err != nil {
		return nil, err
	}
	if m := s.maps.current(); m != nil && m.Store(dfs.StoreID(req.Store)) != nil {
		if err := nodeAt(ctx, m.StoreAddr(dfs.StoreID(req.Store))); err != nil {
			return nil, err
		}
	} else {
		return nil, dfs.Errorf(dfs.Unavailable, "note refill", "store s%d is not registered as far as this node knows", req.Store)
	}
	_, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_RefillDone{RefillDone: req}})
	if err != nil {
		return nil, err
	}
	return &wire.RefillDoneReply{}, nil
}
