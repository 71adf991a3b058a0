package raftgroup

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"dfsd/dfs"
)

var (
	crashSeeds = flag.Int("crash.seeds", 20, "how many seeds TestCrashes runs")
	crashSeed  = flag.Uint64("crash.seed", 1, "the first of them")
)

func asError(err error, to **dfs.Error) bool { return errors.As(err, to) }

// tally counts what happened in a run.
type tally struct{ ops, acked, crashes, wipeouts, cuts, transfers, snapshots int }

func (a *tally) add(b tally) {
	a.ops += b.ops
	a.acked += b.acked
	a.crashes += b.crashes
	a.wipeouts += b.wipeouts
	a.cuts += b.cuts
	a.transfers += b.transfers
	a.snapshots += b.snapshots
}

// crashRun lets clients loose on a cluster while its nodes crash and its
// network fails, and then checks everything.
func crashRun(t *testing.T, seed uint64, tune func(*Options)) (sum tally, err error) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, seed, 3, testGroups(3)...)
		c.tune = func(o *Options) {
			o.KeepEntries, o.LogBytes = 8, 2<<10 // so that sleepers need snapshots
			o.QuiesceTicks = 1                   // so that groups sleep between two commands
			if tune != nil {
				tune(o)
			}
		}
		defer c.stop()
		c.boot()
		h := newHistory()
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for i := range 4 {
			rng := rand.New(rand.NewPCG(seed, uint64(100+i)))
			wg.Go(func() { c.client(h, i, rng.IntN, 3, stop) })
		}
		rng := rand.New(rand.NewPCG(seed, 3))
		for range 7 {
			time.Sleep(time.Duration(200+rng.IntN(1500)) * time.Millisecond)
			if err = c.misfortune(rng, &sum); err != nil {
				break
			}
		}
		close(stop)
		wg.Wait()
		c.heal()
		sum.ops, sum.acked, sum.snapshots = h.all, len(h.acked), c.snapshots
		if err == nil {
			err = c.agree(c.all()...)
		}
		if err == nil {
			err = h.check(func(at place) (string, error) { return c.read(1, at.g, at.key) })
		}
	})
	return sum, err
}

// misfortune does one bad, or good, thing to the cluster.
func (c *cluster) misfortune(rng *rand.Rand, sum *tally) error {
	id := dfs.NodeID(1 + rng.IntN(len(c.nodes)))
	keep := []int{0, 0, 50, 100}[rng.IntN(4)]
	switch rng.IntN(9) {
	case 0, 1, 2:
		sum.crashes++
		n := c.kill(id, keep)
		if rng.IntN(2) == 0 {
			time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond)
		}
		return n.start()
	case 3:
		sum.wipeouts++
		var down []*node
		for _, id := range c.all() {
			down = append(down, c.kill(id, keep))
		}
		for _, n := range down {
			if err := n.start(); err != nil {
				return err
			}
		}
	case 4:
		sum.cuts++
		c.isolate(id, true)
	case 5:
		sum.cuts++
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cut[[2]dfs.NodeID{id, id%3 + 1}] = true
	case 6:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.drop, c.dup, c.jitter = rng.Float64()*0.2, rng.Float64()*0.2, time.Duration(rng.IntN(200))*time.Millisecond
	case 7:
		sum.transfers++
		if g := c.groups[rng.IntN(len(c.groups))]; c.h(id) != nil {
			_ = c.h(id).TransferLeader(c.t.Context(), g, id%3+1)
		}
	case 8:
		c.heal()
	}
	return nil
}

// TestCrashes checks, over many seeds, that acknowledged entries survive, that
// nothing is applied twice or invented, that reads are linearizable and that
// replicas agree.
func TestCrashes(t *testing.T) {
	var sum tally
	for i := range *crashSeeds {
		seed := *crashSeed + uint64(i)
		s, err := crashRun(t, seed, nil)
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		sum.add(s)
	}
	t.Logf("%d seeds: %+v", *crashSeeds, sum)
	if sum.acked == 0 || sum.crashes == 0 || sum.wipeouts == 0 {
		t.Errorf("nothing happened: %+v", sum)
	}
}

// TestCrashesFindPlantedBugs proves that TestCrashes can fail.
func TestCrashesFindPlantedBugs(t *testing.T) {
	for name, tune := range map[string]func(*Options){
		"acknowledge before sync": func(o *Options) { o.Hooks.AckBeforeSync = true },
		"apply twice":             func(o *Options) { o.Hooks.ApplyTwice = true },
	} {
		t.Run(name, func(t *testing.T) {
			const most = 20
			for seed := uint64(1); seed <= most; seed++ {
				if _, err := crashRun(t, seed, tune); err != nil {
					t.Logf("found after %d seeds: %s", seed, firstLine(err))
					return
				}
			}
			t.Errorf("not found in %d seeds", most)
		})
	}
}

func firstLine(err error) string {
	s := err.Error()
	return fmt.Sprintf("%.200s", s)
}
