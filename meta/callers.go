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
func metaOnly(ctx context.Context, m *dfs.Map) error { return roleOnly(ctx, m, dfs.RoleMeta) }

// storageOnly refuses callers that are not a storage node of the map.
func storageOnly(ctx context.Context, m *dfs.Map) error { return roleOnly(ctx, m, dfs.RoleStorage) }

// roleOnly refuses callers that are not a node of the map with that role, or do
// not prove to be the one that they say they are.
func roleOnly(ctx context.Context, m *dfs.Map, role dfs.Role) error {
	p, _ := transport.PeerFrom(ctx)
	var n *dfs.Node
	if m != nil {
		n = m.Node(p.Node)
	}
	switch {
	case p.Kind != transport.KindNode || n != nil && (!n.Roles.Has(role) || n.Replaced || n.Incarnation.Mark != p.Incarnation.Mark):
		return dfs.Errorf(dfs.Permission, "call", "for %v nodes of the cluster only", role)
	case n == nil:
		return dfs.Errorf(dfs.Unavailable, "call", "node %v is not registered as far as this node knows", p.Node)
	}
	return p.Proves(n.Addr)
}
