package sim

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/node"
	"dfsd/raftgroup"
)

// leaderships returns who leads each group in which term, by the number of the
// node, and why that cannot be said.
func leaderships(c *Cluster) (map[dfs.GroupID]raftgroup.Office, string) {
	out := map[dfs.GroupID]raftgroup.Office{}
	for i := range c.cfg.Metas {
		if c.nodes[i].node == nil {
			continue
		}
		for _, st := range c.nodes[i].node.Meta().Groups() {
			if st.Role == raftgroup.RoleLeader && st.Term > out[st.Group].Term {
				out[st.Group] = raftgroup.Office{Leader: dfs.NodeID(i + 1), Term: st.Term}
			}
		}
	}
	for g := dfs.GroupID(0); int(g) <= evenGroups; g++ {
		if out[g].Leader == 0 {
			return nil, fmt.Sprintf("%v has no leader", g)
		}
	}
	return out, ""
}

// evenGroups namespace groups and the control group: three for each of three nodes,
// four and five for each of two.
const evenGroups = 8

func awaitEven(t *testing.T, c *Cluster) map[dfs.GroupID]raftgroup.Office {
	t.Helper()
	var offices map[dfs.GroupID]raftgroup.Office
	took := await(t, time.Minute, func() string {
		var why string
		if offices, why = leaderships(c); why != "" {
			return why
		}
		led := map[dfs.NodeID]int{}
		for _, o := range offices {
			led[o.Leader]++
		}
		up := 0
		for i := range c.cfg.Metas {
			if c.nodes[i].node != nil {
				up++
			}
		}
		for i := range c.cfg.Metas {
			if n := led[dfs.NodeID(i+1)]; c.nodes[i].node != nil && (n > (evenGroups+up)/up || n < (evenGroups+1)/up) {
				return fmt.Sprintf("led: %v", led)
			}
		}
		return ""
	})
	t.Logf("leaders are spread after %v", took)
	return offices
}

// awaitCalm demands that nobody takes over or loses a group for two minutes.
func awaitCalm(t *testing.T, c *Cluster, offices map[dfs.GroupID]raftgroup.Office) {
	t.Helper()
	for range 120 {
		time.Sleep(time.Second)
		now, why := leaderships(c)
		for g, o := range offices {
			if why != "" || now[g] != o {
				t.Fatalf("%v was led by node %v in term %d, now %v in term %d (%s): leaders flap", g, o.Leader, o.Term, now[g].Leader, now[g].Term, why)
			}
		}
	}
}

// TestLeadersSpread: after the formation, and whenever a meta node has returned,
// the leaders of the groups even out and then stay; so they do among the others
// while one is away, and nothing that a client does fails meanwhile.
func TestLeadersSpread(t *testing.T) {
	tweak := func(o *node.Options) { o.Meta.Groups = evenGroups }
	inBubble(t, Config{Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		writes := 0
		write := func() {
			put(t, p, fmt.Sprintf("/f%d", writes), "written")
			writes++
		}
		// A change is never without an answer for longer than an election takes.
		for range 100 {
			begun := time.Now()
			write()
			if took := time.Since(begun); took > 3*time.Second {
				t.Errorf("a write took %v", took)
			}
			if st, err := p.Status(t.Context()); err != nil || len(st.Problems) > 0 || len(st.Groups) != evenGroups+1 {
				t.Errorf("a status while leaders move: %d groups, problems %q, %v", len(st.GetGroups()), st.GetProblems(), err)
			}
			time.Sleep(200 * time.Millisecond)
		}
		awaitCalm(t, c, awaitEven(t, c))

		random := rand.New(rand.NewPCG(c.cfg.Seed, 9))
		for range 4 {
			i := random.IntN(3)
			c.Crash(i)
			time.Sleep(20 * time.Second)
			awaitCalm(t, c, awaitEven(t, c))
			write()
			start(t, c, i)
			awaitEven(t, c)
		}
		// Crashes at any moment, also of who is handing over.
		for range 12 {
			i := random.IntN(3)
			c.Crash(i)
			time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
			write()
			start(t, c, i)
			time.Sleep(time.Duration(random.IntN(15000)) * time.Millisecond)
		}
		awaitCalm(t, c, awaitEven(t, c))
		for i := range writes {
			if got := string(content(t, p, fmt.Sprintf("/f%d", i))); got != "written" {
				t.Errorf("file %d holds %q", i, got)
			}
		}
		sound(t, c)
	})
}
