package engine

import (
	"cmp"
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
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.failed:
			s.condemnIndex()
			<-ctx.Done()
			return
		case <-s.keeperWake:
			if !s.keeperArmed.Swap(true) {
				timer.Reset(markLag)
			}
			continue
		case <-timer.C:
			s.keeperArmed.Store(false) // before it looks at what was written
		}
		switch err := s.tend(); {
		case dfs.KindOf(err) == dfs.NoSpace:
			timer.Reset(fullRetry)
			s.keeperArmed.Store(true)
		case err != nil && ctx.Err() == nil:
			s.fail(err)
		}
	}
}

// tend is one round of the keeper. Files are closed first: on a full disk what
// follows ends early each time.
func (s *Store) tend() error {
	if err := s.closeIdle(); err != nil {
		return err
	}
	if err := s.syncMark(); err != nil {
		return err
	}
	if err := s.keepDamage(); err != nil {
		return err
	}
	// The other half is for what is written until the checkpoint is there.
	if s.counters.sinceCheckpoint.Load() >= s.opts.CheckpointBytes/2 {
		if err := s.checkpoint(); err != nil {
			return err
		}
	}
	if s.mayBeDead.Swap(false) {
		if err := s.giveUp(); err != nil {
			s.mayBeDead.Store(true)
			return err
		}
	}
	return nil
}

// condemnIndex has the next start make the index anew when the store failed
// for damage in the index itself. It may be called again.
func (s *Store) condemnIndex() {
	if !s.badIndex.Load() {
		return
	}
	if err := condemn(s.opts.FS, s.opts.Dir); err != nil {
		s.log.Error("the damaged index cannot be marked: remove it by hand", "dir", s.path(indexName), "cause", err)
	}
}

// condemn has the next start in a directory make the index anew, durably.
func condemn(fs vfs.FS, dir string) error {
	f, err := fs.Create(fs.PathJoin(dir, badIndexName), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	return cmp.Or(f.Sync(), f.Close(), syncDir(fs, dir))
}

// moveMark notes what is known to be durable of a stream. twice: in both slots,
// for a change that must survive rot in one of them.
func (s *Store) moveMark(st stream, to markPlace, twice bool) error {
	s.markTurn <- struct{}{}
	defer func() { <-s.markTurn }()
	m := s.marked
	m[st] = to
	return s.setMarkLocked(m, twice)
}

// setMarkLocked replaces the mark, but never by an earlier one. REQUIRES: markTurn is
// held.
func (s *Store) setMarkLocked(m markRecord, twice bool) error {
	for st, old := range s.marked {
		if m[st].segment < old.segment || m[st].segment == old.segment && m[st].offset < old.offset {
			m[st] = old
		}
	}
	if m == s.marked {
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

// syncMark moves the mark to the end of the last durable batches.
func (s *Store) syncMark() error {
	s.markTurn <- struct{}{}
	defer func() { <-s.markTurn }()
	m := s.marked
	for st, p := range s.index.position() {
		if p.segment != 0 {
			m[st] = markPlace{segment: p.segment, offset: p.end, count: p.count}
		}
	}
	return s.setMarkLocked(m, false)
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

// giveUp lets go of the sealed segments of which nothing is needed any more.
// First the index that knows so is made durable, and how far the streams are:
// otherwise a crash could bring an index back that points into them, or cut what
// replaced them as a torn tail.
func (s *Store) giveUp() error {
	s.giveUpTurn <- struct{}{}
	defer func() { <-s.giveUpTurn }()
	// Which are sealed is asked first: nothing comes into a sealed segment any more,
	// so that counters read later miss nothing. Compaction may fill and seal one
	// between two looks, and counters read before would call it empty.
	var sealed, gone []*segment
	for _, g := range *s.segs.byNumber.Load() {
		if g.sealed.Load() {
			sealed = append(sealed, g)
		}
	}
	use, at := s.index.usageOf(), s.index.position()
	for _, g := range sealed {
		if use[g.number].empty() && !at.needs(g) {
			gone = append(gone, g)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	slices.SortFunc(gone, func(a, b *segment) int { return cmp.Compare(a.number, b.number) })
	if err := s.syncMark(); err != nil {
		return err
	}
	if err := s.checkpoint(); err != nil {
		return err
	}
	lines := make([]ledgerLine, len(gone))
	for i, g := range gone {
		lines[i] = ledgerLine{Time: time.Now().UTC(), Segment: segmentName(g.number), Stream: g.stream.String(), Bytes: g.end.Load(), Seq: s.durableSeq.Load()}
	}
	if err := s.ledger.add(lines); err != nil {
		return err
	}
	for _, g := range gone {
		s.segs.remove(g.number)
		if err := g.retire(); err != nil {
			return err
		}
		s.log.Info("segment is dead", "segment", g.path)
		s.counters.given.Add(1)
		if !s.dead.offer(g, s.opts.SegmentSize) {
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
	now := time.Now().UnixNano()
	for _, g := range *s.segs.byNumber.Load() {
		if g.read.Swap(false) {
			g.used.Store(now)
		}
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b *segment) int { return int(a.used.Load() - b.used.Load()) })
	for _, g := range all {
		if s.segs.open.Load() <= maxOpenSegments/2 {
			break
		}
		if _, err := g.closeFile(); err != nil {
			return err
		}
	}
	return nil
}
