package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/node"
	"dfsd/sim/bubble"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// unstarted makes the nodes of a cluster and starts none, on a network with
// latency, so that starts at the same moment still interleave.
func unstarted(cfg Config) *Cluster {
	cfg.Metas, cfg.Class, cfg.Logger, cfg.Tweak = 3, dfs.Replicated(3), testLogger(), quietly(cfg.Tweak)
	c := &Cluster{
		cfg: cfg, rand: rand.New(rand.NewPCG(cfg.Seed, 1)),
		net: transport.NewMemory(transport.MemoryOptions{Seed: cfg.Seed, MinLatency: time.Millisecond, MaxLatency: 30 * time.Millisecond}),
	}
	for i := range cfg.Metas {
		c.nodes = append(c.nodes, &simNode{name: fmt.Sprintf("meta%d", i+1), roles: dfs.RoleMeta, fs: vfs.NewCrashableMem()})
	}
	for range cfg.Stores {
		c.AddStorage()
	}
	return c
}

func start(t *testing.T, c *Cluster, nodes ...int) {
	t.Helper()
	for _, i := range nodes {
		if err := c.Start(i); err != nil {
			t.Fatal(err)
		}
	}
}

// waiting is why a meta node is not part of a cluster.
func waiting(t *testing.T, c *Cluster, i int) string {
	t.Helper()
	m := c.nodes[i].node.Meta()
	if m.Map() != nil {
		t.Fatalf("%s has a map of cluster %v", c.nodes[i].name, m.Map().Cluster)
	}
	_, err := m.Status(t.Context(), &wire.StatusRequest{})
	if err == nil {
		t.Fatalf("%s answers", c.nodes[i].name)
	}
	return err.Error()
}

func TestFormationWaitsForAllListed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := unstarted(Config{Seed: 1, Stores: 3})
		defer c.Close()
		start(t, c, 0, 1, 3, 4, 5)
		time.Sleep(time.Minute)
		for i := range 2 {
			if why := waiting(t, c, i); !strings.Contains(why, "meta3 at meta3:7400") {
				t.Errorf("%s waits, and says: %s", c.nodes[i].name, why)
			}
		}
		start(t, c, 2)
		p := open(t, c, "client")
		defer p.Close()
		t.Logf("ready after %v", awaitReady(t, p))
	})
}

func TestDifferingListsFormNothing(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		wrong := true
		c := unstarted(Config{Seed: 1, Stores: 2, Tweak: func(o *node.Options) {
			if o.Name == "meta2" && wrong {
				o.Peers[2].Addr = "meta9:7400"
			}
		}})
		defer c.Close()
		start(t, c, 0, 1, 2, 3, 4)
		time.Sleep(time.Minute)
		for i := range 3 {
			if why := waiting(t, c, i); !strings.Contains(why, "configurations differ") || !strings.Contains(why, "meta9:7400") {
				t.Errorf("%s waits, and says: %s", c.nodes[i].name, why)
			}
		}
		wrong = false
		c.Crash(1)
		start(t, c, 1)
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
	})
}

// TestPinnedCluster: a meta node with an empty directory and a cluster in its
// configuration neither makes another one nor joins it.
func TestPinnedCluster(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		pinned := dfs.ClusterID{1}
		pins := map[string]bool{"meta1": true, "meta2": true, "meta3": true, "meta4": true}
		c := unstarted(Config{Seed: 1, Stores: 2, Tweak: func(o *node.Options) {
			if pins[o.Name] {
				o.Cluster = pinned
			}
		}})
		defer c.Close()
		start(t, c, 0, 1, 2, 3, 4)
		time.Sleep(time.Minute)
		if why := waiting(t, c, 0); !strings.Contains(why, pinned.String()) {
			t.Errorf("%s waits, and says: %s", c.nodes[0].name, why)
		}
		for i := range 3 {
			c.Crash(i)
			pins[c.nodes[i].name] = false
		}
		start(t, c, 0, 1, 2)
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		i := c.AddMeta()
		start(t, c, i)
		time.Sleep(10 * time.Second)
		if err := c.nodes[i].node.Meta().Err(); dfs.KindOf(err) != dfs.WrongCluster {
			t.Errorf("%s among nodes of another cluster: %v", c.nodes[i].name, err)
		}
		if m, err := p.Refresh(t.Context()); err != nil || len(m.MetaNodes()) != 3 {
			t.Errorf("%v, %v", m, err)
		}
	})
}

// TestCrashesWhileForming crashes meta nodes, mostly the founder, at random
// moments of the formation: in the end there is one cluster of all.
func TestCrashesWhileForming(t *testing.T) {
	for seed := uint64(1); seed <= 8; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := unstarted(Config{Seed: seed, Stores: 3})
				defer c.Close()
				start(t, c, 0, 1, 2, 3, 4, 5)
				random := rand.New(rand.NewPCG(seed, 3))
				for range 6 {
					time.Sleep(time.Duration(random.IntN(1200)) * time.Millisecond)
					victims := []int{0}
					if random.IntN(3) == 0 {
						victims = []int{random.IntN(6)}
					}
					if random.IntN(5) == 0 {
						victims = []int{0, 1, 2}
					}
					for _, v := range victims {
						c.Crash(v)
					}
					time.Sleep(time.Duration(random.IntN(700)) * time.Millisecond)
					start(t, c, victims...)
				}
				p := open(t, c, "client")
				defer p.Close()
				awaitReady(t, p)
				oneCluster(t, c, p)
			})
		})
	}
}

// oneCluster checks that all nodes are different members of the same cluster,
// and that all listed meta nodes vote in every group.
func oneCluster(t *testing.T, c *Cluster, p *Peer) {
	t.Helper()
	seen := map[dfs.NodeID]string{}
	var cluster dfs.ClusterID
	for _, sn := range c.nodes {
		if sn.node == nil {
			continue
		}
		await(t, 10*time.Minute, func() string {
			if !sn.node.Ready() || sn.node.Err() != nil {
				why := fmt.Sprintf("%s is not ready: %v", sn.name, sn.node.Err())
				if st := sn.node.Storage(); st != nil { // what it knows, and what is known of it
					m, err := p.Refresh(t.Context())
					why += fmt.Sprintf("\n%+v; %+v\n%+v, %v", st.Stats(), membershipOf(t, sn), wire.FromMap(m), err)
				}
				return why
			}
			return ""
		})
		id := membershipOf(t, sn)
		if other := seen[id.Node]; other != "" || id.Node == 0 {
			t.Errorf("%s and %s are both node %v", sn.name, other, id.Node)
		}
		seen[id.Node] = sn.name
		if !cluster.IsZero() && id.Cluster != cluster {
			t.Errorf("%s is of cluster %v, others of %v", sn.name, id.Cluster, cluster)
		}
		cluster = id.Cluster
	}
	m, err := p.Refresh(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id, name := range seen {
		if n := m.Node(id); n == nil || n.Name != name || n.Replaced {
			t.Errorf("%s is node %v, the map says %+v", name, id, n)
		}
	}
	if voters := votersOf(t, c); len(voters) != 3 || slices.ContainsFunc(voters, func(v dfs.NodeID) bool { return !strings.HasPrefix(seen[v], "meta") }) {
		t.Errorf("voters %v, nodes %v", voters, seen)
	}
}

// membershipOf reads what a running node's directory says of its cluster.
func membershipOf(t *testing.T, sn *simNode) (out transport.Identity) {
	t.Helper()
	copied := sn.fs.CrashClone(vfs.CrashCloneCfg{})
	id, err := node.OpenIdentity(copied, "data", sn.name, 1, func() uint64 { return 1 })
	if err != nil {
		t.Fatal(err)
	}
	defer id.Close()
	m := id.Membership()
	return transport.Identity{Cluster: m.Cluster, Node: m.Node}
}

// votersOf waits until every group has the same voters and no learners, and
// returns them.
func votersOf(t *testing.T, c *Cluster) (voters []dfs.NodeID) {
	t.Helper()
	await(t, time.Minute, func() string {
		voters = nil
		groups := 0
		for _, i := range c.Up() {
			m := c.nodes[i].node.Meta()
			if m == nil {
				continue
			}
			for _, st := range m.Groups() {
				if len(st.Peers) == 0 {
					continue // not the leader
				}
				groups++
				if voters == nil {
					voters = st.Voters
				}
				if !slices.Equal(voters, st.Voters) || len(st.Learners) > 0 || st.Joint {
					return fmt.Sprintf("%v has the voters %v and learners %v, another group the voters %v", st.Group, st.Voters, st.Learners, voters)
				}
			}
		}
		if groups < simGroups+1 {
			return fmt.Sprintf("%d groups have a leader", groups)
		}
		return ""
	})
	return voters
}

func put(t *testing.T, p *Peer, path, data string) {
	t.Helper()
	if _, err := p.PutFile(t.Context(), path, client.PutOptions{Mode: 0o644, Replace: true}, strings.NewReader(data)); err != nil {
		t.Fatalf("put %s: %v", path, err)
	}
}

// idOf is the number that the newest map has for a name.
func idOf(t *testing.T, p *Peer, name string) dfs.NodeID {
	t.Helper()
	m, err := p.Refresh(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range m.Nodes {
		if n.Name == name && !n.Replaced {
			return n.ID
		}
	}
	return 0
}

// TestRolledBackMetaHasNoVote puts an old copy of a meta node's disk back: it does
// not know the start on record, so it is refused, and its peers take no word of it.
func TestRolledBackMetaHasNoVote(t *testing.T) {
	inBubble(t, Config{Stores: 3}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		votersOf(t, c)
		old := c.nodes[2].fs.CrashClone(vfs.CrashCloneCfg{})
		for range 2 {
			put(t, p, "/f", "newer")
			restart(t, c, p, 2)
		}
		c.Crash(2)
		current := c.nodes[2].fs
		c.nodes[2].fs = old
		start(t, c, 2)
		await(t, time.Minute, func() string {
			if err := c.nodes[2].node.Err(); !errors.Is(err, dfs.Stale) {
				return fmt.Sprintf("the old disk: %v", err)
			}
			return ""
		})
		time.Sleep(5 * time.Second)
		id := idOf(t, p, "meta3")
		for _, i := range []int{0, 1} {
			for _, st := range c.nodes[i].node.Meta().Groups() {
				for _, peer := range st.Peers {
					if peer.Node == id && peer.Active {
						t.Errorf("%s hears the old disk in %v", c.nodes[i].name, st.Group)
					}
				}
			}
		}
		c.Crash(2)
		c.nodes[2].fs = current
		start(t, c, 2)
		c.Crash(0)
		put(t, p, "/f", "newest")
		start(t, c, 0)
		awaitReady(t, p)
		time.Sleep(5 * time.Second)
		sound(t, c)
	})
}

// complete checks that every block of every file below / is on every complete
// member of its placement group.
func complete(t *testing.T, c *Cluster, p *Peer) {
	t.Helper()
	m, err := p.Refresh(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stores := c.engines()
	blocks := 0
	for d, err := range p.ReadDir(t.Context(), "/", false) {
		if err != nil {
			t.Fatal(err)
		}
		if d.Type != client.TypeFile {
			continue
		}
		for e, err := range p.Inode(d.Ino).Extents(t.Context()) {
			if err == nil {
				blocks++
				err = checkCopies(m, stores, d.Name, e.Block)
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
	if blocks == 0 {
		t.Error("there is no block to check")
	}
}

// TestForeignDisksAreRefused starts nodes on disks that are not theirs: of
// another cluster, of another name, in use, and of something else.
func TestForeignDisksAreRefused(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a, b := unstarted(Config{Seed: 1, Stores: 3}), unstarted(Config{Seed: 2, Stores: 3})
		defer a.Close()
		defer b.Close()
		for _, c := range []*Cluster{a, b} {
			start(t, c, 0, 1, 2, 3, 4, 5)
			p := open(t, c, "client")
			defer p.Close()
			awaitReady(t, p)
		}
		p := open(t, a, "other")
		defer p.Close()
		before, err := p.Refresh(t.Context())
		if err != nil {
			t.Fatal(err)
		}

		// A store of cluster b among a's: its own disk is in a safe place.
		a.Crash(5)
		b.Crash(5)
		own := a.nodes[5].fs
		a.nodes[5].fs = b.nodes[5].fs
		start(t, a, 5)
		await(t, time.Minute, func() string {
			if err := a.nodes[5].node.Err(); !errors.Is(err, dfs.WrongCluster) {
				return fmt.Sprintf("a disk of another cluster: %v", err)
			}
			return ""
		})
		t.Log(a.nodes[5].node.Err())
		m, err := p.Refresh(t.Context())
		if err != nil || len(m.Stores) != len(before.Stores) || len(m.Nodes) != len(before.Nodes) || m.Cluster != before.Cluster {
			t.Errorf("%d nodes, %d stores of %v, %v", len(m.Nodes), len(m.Stores), m.Cluster, err)
		}
		a.Crash(5)
		b.nodes[5].fs = a.nodes[5].fs // back where it belongs, unharmed
		a.nodes[5].fs = own
		start(t, a, 5)
		start(t, b, 5)
		for _, c := range []*Cluster{a, b} {
			await(t, time.Minute, func() string {
				if n := c.nodes[5].node; !n.Ready() {
					return fmt.Sprintf("not ready: %v", n.Err())
				}
				return ""
			})
		}

		refused := func(what string, kind dfs.Kind, text string, o node.Options) {
			t.Helper()
			n, err := node.Start(o)
			if err == nil {
				_ = n.Close()
			}
			if dfs.KindOf(err) != kind || !strings.Contains(fmt.Sprint(err), text) {
				t.Errorf("%s: %v", what, err)
			}
		}
		o := a.options(a.nodes[5])
		o.PID = 2
		refused("a second process", dfs.Busy, "(PID 1)", o)
		a.Crash(5)
		o = a.options(a.nodes[5])
		o.Name = "store9"
		o.Listen = "store3:7400"
		refused("another name", dfs.Invalid, `it belongs to node "store3", the configuration says "store9"`, o)
		o = a.options(a.nodes[5])
		o.Cluster = b.clusterID()
		refused("a pinned cluster", dfs.WrongCluster, "the configuration says", o)

		o = a.options(a.nodes[5])
		o.FS = vfs.NewCrashableMem()
		if err := o.FS.MkdirAll("data/photos", 0o755); err != nil {
			t.Fatal(err)
		}
		refused("a directory of something else", dfs.Invalid, "not a data directory", o)
		start(t, a, 5) // all of that has changed nothing
		await(t, time.Minute, func() string {
			if n := a.nodes[5].node; !n.Ready() {
				return fmt.Sprintf("not ready: %v", n.Err())
			}
			return ""
		})
	})
}

// clusterID is the cluster that the first meta node belongs to.
func (c *Cluster) clusterID() dfs.ClusterID { return c.nodes[0].node.Meta().Map().Cluster }

// TestClientsOfAnotherClusterAreRefused speaks to one cluster as a client of
// another: nothing is done.
func TestClientsOfAnotherClusterAreRefused(t *testing.T) {
	inBubble(t, Config{Stores: 2, Class: dfs.Replicated(2)}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		pool := transport.NewPool(transport.PoolOptions{Network: c.net.Host("stranger"), Identity: func() transport.Identity {
			return transport.Identity{Kind: transport.KindClient, Cluster: dfs.ClusterID{1}}
		}})
		defer pool.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := wire.NewDRPCMetaClient(pool.Conn("meta1:7400")).OpenSession(ctx, &wire.OpenSessionRequest{Mark: 7})
		if dfs.KindOf(err) != dfs.WrongCluster {
			t.Errorf("a session of another cluster's client: %v", err)
		}
		// A client may not speak for a node.
		clients := transport.NewPool(transport.PoolOptions{Network: c.net.Host("impostor"), Identity: func() transport.Identity {
			return transport.Identity{Kind: transport.KindClient, Cluster: c.clusterID()}
		}})
		defer clients.Close()
		for i := range 3 {
			_, err := wire.NewDRPCMetaClient(clients.Conn(fmt.Sprintf("meta%d:7400", i+1))).Register(ctx, &wire.RegisterRequest{Name: "x", Addr: "x:1", Roles: 2})
			if k := dfs.KindOf(err); k != dfs.Permission && k != dfs.NotLeader {
				t.Errorf("a client registers a node: %v", err)
			}
		}
	})
}
