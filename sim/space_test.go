package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/node"
	"dfsd/raftgroup"
	"dfsd/transport"
)

// simReserve is the reserve of the meta nodes' disks, which have ten times as much.
const simReserve = 64 << 20

// setFree says how much is free on the disk of a node.
func (c *Cluster) setFree(i int, free uint64) {
	c.nodes[i].fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 10 * simReserve, AvailBytes: free, UsedBytes: 10*simReserve - free})
}

// leads lists the groups that a node leads.
func leadsOf(c *Cluster, i int) (out []dfs.GroupID) {
	for _, st := range c.nodes[i].node.Meta().Groups() {
		if st.Role == raftgroup.RoleLeader {
			out = append(out, st.Group)
		}
	}
	return out
}

// awaitRelief waits until only the given nodes lead groups, and all groups are led.
func awaitRelief(t *testing.T, c *Cluster, by ...int) {
	t.Helper()
	await(t, 30*time.Second, func() string {
		n := 0
		for _, i := range c.Up() {
			if i >= c.cfg.Metas {
				continue
			}
			led := leadsOf(c, i)
			n += len(led)
			if len(led) > 0 && !slices.Contains(by, i) {
				return fmt.Sprintf("%s leads %v", c.nodes[i].name, led)
			}
		}
		if n != simGroups+1 {
			return fmt.Sprintf("%d groups are led", n)
		}
		return ""
	})
}

// refusals tries each change that grows: all are refused for want of space, at
// once, with the names of the nodes whose disks are full.
func refusals(t *testing.T, p *Peer, n int, names ...string) {
	t.Helper()
	for what, op := range map[string]func(ctx context.Context) error{
		"put": func(ctx context.Context) error {
			_, err := p.PutFile(ctx, fmt.Sprintf("/no%d", n), client.PutOptions{Mode: 0o644}, strings.NewReader("no"))
			return err
		},
		"mkdir": func(ctx context.Context) error {
			_, err := p.Mkdir(ctx, fmt.Sprintf("/nodir%d", n), 0o755)
			return err
		},
		"symlink": func(ctx context.Context) error {
			_, err := p.Symlink(ctx, "target", fmt.Sprintf("/nolink%d", n), client.PutOptions{})
			return err
		},
		"rename": func(ctx context.Context) error { return p.Rename(ctx, "/first", fmt.Sprintf("/moved%d", n), false) },
	} {
		begun := time.Now()
		err := op(t.Context())
		if dfs.KindOf(err) != dfs.NoSpace {
			t.Errorf("%s: %v, want no space", what, err)
			continue
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s was refused after %v", what, took)
		}
		for _, name := range append(names, "remove files") {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v: does not say %q", what, err, name)
			}
		}
	}
}

// awaitTaken waits until changes that grow are taken again, by themselves.
func awaitTaken(t *testing.T, p *Peer, path string) {
	t.Helper()
	await(t, 10*time.Second, func() string {
		if _, err := p.PutFile(t.Context(), path, client.PutOptions{Mode: 0o644}, strings.NewReader("goes on")); err != nil {
			return err.Error()
		}
		return ""
	})
	awaitReady(t, p)
}

// TestFullMetaDisks fills the disks of one, two and all meta nodes to their
// reserve: with one the cluster goes on without it, with a majority what grows is
// refused while reads and removal go on, and all comes back with the space.
func TestFullMetaDisks(t *testing.T) {
	tweak := func(o *node.Options) { o.Meta.Reserve = simReserve }
	inBubble(t, Config{Tweak: tweak}, func(t *testing.T, c *Cluster) {
		for i := range c.cfg.Metas {
			c.setFree(i, 5*simReserve)
		}
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		all := files(t, p, "keep", 8)
		put(t, p, "/first", "stays")
		files(t, p, "gone", 20)
		for i := range 12 {
			if _, err := p.Mkdir(t.Context(), fmt.Sprintf("/dir%d", i), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		problems := func() string {
			st, err := p.Status(t.Context())
			if err != nil {
				return err.Error()
			}
			return strings.Join(st.Problems, "; ")
		}
		removals := 0
		remove := func() {
			t.Helper()
			if err := p.Remove(t.Context(), fmt.Sprintf("/gone%d", removals)); err != nil {
				t.Errorf("remove: %v", err)
			}
			if err := p.Rmdir(t.Context(), fmt.Sprintf("/dir%d", removals)); err != nil {
				t.Errorf("rmdir: %v", err)
			}
			removals++
		}

		// One: nothing fails, and it leads nothing.
		one := leader(t, c, 0, 1, 2)
		others := slices.DeleteFunc([]int{0, 1, 2}, func(i int) bool { return i == one })
		c.setFree(one, simReserve-1)
		for i := range 100 {
			begun := time.Now()
			put(t, p, fmt.Sprintf("/one%d", i), "goes on")
			if took := time.Since(begun); took > 3*time.Second {
				t.Errorf("a write took %v", took)
			}
			time.Sleep(50 * time.Millisecond)
		}
		awaitRelief(t, c, others...)
		st, err := p.Status(t.Context())
		if err != nil || len(st.Problems) > 0 || !strings.Contains(strings.Join(st.Notes, "; "), "disk of meta node "+c.nodes[one].name+" is full") {
			t.Errorf("status: problems %q, notes %q, %v", st.GetProblems(), st.GetNotes(), err)
		}
		if len(st.GetDisks()) != 3 {
			t.Errorf("status knows the disks %v", st.GetDisks())
		}
		time.Sleep(time.Minute) // balance gives it nothing
		awaitRelief(t, c, others...)

		// And another away: what is left is one with space of three.
		c.Crash(others[0])
		await(t, 30*time.Second, func() string {
			if why := problems(); !strings.Contains(why, c.nodes[one].name+" is full") {
				return "problems: " + why
			}
			return ""
		})
		time.Sleep(time.Second) // the leaders hear of it with their next report
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err = p.PutFile(ctx, "/late", client.PutOptions{Mode: 0o644}, strings.NewReader("no"))
		cancel()
		switch dfs.KindOf(err) {
		case dfs.Unknown: // the deadline cut an attempt
		case dfs.Unavailable:
			if !strings.Contains(err.Error(), c.nodes[one].name+" is full") || !strings.Contains(err.Error(), "are down") {
				t.Errorf("put with one full and one down: %v", err)
			}
		default:
			t.Errorf("put with one full and one down: %v", err)
		}
		if _, err := p.Lstat(t.Context(), "/late"); dfs.KindOf(err) != dfs.NotExist {
			t.Errorf("put with one full and one down: %v", err)
		}
		unchanged(t, p, all)
		remove()
		start(t, c, others[0])
		c.setFree(others[0], 5*simReserve)
		awaitReady(t, p)
		put(t, p, "/back", "goes on")

		// A majority.
		c.setFree(others[0], simReserve/2)
		await(t, 10*time.Second, func() string {
			if why := problems(); !strings.Contains(why, c.nodes[others[0]].name) {
				return "problems: " + why
			}
			return ""
		})
		awaitRelief(t, c, others[1])
		time.Sleep(time.Second) // the leader hears of it with its next report
		for n := range 5 {
			refusals(t, p, 2+n, c.nodes[one].name, c.nodes[others[0]].name)
			unchanged(t, p, all)
			remove()
		}
		f, err := p.Open(t.Context(), "/keep1")
		if err == nil {
			err = f.Truncate(t.Context(), 10)
		}
		if err != nil {
			t.Errorf("truncate: %v", err)
		}
		all["/keep1"] = all["/keep1"][:10]

		// All: whoever leads goes on.
		c.setFree(others[1], 1)
		time.Sleep(2 * time.Second)
		refusals(t, p, 8, c.nodes[0].name, c.nodes[1].name, c.nodes[2].name)
		unchanged(t, p, all)
		remove()

		// Space comes back, first not enough of it.
		for i := range c.cfg.Metas {
			c.setFree(i, simReserve+simReserve/8)
		}
		time.Sleep(2 * time.Second)
		refusals(t, p, 9, "remove files")
		for i := range c.cfg.Metas {
			c.setFree(i, 2*simReserve)
		}
		awaitTaken(t, p, "/again")
		unchanged(t, p, all)
		for i := range removals {
			for _, path := range []string{fmt.Sprintf("/gone%d", i), fmt.Sprintf("/dir%d", i)} {
				if _, err := p.Lstat(t.Context(), path); dfs.KindOf(err) != dfs.NotExist {
					t.Errorf("%s was removed: %v", path, err)
				}
			}
		}
		for i := range 10 {
			if _, err := p.Lstat(t.Context(), fmt.Sprintf("/no%d", i)); dfs.KindOf(err) != dfs.NotExist {
				t.Errorf("what was refused: %v", err)
			}
		}
		sound(t, c)
	})
}

// TestAnswerOnFullDisks loses every answer to a change until all disks are full:
// asked again, it gets its answer, since it was carried out before.
func TestAnswerOnFullDisks(t *testing.T) {
	var lose atomic.Bool
	tweak := func(o *node.Options) {
		o.Meta.Reserve = simReserve
		o.DropReply = func(peer transport.Peer, method string, _ error) bool {
			return lose.Load() && peer.Kind == transport.KindClient && method == "/dfsd.wire.Meta/Mutate"
		}
	}
	inBubble(t, Config{Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		put(t, p, "/first", "opens the session")
		lose.Store(true)
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(time.Second)
			for i := range c.cfg.Metas {
				c.setFree(i, 1)
			}
			time.Sleep(5 * time.Second)
			lose.Store(false)
		})
		if _, err := p.Symlink(t.Context(), "target", "/link", client.PutOptions{}); err != nil {
			t.Errorf("asked again: %v", err)
		}
		wg.Wait()
		refusals(t, p, 1, "remove files")
		if err := p.Remove(t.Context(), "/link"); err != nil {
			t.Error(err)
		}
	})
}
