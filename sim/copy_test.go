package sim

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/node"
	"dfsd/transport"
)

// registered waits until the directory of a running node knows that its start is
// on record, and that start is another than the one before. It returns it.
func registered(t *testing.T, c *Cluster, p *Peer, i int, before uint64) (on uint64) {
	t.Helper()
	sn := c.nodes[i]
	await(t, time.Minute, func() string {
		m, err := p.Refresh(t.Context())
		if err != nil {
			return err.Error()
		}
		on = m.Node(idOf(t, p, sn.name)).Incarnation.Start
		id, err := node.OpenIdentity(sn.fs.CrashClone(vfs.CrashCloneCfg{}), "data", sn.name, 1, func() uint64 { return 1 })
		if err != nil {
			t.Fatal(err)
		}
		defer id.Close()
		if l, _ := id.Lineage(); on == before || l.Accepted != on || len(l.Offered) > 0 {
			return fmt.Sprintf("%s has registered %x, %x before, and knows %x", sn.name, on, before, l)
		}
		return ""
	})
	return on
}

// restart crashes a node and waits until its next start is registered.
func restart(t *testing.T, c *Cluster, p *Peer, i int) {
	t.Helper()
	before := registered(t, c, p, i, 0)
	c.Crash(i)
	start(t, c, i)
	registered(t, c, p, i, before)
}

// startCopy runs a node on a copied disk beside its original, which keeps its
// address. It returns what the copy says of itself in the end, and its disk then.
func startCopy(t *testing.T, c *Cluster, i, life int, disk *vfs.MemFS, addr string) (*vfs.MemFS, error) {
	t.Helper()
	sn := &simNode{name: c.nodes[i].name, roles: c.nodes[i].roles, fs: disk, lives: 1000 + life}
	o := c.options(sn)
	host, _, _ := strings.Cut(addr, ":")
	o.Network, o.Listen = c.net.Host(host), addr
	n, err := node.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	await(t, time.Minute, func() string {
		if n.Err() == nil {
			return "a copy is not refused"
		}
		return ""
	})
	refused := n.Err()
	time.Sleep(5 * time.Second) // nobody hears it
	crashed := disk.CrashClone(vfs.CrashCloneCfg{})
	if err := n.Close(); err != nil && !errors.Is(err, dfs.Stale) {
		t.Error(err)
	}
	return crashed, refused
}

// TestCopiesAreRefused starts copies of the disks of a storage node and of two
// meta nodes, one of which leads, beside the originals: one taken at the start
// on record, one that is a start behind and one that is three. Each is refused at
// every one of several starts, and the originals serve on.
func TestCopiesAreRefused(t *testing.T) {
	inBubble(t, Config{Stores: 3}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		votersOf(t, c)
		for _, i := range []int{0, 1, 3} {
			name := c.nodes[i].name
			copies := map[string]*vfs.MemFS{}
			for _, age := range []string{"three starts old", "two starts old", "one start old", "at this start"} {
				registered(t, c, p, i, 0)
				copies[age] = c.nodes[i].fs.CrashClone(vfs.CrashCloneCfg{})
				put(t, p, "/"+name, age)
				if age != "at this start" {
					restart(t, c, p, i)
				}
			}
			awaitReady(t, p)
			await(t, time.Minute, func() string {
				if !c.nodes[i].node.Ready() {
					return name + " is not ready"
				}
				return ""
			})
			before, err := p.Refresh(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			lives := 0
			for _, age := range []string{"at this start", "one start old", "three starts old"} {
				disk := copies[age]
				for life := range 4 {
					lives++
					after, refused := startCopy(t, c, i, lives, disk, "copy:7400")
					if !errors.Is(refused, dfs.Stale) || !strings.Contains(refused.Error(), "copy") {
						t.Errorf("start %d of a copy of %s, %s: %v", life, name, age, refused)
					}
					if life == 0 {
						t.Logf("%s: %v", age, refused)
					}
					disk = after
				}
				if err := c.nodes[i].node.Err(); err != nil || !c.nodes[i].node.Ready() {
					t.Fatalf("the original of %s, beside a copy %s: %v", name, age, err)
				}
			}
			after, err := p.Refresh(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			id := idOf(t, p, name)
			if got, want := after.Node(id), before.Node(id); got.Incarnation != want.Incarnation || got.Addr != want.Addr || len(after.Nodes) != len(before.Nodes) || len(after.Stores) != len(before.Stores) {
				t.Errorf("a copy of %s changed %+v to %+v", name, want, got)
			}
			put(t, p, "/"+name, "served")
			if got := string(content(t, p, "/"+name)); got != "served" {
				t.Errorf("the file holds %q", got)
			}

			// The copy at the same start was seen beside the original: it does not
			// get its place when that is down either.
			c.Crash(i)
			time.Sleep(10 * time.Second)
			if _, refused := startCopy(t, c, i, 99, copies["at this start"], "copy:7400"); !errors.Is(refused, dfs.Stale) {
				t.Errorf("a copy of %s that starts while the original is down: %v", name, refused)
			}
			start(t, c, i)
			awaitReady(t, p)
			registered(t, c, p, i, before.Node(idOf(t, p, name)).Incarnation.Start)
		}
		time.Sleep(3 * time.Second)
		sound(t, c)
	})
}

// TestCopiedStoreIsRefused puts an old copy of one store's directory into its own
// node: a store is a directory by itself.
func TestCopiedStoreIsRefused(t *testing.T) {
	inBubble(t, Config{Stores: 3}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		registered(t, c, p, 3, 0)
		old := c.nodes[3].fs.CrashClone(vfs.CrashCloneCfg{})
		put(t, p, "/f", "newer")
		restart(t, c, p, 3)
		c.Crash(3)
		current := c.nodes[3].fs.CrashClone(vfs.CrashCloneCfg{})
		if err := c.nodes[3].fs.RemoveAll("data/store0"); err != nil {
			t.Fatal(err)
		}
		if ok, err := vfs.Clone(old, c.nodes[3].fs, "data/store0", "data/store0", vfs.CloneSync); !ok || err != nil {
			t.Fatal(ok, err)
		}
		for life := range 3 {
			start(t, c, 3)
			await(t, time.Minute, func() string {
				if err := c.nodes[3].node.Err(); !errors.Is(err, dfs.Stale) {
					return fmt.Sprintf("start %d on a copied store: %v", life, err)
				}
				return ""
			})
			t.Log(c.nodes[3].node.Err())
			c.Crash(3)
		}
		c.nodes[3].fs = current
		start(t, c, 3)
		awaitReady(t, p)
		awaitFull(t, c, p, 2*time.Minute)
		complete(t, c, p)
	})
}

// TestLostAnswersOfRegistration loses every answer to the registrations of two
// starts of a storage node and of a meta node: the third start is no copy.
func TestLostAnswersOfRegistration(t *testing.T) {
	var lossy atomic.Bool
	lost := map[uint64]bool{} // starts whose registration was carried out
	var mu sync.Mutex
	tweak := func(o *node.Options) {
		drop := o.DropReply
		o.DropReply = func(peer transport.Peer, method string, err error) bool {
			if method == "/dfsd.wire.Meta/Register" && lossy.Load() {
				mu.Lock()
				defer mu.Unlock()
				lost[peer.Incarnation.Start] = lost[peer.Incarnation.Start] || err == nil
				return true
			}
			return drop != nil && drop(peer, method, err)
		}
	}
	inBubble(t, Config{Stores: 3, Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		votersOf(t, c)
		for _, i := range []int{3, 2} {
			before := registered(t, c, p, i, 0)
			lossy.Store(true)
			clear(lost)
			for n := range 2 {
				c.Crash(i)
				start(t, c, i)
				await(t, time.Minute, func() string {
					mu.Lock()
					defer mu.Unlock()
					done := 0
					for _, ok := range lost {
						if ok {
							done++
						}
					}
					if done <= n {
						return fmt.Sprintf("%d registrations were carried out", done)
					}
					return ""
				})
			}
			c.Crash(i)
			lossy.Store(false)
			start(t, c, i)
			registered(t, c, p, i, before)
			if err := c.nodes[i].node.Err(); err != nil {
				t.Error(err)
			}
		}
		put(t, p, "/f", "served")
		time.Sleep(3 * time.Second)
		sound(t, c)
	})
}
