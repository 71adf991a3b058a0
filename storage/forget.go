package storage

import (
	"context"
	"slices"
	"time"

	"dfsd/dfs"
)

// forgetCheck is how often a store looks whether it has a share to forget.
const forgetCheck = 10 * time.Second

// forgetter gives up the blocks of placement groups that its store has left. It
// belongs to one goroutine.
//
//	member ──left by the map──▶ kept ──TrashKeep, or space is short──▶ forgotten
//	   ▲                          │                                       │
//	   └──────────────────────────┴────────── named by a set again ───────┘
//
// Either way back the member is complete through nothing: it pulls all of its share,
// and of what was kept the owners are asked (see doubt).
type forgetter struct {
	st    *store
	kept  map[dfs.PGID]keptSince // of the placement groups that the store has left
	short bool                   // space was short at the last look
}

// keptSince is since when a placement group has been left, as the store has seen
// it: a start counts anew.
type keptSince struct {
	active dfs.Epoch // of the acting set then: with another one the time begins anew
	at     time.Time
}

// forget looks, until the service ends, for what to forget.
func (st *store) forget() {
	f := forgetter{st: st, kept: map[dfs.PGID]keptSince{}}
	for st.s.sleep(forgetCheck) {
		if !st.failed() {
			f.round()
		}
	}
}

// hasLeft reports whether a store has left a placement group for good as far as a
// map can tell: it is in no set and complete through nothing, and every
// copy is where it should be, complete, and on a store that is up. So nobody
// needs what it has.
func hasLeft(m *dfs.Map, pg *dfs.PG, id dfs.StoreID) bool {
	if pg.Class.Erasure() || !pg.Full() || pg.Active.Has(id) { // full: the target is the active set, and nothing is proposed
		return false
	}
	if x := pg.Member(id); x != nil && x.Complete > 0 {
		return false
	}
	return !slices.ContainsFunc(pg.Active.Stores, func(s dfs.StoreID) bool {
		x := m.Store(s)
		return x == nil || x.State != dfs.StoreUp
	})
}

// round forgets what has been kept for long enough.
func (f *forgetter) round() {
	m, _ := f.st.applied.get()
	if m == nil {
		return
	}
	f.look(m)
	f.short = f.st.isShort()
	due := f.due()
	if len(due) == 0 {
		return
	}
	// What a store that is cut off believes is no reason to give up a copy.
	if m = f.st.fresh(); m == nil {
		return
	}
	f.look(m)
	for _, pg := range due {
		if k, ok := f.kept[pg]; !ok || !f.isDue(k) {
			continue
		}
		if err := f.give(pg, m.Epoch); err != nil {
			if f.st.s.ctx.Err() == nil && !f.st.failed() {
				f.st.log().Info("a placement group is not forgotten yet", "pg", pg, "cause", err)
			}
			if dfs.KindOf(err) == dfs.Stale {
				return // by a newer map the next time
			}
		}
	}
}

// look notes which placement groups the store has left by a map.
func (f *forgetter) look(m *dfs.Map) {
	for _, pg := range m.PGs {
		if !hasLeft(m, pg, f.st.ID()) {
			delete(f.kept, pg.ID)
		} else if f.kept[pg.ID].active != pg.Active.Epoch {
			f.kept[pg.ID] = keptSince{pg.Active.Epoch, time.Now()}
		}
	}
}

func (f *forgetter) isDue(k keptSince) bool {
	return f.short || time.Since(k.at) >= f.st.s.opts.TrashKeep
}

// due lists the placement groups that are to be forgotten now.
func (f *forgetter) due() (due []dfs.PGID) {
	for pg, k := range f.kept {
		if !f.isDue(k) {
			continue
		}
		switch list, _, err := f.st.Inventory(pg, nil, 1); {
		case err != nil:
		case len(list) > 0:
			due = append(due, pg)
		default: // what was under way for long may still come: there is another look
			f.kept[pg] = keptSince{k.active, time.Now()}
		}
	}
	slices.Sort(due)
	return due
}

// give forgets a placement group.
func (f *forgetter) give(pg dfs.PGID, at dfs.Epoch) error {
	st := f.st
	gone, err := st.Forget(pg, at)
	if err != nil {
		return err
	}
	f.kept[pg] = keptSince{f.kept[pg].active, time.Now()}
	st.s.count.forgotten.Add(gone.Blocks)
	st.log().Info("the blocks of a placement group that the store has left are forgotten", "pg", pg, "epoch", at,
		"blocks", gone.Blocks, "tombstones", gone.Tombstones, "bytes", gone.Bytes, "short of space", f.short)
	return nil
}

// fresh is the map that the store follows once it is one that was read
// linearizably just now; nil when that cannot be had.
func (st *store) fresh() *dfs.Map {
	ctx, cancel := context.WithTimeout(st.s.ctx, mapWait)
	defer cancel()
	now, err := st.s.maps.linearizable(ctx)
	if err == nil {
		err = st.s.maps.offer(now)
	}
	if err != nil {
		st.log().Info("nothing is forgotten without a current map", "cause", err)
		return nil
	}
	if m := st.applied.reach(ctx, now.Epoch, mapWait); m != nil && m.Epoch >= now.Epoch {
		return m
	}
	return nil
}
