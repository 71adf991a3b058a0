package engine

import (
	"encoding/binary"
	"io"

	"dfsd/dfs"
)

// footerEntry is what a footer says of one record. It is enough to name what
// was lost when the record itself is rotten, and to keep a tombstone.
type footerEntry struct {
	kind   recordKind
	shard  uint8
	length uint32 // logical bytes
	stored uint32 // payload bytes
	digest uint32 // infoDigest
	id     dfs.BlockID
	seq    uint64
	epoch  dfs.Epoch
	offset int64 // of the record in the segment
}

// footer is the table of contents of a sealed segment.
type footer struct {
	entries []footerEntry
	end     int64 // offset past the last batch
	start   int64 // offset of the first entry: no batch reaches beyond it
}

// infoDigest is a checksum over what describes a block's bytes: two copies
// with equal digests hold the same bytes.
func infoDigest(info *dfs.BlockInfo) uint32 {
	var head [5]byte
	binary.BigEndian.PutUint32(head[:], info.Length)
	head[4] = byte(info.Codec)
	return checksum(appendChunks(head[:], info.Chunks))
}

func entryOf(r *record) footerEntry {
	return footerEntry{
		kind: r.kind, shard: r.shard, length: r.info.Length, stored: r.stored, digest: infoDigest(&r.info),
		id: r.id, seq: r.seq, epoch: r.epoch, offset: r.offset,
	}
}

// footerLen is the bytes that n entries and the trailer take, in whole pages.
func footerLen(n int) int64 { return int64(alignUp(n*footerEntryLen+trailerLen, pageSize)) }

// roomFor is the least size of a segment that can hold a record of so many bytes.
func roomFor(length int) int64 {
	return pageSize + int64(alignUp(batchHeaderLen+length, pageSize)) + footerLen(1)
}

// encodeFooter returns the last footerLen(len(entries)) bytes of a segment.
func encodeFooter(entries []footerEntry, end int64, st stream, h segmentHeader) []byte {
	p := make([]byte, footerLen(len(entries)))
	b := binary.BigEndian
	at := len(p) - trailerLen - len(entries)*footerEntryLen
	table := p[at : len(p)-trailerLen]
	for i, e := range entries {
		q := table[i*footerEntryLen:][:0]
		q = append(q, byte(e.kind), e.shard, 0, 0)
		q = b.AppendUint32(q, e.length)
		q = b.AppendUint32(q, e.stored)
		q = b.AppendUint32(q, e.digest)
		q = e.id.Append(q)
		q = b.AppendUint64(q, e.seq)
		q = b.AppendUint64(q, uint64(e.epoch))
		b.AppendUint64(q, uint64(e.offset))
	}
	t := p[len(p)-trailerLen:]
	b.PutUint32(t, footerMagic)
	t[4], t[5] = formatVersion, byte(st)
	b.PutUint64(t[8:], h.mark)
	b.PutUint64(t[16:], h.segment)
	b.PutUint64(t[24:], uint64(end))
	b.PutUint32(t[32:], uint32(len(entries)))
	b.PutUint32(t[36:], checksum(table))
	b.PutUint32(t[60:], checksum(t[:60]))
	return p
}

// trailer is the end of a footer.
type trailer struct {
	stream  stream
	start   int64 // footer.start
	end     int64 // footer.end
	entries int
	sum     uint32 // of the entries
}

// readTrailer returns the end of a segment's footer, nil when there is none
// that is sound. An error means that the file cannot be read or has another
// version.
func readTrailer(r io.ReaderAt, mark, segment uint64, size int64) (*trailer, error) {
	var t [trailerLen]byte
	if size < 2*pageSize {
		return nil, nil
	}
	if _, err := r.ReadAt(t[:], size-trailerLen); err != nil {
		return nil, err
	}
	b := binary.BigEndian
	if !trailerSound(t[:]) || b.Uint64(t[8:]) != mark || b.Uint64(t[16:]) != segment {
		return nil, nil
	}
	if t[4] != formatVersion {
		return nil, dfs.Errorf(dfs.Unsupported, "read footer", "version %d: this release knows %d", t[4], formatVersion)
	}
	n, end := int64(b.Uint32(t[32:])), int64(b.Uint64(t[24:]))
	start := size - trailerLen - n*footerEntryLen
	if t[5] >= byte(streams) {
		return nil, dfs.Errorf(dfs.Unsupported, "read footer", "stream %d is not known", t[5])
	}
	if end < pageSize || end%pageSize != 0 || start < end {
		return nil, nil
	}
	return &trailer{stream: stream(t[5]), start: start, end: end, entries: int(n), sum: b.Uint32(t[36:])}, nil
}

// trailerSound reports whether a trailer is what was written, for whatever segment.
func trailerSound(t []byte) bool {
	b := binary.BigEndian
	return b.Uint32(t) == footerMagic && b.Uint32(t[60:]) == checksum(t[:60])
}

// readFooter returns a segment's footer, nil when it has none that is sound.
// An error means that the file cannot be read or has another version.
func readFooter(r io.ReaderAt, mark, segment uint64, size int64) (*footer, error) {
	t, err := readTrailer(r, mark, segment, size)
	if err != nil || t == nil {
		return nil, err
	}
	table := make([]byte, t.entries*footerEntryLen)
	if _, err := r.ReadAt(table, t.start); err != nil {
		return nil, err
	}
	if checksum(table) != t.sum {
		return nil, nil
	}
	b := binary.BigEndian
	f := &footer{entries: make([]footerEntry, t.entries), end: t.end, start: t.start}
	for i := range f.entries {
		q := table[i*footerEntryLen:]
		id, err := dfs.ParseBlockID(q[16:40])
		if err != nil {
			return nil, err
		}
		f.entries[i] = footerEntry{
			kind: recordKind(q[0]), shard: q[1], length: b.Uint32(q[4:]), stored: b.Uint32(q[8:]), digest: b.Uint32(q[12:]),
			id: id, seq: b.Uint64(q[40:]), epoch: dfs.Epoch(b.Uint64(q[48:])), offset: int64(b.Uint64(q[56:])),
		}
	}
	return f, nil
}

// trailerPlace is whose footer a trailer says that it ends, sound or not; false
// when it does not begin as a trailer does.
func trailerPlace(t []byte) (place, bool) {
	b := binary.BigEndian
	if b.Uint32(t) != footerMagic {
		return place{}, false
	}
	return place{mark: b.Uint64(t[8:]), segment: b.Uint64(t[16:])}, true
}
