package sim

import (
	"fmt"
	"testing"
	"time"

	"dfsd/dfs"
)

// copiesHeld counts the blocks on all stores that are up, in all and of placement
// groups that their store has no part in, and the segments that they are in.
func copiesHeld(t *testing.T, c *Cluster, p *Peer) (all, left uint64, segments int) {
	t.Helper()
	m, _ := storesOf(t, p)
	for id, e := range c.engines() {
		st := e.Stats()
		all, segments = all+st.Blocks, segments+st.Segments
		for _, pg := range m.PGs {
			if pg.Active.Has(id) {
				continue
			}
			list, _, err := e.Inventory(pg.ID, nil, 4096)
			if err != nil {
				t.Fatal(err)
			}
			left += uint64(len(list))
		}
	}
	return all, left, segments
}

// forgottenBlocks is what the stores that are up have forgotten, and asked about, since
// their start.
func forgottenBlocks(c *Cluster) (forgotten, doubted uint64) {
	for _, i := range c.Up() {
		if s := c.nodes[i].node.Storage(); s != nil {
			st := s.Stats()
			forgotten, doubted = forgotten+st.Forgotten, doubted+st.Doubted
		}
	}
	return forgotten, doubted
}

// TestLeftSharesAreForgotten adds a store to a cluster with data. What the others are
// relieved of they keep for a while and then forget, and their files get less. Then
// the new store is lost, and they take their shares back as if they had never had
// them.
func TestLeftSharesAreForgotten(t *testing.T) {
	inBubble(t, Config{Tweak: compactSoon}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		all := randomFiles(t, p, "f", 120)
		awaitFull(t, c, p, time.Minute)
		awaitGarbage(t, c, "committed", 0, 0)
		time.Sleep(time.Minute)
		blocks, left, before := copiesHeld(t, c, p)
		if left != 0 || blocks != 3*uint64(len(all)) {
			t.Fatalf("%d copies of %d blocks, %d of them where they should not be", blocks, len(all), left)
		}

		i := c.AddStorage()
		start(t, c, i)
		await(t, 5*time.Minute, func() string {
			m, stores := storesOf(t, p)
			s := stores[c.nodes[i].name]
			if s == nil {
				return "it has not registered"
			}
			for _, pg := range m.PGs {
				if pg.IsComplete(s.ID) {
					return ""
				}
			}
			return "it has no share"
		})
		awaitFull(t, c, p, 5*time.Minute)
		_, _, more := copiesHeld(t, c, p)
		await(t, 5*time.Minute, func() string {
			if _, left, _ := copiesHeld(t, c, p); left > 0 {
				return fmt.Sprintf("%d copies are where they should not be", left)
			}
			return ""
		})
		forgotten, _ := forgottenBlocks(c)
		time.Sleep(2 * time.Minute) // compaction
		now, _, after := copiesHeld(t, c, p)
		t.Logf("%d blocks forgotten; %d segments in use, %d with the new store, %d in the end", forgotten, before, more, after)
		if now != blocks || forgotten < blocks/10 || forgotten > blocks/2 {
			t.Errorf("%d copies, there were %d, and %d were forgotten", now, blocks, forgotten)
		}
		if after >= more {
			t.Errorf("%d segments are in use, and %d were before anything was forgotten", after, more)
		}
		complete(t, c, p)
		unchanged(t, p, all)

		stop(t, c, i)
		awaitState(t, p, c.nodes[i].name, dfs.StoreOut, time.Minute)
		awaitFull(t, c, p, 5*time.Minute)
		await(t, 5*time.Minute, func() string { // who was about to take a share over is relieved of it again
			if again, left, _ := copiesHeld(t, c, p); again != blocks || left != 0 {
				return fmt.Sprintf("%d copies, want %d, %d of them where they should not be", again, blocks, left)
			}
			return ""
		})
		if _, doubted := forgottenBlocks(c); doubted != 0 {
			t.Errorf("%d blocks from before, and they had been forgotten", doubted)
		}
		complete(t, c, p)
		unchanged(t, p, all)

		c.CrashAll()
		if err := c.StartAll(); err != nil {
			t.Fatal(err)
		}
		awaitFull(t, c, p, 5*time.Minute)
		complete(t, c, p)
		unchanged(t, p, all)
		sound(t, c)
	})
}
