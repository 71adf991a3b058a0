package storage

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/transport/wire"
)

func TestEpochsFence(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b, o := c.node("a", 1), c.node("b", 1), c.node("o", 1)
		c.plane.create(1, dfs.Replicated(2))
		e1 := c.plane.activate(t, 1, a.store(0), b.store(0))
		id1, data := c.block(1, 1000)
		if err := c.putAll(id1, data); err != nil {
			t.Fatal(err)
		}
		wantKind(t, "a store that does not act", c.put(o.store(0), id1, e1, data), dfs.Stale)

		// A proposal supersedes the active epoch at once, activated or not.
		c.plane.mu.Lock()
		c.plane.held = true
		c.plane.mu.Unlock()
		e2 := c.plane.propose(t, 1, a.store(0), b.store(0))
		eventually(t, "the proposal is persisted", func() bool { return c.plane.beat(a.store(0)).Persisted >= uint64(e2) })
		id2, _ := c.block(1, 1000)
		wantKind(t, "put under the old epoch", c.put(a.store(0), id2, e1, data), dfs.Stale)
		wantKind(t, "delete under the old epoch", c.delete(a.store(0), id1, e1), dfs.Stale)
		if err := c.delete(a.store(0), id2, e2); err != nil {
			t.Errorf("delete under the proposal: %v", err)
		}
		id3, data3 := c.block(1, 1000)
		if err := c.put(a.store(0), id3, e2, data3); err != nil {
			t.Errorf("put under the proposal: %v", err)
		}
		c.holds(a.store(0), id1, func() []byte { _, d, _ := c.get(b.store(0), id1, 0, 0); return d }())

		start := time.Now()
		wantKind(t, "put under an epoch that does not exist", c.put(a.store(0), id2, e2+1000, data), dfs.Unavailable)
		if d := time.Since(start); d > 2*mapWait {
			t.Errorf("refused after %v", d)
		}
	})
}

// A caller that has seen a newer map than the store makes the store look.
// A map of another cluster is none: the start waits for the current one.
func TestAForeignMapIsNotTheFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.plane.foreign = true
		a := c.newNode("a", 1)
		a.run()
		time.Sleep(time.Minute)
		if m, _ := a.service.maps.current.get(); m != nil || a.service.Ready() {
			t.Errorf("the store has the map of epoch %d that it did not read linearizably", m.Epoch)
		}
		c.plane.mu.Lock()
		c.plane.foreign = false
		c.plane.mu.Unlock()
		a.ready()
	})
}

func TestANewerEpochIsFetched(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a", 1)
		c.plane.create(1, dfs.Replicated(1))
		c.plane.activate(t, 1, a.store(0))
		// Maps do not reach the node by themselves: its polls hang.
		synctest.Wait()
		c.plane.mu.Lock()
		c.plane.deaf = true
		c.plane.mu.Unlock()
		e := c.plane.propose(t, 1, a.store(0))
		id, data := c.block(1, 1000)
		if err := c.put(a.store(0), id, e, data); err != nil {
			t.Error(err)
		}
	})
}

// The model: once the control group has heard that a store persisted epoch e,
// every block that is ever acknowledged there under an earlier epoch was there
// already at that moment.
func TestNoPutIsAcknowledgedUnderASupersededEpoch(t *testing.T) {
	if n := raceEpochs(t, engine.Hooks{}); n > 0 {
		t.Errorf("%d puts were acknowledged under epochs that their store had seen superseded", n)
	}
}

func TestTheModelSeesASkippedEpochCheck(t *testing.T) {
	if n := raceEpochs(t, engine.Hooks{SkipEpochCheck: true}); n == 0 {
		t.Error("no put slipped through though the engine does not check epochs")
	}
}

func raceEpochs(t *testing.T, hooks engine.Hooks) (violations int) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.newNode("a", 1)
		a.tuneEng = func(_ int, o *engine.Options) { o.FS, o.Hooks = vfs.NewMem(), hooks } // it does not crash
		a.run()
		a.ready()
		c.plane.create(1, dfs.Replicated(1))
		c.plane.activate(t, 1, a.store(0))

		type ack struct {
			id    dfs.BlockID
			epoch dfs.Epoch
		}
		c.gap = 300 * time.Microsecond
		var mu sync.Mutex
		var acks []ack
		seen := map[dfs.Epoch]map[dfs.BlockID]bool{} // by the group's newest epoch when it was first reported persisted
		c.plane.mu.Lock()
		c.plane.onBeat = func(b *wire.StoreBeat) {
			newest := c.plane.m.PG(1).Newest()
			if dfs.Epoch(b.Persisted) < newest || seen[newest] != nil {
				return
			}
			entries, _, err := a.engines[0].ScanEpochs(1, 0, newest, nil, 1<<20)
			if err != nil {
				t.Error(err)
			}
			seen[newest] = map[dfs.BlockID]bool{}
			for _, e := range entries {
				seen[newest][e.ID] = true
			}
		}
		c.plane.mu.Unlock()

		stop := make(chan struct{})
		var writers sync.WaitGroup
		for range 2 {
			writers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					mu.Lock()
					id, data := c.block(1, 5000)
					mu.Unlock()
					e := c.plane.current().PG(1).Newest()
					if err := c.put(a.store(0), id, e, data); err == nil {
						mu.Lock()
						acks = append(acks, ack{id, e})
						mu.Unlock()
					} else if dfs.KindOf(err) != dfs.Stale {
						t.Errorf("put: %v", err)
						return
					}
				}
			})
		}
		for range 20 {
			time.Sleep(3 * time.Millisecond)
			c.plane.activate(t, 1, a.store(0))
		}
		close(stop)
		writers.Wait()
		if len(acks) < 50 || len(seen) < 15 {
			t.Errorf("%d puts and %d epochs: too few to mean anything", len(acks), len(seen))
		}
		for newest, had := range seen {
			if slices.ContainsFunc(acks, func(x ack) bool { return x.epoch < newest && !had[x.id] }) {
				violations++
			}
		}
	})
	return violations
}
