package engine

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// survey is what lies in a store's directory, each file looked at by itself and
// none of them changed.
type survey struct {
	fs  vfs.FS
	dir string

	ident   identityRecord
	identOK bool
	mark    uint64 // of the store; when STORE does not say it, the one that most segments have
	epoch   epochRecord
	epochOK bool
	marks   markRecord
	marksOK bool
	known   accounted // LEDGER

	segments    []segmentFile   // by number
	last        [streams]uint64 // the segment that each stream goes on in
	segmentSize int64           // that most segments have; 0: there is none
	found       Report
}

// segmentFile is a file among the segments.
type segmentFile struct {
	number uint64
	path   string
	state  SegmentState
	stream stream // whose batches it has, when it is in use
	empty  bool   // it has none
	size   int64  // of the file, or what its header says if that is more
	err    error  // why its header cannot be used; nil: it can
}

// SegmentState is what a file among the segments turns out to be.
type SegmentState uint8

// The states of a segment's file.
const (
	SegmentActive     SegmentState = iota // written to
	SegmentSealed                         // full
	SegmentReady                          // zero-filled and never used
	SegmentUnfinished                     // was being made when the store stopped: the next start removes it
	SegmentMisnamed                       // its header names another segment
	SegmentForeign                        // its header names another store
)

func (s SegmentState) String() string {
	switch s {
	case SegmentActive:
		return "active"
	case SegmentSealed:
		return "sealed"
	case SegmentReady:
		return "ready"
	case SegmentUnfinished:
		return "unfinished"
	case SegmentMisnamed:
		return "misnamed"
	case SegmentForeign:
		return "foreign"
	}
	return "unknown"
}

// inUse reports whether records of the store may be in the file.
func (f *segmentFile) inUse() bool { return f.state == SegmentActive || f.state == SegmentSealed }

// look reads the small files and the headers of the segments. NotExist: the
// directory holds no store. Unsupported: something in it is of a newer version.
func look(fs vfs.FS, dir string) (*survey, error) {
	v := &survey{fs: fs, dir: dir}
	if _, err := fs.List(dir); isNotExist(err) {
		return nil, dfs.Errorf(dfs.NotExist, "look", "there is no such directory")
	} else if err != nil {
		return nil, err
	}
	names, err := fs.List(fs.PathJoin(dir, segmentsName))
	if err != nil && !isNotExist(err) {
		return nil, err
	}
	_, serr := fs.Stat(fs.PathJoin(dir, storeName))
	if serr != nil && len(names) == 0 {
		return nil, dfs.Errorf(dfs.NotExist, "look", "it holds no store: neither %s nor segments", storeName)
	}
	return v, v.read(names)
}

// read reads the small files and the headers of some of the segments.
func (v *survey) read(names []string) error {
	for _, step := range []func() error{v.readIdentity, v.readEpoch, v.readMark, v.readScrub, v.readLedger} {
		if err := step(); err != nil {
			return err
		}
	}
	return v.readHeaders(names)
}

func (v *survey) path(name string) string { return v.fs.PathJoin(v.dir, name) }

func (v *survey) readIdentity() error {
	p, err := v.readSlots(storeName, storeMagic)
	if err != nil || p == nil {
		return err
	}
	if v.ident, err = decodeIdentity(p); err != nil {
		v.found.fault(Fault{File: storeName, Text: err.Error()})
		return nil
	}
	v.identOK, v.mark = true, v.ident.mark
	if v.ident.rolledBack {
		v.found.fault(Fault{File: storeName, Known: true, Text: "records were lost that cannot be named, or the directory was put back to an earlier state: the store waits for the cluster to fill it again"})
	}
	return nil
}

func (v *survey) readEpoch() error {
	p, err := v.readSlots(epochName, epochMagic)
	if err != nil || p == nil {
		return err
	}
	if v.epoch, v.epochOK = decodeEpoch(p); !v.epochOK {
		v.found.fault(Fault{File: epochName, Text: fmt.Sprintf("a record of %d bytes", len(p))})
	}
	return nil
}

func (v *survey) readMark() error {
	p, err := v.readSlots(markName, markMagic)
	if err != nil || p == nil {
		return err
	}
	if v.marks, v.marksOK = decodeMark(p); !v.marksOK {
		v.found.fault(Fault{File: markName, Text: fmt.Sprintf("a record of %d bytes", len(p))})
	}
	return nil
}

// readScrub checks the place of the scrub, which a store has once it was read.
func (v *survey) readScrub() error {
	if _, err := v.fs.Stat(v.path(scrubName)); isNotExist(err) {
		return nil
	}
	_, err := v.readSlots(scrubName, scrubMagic)
	return err
}

// readLedger checks the lines of the ledger.
func (v *survey) readLedger() error {
	l := &ledger{fs: v.fs, path: v.path(ledgerName)}
	if err := l.load(); err != nil {
		return err
	}
	v.known = l.known
	for i, n := range l.bad {
		if l.torn && i == len(l.bad)-1 {
			v.found.note("%s: line %d was not finished: the next start begins a new file", ledgerName, n)
		} else {
			v.found.fault(Fault{File: ledgerName, Known: true, Text: fmt.Sprintf("line %d is damaged: a segment that it was about counts as lost unless the index knows better; the next start begins a new file", n)})
		}
	}
	return nil
}

// readSlots returns the newest sound payload of a slot file, nil when there is
// none, and notes what is wrong with its slots. A slot of zeros was never
// written: a crash came first.
func (v *survey) readSlots(name string, magic uint32) ([]byte, error) {
	f, err := v.fs.Open(v.path(name))
	if isNotExist(err) {
		v.found.fault(Fault{File: name, Text: "is missing"})
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := &slotFile{file: f, magic: magic}
	var newest []byte
	var generation uint64
	made := name != scrubName // the others were made before the first start was done
	for i := range int64(2) {
		raw := make([]byte, slotLen) // one read: a store that is open may write the slot meanwhile
		n, rerr := f.ReadAt(raw, i*slotLen)
		payload, g, err := s.decode(raw[:n])
		if err != nil {
			return nil, dfs.Wrap("read", v.path(name), err)
		}
		if payload != nil && g >= generation {
			newest, generation = payload, g
		}
		if payload != nil && g&1 != uint64(i) {
			v.found.fault(Fault{File: name, Offset: i * slotLen, Length: slotLen, Text: fmt.Sprintf("slot %d holds the record of the other slot (generation %d)", i, g)})
		}
		if payload != nil {
			continue
		}
		switch {
		case n < slotLen && rerr != nil && rerr != io.EOF:
			v.found.fault(Fault{File: name, Offset: i * slotLen, Length: slotLen, Text: fmt.Sprintf("slot %d cannot be read: %v", i, rerr)})
		case allZero(raw):
			v.found.note("%s: slot %d was never written", name, i)
		default:
			v.found.fault(Fault{File: name, Offset: i * slotLen, Length: slotLen, Text: fmt.Sprintf("slot %d is damaged", i)})
			made = true
		}
	}
	if newest == nil && made {
		text := "has no sound slot"
		if name == storeName {
			text += ": the store cannot say who it is and does not start; empty the directory, and the cluster fills it anew"
		}
		v.found.fault(Fault{File: name, Text: text})
	}
	return newest, nil
}

// readHeaders sorts the files among the segments.
func (v *survey) readHeaders(names []string) error {
	slices.Sort(names)
	sizes, marks := map[int64]int{}, map[uint64]int{}
	var headers []segmentHeader
	for _, name := range names {
		n, ok := parseSegmentName(name)
		if !ok {
			v.found.note("%s is not a segment: it is left alone", v.fs.PathJoin(segmentsName, name))
			continue
		}
		f := segmentFile{number: n, path: v.fs.PathJoin(v.path(segmentsName), name)}
		h, err := v.readHeader(&f)
		if err != nil {
			return dfs.Wrap("read segment", f.path, err)
		}
		if f.err == nil {
			sizes[h.size]++
			marks[h.mark]++
		}
		v.segments, headers = append(v.segments, f), append(headers, h)
	}
	v.segmentSize = mostOf(sizes)
	if !v.identOK {
		v.mark = mostOf(marks)
	}
	for i := range v.segments {
		f := &v.segments[i]
		v.classify(f, headers[i])
		if !f.inUse() {
			continue
		}
		if err := v.identify(f); err != nil {
			return dfs.Wrap("read segment", f.path, err)
		}
	}
	v.findLast()
	return nil
}

// identify finds out whose batches a segment has, by the rules of a start.
func (v *survey) identify(f *segmentFile) error {
	file, err := v.fs.Open(f.path)
	if err != nil {
		return err
	}
	defer file.Close()
	t, err := readTrailer(file, v.mark, f.number, f.size)
	switch {
	case dfs.KindOf(err) == dfs.Unsupported:
		return err
	case err == nil && t != nil:
		f.stream = t.stream
		return nil
	}
	for st, m := range v.marks {
		if m.segment == f.number {
			f.stream = stream(st)
			return nil
		}
	}
	sc := &segmentScan{file: file, mark: v.mark, segment: f.number, size: f.size}
	var used bool
	f.stream, used, err = sc.stream()
	f.empty = !used
	return err
}

// findLast finds the segments that the streams go on in.
func (v *survey) findLast() {
	for st, m := range v.marks {
		v.last[st] = m.segment
	}
	for _, f := range v.segments {
		if !v.marksOK && f.inUse() && !f.empty {
			v.last[f.stream] = max(v.last[f.stream], f.number)
		}
	}
}

// goesOn reports whether a stream goes on in the segment.
func (v *survey) goesOn(f *segmentFile) bool { return f.inUse() && v.last[f.stream] == f.number }

// readHeader returns an error when the file cannot be read or is of another
// version; what is wrong with the header itself is in f.err.
func (v *survey) readHeader(f *segmentFile) (segmentHeader, error) {
	file, err := v.fs.Open(f.path)
	if err != nil {
		return segmentHeader{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return segmentHeader{}, err
	}
	f.size = info.Size()
	var p [segmentHeaderLen]byte
	n, _ := file.ReadAt(p[:], 0)
	h, err := decodeSegmentHeader(p[:n])
	if dfs.KindOf(err) == dfs.Unsupported {
		return h, err
	}
	f.err = err
	return h, nil
}

// unused reports whether a segment with that number was never written to.
func (v *survey) unused(n uint64) bool { return v.marksOK && n > v.marks.highest() }

// classify says what a file is, by the rules of a start.
func (v *survey) classify(f *segmentFile, h segmentHeader) {
	unused := v.unused(f.number)
	at := Fault{File: v.segmentFile(f.number), Segment: f.number, Length: pageSize}
	switch {
	case f.err != nil && unused:
		f.state = SegmentUnfinished
	case f.err != nil:
		f.state = SegmentSealed
		at.Text = "the header is damaged; the records carry all that is needed"
	case h.mark != v.mark:
		f.state = SegmentForeign
		at.Text = fmt.Sprintf("the segment belongs to the store with mark %016x, this one has %016x: move it away", h.mark, v.mark)
	case unused && h.segment == f.number && h.size != f.size, unused && h.segment != f.number && !strayed(h.segment, v.unused, &v.known):
		f.state = SegmentUnfinished
	case h.segment != f.number:
		f.state = SegmentMisnamed
		at.Text = fmt.Sprintf("the file has the header of segment %d", h.segment)
	case unused:
		f.state = SegmentReady
	default:
		f.state = SegmentSealed
		if f.size < h.size {
			at.Text = fmt.Sprintf("the file has %d bytes, its header says %d", f.size, h.size)
		}
		f.size = max(f.size, h.size)
	}
	if at.Text != "" {
		v.found.fault(at)
	}
	if f.state == SegmentUnfinished {
		v.found.note("%s was being made when the store stopped: the next start removes it", at.File)
	}
}

// segmentFile is the name of a segment's file in the directory.
func (v *survey) segmentFile(n uint64) string { return v.fs.PathJoin(segmentsName, segmentName(n)) }

// segment returns a segment that is in use, nil when there is none.
func (v *survey) segment(n uint64) *segmentFile {
	i, ok := slices.BinarySearchFunc(v.segments, n, func(f segmentFile, n uint64) int { return cmp.Compare(f.number, n) })
	if !ok || !v.segments[i].inUse() {
		return nil
	}
	return &v.segments[i]
}

// mostOf is the key that was counted most often, the least among equals, and 0
// when there is none.
func mostOf[K cmp.Ordered](counts map[K]int) (most K) {
	for k, n := range counts {
		if n > counts[most] || n == counts[most] && k < most {
			most = k
		}
	}
	return most
}
