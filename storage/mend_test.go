package storage

import (
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/sim/bubble"
)

// TestEveryDamagedBlockHasItsTurn: more blocks are damaged than are tried at a time,
// and none can be repaired. Each is tried all the same.
func TestEveryDamagedBlockHasItsTurn(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := newMends()
		var list []engine.Damage
		for n := range uint64(2*maxMends + 10) {
			list = append(list, engine.Damage{Named: true, ID: dfs.BlockID{PG: 1, Counter: n}, Segment: 1 + n/100, Offset: int64(n%100) << 12})
		}
		tried := map[dfs.BlockID]int{}
		const rounds = 6
		for range rounds {
			m.mendAll(list)
			for len(m.queue) > 0 {
				tried[<-m.queue]++
			}
			time.Sleep(mendPause)
		}
		for _, d := range list {
			if n := tried[d.ID]; n < rounds*maxMends/len(list) {
				t.Errorf("block %d of %d was tried %d times", d.ID.Counter, len(list), n)
			}
		}
	})
}
