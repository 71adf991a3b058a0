package sim

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/node"
)

// randomFiles is files with contents that do not shrink: some ten fill a segment.
func randomFiles(t *testing.T, p *Peer, prefix string, n int) map[string]string {
	t.Helper()
	rng := rand.NewChaCha8([32]byte{byte(len(prefix))})
	out := map[string]string{}
	for i := range n {
		data := make([]byte, 100<<10)
		_, _ = rng.Read(data)
		path := fmt.Sprintf("/%s%d", prefix, i)
		out[path] = string(data)
		put(t, p, path, out[path])
	}
	return out
}

// removeAll removes files and returns their blocks.
func removeAll(t *testing.T, p *Peer, files map[string]string) map[dfs.BlockID]bool {
	t.Helper()
	out := map[dfs.BlockID]bool{}
	for path := range files {
		in, err := p.Resolve(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range in.Extents(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			out[e.Block] = true
		}
		if err := p.Remove(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// statesOf counts what complete members, or all stores, have of blocks.
func statesOf(t *testing.T, c *Cluster, p *Peer, blocks map[dfs.BlockID]bool) (kept, trashed, tombstones int) {
	t.Helper()
	m, _ := storesOf(t, p)
	engines := c.engines()
	for _, pg := range m.PGs {
		for _, s := range pg.Complete() {
			if engines[s] == nil {
				continue
			}
			err := eachEntry(engines[s], pg.ID, func(e engine.Entry) error {
				switch {
				case !blocks[e.ID]:
				case e.Tombstone:
					tombstones++
				case e.Trashed:
					trashed++
				default:
					kept++
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return kept, trashed, tombstones
}

// stop ends a node as an operator does.
func stop(t *testing.T, c *Cluster, i int) {
	t.Helper()
	n := c.nodes[i].node
	c.mu.Lock()
	c.nodes[i].node = nil
	c.mu.Unlock()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

func compactSoon(o *node.Options) {
	o.Engine.CompactAge, o.Engine.DeadPercent = time.Second, 5
	o.Meta.HistoryKeep = 5 * time.Second
}

// TestReturnFromBeforeTheFloor takes a store away for longer than the grace period.
// Its share is filled elsewhere and it is forgotten; blocks that it has are deleted
// meanwhile, and then the others drop their tombstones. It returns, asks about
// what it has, and keeps what files name.
func TestReturnFromBeforeTheFloor(t *testing.T) {
	kept, doubted := returnFromBefore(t, compactSoon)
	if kept > 0 || doubted == 0 {
		t.Errorf("%d copies of deleted blocks are kept, %d blocks were asked about", kept, doubted)
	}
}

// TestTrustedReturnIsMissed proves that the test above can fail.
func TestTrustedReturnIsMissed(t *testing.T) {
	kept, _ := returnFromBefore(t, func(o *node.Options) {
		compactSoon(o)
		o.Storage.Hooks.TrustOldBlocks = true
	})
	if kept == 0 {
		t.Error("no copy of a deleted block came back")
	}
}

func returnFromBefore(t *testing.T, tweak func(*node.Options)) (kept int, doubted uint64) {
	inBubble(t, Config{Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		all := files(t, p, "f", 30)
		leave := randomFiles(t, p, "leave", 60)
		awaitFull(t, c, p, time.Minute)
		awaitGarbage(t, c, "committed", 0, 0)

		stop(t, c, 3) // a crash would take back what it knows to be named
		awaitState(t, p, "store1", dfs.StoreOut, time.Minute)
		awaitFull(t, c, p, 2*time.Minute)
		gone := removeAll(t, p, leave)
		time.Sleep(time.Minute) // trimmed and deleted
		_, _, before := statesOf(t, c, p, gone)
		removeAll(t, p, randomFiles(t, p, "churn", 60)) // fills the segments that the tombstones are in
		time.Sleep(5 * time.Minute)
		now, _, after := statesOf(t, c, p, gone)
		dropped := uint64(0)
		for _, e := range c.engines() {
			dropped += e.Stats().TombstonesDropped
		}
		t.Logf("%d tombstones after the deletes, %d later, %d dropped in all", before, after, dropped)
		if now != 0 || before != 3*len(gone) || after > before/2 {
			t.Errorf("%d copies of %d blocks are left, there were %d tombstones and are %d", now, len(gone), before, after)
		}

		start(t, c, 3)
		awaitState(t, p, "store1", dfs.StoreUp, time.Minute)
		await(t, 2*time.Minute, func() string {
			m, stores := storesOf(t, p)
			for _, pg := range m.PGs {
				if pg.IsComplete(stores["store1"].ID) {
					return ""
				}
			}
			return "it has no share"
		})
		t.Logf("whole %v after that", awaitFull(t, c, p, 2*time.Minute))
		doubted = c.nodes[3].node.Storage().Stats().Doubted
		time.Sleep(3 * time.Minute)
		var trashed int
		kept, trashed, after = statesOf(t, c, p, gone)
		t.Logf("%d blocks were asked about, of the deleted ones %d are kept, %d in the trash, %d deleted", doubted, kept, trashed, after)
		complete(t, c, p)
		unchanged(t, p, all)
		sound(t, c)
	})
	return kept, doubted
}
