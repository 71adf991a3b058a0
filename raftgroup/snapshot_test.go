package raftgroup

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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

func TestSnapshotsAreRefusedWhenMalformed(t *testing.T) {
	id := snapshotID{group: 0, start: 1, number: 1, at: applied{index: 50, term: 5, conf: confState([]uint64{1, 2})}}
	head := snapshotHead{term: 5, snapshotID: id}
	begin := point{sum: id.newSum().Sum(nil)}
	start := func(more ...[]byte) [][]byte {
		return append([][]byte{
			append([]byte{chunkHead}, head.encode()...), append([]byte{chunkFrom}, begin.encode()...),
		}, more...)
	}
	end := func(keys uint64) []byte {
		p := point{keys: keys, sum: make([]byte, 32)}
		return append([]byte{chunkEnd}, p.encode()...)
	}
	flipped := append([]byte{chunkHead}, head.encode()...)
	flipped[5] ^= 1
	ahead := point{keys: 7, sum: begin.sum}
	for name, tc := range map[string]struct {
		chunks [][]byte
		kind   dfs.Kind
	}{
		"empty":           {[][]byte{{}}, dfs.Invalid},
		"no head":         {[][]byte{{chunkData, 1}}, dfs.Invalid},
		"torn head":       {[][]byte{{chunkHead, recordVersion, 1}}, dfs.Invalid},
		"flipped head":    {[][]byte{flipped}, dfs.Invalid},
		"unknown version": {[][]byte{append([]byte{chunkHead}, appendSum([]byte{99})...)}, dfs.Invalid},
		"no beginning":    {start()[:1], dfs.Unavailable},
		"data at once":    {[][]byte{start()[0], {chunkData, 1}}, dfs.Invalid},
		"torn beginning":  {[][]byte{start()[0], {chunkFrom, recordVersion}}, dfs.Invalid},
		"begins later":    {[][]byte{start()[0], append([]byte{chunkFrom}, ahead.encode()...)}, dfs.Invalid},
		"torn":            {start(), dfs.Unavailable},
		"empty chunk":     {start([]byte{}), dfs.Invalid},
		"large chunk":     {start(make([]byte, SnapshotChunk+1)), dfs.Invalid},
		"unknown chunk":   {start([]byte{'X'}), dfs.Invalid},
		"malformed end":   {start([]byte{chunkEnd, recordVersion, 0, 1, 2}), dfs.Invalid},
		"wrong end":       {start(end(0)), dfs.Corrupt},
		"wrong point":     {start([]byte{chunkData, 1, 'a', 0}, append([]byte{chunkPoint}, end(1)[1:]...)), dfs.Corrupt},
		"torn key":        {start([]byte{chunkData, 9, 'a'}, end(0)), dfs.Invalid},
		"torn length":     {start([]byte{chunkData, 0x80}, end(0)), dfs.Invalid},
		"no value":        {start([]byte{chunkData, 1, 'a'}, end(0)), dfs.Invalid},
		"point in a row":  {start([]byte{chunkData, 1, 'a'}, append([]byte{chunkPoint}, end(0)[1:]...)), dfs.Invalid},
		"order":           {start([]byte{chunkData, 1, 'b', 0, 1, 'a', 0}, end(2)), dfs.Invalid},
		"huge":            {start([]byte{chunkData, 0xff, 0xff, 0xff, 0xff, 0x7f}), dfs.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCluster(t, 1, 1, 0)
				defer c.stop()
				c.boot()
				c.propose(0, "put a 1")
				err := c.h(1).ReceiveSnapshot(t.Context(), 2, &chunkList{chunks: tc.chunks})
				wantKind(t, err, tc.kind)
				c.propose(0, "put a 2")
				c.noSnapFiles()
			})
		})
	}
}
