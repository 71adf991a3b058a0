package sim

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/node"
)

// blocksOf lists the blocks of a file.
func blocksOf(t *testing.T, p *Peer, path string) (out []dfs.BlockID) {
	t.Helper()
	a, err := p.Stat(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range p.Inode(a.Ino).Extents(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e.Block)
	}
	if len(out) == 0 {
		t.Fatalf("%s has no block", path)
	}
	return out
}

// copiesOf checks that every block of a file is in a group of a class, whole on
// as many stores as the class says.
func copiesOf(t *testing.T, c *Cluster, p *Peer, path string, class dfs.Class) {
	t.Helper()
	m, _ := storesOf(t, p)
	stores := map[dfs.StoreID]*engine.Store{}
	for _, i := range c.Up() {
		for _, e := range c.nodes[i].node.Engines() {
			stores[e.Identity().Store] = e
		}
	}
	for _, id := range blocksOf(t, p, path) {
		pg := m.PG(id.PG)
		if pg.Class != class || len(pg.Complete()) != class.Width() {
			t.Errorf("%s: block %v is in %v of %v, complete on %v", path, id, pg.ID, pg.Class, pg.Complete())
		}
		if err := checkCopies(m, stores, path, id); err != nil {
			t.Error(err)
		}
	}
}

// TestClassOfADirectory gives a directory another class than the cluster's: it
// gets placement groups, all that is made below has it, over group boundaries
// too, and what a lost store held of it is healed.
func TestClassOfADirectory(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		if _, err := p.MkdirAll(t.Context(), "/two", 0o755); err != nil {
			t.Fatal(err)
		}
		rep2 := dfs.Replicated(2)
		if err := p.SetPolicy(t.Context(), "/two", rep2); err != nil {
			t.Fatal(err)
		}
		all := map[string]string{}
		write := func(path string) {
			t.Helper()
			all[path] = strings.Repeat(path, 40_000) // some blocks
			put(t, p, path, all[path])
		}
		write("/three")
		groups := map[dfs.GroupID]bool{}
		for i := range 8 {
			dir := fmt.Sprintf("/two/%d/deep", i)
			a, err := p.MkdirAll(t.Context(), dir, 0o755)
			if err != nil {
				t.Fatal(err)
			}
			groups[a.Ino.Group()] = true
			write(dir + "/file")
		}
		if len(groups) < 2 {
			t.Errorf("the directories are in the groups %v only: the class crossed no boundary", groups)
		}
		t.Logf("whole after %v", awaitFull(t, c, p, time.Minute))
		check := func() {
			t.Helper()
			for path := range all {
				if path == "/three" {
					copiesOf(t, c, p, path, dfs.Replicated(3))
				} else {
					copiesOf(t, c, p, path, rep2)
				}
			}
			unchanged(t, p, all)
		}
		check()

		c.Crash(4)
		awaitState(t, p, "store2", dfs.StoreOut, 40*time.Second)
		write("/two/3/deep/more")
		t.Logf("healed after %v more", awaitFull(t, c, p, 2*time.Minute))
		check()
		c.Crash(5) // one copy more than what is left of rep2 would stand without the repair
		unchanged(t, p, all)
		start(t, c, 5)

		// Inheriting again: what the parent has, wherever that lives.
		for i := range 8 {
			dir := fmt.Sprintf("/two/%d", i)
			if err := p.SetPolicy(t.Context(), dir, dfs.Replicated(1)); err != nil {
				t.Fatal(err)
			}
			if err := p.SetPolicy(t.Context(), dir, dfs.Class{}); err != nil {
				t.Fatal(err)
			}
			if a, err := p.Stat(t.Context(), dir); err != nil || a.Class != "rep2" {
				t.Errorf("%s inherits %q, %v", dir, a.Class, err)
			}
		}
		if err := p.SetPolicy(t.Context(), "/two", dfs.Class{}); err != nil {
			t.Fatal(err)
		}
		if a, err := p.Stat(t.Context(), "/two"); err != nil || a.Class != "" {
			t.Errorf("/two inherits %q, %v: the cluster's default has no name in a directory", a.Class, err)
		}
		awaitFull(t, c, p, 2*time.Minute)
		sound(t, c)
	})
}

// TestClassThatLacksStores sets a class that the cluster has too few stores for:
// a write says what is lacking, and goes through once it is there. A class that
// only a write names, and nobody has asked for before, is made as well.
func TestClassThatLacksStores(t *testing.T) {
	tweak := func(o *node.Options) { o.Meta.DefaultClass = dfs.Replicated(1) }
	inBubble(t, Config{Stores: 1, Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		if _, err := p.Mkdir(t.Context(), "/two", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := p.SetPolicy(t.Context(), "/two", dfs.Replicated(2)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := p.PutFile(ctx, "/two/f", client.PutOptions{Mode: 0o644}, strings.NewReader("two copies"))
		cancel()
		if err == nil || !strings.Contains(err.Error(), "rep2 needs 2 stores") {
			t.Errorf("a write with one store: %v", err)
		}
		st, err := p.Status(t.Context())
		if err != nil || !strings.Contains(strings.Join(st.Notes, " "), "class rep2 gets no placement groups yet: 1 stores are up, it needs 2") {
			t.Errorf("notes %q, %v", st.GetNotes(), err)
		}
		if len(st.GetProblems()) > 0 || !st.GetRedundancy().GetAllFull() {
			t.Errorf("a class without groups is no fault of the others: %v %v", st.Problems, st.Redundancy)
		}

		i := c.AddStorage()
		done := make(chan error, 1)
		go func() {
			_, err := p.PutFile(t.Context(), "/two/f", client.PutOptions{Mode: 0o644}, strings.NewReader("two copies"))
			done <- err
		}()
		time.Sleep(5 * time.Second)
		start(t, c, i)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		awaitFull(t, c, p, time.Minute)
		copiesOf(t, c, p, "/two/f", dfs.Replicated(2))

		start(t, c, c.AddStorage(), c.AddStorage())
		_, err = p.PutFile(t.Context(), "/three", client.PutOptions{Mode: 0o644, Class: dfs.Replicated(3)}, strings.NewReader("three copies"))
		if err != nil {
			t.Fatal(err)
		}
		awaitFull(t, c, p, time.Minute)
		copiesOf(t, c, p, "/three", dfs.Replicated(3))
		if err := p.SetPolicy(t.Context(), "/two", dfs.Class{Data: 4, Parity: 2}); dfs.KindOf(err) != dfs.Unsupported || !strings.Contains(err.Error(), "replicated classes only") {
			t.Errorf("an erasure code: %v", err)
		}

		// Crashes lose neither the wish nor the groups.
		c.CrashAll()
		if err := c.StartAll(); err != nil {
			t.Fatal(err)
		}
		awaitFull(t, c, p, 2*time.Minute)
		if got := string(content(t, p, "/two/f")); got != "two copies" {
			t.Errorf("holds %q", got)
		}
		put(t, p, "/two/g", "two more")
		copiesOf(t, c, p, "/two/g", dfs.Replicated(2))
		sound(t, c)
	})
}
