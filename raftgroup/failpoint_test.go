package raftgroup

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"dfsd/dfs"
	"dfsd/sim/bubble"
)

var failSeed = flag.Uint64("fail.seed", 1, "the seed of TestFailpoints")

// diskPoint is a moment right before an operation on the disk.
type diskPoint struct {
	name  string
	dir   string
	file  string // prefix or suffix
	kinds []errorfs.OpKind
}

var syncs = []errorfs.OpKind{errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo}

var diskPoints = []diskPoint{
	{"log written", "raft-log/", ".log", []errorfs.OpKind{errorfs.OpFileWrite}},
	{"log synced", "raft-log/", ".log", syncs},
	{"mark written", "", "raft-mark", []errorfs.OpKind{errorfs.OpFileWriteAt}},
	{"mark synced", "", "raft-mark", syncs},
	{"flush begun", "raft-state/", ".sst", []errorfs.OpKind{errorfs.OpCreate}},
	{"flush synced", "raft-state/", ".sst", syncs},
	{"flush taken over", "raft-state/", "MANIFEST", []errorfs.OpKind{errorfs.OpFileWrite}},
	{"flush ended", "raft-state/", "MANIFEST", syncs},
}

func (p *diskPoint) matches(op errorfs.Op) bool {
	_, name, _ := strings.Cut(op.Path, "data/")
	rest, in := strings.CutPrefix(name, p.dir)
	return in && (strings.HasPrefix(rest, p.file) || strings.HasSuffix(rest, p.file)) && slices.Contains(p.kinds, op.Kind)
}

// scope says who loses power at a failpoint.
type scope string

const (
	itself scope = "itself"
	others scope = "the others"
	all    scope = "all"
)

// trap crashes nodes when one of them comes to a failpoint for the n-th time.
type trap struct {
	*cluster
	at     string
	who    scope
	leader bool // it has to lead the group, or not to
	rng    *rand.Rand

	mu      sync.Mutex
	left    int
	armed   bool
	crashed chan []*node // one buffered

	applies []*applies // of every start of a node
}

// applies is what one start of a node applied.
type applies struct {
	node dfs.NodeID

	mu      sync.Mutex
	indexes map[dfs.GroupID][]uint64
	after   map[dfs.GroupID]uint64 // what the start found applied
}

// recorder is a state machine whose applies are recorded.
type recorder struct {
	kvMachine
	g   dfs.GroupID
	log *applies
}

func (r recorder) Apply(tx Tx, e Entry) ([]byte, error) {
	r.log.mu.Lock()
	r.log.indexes[r.g] = append(r.log.indexes[r.g], e.Index)
	r.log.mu.Unlock()
	return r.kvMachine.Apply(tx, e)
}

// tune sets the failpoints of one node.
func (f *trap) tune(o *Options) {
	id := o.Node
	log := &applies{node: id, indexes: map[dfs.GroupID][]uint64{}, after: map[dfs.GroupID]uint64{}}
	f.applies = append(f.applies, log)
	o.StateMachine = func(g dfs.GroupID) StateMachine { return recorder{g: g, log: log} }
	for p := range NumFailpoints {
		if p.String() == f.at {
			o.Hooks.Failpoint = func(g dfs.GroupID, at Failpoint) {
				if at == p {
					f.reached(id)
				}
			}
		}
	}
	for i := range diskPoints {
		if p := &diskPoints[i]; p.name == f.at {
			o.FS = errorfs.Wrap(o.FS, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if p.matches(op) {
					f.reached(id)
				}
				return nil
			}))
		}
	}
	if f.at == FailCutting.String() || f.at == FailCut.String() || strings.HasPrefix(f.at, "flush") {
		o.KeepEntries, o.LogBytes = 8, 1<<10
	}
}

// reached is called by a node at the failpoint.
func (f *trap) reached(id dfs.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.armed || f.leads(id) != f.leader {
		return
	}
	if f.left--; f.left > 0 {
		return
	}
	f.armed = false
	f.cluster.mu.Lock()
	defer f.cluster.mu.Unlock()
	var hit []*node
	for _, n := range f.nodes {
		if f.who == all || (n.id == id) == (f.who == itself) {
			n.dead.Store(true)
			hit = append(hit, n)
		}
	}
	for i, n := range hit {
		cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: f.rng.IntN(3) * 50, RNG: f.rng}
		hit[i] = &node{c: f.cluster, id: n.id, fs: n.fs.CrashClone(cfg)}
	}
	f.crashed <- hit
}

// leads says whether a node leads group 0, without the locks of its replica.
func (f *trap) leads(id dfs.NodeID) bool {
	h := f.h(id)
	if h == nil {
		return false
	}
	o, _ := h.Leader(0)
	return o.Leader == id
}

// failpointRun lets nodes crash at one failpoint.
func failpointRun(t *testing.T, seed uint64, at string, who scope, leader bool, plant func(*Hooks)) (err error) {
	inBubble(t, func(t *testing.T) {
		f := &trap{
			cluster: newCluster(t, seed, 3, 0, 1), at: at, who: who, leader: leader,
			rng: rand.New(rand.NewPCG(seed, 7)), crashed: make(chan []*node, 1),
		}
		f.cluster.tune = func(o *Options) {
			if f.tune(o); plant != nil {
				plant(&o.Hooks)
			}
		}
		defer func() {
			if err != nil {
				f.unexpected = nil // it has been reported, or follows from what was
			}
			f.stop()
		}()
		f.boot()
		h := newHistory()
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for i := range 4 {
			rng := rand.New(rand.NewPCG(seed, uint64(100+i)))
			wg.Go(func() { f.client(h, i, rng.IntN, 2, stop) })
		}
		time.Sleep(time.Second)
		f.mu.Lock()
		f.left, f.armed = 1+f.rng.IntN(8), true
		if strings.HasPrefix(at, "flush") || strings.HasPrefix(at, "cut") {
			f.left = 1 + f.rng.IntN(2)
		}
		f.mu.Unlock()
		select {
		case hit := <-f.crashed:
			err = f.bringBack(hit)
		case <-time.After(2 * time.Minute):
			err = fmt.Errorf("nobody came to the failpoint")
		}
		time.Sleep(2 * time.Second)
		close(stop)
		wg.Wait()
		if err == nil {
			err = (&life{cluster: f.cluster}).end(h)
		}
		if err == nil {
			err = f.checkApplies()
		}
	})
	return err
}

// bringBack ends the nodes that lost power and starts them on what is left.
func (f *trap) bringBack(hit []*node) error {
	for _, n := range hit {
		f.cluster.mu.Lock()
		old := f.nodes[n.id]
		f.nodes[n.id] = n
		f.cluster.mu.Unlock()
		if err := old.host.Close(); err != nil {
			return err
		}
	}
	for _, n := range hit {
		after, err := appliedOn(n.fs.CrashClone(vfs.CrashCloneCfg{}), f.groups)
		if err != nil {
			return err
		}
		if err := n.start(); err != nil {
			return err
		}
		f.applies[len(f.applies)-1].after = after
	}
	return nil
}

// appliedOn reads how far the state store of a disk is.
func appliedOn(fs vfs.FS, groups []dfs.GroupID) (map[dfs.GroupID]uint64, error) {
	out := map[dfs.GroupID]uint64{}
	db, err := pebble.Open("data/raft-state", &pebble.Options{FS: fs, ReadOnly: true, Logger: quiet{}})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	for _, g := range groups {
		a, err := readApplied(db, g, false)
		if err != nil {
			return nil, err
		}
		out[g] = a.index
	}
	return out, nil
}

// checkApplies checks that each start of a node began right after what it found
// applied, and left nothing out and did nothing twice. Only a snapshot may take
// the place of entries.
func (f *trap) checkApplies() error {
	f.cluster.mu.Lock()
	snapshots := f.snapshots
	f.cluster.mu.Unlock()
	for _, g := range f.groups {
		known := map[uint64]bool{}
		for _, a := range f.applies {
			for _, i := range a.indexes[g] {
				known[i] = true
			}
		}
		for _, a := range f.applies {
			at := a.after[g]
			for _, i := range a.indexes[g] {
				if i <= at {
					return fmt.Errorf("node %v applied entry %d of %v and had applied %d: a start found %d applied", a.node, i, g, at, a.after[g])
				}
				for skipped := at + 1; skipped < i && snapshots == 0; skipped++ {
					if known[skipped] {
						return fmt.Errorf("node %v applied entry %d of %v and not %d: a start found %d applied", a.node, i, g, skipped, a.after[g])
					}
				}
				at = i
			}
		}
	}
	return nil
}

func failpointNames() (out []string) {
	for p := range NumFailpoints {
		out = append(out, p.String())
	}
	for _, p := range diskPoints {
		out = append(out, p.name)
	}
	return out
}

// TestFailpoints lets power fail at each moment between a proposal and its
// answer, and around flushes and cuts: of the node that comes there, of the
// others, and of all. What was acknowledged is there once, and each node goes on
// right after what it has applied.
func TestFailpoints(t *testing.T) {
	seed := *failSeed
	for i, at := range failpointNames() {
		for j, who := range []scope{itself, others, all} {
			seed++
			if bubble.Race && i%3 != j {
				continue // one of them: it takes so much longer
			}
			leader := seed%2 == 0 || at == FailReplied.String()
			if err := failpointRun(t, seed, at, who, leader, nil); err != nil {
				t.Errorf("%s, %s lose power, leader %v, seed %d: %v", at, who, leader, seed, err)
			}
		}
	}
}

// TestSoakFailpoints does the same with fresh seeds.
func TestSoakFailpoints(t *testing.T) {
	limit, err := time.ParseDuration(os.Getenv("DFSD_TEST_SOAK"))
	if err != nil {
		t.Skip("DFSD_TEST_SOAK does not say how long: see make soak")
	}
	begun := time.Now()
	names := failpointNames()
	for seed := uint64(begun.UnixNano()); time.Since(begun) < limit && !t.Failed(); seed++ {
		at, who, leader := names[seed%uint64(len(names))], []scope{itself, others, all}[seed%3], seed/7%2 == 0
		if err := failpointRun(t, seed, at, who, leader, nil); err != nil {
			t.Errorf("%s, %s lose power, leader %v, seed %d: %v", at, who, leader, seed, err)
		}
	}
}

// TestFailpointsFindPlantedBugs proves that TestFailpoints can fail.
func TestFailpointsFindPlantedBugs(t *testing.T) {
	for _, tc := range []struct {
		name, at string
		plant    func(*Hooks)
	}{
		{"acknowledge before sync", FailDelivered.String(), func(h *Hooks) { h.AckBeforeSync = true }},
		{"apply twice", "flush ended", func(h *Hooks) { h.ApplyTwice = true }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for seed := uint64(1); seed <= plantedSeeds; seed++ {
				if err := failpointRun(t, seed, tc.at, all, seed%2 == 0, tc.plant); err != nil {
					t.Logf("found with seed %d: %.200s", seed, err)
					return
				}
			}
			t.Errorf("not found in %d seeds", plantedSeeds)
		})
	}
}
