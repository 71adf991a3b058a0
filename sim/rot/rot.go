// Package rot damages files for tests, as disks and hands do.
package rot

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Flip flips bits of the first half of a file in place: whoever has it open reads
// them.
func Flip(t testing.TB, fs vfs.FS, path string) {
	t.Helper()
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	for at := int64(0); err == nil && at < info.Size()/2; at += 50 {
		b := make([]byte, 1)
		if _, err = f.ReadAt(b, at); err == nil {
			_, err = f.WriteAt([]byte{b[0] ^ 0x10}, at)
		}
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// Rewrite puts a file with changed content in the place of one, durably. Change
// has a copy.
func Rewrite(t testing.TB, fs *vfs.MemFS, path string, change func([]byte) []byte) {
	t.Helper()
	data, err := fs.UnsafeGetFileDataBuffer(path)
	if err != nil {
		t.Fatal(err)
	}
	data = change(bytes.Clone(data))
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(data)
	dir, derr := fs.OpenDir(fs.PathDir(path))
	if err := errors.Join(err, f.Sync(), f.Close(), derr); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		t.Fatal(err)
	}
}

// Truncate keeps the first n bytes of a file.
func Truncate(t testing.TB, fs *vfs.MemFS, path string, n func(size int) int) {
	t.Helper()
	Rewrite(t, fs, path, func(b []byte) []byte { return b[:n(len(b))] })
}

// NewestLog returns the path of a Pebble store's newest write-ahead log.
func NewestLog(t testing.TB, fs vfs.FS, dir string) string {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	newest := ""
	for _, n := range names {
		if strings.HasSuffix(n, ".log") && n > newest {
			newest = n
		}
	}
	return fs.PathJoin(dir, newest)
}
