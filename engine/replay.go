package engine

import (
	"maps"
	"slices"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// scan reads the segments above the anchor, and each stream's last one in any
// case: first the log, then what was moved, so that a copy meets its original.
func (r *recovery) scan() error {
	numbers := slices.Sorted(maps.Keys(*r.s.segs.byNumber.Load()))
	for st := range streams {
		from := r.s.index.position()[st]
		for _, n := range numbers {
			g := r.s.segs.get(n)
			last := n == r.tails[st].mark
			switch {
			case g.stream != st:
			case !last && n < from.segment:
				g.seal(st)
			default:
				if err := r.scanOne(g, from, last); err != nil {
					return dfs.Wrap("read segment", g.path, err)
				}
			}
		}
	}
	return r.noteMisnamed()
}

// noteMisnamed notes that whatever lay in a segment is gone when its file turns
// out to be another's: an index made anew knows of nothing that it misses.
func (r *recovery) noteMisnamed() error {
	if len(r.misnamed) == 0 {
		return nil
	}
	return r.s.index.update(func(c *change) error {
		for _, g := range r.misnamed {
			d := Damage{Segment: g.number, Length: g.size, Reason: "the file is another segment's"}
			if err := c.noteDamage(d); err != nil {
				return err
			}
		}
		return nil
	})
}

// scanOne reads one segment into the index. The stream goes on in the last one.
func (r *recovery) scanOne(g *segment, from position, last bool) error {
	s, t := r.s, &r.tails[g.stream]
	file, err := g.acquire()
	if err != nil {
		return err
	}
	sc := &segmentScan{file: file, mark: s.mark, segment: g.number, size: g.size, closed: !last}
	if m := r.mark[g.stream]; g.number == m.segment {
		sc.synced = m.offset
	}
	if g.number == from.segment {
		sc.synced = max(sc.synced, from.end) // the index names durable records only
	}
	var entries []footerEntry
	res, err := sc.run(func(b group) error {
		r.checkOpenEnd(t, b)
		if last {
			for i := range b.records {
				entries = append(entries, entryOf(&b.records[i]))
			}
			t.holed = t.holed || len(b.rot) > 0
		}
		if g.number == from.segment && b.offset < from.end {
			return nil
		}
		return r.applyGroup(g, file, b)
	})
	if err == nil {
		err = r.applyLost(g, res.lost)
	}
	if err != nil {
		g.release()
		return err
	}
	if res.torn {
		s.log.Info("the last batch was not finished and is cut", "segment", g.path, "offset", res.end)
	}
	if !last && res.foot == nil && g.number >= from.segment {
		t.openEnd = g.number
	}
	g.end.Store(res.end)
	if !last || res.foot != nil {
		g.seal(g.stream)
	}
	if !last {
		g.release()
		return nil
	}
	t.active, t.file, t.end, t.entries = g, file, res.end, entries
	t.leftover = res.leftover
	return nil
}

// checkOpenEnd looks whether the records of a batch follow those of a segment
// whose end was not certain.
func (r *recovery) checkOpenEnd(t *tail, b group) {
	if len(b.records) == 0 || t.openEnd == 0 {
		return
	}
	first, last := b.first, t.count
	if t.stream == logStream {
		first, last = b.records[0].seq, r.s.ident.hole.passed(last)
	}
	if first != t.count+1 && first != last+1 {
		r.lose("the end of segment " + segmentName(t.openEnd) + " is damaged")
	}
	t.openEnd = 0
}

// applyGroup puts one batch into the index. The last batch, when nothing
// proves that its sync was finished, is first written again: its bytes may be
// in the page cache only, and marked clean by a sync that failed.
func (r *recovery) applyGroup(g *segment, file vfs.File, b group) error {
	if b.unproved {
		p := make([]byte, b.end-b.offset)
		if _, err := file.ReadAt(p, b.offset); err != nil {
			return err
		}
		if _, err := file.WriteAt(p, b.offset); err != nil {
			return err
		}
		if err := file.SyncData(); err != nil {
			return err
		}
	}
	r.replay += b.end - b.offset
	t := &r.tails[g.stream]
	switch {
	case g.stream == logStream: // below
	case b.headed:
		t.count = b.first + uint64(b.count) - 1
	default:
		t.count += uint64(len(b.records))
	}
	return r.s.index.update(func(c *change) error {
		for i := range b.records {
			rec := &b.records[i]
			if g.stream == logStream {
				t.count = max(t.count, rec.seq)
			}
			if err := r.applyRecord(c, file, rec); err != nil {
				return err
			}
		}
		for _, gap := range b.rot {
			d := Damage{Segment: g.number, Offset: gap.offset, Length: gap.end - gap.offset, Reason: "records are damaged and nothing says which"}
			if err := c.noteDamage(d); err != nil {
				return err
			}
		}
		if b.headed {
			c.advance(g.stream, position{segment: g.number, offset: b.offset, end: b.end, count: t.count})
		}
		return nil
	})
}

// applyRecord puts one record into the index. A copy takes the place of an
// original that is still there only when its bytes are right: it may have been
// written and never read back.
func (r *recovery) applyRecord(c *change, file vfs.File, rec *record) error {
	if r.bounds.cover(rec.id.PG, rec.seq) {
		return nil
	}
	if rec.flags&flagMoved != 0 && rec.kind == kindPut {
		old, err := c.row(blockKey(rec.id, rec.shard))
		if err != nil {
			return err
		}
		if old != nil && old.kind == kindPut && old.segment != rec.segment && checkPayload(file, rec) != nil {
			return c.hold(rec.id, rec.shard, old, rec.segment)
		}
	}
	w := rowOf(rec)
	if rec.kind == kindPut && rec.flags&flagMoved != 0 && !r.rebuild {
		// It says what its block was when it was read, and Doubt may have come between
		// that and the copy: the index knows better.
		w.flags |= rowUndecided
	}
	return c.apply(rec.id, rec.shard, w, r.s.opts.Hooks.DropTombstone)
}

// applyLost keeps what a footer knows of records that cannot be read: a
// tombstone is whole without its record; a block is known to be lost, which is
// not the same as absent.
func (r *recovery) applyLost(g *segment, lost []footerEntry) error {
	if len(lost) == 0 {
		return nil
	}
	return r.s.index.update(func(c *change) error {
		for _, e := range lost {
			if t := &r.tails[g.stream]; t.stream == logStream {
				t.count = max(t.count, e.seq)
			}
			if err := r.applyLostOne(c, g, e); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *recovery) applyLostOne(c *change, g *segment, e footerEntry) error {
	if r.bounds.cover(e.id.PG, e.seq) {
		return nil
	}
	w := &row{kind: e.kind, seq: e.seq, epoch: e.epoch, segment: g.number, offset: e.offset, stored: e.stored, digest: e.digest}
	if e.kind == kindPut {
		w.flags, w.info.Length = rowLost|rowUndecided, e.length
	}
	if err := c.apply(e.id, e.shard, w, r.s.opts.Hooks.DropTombstone); err != nil {
		return err
	}
	have, err := c.row(blockKey(e.id, e.shard))
	if err != nil || have != w || e.kind != kindPut {
		return err
	}
	return c.noteDamage(Damage{
		ID: e.id, Shard: e.shard, Named: true, Segment: g.number, Offset: e.offset, Length: w.recordLen(), Reason: "the record's header is damaged",
	})
}
