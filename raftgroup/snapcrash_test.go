package raftgroup

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

var snapshotFull = flag.Bool("snapshot.full", false, "TestSnapshotSurvives… crosses everything with everything")

// telling leaves out of the crosses what differs little from another: what a
// sender has not synced, and most of what the other end's crash meets.
func telling(step SnapshotStep, keep int, other bool) bool {
	switch {
	case other:
		return keep == 0 && (step == SnapSendPoint || step == SnapRecvNote || step == SnapIngest)
	case step < SnapRecvStart:
		return keep == 0
	}
	return true
}

// TestSnapshotSurvivesCrashAtEachStep loses power between any two steps of a
// snapshot's way, of the node whose step it is and of the node at the other end:
// with all that was not synced, and with nothing of it. The old state stands
// until the install's second step is done, and the new one is whole after it.
func TestSnapshotSurvivesCrashAtEachStep(t *testing.T) {
	for step := SnapSendOpen; step < NumSnapshotSteps; step++ {
		for _, keep := range []int{0, 100} {
			for _, other := range []bool{false, true} {
				if !*snapshotFull && !telling(step, keep, other) {
					continue
				}
				t.Run(fmt.Sprintf("step %d keep %d other end %v", step, keep, other), func(t *testing.T) {
					inBubble(t, func(t *testing.T) { snapshotCrash(t, step, keep, other) })
				})
			}
		}
	}
}

func snapshotCrash(t *testing.T, step SnapshotStep, keep int, other bool) {
	c := newCluster(t, 1, 3, 0)
	defer c.stop()
	armed := new(atomic.Bool)
	crashed := make(chan *node, 1)
	var count atomic.Int32
	var lead, sleeper dfs.NodeID
	c.tune = func(o *Options) {
		id := o.Node
		o.Hooks.SnapshotStep = func(_ dfs.GroupID, s SnapshotStep) {
			if s != step || !armed.Load() || count.Add(1) != occurrence(step) {
				return
			}
			if other {
				id = lead + sleeper - id
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.nodes[id].dead.Store(true)
			rng := rand.New(rand.NewPCG(1, uint64(step)))
			crashed <- &node{c: c, id: id, fs: c.nodes[id].fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: rng})}
		}
	}
	var applied uint64
	sleeper, applied = c.sleeper(1000)
	old := c.dump(sleeper, 0)
	if err := c.h(sleeper).state.Flush(); err != nil { // a start has it without the log
		t.Fatal(err)
	}
	lead = c.leader(0)
	if step == SnapForget || step == SnapForgetFiles {
		c.leaveHeld(lead, sleeper)
		lead = c.leader(0)
	}
	armed.Store(true)
	c.heal()
	next := <-crashed
	want := sleeper
	if (step < SnapRecvStart) != other {
		want = lead
	}
	if next.id != want {
		t.Fatalf("step %d is node %v's, want %v", step, next.id, want)
	}
	if err := c.nodes[next.id].host.Close(); err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	c.nodes[next.id] = next
	c.mu.Unlock()
	c.revive(next)
	st, _ := c.h(sleeper).Status(0)
	if next.id == sleeper && !other {
		installed := st.Applied > applied
		// A start finishes an install whose intent is written.
		if installed != (step > SnapIntent) {
			t.Errorf("after a crash before step %d the state is at entry %d", step, st.Applied)
		}
		if !installed && (st.Applied != applied || c.dump(sleeper, 0) != old) {
			t.Errorf("after a crash before step %d the old state is another: %+v", step, st)
		}
	}
	c.propose(0, "put new value")
	c.converge(c.all()...)
	c.noSnapFiles()
}

// occurrence is at which time a step comes that the crash does.
func occurrence(s SnapshotStep) int32 {
	switch s {
	case SnapSendData, SnapSendPoint, SnapRecvSeal, SnapRecvNote, SnapRecvNoted:
		return 3 // when something is held
	}
	return 1
}

// leaveHeld makes the receiver hold what nobody will send the rest of.
func (c *cluster) leaveHeld(lead, sleeper dfs.NodeID) {
	c.t.Helper()
	broken := make(chan struct{})
	c.breakOnce(8, func(_, to dfs.NodeID) {
		c.isolate(to, true)
		close(broken)
	})
	c.heal()
	<-broken
	c.waitSnapshots(sleeper, func(s []SnapshotStatus) bool { return len(s) == 1 && s[0].Waiting && s[0].Keys > 0 })
	c.crash(lead, 100)
}

// brokenDisk fails one operation in a directory, once.
type brokenDisk struct {
	vfs.FS
	op, dir string
	left    *atomic.Int32 // such operations until then; none: not yet
}

var errBrokenDisk = errors.New("the disk broke")

func (f *brokenDisk) fail(op, path string) error {
	if op == f.op && strings.Contains(path, f.dir) && f.left.Add(-1) == 0 {
		return errBrokenDisk
	}
	return nil
}

func (f *brokenDisk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.fail("create", name); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(name, c)
	return &brokenFile{file, f, name}, err
}

func (f *brokenDisk) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(from, to, c)
	return &brokenFile{file, f, to}, err
}

func (f *brokenDisk) OpenDir(name string) (vfs.File, error) {
	file, err := f.FS.OpenDir(name)
	return &brokenFile{file, f, name + "/"}, err
}

func (f *brokenDisk) Remove(name string) error {
	if err := f.fail("remove", name); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

func (f *brokenDisk) Link(from, to string) error {
	if err := f.fail("link", from); err != nil {
		return err
	}
	return f.FS.Link(from, to)
}

func (f *brokenDisk) Unwrap() vfs.FS { return f.FS }

type brokenFile struct {
	vfs.File
	f    *brokenDisk
	name string
}

func (f *brokenFile) Write(p []byte) (int, error) {
	if err := f.f.fail("write", f.name); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *brokenFile) Sync() error {
	op := "sync"
	if strings.HasSuffix(f.name, "/") {
		op = "sync directory"
	}
	if err := f.f.fail(op, f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *brokenFile) SyncData() error { return f.Sync() }

// TestSnapshotSurvivesDiskErrors: an error of the disk while a snapshot is
// stored fails its stream and nothing else; one while it is installed ends the
// host, and a start after it has the old state or the new.
func TestSnapshotSurvivesDiskErrors(t *testing.T) {
	for _, op := range []string{"create", "write", "sync", "sync directory", "remove", "link"} {
		for _, nth := range []int32{1, 3, 4} {
			if !*snapshotFull && nth != 3 {
				continue
			}
			t.Run(fmt.Sprintf("%s %d", op, nth), func(t *testing.T) {
				inBubble(t, func(t *testing.T) { diskError(t, op, nth) })
			})
		}
	}
}

func diskError(t *testing.T, op string, nth int32) {
	c := newCluster(t, 1, 3, 0)
	defer c.stop()
	left := new(atomic.Int32)
	c.tune = func(o *Options) { o.FS = &brokenDisk{FS: o.FS, op: op, dir: "raft-snap", left: left} }
	sleeper, applied := c.sleeper(1000)
	old := c.dump(sleeper, 0)
	left.Store(nth)
	c.heal()
	h := c.h(sleeper)
	for left.Load() > 0 {
		now, err := c.tryDump(sleeper, 0)
		st, _ := h.Status(0)
		if h.failure() != nil { // after that nothing it says counts
			break
		}
		if err != nil || st.Applied == applied && now != old {
			t.Fatalf("the old state is another: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
	if h.failure() != nil {
		c.crash(sleeper, 0)
	}
	c.propose(0, "put new value")
	c.converge(c.all()...)
	c.noSnapFiles()
}

// TestSnapshotSurvivesStoreErrors: a store that cannot be written at a step ends
// the host, and a start after it has the old state or the new.
func TestSnapshotSurvivesStoreErrors(t *testing.T) {
	for _, tc := range []struct {
		step    SnapshotStep
		op, dir string
	}{
		{SnapRecvNote, "sync", "raft-log"},
		{SnapIntent, "sync", "raft-log"},
		{SnapFlush, "create", "raft-state"},
		{SnapFlush, "sync", "raft-state"},
		{SnapIngest, "sync", "raft-state"},
		{SnapIngest, "sync directory", "raft-state"},
		{SnapRestart, "sync", "raft-log"},
	} {
		t.Run(fmt.Sprintf("step %d %s %s", tc.step, tc.op, tc.dir), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCluster(t, 1, 3, 0)
				defer c.stop()
				left, armed := new(atomic.Int32), new(atomic.Bool)
				c.tune = func(o *Options) {
					o.FS = &brokenDisk{FS: o.FS, op: tc.op, dir: tc.dir, left: left}
					o.Hooks.SnapshotStep = func(_ dfs.GroupID, s SnapshotStep) {
						if s == tc.step && armed.CompareAndSwap(true, false) {
							left.Store(1)
						}
					}
				}
				sleeper, _ := c.sleeper(1000)
				armed.Store(true)
				c.heal()
				<-c.h(sleeper).Failed()
				if !strings.Contains(c.h(sleeper).Failure().Error(), errBrokenDisk.Error()) {
					t.Errorf("the host failed of %v", c.h(sleeper).Failure())
				}
				c.crash(sleeper, 0)
				c.propose(0, "put new value")
				c.converge(c.all()...)
				c.noSnapFiles()
			})
		})
	}
}
