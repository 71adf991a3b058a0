package meta

import (
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// TestRaftCallers: whose Raft messages a node takes whose map has epoch 10 and,
// for node 3, start 5 at m3:1.
func TestRaftCallers(t *testing.T) {
	m := &dfs.Map{Epoch: 10, Nodes: []*dfs.Node{
		{ID: 2, Addr: "m2:1", Incarnation: dfs.Incarnation{Mark: 22, Start: 2}, Replaced: true},
		{ID: 3, Addr: "m3:1", Incarnation: dfs.Incarnation{Mark: 33, Start: 5}},
	}}
	for _, c := range []struct {
		name    string
		node    dfs.NodeID
		mark    uint64
		lineage dfs.Lineage
		since   uint64
		addr    string
		want    dfs.Kind // 0: taken
	}{
		{"the start on record", 3, 33, dfs.Lineage{Accepted: 5}, 10, "m3:1", 0},
		{"a start that has not registered yet", 3, 33, dfs.Lineage{Accepted: 5, Offered: []uint64{6, 7}}, 9, "m3:1", 0},
		{"an answer was lost", 3, 33, dfs.Lineage{Accepted: 4, Offered: []uint64{5}}, 7, "m3:1", 0},
		{"it knows more than this node", 3, 33, dfs.Lineage{Accepted: 8}, 11, "m3:2", 0},
		{"a copy from before", 3, 33, dfs.Lineage{Accepted: 4}, 7, "m3:1", dfs.Stale},
		{"a copy from before, started often", 3, 33, dfs.Lineage{Accepted: 4, Offered: []uint64{91, 92, 93}}, 7, "m3:1", dfs.Stale},
		{"from before any registration", 3, 33, dfs.Lineage{Offered: []uint64{91}}, 0, "m3:1", dfs.Stale},
		{"a copy elsewhere", 3, 33, dfs.Lineage{Accepted: 5, Offered: []uint64{91}}, 9, "copy:1", dfs.Unavailable},
		{"another directory", 3, 34, dfs.Lineage{Accepted: 5}, 11, "m3:1", dfs.Stale},
		{"replaced", 2, 22, dfs.Lineage{Accepted: 2}, 11, "m2:1", dfs.Stale},
		{"not known yet", 4, 44, dfs.Lineage{Offered: []uint64{1}}, 0, "m4:1", dfs.Unavailable},
	} {
		p := transport.Peer{Identity: transport.Identity{Node: c.node, Incarnation: dfs.Incarnation{Mark: c.mark, Start: 99}}}
		from := &caller{Peer: p, hello: &wire.RaftHello{Lineage: wire.FromLineage(c.lineage), Epoch: c.since, Addr: c.addr}}
		if err := from.check(m); dfs.KindOf(err) != c.want || err == nil != (c.want == 0) {
			t.Errorf("%s: %v", c.name, err)
		}
	}

	// A stream goes on until the map has another start.
	from := &caller{
		Peer:  transport.Peer{Identity: transport.Identity{Node: 3, Incarnation: dfs.Incarnation{Mark: 33, Start: 5}}},
		hello: &wire.RaftHello{Lineage: &wire.Lineage{Accepted: 5}, Epoch: 10, Addr: "m3:1"},
	}
	later := &dfs.Map{Epoch: 11, Nodes: []*dfs.Node{{ID: 3, Addr: "m3:1", Incarnation: dfs.Incarnation{Mark: 33, Start: 6}}}}
	for i, m := range []*dfs.Map{nil, m, m} {
		if err := from.check(m); err != nil {
			t.Errorf("map %d: %v", i, err)
		}
	}
	if err := from.check(later); dfs.KindOf(err) != dfs.Stale {
		t.Errorf("a stream of an earlier start: %v", err)
	}
}

// TestClaims: when a start at another address is let in, and when it is proven to
// be a copy.
func TestClaims(t *testing.T) { bubble.Test(t, testClaims) }

func testClaims(t *testing.T) {
	holder := &dfs.Node{ID: 7, Incarnation: dfs.Incarnation{Mark: 70, Start: 1}}
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		name         string
		claimed      time.Duration // ago
		heard        time.Duration // ago
		start        uint64        // that was heard
		free, proven bool
	}{
		{"just claimed, not heard", 0, time.Hour, 1, false, false},
		{"just claimed, heard", 0, time.Second, 1, false, false},
		{"not heard since", time.Minute, time.Hour, 1, true, false},
		{"heard a last time", 3 * voteFresh, 3*voteFresh - time.Second, 1, true, false},
		{"heard a last time, just now", voteFresh, voteFresh - time.Second, 1, false, false},
		{"heard on and on", time.Minute, 0, 1, false, true},
		{"another start was heard", time.Minute, 0, 9, true, false},
	} {
		s := &Service{opts: Options{Identity: stranger{}}}
		r := &registry{s: s, words: map[dfs.NodeID]word{7: {dfs.Incarnation{Mark: 70, Start: c.start}, ago(c.heard)}}, claims: map[claim]time.Time{}}
		if c.claimed > 0 {
			r.claims[claim{5, 1}] = ago(c.claimed)
		}
		if free, proven := r.judge(claim{5, 1}, holder); free != c.free || proven != c.proven {
			t.Errorf("%s: free %v, proven %v", c.name, free, proven)
		}
		if free, proven := r.judge(claim{5, 2}, holder); free || proven {
			t.Errorf("%s: another leader has listened for it", c.name)
		}
		for n := range uint64(3 * maxClaims) {
			r.judge(claim{100 + n, 2}, holder)
		}
		if len(r.claims) > maxClaims {
			t.Errorf("%d claims are remembered", len(r.claims))
		}
	}
}

// stranger is the identity of a node that is not the holder.
type stranger struct{ Identity }

func (stranger) Membership() Membership { return Membership{Node: 1} }

// TestLinkQueue: batches wait as far as their number and their bytes allow.
func TestLinkQueue(t *testing.T) {
	for _, size := range []int{1, 1 << 20} {
		q := &linkQueue{batches: make(chan []byte, maxLinkQueue)}
		n := 0
		for q.add(make([]byte, size)) {
			n++
		}
		if want := min(maxLinkQueue, maxLinkBytes/size); n != want {
			t.Errorf("%d batches of %d bytes wait, want %d", n, size, want)
		}
	}
}
