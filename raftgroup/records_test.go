package raftgroup

import (
	"bytes"
	"encoding"
	"errors"
	"reflect"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

func sampleApplied() applied {
	return applied{
		index: 300, term: 7, confIndex: 12,
		conf: &pb.ConfState{Voters: []uint64{1, 2, 3}, Learners: []uint64{4}},
		hash: StateHash{0xaa, 15: 0xbb},
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	a := sampleApplied()
	gotA, err := decodeApplied(a.encode(), 1)
	if err != nil || gotA.index != a.index || gotA.hash != a.hash || !proto.Equal(gotA.conf, a.conf) || gotA.confIndex != a.confIndex {
		t.Errorf("applied: %+v, %v", gotA, err)
	}
	tr := truncated{index: 5, term: 2, confIndex: 3, bytes: 999, conf: confState([]uint64{7})}
	gotT, err := decodeTruncated(tr.encode(), 1)
	if err != nil || gotT.bytes != tr.bytes || gotT.index != 5 || !proto.Equal(gotT.conf, tr.conf) {
		t.Errorf("truncated: %+v, %v", gotT, err)
	}
	n := intent{to: a, hard: hardState(1, 2, 3), files: []string{"x.sst", "y.sst"}, stateOnly: true}
	gotN, err := decodeIntent(n.encode(), 1)
	if err != nil || !reflect.DeepEqual(gotN.files, n.files) || !gotN.stateOnly || gotN.hard.GetVote() != 2 {
		t.Errorf("intent: %+v, %v", gotN, err)
	}
	h, err := decodeHardState(encodeHardState(hardState(1, 2, 3)), 1)
	if err != nil || h.GetTerm() != 1 || h.GetVote() != 2 || h.GetCommit() != 3 {
		t.Errorf("hard state: %v, %v", h, err)
	}
	e := &pb.Entry{Type: pb.EntryConfChangeV2.Enum(), Index: proto.Uint64(9), Term: proto.Uint64(7), Data: []byte("hi")}
	raw := encodeEntry(3, e, 1000)
	gotE, bytesThrough, err := decodeEntry(3, 9, raw)
	if err != nil || !proto.Equal(gotE, e) || bytesThrough != 1000 {
		t.Errorf("entry: %v, %v", gotE, err)
	}
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 4
		if _, _, err := decodeEntry(3, 9, bad); !errors.Is(err, dfs.Corrupt) {
			t.Errorf("entry with a flipped bit in byte %d: %v", i, err)
		}
	}
	if _, _, err := decodeEntry(3, 8, raw); err == nil {
		t.Error("an entry at another index is taken")
	}
	if _, _, err := decodeEntry(2, 9, raw); err == nil {
		t.Error("an entry of another group is taken")
	}
}

// FuzzRecords reads bytes as every kind of record: no panic, and what is taken
// is written back the same.
func FuzzRecords(f *testing.F) {
	a, cut := sampleApplied(), truncated{index: 1, term: 1, conf: confState([]uint64{1})}
	in := intent{to: a, hard: hardState(7, 2, 300), files: []string{"a", "b"}}
	head := snapshotHead{term: 2, snapshotID: snapshotID{group: 1, start: 4, number: 8, at: a}}
	sum, err := head.newSum().(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	seam := point{keys: 9, sum: make([]byte, 32)}
	rest := held{id: head.snapshotID, from: 2, keys: 9, last: []byte("key"), state: sum, files: []heldFile{{"1-1-1-0.sst", 77}}}
	for _, b := range [][]byte{a.encode(), cut.encode(), in.encode(), head.encode(), seam.encode(), rest.encode(), encodeHardState(in.hard), encodeMark(5), encodeEntry(1, entry(1, 1), 9)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := decodeApplied(b, 1); err == nil {
			if again, err := decodeApplied(a.encode(), 1); err != nil || again.index != a.index || again.hash != a.hash {
				t.Errorf("applied %+v became %+v, %v", a, again, err)
			}
		}
		if tr, err := decodeTruncated(b, 1); err == nil {
			if again, err := decodeTruncated(tr.encode(), 1); err != nil || again.index != tr.index {
				t.Errorf("truncated %+v became %+v, %v", tr, again, err)
			}
		}
		if n, err := decodeIntent(b, 1); err == nil {
			if again, err := decodeIntent(n.encode(), 1); err != nil || !reflect.DeepEqual(again.files, n.files) {
				t.Errorf("intent %+v became %+v, %v", n, again, err)
			}
		}
		_, _ = decodeHardState(b, 1)
		_, _, _ = decodeEntry(1, 1, b)
		_, _ = decodeMark(b)
		if head, err := decodeSnapshotHead(b); err == nil {
			if again, err := decodeSnapshotHead(head.encode()); err != nil || again.number != head.number || again.at.index != head.at.index {
				t.Errorf("head %+v became %+v, %v", head, again, err)
			}
		}
		if p, err := decodePoint(b); err == nil {
			if again, err := decodePoint(p.encode()); err != nil || again.keys != p.keys || !bytes.Equal(again.sum, p.sum) {
				t.Errorf("point %+v became %+v, %v", p, again, err)
			}
		}
		if p, err := decodeHeld(b, 1); err == nil {
			if again, err := decodeHeld(p.encode(), 1); err != nil || !reflect.DeepEqual(again.files, p.files) || again.keys != p.keys {
				t.Errorf("held %+v became %+v, %v", p, again, err)
			}
		}
	})
}

// FuzzSnapshotStream reads bytes as the data of a stream, cut into chunks: no
// panic, nothing left, and the state untouched, for the sum is never right.
func FuzzSnapshotStream(f *testing.F) {
	f.Add([]byte{1, 'a', 1, 'x', 1, 'b', 0}, uint8(3))
	f.Add([]byte{1, 'b', 0, 1, 'a', 0}, uint8(0))
	f.Add([]byte{0x80, 0x80, 0x80, 0x08, 1}, uint8(1))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, uint8(4))
	fs := vfs.NewMem()
	h, err := Open(Options{
		FS: fs, Dir: "data", Node: 1, SnapshotFileBytes: 64, AcceptGroup: func(dfs.GroupID) bool { return true },
		StateMachine: func(dfs.GroupID) StateMachine { return kvMachine{} },
		Send:         func(dfs.NodeID, Lane, []byte) bool { return true },
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := h.Close(); err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		head := snapshotHead{term: 9, snapshotID: snapshotID{group: 3, start: 1, number: 1, at: sampleApplied()}}
		sum := head.newSum()
		begin := point{sum: sum.Sum(nil)}
		chunks := [][]byte{append([]byte{chunkHead}, head.encode()...), append([]byte{chunkFrom}, begin.encode()...)}
		n := min(int(cut), len(b))
		for i, part := range [][]byte{b[:n], b[n:]} {
			_, _ = sum.Write(part)
			at := point{keys: uint64(i + 1), sum: sum.Sum(nil)}
			chunks = append(chunks, append([]byte{chunkData}, part...), append([]byte{chunkPoint}, at.encode()...))
		}
		if err := h.ReceiveSnapshot(t.Context(), 2, &chunkList{chunks: chunks}); err == nil {
			t.Error("a stream without an end is taken")
		}
		if st, ok := h.Status(3); ok && st.Applied != 0 {
			t.Errorf("the state is at entry %d", st.Applied)
		}
		names, err := fs.List("data/raft-snap")
		if err != nil || len(names) > 2 {
			t.Errorf("%v are left (%v)", names, err)
		}
	})
}
