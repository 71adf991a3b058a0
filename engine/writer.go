package engine

import (
	"io"
	"time"

	"dfsd/dfs"
)

// writer appends to the log. Invariant: the log's sequence numbers have no gaps,
// unless records were lost.
//
// Who has the turn appends: a caller that finds nobody at it writes its own
// record, so that it need not wake anyone, and what has gathered meanwhile is
// the writer goroutine's. While records wait, the index learns of a durable batch
// from the indexer goroutine, and the disk is never idle for that.
//
//	caller, alone:  queue ─ write ─ sync ─ index ─ return
//	writer:         queue ─ write ─ sync ┬ write ─ sync ┬ write ─ sync …
//	indexer:                             └ index        └ index
//	callers:                               return         return
type writer struct {
	appender
	turn chan struct{} // holds a token while somebody has the turn; guards the appender

	landed  chan landing  // to the indexer, in the order of the log
	landing chan struct{} // a token for each that the indexer has not done with
}

// landing is a batch that is on the disk and not in the index.
type landing struct {
	ops    []*op
	at     position
	length int64
	active *segment
	file   io.ReaderAt // of active
}

// maxLanding bounds the batches that wait for the index: one in hand, and one
// more, so that a sync need not wait for it.
const maxLanding = 2

func newWriter(a appender) *writer {
	return &writer{
		appender: a, turn: make(chan struct{}, 1),
		landed: make(chan landing, maxLanding), landing: make(chan struct{}, maxLanding),
	}
}

// run appends what is queued until the queue is closed and empty.
func (w *writer) run() {
	indexed := make(chan struct{})
	go func() {
		defer close(indexed)
		for l := range w.landed {
			w.commit(l)
			<-w.landing
		}
	}()
	for w.s.queue.wait() {
		w.turn <- struct{}{}
		for ops := w.s.queue.take(); ops != nil; ops = w.s.queue.take() {
			w.write(ops)
		}
		<-w.turn
	}
	close(w.landed)
	<-indexed
	w.release()
}

// lead appends what is queued when nobody else is at it. Who is at it looks at
// the queue again afterwards.
func (w *writer) lead() {
	select {
	case w.turn <- struct{}{}:
	default:
		return
	}
	if ops := w.s.queue.take(); ops != nil {
		w.write(ops)
	}
	<-w.turn
	if w.s.queue.waiting() {
		w.s.queue.signal()
	}
}

// settle waits until the index has every batch.
func (w *writer) settle() {
	for range maxLanding {
		w.landing <- struct{}{}
	}
	for range maxLanding {
		<-w.landing
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
		if err := w.s.index.room(); err != nil {
			w.answer(ops, dfs.Wrap("write block", w.s.opts.Dir, err))
			return
		}
		n := w.taken(ops)
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

// taken returns how many of the first records the active segment has room for.
// It leaves room for a footer that lists them, and, when no other segment is
// to be had, for tombstones.
func (w *writer) taken(ops []*op) int {
	_, ready := w.s.segs.counts()
	scarce := w.s.full.Load() && ready <= keepForDeletes+keepForMoves
	length := 0
	for i, o := range ops {
		length += o.rec.length()
		need := length
		if scarce && o.rec.kind == kindPut {
			need += int(w.s.opts.SegmentSize) / tombstoneRoom
		}
		if !w.appender.fits(need, i+1) {
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
		full, exhausted, keep := s.full.Load(), s.exhausted.Load(), 0
		switch {
		case kind == kindPut && !s.segs.fresh():
			// Whether there is room for another segment is known only when it was
			// filled; until then deletes and compaction must have somewhere to go.
			keep = keepForDeletes + keepForMoves
		case full:
			keep = keepForMoves
		}
		if next = s.segs.takeReady(keep); next != nil {
			break
		}
		// A delete waits while the reserve can still give a segment.
		if full && (kind == kindPut || exhausted) {
			if kind == kindPut {
				s.readOnly.Store(true)
				signal(s.prepareWake) // it may have found space since full was read, and takes readOnly back
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
	w.settle() // a sealed segment may be given up when the index needs nothing of it
	if err := w.begin(next); err != nil {
		s.fail(err)
		return s.failure()
	}
	return nil
}

// batch writes records that fit the active segment: one write, one sync.
func (w *writer) batch(ops []*op) {
	s := w.s
	s.clock.begin()
	defer s.clock.end()
	length, err := w.appender.write(ops)
	if err != nil {
		s.fail(err)
		w.answer(ops, s.failure())
		return
	}
	s.clock.wrote()
	l := landing{ops: ops, at: w.appended(ops, int64(length)), length: int64(length), active: w.active, file: w.file}
	if s.opts.Hooks.AckBeforeSync {
		w.land(l, true)
		l.ops = nil
		time.Sleep(ackLead)
	}
	if err := w.file.SyncData(); err != nil {
		s.fail(err)
		w.answer(l.ops, s.failure())
		return
	}
	s.clock.synced()
	if l.ops != nil {
		w.land(l, len(w.landing) == 0 && !s.queue.waiting())
	}
	if !s.keeperArmed.Load() {
		signal(s.keeperWake)
	}
}

// land puts a batch into the index: now, or while the next one is written.
func (w *writer) land(l landing, now bool) {
	if now {
		w.commit(l)
		return
	}
	w.landing <- struct{}{}
	w.landed <- l
}

// commit puts a durable batch into the index and answers its callers.
func (w *writer) commit(l landing) {
	s := w.s
	for _, o := range l.ops {
		if !o.repair {
			continue
		}
		if err := checkPayload(l.file, &o.rec); err != nil {
			s.fail(err)
			w.answer(l.ops, s.failure())
			return
		}
	}
	err := s.index.update(func(c *change) error {
		for _, o := range l.ops {
			if o.fresh {
				c.rows[o.key] = nil
			}
			if err := c.apply(o.rec.id, o.rec.shard, rowOf(&o.rec), s.opts.Hooks.DropTombstone); err != nil {
				return err
			}
		}
		c.advance(logStream, l.at)
		return nil
	})
	if err != nil {
		s.fail(err)
		w.answer(l.ops, s.failure())
		return
	}
	l.active.end.Store(l.at.end)
	s.durableSeq.Store(l.at.count)
	s.counters.batch(l.ops, l.length)
	w.answer(l.ops, nil)
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
