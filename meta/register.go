package meta

import (
	"context"
	"slices"
	"time"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// maxClaims bounds the claims that are remembered: more copies are not started at
// a time. When there are more all are forgotten, and wait a little longer.
const maxClaims = 64

// emptyGrace is how long a directory that was empty asks for the name of a meta node that is
// on record with another one. A disk that is not mounted looks just like that, and the name,
// once taken over, does not go back: the node on the disk is refused for ever. It is more than
// the 90 s that systemd waits for a device.
const emptyGrace = 2 * time.Minute

// claim is made by a start that wants to take the place of one at another address, or of one
// with another directory.
type claim struct {
	start uint64 // the first of its directory's since the one on record, or the directory's mark: it stays over restarts
	term  uint64 // of the control leader that hears it: an earlier leader listened to others
}

// Register implements the meta service.
func (s *Service) Register(ctx context.Context, req *wire.RegisterRequest) (*wire.RegisterReply, error) {
	if _, err := s.controlLeader(); err != nil {
		return nil, err
	}
	if err := nodeAt(ctx, req.Addr); err != nil {
		return nil, err
	}
	err := s.checkRegister(ctx, s.maps.current(), req)
	s.beats.ail(req, err)
	if err != nil {
		return nil, err
	}
	req.Damage = ""
	reply, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_Register{Register: req}})
	if err != nil {
		return nil, err
	}
	s.beats.registered(dfs.NodeID(reply.GetRegister().GetNode()))
	return reply.GetRegister(), nil
}

// registered notes a sign of life.
func (r *registry) registered(id dfs.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard[id] = time.Now()
}

// checkRegister refuses, mostly for now, what the control group's state machine
// cannot judge.
func (s *Service) checkRegister(ctx context.Context, m *dfs.Map, req *wire.RegisterRequest) error {
	if m == nil {
		return s.checkReached(ctx, m, req)
	}
	term, _ := s.leads(dfs.ControlGroup)
	if err := s.beats.admit(m, req, term, s.plan.ledFor(term)); err != nil {
		return err
	}
	if err := s.checkHolder(ctx, m, req); err != nil {
		return err
	}
	if err := s.mayReturn(m, req); err != nil {
		return err
	}
	if err := s.checkSpared(m, req); err != nil {
		return err
	}
	return s.checkReached(ctx, m, req)
}

// mayReturn refuses, for now, to call up a store that was declared down and has
// not started anew since, while a majority still suspects it: a node that
// reaches the leader alone would be up and down for ever. A new start is called
// up, and given the time to be heard.
func (s *Service) mayReturn(m *dfs.Map, req *wire.RegisterRequest) error {
	if m == nil {
		return nil
	}
	tally := s.tally()
	for _, op := range req.Stores {
		st := m.Store(dfs.StoreID(op.Store))
		if st != nil && st.State != dfs.StoreUp && st.Incarnation == op.Incarnation.ToDFS() && tally.Majority(st.ID) {
			return dfs.Errorf(dfs.Unavailable, "register "+req.Name, "store %v is %v, and the meta nodes %v still suspect it", st.ID, st.State, tally.By[st.ID])
		}
	}
	return nil
}

// admit refuses, for now, a meta node that takes over the name of one that was
// heard lately: two data directories claim one name. A leader that has not
// listened for as long does not know. One that does not say which node it was has to wait
// for emptyGrace, in which somebody may find out that it is not what was meant to start.
func (r *registry) admit(m *dfs.Map, req *wire.RegisterRequest, term uint64, led time.Duration) error {
	if m == nil || req.Node != 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range m.MetaNodes() {
		if n.Name != req.Name || n.Incarnation.Mark == req.Incarnation.GetMark() {
			continue
		}
		if v, ok := r.votes[n.ID]; ok && time.Since(v.at) < voteFresh || n.ID == r.s.opts.Identity.Membership().Node {
			return dfs.Errorf(dfs.Exist, "register "+req.Name, "a node of this name is up at %s", n.Addr)
		}
		if led < voteFresh {
			return dfs.Errorf(dfs.Unavailable, "register "+req.Name, "whether the node of this name at %s is up is not known yet", n.Addr)
		}
		if req.Replaces != 0 {
			continue
		}
		first, again := r.claimLocked(claim{req.Incarnation.GetMark(), term})
		if !again {
			r.s.log.Warn("a meta node with an empty data directory asks for the name of another one: is a disk not mounted there?", "name", req.Name, "addr", req.Addr, "node", uint32(n.ID), "wait", emptyGrace)
		}
		if time.Since(first) < emptyGrace {
			return dfs.Errorf(dfs.Unavailable, "register "+req.Name, "node %v has this name, in another data directory than this one, which was empty: if that is on a disk that is not mounted, stop this process, "+
				"mount it, and start again; otherwise this one takes the place of node %v after %v", n.ID, n.ID, emptyGrace)
		}
	}
	return nil
}

// claimLocked returns when a claim was first made, and whether that was before.
func (r *registry) claimLocked(c claim) (first time.Time, again bool) {
	if first, again = r.claims[c]; again {
		return first, true
	}
	if len(r.claims) >= maxClaims {
		clear(r.claims)
	}
	first = time.Now()
	r.claims[c] = first
	return first, false
}

// checkHolder refuses, for now, a start at another address until the start on
// record has not been heard for a while: a directory that was moved has a holder
// that has just ended, and a copy one that lives on. Which it is shows when the
// holder is heard later than what was under way at the claim: then the claimant is
// barred, before it can wait for a moment in which the original is down.
func (s *Service) checkHolder(ctx context.Context, m *dfs.Map, req *wire.RegisterRequest) error {
	if m == nil {
		return nil
	}
	i := slices.IndexFunc(m.Nodes, func(n *dfs.Node) bool { return n.Incarnation.Mark == req.Incarnation.GetMark() })
	if i < 0 || m.Nodes[i].Replaced || m.Nodes[i].Incarnation.Start == req.Incarnation.GetStart() || m.Nodes[i].Addr == req.Addr {
		return nil // one address has one process
	}
	holder := m.Nodes[i]
	term, _ := s.leads(dfs.ControlGroup)
	c := claim{req.Lineage.ToDFS().Since(holder.Incarnation.Start), term}
	if c.start == 0 {
		return nil // refused for another reason
	}
	switch free, proven := s.beats.judge(c, holder); {
	case free:
		return nil
	case !proven:
		return dfs.Errorf(dfs.Exist, "register "+req.Name, "the start on record of this data directory may be up at %s", holder.Addr)
	}
	s.log.Error("a copy of a data directory was started while the original is up: it is refused for ever", "name", req.Name, "addr", req.Addr, "original", holder.Addr)
	bar := &wire.BarOp{Mark: holder.Incarnation.Mark, Start: c.start}
	_, err := s.proposeControl(ctx, &wire.ControlEntry{Entry: &wire.ControlEntry_Bar{Bar: bar}})
	return err // the registration itself is refused for it
}

// judge notes a claim. It reports whether the directory is free, after listening
// for its holder since the claim was first made, or else whether the holder was
// heard late enough after the claim to prove that there are two directories.
func (r *registry) judge(c claim, holder *dfs.Node) (free, proven bool) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	first, _ := r.claimLocked(c)
	last := r.words[holder.ID]
	if holder.ID == r.s.opts.Identity.Membership().Node {
		last = word{r.s.opts.Identity.Incarnation(), now}
	}
	heard := last.inc == holder.Incarnation && now.Sub(last.at) < voteFresh
	return !heard && now.Sub(first) >= voteFresh, heard && last.at.Sub(first) >= voteFresh
}
