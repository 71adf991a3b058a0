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
// a synced batch (64 bits, big endian) and CRC32C over both. A write goes to
// the slot that the number's lowest bit names, so a torn write leaves the other.
const (
	markMagic = "dfsdmrk1"
	markSlot  = 4096
	markLen   = len(markMagic) + 8 + 4
)

// mark is an open mark file.
type mark struct {
	file vfs.File

	mu     sync.Mutex
	noted  uint64 // Invariant: a synced batch of this number is in the log store
	synced uint64 // synced <= noted
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

// openMark opens a mark file and reads the higher number of its whole slots.
func openMark(f vfs.FS, path string) (*mark, error) {
	file, err := f.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	m := &mark{file: file}
	whole := 0
	for slot := range 2 {
		buf := make([]byte, markLen)
		if _, err := file.ReadAt(buf, int64(slot)*markSlot); err != nil && !errors.Is(err, io.EOF) {
			return nil, firstError(err, file.Close())
		}
		if n, ok := decodeMark(buf); ok {
			m.noted = max(m.noted, n)
			whole++
		}
	}
	if whole == 0 {
		err := dfs.Errorf(dfs.Corrupt, "read mark file", "%s: neither slot is whole", path)
		return nil, firstError(err, file.Close())
	}
	m.synced = m.noted
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
	if _, err := m.file.WriteAt(encodeMark(n), int64(n%2)*markSlot); err != nil {
		return err
	}
	m.noted = n
	return nil
}

// sync makes what was noted durable.
func (m *mark) sync() error {
	m.mu.Lock()
	n, old := m.noted, m.synced
	m.mu.Unlock()
	if n == old {
		return nil
	}
	if err := m.file.SyncData(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.synced = max(m.synced, n)
	return nil
}

func (m *mark) close() error { return firstError(m.sync(), m.file.Close()) }
