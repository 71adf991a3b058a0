package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/node"
	"dfsd/sim/bubble"
	"dfsd/transport"
)

// batcher is a client process that makes and removes the files of a directory of
// its own by batches, and knows of each what there may be.
type batcher struct {
	p     *Peer
	dir   client.Inode
	rand  *rand.Rand
	may   [2]map[string]bool // names that may be absent, and that may be there
	did   Counts
	fault func(format string, args ...any)
}

const batchNames = 40

// round sends one batch and holds the outcomes against what there may be. Names
// may be twice in a batch: those behind go by what those before have done.
func (b *batcher) round(ctx context.Context) {
	names := make([]string, 2+b.rand.IntN(batchNames))
	for i := range names {
		names[i] = fmt.Sprint("n", b.rand.IntN(batchNames))
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(1+b.rand.IntN(20))*time.Second)
	defer cancel()
	if b.rand.IntN(2) == 0 {
		for i, err := range b.dir.RemoveAll(ctx, names) {
			b.take("remove", names[i], err, 1, dfs.NotExist)
		}
		return
	}
	var files []*client.NewFile
	for _, name := range names {
		files = append(files, &client.NewFile{Name: name})
	}
	b.dir.PutFiles(ctx, files)
	for _, f := range files {
		b.take("make", f.Name, f.Err, 0, dfs.Exist)
	}
}

// take notes the outcome of a change that needs a name to be there or not.
func (b *batcher) take(verb, name string, err error, needs int, refusal dfs.Kind) {
	was := [2]bool{b.may[0][name], b.may[1][name]}
	switch kind := dfs.KindOf(err); {
	case err == nil:
		b.did[verb]++
		if !was[needs] {
			b.fault("%s %s succeeded, and could not: may be absent %v, there %v", verb, name, was[0], was[1])
		}
		b.may[needs][name], b.may[1-needs][name] = false, true
	case kind == refusal:
		b.did[verb+" refused"]++
		if !was[1-needs] {
			b.fault("%s %s: %v, and could be done: may be absent %v, there %v", verb, name, err, was[0], was[1])
		}
		b.may[needs][name] = false
	case kind == dfs.Unknown || kind == dfs.Fenced || errors.Is(err, context.Canceled):
		b.did["unknown"]++
		if was[needs] {
			b.may[1-needs][name] = true
		}
	case kind.Retryable() || kind == dfs.Deadline:
		b.did["not done"]++
	default:
		b.fault("%s %s: %v", verb, name, err)
	}
}

// TestBatchesAndCrashes: batches are exactly their commands, while their leaders
// crash and every other answer to one is lost.
func TestBatchesAndCrashes(t *testing.T) {
	seeds, rounds, crashes := []uint64{1, 2}, 60, 12
	if bubble.Race {
		seeds, rounds, crashes = seeds[:1], 10, 2
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { batchesAndCrashes(t, seed, rounds, crashes) })
	}
}

// batchesAndCrashes takes so many rounds of each client at least.
func batchesAndCrashes(t *testing.T, seed uint64, rounds, crashes int) {
	l := &lossy{seen: map[string]int{}, lost: Counts{}}
	tweak := func(o *node.Options) {
		name := o.Name
		o.DropReply = func(peer transport.Peer, method string, _ error) bool {
			return method == "/dfsd.wire.Meta/MutateBatch" && l.drop(name, peer, method)
		}
	}
	inBubble(t, Config{Seed: seed, Stores: 1, Class: dfs.Replicated(1), Tweak: tweak}, func(t *testing.T, c *Cluster) {
		var all []*batcher
		for i := range 3 {
			p := open(t, c, fmt.Sprint("client", i))
			defer p.Close()
			awaitReady(t, p)
			a, err := p.Mkdir(t.Context(), fmt.Sprint("/d", i), 0o755)
			if err != nil {
				t.Fatal(err)
			}
			b := &batcher{p: p, dir: p.Inode(a.Ino), rand: rand.New(rand.NewPCG(seed, uint64(i))), did: Counts{}}
			b.may = [2]map[string]bool{{}, {}}
			for k := range batchNames {
				b.may[0][fmt.Sprint("n", k)] = true
			}
			b.fault = func(format string, args ...any) { t.Errorf("client %d: %s", i, fmt.Sprintf(format, args...)) }
			all = append(all, b)
		}
		enough := make(chan struct{})
		var work sync.WaitGroup
		for _, b := range all {
			work.Go(func() {
				for n := 0; (n < rounds || !closed(enough)) && !t.Failed(); n++ {
					b.round(t.Context())
					time.Sleep(time.Duration(b.rand.IntN(200)) * time.Millisecond)
				}
			})
		}
		random := rand.New(rand.NewPCG(seed, 99))
		for range crashes {
			i := random.IntN(3)
			c.Crash(i)
			time.Sleep(time.Duration(random.IntN(5000)) * time.Millisecond)
			start(t, c, i)
			time.Sleep(time.Duration(random.IntN(8000)) * time.Millisecond)
		}
		close(enough)
		work.Wait()
		did := Counts{}
		for i, b := range all {
			var there []string
			for e, err := range b.p.ReadDir(t.Context(), fmt.Sprint("/d", i), false) {
				if err != nil {
					t.Fatal(err)
				}
				there = append(there, e.Name)
			}
			for k := range batchNames {
				name, at := fmt.Sprint("n", k), 0
				if slices.Contains(there, name) {
					at = 1
				}
				if !b.may[at][name] {
					t.Errorf("client %d: %s is there: %d, and cannot be", i, name, at)
				}
			}
			for what, n := range b.did {
				did[what] += n
			}
		}
		sound(t, c)
		t.Logf("%v; answers lost: %v", did, l.lost)
		for _, what := range []string{"make", "remove", "make refused", "remove refused"} {
			if did[what] == 0 {
				t.Errorf("nothing of this was done: %s", what)
			}
		}
		if l.lost["MutateBatch"] == 0 {
			t.Error("no answer to a batch was lost")
		}
	})
}
