package engine

import (
	"cmp"
	"slices"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

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
