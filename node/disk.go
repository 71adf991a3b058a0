package node

import (
	"errors"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// Disk is the file system of this machine. What its files can do beside those of
// package vfs is to write several pieces at once, and to be read past the page
// cache.
func Disk() vfs.FS { return disk{vfs.Default} }

type disk struct{ vfs.FS }

func (d disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.FS.OpenReadWrite(name, c, opts...)
	if err != nil || f.Fd() == vfs.InvalidFd {
		return f, err
	}
	return diskFile{f}, nil
}

func (d disk) Unwrap() vfs.FS { return d.FS }

type diskFile struct{ vfs.File }

// maxFolio is a multiple of what the page cache keeps in one piece, and forgets as
// a whole or not at all. Each lies at a multiple of its size.
const maxFolio = 2 << 20

// DropCache has the kernel forget a range, and what lies in one piece with it, so
// that the next read comes from the disk. A piece of which something is not synced
// stays: nothing but the place of a read depends on it.
func (f diskFile) DropCache(off, length int64) {
	begin, end := off/maxFolio*maxFolio, (off+length+maxFolio-1)/maxFolio*maxFolio
	_ = unix.Fadvise(int(f.Fd()), begin, end-begin, unix.FADV_DONTNEED)
}

// WriteAtV writes the pieces end to end, all of them or with an error.
func (f diskFile) WriteAtV(pieces [][]byte, off int64) (written int, err error) {
	left := append([][]byte(nil), pieces...)
	for {
		for len(left) > 0 && len(left[0]) == 0 {
			left = left[1:]
		}
		if len(left) == 0 {
			return written, nil
		}
		n, err := unix.Pwritev(int(f.Fd()), left, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return written, err
		case n == 0:
			return written, io.ErrShortWrite
		}
		written += n
		off += int64(n)
		for n > 0 {
			k := min(n, len(left[0]))
			n -= k
			if left[0] = left[0][k:]; len(left[0]) == 0 {
				left = left[1:]
			}
		}
	}
}
