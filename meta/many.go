package meta

import (
	"context"
	"errors"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// maxMany bounds the commands or queries of one request.
const maxMany = 128

// MutateMany implements the meta service: commands of callers that do not know of
// each other share a request, and an entry where they are of one session. None
// waits for another's answer to be taken.
func (s *Service) MutateMany(ctx context.Context, req *wire.MutateManyRequest) (*wire.MutateManyReply, error) {
	g, h, err := s.namespaceLeader(req.Group)
	if err != nil {
		return nil, err
	}
	if !s.mutable() {
		return nil, s.notFormed()
	}
	if n := len(req.Commands); n == 0 || n > maxMany {
		return nil, dfs.Errorf(dfs.Invalid, "change", "%d commands in one request: want 1 to %d", n, maxMany)
	}
	answers := make([]*wire.MutateAnswer, len(req.Commands))
	var wg sync.WaitGroup
	drive := func(i int, cmd *wire.Command) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, manyPatience)
			defer cancel()
			res, err := s.carryOut(ctx, h, g, cmd)
			answers[i] = mutateAnswer(res, err)
		})
	}
	op := &wire.BatchOp{Refusals: wire.BatchOp_APART}
	var of []int // the commands of the entry
	size := 0
	for i, data := range req.Commands {
		cmd, err := s.command(ctx, h, g, data)
		switch {
		case err != nil:
			answers[i] = &wire.MutateAnswer{Refusal: wire.FromError(err)}
		case s.mayCross(h, g, cmd):
			drive(i, cmd)
		default:
			size += len(data)
			op.Commands, of = append(op.Commands, cmd), append(of, i)
		}
	}
	if len(of) > 0 {
		propose := s.proposeApart
		if size > maxBatchBytes || !oneSession(op.Commands) || s.level(h, g) < namespace.LevelTransactions {
			propose = s.proposeEach
		}
		for k, a := range propose(ctx, h, g, op) {
			if cmd := op.Commands[k]; s.needsMore(h, g, cmd, a.Result) {
				drive(of[k], cmd)
				continue
			}
			answers[of[k]] = a
		}
	}
	wg.Wait()
	return &wire.MutateManyReply{Answers: answers}, nil
}

// needsMore reports whether a command got an answer that carryOut may better: it takes
// several groups, met another that does, or is under way as one.
func (s *Service) needsMore(h *raftgroup.Host, g dfs.GroupID, cmd *wire.Command, res *wire.Result) bool {
	switch kind := dfs.Kind(res.GetKind()); kind {
	case dfs.CrossGroup:
		return namespace.Coordinator(cmd) == g
	case dfs.Busy:
		return s.underway(h, keyOf(g, cmd))
	}
	return res.GetLocked() != nil
}

func oneSession(cmds []*wire.Command) bool {
	return !slices.ContainsFunc(cmds, func(c *wire.Command) bool { return c.Session != cmds[0].Session })
}

// proposeApart commits commands by one entry and returns an answer to each.
func (s *Service) proposeApart(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, op *wire.BatchOp) []*wire.MutateAnswer {
	answers, err := s.proposeBatch(ctx, h, g, op)
	if err == nil && len(answers) < len(op.Commands) {
		err = dfs.Errorf(dfs.Busy, "change", "%v: the commands before it were enough for one entry", g)
	}
	for len(answers) < len(op.Commands) {
		answers = append(answers, &wire.MutateAnswer{Refusal: wire.FromError(err)})
	}
	return answers
}

// proposeEach commits each command by an entry of its own.
func (s *Service) proposeEach(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, op *wire.BatchOp) []*wire.MutateAnswer {
	entries := make([][]byte, len(op.Commands))
	for i, cmd := range op.Commands {
		data, err := proto.Marshal(&wire.LogEntry{Version: s.clockVersion(), Entry: &wire.LogEntry_Command{Command: cmd}})
		if err != nil {
			return slices.Repeat([]*wire.MutateAnswer{{Refusal: wire.FromError(err)}}, len(op.Commands))
		}
		entries[i] = data
	}
	answers := make([]*wire.MutateAnswer, len(entries))
	for i, o := range h.ProposeMany(ctx, g, entries) {
		res, err := toResult(g, o.Reply, o.Err)
		answers[i] = mutateAnswer(res, err)
		if err == nil {
			s.rates.add(g, 1)
		}
	}
	return answers
}

func mutateAnswer(res *wire.Result, err error) *wire.MutateAnswer {
	if err != nil {
		return &wire.MutateAnswer{Refusal: wire.FromError(err)}
	}
	return &wire.MutateAnswer{Result: res}
}

// ReadMany implements the meta service: linearizable queries that share a request
// and the leader's word. Answers stop where the reply would grow too long.
func (s *Service) ReadMany(ctx context.Context, req *wire.ReadManyRequest) (*wire.ReadManyReply, error) {
	g, h, err := s.readable(req.Group)
	if err != nil {
		return nil, err
	}
	if n := len(req.Queries); n == 0 || n > maxMany {
		return nil, dfs.Errorf(dfs.Invalid, "read", "%d queries in one request: want 1 to %d", n, maxMany)
	}
	reply := &wire.ReadManyReply{}
	// Answers that came stay; of those that hang on a transaction the first is waited for.
	err = s.waitOut(ctx, h, g, func() error {
		return h.Read(ctx, g, func(r raftgroup.Reader) error {
			size := 0
			for _, a := range reply.Answers {
				size += proto.Size(a)
			}
			for i := len(reply.Answers); i < len(req.Queries) && size < namespace.MaxAnswer; i++ {
				a, err := answer(r, g, req.Queries[i])
				if err != nil {
					return err
				}
				size += proto.Size(a)
				reply.Answers = append(reply.Answers, a)
			}
			return nil
		})
	})
	if dfs.KindOf(err) == dfs.Frozen && len(reply.Answers) > 0 {
		err = nil // the others are asked again, each by itself
	}
	if err != nil {
		return nil, dfs.Wrap("read", g.String(), err)
	}
	return reply, nil
}

// answer answers one of many queries, unless it hangs on a transaction: that is the error.
func answer(r raftgroup.Reader, g dfs.GroupID, q *wire.Query) (*wire.ReadAnswer, error) {
	if q.GetPlaceDir() != nil { // its answer is the leader's, not the state's
		return &wire.ReadAnswer{Refusal: wire.FromError(dfs.Errorf(dfs.Invalid, "read", "directories are placed one by one"))}, nil
	}
	res, err := namespace.Query(r, g, q)
	var locked *namespace.LockedError
	switch {
	case errors.As(err, &locked):
		return nil, err
	case err != nil:
		return &wire.ReadAnswer{Refusal: wire.FromError(err)}, nil
	}
	return &wire.ReadAnswer{Result: res}, nil
}
