package meta

import (
	"context"
	"slices"

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
	op := &wire.BatchOp{Refusals: wire.BatchOp_APART}
	var of []int // the commands of the entry
	size := 0
	for i, data := range req.Commands {
		cmd, err := s.command(ctx, h, g, data)
		if err != nil {
			answers[i] = &wire.MutateAnswer{Refusal: wire.FromError(err)}
			continue
		}
		size += len(data)
		op.Commands, of = append(op.Commands, cmd), append(of, i)
	}
	if len(of) > 0 {
		propose := s.proposeApart
		if size > maxBatchBytes || !oneSession(op.Commands) {
			propose = s.proposeEach
		}
		for k, a := range propose(ctx, h, g, op) {
			answers[of[k]] = a
		}
	}
	return &wire.MutateManyReply{Answers: answers}, nil
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
		if err != nil {
			answers[i] = &wire.MutateAnswer{Refusal: wire.FromError(err)}
			continue
		}
		answers[i] = &wire.MutateAnswer{Result: res}
		s.rates.add(g, 1)
	}
	return answers
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
	err = h.Read(ctx, g, func(r raftgroup.Reader) error {
		for size, i := 0, 0; i < len(req.Queries) && size < namespace.MaxAnswer; i++ {
			a := answer(r, g, req.Queries[i])
			size += proto.Size(a)
			reply.Answers = append(reply.Answers, a)
		}
		return nil
	})
	if err != nil {
		return nil, dfs.Wrap("read", g.String(), err)
	}
	return reply, nil
}

// answer answers one of many queries.
func answer(r raftgroup.Reader, g dfs.GroupID, q *wire.Query) *wire.ReadAnswer {
	if q.GetPlaceDir() != nil { // its answer is the leader's, not the state's
		return &wire.ReadAnswer{Refusal: wire.FromError(dfs.Errorf(dfs.Invalid, "read", "directories are placed one by one"))}
	}
	res, err := namespace.Query(r, g, q)
	if err != nil {
		return &wire.ReadAnswer{Refusal: wire.FromError(err)}
	}
	return &wire.ReadAnswer{Result: res}
}
