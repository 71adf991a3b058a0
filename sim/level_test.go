package sim

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/node"
)

// TestFeatureLevel: a cluster of nodes of an earlier release makes directories in the
// groups of their parents, and refuses for now what takes several groups. Once the last
// node runs the new release its groups begin with it by themselves.
func TestFeatureLevel(t *testing.T) {
	old := map[string]bool{"meta1": true, "meta2": true, "meta3": true}
	tweak := func(o *node.Options) { o.Meta.Hooks.OldRelease = old[o.Name] }
	inBubble(t, Config{Stores: 1, Class: dfs.Replicated(1), Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		ctx := t.Context()
		a, err := p.Mkdir(ctx, "/d", 0o755)
		if err != nil || a.Ino.Group() != dfs.RootIno.Group() {
			t.Fatalf("mkdir: %+v, %v", a, err)
		}
		if err := putEmpty(ctx, p, "/d/f"); err != nil {
			t.Fatal(err)
		}
		// What is in another group was made by a client of that release.
		far := dfs.MakeIno(2, 1<<20)
		hasty, err := c.clientWithin(ctx, "hasty", 9, 3*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer hasty.Close()
		refused := func() {
			t.Helper()
			await(t, time.Minute, func() string { // leaders change on the way
				d, err := hasty.Resolve(ctx, "/d")
				if err != nil {
					return err.Error()
				}
				if err = d.Rename(ctx, "f", hasty.Inode(far), "f", false); err == nil {
					t.Fatal("a rename over groups was done")
				}
				if !strings.Contains(err.Error(), "runs a release that knows them") {
					return err.Error()
				}
				return ""
			})
		}
		refused()
		for i := range 3 {
			refused()
			old[fmt.Sprintf("meta%d", i+1)] = false
			c.Crash(i)
			if err := c.Start(i); err != nil {
				t.Fatal(err)
			}
			await(t, time.Minute, func() string {
				if st := c.nodes[i].node.Meta().Groups(); len(st) != simGroups+1 {
					return "groups are missing"
				}
				return ""
			})
			awaitReady(t, p)
		}
		took := await(t, 3*time.Minute, func() string {
			st, err := p.Status(ctx)
			if err != nil {
				return err.Error()
			}
			for _, g := range st.Groups {
				if g.Group != 0 && g.Level != namespace.NewestLevel {
					return fmt.Sprintf("group %d is at level %d", g.Group, g.Level)
				}
			}
			return ""
		})
		t.Logf("all groups are at the newest level %v after the last node", took)
		two, err := dirIn(ctx, p, "/", 2)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Rename(ctx, "/d/f", two+"/f", false); err != nil {
			t.Error(err)
		}
		if err := quiet(c); err != nil {
			t.Error(err)
		}
	})
}
