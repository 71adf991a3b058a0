package sim

import (
	"context"
	"fmt"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
)

// checkBlocks checks, in the stores themselves, that every block a file names
// is on every complete member of its placement group, and that what the
// complete members hold besides was not released.
func (r *run) checkBlocks(ctx context.Context) error {
	m, err := r.workers[0].peer.Refresh(ctx)
	if err != nil {
		return err
	}
	stores := r.c.engines()
	named := map[dfs.BlockID]bool{}
	for _, w := range r.workers {
		if err := w.eachFile(ctx, func(path string, e client.Extent) error {
			named[e.Block] = true
			return checkCopies(m, stores, path, e.Block)
		}); err != nil {
			return err
		}
	}
	r.counts["blocks verified"] += len(named)
	return r.checkReleased(m, stores, named)
}

// eachFile calls fn with every extent of every file in the worker's directory.
func (w *worker) eachFile(ctx context.Context, fn func(path string, e client.Extent) error) error {
	for d, err := range w.peer.ReadDir(ctx, "/"+w.name, false) {
		if err != nil {
			return err
		}
		if d.Type != client.TypeFile {
			continue
		}
		for e, err := range w.peer.Inode(d.Ino).Extents(ctx) {
			if err != nil {
				return err
			}
			if err := fn("/"+w.name+"/"+d.Name, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkCopies checks, while things break, that every block of a file is on every
// store that runs and, says the newest map, holds all of that epoch. Nobody but
// the worker releases them.
func (w *worker) checkCopies(ctx context.Context, path string, in client.Inode) error {
	m := w.c.newestMap()
	if m == nil {
		return nil
	}
	stores := w.c.engines()
	for x, err := range in.Extents(ctx) {
		if err != nil {
			return nil // checked when there is an answer
		}
		if err := w.checkMembers(m, stores, path, x.Block); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) checkMembers(m *dfs.Map, stores map[dfs.StoreID]*engine.Store, path string, id dfs.BlockID) error {
	pg := m.PG(id.PG)
	if pg == nil {
		return nil // it is newer than the map
	}
	var epoch dfs.Epoch // under which the block was acknowledged, 0: no store could tell
	var without []dfs.Member
	for _, member := range pg.Members {
		e := stores[member.Store]
		if e == nil || e.Identity().Incarnation.Mark != member.Mark {
			continue
		}
		have, err := e.Stat(id, 0)
		switch {
		case dfs.KindOf(err) == dfs.NotExist:
			without = append(without, member)
		case err == nil && have.Trashed:
			return fmt.Errorf("%s: block %v is in the trash of store %v (members %v)", path, id, member.Store, pg.Members)
		case err == nil && !have.Tombstone && !have.Lost:
			epoch = have.Epoch
			w.counts["copies seen"]++
		}
	}
	for _, member := range without {
		if epoch > 0 && member.Complete >= epoch {
			return fmt.Errorf("%s: block %v of epoch %d is not on store %v, which holds all of %v through %d (active %v, members %v)",
				path, id, epoch, member.Store, pg.ID, member.Complete, pg.Active, pg.Members)
		}
	}
	return nil
}

func checkCopies(m *dfs.Map, stores map[dfs.StoreID]*engine.Store, path string, id dfs.BlockID) error {
	pg := m.PG(id.PG)
	if pg == nil {
		return fmt.Errorf("%s: block %v is in no placement group", path, id)
	}
	for _, s := range pg.Complete() {
		e := stores[s]
		if e == nil {
			continue
		}
		read, err := e.Get(context.Background(), id, 0, 0, dfs.MaxBlockSize)
		if err != nil {
			return fmt.Errorf("%s: block %v is not on store %v, a complete member of %v (active %v, members %v): %w", path, id, s, pg.ID, pg.Active, pg.Members, err)
		}
		trashed := read.Trashed
		read.Release()
		if trashed {
			return fmt.Errorf("%s: block %v is in the trash of store %v", path, id, s)
		}
	}
	return nil
}

// checkReleased checks that what no file names is on no complete member, unless
// in its trash: a block that one of them still has was released and brought back,
// or never deleted, or never committed and not collected.
func (r *run) checkReleased(m *dfs.Map, stores map[dfs.StoreID]*engine.Store, named map[dfs.BlockID]bool) error {
	once := map[dfs.BlockID]bool{}
	for _, w := range r.workers {
		for id := range w.named {
			once[id] = !named[id]
		}
	}
	for _, pg := range m.PGs {
		for _, s := range pg.Complete() {
			if stores[s] == nil {
				continue
			}
			err := eachEntry(stores[s], pg.ID, func(e engine.Entry) error {
				switch {
				case e.Tombstone:
					r.counts["tombstones"]++
				case e.Trashed:
					r.counts["blocks in the trash"]++
				case !named[e.ID] && !once[e.ID]:
					return fmt.Errorf("no file names block %v, which is on store %v, a complete member of %v, and undecided: %v (members %v)", e.ID, s, pg.ID, e.Undecided, pg.Members)
				case once[e.ID]:
					return fmt.Errorf("block %v was released and is still on store %v, a complete member of %v (members %v)", e.ID, s, pg.ID, pg.Members)
				default:
					r.counts["blocks in stores"]++
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	for _, e := range stores {
		r.counts["tombstones dropped"] += int(e.Stats().TombstonesDropped)
	}
	for _, gone := range once {
		if gone {
			r.counts["releases verified"]++
		}
	}
	return nil
}

// eachEntry calls fn with every block and tombstone of a placement group.
func eachEntry(e *engine.Store, pg dfs.PGID, fn func(engine.Entry) error) error {
	var cursor []byte
	for {
		entries, next, err := e.Inventory(pg, cursor, 1000)
		if err != nil {
			return fmt.Errorf("inventory of %v: %w", pg, err)
		}
		for _, entry := range entries {
			if err := fn(entry); err != nil {
				return err
			}
		}
		if cursor = next; len(next) == 0 {
			return nil
		}
	}
}

// waitDecided waits until no store that is up holds a block that it does not know
// to be referenced or garbage: sessions that ended are fenced, and those that live
// have nothing under way.
func (r *run) waitDecided() error {
	for begun := time.Now(); ; time.Sleep(time.Second) {
		why, m := "", r.c.newestMap()
		for id, e := range r.c.engines() {
			if s := m.Store(id); s == nil || s.State != dfs.StoreUp {
				continue
			}
			if st := e.Stats(); st.Undecided > 0 {
				list, _, err := e.Undecided(nil, 1)
				if err != nil || len(list) == 0 {
					return fmt.Errorf("store %v counts %d undecided blocks and lists %v (%v)", id, st.Undecided, list, err)
				}
				have, err := e.Stat(list[0].ID, 0)
				why = fmt.Sprintf("store %v has %d undecided blocks, %+v among them (%v)", id, st.Undecided, have, err)
			}
		}
		if why == "" {
			return nil
		}
		if time.Since(begun) > maxHeal {
			return fmt.Errorf("garbage is not collected: after %v %s", maxHeal, why)
		}
	}
}

// waitReleased waits until every group's delete queue is empty: with every
// store up, what was released is collected in bounded time.
func (r *run) waitReleased() error {
	node := r.c.nodes[r.c.Up()[0]].node
	for begun := time.Now(); ; time.Sleep(time.Second) {
		left := 0
		for g := dfs.GroupID(1); g <= simGroups; g++ {
			err := node.Meta().View(g, func(rd raftgroup.Reader) error {
				blocks, _, err := namespace.DeleteQueue(rd, nil, 1000)
				left += len(blocks)
				return err
			})
			if err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
		if time.Since(begun) > maxHeal {
			return fmt.Errorf("%d blocks or more are released and not deleted after %v", left, maxHeal)
		}
	}
}

// checkReplicas checks that the replicas of each group agree, and that the tree
// is sound.
func (r *run) checkReplicas() error {
	type seen struct {
		*simNode
		applied uint64
		hash    raftgroup.StateHash
	}
	first := map[dfs.GroupID]seen{}
	readers := map[dfs.GroupID]raftgroup.Reader{}
	for _, i := range r.c.Up() {
		sn := r.c.nodes[i]
		if sn.node.Meta() == nil {
			continue
		}
		for _, st := range sn.node.Meta().Groups() {
			if st.Fault != nil {
				return fmt.Errorf("%s: the replica of %v is out of order: %w", sn.name, st.Group, st.Fault)
			}
			f, ok := first[st.Group]
			if ok && f.applied == st.Applied && f.hash != st.Hash {
				return fmt.Errorf("%v: %s and %s differ at entry %d: hashes %x and %x", st.Group, f.name, sn.name, st.Applied, f.hash, st.Hash)
			}
			if !ok || st.Applied > f.applied {
				first[st.Group] = seen{sn, st.Applied, st.Hash}
			}
			r.counts["replicas compared"]++
		}
	}
	view := func(g dfs.GroupID, fn func(raftgroup.Reader) error) error {
		f, ok := first[g]
		if !ok {
			return fmt.Errorf("no node that is up has a replica of %v", g)
		}
		return f.node.Meta().View(g, fn)
	}
	return r.checkTree(view, readers, r.c.newestMap().Namespace())
}

// checkTree opens one group's reader after the other and runs the file system
// check over all of them.
func (r *run) checkTree(view func(dfs.GroupID, func(raftgroup.Reader) error) error, readers map[dfs.GroupID]raftgroup.Reader, groups []dfs.GroupID) error {
	if len(groups) > 0 {
		return view(groups[0], func(rd raftgroup.Reader) error {
			readers[groups[0]] = rd
			return r.checkTree(view, readers, groups[1:])
		})
	}
	for _, err := range namespace.CheckTree(readers) {
		return fmt.Errorf("the tree is not sound: %w", err)
	}
	r.counts["trees checked"]++
	return nil
}
