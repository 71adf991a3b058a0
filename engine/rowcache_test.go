package engine

import (
	"sync"
	"testing"

	"dfsd/dfs"
)

func cacheID(n uint64) dfs.BlockID {
	return dfs.BlockID{PG: 1, Ino: dfs.MakeIno(1, 2), Session: 3, Counter: n}
}

// TestRowCacheStale: a row that was read before the index replaced it is not put
// in afterwards.
func TestRowCacheStale(t *testing.T) {
	c, id := &rowCache{}, cacheID(7)
	old := &row{seq: 1, info: dfs.BlockInfo{Length: 5, Chunks: []dfs.Chunk{{Len: 5, Sum: 9}}}}
	before := c.begin(id, 2)
	c.drop(id, 2)
	c.add(id, 2, before, old)
	if c.get(id, 2) != nil {
		t.Fatal("a stale row was put in")
	}
	c.add(id, 2, c.begin(id, 2), old)
	if got := c.get(id, 2); got == nil || got.seq != 1 || len(got.info.Chunks) != 1 || got.info.Chunks[0] != old.info.Chunks[0] {
		t.Fatalf("got %+v", got)
	}
	if c.get(id, 3) != nil || c.get(cacheID(8), 2) != nil {
		t.Fatal("the row of another block")
	}
	c.drop(id, 2)
	if c.get(id, 2) != nil {
		t.Fatal("a dropped row is still there")
	}
}

// TestRowCacheBound: what is put in beyond its size drives out something else,
// and large rows stay outside.
func TestRowCacheBound(t *testing.T) {
	c := &rowCache{}
	const blocks = 3 * rowCacheSets * rowCacheWays
	for n := range uint64(blocks) {
		id := cacheID(n)
		c.add(id, 0, c.begin(id, 0), &row{seq: n})
		if got := c.get(id, 0); got == nil || got.seq != n {
			t.Fatalf("row %d is not there after it was put in", n)
		}
	}
	held := 0
	for n := range uint64(blocks) {
		if got := c.get(cacheID(n), 0); got != nil {
			if held++; got.seq != n {
				t.Fatalf("row %d has number %d", n, got.seq)
			}
		}
	}
	if most := rowCacheSets * rowCacheWays; held > most || held < most*9/10 {
		t.Errorf("%d rows, want nearly %d", held, most)
	}
	large := &row{info: dfs.BlockInfo{Chunks: make([]dfs.Chunk, rowCacheChunks+1)}}
	id := cacheID(blocks)
	if c.add(id, 0, c.begin(id, 0), large); c.get(id, 0) != nil {
		t.Error("a large row was put in")
	}
}

// TestRowCacheRace: readers that go by the rules never see a row older than the
// last change that had returned when they began.
func TestRowCacheRace(t *testing.T) {
	c, id := &rowCache{}, cacheID(1)
	var (
		mu      sync.Mutex
		stored  uint64 // what the index says
		settled uint64 // the last change that has returned
		work    sync.WaitGroup
	)
	read := func(p *uint64) uint64 {
		mu.Lock()
		defer mu.Unlock()
		return *p
	}
	done := make(chan struct{})
	for range 3 {
		work.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				least := read(&settled)
				if w := c.get(id, 0); w != nil {
					if w.seq < least {
						t.Errorf("row %d after change %d had returned", w.seq, least)
						return
					}
					continue
				}
				generation := c.begin(id, 0)
				c.add(id, 0, generation, &row{seq: read(&stored)})
			}
		})
	}
	for n := range uint64(20_000) {
		mu.Lock()
		stored = n
		mu.Unlock()
		c.drop(id, 0)
		mu.Lock()
		settled = n
		mu.Unlock()
	}
	close(done)
	work.Wait()
}
