package storage

import (
	"context"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/transport/wire"
)

// Put implements the block service: it answers when the block is durable.
func (b *blockServer) Put(stream wire.DRPCBlock_PutStream) error {
	s := (*Service)(b)
	ctx, done, err := s.begin(stream.Context())
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, receiveLimit)
	defer cancel()
	if err := s.put(ctx, stream); err != nil {
		return err
	}
	s.count.puts.Add(1)
	return stream.SendAndClose(&wire.PutReply{})
}

func (s *Service) put(ctx context.Context, stream wire.DRPCBlock_PutStream) error {
	// Receiving ends with ctx, too: a stream that is closed stops waiting.
	received := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer received()
	frame := s.buffers.frame()
	defer s.buffers.free(frame)
	if err := recvFrame(stream, frame); err != nil {
		return err
	}
	st, req, err := s.putRequest(frame.Head)
	if err != nil {
		return err
	}
	if err := st.mayWrite(ctx, req.ID.PG, req.Epoch); err != nil {
		return err
	}
	size := req.Info.StoredLen()
	if err := s.reserve(ctx, size); err != nil {
		return err
	}
	defer s.memory.Release(int64(size))
	req.Payload = s.buffers.get(size)
	defer s.buffers.put(req.Payload)
	if err := receivePayload(stream, frame.Data, req.Payload); err != nil {
		return err
	}
	if !received() {
		return &dfs.Error{Kind: dfs.Deadline, Op: "receive block", Object: req.ID.String(), Err: ctx.Err()}
	}
	err = st.writing.do(func() error { return st.Put(ctx, req) })
	if dfs.KindOf(err) == dfs.Exist {
		st.log().Error("a block was put again with other bytes", "pg", req.ID.PG, "block", req.ID, "cause", err)
	}
	return err
}

// putRequest reads a put's head and refuses what no honest writer sends.
func (s *Service) putRequest(head []byte) (*store, engine.PutRequest, error) {
	var h wire.PutHead
	if len(head) == 0 || proto.Unmarshal(head, &h) != nil {
		return nil, engine.PutRequest{}, dfs.Errorf(dfs.Invalid, "put", "the first frame has no head")
	}
	id, err := blockID(h.Id, h.Shard)
	if err != nil {
		return nil, engine.PutRequest{}, err
	}
	if h.Epoch == 0 {
		return nil, engine.PutRequest{}, dfs.Errorf(dfs.Invalid, "put", "block %v without an epoch", id)
	}
	info, err := h.Desc.ToDFS()
	if err != nil {
		return nil, engine.PutRequest{}, err
	}
	st, err := s.store(h.Store)
	if err != nil {
		return nil, engine.PutRequest{}, err
	}
	return st, engine.PutRequest{ID: id, Epoch: dfs.Epoch(h.Epoch), Info: info, Hint: h.Hint.ToDFS()}, nil
}

// blockID reads the name of a block. Placement groups are replicated: each
// member holds the whole block, shard 0.
func blockID(raw []byte, shard uint32) (dfs.BlockID, error) {
	id, err := dfs.ParseBlockID(raw)
	switch {
	case err != nil:
		return id, err
	case id.PG == 0 || id.Ino == 0:
		return id, dfs.Errorf(dfs.Invalid, "read block ID", "%v names no placement group or no inode", id)
	case shard != 0:
		return id, dfs.Errorf(dfs.Unsupported, "read block ID", "shard %d of block %v: only whole blocks are stored", shard, id)
	}
	return id, nil
}

// mayWrite reports whether a request under an epoch may change blocks of a PG
// here: the epoch is the newest that the PG has in the applied map, and this
// store is in the set that was proposed or activated under it. The engine
// checks the epoch again. Errors: Stale, Unavailable, Unsupported.
func (st *store) mayWrite(ctx context.Context, id dfs.PGID, epoch dfs.Epoch) error {
	m, err := st.judged(ctx, epoch)
	if err != nil {
		return err
	}
	pg := m.PG(id)
	switch {
	case st.s.opts.Hooks.SkipEpochCheck:
		return nil
	case pg == nil:
		return dfs.Errorf(dfs.Stale, "check epoch", "%v is not in the map of epoch %d", id, m.Epoch)
	case pg.Class.Erasure():
		return dfs.Errorf(dfs.Unsupported, "check epoch", "%v is of class %v: only whole blocks are stored", id, pg.Class)
	case epoch != pg.Newest():
		return dfs.Errorf(dfs.Stale, "check epoch", "%v is at epoch %d, the request at %d", id, pg.Newest(), epoch)
	}
	set := pg.Active
	if set.Epoch != epoch {
		set = pg.Proposed
	}
	if !set.Has(st.ID()) {
		return dfs.Errorf(dfs.Stale, "check epoch", "%v does not act for %v at epoch %d", st.ID(), id, epoch)
	}
	return nil
}

// reserve takes room for a payload; s.memory.Release gives it back. Error: Busy
// when none comes free in time.
func (s *Service) reserve(ctx context.Context, size int) error {
	wctx, cancel := context.WithTimeout(ctx, queueWait)
	defer cancel()
	if s.memory.Acquire(wctx, int64(size)) == nil {
		return nil
	}
	s.count.busy.Add(1)
	return dfs.Errorf(dfs.Busy, "receive block", "%d bytes of puts are under way already", s.opts.PutMemory)
}
