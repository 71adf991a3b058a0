package engine

import (
	"sync"
	"sync/atomic"

	"dfsd/dfs"
)

// rowCache holds rows of blocks that were read of late, so that a read of them
// need not ask Pebble. Looking takes no lock.
//
// It never holds a row that the index has replaced, once the change of the index
// has returned: each change drops what it changed after it was committed, and a
// row read before that is not put in after it, since the drop moves the
// generation of its set on. Only reads use it: what decides over an append is
// always asked of the index.
type rowCache struct {
	sets [rowCacheSets]rowSet
}

const (
	rowCacheSets = 4096
	rowCacheWays = 4

	// rowCacheChunks: rows of larger blocks stay outside, whose reads take so
	// long that asking the index does not count. This bounds the cache to 4 MiB.
	rowCacheChunks = 16
)

// rowSet is the place of all blocks of one hash.
type rowSet struct {
	tags [rowCacheWays]atomic.Uint32 // of ways: most of what is not meant is seen without a look at it
	ways [rowCacheWays]atomic.Pointer[cachedRow]

	generation atomic.Uint32 // moved on by each drop, with mu held

	// mu is held by who changes ways.
	mu   sync.Mutex
	next uint8 // the way that is taken next
}

type cachedRow struct {
	id    dfs.BlockID
	shard uint8
	row   row          // not to be changed
	only  [1]dfs.Chunk // of the row, when there is one: so it lies beside it
}

func (r *cachedRow) is(id dfs.BlockID, shard uint8) bool {
	return r != nil && r.id == id && r.shard == shard
}

// set returns the set of a block, and its tag there.
func (c *rowCache) set(id dfs.BlockID, shard uint8) (*rowSet, uint32) {
	h := uint64(id.PG)<<8 | uint64(shard)
	for _, v := range [...]uint64{uint64(id.Ino), uint64(id.Session), id.Counter} {
		h = (h ^ v) * 0x9e3779b97f4a7c15
		h ^= h >> 32
	}
	return &c.sets[h%rowCacheSets], uint32(h >> 32)
}

// get returns a row that is not to be changed, nil when it is not here.
func (c *rowCache) get(id dfs.BlockID, shard uint8) *row {
	s, tag := c.set(id, shard)
	for i := range s.tags {
		if s.tags[i].Load() == tag {
			if r := s.ways[i].Load(); r.is(id, shard) {
				return &r.row
			}
		}
	}
	return nil
}

// begin is called before the index is asked for a row that add will bring.
func (c *rowCache) begin(id dfs.BlockID, shard uint8) (generation uint32) {
	s, _ := c.set(id, shard)
	return s.generation.Load()
}

// add keeps a row, unless one of its set was dropped since begin.
func (c *rowCache) add(id dfs.BlockID, shard uint8, generation uint32, w *row) {
	if len(w.info.Chunks) > rowCacheChunks {
		return
	}
	s, tag := c.set(id, shard)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.generation.Load() != generation {
		return
	}
	at := s.next
	for i := range s.ways {
		switch r := s.ways[i].Load(); {
		case r == nil:
			at = uint8(i)
		case r.is(id, shard):
			return
		}
	}
	r := &cachedRow{id: id, shard: shard, row: *w}
	if len(w.info.Chunks) == 1 {
		r.only[0] = w.info.Chunks[0]
		r.row.info.Chunks = r.only[:]
	}
	s.ways[at].Store(r)
	s.tags[at].Store(tag)
	s.next = (at + 1) % rowCacheWays
}

// drop forgets a row that the index has replaced.
func (c *rowCache) drop(id dfs.BlockID, shard uint8) {
	s, _ := c.set(id, shard)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation.Add(1)
	for i := range s.ways {
		if r := s.ways[i].Load(); r.is(id, shard) {
			s.ways[i].Store(nil)
		}
	}
}
