package sim

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/meta"
	"dfsd/node"
	"dfsd/raftgroup"
	"dfsd/sim/bubble"
)

// formMoments are the moments of a new group's way at which nodes crash: its steps,
// and each of the changes of members, two for each node but the founder.
var formMoments = []struct {
	step meta.FormStep
	nth  int
}{
	{meta.FormEntry, 1}, {meta.FormFirst, 1}, {meta.FormInit, 1},
	{meta.FormMember, 1}, {meta.FormMember, 2}, {meta.FormMember, 3}, {meta.FormMember, 4},
	{meta.FormFence, 1}, {meta.FormReady, 1}, {meta.FormOpen, 1},
}

// formGate stops whoever comes to a moment of a group's way.
type formGate struct {
	mu      sync.Mutex
	step    meta.FormStep // 0: nobody is stopped
	left    int           // such steps until then
	reached chan dfs.GroupID
	goOn    chan struct{}
}

func (g *formGate) arm(step meta.FormStep, nth int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.step, g.left = step, nth
	g.reached, g.goOn = make(chan dfs.GroupID, 1), make(chan struct{})
}

func (g *formGate) pass(id dfs.GroupID, step meta.FormStep) {
	g.mu.Lock()
	goOn := g.goOn
	if step == g.step {
		g.left--
	}
	if stop := step == g.step && g.left == 0; !stop {
		g.mu.Unlock()
		return
	}
	g.step = 0
	g.reached <- id
	g.mu.Unlock()
	<-goOn
}

// histories compares what the replicas of a group number say of their state, on
// any node at any time.
type histories struct {
	seen map[dfs.GroupID]map[uint64]raftgroup.StateHash
	two  []string
}

// look notes the state of each replica that runs.
func (h *histories) look(c *Cluster) {
	for i, sn := range c.nodes {
		if sn.node == nil || sn.node.Meta() == nil {
			continue
		}
		for _, st := range sn.node.Meta().Groups() {
			if st.Applied == 0 {
				continue
			}
			if h.seen[st.Group] == nil {
				h.seen[st.Group] = map[uint64]raftgroup.StateHash{}
			}
			if old, ok := h.seen[st.Group][st.Applied]; ok && old != st.Hash {
				h.two = append(h.two, fmt.Sprintf("%s: %v at entry %d is %x, and was %x", c.nodes[i].name, st.Group, st.Applied, st.Hash, old))
			}
			h.seen[st.Group][st.Applied] = st.Hash
		}
	}
}

// TestGroupCreateThroughCrashes crashes nodes at each step of a new group's way:
// its founder, for a moment or for longer than the grace period, the control leader,
// all of them. The group is ready in the end, under its number or, abandoned and begun
// anew, under a later one; no number has two histories, and nothing is left of what
// was abandoned.
func TestGroupCreateThroughCrashes(t *testing.T) {
	for _, victims := range []string{"founder", "founder, for long", "control leader", "all"} {
		t.Run(victims, func(t *testing.T) {
			moments := formMoments
			if bubble.Race { // each is one of several seconds
				moments = moments[1:2]
			}
			gate := &formGate{}
			tweak := func(o *node.Options) { shortGrace(o); o.Meta.FormStep = gate.pass }
			inBubble(t, Config{Stores: 1, Class: dfs.Replicated(1), Tweak: tweak}, func(t *testing.T, c *Cluster) {
				p := open(t, c, "client")
				defer p.Close()
				metas := spared(t, c, p, 1)
				awaitSpread(t, c, p, metas, 5*time.Minute)
				h := &histories{seen: map[dfs.GroupID]map[uint64]raftgroup.StateHash{}}
				groups, anew := simGroups, 0
				for _, m := range moments {
					if m.step == meta.FormEntry && (victims == "founder" || victims == "founder, for long") {
						continue // there is none yet
					}
					what := fmt.Sprintf("step %d, time %d", m.step, m.nth)
					gate.arm(m.step, m.nth)
					var made sync.WaitGroup
					var err error
					made.Go(func() { _, err = p.CreateGroup(t.Context(), nil) })
					at := <-gate.reached
					down := formVictims(t, c, metas, victims, at)
					made.Go(func() { // the one that was stopped goes on, unheard if it is down
						time.Sleep(time.Millisecond)
						close(gate.goOn)
					})
					c.Crash(down...)
					away := time.Second
					if victims == "founder, for long" {
						away = 25 * time.Second
					}
					for begun := time.Now(); time.Since(begun) < away; time.Sleep(100 * time.Millisecond) {
						h.look(c)
					}
					start(t, c, down...)
					made.Wait()
					var now *dfs.Map
					await(t, 5*time.Minute, func() (why string) {
						h.look(c)
						now, why = replicasOf(t, c, p, metas)
						return why
					})
					n := len(now.Namespace())
					// A crash may take the answer, and before the entry the group too.
					if n != groups+1 && (err == nil || m.step != meta.FormEntry || n != groups) {
						t.Errorf("%s: %d groups are ready, of %d and one: %v", what, n, groups, err)
					}
					if at != 0 && now.Group(at) == nil {
						anew++
					}
					groups = n
				}
				if len(h.two) > 0 {
					t.Errorf("%d times a group number had two histories: %s", len(h.two), h.two[0])
				}
				if len(h.seen) < groups+anew {
					t.Errorf("%d histories were seen of %d groups", len(h.seen), groups+anew)
				}
				t.Logf("%d groups, of which %d were begun anew", groups, anew)
				if anew == 0 && victims == "founder, for long" {
					t.Error("no group was abandoned: the founder's absence was too short to show anything")
				}
				dirPerGroup(t, p, groups)
				time.Sleep(3 * time.Second)
				sound(t, c)
			})
		})
	}
}

// formVictims are the nodes to crash when group g has come to a step.
func formVictims(t *testing.T, c *Cluster, metas []int, victims string, g dfs.GroupID) []int {
	t.Helper()
	if victims == "all" {
		return c.Up()
	}
	var id dfs.NodeID
	if victims == "control leader" {
		for _, i := range metas {
			if slices.ContainsFunc(c.nodes[i].node.Meta().Groups(), func(st raftgroup.Status) bool {
				return st.Group == dfs.ControlGroup && st.Role == raftgroup.RoleLeader
			}) {
				return []int{i}
			}
		}
		t.Fatal("no node leads the control group")
	}
	id = c.newestMap().Group(g).Founder
	i := slices.IndexFunc(metas, func(i int) bool { return membershipOf(t, c.nodes[i]).Node == id })
	return []int{metas[i]}
}
