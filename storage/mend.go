package storage

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/engine"
)

const (
	// maxMends bounds the damaged blocks that wait to be repaired, or were
	// tried lately; what does not fit is found again by a later read.
	maxMends = 256

	// mendPause is how long a block is left alone after an attempt to repair
	// it: without it two members that both have a damaged copy would find each
	// other's damage, by trying to repair their own, for ever.
	mendPause = 30 * time.Second
)

// mends are the damaged blocks of a store to repair.
type mends struct {
	queue chan dfs.BlockID

	last engine.Damage // that mendAll has queued; its caller's own

	mu    sync.Mutex                // guards what follows
	tried map[dfs.BlockID]time.Time // when it was queued last. Invariant: at most maxMends
}

func newMends() mends {
	return mends{queue: make(chan dfs.BlockID, maxMends), tried: map[dfs.BlockID]time.Time{}}
}

// mendAll has damaged blocks replaced, in the order of their places. It begins behind
// the one that it queued last: those that cannot be repaired keep no others waiting
// for ever.
func (m *mends) mendAll(list []engine.Damage) {
	first := slices.IndexFunc(list, func(d engine.Damage) bool {
		return cmp.Or(cmp.Compare(d.Segment, m.last.Segment), cmp.Compare(d.Offset, m.last.Offset)) > 0
	})
	first = max(first, 0)
	for _, d := range slices.Concat(list[first:], list[:first]) {
		if d.Named && d.Shard == 0 && m.mend(d.ID) {
			m.last = d
		}
	}
}

// mend has a damaged block replaced by a good copy, soon, and reports whether it
// was queued for that.
func (m *mends) mend(id dfs.BlockID) bool {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.tried, func(_ dfs.BlockID, t time.Time) bool { return now.Sub(t) >= mendPause })
	if _, lately := m.tried[id]; lately || len(m.tried) >= maxMends {
		return false
	}
	select {
	case m.queue <- id:
		m.tried[id] = now
		return true
	default: // many wait already
		return false
	}
}

// mendDamage has everything that the engine knows to be damaged repaired: what a
// read or the reading of everything has found now, and what did not fit, could
// not be repaired, or was found by the last start, a little later.
func (st *store) mendDamage() {
	for {
		st.mends.mendAll(st.Damage())
		pause := time.NewTimer(mendPause)
		select {
		case <-st.DamageFound():
		case <-pause.C:
		case <-st.s.ctx.Done():
			pause.Stop()
			return
		}
		pause.Stop()
	}
}

// mendLoop replaces damaged blocks one by one. Each store has its own, so that a
// disk that hangs keeps no other from being repaired.
func (st *store) mendLoop() {
	for {
		select {
		case id := <-st.mends.queue:
			if err := st.repair(id); err != nil && st.s.ctx.Err() == nil {
				st.log().Error("a damaged block is not repaired", "pg", id.PG, "block", id, "cause", err)
			}
		case <-st.s.ctx.Done():
			return
		}
	}
}

// repair pulls a good copy and reads it back. It is one block for each store, and
// takes no part of the refills' memory: all of that may be held by those of another
// store, whose disk hangs.
func (st *store) repair(id dfs.BlockID) error {
	if st.check(id) == nil {
		return nil // by an earlier one
	}
	if err := st.s.refill.pullHeld(st.s.ctx, st, engine.Entry{ID: id}); err != nil {
		return err
	}
	if err := st.check(id); err != nil {
		return err
	}
	st.s.count.repaired.Add(1)
	st.log().Info("a damaged block is repaired", "pg", id.PG, "block", id)
	return nil
}

// check reads the whole block.
func (st *store) check(id dfs.BlockID) error {
	rd, err := st.get(st.s.ctx, id, 0, dfs.MaxBlockSize)
	if err != nil {
		return err
	}
	defer rd.Release()
	if rd.HeaderLost {
		return dfs.Errorf(dfs.Corrupt, "read block", "%v: its record's header is damaged", id)
	}
	return nil
}
