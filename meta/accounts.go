package meta

import (
	"context"
	"time"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

const (
	tallyRows   = 256         // that an entry looks at which moves sums up: bounds its apply
	tallies     = 16          // entries of one round: others of the group go on between them
	reportRetry = time.Second // after a report that another group did not take in
)

// settleAccounts has the accounts of a group take in what lies below, and tells
// other groups what their directories have here. It returns when to go on.
func (s *Service) settleAccounts(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, metas.AttemptTimeout)
	defer cancel()
	for range tallies {
		u, err := s.untold(h, g, 0, 1)
		if err != nil {
			return time.Time{}, err
		}
		if !u.Tally {
			return s.reportAccounts(ctx, h, g)
		}
		le := &wire.LogEntry{Entry: &wire.LogEntry_Tally{Tally: &wire.TallyOp{Limit: tallyRows}}}
		if err := s.proposeDone(ctx, h, g, "tally", le); err != nil {
			return time.Time{}, err
		}
	}
	return time.Now().Add(groupTick), nil
}

func (s *Service) untold(h *raftgroup.Host, g dfs.GroupID, past dfs.Ino, limit int) (u namespace.Untold, err error) {
	err = h.ReadLocal(g, func(r raftgroup.Reader) (err error) {
		u, err = namespace.ReadUntold(r, past, limit)
		return err
	})
	return u, err
}

// proposeDone proposes an entry that must not be refused.
func (s *Service) proposeDone(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, what string, le *wire.LogEntry) error {
	res, err := s.proposeEntry(ctx, h, g, le)
	if err != nil {
		return err
	}
	return res.ToError(what, g.String())
}

// reportAccounts tells the groups of homes what inodes of this group count for. One
// that does not answer keeps no other waiting. It returns when to go on.
func (s *Service) reportAccounts(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) (next time.Time, first error) {
	failed := map[dfs.GroupID]bool{}
	past := dfs.Ino(0)
	for more := true; more && ctx.Err() == nil; {
		u, err := s.untold(h, g, past, namespace.MaxAbsorb)
		if err != nil {
			return time.Time{}, err
		}
		more = u.More
		byHome := map[dfs.GroupID][]*wire.Absorption{}
		for _, a := range u.Reports {
			past = dfs.Ino(a.Ino)
			home := dfs.Ino(a.Dir).Group()
			byHome[home] = append(byHome[home], a)
		}
		done := &wire.ReportedOp{}
		for home, list := range byHome {
			if failed[home] {
				continue
			}
			taken, err := s.reportTo(ctx, home, list)
			if err != nil {
				failed[home] = true
				s.step(g, "report accounts", err)
			}
			if done.Of = append(done.Of, taken...); len(taken) < len(list) {
				next = time.Now().Add(reportRetry)
			}
		}
		if len(done.Of) == 0 {
			continue
		}
		if err := s.proposeDone(ctx, h, g, "note what was reported", &wire.LogEntry{Entry: &wire.LogEntry_Reported{Reported: done}}); err != nil {
			return time.Time{}, err
		}
	}
	if ctx.Err() != nil {
		next = time.Now().Add(reportRetry)
	}
	return next, nil
}

// reportTo tells one group, and returns what it has taken in.
func (s *Service) reportTo(ctx context.Context, home dfs.GroupID, list []*wire.Absorption) (taken []*wire.Absorption, err error) {
	var reply *wire.AbsorbReply
	err = s.opts.Metas.Call(ctx, home, true, func(ctx context.Context, c wire.DRPCMetaClient) (err error) {
		reply, err = c.Absorb(ctx, &wire.AbsorbRequest{Group: uint32(home), Absorb: &wire.AbsorbOp{Of: list}})
		return err
	})
	if err != nil {
		return nil, err
	}
	in := map[uint64]bool{}
	for _, ino := range reply.Inos {
		in[ino] = true
	}
	for _, a := range list {
		if in[a.Ino] {
			taken = append(taken, &wire.Absorption{Ino: a.Ino, Dir: a.Dir, Since: a.Since, Seq: a.Seq})
		}
	}
	return taken, nil
}

// Absorb implements the meta service.
func (s *Service) Absorb(ctx context.Context, req *wire.AbsorbRequest) (*wire.AbsorbReply, error) {
	if err := metaOnly(ctx, s.maps.current()); err != nil {
		return nil, err
	}
	g, h, err := s.namespaceLeader(req.Group)
	if err != nil {
		return nil, err
	}
	res, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Absorb{Absorb: req.Absorb}})
	if err != nil {
		return nil, err
	}
	return &wire.AbsorbReply{Inos: res.Absorbed}, res.ToError("absorb", g.String())
}
