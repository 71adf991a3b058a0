package bench

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	realdisk "dfsd/node"
)

// disk is the disk as a store sees it, which counts what passes and can lose
// its power.
type disk struct {
	vfs.FS
	off atomic.Bool // nothing is written any more: what a crash leaves stays as it is

	batches, zeros, index, other atomic.Int64 // bytes written: to segments, by filling them, to the index, to the rest
	segmentReads                 atomic.Int64 // bytes read of segments

	// mu guards syncs.
	mu    sync.Mutex
	syncs []int // bytes that each data sync of a segment made durable
}

func newDisk() *disk { return &disk{FS: realdisk.Disk()} }

var errOff = errors.New("the disk is off")

func (d *disk) check() error {
	if d.off.Load() {
		return errOff
	}
	return nil
}

// written is what was written since the beginning.
func (d *disk) written() int64 {
	return d.batches.Load() + d.zeros.Load() + d.index.Load() + d.other.Load()
}

// takeSyncs returns what has been synced since it was last called.
func (d *disk) takeSyncs() []int {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.syncs
	d.syncs = nil
	return s
}

func (d *disk) file(name string, f vfs.File, err error, filled bool) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	t := &diskFile{File: f, disk: d, segment: filepath.Base(filepath.Dir(name)) == "segments"}
	switch {
	case t.segment && filled:
		t.written = &d.zeros
	case t.segment:
		t.written = &d.batches
	case strings.Contains(name, "/index/"):
		t.written = &d.index
	default:
		t.written = &d.other
	}
	return t, nil
}

func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	f, err := d.FS.Create(name, c)
	return d.file(name, f, err, true)
}

func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.FS.OpenReadWrite(name, c, o...)
	return d.file(name, f, err, false)
}

func (d *disk) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.FS.Open(name, o...)
	return d.file(name, f, err, false)
}

func (d *disk) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	f, err := d.FS.ReuseForWrite(from, to, c)
	return d.file(to, f, err, true)
}

func (d *disk) Remove(name string) error {
	if err := d.check(); err != nil {
		return err
	}
	return d.FS.Remove(name)
}

func (d *disk) Rename(from, to string) error {
	if err := d.check(); err != nil {
		return err
	}
	return d.FS.Rename(from, to)
}

// diskFile is a file of a disk.
type diskFile struct {
	vfs.File
	disk     *disk
	segment  bool
	written  *atomic.Int64
	unsynced atomic.Int64
}

func (f *diskFile) wrote(n int, err error) (int, error) {
	f.written.Add(int64(n))
	f.unsynced.Add(int64(n))
	return n, err
}

func (f *diskFile) Write(p []byte) (int, error) {
	if err := f.disk.check(); err != nil {
		return 0, err
	}
	return f.wrote(f.File.Write(p))
}

func (f *diskFile) WriteAt(p []byte, at int64) (int, error) {
	if err := f.disk.check(); err != nil {
		return 0, err
	}
	return f.wrote(f.File.WriteAt(p, at))
}

// WriteAtV is what a file of package node can do besides.
func (f *diskFile) WriteAtV(pieces [][]byte, at int64) (int, error) {
	if err := f.disk.check(); err != nil {
		return 0, err
	}
	return f.wrote(f.File.(vectored).WriteAtV(pieces, at))
}

// DropCache likewise.
func (f *diskFile) DropCache(off, length int64) {
	f.File.(interface{ DropCache(off, length int64) }).DropCache(off, length)
}

type vectored interface {
	WriteAtV(pieces [][]byte, off int64) (int, error)
}

func (f *diskFile) ReadAt(p []byte, at int64) (int, error) {
	n, err := f.File.ReadAt(p, at)
	if f.segment {
		f.disk.segmentReads.Add(int64(n))
	}
	return n, err
}

func (f *diskFile) SyncData() error {
	if err := f.disk.check(); err != nil {
		return err
	}
	n := f.unsynced.Swap(0)
	if f.segment && f.written == &f.disk.batches {
		f.disk.mu.Lock()
		f.disk.syncs = append(f.disk.syncs, int(n))
		f.disk.mu.Unlock()
	}
	return f.File.SyncData()
}

func (f *diskFile) Sync() error {
	if err := f.disk.check(); err != nil {
		return err
	}
	return f.File.Sync()
}
