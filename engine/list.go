package engine

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2"
)

// Entry is what the index says of a block or of its tombstone.
type Entry struct {
	ID        dfs.BlockID
	Shard     uint8
	Epoch     dfs.Epoch // of the put, or of the delete
	Tombstone bool
	Lost      bool   // the record is known to be damaged
	Undecided bool   // nobody has said whether metadata names the block
	Trashed   bool   // metadata does not name the block: it is to be deleted
	Length    uint32 // logical bytes
	Stored    uint32 // payload bytes

	// Digest is equal for equal stored bytes: a checksum over length, codec
	// and chunk checksums. Set by Inventory and Stat.
	Digest uint32

	// Since is when the block became undecided or was thrown away. Set by
	// Undecided and Trashed.
	Since time.Time
}

// Stat returns what the index says of a block: NotExist when it never heard of
// it, an Entry with Tombstone when it was deleted.
func (s *Store) Stat(id dfs.BlockID, shard uint8) (Entry, error) {
	if err := s.enter(); err != nil {
		return Entry{}, err
	}
	defer s.exit()
	if err := s.openPG(id.PG); err != nil {
		return Entry{}, err
	}
	var last *row
	for {
		w, err := s.index.get(blockKey(id, shard))
		if err != nil {
			return Entry{}, err
		}
		if w == nil {
			return Entry{}, &dfs.Error{Kind: dfs.NotExist, Op: "stat block", Object: id.String()}
		}
		e := w.entry(id, shard)
		if !s.fileMissing(w) {
			return e, nil
		}
		if last != nil && last.at(w) {
			e.Lost = true
			return e, nil
		}
		last = w // its segment may have been given up since the index was asked
	}
}

// fileMissing reports whether the segment of a block's row has no file. A
// tombstone is whole without its record.
func (s *Store) fileMissing(w *row) bool {
	return w.kind == kindPut && s.segs.get(w.segment) == nil
}

func (w *row) entry(id dfs.BlockID, shard uint8) Entry {
	return Entry{
		ID: id, Shard: shard, Epoch: w.epoch, Tombstone: w.kind == kindTombstone, Lost: w.flags&rowLost != 0,
		Undecided: w.flags&rowUndecided != 0, Trashed: w.flags&rowTrashed != 0,
		Length: w.info.Length, Stored: w.stored, Digest: w.digest,
	}
}

// ScanEpochs lists the blocks and tombstones of a PG with after < epoch <
// before, in the order of (epoch, block, shard), at most limit of them. It
// goes on behind a cursor that an earlier call returned; a nil next means that
// there is no more. Only what is durable is listed.
func (s *Store) ScanEpochs(pg dfs.PGID, after, before dfs.Epoch, cursor []byte, limit int) (entries []Entry, next []byte, err error) {
	if before == 0 || after >= before-1 {
		return nil, nil, nil
	}
	if err := s.openPG(pg); err != nil {
		return nil, nil, err
	}
	lower, _ := pgBounds(epochPrefix, pg)
	upper := binary.BigEndian.AppendUint64(bytes.Clone(lower), uint64(before))
	lower = binary.BigEndian.AppendUint64(lower, uint64(after)+1)
	return s.page(lower, upper, cursor, limit, func(k, v []byte) (Entry, error) {
		id, shard, epoch, err := parseEpochKey(k)
		if err == nil && len(v) != 12 {
			err = dfs.Errorf(dfs.Corrupt, "read index", "epoch row of %d bytes", len(v))
		}
		if err != nil {
			return Entry{}, err
		}
		return Entry{
			ID: id, Shard: shard, Epoch: epoch, Tombstone: recordKind(v[0]) == kindTombstone, Lost: v[1]&rowLost != 0,
			Undecided: v[1]&rowUndecided != 0, Trashed: v[1]&rowTrashed != 0,
			Length: binary.BigEndian.Uint32(v[4:]), Stored: binary.BigEndian.Uint32(v[8:]),
		}, nil
	})
}

// Inventory lists all blocks and tombstones of a PG in the order of (block,
// shard), in pages like ScanEpochs.
func (s *Store) Inventory(pg dfs.PGID, cursor []byte, limit int) (entries []Entry, next []byte, err error) {
	if err := s.openPG(pg); err != nil {
		return nil, nil, err
	}
	lower, upper := pgBounds(blockPrefix, pg)
	return s.page(lower, upper, cursor, limit, func(k, v []byte) (Entry, error) {
		id, shard, err := parseBlockKey(k)
		if err != nil {
			return Entry{}, err
		}
		w, err := decodeRow(v)
		if err != nil {
			return Entry{}, err
		}
		return w.entry(id, shard), nil
	})
}

// page reads at most limit rows of [lower, upper) behind the cursor.
func (s *Store) page(lower, upper, cursor []byte, limit int, parse func(k, v []byte) (Entry, error)) (entries []Entry, next []byte, err error) {
	if err := s.enter(); err != nil {
		return nil, nil, err
	}
	defer s.exit()
	if limit < 1 {
		return nil, nil, dfs.Errorf(dfs.Invalid, "list blocks", "limit %d", limit)
	}
	limit = min(limit, maxPage)
	if cursor != nil {
		if bytes.Compare(cursor, lower) < 0 || bytes.Compare(cursor, upper) >= 0 {
			return nil, nil, dfs.Errorf(dfs.Invalid, "list blocks", "the cursor is not of this list")
		}
		lower = append(bytes.Clone(cursor), 0)
	}
	it, err := s.index.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = cmp.Or(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if len(entries) == limit {
			return entries, next, nil
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, nil, &dfs.Error{Kind: dfs.Unavailable, Op: "read index", Err: err}
		}
		e, err := parse(it.Key(), v)
		if err != nil {
			return nil, nil, err
		}
		entries = append(entries, e)
		next = bytes.Clone(it.Key())
	}
	if err := it.Error(); err != nil {
		return nil, nil, &dfs.Error{Kind: dfs.Unavailable, Op: "read index", Err: err}
	}
	return entries, nil, nil
}
