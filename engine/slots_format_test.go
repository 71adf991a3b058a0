package engine

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestSlotBytes pins the small files beside the segments. The bytes are those
// of docs/FORMATS.md: they never change for version 1.
func TestSlotBytes(t *testing.T) {
	identity := identityRecord{
		mark: 0x1122334455667788, rolledBack: true, lineage: dfs.Lineage{Accepted: 3, Offered: []uint64{0xaa, 0xbb}},
		cluster: dfs.ClusterID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, node: 4, store: 5,
	}
	holed := identity
	holed.hole = hole{after: 6, last: 9}
	if got, err := decodeIdentity(holed.encode()); err != nil || !reflect.DeepEqual(got, holed) {
		t.Errorf("%+v is read as %+v: %v", holed, got, err)
	}
	for _, c := range []struct {
		name    string
		magic   uint32
		payload []byte
		want    string // of the first slot, in hexadecimal, without the zeros at the end of the page
	}{
		{storeName, storeMagic, identity.encode(),
			"44535452010000400000000000000002000000005479e41511223344556677880000000000000003000102030405060708090a0b0c0d0e0f0000000400000005000000000000000100000000000000aa00000000000000bb"},
		{storeName, storeMagic, holed.encode(),
			"445354520100005000000000000000020000000092c733e911223344556677880000000000000003000102030405060708090a0b0c0d0e0f000000040000000500000000000000030000000000000006000000000000000900000000000000aa00000000000000bb"},
		{epochName, epochMagic, (&epochRecord{epoch: 6, seq: 7}).encode(),
			"44455043010000100000000000000002000000008cefd66100000000000000060000000000000007"},
		{markName, markMagic, (&markRecord{{segment: 9, offset: 0x4000, count: 7}, {segment: 8, offset: 0x2000, count: 3}}).encode(),
			"444d524b01000030000000000000000200000000f651eeaa000000000000000900000000000040000000000000000007000000000000000800000000000020000000000000000003"},
	} {
		fs := vfs.NewMem()
		f, err := createSlots(fs, c.name, c.magic, c.payload)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 2*slotLen)
		if _, err := f.file.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.close(); err != nil {
			t.Fatal(err)
		}
		n := slotHeadLen + len(c.payload)
		if got := hex.EncodeToString(p[:n]); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
		if !allZero(p[n:slotLen]) || !bytes.Equal(p[slotHeadLen:n], p[slotLen+slotHeadLen:slotLen+n]) {
			t.Errorf("%s: more than the payload, or not in both slots", c.name)
		}
		f, payload, err := openSlots(fs, c.name, c.magic)
		if err != nil || !bytes.Equal(payload, c.payload) {
			t.Fatalf("%s is read as %x, %v", c.name, payload, err)
		}
		if err := f.close(); err != nil {
			t.Error(err)
		}
	}
}
