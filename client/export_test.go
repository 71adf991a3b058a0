package client

import (
	"context"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// Batch has a client carry commands out by one batch, and returns an error or nil
// for each.
func Batch(ctx context.Context, c *Client, g dfs.GroupID, cmds []*wire.Command, stop bool) []error {
	s, err := c.session(ctx)
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, m := range s.mutateBatch(ctx, g, cmds, stop) {
		errs = append(errs, m.err)
		s.mu.Lock()
		if _, open := s.unanswered[m.cmd.Seq]; open {
			panic("a command of a batch that has ended is without an answer")
		}
		s.mu.Unlock()
	}
	return errs
}
