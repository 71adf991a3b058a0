package storage

import (
	"maps"
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

// mend is a block that is damaged.
type mend struct {
	store *store
	id    dfs.BlockID
}

// mends are the damaged blocks to repair.
type mends struct {
	queue chan mend

	mu    sync.Mutex         // guards what follows
	tried map[mend]time.Time // when it was queued last. Invariant: at most maxMends
}

// mend has a damaged block replaced by a good copy, soon.
func (r *refiller) mend(st *store, id dfs.BlockID) {
	x, now := mend{st, id}, time.Now()
	m := &r.mends
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.tried, func(_ mend, t time.Time) bool { return now.Sub(t) >= mendPause })
	if _, lately := m.tried[x]; lately || len(m.tried) >= maxMends {
		return
	}
	select {
	case m.queue <- x:
		m.tried[x] = now
	default: // many wait already
	}
}

// mendDamage has everything that the engine knows to be damaged repaired: what a
// read or the reading of everything has found now, and what did not fit, could
// not be repaired, or was found by the last start, a little later.
func (st *store) mendDamage() {
	for {
		for _, d := range st.Damage() {
			if d.Named && d.Shard == 0 {
				st.s.refill.mend(st, d.ID)
			}
		}
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

// mendLoop replaces damaged blocks one by one.
func (r *refiller) mendLoop() {
	for {
		select {
		case x := <-r.mends.queue:
			if err := r.repair(x); err != nil && r.s.ctx.Err() == nil {
				x.store.log().Error("a damaged block is not repaired", "pg", x.id.PG, "block", x.id, "cause", err)
			}
		case <-r.s.ctx.Done():
			return
		}
	}
}

// repair pulls a good copy and reads it back.
func (r *refiller) repair(x mend) error {
	if r.check(x) == nil {
		return nil // by an earlier one
	}
	if err := r.pullBlock(r.s.ctx, x.store, engine.Entry{ID: x.id}); err != nil {
		return err
	}
	if err := r.check(x); err != nil {
		return err
	}
	r.s.count.repaired.Add(1)
	x.store.log().Info("a damaged block is repaired", "pg", x.id.PG, "block", x.id)
	return nil
}

// check reads the whole block.
func (r *refiller) check(x mend) error {
	rd, err := x.store.get(r.s.ctx, x.id, 0, dfs.MaxBlockSize)
	if err != nil {
		return err
	}
	defer rd.Release()
	if rd.HeaderLost {
		return dfs.Errorf(dfs.Corrupt, "read block", "%v: its record's header is damaged", x.id)
	}
	return nil
}
