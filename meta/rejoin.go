package meta

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

// A node whose log store is damaged may have promised what it no longer knows. It
// neither votes nor acknowledges again under its number, and joins anew:
//
//	damage ─▶ host closed, or never opened
//	  │ another meta node answers
//	  ▼
//	node.json: renewal, a mark of its own       from here on the log stays closed
//	  │ Register under that mark, naming the old one: refused, for now, unless
//	  │ every group has its majority without this node
//	  ▼
//	node.json: mark, number, stores aside       at once; the old number is Replaced
//	  │ raft/ is renamed to raft-damaged/
//	  ▼
//	empty replicas: learners, promoted, the old number removed
//	  │ voter in every group
//	  ▼
//	raft-damaged/ is removed
//
// Each step is durable before the next and idempotent. Where no control leader can
// be found, as on the only meta node, it waits with everything in place.

// Restarts of the host after damage that it met while it ran.
const (
	maxRestarts  = 8
	restartPause = time.Second // before the first; doubled with each
	restartCalm  = time.Hour   // after which they are forgotten
)

// asideLook is how often it is looked whether the damaged stores may go.
const asideLook = 5 * time.Second

// open opens the host of this node. One whose log is damaged joins anew first.
func (s *Service) open() (*raftgroup.Host, error) {
	for {
		h, err := s.tryOpen()
		if !raftgroup.IsLogDamage(err) {
			return h, err
		}
		if err := s.renew(err); err != nil {
			return nil, err
		}
	}
}

func (s *Service) tryOpen() (*raftgroup.Host, error) {
	ms := s.opts.Identity.Membership()
	if s.opts.Identity.Renewing() {
		return nil, &raftgroup.LogDamage{Err: dfs.Errorf(dfs.Corrupt, "start", "%s was found damaged by an earlier start", s.opts.Dir)}
	}
	if ms.Aside {
		if err := s.putAside(); err != nil {
			return nil, err
		}
		ms.Aside = false
		if err := s.opts.Identity.SaveMembership(ms); err != nil {
			return nil, err
		}
	}
	h, err := s.openHost()
	if err != nil {
		return nil, err
	}
	if ms.Hosted && len(h.Statuses()) == 0 {
		lost := dfs.Errorf(dfs.Corrupt, "start", "%s held replicas of cluster %v and is empty now", s.opts.Dir, ms.Cluster)
		return nil, &raftgroup.LogDamage{Err: errors.Join(lost, h.Close())}
	}
	return h, nil
}

// asideDir is where the last damaged Raft stores are kept.
func (s *Service) asideDir() string { return s.opts.Dir + "-damaged" }

// putAside renames the Raft stores of the number before, if they are there still.
func (s *Service) putAside() error {
	fsys := s.opts.FS
	_, err := fsys.Stat(s.opts.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = fsys.RemoveAll(s.asideDir())
	}
	if err == nil {
		err = fsys.Rename(s.opts.Dir, s.asideDir())
	}
	if err == nil {
		err = s.syncParent()
	}
	return dfs.Wrap("put damaged stores aside", s.opts.Dir, err)
}

func (s *Service) syncParent() error {
	d, err := s.opts.FS.OpenDir(s.opts.FS.PathDir(s.opts.Dir))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// renew registers this directory under another mark, until that is accepted.
func (s *Service) renew(why error) error {
	s.log.Error("the Raft log of this node is damaged: it neither votes nor acknowledges, and joins anew under another number", "dir", s.opts.Dir, "cause", why)
	s.damaged.Store(true)
	defer s.damaged.Store(false)
	for {
		err := s.tryRenew(why)
		switch dfs.KindOf(err) {
		case dfs.WrongCluster, dfs.Stale, dfs.Invalid:
			return err
		}
		if err == nil {
			return nil
		}
		s.setWaiting(fmt.Sprintf("its Raft log is damaged (%v); it joins anew as soon as the other meta nodes can do without it: %v; "+
			"if they never can, see Damaged meta nodes in OPERATIONS.md", why, err))
		if !s.sleep(formationPause) {
			return s.ctx.Err()
		}
	}
}

func (s *Service) tryRenew(why error) error {
	id := s.opts.Identity
	ctx, cancel := context.WithTimeout(s.ctx, 2*metas.AttemptTimeout)
	defer cancel()
	var reply *wire.RegisterReply
	var refused error
	err := s.opts.Metas.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		who, err := c.Probe(ctx, &wire.ProbeRequest{Name: s.opts.Name})
		if err != nil {
			return err
		}
		if who.Name == s.opts.Name || !who.Ready {
			return dfs.Errorf(dfs.Unavailable, "join anew", "%s takes no part in the cluster", who.Name)
		}
		inc, err := id.Renew(s.opts.NewMark())
		if err != nil {
			return err
		}
		req, err := s.registration()
		if err != nil {
			return err
		}
		req.Replaces, req.Node, req.Damage = req.Incarnation.Mark, 0, clip(why.Error())
		req.Incarnation = wire.FromIncarnation(inc)
		reply, err = c.Register(ctx, req)
		if dfs.KindOf(err) == dfs.Stale {
			refused, err = err, nil
		}
		return err
	})
	if err = cmp.Or(refused, err); err != nil {
		return err
	}
	old := id.Membership().Node
	if err := id.Renewed(dfs.NodeID(reply.Node), dfs.Epoch(reply.Epoch)); err != nil {
		return err
	}
	s.log.Warn("joining anew", "was", old, "id", dfs.NodeID(reply.Node), "damaged stores", s.asideDir())
	return nil
}

// maxDamage bounds what a registration says of the damage, in bytes.
const maxDamage = 512

func clip(text string) string { return wire.Text(text[:min(len(text), maxDamage)]) }

// tendHost waits for the end of the host and opens another when damage ended it.
func (s *Service) tendHost() {
	since, restarts := time.Now(), 0
	for {
		h := s.host.Load()
		select {
		case <-h.Failed():
		case <-s.ctx.Done():
			return
		}
		why := h.Failure()
		if time.Since(since) > restartCalm {
			restarts = 0
		}
		if dfs.KindOf(why) != dfs.Corrupt || restarts == maxRestarts {
			s.fail(dfs.Wrap("serve", s.opts.Dir, why))
			return
		}
		s.setWaiting(fmt.Sprintf("its Raft stores are opened anew: %v", why))
		s.away.Store(true)
		_ = h.Close() // it says why it failed
		if !s.sleep(restartPause << restarts) {
			return
		}
		restarts++
		s.restarts.Add(1)
		if err := s.reopen(why); err != nil {
			if s.ctx.Err() == nil {
				s.fail(err)
			}
			return
		}
		since = time.Now()
		s.away.Store(false)
	}
}

// reopen opens the host again after damage.
func (s *Service) reopen(why error) error {
	if raftgroup.IsLogDamage(why) {
		if err := s.renew(why); err != nil {
			return err
		}
	}
	if _, err := s.openHosted(); err != nil {
		return err
	}
	s.publish()
	return nil
}

// asideLoop removes the damaged stores once this node votes in every group again.
func (s *Service) asideLoop() {
	for s.sleep(asideLook) {
		if _, err := s.opts.FS.Stat(s.asideDir()); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if !s.votesEverywhere() {
			continue
		}
		if err := s.opts.FS.RemoveAll(s.asideDir()); err != nil {
			s.log.Warn("this node votes in every group again, and the damaged stores cannot be removed", "dir", s.asideDir(), "cause", err)
			continue
		}
		s.log.Info("this node votes in every group again: the damaged stores are removed", "dir", s.asideDir())
	}
}

// votesEverywhere reports whether this node votes in every group that lists it,
// and no list waits for the place of a replaced node to be filled.
func (s *Service) votesEverywhere() bool {
	m, me := s.maps.current(), s.opts.Identity.Membership().Node
	if m == nil {
		return false
	}
	for _, g := range m.Groups {
		if slices.ContainsFunc(g.Replicas, func(n dfs.NodeID) bool { x := m.Node(n); return x == nil || x.Replaced }) {
			return false
		}
		if !g.Has(me) {
			continue
		}
		st, _ := s.host.Load().Status(g.ID)
		votes := st.Role == raftgroup.RoleFollower || st.Role == raftgroup.RoleLeader
		if !votes || st.NeedState || st.Leader == 0 {
			return false
		}
	}
	return true
}

// Damaged reports whether the Raft log of this node is damaged, so that it waits to
// join anew.
func (s *Service) Damaged() bool { return s.damaged.Load() }

// Restarts returns how often the host was opened anew after damage that it met.
func (s *Service) Restarts() uint64 { return s.restarts.Load() }

// checkSpared refuses, for now, to give up the number of a node whose log is damaged
// unless every group has a majority that answers without it.
func (s *Service) checkSpared(m *dfs.Map, req *wire.RegisterRequest) error {
	if req.Replaces == 0 {
		return nil
	}
	var old *dfs.Node
	for _, n := range m.Nodes {
		switch n.Incarnation.Mark {
		case req.Replaces:
			old = n
		case req.Incarnation.GetMark():
			return nil // it has been done
		}
	}
	if old == nil || old.Replaced {
		return nil // refused for another reason
	}
	led := map[dfs.GroupID]bool{}
	for _, g := range s.beats.groupBeats() {
		led[dfs.GroupID(g.Group)] = true
		if there := spared(g, old.ID); there <= len(g.Voters)/2 {
			return dfs.Errorf(dfs.Unavailable, "register "+req.Name, "%v would lose its majority: without %v, %d of its %d voters answer",
				dfs.GroupID(g.Group), old.ID, there, len(g.Voters))
		}
	}
	for _, g := range m.Groups {
		if g.Ready() && !led[g.ID] {
			return dfs.Errorf(dfs.Unavailable, "register "+req.Name, "no leader of %v reports: whether it can do without %v is not known", g.ID, old.ID)
		}
	}
	return nil
}

// spared counts the voters of a group that answer its leader, without one.
func spared(g *wire.GroupBeat, without dfs.NodeID) (n int) {
	for _, v := range g.Heard {
		if dfs.NodeID(v) != without && slices.Contains(g.Voters, v) {
			n++
		}
	}
	return n
}

// damage is what a node said when it asked to join anew.
type damage struct {
	text  string
	since time.Time // of the first
	at    time.Time // of the last
}

// maxDamages bounds the names that are remembered.
const maxDamages = 64

// ail notes that a node asks to join anew, and why that is not granted; nil: it is.
func (r *registry) ail(req *wire.RegisterRequest, refused error) {
	if req.Replaces == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if refused == nil {
		delete(r.ailing, req.Name)
		return
	}
	d, ok := r.ailing[req.Name]
	if !ok {
		if len(r.ailing) >= maxDamages {
			return
		}
		d.since = time.Now()
	}
	d.at, d.text = time.Now(), wire.Text(fmt.Sprintf("%s; not yet: %v", clip(req.Damage), refused))
	r.ailing[req.Name] = d
}

// ailments says which nodes ask to join anew, and what they wait for.
func (r *registry) ailments() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for name, d := range r.ailing {
		if time.Since(d.at) > 10*voteFresh {
			delete(r.ailing, name)
			continue
		}
		out = append(out, fmt.Sprintf("the Raft log of meta node %s is damaged, and it asks to join anew since %s: %s",
			name, d.since.Format(time.TimeOnly), d.text))
	}
	slices.Sort(out)
	return out
}
