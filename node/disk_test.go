package node

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
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

// TestDiskDropsItsCache: what was dropped is in no page of memory any more, and
// is read from the disk.
func TestDiskDropsItsCache(t *testing.T) {
	f, err := Disk().OpenReadWrite(filepath.Join(t.TempDir(), "f"), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var where unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &where); err != nil {
		t.Fatal(err)
	}
	if where.Type == unix.TMPFS_MAGIC {
		t.Skip("NOT RUN: the directory of temporary files lies in memory; set TMPDIR to another")
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 4*maxFolio/16)
	pages := len(want) / os.Getpagesize()
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.SyncData(); err != nil {
		t.Fatal(err)
	}
	if n := resident(t, f, len(want)); n != pages {
		t.Fatalf("%d of %d pages are in memory after they were written", n, pages)
	}
	f.(interface{ DropCache(off, length int64) }).DropCache(maxFolio+100, maxFolio)
	if n := resident(t, f, len(want)); n != pages/2 {
		t.Errorf("%d of %d pages are in memory after half of them was dropped", n, pages)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("other bytes than were written, and %v", err)
	}
}

// resident counts the pages of a file that are in memory.
func resident(t *testing.T, f vfs.File, length int) (n int) {
	t.Helper()
	p, err := unix.Mmap(int(f.Fd()), 0, length, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(p) }()
	in := make([]byte, length/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&p[0])), uintptr(length), uintptr(unsafe.Pointer(&in[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for _, b := range in {
		n += int(b & 1)
	}
	return n
}
