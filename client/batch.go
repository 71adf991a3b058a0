package client

import (
	"context"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

const (
	// maxBatch and maxBatchBytes bound the commands of one batch, as the meta nodes do.
	maxBatch      = 128
	maxBatchBytes = 256 << 10
)

// member is one command of a batch, and what became of it: as mutate says.
type member struct {
	cmd *wire.Command
	res *wire.Result
	err error

	maybe bool // a request that had it has no answer: it may have been carried out
}

// mutateBatch carries commands out in a group, in their order and each exactly
// once: as many as fit by one request and one commit. Each has an outcome of its
// own. One that fails keeps those behind it from being tried if stop says so, for
// callers whose next step builds upon the last: those are certainly not carried
// out, and say so by a notTried. Without stop they are, for callers that have
// answered for all of them already. What cannot be answered for the moment holds
// up those behind it in either case, so that the order stands.
//
//	     all that are left, in one request
//	┌──▶ ask ──all have an answer───────────────────────────────▶ done
//	│     └─▶ the first without one ──by itself, as mutate does──┐
//	└────────────────────────────────────────────────────────────┘
//
// REQUIRES: at most maxBatch commands.
func (s *session) mutateBatch(ctx context.Context, g dfs.GroupID, cmds []*wire.Command, stop bool) []*member {
	all := make([]*member, len(cmds))
	for i, cmd := range cmds {
		all[i] = &member{cmd: cmd}
	}
	ctx, cancel := join(ctx, s.ctx)
	defer cancel()
	if s.slots.Acquire(ctx, int64(len(all))) != nil {
		s.giveUpAll(ctx, all)
		return all
	}
	defer s.slots.Release(int64(len(all)))
	for _, m := range all {
		s.number(g, m.cmd)
	}
	for rest := all; len(rest) > 0; {
		sent, answered := s.askBatch(ctx, g, rest, stop)
		var last *member
		for _, last = range rest[:answered] {
			s.settle(last.cmd.Seq)
		}
		rest = rest[answered:]
		switch {
		case stop && last != nil && last.err != nil:
			s.leaveUntried(rest, last)
			return all
		case answered > 0 && answered == sent:
			continue
		case len(rest) > 0 && ctx.Err() == nil:
			last, rest = rest[0], rest[1:]
			last.res, last.err = s.carry(ctx, g, last.cmd, last.maybe)
			s.settle(last.cmd.Seq)
		}
		switch {
		case ctx.Err() != nil:
			s.giveUpAll(ctx, rest)
			return all
		case stop && last.err != nil:
			s.leaveUntried(rest, last)
			return all
		}
	}
	return all
}

// askBatch sends as many commands as fit, and returns how many that were and how
// many of the first have a lasting answer now. It sends nothing where a batch is
// of no use.
func (s *session) askBatch(ctx context.Context, g dfs.GroupID, rest []*member, stop bool) (sent, answered int) {
	if len(rest) < 2 || s.knowsNoBatches() {
		return 0, 0
	}
	req := &wire.MutateBatchRequest{Group: uint32(g), Stop: stop}
	floor, seen, size := s.floor(g), s.c.seen.Load(), 0
	for _, m := range rest {
		m.cmd.Floor, m.cmd.Seen = floor, seen
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.cmd)
		if size += len(data); err != nil || size > maxBatchBytes {
			break // alone it fits, or learns why not
		}
		req.Commands = append(req.Commands, data)
	}
	if sent = len(req.Commands); sent < 2 {
		return 0, 0
	}
	var answers []*wire.MutateAnswer
	maybe := false
	err := s.c.book.Call(ctx, g, true, func(ctx context.Context, m wire.DRPCMetaClient) error {
		reply, err := m.MutateBatch(ctx, req)
		if err == nil {
			answers = reply.GetAnswers()
			return nil
		}
		maybe = maybe || !notCarriedOut(dfs.KindOf(err))
		return err
	})
	if dfs.KindOf(err) == dfs.Unsupported {
		s.mu.Lock()
		s.unbatched = true
		s.mu.Unlock()
	}
	for _, m := range rest[:sent] {
		m.maybe = m.maybe || maybe
	}
	for answered < min(len(answers), sent) && s.lasting(rest[answered], answers[answered]) {
		answered++
	}
	return sent, answered
}

// lasting gives a command its answer, unless another attempt may change that.
func (s *session) lasting(m *member, a *wire.MutateAnswer) bool {
	if a.GetResult() == nil {
		return false
	}
	err := a.Result.ToError("", "")
	// CrossGroup is for who sends the command by itself.
	if kind := dfs.KindOf(err); err != nil && (kind.Retryable() || kind == dfs.Fenced || kind == dfs.CrossGroup) {
		return false
	}
	s.c.saw(a.Result.GetVersion())
	m.res, m.err = a.Result, err
	return true
}

func (s *session) knowsNoBatches() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unbatched
}

// giveUpAll ends commands whose caller does not wait any longer.
func (s *session) giveUpAll(ctx context.Context, rest []*member) {
	for _, m := range rest {
		m.err = s.gaveUp(ctx, m.maybe, ended(ctx))
		s.settle(m.cmd.GetSeq())
	}
}

// leaveUntried ends commands behind one that failed. Where the group has said so
// itself it remembers that, and a request that is still on its way ends at the
// same command; else one may yet be carried out as a whole.
func (s *session) leaveUntried(rest []*member, failed *member) {
	for _, m := range rest {
		m.err = notTried(failed.err)
		if m.maybe && failed.res == nil {
			m.err = &dfs.Error{Kind: dfs.Unknown, Text: "no answer came: it may or may not have been done", Err: failed.err}
		}
		s.settle(m.cmd.GetSeq())
	}
}

// notTried is the error of a command that was certainly not carried out, because
// one before it failed.
func notTried(cause error) error {
	return &dfs.Error{Kind: dfs.Unavailable, Text: "not tried, since what comes before it failed", Err: cause}
}
