package raftgroup

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

// breakOnce fails the n-th chunk of the first stream that gets so far, and calls
// then first.
func (c *cluster) breakOnce(n int, then func(from, to dfs.NodeID)) {
	var once atomic.Bool
	c.chunks = func(from, to dfs.NodeID, i int) error {
		if i != n || !once.CompareAndSwap(false, true) {
			return nil
		}
		if then != nil {
			then(from, to)
		}
		return dfs.Errorf(dfs.Unavailable, "send chunk", "the connection broke")
	}
}

// waitSnapshots waits until a node's snapshots are as fn wants them.
func (c *cluster) waitSnapshots(id dfs.NodeID, fn func([]SnapshotStatus) bool) {
	c.t.Helper()
	for range 6000 {
		if fn(c.h(id).Snapshots()) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatalf("the snapshots of node %v stay %+v", id, c.h(id).Snapshots())
}

func heldFiles(c *cluster, id dfs.NodeID) []string {
	c.t.Helper()
	names, err := c.nodes[id].fs.List("data/raft-snap")
	if err != nil {
		c.t.Error(err)
	}
	return names
}

// TestSnapshotGoesOnWhereItBroke: what was sent before a stream broke is not
// sent again, whether the connection broke or the receiver lost power.
func TestSnapshotGoesOnWhereItBroke(t *testing.T) {
	const state = 120 * 7000
	for _, tc := range []struct {
		name  string
		power bool
		times int
	}{{"connection", false, 1}, {"connection, often", false, 5}, {"receiver's power", true, 1}} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCluster(t, 1, 3, 0)
				defer c.stop()
				sleeper, _ := c.sleeper(7000)
				lead := c.leader(0)
				var broken atomic.Int32
				gone := make(chan struct{})
				c.chunks = func(_, _ dfs.NodeID, i int) error {
					if i != 20 || int(broken.Load()) == tc.times {
						return nil
					}
					if broken.Add(1); tc.power {
						close(gone)
					}
					return dfs.Errorf(dfs.Unavailable, "send chunk", "the connection broke")
				}
				c.heal()
				if tc.power {
					<-gone
					c.crash(sleeper, 0)
				}
				c.converge(c.all()...)
				sent, got := c.h(lead).SnapshotStats(), c.h(sleeper).SnapshotStats()
				twice := uint64(2 * tc.times * c.nodes[lead].options().SnapshotFileBytes)
				if sent.Sent < state || sent.Sent > state+state/10+twice || sent.Delivered != 1 || int(sent.Resumed) != tc.times {
					t.Errorf("of %d bytes was sent %+v, in %d streams", state, sent, c.snapshots)
				}
				if got.Installed != 1 || int(got.Resumed) != tc.times {
					t.Errorf("received was %+v", got)
				}
				if names := heldFiles(c, sleeper); len(names) > 0 {
					t.Errorf("%v are left", names)
				}
			})
		})
	}
}

// TestSnapshotBeginsAnew: what no stream can go on from is removed.
func TestSnapshotBeginsAnew(t *testing.T) {
	for _, why := range []string{"sender started anew", "table damaged", "table lost", "another leader"} {
		t.Run(why, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCluster(t, 1, 3, 0)
				defer c.stop()
				sleeper, _ := c.sleeper(7000)
				lead := c.leader(0)
				broken := make(chan struct{})
				c.breakOnce(20, func(_, to dfs.NodeID) {
					c.isolate(to, true)
					close(broken)
				})
				c.heal()
				<-broken
				c.waitSnapshots(sleeper, func(s []SnapshotStatus) bool { return len(s) == 1 && s[0].Waiting && s[0].Bytes > 0 })
				before := heldFiles(c, sleeper)
				switch why {
				case "sender started anew":
					c.crash(lead, 100)
				case "another leader":
					if err := c.h(lead).TransferLeader(t.Context(), 0, 6-lead-sleeper); err != nil {
						t.Fatal(err)
					}
				default:
					n := c.kill(sleeper, 0)
					spoilTable(t, n.fs, "data/raft-snap/"+before[0], why == "table lost")
					c.revive(n)
				}
				c.heal()
				c.converge(c.all()...)
				if st := c.h(sleeper).SnapshotStats(); st.Resumed != 0 || st.Installed != 1 {
					t.Errorf("received was %+v", st)
				}
				if len(before) == 0 || len(heldFiles(c, sleeper)) > 0 {
					t.Errorf("held were %v, left are %v", before, heldFiles(c, sleeper))
				}
			})
		})
	}
}

// spoilTable flips a bit of the first block of a table, or removes it.
func spoilTable(t *testing.T, fs vfs.FS, path string, remove bool) {
	t.Helper()
	if remove {
		if err := fs.Remove(path); err != nil {
			t.Error(err)
		}
		return
	}
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 10); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, 10); err != nil {
		t.Fatal(err)
	}
	if err := firstError(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotIsGivenUp: neither end keeps for ever what nobody goes on with.
func TestSnapshotIsGivenUp(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		defer c.stop()
		sleeper, _ := c.sleeper(7000)
		lead := c.leader(0)
		broken := make(chan struct{})
		c.breakOnce(20, func(_, to dfs.NodeID) {
			c.isolate(to, true)
			close(broken)
		})
		c.heal()
		<-broken
		waits := func(s []SnapshotStatus) bool { return len(s) == 1 && s[0].Waiting }
		c.waitSnapshots(lead, waits)
		c.waitSnapshots(sleeper, waits)
		if len(heldFiles(c, sleeper)) == 0 {
			t.Error("nothing is held")
		}
		time.Sleep(100 * time.Second)
		c.waitSnapshots(lead, waits)
		time.Sleep(30 * time.Second)
		for _, id := range []dfs.NodeID{lead, sleeper} {
			c.waitSnapshots(id, func(s []SnapshotStatus) bool { return len(s) == 0 })
		}
		if names := heldFiles(c, sleeper); len(names) > 0 {
			t.Errorf("%v are left", names)
		}
		if n := c.h(lead).waiting.Load(); n != 0 {
			t.Errorf("%d transfers wait", n)
		}
		c.heal()
		c.converge(c.all()...)
		c.noSnapFiles()
	})
}

// TestFollowerReachesTheLiveLog: a state many times the log's cap arrives slowly
// while more is written than the cap. One snapshot is enough all the same,
// though its stream breaks.
func TestFollowerReachesTheLiveLog(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		c.tune = func(o *Options) { o.SnapshotRate, o.SnapshotFileBytes = 1<<18, 256<<10 }
		defer c.stop()
		sleeper, _ := c.sleeper(20_000) // 2.4 MB, at 256 KiB/s, with a log of 256 KiB
		lead := c.leader(0)
		c.breakOnce(7, nil)
		var wg sync.WaitGroup
		stop := make(chan struct{})
		var written atomic.Int64
		wg.Go(func() { // 100 kB/s
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond):
				}
				cmd := fmt.Sprintf("put live%d %s", i%7, strings.Repeat("x", 10_000))
				if _, err := c.h(lead).Propose(t.Context(), 0, []byte(cmd)); err == nil {
					written.Add(10_000)
				}
			}
		})
		c.heal()
		time.Sleep(20 * time.Second)
		st, _ := c.h(sleeper).Status(0)
		now, _ := c.h(lead).Status(0)
		if st.Applied+20 < now.Applied {
			t.Errorf("node %v is at entry %d, the leader at %d", sleeper, st.Applied, now.Applied)
		}
		if got := c.h(sleeper).SnapshotStats(); got.Installed != 1 || got.Resumed != 1 {
			t.Errorf("received was %+v", got)
		}
		time.Sleep(5 * time.Second)
		if now, _ = c.h(lead).Status(0); now.LogBytes > 512<<10 {
			t.Errorf("the log keeps %d bytes once the follower has caught up", now.LogBytes)
		}
		close(stop)
		wg.Wait()
		if written.Load() < 3<<19 {
			t.Errorf("%d bytes were written meanwhile", written.Load())
		}
		c.converge(c.all()...)
	})
}

// TestDeposedLeaderStopsSending: a snapshot of a leader that no longer is one
// would not be installed, and keeps the next leader's from coming.
func TestDeposedLeaderStopsSending(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const state = 120 * 20_000
		c := newCluster(t, 1, 3, 0)
		c.tune = func(o *Options) { o.SnapshotRate, o.SnapshotFileBytes = 1<<18, 256<<10 }
		defer c.stop()
		sleeper, _ := c.sleeper(20_000)
		lead := c.leader(0)
		begun := make(chan struct{})
		var once sync.Once
		c.chunks = func(_, _ dfs.NodeID, n int) error {
			if n == 4 {
				once.Do(func() { close(begun) })
			}
			return nil
		}
		c.heal()
		<-begun
		next := 6 - lead - sleeper
		if err := c.h(lead).TransferLeader(t.Context(), 0, next); err != nil {
			t.Fatal(err)
		}
		c.converge(c.all()...)
		if old := c.h(lead).SnapshotStats(); old.Sent == 0 || old.Sent > state*3/4 || old.Delivered != 0 {
			t.Errorf("the old leader sent %+v", old)
		}
		if got := c.h(next).SnapshotStats(); got.Sent < state || got.Delivered != 1 {
			t.Errorf("the new leader sent %+v", got)
		}
		if list := c.h(lead).Snapshots(); len(list) != 1 || !list[0].Waiting {
			t.Errorf("should it lead again, the old leader has %+v", list)
		}
	})
}

// TestFewTransfersWait: a node keeps no more moments for others than it may send
// at a time.
func TestFewTransfersWait(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, testGroups(4)...)
		c.tune = func(o *Options) { o.MaxSnapshots = 1 }
		defer c.stop()
		c.boot()
		for _, g := range c.groups {
			c.propose(g, "put old value")
		}
		c.converge(c.all()...)
		const sleeper = 3
		c.isolate(sleeper, true)
		time.Sleep(5 * time.Second) // it leads nothing any more
		for _, g := range c.groups {
			c.fill(g, 120, 1000)
			for id := range dfs.NodeID(sleeper - 1) {
				c.waitCut(id+1, g, 10)
			}
		}
		var broken atomic.Bool
		broken.Store(true)
		groups := map[dfs.GroupID]bool{}
		c.chunks = func(_, _ dfs.NodeID, n int) error {
			if n > 6 && broken.Load() {
				return dfs.Errorf(dfs.Unavailable, "send chunk", "the connection broke")
			}
			return nil
		}
		c.heal()
		waited := 0
		for range 5000 {
			for id := range dfs.NodeID(sleeper - 1) {
				n := 0
				for _, s := range c.h(id + 1).Snapshots() {
					groups[s.Group] = true
					if s.Waiting {
						n++
					}
				}
				if n > 1 {
					t.Fatalf("node %v keeps %d transfers waiting", id+1, n)
				}
				waited += n
			}
			time.Sleep(time.Millisecond)
		}
		if waited == 0 || len(groups) < 2 {
			t.Errorf("%d waited, of groups %v: the test proves nothing", waited, groups)
		}
		broken.Store(false)
		c.converge(c.all()...)
		for _, id := range c.all() {
			if n := c.h(id).waiting.Load(); n != 0 {
				t.Errorf("node %v counts %d that wait", id, n)
			}
		}
	})
}

// TestOvertakenLeavesNoSnapshot: what a replica holds of a snapshot goes with it.
func TestOvertakenLeavesNoSnapshot(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		defer c.stop()
		sleeper, _ := c.sleeper(7000)
		broken := make(chan struct{})
		c.breakOnce(20, func(_, to dfs.NodeID) {
			for _, id := range c.all() {
				c.isolate(id, true)
			}
			close(broken)
		})
		c.heal()
		<-broken
		c.waitSnapshots(sleeper, func(s []SnapshotStatus) bool { return len(s) == 1 && s[0].Waiting && s[0].Bytes > 0 })
		before := heldFiles(c, sleeper)
		chosen := sleeper%3 + 1
		if _, err := c.recoverGroup(0, 7, chosen); err != nil {
			t.Fatal(err)
		}
		c.aloneOn(chosen, 0)
		c.heal()
		c.retry("overtake", func() error {
			c.wakeOld(sleeper, 0)
			if s := c.survivor(sleeper, 0); s.Generation != 7 {
				return dfs.Errorf(dfs.Busy, "wait", "%+v", s)
			}
			return nil
		})
		if left := heldFiles(c, sleeper); len(before) == 0 || len(left) > 0 {
			t.Errorf("held were %v, left are %v", before, left)
		}
	})
}
