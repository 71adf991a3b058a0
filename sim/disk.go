package sim

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// disk is a node's disk, whose data syncs of segments take a while: in zero
// time nothing could happen before one is over. Other files take none. Their
// syncs happen under locks, and whoever waits for a lock stops a bubble's time.
type disk struct {
	*vfs.MemFS
	rand func() uint64
	slow *atomic.Int64 // the longest data sync, in nanoseconds; at least wellSync
}

// Data syncs of a disk that is well, and of one that is about to fail: slower
// than any network, and mostly not so slow that the store is taken for dead.
const (
	wellSync = int64(2 * time.Millisecond)
	sickSync = int64(1500 * time.Millisecond)
)

func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.MemFS.Create(name, c)
	return d.file(name, f, err)
}

func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.MemFS.OpenReadWrite(name, c, o...)
	return d.file(name, f, err)
}

func (d *disk) file(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil || !strings.HasSuffix(name, ".seg") {
		return f, err
	}
	return diskFile{f, d}, nil
}

type diskFile struct {
	vfs.File
	d *disk
}

// SyncData is over when the time is: a crash before loses what was written.
func (f diskFile) SyncData() error {
	time.Sleep(time.Duration(f.d.rand() % uint64(max(f.d.slow.Load(), wellSync))))
	return f.File.SyncData()
}
