package client

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/s2"

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

func TestEncodeAndDecode(t *testing.T) {
	pool := newBuffers()
	if need := s2.MaxEncodedLen(dfs.ChunkSize); need > slack {
		t.Fatalf("s2 needs %d bytes for a chunk, slack is %d", need, slack)
	}
	codecs := map[string]dfs.Codec{"same": dfs.CodecS2, "mixed": dfs.CodecS2, "random": dfs.CodecNone, "byte": dfs.CodecNone}
	for name, text := range texts() {
		for _, compress := range []bool{false, true} {
			var room []byte
			if compress {
				room = pool.get(len(text)).b
			}
			raw := bytes.Clone(text)
			e := encode(raw, room)
			info := e.info(testBlock)
			if err := info.Validate(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if info.StoredLen() != len(e.payload) || len(e.payload) > len(text) {
				t.Errorf("%s: %d stored bytes, described as %d", name, len(e.payload), info.StoredLen())
			}
			if want, ok := codecs[name]; ok && compress && info.Codec != want {
				t.Errorf("%s: codec %v, want %v", name, info.Codec, want)
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
				if err := decode(&info, first, slice(&info, e.payload, first, end), uint32(off), dst, scratch); err != nil {
					t.Fatalf("%s: %d bytes at %d: %v", name, n, off, err)
				}
				if !bytes.Equal(dst, text[off:off+n]) {
					t.Fatalf("%s: %d bytes at %d differ", name, n, off)
				}
			}
		}
	}
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
	e := encode(bytes.Clone(text), newBuffers().get(len(text)).b)
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
	e := encode(text, newBuffers().get(len(text)).b)
	f.Add(e.payload, uint32(len(text)), uint16(e.chunks[0]), uint32(0), uint32(len(text)))
	f.Add(e.payload, uint32(len(text)), uint16(e.chunks[0]), uint32(dfs.ChunkSize-3), uint32(4))
	f.Add([]byte{1, 2, 3}, uint32(3), uint16(3), uint32(1), uint32(2))
	f.Fuzz(func(t *testing.T, stored []byte, length uint32, chunk uint16, offset, want uint32) {
		length = 1 + length%(4*dfs.ChunkSize)
		info := dfs.BlockInfo{Length: length, Codec: dfs.CodecS2}
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
		if err := decode(&info, first, stored, offset, dst[:want], make([]byte, dfs.ChunkSize)); err != nil && dfs.KindOf(err) != dfs.Corrupt {
			t.Errorf("error %v", err)
		}
		if !bytes.Equal(dst[want:], make([]byte, 8)) {
			t.Error("it wrote beyond what was asked")
		}
	})
}
