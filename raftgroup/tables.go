package raftgroup

import (
	"bytes"
	"fmt"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

// tableWriter writes ascending keys to tables of bounded size.
type tableWriter struct {
	h     *Host
	group dfs.GroupID
	token uint64
	base  int        // tables of earlier points
	files []heldFile // since the last point, the one in the making included
	table *sstable.Writer
	size  int
	last  []byte // key
}

func (w *tableWriter) names() []string {
	out := make([]string, len(w.files))
	for i, f := range w.files {
		out[i] = f.name
	}
	return out
}

func (w *tableWriter) add(key, value []byte) error {
	if !w.h.enter() {
		return errClosing("receive snapshot")
	}
	defer w.h.leave()
	if w.last != nil && bytes.Compare(key, w.last) <= 0 {
		return dfs.Errorf(dfs.Invalid, "receive snapshot", "keys out of order")
	}
	// A point comes earlier, from a sender with the same options.
	if w.size >= 2*w.h.opts.SnapshotFileBytes {
		if err := w.closeTable(); err != nil {
			return err
		}
	}
	if w.table == nil {
		if err := w.openTable(); err != nil {
			return err
		}
	}
	w.last = append(w.last[:0], key...)
	w.size += len(key) + len(value)
	return w.table.Set(key, value)
}

func (w *tableWriter) openTable() error {
	if err := w.h.roomForTable(); err != nil {
		return err
	}
	name := fmt.Sprintf("%d-%d-%d-%d.sst", w.group, w.h.store.starts, w.token, w.base+len(w.files))
	f, err := w.h.opts.FS.Create(w.h.opts.FS.PathJoin(w.h.snapDir(), name), vfs.WriteCategoryUnspecified)
	if err != nil {
		return wrapStore("receive snapshot", name, err)
	}
	w.files = append(w.files, heldFile{name: name})
	w.table = sstable.NewWriter(objstorageprovider.NewFileWritable(f), sstable.WriterOptions{
		TableFormat: storeFormat.MaxTableFormat(),
	})
	return nil
}

// roomForTable refuses a table that would take what entries need of the reserve.
// File systems that do not tell their free space have room.
func (h *Host) roomForTable() error {
	usage, err := h.opts.FS.GetDiskUsage(h.opts.Dir)
	if err == nil && usage.AvailBytes < h.opts.Reserve/4+uint64(h.opts.SnapshotFileBytes) && h.opts.Reserve > 0 {
		return dfs.Errorf(dfs.NoSpace, "receive snapshot", "%s: %d bytes are free, and the log needs them", h.opts.Dir, usage.AvailBytes)
	}
	return nil
}

// closeTable finishes and syncs the table in the making.
func (w *tableWriter) closeTable() error {
	if w.table == nil {
		return nil
	}
	err := w.table.Close()
	w.table, w.size = nil, 0
	if err != nil {
		return wrapStore("receive snapshot", w.group.String(), err)
	}
	f := &w.files[len(w.files)-1]
	st, err := w.h.opts.FS.Stat(w.h.opts.FS.PathJoin(w.h.snapDir(), f.name))
	if err != nil {
		return wrapStore("receive snapshot", f.name, err)
	}
	f.size = uint64(st.Size())
	return nil
}
