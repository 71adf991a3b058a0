package meta

import (
	"context"
	"testing"

	"dfsd/dfs"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// judging answers Probe with what a judgement of the caller says.
type judging struct {
	wire.DRPCMetaUnimplementedServer
	judge func(ctx context.Context) error
}

func (j *judging) Probe(ctx context.Context, _ *wire.ProbeRequest) (*wire.ProbeReply, error) {
	return &wire.ProbeReply{}, j.judge(ctx)
}

// TestCallers: who may fence sessions and vote, who may ask for garbage, and who
// may speak as a node.
func TestCallers(t *testing.T) {
	m := &dfs.Map{Nodes: []*dfs.Node{
		{ID: 1, Addr: "m1:1", Roles: dfs.RoleMeta, Incarnation: dfs.Incarnation{Mark: 11}},
		{ID: 2, Addr: "m2:1", Roles: dfs.RoleMeta, Incarnation: dfs.Incarnation{Mark: 22}, Replaced: true},
		{ID: 3, Addr: "s3:1", Roles: dfs.RoleStorage, Incarnation: dfs.Incarnation{Mark: 33}},
	}}
	for _, c := range []struct {
		name          string
		kind          transport.PeerKind
		node          dfs.NodeID
		mark          uint64
		m             *dfs.Map
		byMap, byKind dfs.Kind // by metaOnly and nodeAt; 0: admitted
		byStore       dfs.Kind // by storageOnly
	}{
		{"a meta node", transport.KindNode, 1, 11, m, 0, 0, dfs.Permission},
		{"another directory of it", transport.KindNode, 1, 12, m, dfs.Permission, 0, dfs.Permission},
		{"a replaced one", transport.KindNode, 2, 22, m, dfs.Permission, 0, dfs.Permission},
		{"a storage node", transport.KindNode, 3, 33, m, dfs.Permission, 0, 0},
		{"another directory of that", transport.KindNode, 3, 34, m, dfs.Permission, 0, dfs.Permission},
		{"one that is not known", transport.KindNode, 9, 99, m, dfs.Unavailable, 0, dfs.Unavailable},
		{"before there is a map", transport.KindNode, 1, 11, nil, dfs.Unavailable, 0, dfs.Unavailable},
		{"a client", transport.KindClient, 0, 0, m, dfs.Permission, dfs.Permission, dfs.Permission},
		{"a client with a node's number", transport.KindClient, 1, 11, m, dfs.Permission, dfs.Permission, dfs.Permission},
	} {
		t.Run(c.name, func(t *testing.T) {
			network := transport.NewMemory(transport.MemoryOptions{})
			lis, err := network.Host("m1").Listen("m1:1")
			if err != nil {
				t.Fatal(err)
			}
			cluster := dfs.ClusterID{1}
			j := &judging{}
			s := transport.NewServer(transport.ServerOptions{Identity: func() transport.Identity {
				return transport.Identity{Cluster: cluster, Kind: transport.KindNode, Node: 1}
			}})
			defer s.Close()
			if err := wire.DRPCRegisterMeta(s, j); err != nil {
				t.Fatal(err)
			}
			s.Start(lis)
			pool := transport.NewPool(transport.PoolOptions{Network: network.Host("x"), Identity: func() transport.Identity {
				return transport.Identity{Cluster: cluster, Kind: c.kind, Node: c.node, Incarnation: dfs.Incarnation{Mark: c.mark}}
			}})
			defer pool.Close()
			for _, by := range []struct {
				judge func(ctx context.Context) error
				want  dfs.Kind
			}{
				{func(ctx context.Context) error { return metaOnly(ctx, c.m) }, c.byMap},
				{func(ctx context.Context) error { return storageOnly(ctx, c.m) }, c.byStore},
				{func(ctx context.Context) error { return nodeAt(ctx, "m1:1") }, c.byKind},
			} {
				j.judge = by.judge
				_, err := wire.NewDRPCMetaClient(pool.Conn("m1:1")).Probe(t.Context(), &wire.ProbeRequest{})
				if dfs.KindOf(err) != by.want || (err == nil) != (by.want == 0) {
					t.Errorf("got %v, want %v", err, by.want)
				}
			}
		})
	}
}
