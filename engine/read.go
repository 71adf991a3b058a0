package engine

import (
	"context"
	"math/bits"
	"sync"

	"dfsd/dfs"
)

// Read is the answer of Get. Data belongs to the store again after Release.
type Read struct {
	Info  dfs.BlockInfo
	Epoch dfs.Epoch
	First int    // number of the first chunk in Data
	Data  []byte // stored bytes of the chunks that cover the range, end to end

	release func()
}

// Release gives Data back. It may be called more than once.
func (r *Read) Release() {
	if r.release != nil {
		r.release()
		r.release, r.Data = nil, nil
	}
}

// buffers are read buffers by size class, powers of two from one chunk to the
// largest block. The pools let go of what is not used.
type buffers struct {
	classes [bufferClasses]sync.Pool
}

const (
	minBufferBits = 16 // a chunk
	bufferClasses = 9  // up to 16 MiB
)

func (b *buffers) get(n int) (buf []byte, release func()) {
	class := max(0, bits.Len(uint(max(n, 1)-1))-minBufferBits)
	p, ok := b.classes[class].Get().(*[]byte)
	if !ok {
		fresh := make([]byte, 1<<(class+minBufferBits))
		p = &fresh
	}
	return (*p)[:n], func() { b.classes[class].Put(p) }
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
	key := blockKey(id, shard)
	var last *row
	for {
		if err := ctx.Err(); err != nil {
			return nil, &dfs.Error{Kind: dfs.Deadline, Op: "read block", Object: id.String(), Err: err}
		}
		w, err := s.present(id, key)
		if err != nil {
			return nil, err
		}
		if w.flags&rowLost != 0 {
			return nil, dfs.Errorf(dfs.Corrupt, "read block", "%s: its record is damaged", id)
		}
		g := s.segs.get(w.segment)
		if g == nil && last != nil && last.segment == w.segment && last.offset == w.offset {
			return nil, s.readFailed(id, shard, w, dfs.Errorf(dfs.Corrupt, "read block", "%s is missing", segmentName(w.segment)))
		}
		if last = w; g == nil {
			continue // given up since the index was asked: ask again
		}
		r, err := s.readRow(g, id, shard, w, offset, length)
		if dfs.KindOf(err) == dfs.NotExist {
			continue // likewise
		}
		return r, err
	}
}

// present returns the row of a block that is there.
func (s *Store) present(id dfs.BlockID, key []byte) (*row, error) {
	w, err := s.index.get(key)
	if err != nil {
		return nil, err
	}
	if w == nil || w.kind == kindTombstone {
		return nil, &dfs.Error{Kind: dfs.NotExist, Op: "read block", Object: id.String()}
	}
	return w, nil
}

// readRow reads and checks chunks. NotExist: the segment was given up.
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
	buf, release := s.bufs.get(n)
	if n > 0 {
		if _, err := file.ReadAt(buf, at); err != nil {
			release()
			return nil, s.readFailed(id, shard, w, &dfs.Error{Kind: dfs.Corrupt, Op: "read block", Object: id.String(), Err: err})
		}
	}
	if err := checkChunks(id, shard, first, w.info.Chunks[first:end], buf); err != nil {
		release()
		return nil, s.readFailed(id, shard, w, err)
	}
	s.clock.read()
	return &Read{Info: w.info, Epoch: w.epoch, First: first, Data: buf, release: release}, nil
}

// readFailed notes a bad copy, so that a refill's put may replace it.
func (s *Store) readFailed(id dfs.BlockID, shard uint8, w *row, err error) error {
	s.damage.add(Damage{
		ID: id, Shard: shard, Named: true, Segment: w.segment, Offset: w.offset, Length: w.recordLen(), Reason: err.Error(),
	})
	s.log.Error("a block is damaged", "block", id, "shard", shard, "segment", segmentName(w.segment), "offset", w.offset, "cause", err)
	return err
}
