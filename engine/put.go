package engine

import (
	"context"

	"dfsd/dfs"
)

// PutRequest stores a block.
type PutRequest struct {
	ID    dfs.BlockID
	Shard uint8
	Epoch dfs.Epoch // under which the writer, or with Refill the source, has it
	Info  dfs.BlockInfo
	Hint  dfs.Hint

	// Payload are the stored bytes of all chunks, end to end. They are not to
	// be changed before Put returns.
	Payload []byte

	// Refill marks a block that comes from another member: it is stored unless
	// it is present or tombstoned, its epoch is kept and not checked.
	Refill bool

	// Decided says that the source of a refill knows the block to be referenced.
	// A client's block is undecided whatever it says.
	Decided bool
}

// DeleteRequest deletes a block.
type DeleteRequest struct {
	ID     dfs.BlockID
	Shard  uint8
	Epoch  dfs.Epoch // stamped on the tombstone
	Refill bool      // the tombstone comes from another member: its epoch is not checked
}

// Put stores a block and returns when it is on the disk. Putting the same
// bytes again succeeds, once the earlier record is on the disk. The error is
// Invalid or Corrupt when the payload does not match its description, Stale
// when the epoch is superseded or the block was deleted, Exist when the block
// has other bytes, TooLarge when no segment can hold it, NoSpace when the
// store is full, Deadline when ctx ended while the queue was full, and
// Unavailable when the store has failed or is closed; after the last of these
// the block may or may not be stored. A put that has its place in the queue is
// not cut short by ctx.
func (s *Store) Put(ctx context.Context, req PutRequest) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.exit()
	if err := checkPut(&req); err != nil {
		return err
	}
	r := record{kind: kindPut, epoch: req.Epoch, id: req.ID, shard: req.Shard, info: req.Info, stored: uint32(len(req.Payload)), hint: req.Hint}
	if req.Refill {
		r.flags = flagRefill
		if req.Decided {
			r.flags |= flagDecided
		}
	}
	if roomFor(r.length()) > s.opts.SegmentSize-s.opts.SegmentSize/tombstoneRoom {
		return dfs.Errorf(dfs.TooLarge, "write block", "%s: %d bytes do not fit a segment of %d", req.ID, len(req.Payload), s.opts.SegmentSize)
	}
	if s.isReadOnly() {
		return dfs.Errorf(dfs.NoSpace, "write block", "%s: no space left above the reserve", s.opts.Dir)
	}
	return s.submit(ctx, newOp(r, req.Payload), s.admitPut)
}

// Delete leaves a tombstone, whether or not the block is here, and returns
// when it is on the disk. No later put brings the block back. A newer epoch
// stamps an existing tombstone anew. Errors are those of Put.
func (s *Store) Delete(ctx context.Context, req DeleteRequest) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.exit()
	if err := checkID(req.ID, req.Shard); err != nil {
		return err
	}
	r := record{kind: kindTombstone, epoch: req.Epoch, id: req.ID, shard: req.Shard}
	if req.Refill {
		r.flags = flagRefill
	}
	return s.submit(ctx, newOp(r, nil), s.admitDelete)
}

// submit takes room in the queue, admits the operation and waits for its end.
func (s *Store) submit(ctx context.Context, o *op, admit func(*pg, *op) (*op, error)) error {
	if err := s.failure(); err != nil {
		return err
	}
	p := s.pg(o.rec.id.PG, o.rec.flags&flagRefill != 0)
	if p == nil {
		return dfs.Errorf(dfs.Stale, "write block", "%s is not known to this store", o.rec.id.PG)
	}
	if err := s.queue.reserve(ctx, o); err != nil {
		return err
	}
	follow, err := admit(p, o)
	if follow != o {
		s.queue.unreserve(o)
	}
	if err != nil || follow == nil {
		return err
	}
	if follow == o {
		s.writer.lead()
	}
	return follow.wait()
}

func checkID(id dfs.BlockID, shard uint8) error {
	if id.PG == 0 || id.Session > dfs.MaxSessionID || id.Counter > dfs.MaxBlockCounter || shard >= dfs.MaxShards {
		return dfs.Errorf(dfs.Invalid, "write block", "block ID %s, shard %d", id, shard)
	}
	return nil
}

func checkPut(req *PutRequest) error {
	if err := checkID(req.ID, req.Shard); err != nil {
		return err
	}
	if err := req.Info.Validate(); err != nil {
		return dfs.Wrap("write block", req.ID.String(), err)
	}
	if req.Info.StoredLen() != len(req.Payload) {
		return dfs.Errorf(dfs.Invalid, "write block", "%s: %d bytes for chunks of %d", req.ID, len(req.Payload), req.Info.StoredLen())
	}
	return checkChunks(req.ID, req.Shard, 0, req.Info.Chunks, req.Payload)
}

// checkChunks verifies stored bytes against their chunks, the first of which
// has number first.
func checkChunks(id dfs.BlockID, shard uint8, first int, chunks []dfs.Chunk, stored []byte) error {
	for i, c := range chunks {
		if dfs.ChunkSum(id, shard, first+i, stored[:c.Len]) != c.Sum {
			return dfs.Errorf(dfs.Corrupt, "check block", "%s: checksum of chunk %d is wrong", id, first+i)
		}
		stored = stored[c.Len:]
	}
	return nil
}

// pg returns a placement group's gate; nil when it is not known and make is
// not set.
func (s *Store) pg(id dfs.PGID, create bool) *pg {
	s.pgMu.RLock()
	p := s.pgs[id]
	s.pgMu.RUnlock()
	if p != nil || !create {
		return p
	}
	s.pgMu.Lock()
	defer s.pgMu.Unlock()
	if s.pgs[id] == nil {
		s.pgs[id] = newPG()
	}
	return s.pgs[id]
}

// admitPut decides under the PG's lock what becomes of a put: it is queued
// (and returned), or another operation answers for it, or it is answered now.
func (s *Store) admitPut(p *pg, o *op) (*op, error) {
	r, refill := &o.rec, o.rec.flags&flagRefill != 0
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.shutLocked(r.id.PG); err != nil {
		return nil, err
	}
	if !refill && !s.opts.Hooks.SkipEpochCheck {
		if err := p.admitsLocked(r.epoch); err != nil {
			return nil, err
		}
	}
	if before := p.latest[o.key]; before != nil {
		switch {
		case before.rec.kind == kindPut && infoDigest(&before.rec.info) == infoDigest(&r.info):
			return before, nil
		case before.rec.kind == kindPut:
			return nil, s.conflict(r.id)
		case refill:
			return before, nil
		}
		return nil, wasDeleted(r.id)
	}
	var w *row
	if !s.newest.admit(r.id) {
		var err error
		if w, err = s.index.get([]byte(o.key)); err != nil {
			return nil, err
		}
	}
	switch {
	case w == nil:
		o.fresh = true
	case w.kind == kindTombstone && refill:
		return nil, nil
	case w.kind == kindTombstone:
		return nil, wasDeleted(r.id)
	case !w.sameBytes(&r.info):
		return nil, s.conflict(r.id)
	case w.flags&(rowLost|rowDamaged) == 0 && !s.damage.has(o.key) && !s.fileMissing(w):
		return nil, nil
	default:
		// The same bytes in place of a copy that is known to be bad. The block
		// keeps the epoch it was first stored under.
		r.epoch, o.repair = w.epoch, true
		if w.flags&(rowUndecided|rowTrashed) == 0 {
			r.flags |= flagDecided
		}
	}
	p.startLocked(o)
	s.queue.push(o)
	return o, nil
}

func wasDeleted(id dfs.BlockID) error {
	return dfs.Errorf(dfs.Stale, "write block", "%s was deleted", id)
}

func (s *Store) conflict(id dfs.BlockID) error {
	s.counters.conflicts.Add(1)
	s.log.Error("a block was put again with other bytes", "block", id)
	return dfs.Errorf(dfs.Exist, "write block", "%s is stored with other bytes", id)
}

// admitDelete is admitPut for a delete.
func (s *Store) admitDelete(p *pg, o *op) (*op, error) {
	r := &o.rec
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.shutLocked(r.id.PG); err != nil {
		return nil, err
	}
	if r.flags&flagRefill == 0 && !s.opts.Hooks.SkipEpochCheck {
		if err := p.admitsLocked(r.epoch); err != nil {
			return nil, err
		}
	}
	if before := p.latest[o.key]; before != nil {
		if before.rec.kind == kindTombstone && before.rec.epoch >= r.epoch {
			return before, nil
		}
	} else if s.newest.admit(r.id) {
		// There is nothing to look for.
	} else if w, err := s.index.get([]byte(o.key)); err != nil {
		return nil, err
	} else if w != nil && w.kind == kindTombstone && w.epoch >= r.epoch {
		return nil, nil
	}
	p.startLocked(o)
	s.queue.push(o)
	return o, nil
}
