package raftgroup

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"dfsd/dfs"
)

// fullDisk is a disk that has room for so many more requests to take space; the
// next ones fail, as long as it is full.
type fullDisk struct {
	left  atomic.Int64 // below 0: full
	syncs bool         // the file system notices at the sync
	hits  atomic.Int64
}

func (d *fullDisk) MaybeError(op errorfs.Op) error {
	switch op.Kind {
	case errorfs.OpCreate, errorfs.OpLink, errorfs.OpMkdirAll, errorfs.OpReuseForWrite, errorfs.OpFilePreallocate, errorfs.OpFileWrite, errorfs.OpFileWriteAt:
		if d.syncs {
			return nil
		}
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
		if !d.syncs {
			return nil
		}
	default:
		return nil
	}
	if d.left.Add(-1) < 0 {
		d.hits.Add(1)
		return syscall.ENOSPC
	}
	return nil
}

func (d *fullDisk) String() string { return "full disk" }

// TestDiskWithoutReserve takes the last space away after each number of requests
// for some: the host fails as a whole, says why and where, and a start with space
// finds everything that was acknowledged, after a crash too.
func TestDiskWithoutReserve(t *testing.T) {
	for _, how := range []string{"write", "sync"} {
		t.Run(how, func(t *testing.T) {
			ends := 0
			for room := int64(0); ends == 0; room = room*5/4 + 1 {
				inBubble(t, func(t *testing.T) {
					if !fillDisk(t, room, how == "sync") {
						ends++
					}
				})
				if t.Failed() {
					t.Fatalf("with room for %d requests", room)
				}
			}
		})
	}
}

// fillDisk reports whether the disk became full before the work was done.
func fillDisk(t *testing.T, room int64, syncs bool) bool {
	c := newCluster(t, uint64(room), 1, testGroups(3)...)
	defer c.stop()
	disk := &fullDisk{syncs: syncs}
	disk.left.Store(1 << 40)
	c.tune = func(o *Options) {
		o.FS, o.MemTableSize = errorfs.Wrap(o.FS, disk), 64<<10
		o.KeepEntries, o.LogBytes = 8, 2<<10
	}
	c.boot()
	for _, g := range c.groups {
		c.propose(g, "put before full")
	}
	disk.left.Store(room)
	acked := map[string]string{}
	value := strings.Repeat("v", 2000)
	var failure error
	for i := range 150 {
		key := fmt.Sprintf("k%d", i)
		for _, g := range c.groups {
			_, err := c.h(1).Propose(t.Context(), g, []byte("put "+key+" "+value))
			if err == nil {
				acked[fmt.Sprintf("%v %s", g, key)] = value
				continue
			}
			if k := dfs.KindOf(err); k != dfs.Unknown && k != dfs.Unavailable {
				t.Errorf("propose on a full disk: %v", err)
			}
			failure = err
		}
		if failure != nil {
			break
		}
		time.Sleep(200 * time.Millisecond) // the log is cut, the state flushed
	}
	if failure == nil && disk.hits.Load() == 0 {
		return false
	}
	select {
	case <-c.h(1).Failed():
	case <-time.After(time.Minute):
		t.Errorf("%v, and the host does not say that it failed", failure)
		return true
	}
	why := c.h(1).Failure()
	wantKind(t, why, dfs.NoSpace)
	if text := fmt.Sprint(why); !strings.Contains(text, "no space left") || !strings.Contains(text, "data") || strings.Contains(text, "\n") {
		t.Errorf("the reason does not name cause and place in one line: %q", text)
	}
	_ = c.h(1).Close()

	n := c.nodes[1]
	if room%2 == 0 {
		n.fs = n.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(uint64(room), 7))})
	}
	disk.left.Store(2)
	if err := n.start(); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("a start without space: %v", err)
	}
	disk.left.Store(1 << 40)
	if err := n.start(); err != nil {
		t.Errorf("a start with space again: %v", err)
		return true
	}
	for _, g := range c.groups {
		c.propose(g, "put after full")
		for i := range 150 {
			key := fmt.Sprintf("k%d", i)
			if want, ok := acked[fmt.Sprintf("%v %s", g, key)]; ok {
				if got, err := c.read(1, g, key); err != nil || got != want {
					t.Errorf("%v: %s was acknowledged and is %q, %v", g, key, got, err)
				}
			}
		}
	}
	return true
}

// TestFailedDirectorySync lets the n-th sync of a directory fail: Pebble would end
// the process, here the host ends.
func TestFailedDirectorySync(t *testing.T) {
	failed := 0
	for nth := int64(1); nth < 20; nth++ {
		inBubble(t, func(t *testing.T) {
			c := newCluster(t, uint64(nth), 1, 0)
			defer c.stop()
			var left atomic.Int64
			left.Store(1 << 40)
			c.tune = func(o *Options) {
				o.MemTableSize, o.KeepEntries, o.LogBytes = 64<<10, 8, 2<<10
				o.FS = errorfs.Wrap(o.FS, errorfs.InjectorFunc(func(op errorfs.Op) error {
					dir := op.Path == "data" || strings.HasSuffix(op.Path, "raft-log") || strings.HasSuffix(op.Path, "raft-state")
					if op.Kind == errorfs.OpFileSync && dir && left.Add(-1) < 0 {
						return errorfs.ErrInjected
					}
					return nil
				}))
			}
			c.boot()
			c.propose(0, "put before 1")
			left.Store(nth - 1)
			last := -1
			for i := range 100 {
				if _, err := c.h(1).Propose(t.Context(), 0, []byte(fmt.Sprintf("put k %d,%s", i, strings.Repeat("v", 3000)))); err != nil {
					break
				}
				last = i
				time.Sleep(200 * time.Millisecond)
			}
			if last == 99 && left.Load() >= 0 {
				return // not so many
			}
			failed++
			<-c.h(1).Failed()
			if err := c.h(1).Close(); err != nil {
				t.Logf("closed: %v", err)
			}
			left.Store(1 << 40)
			n := c.nodes[1]
			n.fs = n.fs.CrashClone(vfs.CrashCloneCfg{})
			if err := n.start(); err != nil {
				t.Fatal(err)
			}
			c.propose(0, "put after 1")
			if got, err := c.read(1, 0, "k"); last >= 0 && (err != nil || !strings.HasPrefix(got, fmt.Sprintf("%d,", last))) && !strings.HasPrefix(got, fmt.Sprintf("%d,", last+1)) {
				t.Errorf("%d was acknowledged, read %.10q, %v", last, got, err)
			}
		})
	}
	if failed < 5 {
		t.Errorf("only %d syncs of directories failed", failed)
	}
}

// TestSpareKeepsShortLogs: a host that is short of space cuts what live peers have
// acknowledged, long before its log is as long as it may be.
func TestSpareKeepsShortLogs(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		c.tune = func(o *Options) { o.KeepEntries, o.LogBytes = 10_000, 64<<20 }
		defer c.stop()
		c.boot()
		c.fill(0, 2*spareEntries, 100)
		time.Sleep(time.Minute)
		for _, id := range c.all() {
			if st, _ := c.h(id).Status(0); st.First > 10 {
				t.Errorf("the log of node %v begins at %d", id, st.First)
			}
		}
		c.h(2).Spare(true)
		c.waitCut(2, 0, spareEntries)
		if st, _ := c.h(1).Status(0); st.First > 10 {
			t.Errorf("node 1 has space, and its log begins at %d", st.First)
		}
		c.h(2).Spare(false)
		c.fill(0, 10, 100)
		c.converge(c.all()...)
	})
}

// TestSnapshotLeavesTheReserve: a snapshot that would eat what the log needs is
// not received until there is room; the host lives on meanwhile.
func TestSnapshotLeavesTheReserve(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		c.tune = func(o *Options) { o.Reserve = 400 << 10 }
		defer c.stop()
		sleeper, applied := c.sleeper(7000)
		c.nodes[sleeper].fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 100 << 10})
		c.heal()
		time.Sleep(20 * time.Second)
		st, _ := c.h(sleeper).Status(0)
		if names, err := c.nodes[sleeper].fs.List("data/raft-snap"); st.Applied > applied || c.h(sleeper).Failure() != nil || err != nil || len(names) > 0 {
			t.Errorf("without room: applied %d, failure %v, files %v, %v", st.Applied, c.h(sleeper).Failure(), names, err)
		}
		c.nodes[sleeper].fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 1 << 29})
		c.converge(c.all()...)
	})
}
