package engine

import (
	"context"
	"encoding/binary"
	"time"

	"dfsd/dfs"
)

// The trash holds the blocks that metadata does not name and never will, for as
// long as somebody may still find out that this is wrong.

// trashKey orders blocks by the time at which they were thrown away
// (milliseconds since 1970).
func trashKey(at int64, id dfs.BlockID, shard uint8) []byte {
	k := append(make([]byte, 0, blockKeyLen+8), trashPrefix)
	return append(id.Append(binary.BigEndian.AppendUint64(k, uint64(at))), shard)
}

func parseTrash(k, v []byte) (Entry, error) {
	if len(k) != blockKeyLen+8 || len(v) != 0 {
		return Entry{}, dfs.Errorf(dfs.Corrupt, "read index", "trash row of %d and %d bytes", len(k), len(v))
	}
	id, err := dfs.ParseBlockID(k[9 : 9+dfs.BlockIDLen])
	return Entry{ID: id, Shard: k[len(k)-1], Trashed: true, Since: time.UnixMilli(int64(binary.BigEndian.Uint64(k[1:])))}, err
}

// Trash throws undecided blocks away: metadata does not name them and never
// will. They stay readable until EmptyTrash. Blocks that are not here, decided
// or thrown away already stay as they are.
func (s *Store) Trash(keys []Key) error {
	return s.become(keys, func(state uint8) uint8 {
		if state == rowUndecided {
			return rowTrashed
		}
		return state
	})
}

// Restore takes blocks out of the trash: they are undecided again.
func (s *Store) Restore(keys []Key) error {
	return s.become(keys, func(state uint8) uint8 {
		if state == rowTrashed {
			return rowUndecided
		}
		return state
	})
}

// Trashed lists the blocks in the trash, those that lie there for longest first,
// with ID, Shard and Since, in pages like Undecided.
func (s *Store) Trashed(cursor []byte, limit int) (entries []Entry, next []byte, err error) {
	return s.page([]byte{trashPrefix}, []byte{trashPrefix + 1}, cursor, limit, parseTrash)
}

// EmptyTrash deletes what was thrown away before a time, and returns how many
// blocks that were. Each leaves a tombstone with the epoch of its block. Errors
// are those of Delete; what is left then is deleted by the next call.
func (s *Store) EmptyTrash(ctx context.Context, before time.Time) (deleted int, err error) {
	var cursor []byte
	for {
		page, next, err := s.Trashed(cursor, setBatch)
		if err != nil {
			return deleted, err
		}
		due := 0
		for due < len(page) && page[due].Since.Before(before) {
			due++
		}
		n, err := s.deleteTrash(ctx, page[:due])
		if deleted += n; err != nil || next == nil || due < len(page) {
			return deleted, err
		}
		cursor = next
	}
}

// deleteTrash deletes blocks that are still in the trash, all in as few batches
// as they fit.
func (s *Store) deleteTrash(ctx context.Context, list []Entry) (deleted int, err error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.exit()
	if err := s.failure(); err != nil {
		return 0, err
	}
	var ops []*op
	for _, e := range list {
		o := newOp(record{kind: kindTombstone, id: e.ID, shard: e.Shard}, nil)
		if err = s.queue.reserve(ctx, o); err != nil {
			break
		}
		admitted, aerr := s.admitTrash(o)
		if admitted {
			s.queue.signal() // each: the room of all may be more than the queue has
			ops = append(ops, o)
			continue
		}
		s.queue.unreserve(o)
		if err = aerr; err != nil {
			break
		}
	}
	for _, o := range ops {
		switch werr := o.wait(); {
		case werr == nil:
			deleted++
		case err == nil:
			err = werr
		}
	}
	return deleted, err
}

// admitTrash queues the tombstone of a block when it is still in the trash and
// nothing else is done to it. No client writes it, so no epoch is checked.
func (s *Store) admitTrash(o *op) (bool, error) {
	p := s.pg(o.rec.id.PG, true)
	p.mu.Lock()
	defer p.mu.Unlock()
	w, err := s.index.get([]byte(o.key))
	if err != nil || p.forgetting || w == nil || w.flags&rowTrashed == 0 || p.latest[o.key] != nil {
		return false, err
	}
	o.rec.epoch = w.epoch
	p.startLocked(o)
	s.queue.push(o)
	return true, nil
}
