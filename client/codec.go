package client

import (
	"fmt"

	"dfsd/dfs"
)

// encoded is the stored form of a block that has no name yet: checksums, which
// bind the name, are made for each attempt to store it.
type encoded struct {
	length  uint32 // logical bytes
	codec   dfs.Codec
	chunks  []uint32 // stored bytes of each chunk
	payload []byte   // the chunks, end to end
}

// encode makes the stored form of the bytes in raw. It compresses chunk by chunk
// into room unless the codec is none or a sample does not shrink; then the payload
// is raw itself. REQUIRES: 1 <= len(raw) <= dfs.MaxBlockSize; the codec is known; room
// holds as much and slack, unless the codec is none.
func (p *packers) encode(codec dfs.Codec, raw, room []byte) *encoded {
	e := &encoded{length: uint32(len(raw)), codec: dfs.CodecNone, payload: raw}
	if codec != dfs.CodecNone {
		pack, done := p.packer(codec)
		defer done()
		if shrinks(pack, raw, room) && e.compress(pack, raw, room) {
			e.codec = codec
			return e
		}
	}
	e.chunks = e.chunks[:0]
	for off := 0; off < len(raw); off += dfs.ChunkSize {
		e.chunks = append(e.chunks, uint32(min(dfs.ChunkSize, len(raw)-off)))
	}
	return e
}

// shrinks reports whether a chunk from the middle of raw loses a sixteenth.
func shrinks(pack packer, raw, room []byte) bool {
	at := len(raw) / 2 / dfs.ChunkSize * dfs.ChunkSize
	sample := raw[at:min(at+dfs.ChunkSize, len(raw))]
	return len(pack(room[:cap(room)], sample)) <= len(sample)-len(sample)/16
}

// compress fills the stored form with compressed chunks; it reports false when
// the whole is no smaller. A chunk that does not shrink is stored as it is,
// which its length tells.
func (e *encoded) compress(pack packer, raw, room []byte) bool {
	out := room[:0]
	for off := 0; off < len(raw); off += dfs.ChunkSize {
		chunk := raw[off:min(off+dfs.ChunkSize, len(raw))]
		got := pack(out[len(out):cap(out)], chunk)
		if len(got) >= len(chunk) {
			out = append(out, chunk...)
			got = chunk
		} else {
			out = append(out, got...) // in place: got lies there already
		}
		e.chunks = append(e.chunks, uint32(len(got)))
	}
	if len(out) >= len(raw) {
		return false
	}
	e.payload = out
	return true
}

// info describes the stored form under a name.
func (e *encoded) info(id dfs.BlockID) dfs.BlockInfo {
	info := dfs.BlockInfo{Length: e.length, Codec: e.codec, Chunks: make([]dfs.Chunk, len(e.chunks))}
	at := uint32(0)
	for n, size := range e.chunks {
		info.Chunks[n] = dfs.Chunk{Len: size, Sum: dfs.ChunkSum(id, 0, n, e.payload[at:at+size])}
		at += size
	}
	return info
}

// verify checks stored chunks of a block, the first of which has the number
// first, against their checksums. Error: Corrupt.
func verify(id dfs.BlockID, info *dfs.BlockInfo, first int, stored []byte) error {
	for n := first; len(stored) > 0; n++ {
		if n >= len(info.Chunks) || int(info.Chunks[n].Len) > len(stored) {
			return dfs.Errorf(dfs.Corrupt, "", "%d bytes too many, or a chunk cut short", len(stored))
		}
		size := info.Chunks[n].Len
		if sum := dfs.ChunkSum(id, 0, n, stored[:size]); sum != info.Chunks[n].Sum {
			return dfs.Errorf(dfs.Corrupt, "", "chunk %d has checksum %08x, want %08x", n, sum, info.Chunks[n].Sum)
		}
		stored = stored[size:]
	}
	return nil
}

// decode writes the logical bytes from offset on into dst, out of the stored
// chunks from the number first on. REQUIRES: info is valid, offset+len(dst) is
// within the block, stored holds the chunks that cover it, and scratch a chunk.
// Error: Corrupt.
func (p *packers) decode(info *dfs.BlockInfo, first int, stored []byte, offset uint32, dst []byte, scratch []byte) error {
	unpack, done := p.unpacker(info.Codec)
	defer done()
	for n := first; len(dst) > 0; n++ {
		if n >= len(info.Chunks) || int(info.Chunks[n].Len) > len(stored) {
			return dfs.Errorf(dfs.Corrupt, "", "chunk %d is missing", n)
		}
		chunk := stored[:info.Chunks[n].Len]
		stored = stored[len(chunk):]
		start := uint32(n) * dfs.ChunkSize
		size := min(dfs.ChunkSize, info.Length-start) // logical
		skip := offset - start                        // bytes of the chunk before those wanted
		want := min(int(size-skip), len(dst))
		if uint32(len(chunk)) == size {
			copy(dst[:want], chunk[skip:])
		} else {
			room := scratch[:size:size]
			if want == int(size) {
				room = dst[:size:size]
			}
			if err := unpack(room, chunk); err != nil {
				return &dfs.Error{Kind: dfs.Corrupt, Text: fmt.Sprintf("%v chunk %d of %d bytes does not hold %d", info.Codec, n, len(chunk), size), Err: err}
			}
			if want < int(size) {
				copy(dst[:want], room[skip:])
			}
		}
		dst, offset = dst[want:], offset+uint32(want)
	}
	return nil
}
