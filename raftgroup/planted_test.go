package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// planted are bugs behind hooks, each with what finds it: seeds of TestLives, or
// a scenario where chance would need too many of them. A scenario returns nil
// when there is no bug.
var planted = []struct {
	name     string
	plant    func(*Hooks)
	scenario func(c *cluster) error // nil: lives
}{
	{"acknowledge before sync", func(h *Hooks) { h.AckBeforeSync = true }, nil},
	{"apply twice", func(h *Hooks) { h.ApplyTwice = true }, nil},
	{"forget the vote", func(h *Hooks) { h.ForgetVote = true }, voteTwice},
	{"count an unsynced append", func(h *Hooks) { h.CountUnsynced = true }, leaderLosesPower},
	{"count a learner", func(h *Hooks) { h.CountLearners = true }, onlyLearnerHears},
	{"read under a lease", func(h *Hooks) { h.LeaseReads = true }, readWhileDeposed},
	{"read without asking", func(h *Hooks) { h.StaleReads = true }, nil},
	{"change members before the sync", func(h *Hooks) { h.ConfBeforeSync = true }, changeIsCovered},
	{"cut what is not flushed", func(h *Hooks) { h.CutUnflushed = true }, cutAndLosePower},
	{"take any generation", func(h *Hooks) { h.IgnoreGeneration = true }, lostMajorityReturns},
	{"begin a recovery before the sync", func(h *Hooks) { h.BeginUnsynced = true }, recoverAndLosePower},
	{"damaged replica votes", func(h *Hooks) { h.IgnoreDamage = true }, rolledBackVotes},
}

// plantedSeeds is how many lives a planted bug may need to be found.
const plantedSeeds = 20

// TestPlantedBugsAreFound proves that what passes without a bug fails with it.
func TestPlantedBugsAreFound(t *testing.T) {
	for _, p := range planted {
		t.Run(p.name, func(t *testing.T) {
			plant := func(o *Options) { p.plant(&o.Hooks) }
			if p.scenario != nil {
				if err := playOnce(t, p.scenario, nil); err != nil {
					t.Errorf("without the bug: %v", err)
				}
				err := playOnce(t, p.scenario, plant)
				if err == nil {
					t.Fatal("not found")
				}
				t.Logf("found: %.200s", err)
				return
			}
			for seed := uint64(1); seed <= plantedSeeds; seed++ {
				if _, err := liveOnce(t, seed, plant); err != nil {
					t.Logf("found after %d seeds: %.200s", seed, err)
					return
				}
			}
			t.Errorf("not found in %d seeds", plantedSeeds)
		})
	}
}

// playOnce runs a scenario on four nodes, three of which have the group.
func playOnce(t *testing.T, scenario func(*cluster) error, tune func(*Options)) (err error) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 4, 0)
		c.tune = tune
		c.bootFirst(3)
		err = scenario(c)
		if err == nil {
			err = c.unexpected
		}
		c.unexpected = nil
		c.stop()
	})
	return err
}

// lead makes a node the leader.
func (c *cluster) lead(g dfs.GroupID, id dfs.NodeID) {
	c.t.Helper()
	c.retry("move leader", func() error {
		if c.leader(g) == id {
			return nil
		}
		return c.h(c.leader(g)).TransferLeader(c.t.Context(), g, id)
	})
}

// cutAll cuts the links between nodes, both ways.
func (c *cluster) cutAll(a dfs.NodeID, others ...dfs.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range others {
		c.cut[[2]dfs.NodeID{a, b}], c.cut[[2]dfs.NodeID{b, a}] = true, true
	}
}

// want says whether key has a value, read through the leader once there is one.
func (c *cluster) want(key, value string) error {
	lead, err := c.findLeader(0)
	if err != nil {
		return err
	}
	got, err := c.read(lead, 0, key)
	if err == nil && got != value {
		err = fmt.Errorf("%s is %q, and %q was acknowledged", key, got, value)
	}
	return err
}

// campaign lets a node stand for election, as after a leader's silence.
func (c *cluster) campaign(g dfs.GroupID, id dfs.NodeID) {
	r := c.h(id).replica(g)
	r.mu.Lock()
	r.guardLocked(func() { _ = r.raw.Campaign() })
	r.mu.Unlock()
	r.h.workers.schedule(r)
}

// leaderLosesPower commits with one follower, and then the leader loses what
// was not synced.
func leaderLosesPower(c *cluster) error {
	c.lead(0, 1)
	c.propose(0, "put a 1")
	c.converge(1, 2, 3)
	c.cutAll(3, 1, 2)
	c.propose(0, "put a 2")
	n := c.kill(1, 0)
	c.heal()
	c.cutAll(2, 1, 3) // before it can tell
	if err := n.start(); err != nil {
		return err
	}
	time.Sleep(10 * time.Second)
	return c.want("a", "2")
}

// onlyLearnerHears lets a leader reach a learner and no voter.
func onlyLearnerHears(c *cluster) error {
	c.lead(0, 1)
	c.retry("add learner", func() error { return c.h(1).AddLearner(c.t.Context(), 0, 4) })
	c.propose(0, "put a 1")
	c.converge(1, 2, 3, 4)
	c.cutAll(2, 1, 4)
	c.cutAll(3, 1, 4)
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if _, err := c.h(1).Propose(ctx, 0, []byte("put a 2")); err == nil {
		return errors.New("a proposal was acknowledged that one of three voters has")
	}
	return nil
}

// readWhileDeposed reads on a leader that has a successor and does not know.
func readWhileDeposed(c *cluster) error {
	c.lead(0, 1)
	c.propose(0, "put a 1")
	c.converge(1, 2, 3)
	c.cutAll(1, 2, 3, 4)
	// A handover that node 1 has given up gets through late.
	r := c.h(2).replica(0)
	r.mu.Lock()
	term := r.raw.BasicStatus().GetTerm()
	r.guardLocked(func() {
		_ = r.raw.Step(&pb.Message{Type: pb.MsgTimeoutNow.Enum(), From: proto.Uint64(1), To: proto.Uint64(2), Term: &term})
	})
	r.mu.Unlock()
	r.h.workers.schedule(r)
	time.Sleep(100 * time.Millisecond)
	if _, err := c.h(2).Propose(c.t.Context(), 0, []byte("put a 2")); err != nil {
		return err
	}
	got, err := c.read(1, 0, "a")
	if err == nil && got != "2" {
		return fmt.Errorf("a read after the acknowledgement of 2 saw %q", got)
	}
	return nil
}

// voteTwice lets a voter lose power after its vote and asks it again in the
// same term.
func voteTwice(c *cluster) error {
	c.lead(0, 1)
	c.propose(0, "put a 1")
	c.converge(1, 2, 3)
	c.isolate(1, true)
	c.cutAll(2, 3)
	for _, id := range []dfs.NodeID{2, 3} {
		r := c.h(id).replica(0)
		r.mu.Lock()
		r.guardLocked(func() { _ = r.raw.ForgetLeader() })
		r.mu.Unlock()
	}
	// 1 and 2 elect 2, and 2 stays alone; then 1 forgets, and 1 and 3 elect 3.
	n := c.kill(1, 0)
	c.revive(n)
	c.join(1, 2)
	c.campaign(0, 2)
	time.Sleep(3*time.Millisecond + time.Millisecond/2) // its request has come, its first entry has not
	c.mu.Lock()
	c.cut[[2]dfs.NodeID{2, 1}] = true
	c.mu.Unlock()
	time.Sleep(100 * time.Millisecond)
	first, _ := c.h(2).Status(0)
	if first.Role != RoleLeader {
		return fmt.Errorf("node 2 is %+v, want leader", first)
	}
	c.isolate(2, true)
	c.revive(c.kill(1, 0))
	c.join(1, 3)
	c.campaign(0, 3)
	time.Sleep(100 * time.Millisecond)
	if st, _ := c.h(3).Status(0); st.Role == RoleLeader && st.Term == first.Term {
		return fmt.Errorf("nodes 2 and 3 both lead in term %d", st.Term)
	}
	return nil
}

// join restores the link between two nodes.
func (c *cluster) join(a, b dfs.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.cut, [2]dfs.NodeID{a, b})
	delete(c.cut, [2]dfs.NodeID{b, a})
}

// changeIsCovered looks, whenever a change of members was applied, for the hard
// state that a power loss would leave: its commit index must cover the change.
func changeIsCovered(c *cluster) error {
	var bad atomic.Pointer[string]
	was := c.tune
	c.tune = func(o *Options) {
		if was != nil {
			was(o)
		}
		id, fs := o.Node, o.FS.(*vfs.MemFS)
		o.Hooks.Failpoint = func(g dfs.GroupID, at Failpoint) {
			if at != FailApplied {
				return
			}
			done := c.confDone(id, g)
			if done == 0 {
				return
			}
			hs, err := hardStateOn(fs.CrashClone(vfs.CrashCloneCfg{}), g)
			if err != nil || hs < done {
				s := fmt.Sprintf("node %v applied the change at entry %d, and of its hard state commit %d is synced (%v)", id, done, hs, err)
				bad.CompareAndSwap(nil, &s)
			}
		}
	}
	for _, id := range c.all() {
		c.crash(id, 0)
	}
	c.lead(0, 1)
	c.retry("add learner", func() error { return c.h(c.leader(0)).AddLearner(c.t.Context(), 0, 4) })
	c.converge(1, 2, 3, 4)
	if s := bad.Load(); s != nil {
		return errors.New(*s)
	}
	return nil
}

func (c *cluster) confDone(id dfs.NodeID, g dfs.GroupID) uint64 {
	h := c.h(id)
	if h == nil {
		return 0
	}
	r := h.replica(g)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.confDone
}

// hardStateOn returns the commit index of the hard state on a disk.
func hardStateOn(fs vfs.FS, g dfs.GroupID) (uint64, error) {
	db, err := pebble.Open("data/raft-log", &pebble.Options{FS: fs, ReadOnly: true, Logger: quiet{}})
	if err != nil {
		return 0, err
	}
	defer db.Close()
	v, closer, err := db.Get(groupKey(g, logHardState))
	if err != nil {
		return 0, err
	}
	defer closer.Close()
	hs, err := decodeHardState(v, g)
	return hs.GetCommit(), err
}

// quiet is a logger of Pebble that says nothing.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(string, ...any) {}

// cutAndLosePower lets all logs be cut and all nodes lose power at once.
func cutAndLosePower(c *cluster) error {
	c.fill(0, 200, 20)
	time.Sleep(5 * time.Second)
	c.propose(0, "put b 1") // syncs the cuts
	if err := c.loseAll(0); err != nil {
		return err
	}
	return c.want("b", "1")
}

// rolledBackVotes gives a follower an old disk and lets the leader find that
// out; then the leader goes away.
func rolledBackVotes(c *cluster) error {
	c.lead(0, 1)
	c.propose(0, "put a 1")
	c.converge(1, 2, 3)
	old := c.nodes[2].fs.CrashClone(vfs.CrashCloneCfg{})
	c.cutAll(3, 1, 2)
	c.propose(0, "put a 2")
	n := c.kill(2, 0)
	n.fs = old
	c.revive(n)
	time.Sleep(time.Second) // the leader's word
	c.cutAll(1, 2, 3)
	if err := c.kill(2, 0).start(); err != nil && !IsLogDamage(err) {
		return err // a damaged log is refused by its node
	}
	c.join(2, 3)
	time.Sleep(20 * time.Second)
	for _, id := range []dfs.NodeID{2, 3} {
		if c.h(id) == nil {
			continue // it does not even start
		}
		if st, _ := c.h(id).Status(0); st.Role == RoleLeader {
			return fmt.Errorf("node %v was elected without an entry that was acknowledged: %+v", id, st)
		}
	}
	return nil
}
