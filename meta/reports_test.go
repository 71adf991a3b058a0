package meta

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/sim/bubble"
	"dfsd/transport/wire"
)

func newTestRegistry() *registry {
	return newRegistry(&Service{opts: Options{Identity: stranger{}}, place: newPlacer()})
}

// reportWorld is three meta nodes that report to each other, without Raft: a script
// of chance says who leads what.
type reportWorld struct {
	t     *testing.T
	rng   *rand.Rand
	term  uint64 // of the control group
	lead  int    // of the control group
	nodes [3]*reportingNode
	owner map[uint32]int // of each group; 3: none
	terms map[uint32]uint64
	count map[uint32]uint64 // inodes
	rate  map[uint32]uint32
}

type reportingNode struct {
	r    *registry
	inc  dfs.Incarnation
	p    reporter
	mute bool // its reports get lost
}

func (w *reportWorld) start(i int) {
	w.nodes[i] = &reportingNode{r: newTestRegistry(), inc: dfs.Incarnation{Mark: uint64(i + 1), Start: w.rng.Uint64()}}
}

// beats are those of a node, made anew as the report loop does.
func (w *reportWorld) beats(i int) (out []*wire.GroupBeat) {
	for _, g := range slices.Sorted(maps.Keys(w.owner)) {
		if w.owner[g] == i {
			out = append(out, &wire.GroupBeat{Group: g, Term: w.terms[g], Inodes: w.count[g], Rate: w.rate[g], Voters: []uint32{1, 2, 3}, Heard: []uint32{1, 2, 3}[:1+w.terms[g]%3]})
		}
	}
	return out
}

// change does something that reports tell of.
func (w *reportWorld) change() {
	g := 1 + w.rng.Uint32N(12)
	switch w.rng.IntN(14) {
	case 0, 1, 2:
		w.owner[g] = w.rng.IntN(4)
		w.terms[g]++
	case 3, 4, 5:
		w.count[g] += w.rng.Uint64N(2)
		w.rate[g] = w.rng.Uint32N(3)
	case 6:
		delete(w.owner, g)
	case 7: // the control group has another leader
		w.lead, w.term = w.rng.IntN(3), w.term+1
	case 8: // a node starts anew; a leader that does leads no more
		i := w.rng.IntN(3)
		w.start(i)
		if i == w.lead {
			w.lead, w.term = (i+1)%3, w.term+1
		}
	case 9:
		i := w.rng.IntN(3)
		w.nodes[i].mute = !w.nodes[i].mute
	}
}

// report lets a node report; whether that succeeded is returned.
func (w *reportWorld) report(i int) bool {
	n, to := w.nodes[i], w.nodes[w.lead]
	beats := w.beats(i)
	reply, err := n.p.exchange(&wire.MetaReport{Node: uint32(i + 1)}, beats, func(rep *wire.MetaReport) (*wire.MetaReportReply, error) {
		lost := dfs.Errorf(dfs.Unavailable, "report", "lost")
		if n.mute || w.rng.IntN(8) == 0 {
			return nil, lost
		}
		rep = proto.Clone(rep).(*wire.MetaReport)
		if !to.r.take(rep, n.inc) {
			return &wire.MetaReportReply{Again: true}, nil
		}
		reply := &wire.MetaReportReply{}
		to.r.answer(reply, w.term, rep)
		if w.rng.IntN(8) == 0 {
			return nil, lost
		}
		return proto.Clone(reply).(*wire.MetaReportReply), nil
	})
	if err != nil {
		return false
	}
	n.r.learn(reply)
	return true
}

// TestReportsAddUp: whatever gets lost, and whoever starts anew or leads, what a
// leader has of a node after a report is what the node said, and what the node has
// of the leader is what all said lately.
func TestReportsAddUp(t *testing.T) {
	for seed := range uint64(20) {
		bubble.Test(t, func(t *testing.T) {
			w := &reportWorld{t: t, rng: rand.New(rand.NewPCG(seed, 1)), term: 1, owner: map[uint32]int{}, terms: map[uint32]uint64{}, count: map[uint32]uint64{}, rate: map[uint32]uint32{}}
			for i := range w.nodes {
				w.start(i)
			}
			partial := 0
			for range 1000 {
				w.change()
				time.Sleep(200 * time.Millisecond)
				i := w.rng.IntN(3)
				before := w.nodes[i].p.base
				if !w.report(i) {
					continue
				}
				if before != 0 {
					partial++
				}
				leader := w.nodes[w.lead].r
				got, want := leader.votes[dfs.NodeID(i+1)].groups, w.beats(i)
				if !slices.EqualFunc(got, want, func(a, b *wire.GroupBeat) bool { return proto.Equal(a, b) }) {
					t.Fatalf("seed %d: node %d said %v, the leader has %v", seed, i+1, want, got)
				}
				heard := map[uint32]bool{}
				for _, g := range want {
					for _, n := range g.Heard {
						heard[n] = true
					}
				}
				if got := slices.Sorted(slices.Values(leader.votes[dfs.NodeID(i+1)].heard)); !slices.Equal(got, slices.Sorted(maps.Keys(heard))) {
					t.Fatalf("seed %d: node %d hears %v, the leader has %v", seed, i+1, heard, got)
				}
				leads := map[dfs.GroupID]dfs.NodeID{}
				for g, n := range leader.leadersNow() {
					leads[dfs.GroupID(g)] = n
				}
				if !maps.Equal(w.nodes[i].r.lead, leads) {
					t.Fatalf("seed %d: the leaders are %v, node %d has learned %v", seed, leads, i+1, w.nodes[i].r.lead)
				}
				for _, g := range leader.groupBeats() {
					if n := w.nodes[i].r.loads[dfs.GroupID(g.Group)]; n != (groupLoad{g.Inodes, g.Rate}) {
						t.Fatalf("seed %d: group %d has %d inodes and does %d a second, node %d has learned %v", seed, g.Group, g.Inodes, g.Rate, i+1, n)
					}
				}
			}
			if partial < 100 {
				t.Errorf("seed %d: %d reports built upon others", seed, partial)
			}
		})
	}
}

// TestIdleReportsAreSmall: where nothing happens in many groups, a report and its
// answer say so in a few bytes.
func TestIdleReportsAreSmall(t *testing.T) {
	const groups = 1000
	leader, node := newTestRegistry(), newTestRegistry()
	beats := func() (out []*wire.GroupBeat) {
		for g := range uint32(groups) {
			out = append(out, &wire.GroupBeat{Group: g + 1, Term: 2, Applied: 1e6, Inodes: 1e5, Voters: []uint32{1, 2, 3}, Heard: []uint32{1, 2, 3}, LogBytes: 1e6})
		}
		return out
	}
	var p reporter
	var sizes []int
	for range 3 {
		size := 0
		reply, err := p.exchange(&wire.MetaReport{Node: 2}, beats(), func(rep *wire.MetaReport) (*wire.MetaReportReply, error) {
			reply := &wire.MetaReportReply{}
			if !leader.take(rep, dfs.Incarnation{Mark: 2}) {
				reply.Again = true
			} else {
				leader.answer(reply, 7, rep)
			}
			size += proto.Size(rep) + proto.Size(reply)
			return reply, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		node.learn(reply)
		sizes = append(sizes, size)
	}
	if sizes[0] < 10*groups || sizes[1] > 50 || sizes[2] > 50 {
		t.Errorf("reports and answers of %v bytes", sizes)
	}
	if len(node.lead) != groups || len(node.loads) != groups {
		t.Errorf("the node knows %d leaders and %d loads", len(node.lead), len(node.loads))
	}
}
