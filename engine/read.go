package engine

import (
	"context"
	"io"
	"math/bits"
	"sync"

	"dfsd/dfs"
)

// Read is the answer of Get. It belongs to the store again after Release.
type Read struct {
	Info  dfs.BlockInfo // its chunks are shared: not to be changed
	Epoch dfs.Epoch
	First int    // number of the first chunk in Data
	Data  []byte // stored bytes of the chunks that cover the range, end to end

	// Hint is what the record says the block was written for; zero unless Data
	// begins with the first chunk.
	Hint dfs.Hint

	// Undecided: nobody has said whether metadata names the block.
	Undecided bool

	// Trashed: the block is in the trash. Whoever has its name from metadata
	// shows that it should not be.
	Trashed bool

	// HeaderLost: the bytes are sound and the header of their record is not,
	// so that Hint is lost and so would the block be without the index. It is
	// listed as damaged, and a put of the same bytes replaces it.
	HeaderLost bool

	buf *buffer // that holds Data; nil after Release
}

// Release gives the Read and its Data back: both may be another's then, and the
// caller looks at neither again.
func (r *Read) Release() {
	if b := r.buf; b != nil {
		*r = Read{}
		b.release()
	}
}

// buffer is room for one read, and its answer.
type buffer struct {
	pool *sync.Pool
	room []byte
	read Read
}

func (b *buffer) release() { b.pool.Put(b) }

// buffers are read buffers by size class, powers of two from one chunk to the
// largest block. The pools let go of what is not used.
type buffers struct {
	classes [bufferClasses]sync.Pool
}

const (
	minBufferBits = 16 // a chunk
	bufferClasses = 9  // up to 16 MiB

	// maxRecordHeader is the header and chunk table of the greatest block:
	// every buffer has room for it before the payload.
	maxRecordHeader = recordHeaderLen + dfs.MaxBlockSize/dfs.ChunkSize*chunkLen
)

// get returns room for n bytes, of which at most maxRecordHeader are no payload.
func (b *buffers) get(n int) *buffer {
	class := max(0, bits.Len(uint(max(n-maxRecordHeader, 1)-1))-minBufferBits)
	pool := &b.classes[class]
	if p, ok := pool.Get().(*buffer); ok {
		return p
	}
	return &buffer{pool: pool, room: make([]byte, maxRecordHeader+1<<(class+minBufferBits))}
}

// Get reads the chunks that cover length logical bytes from offset, and checks
// them. A range past the block's end is cut. NotExist: there is no such block,
// or it was deleted; whether that is so in the whole cluster is for the caller
// to judge. Corrupt: its bytes are damaged or lost here. Unavailable: the
// index cannot be read, so nothing is known.
func (s *Store) Get(ctx context.Context, id dfs.BlockID, shard uint8, offset, length uint32) (*Read, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.exit()
	var last *row
	for {
		if err := ctx.Err(); err != nil {
			return nil, &dfs.Error{Kind: dfs.Deadline, Op: "read block", Object: id.String(), Err: err}
		}
		w, err := s.present(id, shard)
		if err != nil {
			return nil, err
		}
		if w.flags&rowLost != 0 {
			return nil, dfs.Errorf(dfs.Corrupt, "read block", "%s: its record is damaged", id)
		}
		var r *Read
		g := s.segs.get(w.segment)
		switch {
		case g != nil:
			r, err = s.readRow(g, id, shard, w, offset, length)
		case last != nil && last.at(w):
			err = s.readFailed(id, shard, w, dfs.Errorf(dfs.Corrupt, "read block", "%s is missing", segmentName(w.segment)))
		}
		if g == nil && err == nil || dfs.KindOf(err) == dfs.NotExist {
			last = w
			continue // it has moved since the index was asked: ask again
		}
		return r, err
	}
}

// present returns the row of a block that is there.
func (s *Store) present(id dfs.BlockID, shard uint8) (*row, error) {
	w, err := s.index.lookup(id, shard)
	if err != nil {
		return nil, err
	}
	if w == nil || w.kind == kindTombstone {
		return nil, &dfs.Error{Kind: dfs.NotExist, Op: "read block", Object: id.String()}
	}
	return w, nil
}

// readRow reads and checks chunks, and with the first of them the header that
// lies before it. NotExist: the index names another place by now.
func (s *Store) readRow(g *segment, id dfs.BlockID, shard uint8, w *row, offset, length uint32) (*Read, error) {
	first, end := w.info.Range(offset, length)
	at, n := w.payloadAt(), 0
	for i, c := range w.info.Chunks[:end] {
		if i < first {
			at += int64(c.Len)
		} else {
			n += int(c.Len)
		}
	}
	file, err := g.acquire()
	if isNotExist(err) {
		return nil, s.readFailed(id, shard, w, dfs.Errorf(dfs.Corrupt, "read block", "%s is missing", g.path))
	}
	if err != nil {
		return nil, err
	}
	defer g.release()
	head := 0
	if first == 0 && n > 0 {
		head = int(at - w.offset)
	}
	b := s.bufs.get(head + n)
	buf := b.room[:head+n]
	if n > 0 {
		if _, err := file.ReadAt(buf, at-int64(head)); err != nil {
			b.release()
			return nil, s.readFailed(id, shard, w, &dfs.Error{Kind: dfs.Corrupt, Op: "read block", Object: id.String(), Err: err})
		}
	}
	if err := checkChunks(id, shard, first, w.info.Chunks[first:end], buf[head:]); err != nil {
		b.release()
		return nil, s.readFailed(id, shard, w, err)
	}
	g.touch()
	s.clock.read()
	r := &b.read
	*r = Read{Info: w.info, Epoch: w.epoch, First: first, Data: buf[head:], buf: b}
	r.Undecided, r.Trashed = w.flags&rowUndecided != 0, w.flags&rowTrashed != 0
	if head > 0 {
		if r.Hint, err = s.readHint(buf[:head], id, shard, w); err != nil {
			if err = s.readFailed(id, shard, w, err); dfs.KindOf(err) == dfs.NotExist {
				r.Release()
				return nil, err
			}
			r.HeaderLost = true // the bytes are served all the same
		}
	}
	return r, nil
}

// readHint reads the hint in a record's header, which must be what the index
// says it is.
func (s *Store) readHint(p []byte, id dfs.BlockID, shard uint8, w *row) (dfs.Hint, error) {
	at := place{s.mark, w.segment, w.offset}
	if n, ok := recordTableLen(p, at); !ok || n != len(p) {
		return dfs.Hint{}, dfs.Errorf(dfs.Corrupt, "read record", "its header is damaged")
	}
	n, err := decodeName(p)
	if err == nil && (n.id != id || n.shard != shard || n.seq != w.seq || n.kind != w.kind) {
		return dfs.Hint{}, dfs.Errorf(dfs.Corrupt, "read record", "the header of %s is in its place", n.id)
	}
	return n.hint, err
}

// readHeader reads a record's header, which must be what the index says it is.
func (s *Store) readHeader(p []byte, id dfs.BlockID, shard uint8, w *row) (record, error) {
	at := place{s.mark, w.segment, w.offset}
	if n, ok := recordTableLen(p, at); !ok || n != len(p) {
		return record{}, dfs.Errorf(dfs.Corrupt, "read record", "its header is damaged")
	}
	r, err := decodeRecord(p, at)
	if err == nil && (r.id != id || r.shard != shard || r.seq != w.seq || r.kind != w.kind) {
		return record{}, dfs.Errorf(dfs.Corrupt, "read record", "the header of %s is in its place", r.id)
	}
	return r, err
}

// checkPayload reads a record's payload and checks it.
func checkPayload(file io.ReaderAt, r *record) error {
	p := make([]byte, r.stored)
	if err := readBack(file, p, r.offset+int64(r.headerLen())); err != nil {
		return err
	}
	return checkChunks(r.id, r.shard, 0, r.info.Chunks, p)
}

// readFailed notes a bad copy, so that a refill's put may replace it, and returns
// err. NotExist: nothing is noted, since another copy has taken its place.
func (s *Store) readFailed(id dfs.BlockID, shard uint8, w *row, err error) error {
	d := Damage{
		ID: id, Shard: shard, Named: true, Segment: w.segment, Offset: w.offset, Length: w.recordLen(), Reason: err.Error(),
	}
	s.damage.add(d)
	// The index is asked afterwards: who replaces a copy strikes it off the list
	// when the index names the other, and has either seen this entry or is seen here.
	if now, ierr := s.index.get(blockKey(id, shard)); ierr == nil && !now.at(w) {
		s.damage.forget(d)
		return dfs.Errorf(dfs.NotExist, "read block", "%s is not in %s any more", id, segmentName(w.segment))
	}
	signal(s.damageFound)
	signal(s.keeperWake)
	s.log.Error("a block is damaged", "block", id, "shard", shard, "segment", segmentName(w.segment), "offset", w.offset, "cause", err)
	return err
}
