package dfs

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"testing"
)

func TestBlockIDRoundTripAndOrder(t *testing.T) {
	ids := []BlockID{
		{PG: 1, Ino: MakeIno(1, 1), Session: 1, Counter: 1},
		{PG: 1, Ino: MakeIno(1, 1), Session: 1, Counter: MaxBlockCounter},
		{PG: 1, Ino: MakeIno(1, 1), Session: MaxSessionID, Counter: 0},
		{PG: 1, Ino: MakeIno(8, 1<<48-1), Session: 0, Counter: 0},
		{PG: 1<<32 - 1, Ino: MakeIno(1, 1), Session: 7, Counter: 9},
	}
	for i, id := range ids {
		b := id.Bytes()
		if len(b) != BlockIDLen {
			t.Fatalf("%v: %d bytes", id, len(b))
		}
		got, err := ParseBlockID(b)
		if err != nil || got != id {
			t.Fatalf("ParseBlockID(%v) = %v, %v", id, got, err)
		}
		if i > 0 && bytes.Compare(ids[i-1].Bytes(), b) >= 0 {
			t.Errorf("%v does not sort after %v", id, ids[i-1])
		}
	}
	if _, err := ParseBlockID(make([]byte, 23)); KindOf(err) != Invalid {
		t.Errorf("short block ID: %v", err)
	}
}

func TestInoCarriesItsGroup(t *testing.T) {
	i := MakeIno(513, 42)
	if i.Group() != 513 || i.Local() != 42 {
		t.Errorf("%v: group %d local %d", i, i.Group(), i.Local())
	}
	if RootIno.Group() != 1 {
		t.Errorf("root is in group %d", RootIno.Group())
	}
}

func TestErrorKinds(t *testing.T) {
	inner := &Error{Kind: NotLeader, Op: "propose", LeaderHint: 3}
	err := Wrap("mkdir", "/a", fmt.Errorf("over the wire: %w", inner))
	if !errors.Is(err, NotLeader) || KindOf(err) != NotLeader {
		t.Errorf("kind lost: %v", err)
	}
	var e *Error
	if !errors.As(err, &e) || e.LeaderHint != 3 {
		t.Errorf("hint lost: %v", err)
	}
	if KindOf(nil) != Other || KindOf(errors.New("x")) != Other {
		t.Error("kind of a foreign error")
	}
	joined := fmt.Errorf("start: %w", errors.Join(errors.New("x"), Wrap("open", "disk", Busy), Stale))
	if k := KindOf(joined); k != Busy {
		t.Errorf("kind of joined errors: %v", k)
	}
	if k := KindOf(errors.Join(errors.New("x"), errors.New("y"))); k != Other {
		t.Errorf("kind of joined foreign errors: %v", k)
	}
	for k := Kind(0); k < numKinds; k++ {
		if kindText[k] == "" {
			t.Errorf("kind %d has no text", k)
		}
	}
}

func TestClasses(t *testing.T) {
	for _, c := range []struct {
		s                string
		width, min, need int
	}{
		{"rep1", 1, 1, 1}, {"rep2", 2, 2, 1}, {"rep3", 3, 2, 1}, {"rep4", 4, 3, 1}, {"rep5", 5, 3, 1},
		{"ec4+2", 6, 5, 4}, {"ec2+1", 3, 3, 2},
	} {
		got, err := ParseClass(c.s)
		if err != nil || got.String() != c.s || got.Width() != c.width || got.MinActing() != c.min || got.NeedComplete() != c.need {
			t.Errorf("%s: %v width %d min %d need %d, %v", c.s, got, got.Width(), got.MinActing(), got.NeedComplete(), err)
		}
	}
	for _, s := range []string{"", "rep0", "rep17", "rep", "ec1+1", "ec4", "ec40+2", "x3", "rep3 "} {
		if c, err := ParseClass(s); KindOf(err) != Invalid {
			t.Errorf("ParseClass(%q) = %v, %v", s, c, err)
		}
	}
}

func TestBlockInfoRangeAndValidate(t *testing.T) {
	b := BlockInfo{Length: 3*ChunkSize + 1, Chunks: []Chunk{{Len: ChunkSize}, {Len: ChunkSize}, {Len: ChunkSize}, {Len: 1}}}
	if err := b.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off, n     uint32
		first, end int
	}{
		{0, 1, 0, 1}, {0, ChunkSize, 0, 1}, {ChunkSize - 1, 2, 0, 2}, {3 * ChunkSize, 9, 3, 4},
		{0, 1<<32 - 1, 0, 4}, {3*ChunkSize + 1, 5, 0, 0}, {5, 0, 0, 0},
	} {
		if f, e := b.Range(c.off, c.n); f != c.first || e != c.end {
			t.Errorf("Range(%d,%d) = %d,%d want %d,%d", c.off, c.n, f, e, c.first, c.end)
		}
	}
	for _, bad := range []BlockInfo{
		{}, {Length: 1}, {Length: MaxBlockSize + 1}, {Length: 1, Codec: 9, Chunks: []Chunk{{Len: 1}}},
		{Length: 2, Chunks: []Chunk{{Len: 1}}}, {Length: 2, Codec: CodecS2, Chunks: []Chunk{{Len: 3}}},
		{Length: 2, Codec: CodecZstd, Chunks: []Chunk{{Len: 3}}}, {Length: 2, Codec: CodecZstd, Chunks: []Chunk{{}}},
		{Length: 2, Codec: CodecZstd, Chunks: []Chunk{{Len: 1}, {Len: 1}}}, {Length: ChunkSize + 1, Codec: CodecZstd, Chunks: []Chunk{{Len: 9}, {Len: 2}}},
		{Length: 1<<32 - 1, Codec: CodecZstd, Chunks: make([]Chunk, 1<<16)},
	} {
		if KindOf(bad.Validate()) != Invalid && bad.Codec.Known() {
			t.Errorf("%+v: %v", bad, bad.Validate())
		}
	}
	for c := range 256 {
		info := BlockInfo{Length: 2, Codec: Codec(c), Chunks: []Chunk{{Len: 2}}}
		if want := c <= 2; (info.Validate() == nil) != want || !want && KindOf(info.Validate()) != Unsupported {
			t.Errorf("codec %d: %v", c, info.Validate())
		}
	}
}

func TestCodecNames(t *testing.T) {
	for name, want := range map[string]Codec{"none": 0, "s2": 1, "zstd": 2} { // numbers are on disk
		if c, err := ParseCodec(name); err != nil || c != want || c.String() != name {
			t.Errorf("%s: codec %d, %v", name, c, err)
		}
	}
	for _, bad := range []string{"", "S2", "gzip", "codec-3"} {
		if _, err := ParseCodec(bad); KindOf(err) != Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestChunkSumBindsIdentity(t *testing.T) {
	data := []byte("some bytes")
	id := BlockID{PG: 1, Ino: RootIno, Session: 2, Counter: 3}
	sum := ChunkSum(id, 0, 0, data)
	other := id
	other.Counter++
	if ChunkSum(other, 0, 0, data) == sum || ChunkSum(id, 1, 0, data) == sum || ChunkSum(id, 0, 1, data) == sum {
		t.Error("a chunk of another place has the same sum")
	}
}

// TestShortSum: it is the CRC of package crc32.
func TestShortSum(t *testing.T) {
	p := make([]byte, 64)
	for i := range p {
		p[i] = byte(i * 37)
	}
	for n := range len(p) {
		if got, want := shortSum(p[:n]), crc32.Checksum(p[:n], Castagnoli); got != want {
			t.Errorf("%d bytes: %08x, want %08x", n, got, want)
		}
	}
}
