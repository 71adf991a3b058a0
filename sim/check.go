package sim

import (
	"context"
	"fmt"

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
	stores := r.engines()
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

func (r *run) engines() map[dfs.StoreID]*engine.Store {
	out := map[dfs.StoreID]*engine.Store{}
	for _, i := range r.c.Up() {
		for _, e := range r.c.nodes[i].node.Engines() {
			out[e.Identity().Store] = e
		}
	}
	return out
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
		read.Release()
	}
	return nil
}

// checkReleased checks that complete members agree on which blocks exist: one
// that a member has and another has a tombstone of, or never had, was brought
// back or lost.
func (r *run) checkReleased(m *dfs.Map, stores map[dfs.StoreID]*engine.Store, named map[dfs.BlockID]bool) error {
	for _, pg := range m.PGs {
		live := map[dfs.BlockID][]dfs.StoreID{}
		dead := map[dfs.BlockID]dfs.StoreID{}
		for _, s := range pg.Complete() {
			if stores[s] == nil {
				continue
			}
			var cursor []byte
			for {
				entries, next, err := stores[s].Inventory(pg.ID, cursor, 1000)
				if err != nil {
					return fmt.Errorf("inventory of %v on store %v: %w", pg.ID, s, err)
				}
				for _, e := range entries {
					if e.Tombstone {
						dead[e.ID] = s
					} else {
						live[e.ID] = append(live[e.ID], s)
					}
				}
				if cursor = next; len(next) == 0 {
					break
				}
			}
		}
		for id, on := range live {
			if s, ok := dead[id]; ok {
				return fmt.Errorf("block %v was deleted (store %v has its tombstone) and is back on stores %v (named by a file: %v)", id, s, on, named[id])
			}
			r.counts["blocks in stores"]++
		}
		r.counts["tombstones"] += len(dead)
	}
	return nil
}

// checkReplicas checks that the replicas of each group agree, and that the tree
// is sound.
func (r *run) checkReplicas() error {
	type seen struct {
		name    string
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
				first[st.Group] = seen{sn.name, st.Applied, st.Hash}
			}
			r.counts["replicas compared"]++
		}
	}
	node := r.c.nodes[r.c.Up()[0]].node
	return r.checkTree(node.Meta().View, readers, 1)
}

// checkTree opens one group's reader after the other and runs the file system
// check over all of them.
func (r *run) checkTree(view func(dfs.GroupID, func(raftgroup.Reader) error) error, readers map[dfs.GroupID]raftgroup.Reader, g dfs.GroupID) error {
	if g <= simGroups {
		return view(g, func(rd raftgroup.Reader) error {
			readers[g] = rd
			return r.checkTree(view, readers, g+1)
		})
	}
	for _, err := range namespace.CheckTree(readers) {
		return fmt.Errorf("the tree is not sound: %w", err)
	}
	r.counts["trees checked"]++
	return nil
}
