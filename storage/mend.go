package storage

import (
	"dfsd/dfs"
	"dfsd/engine"
)

// mend is a block that a read found damaged.
type mend struct {
	store *store
	id    dfs.BlockID
}

// mend has a damaged block replaced by a good copy, soon. When many wait
// already it does nothing: the next read of the block says so again.
func (r *refiller) mend(st *store, id dfs.BlockID) {
	select {
	case r.mends <- mend{st, id}:
	default:
	}
}

// mendLoop replaces damaged blocks one by one.
func (r *refiller) mendLoop() {
	for {
		select {
		case x := <-r.mends:
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
	defer x.store.reading.begin()()
	rd, err := x.store.Get(r.s.ctx, x.id, 0, 0, dfs.MaxBlockSize)
	if err == nil {
		rd.Release()
	}
	return err
}
