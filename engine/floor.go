package engine

import (
	"encoding/binary"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2"
)

// SetTombstoneFloor allows compaction to drop the tombstones of a PG with
// epochs below floor: every member of the PG has them, and one that ever comes
// back from before the floor asks the owners of its old blocks. A floor only
// rises: an earlier one changes nothing, and costs nothing. It is a permission and
// no fact: a store that lost it, with its index, keeps tombstones longer. Errors:
// Invalid when the PG is 0; NoSpace when there is none for the index;
// Unavailable.
func (s *Store) SetTombstoneFloor(pg dfs.PGID, floor dfs.Epoch) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.exit()
	if pg == 0 {
		return dfs.Errorf(dfs.Invalid, "set tombstone floor", "%s", pg)
	}
	if err := s.failure(); err != nil || floor <= s.floor(pg) {
		return err
	}
	s.epochTurn <- struct{}{}
	defer func() { <-s.epochTurn }()
	if floor <= s.floor(pg) {
		return nil
	}
	if err := s.index.room(); err != nil {
		return err
	}
	err := s.index.update(func(c *change) error {
		return c.b.Set(floorKey(pg), binary.BigEndian.AppendUint64(nil, uint64(floor)), pebble.NoSync)
	})
	if err != nil {
		return err
	}
	s.pgMu.Lock()
	defer s.pgMu.Unlock()
	s.floors[pg] = floor
	return nil
}

// floor is the epoch below which tombstones of a PG may be dropped; 0: none may.
func (s *Store) floor(pg dfs.PGID) dfs.Epoch {
	s.pgMu.RLock()
	defer s.pgMu.RUnlock()
	return s.floors[pg]
}

// loadFloors reads what the index has of them.
func (s *Store) loadFloors() error {
	s.floors = map[dfs.PGID]dfs.Epoch{}
	return s.index.scan([]byte{floorPrefix}, []byte{floorPrefix + 1}, func(k, v []byte) error {
		if len(k) != 5 || len(v) != 8 {
			return dfs.Errorf(dfs.Corrupt, "read index", "floor row of %d and %d bytes", len(k), len(v))
		}
		s.floors[dfs.PGID(binary.BigEndian.Uint32(k[1:]))] = dfs.Epoch(binary.BigEndian.Uint64(v))
		return nil
	})
}

func floorKey(pg dfs.PGID) []byte {
	return binary.BigEndian.AppendUint32([]byte{floorPrefix}, uint32(pg))
}
