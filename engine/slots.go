package engine

import (
	"encoding/binary"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// slotFile keeps one small record in two slots of a page each, so that a
// write that is cut short leaves the other.
//
//	put:  writes the older slot, syncs. A crash loses at most this put. Rot in
//	      the newest slot goes back one put.
//	both: writes and syncs one slot, then the other. Rot in either slot loses
//	      nothing.
type slotFile struct {
	file       vfs.File
	magic      uint32
	generation uint64 // of the newest slot; the slot is its lowest bit
}

const (
	slotLen     = pageSize
	slotHeadLen = 24 // magic, version, payload length, generation, CRC
	maxSlot     = slotLen - slotHeadLen

	storeMagic = 0x44535452 // "DSTR"
	epochMagic = 0x44455043 // "DEPC"
	markMagic  = 0x444d524b // "DMRK"
)

// createSlots makes the file with payload in both slots. The caller syncs the
// directory.
func createSlots(fs vfs.FS, name string, magic uint32, payload []byte) (*slotFile, error) {
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	s := &slotFile{file: f, magic: magic}
	if err := s.both(payload); err != nil {
		_ = f.Close()
		return nil, err
	}
	return s, nil
}

// openSlots opens the file and returns its newest sound payload, nil when
// neither slot is sound. Unsupported: written by another version.
func openSlots(fs vfs.FS, name string, magic uint32) (*slotFile, []byte, error) {
	if _, err := fs.Stat(name); err != nil { // OpenReadWrite would make it
		return nil, nil, err
	}
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, nil, err
	}
	s := &slotFile{file: f, magic: magic}
	var newest []byte
	for i := range int64(2) {
		payload, generation, err := s.read(i)
		if err != nil {
			_ = f.Close()
			return nil, nil, dfs.Wrap("open", name, err)
		}
		if payload != nil && generation >= s.generation {
			newest, s.generation = payload, generation
		}
	}
	return s, newest, nil
}

// read returns a slot's payload, nil when it is not sound.
func (s *slotFile) read(slot int64) (payload []byte, generation uint64, err error) {
	p := make([]byte, slotLen)
	n, _ := s.file.ReadAt(p, slot*slotLen) // what cannot be read is not sound
	return s.decode(p[:n])
}

// decode returns the payload of what was read of a slot, nil when it is not sound.
func (s *slotFile) decode(p []byte) (payload []byte, generation uint64, err error) {
	b := binary.BigEndian
	if len(p) < slotHeadLen || b.Uint32(p) != s.magic {
		return nil, 0, nil
	}
	size := int(b.Uint16(p[6:]))
	if slotHeadLen+size > len(p) || b.Uint32(p[20:]) != slotSum(p, size) {
		return nil, 0, nil
	}
	if p[4] != formatVersion {
		return nil, 0, dfs.Errorf(dfs.Unsupported, "read", "version %d: this release knows %d", p[4], formatVersion)
	}
	return p[slotHeadLen : slotHeadLen+size], b.Uint64(p[8:]), nil
}

func slotSum(p []byte, size int) uint32 {
	var whole [slotLen]byte
	n := copy(whole[:], p[:20])
	n += copy(whole[n:], p[slotHeadLen:slotHeadLen+size])
	return checksum(whole[:n])
}

// put replaces the record durably. REQUIRES: no other call is running.
func (s *slotFile) put(payload []byte) error {
	if len(payload) > maxSlot {
		return dfs.Errorf(dfs.TooLarge, "write", "record of %d bytes: at most %d", len(payload), maxSlot)
	}
	p := make([]byte, slotLen)
	b := binary.BigEndian
	next := s.generation + 1
	b.PutUint32(p, s.magic)
	p[4] = formatVersion
	b.PutUint16(p[6:], uint16(len(payload)))
	b.PutUint64(p[8:], next)
	copy(p[slotHeadLen:], payload)
	b.PutUint32(p[20:], slotSum(p, len(payload)))
	if _, err := s.file.WriteAt(p, int64(next&1)*slotLen); err != nil {
		return err
	}
	if err := s.file.SyncData(); err != nil {
		return err
	}
	s.generation = next
	return nil
}

// both replaces the record durably in both slots.
func (s *slotFile) both(payload []byte) error {
	if err := s.put(payload); err != nil {
		return err
	}
	return s.put(payload)
}

func (s *slotFile) close() error { return s.file.Close() }
