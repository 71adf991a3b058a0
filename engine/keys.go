package engine

import (
	"encoding/binary"
	"slices"

	"dfsd/dfs"
)

// The rows of the index. All keys are in byte order of their fields.
//
//	b PG block shard        → row: where the block or its tombstone lies
//	e PG epoch block shard  → kind, flags, length, stored
//	s segment               → usage: what in the segment is still needed
//	d segment offset        → damage that a scan found
//	f PG                    → tombstone floor
//	p PG                    → number up to which its records are forgotten and have no row
//	u session block shard   → since when: the block is undecided
//	t time block shard      → nothing: the block is in the trash
//	g                       → how many rows u and t there are
//	m                       → version, store mark, anchor
const (
	blockPrefix   = 'b'
	epochPrefix   = 'e'
	segmentPrefix = 's'
	damagePrefix  = 'd'
	floorPrefix   = 'f'
	boundPrefix   = 'p'
	metaKey       = "m"

	undecidedPrefix = 'u'
	trashPrefix     = 't'
	setCountsKey    = "g"

	blockKeyLen = 1 + dfs.BlockIDLen + 1
	epochKeyLen = blockKeyLen + 8
)

func blockKey(id dfs.BlockID, shard uint8) []byte {
	k := make([]byte, 0, blockKeyLen)
	return append(id.Append(append(k, blockPrefix)), shard)
}

func epochKey(id dfs.BlockID, shard uint8, epoch dfs.Epoch) []byte {
	var enc [dfs.BlockIDLen]byte
	id.Append(enc[:0])
	k := make([]byte, 0, epochKeyLen)
	k = append(append(k, epochPrefix), enc[:4]...)
	k = binary.BigEndian.AppendUint64(k, uint64(epoch))
	return append(append(k, enc[4:]...), shard)
}

func parseBlockKey(k []byte) (dfs.BlockID, uint8, error) {
	if len(k) != blockKeyLen {
		return dfs.BlockID{}, 0, dfs.Errorf(dfs.Corrupt, "read index", "block key of %d bytes", len(k))
	}
	id, err := dfs.ParseBlockID(k[1 : 1+dfs.BlockIDLen])
	return id, k[blockKeyLen-1], err
}

func parseEpochKey(k []byte) (id dfs.BlockID, shard uint8, epoch dfs.Epoch, err error) {
	if len(k) != epochKeyLen {
		return id, 0, 0, dfs.Errorf(dfs.Corrupt, "read index", "epoch key of %d bytes", len(k))
	}
	var enc [dfs.BlockIDLen]byte
	copy(enc[:4], k[1:5])
	copy(enc[4:], k[13:33])
	id, err = dfs.ParseBlockID(enc[:])
	return id, k[epochKeyLen-1], dfs.Epoch(binary.BigEndian.Uint64(k[5:13])), err
}

func segmentKey(n uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{segmentPrefix}, n)
}

func damageKey(segment uint64, offset int64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{damagePrefix}, segment), uint64(offset))
}

// pgBounds are the first key of a PG's rows and the first key past them.
func pgBounds(prefix byte, pg dfs.PGID) (lower, upper []byte) {
	lower = binary.BigEndian.AppendUint32([]byte{prefix}, uint32(pg))
	if pg == 1<<32-1 {
		return lower, []byte{prefix + 1}
	}
	return lower, binary.BigEndian.AppendUint32([]byte{prefix}, uint32(pg)+1)
}

// The flags of a row. A put of the same bytes replaces what is lost or damaged.
// Invariant: a row is not both undecided and trashed, and only a block's is
// either.
const (
	rowLost      = 1 // a scan found the record missing or damaged: reads say Corrupt
	rowUndecided = 2 // nobody has said whether metadata names the block
	rowTrashed   = 4 // metadata does not name the block: it is to be deleted
	rowDamaged   = 8 // some of the record is damaged: reads try
)

// row says where a block, or its tombstone, lies.
type row struct {
	kind    recordKind
	flags   uint8
	seq     uint64
	epoch   dfs.Epoch
	segment uint64
	offset  int64         // of the record
	stored  uint32        // payload bytes
	info    dfs.BlockInfo // without chunks when lost
	digest  uint32        // infoDigest
	trashed int64         // with rowTrashed: when that was, milliseconds since 1970

	// holders are other segments that may hold a put of the block, one that this
	// row took the place of: as long as one of them is on the disk, an index that
	// is made anew would find the put, and needs the tombstone that hides it.
	// Invariant: at most maxHolders; with so many, nobody knows of how many more.
	holders []uint64
}

// maxHolders bounds row.holders: each is a copy that was repaired or moved and
// whose segment is still there, so that two are rare.
const maxHolders = 15

const rowHeadLen = 52

func (w *row) encode() []byte {
	b := binary.BigEndian
	p := make([]byte, 0, rowHeadLen+len(w.info.Chunks)*chunkLen+len(w.holders)*8)
	p = append(p, byte(w.kind), w.flags, byte(w.info.Codec), byte(len(w.holders)))
	p = b.AppendUint32(p, w.info.Length)
	p = b.AppendUint32(p, w.stored)
	p = b.AppendUint32(p, w.digest)
	p = b.AppendUint64(p, w.seq)
	p = b.AppendUint64(p, uint64(w.epoch))
	p = b.AppendUint64(p, w.segment)
	p = b.AppendUint64(p, uint64(w.offset))
	p = b.AppendUint32(p, uint32(len(w.info.Chunks)))
	p = appendChunks(p, w.info.Chunks)
	for _, n := range w.holders {
		p = b.AppendUint64(p, n)
	}
	if w.flags&rowTrashed != 0 {
		p = b.AppendUint64(p, uint64(w.trashed))
	}
	return p
}

func decodeRow(p []byte) (*row, error) {
	b := binary.BigEndian
	end := len(p)
	if end > 1 && p[1]&rowTrashed != 0 {
		end -= 8
	}
	if end < rowHeadLen || uint64(end) != rowHeadLen+uint64(b.Uint32(p[48:]))*chunkLen+uint64(p[3])*8 {
		return nil, dfs.Errorf(dfs.Corrupt, "read index", "row of %d bytes", len(p))
	}
	held := end - int(p[3])*8
	w := &row{
		kind: recordKind(p[0]), flags: p[1], stored: b.Uint32(p[8:]), digest: b.Uint32(p[12:]), seq: b.Uint64(p[16:]),
		epoch: dfs.Epoch(b.Uint64(p[24:])), segment: b.Uint64(p[32:]), offset: int64(b.Uint64(p[40:])),
		info: dfs.BlockInfo{Length: b.Uint32(p[4:]), Codec: dfs.Codec(p[2]), Chunks: decodeChunks(p[rowHeadLen:held])},
	}
	for q := p[held:end]; len(q) > 0; q = q[8:] {
		w.holders = append(w.holders, b.Uint64(q))
	}
	if end < len(p) {
		w.trashed = int64(b.Uint64(p[end:]))
	}
	return w, nil
}

// holds adds a segment to the holders, and takes out those that are gone and
// the row's own.
func (w *row) holds(segment uint64, exists func(uint64) bool) {
	if len(w.holders) >= maxHolders {
		return // it is known that not all are known
	}
	var held []uint64
	for _, n := range append(slices.Clip(w.holders), segment) {
		if n != w.segment && exists(n) && !slices.Contains(held, n) {
			held = append(held, n)
		}
	}
	w.holders = held
}

// alone reports whether no put of the block but the row's own can be on the
// disk any more.
func (w *row) alone(exists func(uint64) bool) bool {
	return len(w.holders) < maxHolders && !slices.ContainsFunc(w.holders, exists)
}

// at reports whether there is a row, and it names the record that another names.
func (w *row) at(other *row) bool {
	return w != nil && w.segment == other.segment && w.offset == other.offset
}

// recordLen is the bytes that the record takes in its segment.
func (w *row) recordLen() int64 {
	chunks := 0
	if w.kind == kindPut {
		chunks = (int(w.info.Length) + dfs.ChunkSize - 1) / dfs.ChunkSize
	}
	return int64(alignUp(recordHeaderLen+chunks*chunkLen+int(w.stored), recordAlign))
}

// payloadAt is where the payload begins in the segment.
func (w *row) payloadAt() int64 {
	return w.offset + recordHeaderLen + int64(len(w.info.Chunks)*chunkLen)
}

func (w *row) encodeEpoch() []byte {
	p := append(make([]byte, 0, 12), byte(w.kind), w.flags&(rowLost|rowUndecided|rowTrashed), 0, 0)
	p = binary.BigEndian.AppendUint32(p, w.info.Length)
	return binary.BigEndian.AppendUint32(p, w.stored)
}

// usage counts what in a segment is still needed.
type usage struct {
	puts           uint64
	putBytes       uint64 // of whole records
	tombstones     uint64
	tombstoneBytes uint64
	logical        uint64 // bytes of the puts before compression
	payload        uint64 // stored bytes of their chunks
}

// add counts a row once more, or with sign -1 no more.
func (u *usage) add(w *row, sign int) {
	n, bytes := uint64(sign), uint64(int64(sign)*w.recordLen())
	if w.kind == kindTombstone {
		u.tombstones += n
		u.tombstoneBytes += bytes
		return
	}
	u.puts += n
	u.putBytes += bytes
	u.logical += uint64(int64(sign) * int64(w.info.Length))
	u.payload += uint64(int64(sign) * int64(w.stored))
}

const usageLen = 48

func (u usage) empty() bool { return u.puts == 0 && u.tombstones == 0 }

func (u usage) encode() []byte {
	b := binary.BigEndian
	p := make([]byte, 0, usageLen)
	for _, n := range []uint64{u.puts, u.putBytes, u.tombstones, u.tombstoneBytes, u.logical, u.payload} {
		p = b.AppendUint64(p, n)
	}
	return p
}

func decodeUsage(p []byte) (usage, error) {
	if len(p) != usageLen {
		return usage{}, dfs.Errorf(dfs.Corrupt, "read index", "segment row of %d bytes", len(p))
	}
	b := binary.BigEndian
	return usage{b.Uint64(p), b.Uint64(p[8:]), b.Uint64(p[16:]), b.Uint64(p[24:]), b.Uint64(p[32:]), b.Uint64(p[40:])}, nil
}
