package meta

import (
	"hash/fnv"
	"math"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

const (
	// spreadLevels is how many levels of directories below the root are spread
	// over all groups; deeper ones stay with their parent.
	spreadLevels = 3

	// placedWeight is what one placed directory counts for (inodes) until the next
	// report: it will be filled.
	placedWeight = 16

	// rateDecay is the time in which a count of commands decays by 1/e: longer than
	// a burst of one client, and short enough for work that has moved on to be forgotten.
	rateDecay = 10 * time.Second

	// quietRate is what a group is at least taken to do (commands a second) when
	// shares of all work are worked out: of next to nothing nobody has a large share.
	quietRate = 20
)

// groupLoad is what a group has, and does.
type groupLoad struct {
	inodes uint64
	rate   uint32 // commands of clients a second, lately
}

// rates counts the commands that this node has carried out as the leader of groups.
type rates struct {
	mu     sync.Mutex // guards what follows
	counts map[dfs.GroupID]decaying
}

// decaying is a count that decays by 1/e in rateDecay: divided by that it is a rate.
type decaying struct {
	n  float64
	at time.Time
}

func (d decaying) now(t time.Time) float64 {
	return d.n * math.Exp(-float64(t.Sub(d.at))/float64(rateDecay))
}

func newRates() *rates { return &rates{counts: map[dfs.GroupID]decaying{}} }

// add counts commands of a group.
func (r *rates) add(g dfs.GroupID, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := time.Now()
	r.counts[g] = decaying{r.counts[g].now(t) + float64(n), t}
}

// of returns the rate of a group, whole commands a second: one in which nothing
// happens has the same in each report.
func (r *rates) of(g dfs.GroupID) uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, ok := r.counts[g]
	if !ok {
		return 0
	}
	rate := uint32(min(d.now(time.Now())/rateDecay.Seconds()+0.5, math.MaxUint32))
	if rate == 0 {
		delete(r.counts, g)
	}
	return rate
}

// placer chooses the groups of new directories.
type placer struct {
	mu     sync.Mutex
	loads  map[dfs.GroupID]groupLoad // as last reported
	placed map[dfs.GroupID]uint64    // directories placed since
}

func newPlacer() *placer {
	return &placer{loads: map[dfs.GroupID]groupLoad{}, placed: map[dfs.GroupID]uint64{}}
}

// settle takes newly reported loads over, in place of what was counted since
// the last ones.
func (p *placer) settle(loads map[dfs.GroupID]groupLoad) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for g, n := range loads {
		if p.loads[g].inodes != n.inodes {
			p.placed[g] = 0
		}
		p.loads[g] = n
	}
}

// choose returns the group for a directory below a parent of the given level: the
// one with the least near the root, and where the parent's has far more than
// others; else the parent's. Ties go by the hash of parent and name. REQUIRES:
// there is a group.
func (p *placer) choose(parent dfs.GroupID, level int, groups []dfs.GroupID, q *wire.PlaceDirQuery) dfs.GroupID {
	p.mu.Lock()
	defer p.mu.Unlock()
	if level >= spreadLevels && !p.overfull(parent, len(groups)) {
		return parent
	}
	h := fnv.New32a()
	_, _ = h.Write(q.Name)
	first := int(uint64(h.Sum32()^uint32(q.Parent)) % uint64(len(groups)))
	burden := p.burdens(groups)
	best, least := dfs.GroupID(0), 0.0
	for i := range groups {
		g := groups[(first+i)%len(groups)]
		if b := burden(g); best == 0 || b < least {
			best, least = g, b
		}
	}
	p.placed[best]++
	return best
}

// burdens returns what weighs on a group: its share of all inodes and its share of
// what all do. So one that has little gets new directories, until it has as much
// more to do than the others as they have more inodes.
func (p *placer) burdens(groups []dfs.GroupID) func(dfs.GroupID) float64 {
	inodes := func(g dfs.GroupID) float64 { return float64(p.loads[g].inodes + placedWeight*p.placed[g]) }
	allInodes, allWork := 1.0, 0.0
	for _, g := range groups {
		allInodes += inodes(g)
		allWork += float64(p.loads[g].rate)
	}
	allWork = max(allWork, quietRate*float64(len(groups)))
	return func(g dfs.GroupID) float64 { return inodes(g)/allInodes + float64(p.loads[g].rate)/allWork }
}

// overfull reports whether a group is far above the mean: its directories'
// children go elsewhere, however deep. Work alone moves none of them: it passes, and
// a tree that lies in one group is cheaper to change.
func (p *placer) overfull(g dfs.GroupID, groups int) bool {
	var sum uint64
	for _, n := range p.loads {
		sum += n.inodes
	}
	mean := sum / uint64(max(groups, 1))
	return p.loads[g].inodes > 2*mean+1024
}
