package meta

import (
	"context"
	"slices"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/meta/control"
	"dfsd/raftgroup"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

const (
	sessionCheck = time.Second     // how often the control leader looks for sessions to end
	fencePause   = 5 * time.Second // between fences that only sweep up closed sessions
)

// sessions is the control leader's memory of renewals. A session of which it knows
// none has a full lease from the moment it is met: a new leader knows none at all, and
// one that is just being opened is committed before it is noted here. The highest
// number issued is every node's memory.
type sessions struct {
	mu      sync.Mutex
	term    uint64                      // that renewed holds for
	renewed map[dfs.SessionID]time.Time // or met; kept for a lease, as the list of sessions may be older than an opening
	marks   map[dfs.SessionID]uint64    // below which block counter all is committed or given up; of renewed sessions

	fenced  uint64    // control.Sessions.Index of the last fence that all groups hold
	fenceAt time.Time // when that was

	issued dfs.SessionID // the highest number known to have been given to a session
}

// learn notes that the numbers up to one have been given to sessions.
func (l *sessions) learn(upTo dfs.SessionID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.issued = max(l.issued, upTo)
}

func (l *sessions) issuedUpTo() dfs.SessionID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.issued
}

func newSessions() *sessions {
	return &sessions{renewed: map[dfs.SessionID]time.Time{}, marks: map[dfs.SessionID]uint64{}}
}

// lead starts a term: what another term noted is forgotten.
func (l *sessions) lead(term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.term != term {
		l.term, l.fenced = term, 0
		clear(l.renewed)
		clear(l.marks)
	}
}

// renew notes a renewal, and the low-water mark that came with it.
func (l *sessions) renew(id dfs.SessionID, below uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewed[id] = time.Now()
	if below > l.marks[id] {
		l.marks[id] = below
	}
}

func (l *sessions) marksOf(ids []uint64) (out []*wire.SessionMark) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if below := l.marks[dfs.SessionID(id)]; below > 0 {
			out = append(out, &wire.SessionMark{Session: id, Below: below})
		}
	}
	return out
}

// overdue lists the sessions that were not renewed for ttl, and forgets those
// that are gone.
func (l *sessions) overdue(live []dfs.SessionID, ttl time.Duration) []dfs.SessionID {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []dfs.SessionID
	now := time.Now()
	for _, id := range live {
		switch last, ok := l.renewed[id]; {
		case !ok:
			l.renewed[id] = now
		case now.Sub(last) > ttl:
			out = append(out, id)
		}
	}
	for id, last := range l.renewed {
		if _, ok := slices.BinarySearch(live, id); !ok && now.Sub(last) > ttl {
			delete(l.renewed, id)
			delete(l.marks, id)
		}
	}
	return out
}

// OpenSession implements the meta service.
func (s *Service) OpenSession(ctx context.Context, req *wire.OpenSessionRequest) (*wire.OpenSessionReply, error) {
	h, err := s.controlLeader()
	if err != nil {
		return nil, err
	}
	if !s.maps.isFormed() {
		return nil, s.notFormed()
	}
	ss, _, err := s.readSessions(ctx, h)
	if err != nil {
		return nil, err
	}
	if len(ss.Live) >= control.MaxSessions {
		return nil, dfs.Errorf(dfs.Busy, "open session", "%d sessions are open", len(ss.Live))
	}
	reply, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_OpenSession{OpenSession: req}})
	if err != nil {
		return nil, err
	}
	out := reply.GetOpenSession()
	s.lease.renew(dfs.SessionID(out.Session), 0)
	out.Ttl = uint32(s.opts.SessionTTL.Milliseconds())
	return out, nil
}

// notFormed says why mutations are not admitted yet.
func (s *Service) notFormed() error {
	return dfs.Errorf(dfs.Unavailable, "change", "the cluster is forming: not every listed meta node votes in every group yet")
}

// checkIssued refuses a session that the control group has never opened: no fence
// would meet it before its number is given to another.
func (s *Service) checkIssued(ctx context.Context, h *raftgroup.Host, id dfs.SessionID) error {
	know := func(r raftgroup.Reader) error {
		st, err := control.ReadState(r)
		if err == nil && st != nil {
			s.lease.learn(dfs.SessionID(st.LastSession))
		}
		return err
	}
	if s.lease.issuedUpTo() >= id {
		return nil
	}
	if err := h.ReadLocal(dfs.ControlGroup, know); err == nil && s.lease.issuedUpTo() >= id {
		return nil
	}
	if err := h.Read(ctx, dfs.ControlGroup, know); err != nil {
		return &dfs.Error{Kind: dfs.Unavailable, Op: "change", Text: "whether the session was opened is not known", Err: err}
	}
	if s.lease.issuedUpTo() < id {
		return dfs.Errorf(dfs.Invalid, "change", "session %d was never opened", id)
	}
	return nil
}

// KeepAlive implements the meta service.
func (s *Service) KeepAlive(ctx context.Context, req *wire.KeepAliveRequest) (*wire.KeepAliveReply, error) {
	h, err := s.controlLeader()
	if err != nil {
		return nil, err
	}
	id := dfs.SessionID(req.Session)
	live := false
	// Linearizable: a deposed leader must not renew what its successor expires.
	err = h.Read(ctx, dfs.ControlGroup, func(r raftgroup.Reader) (err error) {
		live, err = control.SessionLive(r, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	if !live {
		return nil, dfs.Errorf(dfs.Fenced, "renew session", "session %d has expired", id)
	}
	s.lease.renew(id, req.Below)
	reply := &wire.KeepAliveReply{Ttl: uint32(s.opts.SessionTTL.Milliseconds())}
	if m := s.maps.current(); m != nil { // a leader that has just started may not have read it yet
		reply.Epoch = uint64(m.Epoch)
	}
	return reply, nil
}

// CloseSession implements the meta service.
func (s *Service) CloseSession(ctx context.Context, req *wire.CloseSessionRequest) (*wire.CloseSessionReply, error) {
	if _, err := s.controlLeader(); err != nil {
		return nil, err
	}
	_, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_CloseSession{CloseSession: req}})
	if err != nil {
		return nil, err
	}
	return &wire.CloseSessionReply{}, nil
}

// readSessions lists the sessions, and the namespace groups that were ready at
// the same moment. One that becomes ready later has fenced what has ended by then.
func (s *Service) readSessions(ctx context.Context, h *raftgroup.Host) (out control.Sessions, groups []dfs.GroupID, err error) {
	err = h.Read(ctx, dfs.ControlGroup, func(r raftgroup.Reader) (err error) {
		if out, err = control.ReadSessions(r); err != nil {
			return err
		}
		groups, err = control.ReadNamespace(r)
		return err
	})
	return out, groups, err
}

// sessionLoop ends sessions on the control leader, in the order that keeps
// them from doing harm: expiring, fenced in every group, then gone.
func (s *Service) sessionLoop() {
	for s.sleep(sessionCheck) {
		term, leads := s.leads(dfs.ControlGroup)
		if !leads || !s.maps.isFormed() {
			continue
		}
		s.lease.lead(term)
		ctx, cancel := context.WithTimeout(s.ctx, 4*metas.AttemptTimeout)
		if err := s.endSessions(ctx); err != nil && s.ctx.Err() == nil {
			s.log.Info("sessions are not fenced yet", "group", 0, "cause", err)
		}
		cancel()
	}
}

func (s *Service) endSessions(ctx context.Context) error {
	h, err := s.controlLeader()
	if err != nil {
		return err
	}
	ss, groups, err := s.readSessions(ctx, h)
	if err != nil {
		return err
	}
	if dead := s.lease.overdue(ss.Live, s.opts.SessionTTL); len(dead) > 0 {
		s.log.Info("sessions expire", "group", 0, "sessions", dead)
		op := &wire.ExpireOp{Sessions: sessionInts(dead)}
		if _, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_Expire{Expire: op}}); err != nil {
			return err
		}
		if ss, groups, err = s.readSessions(ctx, h); err != nil {
			return err
		}
	}
	s.lease.mu.Lock()
	swept := ss.Index == s.lease.fenced || time.Since(s.lease.fenceAt) < fencePause
	s.lease.mu.Unlock()
	if len(ss.Expiring) == 0 && swept {
		return nil
	}
	if err := s.fenceAll(ctx, ss, groups); err != nil {
		return err
	}
	s.lease.mu.Lock()
	s.lease.fenced, s.lease.fenceAt = ss.Index, time.Now()
	s.lease.mu.Unlock()
	if len(ss.Expiring) == 0 {
		return nil
	}
	op := &wire.ExpiredOp{Sessions: sessionInts(ss.Expiring), Index: ss.Index}
	_, err = s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_Expired{Expired: op}})
	return err
}

// fenceAll has every namespace group commit the fence.
func (s *Service) fenceAll(ctx context.Context, ss control.Sessions, groups []dfs.GroupID) error {
	fence := fenceOf(ss)
	errs := make([]error, len(groups))
	var wg sync.WaitGroup
	for i, g := range groups {
		wg.Go(func() {
			errs[i] = s.opts.Metas.Call(ctx, g, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
				_, err := c.Fence(ctx, &wire.FenceRequest{Group: uint32(g), Fence: fence})
				return err
			})
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return dfs.Wrap("fence", groups[i].String(), err)
		}
	}
	return nil
}

// fenceOf is the fence of every session that is not live.
func fenceOf(ss control.Sessions) *wire.FenceOp {
	return &wire.FenceOp{Highest: uint64(ss.Highest), Live: ranges(ss.Live), Index: ss.Index}
}

// ranges joins sorted session numbers into ranges.
func ranges(ids []dfs.SessionID) []*wire.InoRange {
	var out []*wire.InoRange
	for _, id := range ids {
		if n := len(out); n > 0 && out[n-1].First+out[n-1].Count == uint64(id) {
			out[n-1].Count++
			continue
		}
		out = append(out, &wire.InoRange{First: uint64(id), Count: 1})
	}
	return out
}

func sessionInts(ids []dfs.SessionID) []uint64 {
	out := make([]uint64, len(ids))
	for i, id := range ids {
		out[i] = uint64(id)
	}
	return out
}
