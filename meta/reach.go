package meta

import (
	"context"
	"slices"
	"time"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// reachTimeout bounds the look whether a storage node can be reached: it must
// end before the registration that it belongs to is given up.
const reachTimeout = 3 * time.Second

// checkReached refuses, for now, stores of a node that does not answer at the
// address that it gives, or at which another process answers: its heartbeats
// would call its stores up, and no write would reach them.
func (s *Service) checkReached(ctx context.Context, m *dfs.Map, req *wire.RegisterRequest) error {
	inc := req.Incarnation.ToDFS()
	if len(req.Stores) == 0 || m != nil && entered(m, inc, req) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	const helps = "check listen and advertise of that node, firewalls, and the names in its certificate"
	switch other, err := s.opts.Identify(ctx, req.Addr); {
	case err != nil:
		return &dfs.Error{Kind: dfs.Unavailable, Op: "register " + req.Name, Text: "it cannot be reached from here at " + req.Addr + ": " + helps, Err: err}
	case other.Incarnation != inc:
		return dfs.Errorf(dfs.Unavailable, "register "+req.Name, "another process answers at %s: %s", req.Addr, helps)
	}
	return nil
}

// entered reports whether there is nothing to look for: a registration changes
// nothing, or is refused for another reason.
func entered(m *dfs.Map, inc dfs.Incarnation, req *wire.RegisterRequest) bool {
	i := slices.IndexFunc(m.Nodes, func(n *dfs.Node) bool { return n.Incarnation.Mark == inc.Mark })
	if i < 0 {
		return false
	}
	if n := m.Nodes[i]; n.Incarnation != inc || n.Addr != req.Addr {
		return !req.Lineage.ToDFS().Holds(n.Incarnation.Start)
	}
	for _, op := range req.Stores {
		if st := m.Store(dfs.StoreID(op.Store)); st == nil || st.State != dfs.StoreUp || st.Incarnation != op.Incarnation.ToDFS() {
			return false
		}
	}
	return true
}
