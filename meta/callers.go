package meta

import (
	"context"

	"dfsd/dfs"
	"dfsd/transport"
)

// nodeAt refuses callers that did not introduce themselves as a node, or do not
// prove to be the one that is reached at addr.
func nodeAt(ctx context.Context, addr string) error {
	p, ok := transport.PeerFrom(ctx)
	if !ok || p.Kind != transport.KindNode {
		return dfs.Errorf(dfs.Permission, "call", "for nodes of the cluster only")
	}
	return p.Proves(addr)
}

// metaOnly refuses callers that are not a meta node of the map.
func metaOnly(ctx context.Context, m *dfs.Map) error {
	p, _ := transport.PeerFrom(ctx)
	var n *dfs.Node
	if m != nil {
		n = m.Node(p.Node)
	}
	switch {
	case p.Kind != transport.KindNode || n != nil && (!n.Roles.Has(dfs.RoleMeta) || n.Replaced || n.Incarnation.Mark != p.Incarnation.Mark):
		return dfs.Errorf(dfs.Permission, "call", "for meta nodes of the cluster only")
	case n == nil:
		return dfs.Errorf(dfs.Unavailable, "call", "node %v is not registered as far as this node knows", p.Node)
	}
	return p.Proves(n.Addr)
}
