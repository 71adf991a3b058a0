package engine

import (
	"time"

	"dfsd/dfs"
)

// writer is the one goroutine that appends to the log. Invariant: the log's
// sequence numbers have no gaps, unless records were lost.
type writer struct{ appender }

func (w *writer) run() {
	for ops := w.s.queue.take(); ops != nil; ops = w.s.queue.take() {
		w.write(ops)
	}
	w.release()
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
	scarce := w.s.full.Load() && ready <= keepForMoves
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
		full, keep := s.full.Load(), 0
		if full {
			keep = keepForMoves
		}
		if full && kind == kindPut {
			keep++ // deletes must still have somewhere to go
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

// commit puts a durable batch into the index and answers its callers.
func (w *writer) commit(ops []*op, length int64) {
	s := w.s
	for _, o := range ops {
		if !o.repair {
			continue
		}
		if err := checkPayload(w.file, &o.rec); err != nil {
			s.fail(err)
			w.answer(ops, s.failure())
			return
		}
	}
	at := w.appended(ops, length)
	err := s.index.update(func(c *change) error {
		for _, o := range ops {
			if o.fresh {
				c.rows[o.key] = nil
			}
			if err := c.apply(o.rec.id, o.rec.shard, rowOf(&o.rec), s.opts.Hooks.DropTombstone); err != nil {
				return err
			}
		}
		c.advance(logStream, at)
		return nil
	})
	if err != nil {
		s.fail(err)
		w.answer(ops, s.failure())
		return
	}
	w.active.end.Store(at.end)
	s.durableSeq.Store(at.count)
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
