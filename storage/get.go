package storage

import (
	"context"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/transport/wire"
)

// Get implements the block service.
func (b *blockServer) Get(req *wire.GetRequest, stream wire.DRPCBlock_GetStream) error {
	s := (*Service)(b)
	ctx, done, err := s.begin(stream.Context())
	if err != nil {
		return err
	}
	defer done()
	id, err := blockID(req.Id, req.Shard)
	if err != nil {
		return err
	}
	st, err := s.store(req.Store)
	if err != nil {
		return err
	}
	if err := s.reserveRead(ctx); err != nil {
		return err
	}
	defer s.reads.Release(1)
	s.count.gets.Add(1)
	return st.send(ctx, id, req, stream)
}

func (s *Service) reserveRead(ctx context.Context) error {
	wctx, cancel := context.WithTimeout(ctx, queueWait)
	defer cancel()
	if s.reads.Acquire(wctx, 1) == nil {
		return nil
	}
	s.count.busy.Add(1)
	return dfs.Errorf(dfs.Busy, "read block", "%d reads are under way already", maxReads)
}

// send streams the chunks that cover the range asked for, a window at a time.
func (st *store) send(ctx context.Context, id dfs.BlockID, req *wire.GetRequest, stream wire.DRPCBlock_GetStream) error {
	offset, end := uint64(req.Offset), uint64(dfs.MaxBlockSize)
	if req.Length > 0 {
		end = min(end, offset+uint64(req.Length))
	}
	if offset >= dfs.MaxBlockSize {
		return dfs.Errorf(dfs.Invalid, "read block", "offset %d: a block has at most %d bytes", offset, dfs.MaxBlockSize)
	}
	for first := true; first || offset < end; first = false {
		// A window ends where a chunk does.
		stop := min(end, offset/dfs.ChunkSize*dfs.ChunkSize+readWindow)
		r, err := st.read(ctx, id, uint32(offset), uint32(stop-offset))
		if err != nil {
			return err
		}
		if first && r.Trashed && !req.Pull {
			st.rescue(id)
		}
		end, offset = min(end, uint64(r.Info.Length)), stop
		err = sendRead(r, first, stream)
		r.Release()
		if err != nil {
			return err
		}
	}
	return nil
}

// read reads from the engine, and says NotExist only of what cannot be here.
func (st *store) read(ctx context.Context, id dfs.BlockID, offset, length uint32) (*engine.Read, error) {
	r, err := st.get(ctx, id, offset, length)
	if dfs.KindOf(err) == dfs.NotExist {
		if !st.knowsAll(id.PG) {
			return nil, dfs.Errorf(dfs.Unknowable, "read block", "%v is not here, and store %v does not hold all of %v", id, st.ID(), id.PG)
		}
		// It may have become complete since the engine was asked.
		r, err = st.get(ctx, id, offset, length)
	}
	if dfs.KindOf(err) == dfs.Corrupt || err == nil && r.HeaderLost {
		st.s.count.corrupt.Add(1) // the engine has logged it
		st.mends.mend(id)
	}
	return r, err
}

func (st *store) get(ctx context.Context, id dfs.BlockID, offset, length uint32) (r *engine.Read, err error) {
	err = st.reading.do(func() error {
		r, err = st.Get(ctx, id, 0, offset, length)
		return err
	})
	return r, err
}

// knowsAll reports whether this store holds every acknowledged block of a PG:
// the newest map says so, and it is about this start of the store.
func (st *store) knowsAll(id dfs.PGID) bool {
	m, _ := st.s.maps.current.get()
	if !st.inMap(m) || st.DamagedUnnamed() {
		return false
	}
	pg := m.PG(id)
	if pg == nil || !pg.IsComplete(st.ID()) {
		return false
	}
	return pg.Member(st.ID()).Mark == st.mark()
}

// sendRead sends what was read in frames; the first of a block has the head.
func sendRead(r *engine.Read, withHead bool, stream wire.DRPCBlock_GetStream) error {
	var frame wire.BlockFrame
	if withHead {
		head, err := proto.Marshal(&wire.GetHead{
			Desc: wire.FromBlockInfo(&r.Info), First: uint32(r.First), Epoch: uint64(r.Epoch), Hint: wire.FromHint(r.Hint),
			Undecided: r.Undecided || r.Trashed,
		})
		if err != nil {
			return err
		}
		frame.Head = head
	}
	for data := r.Data; len(data) > 0 || len(frame.Head) > 0; frame.Head = nil {
		frame.Data = data[:min(len(data), dfs.FrameSize)]
		data = data[len(frame.Data):]
		if err := stream.Send(&frame); err != nil {
			return err
		}
	}
	return nil
}
