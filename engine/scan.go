package engine

import (
	"io"
	"slices"

	"dfsd/dfs"
)

// scanWindow is how much a scan reads at a time.
const scanWindow = 128 << 10

// segmentScan reads one segment's batches in order. It has no side effects:
// what to do about what it finds is the caller's business.
//
// How bad bytes are judged, with at most one batch ever in flight:
//
//	below what is known to be durable                       → rot
//	above it, and a valid batch follows somewhere           → rot
//	above it, and nothing valid follows                     → torn tail
type segmentScan struct {
	file    io.ReaderAt
	mark    uint64
	segment uint64
	size    int64
	synced  int64 // bytes below it are known to be durable; grows as the scan finds evidence
	closed  bool  // a later segment was begun: every batch here is durable, wherever the last one ends
	foot    *footer
	limit   int64 // no batch reaches beyond it

	small     [batchHeaderLen]byte // for a look ahead that leaves the window where it is
	window    []byte
	windowAt  int64
	windowLen int
	readErr   error // of a read at or above synced
}

// group is one batch, or what could be saved where a batch header is rotten.
type group struct {
	offset, end int64
	headed      bool   // its batch header is sound
	unproved    bool   // it is the last batch, and nothing proves that its sync was ever finished
	first       uint64 // batchHeader.first; 0 when it is not sound
	count       int    // batchHeader.records, likewise
	records     []record
	rot         []span // bytes that held at least one record that is lost, or may have
}

// span is a range of bytes of a segment.
type span struct{ offset, end int64 }

// scanResult says how a segment's log ends and what is wrong in it.
type scanResult struct {
	end  int64         // where the log ends: the next batch may be written here
	torn bool          // a batch at end was begun and not finished
	lost []footerEntry // what the footer lists and the scan did not find
	foot *footer       // nil: the segment is not sealed

	// leftover is past the last record that a torn batch left behind end; 0:
	// there is none. It must be wiped before anything is written at end, or it
	// could one day be taken for what was written there.
	leftover int64
}

// run scans the segment and calls emit for each group in log order. It
// returns what emit returned, Unsupported for a newer version, or the error of
// a read where a torn tail could not be told from a sick disk.
func (s *segmentScan) run(emit func(group) error) (scanResult, error) {
	var err error
	if s.foot, err = readFooter(s.file, s.mark, s.segment, s.size); err != nil && dfs.KindOf(err) == dfs.Unsupported {
		return scanResult{}, err
	}
	s.limit = s.size
	if s.foot != nil {
		s.limit, s.synced = s.foot.end, max(s.synced, s.foot.end)
	}
	s.synced = min(s.synced, s.limit)
	res := scanResult{end: pageSize, foot: s.foot}
	var found map[int64]bool
	if s.foot != nil {
		found = make(map[int64]bool, len(s.foot.entries))
	}
	for res.end+pageSize <= s.limit {
		g, err := s.next(res.end)
		if err != nil {
			return res, err
		}
		if g.end == g.offset {
			res.torn = g.headed || len(g.records) > 0
			if n := len(g.records); n > 0 {
				last := &g.records[n-1]
				res.leftover = int64(alignUp(int(last.offset)+last.length(), pageSize))
			}
			break
		}
		if s.foot != nil {
			g.rot = nil // the footer names the loss exactly
			for i := range g.records {
				found[g.records[i].offset] = true
			}
		}
		if err := emit(g); err != nil {
			return res, err
		}
		res.end = g.end
	}
	if s.foot != nil {
		for _, e := range s.foot.entries {
			if !found[e.offset] {
				res.lost = append(res.lost, e)
			}
		}
	}
	return res, nil
}

// stream finds out whose batches the segment has, and whether it has any: one
// without counts for the log.
func (s *segmentScan) stream() (_ stream, used bool, err error) {
	s.limit = s.size
	for at := int64(pageSize); at+pageSize <= s.size; at += pageSize {
		if h, ok, err := s.batchAt(at); ok || err != nil {
			return h.stream, ok, err
		}
	}
	return logStream, false, nil
}

// next reads the group at off. An empty group means that the log ends there;
// it is headed when a batch was begun there and not finished, and its records
// are what that batch left.
func (s *segmentScan) next(off int64) (group, error) {
	h, ok, err := s.batchAt(off)
	if err != nil {
		return group{}, err
	}
	g := group{offset: off, end: off + int64(h.length), headed: true, first: h.first, count: h.records}
	if ok && s.proved(h) {
		g.records, g.rot, err = s.walk(off+batchHeaderLen, g.end)
		if len(g.records) == h.records {
			g.rot = nil // only padding is damaged
		}
		return g, err
	}
	if ok {
		records, sound, err := s.verify(h)
		if err != nil || sound {
			g.records, g.unproved = records, true
			return g, err
		}
	}
	return s.pastBad(off, ok)
}

// pastBad handles an offset where no sound batch begins: rot when something
// later proves that a sound one was there, else the end of the log.
func (s *segmentScan) pastBad(off int64, begun bool) (group, error) {
	g := group{offset: off, end: off}
	for z := off + pageSize; z+pageSize <= s.limit; z += pageSize {
		if _, ok, err := s.batchAt(z); err != nil {
			return group{}, err
		} else if ok {
			g.end = z
			break
		}
	}
	if g.end == off && off < s.synced {
		g.end = int64(alignUp(int(s.synced), pageSize))
	}
	if g.end == off && s.closed {
		// The footer is lost, and perhaps the header of the last batch. What
		// is missing behind its last record shows in the sequence numbers of
		// the next segment.
		records, gaps, err := s.walk(off, s.limit)
		if len(records) > 0 {
			last := &records[len(records)-1]
			g.records, g.end = records, int64(alignUp(int(last.offset)+last.length(), pageSize))
			g.rot = slices.DeleteFunc(gaps, func(x span) bool { return x.offset > last.offset })
		}
		return g, err
	}
	if g.end == off {
		g.headed = begun
		var err error
		if g.records, _, err = s.walk(off, min(s.limit, off+maxBatchLen)); err != nil {
			return group{}, err
		}
		if s.readErr != nil {
			return group{}, dfs.Wrap("scan segment", segmentName(s.segment), s.readErr)
		}
		return g, nil
	}
	var err error
	g.records, g.rot, err = s.walk(off, g.end)
	return g, err
}

// batchAt decodes the batch header at off; false when there is none that fits.
func (s *segmentScan) batchAt(off int64) (batchHeader, bool, error) {
	p := s.small[:]
	if at := off - s.windowAt; at >= 0 && at+batchHeaderLen <= int64(s.windowLen) {
		p = s.window[at:]
	} else if off+batchHeaderLen > s.size {
		return batchHeader{}, false, nil
	} else if _, err := s.file.ReadAt(p, off); err != nil {
		s.unreadable(off, err)
		return batchHeader{}, false, nil
	}
	h, ok, err := decodeBatch(p, place{s.mark, s.segment, off})
	if !ok || off+int64(h.length) > s.limit {
		return batchHeader{}, false, err
	}
	s.synced = max(s.synced, h.synced)
	return h, true, nil
}

// proved reports whether the batch is known to have been made durable: it lies
// below the mark, or the batch after it was written, which waits for its sync.
func (s *segmentScan) proved(h batchHeader) bool {
	end := h.offset + int64(h.length)
	if s.closed || end <= s.synced {
		return true
	}
	next, ok, _ := s.batchAt(end)
	return ok && next.synced >= end
}

// walk reads the records in [off, end), payloads not read, and the gaps
// between them. Zeros between a record and the end of its page are padding,
// and one bad unit at the start of a page right before a record was a batch
// header.
func (s *segmentScan) walk(off, end int64) (records []record, gaps []span, err error) {
	afterRecord := false
	for off < end {
		r, ok, err := s.recordAt(off, end)
		if err != nil {
			return nil, nil, err
		}
		if ok {
			records = append(records, r)
			off += int64(r.length())
			afterRecord = true
			continue
		}
		if page := int64(alignUp(int(off), pageSize)); afterRecord && off%pageSize != 0 && s.zeros(off, page) {
			off, afterRecord = page, false
			continue
		}
		q := off + recordAlign
		for ; q < end; q += recordAlign {
			if _, ok, err = s.recordAt(q, end); err != nil {
				return nil, nil, err
			} else if ok {
				break
			}
		}
		if off%pageSize != 0 || q != off+recordAlign || q >= end {
			gaps = append(gaps, span{off, min(q, end)})
		}
		off, afterRecord = q, false
	}
	return records, gaps, nil
}

// recordAt decodes the record at off that ends by end; false when there is
// none.
func (s *segmentScan) recordAt(off, end int64) (record, bool, error) {
	if off+recordHeaderLen > end {
		return record{}, false, nil
	}
	at := place{s.mark, s.segment, off}
	p, ok := s.read(off, recordHeaderLen)
	if !ok {
		return record{}, false, nil
	}
	n, ok := recordTableLen(p, at)
	if !ok || off+int64(n) > end {
		return record{}, false, nil
	}
	if p, ok = s.read(off, n); !ok {
		return record{}, false, nil
	}
	r, err := decodeRecord(p, at)
	if err != nil {
		if dfs.KindOf(err) == dfs.Unsupported {
			return record{}, false, err
		}
		return record{}, false, nil
	}
	return r, off+int64(r.length()) <= end, nil
}

// verify reads a whole batch, payloads too, and reports whether every record
// that its header promises is there and sound.
func (s *segmentScan) verify(h batchHeader) ([]record, bool, error) {
	off, end := h.offset+batchHeaderLen, h.offset+int64(h.length)
	var records []record
	for range h.records {
		r, ok, err := s.recordAt(off, end)
		if err != nil || !ok || h.stream == logStream && r.seq != h.first+uint64(len(records)) {
			return nil, false, err
		}
		at := off + int64(r.headerLen())
		for i, c := range r.info.Chunks {
			p, ok := s.read(at, int(c.Len))
			if !ok || dfs.ChunkSum(r.id, r.shard, i, p) != c.Sum {
				return nil, false, nil
			}
			at += int64(c.Len)
		}
		records = append(records, r)
		off += int64(r.length())
	}
	return records, true, nil
}

func (s *segmentScan) zeros(off, end int64) bool {
	p, ok := s.read(off, int(end-off))
	return ok && allZero(p)
}

func allZero(p []byte) bool {
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}

// read returns n bytes at off, valid until the next call; false when they
// cannot be read. n is at most ChunkSize.
func (s *segmentScan) read(off int64, n int) ([]byte, bool) {
	if at := off - s.windowAt; at >= 0 && at+int64(n) <= int64(s.windowLen) {
		return s.window[at : at+int64(n)], true
	}
	if s.window == nil {
		s.window = make([]byte, min(scanWindow, s.size))
	}
	if off < 0 || off+int64(n) > s.size || n > len(s.window) {
		return nil, false
	}
	s.windowAt, s.windowLen = off, int(min(int64(len(s.window)), s.size-off))
	if _, err := s.file.ReadAt(s.window[:s.windowLen], off); err == nil {
		return s.window[:n], true
	}
	// A bad sector somewhere in the window: what was asked for may be sound.
	s.windowLen = n
	if _, err := s.file.ReadAt(s.window[:n], off); err != nil {
		s.windowLen = 0
		s.unreadable(off, err)
		return nil, false
	}
	return s.window[:n], true
}

// unreadable notes a failed read where a torn tail would have to be told from
// a sick disk. The end of the file is neither.
func (s *segmentScan) unreadable(off int64, err error) {
	if off >= s.synced && err != io.EOF {
		s.readErr = err
	}
}
