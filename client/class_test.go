package client_test

import (
	"context"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// WantClass notes which classes were asked for; their groups come with a map
// that a test makes.
func (n *node) WantClass(_ context.Context, in *wire.WantClassRequest) (*wire.WantClassReply, error) {
	if err := n.leads(dfs.ControlGroup); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return &wire.WantClassReply{}, n.lostLocked("want class " + in.Class)
}
