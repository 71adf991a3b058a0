package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/meta"
	"dfsd/meta/namespace"
	"dfsd/node"
	"dfsd/raftgroup"
	"dfsd/sim/bubble"
)

// txnGate stops whoever comes to a step of an operation over several groups, once.
type txnGate struct {
	mu      sync.Mutex
	step    meta.TxnStep // 0: nobody is stopped
	reached chan dfs.GroupID
	goOn    chan struct{}
}

func (g *txnGate) arm(step meta.TxnStep) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.step, g.reached, g.goOn = step, make(chan dfs.GroupID, 1), make(chan struct{})
}

func (g *txnGate) pass(id dfs.GroupID, step meta.TxnStep) {
	g.mu.Lock()
	if step != g.step {
		g.mu.Unlock()
		return
	}
	goOn := g.goOn
	g.step = 0
	g.reached <- id
	g.mu.Unlock()
	<-goOn
}

// dirIn makes a directory of a group.
func dirIn(ctx context.Context, p *Peer, above string, g dfs.GroupID) (string, error) {
	for n := range 64 {
		path := fmt.Sprintf("%s/in%d-%d", strings.TrimSuffix(above, "/"), g, n)
		a, err := p.Mkdir(ctx, path, 0o755)
		switch {
		case errors.Is(err, dfs.Exist): // by an attempt whose answer was lost
			if a, err = p.Lstat(ctx, path); err != nil {
				return "", err
			}
		case err != nil:
			return "", err
		}
		if a.Ino.Group() == g {
			return path, nil
		}
	}
	return "", fmt.Errorf("64 directories below %s, and none is in %v", above, g)
}

// underway says what is left of operations over several groups, empty for nothing.
func underway(c *Cluster) string {
	for _, i := range c.Up() {
		m := c.nodes[i].node.Meta()
		if m == nil {
			continue
		}
		for g := dfs.GroupID(1); g <= simGroups; g++ {
			why := ""
			err := m.View(g, func(r raftgroup.Reader) error {
				txns, shares, err := namespace.Underway(r)
				if txns+shares > 0 {
					why = fmt.Sprintf("%s: %v has %d transactions and %d shares", c.nodes[i].name, g, txns, shares)
				}
				return err
			})
			if err != nil {
				why = err.Error()
			}
			if why != "" {
				return why
			}
		}
	}
	return ""
}

// quiet waits until nothing is under way, and checks the tree then.
func quiet(c *Cluster) error {
	begun := time.Now()
	for why := underway(c); why != ""; why = underway(c) {
		if time.Since(begun) > 30*time.Second {
			return fmt.Errorf("operations over several groups do not end: %s", why)
		}
		time.Sleep(100 * time.Millisecond)
	}
	r := &run{c: c, counts: Counts{}}
	return r.checkReplicas()
}

// leaderOf returns the number of the node that leads a group.
func leaderOf(c *Cluster, g dfs.GroupID) (int, bool) {
	for _, i := range c.Up() {
		if m := c.nodes[i].node.Meta(); m != nil && slices.ContainsFunc(m.Groups(), func(st raftgroup.Status) bool {
			return st.Group == g && st.Role == raftgroup.RoleLeader
		}) {
			return i, true
		}
	}
	return 0, false
}

// crossed is an operation over several groups on a place of its own.
type crossed struct {
	name   string
	groups []dfs.GroupID // that take part, the coordinator first
	make   func(ctx context.Context, p *Peer, two, three string) error
	do     func(ctx context.Context, p *Peer, two, three string) error
	done   func(ctx context.Context, p *Peer, two, three string) (bool, error)
}

func putEmpty(ctx context.Context, p *Peer, path string) error {
	_, err := p.PutFile(ctx, path, client.PutOptions{Replace: true}, strings.NewReader(""))
	return err
}

// there reports whether a path exists.
func there(ctx context.Context, p *Peer, path string) (bool, error) {
	_, err := p.Lstat(ctx, path)
	if errors.Is(err, dfs.NotExist) {
		return false, nil
	}
	return err == nil, err
}

// moved reports whether exactly one of two paths exists, the second one.
func moved(ctx context.Context, p *Peer, from, to string) (bool, error) {
	a, err := there(ctx, p, from)
	if err != nil {
		return false, err
	}
	b, err := there(ctx, p, to)
	if err == nil && a == b {
		err = fmt.Errorf("%s exists: %v, %s: %v", from, a, to, b)
	}
	return b, err
}

var crossedOps = []crossed{
	{
		"rename of a file", []dfs.GroupID{2, 3},
		func(ctx context.Context, p *Peer, two, _ string) error { return putEmpty(ctx, p, two+"/f") },
		func(ctx context.Context, p *Peer, two, three string) error {
			return p.Rename(ctx, two+"/f", three+"/f", false)
		},
		func(ctx context.Context, p *Peer, two, three string) (bool, error) {
			return moved(ctx, p, two+"/f", three+"/f")
		},
	},
	{
		"move of a directory", []dfs.GroupID{2, 3, 1},
		func(ctx context.Context, p *Peer, two, _ string) error {
			_, err := p.MkdirAll(ctx, two+"/d/below", 0o755)
			return err
		},
		func(ctx context.Context, p *Peer, two, three string) error {
			return p.Rename(ctx, two+"/d", three+"/d", false)
		},
		func(ctx context.Context, p *Peer, two, three string) (bool, error) {
			return moved(ctx, p, two+"/d/below", three+"/d/below")
		},
	},
	{
		"link", []dfs.GroupID{3, 2},
		func(ctx context.Context, p *Peer, two, _ string) error { return putEmpty(ctx, p, two+"/f") },
		func(ctx context.Context, p *Peer, two, three string) error {
			_, err := p.Link(ctx, two+"/f", three+"/l")
			return err
		},
		func(ctx context.Context, p *Peer, _, three string) (bool, error) { return there(ctx, p, three+"/l") },
	},
}

// crossSteps has a leader die at each step of each operation. What it finds is an
// error and no end of the test: a planted bug may be why.
func crossSteps(t *testing.T, plant func(*node.Options), steps []meta.TxnStep, ops []crossed) (struck int, err error) {
	gate := &txnGate{}
	tweak := func(o *node.Options) {
		o.Meta.TxnStep = gate.pass
		if plant != nil {
			plant(o)
		}
	}
	inBubble(t, Config{Stores: 1, Class: dfs.Replicated(1), Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		n := 0
		for _, op := range ops {
			for _, step := range steps {
				for _, victim := range op.groups {
					n++
					var hit bool
					if hit, err = crossStep(t.Context(), c, p, gate, op, step, victim, n); err != nil {
						err = fmt.Errorf("%s, step %d, the leader of %v dies: %w", op.name, step, victim, err)
						return
					}
					if hit {
						struck++
					}
				}
			}
		}
	})
	return struck, err
}

func crossStep(ctx context.Context, c *Cluster, p *Peer, gate *txnGate, op crossed, step meta.TxnStep, victim dfs.GroupID, n int) (struck bool, err error) {
	top := fmt.Sprintf("/%d", n)
	if _, err := p.Mkdir(ctx, top, 0o755); err != nil {
		return false, err
	}
	two, err := dirIn(ctx, p, top, 2)
	if err != nil {
		return false, err
	}
	three, err := dirIn(ctx, p, top, 3)
	if err != nil {
		return false, err
	}
	if err := op.make(ctx, p, two, three); err != nil {
		return false, err
	}
	if err := quiet(c); err != nil { // what was done before is over
		return false, err
	}
	gate.arm(step)
	result := make(chan error, 1)
	go func() { result <- op.do(ctx, p, two, three) }()
	select {
	case <-gate.reached:
		if i, ok := leaderOf(c, victim); ok {
			struck = true
			goOn := gate.goOn
			time.AfterFunc(time.Millisecond, func() { close(goOn) })
			c.Crash(i)
			time.Sleep(3 * time.Second)
			if err := c.Start(i); err != nil {
				return false, err
			}
		} else {
			close(gate.goOn)
		}
	case <-time.After(10 * time.Second): // it has no such step
		close(gate.goOn)
		gate.arm(0)
	}
	answer := <-result
	if err := quiet(c); err != nil {
		return struck, err
	}
	done, err := op.done(ctx, p, two, three)
	switch {
	case err != nil:
		return struck, err
	case done != (answer == nil):
		return struck, fmt.Errorf("answered %v, and it was done: %v", answer, done)
	}
	return struck, nil
}

// TestLeadersDieAtEveryStep: the leader of the coordinator, and those of the
// participants, die at every step of operations over several groups. Each is done
// once or not at all, as its client is told, and nothing is left of it.
func TestLeadersDieAtEveryStep(t *testing.T) {
	ops := crossedOps
	if bubble.Race {
		ops = ops[:1]
	}
	struck, err := crossSteps(t, nil, meta.TxnSteps(), ops)
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d leaders died", struck)
	if struck < 15 {
		t.Error("too few leaders died: the test proves nothing")
	}
}

// TestPlantedBugsOverGroups proves that the test above can fail.
func TestPlantedBugsOverGroups(t *testing.T) {
	for _, b := range []struct {
		name  string
		step  meta.TxnStep
		plant func(*node.Options)
	}{
		{"drop a share without asking", meta.TxnCommitted, func(o *node.Options) { o.Meta.Hooks.DropShares = true }},
		{"commit without the record", meta.TxnCommitted, func(o *node.Options) { o.Meta.Namespace.ForgetCommits = true }},
		{"finish before the commit", meta.TxnCommit, func(o *node.Options) { o.Meta.Hooks.FinishFirst = true }},
	} {
		t.Run(b.name, func(t *testing.T) {
			_, err := crossSteps(t, b.plant, []meta.TxnStep{b.step, b.step, b.step}, crossedOps[:1])
			if err == nil {
				t.Error("not found")
			}
			t.Log(err)
		})
	}
	t.Run("skip the locks of participants", func(t *testing.T) {
		for seed := uint64(1); seed <= plantedSeeds; seed++ {
			if _, err := inOrder(t, seed, stormOfGroups, func(o *node.Options) { o.Meta.Namespace.SkipShareLocks = true }); err != nil {
				t.Logf("found with seed %d: %v", seed, err)
				return
			}
		}
		t.Errorf("not found in %d seeds", plantedSeeds)
	})
}

// TestDirectoriesMakeNoLoop has clients move a few directories below each other, all
// at the same time: none ever comes to lie below itself.
func TestDirectoriesMakeNoLoop(t *testing.T) {
	inBubble(t, Config{Stores: 1, Class: dfs.Replicated(1)}, func(t *testing.T, c *Cluster) {
		var clients []*Peer
		for i := range 4 {
			clients = append(clients, open(t, c, fmt.Sprintf("client%d", i)))
		}
		awaitReady(t, clients[0])
		var dirs []client.Inode
		var homes []string
		for i := range 5 {
			path, err := dirIn(t.Context(), clients[0], "/", dfs.GroupID(1+i%simGroups))
			if err != nil {
				t.Fatal(err)
			}
			if i == 4 { // the fifth is a further one of a group
				path = "/fifth"
				if _, err := clients[0].Mkdir(t.Context(), path, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			in, err := clients[0].Resolve(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			dirs, homes = append(dirs, in), append(homes, path[1:])
		}
		var mu sync.Mutex
		counts := map[string]int{}
		var wg sync.WaitGroup
		for i, p := range clients {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			wg.Go(func() {
				for range 60 {
					from, to, what := random.IntN(6), random.IntN(6), random.IntN(5)
					at := func(n int) client.Inode {
						if n == 5 {
							return p.Inode(dfs.RootIno)
						}
						return p.Inode(dirs[n].Ino())
					}
					err := at(from).Rename(t.Context(), homes[what], at(to), homes[what], true)
					mu.Lock()
					counts[fmt.Sprint(dfs.KindOf(err), err == nil)]++
					if k := dfs.KindOf(err); err != nil && k != dfs.NotExist && k != dfs.Exist && k != dfs.Invalid {
						t.Errorf("rename: %v", err)
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		t.Logf("%v", counts)
		if counts[fmt.Sprint(dfs.Invalid, false)] == 0 || counts[fmt.Sprint(dfs.Other, true)] < 20 {
			t.Error("too little was moved, or nothing refused: the test proves nothing")
		}
		if err := quiet(c); err != nil {
			t.Error(err)
		}
		for _, p := range clients {
			p.Close()
		}
	})
}

// TestSessionEndsWithinATransaction: a client is lost, and its operation stands still
// for longer than its session lasts, while another client waits for what it has
// locked. The other one goes on, and of the first one's operation nothing is left.
func TestSessionEndsWithinATransaction(t *testing.T) {
	for _, step := range []meta.TxnStep{meta.TxnBegun, meta.TxnPrepared, meta.TxnCommit} {
		gate := &txnGate{}
		inBubble(t, Config{Stores: 1, Class: dfs.Replicated(1), Tweak: func(o *node.Options) { o.Meta.TxnStep = gate.pass }}, func(t *testing.T, c *Cluster) {
			p, other := open(t, c, "client"), open(t, c, "other")
			defer other.Close()
			awaitReady(t, p)
			ctx := t.Context()
			two, err := dirIn(ctx, p, "/", 2)
			if err != nil {
				t.Fatal(err)
			}
			three, err := dirIn(ctx, p, "/", 3)
			if err != nil {
				t.Fatal(err)
			}
			if err := putEmpty(ctx, p, two+"/f"); err != nil {
				t.Fatal(err)
			}
			if err := quiet(c); err != nil {
				t.Fatal(err)
			}
			gate.arm(step)
			lost := make(chan error, 1)
			go func() { lost <- p.Rename(ctx, two+"/f", three+"/lost", false) }()
			<-gate.reached
			p.Kill()
			<-lost
			done := make(chan error, 1)
			go func() {
				err := other.Rename(ctx, two+"/f", three+"/won", false)
				for dfs.KindOf(err).Retryable() { // it waits for longer than one operation may
					err = other.Rename(ctx, two+"/f", three+"/won", false)
				}
				done <- err
			}()
			time.Sleep(dfs.SessionTTL + 15*time.Second)
			close(gate.goOn)
			if err := <-done; err != nil {
				t.Errorf("step %d: %v", step, err)
			}
			if ok, err := moved(ctx, other, three+"/lost", three+"/won"); !ok || err != nil {
				t.Errorf("step %d: %v, %v", step, ok, err)
			}
			if err := quiet(c); err != nil {
				t.Errorf("step %d: %v", step, err)
			}
		})
	}
}
