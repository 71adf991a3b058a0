package engine

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// recovery is what Open works with until the store runs.
type recovery struct {
	s       *Store
	mark    markRecord
	markOK  bool // false: the MARK file is lost, nothing is known to be empty
	epoch   epochRecord
	rebuild bool   // every segment is read, not only what lies above the anchor
	dropped anchor // of an index that was thrown away
	suspect bool   // records are missing and cannot be named
	replay  int64  // bytes of batches applied to the index
	tails   [streams]tail

	misnamed []*segment // files in use with another segment's header

	files numbers // that have a file which stays
	told  numbers // of segments that were said to be missing
	found accounted

	bounds bounds // what is forgotten
}

// tail is what recovery learns of one stream.
type tail struct {
	appender        // count: number of the last record seen
	mark     uint64 // the segment that it goes on in

	// openEnd is the segment read last, when its footer is lost: whether its
	// batches ended where they seem to, the next record's number will say.
	openEnd uint64

	leftover int64 // scanResult.leftover of the active segment
}

// recoverLog reads the small files, brings the index up to the end of both
// streams, and returns who goes on from there.
//
// Nothing is appended before what was found wrong is on the disk: appending
// would cover the traces.
func (s *Store) recoverLog() (*writer, *compactor, error) {
	r := &recovery{s: s}
	for st := range streams {
		r.tails[st].appender = appender{s: s, stream: st}
	}
	for _, step := range []func() error{r.readFiles, r.listSegments, r.openIndex, r.checkAnchor, r.forget, r.checkNumbers, r.scan, r.judge, r.resume, r.account} {
		if err := step(); err != nil {
			return nil, nil, r.giveBack(err)
		}
	}
	if err := s.failure(); err != nil {
		return nil, nil, r.giveBack(err)
	}
	s.counters.sinceCheckpoint.Store(r.replay)
	s.mayBeDead.Store(true) // the last life may not have come to it
	signal(s.keeperWake)
	return newWriter(r.tails[logStream].appender), newCompactor(r.tails[movedStream].appender), nil
}

// giveBack lets go of the active segments when the store cannot be opened.
func (r *recovery) giveBack(err error) error {
	for st := range r.tails {
		r.tails[st].release()
	}
	return err
}

// lose notes that records may be missing that nobody can name.
func (r *recovery) lose(reason string) {
	r.suspect = true
	r.s.log.Error("store is incomplete", "dir", r.s.opts.Dir, "reason", reason)
}

// openIndex opens the index, or makes it anew when it is lost or damaged.
func (r *recovery) openIndex() error {
	s, fs := r.s, r.s.opts.FS
	bad := s.path(badIndexName)
	if _, err := fs.Stat(bad); err == nil {
		s.log.Error("the index was found damaged and is made anew from the segments", "dir", s.opts.Dir)
		if err := r.wipeIndex(); err != nil {
			return err
		}
		if err := fs.Remove(bad); err != nil {
			return err
		}
	} else if !isNotExist(err) {
		return err
	}
	ix, err := openIndex(r.indexOptions())
	if err != nil {
		if kind := dfs.KindOf(err); kind == dfs.Unsupported || kind == dfs.Unavailable && !s.badIndex.Load() {
			return err
		}
		s.log.Error("the index cannot be used and is made anew from the segments", "dir", s.opts.Dir, "cause", err)
		if err := r.wipeIndex(); err != nil {
			return err
		}
		if ix, err = openIndex(r.indexOptions()); err != nil {
			return err
		}
	}
	s.index = ix
	return syncDir(fs, s.opts.Dir)
}

func (r *recovery) indexOptions() indexOptions {
	s := r.s
	return indexOptions{
		fs: s.opts.FS, dir: s.path(indexName), mark: s.mark, cacheSize: s.opts.CacheSize, memTableSize: uint64(s.opts.MemTableSize), still: s.opts.still,
		log: s.log, exists: s.segs.mayExist, failed: r.indexFailed, corrupt: func(error) { s.badIndex.Store(true) },
	}
}

// indexFailed fails the store, but not for an index that is thrown away.
func (r *recovery) indexFailed(err error) {
	if r.s.index != nil {
		r.s.fail(err)
	}
}

func (r *recovery) wipeIndex() error {
	if err := r.s.opts.FS.RemoveAll(r.s.path(indexName)); err != nil {
		return err
	}
	r.s.badIndex.Store(false)
	return syncDir(r.s.opts.FS, r.s.opts.Dir)
}

// checkAnchor makes sure that both streams reach to where the index stands. An
// index that is ahead of them is made anew from what they still have.
func (r *recovery) checkAnchor() error {
	s := r.s
	a := s.index.position()
	if r.rebuild = a[logStream].segment == 0; r.rebuild {
		return nil
	}
	for st, p := range a {
		ok, err := r.hasBatch(stream(st), p)
		if err != nil {
			return err
		}
		if !ok {
			s.log.Error("the index is ahead of the segments and is made anew", "dir", s.opts.Dir, "segment", p.segment, "offset", p.offset)
			// The new one cannot tell a segment that is missing among others from one
			// that was given up.
			if err := r.checkUsage(); err != nil {
				return err
			}
			return r.dropIndex(a)
		}
		r.tails[st].count = p.count
	}
	return r.checkUsage()
}

// dropIndex makes the index anew.
func (r *recovery) dropIndex(a anchor) error {
	r.rebuild, r.dropped = true, a
	for st := range r.tails {
		r.tails[st].count = 0
	}
	ix := r.s.index
	r.s.index = nil
	if err := ix.close(); err != nil {
		return err
	}
	if err := r.wipeIndex(); err != nil {
		return err
	}
	return r.openIndex()
}

// hasBatch reports whether a batch is where the index says.
func (r *recovery) hasBatch(st stream, a position) (bool, error) {
	if a.segment == 0 {
		return true, nil
	}
	g := r.s.segs.get(a.segment)
	if g == nil {
		return false, nil
	}
	file, err := g.acquire()
	if err != nil {
		return false, err
	}
	defer g.release()
	var p [batchHeaderLen]byte
	if _, err := file.ReadAt(p[:], a.offset); err != nil {
		return false, nil
	}
	h, ok, err := decodeBatch(p[:], place{r.s.mark, a.segment, a.offset})
	return ok && h.stream == st && a.offset+int64(h.length) == a.end && h.first <= a.count, err
}

// checkUsage looks for segments that the index needs and that are gone.
func (r *recovery) checkUsage() error {
	for _, n := range slices.Sorted(maps.Keys(r.s.index.usageOf())) {
		if r.s.segs.get(n) == nil {
			r.miss(n)
		}
	}
	return nil
}

// miss notes that a segment is missing of which something is needed.
func (r *recovery) miss(n uint64) {
	if r.told.has(n) {
		return
	}
	r.told = r.told.union(numbers{{n, n}})
	r.lose("segment " + segmentName(n) + " is missing")
}

// checkNumbers looks for numbers that have neither a file nor a place in the
// ledger. The index knows of those below its anchor whether something of them is
// needed; an index that was lost does not, and then what lay there is lost, or the
// ledger itself is: to fill a store again that needs it not costs less than a block.
// The release before left numbers out, most of all on a full disk: after it a number
// says nothing.
func (r *recovery) checkNumbers() error {
	s := r.s
	known := &s.ledger.known
	var missing numbers
	if s.segs.next > 1 {
		missing = numbers{{1, s.segs.next - 1}}
	}
	missing = missing.without(r.files).without(known.Gone).without(known.Lost)
	harmless := missing
	for st, m := range r.mark {
		if s.index.old {
			break
		}
		from, to := uint64(1), m.segment
		if !r.rebuild {
			from = max(from, s.index.position()[st].segment)
		}
		if !r.markOK {
			to = s.segs.next
		}
		if from <= to {
			harmless = harmless.without(numbers{{from, to}})
		}
	}
	lost := missing.without(harmless)
	for _, x := range lost.without(r.told) {
		r.lose("segment " + numbers{x}.String() + " is missing, and no line of " + ledgerName + " says that it was given up")
	}
	var named [][2]uint64
	for n := range s.index.usageOf() {
		named = append(named, [2]uint64{n, n})
	}
	// What rows name is said until none does.
	r.found = accounted{Gone: harmless.without(joined(named)), Lost: lost.without(joined(named))}
	s.missing, s.rebuilt = lost.union(r.told), r.rebuild
	return nil
}

// account has the ledger know what was found of numbers without a file, when the
// verdict is on the disk. Where there is no space the next start finds it again.
func (r *recovery) account() error {
	if len(r.found.Gone)+len(r.found.Lost)+len(r.s.ledger.bad) == 0 {
		return nil // else a sound ledger takes the place of the damaged one
	}
	err := r.s.ledger.add([]ledgerLine{{Time: time.Now().UTC(), accounted: r.found}})
	if vfs.IsNoSpaceError(err) {
		r.s.log.Warn("no space for a line of the ledger", "dir", r.s.opts.Dir)
		return nil
	}
	return err
}

// judge compares the streams with what was once recorded as durable, and makes
// the verdict durable, in both slots of STORE, and the epoch once more: what was
// read of it may be in the page cache only.
func (r *recovery) judge() error {
	s := r.s
	next := s.ident
	for st := range r.tails {
		t := &r.tails[st]
		known, end := max(r.mark[st].count, r.dropped[st].count), t.count
		if t.stream == logStream {
			known, end = max(known, r.epoch.seq, r.bounds.highest()), next.hole.passed(end)
		}
		if end < known {
			r.lose(fmt.Sprintf("the %v stream ends at record %d, and %d was durable once", t.stream, t.count, known))
		}
		if t.stream == movedStream {
			continue // its numbers only say what follows what
		}
		if end < known {
			next.hole = hole{t.count, max(known, next.hole.last)}
		}
		t.count = next.hole.passed(t.count)
	}
	s.durableSeq.Store(r.tails[logStream].count)
	if err := cmp.Or(s.damage.load(s.index), s.loadFloors()); err != nil {
		return err
	}
	next.rolledBack = next.rolledBack || r.suspect
	if err := s.writeIdent(next); err != nil {
		return err
	}
	return s.files.epoch.both(r.epoch.encode())
}

// resume makes the streams ready to be appended to, and the mark what is now
// known.
func (r *recovery) resume() error {
	m := r.mark
	for st := range r.tails {
		t := &r.tails[st]
		m[st].count = t.count
		if t.active == nil {
			continue
		}
		m[st].segment, m[st].offset = t.active.number, t.end
		if n := t.leftover - t.end; n > 0 {
			if _, err := t.file.WriteAt(make([]byte, n), t.end); err != nil {
				return err
			}
		}
		if err := t.file.SyncData(); err != nil {
			return err
		}
	}
	r.s.marked = m
	r.s.newest = newest{known: r.s.index.session, counters: map[dfs.SessionID]uint64{}}
	return r.s.files.mark.both(m.encode())
}
