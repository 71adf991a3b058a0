package raftgroup

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

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
	head := snapshotHead{group: 1, term: 2, at: a}
	for _, b := range [][]byte{a.encode(), cut.encode(), in.encode(), head.encode(), encodeHardState(in.hard), encodeMark(5), encodeEntry(1, entry(1, 1), 9)} {
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
		_, _ = decodeSnapshotHead(b)
	})
}
