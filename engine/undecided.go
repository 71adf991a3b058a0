package engine

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2"
)

// A block is stored before metadata names it, and its writer may die between
// the two. So each block is, until somebody has found out, undecided:
//
//	client's put ──▶ undecided ──Decide──▶ decided: only a delete ends it
//	                  │      ▲
//	                Trash  Restore
//	                  ▼      │
//	                  trashed ──EmptyTrash──▶ tombstone
//
// Doubt makes decided blocks undecided: those of a member whose deletes nobody can
// tell of any more.
// A put by a refill begins where its source says. A delete ends every state. All
// of it lives in the index and is as durable as that: what a crash or the loss
// of the index takes back is found out once more.

// Key names what is stored of a block.
type Key struct {
	ID    dfs.BlockID
	Shard uint8
}

// Key names what the entry is about.
func (e *Entry) Key() Key { return Key{e.ID, e.Shard} }

// setBatch bounds the blocks whose state changes in one change of the index:
// the writer waits meanwhile.
const setBatch = 128

// undecidedKey orders blocks by session, so that one session's can be left out
// together.
func undecidedKey(id dfs.BlockID, shard uint8) []byte {
	k := append(make([]byte, 0, blockKeyLen), undecidedPrefix)
	k = append48(k, uint64(id.Session))
	k = binary.BigEndian.AppendUint32(k, uint32(id.PG))
	k = binary.BigEndian.AppendUint64(k, uint64(id.Ino))
	return append(append48(k, uint64(id.Counter)), shard)
}

func append48(p []byte, n uint64) []byte {
	return append(p, byte(n>>40), byte(n>>32), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

func uint48(p []byte) uint64 {
	return uint64(binary.BigEndian.Uint16(p))<<32 | uint64(binary.BigEndian.Uint32(p[2:]))
}

func parseUndecided(k, v []byte) (Entry, error) {
	if len(k) != blockKeyLen || len(v) != 8 {
		return Entry{}, dfs.Errorf(dfs.Corrupt, "read index", "undecided row of %d and %d bytes", len(k), len(v))
	}
	b := binary.BigEndian
	return Entry{
		ID: dfs.BlockID{
			Session: dfs.SessionID(uint48(k[1:])), PG: dfs.PGID(b.Uint32(k[7:])),
			Ino: dfs.Ino(b.Uint64(k[11:])), Counter: uint48(k[19:]),
		},
		Shard: k[25], Undecided: true, Since: time.UnixMilli(int64(b.Uint64(v))),
	}, nil
}

// setCounts is how many blocks are in a state that still has to end.
type setCounts struct {
	undecided  uint64
	trash      uint64
	trashBytes uint64 // of whole records
}

func (n setCounts) encode() []byte {
	p := binary.BigEndian.AppendUint64(make([]byte, 0, 24), n.undecided)
	p = binary.BigEndian.AppendUint64(p, n.trash)
	return binary.BigEndian.AppendUint64(p, n.trashBytes)
}

func decodeSetCounts(p []byte) (setCounts, error) {
	if len(p) != 24 {
		return setCounts{}, dfs.Errorf(dfs.Corrupt, "read index", "row of counters of %d bytes", len(p))
	}
	b := binary.BigEndian
	return setCounts{b.Uint64(p), b.Uint64(p[8:]), b.Uint64(p[16:])}, nil
}

// count adds a row, or with sign -1 takes it away.
func (n *setCounts) count(w *row, sign int) {
	switch {
	case w == nil:
	case w.flags&rowUndecided != 0:
		n.undecided += uint64(sign)
	case w.flags&rowTrashed != 0:
		n.trash += uint64(sign)
		n.trashBytes += uint64(int64(sign) * w.recordLen())
	}
}

// loadSets reads the counters.
func (ix *index) loadSets() error {
	v, c, err := ix.db.Get([]byte(setCountsKey))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	ix.sets, err = decodeSetCounts(v)
	return cmp.Or(err, c.Close())
}

func (ix *index) setsNow() setCounts {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return ix.sets
}

// inherit gives a block's new row the state of the old one: what was found out
// stays known, also when a record that does not say so takes the place of one
// that does. Without an old row the record's own word counts.
func (w *row) inherit(old *row) {
	if w.kind == kindPut && old != nil && old.kind == kindPut && w.flags&rowUndecided != 0 {
		w.flags = w.flags&^rowUndecided | old.flags&(rowUndecided|rowTrashed)
		w.trashed = old.trashed
	}
}

// track makes the rows of undecided and trashed blocks agree with a block's row,
// which was old and becomes now; nil: there is none.
func (c *change) track(id dfs.BlockID, shard uint8, old, now *row) error {
	const states = rowUndecided | rowTrashed
	var before, after uint8
	if old != nil {
		before = old.flags & states
	}
	if now != nil {
		after = now.flags & states
	}
	if before|after == 0 {
		return nil
	}
	if c.sets == nil {
		sets := c.ix.setsNow()
		c.sets, c.time = &sets, time.Now().UnixMilli()
	}
	c.sets.count(old, -1)
	c.sets.count(now, 1)
	var err error
	if before&rowTrashed != 0 && (after&rowTrashed == 0 || old.trashed != now.trashed) {
		err = c.b.Delete(trashKey(old.trashed, id, shard), nil)
	}
	if after&rowTrashed != 0 {
		err = cmp.Or(err, c.b.Set(trashKey(now.trashed, id, shard), nil, nil))
	}
	switch {
	case before&rowUndecided != 0 && after&rowUndecided == 0:
		return cmp.Or(err, c.b.Delete(undecidedKey(id, shard), nil))
	case before&rowUndecided == 0 && after&rowUndecided != 0:
		return cmp.Or(err, c.b.Set(undecidedKey(id, shard), binary.BigEndian.AppendUint64(nil, uint64(c.time)), nil))
	}
	return err
}

// become changes the state of blocks that are there: fn returns the flag of the
// new state, 0 for decided, or the flag that it has for no change.
func (s *Store) become(keys []Key, fn func(state uint8) uint8) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.exit()
	for len(keys) > 0 {
		if err := s.failure(); err != nil {
			return err
		}
		if err := s.index.room(); err != nil {
			return dfs.Wrap("change state of blocks", s.opts.Dir, err)
		}
		n := min(len(keys), setBatch)
		err := s.index.update(func(c *change) error {
			for _, k := range keys[:n] {
				if err := c.become(k, fn); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

func (c *change) become(k Key, fn func(state uint8) uint8) error {
	const states = rowUndecided | rowTrashed
	key := blockKey(k.ID, k.Shard)
	old, err := c.row(key)
	if err != nil || old == nil || old.kind != kindPut {
		return err
	}
	state := fn(old.flags & states)
	if state == old.flags&states {
		return nil
	}
	now := *old
	now.flags, now.trashed = old.flags&^states|state, 0
	if state == rowTrashed {
		now.trashed = time.Now().UnixMilli()
	}
	if err := c.track(k.ID, k.Shard, old, &now); err != nil {
		return err
	}
	c.rows[string(key)] = &now
	return cmp.Or(c.b.Set(key, now.encode(), nil), c.b.Set(epochKey(k.ID, k.Shard, now.epoch), now.encodeEpoch(), nil))
}

// Undecided lists the blocks of which nobody has said whether they are
// referenced, in the order of (session, block, shard), at most limit of them,
// with ID, Shard and Since. It goes on behind a cursor that an earlier call or
// PastSession returned; a nil next means that there is no more.
func (s *Store) Undecided(cursor []byte, limit int) (entries []Entry, next []byte, err error) {
	return s.page([]byte{undecidedPrefix}, []byte{undecidedPrefix + 1}, cursor, limit, parseUndecided)
}

// PastSession is a cursor for Undecided behind every block of a session.
func PastSession(id dfs.SessionID) []byte {
	k := append48([]byte{undecidedPrefix}, uint64(id))
	return append(k, bytes.Repeat([]byte{0xff}, blockKeyLen-len(k))...)
}

// Decide records that blocks are referenced by metadata: from now on only a
// delete ends them. What is not here, or decided already, stays as it is.
func (s *Store) Decide(keys []Key) error {
	return s.become(keys, func(uint8) uint8 { return 0 })
}

// Doubt makes the decided blocks of a PG with epochs below before undecided again,
// and returns how many there were. It returns when that is durable: the index has
// no log of its own, so that a crash before would take it back. A PG of a million
// blocks takes a minute: Deadline when ctx ended first, and then a part of them may
// be undecided.
func (s *Store) Doubt(ctx context.Context, pg dfs.PGID, before dfs.Epoch) (doubted int, err error) {
	blocks, doubted, err := s.doubt(ctx, pg, before)
	if err != nil || blocks == 0 {
		return doubted, err
	}
	// Also when all were undecided: an earlier call may have come as far as here.
	if err := s.enter(); err != nil {
		return doubted, err
	}
	defer s.exit()
	return doubted, s.checkpoint()
}

// doubt is Doubt without its end. It counts the blocks that it saw, too.
func (s *Store) doubt(ctx context.Context, pg dfs.PGID, before dfs.Epoch) (blocks, doubted int, err error) {
	var cursor []byte
	for {
		if err := ctx.Err(); err != nil {
			return blocks, doubted, &dfs.Error{Kind: dfs.Deadline, Op: "doubt blocks", Object: pg.String(), Err: err}
		}
		page, next, err := s.ScanEpochs(pg, 0, before, cursor, setBatch)
		if err != nil {
			return blocks, doubted, err
		}
		var keys []Key
		for i := range page {
			if e := &page[i]; !e.Tombstone {
				blocks++
				if !e.Undecided && !e.Trashed {
					keys = append(keys, e.Key())
				}
			}
		}
		err = s.become(keys, func(state uint8) uint8 {
			if state == 0 {
				return rowUndecided
			}
			return state
		})
		if err != nil {
			return blocks, doubted, err
		}
		doubted += len(keys)
		if cursor = next; next == nil {
			return blocks, doubted, nil
		}
	}
}
