package raftgroup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

// swapped founds a group on nodes 1, 2 and 3 and then has 4 take the place of 3,
// which may be while node 2 hears nothing.
func swapped(t *testing.T, c *cluster, g dfs.GroupID, deaf bool) {
	t.Helper()
	c.found(g)
	c.grow(g, 2, 3)
	for i := range 20 {
		c.propose(g, fmt.Sprintf("put k%d before", i))
	}
	c.converge(1, 2, 3)
	c.retry("lead", func() error {
		if c.leader(g) == 1 {
			return nil
		}
		return c.h(c.leader(g)).TransferLeader(t.Context(), g, 1)
	})
	if err := c.h(4).JoinGroup(g); err != nil {
		t.Fatal(err)
	}
	if deaf {
		c.isolate(2, true)
	}
	c.retry("add learner", func() error { return c.h(1).AddLearner(t.Context(), g, 4) })
	c.retry("swap", func() error { return c.h(1).ChangeMembers(t.Context(), g, Change{4, Voter}, Change{3, None}) })
	c.retry("leave the joint configuration", func() error {
		if st, _ := c.h(1).Status(g); st.Joint {
			return dfs.Errorf(dfs.Busy, "wait", "joint")
		}
		return nil
	})
	c.propose(g, "put k0 after")
}

// confirm asks the leader, as package meta does.
func (c *cluster) confirm(g dfs.GroupID, node dfs.NodeID) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		h := c.h(c.leader(g))
		if err := h.Read(ctx, g, func(Reader) error { return nil }); err != nil {
			return false, err
		}
		st, _ := h.Status(g)
		if slices.Contains(st.Voters, node) || slices.Contains(st.Learners, node) {
			return false, dfs.Errorf(dfs.Unavailable, "confirm", "%v is a member", node)
		}
		return false, nil
	}
}

// rowsOf counts what the two stores of a node have of a group, its tombstone
// left out.
func rowsOf(t *testing.T, h *Host, g dfs.GroupID) (log, state int) {
	t.Helper()
	count := func(db *pebble.DB, start, end []byte) (n int) {
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: end})
		if err != nil {
			t.Fatal(err)
		}
		defer it.Close()
		for ok := it.First(); ok; ok = it.Next() {
			if string(it.Key()) != string(groupKey(g, logTombstone)) {
				n++
			}
		}
		return n
	}
	start := groupKey(g, 0)[:3]
	log = count(h.store.db, start, prefixEnd(start))
	start, end := stateSpan(g)
	return log, count(h.state, start, end)
}

// TestDestroyReplica: a removed replica leaves nothing, and its node may have
// another one later, in a later term than the old one ever knew.
func TestDestroyReplica(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const g = 1
		c := newCluster(t, 1, 4, g)
		defer c.stop()
		swapped(t, c, g, false)
		old, _ := c.h(3).Status(g)
		c.retry("destroy", func() error { return c.h(3).DestroyReplica(t.Context(), g, c.confirm(g, 3)) })
		if _, ok := c.h(3).Leader(g); ok {
			t.Error("there is still a replica")
		}
		if log, state := rowsOf(t, c.h(3), g); log+state > 0 {
			t.Errorf("%d rows are left in the log store, %d in the state store", log, state)
		}
		if err := c.h(3).CreateGroup(g, []dfs.NodeID{3}); dfs.KindOf(err) != dfs.Exist {
			t.Errorf("a second beginning of the group: %v", err)
		}
		c.crash(3, 0)
		if _, ok := c.h(3).Leader(g); ok {
			t.Error("a restart has brought the replica back")
		}
		if err := c.h(3).JoinGroup(g); err != nil {
			t.Fatal(err)
		}
		if st, _ := c.h(3).Status(g); st.Term <= old.Term || st.Last != 0 {
			t.Errorf("the new replica is in term %d with a log through %d, the old one was in term %d", st.Term, st.Last, old.Term)
		}
		c.grow(g, 3)
		c.propose(g, "put k1 again")
		c.converge(1, 2, 3, 4)
	})
}

// TestDestroyedReplicaDoesNotVote: node 2 has missed that node 4 took the place of
// node 3, and so counts 3's vote, whose log would have stood against it.
func TestDestroyedReplicaDoesNotVote(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const g = 1
		c := newCluster(t, 1, 4, g)
		defer c.stop()
		swapped(t, c, g, true)
		c.retry("destroy", func() error { return c.h(3).DestroyReplica(t.Context(), g, c.confirm(g, 3)) })
		if err := c.h(3).JoinGroup(g); err != nil {
			t.Fatal(err)
		}
		c.heal()
		c.isolate(1, true)
		c.isolate(4, true)
		for range 300 {
			time.Sleep(100 * time.Millisecond)
			if st, _ := c.h(2).Status(g); st.Role == RoleLeader {
				t.Fatalf("node 2 leads in term %d with a log through %d, elected by a node that has none", st.Term, st.Last)
			}
		}
		c.heal()
		c.retry("read", func() error {
			got, err := c.read(1, g, "k0")
			if err == nil && got != "after" {
				t.Errorf("k0 is %q", got)
			}
			return err
		})
	})
}

// TestDestroyIsCalledOff: a leader's word while the question is under way, or an
// answer that is none, and nothing is destroyed.
func TestDestroyIsCalledOff(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const g = 1
		c := newCluster(t, 1, 3, g)
		defer c.stop()
		c.found(g)
		c.grow(g, 2, 3)
		for _, id := range c.all() {
			err := c.h(id).DestroyReplica(t.Context(), g, func(context.Context) (bool, error) {
				time.Sleep(time.Second)
				return false, nil
			})
			if dfs.KindOf(err) != dfs.Busy {
				t.Errorf("node %v, a member: %v", id, err)
			}
			if err := c.h(id).DestroyReplica(t.Context(), g, c.confirm(g, id)); dfs.KindOf(err) != dfs.Unavailable {
				t.Errorf("node %v, a member: %v", id, err)
			}
		}
		c.propose(g, "put k v")
		c.converge(c.all()...)

		// A group that is dissolved has no leader to listen to.
		for _, id := range c.all() {
			err := c.h(id).DestroyReplica(t.Context(), g, func(context.Context) (bool, error) { return true, nil })
			if log, state := rowsOf(t, c.h(id), g); err != nil || log+state > 0 {
				t.Errorf("node %v: %v, and %d rows are left", id, err, log+state)
			}
		}
	})
}

// cutOff takes a node's disk as a power loss now leaves it, for its next host. The
// present one goes on, on its own disk, and nobody hears it.
func (c *cluster) cutOff(id dfs.NodeID, keep int) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.nodes[id]
	old.dead.Store(true)
	rng := rand.New(rand.NewPCG(c.rng.Uint64(), 2))
	next := &node{c: c, id: id, fs: old.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: rng})}
	c.nodes[id] = next
	return next
}

// TestDestroyThroughCrashes ends the node at each step of a replica's end: the
// next start leaves either the replica as it was or nothing of it.
func TestDestroyThroughCrashes(t *testing.T) {
	for step := range 3 {
		for _, keep := range []int{0, 50, 100} {
			t.Run(fmt.Sprintf("step %d, %d%% kept", step, keep), func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					const g = 1
					c := newCluster(t, uint64(step+1), 4, g)
					defer c.stop()
					var dead *node
					c.tune = func(o *Options) {
						if o.Node != 3 {
							return
						}
						o.Hooks.DestroyStep = func(_ dfs.GroupID, at int) {
							if at == step {
								dead = c.cutOff(3, keep)
							}
						}
					}
					swapped(t, c, g, false)
					ask := c.confirm(g, 3)
					h := c.h(3)
					c.retry("destroy", func() error {
						return h.DestroyReplica(t.Context(), g, func(ctx context.Context) (bool, error) {
							_, err := ask(ctx)
							if err == nil && step == 0 {
								dead = c.cutOff(3, keep)
							}
							return false, err
						})
					})
					c.tune = nil
					if dead == nil {
						t.Fatal("the step was never reached")
					}
					if err := h.Close(); err != nil { // on the orphaned disk
						t.Fatal(err)
					}
					if err := dead.start(); err != nil {
						t.Fatal(err)
					}
					log, state := rowsOf(t, c.h(3), g)
					if _, there := c.h(3).Leader(g); there != (step == 0) || !there && log+state > 0 {
						t.Fatalf("a replica: %v; %d rows in the log store, %d in the state store", there, log, state)
					}
					c.retry("destroy", func() error {
						if _, there := c.h(3).Leader(g); !there {
							return nil
						}
						return c.h(3).DestroyReplica(t.Context(), g, c.confirm(g, 3))
					})
					c.grow(g, 3)
					c.propose(g, "put k1 again")
					c.converge(1, 2, 3, 4)
				})
			})
		}
	}
}

// TestStepPassesADyingReplica: while a replica is being destroyed, messages of
// its group are dropped, and those of another group do not wait for it.
func TestStepPassesADyingReplica(t *testing.T) {
	c := newCluster(t, 1, 1, 1)
	var h *Host
	passed := make(chan error, 1)
	c.tune = func(o *Options) {
		o.AcceptGroup = func(dfs.GroupID) bool { return true }
		o.Hooks.DestroyStep = func(g dfs.GroupID, step int) {
			if step != 1 {
				return
			}
			stepped := make(chan error, 1)
			go func() {
				stepped <- h.Step(2, batchOf(t, frame{kind: frameRemoved, group: g}, frame{kind: frameRemoved, group: g + 1}))
			}()
			select {
			case err := <-stepped:
				passed <- err
			case <-time.After(10 * time.Second): // a hang, which ends when the replica has
				passed <- fmt.Errorf("the messages wait for the replica's end")
			}
		}
	}
	defer c.stop()
	c.boot()
	h = c.h(1)
	if err := h.DestroyReplica(t.Context(), 1, func(context.Context) (bool, error) { return true, nil }); err != nil {
		t.Fatal(err)
	}
	if err := <-passed; err != nil {
		t.Error(err)
	}
	if got := h.Groups(); !slices.Equal(got, []dfs.GroupID{2}) {
		t.Errorf("replicas of %v, want that of group 2", got)
	}
	if err := h.JoinGroup(1); err != nil {
		t.Errorf("the group cannot be joined once the replica is gone: %v", err)
	}
}

// TestStreamOutlivesItsReplica: what arrives of a snapshot after its replica was
// buried leaves nothing, whether the stream breaks or ends, and what was held
// before goes with the replica.
func TestStreamOutlivesItsReplica(t *testing.T) {
	dissolved := func(context.Context) (bool, error) { return true, nil }
	for _, tc := range []struct {
		name   string
		at     int32 // at which point the replica is destroyed
		breaks bool
	}{{"ends", 2, false}, {"breaks, nothing held", 1, true}, {"breaks", 2, true}, {"broke before", 0, true}} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCluster(t, 1, 3, 0)
				defer c.stop()
				reached, goOn := make(chan struct{}), make(chan struct{})
				var points atomic.Int32
				c.tune = func(o *Options) {
					o.Hooks.SnapshotStep = func(_ dfs.GroupID, s SnapshotStep) {
						if s == SnapRecvNote && points.Add(1) == tc.at {
							close(reached)
							<-goOn
						}
					}
				}
				sleeper, _ := c.sleeper(7000)
				var breaks atomic.Bool
				c.chunks = func(_, _ dfs.NodeID, n int) error {
					if breaks.Load() || tc.at == 0 && n > 20 {
						return dfs.Errorf(dfs.Unavailable, "send chunk", "the connection broke")
					}
					return nil
				}
				c.heal()
				if tc.at > 0 {
					<-reached
				} else {
					c.waitSnapshots(sleeper, func(s []SnapshotStatus) bool { return len(s) == 1 && s[0].Waiting && s[0].Keys > 0 })
					c.isolate(sleeper, true)
				}
				if err := c.h(sleeper).DestroyReplica(t.Context(), 0, dissolved); err != nil {
					t.Fatal(err)
				}
				breaks.Store(tc.breaks)
				close(goOn)
				time.Sleep(5 * time.Second)
				if log, state := rowsOf(t, c.h(sleeper), 0); log+state > 0 {
					t.Errorf("%d rows are left in the log store, %d in the state store", log, state)
				}
				if names := heldFiles(c, sleeper); len(names) > 0 {
					t.Errorf("%v are left", names)
				}
			})
		})
	}
}

// TestRecordOfADestroyedReplica: a crash may leave the record of a stream that
// outlived its replica; the next start removes it.
func TestRecordOfADestroyedReplica(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 1, 1)
		defer c.stop()
		c.boot()
		if err := c.h(1).DestroyReplica(t.Context(), 1, func(context.Context) (bool, error) { return true, nil }); err != nil {
			t.Fatal(err)
		}
		if err := c.h(1).saveHeld(&held{id: snapshotID{group: 1}}); err != nil {
			t.Fatal(err)
		}
		if log, _ := rowsOf(t, c.h(1), 1); log != 1 {
			t.Fatalf("%d rows are in the log store, want the record", log)
		}
		c.crash(1, 100)
		if log, state := rowsOf(t, c.h(1), 1); log+state > 0 {
			t.Errorf("%d rows are left in the log store, %d in the state store", log, state)
		}
	})
}

// TestRecoveryMeetsDestruction has a replica set aside while it is being destroyed.
func TestRecoveryMeetsDestruction(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const g = 1
		c := newCluster(t, 1, 4, g)
		defer c.stop()
		var burying atomic.Bool
		aside := make(chan error, 1)
		c.tune = func(o *Options) {
			id := o.Node
			o.Hooks.Failpoint = func(_ dfs.GroupID, p Failpoint) {
				if id != 3 || p != FailSynced || !burying.CompareAndSwap(true, false) {
					return
				}
				// The tombstone is written, and nobody was told.
				h := c.h(3)
				go func() { aside <- h.SetAside(Recovery{Group: g, Generation: 7}) }()
				for h.writer.waiting() == 0 && len(aside) == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		}
		swapped(t, c, g, false)
		time.Sleep(10 * time.Second)
		confirm := c.confirm(g, 3)
		c.retry("destroy", func() error {
			return c.h(3).DestroyReplica(t.Context(), g, func(ctx context.Context) (bool, error) {
				dissolved, err := confirm(ctx)
				burying.Store(err == nil)
				return dissolved, err
			})
		})
		if err := <-aside; dfs.KindOf(err) != dfs.NotExist {
			t.Errorf("a destroyed replica is set aside: %v", err)
		}
		if log, state := rowsOf(t, c.h(3), g); log+state > 0 {
			t.Errorf("%d rows are left in the log store, %d in the state store", log, state)
		}
	})
}
