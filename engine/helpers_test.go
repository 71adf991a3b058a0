package engine

import (
	"bytes"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"
)

// full runs the long tests as a change needs them before it is taken. Without it
// they show a part of that.
var full = flag.Bool("full", false, "run the long tests in full")

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const testMark = 0x1122334455667788

func testOptions(fs vfs.FS) Options {
	return Options{
		FS: fs, Dir: "/disk/store", NewMark: func() uint64 { return testMark }, PID: 4711,
		SegmentSize: 256 << 10, CacheSize: 1 << 20, MemTableSize: 128 << 10, MaxQueueBytes: 4 << 20, Capacity: 64 << 20, ReserveBytes: 1 << 20,
		CompactAge: 100 * time.Millisecond,
	}
}

// numberedOptions draw a different number each time: testMark for a new store,
// then one a start.
func numberedOptions(fs vfs.FS) Options {
	o := testOptions(fs)
	var n atomic.Uint64
	n.Store(testMark - 1)
	o.NewMark = func() uint64 { return n.Add(1) }
	return o
}

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mustClose closes a store, whose directory must be sound then, but for what the
// store knows of.
func mustClose(t testing.TB, s *Store) {
	t.Helper()
	closeSpoiled(t, s)
	fsckDir(t, s.opts.FS, s.opts.Dir)
}

// closeSpoiled closes a store whose files the test has spoiled.
func closeSpoiled(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// openPGs opens a store and lets epoch e write to PGs 1 to 4.
func openPGs(t testing.TB, o Options, e dfs.Epoch) *Store {
	t.Helper()
	s := mustOpen(t, o)
	if err := s.SetEpochs(max(e, s.MapEpoch()), fences(e)); err != nil {
		t.Fatal(err)
	}
	return s
}

func fences(e dfs.Epoch) []PGEpoch {
	var out []PGEpoch
	for pg := range dfs.PGID(4) {
		out = append(out, PGEpoch{PG: pg + 1, Newest: e})
	}
	return out
}

func blockID(n uint64) dfs.BlockID {
	return dfs.BlockID{PG: dfs.PGID(n%4 + 1), Ino: dfs.MakeIno(1, n/16+2), Session: dfs.SessionID(7 + n/32), Counter: n}
}

// content is the payload of block n: size bytes that nothing else has.
func content(n uint64, size int) []byte {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], n)
	p := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(p)
	return p
}

// describe cuts stored bytes into chunks.
func describe(id dfs.BlockID, shard uint8, p []byte) dfs.BlockInfo {
	info := dfs.BlockInfo{Length: uint32(len(p))}
	for i := 0; len(p) > 0; i++ {
		n := min(len(p), dfs.ChunkSize)
		info.Chunks = append(info.Chunks, dfs.Chunk{Len: uint32(n), Sum: dfs.ChunkSum(id, shard, i, p[:n])})
		p = p[n:]
	}
	return info
}

func putRequest(n uint64, size int, e dfs.Epoch) PutRequest {
	id, p := blockID(n), content(n, size)
	return PutRequest{
		ID: id, Epoch: e, Info: describe(id, 0, p), Payload: p,
		Hint: dfs.Hint{Ino: id.Ino, Offset: int64(n) << 20, Version: dfs.Version(n)},
	}
}

func mustPut(t testing.TB, s *Store, n uint64, size int, e dfs.Epoch) {
	t.Helper()
	if err := s.Put(t.Context(), putRequest(n, size, e)); err != nil {
		t.Fatalf("put %d: %v", n, err)
	}
}

func mustDelete(t testing.TB, s *Store, n uint64, e dfs.Epoch) {
	t.Helper()
	if err := s.Delete(t.Context(), DeleteRequest{ID: blockID(n), Epoch: e}); err != nil {
		t.Fatalf("delete %d: %v", n, err)
	}
}

// read returns a whole block's bytes.
func read(t testing.TB, s *Store, n uint64) ([]byte, error) {
	t.Helper()
	r, err := s.Get(t.Context(), blockID(n), 0, 0, dfs.MaxBlockSize)
	if err != nil {
		return nil, err
	}
	defer r.Release()
	return bytes.Clone(r.Data), nil
}

func wantBlock(t testing.TB, s *Store, n uint64, size int) {
	t.Helper()
	if p, err := read(t, s, n); err != nil {
		t.Fatalf("block %d: %v", n, err)
	} else if !bytes.Equal(p, content(n, size)) {
		t.Fatalf("block %d: wrong bytes", n)
	}
}

func wantKind(t testing.TB, err error, kind dfs.Kind) {
	t.Helper()
	if dfs.KindOf(err) != kind || err == nil {
		t.Fatalf("error %v, want kind %q", err, kind.Error())
	}
}

// countingFS counts data syncs of segment files.
type countingFS struct {
	vfs.FS
	syncs atomic.Int64
}

type countingFile struct {
	vfs.File
	fs *countingFS
}

func (f *countingFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, opts...)
	if _, ok := parseSegmentName(f.PathBase(name)); !ok || err != nil {
		return file, err
	}
	return countingFile{file, f}, nil
}

func (f countingFile) SyncData() error {
	f.fs.syncs.Add(1)
	return f.File.SyncData()
}
