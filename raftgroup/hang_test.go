package raftgroup

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dfsd/dfs"
)

// TestHungInstallHoldsUpNothing: a disk takes for ever to install a snapshot, and an
// operator sets the replica aside meanwhile, which waits for that. Other groups are
// joined, destroyed and recovered in that time, whoever destroys the replica itself
// waits for no longer than it wants to, and a stop waits for no more than the step that
// hangs.
func TestHungInstallHoldsUpNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0, 1)
		defer c.stop()
		hung, goOn := make(chan struct{}), make(chan struct{})
		var once sync.Once
		var later atomic.Int32
		c.tune = func(o *Options) {
			o.AcceptGroup = func(g dfs.GroupID) bool { return g > 1 }
			o.Hooks.SnapshotStep = func(g dfs.GroupID, s SnapshotStep) {
				if g != 0 {
					return
				}
				if s == SnapFlush {
					once.Do(func() { close(hung); <-goOn })
				}
				if s == SnapIngest {
					later.Add(1)
				}
			}
		}
		sleeper, _ := c.sleeper(1000)
		c.heal()
		<-hung
		c.isolate(sleeper, true)
		time.Sleep(5 * time.Second)
		h := c.h(sleeper)
		aside := make(chan error, 1)
		go func() { aside <- c.setAside(sleeper, 0, 7) }()
		time.Sleep(time.Second)
		select {
		case err := <-aside:
			t.Fatalf("set aside while the install hangs: %v", err)
		default:
		}

		began := time.Now()
		if err := h.Step(1, batchOf(t, frame{kind: frameRemoved, group: 2})); err != nil {
			t.Errorf("a message of another group: %v", err)
		}
		if err := h.JoinGroup(3); err != nil {
			t.Errorf("join another group: %v", err)
		}
		if err := c.setAside(sleeper, 1, 7); err != nil {
			t.Errorf("set another group's replica aside: %v", err)
		}
		dissolved := func(context.Context) (bool, error) { return true, nil }
		if err := h.DestroyReplica(t.Context(), 2, dissolved); err != nil {
			t.Errorf("destroy another group's replica: %v", err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("the other groups waited for %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantKind(t, h.DestroyReplica(ctx, 0, dissolved), dfs.Unavailable)

		closed := make(chan error, 1)
		go func() { closed <- h.Close() }()
		if err := <-aside; dfs.KindOf(err) != dfs.Unavailable {
			t.Errorf("set aside at the end of the host: %v", err)
		}
		close(goOn)
		if err := <-closed; err != nil {
			t.Error(err)
		}
		if n := later.Load(); n != 0 {
			t.Errorf("the stop waited for %d more steps of the install", n)
		}
		// The next start does what is left.
		c.revive(c.kill(sleeper, 0))
		if n := later.Load(); n != 1 {
			t.Errorf("the next start took %d steps of the install", n)
		}
		c.heal()
	})
}

// TestHungInstallEndsWithoutItsDestroyer: whoever destroys a replica may go while an
// install in it hangs; what was begun goes on.
func TestHungInstallEndsWithoutItsDestroyer(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		defer c.stop()
		hung, goOn := make(chan struct{}), make(chan struct{})
		var once sync.Once
		c.tune = func(o *Options) {
			o.Hooks.SnapshotStep = func(_ dfs.GroupID, s SnapshotStep) {
				if s == SnapFlush {
					once.Do(func() { close(hung); <-goOn })
				}
			}
		}
		sleeper, _ := c.sleeper(1000)
		c.heal()
		<-hung
		h := c.h(sleeper)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := h.DestroyReplica(ctx, 0, func(context.Context) (bool, error) { return true, nil })
		wantKind(t, err, dfs.Unavailable)
		close(goOn)
		c.retry("destroy", func() error {
			if log, state := rowsOf(t, h, 0); log != 0 || state != 0 {
				return dfs.Errorf(dfs.Busy, "wait", "%d rows of the log and %d of the state are left", log, state)
			}
			return nil
		})
	})
}
