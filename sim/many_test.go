package sim

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/node"
	"dfsd/raftgroup"
	"dfsd/sim/bubble"
)

// manyGroups is as many as are affordable: a real node may have a thousand.
func manyGroups() int {
	if bubble.Race {
		return 24
	}
	return 200
}

// TestManyNamespaceGroups: hundreds of namespace groups on three meta nodes. Every
// one of them is written; a node crashes and returns; another one is lost for good
// and a new one takes its place in every group; leaders spread, and all that was
// answered is read back.
func TestManyNamespaceGroups(t *testing.T) {
	groups := manyGroups()
	tweak := func(o *node.Options) { o.Meta.Groups = groups; shortGrace(o) }
	inBubble(t, Config{Stores: 1, Class: dfs.Replicated(1), Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		dirs := dirPerGroup(t, p, groups)
		want := map[string]string{}
		write := func(round string) {
			for _, dir := range dirs {
				path := dir + "/" + round
				if _, err := p.Symlink(t.Context(), "to "+path, path, client.PutOptions{}); err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				want[path] = "to " + path
			}
		}
		write("all-up")
		awaitLed(t, c, []int{0, 1, 2})
		c.Crash(0)
		write("one-down")
		start(t, c, 0)
		write("back")
		c.Crash(1)
		write("lost")
		spare := c.AddMeta()
		start(t, c, spare)
		metas := []int{0, 2, spare}
		awaitSpread(t, c, p, metas, 30*time.Minute)
		write("replaced")
		awaitLed(t, c, metas)
		awaitAsleep(t, c, metas)
		for path, target := range want {
			if got, err := p.ReadLink(t.Context(), path); err != nil || got != target {
				t.Errorf("%s leads to %q, %v", path, got, err)
			}
		}
		time.Sleep(3 * time.Second)
		sound(t, c)
	})
}

// dirPerGroup makes directories until each group has one, and returns one of each.
func dirPerGroup(t *testing.T, p *Peer, groups int) []string {
	t.Helper()
	of := map[dfs.GroupID]string{}
	for i := 0; len(of) < groups; i++ {
		if i > 4*groups {
			t.Fatalf("%d directories are in %d of %d groups", i, len(of), groups)
		}
		path := fmt.Sprintf("/d%d", i)
		a, err := p.Mkdir(t.Context(), path, 0o755)
		if err != nil {
			t.Fatal(err)
		}
		of[a.Ino.Group()] = path
	}
	var out []string
	for _, path := range of {
		out = append(out, path)
	}
	slices.Sort(out)
	return out
}

// awaitAsleep waits until no group but the control group is awake anywhere.
func awaitAsleep(t *testing.T, c *Cluster, metas []int) {
	t.Helper()
	took := await(t, 3*time.Minute, func() string {
		for _, i := range metas {
			awake := slices.DeleteFunc(c.nodes[i].node.Meta().Groups(), func(st raftgroup.Status) bool {
				return st.Asleep || st.Group == dfs.ControlGroup
			})
			if len(awake) > 0 {
				return fmt.Sprintf("%s: %d groups are awake", c.nodes[i].name, len(awake))
			}
		}
		return ""
	})
	t.Logf("asleep after %v", took)
}
