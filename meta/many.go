package meta

import (
	"context"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// maxMany bounds the commands or queries of one request.
const maxMany = 128

// MutateMany implements the meta service: commands that share a request, and as
// far as Raft has it a sync. None waits for another's answer to be taken.
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
	var entries [][]byte
	var of []int // the commands of the entries
	for i, cmd := range req.Commands {
		data, err := s.encodeCommand(ctx, h, g, cmd)
		if err != nil {
			answers[i] = &wire.MutateAnswer{Refusal: wire.FromError(err)}
			continue
		}
		entries, of = append(entries, data), append(of, i)
	}
	for i, o := range h.ProposeMany(ctx, g, entries) {
		res, err := toResult(g, o.Reply, o.Err)
		if err != nil {
			answers[of[i]] = &wire.MutateAnswer{Refusal: wire.FromError(err)}
			continue
		}
		answers[of[i]] = &wire.MutateAnswer{Result: res}
	}
	return &wire.MutateManyReply{Answers: answers}, nil
}

func (s *Service) encodeCommand(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, cmd []byte) ([]byte, error) {
	le, err := s.commandEntry(ctx, h, g, cmd)
	if err != nil {
		return nil, err
	}
	le.Version = s.clockVersion()
	return proto.Marshal(le)
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
