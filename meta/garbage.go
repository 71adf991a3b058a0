package meta

import (
	"context"
	"time"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// maxQuestion bounds the blocks of one question.
const maxQuestion = 1024

// marksTimeout is how long a question waits for the control leader: the answer
// to all other blocks must come within the asker's attempt.
const marksTimeout = 2 * time.Second

// Garbage implements the meta service: what has become of blocks that a store
// holds. Where the group's own log does not tell, because the session lives and
// has gone beyond what the group has heard of it, the session's low-water mark
// is committed first, and the answer comes from after that.
func (s *Service) Garbage(ctx context.Context, req *wire.GarbageRequest) (*wire.GarbageReply, error) {
	if err := storageOnly(ctx, s.maps.current()); err != nil {
		return nil, err
	}
	g, h, err := s.namespaceLeader(req.Group)
	if err != nil {
		return nil, err
	}
	if len(req.Blocks) > maxQuestion {
		return nil, dfs.Errorf(dfs.TooLarge, "judge blocks", "%d blocks: at most %d", len(req.Blocks), maxQuestion)
	}
	ids := make([]dfs.BlockID, len(req.Blocks))
	for i, raw := range req.Blocks {
		if ids[i], err = dfs.ParseBlockID(raw); err != nil || ids[i].Ino.Group() != g {
			return nil, dfs.Errorf(dfs.Invalid, "judge blocks", "block %d is not one of %v", i, g)
		}
	}
	verdicts, err := s.verdicts(ctx, h, g, ids)
	if err != nil {
		return nil, err
	}
	raised, err := s.raiseMarks(ctx, h, g, ids, verdicts)
	if err != nil {
		s.step(g, "marks", err) // what is pending stays so: it is asked about again
	} else if raised {
		if verdicts, err = s.verdicts(ctx, h, g, ids); err != nil {
			return nil, err
		}
	}
	reply := &wire.GarbageReply{Verdicts: make([]byte, len(verdicts))}
	for i, v := range verdicts {
		reply.Verdicts[i] = byte(v)
	}
	return reply, nil
}

// verdicts asks the group's state, linearizably.
func (s *Service) verdicts(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, ids []dfs.BlockID) (out []dfs.Verdict, err error) {
	err = h.Read(ctx, g, func(r raftgroup.Reader) (err error) {
		if out, err = namespace.Verdicts(r, ids, s.opts.Namespace); err != nil {
			return err
		}
		recovered, err := namespace.Recovered(r)
		if recovered > 0 || s.maps.recovery() > 0 {
			keep(out)
		}
		return err
	})
	return out, dfs.Wrap("judge blocks", g.String(), err)
}

// keep has blocks asked about again that would be deleted.
func keep(verdicts []dfs.Verdict) {
	for i, v := range verdicts {
		if v == dfs.Garbage {
			verdicts[i] = dfs.Pending
		}
	}
}

// raiseMarks commits in the group the low-water marks of the sessions whose blocks
// are pending, and reports whether one of these blocks is below its mark.
func (s *Service) raiseMarks(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, ids []dfs.BlockID, verdicts []dfs.Verdict) (bool, error) {
	lowest := map[dfs.SessionID]uint64{} // pending block
	for i, id := range ids {
		if n, ok := lowest[id.Session]; verdicts[i] == dfs.Pending && (!ok || id.Counter < n) {
			lowest[id.Session] = id.Counter
		}
	}
	if len(lowest) == 0 || !s.mutable() {
		return false, nil
	}
	ask := &wire.MarksRequest{}
	for id := range lowest {
		ask.Sessions = append(ask.Sessions, uint64(id))
	}
	op := &wire.MarksOp{}
	mctx, cancel := context.WithTimeout(ctx, marksTimeout)
	defer cancel()
	err := s.opts.Metas.Call(mctx, dfs.ControlGroup, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		reply, err := c.Marks(ctx, ask)
		op.Marks = nil
		for _, m := range reply.GetMarks() {
			if n, ok := lowest[dfs.SessionID(m.Session)]; ok && n < m.Below {
				op.Marks = append(op.Marks, m)
			}
		}
		return err
	})
	if err != nil || len(op.Marks) == 0 {
		return false, err
	}
	res, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Marks{Marks: op}})
	if err == nil {
		err = res.ToError("raise marks", g.String())
	}
	return err == nil, err
}

// Marks implements the meta service: what live sessions have said since this node
// leads the control group. A mark that is too old does no harm.
func (s *Service) Marks(ctx context.Context, req *wire.MarksRequest) (*wire.MarksReply, error) {
	if err := metaOnly(ctx, s.maps.current()); err != nil {
		return nil, err
	}
	if _, err := s.controlLeader(); err != nil {
		return nil, err
	}
	if len(req.Sessions) > maxQuestion {
		return nil, dfs.Errorf(dfs.TooLarge, "read marks", "%d sessions: at most %d", len(req.Sessions), maxQuestion)
	}
	return &wire.MarksReply{Marks: s.lease.marksOf(req.Sessions)}, nil
}
