package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/node"
	"dfsd/raftgroup"
	"dfsd/sim/bubble"
	"dfsd/sim/rot"
	"dfsd/transport/wire"
)

// tearLog takes the second half of a node's newest Raft log file away. Unlike what a
// power loss takes, its first part was synced.
func tearLog(t *testing.T, c *Cluster, i int) {
	t.Helper()
	fs := c.nodes[i].fs
	rot.Truncate(t, fs, rot.NewestLog(t, fs, "data/raft/raft-log"), func(size int) int { return size / 2 })
}

// awaitAnew waits until a name has another number than it had, which alone of the two
// votes in every group, and until the damaged stores are gone. It returns that number.
func awaitAnew(t *testing.T, c *Cluster, p *Peer, i int, old dfs.NodeID) (id dfs.NodeID) {
	t.Helper()
	await(t, 2*time.Minute, func() string {
		if id = idOf(t, p, c.nodes[i].name); id == old || id == 0 {
			return "not registered anew"
		}
		if now := votersOf(t, c); slices.Contains(now, old) || !slices.Contains(now, id) || len(now) != 3 {
			return fmt.Sprintf("voters %v; %v is the old number and %v the new", now, old, id)
		}
		if _, err := c.nodes[i].fs.Stat("data/raft-damaged"); err == nil {
			return "the damaged stores are kept"
		}
		return ""
	})
	if n := c.newestMap().Node(old); !n.Replaced {
		t.Errorf("the old number is not given up: %+v", n)
	}
	return id
}

// TestDamagedLogsRefillThemselves damages the log of each meta node in turn, the
// founder's too. Nobody does anything, and nothing is lost.
func TestDamagedLogsRefillThemselves(t *testing.T) {
	inBubble(t, Config{Stores: 3}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		votersOf(t, c)
		for round, i := range []int{2, 0, 1, 2} {
			put(t, p, fmt.Sprintf("/f%d", round), c.nodes[i].name)
			time.Sleep(2 * time.Second) // the mark of the log is synced in the background
			old := idOf(t, p, c.nodes[i].name)
			c.Crash(i)
			tearLog(t, c, i)
			start(t, c, i)
			began := time.Now()
			id := awaitAnew(t, c, p, i, old)
			t.Logf("%s: node %v is node %v and votes after %v", c.nodes[i].name, old, id, time.Since(began))
			for r, j := range []int{2, 0, 1, 2}[:round+1] {
				if got := string(content(t, p, fmt.Sprintf("/f%d", r))); got != c.nodes[j].name {
					t.Errorf("/f%d holds %q", r, got)
				}
			}
		}
		time.Sleep(3 * time.Second)
		sound(t, c)
	})
}

// TestDamagedLogWaitsForTheOthers damages a log while another meta node is down:
// then every group needs this one's number for its majority, and it is not given up.
func TestDamagedLogWaitsForTheOthers(t *testing.T) {
	inBubble(t, Config{Stores: 3}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		voters := votersOf(t, c)
		put(t, p, "/f", "before")
		time.Sleep(2 * time.Second)
		old := idOf(t, p, "meta3")
		c.Crash(1, 2)
		tearLog(t, c, 2)
		start(t, c, 2)
		time.Sleep(time.Minute)
		_, err := c.nodes[2].node.Meta().Status(t.Context(), &wire.StatusRequest{})
		if err == nil || !strings.Contains(err.Error(), "log is damaged") {
			t.Errorf("it says %v", err)
		}
		t.Log(err)
		if err := c.nodes[2].node.Err(); err != nil {
			t.Errorf("it has given up: %v", err)
		}
		for _, st := range c.nodes[0].node.Meta().Groups() {
			for _, peer := range st.Peers {
				if peer.Node == old && peer.Active {
					t.Errorf("the damaged node answers in %v", st.Group)
				}
			}
			if !slices.Equal(st.Voters, voters) || st.Leader != 0 {
				t.Errorf("%v has the voters %v and the leader %v", st.Group, st.Voters, st.Leader)
			}
		}
		start(t, c, 1)
		awaitAnew(t, c, p, 2, old)
		if got := string(content(t, p, "/f")); got != "before" {
			t.Errorf("the file holds %q", got)
		}
		time.Sleep(3 * time.Second)
		sound(t, c)
	})
}

// TestCrashesWhileJoiningAnew crashes a node with a damaged log at random moments of
// its way back, and the others at some.
func TestCrashesWhileJoiningAnew(t *testing.T) {
	for seed := uint64(1); seed <= 4; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, Config{Seed: seed, Stores: 3}, func(t *testing.T, c *Cluster) {
				p := open(t, c, "client")
				defer p.Close()
				awaitReady(t, p)
				votersOf(t, c)
				put(t, p, "/f", "before")
				time.Sleep(2 * time.Second)
				old := idOf(t, p, "meta3")
				c.Crash(2)
				tearLog(t, c, 2)
				start(t, c, 2)
				random := rand.New(rand.NewPCG(seed, 5))
				for range 8 {
					time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
					victim := 2
					if random.IntN(4) == 0 {
						victim = random.IntN(2)
					}
					c.Crash(victim)
					time.Sleep(time.Duration(random.IntN(700)) * time.Millisecond)
					start(t, c, victim)
				}
				awaitReady(t, p)
				awaitAnew(t, c, p, 2, old)
				if got := string(content(t, p, "/f")); got != "before" {
					t.Errorf("the file holds %q", got)
				}
				time.Sleep(3 * time.Second)
				sound(t, c)
			})
		})
	}
}

// TestDamagedLogOfBothRoles damages the Raft log of a process that is a storage node
// too: its stores go with it to the new number, with all that is in them.
func TestDamagedLogOfBothRoles(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := unstarted(Config{Seed: 1, Stores: 2})
		defer c.Close()
		c.nodes[2].roles |= dfs.RoleStorage
		start(t, c, 0, 1, 2, 3, 4)
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		votersOf(t, c)
		for i := range 8 {
			put(t, p, fmt.Sprintf("/f%d", i), strings.Repeat("x", 50_000+i))
		}
		awaitFull(t, c, p, time.Minute)
		time.Sleep(2 * time.Second)
		old := idOf(t, p, "meta3")
		store := c.nodes[2].node.Engines()[0].Identity().Store
		blocks := c.nodes[2].node.Engines()[0].Stats().Blocks
		c.Crash(2)
		tearLog(t, c, 2)
		start(t, c, 2)
		id := awaitAnew(t, c, p, 2, old)
		await(t, time.Minute, func() string {
			st := c.newestMap().Store(store)
			if st.Node != id || st.State != dfs.StoreUp || c.nodes[2].node.Err() != nil || !c.nodes[2].node.Ready() {
				return fmt.Sprintf("store %v is %v of %v; the node is ready: %v, %v", store, st.State, st.Node, c.nodes[2].node.Ready(), c.nodes[2].node.Err())
			}
			return ""
		})
		awaitFull(t, c, p, time.Minute)
		if now := c.nodes[2].node.Engines()[0].Stats().Blocks; now < blocks {
			t.Errorf("the store holds %d blocks, and held %d", now, blocks)
		}
		complete(t, c, p)
		// It is at home there: the next start registers as what it is.
		restart(t, c, p, 2)
		awaitFull(t, c, p, time.Minute)
		if got := c.nodes[2].node.Engines()[0].Identity(); got.Node != id || got.Store != store {
			t.Errorf("the store says that it is %v of %v", got.Store, got.Node)
		}
		if err := c.nodes[2].node.Err(); err != nil {
			t.Error(err)
		}
	})
}

// TestStoresLostWhileJoining loses the Raft stores of a meta node that joined a moment ago
// and has not heard of the map yet: it may have voted in the control group, so it is not
// taken for one that never had any.
func TestStoresLostWhileJoining(t *testing.T) {
	inBubble(t, Config{Stores: 3}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		c.Crash(2)
		c.Wipe(2)
		start(t, c, 2)
		for membershipOf(t, c.nodes[2]).Node == 0 {
			time.Sleep(time.Millisecond)
		}
		c.Crash(2)
		c.net.Partition([]string{"meta3"}, []string{"meta1", "meta2"})
		start(t, c, 2)
		time.Sleep(10 * time.Second) // it has a replica, and waits for a map
		c.Crash(2)
		id := membershipOf(t, c.nodes[2]).Node
		if err := c.nodes[2].fs.RemoveAll("data/raft"); err != nil {
			t.Fatal(err)
		}
		c.net.Heal()
		start(t, c, 2)
		awaitAnew(t, c, p, 2, id)
		put(t, p, "/f", "after")
		sound(t, c)
	})
}

// TestOldLogIsFoundOut gives a meta node an old copy of its Raft stores, mark and all.
// It opens; the first leader that had its word knows better, and the running process
// joins anew.
func TestOldLogIsFoundOut(t *testing.T) {
	inBubble(t, Config{Stores: 3}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		votersOf(t, c)
		old := c.nodes[2].fs.CrashClone(vfs.CrashCloneCfg{})
		for i := range 20 {
			if _, err := p.Mkdir(t.Context(), fmt.Sprintf("/d%d", i), 0o755); err != nil {
				t.Fatal(err)
			}
			put(t, p, fmt.Sprintf("/d%d/f", i), "newer")
		}
		time.Sleep(2 * time.Second)
		id := idOf(t, p, "meta3")
		c.Crash(2)
		fs := c.nodes[2].fs
		if err := fs.RemoveAll("data/raft"); err != nil {
			t.Fatal(err)
		}
		if ok, err := vfs.Clone(old, fs, "data/raft", "data/raft", vfs.CloneSync); err != nil || !ok {
			t.Fatal(ok, err)
		}
		start(t, c, 2)
		awaitAnew(t, c, p, 2, id)
		if err := c.nodes[2].node.Err(); err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second)
		sound(t, c)
	})
}

// TestStateDamageUnderAMetaNode rots the state of a meta node's groups while it runs:
// the process goes on, under its number, and has its state from the others.
func TestStateDamageUnderAMetaNode(t *testing.T) {
	inBubble(t, Config{Stores: 3, Tweak: func(o *node.Options) { o.Meta.Raft.CacheSize = 1 << 10 }}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		voters := votersOf(t, c)
		for i := range 20 {
			put(t, p, fmt.Sprintf("/f%d", i), "before")
		}
		restart(t, c, p, 2) // what it has is in tables
		if err := c.nodes[2].node.Close(); err != nil {
			t.Fatal(err)
		}
		start(t, c, 2)
		votersOf(t, c)
		id := idOf(t, p, "meta3")
		m := c.nodes[2].node.Meta()
		fs, dir := c.nodes[2].fs, "data/raft/raft-state"
		names, err := fs.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".sst") {
				rot.Flip(t, fs, dir+"/"+name)
			}
		}
		for g := range dfs.GroupID(simGroups + 1) {
			_ = m.View(g, func(r raftgroup.Reader) error {
				return r.Scan(nil, nil, func(_, _ []byte) (bool, error) { return true, nil })
			})
		}
		await(t, 5*time.Second, func() string {
			if m.Ready() {
				return "it has not noticed"
			}
			return ""
		})
		await(t, time.Minute, func() string {
			if !m.Ready() {
				return "not ready again"
			}
			return ""
		})
		put(t, p, "/f", "after")
		await(t, time.Minute, func() string {
			for _, st := range m.Groups() {
				if st.NeedState || st.Fault != nil || st.Leader == 0 {
					return fmt.Sprintf("%+v", st)
				}
			}
			return ""
		})
		if now := votersOf(t, c); !slices.Equal(now, voters) || idOf(t, p, "meta3") != id {
			t.Errorf("voters %v, were %v", now, voters)
		}
		if err := c.nodes[2].node.Err(); err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second)
		sound(t, c)
	})
}

// TestDamagedLogOfTheOnlyMetaNode: nobody could take it in. It waits, with everything
// in place, and says so.
func TestDamagedLogOfTheOnlyMetaNode(t *testing.T) {
	inBubble(t, Config{Metas: 1, Stores: 1, Class: dfs.Replicated(1)}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		time.Sleep(2 * time.Second)
		c.Crash(0)
		tearLog(t, c, 0)
		for range 2 {
			start(t, c, 0)
			time.Sleep(time.Minute)
			_, err := c.nodes[0].node.Meta().Status(t.Context(), &wire.StatusRequest{})
			if err == nil || !strings.Contains(err.Error(), "log is damaged") || c.nodes[0].node.Err() != nil {
				t.Errorf("it says %v; %v", err, c.nodes[0].node.Err())
			}
			if _, err := c.nodes[0].fs.Stat("data/raft/raft-log"); err != nil {
				t.Error(err)
			}
			if !c.nodes[0].node.Meta().Damaged() {
				t.Error("it does not call itself damaged")
			}
			c.Crash(0)
		}
	})
}
