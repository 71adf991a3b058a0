package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/node"
	"dfsd/raftgroup"
)

// storesOf lists the stores of the newest map by the names of their nodes,
// which are not replaced.
func storesOf(t *testing.T, p *Peer) (*dfs.Map, map[string]*dfs.Store) {
	t.Helper()
	m, err := p.Refresh(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*dfs.Store{}
	for _, s := range m.Stores {
		if n := m.Node(s.Node); !n.Replaced {
			out[n.Name] = s
		}
	}
	return m, out
}

func awaitState(t *testing.T, p *Peer, name string, state dfs.StoreState, limit time.Duration) time.Duration {
	t.Helper()
	return await(t, limit, func() string {
		if _, stores := storesOf(t, p); stores[name].State != state {
			return fmt.Sprintf("%s is %v, want %v", name, stores[name].State, state)
		}
		return ""
	})
}

// awaitActing waits until no placement group acts on a store.
func awaitActing(t *testing.T, p *Peer, name string, limit time.Duration) time.Duration {
	t.Helper()
	return await(t, limit, func() string {
		m, stores := storesOf(t, p)
		for _, pg := range m.PGs {
			if pg.Active.Has(stores[name].ID) || pg.Proposed.Has(stores[name].ID) {
				return fmt.Sprintf("%v acts on %v", pg.ID, pg.Active)
			}
		}
		return ""
	})
}

// leader waits until one of the meta nodes leads the control group, and returns
// its number.
func leader(t *testing.T, c *Cluster, among ...int) int {
	t.Helper()
	found := -1
	await(t, time.Minute, func() string {
		for _, i := range among {
			if c.nodes[i].node == nil {
				continue
			}
			for _, st := range c.nodes[i].node.Meta().Groups() {
				if st.Group == dfs.ControlGroup && st.Role == raftgroup.RoleLeader {
					found = i
					return ""
				}
			}
		}
		return "nobody leads the control group"
	})
	return found
}

// files puts n files and returns what they hold.
func files(t *testing.T, p *Peer, prefix string, n int) map[string]string {
	t.Helper()
	out := map[string]string{}
	for i := range n {
		path := fmt.Sprintf("/%s%d", prefix, i)
		out[path] = strings.Repeat(fmt.Sprintf("%s %d ", path, i), 3000)
		put(t, p, path, out[path])
	}
	return out
}

func unchanged(t *testing.T, p *Peer, want map[string]string) {
	t.Helper()
	for path, data := range want {
		if got := string(content(t, p, path)); got != data {
			t.Errorf("%s: %d bytes, want %d", path, len(got), len(data))
		}
	}
}

// TestLossAndRepair is the life of a cluster that loses a store for good, is
// repaired, loses two more for a while, and grows.
func TestLossAndRepair(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		all := files(t, p, "f", 30)
		awaitFull(t, c, p, time.Minute)

		c.Crash(3)
		t.Logf("down after %v", awaitState(t, p, "store1", dfs.StoreDown, 3500*time.Millisecond))
		t.Logf("acts nowhere after %v more", awaitActing(t, p, "store1", 2*time.Second))
		put(t, p, "/degraded", "written with one store down")
		all["/degraded"] = "written with one store down"
		t.Logf("out after %v more", awaitState(t, p, "store1", dfs.StoreOut, 35*time.Second))
		t.Logf("whole without it after %v more", awaitFull(t, c, p, time.Minute))
		complete(t, c, p)
		unchanged(t, p, all)

		// Two more, at the same moment: one copy is left of everything.
		c.Crash(4)
		c.Crash(5)
		awaitState(t, p, "store2", dfs.StoreDown, 5*time.Second)
		awaitState(t, p, "store3", dfs.StoreDown, 5*time.Second)
		unchanged(t, p, all)
		before, _ := storesOf(t, p)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, err := p.PutFile(ctx, "/refused", client.PutOptions{Mode: 0o644}, strings.NewReader("no room"))
		cancel()
		t.Logf("a write is refused: %v", err)
		if err == nil || !strings.Contains(err.Error(), "rep3") {
			t.Errorf("a write with one store of four: %v", err)
		}
		time.Sleep(70 * time.Second) // two grace periods
		after, stores := storesOf(t, p)
		for _, name := range []string{"store2", "store3"} {
			if stores[name].State != dfs.StoreDown {
				t.Errorf("%s is %v, though the stores that are down hold the only other copies", name, stores[name].State)
			}
		}
		for _, pg := range after.PGs {
			old := before.PG(pg.ID)
			if !slices.Equal(old.Target, pg.Target) || !slices.Equal(old.Active.Stores, pg.Active.Stores) || len(old.Complete()) != len(pg.Complete()) {
				t.Errorf("%v was %+v and is %+v, though nothing could be replaced", pg.ID, old, pg)
			}
		}
		if epochs := after.Epoch - before.Epoch; epochs > 2 {
			t.Errorf("the map had %d epochs while nothing could be done", epochs)
		}
		unchanged(t, p, all)
		if _, err := p.Lstat(t.Context(), "/refused"); dfs.KindOf(err) != dfs.NotExist {
			t.Errorf("what was refused: %v", err)
		}

		start(t, c, 4, 5)
		t.Logf("whole again %v after their return", awaitFull(t, c, p, time.Minute))
		put(t, p, "/again", "writes go on")
		all["/again"] = "writes go on"

		// A fifth, empty one gets its share.
		i := c.AddStorage()
		start(t, c, i)
		await(t, time.Minute, func() string {
			if _, stores := storesOf(t, p); stores[c.nodes[i].name] == nil {
				return "it has not registered"
			}
			return ""
		})
		t.Logf("whole with a new store after %v", awaitFull(t, c, p, 2*time.Minute))
		m, stores := storesOf(t, p)
		share := map[dfs.StoreID]int{}
		for _, pg := range m.PGs {
			for _, s := range pg.Target {
				share[s]++
			}
		}
		fair := 3 * len(m.PGs) / 4
		if n := share[stores[c.nodes[i].name].ID]; n < fair-1 || n > fair+1 || share[stores["store1"].ID] != 0 {
			t.Errorf("shares %v: the new store has %d, a fair share is %d", share, n, fair)
		}
		complete(t, c, p)
		unchanged(t, p, all)
		sound(t, c)
	})
}

// TestReturnIsCaughtUpByDelta takes a store away for less than the grace period,
// while blocks are written and others deleted: it pulls what it missed and no
// more, and what was deleted stays deleted. There are three stores, so that
// every placement group misses the one that is away.
func TestReturnIsCaughtUpByDelta(t *testing.T) {
	tweak := func(o *node.Options) {
		o.Meta.Grace = 10 * time.Minute
		o.Meta.HistoryKeep = 5 * time.Second
	}
	inBubble(t, Config{Stores: 3, Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		all := files(t, p, "f", 40)
		gone := files(t, p, "gone", 20)
		awaitFull(t, c, p, time.Minute)
		own := c.nodes[3].node.Engines()[0].Identity().Store
		before := liveBlocks(t, c, own)

		c.Crash(3)
		awaitActing(t, p, "store1", 6*time.Second)
		for path, data := range files(t, p, "new", 12) {
			all[path] = data
		}
		for path := range gone {
			if err := p.Remove(t.Context(), path); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Second) // trimmed, and deleted where the group acts
		start(t, c, 3)
		t.Logf("whole %v after its return", awaitFull(t, c, p, 2*time.Minute))
		stats := c.nodes[3].node.Storage().Stats()
		if stats.Pulled != 12 {
			t.Errorf("it pulled %d blocks, %d bytes; 12 were written while it was away, and it held %d", stats.Pulled, stats.PulledBytes, before)
		}
		time.Sleep(10 * time.Second)
		checkOnlyNamed(t, c, p)
		after := liveBlocks(t, c, own)
		if after >= before {
			t.Errorf("the store held %d blocks and holds %d: the deletions did not reach it", before, after)
		}
		t.Logf("it held %d blocks, pulled %d, and holds %d", before, stats.Pulled, after)
		complete(t, c, p)
		unchanged(t, p, all)
	})
}

// liveBlocks counts the blocks of a store that are no tombstones.
func liveBlocks(t *testing.T, c *Cluster, id dfs.StoreID) (n int) {
	t.Helper()
	e := c.engines()[id]
	for pg := range dfs.PGID(simPGs) {
		entries, next, err := e.Inventory(pg+1, nil, 1000)
		if err != nil || len(next) > 0 {
			t.Fatalf("inventory: %v, more=%v", err, len(next) > 0)
		}
		for _, x := range entries {
			if !x.Tombstone {
				n++
			}
		}
	}
	return n
}

// TestMinorityDecidesNothing cuts the control leader and a client off from all
// others: on its side nobody is declared down and no write is acknowledged.
func TestMinorityDecidesNothing(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Cluster) {
		p, cutOff := open(t, c, "client"), open(t, c, "cutoff")
		defer p.Close()
		defer cutOff.Close()
		awaitReady(t, p)
		all := files(t, p, "f", 5)
		put(t, cutOff, "/mine", "before")
		awaitFull(t, c, p, time.Minute)
		before, _ := storesOf(t, p)

		alone := leader(t, c, 0, 1, 2)
		minority := []string{c.nodes[alone].name, "cutoff"}
		rest := []string{"client", "store1", "store2", "store3", "store4"}
		var others []int
		for i := range 3 {
			if i != alone {
				rest = append(rest, c.nodes[i].name)
				others = append(others, i)
			}
		}
		c.net.Partition(minority, rest)
		leader(t, c, others...)
		ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
		_, err := cutOff.Mkdir(ctx, "/dir", 0o755)
		cancel()
		if err == nil {
			t.Error("the minority acknowledged a change")
		}
		t.Logf("the minority: %v", err)
		for _, s := range c.nodes[alone].node.Meta().Map().Stores {
			if s.State != dfs.StoreUp {
				t.Errorf("the minority declared %v %v", s.ID, s.State)
			}
		}
		put(t, p, "/majority", "goes on")
		after, stores := storesOf(t, p)
		for name, s := range stores {
			if old := before.Store(s.ID); s.State != dfs.StoreUp || s.StateSince != old.StateSince {
				t.Errorf("%s was %+v and is %+v: the majority heard it all the time", name, old, s)
			}
		}
		if after.Epoch != before.Epoch {
			t.Errorf("the map went from epoch %d to %d", before.Epoch, after.Epoch)
		}
		c.net.Heal()
		awaitFull(t, c, p, time.Minute)
		unchanged(t, p, all)
		time.Sleep(5 * time.Second)
		sound(t, c)
	})
}

// TestOneMetaHearsNothing blocks a storage node's way to one meta node: it stays
// up, whoever that is.
func TestOneMetaHearsNothing(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		awaitFull(t, c, p, time.Minute)
		for deaf := range 3 {
			before, _ := storesOf(t, p)
			c.net.Block("store1", c.nodes[deaf].name)
			time.Sleep(20 * time.Second)
			after, stores := storesOf(t, p)
			if stores["store1"].State != dfs.StoreUp || after.Epoch != before.Epoch {
				t.Errorf("%s is deaf: the store is %v, the map went from epoch %d to %d", c.nodes[deaf].name, stores["store1"].State, before.Epoch, after.Epoch)
			}
			put(t, p, fmt.Sprintf("/f%d", deaf), "written")
			c.net.Heal()
			time.Sleep(5 * time.Second)
		}
	})
}

// TestPartialPartitionDoesNotFlap leaves a storage node one meta node that hears
// it, the control leader or another: the majority declares it down once, and it
// does not come up again until a majority hears it.
func TestPartialPartitionDoesNotFlap(t *testing.T) {
	tweak := func(o *node.Options) { o.Meta.Grace = 10 * time.Minute }
	inBubble(t, Config{Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		files(t, p, "f", 10)
		awaitFull(t, c, p, time.Minute)
		for _, leads := range []bool{true, false} {
			l := leader(t, c, 0, 1, 2)
			hears := l
			if !leads {
				hears = (l + 1) % 3
			}
			for i := range 3 {
				if i != hears {
					c.net.Block("store1", c.nodes[i].name)
				}
			}
			awaitState(t, p, "store1", dfs.StoreDown, 10*time.Second)
			awaitActing(t, p, "store1", 5*time.Second)
			before, stores := storesOf(t, p)
			since := stores["store1"].StateSince
			for range 20 {
				time.Sleep(time.Second)
				x := time.Now()
				storesOf(t, p)
				if d := time.Since(x); d > 100*time.Millisecond {
					t.Log("refresh", d)
				}
				if m, stores := storesOf(t, p); stores["store1"].State != dfs.StoreDown || stores["store1"].StateSince != since {
					t.Fatalf("only %s hears it (leader: %v): %v since %d, was down since %d; epochs %d to %d", c.nodes[hears].name, leads,
						stores["store1"].State, stores["store1"].StateSince, since, before.Epoch, m.Epoch)
				}
			}
			if m, _ := storesOf(t, p); m.Epoch > before.Epoch+1 {
				t.Errorf("only %s hears it: the map went from epoch %d to %d", c.nodes[hears].name, before.Epoch, m.Epoch)
			}
			c.net.Heal()
			t.Logf("only %s heard it (leader: %v): up %v after the partition", c.nodes[hears].name, leads, awaitState(t, p, "store1", dfs.StoreUp, 15*time.Second))
			awaitFull(t, c, p, time.Minute)
		}
		complete(t, c, p)
	})
}

// TestControlLeaderCrashesWhileProposing crashes the control leader while
// proposals wait for their activation, and a store with it.
func TestControlLeaderCrashesWhileProposing(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		all := files(t, p, "f", 15)
		awaitFull(t, c, p, time.Minute)
		hits := 0
		for round := range 6 {
			store := 3 + round%4
			if round%2 == 0 {
				c.Crash(store)
			} else {
				c.Crash(store)
				awaitState(t, p, c.nodes[store].name, dfs.StoreDown, 20*time.Second)
				start(t, c, store)
			}
			l := leader(t, c, 0, 1, 2)
			// A proposal is seen in the leader's own map the moment it is applied.
			for range 40_000 {
				m := c.nodes[l].node.Meta().Map()
				if slices.ContainsFunc(m.PGs, func(pg *dfs.PG) bool { return pg.Proposed.Epoch > 0 }) {
					hits++
					break
				}
				time.Sleep(100 * time.Microsecond)
			}
			c.Crash(l)
			put(t, p, fmt.Sprintf("/round%d", round), "written without the old leader")
			all[fmt.Sprintf("/round%d", round)] = "written without the old leader"
			if err := c.StartAll(); err != nil {
				t.Fatal(err)
			}
			awaitFull(t, c, p, 2*time.Minute)
		}
		if hits < 3 {
			t.Errorf("the leader crashed with a proposal pending %d times of 6", hits)
		}
		complete(t, c, p)
		unchanged(t, p, all)
		sound(t, c)
	})
}

// TestFollowerCatchesUpBySnapshot keeps a meta node away until the logs are cut
// behind it.
func TestFollowerCatchesUpBySnapshot(t *testing.T) {
	tweak := func(o *node.Options) { o.Meta.Raft.KeepEntries = 10 }
	inBubble(t, Config{Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		away := (leader(t, c, 0, 1, 2) + 1) % 3
		last := map[dfs.GroupID]uint64{}
		for _, st := range c.nodes[away].node.Meta().Groups() {
			last[st.Group] = st.Last
		}
		c.Crash(away)
		time.Sleep(20 * time.Second) // it is not waited for any more
		for i := range 100 {
			if _, err := p.MkdirAll(t.Context(), fmt.Sprintf("/d%d/e", i%12), 0o755); err != nil {
				t.Fatal(err)
			}
			put(t, p, fmt.Sprintf("/d%d/f%d", i%12, i), "short")
		}
		time.Sleep(30 * time.Second)
		cut := 0
		for i := range 3 {
			if i == away {
				continue
			}
			for _, st := range c.nodes[i].node.Meta().Groups() {
				if st.First > last[st.Group]+1 {
					cut++
				}
			}
		}
		if cut == 0 {
			t.Fatal("no log was cut: the test proves nothing")
		}
		start(t, c, away)
		took := await(t, time.Minute, func() string {
			want := map[dfs.GroupID]uint64{}
			for i := range 3 {
				if i != away {
					for _, st := range c.nodes[i].node.Meta().Groups() {
						want[st.Group] = max(want[st.Group], st.Applied)
					}
				}
			}
			for _, st := range c.nodes[away].node.Meta().Groups() {
				if st.Fault != nil || st.Applied < want[st.Group] {
					return fmt.Sprintf("%v: applied %d of %d, %v", st.Group, st.Applied, want[st.Group], st.Fault)
				}
			}
			return ""
		})
		t.Logf("%d logs were cut; caught up after %v", cut, took)
		time.Sleep(3 * time.Second)
		sound(t, c)

		// What it has is the state: with it and one other everything is there.
		c.Crash((away + 1) % 3)
		for i := range 100 {
			if got := string(content(t, p, fmt.Sprintf("/d%d/f%d", i%12, i))); got != "short" {
				t.Errorf("file %d holds %q", i, got)
			}
		}
	})
}

// TestSnapshotGoesOnAfterACrash takes a meta node's power while it receives a
// snapshot: it goes on where it was.
func TestSnapshotGoesOnAfterACrash(t *testing.T) {
	reached := make(chan struct{}, 1)
	var noted [simGroups + 1]atomic.Int32 // tables that a group has received
	tweak := func(o *node.Options) {
		o.Meta.Raft.KeepEntries, o.Meta.Raft.SnapshotFileBytes = 10, 512
		o.Meta.Raft.Hooks.SnapshotStep = func(g dfs.GroupID, s raftgroup.SnapshotStep) {
			if s == raftgroup.SnapRecvNoted && noted[g].Add(1) == 3 {
				select {
				case reached <- struct{}{}:
					time.Sleep(5 * time.Second)
				default:
				}
			}
		}
	}
	inBubble(t, Config{Tweak: tweak}, func(t *testing.T, c *Cluster) {
		reached = make(chan struct{}, 1)
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		away := (leader(t, c, 0, 1, 2) + 1) % 3
		c.Crash(away)
		time.Sleep(20 * time.Second) // it is not waited for any more
		for i := range 100 {
			put(t, p, fmt.Sprintf("/f%d", i), "short")
		}
		time.Sleep(30 * time.Second)
		start(t, c, away)
		select {
		case <-reached:
		case <-time.After(time.Minute):
			t.Fatal("no snapshot has three tables: the test proves nothing")
		}
		c.Crash(away)
		start(t, c, away)
		await(t, time.Minute, func() string { // others may have theirs first
			if _, stats := c.nodes[away].node.Meta().Snapshots(); stats.Installed == 0 || stats.Resumed == 0 {
				return fmt.Sprintf("after the crash was received %+v", stats)
			}
			return ""
		})
		time.Sleep(5 * time.Second)
		sound(t, c)
	})
}

// TestPowerLossOfAllIsBrief crashes every node and starts all: the cluster works
// as soon as leaders can be elected.
func TestPowerLossOfAllIsBrief(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		all := files(t, p, "f", 5)
		c.CrashAll()
		time.Sleep(time.Second)
		if err := c.StartAll(); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		put(t, p, "/after", "written")
		unchanged(t, p, all)
		if took := time.Since(begun); took > 8*time.Second {
			t.Errorf("it took %v until the cluster worked", took)
		} else {
			t.Logf("writes went on after %v", took)
		}
	})
}
