package node

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestDiskWritesPieces(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f, err := Disk().OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	v, ok := f.(interface {
		WriteAtV(pieces [][]byte, off int64) (int, error)
	})
	if !ok {
		t.Fatal("the file of a disk cannot write pieces")
	}
	pieces := [][]byte{nil, []byte("one"), {}, bytes.Repeat([]byte("two"), 100_000), []byte("three"), nil}
	want := append(make([]byte, 10), bytes.Join(pieces, nil)...)
	if n, err := v.WriteAtV(pieces, 10); err != nil || n != len(want)-10 {
		t.Errorf("%d bytes and %v, want %d", n, err, len(want)-10)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("other bytes than were written, and %v", err)
	}
	if len(pieces) != 6 || string(pieces[1]) != "one" {
		t.Error("the caller's pieces were changed")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
