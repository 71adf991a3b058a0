package engine

import (
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// writer is the one goroutine that appends to segments. All of its fields are
// its own.
type writer struct {
	s       *Store
	active  *segment // nil: none yet
	file    vfs.File // of the active segment
	end     int64    // of the active segment's log
	entries []footerEntry
	holed   bool   // records of the active segment are damaged: a footer would say that they never were
	nextSeq uint64 // Invariant: the log's sequence numbers have no gaps, unless records were lost
	buf     []byte // Invariant: cap <= maxBatchLen
}

func (w *writer) run() {
	for ops := w.s.queue.take(); ops != nil; ops = w.s.queue.take() {
		w.write(ops)
	}
	if w.active != nil {
		w.active.release()
	}
}

// write makes the records durable, in as many batches as the segments' room
// asks for, and answers each.
func (w *writer) write(ops []*op) {
	for len(ops) > 0 {
		if err := w.s.failure(); err != nil {
			w.answer(ops, err)
			return
		}
		if w.s.index.gate.starved.Load() { // its rows would pile up in memory
			w.answer(ops, dfs.Errorf(dfs.NoSpace, "write block", "%s: no space left for the index", w.s.opts.Dir))
			return
		}
		n := w.fits(ops)
		if n == 0 {
			if err := w.nextSegment(ops[0].rec.kind); err != nil {
				w.answer(ops[:1], err)
				ops = ops[1:]
			}
			continue
		}
		w.batch(ops[:n])
		ops = ops[n:]
	}
}

// fits returns how many of the first records the active segment has room for.
// It leaves room for a footer that lists them, and, when no other segment is
// to be had, for tombstones.
func (w *writer) fits(ops []*op) int {
	if w.active == nil || w.active.sealed.Load() {
		return 0
	}
	room := w.active.size - w.end
	_, ready := w.s.segs.counts()
	scarce := w.s.full.Load() && ready == 0
	length := batchHeaderLen
	for i, o := range ops {
		length += o.rec.length()
		need := int64(alignUp(length, pageSize)) + footerLen(len(w.entries)+i+1)
		if scarce && o.rec.kind == kindPut {
			need += w.active.size / tombstoneRoom
		}
		if need > room {
			return i
		}
	}
	return len(ops)
}

// nextSegment seals the active segment and takes a ready one. NoSpace: there
// is none for this kind of record.
func (w *writer) nextSegment(kind recordKind) error {
	s := w.s
	var next *segment
	for {
		full, keep := s.full.Load(), 0
		if full && kind == kindPut {
			keep = 1 // deletes must still have somewhere to go
		}
		if next = s.segs.takeReady(keep); next != nil {
			break
		}
		// A delete waits while the reserve can still give a segment.
		if full && (kind == kindPut || s.exhausted.Load()) {
			if kind == kindPut {
				s.readOnly.Store(true)
			}
			return dfs.Errorf(dfs.NoSpace, "write block", "%s: no space left above the reserve", s.opts.Dir)
		}
		signal(s.prepareWake)
		select {
		case <-s.prepared:
		case <-s.failed:
			return s.failure()
		}
	}
	signal(s.prepareWake)
	if err := w.begin(next); err != nil {
		s.fail(err)
		return s.failure()
	}
	return nil
}

// begin seals the active segment and makes next the active one.
//
// The mark is moved to next before the first byte is written there: so a
// segment above the mark is known to be empty.
func (w *writer) begin(next *segment) error {
	if w.active != nil {
		if err := w.seal(); err != nil {
			return err
		}
		w.active.release()
		w.active = nil
	}
	file, err := next.acquire()
	if err != nil {
		return err
	}
	w.active, w.file, w.end, w.entries, w.holed = next, file, pageSize, nil, false
	next.end.Store(pageSize)
	return w.s.moveMark(markRecord{segment: next.number, offset: pageSize, seq: w.s.durableSeq.Load()}, true)
}

// seal writes the footer, unless it could not list every record.
func (w *writer) seal() error {
	if w.active.sealed.Load() {
		return nil
	}
	if w.holed {
		w.active.sealed.Store(true)
		return nil
	}
	h := segmentHeader{mark: w.s.mark, segment: w.active.number, size: w.active.size}
	p := encodeFooter(w.entries, w.end, h)
	if _, err := w.file.WriteAt(p, w.active.size-int64(len(p))); err != nil {
		return err
	}
	if err := w.file.SyncData(); err != nil {
		return err
	}
	w.active.sealed.Store(true)
	w.s.mayBeDead.Store(true)
	return nil
}

// batch writes records that fit the active segment: one write, one sync.
func (w *writer) batch(ops []*op) {
	s := w.s
	buf := w.encode(ops)
	s.clock.begin()
	defer s.clock.end()
	if _, err := w.file.WriteAt(buf, w.end); err != nil {
		s.fail(err)
		w.answer(ops, s.failure())
		return
	}
	s.clock.wrote()
	if s.opts.Hooks.AckBeforeSync {
		w.commit(ops, int64(len(buf)))
		ops = nil
		time.Sleep(ackLead)
	}
	if err := w.file.SyncData(); err != nil {
		s.fail(err)
		w.answer(ops, s.failure())
		return
	}
	s.clock.synced()
	if ops != nil {
		w.commit(ops, int64(len(buf)))
	}
	signal(s.keeperWake)
}

// encode lays the records out as one batch at the log's end.
func (w *writer) encode(ops []*op) []byte {
	length := batchHeaderLen
	for _, o := range ops {
		length += o.rec.length()
	}
	length = alignUp(length, pageSize)
	if cap(w.buf) < length {
		w.buf = make([]byte, 0, length)
	}
	buf := w.buf[:batchHeaderLen]
	for _, o := range ops {
		at := len(buf)
		o.rec.segment, o.rec.offset, o.rec.seq = w.active.number, w.end+int64(at), w.nextSeq
		w.nextSeq++
		buf = append(o.rec.appendHeader(buf, w.s.mark), o.payload...)
		buf = pad(buf, at+o.rec.length())
	}
	buf = pad(buf, length)
	h := batchHeader{
		segment: w.active.number, offset: w.end, firstSeq: ops[0].rec.seq,
		synced: w.end, length: length, records: len(ops),
	}
	h.encode(buf, w.s.mark)
	return buf
}

// pad appends zeros up to length n. REQUIRES: the capacity is there.
func pad(buf []byte, n int) []byte {
	m := len(buf)
	buf = buf[:n]
	clear(buf[m:])
	return buf
}

// commit puts a durable batch into the index and answers its callers.
func (w *writer) commit(ops []*op, length int64) {
	s := w.s
	last := ops[len(ops)-1].rec.seq
	err := s.index.update(func(c *change) error {
		for _, o := range ops {
			w.entries = append(w.entries, entryOf(&o.rec))
			if o.fresh {
				c.rows[o.key] = nil
			}
			if err := c.apply(o.rec.id, o.rec.shard, rowOf(&o.rec), s.opts.Hooks.DropTombstone); err != nil {
				return err
			}
		}
		c.anchor = &anchor{segment: w.active.number, offset: w.end, end: w.end + length, seq: last}
		return nil
	})
	if err != nil {
		s.fail(err)
		w.answer(ops, s.failure())
		return
	}
	w.end += length
	w.active.end.Store(w.end)
	s.durableSeq.Store(last)
	s.counters.batch(ops, length)
	w.answer(ops, nil)
}

// answer ends the operations.
func (w *writer) answer(ops []*op, err error) {
	for _, o := range ops {
		if err == nil && (w.s.damage.mended(o.key) || o.rec.kind == kindTombstone) {
			w.s.mayBeDead.Store(true)
		}
		o.err = err
		o.pg.finish(o)
		w.s.queue.unreserve(o)
		close(o.done)
	}
}

// signal leaves one token in a channel of capacity one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
