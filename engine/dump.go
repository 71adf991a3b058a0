package engine

import (
	"context"
	"fmt"
	"io"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Piece is a part of a segment, as Dump finds it. Which of the pointers is set
// says what it is; none is: bytes of which nothing sound is known.
type Piece struct {
	Offset int64  // in the segment
	Length int64  // bytes
	Fault  string // what is wrong with it; "": nothing

	Header *HeaderPiece
	Batch  *BatchPiece
	Record *RecordPiece
	Footer *FooterPiece
	Tail   bool // the log ends here; what follows was never written, or is left of an earlier life
	Torn   bool // with Tail: a crash cut a batch short here, and that is no fault
}

// HeaderPiece is a segment's header.
type HeaderPiece struct {
	Mark   uint64 // of the store
	Number uint64
	Size   int64 // of the file
}

// BatchPiece is the header of a batch. Its records follow.
type BatchPiece struct {
	Moved    bool   // of the moved stream: copies that compaction made
	First    uint64 // number in the stream of the first record
	Synced   int64  // bytes of the segment below it were durable before
	Records  int
	Unproved bool // nothing proves that its sync was finished
}

// RecordPiece is a record, or what a footer says of one that is damaged.
type RecordPiece struct {
	Entry
	Seq    uint64
	Codec  dfs.Codec
	Chunks int
	Refill bool
	Moved  bool // a copy
	Hint   dfs.Hint
	Footer bool // only the footer knows of it

	Forgotten bool // it was forgotten with its placement group
}

// FooterPiece is a footer.
type FooterPiece struct {
	Entries int
	End     int64 // of the log
}

// Dump calls fn for each part of a segment, in the order of their places, and
// last for the footer. NotExist: there is no such segment. It needs nothing but
// the segment, and works on one that is damaged, or another store's.
func (in *Inspection) Dump(ctx context.Context, segment uint64, fn func(Piece) error) error {
	for i := range in.survey.segments {
		f := &in.survey.segments[i]
		if f.number != segment {
			continue
		}
		file, err := in.fs.Open(f.path)
		if err != nil {
			return dfs.Wrap("dump segment", f.path, err)
		}
		d := &dump{ctx: ctx, in: in, f: f, file: file, fn: fn}
		err = d.run()
		_ = file.Close()
		return dfs.Wrap("dump segment", f.path, err)
	}
	return &dfs.Error{Kind: dfs.NotExist, Op: "dump segment", Object: in.survey.path(in.survey.segmentFile(segment))}
}

// dump shows one segment.
type dump struct {
	ctx    context.Context
	in     *Inspection
	f      *segmentFile
	file   vfs.File
	fn     func(Piece) error
	scan   *segmentScan
	reader payloadReader
}

func (d *dump) run() error {
	v := d.in.survey
	d.scan = &segmentScan{file: d.file, mark: v.mark, segment: d.f.number, size: d.f.size, limit: d.f.size}
	if err := d.header(); err != nil {
		return err
	}
	d.scan.closed = d.f.inUse() && !v.goesOn(d.f)
	if m := v.marks[d.f.stream]; d.f.inUse() && d.f.number == m.segment {
		d.scan.synced = m.offset
	}
	res, err := d.scan.run(d.group)
	if err != nil {
		return err
	}
	for i := range res.lost {
		if err := d.fn(d.marked(lostPiece(&res.lost[i]))); err != nil {
			return err
		}
	}
	if res.foot == nil || res.end < res.foot.start {
		tail := Piece{Offset: res.end, Length: d.f.size - res.end, Tail: true}
		if res.foot != nil {
			tail.Length = res.foot.start - res.end
		}
		switch {
		case res.torn:
			tail.Torn = true
		case res.foot == nil && d.scan.closed && trailerLeft(d.file, place{d.scan.mark, d.scan.segment, 0}, d.f.size):
			tail.Fault = "the footer at the end of it is damaged"
		}
		if err := d.fn(tail); err != nil || res.foot == nil {
			return err
		}
	}
	return d.fn(Piece{Offset: res.foot.start, Length: d.f.size - res.foot.start, Footer: &FooterPiece{Entries: len(res.foot.entries), End: res.foot.end}})
}

// header shows the header, and has what follows read as what that says.
func (d *dump) header() error {
	p := Piece{Length: pageSize}
	var b [segmentHeaderLen]byte
	n, _ := d.file.ReadAt(b[:], 0)
	if h, err := decodeSegmentHeader(b[:n]); err != nil {
		p.Fault = "the header is damaged"
	} else {
		p.Header = &HeaderPiece{h.mark, h.segment, h.size}
		d.scan.mark, d.scan.segment = h.mark, h.segment
		if d.f.state == SegmentMisnamed || d.f.state == SegmentForeign {
			p.Fault = "it is " + d.f.state.String()
		}
	}
	return d.fn(p)
}

func (d *dump) group(g group) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	p := Piece{Offset: g.offset, Length: g.end - g.offset, Batch: &BatchPiece{Unproved: g.unproved}}
	if h, ok, err := d.scan.batchAt(g.offset); err != nil {
		return err
	} else if ok {
		p.Batch.Moved, p.Batch.First, p.Batch.Synced, p.Batch.Records = h.stream == movedStream, h.first, h.synced, h.records
	} else {
		p.Fault = "the header of a batch is damaged"
	}
	if err := d.fn(p); err != nil {
		return err
	}
	rot := g.rot
	for i := range g.records {
		r := &g.records[i]
		for len(rot) > 0 && rot[0].offset < r.offset {
			if err := d.gap(rot[0]); err != nil {
				return err
			}
			rot = rot[1:]
		}
		if err := d.fn(d.marked(recordPiece(r, d.reader.payloadFault(d.file, r)))); err != nil {
			return err
		}
	}
	for _, x := range rot {
		if err := d.gap(x); err != nil {
			return err
		}
	}
	return nil
}

func (d *dump) gap(x span) error {
	fault := strangerAt(d.file, x.offset)
	if fault == "" {
		fault = "records are damaged and nothing says which"
	}
	return d.fn(Piece{Offset: x.offset, Length: x.end - x.offset, Fault: fault})
}

// marked says of a record whether it was forgotten.
func (d *dump) marked(p Piece) Piece {
	p.Record.Forgotten = d.in.survey.known.Forgotten.cover(p.Record.ID.PG, p.Record.Seq)
	return p
}

func recordPiece(r *record, fault string) Piece {
	return Piece{Offset: r.offset, Length: int64(r.length()), Fault: fault, Record: &RecordPiece{
		Entry: rowOf(r).entry(r.id, r.shard), Seq: r.seq, Codec: r.info.Codec, Chunks: len(r.info.Chunks), Refill: r.flags&flagRefill != 0, Moved: r.flags&flagMoved != 0, Hint: r.hint,
	}}
}

func lostPiece(e *footerEntry) Piece {
	w := row{kind: e.kind, epoch: e.epoch, stored: e.stored, digest: e.digest, info: dfs.BlockInfo{Length: e.length}}
	return Piece{Offset: e.offset, Length: w.recordLen(), Fault: "the header of the record is damaged", Record: &RecordPiece{
		Entry: w.entry(e.id, e.shard), Seq: e.seq, Footer: true,
	}}
}

// payloadReader checks payloads, with one buffer for all of them.
type payloadReader struct{ buf []byte }

// payloadFault reads a record's payload and says what is wrong with it; "" when
// nothing is.
func (b *payloadReader) payloadFault(file io.ReaderAt, r *record) string {
	if b.buf == nil {
		b.buf = make([]byte, dfs.ChunkSize)
	}
	at := r.offset + int64(r.headerLen())
	for i, c := range r.info.Chunks {
		p := b.buf[:c.Len]
		if _, err := file.ReadAt(p, at); err != nil && err != io.EOF {
			return fmt.Sprintf("chunk %d at %d cannot be read: %v", i, at, err)
		} else if err != nil || dfs.ChunkSum(r.id, r.shard, i, p) != c.Sum {
			return fmt.Sprintf("the checksum of chunk %d at %d is wrong", i, at)
		}
		at += int64(c.Len)
	}
	return ""
}

// strangerAt says what sound record stands at an offset and does not belong
// there; "" when none does.
func strangerAt(file io.ReaderAt, off int64) string {
	p := make([]byte, recordHeaderLen)
	if _, err := file.ReadAt(p, off); err != nil {
		return ""
	}
	at, ok := placeOf(p)
	if !ok {
		return ""
	}
	n, ok := recordTableLen(p, at)
	if !ok {
		return ""
	}
	p = make([]byte, n)
	if _, err := file.ReadAt(p, off); err != nil {
		return ""
	}
	r, err := decodeRecord(p, at)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("a record of block %s stands here that was made for offset %d of segment %d of the store with mark %016x", r.id, at.offset, at.segment, at.mark)
}
