package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// compressed is the put of a block of so many logical bytes, of which every third
// chunk does not shrink, chunk by chunk as a writer stores it.
func compressed(t *testing.T, n uint64, codec dfs.Codec, length int) PutRequest {
	t.Helper()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	random := content(n, length)
	req := PutRequest{ID: blockID(n), Epoch: 1, Info: dfs.BlockInfo{Length: uint32(length), Codec: codec}}
	for i, off := 0, 0; off < length; i, off = i+1, off+dfs.ChunkSize {
		size := min(dfs.ChunkSize, length-off)
		chunk := bytes.Repeat(random[off:off+min(size, 500+100*i)], 200)[:size] // each of another length
		if i%3 == 2 {
			chunk = random[off : off+size]
		}
		stored := chunk
		switch codec {
		case dfs.CodecS2:
			stored = s2.Encode(nil, chunk)
		case dfs.CodecZstd:
			stored = enc.EncodeAll(chunk, nil)
		}
		if len(stored) > size {
			stored = chunk
		}
		req.Info.Chunks = append(req.Info.Chunks, dfs.Chunk{Len: uint32(len(stored)), Sum: dfs.ChunkSum(req.ID, 0, i, stored)})
		req.Payload = append(req.Payload, stored...)
	}
	return req
}

// readsFS notes what is read of segments.
type readsFS struct {
	*vfs.MemFS
	mu    sync.Mutex
	reads []segmentRead
}

type segmentRead struct{ offset, length int64 }

func (f *readsFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.MemFS.OpenReadWrite(name, c, o...)
	return f.wrap(name, file), err
}

func (f *readsFS) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.MemFS.Open(name, o...)
	return f.wrap(name, file), err
}

func (f *readsFS) wrap(name string, file vfs.File) vfs.File {
	if file == nil || !strings.HasSuffix(name, ".seg") {
		return file
	}
	return readsFile{file, f}
}

type readsFile struct {
	vfs.File
	fs *readsFS
}

func (f readsFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	f.fs.reads = append(f.fs.reads, segmentRead{off, int64(len(p))})
	f.fs.mu.Unlock()
	return f.File.ReadAt(p, off)
}

func (f *readsFS) take() []segmentRead {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.reads
	f.reads = nil
	return out
}

// TestCompressedRanges: of a compressed block a read touches the chunks that it
// needs and nothing else: one read of the file, of their stored bytes alone.
func TestCompressedRanges(t *testing.T) {
	fs := &readsFS{MemFS: vfs.NewMem()}
	o := testOptions(fs)
	o.SegmentSize = 2 << 20
	s := openPGs(t, o, 1)
	defer mustClose(t, s)
	const chunks, last = 7, 12345
	const length = (chunks-1)*dfs.ChunkSize + last
	for codec := dfs.CodecNone; codec.Known(); codec++ {
		req := compressed(t, uint64(codec), codec, length)
		if err := s.Put(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		w, err := s.index.get(blockKey(req.ID, 0))
		if err != nil {
			t.Fatal(err)
		}
		start := make([]int64, chunks+1) // of each chunk in the payload
		for i, c := range req.Info.Chunks {
			start[i+1] = start[i] + int64(c.Len)
		}
		for first := range chunks {
			for end := first + 1; end <= chunks; end++ {
				// From within the first chunk to within the last.
				from := first*dfs.ChunkSize + 17
				to := min((end-1)*dfs.ChunkSize+100, length)
				fs.take()
				r, err := s.Get(t.Context(), req.ID, 0, uint32(from), uint32(to-from))
				if err != nil {
					t.Fatalf("%v, chunks %d to %d: %v", codec, first, end, err)
				}
				if r.First != first || !bytes.Equal(r.Data, req.Payload[start[first]:start[end]]) || r.Info.Codec != codec {
					t.Errorf("%v, chunks %d to %d: chunk %d, %d bytes", codec, first, end, r.First, len(r.Data))
				}
				r.Release()
				want := segmentRead{w.payloadAt() + start[first], start[end] - start[first]}
				if first == 0 { // with the header that lies before it
					head := w.payloadAt() - w.offset
					want = segmentRead{want.offset - head, want.length + head}
				}
				if got := fs.take(); len(got) != 1 || got[0] != want {
					t.Errorf("%v, chunks %d to %d: read %v, want %v", codec, first, end, got, want)
				}
			}
		}
	}
}

// TestAccounting: logical and stored bytes are those of the blocks that are there,
// whatever the codec, after puts, deletes, a restart, and with an index made anew.
func TestAccounting(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	o.SegmentSize = 1 << 20
	s := openPGs(t, o, 1)
	var logical, stored uint64
	check := func(when string) {
		t.Helper()
		if st := s.Stats(); st.Logical != logical || st.Stored != stored {
			t.Errorf("%s: %d logical and %d stored bytes, want %d and %d", when, st.Logical, st.Stored, logical, stored)
		}
		if err := checkStore(s); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	r := rand.New(rand.NewPCG(1, 1))
	smaller := map[dfs.Codec]bool{}
	for n := range uint64(60) {
		codec := dfs.Codec(n % 3)
		req := compressed(t, n, codec, 1+r.IntN(4*dfs.ChunkSize))
		if err := s.Put(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		size, payload := uint64(req.Info.Length), uint64(len(req.Payload))
		smaller[codec] = smaller[codec] || payload < size
		switch n % 5 {
		case 0: // again: it counts once
			if err := s.Put(t.Context(), req); err != nil {
				t.Fatal(err)
			}
		case 1:
			mustDelete(t, s, n, 1)
			continue
		}
		logical, stored = logical+size, stored+payload
	}
	if fmt.Sprint(smaller) != "map[none:false s2:true zstd:true]" {
		t.Errorf("shrunk: %v", smaller)
	}
	check("written")
	mustClose(t, s)
	s = mustOpen(t, o)
	check("reopened")
	mustClose(t, s)
	if err := fs.RemoveAll("/disk/store/index"); err != nil {
		t.Fatal(err)
	}
	s = openPGs(t, o, 1)
	check("with a new index")
	for n := range uint64(60) {
		mustDelete(t, s, n, 1)
	}
	logical, stored = 0, 0
	check("all deleted")
	mustClose(t, s)
}

// TestUnknownCodec: a put of a codec of a later release is refused, and so is a
// segment that holds one, which is no damage.
func TestUnknownCodec(t *testing.T) {
	s := openPGs(t, testOptions(vfs.NewMem()), 1)
	req := putRequest(1, 100, 1)
	req.Info.Codec = 3
	wantKind(t, s.Put(t.Context(), req), dfs.Unsupported)
	mustClose(t, s)

	m := newImage(9, 64<<10)
	m.batch(map[uint64]int{1: 100}, 1)
	at := place{testMark, 9, pageSize + batchHeaderLen}
	head := m.p[at.offset:]
	n, ok := recordTableLen(head, at)
	if !ok {
		t.Fatal("no record where the first one is")
	}
	head[73] = 3
	sum := recordSum(head[:n])
	head[124], head[125], head[126], head[127] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
	_, err := decodeRecord(head[:n], at)
	wantKind(t, err, dfs.Unsupported)
	_, _, err = m.scan(m.p, false, 0)
	wantKind(t, err, dfs.Unsupported)
}
