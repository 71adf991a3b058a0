package engine

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2"
)

// A store that has left a PG for good forgets it:
//
//	Forget ──▶ a bound, one line of the ledger, synced: from here on the PG's records with numbers up
//	   │       to it are as if they had never been written, whatever becomes of the index
//	   ├─────▶ their rows leave the index, some at a time; meanwhile the PG takes nothing
//	   ▼
//	what comes later has higher numbers, and is not concerned
//
//	compaction gives up their segments ──▶ the last one is gone ──▶ the bound ends
//
// A crash before the line leaves everything, one after it nothing: the next start
// takes out what is left, before it reads the segments, and of these it leaves out
// what a bound covers.

// bound says that every record of a PG with a number up to Seq is as if it had
// never been written.
type bound struct {
	PG  dfs.PGID
	Seq uint64

	// Through is a segment above which no such record lies; 0: that is not known.
	Through uint64
}

// ended reports whether a bound says nothing any more: no such record lies in a
// segment from lowest up.
func (b bound) ended(lowest uint64) bool { return b.Through != 0 && b.Through < lowest }

// MarshalJSON writes a list of three numbers.
func (b bound) MarshalJSON() ([]byte, error) {
	return json.Marshal([3]uint64{uint64(b.PG), b.Seq, b.Through})
}

// UnmarshalJSON reads what MarshalJSON has written.
func (b *bound) UnmarshalJSON(p []byte) error {
	var n []uint64
	if err := json.Unmarshal(p, &n); err != nil {
		return err
	}
	if len(n) != 3 || n[0] == 0 || n[0] > 1<<32-1 || n[1] == 0 {
		return dfs.Errorf(dfs.Corrupt, "read bound", "%v", n)
	}
	*b = bound{dfs.PGID(n[0]), n[1], n[2]}
	return nil
}

// bounds are what is forgotten. Invariant: sorted by PG, one of each. A list
// that others may have is not changed.
type bounds []bound

func (l bounds) find(pg dfs.PGID) (int, bool) {
	return slices.BinarySearchFunc(l, pg, func(b bound, pg dfs.PGID) int {
		switch {
		case b.PG < pg:
			return -1
		case b.PG > pg:
			return 1
		}
		return 0
	})
}

// cover reports whether a record of a PG with a number is forgotten.
func (l bounds) cover(pg dfs.PGID, seq uint64) bool {
	if len(l) == 0 {
		return false
	}
	i, ok := l.find(pg)
	return ok && seq <= l[i].Seq
}

// with adds bounds. Of two of one PG the higher counts, and then the one that
// knows through where it reaches.
func (l bounds) with(more bounds) bounds {
	if len(more) == 0 {
		return l
	}
	l = slices.Clone(l)
	for _, b := range more {
		switch i, ok := l.find(b.PG); {
		case !ok:
			l = slices.Insert(l, i, b)
		case b.Seq > l[i].Seq, b.Seq == l[i].Seq && b.Through > l[i].Through:
			l[i] = b
		}
	}
	return l
}

// without takes out bounds, but not those that are higher by now.
func (l bounds) without(ended bounds) bounds {
	return slices.DeleteFunc(slices.Clone(l), func(b bound) bool { return ended.cover(b.PG, b.Seq) })
}

// highest is the highest number in a bound; 0: there is none.
func (l bounds) highest() (seq uint64) {
	for _, b := range l {
		seq = max(seq, b.Seq)
	}
	return seq
}

func boundKey(pg dfs.PGID) []byte {
	return binary.BigEndian.AppendUint32([]byte{boundPrefix}, uint32(pg))
}

func parseBound(k, v []byte) (bound, error) {
	if len(k) != 5 || len(v) != 8 {
		return bound{}, dfs.Errorf(dfs.Corrupt, "read index", "row of a bound of %d and %d bytes", len(k), len(v))
	}
	return bound{PG: dfs.PGID(binary.BigEndian.Uint32(k[1:])), Seq: binary.BigEndian.Uint64(v)}, nil
}

// Forgotten is what a Forget has taken out.
type Forgotten struct {
	Blocks     uint64
	Tombstones uint64
	Bytes      uint64 // of their records
}

func (f *Forgotten) add(w *row) {
	if w.kind == kindTombstone {
		f.Tombstones++
	} else {
		f.Blocks++
	}
	f.Bytes += uint64(w.recordLen())
}

// Forget gives up every block and tombstone of a PG that the store has left, and
// all that is known of them; the floor of its tombstones stays, which follows from
// the map. It returns when that is durable and nothing of them is in the index any
// more; the bytes are free once compaction has been there. Meanwhile a Get
// finds a block or not, and all else that is about the PG gets Unavailable.
// What is put afterwards is not concerned.
//
// The caller has found by the map with epoch at that the store has left the PG.
// Stale: the store has persisted a later one, which may name it again. What comes
// after Forget comes to a store without anything of the PG.
//
// A million blocks take some seconds, and others' puts wait for none of it for
// longer than for each other. Once it has begun it ends with the store only: what is
// left then is done by the next start. Errors: Invalid when the PG is 0; Unavailable
// also when something of the PG is under way, and then nothing is done; NoSpace
// when there is none for the ledger or the index.
func (s *Store) Forget(pg dfs.PGID, at dfs.Epoch) (Forgotten, error) {
	if err := s.enter(); err != nil {
		return Forgotten{}, err
	}
	defer s.exit()
	if pg == 0 {
		return Forgotten{}, dfs.Errorf(dfs.Invalid, "forget blocks", "%s", pg)
	}
	p := s.pg(pg, true)
	b, err := s.beginForget(p, pg, at)
	if err != nil || b.Seq == 0 {
		return Forgotten{}, err
	}
	f, err := s.sweep(b)
	if err != nil {
		return f, err // and the PG takes nothing until the next start
	}
	p.setForgetting(false)
	s.counters.forgotten.Add(f.Blocks)
	s.mayBeDead.Store(true)
	signal(s.keeperWake)
	return f, nil
}

// beginForget shuts the PG and makes the bound durable.
func (s *Store) beginForget(p *pg, pg dfs.PGID, at dfs.Epoch) (bound, error) {
	// A later map waits for the bound, so that whatever is put under it lies behind.
	s.epochTurn <- struct{}{}
	defer func() { <-s.epochTurn }()
	if err := s.failure(); err != nil {
		return bound{}, err
	}
	if have := s.MapEpoch(); have != at {
		return bound{}, dfs.Errorf(dfs.Stale, "forget blocks", "%s by map %d: this store has persisted %d", pg, at, have)
	}
	if err := s.index.room(); err != nil {
		return bound{}, err
	}
	b, err := s.shut(p, pg)
	if err != nil || b.Seq == 0 {
		return bound{}, err
	}
	if err := s.ledger.add([]ledgerLine{{Time: time.Now().UTC(), accounted: accounted{Forgotten: bounds{b}}}}); err != nil {
		if dfs.KindOf(err) != dfs.NoSpace { // the line may be there or not
			s.fail(err)
			return bound{}, s.failure()
		}
		p.setForgetting(false)
		return bound{}, err
	}
	return b, nil
}

// shut lets nothing of the PG in, and returns the bound: nothing of it is under way,
// so that all its records are durable, and whatever comes has a higher number.
// A bound of 0: there is nothing to forget.
func (s *Store) shut(p *pg, pg dfs.PGID) (bound, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.forgetting || len(p.running) > 0 {
		return bound{}, dfs.Errorf(dfs.Unavailable, "forget blocks", "%s is in use", pg)
	}
	b := bound{PG: pg, Seq: s.durableSeq.Load()}
	p.forgetting = b.Seq != 0
	return b, nil
}

func (p *pg) setForgetting(now bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgetting = now
}

// shutLocked is the error of whatever is about a PG that is being forgotten.
func (p *pg) shutLocked(pg dfs.PGID) error {
	if p.forgetting {
		return dfs.Errorf(dfs.Unavailable, "use blocks", "%s is being forgotten", pg)
	}
	return nil
}

// openPG is shutLocked for who asks what there is of a PG: half of it would be no
// answer.
func (s *Store) openPG(pg dfs.PGID) error {
	p := s.pg(pg, false)
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shutLocked(pg)
}

// sweep takes what a bound covers out of the index. Unavailable: the store has failed
// or is being closed, and the next start goes on.
func (s *Store) sweep(b bound) (f Forgotten, err error) {
	var cursor []byte
	for {
		if err := s.failure(); err != nil {
			return f, err
		}
		if s.closing.Load() {
			return f, dfs.Errorf(dfs.Unavailable, "forget blocks", "%s is being closed", s.opts.Dir)
		}
		if s.index.room() != nil { // deletes and compaction wait as well
			select {
			case <-s.failed:
			case <-time.After(fullRetry):
			}
			continue
		}
		next, keys, err := s.index.sweep(b, cursor, &f)
		if err != nil {
			s.fail(err)
			return f, s.failure()
		}
		for _, key := range keys {
			s.damage.mended(key)
		}
		// So a start after a crash has no more to do again than after so many puts.
		s.counters.sinceCheckpoint.Add(int64(len(keys) * sweepCost))
		if cursor = next; next == nil {
			return f, nil
		}
	}
}

// sweepCost is what a row that is taken out counts for in CheckpointBytes.
const sweepCost = 256

// sweep takes at most setBatch rows that a bound covers out, from a key on, counts
// them in f and returns their keys. It returns the key to go on from, nil when there
// is none: then the index knows that it has been swept.
func (ix *index) sweep(b bound, from []byte, f *Forgotten) (next []byte, keys []string, err error) {
	lower, upper := pgBounds(blockPrefix, b.PG)
	if from != nil {
		lower = from
	}
	err = ix.update(func(c *change) error {
		seen := 0
		err := ix.scan(lower, upper, func(k, v []byte) error {
			if seen++; seen > setBatch {
				next = bytes.Clone(k)
				return errEnough
			}
			w, err := decodeRow(v)
			if err != nil || w.seq > b.Seq {
				return err
			}
			id, shard, err := parseBlockKey(k)
			if err != nil {
				return err
			}
			f.add(w)
			keys = append(keys, string(k))
			return c.drop(id, shard, w)
		})
		switch {
		case err == errEnough:
			return nil
		case err != nil:
			return err
		}
		return c.b.Set(boundKey(b.PG), binary.BigEndian.AppendUint64(nil, b.Seq), nil)
	})
	return next, keys, err
}

// swept reads what bounds the index was swept for.
func (ix *index) swept() (bounds, error) {
	var l bounds // rows are in the order of PGs
	err := ix.scan([]byte{boundPrefix}, []byte{boundPrefix + 1}, func(k, v []byte) error {
		b, err := parseBound(k, v)
		l = append(l, b)
		return err
	})
	return l, err
}

// forget has the index know of no record that is forgotten: a crash may have come
// before it was swept, or before that was on the disk. What comes after this in a
// start reads no such record into it.
func (r *recovery) forget() error {
	s := r.s
	swept, err := s.index.swept()
	if err != nil {
		return err
	}
	s.ledger.learn(swept) // which may have been damaged
	r.bounds = s.ledger.bounds()
	if bad := len(s.ledger.bad); r.rebuild && bad > 0 && !(s.ledger.torn && bad == 1) {
		r.lose("a line of " + ledgerName + " is damaged, which may have said that blocks were forgotten")
	}
	lowest, _ := s.segs.span()
	for _, b := range r.bounds {
		if swept.cover(b.PG, b.Seq) || b.ended(lowest) {
			continue
		}
		var f Forgotten
		for cursor, more := []byte(nil), true; more; more = cursor != nil {
			if cursor, _, err = s.index.sweep(b, cursor, &f); err != nil {
				return err
			}
		}
		if f != (Forgotten{}) {
			s.log.Info("what was left of a forgotten placement group is taken out", "dir", s.opts.Dir, "pg", b.PG, "blocks", f.Blocks, "tombstones", f.Tombstones)
		}
	}
	return nil
}

// settleBounds notes through where new bounds reach, and ends those whose last
// segment is gone. It is for compaction, while it has nothing in hand: a copy that
// was read before a sweep may be written after it.
func (s *Store) settleBounds() error {
	all := s.ledger.bounds()
	if len(all) == 0 {
		return nil
	}
	lowest, last := s.segs.span()
	var settled, ended bounds
	for _, b := range all {
		switch {
		case b.ended(lowest):
			ended = append(ended, b)
		case b.Through == 0 && s.openPG(b.PG) == nil:
			settled = append(settled, bound{b.PG, b.Seq, last})
		}
	}
	if len(ended) > 0 {
		if err := s.endBounds(ended); err != nil {
			return err
		}
	}
	if len(settled) == 0 {
		return nil
	}
	return s.ledger.add([]ledgerLine{{Time: time.Now().UTC(), accounted: accounted{Forgotten: settled}}})
}

// endBounds drops bounds. The lines that name them go with the next file of the
// ledger; a start that reads them still finds that they have ended.
func (s *Store) endBounds(ended bounds) error {
	if err := s.index.room(); err != nil {
		return err
	}
	err := s.index.update(func(c *change) error {
		swept, err := s.index.swept()
		if err != nil {
			return err
		}
		for _, b := range swept {
			if !ended.cover(b.PG, b.Seq) {
				continue
			}
			if err := c.b.Delete(boundKey(b.PG), pebble.NoSync); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.ledger.unlearn(ended)
	}
	return err
}

// forgotten counts the PGs of which forgotten records may still lie in segments.
func (s *Store) forgotten() (n int) {
	lowest, _ := s.segs.span()
	for _, b := range s.ledger.bounds() {
		if !b.ended(lowest) {
			n++
		}
	}
	return n
}
