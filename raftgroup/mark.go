package raftgroup

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

// The mark file is two slots of markSlot bytes, each the magic, the number of
// a synced batch (64 bits, big endian) and CRC32C over both. Between two syncs all
// writes go to one slot, and none while a sync is under way: so a power loss, which
// may tear whatever was not synced, leaves what the last sync found in the other.
const (
	markMagic = "dfsdmrk1"
	markSlot  = 4096
	markLen   = len(markMagic) + 8 + 4
)

// mark is an open mark file.
type mark struct {
	file vfs.File

	mu      sync.Mutex
	noted   uint64 // Invariant: a synced batch of this number is in the log store
	written uint64 // written <= noted
	synced  uint64 // synced <= written
	slot    int64  // for the next write. Invariant: the other slot is synced
	syncing bool   // nothing is written until that is over
}

// createMark makes a mark file of number 0, durably. A crash leaves a whole one
// or none: half a one would be damage.
func createMark(f vfs.FS, dir, path string) error {
	fresh := path + ".new"
	file, err := f.Create(fresh, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	buf := make([]byte, 2*markSlot)
	copy(buf, encodeMark(0))
	_, err = file.Write(buf)
	if err == nil {
		err = file.Sync()
	}
	if err = firstError(err, file.Close()); err != nil {
		return err
	}
	if err := f.Rename(fresh, path); err != nil {
		return err
	}
	return syncDir(f, dir)
}

func encodeMark(n uint64) []byte {
	b := append(make([]byte, 0, markLen), markMagic...)
	b = binary.BigEndian.AppendUint64(b, n)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, dfs.Castagnoli))
}

func decodeMark(b []byte) (uint64, bool) {
	if len(b) < markLen || string(b[:len(markMagic)]) != markMagic {
		return 0, false
	}
	sum := binary.BigEndian.Uint32(b[markLen-4:])
	if crc32.Checksum(b[:markLen-4], dfs.Castagnoli) != sum {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[len(markMagic):]), true
}

// openMark opens a mark file and reads the higher number of its whole slots. It
// syncs what an earlier process left unsynced.
func openMark(f vfs.FS, path string) (*mark, error) {
	file, err := f.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	m := &mark{file: file}
	whole := 0
	for slot := range int64(2) {
		buf := make([]byte, markLen)
		if _, err := file.ReadAt(buf, slot*markSlot); err != nil && !errors.Is(err, io.EOF) {
			return nil, firstError(err, file.Close())
		}
		if n, ok := decodeMark(buf); ok {
			if whole++; n >= m.noted {
				m.noted, m.slot = n, 1-slot
			}
		}
	}
	if whole == 0 {
		err := dfs.Errorf(dfs.Corrupt, "read mark file", "%s: neither slot is whole", path)
		return nil, firstError(err, file.Close())
	}
	if err := file.SyncData(); err != nil {
		return nil, firstError(err, file.Close())
	}
	m.written, m.synced = m.noted, m.noted
	return m, nil
}

// note records that the synced batch n is in the log store. It is not synced:
// the mark may lag.
func (m *mark) note(n uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n <= m.noted {
		return nil
	}
	m.noted = n
	return m.writeLocked()
}

func (m *mark) writeLocked() error {
	if m.syncing || m.written == m.noted {
		return nil
	}
	if _, err := m.file.WriteAt(encodeMark(m.noted), m.slot*markSlot); err != nil {
		return err
	}
	m.written = m.noted
	return nil
}

// sync makes what was written durable. There is one caller at a time.
func (m *mark) sync() error {
	if !m.beginSync() {
		return nil
	}
	err := m.file.SyncData()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.syncing = false
	if err != nil {
		return err
	}
	m.synced, m.slot = m.written, 1-m.slot
	return m.writeLocked()
}

// beginSync reports whether there is something to sync.
func (m *mark) beginSync() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.syncing = m.written != m.synced
	return m.syncing
}

func (m *mark) close() error { return firstError(m.sync(), m.file.Close()) }
