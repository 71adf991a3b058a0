package client

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"dfsd/dfs"
)

var testBlock = dfs.BlockID{PG: 3, Ino: dfs.MakeIno(2, 9), Session: 4, Counter: 5}

// texts are contents of every kind: a byte, random bytes, repetition, and both.
func texts() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 1))
	random := make([]byte, 5*dfs.ChunkSize+17)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	same := bytes.Repeat([]byte("all work and no play "), 20000)
	mixed := bytes.Clone(same)
	copy(mixed[dfs.ChunkSize:], random[:2*dfs.ChunkSize]) // two chunks that do not shrink
	return map[string][]byte{
		"byte": {7}, "random": random, "same": same, "mixed": mixed, "chunk": same[:dfs.ChunkSize], "chunk+1": same[:dfs.ChunkSize+1],
		"block": bytes.Repeat(same, 1+dfs.DefaultBlockSize/len(same))[:dfs.DefaultBlockSize],
	}
}

// compressing are the codecs that compress.
var compressing = []dfs.Codec{dfs.CodecS2, dfs.CodecZstd}

func TestEncodeAndDecode(t *testing.T) {
	pool, p := newBuffers(), &packers{}
	if need := max(s2.MaxEncodedLen(dfs.ChunkSize), newEncoder().MaxEncodedSize(dfs.ChunkSize)); need > slack {
		t.Fatalf("a chunk needs %d bytes, slack is %d", need, slack)
	}
	plain := map[string]bool{"random": true, "byte": true} // not to be compressed
	for name, text := range texts() {
		for _, codec := range append(compressing, dfs.CodecNone) {
			name := fmt.Sprintf("%s, %v", name, codec)
			room := pool.get(len(text)).b
			raw := bytes.Clone(text)
			e := p.encode(codec, raw, room)
			info := e.info(testBlock)
			if err := info.Validate(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if info.StoredLen() != len(e.payload) || len(e.payload) > len(text) {
				t.Errorf("%s: %d stored bytes, described as %d", name, len(e.payload), info.StoredLen())
			}
			want := codec
			if plain[strings.Split(name, ",")[0]] {
				want = dfs.CodecNone
			}
			if info.Codec != want {
				t.Errorf("%s: codec %v, want %v", name, info.Codec, want)
			}
			if !bytes.Equal(raw, text) {
				t.Errorf("%s: what was to be encoded has changed", name)
			}
			if err := verify(testBlock, &info, 0, e.payload); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			r := rand.New(rand.NewPCG(2, 2))
			scratch := make([]byte, dfs.ChunkSize)
			for range 30 {
				off := r.IntN(len(text))
				n := 1 + r.IntN(len(text)-off)
				first, end := info.Range(uint32(off), uint32(n))
				dst := make([]byte, n)
				if err := p.decode(&info, first, slice(&info, e.payload, first, end), uint32(off), dst, scratch); err != nil {
					t.Fatalf("%s: %d bytes at %d: %v", name, n, off, err)
				}
				if !bytes.Equal(dst, text[off:off+n]) {
					t.Fatalf("%s: %d bytes at %d differ", name, n, off)
				}
			}
		}
	}
}

// golden is a chunk of 300 bytes in the stored form of each codec, as docs/FORMATS.md
// has it. What compressors make of it may change with their release; what it means
// may not.
func golden() (text []byte, chunks map[dfs.Codec]string) {
	return bytes.Repeat([]byte("dfsd, a block, "), 20), map[dfs.Codec]string{
		dfs.CodecS2:   "ac02 38 64667364 2c20 61 20 626c6f636b 2c20 11 0f 19 00 11 00",
		dfs.CodecZstd: "28b52ffd 40 00 2c00 bd0000 78 64667364 2c20 61 20 626c6f636b 2c20 01 54 0f 04 2c 1a 12",
	}
}

func TestGoldenChunks(t *testing.T) {
	text, chunks := golden()
	p := &packers{}
	for codec, chunk := range chunks {
		stored, err := hex.DecodeString(strings.ReplaceAll(chunk, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		info := dfs.BlockInfo{Length: uint32(len(text)), Codec: codec, Chunks: []dfs.Chunk{{Len: uint32(len(stored))}}}
		dst := make([]byte, len(text))
		if err := p.decode(&info, 0, stored, 0, dst, make([]byte, dfs.ChunkSize)); err != nil || !bytes.Equal(dst, text) {
			t.Errorf("%v: %q, %v", codec, dst, err)
		}
	}
}

// TestDecodeRefuses has chunks that are sound for their codec and hold another
// number of bytes than the block's length says, or are of none.
func TestDecodeRefuses(t *testing.T) {
	p, room := &packers{}, make([]byte, dfs.ChunkSize+slack)
	const size = 1000
	text := bytes.Repeat([]byte("0123456789"), 2*dfs.MaxBlockSize/10)
	big, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	var unsized bytes.Buffer // it announces no length, and inflates to the largest block
	stream, err := zstd.NewWriter(&unsized, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(dfs.ChunkSize))
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if _, err := stream.Write(text[:dfs.MaxBlockSize/8]); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Close(); err != nil {
		t.Fatal(err)
	}
	type stored struct {
		name  string
		codec dfs.Codec
		chunk []byte
	}
	cases := []stored{
		{"a bomb of zstd", dfs.CodecZstd, big.EncodeAll(text, nil)},
		{"a bomb of zstd without a length", dfs.CodecZstd, unsized.Bytes()},
		{"a bomb of s2", dfs.CodecS2, s2.Encode(nil, text)},
		{"an s2 head of 4 GiB", dfs.CodecS2, []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0}},
		{"no zstd frame", dfs.CodecZstd, []byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}},
		{"another codec", dfs.CodecZstd, s2.Encode(nil, text[:size])},
		{"another codec", dfs.CodecS2, big.EncodeAll(text[:size], nil)},
		{"not compressed", dfs.CodecNone, []byte("abc")},
	}
	for _, codec := range compressing {
		pack, done := p.packer(codec)
		for _, n := range []int{1, size - 1, size + 1, dfs.ChunkSize} {
			cases = append(cases, stored{fmt.Sprintf("%d bytes", n), codec, bytes.Clone(pack(room, text[:n]))})
		}
		done()
	}
	for _, c := range cases {
		info := dfs.BlockInfo{Length: size, Codec: c.codec, Chunks: []dfs.Chunk{{Len: uint32(len(c.chunk))}}}
		dst, scratch := make([]byte, size, dfs.ChunkSize), make([]byte, dfs.ChunkSize)
		for _, want := range []int{size, 10} {
			run := func() {
				if err := p.decode(&info, 0, c.chunk, 0, dst[:want], scratch); dfs.KindOf(err) != dfs.Corrupt {
					t.Errorf("%v, %s: %v", c.codec, c.name, err)
				}
			}
			run() // buffers of the decoder
			if got := allocated(run); got > 4*dfs.ChunkSize {
				t.Errorf("%v, %s: %d bytes were allocated", c.codec, c.name, got)
			}
			if !bytes.Equal(dst[size:cap(dst)], make([]byte, cap(dst)-size)) {
				t.Errorf("%v, %s: it wrote beyond what was asked", c.codec, c.name)
			}
		}
	}
}

// allocated is how many bytes fn allocates.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// slice returns the stored bytes of chunks [first, end).
func slice(info *dfs.BlockInfo, payload []byte, first, end int) []byte {
	from, to := 0, 0
	for n, c := range info.Chunks[:end] {
		if n < first {
			from += int(c.Len)
		}
		to += int(c.Len)
	}
	return payload[from:to]
}

func TestVerifyFindsDamage(t *testing.T) {
	text := texts()["mixed"]
	e := (&packers{}).encode(dfs.CodecS2, bytes.Clone(text), newBuffers().get(len(text)).b)
	info := e.info(testBlock)
	r := rand.New(rand.NewPCG(3, 3))
	for range 300 {
		bad := bytes.Clone(e.payload)
		bad[r.IntN(len(bad))] ^= 1 << r.IntN(8)
		if dfs.KindOf(verify(testBlock, &info, 0, bad)) != dfs.Corrupt {
			t.Fatal("a flipped bit passes")
		}
	}
	other := testBlock
	other.Counter++
	for name, err := range map[string]error{
		"another block":   verify(other, &info, 0, e.payload),
		"another chunk":   verify(testBlock, &info, 1, e.payload),
		"a byte too few":  verify(testBlock, &info, 0, e.payload[:len(e.payload)-1]),
		"a byte too many": verify(testBlock, &info, 0, append(bytes.Clone(e.payload), 0)),
	} {
		if dfs.KindOf(err) != dfs.Corrupt {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecode feeds stored bytes whose checksums are right and contents are not:
// decode must refuse them or fill the whole of what was asked.
func FuzzDecode(f *testing.F) {
	text := texts()["chunk+1"]
	p := &packers{}
	for _, codec := range compressing {
		e := p.encode(codec, text, newBuffers().get(len(text)).b)
		f.Add(uint8(codec), e.payload, uint32(len(text)), uint16(e.chunks[0]), uint32(0), uint32(len(text)))
		f.Add(uint8(codec), e.payload, uint32(len(text)), uint16(e.chunks[0]), uint32(dfs.ChunkSize-3), uint32(4))
		f.Add(uint8(codec), []byte{1, 2, 3}, uint32(3), uint16(3), uint32(1), uint32(2))
	}
	short, chunks := golden()
	for codec, chunk := range chunks {
		stored, _ := hex.DecodeString(strings.ReplaceAll(chunk, " ", ""))
		f.Add(uint8(codec), stored, uint32(len(short)), uint16(len(stored)), uint32(7), uint32(100))
	}
	scratch := make([]byte, dfs.ChunkSize)
	f.Fuzz(func(t *testing.T, codec uint8, stored []byte, length uint32, chunk uint16, offset, want uint32) {
		length = 1 + length%(4*dfs.ChunkSize)
		info := dfs.BlockInfo{Length: length, Codec: dfs.Codec(codec)}
		for range (length + dfs.ChunkSize - 1) / dfs.ChunkSize {
			info.Chunks = append(info.Chunks, dfs.Chunk{Len: uint32(chunk)})
		}
		if info.Validate() != nil {
			return
		}
		offset %= length
		want = 1 + want%(length-offset)
		first, _ := info.Range(offset, want)
		dst := make([]byte, want+8)
		if err := p.decode(&info, first, stored, offset, dst[:want], scratch); err != nil && dfs.KindOf(err) != dfs.Corrupt {
			t.Errorf("error %v", err)
		}
		if !bytes.Equal(dst[want:], make([]byte, 8)) {
			t.Error("it wrote beyond what was asked")
		}
	})
}

// FuzzCompress takes what any writer may store: it comes back.
func FuzzCompress(f *testing.F) {
	p, pool, scratch := &packers{}, newBuffers(), make([]byte, dfs.ChunkSize)
	f.Add([]byte("x"), uint32(1))
	f.Add([]byte("all work and no play "), uint32(2*dfs.ChunkSize+5))
	f.Fuzz(func(t *testing.T, seed []byte, length uint32) {
		if len(seed) == 0 {
			return
		}
		length = 1 + length%(3*dfs.ChunkSize)
		raw := bytes.Repeat(seed, int(length)/len(seed)+1)[:length]
		for _, codec := range compressing {
			room := pool.get(len(raw))
			e := p.encode(codec, raw, room.b)
			info := e.info(testBlock)
			if err := info.Validate(); err != nil {
				t.Fatal(err)
			}
			dst := make([]byte, len(raw))
			if err := p.decode(&info, 0, e.payload, 0, dst, scratch); err != nil || !bytes.Equal(dst, raw) {
				t.Errorf("%v: %v", codec, err)
			}
			room.release()
		}
	})
}

// BenchmarkCodec compresses and inflates blocks of 4 MiB; ratio is logical bytes by
// stored ones.
func BenchmarkCodec(b *testing.B) {
	text := texts()
	var words bytes.Buffer // numbered lines of a few hundred words
	for r := rand.New(rand.NewPCG(5, 5)); words.Len() < dfs.DefaultBlockSize; {
		fmt.Fprintf(&words, "%d %x the %d of %x\n", words.Len(), r.IntN(300), r.IntN(50), r.IntN(300)*7919)
	}
	random := bytes.Repeat(text["random"], 1+dfs.DefaultBlockSize/len(text["random"]))
	for name, raw := range map[string][]byte{"text": words.Bytes()[:dfs.DefaultBlockSize], "random": random[:dfs.DefaultBlockSize]} {
		for _, codec := range append(compressing, dfs.CodecNone) {
			p, pool := &packers{}, newBuffers()
			room := pool.get(len(raw))
			e := p.encode(codec, raw, room.b)
			info := e.info(testBlock)
			b.Run(fmt.Sprintf("encode/%v/%s", codec, name), func(b *testing.B) {
				b.SetBytes(int64(len(raw)))
				b.ReportAllocs()
				for b.Loop() {
					e = p.encode(codec, raw, room.b)
				}
				b.ReportMetric(float64(len(raw))/float64(len(e.payload)), "ratio")
			})
			dst, scratch := make([]byte, len(raw)), make([]byte, dfs.ChunkSize)
			b.Run(fmt.Sprintf("decode/%v/%s", codec, name), func(b *testing.B) {
				b.SetBytes(int64(len(raw)))
				b.ReportAllocs()
				for b.Loop() {
					if err := p.decode(&info, 0, e.payload, 0, dst, scratch); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
