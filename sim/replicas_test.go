package sim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/node"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

func shortGrace(o *node.Options) { o.Meta.Grace = 10 * time.Second }

// spared starts a cluster of three listed meta nodes and adds others to it, which
// are returned with the listed ones.
func spared(t *testing.T, c *Cluster, p *Peer, spares int) []int {
	t.Helper()
	awaitReady(t, p)
	metas := []int{0, 1, 2}
	for range spares {
		i := c.AddMeta()
		start(t, c, i)
		metas = append(metas, i)
	}
	return metas
}

// replicasOf says which replicas the running nodes have, by the group's leader
// where there is one, and what is not as the map has it; "" for nothing.
func replicasOf(t *testing.T, c *Cluster, p *Peer, metas []int) (m *dfs.Map, why string) {
	t.Helper()
	m, err := p.Refresh(t.Context())
	if err != nil {
		return nil, err.Error()
	}
	led := map[dfs.GroupID]raftgroup.Status{}
	has := map[dfs.GroupID][]dfs.NodeID{}
	for _, i := range metas {
		sn := c.nodes[i]
		if sn.node == nil {
			continue
		}
		id := membershipOf(t, sn).Node
		for _, st := range sn.node.Meta().Groups() {
			if st.Fault != nil {
				t.Errorf("%s: %v: %v", sn.name, st.Group, st.Fault)
			}
			has[st.Group] = append(has[st.Group], id)
			if st.Role == raftgroup.RoleLeader && st.Term > led[st.Group].Term {
				led[st.Group] = st
			}
		}
	}
	for _, g := range m.Groups {
		st, ok := led[g.ID]
		slices.Sort(has[g.ID])
		switch {
		case !g.Ready():
			return m, fmt.Sprintf("%v is forming", g.ID)
		case !ok:
			return m, fmt.Sprintf("%v has no leader", g.ID)
		case !slices.Equal(st.Voters, g.Replicas) || st.Joint || g.ID != dfs.ControlGroup && len(st.Learners) > 0:
			return m, fmt.Sprintf("%v lists %v, its voters are %v and its learners %v", g.ID, g.Replicas, st.Voters, st.Learners)
		case g.ID != dfs.ControlGroup && !slices.Equal(has[g.ID], g.Replicas):
			return m, fmt.Sprintf("%v lists %v, and there are replicas on %v", g.ID, g.Replicas, has[g.ID])
		}
		delete(has, g.ID)
	}
	if len(has) > 0 {
		return m, fmt.Sprintf("replicas of groups that are no more: %v", has)
	}
	return m, ""
}

// awaitSpread waits until every group is as listed on the running nodes, and
// the replicas are spread evenly over them.
func awaitSpread(t *testing.T, c *Cluster, p *Peer, metas []int, limit time.Duration) *dfs.Map {
	t.Helper()
	var m *dfs.Map
	took := await(t, limit, func() string {
		var why string
		if m, why = replicasOf(t, c, p, metas); why != "" {
			return why
		}
		count := map[dfs.NodeID]int{}
		for _, i := range metas {
			if c.nodes[i].node != nil {
				count[membershipOf(t, c.nodes[i]).Node] = 0
			}
		}
		for _, g := range m.Groups {
			for _, n := range g.Replicas {
				if _, up := count[n]; !up {
					return fmt.Sprintf("%v lists %v, and %v is down", g.ID, g.Replicas, n)
				}
				count[n]++
			}
		}
		least, most := len(m.Groups), 0
		for _, k := range count {
			least, most = min(least, k), max(most, k)
		}
		if most-least > 1 {
			return fmt.Sprintf("replicas: %v", count)
		}
		return ""
	})
	t.Logf("replicas are spread after %v", took)
	return m
}

// awaitLed waits until no node leads more than its share, rounded up, and one.
func awaitLed(t *testing.T, c *Cluster, metas []int) {
	t.Helper()
	took := await(t, 3*time.Minute, func() string {
		led, groups := map[string]int{}, 0
		for _, i := range metas {
			for _, st := range c.nodes[i].node.Meta().Groups() {
				if st.Role == raftgroup.RoleLeader {
					led[c.nodes[i].name]++
					groups++
				}
			}
		}
		for _, n := range led {
			if n > (groups+len(metas)-1)/len(metas)+1 {
				return fmt.Sprintf("led: %v", led)
			}
		}
		return ""
	})
	t.Logf("leaders are spread after %v", took)
}

// TestMetaNodesAreReplaced: five meta nodes and three replicas of each group. One
// node after the other is lost for good, as long as others can take its place;
// writes go on, and in the end three hold everything.
func TestMetaNodesAreReplaced(t *testing.T) {
	inBubble(t, Config{Stores: 1, Class: dfs.Replicated(1), Tweak: shortGrace}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		metas := spared(t, c, p, 2)
		m := awaitSpread(t, c, p, metas, 5*time.Minute)
		for _, g := range m.Groups {
			if len(g.Replicas) != 3 {
				t.Errorf("%v has %v", g.ID, g.Replicas)
			}
		}
		writes := 0
		write := func() {
			put(t, p, fmt.Sprintf("/f%d", writes), "written")
			writes++
		}
		write()
		random := rand.New(rand.NewPCG(c.cfg.Seed, 5))
		var dead []int
		for range 2 {
			up := slices.DeleteFunc(slices.Clone(metas), func(i int) bool { return c.nodes[i].node == nil })
			victim := up[random.IntN(len(up))]
			id := membershipOf(t, c.nodes[victim]).Node
			before, why := replicasOf(t, c, p, metas)
			if why != "" {
				t.Fatal(why)
			}
			c.Crash(victim)
			dead = append(dead, victim)
			for range 4 { // nothing moves within the grace period
				time.Sleep(2 * time.Second)
				write()
			}
			m, err := p.Refresh(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i, g := range m.Groups {
				if !slices.Equal(g.Replicas, before.Groups[i].Replicas) {
					t.Errorf("%v went from %v to %v within the grace period of %v", g.ID, before.Groups[i].Replicas, g.Replicas, id)
				}
			}
			awaitSpread(t, c, p, metas, 5*time.Minute)
			write()
		}
		// Those that return are spares: they destroy what they have and get their share.
		start(t, c, dead...)
		awaitSpread(t, c, p, metas, 5*time.Minute)
		awaitReady(t, p)
		awaitLed(t, c, metas)
		for i := range writes {
			if got := string(content(t, p, fmt.Sprintf("/f%d", i))); got != "written" {
				t.Errorf("file %d holds %q", i, got)
			}
		}
		time.Sleep(3 * time.Second)
		sound(t, c)
	})
}

func TestGroupCreate(t *testing.T) { createGroups(t, 1) }

// TestSoakGroupCreate runs other seeds for as long as DFSD_TEST_SOAK says.
func TestSoakGroupCreate(t *testing.T) {
	limit, err := time.ParseDuration(os.Getenv("DFSD_TEST_SOAK"))
	if err != nil {
		t.Skip("DFSD_TEST_SOAK does not say how long: see make soak")
	}
	for begun, seed := time.Now(), uint64(2); time.Since(begun) < limit; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { createGroups(t, seed) })
	}
}

// createGroups makes groups while nodes crash at any moment, the founder above
// all: each is ready in the end, under its number or a later one, holds what was
// put there, and nothing is left of those that were abandoned. The last one surely
// is: its founder is away from the first moment on, for longer than the grace period.
func createGroups(t *testing.T, seed uint64) {
	inBubble(t, Config{Seed: seed, Stores: 1, Class: dfs.Replicated(1), Tweak: shortGrace}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		metas := spared(t, c, p, 2)
		awaitSpread(t, c, p, metas, 5*time.Minute)
		random := rand.New(rand.NewPCG(seed, 7))
		var made []dfs.GroupID
		for range 3 {
			var g dfs.GroupID
			await(t, time.Minute, func() string {
				var err error
				if g, err = p.CreateGroup(t.Context(), nil); err != nil {
					return err.Error()
				}
				return ""
			})
			made = append(made, g)
			for range 2 {
				time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
				victim := metas[random.IntN(len(metas))]
				if m := c.newestMap(); m.Group(g) != nil && random.IntN(2) == 0 {
					for _, i := range metas {
						if n := m.Group(g); c.nodes[i].node != nil && n.Founder == membershipOf(t, c.nodes[i]).Node {
							victim = i
						}
					}
				}
				c.Crash(victim)
				if random.IntN(4) == 0 { // for longer than the grace period
					time.Sleep(15 * time.Second)
				}
				time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
				start(t, c, victim)
			}
		}
		g, err := p.CreateGroup(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, g)
		var founder int
		await(t, time.Minute, func() string {
			m, err := p.Refresh(t.Context())
			if err != nil || m.Group(g) == nil {
				return fmt.Sprintf("%v is not in the map, %v", g, err)
			}
			for _, i := range metas {
				if m.Group(g).Founder == membershipOf(t, c.nodes[i]).Node {
					founder = i
				}
			}
			return ""
		})
		c.Crash(founder)
		await(t, 5*time.Minute, func() string {
			if m := c.newestMap(); m.Group(g) != nil {
				return fmt.Sprintf("%v is not abandoned", g)
			}
			return ""
		})
		start(t, c, founder)
		m := awaitSpread(t, c, p, metas, 5*time.Minute)
		if n := len(m.Namespace()); n < simGroups+len(made) {
			t.Errorf("%d groups, of %d and %d made", n, simGroups, len(made))
		}
		awaitReady(t, p)
		for i := range 40 {
			if _, err := p.Mkdir(t.Context(), fmt.Sprintf("/d%d", i), 0o755); err != nil {
				t.Fatal(err)
			}
			put(t, p, fmt.Sprintf("/d%d/f", i), "written")
		}
		used := map[dfs.GroupID]bool{}
		for i := range 40 {
			a, err := p.Stat(t.Context(), fmt.Sprintf("/d%d/f", i))
			if err != nil {
				t.Fatal(err)
			}
			used[a.Ino.Group()] = true
		}
		for _, g := range m.Namespace() {
			if g != 1 && !used[g] {
				t.Errorf("%v holds nothing: %v do", g, used)
			}
		}
		time.Sleep(3 * time.Second)
		sound(t, c)
	})
}

// TestReplicasChangeBetweenLeaders takes a replica away at every moment after the
// group's leader has moved, also while no leader of it has reported yet.
func TestReplicasChangeBetweenLeaders(t *testing.T) {
	inBubble(t, Config{Seed: 1, Stores: 1, Class: dfs.Replicated(1)}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		metas := spared(t, c, p, 1)
		m := awaitSpread(t, c, p, metas, 5*time.Minute)
		const g = 1
		var extra dfs.NodeID
		for _, n := range m.MetaNodes() {
			if !m.Group(g).Has(n.ID) {
				extra = n.ID
			}
		}
		votes := func() string {
			for _, i := range metas {
				if st := c.nodes[i].node.Meta().Groups(); len(st) > g && st[g].Role == raftgroup.RoleLeader && len(st[g].Voters) == 4 {
					return ""
				}
			}
			return "the fourth does not vote yet"
		}
		for k := range 12 {
			if err := p.ChangeReplicas(t.Context(), g, extra, 0); err != nil {
				t.Fatal(err)
			}
			await(t, time.Minute, votes)
			to := m.Group(g).Replicas[k%3]
			if err := p.MoveLeader(t.Context(), g, to); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(k) * 50 * time.Millisecond)
			if err := p.ChangeReplicas(t.Context(), g, 0, extra); err != nil {
				t.Fatalf("%d ms after the leader moved: %v", 50*k, err)
			}
			await(t, time.Minute, func() string { _, why := replicasOf(t, c, p, metas); return why })
		}
		sound(t, c)
	})
}

// TestLeaderIsNotMovedToTheDead: a group that is asked to be led by a voter that is down
// refuses at once, and takes changes all the while.
func TestLeaderIsNotMovedToTheDead(t *testing.T) {
	inBubble(t, Config{Seed: 1, Stores: 1, Class: dfs.Replicated(1)}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		st, err := p.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		victim := slices.IndexFunc(c.nodes[:c.cfg.Metas], func(n *simNode) bool { return uint32(idOf(t, p, n.name)) != st.Groups[1].Leader })
		dead := idOf(t, p, c.nodes[victim].name)
		c.Crash(victim)
		time.Sleep(5 * time.Second)
		begun := time.Now()
		err = p.MoveLeader(t.Context(), 1, dead)
		if took := time.Since(begun); dfs.KindOf(err) != dfs.Invalid || took > time.Second {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

// TestNodeBehindDeniesNoGroup: a meta node that does not know of a new group yet does
// not say that there is none. Who leads the control group knows.
func TestNodeBehindDeniesNoGroup(t *testing.T) {
	inBubble(t, Config{Seed: 1, Stores: 1, Class: dfs.Replicated(1)}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		metas := spared(t, c, p, 1)
		m := awaitSpread(t, c, p, metas, 5*time.Minute)
		var behind *simNode
		for _, i := range metas {
			if !m.Group(0).Has(idOf(t, p, c.nodes[i].name)) {
				behind = c.nodes[i]
			}
		}
		c.net.Isolate(behind.name)
		g, err := p.CreateGroup(t.Context(), m.Group(0).Replicas)
		if err != nil {
			t.Fatal(err)
		}
		to := m.Group(0).Replicas[0]
		_, err = behind.node.Meta().MoveLeader(t.Context(), &wire.MoveLeaderRequest{Group: uint32(g), Node: uint32(to)})
		if dfs.KindOf(err) != dfs.NotLeader && dfs.KindOf(err) != dfs.Unavailable {
			t.Errorf("a node that is behind: %v", err)
		}
		c.net.Heal()
		if err := p.MoveLeader(t.Context(), g+1, to); dfs.KindOf(err) != dfs.NotExist {
			t.Errorf("a group that there is not: %v", err)
		}
	})
}

// TestOnlyLeadersSpeakForGroups: what is asked of a group's leader alone is never
// answered with nothing. Who is not among the members then destroys what it has.
func TestOnlyLeadersSpeakForGroups(t *testing.T) {
	inBubble(t, Config{Seed: 1, Stores: 1, Class: dfs.Replicated(1)}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		answers := 0
		for _, g := range []uint32{0, 1, simGroups + 1, 1<<16 - 1, 1 << 16, 1<<16 + 1} {
			for i := range c.cfg.Metas {
				reply, err := c.nodes[i].node.Meta().Replica(t.Context(), &wire.ReplicaRequest{Group: g, Leader: true})
				switch {
				case err == nil && (g > simGroups || len(reply.Voters) != c.cfg.Metas || reply.Role != uint32(raftgroup.RoleLeader)+1):
					t.Errorf("%s says of group %d: %v", c.nodes[i].name, g, reply)
				case err == nil:
					answers++
				}
			}
		}
		if answers != 2 {
			t.Errorf("%d answers of two leaders", answers)
		}
	})
}

// TestWipedMetaWhileAnotherIsDown empties the disk of one of three meta nodes while
// another is down: the third alone commits nothing, and the wiped one, which has
// promised things that it no longer knows, lends it no vote. When the other is
// back everything is there, and the wiped one is filled and votes under a new number.
func TestWipedMetaWhileAnotherIsDown(t *testing.T) {
	inBubble(t, Config{Stores: 1, Class: dfs.Replicated(1)}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		for wiped := range 2 {
			down := (wiped + 1) % 3
			third := (wiped + 2) % 3
			old := membershipOf(t, c.nodes[wiped]).Node
			path := fmt.Sprintf("/f%d", wiped)
			put(t, p, path, "committed")
			// The last entries are on the wiped and the third node only: without the
			// vote of the wiped one nobody may take what the third has for all.
			c.Crash(down)
			put(t, p, path+"b", "committed by two")
			c.Crash(wiped)
			c.Wipe(wiped)
			start(t, c, wiped)
			for range 20 {
				time.Sleep(time.Second)
				for _, st := range c.nodes[third].node.Meta().Groups() {
					for _, x := range st.Peers {
						if x.Node == old && x.Active {
							t.Fatalf("%s hears the wiped node as %v in %v", c.nodes[third].name, old, st.Group)
						}
					}
				}
				if id := membershipOf(t, c.nodes[wiped]).Node; id != 0 {
					t.Fatalf("the wiped node is %v although no majority could say so", id)
				}
			}
			start(t, c, down)
			awaitReady(t, p)
			var m *dfs.Map
			took := await(t, 4*time.Minute, func() string {
				id := membershipOf(t, c.nodes[wiped]).Node
				if id == 0 {
					return "the wiped node has not joined"
				}
				var why string
				if m, why = replicasOf(t, c, p, []int{0, 1, 2}); why != "" {
					return why
				}
				for _, g := range m.Groups {
					if !g.Has(id) || g.Has(old) || len(g.Replicas) != 3 {
						return fmt.Sprintf("%v lists %v; the node was %v and is %v", g.ID, g.Replicas, old, id)
					}
				}
				return ""
			})
			t.Logf("%s was %v, and votes as another after %v", c.nodes[wiped].name, old, took)
			for name, want := range map[string]string{path: "committed", path + "b": "committed by two"} {
				if got := string(content(t, p, name)); got != want {
					t.Errorf("%s holds %q", name, got)
				}
			}
		}
		time.Sleep(3 * time.Second)
		sound(t, c)
	})
}
