package sim

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/node"
	"dfsd/raftgroup"
)

// TestAddedReceiveWork: a group that is created gets new directories until it has
// as many as the others, and a meta node that is added replicas and leaders until
// it has its share; nothing that a client does fails meanwhile.
func TestAddedReceiveWork(t *testing.T) {
	tweak := func(o *node.Options) { o.Meta.Groups = 7; shortGrace(o) } // so 9 in the end, three for each of three nodes
	inBubble(t, Config{Stores: 1, Class: dfs.Replicated(1), Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		made, dirs := map[dfs.GroupID]int{}, 0
		mkdir := func(n int, pause time.Duration) {
			for range n {
				a, err := p.Mkdir(t.Context(), fmt.Sprintf("/d%d", dirs), 0o755)
				if err != nil {
					t.Error(err)
					return
				}
				made[a.Ino.Group()]++
				put(t, p, fmt.Sprintf("/d%d/f", dirs), "written")
				dirs++
				time.Sleep(pause)
			}
		}
		mkdir(80, 100*time.Millisecond)
		groups := len(made)
		t.Logf("before: %v", made)

		g, err := p.CreateGroup(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		await(t, time.Minute, func() string {
			m, err := p.Refresh(t.Context())
			switch {
			case err != nil:
				return err.Error()
			case !m.Group(g).Ready():
				return fmt.Sprintf("%v is forming", g)
			}
			return ""
		})
		time.Sleep(5 * time.Second) // every leader has heard of it
		mkdir(8, 2*time.Second)
		if made[g] < 4 {
			t.Errorf("of 8 new directories %d went to the new group: %v", made[g], made)
		}
		mkdir(40, 2*time.Second)
		t.Logf("after: %v", made)
		for other, n := range made {
			if mean := dirs / (groups + 1); n < mean-4 || n > mean+4 {
				t.Errorf("%v has %d of %d directories, the new group is %v: %v", other, n, dirs, g, made)
			}
		}

		spare := c.AddMeta()
		start(t, c, spare)
		metas := []int{0, 1, 2, spare}
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for !closed(stop) {
				mkdir(1, time.Second)
			}
		}()
		awaitSpread(t, c, p, metas, 10*time.Minute)
		took := await(t, 3*time.Minute, func() string {
			led, all := make([]int, len(metas)), 0
			for k, i := range metas {
				for _, st := range c.nodes[i].node.Meta().Groups() {
					if st.Role == raftgroup.RoleLeader {
						led[k]++
						all++
					}
				}
			}
			if all < groups+2 || slices.Max(led)-slices.Min(led) > 1 {
				return fmt.Sprintf("led: %v of %d groups", led, groups+2)
			}
			return ""
		})
		t.Logf("leaders are even after %v", took)
		close(stop)
		<-done
		for i := range dirs {
			if got := string(content(t, p, fmt.Sprintf("/d%d/f", i))); got != "written" {
				t.Errorf("file %d holds %q", i, got)
			}
		}
		time.Sleep(3 * time.Second)
		sound(t, c)
	})
}
