package engine

import (
	"fmt"

	"dfsd/dfs"
)

// fsck compares everything that the store says with everything else: rows with
// records, epoch rows with rows, counters with rows. It returns the first
// contradiction.
func fsck(s *Store) error {
	use := map[uint64]usage{}
	rows := 0
	ix := s.index
	// Nothing changes and nothing is given up meanwhile.
	s.giveUpTurn.Lock()
	defer s.giveUpTurn.Unlock()
	ix.turn.Lock()
	defer ix.turn.Unlock()
	epochs := map[string]string{}
	err := ix.scan([]byte{epochPrefix}, []byte{epochPrefix + 1}, func(k, v []byte) error {
		epochs[string(k)] = string(v)
		_, _, _, err := parseEpochKey(k)
		return err
	})
	if err != nil {
		return err
	}
	err = ix.scan([]byte{blockPrefix}, []byte{blockPrefix + 1}, func(k, v []byte) error {
		rows++
		id, shard, err := parseBlockKey(k)
		if err != nil {
			return err
		}
		w, err := decodeRow(v)
		if err != nil {
			return err
		}
		u := use[w.segment]
		if w.kind == kindTombstone {
			u.tombstones++
			u.tombstoneBytes += uint64(w.recordLen())
		} else {
			u.puts++
			u.putBytes += uint64(w.recordLen())
			u.logical += uint64(w.info.Length)
			u.payload += uint64(w.stored)
		}
		use[w.segment] = u
		if v, ok := epochs[string(epochKey(id, shard, w.epoch))]; !ok || v != string(w.encodeEpoch()) {
			return fmt.Errorf("%s: no epoch row, or one that says something else", id)
		}
		if w.flags&rowLost != 0 {
			return nil
		}
		return fsckRecord(s, id, shard, w)
	})
	if err != nil {
		return err
	}
	if rows != len(epochs) {
		return fmt.Errorf("%d block rows, %d epoch rows", rows, len(epochs))
	}
	have := ix.usageOf()
	for n, u := range use {
		if have[n] != u {
			return fmt.Errorf("segment %d: counters %+v, rows %+v", n, have[n], u)
		}
	}
	if len(have) != len(use) {
		return fmt.Errorf("counters of %d segments, rows in %d", len(have), len(use))
	}
	return nil
}

// fsckRecord reads the record that a row names, from the file.
func fsckRecord(s *Store, id dfs.BlockID, shard uint8, w *row) error {
	g := s.segs.get(w.segment)
	if g == nil {
		return fmt.Errorf("%s: segment %d is missing", id, w.segment)
	}
	f, err := g.acquire()
	if err != nil {
		return err
	}
	defer g.release()
	sc := &segmentScan{file: f, mark: s.mark, segment: g.number, size: g.size, window: make([]byte, pageSize)}
	r, ok, err := sc.recordAt(w.offset, g.size)
	if err != nil || !ok {
		return fmt.Errorf("%s: no record at %d of segment %d: %v", id, w.offset, w.segment, err)
	}
	if r.id != id || r.shard != shard || r.epoch != w.epoch || r.seq != w.seq || r.kind != w.kind || infoDigest(&r.info) != w.digest {
		return fmt.Errorf("%s: record and row differ", id)
	}
	p := make([]byte, r.stored)
	if _, err := f.ReadAt(p, w.payloadAt()); err != nil {
		return err
	}
	return checkChunks(id, shard, 0, r.info.Chunks, p)
}
