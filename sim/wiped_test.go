package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/sim/bubble"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// TestUnmountedDiskKeepsItsNode starts a meta node while its disk is not mounted: it does
// not take its own place, says what may be wrong, and ends once the disk is there. The next
// start is the node that it was.
func TestUnmountedDiskKeepsItsNode(t *testing.T) {
	inBubble(t, Config{Stores: 3}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		old := idOf(t, p, "meta3")
		voters := votersOf(t, c)
		c.Crash(2)
		disk := c.nodes[2].fs
		for range 2 { // a supervisor starts it again
			c.Wipe(2)
			start(t, c, 2)
			time.Sleep(50 * time.Second)
			if why := waiting(t, c, 2); !strings.Contains(why, "node "+old.String()+" has this name, in another data directory") {
				t.Errorf("it says: %s", why)
			}
			if m, _ := p.Refresh(t.Context()); m.Node(old).Replaced {
				t.Fatal("the node is replaced by what was below its disk")
			}
			c.Crash(2)
		}
		start(t, c, 2)
		time.Sleep(10 * time.Second)
		if _, err := vfs.Clone(disk, c.nodes[2].fs, "data/node.json", "data/node.json"); err != nil { // mounted
			t.Fatal(err)
		}
		await(t, 10*time.Second, func() string {
			if err := c.nodes[2].node.Err(); !errors.Is(err, dfs.Stale) {
				return fmt.Sprintf("with the disk mounted: %v", err)
			}
			return ""
		})
		c.Crash(2)
		c.nodes[2].fs = disk
		start(t, c, 2)
		awaitReady(t, p)
		await(t, time.Minute, func() string {
			if now := votersOf(t, c); !slices.Equal(now, voters) {
				return fmt.Sprintf("voters %v, were %v", now, voters)
			}
			return ""
		})
		put(t, p, "/f", "after")
		sound(t, c)
	})
}

// TestWipedMetaJoinsAnew empties a meta node's disk: it joins under a new number
// as a learner, is promoted, and its old number is gone. The old disk, put back,
// is refused and has no vote.
func TestWipedMetaJoinsAnew(t *testing.T) {
	inBubble(t, Config{Stores: 3}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		put(t, p, "/f", "before")
		old := idOf(t, p, "meta3")
		voters := votersOf(t, c)
		c.Crash(2)
		disk := c.nodes[2].fs
		c.Wipe(2)
		start(t, c, 2)
		var id dfs.NodeID
		took := await(t, 3*time.Minute, func() string {
			if id = idOf(t, p, "meta3"); id == old {
				return "not registered anew"
			}
			return ""
		})
		await(t, time.Minute, func() string {
			if now := votersOf(t, c); slices.Contains(now, old) || !slices.Contains(now, id) || len(now) != 3 {
				return fmt.Sprintf("voters %v, were %v; %v is the old number and %v the new", now, voters, old, id)
			}
			return ""
		})
		t.Logf("node %v is node %v after %v", old, id, took)
		if m, _ := p.Refresh(t.Context()); !m.Node(old).Replaced {
			t.Errorf("the old node is not replaced: %+v", m.Node(old))
		}

		// It really votes: the group works with it and one other.
		c.Crash(0)
		put(t, p, "/f", "between")
		start(t, c, 0)
		awaitReady(t, p)

		// The old disk: refused, and no member of anything.
		c.Crash(2)
		fresh := c.nodes[2].fs
		c.nodes[2].fs = disk
		start(t, c, 2)
		await(t, time.Minute, func() string {
			if err := c.nodes[2].node.Err(); !errors.Is(err, dfs.Stale) {
				return fmt.Sprintf("the old disk: %v", err)
			}
			return ""
		})
		t.Log(c.nodes[2].node.Err())
		time.Sleep(5 * time.Second)
		for _, st := range c.nodes[2].node.Meta().Groups() {
			if len(st.Peers) > 0 {
				t.Errorf("the old disk leads %v", st.Group)
			}
		}
		c.Crash(2)
		c.nodes[2].fs = fresh
		start(t, c, 2)
		awaitReady(t, p)
		if now := votersOf(t, c); slices.Contains(now, old) || len(now) != 3 {
			t.Errorf("voters %v", now)
		}
		if got := string(content(t, p, "/f")); got != "between" {
			t.Errorf("the file holds %q", got)
		}
		time.Sleep(3 * time.Second)
		sound(t, c)
	})
}

// TestJoiningMetaSaysNothing asks a meta node that belongs to a cluster and has
// none of its state yet: it cannot say that something does not exist.
func TestJoiningMetaSaysNothing(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := unstarted(Config{Seed: 1, Stores: 3})
		defer c.Close()
		start(t, c, 0, 1, 2, 3, 4, 5)
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
		time.Sleep(10 * time.Second)
		id := membershipOf(t, c.nodes[2])
		pool := transport.NewPool(transport.PoolOptions{Network: c.net.Host("asker"), Identity: func() transport.Identity {
			return transport.Identity{Kind: transport.KindClient, Cluster: id.Cluster}
		}})
		defer pool.Close()
		meta3 := wire.NewDRPCMetaClient(pool.Conn("meta3:7400"))
		for g := range uint32(simGroups) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			q := &wire.Query{Query: &wire.Query_Attr{Attr: &wire.AttrQuery{Inos: []uint64{uint64(dfs.MakeIno(dfs.GroupID(g+1), 1))}}}}
			if _, err := meta3.Read(ctx, &wire.ReadRequest{Group: g + 1, Query: q}); dfs.KindOf(err) != dfs.Unavailable {
				t.Errorf("a read of group %d: %v", g+1, err)
			}
			if _, err := meta3.Mutate(ctx, &wire.MutateRequest{Group: g + 1}); dfs.KindOf(err) != dfs.Unavailable {
				t.Errorf("a change of group %d: %v", g+1, err)
			}
			cancel()
		}
		c.net.Heal()
		oneCluster(t, c, p)
	})
}

// TestWipedStorageJoinsAnew empties a storage node's disk: the name is taken over
// once the old node is down, and its share is filled anew.
func TestWipedStorageJoinsAnew(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		for i := range 20 {
			put(t, p, fmt.Sprintf("/f%d", i), strings.Repeat("x", 100_000+i))
		}
		old := idOf(t, p, "store1")
		c.Crash(3)
		c.Wipe(3)
		start(t, c, 3)
		took := await(t, time.Minute, func() string {
			if id := idOf(t, p, "store1"); id == old || id == 0 {
				return "not registered anew"
			}
			return ""
		})
		t.Logf("the name was taken over after %v, full again after %v more", took, awaitFull(t, c, p, 2*time.Minute))
		complete(t, c, p)
	})
}
