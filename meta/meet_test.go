package meta

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"storj.io/drpc"

	"dfsd/dfs"
	"dfsd/sim/bubble"
	"dfsd/transport"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

// peerWithMap is a meta node that knows a map.
type peerWithMap struct {
	drpc.Conn
	m     *dfs.Map
	calls int
}

func (p *peerWithMap) Invoke(_ context.Context, _ string, _ drpc.Encoding, in, out drpc.Message) error {
	p.calls++
	if dfs.Epoch(in.(*wire.GetMapRequest).Floor) > p.m.Epoch {
		return dfs.Errorf(dfs.Unavailable, "get map", "this node has not applied it yet")
	}
	out.(*wire.GetMapReply).Map = wire.FromMap(p.m)
	return nil
}

// TestUnknownRaftCallers: a node whose log ends before the registration of a
// peer hears of it from others, and does not ask them for every message.
func TestUnknownRaftCallers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		known := &dfs.Node{ID: 1, Name: "a", Addr: "a:1", Roles: dfs.RoleMeta}
		joined := &dfs.Node{ID: 4, Name: "d", Addr: "d:1", Roles: dfs.RoleMeta, Incarnation: dfs.Incarnation{Mark: 44, Start: 1}}
		other := &peerWithMap{m: &dfs.Map{Cluster: dfs.ClusterID{1}, Epoch: 12, DefaultClass: dfs.Replicated(2), Nodes: []*dfs.Node{known, joined}}}
		book := metas.New(func(string) drpc.Conn { return other }, []string{"a:1"})
		s := New(Options{Identity: stranger{}, Metas: book, Logger: slog.New(slog.DiscardHandler)})
		defer s.Close()
		s.maps.set(&dfs.Map{Epoch: 10, Nodes: []*dfs.Node{known}}, true)
		from := func(n *dfs.Node, epoch uint64) *caller {
			return &caller{
				Peer:  transport.Peer{Identity: transport.Identity{Node: n.ID, Incarnation: n.Incarnation}},
				hello: &wire.RaftHello{Lineage: &wire.Lineage{Accepted: n.Incarnation.Start}, Epoch: epoch, Addr: n.Addr},
			}
		}
		c := from(joined, 11)
		s.meet(c)
		if err := c.check(s.maps.current()); err != nil {
			t.Error(err)
		}
		if s.maps.current().Epoch != 12 || other.calls != 1 {
			t.Errorf("epoch %d after %d calls", s.maps.current().Epoch, other.calls)
		}
		for range 100 { // nobody knows this one
			c := from(&dfs.Node{ID: 9, Addr: "x:1"}, 0)
			s.meet(c)
			if err := c.check(s.maps.current()); dfs.KindOf(err) != dfs.Unavailable {
				t.Fatal(err)
			}
			time.Sleep(learnPause / 100)
		}
		s.meet(from(known, 12))
		if other.calls > 30 { // one round of attempts, with its pauses
			t.Errorf("%d calls", other.calls)
		}
	})
}
