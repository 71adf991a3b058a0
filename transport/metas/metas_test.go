package metas

import (
	"context"
	"slices"
	"testing"
	"time"

	"storj.io/drpc"

	"dfsd/dfs"
	"dfsd/sim/bubble"
	"dfsd/transport/wire"
)

// fakeNode answers as meta node 1, which follows, or 2, which leads.
type fakeNode struct {
	drpc.Conn
	id dfs.NodeID
	m  *dfs.Map
}

func (f fakeNode) Invoke(_ context.Context, _ string, _ drpc.Encoding, in, out drpc.Message) error {
	if _, ok := in.(*wire.GetMapRequest); ok {
		out.(*wire.GetMapReply).Map = wire.FromMap(f.m)
		return nil
	}
	if f.id != 2 {
		return &dfs.Error{Kind: dfs.NotLeader, Op: "ask group", LeaderHint: 2}
	}
	return nil
}

// TestLeaderThatJoinedLater: the leader of a group is a node that the caller's
// map does not have yet.
func TestLeaderThatJoinedLater(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		node := func(id dfs.NodeID, addr string) *dfs.Node {
			return &dfs.Node{ID: id, Name: addr, Addr: addr, Roles: dfs.RoleMeta}
		}
		old := &dfs.Map{Epoch: 1, Nodes: []*dfs.Node{node(1, "a")}}
		now := &dfs.Map{Cluster: dfs.ClusterID{1}, Epoch: 2, DefaultClass: dfs.Replicated(2), Nodes: []*dfs.Node{node(1, "a"), node(2, "b")}}
		b := New(func(addr string) drpc.Conn {
			return fakeNode{id: map[string]dfs.NodeID{"a": 1, "b": 2}[addr], m: now}
		}, []string{"a"})
		b.Update(old)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := b.Call(ctx, 3, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
			_, err := c.Mutate(ctx, &wire.MutateRequest{})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// TestMapFromBeforeTheOthers: the caller's map is from when only one meta node had
// registered, and that one is gone: the configured addresses are asked too.
func TestMapFromBeforeTheOthers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		gone := 0
		b := New(func(addr string) drpc.Conn {
			if addr == "a" {
				return answering{asked: &gone, err: dfs.Errorf(dfs.Unavailable, "connect to", "a: connection refused")}
			}
			return fakeNode{id: 2}
		}, []string{"a", "b"})
		b.Update(&dfs.Map{Epoch: 1, Nodes: []*dfs.Node{{ID: 1, Name: "a", Addr: "a", Roles: dfs.RoleMeta}}})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := b.Call(ctx, 3, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
			_, err := c.Mutate(ctx, &wire.MutateRequest{})
			return err
		})
		if err != nil || gone == 0 {
			t.Errorf("%v, after %d attempts at the node that is gone", err, gone)
		}
	})
}

// TestOrder: the leader, then who has a replica, then the rest.
func TestOrder(t *testing.T) {
	m := &dfs.Map{Epoch: 1, Groups: []*dfs.Group{{ID: 0, Replicas: []dfs.NodeID{1, 2, 3}}, {ID: 4, Replicas: []dfs.NodeID{2, 5, 9}}}}
	for i := range dfs.NodeID(5) {
		m.Nodes = append(m.Nodes, &dfs.Node{ID: i + 1, Addr: string('a' + rune(i)), Roles: dfs.RoleMeta})
	}
	b := New(nil, []string{"seed"})
	if got := b.order(4); !slices.Equal(got, []string{"seed"}) {
		t.Errorf("without a map: %q", got)
	}
	b.Update(m)
	for range 20 {
		got := b.order(4)
		if slices.Sort(got[:2]); !slices.Equal(got[:2], []string{"b", "e"}) || len(got) != 5 {
			t.Fatalf("group 4: %q", got)
		}
		if got := b.order(7); len(got) != 5 {
			t.Fatalf("a group that the map does not have: %q", got)
		}
	}
	b.SetLeader(4, 3)
	if got := b.order(4); got[0] != "c" || len(got) != 5 {
		t.Errorf("led by a node that is not listed: %q", got)
	}
}

// answering answers everything, or is silent, and counts.
type answering struct {
	drpc.Conn
	asked *int
	err   error
}

func (a answering) Invoke(context.Context, string, drpc.Encoding, drpc.Message, drpc.Message) error {
	*a.asked++
	return a.err
}

// TestCallAny: what any replica answers is asked of all, whoever leads, and of
// another one where the first cannot answer.
func TestCallAny(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var asked [3]int
		var errs [3]error
		b := New(func(addr string) drpc.Conn {
			i := int(addr[0] - 'a')
			return answering{asked: &asked[i], err: errs[i]}
		}, []string{"a", "b", "c"})
		b.SetLeader(3, 1)
		read := func() {
			t.Helper()
			err := b.CallAny(t.Context(), 3, func(ctx context.Context, c wire.DRPCMetaClient) error {
				_, err := c.Read(ctx, &wire.ReadRequest{})
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
		for range 300 {
			read()
		}
		for i, n := range asked {
			if n < 50 {
				t.Errorf("node %d was asked %d of 300 times", i, n)
			}
		}
		errs[0] = dfs.Errorf(dfs.Busy, "read", "too much to do")
		errs[1] = dfs.Errorf(dfs.Unknown, "read", "the connection ended")
		for range 20 {
			read()
		}
	})
}
