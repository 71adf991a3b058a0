package engine

import (
	"bytes"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// piecesFS is a file system whose files write pieces, each by itself.
type piecesFS struct {
	vfs.FS
	calls atomic.Int64
}

func (fs *piecesFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(name, c, o...)
	if err != nil {
		return nil, err
	}
	return piecesFile{f, fs}, nil
}

type piecesFile struct {
	vfs.File
	fs *piecesFS
}

func (f piecesFile) WriteAtV(pieces [][]byte, off int64) (n int, err error) {
	f.fs.calls.Add(1)
	for _, p := range pieces {
		k, err := f.WriteAt(p, off+int64(n))
		if n += k; err != nil {
			return n, err
		}
	}
	return n, nil
}

// TestLayPieces: a batch has the same bytes in pieces as in one.
func TestLayPieces(t *testing.T) {
	var ops []*op
	for i, size := range []int{100, directBytes, directBytes - 1, directBytes + 77, 1 << 20, 1} {
		req := putRequest(uint64(i), size, 1)
		ops = append(ops, newOp(record{kind: kindPut, epoch: 1, id: req.ID, info: req.Info, stored: uint32(size)}, req.Payload))
	}
	ops = append(ops, newOp(record{kind: kindTombstone, id: blockID(9)}, nil))
	for from := range ops {
		for to := from + 1; to <= len(ops); to++ {
			a := appender{s: &Store{mark: 7}, active: &segment{number: 3}, end: 2 * pageSize, count: 40}
			b := a
			whole := slices.Clone(a.encode(ops[from:to]))
			pieces, length := b.lay(ops[from:to], directBytes)
			if got := bytes.Join(pieces, nil); length != len(whole) || !bytes.Equal(got, whole) {
				t.Fatalf("records %d to %d: %d bytes in pieces, %d in one; they differ", from, to, len(got), len(whole))
			}
			if cap(b.buf) > 5*directBytes {
				t.Errorf("records %d to %d: a buffer of %d bytes", from, to, cap(b.buf))
			}
		}
	}
}

// TestLargePutsInPieces: what is written in pieces is there, after a restart and
// without the index too.
func TestLargePutsInPieces(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := &piecesFS{FS: vfs.NewMem()}
		o := testOptions(fs)
		o.SegmentSize = 4 << 20
		s := openPGs(t, o, 1)
		size := func(n uint64) int { return 1000 + int(n)*9_000 }
		var work sync.WaitGroup
		for n := range uint64(30) {
			work.Go(func() { mustPut(t, s, n, size(n), 1) })
		}
		work.Wait()
		if fs.calls.Load() == 0 {
			t.Error("no batch was written in pieces")
		}
		for range 2 {
			for n := range uint64(30) {
				wantBlock(t, s, n, size(n))
			}
			if err := checkStore(s); err != nil {
				t.Error(err)
			}
			mustClose(t, s)
			if err := fs.RemoveAll(dir + indexName); err != nil {
				t.Fatal(err)
			}
			s = openPGs(t, o, 1)
		}
		mustClose(t, s)
	})
}
