package engine

import (
	"encoding/binary"
	"hash/crc32"

	"dfsd/dfs"
)

// The layout of a segment, all numbers big-endian:
//
//	0                 header, one page
//	pageSize          batches, each a whole number of pages
//	…                 zeros, or what an earlier life of the file left
//	size-trailer-…    footer: entries and trailer, in a sealed segment only
const (
	// pageSize is the unit of writes: batches start and end on it, so that no
	// write touches a page that an earlier sync made durable.
	pageSize = 4096

	// recordAlign is where records start inside a batch; a scan that lost its
	// way looks for the next one in these steps.
	recordAlign = 64

	formatVersion = 1

	segmentMagic = 0x44534547 // "DSEG"
	batchMagic   = 0x44424154 // "DBAT"
	recordMagic  = 0x44524543 // "DREC"
	footerMagic  = 0x44465452 // "DFTR"

	segmentHeaderLen = 64
	batchHeaderLen   = 64
	recordHeaderLen  = 128 // without the chunk table
	chunkLen         = 8
	footerEntryLen   = 64
	trailerLen       = 64

	// maxBatchLen is the longest batch: all but the last record stay below
	// gatherBytes, and that one may be the biggest block, not compressed.
	maxBatchLen = gatherBytes + dfs.MaxBlockSize + (dfs.MaxBlockSize/dfs.ChunkSize)*chunkLen + 4*pageSize
)

// recordKind says what a record does. Numbers are on disk: never reused.
type recordKind uint8

const (
	kindPut       recordKind = 1
	kindTombstone recordKind = 2
)

func (k recordKind) String() string {
	switch k {
	case kindPut:
		return "put"
	case kindTombstone:
		return "tombstone"
	}
	return "unknown"
}

// The flags of a record.
const (
	flagRefill  = 1 // a refill, not a client, brought it
	flagMoved   = 2 // compaction copied it
	flagDecided = 4 // when it was written, the block was known to be referenced
)

// record is the decoded header of one record, and where it lies.
type record struct {
	kind    recordKind
	flags   uint16
	segment uint64
	offset  int64 // of the header in the segment
	seq     uint64
	epoch   dfs.Epoch
	id      dfs.BlockID
	shard   uint8
	info    dfs.BlockInfo // zero for a tombstone
	stored  uint32        // payload bytes
	hint    dfs.Hint
}

// headerLen is the bytes before the payload.
func (r *record) headerLen() int { return recordHeaderLen + len(r.info.Chunks)*chunkLen }

// length is the bytes of the whole record with its padding.
func (r *record) length() int { return alignUp(r.headerLen()+int(r.stored), recordAlign) }

func alignUp(n, to int) int { return (n + to - 1) / to * to }

func checksum(p []byte) uint32 { return crc32.Checksum(p, dfs.Castagnoli) }

// appendHeader appends the encoded header and chunk table.
func (r *record) appendHeader(dst []byte, mark uint64) []byte {
	start := len(dst)
	b := binary.BigEndian
	dst = b.AppendUint32(dst, recordMagic)
	dst = append(dst, formatVersion, byte(r.kind))
	dst = b.AppendUint16(dst, r.flags)
	dst = b.AppendUint64(dst, mark)
	dst = b.AppendUint64(dst, r.segment)
	dst = b.AppendUint64(dst, uint64(r.offset))
	dst = b.AppendUint64(dst, r.seq)
	dst = b.AppendUint64(dst, uint64(r.epoch))
	dst = r.id.Append(dst)
	dst = append(dst, r.shard, byte(r.info.Codec), 0, 0)
	dst = b.AppendUint32(dst, r.info.Length)
	dst = b.AppendUint32(dst, r.stored)
	dst = b.AppendUint32(dst, uint32(len(r.info.Chunks)))
	dst = b.AppendUint64(dst, uint64(r.hint.Ino))
	dst = b.AppendUint64(dst, uint64(r.hint.Offset))
	dst = b.AppendUint64(dst, uint64(r.hint.Version))
	dst = append(dst, make([]byte, start+recordHeaderLen-len(dst))...)
	dst = appendChunks(dst, r.info.Chunks)
	b.PutUint32(dst[start+recordHeaderLen-4:], recordSum(dst[start:]))
	return dst
}

// recordSum is the checksum of a header and its chunk table, without the
// field that holds it.
func recordSum(p []byte) uint32 {
	return crc32.Update(checksum(p[:recordHeaderLen-4]), dfs.Castagnoli, p[recordHeaderLen:])
}

func appendChunks(dst []byte, chunks []dfs.Chunk) []byte {
	for _, c := range chunks {
		dst = binary.BigEndian.AppendUint32(dst, c.Len)
		dst = binary.BigEndian.AppendUint32(dst, c.Sum)
	}
	return dst
}

func decodeChunks(p []byte) []dfs.Chunk {
	if len(p) == 0 {
		return nil
	}
	chunks := make([]dfs.Chunk, len(p)/chunkLen)
	for i := range chunks {
		chunks[i].Len = binary.BigEndian.Uint32(p[i*chunkLen:])
		chunks[i].Sum = binary.BigEndian.Uint32(p[i*chunkLen+4:])
	}
	return chunks
}

// place is where something is expected: what is read must say so itself.
type place struct {
	mark    uint64
	segment uint64
	offset  int64
}

// recordTableLen returns the bytes of header and chunk table that p, which
// holds at least a fixed header, announces; false when p is no header for
// this place. What it announces is not proved until decodeRecord has checked
// the sum.
func recordTableLen(p []byte, at place) (int, bool) {
	b := binary.BigEndian
	if b.Uint32(p) != recordMagic || b.Uint64(p[8:]) != at.mark || b.Uint64(p[16:]) != at.segment ||
		b.Uint64(p[24:]) != uint64(at.offset) {
		return 0, false
	}
	chunks := b.Uint32(p[84:])
	if chunks > dfs.MaxBlockSize/dfs.ChunkSize {
		return 0, false
	}
	return recordHeaderLen + int(chunks)*chunkLen, true
}

// name is what a record's header says besides the chunks.
type name struct {
	kind  recordKind
	id    dfs.BlockID
	shard uint8
	seq   uint64
	hint  dfs.Hint
}

// decodeName is decodeRecord for a read of a block whose chunks the index has.
func decodeName(p []byte) (n name, err error) {
	b := binary.BigEndian
	if b.Uint32(p[recordHeaderLen-4:]) != recordSum(p) {
		return n, dfs.Errorf(dfs.Corrupt, "read record", "header checksum is wrong")
	}
	if p[4] != formatVersion {
		return n, dfs.Errorf(dfs.Unsupported, "read record", "version %d: this release knows %d", p[4], formatVersion)
	}
	n.kind, n.shard, n.seq = recordKind(p[5]), p[72], b.Uint64(p[32:])
	n.hint = dfs.Hint{Ino: dfs.Ino(b.Uint64(p[88:])), Offset: int64(b.Uint64(p[96:])), Version: dfs.Version(b.Uint64(p[104:]))}
	n.id, err = dfs.ParseBlockID(p[48:72])
	return n, err
}

// decodeRecord reads header and chunk table from p, whose length is what
// recordTableLen said. It returns Corrupt when they do not hold together and
// Unsupported for a sound record of another version.
func decodeRecord(p []byte, at place) (record, error) {
	b := binary.BigEndian
	n, err := decodeName(p)
	if err != nil {
		return record{}, err
	}
	r := record{
		kind: n.kind, flags: b.Uint16(p[6:]), segment: at.segment, offset: at.offset,
		seq: n.seq, epoch: dfs.Epoch(b.Uint64(p[40:])), id: n.id, shard: n.shard,
		info:   dfs.BlockInfo{Length: b.Uint32(p[76:]), Codec: dfs.Codec(p[73]), Chunks: decodeChunks(p[recordHeaderLen:])},
		stored: b.Uint32(p[80:]),
		hint:   n.hint,
	}
	switch r.kind {
	case kindPut:
		if err := r.info.Validate(); err != nil {
			return record{}, dfs.Wrap("read record", r.id.String(), err)
		}
		if r.info.StoredLen() != int(r.stored) {
			return record{}, dfs.Errorf(dfs.Corrupt, "read record", "%d payload bytes, chunks have %d", r.stored, r.info.StoredLen())
		}
	case kindTombstone:
		if r.stored != 0 || len(r.info.Chunks) != 0 {
			return record{}, dfs.Errorf(dfs.Corrupt, "read record", "a tombstone with a payload")
		}
	default:
		return record{}, dfs.Errorf(dfs.Unsupported, "read record", "kind %d is not known", r.kind)
	}
	return r, nil
}

// batchHeader begins a batch.
type batchHeader struct {
	stream  stream
	segment uint64
	offset  int64
	first   uint64 // number in the stream of the first record; in the log its sequence number
	synced  int64  // Invariant: bytes of the segment below it were durable before this batch was written
	length  int    // of the batch, header and padding included; a whole number of pages
	records int
}

func (h *batchHeader) encode(p []byte, mark uint64) {
	b := binary.BigEndian
	clear(p[:batchHeaderLen])
	b.PutUint32(p, batchMagic)
	p[4], p[5] = formatVersion, byte(h.stream)
	b.PutUint64(p[8:], mark)
	b.PutUint64(p[16:], h.segment)
	b.PutUint64(p[24:], uint64(h.offset))
	b.PutUint64(p[32:], h.first)
	b.PutUint64(p[40:], uint64(h.synced))
	b.PutUint32(p[48:], uint32(h.length))
	b.PutUint32(p[52:], uint32(h.records))
	b.PutUint32(p[60:], checksum(p[:60]))
}

// decodeBatch reads a batch header for a place; false when there is none. An
// error means a sound header of another version.
func decodeBatch(p []byte, at place) (batchHeader, bool, error) {
	b := binary.BigEndian
	if len(p) < batchHeaderLen || b.Uint32(p) != batchMagic || b.Uint32(p[60:]) != checksum(p[:60]) ||
		b.Uint64(p[8:]) != at.mark || b.Uint64(p[16:]) != at.segment || b.Uint64(p[24:]) != uint64(at.offset) {
		return batchHeader{}, false, nil
	}
	if p[4] != formatVersion {
		return batchHeader{}, false, dfs.Errorf(dfs.Unsupported, "read batch", "version %d: this release knows %d", p[4], formatVersion)
	}
	h := batchHeader{
		stream: stream(p[5]), segment: at.segment, offset: at.offset, first: b.Uint64(p[32:]), synced: int64(b.Uint64(p[40:])),
		length: int(b.Uint32(p[48:])), records: int(b.Uint32(p[52:])),
	}
	if h.stream >= streams {
		return batchHeader{}, false, dfs.Errorf(dfs.Unsupported, "read batch", "stream %d is not known", h.stream)
	}
	if h.length < pageSize || h.length%pageSize != 0 || h.synced < 0 || h.synced > h.offset {
		return batchHeader{}, false, nil
	}
	return h, true, nil
}

// segmentHeader is the first page of a segment.
type segmentHeader struct {
	mark    uint64
	segment uint64
	size    int64
}

func (h *segmentHeader) page() []byte {
	p := make([]byte, pageSize)
	b := binary.BigEndian
	b.PutUint32(p, segmentMagic)
	p[4] = formatVersion
	b.PutUint64(p[8:], h.mark)
	b.PutUint64(p[16:], h.segment)
	b.PutUint64(p[24:], uint64(h.size))
	b.PutUint32(p[60:], checksum(p[:60]))
	return p
}

// decodeSegmentHeader reads a segment's first bytes: Corrupt when they are no
// header, Unsupported for another version.
func decodeSegmentHeader(p []byte) (segmentHeader, error) {
	b := binary.BigEndian
	if len(p) < segmentHeaderLen || b.Uint32(p) != segmentMagic || b.Uint32(p[60:]) != checksum(p[:60]) {
		return segmentHeader{}, dfs.Errorf(dfs.Corrupt, "read segment header", "damaged or not written")
	}
	if p[4] != formatVersion {
		return segmentHeader{}, dfs.Errorf(dfs.Unsupported, "read segment header", "version %d: this release knows %d", p[4], formatVersion)
	}
	return segmentHeader{mark: b.Uint64(p[8:]), segment: b.Uint64(p[16:]), size: int64(b.Uint64(p[24:]))}, nil
}

// placeOf is where a record says that it belongs, whether or not it is there;
// false when p does not begin as a record does.
func placeOf(p []byte) (place, bool) {
	b := binary.BigEndian
	if len(p) < recordHeaderLen || b.Uint32(p) != recordMagic {
		return place{}, false
	}
	return place{b.Uint64(p[8:]), b.Uint64(p[16:]), int64(b.Uint64(p[24:]))}, true
}
