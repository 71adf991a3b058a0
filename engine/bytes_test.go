package engine

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// sampleRows are rows of the index, each with all its fields set.
func sampleRows() (rows [][3]string) {
	add := func(name string, key, value []byte) {
		rows = append(rows, [3]string{name, hex.EncodeToString(key), hex.EncodeToString(value)})
	}
	id := blockID(600)
	put := &row{
		kind: kindPut, flags: rowLost | rowDamaged, seq: 0x101, epoch: 0x102, segment: 0x103, offset: 0x10400, stored: 70_000, digest: 0x105,
		info:    dfs.BlockInfo{Length: 100_000, Codec: dfs.CodecS2, Chunks: []dfs.Chunk{{Len: 50_000, Sum: 0x106}, {Len: 20_000, Sum: 0x107}}},
		holders: []uint64{0x108, 0x109},
	}
	add("block", blockKey(id, 3), put.encode())
	tombstone := &row{kind: kindTombstone, seq: 0x201, epoch: 0x202, segment: 0x203, offset: 0x20400}
	add("tombstone", blockKey(id, 3), tombstone.encode())
	add("epoch", epochKey(id, 3, 0x102), put.encodeEpoch())
	add("segment", segmentKey(0x103), usage{puts: 1, putBytes: 2, tombstones: 3, tombstoneBytes: 4, logical: 5, payload: 6}.encode())
	damage := Damage{Named: true, ID: id, Shard: 3, Segment: 0x103, Offset: 0x10400, Length: 0x301, Reason: "rot"}
	add("damage", damageKey(damage.Segment, damage.Offset), damage.encode())
	add("floor", floorKey(9), binary.BigEndian.AppendUint64(nil, 0x302))
	add("bound", boundKey(9), binary.BigEndian.AppendUint64(nil, 0x303))
	trashed := &row{kind: kindPut, flags: rowTrashed, info: dfs.BlockInfo{Length: 1, Chunks: []dfs.Chunk{{Len: 1, Sum: 0x501}}}, stored: 1, trashed: 0x502}
	add("block in the trash", blockKey(id, 3), trashed.encode())
	add("undecided", undecidedKey(id, 3), binary.BigEndian.AppendUint64(nil, 0x503))
	add("trash", trashKey(0x502, id, 3), nil)
	add("undecided and trash", []byte(setCountsKey), setCounts{undecided: 0x504, trash: 0x505, trashBytes: 0x506}.encode())
	at := anchor{{segment: 0x401, offset: 0x1000, end: 0x2000, count: 0x402}, {segment: 0x403, offset: 0x3000, end: 0x4000, count: 0x404}}
	add("anchor", []byte(metaKey), at.encode(testMark, 0x708))
	add("scrub (SCRUB)", nil, (&scrubRecord{pass: 1, last: 2, began: 3, read: 4, found: 5, cursor: blockKey(id, 3)}).encode())
	return rows
}

// TestRowBytes pins the rows of the index. They are derived, so that a change
// is no misfortune: it is to be a decision. go test ./engine -rewrite
func TestRowBytes(t *testing.T) {
	var b strings.Builder
	for _, r := range sampleRows() {
		fmt.Fprintf(&b, "%s\n  key   %s\n  value %s\n", r[0], r[1], r[2])
	}
	const name = "testdata/rows-v1.golden"
	if f := flag.Lookup("rewrite"); f != nil && f.Value.String() == "true" {
		if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(golden) != b.String() {
		t.Errorf("the same rows make other bytes:\n%s", b.String())
	}
}

// FuzzRows feeds the decoders of index rows any bytes. What they take, they
// write again as it was.
func FuzzRows(f *testing.F) {
	for _, r := range sampleRows() {
		k, _ := hex.DecodeString(r[1])
		v, _ := hex.DecodeString(r[2])
		f.Add(k, v)
	}
	f.Fuzz(func(t *testing.T, k, v []byte) {
		if id, shard, err := parseBlockKey(k); err == nil && !bytes.Equal(blockKey(id, shard)[1:], k[1:]) {
			t.Errorf("block key %x", k)
		}
		if id, shard, e, err := parseEpochKey(k); err == nil && !bytes.Equal(epochKey(id, shard, e)[1:], k[1:]) {
			t.Errorf("epoch key %x", k)
		}
		if w, err := decodeRow(v); err == nil {
			if again, err := decodeRow(w.encode()); err != nil || again.digest != w.digest || again.offset != w.offset || !slices.Equal(again.holders, w.holders) || again.trashed != w.trashed {
				t.Errorf("row %x: %+v and %+v, %v", v, w, again, err)
			}
			_, _ = w.recordLen(), w.payloadAt()
		}
		if u, err := decodeUsage(v); err == nil && !bytes.Equal(u.encode(), v) {
			t.Errorf("usage %x", v)
		}
		if a, mark, session, err := decodeAnchor(v); err == nil && !bytes.Equal(a.encode(mark, session)[4:len(v)], v[4:]) {
			t.Errorf("anchor %x", v)
		}
		if _, _, err := decodeDamage(k, v); err == nil && len(k) != 17 {
			t.Errorf("damage at %x", k)
		}
		if e, err := parseUndecided(k, v); err == nil && !bytes.Equal(undecidedKey(e.ID, e.Shard)[1:], k[1:]) {
			t.Errorf("undecided key %x", k)
		}
		if e, err := parseTrash(k, v); err == nil && !bytes.Equal(trashKey(e.Since.UnixMilli(), e.ID, e.Shard)[1:], k[1:]) {
			t.Errorf("trash key %x", k)
		}
		if n, err := decodeSetCounts(v); err == nil && !bytes.Equal(n.encode(), v) {
			t.Errorf("counters %x", v)
		}
		_ = decodeScrub(v)
	})
}

// FuzzSlots opens a file of any bytes as STORE, EPOCH and MARK: what is taken
// from it was checked, and is what a second look takes.
func FuzzSlots(f *testing.F) {
	for _, payload := range [][]byte{(&identityRecord{mark: 1, lineage: dfs.Lineage{Offered: []uint64{2}}, hole: hole{3, 4}}).encode(), (&epochRecord{3, 4}).encode(), (&markRecord{}).encode()} {
		fs := vfs.NewMem()
		s, err := createSlots(fs, "x", markMagic, payload)
		if err != nil {
			f.Fatal(err)
		}
		p, _ := fs.UnsafeGetFileDataBuffer("x")
		f.Add(bytes.Clone(p))
		_ = s.close()
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		fs := vfs.NewMem()
		file, err := fs.Create("x", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = file.Write(p)
		_ = file.Close()
		for _, magic := range []uint32{storeMagic, epochMagic, markMagic} {
			s, payload, err := openSlots(fs, "x", magic)
			if err != nil {
				continue
			}
			if r, err := decodeIdentity(payload); err == nil && !bytes.Equal(r.encode()[:40], payload[:40]) {
				t.Errorf("identity %x", payload)
			}
			if m, ok := decodeMark(payload); ok && !bytes.Equal(m.encode(), payload) {
				t.Errorf("mark %x", payload)
			}
			if payload != nil {
				if err := s.put(payload); err != nil {
					t.Error(err)
				}
				if again, err := readSlots(fs, magic); err != nil || !bytes.Equal(again, payload) {
					t.Errorf("%x, then %x: %v", payload, again, err)
				}
			}
			_ = s.close()
		}
	})
}

func readSlots(fs vfs.FS, magic uint32) ([]byte, error) {
	s, p, err := openSlots(fs, "x", magic)
	if err != nil {
		return nil, err
	}
	return p, s.close()
}

// bytesOf is how many bytes were allocated while fn ran.
func bytesOf(fn func() error) (uint64, error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, err
}

// FuzzFooter reads the footer of any bytes: it names no more records than the
// bytes have room for, and nothing below the batches' end.
func FuzzFooter(f *testing.F) {
	m := sampleImage()
	m.seal()
	f.Add(bytes.Clone(m.p[len(m.p)-pageSize:]))
	f.Fuzz(func(t *testing.T, tail []byte) {
		if len(tail) > 64<<10 {
			return
		}
		p := append(make([]byte, 2*pageSize), tail...)
		foot, err := readFooter(bytes.NewReader(p), testMark, 9, int64(len(p)))
		if err != nil || foot == nil {
			return
		}
		if foot.start < foot.end || foot.end < pageSize || len(foot.entries)*footerEntryLen > len(p) {
			t.Errorf("%d entries from %d, batches to %d, of %d bytes", len(foot.entries), foot.start, foot.end, len(p))
		}
	})
}

// FuzzMutatedSegment writes over some bytes of a segment of a whole store, opens
// it with the index and without, and looks at every block: right bytes, or known
// damage. Opening and reading take no more memory than the segment and its like.
func FuzzMutatedSegment(f *testing.F) {
	f.Add(uint32(pageSize+batchHeaderLen+80), []byte{0xff, 0xff, 0xff, 0xff}, true, false) // stored bytes
	f.Add(uint32(pageSize+batchHeaderLen+84), []byte{0, 0, 1, 0}, true, true)              // chunks
	f.Add(uint32(pageSize+48), []byte{0x7f, 0xff, 0xff, 0}, false, false)                  // length of a batch
	f.Add(uint32(256<<10-trailerLen+32), []byte{0xff, 0xff, 0xff, 0xff}, true, false)      // entries of the footer
	sealed, open := newSpecimen(f, true), newSpecimen(f, false)
	f.Fuzz(func(t *testing.T, at uint32, with []byte, isSealed, index bool) {
		sp := open
		if isSealed {
			sp = sealed
		}
		fs := sp.clone(t, index)
		p := fileBytes(t, fs, "segments/"+segmentName(1))
		if int(at) >= len(p) {
			return
		}
		copy(p[at:], with)
		allocated, err := bytesOf(func() error {
			_, err := sp.check(fs)
			return err
		})
		if err != nil && dfs.KindOf(err) != dfs.Unsupported {
			t.Error(err)
		}
		if allocated > 40<<20 { // what an open takes beside: memtables, caches, ready segments
			t.Errorf("%d bytes were allocated for a segment of %d", allocated, len(p))
		}
	})
}
