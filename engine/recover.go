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

// readFiles opens STORE, EPOCH and MARK, and reads LEDGER.
func (r *recovery) readFiles() error {
	s, fs := r.s, r.s.opts.FS
	var p []byte
	var err error
	if s.files.store, p, err = openSlots(fs, s.path(storeName), storeMagic); err != nil {
		return err
	}
	if p == nil {
		return dfs.Errorf(dfs.Corrupt, "read", "both copies of %s are damaged: the store cannot say who it is", storeName)
	}
	if s.ident, err = decodeIdentity(p); err != nil {
		return err
	}
	s.mark = s.ident.mark
	if s.start, err = s.opts.newMark(); err != nil {
		return err
	}
	if s.files.epoch, p, err = r.openOrMake(epochName, epochMagic, (&epochRecord{}).encode()); err != nil {
		return err
	}
	var ok bool
	if r.epoch, ok = decodeEpoch(p); !ok {
		r.lose("the epoch record is lost")
	}
	s.mapEpoch.Store(uint64(r.epoch.epoch))
	if s.files.mark, p, err = r.openOrMake(markName, markMagic, (&markRecord{}).encode()); err != nil {
		return err
	}
	if r.mark, r.markOK = decodeMark(p); !r.markOK {
		r.lose("the mark is lost")
	}
	return s.ledger.load()
}

// openOrMake opens a slot file; a missing one is made, and its payload is nil.
func (r *recovery) openOrMake(name string, magic uint32, empty []byte) (*slotFile, []byte, error) {
	fs, path := r.s.opts.FS, r.s.path(name)
	f, p, err := openSlots(fs, path, magic)
	if !isNotExist(err) {
		return f, p, err
	}
	if f, err = createSlots(fs, path, magic, empty); err != nil {
		return nil, nil, err
	}
	return f, nil, syncDir(fs, r.s.opts.Dir)
}

// lose notes that records may be missing that nobody can name.
func (r *recovery) lose(reason string) {
	r.suspect = true
	r.s.log.Error("store is incomplete", "dir", r.s.opts.Dir, "reason", reason)
}

// listSegments fills the table: what lies above the mark is empty and ready,
// or was not finished and is removed.
func (r *recovery) listSegments() error {
	s, fs := r.s, r.s.opts.FS
	dir := s.path(segmentsName)
	// What the last life made or renamed may be in the page cache only.
	if err := syncDir(fs, dir); err != nil {
		return err
	}
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	slices.Sort(names)
	table := map[uint64]*segment{}
	s.segs.byNumber.Store(&table)
	known := &s.ledger.known
	s.segs.next = max(r.mark.highest(), known.Gone.highest(), known.Lost.highest()) + 1
	var files [][2]uint64
	for _, name := range names {
		n, ok := parseSegmentName(name)
		if !ok {
			s.log.Warn("not a segment: left alone", "dir", dir, "name", name)
			continue
		}
		g := &segment{number: n, fs: fs, path: fs.PathJoin(dir, name), open: &s.segs.open}
		what, err := r.inspect(g)
		_, closeErr := g.closeFile()
		if err = cmp.Or(err, closeErr); err != nil {
			return dfs.Wrap("open segment", g.path, err)
		}
		if what == fileUnfinished {
			if err := fs.Remove(g.path); err != nil {
				return err
			}
			continue
		}
		s.segs.next = max(s.segs.next, n+1)
		files = append(files, [2]uint64{n, n})
		switch what {
		case fileInUse:
			table[n] = g
			s.segs.note(n)
		case fileReady:
			s.segs.ready = append(s.segs.ready, g)
			s.segs.note(n)
		case fileMisnamed:
			s.log.Error("a segment file has another segment's header: left alone", "segment", g.path)
			if !r.unused(n) {
				r.misnamed = append(r.misnamed, g)
			}
		}
	}
	r.files = joined(files)
	for st, m := range r.mark {
		if r.markOK && m.segment != 0 && table[m.segment] == nil && !known.Lost.has(m.segment) {
			r.miss(m.segment)
		}
		r.tails[st].mark = m.segment
	}
	if !r.markOK { // each stream goes on in its last segment that is not empty
		for n, g := range table {
			if t := &r.tails[g.stream]; g.end.Load() > pageSize {
				t.mark = max(t.mark, n)
			}
		}
	}
	return nil
}

// fileKind is what a file among the segments turns out to be.
type fileKind int

const (
	fileInUse      fileKind = iota
	fileReady               // zero-filled and never used
	fileUnfinished          // was being made, or made anew out of a dead one, when a crash came
	fileMisnamed            // its header names another segment, and it is in use
)

// unused reports whether a segment with that number was never written to.
func (r *recovery) unused(n uint64) bool { return r.markOK && n > r.mark.highest() }

// inspect reads a segment's header and sets its size.
func (r *recovery) inspect(g *segment) (fileKind, error) {
	file, err := g.acquire()
	if err != nil {
		return 0, err
	}
	defer g.release()
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	g.size = info.Size()
	var p [segmentHeaderLen]byte
	n, _ := file.ReadAt(p[:], 0)
	h, err := decodeSegmentHeader(p[:n])
	unused := r.unused(g.number)
	switch {
	case dfs.KindOf(err) == dfs.Unsupported:
		return 0, err
	case err != nil && unused:
		return fileUnfinished, nil
	case err != nil:
		r.s.log.Error("a segment's header is damaged; its records carry all that is needed", "segment", g.path)
		return fileInUse, r.identify(g, file)
	case h.mark != r.s.mark:
		return 0, dfs.Errorf(dfs.Invalid, "check", "it belongs to the store with mark %016x, this one has %016x: move it away", h.mark, r.s.mark)
	case unused && strayed(h.segment, r.unused, &r.s.ledger.known):
		return fileMisnamed, nil
	case unused && (h.segment != g.number || h.size != g.size || g.size != r.s.opts.SegmentSize):
		return fileUnfinished, nil
	case h.segment != g.number:
		return fileMisnamed, nil
	case unused:
		return fileReady, nil
	}
	g.size = max(g.size, h.size)
	return fileInUse, r.identify(g, file)
}

// strayed reports whether the file of a segment that was never written to, whose
// header names segment n, has that one's records: it was not given up, so that the
// file was not taken to be used again.
func strayed(n uint64, unused func(uint64) bool, known *accounted) bool {
	return !unused(n) && !known.Gone.has(n)
}

// identify finds out whose batches a segment has and where they end. One
// without any counts for the log.
func (r *recovery) identify(g *segment, file vfs.File) error {
	g.end.Store(g.size)
	t, err := readTrailer(file, r.s.mark, g.number, g.size)
	switch {
	case dfs.KindOf(err) == dfs.Unsupported:
		return err
	case err == nil && t != nil:
		g.stream = t.stream
		g.end.Store(t.end)
		return nil
	}
	for st, m := range r.mark {
		if m.segment == g.number {
			g.stream = stream(st)
			return nil
		}
	}
	sc := &segmentScan{file: file, mark: r.s.mark, segment: g.number, size: g.size}
	var used bool
	if g.stream, used, err = sc.stream(); !used {
		g.end.Store(pageSize)
	}
	return err
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
