package storage

import (
	"cmp"
	"context"
	"time"

	"dfsd/dfs"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

// registerPause is the longest pause between two attempts to register.
const registerPause = 5 * time.Second

// measureWait is how long a registration waits for disks to say how big they
// are, and to record this start.
const measureWait = 5 * time.Second

// register tells the control group of this start until it is accepted. It
// returns the map epoch that holds the registration, and false when the service
// ends. It is idempotent.
func (s *Service) register() (dfs.Epoch, bool) {
	for failures := 1; ; failures++ {
		reply, err := s.tryRegister()
		if err == nil && reply == nil {
			return dfs.Epoch(s.registered.Load()), true // no healthy store to speak for
		}
		if isRefusal(err) {
			s.fail(dfs.Wrap("register", s.opts.Registration.Name, err))
			return 0, false
		}
		if err == nil {
			return dfs.Epoch(reply.Epoch), true
		}
		s.log.Log(s.ctx, s.worry(), "not registered yet", "cause", err) // Exist: another node of this name is up
		if !s.sleep(s.backoff(failures, registerPause)) {
			return 0, false
		}
	}
}

// tryRegister registers once. The reply is nil when there is nothing to register.
// What refuses the node that this was, or is about to be no more, is no refusal.
func (s *Service) tryRegister() (*wire.RegisterReply, error) {
	was := s.opts.Incarnation()
	reply, err := s.registerOnce()
	if isRefusal(err) && s.renewed(was) {
		err = &dfs.Error{Kind: dfs.Unavailable, Op: "register", Text: "the node joins anew", Err: err}
	}
	return reply, err
}

// renewed reports whether the node is another one than it was, or about to be.
func (s *Service) renewed(was dfs.Incarnation) bool {
	return s.opts.Renewing != nil && s.opts.Renewing() || s.opts.Incarnation() != was
}

func (s *Service) registerOnce() (*wire.RegisterReply, error) {
	if s.registered.Load() == 0 {
		if err := s.reach(); err != nil {
			return nil, err
		}
	}
	req, asked, err := s.registration()
	if err != nil || len(asked) == 0 && s.registered.Load() != 0 {
		return nil, err
	}
	reply, err := s.sendRegistration(req)
	switch {
	case isRefusal(err) && len(s.stores) > 1 && len(asked) > 0:
		return s.registerApart(req, asked)
	case err != nil:
		return nil, err
	}
	return reply, s.accept(reply, asked)
}

// isRefusal reports whether asking again gets the same answer.
func isRefusal(err error) bool {
	switch dfs.KindOf(err) {
	case dfs.WrongCluster, dfs.Stale, dfs.Invalid, dfs.TooLarge:
		return true
	}
	return false
}

// registerApart registers the node without its stores, and then one store after
// the other, so that one which is refused keeps no other out.
func (s *Service) registerApart(req *wire.RegisterRequest, asked []*store) (*wire.RegisterReply, error) {
	all := req.Stores
	req.Stores = nil
	last, err := s.sendRegistration(req)
	if err == nil {
		err = s.accept(last, nil)
	}
	if err != nil {
		return nil, err // it is the node that is refused
	}
	for i, st := range asked {
		req.Stores = all[i : i+1]
		reply, err := s.sendRegistration(req)
		if err == nil {
			err = s.accept(reply, asked[i:i+1])
		}
		switch {
		case err == nil:
			last = reply
		case isRefusal(err) && !s.renewed(req.Incarnation.ToDFS()):
			st.refused.Store(&err)
			s.log.Error("a store is refused: it is not used; the others are", "store", st.ID(), "dir", st.Dir(), "cause", err)
		default:
			return nil, err
		}
	}
	for _, st := range s.stores {
		if st.refused.Load() == nil {
			return last, nil
		}
	}
	return nil, s.Refused()
}

// reach makes sure that there is a meta node to offer this start to: starts that
// reach nobody leave no trace.
func (s *Service) reach() error {
	ctx, cancel := context.WithTimeout(s.ctx, 2*metas.AttemptTimeout)
	defer cancel()
	return s.opts.Metas.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		_, err := c.Probe(ctx, &wire.ProbeRequest{Name: s.opts.Registration.Name})
		return err
	})
}

// isRegistered reports whether there is nothing to register: every store that
// could be measured was entered in this start, and the newest map has the node's
// incarnation and each healthy store as up. A meta node that asks for a
// registration and knows a newer map asks again.
func (s *Service) isRegistered() bool {
	for _, st := range s.stores {
		if st.registered.Load() == 0 && st.sample.Load() != nil && !st.failed() {
			return false
		}
	}
	m, _ := s.maps.current.get()
	if m == nil || uint64(m.Epoch) < s.registered.Load() {
		return true // as the map will say that is on its way
	}
	n := m.Node(s.opts.Node())
	if n == nil || n.Incarnation != s.opts.Incarnation() {
		return false
	}
	for _, st := range s.stores {
		x := m.Store(st.ID())
		if st.registered.Load() != 0 && st.healthy() && (x == nil || x.State != dfs.StoreUp || x.Node != n.ID || x.Incarnation != st.Identity().Incarnation) {
			return false
		}
	}
	return true
}

// sendRegistration asks the control leader.
func (s *Service) sendRegistration(req *wire.RegisterRequest) (reply *wire.RegisterReply, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, 2*metas.AttemptTimeout)
	defer cancel()
	err = s.callLeader(ctx, func(ctx context.Context, c wire.DRPCMetaClient) (err error) {
		reply, err = c.Register(ctx, req)
		return err
	})
	if err != nil && !isRefusal(err) && req.Node != 0 {
		// It may have taken effect. Then this start is judged by whether it is
		// heard, and a start that is suspected is not called up.
		s.startBeats()
	}
	return reply, err
}

// callLeader asks the control leader what may be asked again when the outcome
// is not known. Stale is a definite answer to it: another meta node has no
// other one.
func (s *Service) callLeader(ctx context.Context, fn func(context.Context, wire.DRPCMetaClient) error) error {
	var refused error
	err := s.opts.Metas.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		err := fn(ctx, c)
		if dfs.KindOf(err) == dfs.Stale {
			refused, err = err, nil
		}
		return err
	})
	return cmp.Or(refused, err)
}

// registration makes the request, once what it says of this start is durable, and
// lists the stores in it. A store that was registered in this start and whose disk
// does not answer is left out: it would be called up again.
func (s *Service) registration() (*wire.RegisterRequest, []*store, error) {
	lineage, err := s.opts.Offer()
	if err != nil {
		return nil, nil, err
	}
	r := &s.opts.Registration
	req := &wire.RegisterRequest{
		Name: r.Name, Addr: r.Addr, Roles: uint32(r.Roles), Incarnation: wire.FromIncarnation(s.opts.Incarnation()), Lineage: wire.FromLineage(lineage),
		Node: uint32(s.opts.Node()), Release: r.Release, Labels: r.Labels, Cluster: s.opts.Cluster().Bytes(),
	}
	ctx, cancel := context.WithTimeout(s.ctx, measureWait)
	defer cancel()
	var asked []*store
	for _, st := range s.stores {
		if st.refused.Load() != nil || !st.isMeasured(ctx) || !st.isOffered(ctx) || st.registered.Load() != 0 && !st.healthy() {
			continue
		}
		id := st.Identity()
		req.Stores = append(req.Stores, &wire.RegisterStore{
			Store: uint32(st.ID()), Incarnation: wire.FromIncarnation(id.Incarnation), Lineage: wire.FromLineage(st.Lineage()),
			Capacity: st.weight, Incomplete: st.DamagedUnnamed(),
		})
		asked = append(asked, st)
	}
	return req, asked, nil
}

// accept writes down what the control group answered.
func (s *Service) accept(reply *wire.RegisterReply, asked []*store) error {
	cluster, err := dfs.ClusterIDFromBytes(reply.Cluster)
	if err != nil {
		return err
	}
	if cluster.IsZero() || reply.Node == 0 || len(reply.Stores) != len(asked) {
		return dfs.Errorf(dfs.Invalid, "register", "the answer names node %d and %d stores, %d were asked for", reply.Node, len(reply.Stores), len(asked))
	}
	if err := s.opts.SaveNode(cluster, dfs.NodeID(reply.Node), dfs.Epoch(reply.Epoch)); err != nil {
		return err
	}
	for i, st := range asked {
		if err := st.accept(cluster, dfs.NodeID(reply.Node), dfs.StoreID(reply.Stores[i])); err != nil {
			return err
		}
		if st.registered.CompareAndSwap(0, reply.Epoch) {
			poke(st.entered)
		}
	}
	s.registered.Store(max(s.registered.Load(), reply.Epoch))
	s.log.Info("registered", "stores", len(asked), "id", dfs.NodeID(reply.Node), "epoch", reply.Epoch)
	return nil
}

// accept writes down what a store is called. Only an answer that cannot be
// right is an error: a disk that fails is no matter of the other stores.
func (st *store) accept(cluster dfs.ClusterID, node dfs.NodeID, id dfs.StoreID) error {
	own := st.Identity()
	if own.Cluster != cluster || own.Node != node || own.Store != id {
		err := st.SetIdentity(cluster, node, id)
		switch dfs.KindOf(err) {
		case dfs.WrongCluster, dfs.Invalid:
			return dfs.Wrap("register", id.String(), err)
		}
		if err != nil {
			st.s.log.Error("the store's identity cannot be written", "store", id, "cause", err)
		}
		st.id.Store(uint32(id))
	} else if st.registered.Load() == 0 {
		st.s.wg.Go(func() { // by itself: nothing waits for it but the next start
			if err := st.SetIdentity(cluster, node, id); err != nil {
				st.log().Error("the accepted start cannot be recorded", "cause", err)
			}
		})
	}
	// Recorded with the first registration of a start: the store is complete
	// through nothing now.
	if st.registered.Load() == 0 && st.DamagedUnnamed() {
		if err := st.AcknowledgeDamage(); err != nil {
			st.log().Error("damage cannot be acknowledged: the next start reports it again", "cause", err)
		}
	}
	return nil
}

// firstMap reads the current map linearizably: what was decided while this node
// was away is in it. It reports false when the service ends.
func (s *Service) firstMap(registered dfs.Epoch) bool {
	for failures := 1; ; failures++ {
		m, err := s.maps.linearizable(s.ctx)
		if err == nil && m.Epoch < registered {
			err = dfs.Errorf(dfs.Internal, "get map", "epoch %d is before the registration's %d", m.Epoch, registered)
		}
		if err == nil {
			err = s.maps.offer(m)
		}
		if err == nil {
			return true
		}
		s.log.Log(s.ctx, s.worry(), "no current map yet", "cause", err)
		if !s.sleep(s.backoff(failures, registerPause)) {
			return false
		}
	}
}
