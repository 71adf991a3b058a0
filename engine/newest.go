package engine

import (
	"sync"

	"dfsd/dfs"
)

// newest is what spares most puts a look at the index: a client counts its
// blocks upwards, so that one with a higher counter than any before of its
// session cannot be here.
//
// Invariant: of a session above known, every block or tombstone that the index
// has, or that is on its way there, has a counter up to counters[session]; when
// that has no entry, there is none. What a client sends can only make it useless.
type newest struct {
	mu       sync.Mutex
	known    dfs.SessionID // of sessions up to it nothing is remembered
	counters map[dfs.SessionID]uint64
}

// maxNewest bounds the sessions that are remembered. The oldest go first: most
// of those have ended.
const maxNewest = 4096

// admit notes a block or tombstone that is to be appended, and reports whether
// it is the first with its name for certain.
func (n *newest) admit(id dfs.BlockID) (first bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if id.Session <= n.known {
		return false
	}
	before, ok := n.counters[id.Session]
	if ok && id.Counter <= before {
		return false
	}
	if !ok && len(n.counters) >= maxNewest {
		oldest := id.Session
		for s := range n.counters {
			oldest = min(oldest, s)
		}
		n.known = oldest
		delete(n.counters, oldest)
		if oldest == id.Session {
			return false
		}
	}
	n.counters[id.Session] = id.Counter
	return true
}
