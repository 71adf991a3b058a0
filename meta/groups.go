package meta

import (
	"cmp"
	"context"
	"slices"
	"time"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

const (
	trimRows   = 512 // history rows a trim entry drops at the most: bounds its apply
	deleteRows = 512 // blocks of the delete queue in one round
	intentAge  = 5 * time.Second
	intentPage = 64 // intents in one round
)

func (s *Service) step(g dfs.GroupID, what string, err error) {
	if err != nil && s.ctx.Err() == nil && dfs.KindOf(err) != dfs.NotLeader {
		s.log.Debug("background step", "group", uint16(g), "step", what, "cause", err)
	}
}

// trim drops history that nobody may ask for any more, and returns when there
// will be more of it.
func (s *Service) trim(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) (next time.Time, err error) {
	before := uint64(s.opts.Now().Add(-s.opts.HistoryKeep).UnixMilli()) << 16
	for {
		var oldest, bound dfs.Version
		err := h.ReadLocal(g, func(r raftgroup.Reader) (err error) {
			if bound, err = namespace.HistoryBound(r); err != nil {
				return err
			}
			oldest, err = namespace.HistoryOldest(r)
			return err
		})
		if err != nil || oldest == 0 {
			return time.Time{}, err
		}
		if uint64(oldest) >= before {
			return s.due(stamped(oldest).Add(s.opts.HistoryKeep)), nil
		}
		if oldest >= bound { // a transaction is under way
			return time.Now().Add(groupTick), nil
		}
		res, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Trim{Trim: &wire.TrimOp{Before: before, Limit: trimRows}}})
		if err != nil {
			return time.Time{}, err
		}
		if err := res.ToError("trim", g.String()); err != nil {
			return time.Time{}, err
		}
	}
}

// due is when the wall clock of this node, by which versions are made, will show t.
func (s *Service) due(t time.Time) time.Time { return time.Now().Add(t.Sub(s.opts.Now())) }

// stamped is the time of a version.
func stamped(v dfs.Version) time.Time { return time.UnixMilli(int64(v >> 16)) }

// drainDeletes has the stores delete what the group has released, and returns when
// to go on with what they did not all acknowledge.
func (s *Service) drainDeletes(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) (next time.Time, err error) {
	var after []byte
	for {
		var blocks []dfs.BlockID
		err := h.ReadLocal(g, func(r raftgroup.Reader) (err error) {
			blocks, after, err = namespace.DeleteQueue(r, after, deleteRows)
			return err
		})
		if err != nil || len(blocks) == 0 {
			return next, err
		}
		if held, err := s.heldNow(ctx, h, g); held || err != nil {
			return next, err
		}
		op := &wire.DeletedOp{}
		for _, id := range s.deleteBlocks(ctx, blocks) {
			op.Blocks = append(op.Blocks, id.Bytes())
		}
		if len(op.Blocks) > 0 {
			if _, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Deleted{Deleted: op}}); err != nil {
				return next, err
			}
		}
		if len(op.Blocks) < len(blocks) {
			next = time.Now().Add(groupTick)
		}
		if len(after) == 0 {
			return next, nil
		}
	}
}

// deleteBlocks asks every acting member for the deletion and returns the
// blocks that all of them acknowledged at one epoch, that of one map.
func (s *Service) deleteBlocks(ctx context.Context, blocks []dfs.BlockID) []dfs.BlockID {
	m := s.maps.current()
	perStore := map[dfs.StoreID][]*wire.DeleteItem{}
	want := map[dfs.BlockID]int{}
	for _, id := range blocks {
		p := m.PG(id.PG)
		if p == nil || !p.Writable() {
			continue
		}
		want[id] = p.Active.Size()
		for shard, st := range p.Active.Stores {
			if st == 0 {
				continue
			}
			item := &wire.DeleteItem{Id: id.Bytes(), Epoch: uint64(p.Active.Epoch)}
			if p.Class.Erasure() {
				item.Shard = uint32(shard)
			}
			perStore[st] = append(perStore[st], item)
		}
	}
	for st, items := range perStore {
		sctx, cancel := context.WithTimeout(ctx, metas.AttemptTimeout)
		reply, err := wire.NewDRPCBlockClient(s.opts.Dial(m.StoreAddr(st))).Delete(sctx, &wire.DeleteRequest{Store: uint32(st), Items: items})
		cancel()
		if err != nil || len(reply.Kinds) != len(items) {
			continue
		}
		for i, item := range items {
			if id, err := dfs.ParseBlockID(item.Id); err == nil && reply.Kinds[i] == 0 {
				want[id]--
			}
		}
	}
	var done []dfs.BlockID
	for _, id := range blocks {
		if left, asked := want[id]; asked && left == 0 {
			done = append(done, id)
		}
	}
	return done
}

// resolveIntents ends what a mkdir or rmdir over a group boundary has left
// behind when its session is gone. Of many intents each round takes as many as it
// may, and the next one goes on after them. It returns when to go on.
func (s *Service) resolveIntents(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, metas.AttemptTimeout)
	defer cancel()
	past := s.agenda.intentsPast(g)
	var list []namespace.Intent
	err := h.ReadLocal(g, func(r raftgroup.Reader) (err error) {
		list, err = namespace.Intents(r, past, intentPage)
		return err
	})
	if err != nil || len(list) == 0 && past == 0 {
		return time.Time{}, err
	}
	next, err := eachIntent(ctx, list, func(in namespace.Intent) error { return s.resolveIntent(ctx, h, g, in) })
	s.agenda.setIntentsPast(g, next)
	if past != 0 || next != 0 {
		return time.Now(), err
	}
	return s.due(stamped(oldestIntent(list)).Add(intentAge)), err
}

// oldestIntent is the version of the oldest intent of a page, which has one.
func oldestIntent(page []namespace.Intent) dfs.Version {
	return slices.MinFunc(page, func(a, b namespace.Intent) int { return cmp.Compare(a.Version, b.Version) }).Version
}

// eachIntent resolves the intents of a page until ctx ends. One that cannot be
// resolved keeps no other waiting: the first error is returned in the end, and
// the next page begins past the last one tried, 0 from the beginning.
func eachIntent(ctx context.Context, page []namespace.Intent, resolve func(namespace.Intent) error) (past dfs.Ino, first error) {
	for i, in := range page {
		if i > 0 && ctx.Err() != nil {
			return past, first
		}
		if err := resolve(in); first == nil {
			first = err
		}
		past = in.Child
	}
	if len(page) < intentPage {
		past = 0
	}
	return past, first
}

// resolveIntent ends an intent as the parent's group says: its log then holds
// the session's fence, so its word on whether the child is linked is for good.
func (s *Service) resolveIntent(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, in namespace.Intent) error {
	young := uint64(s.opts.Now().Add(-intentAge).UnixMilli()) << 16
	if uint64(in.Version) > young {
		return nil
	}
	var res *wire.ChildResult
	parent := in.Parent.Group()
	q := &wire.Query{Query: &wire.Query_Child{Child: &wire.ChildQuery{Child: uint64(in.Child), Session: uint64(in.Session), Parent: uint64(in.Parent)}}}
	err := s.opts.Metas.Call(ctx, parent, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		reply, err := c.Read(ctx, &wire.ReadRequest{Group: uint32(parent), Query: q})
		if err == nil {
			res = reply.Result.GetChild()
		}
		return err
	})
	if err != nil || res == nil || !res.Fenced {
		return err
	}
	out, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Resolve{Resolve: &wire.ResolveOp{
		Child: uint64(in.Child), Linked: res.Linked, Intent: uint64(in.Version),
	}}})
	if err != nil {
		return err
	}
	s.log.Info("ended the intent of a lost session", "group", uint16(g), "directory", in.Child, "linked", res.Linked, "answer", out.Kind)
	return nil
}
