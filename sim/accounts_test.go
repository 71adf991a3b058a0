package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
)

// TestAccountsAreExact changes a tree over all groups while meta nodes crash, and then
// leaves it alone: every directory comes to know what a walk finds below it, and the
// rows of all groups agree.
func TestAccountsAreExact(t *testing.T) {
	for seed := uint64(1); seed <= 3; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			cfg := Config{Seed: seed, Stores: 1, Class: dfs.Replicated(1)}
			inBubble(t, cfg, func(t *testing.T, c *Cluster) { keepAccounts(t, c, seed) })
		})
	}
}

func keepAccounts(t *testing.T, c *Cluster, seed uint64) {
	p := open(t, c, "client")
	defer p.Close()
	awaitReady(t, p)
	rng := rand.New(rand.NewPCG(seed, 5))
	dirs := []string{""}
	dir := func() string { return dirs[rng.IntN(len(dirs))] }
	name := func() string { return string(rune('a' + rng.IntN(8))) }
	done, crashed := 0, -1
	for i := range 400 {
		if i%80 == 40 {
			if crashed = rng.IntN(3); rng.IntN(2) == 0 {
				time.Sleep(300 * time.Millisecond) // something is on its way then
			}
			c.Crash(crashed)
		} else if i%80 == 60 {
			start(t, c, crashed)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		from, to := dir()+"/"+name(), dir()+"/"+name()
		var err error
		switch n := rng.IntN(15); {
		case n > 13:
			_, err = p.PutFile(ctx, to, client.PutOptions{Replace: true}, strings.NewReader(strings.Repeat("x", rng.IntN(100))))
		case n > 11:
			size := int64(rng.IntN(1000))
			_, err = p.SetAttr(ctx, from, client.SetAttr{Size: &size})
		case n < 3:
			if _, err = p.Mkdir(ctx, to, 0o755); err == nil {
				dirs = append(dirs, to)
			}
		case n < 6:
			_, err = p.Symlink(ctx, fmt.Sprintf("%0*d", 1+rng.IntN(40), i), to, client.PutOptions{})
		case n < 8:
			err = p.Rename(ctx, from, to, false)
		case n < 9:
			_, err = p.Link(ctx, from, to)
		case n < 10:
			err = p.Rmdir(ctx, from)
		default:
			err = p.Remove(ctx, from)
		}
		cancel()
		if err == nil {
			done++
		}
	}
	if done < 100 {
		t.Errorf("%d operations were done", done)
	}
	for _, i := range []int{0, 1, 2} {
		if c.nodes[i].node == nil {
			start(t, c, i)
		}
	}
	rest := await(t, 10*time.Minute, func() string {
		want, err := walked(t.Context(), p, dfs.RootIno, map[dfs.Ino]bool{})
		if err != nil {
			return err.Error()
		}
		got, err := p.Inode(dfs.RootIno).Usage(t.Context())
		if err != nil {
			return err.Error()
		}
		if got != want {
			return fmt.Sprintf("%+v lies below the root, and the account says %+v", want, got)
		}
		return ""
	})
	t.Logf("%d operations, exact %v after the last one", done, rest)
	await(t, 10*time.Minute, func() string {
		err := ""
		for _, fault := range namespaceFaults(c) {
			err += fault.Error() + "\n"
		}
		return err
	})
}

// walked counts what lies below a directory, every inode once.
func walked(ctx context.Context, p *Peer, dir dfs.Ino, seen map[dfs.Ino]bool) (client.Usage, error) {
	u := client.Usage{Settled: true}
	for e, err := range p.Inode(dir).List(ctx, "", true) {
		switch {
		case err != nil:
			return u, err
		case e.Type == client.TypeDir:
			below, err := walked(ctx, p, e.Ino, seen)
			if err != nil {
				return u, err
			}
			u.Bytes, u.Files, u.Dirs = u.Bytes+below.Bytes, u.Files+below.Files, u.Dirs+below.Dirs+1
		case !seen[e.Ino]:
			seen[e.Ino] = true
			u.Bytes, u.Files = u.Bytes+uint64(e.Attr.Size), u.Files+1
		}
	}
	return u, nil
}

// namespaceFaults checks all namespace groups of one node, and between them.
func namespaceFaults(c *Cluster) (faults []error) {
	groups := map[dfs.GroupID]raftgroup.Reader{}
	var check func(left []dfs.GroupID) error
	check = func(left []dfs.GroupID) error {
		if len(left) == 0 {
			faults = namespace.CheckTree(groups)
			return nil
		}
		return c.nodes[0].node.Meta().View(left[0], func(r raftgroup.Reader) error {
			groups[left[0]] = r
			return check(left[1:])
		})
	}
	if err := check(c.newestMap().Namespace()); err != nil {
		return []error{err}
	}
	return faults
}
