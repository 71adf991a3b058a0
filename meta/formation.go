package meta

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

// formationPause is the time between two rounds of asking the listed peers.
const formationPause = 500 * time.Millisecond

// enter brings the node into a cluster:
//
//	            knows a cluster ────────────────────────────▶ open the replicas
//	                 ▲                                              ▲
//	fresh directory ─┤ a peer knows a cluster: register, join ──────┤
//	                 │ all listed answer "empty", same list, this   │
//	                 │ one is first by name, no cluster configured: │
//	                 │ found ───────────────────────────────────────┘
//	                 └ else: wait, and say for whom
//
// A directory that was empty asks for a name that another one has for emptyGrace first, and
// looks meanwhile whether the disk that it should be on was mounted: then this start ends,
// and the next one finds the right one.
//
// A directory that was a member before and whose Raft stores are lost or damaged
// joins anew under another number: it may have voted. See rejoin.go.
func (s *Service) enter() error {
	id := s.opts.Identity
	for id.Membership().Node == 0 {
		if err := id.InPlace(); err != nil {
			return err
		}
		done, err := s.seekCluster()
		if err != nil {
			return err
		}
		if !done && !s.sleep(formationPause) {
			return s.ctx.Err()
		}
	}
	h, err := s.openHosted()
	if err != nil {
		return err
	}
	s.publish()
	s.wg.Go(s.publishLoop)
	ms := id.Membership()
	if !ms.Founding {
		if !s.awaitMap() {
			return s.ctx.Err()
		}
		return nil
	}
	for g := range s.opts.Groups {
		if err := s.joinGroup(h, dfs.GroupID(g+1)); err != nil {
			return err
		}
	}
	if err := s.found(h); err != nil {
		return err
	}
	ms.Founding = false
	return id.SaveMembership(ms)
}

// openHosted opens the host with a replica of the control group, and notes that there is one
// before the replica hears or says anything: stores that are missing after that are lost,
// whatever else goes wrong.
func (s *Service) openHosted() (*raftgroup.Host, error) {
	h, err := s.open()
	if err != nil {
		return nil, err
	}
	err = s.joinGroup(h, dfs.ControlGroup)
	if err == nil {
		ms := s.opts.Identity.Membership()
		ms.Hosted = true
		err = s.opts.Identity.SaveMembership(ms)
	}
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	s.host.Store(h) // from here on Close closes it
	return h, nil
}

// seekCluster asks every listed peer once. It reports whether the identity is
// known now.
func (s *Service) seekCluster() (bool, error) {
	id := s.opts.Identity
	var silent, other []string
	empty := 0
	for _, p := range s.opts.Peers {
		if p.Name == s.opts.Name {
			continue
		}
		reply, err := s.probe(p)
		switch {
		case err != nil:
			silent = append(silent, fmt.Sprintf("%s at %s (%v)", p.Name, p.Addr, err))
		case len(reply.Cluster) > 0:
			if cluster, err := dfs.ClusterIDFromBytes(reply.Cluster); err == nil && !s.opts.Cluster.IsZero() && cluster != s.opts.Cluster {
				return false, dfs.Errorf(dfs.WrongCluster, "join", "meta node %s at %s is of cluster %v, the configuration says %v", p.Name, p.Addr, cluster, s.opts.Cluster)
			}
			return s.join()
		case !slices.Equal(reply.Peers, s.peerList()):
			other = append(other, fmt.Sprintf("%s lists %s", p.Name, strings.Join(reply.Peers, " ")))
		default:
			empty++
		}
	}
	switch {
	case len(other) > 0:
		s.setWaiting("the meta nodes' configurations differ: this one lists " + strings.Join(s.peerList(), " ") + "; " + strings.Join(other, "; "))
	case len(silent) > 0:
		s.setWaiting("no answer from " + strings.Join(silent, ", "))
	case len(s.opts.Peers) == 0 || s.opts.Peers[0].Name != s.opts.Name:
		s.setWaiting("for " + s.opts.Peers[0].Name + " to make the cluster")
	case !s.opts.Cluster.IsZero():
		s.setWaiting(fmt.Sprintf("for a listed meta node of cluster %v, which the configuration names as the only one: all are empty, and no other is made", s.opts.Cluster))
	case empty == len(s.opts.Peers)-1:
		var cluster dfs.ClusterID
		binary.BigEndian.PutUint64(cluster[:8], s.opts.NewMark())
		binary.BigEndian.PutUint64(cluster[8:], s.opts.NewMark())
		s.log.Info("making a new cluster", "cluster", cluster)
		return true, id.SaveMembership(Membership{Cluster: cluster, Node: 1, Founding: true})
	}
	return false, nil
}

func (s *Service) probe(p Peer) (*wire.ProbeReply, error) {
	ctx, cancel := context.WithTimeout(s.ctx, metas.AttemptTimeout)
	defer cancel()
	return wire.NewDRPCMetaClient(s.opts.Dial(p.Addr)).Probe(ctx, &wire.ProbeRequest{Name: s.opts.Name, Peers: s.peerList()})
}

func (s *Service) peerList() []string {
	var out []string
	for _, p := range s.opts.Peers {
		out = append(out, p.Name+"="+p.Addr)
	}
	return out
}

// Probe implements the meta service: who is this, and does it know a cluster?
func (s *Service) Probe(context.Context, *wire.ProbeRequest) (*wire.ProbeReply, error) {
	return &wire.ProbeReply{
		Name: s.opts.Name, Cluster: s.opts.Identity.Membership().Cluster.Bytes(), Peers: s.peerList(),
		Node: uint32(s.opts.Identity.Membership().Node), Ready: s.Ready(), Level: s.newestLevel(),
	}, nil
}

// join registers a fresh directory with the cluster that a peer knows. The
// leaders of the groups add it as a learner and promote it.
func (s *Service) join() (bool, error) {
	ctx, cancel := context.WithTimeout(s.ctx, 2*metas.AttemptTimeout)
	defer cancel()
	reply, err := s.register(ctx)
	if err != nil {
		switch dfs.KindOf(err) {
		case dfs.WrongCluster, dfs.Stale, dfs.Invalid:
			return false, err
		}
		s.setWaiting(fmt.Sprintf("registration: %v", err))
		return false, nil
	}
	cluster, err := dfs.ClusterIDFromBytes(reply.Cluster)
	if err != nil {
		return false, err
	}
	s.log.Info("joining a cluster", "cluster", cluster, "id", dfs.NodeID(reply.Node))
	return true, s.opts.Identity.SaveMembership(Membership{Cluster: cluster, Node: dfs.NodeID(reply.Node)})
}

// register asks the control leader to enter this start of this node. Stale is
// a definite answer to it: no other meta node has another one.
func (s *Service) register(ctx context.Context) (*wire.RegisterReply, error) {
	var reply *wire.RegisterReply
	var refused error
	err := s.opts.Metas.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		if err := s.reach(ctx, c); err != nil {
			return err
		}
		req, err := s.registration()
		if err != nil {
			return err
		}
		reply, err = c.Register(ctx, req)
		if dfs.KindOf(err) == dfs.Stale {
			refused, err = err, nil
		}
		return err
	})
	if err = cmp.Or(refused, err); err != nil {
		return nil, err
	}
	return reply, s.opts.Identity.Accept(dfs.Epoch(reply.Epoch))
}

// reach makes sure that there is somebody to offer this start to: starts that
// reach nobody leave no trace.
func (s *Service) reach(ctx context.Context, c wire.DRPCMetaClient) error {
	if lineage, _ := s.opts.Identity.Lineage(); lineage.Holds(s.opts.Identity.Incarnation().Start) {
		return nil
	}
	_, err := c.Probe(ctx, &wire.ProbeRequest{Name: s.opts.Name})
	return err
}

// registration makes the request, once what it says of this start is durable.
func (s *Service) registration() (*wire.RegisterRequest, error) {
	if err := s.opts.Identity.Offer(); err != nil {
		return nil, err
	}
	lineage, _ := s.opts.Identity.Lineage()
	ms := s.opts.Identity.Membership()
	req := &wire.RegisterRequest{
		Name: s.opts.Name, Addr: s.opts.Addr, Roles: uint32(s.opts.Roles),
		Incarnation: wire.FromIncarnation(s.opts.Identity.Incarnation()), Lineage: wire.FromLineage(lineage),
		Release: s.opts.Release, Labels: s.opts.Labels, Cluster: ms.Cluster.Bytes(),
	}
	if !ms.Founding {
		req.Node = uint32(ms.Node)
	}
	return req, nil
}

// registerLoop tells the control group of this start, until it knows.
func (s *Service) registerLoop() {
	for {
		was := s.opts.Identity.Incarnation()
		ctx, cancel := context.WithTimeout(s.ctx, 2*metas.AttemptTimeout)
		_, err := s.register(ctx)
		cancel()
		switch dfs.KindOf(err) {
		case dfs.WrongCluster, dfs.Stale, dfs.Invalid:
			if s.opts.Identity.Renewing() || s.opts.Identity.Incarnation() != was {
				break // it is, or will be, registered as another
			}
			s.fail(dfs.Wrap("register", s.opts.Name, err))
			return
		}
		if err == nil || !s.sleep(formationPause) {
			return
		}
	}
}

// awaitMap waits until there is a map, from the local replica or from another
// meta node: without one this node knows neither its peers' addresses, so that
// it cannot even acknowledge what a leader sends, nor how many groups there
// are. It reports false when the service ends.
//
// A node that has applied a map before does not wait here, whatever the others
// are doing: after a power loss of all, nobody could answer anybody.
func (s *Service) awaitMap() bool {
	for s.maps.current() == nil {
		if err := s.learnMap(0); err != nil {
			s.setWaiting(fmt.Sprintf("for the cluster map: %v", err))
			s.log.Info("no map from the other meta nodes", "cause", err)
		}
		if s.maps.current() == nil && !s.sleep(formationPause) {
			return false
		}
	}
	return s.ctx.Err() == nil
}

// learnMap fetches a map whose epoch is at least a floor from a peer.
func (s *Service) learnMap(floor dfs.Epoch) error {
	ctx, cancel := context.WithTimeout(s.ctx, metas.AttemptTimeout)
	defer cancel()
	return s.opts.Metas.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		reply, err := c.GetMap(ctx, &wire.GetMapRequest{Floor: uint64(floor)})
		if err != nil {
			return err
		}
		if reply.Map == nil {
			return dfs.Errorf(dfs.Unavailable, "get map", "it has none yet")
		}
		m, err := reply.Map.ToDFS()
		if err == nil {
			s.offer(m, false)
		}
		return err
	})
}

// joinGroup makes sure that this node hosts a replica of a group.
func (s *Service) joinGroup(h *raftgroup.Host, g dfs.GroupID) error {
	if _, ok := h.Leader(g); ok {
		return nil
	}
	ms := s.opts.Identity.Membership()
	var err error
	if ms.Founding {
		err = h.CreateGroup(g, []dfs.NodeID{ms.Node})
	} else {
		err = h.JoinGroup(g)
	}
	return dfs.Wrap("open replica", g.String(), err)
}

// found gives the new cluster's groups their first state. Every step is
// idempotent: a crash in between is finished by the next start.
func (s *Service) found(h *raftgroup.Host) error {
	cluster := s.opts.Identity.Membership().Cluster
	form := &wire.FormOp{
		Cluster: cluster.Bytes(), Groups: uint32(s.opts.Groups), DefaultClass: s.opts.DefaultClass.String(),
		BlockSize: uint32(s.opts.BlockSize), PgsPerClass: uint32(s.opts.PGsPerClass), Grace: s.opts.Grace.Milliseconds(),
	}
	for _, p := range s.opts.Peers {
		form.Metas = append(form.Metas, p.Name)
	}
	err := s.insist(func(ctx context.Context) error {
		_, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_Form{Form: form}})
		if dfs.KindOf(err) == dfs.Exist {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	err = s.insist(func(ctx context.Context) error {
		req, err := s.registration()
		if err != nil {
			return err
		}
		entry, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_Register{Register: req}})
		if err != nil {
			return err
		}
		reply := entry.GetRegister()
		if n := dfs.NodeID(reply.GetNode()); n != s.opts.Identity.Membership().Node {
			return dfs.Errorf(dfs.Internal, "found cluster", "the founder was registered as node %v", n)
		}
		return s.opts.Identity.Accept(dfs.Epoch(reply.GetEpoch()))
	})
	if err != nil {
		return err
	}
	for g := 1; g <= s.opts.Groups; g++ {
		err = s.insist(func(ctx context.Context) error { return s.initGroup(ctx, h, dfs.GroupID(g), s.newestLevel()) })
		if err != nil {
			return dfs.Wrap("found group", fmt.Sprint(g), err)
		}
	}
	s.log.Info("the cluster is made", "cluster", cluster, "groups", s.opts.Groups)
	return nil
}

// insist runs an idempotent step until it succeeds, is refused for good, or the
// service ends.
func (s *Service) insist(step func(context.Context) error) error {
	for {
		ctx, cancel := context.WithTimeout(s.ctx, metas.AttemptTimeout)
		err := step(ctx)
		cancel()
		kind := dfs.KindOf(err)
		if err == nil || !kind.Retryable() && kind != dfs.Unknown && kind != dfs.Deadline {
			return err
		}
		if !s.sleep(formationPause / 5) {
			return s.ctx.Err()
		}
	}
}

// clockVersion is the version that this moment's clock gives.
func (s *Service) clockVersion() uint64 { return uint64(s.opts.Now().UnixMilli()) << 16 }
