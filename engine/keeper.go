package engine

import (
	"context"
	"slices"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// keep does, until ctx ends, what need not hold up the writer: it moves the
// mark, checkpoints the index, gives up dead segments and closes idle files.
func (s *Store) keep(ctx context.Context) {
	timer := time.NewTimer(markLag)
	defer timer.Stop()
	timer.Stop()
	armed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.failed:
			s.condemnIndex()
			<-ctx.Done()
			return
		case <-s.keeperWake:
			if !armed {
				timer.Reset(markLag)
				armed = true
			}
			continue
		case <-timer.C:
			armed = false
		}
		switch err := s.tend(ctx); {
		case dfs.KindOf(err) == dfs.NoSpace:
			timer.Reset(fullRetry)
			armed = true
		case err != nil && ctx.Err() == nil:
			s.fail(err)
		}
	}
}

// tend is one round of the keeper.
func (s *Store) tend(ctx context.Context) error {
	if err := s.syncMark(); err != nil {
		return err
	}
	if s.counters.sinceCheckpoint.Load() >= s.opts.CheckpointBytes {
		if err := s.checkpoint(); err != nil {
			return err
		}
	}
	if s.mayBeDead.Swap(false) {
		if err := s.rehome(ctx); err != nil {
			return err
		}
		if err := s.giveUp(); err != nil {
			s.mayBeDead.Store(true)
			return err
		}
	}
	return s.closeIdle()
}

// condemnIndex has the next start make the index anew when the store failed
// for damage in the index itself. It may be called again.
func (s *Store) condemnIndex() {
	if !s.badIndex.Load() {
		return
	}
	f, err := s.opts.FS.Create(s.path(badIndexName), vfs.WriteCategoryUnspecified)
	if err == nil {
		_ = f.Sync()
		_ = f.Close()
		err = syncDir(s.opts.FS, s.opts.Dir)
	}
	if err != nil {
		s.log.Error("the damaged index cannot be marked: remove it by hand", "dir", s.path(indexName), "cause", err)
	}
}

// moveMark notes what is known to be durable. twice: in both slots, for a
// change that must survive rot in one of them.
func (s *Store) moveMark(m markRecord, twice bool) error {
	s.markMu.Lock()
	defer s.markMu.Unlock()
	if m.segment < s.marked.segment || m == s.marked {
		return nil
	}
	write := s.files.mark.put
	if twice {
		write = s.files.mark.both
	}
	if err := write(m.encode()); err != nil {
		return err
	}
	s.marked = m
	return nil
}

// syncMark moves the mark to the end of the last durable batch.
func (s *Store) syncMark() error {
	a := s.index.position()
	if a.segment == 0 {
		return nil
	}
	return s.moveMark(markRecord{segment: a.segment, offset: a.end, seq: a.seq}, false)
}

func (s *Store) checkpoint() error {
	covered := s.counters.sinceCheckpoint.Swap(0)
	err := s.index.checkpoint()
	if err != nil {
		s.counters.sinceCheckpoint.Add(covered)
	}
	return err
}

// isReadOnly reports whether puts are refused for want of space.
func (s *Store) isReadOnly() bool { return s.readOnly.Load() || s.index.gate.starved.Load() }

// rehome writes the tombstones of segments that hold little else again, so
// that these die. A tombstone is needed as long as a put that it hides may be
// somewhere, and as long as another member may ask for it.
func (s *Store) rehome(ctx context.Context) error {
	use := s.index.usageOf()
	for n, u := range use {
		g := s.segs.get(n)
		if g == nil || !g.sealed.Load() || u.puts > 0 || u.tombstones == 0 || u.tombstoneBytes > uint64(g.size)/rehomeFraction {
			continue
		}
		if err := s.rehomeOne(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) rehomeOne(ctx context.Context, g *segment) error {
	file, err := g.acquire()
	if err != nil {
		return err
	}
	foot, err := readFooter(file, s.mark, g.number, g.size)
	g.release()
	if err != nil || foot == nil {
		return nil // without its footer the segment stays until it can be compacted
	}
	var moved []*op
	for _, e := range foot.entries {
		if e.kind != kindTombstone {
			continue
		}
		o := newOp(record{kind: kindTombstone, id: e.id, shard: e.shard}, nil)
		if err := s.queue.reserve(ctx, o); err != nil {
			break
		}
		if !s.admitRehome(g, o) {
			s.queue.unreserve(o)
			continue
		}
		moved = append(moved, o)
	}
	for _, o := range moved {
		if o.wait() != nil {
			return nil // no space: later; failed: known already
		}
	}
	return nil
}

// admitRehome queues a tombstone again when the segment still holds it.
func (s *Store) admitRehome(g *segment, o *op) bool {
	p := s.pg(o.rec.id.PG, true)
	p.mu.Lock()
	defer p.mu.Unlock()
	w, err := s.index.get([]byte(o.key))
	if err != nil || w == nil || w.kind != kindTombstone || w.segment != g.number || p.latest[o.key] != nil {
		return false
	}
	o.rec.epoch = w.epoch
	p.startLocked(o)
	s.queue.push(o)
	return true
}

// giveUp lets go of the sealed segments of which nothing is needed any more.
// First the index that knows so is made durable: otherwise a crash could bring
// an index back that points into them.
func (s *Store) giveUp() error {
	use := s.index.usageOf()
	var gone []*segment
	for n, g := range *s.segs.byNumber.Load() {
		if g.sealed.Load() && use[n].empty() && n < s.index.position().segment {
			gone = append(gone, g)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	slices.SortFunc(gone, func(a, b *segment) int { return int(a.number) - int(b.number) })
	if err := s.checkpoint(); err != nil {
		return err
	}
	for _, g := range gone {
		s.segs.remove(g.number)
		if err := g.retire(); err != nil {
			return err
		}
		s.log.Info("segment is dead", "segment", g.path)
		s.counters.given.Add(1)
		if !s.dead.offer(g) {
			s.removeSegment(g)
		}
	}
	signal(s.prepareWake)
	return nil
}

// closeIdle closes the files that were not read for longest when too many are
// open.
func (s *Store) closeIdle() error {
	if s.segs.open.Load() <= maxOpenSegments {
		return nil
	}
	all := make([]*segment, 0, len(*s.segs.byNumber.Load()))
	for _, g := range *s.segs.byNumber.Load() {
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b *segment) int { return int(a.used.Load() - b.used.Load()) })
	for _, g := range all {
		if s.segs.open.Load() <= maxOpenSegments/2 {
			break
		}
		if err := g.closeFile(); err != nil {
			return err
		}
	}
	return nil
}
