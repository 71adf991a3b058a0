package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
)

// asleep waits until every replica of the given nodes sleeps and checks that
// nothing but heartbeats of nodes is sent then.
func (c *cluster) asleep(ids ...dfs.NodeID) {
	c.t.Helper()
	var awake []Status
	for range 600 {
		awake = awake[:0]
		for _, id := range ids {
			for _, st := range c.h(id).Statuses() {
				if !st.Asleep {
					awake = append(awake, st)
				}
			}
		}
		if len(awake) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatalf("%d replicas are awake after a minute, one is %+v", len(awake), awake[0])
}

// stir is a cluster of three whose groups have an entry each and sleep.
func stir(t *testing.T, groups int) *cluster {
	t.Helper()
	c := newCluster(t, 1, 3, testGroups(groups)...)
	t.Cleanup(c.stop)
	c.boot()
	for _, g := range c.groups {
		c.propose(g, "put a 0")
	}
	c.asleep(c.all()...)
	return c
}

// frames counts, by kind, what is sent within d.
func (c *cluster) frames(d time.Duration) map[frameKind]int {
	count := map[frameKind]int{}
	c.mu.Lock()
	c.tap = func(from, to dfs.NodeID, msg []byte) {
		fs, err := parseBatch(msg, from, to)
		if err != nil {
			c.t.Error(err)
		}
		for _, f := range fs {
			count[f.kind]++
		}
	}
	c.mu.Unlock()
	time.Sleep(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tap = nil
	return count
}

// TestIdleGroupsAreSilent: what idle groups send is one heartbeat for each node
// and tick, however many they are, and their leaders know what they knew.
func TestIdleGroupsAreSilent(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := stir(t, 20)
		before := map[dfs.GroupID]dfs.NodeID{}
		for _, g := range c.groups {
			before[g] = c.leader(g)
		}
		got := c.frames(3*time.Minute + 50*time.Millisecond)
		if want := 3 * 2 * 1800; len(got) != 1 || got[frameBeat] != want {
			t.Errorf("sent %v in three minutes, want %d heartbeats of nodes", got, want)
		}
		for _, g := range c.groups {
			st, _ := c.h(before[g]).Status(g)
			if st.Role != RoleLeader || len(st.Peers) != 3 {
				t.Fatalf("%v: %+v", g, st)
			}
			r := c.h(before[g]).replica(g)
			for _, when := range []string{"asleep", "just woken"} {
				for _, p := range st.Peers {
					if !p.Active || !st.CaughtUp(p.Node) {
						t.Errorf("%v, %s: node %v is %+v", g, when, p.Node, p)
					}
				}
				r.mu.Lock()
				r.wakeLocked()
				r.mu.Unlock()
				st = r.status()
			}
			for _, id := range c.all() {
				if o, _ := c.h(id).Leader(g); o.Leader != before[g] || o.Term != st.Term {
					t.Errorf("%v: node %v takes %+v for the leader, it is node %v in term %d", g, id, o, before[g], st.Term)
				}
			}
		}
	})
}

// TestNapsAreCounted: while a replica is in one sleep its status stays as it is,
// the nodes that answer included, and each sleep is another.
func TestNapsAreCounted(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := stir(t, 3)
		const g = 1
		lead := c.leader(g)
		h := c.h(lead)
		nap := func() uint64 { n, _ := h.Nap(g); return n }
		first := nap()
		before, _ := h.Status(g)
		time.Sleep(time.Minute)
		if after, _ := h.Status(g); first == 0 || nap() != first || !reflect.DeepEqual(before, after) {
			t.Fatalf("in sleep %d, then %d: the status was %+v and is %+v", first, nap(), before, after)
		}
		c.propose(g, "put a 1")
		if n := nap(); n != 0 {
			t.Errorf("in sleep %d right after a write", n)
		}
		c.asleep(c.all()...)
		second := nap()
		if second == 0 || second == first {
			t.Errorf("in sleep %d, before that in %d", second, first)
		}
		other := c.all()[0]
		if other == lead {
			other = c.all()[1]
		}
		c.kill(other, 0)
		time.Sleep(time.Minute) // the group sleeps again, without that node
		st, _ := h.Status(g)
		i := slices.IndexFunc(st.Peers, func(p Progress) bool { return p.Node == other })
		if third := nap(); !st.Asleep || third == 0 || third == second || st.Peers[i].Active {
			t.Errorf("in sleep %d, before node %v went in %d: %+v", third, other, second, st)
		}
	})
}

// TestSleepersWake: whatever comes for a group that sleeps is done at once, and
// then it sleeps again.
func TestSleepersWake(t *testing.T) {
	follower := func(c *cluster) dfs.NodeID { return c.leader(0)%3 + 1 }
	for name, do := range map[string]func(c *cluster) error{
		"proposal": func(c *cluster) error {
			_, err := c.h(c.leader(0)).Propose(c.t.Context(), 0, []byte("put a 1"))
			return err
		},
		"read on the leader": func(c *cluster) error {
			_, err := c.read(c.leader(0), 0, "a")
			return err
		},
		"read on a follower": func(c *cluster) error {
			_, err := c.read(follower(c), 0, "a")
			return err
		},
		"transfer": func(c *cluster) error {
			to := follower(c)
			if err := c.h(c.leader(0)).TransferLeader(c.t.Context(), 0, to); err != nil {
				return err
			}
			if now := c.leader(0); now != to {
				return fmt.Errorf("the leader is node %v, want %v", now, to)
			}
			return nil
		},
		"removal": func(c *cluster) error {
			return c.h(c.leader(0)).RemoveReplica(c.t.Context(), 0, follower(c))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := stir(t, 1)
				start := time.Now()
				if err := do(c); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); took > 50*time.Millisecond {
					t.Errorf("it took %v", took)
				}
				if name != "removal" { // see TestSleeperIsToldThatItIsRemoved
					c.converge(c.all()...)
					c.asleep(c.all()...)
				}
			})
		})
	}
}

// TestRefusalOnASleepingFollower: it says who leads, and nobody wakes for it but
// the follower for a while.
func TestRefusalOnASleepingFollower(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := stir(t, 1)
		lead := c.leader(0)
		_, err := c.h(lead%3+1).Propose(t.Context(), 0, []byte("put a 1"))
		var e *dfs.Error
		if !errors.As(err, &e) || e.Kind != dfs.NotLeader || e.LeaderHint != lead {
			t.Errorf("%v, want a hint at node %v", err, lead)
		}
		time.Sleep(5 * time.Second)
		c.asleep(c.all()...)
		if now := c.leader(0); now != lead {
			t.Errorf("node %v took over from node %v", now, lead)
		}
	})
}

// TestLeadersDieWhileAllSleep: every group that a node led has another leader
// no later than if it had been awake.
func TestLeadersDieWhileAllSleep(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := stir(t, 30)
		for _, dead := range []dfs.NodeID{2, 3} {
			var led []dfs.GroupID
			for _, g := range c.groups {
				if c.leader(g) == dead {
					led = append(led, g)
				}
			}
			if len(led) == 0 {
				t.Fatalf("node %v leads nothing", dead)
			}
			time.Sleep(time.Minute)
			n := c.kill(dead, 0)
			time.Sleep(1900 * time.Millisecond)
			soon := 0
			for _, g := range led {
				if _, err := c.leaderNow(g); err == nil {
					soon++
				}
			}
			if soon == 0 { // an election time-out is 10 to 19; two candidates of one moment try again
				t.Errorf("none of %d groups has a leader after 19 ticks", len(led))
			}
			time.Sleep(15 * time.Second)
			for _, g := range led {
				if _, err := c.leaderNow(g); err != nil {
					t.Error(err)
				}
			}
			// The others sleep without the dead, and know that it is away.
			for _, g := range c.groups {
				c.propose(g, "put a 1")
			}
			var living []dfs.NodeID
			for _, id := range c.all() {
				if id != dead {
					living = append(living, id)
				}
			}
			c.asleep(living...)
			for _, g := range c.groups {
				st, _ := c.h(c.leader(g)).Status(g)
				for _, p := range st.Peers {
					if p.Active != (p.Node != dead) {
						t.Errorf("%v: node %v is %+v while node %v is dead", g, p.Node, p, dead)
					}
				}
			}
			// It comes back and is brought up to date, though nobody asks.
			c.revive(n)
			c.converge(c.all()...)
			c.asleep(c.all()...)
			c.spread()
			c.asleep(c.all()...)
		}
	})
}

// leaderNow returns the node that leads a group at this moment.
func (c *cluster) leaderNow(g dfs.GroupID) (dfs.NodeID, error) {
	var sts []Status
	for _, id := range c.all() {
		st, ok := c.status(id, g)
		if ok && st.Role == RoleLeader {
			return id, nil
		}
		sts = append(sts, st)
	}
	return 0, fmt.Errorf("%v has no leader: %+v", g, sts)
}

// status is that of a replica, if its node is up.
func (c *cluster) status(id dfs.NodeID, g dfs.GroupID) (Status, bool) {
	c.mu.Lock()
	n := c.nodes[id]
	c.mu.Unlock()
	if n.host == nil || n.dead.Load() {
		return Status{}, false
	}
	return n.host.Status(g)
}

// spread gives each node every third group to lead.
func (c *cluster) spread() {
	c.t.Helper()
	for i, g := range c.groups {
		to := dfs.NodeID(i%3 + 1)
		c.retry("spread leaders", func() error {
			lead := c.leader(g)
			if lead == to {
				return nil
			}
			return c.h(lead).TransferLeader(c.t.Context(), g, to)
		})
	}
}

// TestQuickRestartOfALeader: a node that is back before anybody missed it leads
// nothing any more, and those that sleep under it notice.
func TestQuickRestartOfALeader(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := stir(t, 9)
		lead := c.leader(0)
		c.crash(lead, 0)
		time.Sleep(15 * time.Second)
		for _, g := range c.groups {
			if _, err := c.leaderNow(g); err != nil {
				t.Error(err)
			}
			c.propose(g, "put a 1")
		}
		c.converge(c.all()...)
		c.asleep(c.all()...)
	})
}

// TestLeaderInQuarantine: a leader whose replica ends on a node that lives on is
// replaced.
func TestLeaderInQuarantine(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := stir(t, 6)
		lead := c.leader(0)
		c.h(lead).replica(0).quarantine(dfs.Errorf(dfs.Internal, "test", "broken"))
		time.Sleep(15 * time.Second)
		now, err := c.leaderNow(0)
		if err != nil || now == lead {
			t.Fatalf("node %v leads, %v", now, err)
		}
		st, _ := c.h(now).Status(0)
		for _, p := range st.Peers {
			if p.Active != (p.Node != lead) {
				t.Errorf("node %v is %+v, node %v is in quarantine", p.Node, p, lead)
			}
		}
	})
}

// TestPartitionsWhileAllSleep: a leader that is cut off steps down, a majority
// has another, a follower that is cut off is missed, and what comes back is one.
func TestPartitionsWhileAllSleep(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := stir(t, 3)
		lead := c.leader(0)
		c.isolate(lead, true)
		time.Sleep(15 * time.Second)
		if o, _ := c.h(lead).Leader(0); o.Leader != 0 {
			t.Errorf("cut off from all others, node %v still takes node %v for the leader", lead, o.Leader)
		}
		if _, err := c.read(lead, 0, "a"); err == nil {
			t.Error("a node that is cut off serves a read")
		}
		c.heal()
		c.propose(0, "put a 1")
		c.converge(c.all()...)
		c.asleep(c.all()...)

		// One way only: the leader does not hear the other.
		lead = c.leader(0)
		other := lead%3 + 1
		c.mu.Lock()
		c.cut[[2]dfs.NodeID{other, lead}] = true
		c.mu.Unlock()
		c.propose(0, "put a 2")
		time.Sleep(5 * time.Second)
		st, _ := c.h(lead).Status(0)
		for _, p := range st.Peers {
			if p.Active != (p.Node != other) {
				t.Errorf("node %v is %+v, node %v is not heard", p.Node, p, other)
			}
		}
		c.heal()
		c.converge(c.all()...)
		c.asleep(c.all()...)
	})
}

// TestLossyNetworkEndsAsleep: whichever frames are lost, doubled or late, all
// replicas agree in the end and sleep.
func TestLossyNetworkEndsAsleep(t *testing.T) {
	for seed := uint64(1); seed <= 3; seed++ {
		inBubble(t, func(t *testing.T) {
			c := newCluster(t, seed, 3, testGroups(5)...)
			c.tune = func(o *Options) { o.QuiesceTicks = 1 }
			defer c.stop()
			c.boot()
			c.mu.Lock()
			c.drop, c.dup, c.jitter = 0.3, 0.3, 400*time.Millisecond
			c.mu.Unlock()
			for i := range 10 {
				for _, g := range c.groups {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					if lead, err := c.leaderNow(g); err == nil {
						_, _ = c.h(lead).Propose(ctx, g, fmt.Appendf(nil, "put a %d", i))
					}
					cancel()
				}
				time.Sleep(time.Duration(i) * 300 * time.Millisecond)
			}
			c.converge(c.all()...) // with the bad network
			c.heal()
			c.asleep(c.all()...)
			c.converge(c.all()...)
		})
	}
}

// TestSleeperIsToldThatItIsRemoved although nothing of the removal reaches it
// while it sleeps.
func TestSleeperIsToldThatItIsRemoved(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := stir(t, 2)
		lead := c.leader(0)
		gone := lead%3 + 1
		c.mu.Lock() // the group's frames are lost, those of the nodes and of the other group are not
		c.lose = func(from, to dfs.NodeID, f *frame) bool { return to == gone && f.group == 0 && f.kind == frameRaft }
		c.mu.Unlock()
		if err := c.h(lead).RemoveReplica(t.Context(), 0, gone); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		c.mu.Lock()
		c.lose = nil
		c.mu.Unlock()
		time.Sleep(10 * time.Second)
		if st, _ := c.h(gone).Status(0); st.Role != RoleOutsider || !st.Asleep {
			t.Errorf("the removed node is %+v", st)
		}
		c.groups = []dfs.GroupID{1}
		c.converge(c.all()...)
		c.asleep(c.all()...)
	})
}

// TestStaleQuiesceFrame: a frame that asked to sleep and comes late puts nobody
// to sleep for longer than until the next heartbeat.
func TestStaleQuiesceFrame(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		defer c.stop()
		c.boot()
		c.propose(0, "put a 0")
		lead := c.leader(0)
		follower := lead%3 + 1
		c.converge(c.all()...)
		_, sign := c.h(lead).beats.self()
		st, _ := c.h(lead).Status(0)
		ask := func(change func(*frame)) bool {
			t.Helper()
			f := frame{kind: frameQuiesce, term: st.Term, index: st.Last, sign: sign}
			change(&f)
			if err := c.h(follower).Step(lead, batchOf(t, f)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond)
			got, _ := c.h(follower).Status(0)
			return got.Asleep
		}
		for name, change := range map[string]func(*frame){
			"earlier term":  func(f *frame) { f.term-- },
			"shorter log":   func(f *frame) { f.index-- },
			"longer log":    func(f *frame) { f.index++ },
			"earlier start": func(f *frame) { f.sign.start-- },
			"other alarms":  func(f *frame) { f.sign.alarms++ },
		} {
			if ask(change) {
				t.Errorf("%s: the follower sleeps", name)
			}
		}
		if !ask(func(*frame) {}) {
			t.Fatal("the follower does not sleep")
		}
		time.Sleep(150 * time.Millisecond)
		if got, _ := c.h(follower).Status(0); got.Asleep {
			t.Error("the follower sleeps under a leader that is awake")
		}
	})
}

// TestManyGroups: five hundred groups on three nodes, one of which crashes and
// comes back; a hundred with the race detector, which makes them ten times as slow.
func TestManyGroups(t *testing.T) {
	groups := 500
	if bubble.Race {
		groups = 100
	}
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, testGroups(groups)...)
		defer c.stop()
		c.boot()
		write := func(what string) {
			for i, g := range c.groups {
				c.propose(g, fmt.Sprintf("app a %s.%d,", what, i))
			}
		}
		write("first")
		c.converge(c.all()...)
		c.asleep(c.all()...)
		if got := c.frames(time.Minute); len(got) != 1 {
			t.Errorf("sent %v while all sleep", got)
		}
		n := c.kill(2, 0)
		write("second")
		c.asleep(1, 3)
		c.revive(n)
		c.converge(c.all()...)
		c.asleep(c.all()...)
		write("third")
		c.converge(c.all()...)
		for i, g := range c.groups {
			want := fmt.Sprintf("first.%d,second.%d,third.%d,", i, i, i)
			if got, err := c.read(dfs.NodeID(i%3+1), g, "a"); got != want || err != nil {
				t.Fatalf("%v: %q, %v; want %q", g, got, err, want)
			}
		}
		c.asleep(c.all()...)
	})
}

// TestBeats reads as the life of the nodes that one host hears.
func TestBeats(t *testing.T) {
	b := newBeats(3)
	want := func(news ...dfs.NodeID) {
		t.Helper()
		if got := b.tick(); !slices.Equal(got, news) {
			t.Errorf("tick %d: news of %v, want %v", b.now, got, news)
		}
	}
	heard := func(id dfs.NodeID, since uint64, age uint64, ok bool) {
		t.Helper()
		if a, is := b.heardSince(id, since); is != ok || a != age {
			t.Errorf("tick %d: node %v heard since %d: %d, %v; want %d, %v", b.now, id, since, a, is, age, ok)
		}
	}
	b.hear(2, sign{start: 5})
	heard(2, 0, 0, false) // not before the next tick
	want(2)
	heard(2, 1, 1, true)
	b.hear(2, sign{start: 5})
	b.hear(3, sign{start: 1})
	want(3)
	heard(2, 1, 1, true)
	b.hear(2, sign{start: 6})
	if b.says(2, sign{start: 5}) || !b.says(2, sign{start: 6}) {
		t.Error("an old start is taken for the new one")
	}
	b.hear(2, sign{start: 5}) // overtaken
	want(2)
	heard(2, 2, 0, false)
	heard(2, 3, 1, true)
	b.hear(2, sign{start: 6, alarms: 1})
	want(2, 3) // and node 3 has fallen silent
	heard(3, 9, 0, false)
	want()
	want(2)
	want()
}

// TestLostStateIsFetchedInAnIdleGroup although its first requests are lost, and
// nobody else has a reason to wake.
func TestLostStateIsFetchedInAnIdleGroup(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0)
		defer c.stop()
		c.boot()
		n := c.loseState()
		victim := n.id
		c.mu.Lock()
		c.lose = func(_, _ dfs.NodeID, f *frame) bool { return f.kind == frameNeedState }
		c.mu.Unlock()
		c.revive(n)
		time.Sleep(time.Minute)
		if st, _ := c.h(victim).Status(0); !st.NeedState || st.Asleep {
			t.Errorf("without an answer the victim is %+v", st)
		}
		c.mu.Lock()
		c.lose = nil
		c.mu.Unlock()
		time.Sleep(10 * time.Second)
		if st, _ := c.h(victim).Status(0); st.NeedState {
			t.Errorf("the victim is %+v", st)
		}
		c.converge(c.all()...)
		c.asleep(c.all()...)
	})
}

// TestLateLearner: a node that cannot be reached when it becomes a learner is
// taken in once it can be, though its group is idle and it knows nobody.
func TestLateLearner(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 4, 0)
		c.tune = func(o *Options) { o.QuiesceTicks = 1 }
		defer c.stop()
		c.bootFirst(3)
		c.propose(0, "put a 1")
		c.isolate(4, true)
		c.retry("add learner", func() error { return c.h(c.leader(0)).AddLearner(t.Context(), 0, 4) })
		time.Sleep(time.Minute)
		c.isolate(4, false)
		c.converge(c.all()...)
		c.asleep(c.all()...)
	})
}

// TestBeginDoesNotWake: a replica that a message put to sleep, or into
// quarantine, before its start was done does not tick.
func TestBeginDoesNotWake(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 1, 1, 2)
		defer c.stop()
		c.boot()
		h := c.h(1)
		asleep, ill := h.replica(1), h.replica(2)
		asleep.mu.Lock()
		asleep.wakeLocked()
		asleep.sleepLocked()
		asleep.mu.Unlock()
		ill.quarantine(dfs.Errorf(dfs.Internal, "test", "broken"))
		h.begin(asleep)
		h.begin(ill)
		if list := h.awake.appendTo(nil); len(list) > 0 {
			t.Errorf("%d replicas tick", len(list))
		}
	})
}
