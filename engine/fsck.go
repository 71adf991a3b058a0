package engine

import (
	"context"
	"fmt"
	"io"
	"slices"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// fsck compares everything in a store's directory with everything else.
//
//	rows      each block row with its epoch row, the counters of segments with
//	          the rows that they count
//	segments  each batch, record, payload and footer by itself; each record with
//	          the row of its block: the row must name it, or something that
//	          makes it needless
//	missing   where a segment has fewer records that rows name than rows that
//	          name it: which rows these are
//
// The memory it needs grows with the number of segments, not of blocks.
type fsck struct {
	ctx      context.Context
	v        *survey
	ix       *index  // nil: a start is refused, and only the segments are looked at
	rebuilt  bool    // ix was made anew from the segments just now, and knows no more than they say
	missing  numbers // segments that the start missed
	open     bool    // the store is open
	report   *Report
	progress func(done, total int64)

	done, total int64
	rows        map[uint64]uint64      // rows by the segment that they name, lost ones not among them
	matched     map[uint64]uint64      // of these, those whose record was seen
	sets        setCounts              // of undecided blocks and the trash, as the rows of blocks say
	setRows     setCounts              // as their own rows say, without bytes
	floors      map[dfs.PGID]dfs.Epoch // of tombstones
	bounds      bounds                 // what is forgotten
	noted       map[spot]notedDamage   // unnamed damage that the store knows of
	reader      payloadReader
}

// notedDamage is a row of damage; acked: the cluster has been told of it.
type notedDamage struct {
	Damage
	acked bool
}

// spot is a place in a segment.
type spot struct {
	segment uint64
	offset  int64
}

// Verify reads all segments and the index and reports what is wrong. An error
// says why it could not do so: ctx has ended, or something is of a newer
// version. progress may be nil; it is told how many bytes of segments were read,
// and how many there are.
func (in *Inspection) Verify(ctx context.Context, progress func(done, total int64)) (*Report, error) {
	report, err := in.verify(ctx, progress)
	return report, dfs.Wrap("verify store", in.dir, err)
}

func (in *Inspection) verify(ctx context.Context, progress func(done, total int64)) (*Report, error) {
	c := newFsck(ctx, in.survey, progress)
	r := in.start(ctx)
	r.report(c.report)
	if dfs.KindOf(r.err) == dfs.Unsupported {
		return nil, r.err
	}
	if r.store != nil {
		c.ix, c.rebuilt, c.floors, c.missing = r.store.index, r.store.rebuilt, r.store.floors, r.store.missing
		c.bounds = r.store.ledger.bounds()
	}
	return c.report, c.run()
}

func newFsck(ctx context.Context, v *survey, progress func(done, total int64)) *fsck {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	c := &fsck{
		ctx: ctx, v: v, report: &Report{}, progress: progress,
		rows: map[uint64]uint64{}, matched: map[uint64]uint64{}, noted: map[spot]notedDamage{},
	}
	c.report.add(&v.found)
	return c
}

func (c *fsck) run() error {
	steps := []func() error{c.checkIndex, c.checkSegments, c.findMissing}
	if c.ix == nil {
		steps = []func() error{c.checkSegments}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	c.report.settle(c.ix != nil)
	c.excuse()
	return nil
}

// excuse makes notes of faults in segments of which nothing is needed any more:
// the next time that the store looks it gives them up. What is about a block, and
// what the store has listed as damage, stays a fault.
func (c *fsck) excuse() {
	if c.ix == nil || c.rebuilt {
		return
	}
	use, at := c.ix.usageOf(), c.ix.position()
	c.report.Faults = slices.DeleteFunc(c.report.Faults, func(x Fault) bool {
		f := c.v.segment(x.Segment)
		if x.Named || x.Known || f == nil || !use[f.number].empty() || c.v.goesOn(f) || at.needs(&segment{number: f.number, stream: f.stream}) {
			return false
		}
		c.report.note("%s: nothing in the segment is needed any more", x.String())
		return true
	})
}

// checkSegments reads every segment.
func (c *fsck) checkSegments() error {
	for _, f := range c.v.segments {
		if f.inUse() {
			c.total += f.size
		}
	}
	for i := range c.v.segments {
		f := &c.v.segments[i]
		// An open store takes segments that are ready into use meanwhile.
		if !f.inUse() && (f.state != SegmentReady || c.open) {
			continue
		}
		file, err := c.v.fs.Open(f.path)
		if err != nil {
			return dfs.Wrap("read segment", f.path, err)
		}
		s := &segmentCheck{fsck: c, f: f, file: file, name: c.v.segmentFile(f.number)}
		if f.inUse() {
			err = s.run(c.v.goesOn(f))
		} else {
			s.unused()
		}
		_ = file.Close()
		if err != nil {
			return dfs.Wrap("read segment", f.path, err)
		}
	}
	return nil
}

// segmentCheck reads one segment.
type segmentCheck struct {
	*fsck
	f    *segmentFile
	file vfs.File
	name string // in the directory

	gaps    int
	entries map[int64]footerEntry // of the records seen, by offset
	orphans []footerEntry         // puts of which the index has no row
}

// wrong reports a fault in the segment.
func (s *segmentCheck) wrong(f Fault) {
	f.File, f.Segment = s.name, s.f.number
	s.report.fault(f)
}

// lost reports a fault of a block's record.
func (s *segmentCheck) lost(e *footerEntry, length int64, known bool, format string, args ...any) {
	s.wrong(Fault{Offset: e.offset, Length: length, Named: true, ID: e.id, Shard: e.shard, Known: known, Text: fmt.Sprintf(format, args...)})
}

// unused looks into a segment that should never have been written to.
func (s *segmentCheck) unused() {
	sc := &segmentScan{file: s.file, mark: s.v.mark, segment: s.f.number, size: s.f.size, limit: s.f.size}
	if _, ok, _ := sc.batchAt(pageSize); ok {
		s.wrong(Fault{Offset: pageSize, Length: pageSize, Text: fmt.Sprintf("holds records, and %s says that it was never written to", markName)})
	}
}

func (s *segmentCheck) run(last bool) error {
	sc := &segmentScan{file: s.file, mark: s.v.mark, segment: s.f.number, size: s.f.size, closed: !last}
	if m := s.v.marks[s.f.stream]; s.f.number == m.segment {
		sc.synced = m.offset
	}
	if s.ix != nil {
		if at := s.ix.position()[s.f.stream]; s.f.number == at.segment {
			sc.synced = max(sc.synced, at.end)
		}
	}
	s.entries = map[int64]footerEntry{}
	begun := s.done
	res, err := sc.run(s.group)
	if err != nil {
		if dfs.KindOf(err) == dfs.Unsupported || s.ctx.Err() != nil {
			return err
		}
		s.wrong(Fault{Offset: res.end, Length: s.f.size - res.end, Text: fmt.Sprintf("cannot be read: %v", err)})
	}
	s.orphaned()
	if res.torn {
		s.report.note("%s: the batch at %d was not finished: the next start cuts it", s.name, res.end)
	}
	if err := s.footer(&res, last); err != nil {
		return err
	}
	if last && res.foot == nil {
		s.f.state = SegmentActive
	}
	s.report.Segments++
	s.report.Bytes += res.end
	s.done = begun + s.f.size
	s.progress(s.done, s.total)
	return nil
}

// group checks what a scan found in one batch.
func (s *segmentCheck) group(g group) error {
	if err := s.ctx.Err(); err != nil || s.under(g) {
		return err
	}
	s.report.Batches++
	if !g.headed && (len(g.rot) == 0 || g.rot[0].offset > g.offset) {
		s.wrong(Fault{Offset: g.offset, Length: batchHeaderLen, Text: "the header of a batch is damaged"})
	}
	for _, x := range g.rot {
		s.gap(x)
	}
	for i := range g.records {
		if err := s.record(&g.records[i]); err != nil {
			return err
		}
	}
	s.padding(g)
	s.done += g.end - g.offset
	s.progress(s.done, s.total)
	return nil
}

// under reports whether a batch of an open store is still being made: the index
// does not know it yet.
func (s *segmentCheck) under(g group) bool {
	if !s.open {
		return false
	}
	at := s.ix.position()[s.f.stream]
	return s.f.number > at.segment || s.f.number == at.segment && g.offset >= at.end
}

// gap reports bytes in which records may be lost.
func (s *segmentCheck) gap(x span) {
	s.gaps++
	f := Fault{Offset: x.offset, Length: x.end - x.offset, Text: "records are damaged and nothing says which", gap: true}
	if what := strangerAt(s.file, x.offset); what != "" {
		f.Text = what
	}
	key := spot{s.f.number, x.offset}
	d, ok := s.noted[key]
	if !ok {
		s.wrong(f)
		return
	}
	delete(s.noted, key)
	f.File, f.Segment = s.name, s.f.number
	s.known(d, f)
}

// padding looks at the bytes between records, which nothing uses.
func (s *segmentCheck) padding(g group) {
	if !g.headed || len(g.rot) > 0 {
		return
	}
	at := g.offset + batchHeaderLen
	for i := range g.records {
		r := &g.records[i]
		if r.offset != at {
			return // a record before it is damaged
		}
		at += int64(r.headerLen()) + int64(r.stored)
		next := r.offset + int64(r.length())
		s.zeros(at, next)
		at = next
	}
	if int64(alignUp(int(at), pageSize)) == g.end { // else a record behind it is damaged
		s.zeros(at, g.end)
	}
}

func (s *segmentCheck) zeros(from, to int64) {
	if from >= to {
		return
	}
	p := make([]byte, to-from)
	if _, err := s.file.ReadAt(p, from); err == nil && !allZero(p) {
		s.report.note("%s: padding from %d to %d was changed: nothing is lost, but something wrote there or the disk does not keep what it is given", s.name, from, to)
	}
}

// record checks one sound header, its payload and the row of its block.
func (s *segmentCheck) record(r *record) error {
	s.report.Records++
	e := entryOf(r)
	s.entries[r.offset] = e
	w, err := s.compare(r, &e)
	if err != nil {
		return err
	}
	bad := s.reader.payloadFault(s.file, r)
	switch {
	case bad == "" && w != nil && w.flags&rowDamaged != 0:
		s.report.note("%s at %d: block %s was found damaged, and can be read now", s.name, r.offset, r.id)
	case bad == "":
	case w != nil || s.ix == nil:
		s.lost(&e, int64(r.length()), w != nil && w.flags&rowDamaged != 0, "%s", bad)
	default:
		s.report.note("%s at %d: a record of block %s that nothing needs any more: %s", s.name, r.offset, r.id, bad)
	}
	return nil
}

// compare looks at what the index says of a record's block, and returns the row
// when it names the record.
func (s *segmentCheck) compare(r *record, e *footerEntry) (*row, error) {
	if s.ix == nil {
		return nil, nil
	}
	w, err := s.ix.get(blockKey(r.id, r.shard))
	if err != nil {
		return nil, err
	}
	wrong := func(format string, args ...any) { s.lost(e, int64(r.length()), false, format, args...) }
	switch {
	case s.bounds.cover(r.id.PG, r.seq) && (w == nil || w.segment != r.segment || w.offset != r.offset): // forgotten
	case w == nil && r.kind == kindPut:
		s.orphans = append(s.orphans, *e)
	case w == nil && r.epoch < s.floors[r.id.PG]: // dropped
	case w == nil:
		wrong("the index does not know the tombstone")
	case w.segment == r.segment && w.offset == r.offset && w.flags&rowLost != 0:
		wrong("the index says that its record is damaged, and it is sound")
	case w.segment == r.segment && w.offset == r.offset:
		s.matched[r.segment]++
		if what := w.differs(rowOf(r)); what != "" {
			wrong("the index says something else of it: %s", what)
		}
		return w, nil
	case w.kind == kindTombstone && r.kind == kindPut, w.kind == r.kind && w.seq >= r.seq:
		if r.kind == kindPut && w.segment != r.segment && len(w.holders) < maxHolders && !slices.Contains(w.holders, r.segment) {
			wrong("the index does not remember that the segment has a put of it, which a lost index would bring back")
		}
	case w.kind == kindPut && r.kind == kindTombstone:
		wrong("the index has the block, and it was deleted")
	default:
		wrong("the index has an older record (%d) of it than this (%d)", w.seq, r.seq)
	}
	return nil, nil
}

// orphaned looks at the puts of which the index has no row. That is right when
// they were deleted in the same segment and the tombstone was dropped, which
// happens right before the segment is given up.
func (s *segmentCheck) orphaned() {
	dropped := map[string]bool{}
	for _, e := range s.entries {
		if len(s.orphans) > 0 && e.kind == kindTombstone && e.epoch < s.floors[e.id.PG] {
			dropped[string(blockKey(e.id, e.shard))] = true
		}
	}
	for i := range s.orphans {
		e := &s.orphans[i]
		if !dropped[string(blockKey(e.id, e.shard))] {
			w := row{kind: e.kind, stored: e.stored, info: dfs.BlockInfo{Length: e.length}}
			s.lost(e, w.recordLen(), false, "the index does not know the put")
		}
	}
}

// footer compares the footer with what the scan found.
func (s *segmentCheck) footer(res *scanResult, last bool) error {
	if res.foot == nil {
		switch damaged := trailerLeft(s.file, place{s.v.mark, s.f.number, 0}, s.f.size); {
		case damaged && last:
			s.report.note("%s: the footer was not finished: the next start goes on in the segment", s.name)
		case !damaged && (last || s.gaps > 0 || len(s.entries) == 0):
		case !damaged && s.allRead() && neverFooted(s.file, s.f.size):
			s.report.note("%s: it has no footer, as after a loss of the end of the log: all that is needed of it was read", s.name)
		default:
			s.wrong(Fault{Offset: s.f.size - pageSize, Length: pageSize, Text: "the footer is damaged or missing"})
		}
		return nil
	}
	listed := map[int64]bool{}
	for _, e := range res.foot.entries {
		listed[e.offset] = true
		if have, ok := s.entries[e.offset]; ok && have != e {
			s.lost(&have, footerEntryLen, false, "the footer says something else of it")
		}
	}
	for off, e := range s.entries {
		if !listed[off] {
			s.lost(&e, footerEntryLen, false, "the footer does not list it")
		}
	}
	for i := range res.lost {
		if err := s.unread(&res.lost[i]); err != nil {
			return err
		}
	}
	return nil
}

// allRead reports whether every row that names the segment has its record, by an
// index that does not come from the segments just now.
func (s *segmentCheck) allRead() bool {
	return s.ix != nil && !s.rebuilt && s.matched[s.f.number] == s.rows[s.f.number]
}

// neverFooted reports whether no footer was written at the end of a file: it has
// zeros there, or the whole trailer of an earlier life.
func neverFooted(file io.ReaderAt, size int64) bool {
	var t [trailerLen]byte
	if _, err := file.ReadAt(t[:], size-trailerLen); err != nil {
		return false
	}
	return allZero(t[:]) || trailerSound(t[:])
}

// trailerLeft reports whether a file ends with what looks like the end of a
// segment's footer, sound or not.
func trailerLeft(file io.ReaderAt, of place, size int64) bool {
	var t [trailerLen]byte
	if _, err := file.ReadAt(t[:], size-trailerLen); err != nil {
		return false
	}
	at, ok := trailerPlace(t[:])
	return ok && at == of
}

// unread reports a record that the footer lists and that is not there.
func (s *segmentCheck) unread(e *footerEntry) error {
	w := row{kind: e.kind, stored: e.stored, info: dfs.BlockInfo{Length: e.length}}
	const text = "the header of its record is damaged"
	if s.ix == nil {
		s.lost(e, w.recordLen(), false, text)
		return nil
	}
	have, err := s.ix.get(blockKey(e.id, e.shard))
	switch {
	case err != nil:
		return err
	case have == nil && s.bounds.cover(e.id.PG, e.seq):
		s.report.note("%s at %d: a record of block %s that was forgotten with its placement group is damaged", s.name, e.offset, e.id)
	case have == nil:
		s.lost(e, w.recordLen(), false, text+", and the index does not know it")
	case have.segment != s.f.number || have.offset != e.offset:
		s.report.note("%s at %d: a record of block %s that nothing needs any more is damaged", s.name, e.offset, e.id)
	case have.flags&rowLost != 0: // reported with its row
	default:
		s.matched[s.f.number]++
		s.lost(e, w.recordLen(), e.kind == kindTombstone || have.flags&rowDamaged != 0, text)
	}
	return nil
}
