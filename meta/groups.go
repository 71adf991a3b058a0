package meta

import (
	"context"
	"time"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

const (
	groupTick = 250 * time.Millisecond

	trimRows   = 512 // history rows a trim entry drops at the most: bounds its apply
	deleteRows = 512 // blocks of the delete queue in one round
	intentAge  = 5 * time.Second
	intentPage = 64 // intents in one round
)

// groupLoop does, on the leader of one group, what the group needs in the
// background. Each step is idempotent and starts from applied state.
func (s *Service) groupLoop(g dfs.GroupID) {
	var intents dfs.Ino // the child past which the next round goes on
	for s.sleep(groupTick) {
		h := s.host.Load()
		if s.maps.current().Group(g) == nil {
			return // abandoned: its number is never used again
		}
		if _, leads := s.leads(g); !leads || h == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, 4*metas.AttemptTimeout)
		s.step(g, "membership", s.tendMembers(ctx, h, g))
		if g != dfs.ControlGroup && !ready(s.maps.current(), g) {
			s.step(g, "forming", s.formGroup(ctx, h, g))
			cancel()
			continue
		}
		if g != dfs.ControlGroup && s.mutable() {
			s.step(g, "trim", s.trim(ctx, h, g))
			s.step(g, "delete queue", s.drainDeletes(ctx, h, g))
			past, err := s.resolveIntents(ctx, h, g, intents)
			intents = past
			s.step(g, "intents", err)
		}
		cancel()
	}
}

// ready reports whether a map calls a group ready.
func ready(m *dfs.Map, g dfs.GroupID) bool {
	row := m.Group(g)
	return row != nil && row.Ready()
}

func (s *Service) step(g dfs.GroupID, what string, err error) {
	if err != nil && s.ctx.Err() == nil && dfs.KindOf(err) != dfs.NotLeader {
		s.log.Debug("background step", "group", uint16(g), "step", what, "cause", err)
	}
}

// trim drops history that nobody may ask for any more.
func (s *Service) trim(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) error {
	before := uint64(time.Now().Add(-s.opts.HistoryKeep).UnixMilli()) << 16
	for {
		var oldest dfs.Version
		err := h.ReadLocal(g, func(r raftgroup.Reader) (err error) {
			oldest, err = namespace.HistoryOldest(r)
			return err
		})
		if err != nil || oldest == 0 || uint64(oldest) >= before {
			return err
		}
		res, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Trim{Trim: &wire.TrimOp{Before: before, Limit: trimRows}}})
		if err != nil {
			return err
		}
		if err := res.ToError("trim", g.String()); err != nil {
			return err
		}
	}
}

// drainDeletes has the stores delete what the group has released.
func (s *Service) drainDeletes(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) error {
	var after []byte
	for {
		var blocks []dfs.BlockID
		err := h.ReadLocal(g, func(r raftgroup.Reader) (err error) {
			blocks, after, err = namespace.DeleteQueue(r, after, deleteRows)
			return err
		})
		if err != nil || len(blocks) == 0 {
			return err
		}
		op := &wire.DeletedOp{}
		for _, id := range s.deleteBlocks(ctx, blocks) {
			op.Blocks = append(op.Blocks, id.Bytes())
		}
		if len(op.Blocks) > 0 {
			if _, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_Deleted{Deleted: op}}); err != nil {
				return err
			}
		}
		if len(after) == 0 {
			return nil
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
// behind when its session is gone. It goes through the intents past a child, as
// many as one round may take, and returns the child past which to go on.
func (s *Service) resolveIntents(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, past dfs.Ino) (dfs.Ino, error) {
	ctx, cancel := context.WithTimeout(ctx, metas.AttemptTimeout)
	defer cancel()
	var list []namespace.Intent
	err := h.ReadLocal(g, func(r raftgroup.Reader) (err error) {
		list, err = namespace.Intents(r, past, intentPage)
		return err
	})
	if err != nil {
		return past, err
	}
	return eachIntent(ctx, list, func(in namespace.Intent) error { return s.resolveIntent(ctx, h, g, in) })
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
	young := uint64(time.Now().Add(-intentAge).UnixMilli()) << 16
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
