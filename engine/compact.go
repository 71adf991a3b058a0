package engine

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"time"

	"dfsd/dfs"

	"golang.org/x/time/rate"
)

const (
	// moveBytes is about how much one batch of copies has: large enough for the
	// disk's own speed, small enough that a put never waits long behind it.
	moveBytes = 1 << 20

	// moveRest is the longest that compaction gives way to puts before each batch.
	moveRest = 50 * time.Millisecond

	// compactPause is how long compaction waits after a change before it looks
	// for work: looking takes a step for every segment.
	compactPause = time.Second

	// stuckPause is how long a segment with a record that cannot be copied is
	// left alone: until it was repaired it would be read in vain.
	stuckPause = 10 * time.Minute

	// A segment of which cheapDead (in 16ths) is dead is compacted whatever the
	// others are like: it costs little. One of which less than leastDead is dead
	// never is: each byte won would cost eight.
	cheapDead, leastDead = 12, 2
)

// compactor is the one goroutine that copies what is needed out of segments of
// which much is dead, so that these can be given up.
//
//	choose the segment with the most dead bytes
//	copy what is needed: one write, one sync a batch, read back from the disk, compare
//	flip the index: a row that still names the original names the copy
//	give the segment up: mark and index are synced, a line is in the ledger,
//	                     the last reader has left
//
// A crash between any two steps leaves originals and copies; the next start
// knows of the copies by the index or finds them in their stream, and what
// nobody needs is dead bytes.
type compactor struct {
	appender
	limit *rate.Limiter // bytes copied
	back  []byte        // what was read back
}

func newCompactor(a appender) *compactor {
	r := rate.Limit(a.s.opts.CompactRate)
	return &compactor{appender: a, limit: rate.NewLimiter(r, int(max(a.s.opts.CompactRate, maxBatchLen)))}
}

// run compacts until ctx ends or the store fails.
func (c *compactor) run(ctx context.Context) {
	defer c.release()
	timer := time.NewTimer(compactPause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.s.failed:
			return
		case <-timer.C:
		}
		timer.Reset(c.round(ctx))
	}
}

// round compacts until there is nothing to win, and returns when to look again.
func (c *compactor) round(ctx context.Context) time.Duration {
	if err := c.s.settleBounds(); err != nil && dfs.KindOf(err) != dfs.NoSpace && ctx.Err() == nil {
		c.s.fail(err)
	}
	for ctx.Err() == nil && c.s.failure() == nil {
		g, urgent := c.s.victim()
		if g == nil {
			return compactPause
		}
		switch err := c.compact(ctx, g, urgent); {
		case dfs.KindOf(err) == dfs.NoSpace: // for copies, or for the index
			return fullRetry
		case err != nil && ctx.Err() == nil:
			c.s.fail(err)
		}
	}
	return compactPause
}

// victim chooses the segment to compact, nil when there is none. urgent: space
// is short, or far more is dead than may be.
func (s *Store) victim() (best *segment, urgent bool) {
	use, at, now := s.index.usageOf(), s.index.position(), time.Now()
	var all, dead, most int64
	short := s.spaceIsShort()
	for n, g := range *s.segs.byNumber.Load() {
		if !g.sealed.Load() {
			continue
		}
		u := use[n]
		d := g.end.Load() - pageSize - int64(u.putBytes+u.tombstoneBytes)
		all += g.size
		dead += d
		switch {
		case u.empty(), d <= most, d < g.size*leastDead/16, at.needs(g) && g.stream == logStream:
		case now.Before(g.stuckUntil()), !short && now.Sub(g.sealedAt()) < s.opts.CompactAge:
		default:
			best, most = g, d
		}
	}
	limit := all / 100 * int64(s.opts.DeadPercent)
	if best == nil || !short && dead <= limit && most < best.size*cheapDead/16 {
		return nil, false
	}
	return best, short || dead > limit+limit/2
}

// spaceIsShort reports whether puts will soon be refused.
func (s *Store) spaceIsShort() bool {
	if s.full.Load() {
		return true
	}
	inUse, ready := s.segs.counts()
	size := uint64(s.opts.SegmentSize)
	total, free := s.capacity(uint64(inUse+ready+s.dead.count()) * size)
	return free+uint64(ready)*size < max(2*size, total/50)
}

// compact copies what is needed out of a segment and gives it up. NoSpace:
// there is no segment to copy to, or no room for the index.
func (c *compactor) compact(ctx context.Context, g *segment, urgent bool) error {
	m := &move{c: c, from: g, urgent: urgent}
	if err := m.run(ctx); err != nil {
		return err
	}
	s := c.s
	s.counters.compactions.Add(1)
	// Also when what is needed was not even found, as its segment cannot be read.
	if u := s.index.usageOf()[g.number]; m.stuck > 0 || !u.empty() {
		s.log.Warn("a segment cannot be compacted: it has blocks that must stay, or be repaired first", "segment", g.path, "blocks", m.stuck)
		g.setStuck(time.Now().Add(stuckPause))
	}
	return s.giveUp()
}

// move is the compaction of one segment.
type move struct {
	c      *compactor
	from   *segment
	file   io.ReaderAt
	urgent bool
	stuck  int // records that are needed and cannot be read, or fit no other segment

	ops   []*op   // the batch
	was   []int64 // where each was in the segment
	bytes int
	room  []byte // of the payloads, which are cut from it
	drop  []*op  // tombstones that nobody needs any more
}

// run copies what is needed.
func (m *move) run(ctx context.Context) error {
	file, err := m.from.acquire()
	if err != nil {
		if dfs.KindOf(err) != dfs.NotExist { // else it was given up since it was chosen
			m.c.s.log.Error("a segment cannot be opened", "segment", m.from.path, "cause", err)
		}
		return nil // what is needed of it stays where it is
	}
	m.file = file
	defer m.close()
	entries, err := m.list()
	if err != nil {
		return err
	}
	// Puts first: a tombstone may be dropped when no put is left behind.
	for _, kind := range []recordKind{kindPut, kindTombstone} {
		for _, e := range entries {
			if e.kind != kind {
				continue
			}
			if err := cmp.Or(ctx.Err(), m.add(ctx, e)); err != nil {
				return err
			}
		}
		if err := m.flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

// list lists the records of the segment.
func (m *move) list() ([]footerEntry, error) {
	foot, err := readFooter(m.file, m.c.s.mark, m.from.number, m.from.size)
	if err == nil && foot != nil {
		return foot.entries, nil
	}
	var entries []footerEntry
	sc := &segmentScan{file: m.file, mark: m.c.s.mark, segment: m.from.number, size: m.from.size, closed: true}
	_, err = sc.run(func(b group) error {
		for i := range b.records {
			entries = append(entries, entryOf(&b.records[i]))
		}
		return nil
	})
	return entries, err
}

func (m *move) close() {
	m.drain()
	m.from.release()
}

// drain forgets the batch.
func (m *move) drain() {
	m.ops, m.was, m.room, m.drop, m.bytes = m.ops[:0], m.was[:0], m.room[:0], m.drop[:0], 0
}

// add takes a record into the batch if it is needed.
func (m *move) add(ctx context.Context, e footerEntry) error {
	s := m.c.s
	w, err := s.index.get(blockKey(e.id, e.shard))
	if err != nil {
		return err
	}
	if w == nil || w.segment != m.from.number || w.offset != e.offset {
		return nil
	}
	o := newOp(record{kind: e.kind, flags: flagMoved, seq: w.seq, epoch: w.epoch, id: e.id, shard: e.shard}, nil)
	if e.kind == kindTombstone && m.stuck == 0 && w.epoch < s.floor(e.id.PG) && w.alone(s.segs.mayExist) {
		m.drop = append(m.drop, o)
		return m.flushIfLong(ctx)
	}
	if roomFor(int(w.recordLen())) > s.opts.SegmentSize {
		s.log.Warn("a block that was stored with larger segments fits none of the present size: it stays where it is", "block", e.id, "segment", m.from.path)
		m.stuck++
		return nil
	}
	// The rest of a segment is filled before the next one is begun.
	if length := int(w.recordLen()); len(m.ops) > 0 && !m.c.fits(m.bytes+length, len(m.ops)+1) {
		if err := m.flush(ctx); err != nil {
			return err
		}
	}
	if e.kind == kindPut && !m.read(o, w) {
		m.stuck++
		return nil
	}
	m.ops, m.was = append(m.ops, o), append(m.was, w.offset)
	m.bytes += o.rec.length()
	return m.flushIfLong(ctx)
}

func (m *move) flushIfLong(ctx context.Context) error {
	if m.bytes < moveBytes && len(m.drop) < moveBytes/recordHeaderLen {
		return nil
	}
	return m.flush(ctx)
}

// read fills in the record and its payload; false when they are not what the
// index says.
func (m *move) read(o *op, w *row) bool {
	s := m.c.s
	if w.flags&rowLost != 0 {
		return false
	}
	head := recordHeaderLen + len(w.info.Chunks)*chunkLen
	begin, n := len(m.room), head+int(w.stored)
	if cap(m.room)-begin < n { // what was cut from the old one stays there
		begin, m.room = 0, make([]byte, 0, max(n, min(2*moveBytes, int(m.from.size))))
	}
	m.room = m.room[:begin+n]
	buf := m.room[begin : begin+n : begin+n]
	_, err := m.file.ReadAt(buf, w.offset)
	if err != nil {
		err = &dfs.Error{Kind: dfs.Corrupt, Op: "read block", Object: o.rec.id.String(), Err: err}
	} else if err = checkChunks(o.rec.id, o.rec.shard, 0, w.info.Chunks, buf[head:]); err == nil {
		err = m.readHeader(o, w, buf[:head])
	}
	if err != nil {
		m.room = m.room[:begin]
		_ = s.readFailed(o.rec.id, o.rec.shard, w, err)
		return false
	}
	o.payload = buf[head:]
	return true
}

func (m *move) readHeader(o *op, w *row, p []byte) error {
	r, err := m.c.s.readHeader(p, o.rec.id, o.rec.shard, w)
	r.flags |= flagMoved
	if w.flags&(rowUndecided|rowTrashed) == 0 {
		r.flags |= flagDecided // an index that is made anew need not find out once more
	}
	o.rec = r
	return err
}

// flush makes the copies durable and has the index name them.
func (m *move) flush(ctx context.Context) error {
	defer m.drain()
	if len(m.ops)+len(m.drop) == 0 {
		return nil
	}
	if err := m.c.s.index.room(); err != nil { // and nothing can be given up
		return err
	}
	if len(m.ops) > 0 {
		if err := m.write(ctx); err != nil {
			return err
		}
	}
	if len(m.drop) == 0 {
		return nil
	}
	s := m.c.s
	err := s.index.update(func(c *change) error {
		for _, o := range m.drop {
			w, err := c.row([]byte(o.key))
			if err != nil {
				return err
			}
			if w == nil || w.kind != kindTombstone || w.segment != m.from.number {
				continue // stamped anew since
			}
			if err := c.drop(o.rec.id, o.rec.shard, w); err != nil {
				return err
			}
			s.counters.dropped.Add(1)
		}
		return nil
	})
	return err
}

// write appends the batch, reads it back, and flips the index.
func (m *move) write(ctx context.Context) error {
	c, s := m.c, m.c.s
	if err := c.pace(ctx, m.bytes, m.urgent); err != nil {
		return err
	}
	if !c.fits(m.bytes, len(m.ops)) {
		if err := c.nextSegment(ctx); err != nil {
			return err
		}
	}
	buf := c.encode(m.ops)
	if _, err := c.file.WriteAt(buf, c.end); err != nil {
		return err
	}
	if err := c.file.SyncData(); err != nil {
		return err
	}
	if cap(c.back) < len(buf) {
		c.back = make([]byte, len(buf))
	}
	if err := readBack(c.file, c.back[:len(buf)], c.end); err != nil {
		return err
	}
	if !bytes.Equal(buf, c.back[:len(buf)]) {
		return dfs.Errorf(dfs.Corrupt, "copy blocks", "%s does not hold what was written to it", c.active.path)
	}
	at := c.appended(m.ops, int64(len(buf)))
	if err := s.index.update(func(ch *change) error { return m.flip(ch, at) }); err != nil {
		return err
	}
	c.active.end.Store(at.end)
	s.counters.moved.Add(uint64(len(m.ops)))
	s.counters.movedBytes.Add(uint64(len(buf)))
	s.counters.sinceCheckpoint.Add(int64(len(buf)))
	return nil
}

// flip has the rows that name the originals name the copies. A block that was
// deleted or repaired meanwhile has a dead copy now, and its row says where.
func (m *move) flip(ch *change, at position) error {
	for i, o := range m.ops {
		old, err := ch.row([]byte(o.key))
		if err != nil {
			return err
		}
		switch {
		case old == nil:
		case old.segment == m.from.number && old.offset == m.was[i]:
			m.c.s.damage.mended(o.key)
			if err := ch.relocate(o, old); err != nil {
				return err
			}
		default:
			if err := ch.hold(o.rec.id, o.rec.shard, old, o.rec.segment); err != nil {
				return err
			}
		}
	}
	ch.advance(movedStream, at)
	return nil
}

// relocate has a row name the record's new place.
func (c *change) relocate(o *op, old *row) error {
	w := *old
	if w.flags&rowDamaged != 0 { // it could be read after all
		w.flags &^= rowDamaged
		if err := c.b.Delete(damageKey(old.segment, old.offset), nil); err != nil {
			return err
		}
	}
	w.segment, w.offset = o.rec.segment, o.rec.offset
	w.holds(old.segment, c.ix.exists)
	c.count(old, -1)
	c.count(&w, 1)
	c.rows[o.key] = &w
	return c.b.Set([]byte(o.key), w.encode(), nil)
}

// pace holds copies to their rate and gives way to puts.
func (c *compactor) pace(ctx context.Context, n int, urgent bool) error {
	if urgent {
		return ctx.Err()
	}
	if err := c.limit.WaitN(ctx, n); err != nil {
		return cmp.Or(ctx.Err(), err)
	}
	for range 5 {
		if waiting, _ := c.s.queue.depth(); waiting == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(moveRest / 5):
		}
	}
	return nil
}

// nextSegment takes a ready segment. On a full disk the last one is
// compaction's, since without it nothing would ever be freed.
func (c *compactor) nextSegment(ctx context.Context) error {
	s := c.s
	for {
		if next := s.segs.takeReady(0); next != nil {
			signal(s.prepareWake)
			return c.begin(next)
		}
		if s.full.Load() && s.exhausted.Load() {
			return dfs.Errorf(dfs.NoSpace, "copy blocks", "%s: no segment to copy to", s.opts.Dir)
		}
		signal(s.prepareWake)
		select {
		case <-s.preparedMoved:
		case <-s.failed:
			return s.failure()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
