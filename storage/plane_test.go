package storage

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/repair"
	"dfsd/transport/wire"
)

// plane is a control plane for tests: one map, changed by the rules of package
// repair, served by any number of meta nodes.
type plane struct {
	wire.DRPCMetaUnimplementedServer
	cluster dfs.ClusterID

	mu        sync.Mutex
	m         *dfs.Map
	next      chan struct{}
	marks     map[uint64]uint32 // of nodes and stores
	persisted map[dfs.StoreID]dfs.Epoch
	beats     map[dfs.StoreID]*wire.StoreBeat
	refuse    error                           // of registrations
	refuses   func(*wire.RegisterStore) error // registrations with the store
	registers int
	reports   int  // of refills
	noDone    bool // reports of refills are refused
	foreign   bool // linearizable reads get the map of another cluster
	held      bool // proposals are not activated
	deaf      bool // as mute, and heartbeats tell of no epoch
	mute      bool // polls are not answered
	onBeat    func(*wire.StoreBeat)
	onDone    func(*wire.RefillDoneRequest)
	onRegs    func(*wire.RegisterRequest)
	onReg     func() error // after a registration: an error is the answer

	judge func(dfs.BlockID) dfs.Verdict // nil: questions are not answered
	asked map[dfs.BlockID]int           // how often, with an answer
	told  func([]byte) []byte           // changes an answer; nil: not
}

func newPlane() *plane {
	p := &plane{
		cluster: dfs.ClusterID{1, 2, 3}, next: make(chan struct{}), marks: map[uint64]uint32{},
		persisted: map[dfs.StoreID]dfs.Epoch{}, beats: map[dfs.StoreID]*wire.StoreBeat{}, asked: map[dfs.BlockID]int{},
	}
	p.m = &dfs.Map{
		Cluster: p.cluster, Epoch: 1, DefaultClass: dfs.Replicated(2), BlockSize: dfs.DefaultBlockSize,
		Groups: []*dfs.Group{{ID: 0, Replicas: []dfs.NodeID{1}}, {ID: 1, Replicas: []dfs.NodeID{1}}},
		Nodes:  []*dfs.Node{{ID: 1, Name: "meta", Addr: "meta:1", Roles: dfs.RoleMeta}},
	}
	return p
}

// change makes the next map. REQUIRES: p.mu is held.
func (p *plane) changeLocked(fn func(m *dfs.Map, epoch dfs.Epoch)) {
	m := *p.m
	m.Epoch++
	m.Nodes, m.Stores, m.PGs = slices.Clone(m.Nodes), slices.Clone(m.Stores), slices.Clone(m.PGs)
	fn(&m, m.Epoch)
	p.m = &m
	close(p.next)
	p.next = make(chan struct{})
}

func (p *plane) change(fn func(m *dfs.Map, epoch dfs.Epoch)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changeLocked(fn)
}

func (p *plane) current() *dfs.Map {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.m
}

func (p *plane) setPGLocked(pg *dfs.PG) {
	p.changeLocked(func(m *dfs.Map, _ dfs.Epoch) {
		i, _ := slices.BinarySearchFunc(m.PGs, pg.ID, func(x *dfs.PG, id dfs.PGID) int { return cmp.Compare(x.ID, id) })
		m.PGs[i] = pg
	})
}

// create makes a placement group that was never activated.
func (p *plane) create(id dfs.PGID, class dfs.Class) {
	p.change(func(m *dfs.Map, _ dfs.Epoch) { m.PGs = append(m.PGs, &dfs.PG{ID: id, Class: class}) })
}

// propose proposes an acting set and returns its epoch.
func (p *plane) propose(t *testing.T, id dfs.PGID, acting ...dfs.StoreID) dfs.Epoch {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	pg := p.m.PG(id)
	if err := repair.CheckPropose(pg, acting, func(dfs.StoreID) dfs.StoreState { return dfs.StoreUp }); err != nil {
		t.Fatal(err)
	}
	p.setPGLocked(repair.Propose(pg, p.m.Epoch+1, acting))
	return p.m.PG(id).Proposed.Epoch
}

// activate proposes an acting set, waits until it is active, and returns its epoch.
func (p *plane) activate(t *testing.T, id dfs.PGID, acting ...dfs.StoreID) dfs.Epoch {
	t.Helper()
	e := p.propose(t, id, acting...)
	eventually(t, "activation", func() bool { return p.current().PG(id).Active.Epoch == e })
	return e
}

func (p *plane) activateLocked() {
	if p.held {
		return
	}
	for _, pg := range p.m.PGs {
		if repair.CheckActivate(pg, func(s dfs.StoreID) dfs.Epoch { return p.persisted[s] }) == nil {
			p.setPGLocked(repair.Activate(pg, func(s dfs.StoreID) uint64 { return p.m.Store(s).Incarnation.Mark }))
		}
	}
}

func (p *plane) Probe(context.Context, *wire.ProbeRequest) (*wire.ProbeReply, error) {
	return &wire.ProbeReply{Name: "meta"}, nil
}

func (p *plane) Register(_ context.Context, req *wire.RegisterRequest) (*wire.RegisterReply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.registers++
	if p.onRegs != nil {
		p.onRegs(req)
	}
	if p.refuse != nil {
		return nil, p.refuse
	}
	for _, st := range req.Stores {
		if p.refuses != nil && p.refuses(st) != nil {
			return nil, p.refuses(st)
		}
	}
	reply := &wire.RegisterReply{Cluster: p.cluster.Bytes()}
	p.changeLocked(func(m *dfs.Map, _ dfs.Epoch) {
		id := p.numberLocked(req.Incarnation.Mark)
		m.Nodes = slices.DeleteFunc(m.Nodes, func(n *dfs.Node) bool { return n.ID == dfs.NodeID(id) })
		m.Nodes = append(m.Nodes, &dfs.Node{
			ID: dfs.NodeID(id), Name: req.Name, Addr: req.Addr, Roles: dfs.Role(req.Roles), Incarnation: req.Incarnation.ToDFS(),
		})
		slices.SortFunc(m.Nodes, func(a, b *dfs.Node) int { return cmp.Compare(a.ID, b.ID) })
		reply.Node = id
		for _, s := range req.Stores {
			sid := dfs.StoreID(p.numberLocked(s.Incarnation.Mark))
			reply.Stores = append(reply.Stores, uint32(sid))
			if old := m.Store(sid); s.Incomplete && (old == nil || old.Incarnation != s.Incarnation.ToDFS()) {
				for i, pg := range m.PGs {
					m.PGs[i] = repair.ResetMember(pg, sid, s.Incarnation.Mark)
				}
			}
			delete(p.persisted, sid)
			m.Stores = slices.DeleteFunc(m.Stores, func(x *dfs.Store) bool { return x.ID == sid })
			m.Stores = append(m.Stores, &dfs.Store{
				ID: sid, Node: dfs.NodeID(id), Incarnation: s.Incarnation.ToDFS(), Capacity: s.Capacity, State: dfs.StoreUp,
			})
		}
		slices.SortFunc(m.Stores, func(a, b *dfs.Store) int { return cmp.Compare(a.ID, b.ID) })
	})
	reply.Epoch = uint64(p.m.Epoch)
	if p.onReg != nil {
		if err := p.onReg(); err != nil {
			return nil, err
		}
	}
	return reply, nil
}

// numberLocked gives every mark a number of its own, from 2 up in the order of
// registration.
func (p *plane) numberLocked(mark uint64) uint32 {
	if p.marks[mark] == 0 {
		p.marks[mark] = uint32(len(p.marks)) + 2
	}
	return p.marks[mark]
}

func (p *plane) Heartbeat(_ context.Context, req *wire.HeartbeatRequest) (*wire.HeartbeatReply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.m.Node(dfs.NodeID(req.Node))
	reply := &wire.HeartbeatReply{Epoch: uint64(p.m.Epoch), Leader: 1, Register: n == nil || n.Incarnation != req.Incarnation.ToDFS()}
	if reply.Register {
		return reply, nil
	}
	for _, b := range req.Stores {
		id := dfs.StoreID(b.Store)
		if st := p.m.Store(id); st == nil || st.Incarnation != b.Incarnation.ToDFS() || st.State != dfs.StoreUp && b.State != uint32(engine.StateFailed) {
			reply.Register = true
			continue
		}
		p.beats[id] = b
		p.persisted[id] = max(p.persisted[id], dfs.Epoch(b.Persisted))
		if p.onBeat != nil {
			p.onBeat(b)
		}
	}
	p.activateLocked()
	if p.deaf {
		reply.Epoch = 0
	}
	return reply, nil
}

func (p *plane) GetMap(ctx context.Context, req *wire.GetMapRequest) (*wire.GetMapReply, error) {
	timer := time.NewTimer(time.Duration(req.Wait) * time.Millisecond)
	defer timer.Stop()
	for {
		p.mu.Lock()
		m, next, foreign, deaf := p.m, p.next, p.foreign, (p.deaf || p.mute) && req.Known > 0
		p.mu.Unlock()
		if !deaf && m.Epoch > dfs.Epoch(req.Known) {
			out := wire.FromMap(m)
			if req.Linearizable && foreign {
				out.Cluster = dfs.ClusterID{9}.Bytes()
			}
			return &wire.GetMapReply{Map: out, Leader: 1}, nil
		}
		select {
		case <-next:
		case <-timer.C:
			return &wire.GetMapReply{Leader: 1}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (p *plane) RefillDone(_ context.Context, req *wire.RefillDoneRequest) (*wire.RefillDoneReply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.noDone {
		return nil, dfs.Errorf(dfs.Unavailable, "refill", "not now")
	}
	p.reports++
	if p.onDone != nil {
		p.onDone(req)
	}
	for _, d := range req.Done {
		pg, err := repair.RefillDone(p.m.PG(dfs.PGID(d.Pg)), dfs.StoreID(req.Store), d.Mark, dfs.Epoch(d.Joined))
		if err != nil {
			return nil, err
		}
		p.setPGLocked(pg)
	}
	return &wire.RefillDoneReply{}, nil
}

func (p *plane) Garbage(_ context.Context, req *wire.GarbageRequest) (*wire.GarbageReply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.judge == nil {
		return nil, dfs.Errorf(dfs.Unavailable, "judge blocks", "not now")
	}
	reply := &wire.GarbageReply{}
	for _, raw := range req.Blocks {
		id, err := dfs.ParseBlockID(raw)
		if err != nil || id.Ino.Group() != dfs.GroupID(req.Group) {
			return nil, dfs.Errorf(dfs.Invalid, "judge blocks", "block %v in a question to group %d", id, req.Group)
		}
		p.asked[id]++
		reply.Verdicts = append(reply.Verdicts, byte(p.judge(id)))
	}
	if p.told != nil {
		reply.Verdicts = p.told(reply.Verdicts)
	}
	return reply, nil
}

// set changes the plane.
func (p *plane) set(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn()
}

// complete reports whether stores are complete members of a placement group.
func (p *plane) complete(id dfs.PGID, stores ...dfs.StoreID) bool {
	pg := p.current().PG(id)
	return !slices.ContainsFunc(stores, func(s dfs.StoreID) bool { return !pg.IsComplete(s) })
}

func (p *plane) setRefuse(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = err
}

func (p *plane) registrations() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.registers
}

// setState is the control group's judgement of a store.
func (p *plane) setState(id dfs.StoreID, state dfs.StoreState) {
	p.change(func(m *dfs.Map, _ dfs.Epoch) {
		for i, s := range m.Stores {
			if s.ID == id {
				c := *s
				c.State = state
				m.Stores[i] = &c
			}
		}
	})
}

// beat returns the last heartbeat of a store.
func (p *plane) beat(id dfs.StoreID) *wire.StoreBeat {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.beats[id]
}

// forget makes the plane lose a node's registration.
func (p *plane) forget(id dfs.NodeID) {
	p.change(func(m *dfs.Map, _ dfs.Epoch) {
		m.Nodes = slices.DeleteFunc(m.Nodes, func(n *dfs.Node) bool { return n.ID == id })
	})
}
