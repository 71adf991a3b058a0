package engine

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/klauspost/compress/s2"
)

// specimen is a small store, closed, with all that a segment can hold, and
// what must be in it.
type specimen struct {
	fs      *vfs.MemFS
	blocks  map[uint64][]byte // stored bytes
	deleted []uint64
	epoch   dfs.Epoch
}

// newSpecimen writes several batches into segment 1: puts, small and of more
// than one chunk, compressed, from a refill; tombstones, of blocks that are
// there and that are not. sealed: it has a footer, and the log goes on in
// segment 2. Otherwise it is the last.
func newSpecimen(t testing.TB, sealed bool) *specimen {
	t.Helper()
	sp := &specimen{fs: vfs.NewMem(), blocks: map[uint64][]byte{}, epoch: 3}
	s := openPGs(t, testOptions(sp.fs), sp.epoch)
	put := func(req PutRequest) {
		t.Helper()
		if err := s.Put(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		sp.blocks[req.ID.Counter] = req.Payload
	}
	drop := func(n uint64) {
		mustDelete(t, s, n, sp.epoch)
		delete(sp.blocks, n)
		sp.deleted = append(sp.deleted, n)
	}
	put(putRequest(1, 300, sp.epoch))
	put(putRequest(2, 1, sp.epoch))
	drop(2)
	put(shrunk(3, 150_000, sp.epoch))
	refill := putRequest(4, 200, 2)
	refill.Refill = true
	put(refill)
	drop(50)
	putTogether(t, s, 10, 3) // one batch of three
	for n := range uint64(3) {
		sp.blocks[10+n] = content(10+n, 900)
	}
	drop(11)
	if sealed {
		put(putRequest(20, 230_000, sp.epoch)) // does not fit beside them
		drop(1)
	}
	mustClose(t, s)
	footer := bytes.Contains(fileBytes(t, sp.fs, "segments/"+segmentName(1)), []byte("DFTR"))
	if footer != sealed {
		t.Fatalf("sealed: %v, want %v", footer, sealed)
	}
	return sp
}

// shrunk is a put of size bytes that shrink, chunk by chunk.
func shrunk(n uint64, size int, e dfs.Epoch) PutRequest {
	req := PutRequest{ID: blockID(n), Epoch: e, Info: dfs.BlockInfo{Length: uint32(size), Codec: dfs.CodecS2}}
	for plain := bytes.Repeat([]byte("dfsd"), size/4); len(plain) > 0; {
		m := min(len(plain), dfs.ChunkSize)
		p := s2.Encode(nil, plain[:m])
		sum := dfs.ChunkSum(req.ID, 0, len(req.Info.Chunks), p)
		req.Info.Chunks = append(req.Info.Chunks, dfs.Chunk{Len: uint32(len(p)), Sum: sum})
		req.Payload, plain = append(req.Payload, p...), plain[m:]
	}
	return req
}

// clone copies the directory, with or without its index.
func (sp *specimen) clone(t testing.TB, index bool) *vfs.MemFS {
	t.Helper()
	to := vfs.NewMem()
	if err := to.MkdirAll("/disk", 0o700); err != nil {
		t.Fatal(err)
	}
	ok, err := vfs.Clone(sp.fs, to, "/disk/store", "/disk/store", vfs.CloneSkip(func(name string) bool {
		return !index && strings.Contains(name, "/"+indexName)
	}))
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	return to
}

// check opens a damaged clone, and looks at every block: it has its bytes, or
// is known to be damaged, or the store says that it is incomplete. It returns
// how it was noticed.
func (sp *specimen) check(fs vfs.FS) (noticed string, err error) {
	s, err := Open(testOptions(fs))
	if err != nil {
		return "", err
	}
	noticed, err = sp.look(s)
	if cerr := s.Close(); err == nil {
		err = cerr
	}
	return noticed, err
}

func (sp *specimen) look(s *Store) (noticed string, err error) {
	<-s.verifyDone
	unnamed := s.DamagedUnnamed()
	if unnamed {
		noticed = "incomplete"
	}
	for n, want := range sp.blocks {
		p, headless, err := readAll(s, n)
		switch {
		case err == nil && !bytes.Equal(p, want):
			return "", fmt.Errorf("block %d has wrong bytes", n)
		case err == nil && headless:
			noticed = "header"
		case err == nil:
		case dfs.KindOf(err) == dfs.Corrupt:
			noticed = "block"
		case dfs.KindOf(err) != dfs.NotExist || !unnamed:
			return "", fmt.Errorf("block %d, incomplete %v: %w", n, unnamed, err)
		}
	}
	for _, n := range sp.deleted {
		// Who lost a tombstone that nothing names cannot know better. It is
		// incomplete then, and learns of it from the group before it counts.
		_, _, err := readAll(s, n)
		if (err == nil || dfs.KindOf(err) == dfs.Corrupt) && !unnamed {
			return "", fmt.Errorf("block %d was deleted and is back: %v", n, err)
		}
		if e, err := s.Stat(blockID(n), 0); (err != nil || !e.Tombstone) && !unnamed {
			return "", fmt.Errorf("the tombstone of block %d is gone: %v", n, err)
		}
	}
	return noticed, nil
}

func readAll(s *Store, n uint64) (p []byte, headless bool, err error) {
	r, err := s.Get(context.Background(), blockID(n), 0, 0, dfs.MaxBlockSize)
	if err != nil {
		return nil, false, err
	}
	defer r.Release()
	return bytes.Clone(r.Data), r.HeaderLost, nil
}

// used returns the positions of segment 1 that hold something, and some of the
// others: a few of each page's padding and of the room behind the last batch.
func (sp *specimen) used(t testing.TB) (positions []int) {
	t.Helper()
	p := fileBytes(t, sp.fs, "segments/"+segmentName(1))
	is := make([]bool, len(p))
	mark := func(from, to int64) {
		for i := from; i < to; i++ {
			is[i] = true
		}
	}
	mark(0, segmentHeaderLen)
	sc := &segmentScan{file: bytes.NewReader(p), mark: testMark, segment: 1, size: int64(len(p)), closed: true}
	records := 0
	res, err := sc.run(func(g group) error {
		mark(g.offset, g.offset+batchHeaderLen)
		for i := range g.records {
			records++
			r := &g.records[i]
			mark(r.offset, r.offset+int64(r.length()))
		}
		return nil
	})
	if err != nil || len(res.lost) > 0 || records < 10 {
		t.Fatalf("%d records, %d lost: %v", records, len(res.lost), err)
	}
	if res.foot != nil {
		mark(res.foot.start, int64(len(p)))
	}
	for i := range p {
		if is[i] || i%pageSize%1021 == 7 {
			positions = append(positions, i)
		}
	}
	return positions
}

// TestEveryFlippedBit damages one bit of each byte of a small segment, one at a
// time, with the index and without: each is detected or harmless. Without
// -full it takes every 97th byte.
func TestEveryFlippedBit(t *testing.T) {
	for _, sealed := range []bool{true, false} {
		for _, index := range []bool{true, false} {
			t.Run(fmt.Sprintf("sealed=%v,index=%v", sealed, index), func(t *testing.T) {
				t.Parallel()
				flipEach(t, sealed, index)
			})
		}
	}
}

func flipEach(t *testing.T, sealed, index bool) {
	sp := newSpecimen(t, sealed)
	step := 97
	if *full {
		step = 1
	}
	noticed, flips := map[string]int{}, 0
	for i, at := range sp.used(t) {
		if i%step != 0 {
			continue
		}
		fs := sp.clone(t, index)
		bit := byte(1) << ((at ^ at>>3) % 8)
		fileBytes(t, fs, "segments/"+segmentName(1))[at] ^= bit
		how, err := sp.check(fs)
		if err == nil && i%29 == 0 { // the verdict outlives a restart
			again, err2 := sp.check(fs)
			if err = err2; err == nil && again != how {
				err = fmt.Errorf("%q at first, %q after a restart", how, again)
			}
		}
		if err != nil {
			t.Errorf("byte %d, bit %02x: %v", at, bit, err)
		}
		noticed[how]++
		flips++
	}
	t.Logf("%d bits, noticed as %v", flips, noticed)
}
