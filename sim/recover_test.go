package sim

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// recoverGroups plans and takes a recovery as an operator does.
func recoverGroups(t *testing.T, p *Peer, lost []string, groups ...dfs.GroupID) {
	t.Helper()
	plan, err := p.PlanRecovery(t.Context(), lost, groups)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range plan.Groups {
		t.Logf("%v goes on from %v: %s", g.Group, g.Nodes[g.Chosen], strings.Join(g.Losses, "; "))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := p.Recover(ctx, plan, func(step string) { t.Log(step) }); err != nil {
		t.Fatal(err)
	}
}

// putAgain puts a file whose session may have ended meanwhile.
func putAgain(t *testing.T, p *Peer, path, data string) {
	t.Helper()
	await(t, time.Minute, func() string {
		if _, err := p.PutFile(t.Context(), path, client.PutOptions{Mode: 0o644}, strings.NewReader(data)); err != nil {
			return err.Error()
		}
		return ""
	})
}

// noPlan wants a plan to be refused with a reason.
func noPlan(t *testing.T, p *Peer, why string, lost []string, groups ...dfs.GroupID) {
	t.Helper()
	if _, err := p.PlanRecovery(t.Context(), lost, groups); err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("lost %v, groups %v: %v, want %q", lost, groups, err, why)
	}
}

// refusedForGood waits until a meta node says that its directory was given up.
func refusedForGood(t *testing.T, c *Cluster, i int) {
	t.Helper()
	await(t, time.Minute, func() string {
		if err := c.nodes[i].node.Err(); err == nil || !strings.Contains(err.Error(), "given up as lost") {
			return fmt.Sprintf("%s: %v", c.nodes[i].name, err)
		}
		return ""
	})
}

// TestRecoverLostMajority destroys two of three meta nodes for good, and with them the
// majority of every group. The operator recovers from the third.
func TestRecoverLostMajority(t *testing.T) {
	inBubble(t, Config{Stores: 3, Tweak: compactSoon}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		votersOf(t, c)
		kept, gone := files(t, p, "kept", 12), randomFiles(t, p, "gone", 6)
		noPlan(t, p, "not lost: it answers", []string{"meta1", "meta2"})
		survivor, second, third := idOf(t, p, "meta1"), idOf(t, p, "meta2"), idOf(t, p, "meta3")
		time.Sleep(5 * time.Second) // the survivor has everything
		before := p.Map()
		c.Crash(1)
		noPlan(t, p, "has its majority", []string{"meta2"}, 1)
		c.Crash(2)
		disks := []int{1, 2}
		time.Sleep(10 * time.Second)

		noPlan(t, p, "no lost node is named", nil)
		noPlan(t, p, fmt.Sprintf("meta3 (%v) votes in g0, does not answer", third), []string{"meta2"})
		noPlan(t, p, "comes first", []string{second.String(), third.String()}, 1)
		noPlan(t, p, "is no meta node", []string{"meta2", "store1"})
		recoverGroups(t, p, []string{"meta2", third.String()})
		awaitReady(t, p)
		if m := p.Map(); m.Epoch < before.Epoch+1<<32 || !m.Node(second).Replaced || !m.Node(third).Replaced || m.Node(survivor).Replaced {
			t.Errorf("epoch %d after %d, nodes %+v", m.Epoch, before.Epoch, m.Nodes)
		}

		// What was acknowledged and the survivor had is there; the same client goes on.
		unchanged(t, p, kept)
		unchanged(t, p, gone)
		putAgain(t, p, "/first", "of a new session")
		after := files(t, p, "after", 8)
		noPlan(t, p, "has its majority", []string{"meta2", "meta3"}, 1)
		recoverGroups(t, p, []string{"meta2", "meta3"}) // nothing is left to do, and no harm done

		// The old disks come back, one alone and both, and are refused.
		start(t, c, disks[0])
		refusedForGood(t, c, disks[0])
		c.Crash(disks[0])
		start(t, c, disks...)
		time.Sleep(time.Minute)
		put(t, p, "/with old nodes", "beside")
		unchanged(t, p, after)
		c.Crash(disks...)

		// Fresh meta nodes take their places.
		c.Wipe(1)
		c.Wipe(2)
		start(t, c, disks...)
		await(t, 3*time.Minute, func() string {
			m, why := replicasOf(t, c, p, []int{0, 1, 2})
			for _, g := range m.Groups {
				if len(g.Replicas) != 3 || slices.Contains(g.Replicas, second) || slices.Contains(g.Replicas, third) {
					return fmt.Sprintf("%v lists %v", g.ID, g.Replicas)
				}
			}
			return why
		})
		c.Crash(0) // the new ones are a majority
		put(t, p, "/without the survivor", "goes on")
		start(t, c, 0)

		// Deletes wait until somebody has looked.
		if st, err := p.Status(t.Context()); err != nil || st.Recovered == 0 {
			t.Errorf("the status says nothing of the recovery: %v, %v", st.GetRecovered(), err)
		}
		q := open(t, c, "dies")
		write(t, q, "/kept1", bytes.Repeat([]byte("no commit names this"), 50_000))
		q.Kill()
		blocks := removeAll(t, p, gone)
		time.Sleep(3 * time.Minute)
		if undecided, trash := garbageOf(c); undecided == 0 || trash > 0 {
			t.Errorf("while deletes are held: %d copies undecided, %d in the trash", undecided, trash)
		}
		if kept, trashed, tombstones := statesOf(t, c, p, blocks); kept == 0 || trashed+tombstones > 0 {
			t.Errorf("while deletes are held: %d copies kept, %d in the trash, %d tombstones", kept, trashed, tombstones)
		}
		if held, err := p.Acknowledge(t.Context(), false); err != nil || !held {
			t.Fatalf("held %v, %v", held, err)
		}
		await(t, 5*time.Minute, func() string {
			if kept, _, _ := statesOf(t, c, p, blocks); kept > 0 {
				return fmt.Sprintf("%d copies are kept after the acknowledgement", kept)
			}
			return ""
		})
		if st, err := p.Status(t.Context()); err != nil || st.Recovered != 0 {
			t.Errorf("the status still speaks of the recovery: %v, %v", st.GetRecovered(), err)
		}
		awaitGarbage(t, c, "after the acknowledgement", 0, 0)
		unchanged(t, p, kept)
		unchanged(t, p, after)
		awaitFull(t, c, p, 5*time.Minute)
		sound(t, c)
	})
}

// TestRecoverHoldsQueuedDeletes: blocks that were queued for deletion before a recovery,
// while no store was there, are held like those that are released after it.
func TestRecoverHoldsQueuedDeletes(t *testing.T) {
	inBubble(t, Config{Stores: 3, Tweak: compactSoon}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		kept, gone := files(t, p, "kept", 4), randomFiles(t, p, "gone", 6)
		stores := []int{3, 4, 5}
		c.Crash(stores...)
		blocks := removeAll(t, p, gone)
		time.Sleep(30 * time.Second) // nothing reads the past any more: they are queued
		c.Crash(1, 2)
		time.Sleep(10 * time.Second)
		recoverGroups(t, p, []string{"meta2", "meta3"})
		start(t, c, stores...)
		awaitReady(t, p)
		time.Sleep(3 * time.Minute)
		if kept, trashed, tombstones := statesOf(t, c, p, blocks); kept != 3*len(blocks) || trashed+tombstones > 0 {
			t.Errorf("while deletes are held: of %d blocks %d copies kept, %d in the trash, %d tombstones", len(blocks), kept, trashed, tombstones)
		}
		if held, err := p.Acknowledge(t.Context(), false); err != nil || !held {
			t.Fatalf("held %v, %v", held, err)
		}
		await(t, 5*time.Minute, func() string {
			if kept, _, _ := statesOf(t, c, p, blocks); kept > 0 {
				return fmt.Sprintf("%d copies are kept after the acknowledgement", kept)
			}
			return ""
		})
		unchanged(t, p, kept)
		sound(t, c)
	})
}

// TestRecoverOneGroup: of five meta nodes with three replicas of each group, the two
// that one group has in common with the next are lost. Groups that lost their majority are recovered,
// the others never stop.
func TestRecoverOneGroup(t *testing.T) {
	inBubble(t, Config{Stores: 3, Tweak: shortGrace}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		metas := spared(t, c, p, 2)
		m := awaitSpread(t, c, p, metas, 5*time.Minute)
		kept := files(t, p, "kept", 20)
		// Two nodes that share a namespace group and do not share the control group.
		control := m.Group(dfs.ControlGroup).Replicas
		var lost []dfs.NodeID
		for _, g := range m.Groups[1:] {
			for _, a := range g.Replicas {
				for _, b := range g.Replicas {
					if a < b && len(lost) == 0 && !(slices.Contains(control, a) && slices.Contains(control, b)) {
						lost = []dfs.NodeID{a, b}
					}
				}
			}
		}
		if lost == nil {
			t.Fatal("no two nodes share a namespace group and not the control group, though all are spread")
		}
		var names []string
		var down []int
		for _, i := range metas {
			if slices.Contains(lost, membershipOf(t, c.nodes[i]).Node) {
				names, down = append(names, c.nodes[i].name), append(down, i)
			}
		}
		time.Sleep(5 * time.Second)
		c.Crash(down...)
		time.Sleep(20 * time.Second)
		recoverGroups(t, p, names)
		up := slices.DeleteFunc(slices.Clone(metas), func(i int) bool { return slices.Contains(down, i) })
		await(t, 5*time.Minute, func() string {
			m, why := replicasOf(t, c, p, up)
			for _, g := range m.Groups {
				if len(g.Replicas) != 3 || slices.Contains(g.Replicas, lost[0]) || slices.Contains(g.Replicas, lost[1]) {
					return fmt.Sprintf("%v lists %v", g.ID, g.Replicas)
				}
			}
			return why
		})
		awaitReady(t, p)
		unchanged(t, p, kept)
		after := files(t, p, "after", 20)
		if st, err := p.Status(t.Context()); err != nil || st.Recovered == 0 {
			t.Errorf("the status says nothing of the recovery: %v, %v", st.GetRecovered(), err)
		}
		for _, i := range down {
			start(t, c, i)
			refusedForGood(t, c, i)
		}
		if held, err := p.Acknowledge(t.Context(), false); err != nil || !held {
			t.Fatalf("held %v, %v", held, err)
		}
		c.Crash(down...)
		unchanged(t, p, kept)
		unchanged(t, p, after)
		sound(t, c)
	})
}

// TestRecoveryGoesOn interrupts a recovery after some of its steps, with power losses of
// the survivors, and makes a new plan each time.
func TestRecoveryGoesOn(t *testing.T) {
	for _, stop := range []int{1, 7} {
		t.Run(fmt.Sprint(stop), func(t *testing.T) { interruptRecovery(t, 1, stop) })
	}
}

// TestSoakRecoveryGoesOn interrupts recoveries after any number of their steps.
func TestSoakRecoveryGoesOn(t *testing.T) {
	limit, err := time.ParseDuration(os.Getenv("DFSD_TEST_SOAK"))
	if err != nil {
		t.Skip("DFSD_TEST_SOAK does not say how long: see make soak")
	}
	for begun, seed := time.Now(), uint64(2); time.Since(begun) < limit && !t.Failed(); seed++ {
		stop := int(seed%14) + 1
		t.Run(fmt.Sprintf("seed %d, step %d", seed, stop), func(t *testing.T) { interruptRecovery(t, seed, stop) })
	}
}

// interruptRecovery recovers from two of five meta nodes, and is interrupted after so many
// steps, and again after each five more.
func interruptRecovery(t *testing.T, seed uint64, stop int) {
	inBubble(t, Config{Seed: seed, Metas: 5, Stores: 3}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		kept := files(t, p, "kept", 8)
		time.Sleep(5 * time.Second)
		c.Crash(2, 3, 4)
		lost := []string{"meta3", "meta4", "meta5"}
		for left := stop; ; left += 5 {
			plan, err := p.PlanRecovery(t.Context(), lost, nil)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			err = p.Recover(ctx, plan, func(string) {
				if left--; left == 0 {
					cancel()
				}
			})
			cancel()
			if err == nil {
				break
			}
			c.Crash(0, 1)
			start(t, c, 0, 1)
			time.Sleep(5 * time.Second)
		}
		awaitReady(t, p)
		unchanged(t, p, kept)
		putAgain(t, p, "/after", "goes on")
		// The other survivor comes back by itself.
		await(t, 3*time.Minute, func() string {
			m, why := p.Map(), ""
			for _, st := range c.nodes[0].node.Meta().Groups() {
				if st.Fault != nil || m.Group(st.Group) != nil && st.Role == raftgroup.RoleOutsider {
					why = fmt.Sprintf("%v on meta1: %v %v", st.Group, st.Role, st.Fault)
				}
			}
			for _, st := range c.nodes[1].node.Meta().Groups() {
				if st.Fault != nil || st.Role == raftgroup.RoleOutsider {
					why = fmt.Sprintf("%v on meta2: %v %v", st.Group, st.Role, st.Fault)
				}
			}
			return why
		})
		if _, err := c.nodes[0].node.Meta().Survivors(t.Context(), &wire.SurvivorsRequest{}); err != nil {
			t.Error(err)
		}
		sound(t, c)
	})
}

// TestSetAsideReplicaGoesWithItsGroup sets a replica aside that its node cannot tell from one
// of a group without a majority, and moves the group to another node: what was set aside is
// destroyed like any other that is no member.
func TestSetAsideReplicaGoesWithItsGroup(t *testing.T) {
	inBubble(t, Config{Stores: 1, Class: dfs.Replicated(1)}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		metas := spared(t, c, p, 1)
		row := awaitSpread(t, c, p, metas, 5*time.Minute).Groups[1]
		at, id, spare := 0, row.Replicas[0], dfs.NodeID(0)
		var others []string
		for _, i := range metas {
			switch n := membershipOf(t, c.nodes[i]).Node; {
			case n == id:
				at = i
				continue
			case !row.Has(n):
				spare = n
			}
			others = append(others, c.nodes[i].name)
		}
		name := c.nodes[at].name
		c.net.Partition([]string{name}, others)
		time.Sleep(10 * time.Second)
		pool := transport.NewPool(transport.PoolOptions{Network: c.net.Host("operator"), Identity: func() transport.Identity {
			return transport.Identity{Kind: transport.KindClient, Cluster: p.Map().Cluster}
		}})
		defer pool.Close()
		meta := wire.NewDRPCMetaClient(pool.Conn(name + ":" + rpcPort))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		reply, err := meta.Survivors(ctx, &wire.SurvivorsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		sv := reply.Groups[slices.IndexFunc(reply.Groups, func(s *wire.Survivor) bool { return s.Group == uint32(row.ID) })]
		_, err = meta.Recover(ctx, &wire.RecoverRequest{
			Node: uint32(id), Step: wire.RecoverRequest_SET_ASIDE, Group: sv.Group, Generation: 7, Was: sv.Generation, Aside: sv.Aside, Last: sv.Last, LastTerm: sv.LastTerm,
		})
		if err != nil {
			t.Fatal(err)
		}
		c.net.Heal()
		await(t, time.Minute, func() string {
			if err := p.ChangeReplicas(t.Context(), row.ID, spare, id); err != nil {
				return err.Error()
			}
			return ""
		})
		await(t, 2*time.Minute, func() string {
			for _, st := range c.nodes[at].node.Meta().Groups() {
				if st.Group == row.ID {
					return fmt.Sprintf("%s has a replica: %v, %v", name, st.Role, st.Fault)
				}
			}
			return ""
		})
		sound(t, c)
	})
}
