package storage

import (
	"context"
	"sync"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// nodesOnly refuses callers that did not introduce themselves as a node.
func nodesOnly(ctx context.Context) error {
	if p, ok := transport.PeerFrom(ctx); !ok || p.Kind != transport.KindNode {
		return dfs.Errorf(dfs.Permission, "call", "for nodes of the cluster only")
	}
	return nil
}

// metaOnly refuses callers that the map does not know as a meta node, or that
// are not the one they say they are: nobody else may delete.
func metaOnly(ctx context.Context, m *dfs.Map) error {
	p, _ := transport.PeerFrom(ctx)
	n := m.Node(p.Node)
	switch {
	case n == nil:
		return dfs.Errorf(dfs.Unavailable, "call", "node %v is not registered as far as this node knows", p.Node)
	case !n.Roles.Has(dfs.RoleMeta) || n.Replaced || n.Incarnation.Mark != p.Incarnation.Mark:
		return dfs.Errorf(dfs.Permission, "call", "for meta nodes of the cluster only")
	}
	return p.Proves(n.Addr)
}

// Delete implements the block service: each item has its own outcome.
func (b *blockServer) Delete(ctx context.Context, req *wire.DeleteRequest) (*wire.DeleteReply, error) {
	s := (*Service)(b)
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := nodesOnly(ctx); err != nil {
		return nil, err
	}
	if len(req.Items) > maxDeletes {
		return nil, dfs.Errorf(dfs.TooLarge, "delete", "%d items: at most %d", len(req.Items), maxDeletes)
	}
	st, err := s.store(req.Store)
	if err != nil {
		return nil, err
	}
	newest := dfs.Epoch(0)
	for _, item := range req.Items {
		newest = max(newest, dfs.Epoch(item.Epoch))
	}
	m, err := st.judged(ctx, newest) // once for all items
	if err == nil {
		err = metaOnly(ctx, m)
	}
	if err != nil {
		return nil, err
	}
	reply := &wire.DeleteReply{Kinds: make([]uint32, len(req.Items))}
	var wg sync.WaitGroup
	slots := make(chan struct{}, deletesAtOnce)
	for i, item := range req.Items {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := st.deleteItem(ctx, item); err != nil {
				reply.Kinds[i] = uint32(outcome(err))
			}
		})
	}
	wg.Wait()
	return reply, nil
}

// outcome is an error's kind as a reply's item carries it, where 0 means done.
func outcome(err error) dfs.Kind {
	if k := dfs.KindOf(err); k != dfs.Other {
		return k
	}
	return dfs.Unknown
}

func (st *store) deleteItem(ctx context.Context, item *wire.DeleteItem) error {
	id, err := blockID(item.Id, item.Shard)
	if err != nil {
		return err
	}
	if item.Epoch == 0 {
		return dfs.Errorf(dfs.Invalid, "delete", "block %v without an epoch", id)
	}
	if err := st.mayWrite(ctx, id.PG, dfs.Epoch(item.Epoch)); err != nil {
		return err
	}
	if err := st.tombstone(ctx, engine.DeleteRequest{ID: id, Epoch: dfs.Epoch(item.Epoch)}); err != nil {
		return err
	}
	st.s.count.deletes.Add(1)
	return nil
}

func (st *store) tombstone(ctx context.Context, req engine.DeleteRequest) error {
	return st.writing.do(func() error { return st.Delete(ctx, req) })
}

// Scan implements the block service. It answers when nothing below the asked
// end can be acknowledged here any more, the end being the epoch since which
// the asker acts, and when this store holds all that was.
func (b *blockServer) Scan(ctx context.Context, req *wire.ScanRequest) (*wire.ScanReply, error) {
	s := (*Service)(b)
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := nodesOnly(ctx); err != nil {
		return nil, err
	}
	if req.Pg == 0 || req.Before == 0 || req.Limit == 0 || req.Limit > maxScan {
		return nil, dfs.Errorf(dfs.Invalid, "scan", "pg %d before epoch %d, at most %d entries: want a group, an epoch and 1 to %d", req.Pg, req.Before, req.Limit, maxScan)
	}
	st, err := s.store(req.Store)
	if err != nil {
		return nil, err
	}
	pg, before := dfs.PGID(req.Pg), dfs.Epoch(req.Before)
	m, err := st.judged(ctx, before)
	if err != nil {
		return nil, err
	}
	if st.MapEpoch() < before {
		return nil, dfs.Errorf(dfs.Unavailable, "scan", "store %v has persisted epoch %d, not yet %d", st.ID(), st.MapEpoch(), before)
	}
	if p := m.PG(pg); p == nil || p.Newest() < before || !st.knowsAll(pg) {
		return nil, dfs.Errorf(dfs.Stale, "scan", "store %v is not a complete member of %v at epoch %d", st.ID(), pg, before)
	}
	entries, next, err := st.ScanEpochs(pg, dfs.Epoch(req.After), before, req.Cursor, int(req.Limit))
	if err != nil {
		return nil, err
	}
	s.count.scans.Add(1)
	reply := &wire.ScanReply{Next: next, Entries: make([]*wire.ScanEntry, len(entries))}
	for i, e := range entries {
		reply.Entries[i] = &wire.ScanEntry{
			Id: e.ID.Bytes(), Shard: uint32(e.Shard), Epoch: uint64(e.Epoch), Tombstone: e.Tombstone, Length: e.Length, Stored: e.Stored,
			Undecided: e.Undecided || e.Trashed,
		}
	}
	return reply, nil
}
