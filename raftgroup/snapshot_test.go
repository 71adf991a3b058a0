package raftgroup

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

// fill writes so much that a log of the test's size is cut.
func (c *cluster) fill(g dfs.GroupID, n, size int) {
	c.t.Helper()
	for i := range n {
		c.propose(g, fmt.Sprintf("put k%03d %s", i, strings.Repeat(string(rune('a'+i%26)), size)))
	}
}

// waitCut waits until a node's log begins after index.
func (c *cluster) waitCut(id dfs.NodeID, g dfs.GroupID, index uint64) {
	c.t.Helper()
	for range 600 {
		if st, _ := c.h(id).Status(g); st.First > index {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatalf("the log of %v on node %v is not cut", g, id)
}

// sleeper boots three nodes and cuts one off until the others have cut what it
// lacks. It returns the sleeper and what it has applied.
func (c *cluster) sleeper(size int) (dfs.NodeID, uint64) {
	c.t.Helper()
	c.boot()
	c.propose(0, "put old value")
	c.converge(c.all()...)
	sleeper := c.leader(0)%3 + 1
	st, _ := c.h(sleeper).Status(0)
	c.isolate(sleeper, true)
	c.fill(0, 120, size)
	for _, id := range c.all() { // one entry more than the sleeper has
		if id != sleeper {
			c.waitCut(id, 0, st.Last+1)
		}
	}
	return sleeper, st.Applied
}

func TestSleeperCatchesUpWhileWritesGoOn(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		defer c.stop()
		sleeper, applied := c.sleeper(7000)
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				_, _ = c.h(c.leader(0)).Propose(t.Context(), 0, fmt.Appendf(nil, "app live %d,", i))
			}
		})
		c.heal()
		time.Sleep(5 * time.Second)
		st, _ := c.h(sleeper).Status(0)
		if st.First <= applied+1 || st.Applied < 120 {
			t.Errorf("node %v is at %+v: want a log that begins after a snapshot", sleeper, st)
		}
		close(stop)
		wg.Wait()
		c.converge(c.all()...)
		if c.snapshots != 1 {
			t.Errorf("%d snapshots sent, want 1", c.snapshots)
		}
	})
}

func TestSnapshotEndDiesHalfWay(t *testing.T) {
	for _, who := range []string{"sender", "receiver"} {
		t.Run(who, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCluster(t, 1, 3, 0)
				defer c.stop()
				sleeper, applied := c.sleeper(7000)
				reached := make(chan [2]dfs.NodeID, 1)
				var once atomic.Bool
				c.chunks = func(from, to dfs.NodeID, n int) error {
					if n == 3 && once.CompareAndSwap(false, true) {
						reached <- [2]dfs.NodeID{from, to}
						time.Sleep(time.Minute) // the crash comes now
					}
					return nil
				}
				c.heal()
				ends := <-reached
				victim := ends[0]
				if who == "receiver" {
					victim = ends[1]
				}
				st, _ := c.h(sleeper).Status(0)
				n := c.kill(victim, 0)
				c.revive(n)
				if who == "receiver" {
					st, _ = c.h(sleeper).Status(0)
				}
				if st.Applied > applied || st.Last != applied {
					t.Errorf("the receiver is at %+v: want the old state and log of entry %d", st, applied)
				}
				c.converge(c.all()...)
				c.noSnapFiles()
			})
		})
	}
}

// noSnapFiles checks that nothing of a stream is left after a restart.
func (c *cluster) noSnapFiles() {
	c.t.Helper()
	for _, id := range c.all() {
		c.crash(id, 100)
		names, err := c.nodes[id].fs.List("data/raft-snap")
		if err != nil || len(names) > 0 {
			c.t.Errorf("node %v has %v left in raft-snap (%v)", id, names, err)
		}
	}
}

// TestInstallSurvivesCrashAtEachStep loses power right before each step of an
// install and right after it.
func TestInstallSurvivesCrashAtEachStep(t *testing.T) {
	for step := 1; step <= 4; step++ {
		for _, keep := range []int{0, 100} {
			t.Run(fmt.Sprintf("step %d keep %d", step, keep), func(t *testing.T) {
				inBubble(t, func(t *testing.T) { installCrash(t, step, keep) })
			})
		}
	}
}

func installCrash(t *testing.T, step, keep int) {
	c := newCluster(t, 1, 3, 0)
	defer c.stop()
	crashed := make(chan *node, 1)
	var once atomic.Bool
	c.tune = func(o *Options) {
		id, fs := o.Node, o.FS.(*vfs.MemFS)
		o.Hooks.InstallStep = func(_ dfs.GroupID, s int) {
			if s != step || !once.CompareAndSwap(false, true) {
				return
			}
			c.mu.Lock()
			c.nodes[id].dead.Store(true)
			c.mu.Unlock()
			rng := rand.New(rand.NewPCG(1, uint64(step)))
			crashed <- &node{c: c, id: id, fs: fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: rng})}
		}
	}
	sleeper, _ := c.sleeper(1000)
	c.heal()
	next := <-crashed
	if next.id != sleeper {
		t.Fatalf("node %v installs a snapshot, want %v", next.id, sleeper)
	}
	if err := c.nodes[sleeper].host.Close(); err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	c.nodes[sleeper] = next
	c.mu.Unlock()
	c.revive(next)
	st, _ := c.h(sleeper).Status(0)
	if installed := st.Applied > 100; installed != (step > 1) {
		t.Errorf("after a crash before step %d the state is at entry %d", step, st.Applied)
	}
	c.propose(0, "put new value")
	c.converge(c.all()...)
}

func TestSnapshotsAreRefusedWhenMalformed(t *testing.T) {
	good := func(h *Host) [][]byte {
		head := snapshotHead{group: 0, term: 5, at: applied{index: 50, term: 5, conf: confState([]uint64{1, 2})}}
		return [][]byte{append([]byte{chunkHead}, head.encode()...)}
	}
	for name, tc := range map[string]struct {
		chunks func(h *Host) [][]byte
		kind   dfs.Kind
	}{
		"empty":           {func(*Host) [][]byte { return [][]byte{{}} }, dfs.Invalid},
		"no head":         {func(*Host) [][]byte { return [][]byte{{chunkData, 1}} }, dfs.Invalid},
		"torn head":       {func(*Host) [][]byte { return [][]byte{{chunkHead, recordVersion, 1}} }, dfs.Invalid},
		"unknown version": {func(*Host) [][]byte { return [][]byte{{chunkHead, 99}} }, dfs.Invalid},
		"torn":            {good, dfs.Unavailable},
		"unknown chunk":   {func(h *Host) [][]byte { return append(good(h), []byte{'X'}) }, dfs.Invalid},
		"wrong end":       {func(h *Host) [][]byte { return append(good(h), []byte{chunkEnd, 0, 1, 2}) }, dfs.Corrupt},
		"torn key":        {func(h *Host) [][]byte { return append(good(h), []byte{chunkData, 9, 'a'}, []byte{chunkEnd, 0}) }, dfs.Invalid},
		"no value":        {func(h *Host) [][]byte { return append(good(h), []byte{chunkData, 1, 'a'}, []byte{chunkEnd, 0}) }, dfs.Invalid},
		"order": {func(h *Host) [][]byte {
			return append(good(h), []byte{chunkData, 1, 'b', 0, 1, 'a', 0}, []byte{chunkEnd, 2})
		}, dfs.Invalid},
		"huge": {func(h *Host) [][]byte {
			return append(good(h), []byte{chunkData, 0xff, 0xff, 0xff, 0xff, 0x7f})
		}, dfs.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCluster(t, 1, 1, 0)
				defer c.stop()
				c.boot()
				c.propose(0, "put a 1")
				chunks := tc.chunks(c.h(1))
				err := c.h(1).ReceiveSnapshot(t.Context(), 2, chunkList(&chunks))
				wantKind(t, err, tc.kind)
				c.propose(0, "put a 2")
				c.noSnapFiles()
			})
		})
	}
}
