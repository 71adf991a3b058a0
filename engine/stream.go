package engine

import (
	"encoding/binary"
	"io"
	"math"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// stream is one of a store's two sequences of batches. Each fills segments of
// its own, so that what lives long does not lie among what dies soon, and what
// moves does not stand in the way of what is put.
type stream uint8

const (
	// logStream has what callers put and delete, in the order of its sequence
	// numbers.
	logStream stream = iota

	// movedStream has what compaction copied out of other segments. A copy keeps
	// its original's sequence number and epoch. Invariant: an original is given
	// up only when its copy is on the disk, was read back, and lies below the
	// stream's mark and the index's anchor.
	movedStream

	streams
)

func (t stream) String() string {
	if t == movedStream {
		return "moved"
	}
	return "log"
}

// position is a batch of a stream.
type position struct {
	segment uint64 // 0: of none
	offset  int64  // of the batch
	end     int64  // past it
	count   uint64 // number in the stream of the last record up to it; in the log its sequence number
}

// anchor is where the index stands: it holds the effect of every batch of a
// stream up to this one.
type anchor [streams]position

// needs reports whether a segment must stay for the anchor's sake: the next
// start goes on from there.
func (a *anchor) needs(g *segment) bool {
	return g.number == a[movedStream].segment || g.stream == logStream && g.number >= a[logStream].segment
}

// anchorLen: version, mark, positions, highest session.
const anchorLen = oldAnchorLen + 8

// oldAnchorLen: the release before did not know the highest session.
const oldAnchorLen = 12 + int(streams)*32

// unknownSession is above every session.
const unknownSession = math.MaxUint64

func (a *anchor) encode(mark uint64, session dfs.SessionID) []byte {
	b := binary.BigEndian
	p := append(make([]byte, 0, anchorLen), formatVersion, 0, 0, 0)
	p = b.AppendUint64(p, mark)
	for _, x := range a {
		p = b.AppendUint64(p, x.segment)
		p = b.AppendUint64(p, uint64(x.offset))
		p = b.AppendUint64(p, uint64(x.end))
		p = b.AppendUint64(p, x.count)
	}
	return b.AppendUint64(p, uint64(session))
}

func decodeAnchor(p []byte) (a anchor, mark uint64, session dfs.SessionID, err error) {
	if len(p) > 0 && p[0] != formatVersion {
		return anchor{}, 0, 0, dfs.Errorf(dfs.Unsupported, "read index", "version %d: this release knows %d", p[0], formatVersion)
	}
	if len(p) == oldAnchorLen {
		p = binary.BigEndian.AppendUint64(p[:oldAnchorLen:oldAnchorLen], unknownSession)
	}
	if len(p) != anchorLen {
		return anchor{}, 0, 0, dfs.Errorf(dfs.Corrupt, "read index", "anchor of %d bytes", len(p))
	}
	b := binary.BigEndian
	for i := range a {
		q := p[12+i*32:]
		a[i] = position{b.Uint64(q), int64(b.Uint64(q[8:])), int64(b.Uint64(q[16:])), b.Uint64(q[24:])}
	}
	return a, b.Uint64(p[4:]), dfs.SessionID(b.Uint64(p[anchorLen-8:])), nil
}

// appender appends batches to the active segment of one stream. Its fields
// belong to the goroutine that appends.
type appender struct {
	s       *Store
	stream  stream
	active  *segment // nil: none yet
	file    vfs.File // of the active segment
	end     int64    // of its batches
	count   uint64   // number of the stream's last record
	entries []footerEntry
	holed   bool   // records of the active segment are damaged: a footer would say that they never were
	buf     []byte // Invariant: cap <= maxBatchLen
}

// fits reports whether the active segment has room for n records of so many
// bytes more, and for a footer that lists them.
func (a *appender) fits(bytes, n int) bool {
	if a.active == nil || a.active.sealed.Load() {
		return false
	}
	return a.end+int64(alignUp(batchHeaderLen+bytes, pageSize))+footerLen(len(a.entries)+n) <= a.active.size
}

// begin seals the active segment and makes next the active one.
//
// The mark is moved to next before the first byte is written there: so a
// segment above all marks is known to be empty.
func (a *appender) begin(next *segment) error {
	if a.active != nil {
		if err := a.seal(); err != nil {
			return err
		}
		a.release()
	}
	file, err := next.acquire()
	if err != nil {
		return err
	}
	a.active, a.file, a.end, a.entries, a.holed = next, file, pageSize, nil, false
	next.end.Store(pageSize)
	return a.s.moveMark(a.stream, markPlace{segment: next.number, offset: pageSize, count: a.count}, true)
}

// seal writes the footer, unless it could not list every record.
func (a *appender) seal() error {
	if a.active.sealed.Load() {
		return nil
	}
	if !a.holed {
		h := segmentHeader{mark: a.s.mark, segment: a.active.number, size: a.active.size}
		p := encodeFooter(a.entries, a.end, a.stream, h)
		if _, err := a.file.WriteAt(p, a.active.size-int64(len(p))); err != nil {
			return err
		}
		if err := a.file.SyncData(); err != nil {
			return err
		}
	}
	a.active.aged.Store(time.Now().UnixNano())
	a.active.seal(a.stream)
	a.s.mayBeDead.Store(true)
	return nil
}

func (a *appender) release() {
	if a.active != nil {
		a.active.release()
		a.active, a.file = nil, nil
	}
}

// vectored is what a file may do besides: write several pieces end to end, all
// or with an error.
type vectored interface {
	WriteAtV(pieces [][]byte, off int64) (int, error)
}

// uncached is what a file may do besides: forget what the system keeps of a range
// in memory, so that the next read of it asks the disk. REQUIRES: it was synced.
type uncached interface {
	DropCache(off, length int64)
}

// readBack reads what was just synced: from the disk where the file can do so,
// from memory, which would hide what went wrong below it, where it cannot.
func readBack(file io.ReaderAt, p []byte, off int64) error {
	if f, ok := file.(uncached); ok {
		f.DropCache(off, int64(len(p)))
	}
	_, err := file.ReadAt(p, off)
	return err
}

// encode lays the records out as one batch in one piece.
func (a *appender) encode(ops []*op) []byte {
	pieces, _ := a.lay(ops, math.MaxInt)
	return pieces[0]
}

// lay lays the records out as one batch at the end of the stream, and gives each
// its place. Records of the log get their sequence numbers. Payloads from direct
// bytes up are pieces of their own, where their owner has them; what lies between
// them is in the appender's buffer.
func (a *appender) lay(ops []*op, direct int) (pieces [][]byte, length int) {
	own := 0
	length = batchHeaderLen
	for _, o := range ops {
		length += o.rec.length()
		if len(o.payload) >= direct {
			own += len(o.payload)
		}
	}
	length = alignUp(length, pageSize)
	if cap(a.buf) < length-own {
		a.buf = make([]byte, 0, length-own)
	}
	buf := a.buf[:batchHeaderLen]
	h := batchHeader{
		stream: a.stream, segment: a.active.number, offset: a.end, first: a.count + 1, synced: a.end, length: length, records: len(ops),
	}
	begin := 0 // of the piece in buf
	own = 0    // bytes of the batch so far that are not in buf
	for _, o := range ops {
		at := len(buf) + own
		a.count++
		o.rec.segment, o.rec.offset = a.active.number, a.end+int64(at)
		if a.stream == logStream {
			o.rec.seq = a.count
		}
		buf = o.rec.appendHeader(buf, a.s.mark)
		if len(o.payload) >= direct {
			pieces = append(pieces, buf[begin:], o.payload)
			begin = len(buf)
			own += len(o.payload)
		} else {
			buf = append(buf, o.payload...)
		}
		buf = pad(buf, at+o.rec.length()-own)
	}
	buf = pad(buf, length-own)
	h.encode(buf, a.s.mark)
	if begin < len(buf) {
		pieces = append(pieces, buf[begin:])
	}
	return pieces, length
}

// write writes a batch at the end of the stream, and returns its length. Large
// payloads are not copied where the file can do without.
func (a *appender) write(ops []*op) (length int, err error) {
	direct := math.MaxInt
	file, ok := a.file.(vectored)
	if ok {
		direct = directBytes
	}
	pieces, length := a.lay(ops, direct)
	if len(pieces) == 1 {
		_, err = a.file.WriteAt(pieces[0], a.end)
	} else {
		_, err = file.WriteAtV(pieces, a.end)
	}
	return length, err
}

// appended notes that a batch of so many bytes with these records is on the
// disk, and returns where it lies.
func (a *appender) appended(ops []*op, length int64) position {
	for _, o := range ops {
		a.entries = append(a.entries, entryOf(&o.rec))
	}
	p := position{segment: a.active.number, offset: a.end, end: a.end + length, count: a.count}
	a.end = p.end
	return p
}

// pad appends zeros up to length n. REQUIRES: the capacity is there.
func pad(buf []byte, n int) []byte {
	m := len(buf)
	buf = buf[:n]
	clear(buf[m:])
	return buf
}
