package raftgroup

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/sim/rot"
)

// TestDamagedStoresAreRefused damages a closed node's directory in each way
// that must not pass for a whole one.
func TestDamagedStoresAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		damage func(t *testing.T, fs *vfs.MemFS)
		kind   dfs.Kind
		text   string
	}{
		"log lost its tail": {func(t *testing.T, fs *vfs.MemFS) {
			rot.Truncate(t, fs, rot.NewestLog(t, fs, "data/raft-log"), func(n int) int { return n / 2 })
		}, dfs.Corrupt, "acknowledged entries are lost"},
		"log lost its last record": {func(t *testing.T, fs *vfs.MemFS) {
			rot.Truncate(t, fs, rot.NewestLog(t, fs, "data/raft-log"), func(n int) int { return n - 12 })
		}, dfs.Corrupt, "acknowledged entries are lost"},
		"log rotted in its tail": {func(t *testing.T, fs *vfs.MemFS) {
			rot.Rewrite(t, fs, rot.NewestLog(t, fs, "data/raft-log"), func(b []byte) []byte {
				b[len(b)*3/4] ^= 1
				return b
			})
		}, dfs.Corrupt, ""},
		"log is gone": {func(t *testing.T, fs *vfs.MemFS) {
			if err := fs.RemoveAll("data/raft-log"); err != nil {
				t.Fatal(err)
			}
		}, dfs.Corrupt, "lost"},
		"log was emptied": {func(t *testing.T, fs *vfs.MemFS) {
			if err := errors.Join(fs.RemoveAll("data/raft-log"), fs.MkdirAll("data/raft-log", 0o755)); err != nil {
				t.Fatal(err)
			}
		}, dfs.Corrupt, "does not exist"},
		"log lost its manifest": {func(t *testing.T, fs *vfs.MemFS) {
			names, err := fs.List("data/raft-log")
			for _, name := range names {
				if strings.HasPrefix(name, "marker.manifest") {
					err = errors.Join(err, fs.Remove("data/raft-log/"+name))
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}, dfs.Corrupt, "does not exist"},
		"mark is gone": {func(t *testing.T, fs *vfs.MemFS) {
			if err := fs.Remove("data/raft-mark"); err != nil {
				t.Fatal(err)
			}
		}, dfs.Corrupt, "is missing"},
		"mark rotted": {func(t *testing.T, fs *vfs.MemFS) {
			rot.Rewrite(t, fs, "data/raft-mark", func(b []byte) []byte { return make([]byte, len(b)) })
		}, dfs.Corrupt, "neither slot"},
		"another node's": {nil, dfs.Invalid, "belongs to node"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCluster(t, 1, 1, 0)
				defer c.stop()
				c.boot()
				for range 30 {
					c.propose(0, "app a "+strings.Repeat("x", 100))
				}
				time.Sleep(2 * time.Second) // the mark is synced in the background
				n := c.kill(1, 0)
				o := n.options()
				if tc.damage != nil {
					tc.damage(t, n.fs)
				} else {
					o.Node = 2
				}
				h, err := Open(o)
				if err == nil {
					t.Fatalf("opened; %+v; close: %v", h.Statuses(), h.Close())
				}
				wantKind(t, err, tc.kind)
				if IsLogDamage(err) != (tc.kind == dfs.Corrupt) {
					t.Errorf("%v: is damage of the log: %v", err, IsLogDamage(err))
				}
				if !strings.Contains(err.Error(), tc.text) {
					t.Errorf("error %q does not say %q", err, tc.text)
				}
			})
		})
	}
}

// TestMarkMayLag opens stores whose mark says less than the log holds.
func TestMarkMayLag(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 1, 0)
		defer c.stop()
		c.boot()
		for range 5 {
			c.propose(0, "app a x")
			n := c.kill(1, 0)
			rot.Rewrite(t, n.fs, "data/raft-mark", func(b []byte) []byte {
				copy(b, encodeMark(0))
				clear(b[markSlot : markSlot+markLen])
				return b
			})
			c.revive(n)
		}
		c.leader(0)
		if got, err := c.read(1, 0, "a"); got != "xxxxx" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
	})
}

// TestRolledBackFollowerIsFound gives a follower an old copy of its whole
// directory, mark included. Only its leader can know.
func TestRolledBackFollowerIsFound(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		defer c.stop()
		c.boot()
		c.propose(0, "put a 1")
		c.converge(c.all()...)
		victim := c.leader(0)%3 + 1
		old := c.nodes[victim].fs.CrashClone(vfs.CrashCloneCfg{})
		for range 10 {
			c.propose(0, "app a x")
		}
		c.converge(c.all()...)
		n := c.kill(victim, 0)
		n.fs = old
		c.revive(n)
		h := c.h(victim)
		<-h.Failed()
		if why := h.Failure(); !IsLogDamage(why) || !errors.Is(why, dfs.Corrupt) {
			t.Errorf("it failed with %v", why)
		}
		_, err := h.Propose(t.Context(), 0, []byte("put a 3"))
		wantKind(t, err, dfs.Unavailable)
		_ = h.Close() // reports why it failed
		c.mu.Lock()
		n.host = nil
		c.mu.Unlock()
		for range 2 {
			n.fs = n.fs.CrashClone(vfs.CrashCloneCfg{})
			if err := n.start(); !IsLogDamage(err) || !strings.Contains(err.Error(), "lost what it promised") {
				t.Errorf("it opens again: %v", err)
			}
		}
		c.propose(0, "put a 2")
		var rest []dfs.NodeID
		for _, id := range c.all() {
			if id != victim {
				rest = append(rest, id)
			}
		}
		c.converge(rest...)
	})
}

// TestCommitBeyondLogEndsTheHost sends what would make the library panic.
func TestCommitBeyondLogEndsTheHost(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0, 1)
		defer c.stop()
		c.boot()
		c.propose(0, "put a 1")
		c.propose(1, "put a 1")
		lead := c.leader(0)
		victim := lead%3 + 1
		st, _ := c.h(victim).Status(0)
		m := &pb.Message{
			Type: pb.MsgHeartbeat.Enum(), From: proto.Uint64(uint64(lead)), To: proto.Uint64(uint64(victim)),
			Term: proto.Uint64(st.Term), Commit: proto.Uint64(st.Last + 100),
		}
		batch, err := appendFrame([]byte{batchVersion}, &frame{kind: frameRaft, group: 0, msg: m})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.h(victim).Step(lead, sealBatch(batch)); err != nil {
			t.Fatal(err)
		}
		h := c.h(victim)
		<-h.Failed()
		if why := h.Failure(); !IsLogDamage(why) {
			t.Errorf("it failed with %v", why)
		}
		_ = h.Close() // reports why it failed
		c.mu.Lock()
		c.nodes[victim].host = nil
		c.mu.Unlock()
		c.propose(0, "put a 2")
	})
}

// cutLogs has every node cut the log of group 0, so that a state which is lost
// does not come back from it.
func (c *cluster) cutLogs() {
	c.t.Helper()
	c.fill(0, 120, 500)
	for _, id := range c.all() {
		c.waitCut(id, 0, 40)
	}
	c.propose(0, "put mid value") // syncs the cut
}

// loseState takes down a follower of group 0, whose state store is gone and in the
// log of no node any more.
func (c *cluster) loseState() *node {
	c.t.Helper()
	c.cutLogs()
	c.converge(c.all()...)
	n := c.kill(c.leader(0)%3+1, 100)
	if err := n.fs.RemoveAll("data/raft-state"); err != nil {
		c.t.Fatal(err)
	}
	return n
}

// TestLostStateIsFetched removes a follower's state store.
func TestLostStateIsFetched(t *testing.T) {
	for _, name := range []string{"log from the start", "log was cut", "damaged"} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCluster(t, 1, 3, 0)
				defer c.stop()
				c.boot()
				c.propose(0, "put old value")
				if name != "log from the start" {
					c.cutLogs()
				}
				c.converge(c.all()...)
				victim := c.leader(0)%3 + 1
				n := c.kill(victim, 100)
				if name == "damaged" {
					names, _ := n.fs.List("data/raft-state")
					for _, f := range names {
						if strings.HasPrefix(f, "MANIFEST") {
							rot.Rewrite(t, n.fs, "data/raft-state/"+f, func(b []byte) []byte { return b[len(b)/2:] })
						}
					}
				} else if err := n.fs.RemoveAll("data/raft-state"); err != nil {
					t.Fatal(err)
				}
				c.revive(n)
				lost := name != "log from the start"
				if st, _ := c.h(victim).Status(0); st.NeedState != lost {
					t.Errorf("status %+v, want lost state: %v", st, lost)
				}
				if lost {
					wantKind(t, c.h(victim).ReadLocal(0, func(Reader) error { return nil }), dfs.Unavailable)
				}
				c.propose(0, "put new value")
				c.converge(c.all()...)
				// It has its state for good.
				c.crash(victim, 0)
				c.converge(c.all()...)
			})
		})
	}
}

// TestFailingDiskFailsTheHost lets every write fail at some moment.
func TestFailingDiskFailsTheHost(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		var broken atomic.Bool
		c.tune = func(o *Options) {
			if o.Node != 1 {
				return
			}
			o.FS = errorfs.Wrap(o.FS, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if broken.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
					return errorfs.ErrInjected
				}
				return nil
			}))
		}
		c.boot()
		c.propose(0, "put a 1")
		if c.leader(0) != 1 {
			c.retry("move leader", func() error { return c.h(c.leader(0)).TransferLeader(t.Context(), 0, 1) })
		}
		broken.Store(true)
		_, err := c.h(1).Propose(t.Context(), 0, []byte("put a 2"))
		if k := dfs.KindOf(err); k != dfs.Unknown && k != dfs.Unavailable {
			t.Errorf("propose on a failed disk: %v", err)
		}
		<-c.h(1).Failed()
		if c.h(1).Failure() == nil {
			t.Error("no reason given")
		}
		_, err = c.h(1).Propose(t.Context(), 0, []byte("put a 3"))
		wantKind(t, err, dfs.Unavailable)
		wantKind(t, c.h(1).Read(context.Background(), 0, func(Reader) error { return nil }), dfs.Unavailable)
		_ = c.h(1).Close() // reports the injected error
		c.mu.Lock()
		c.nodes[1].host = nil
		c.mu.Unlock()
		c.propose(0, "put a 4")
		c.converge(2, 3)
		c.stop()
	})
}

// TestLostStateStillVotes lets a replica that cannot fetch its state decide an
// election, which it must not win.
func TestLostStateStillVotes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		defer c.stop()
		c.boot()
		n := c.loseState()
		lead, victim := c.leader(0), n.id
		other := 6 - lead - victim
		c.chunks = func(_, _ dfs.NodeID, _ int) error { return errors.New("no stream today") }
		c.revive(n)
		time.Sleep(5 * time.Second)
		c.isolate(lead, true)
		time.Sleep(20 * time.Second)
		if st, _ := c.h(other).Status(0); st.Role != RoleLeader {
			t.Errorf("node %v is %+v, want leader", other, st)
		}
		if st, _ := c.h(victim).Status(0); !st.NeedState || st.Role != RoleFollower {
			t.Errorf("node %v is %+v", victim, st)
		}
		c.heal()
		c.mu.Lock()
		c.chunks = nil
		c.mu.Unlock()
		c.propose(0, "put new value")
		c.converge(c.all()...)
	})
}

// TestStateDamageMetWhileServing rots the tables of a state store under a host
// that runs: it ends, and the next one on the directory fetches the state anew.
// The log and its votes stay.
func TestStateDamageMetWhileServing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		c.tune = func(o *Options) { o.CacheSize = 1 << 10 } // nothing of a table stays in memory
		defer c.stop()
		c.boot()
		c.fill(0, 120, 500)
		for _, id := range c.all() {
			c.waitCut(id, 0, 40)
		}
		c.propose(0, "put mid value")
		c.converge(c.all()...)
		victim := c.leader(0)%3 + 1
		n := c.nodes[victim]
		before, _ := n.host.Status(0)
		if err := n.host.state.Flush(); err != nil {
			t.Fatal(err)
		}
		names, err := n.fs.List("data/raft-state")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".sst") {
				rot.Flip(t, n.fs, "data/raft-state/"+name)
			}
		}
		if err := n.host.ReadLocal(0, func(r Reader) error {
			return r.Scan(nil, nil, func(_, _ []byte) (bool, error) { return true, nil })
		}); err == nil {
			t.Error("what is damaged is read")
		}
		<-n.host.Failed()
		if why := n.host.Failure(); !errors.Is(why, dfs.Corrupt) || IsLogDamage(why) {
			t.Errorf("it failed with %v", why)
		}
		if err := n.host.Close(); err != nil {
			t.Error(err)
		}
		if there, err := exists(n.fs, "data/raft-state-damaged"); !there || err != nil {
			t.Errorf("the damaged state was not put aside: %v", err)
		}
		n.fs = n.fs.CrashClone(vfs.CrashCloneCfg{})
		c.revive(n)
		if st, _ := c.h(victim).Status(0); !st.NeedState || st.Fault != nil || st.Last < before.Last || st.Term < before.Term {
			t.Errorf("it is %+v, and was %+v", st, before)
		}
		c.propose(0, "put new value")
		c.converge(c.all()...)
		time.Sleep(2 * time.Second)
		if there, err := exists(n.fs, "data/raft-state-damaged"); there || err != nil {
			t.Errorf("the damaged state is kept: %v", err)
		}
	})
}

// TestSleepersGiveTheirState: a replica that lacks its state gets it though its
// group is idle and goes to sleep between two attempts.
func TestSleepersGiveTheirState(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		c.tune = func(o *Options) { o.QuiesceTicks = 1 }
		defer c.stop()
		c.boot()
		n := c.loseState()
		tried := 0
		c.chunks = func(_, _ dfs.NodeID, i int) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			if i == 1 {
				tried++
			}
			if tried < 5 {
				return dfs.Errorf(dfs.Unavailable, "send chunk", "the connection broke")
			}
			return nil
		}
		c.revive(n)
		c.converge(c.all()...)
		if tried < 5 {
			t.Errorf("%d attempts", tried)
		}
	})
}
