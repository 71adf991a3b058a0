package meta

import (
	"context"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/meta/control"
	"dfsd/raftgroup"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// MaxMapWait bounds how long a caller may wait for a newer map in one request.
const MaxMapWait = 10 * time.Second

// published is the newest map that the local replica of the control group has
// applied, or that a peer knew when this node needed one, and those who wait for a newer one.
type published struct {
	pokes chan struct{} // the applied state has moved on

	mu     sync.Mutex
	m      *dfs.Map
	wireM  *wire.ClusterMap // the same, encoded once for all who ask
	formed bool
	held   uint64        // generation of a recovery that nobody has acknowledged; 0: none
	next   chan struct{} // closed when m changes
	closed bool
}

func newPublished() *published {
	return &published{pokes: make(chan struct{}, 1), next: make(chan struct{})}
}

func (p *published) poke() {
	select {
	case p.pokes <- struct{}{}:
	default:
	}
}

func (p *published) current() *dfs.Map {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.m
}

// watch returns the current map, and what is closed when there is another.
func (p *published) watch() (*dfs.Map, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.m, p.next
}

func (p *published) isFormed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.formed
}

// recovery returns the generation of a recovery of any group that nobody has
// acknowledged, as the control group has it; 0 for none.
func (p *published) recovery() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

// hold notes such a recovery, or its end.
func (p *published) hold(generation uint64) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed = p.held != generation
	p.held = generation
	return changed
}

// set publishes a map unless an equal or later one was; it reports whether it did.
func (p *published) set(m *dfs.Map, formed bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.formed = p.formed || formed
	if m == nil || p.m != nil && m.Epoch <= p.m.Epoch || p.closed {
		return false
	}
	p.m, p.wireM = m, wire.FromMap(m)
	close(p.next)
	p.next = make(chan struct{})
	return true
}

func (p *published) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.closed = true
		close(p.next)
	}
}

// wait returns the map once its epoch is later than known and at least floor,
// nil when that takes longer than d or ctx.
func (p *published) wait(ctx context.Context, known, floor dfs.Epoch, d time.Duration) *wire.ClusterMap {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		p.mu.Lock()
		m, next, closed := p.wireM, p.next, p.closed
		p.mu.Unlock()
		if m != nil && dfs.Epoch(m.Epoch) > known && dfs.Epoch(m.Epoch) >= floor {
			return m
		}
		if closed {
			return nil
		}
		select {
		case <-next:
		case <-timer.C:
			return nil
		case <-transport.Draining(ctx):
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// publishLoop reads the map whenever the control group has applied something.
func (s *Service) publishLoop() {
	for {
		s.publish()
		select {
		case <-s.maps.pokes:
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *Service) publish() {
	h := s.host.Load()
	if h == nil {
		return
	}
	var m *dfs.Map
	var formed bool
	err := h.ReadLocal(dfs.ControlGroup, func(r raftgroup.Reader) error {
		st, err := control.ReadState(r)
		if err != nil || st == nil {
			return err
		}
		formed = st.Formed
		if s.maps.hold(st.GetRecovery().GetGeneration()) {
			s.agenda.touchAll()
		}
		if cur := s.maps.current(); cur != nil && dfs.Epoch(st.Epoch) <= cur.Epoch {
			return nil
		}
		m, err = control.ReadMap(r)
		return err
	})
	if err != nil {
		s.log.Warn("the cluster map cannot be read", "group", 0, "cause", err)
		return
	}
	s.offer(m, formed)
}

// offer publishes a map unless an equal or later one was.
func (s *Service) offer(m *dfs.Map, formed bool) {
	if s.maps.set(m, formed) {
		s.opts.Metas.Update(m)
		if s.opts.OnMap != nil {
			s.opts.OnMap(m)
		}
		s.wakeControl()
		s.agenda.touchAll()
	}
}

// GetMap implements the meta service.
func (s *Service) GetMap(ctx context.Context, req *wire.GetMapRequest) (*wire.GetMapReply, error) {
	h, err := s.raft()
	if err != nil {
		return nil, err
	}
	known, floor := dfs.Epoch(req.Known), dfs.Epoch(req.Floor)
	if req.Linearizable {
		if err := opened(h, dfs.ControlGroup); err != nil {
			return nil, err
		}
		err := h.Read(ctx, dfs.ControlGroup, func(r raftgroup.Reader) error {
			st, err := control.ReadState(r)
			if st != nil {
				floor = max(floor, dfs.Epoch(st.Epoch))
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		s.maps.poke()
	}
	wait := min(time.Duration(req.Wait)*time.Millisecond, MaxMapWait)
	if req.Linearizable || floor > 0 {
		wait = max(wait, time.Second)
	}
	reply := &wire.GetMapReply{Map: s.maps.wait(ctx, known, floor, wait)}
	if reply.Map == nil && (req.Linearizable || floor > 0) {
		return nil, dfs.Errorf(dfs.Unavailable, "get map", "this node has not applied epoch %d yet", floor)
	}
	if m := s.maps.current(); m != nil {
		for _, g := range m.Groups {
			reply.Leaders = append(reply.Leaders, &wire.GroupLeader{Group: uint32(g.ID), Node: uint32(s.leaderOf(h, g.ID))})
		}
	}
	reply.Leader = uint32(s.leaderOf(h, dfs.ControlGroup))
	return reply, nil
}

// nothing is the read that only asks whether this replica may answer.
func nothing(raftgroup.Reader) error { return nil }
