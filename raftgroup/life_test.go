package raftgroup

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
)

var (
	lifeSeeds = flag.Int("life.seeds", affordable(20, 6), "how many seeds TestLives runs")
	lifeSeed  = flag.Uint64("life.seed", 1, "the first of them")
)

// affordable is how much a plain run does, and one under the race detector, where
// all takes so much longer.
func affordable(plain, race int) int {
	if bubble.Race {
		return race
	}
	return plain
}

// maxLate is how long a message may be on its way after others that were sent
// later: what the receiver of a stream that broke had not read yet.
const maxLate = 8 * time.Second

// office is a group's leadership in one term. It has one holder at most.
type office struct {
	g    dfs.GroupID
	term uint64
}

func (c *cluster) elected(g dfs.GroupID, leader dfs.NodeID, term uint64) {
	if leader == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	was, ok := c.offices[office{g, term}]
	if ok && was != leader {
		c.unexpected = errors.Join(c.unexpected, fmt.Errorf("%v has two leaders in term %d: nodes %v and %v", g, term, was, leader))
	}
	c.offices[office{g, term}] = leader
}

// pause stops a node until it is resumed: nothing leaves it and nothing comes
// in, so its workers and its log writer wait, and ticks are lost.
func (c *cluster) pause(id dfs.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.nodes[id]; n.paused == nil {
		n.paused = make(chan struct{})
	}
}

func (c *cluster) resumeLocked(n *node) {
	if n.paused != nil {
		close(n.paused)
		n.paused = nil
	}
}

// await waits while a node is paused.
func (c *cluster) await(n *node) {
	c.mu.Lock()
	ch := n.paused
	c.mu.Unlock()
	if ch != nil {
		<-ch
	}
}

// life is a cluster to which things happen.
type life struct {
	*cluster
	pick   *rand.Rand // what happens
	rng    *rand.Rand // to whom, and for how long
	counts map[string]int
}

// misfortunes are what can happen, with weights.
var misfortunes = []struct {
	name   string
	weight int
	do     func(l *life) error
}{
	{"crash", 6, (*life).crashOne},
	{"power loss", 2, (*life).powerLoss},
	{"restart", 2, (*life).restart},
	{"isolation", 2, func(l *life) error { l.isolate(l.any(), true); return nil }},
	{"half", 1, (*life).half},
	{"one-way cut", 3, func(l *life) error { l.cutLink(true); return nil }},
	{"cut link", 3, func(l *life) error { l.cutLink(false); return nil }},
	{"bad network", 4, (*life).badNetwork},
	{"pause", 4, (*life).pauseOne},
	{"transfer", 3, (*life).transfer},
	{"members", 8, (*life).members},
	{"heal", 12, func(l *life) error { l.heal(); return nil }},
}

func (l *life) any() dfs.NodeID { return dfs.NodeID(1 + l.rng.IntN(len(l.nodes))) }

func (l *life) other(id dfs.NodeID) dfs.NodeID {
	for {
		if o := l.any(); o != id {
			return o
		}
	}
}

// kept is how much of what was not synced a power loss leaves, in percent.
func (l *life) kept() int { return []int{0, 0, 50, 100}[l.rng.IntN(4)] }

func (l *life) rest(most time.Duration) { time.Sleep(time.Duration(l.rng.Int64N(int64(most)))) }

func (l *life) crashOne() error {
	n := l.kill(l.any(), l.kept())
	if l.rng.IntN(2) == 0 {
		l.rest(5 * time.Second)
	}
	return n.start()
}

func (l *life) powerLoss() error { return l.loseAll(l.kept()) }

// loseAll takes the power from all nodes.
func (c *cluster) loseAll(kept int) error {
	var down []*node
	for _, id := range c.all() {
		down = append(down, c.kill(id, kept))
	}
	for _, n := range down {
		if err := n.start(); err != nil {
			return err
		}
	}
	return nil
}

// restart ends a node as a signal does, and starts it anew.
func (l *life) restart() error {
	l.mu.Lock()
	old := l.nodes[l.any()]
	l.resumeLocked(old)
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	old.host.TransferAll(ctx)
	if err := old.host.Close(); err != nil {
		return err
	}
	old.dead.Store(true)
	next := &node{c: l.cluster, id: old.id, fs: old.fs}
	l.mu.Lock()
	l.nodes[old.id] = next
	l.mu.Unlock()
	return next.start()
}

// half cuts the nodes into two halves.
func (l *life) half() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for a := range l.nodes {
		for b := range l.nodes {
			if a%2 != b%2 {
				l.cut[[2]dfs.NodeID{a, b}] = true
			}
		}
	}
	return nil
}

func (l *life) cutLink(oneWay bool) {
	a := l.any()
	b := l.other(a)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut[[2]dfs.NodeID{a, b}] = true
	if !oneWay {
		l.cut[[2]dfs.NodeID{b, a}] = true
	}
}

func (l *life) badNetwork() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop, l.dup, l.late = l.rng.Float64()*0.2, l.rng.Float64()*0.2, l.rng.Float64()*0.1
	l.jitter = time.Duration(l.rng.IntN(200)) * time.Millisecond
	return nil
}

// pauseOne stops a node for longer, mostly, than an election takes.
func (l *life) pauseOne() error {
	id := l.any()
	l.pause(id)
	l.rest(6 * time.Second)
	if l.rng.IntN(4) > 0 {
		l.mu.Lock()
		l.resumeLocked(l.nodes[id])
		l.mu.Unlock()
	}
	return nil
}

func (l *life) transfer() error {
	g := l.groups[l.rng.IntN(len(l.groups))]
	lead, ok := l.leads(g)
	if ok {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if l.h(lead).TransferLeader(ctx, g, l.other(lead)) == nil {
			l.counts["transferred"]++
		}
	}
	return nil
}

// leads returns a node that believes to lead a group.
func (l *life) leads(g dfs.GroupID) (dfs.NodeID, bool) {
	for _, id := range l.all() {
		if st, ok := l.h(id).Status(g); ok && st.Role == RoleLeader {
			return id, true
		}
	}
	return 0, false
}

// members changes a group's: a learner comes, is promoted or leaves, a voter
// leaves, a learner takes a voter's place.
func (l *life) members() error {
	g := l.groups[l.rng.IntN(len(l.groups))]
	lead, ok := l.leads(g)
	if !ok {
		return nil
	}
	st, _ := l.h(lead).Status(g)
	id := l.any()
	if slices.Contains(st.Voters, id) { // there are more of them
		id = l.any()
	}
	changes := []Change{{id, None}}
	switch {
	case slices.Contains(st.Learners, id) && l.rng.IntN(3) > 0:
		changes = []Change{{id, Voter}, {st.Voters[l.rng.IntN(len(st.Voters))], None}}
	case slices.Contains(st.Learners, id) && l.rng.IntN(4) > 0:
		changes = []Change{{id, Voter}}
	case slices.Contains(st.Learners, id):
	case !slices.Contains(st.Voters, id):
		changes = []Change{{id, Learner}}
	case len(st.Voters) < 3:
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if l.h(lead).ChangeMembers(ctx, g, changes...) == nil {
		l.counts["changed"]++
		if len(changes) > 1 {
			l.counts["swapped"]++
		}
	}
	return nil
}

// happen does one of the misfortunes.
func (l *life) happen() error {
	total := 0
	for _, m := range misfortunes {
		total += m.weight
	}
	pick := l.pick.IntN(total)
	for _, m := range misfortunes {
		if pick -= m.weight; pick < 0 {
			l.counts[m.name]++
			if err := m.do(l); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			break
		}
	}
	return l.sound()
}

// sound checks that nothing was quarantined and that no term had two leaders.
func (l *life) sound() error {
	for _, id := range l.all() {
		for _, st := range l.h(id).Statuses() {
			if st.Fault != nil {
				return fmt.Errorf("%v of node %v is quarantined without damage: %w", st.Group, id, st.Fault)
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unexpected
}

// end brings everything back and checks that each group goes on, that its
// members agree, and that the history has an order.
func (l *life) end(h *history) error {
	l.heal()
	for _, g := range l.groups {
		if err := l.progress(g); err != nil {
			return err
		}
		members, err := l.membersOf(g)
		if err != nil {
			return err
		}
		if err := l.agreeOn(g, members...); err != nil {
			return err
		}
	}
	if err := l.sound(); err != nil {
		return err
	}
	return h.check(func(at place) (string, error) {
		members, err := l.membersOf(at.g)
		if err != nil {
			return "", err
		}
		return l.read(members[0], at.g, at.key)
	})
}

// progress commits a proposal to a group, which must be possible by now.
func (l *life) progress(g dfs.GroupID) error {
	var err error
	for range 600 {
		var lead dfs.NodeID
		if lead, err = l.findLeader(g); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		_, err = l.h(lead).Propose(ctx, g, []byte("put end x"))
		cancel()
		if err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("%v does not go on: %w\n%s", g, err, l.describe(g))
}

// membersOf waits until a group is in no joint configuration and returns its
// members, the leader first.
func (l *life) membersOf(g dfs.GroupID) ([]dfs.NodeID, error) {
	var st Status
	for range 600 {
		lead, err := l.findLeader(g)
		if err != nil {
			return nil, err
		}
		if st, _ = l.h(lead).Status(g); st.Role == RoleLeader && !st.Joint {
			rest := slices.DeleteFunc(slices.Concat(st.Voters, st.Learners), func(id dfs.NodeID) bool { return id == lead })
			return append([]dfs.NodeID{lead}, rest...), nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, fmt.Errorf("%v stays in a joint configuration: %+v", g, st)
}

// liveOnce lets clients loose on a cluster to which things happen.
func liveOnce(t *testing.T, seed uint64, tune func(*Options)) (counts map[string]int, err error) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, seed, 4, testGroups(3)...)
		c.tune = func(o *Options) {
			o.KeepEntries, o.LogBytes = 8, 2<<10 // so that sleepers need snapshots
			o.SnapshotFileBytes = 64             // of several tables
			if seed%2 == 0 {
				o.QuiesceTicks = 1 // so that groups sleep between two commands
			}
			if tune != nil {
				tune(o)
			}
		}
		l := &life{cluster: c, pick: rand.New(rand.NewPCG(seed, 2)), rng: rand.New(rand.NewPCG(seed, 3)), counts: map[string]int{}}
		defer func() {
			if err != nil {
				c.unexpected = nil // it has been reported, or follows from what was
			}
			c.stop()
		}()
		breaks := rand.New(rand.NewPCG(seed, 4))
		c.chunks = func(_, _ dfs.NodeID, _ int) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			if breaks.IntN(20) == 0 {
				return dfs.Errorf(dfs.Unavailable, "send chunk", "the connection broke")
			}
			return nil
		}
		c.bootFirst(3)
		h := newHistory()
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for i := range 4 {
			rng := rand.New(rand.NewPCG(seed, uint64(100+i)))
			wg.Go(func() { c.client(h, i, rng.IntN, 3, stop) })
		}
		for range 16 {
			l.rest(1500 * time.Millisecond)
			if err = l.happen(); err != nil {
				break
			}
		}
		close(stop)
		wg.Wait()
		if err == nil {
			err = l.end(h)
		}
		counts = l.counts
		counts["operations"], counts["acknowledged"], counts["snapshots"] = h.all, len(h.acked), c.snapshots
	})
	return counts, err
}

// bootFirst starts all nodes and makes every group with the first n as voters;
// the others wait to be called.
func (c *cluster) bootFirst(n int) {
	c.t.Helper()
	voters := c.all()[:n]
	for _, id := range c.all() {
		if err := c.nodes[id].start(); err != nil {
			c.t.Fatal(err)
		}
		for _, g := range c.groups {
			join := func() error { return c.h(id).JoinGroup(g) }
			if slices.Contains(voters, id) {
				join = func() error { return c.h(id).CreateGroup(g, voters) }
			}
			if err := join(); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

// TestLives checks over many seeds that acknowledged entries survive, that
// nothing is applied twice or invented, that reads on any replica are
// linearizable, that replicas agree, and that groups go on once all is well.
func TestLives(t *testing.T) {
	sum := map[string]int{}
	for i := range *lifeSeeds {
		seed := *lifeSeed + uint64(i)
		counts, err := liveOnce(t, seed, nil)
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		for k, n := range counts {
			sum[k] += n
		}
	}
	t.Logf("%d seeds: %v", *lifeSeeds, describeCounts(sum))
	for _, m := range misfortunes {
		if sum[m.name] == 0 && *lifeSeeds > 10 {
			t.Errorf("%s never happened", m.name)
		}
	}
	if sum["acknowledged"] == 0 || *lifeSeeds > 10 && (sum["changed"] == 0 || sum["snapshots"] == 0) {
		t.Errorf("too little happened: %v", describeCounts(sum))
	}
}

// TestSoakLives runs fresh seeds for as long as DFSD_TEST_SOAK says.
func TestSoakLives(t *testing.T) {
	limit, err := time.ParseDuration(os.Getenv("DFSD_TEST_SOAK"))
	if err != nil {
		t.Skip("DFSD_TEST_SOAK does not say how long: see make soak")
	}
	begun, n := time.Now(), 0
	for seed := uint64(begun.UnixNano()); time.Since(begun) < limit && !t.Failed(); seed++ {
		if _, err := liveOnce(t, seed, nil); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		n++
	}
	t.Logf("%d seeds", n)
}

func describeCounts(counts map[string]int) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, counts[k]))
	}
	return strings.Join(parts, ", ")
}

// describe lists what every node says of a group.
func (l *life) describe(g dfs.GroupID) string {
	var b strings.Builder
	for _, id := range l.all() {
		st, _ := l.h(id).Status(g)
		fmt.Fprintf(&b, "node %v: %+v\n", id, st)
	}
	return b.String()
}
