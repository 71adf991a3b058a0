package sim

import (
	"fmt"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/meta"
	"dfsd/node"
)

// handOverMost is how long an operation over several groups may take whose
// coordinator gets another leader on the way: as long as attempts that meet others
// last, and less than a share that nobody drives would.
const handOverMost = 4 * time.Second

// TestLeadersHandOverAtEveryStep: the leader of the coordinator hands over at every
// step of operations over several groups, and lives. The next one goes on with what
// it finds: no client waits for what its own operation holds.
func TestLeadersHandOverAtEveryStep(t *testing.T) {
	gate := &txnGate{}
	struck := 0
	inBubble(t, Config{Stores: 1, Class: dfs.Replicated(1), Tweak: func(o *node.Options) { o.Meta.TxnStep = gate.pass }}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		for k, op := range crossedOps {
			for _, step := range meta.TxnSteps() {
				top := fmt.Sprintf("/%d-%d", k, step)
				if _, err := p.Mkdir(t.Context(), top, 0o755); err != nil {
					t.Fatal(err)
				}
				two, err := dirIn(t.Context(), p, top, 2)
				if err != nil {
					t.Fatal(err)
				}
				three, err := dirIn(t.Context(), p, top, 3)
				if err != nil {
					t.Fatal(err)
				}
				if err := op.make(t.Context(), p, two, three); err != nil {
					t.Fatal(err)
				}
				if err := quiet(c); err != nil {
					t.Fatal(err)
				}
				gate.arm(step)
				var took time.Duration
				result := make(chan error, 1)
				go func() {
					begun := time.Now()
					err := op.do(t.Context(), p, two, three)
					took = time.Since(begun)
					result <- err
				}()
				select {
				case <-gate.reached:
					if err := handOver(t, c, p, op.groups[0]); err != nil {
						t.Fatalf("%s, step %d: %v", op.name, step, err)
					}
					struck++
				case <-time.After(10 * time.Second): // it has no such step
					took = 0
				}
				close(gate.goOn)
				gate.arm(0)
				answer := <-result
				if err := quiet(c); err != nil {
					t.Fatalf("%s, step %d: %v", op.name, step, err)
				}
				if done, err := op.done(t.Context(), p, two, three); err != nil || done != (answer == nil) {
					t.Errorf("%s, step %d: answered %v, and it was done: %v, %v", op.name, step, answer, done, err)
				}
				t.Logf("%s, step %d: %v, %v", op.name, step, took, answer)
				if took > handOverMost {
					t.Errorf("%s, step %d: it took %v after another leader had taken over", op.name, step, took)
				}
			}
		}
	})
	if struck < 10 {
		t.Errorf("%d leaders handed over: the test proves nothing", struck)
	}
}

// handOver has the leader of a group hand it to another replica.
func handOver(t *testing.T, c *Cluster, p *Peer, g dfs.GroupID) error {
	i, ok := leaderOf(c, g)
	if !ok {
		return fmt.Errorf("%v has no leader", g)
	}
	for _, st := range c.nodes[i].node.Meta().Groups() {
		if st.Group != g {
			continue
		}
		for _, to := range st.Voters {
			if to != st.Leader {
				return p.MoveLeader(t.Context(), g, to)
			}
		}
	}
	return fmt.Errorf("there is nobody else to lead %v", g)
}
