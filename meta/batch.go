package meta

import (
	"context"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// maxBatchBytes bounds the commands of a batch together: the entry of a batch is
// no longer than that of one long command, and what waits behind it does not wait
// for long.
const maxBatchBytes = 256 << 10

// MutateBatch implements the meta service: commands of one session that are
// carried out in order, by one entry. A command that is refused here, for want of
// space, ends the batch like one that its group refuses for now.
func (s *Service) MutateBatch(ctx context.Context, req *wire.MutateBatchRequest) (*wire.MutateBatchReply, error) {
	g, h, err := s.namespaceLeader(req.Group)
	if err != nil {
		return nil, err
	}
	if !s.mutable() {
		return nil, s.notFormed()
	}
	if err := checkBatch(req.Commands); err != nil {
		return nil, err
	}
	if s.level(h, g) < namespace.LevelTransactions {
		return nil, dfs.Errorf(dfs.Unsupported, "change", "batches wait until every meta node of %v runs a release that knows them", g)
	}
	reply := &wire.MutateBatchReply{}
	op := &wire.BatchOp{}
	if req.Stop {
		op.Refusals = wire.BatchOp_STOP
	}
	var refused error // of the command after those of the entry
	for _, data := range req.Commands {
		cmd, err := s.command(ctx, h, g, data)
		if err != nil {
			refused = err
			break
		}
		op.Commands = append(op.Commands, cmd)
	}
	if len(op.Commands) > 0 {
		if reply.Answers, err = s.proposeBatch(ctx, h, g, op); err != nil {
			return nil, err
		}
	}
	if refused != nil && len(reply.Answers) == len(op.Commands) {
		reply.Answers = append(reply.Answers, &wire.MutateAnswer{Refusal: wire.FromError(refused)})
	}
	return reply, nil
}

func checkBatch(cmds [][]byte) error {
	if n := len(cmds); n == 0 || n > namespace.MaxBatch {
		return dfs.Errorf(dfs.Invalid, "change", "a batch of %d commands: want 1 to %d", n, namespace.MaxBatch)
	}
	size := 0
	for _, data := range cmds {
		size += len(data)
	}
	if size > maxBatchBytes {
		return dfs.Errorf(dfs.TooLarge, "change", "a batch of %d bytes: at most %d", size, maxBatchBytes)
	}
	return nil
}

// proposeBatch commits a batch, which counts as its commands among what waits, and
// returns the answers to those that were carried out or refused.
func (s *Service) proposeBatch(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, op *wire.BatchOp) ([]*wire.MutateAnswer, error) {
	data, err := proto.Marshal(&wire.LogEntry{Version: s.clockVersion(), Entry: &wire.LogEntry_Batch{Batch: op}})
	if err != nil {
		return nil, err
	}
	reply, err := h.ProposeBatch(ctx, g, data, len(op.Commands))
	res, err := toResult(g, reply, err)
	if err != nil {
		return nil, err
	}
	if err := res.ToError("change", g.String()); err != nil {
		return nil, err // of the batch as such
	}
	out := make([]*wire.MutateAnswer, len(res.Members))
	for i, m := range res.Members {
		member, err := toResult(g, m, nil)
		if err != nil {
			return nil, err
		}
		out[i] = &wire.MutateAnswer{Result: member}
	}
	s.rates.add(g, len(out))
	return out, nil
}
