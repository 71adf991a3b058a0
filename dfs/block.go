package dfs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Codec says how the chunks of a block are stored.
type Codec uint8

// The codecs. Numbers are on disk: never reused.
const (
	CodecNone Codec = iota // as they are
	CodecS2                // each chunk an s2 block; a chunk as long as its logical bytes is stored as it is
	CodecZstd              // each chunk a zstd frame; likewise
)

// DefaultCodec is what writers use where no setting says otherwise.
const DefaultCodec = CodecS2

// Known reports whether this release reads and writes the codec.
func (c Codec) Known() bool { return c <= CodecZstd }

// ParseCodec reads none, s2 and zstd.
func ParseCodec(s string) (Codec, error) {
	for c := CodecNone; c.Known(); c++ {
		if s == c.String() {
			return c, nil
		}
	}
	return CodecNone, Errorf(Invalid, "parse", "compression %q: want none, s2 or zstd", s)
}

func (c Codec) String() string {
	switch c {
	case CodecNone:
		return "none"
	case CodecS2:
		return "s2"
	case CodecZstd:
		return "zstd"
	}
	return fmt.Sprintf("codec-%d", uint8(c))
}

// Chunk describes the stored form of one chunk.
type Chunk struct {
	Len uint32 // stored bytes, 1..ChunkSize
	Sum uint32 // ChunkSum of the stored bytes
}

// BlockInfo describes a block's stored bytes: a store checks and serves whole
// chunks by it and never needs to know the codec.
type BlockInfo struct {
	Length uint32 // logical bytes before compression, 1..MaxBlockSize
	Codec  Codec
	Chunks []Chunk // ⌈Length/ChunkSize⌉ of them; stored bytes lie end to end
}

// StoredLen is the sum of the chunks' stored bytes.
func (b *BlockInfo) StoredLen() int {
	n := 0
	for _, c := range b.Chunks {
		n += int(c.Len)
	}
	return n
}

// Validate refuses what no honest writer makes.
func (b *BlockInfo) Validate() error {
	if b.Length == 0 || b.Length > MaxBlockSize {
		return Errorf(Invalid, "check block", "length %d: want 1 to %d", b.Length, MaxBlockSize)
	}
	if !b.Codec.Known() {
		return Errorf(Unsupported, "check block", "codec %d: this release knows none, s2 and zstd", uint8(b.Codec))
	}
	if want := (int(b.Length) + ChunkSize - 1) / ChunkSize; len(b.Chunks) != want {
		return Errorf(Invalid, "check block", "%d chunks for %d bytes: want %d", len(b.Chunks), b.Length, want)
	}
	for i, c := range b.Chunks {
		logical := min(ChunkSize, int(b.Length)-i*ChunkSize)
		if c.Len == 0 || int(c.Len) > logical || b.Codec == CodecNone && int(c.Len) != logical {
			return Errorf(Invalid, "check block", "chunk %d: %d stored bytes for %d", i, c.Len, logical)
		}
	}
	return nil
}

// Range returns the first chunk and the chunk past the last that cover
// length logical bytes from offset, both cut to the block.
func (b *BlockInfo) Range(offset, length uint32) (first, end int) {
	if offset >= b.Length || length == 0 {
		return 0, 0
	}
	last := min(uint64(offset)+uint64(length), uint64(b.Length))
	return int(offset / ChunkSize), int((last + ChunkSize - 1) / ChunkSize)
}

// Hint says what a block was written for, so that file contents can be found
// again when all metadata is lost. It is never trusted for anything else.
type Hint struct {
	Ino     Ino
	Offset  int64
	Version Version
}

// Castagnoli is the table of every CRC in the system.
var Castagnoli = crc32.MakeTable(crc32.Castagnoli)

// castagnoli8 are the tables by which eight bytes are taken in one step.
var castagnoli8 = func() (t [8]crc32.Table) {
	t[0] = *Castagnoli
	for i := range t[0] {
		for k := 1; k < len(t); k++ {
			t[k][i] = t[0][byte(t[k-1][i])] ^ t[k-1][i]>>8
		}
	}
	return t
}()

// ChunkSum is CRC32C over (block ID, shard, chunk number, stored bytes): a
// chunk of another block, or of another place in this one, fails.
func ChunkSum(id BlockID, shard uint8, n int, stored []byte) uint32 {
	var head [BlockIDLen + 5]byte
	b := id.Append(head[:0])
	b = append(b, shard, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	return crc32.Update(shortSum(b), Castagnoli, stored)
}

// shortSum is the CRC32C of a few bytes. Package crc32 would move them to the
// heap, which takes longer than the sum.
func shortSum(p []byte) uint32 {
	crc := ^uint32(0)
	for ; len(p) >= 8; p = p[8:] {
		crc ^= binary.LittleEndian.Uint32(p)
		crc = castagnoli8[7][byte(crc)] ^ castagnoli8[6][byte(crc>>8)] ^ castagnoli8[5][byte(crc>>16)] ^ castagnoli8[4][crc>>24] ^
			castagnoli8[3][p[4]] ^ castagnoli8[2][p[5]] ^ castagnoli8[1][p[6]] ^ castagnoli8[0][p[7]]
	}
	for _, b := range p {
		crc = castagnoli8[0][byte(crc)^b] ^ crc>>8
	}
	return ^crc
}
