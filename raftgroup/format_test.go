package raftgroup

import (
	"bytes"
	"encoding"
	"encoding/hex"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// TestFormatBytes pins what is on disk and on the wire. The bytes are those of
// docs/FORMATS.md: they never change for version 1.
func TestFormatBytes(t *testing.T) {
	at := applied{index: 300, term: 2, confIndex: 9, conf: confState([]uint64{1, 2, 3}), hash: StateHash{0xaa, 15: 0xbb}}
	cut := truncated{index: 200, term: 2, confIndex: 9, bytes: 4096, conf: confState([]uint64{1, 2, 3})}
	in := intent{to: at, hard: hardState(2, 1, 300), files: []string{"a"}, stateOnly: true}
	id := proposalID{node: 1, start: 4, seq: 7}
	entry := &pb.Entry{
		Type: pb.EntryNormal.Enum(), Term: proto.Uint64(2), Index: proto.Uint64(301), Data: append(id.append([]byte{entryVersion}), "cmd"...),
	}
	heartbeat := &pb.Message{
		Type: pb.MsgHeartbeat.Enum(), From: proto.Uint64(1), To: proto.Uint64(2), Term: proto.Uint64(2), Commit: proto.Uint64(300),
	}
	batch := []byte{batchVersion}
	for _, f := range []*frame{
		{kind: frameRaft, group: 3, acked: 299, checkIndex: 288, checkHash: 5, msg: heartbeat},
		{kind: frameRemoved, group: 3, removed: 9},
		{kind: frameNeedState, group: 3},
		{kind: frameQuiesce, group: 3, term: 2, index: 301, sign: sign{start: 4, alarms: 1}},
		{kind: frameBeat, sign: sign{start: 4, alarms: 1}},
		{kind: frameRecovered, group: 3, generation: 1_700_000_000_000},
	} {
		var err error
		if batch, err = appendFrame(batch, f); err != nil {
			t.Fatal(err)
		}
	}
	batch = sealBatch(batch)
	if frames, err := parseBatch(batch, 1, 2); err != nil || len(frames) != 6 || frames[0].generation != 0 || frames[5].generation != 1_700_000_000_000 {
		t.Errorf("the batch is read as %v, %v", frames, err)
	}
	head := snapshotHead{term: 2, generation: 5, snapshotID: snapshotID{group: 3, start: 4, number: 8, at: at}}
	seam := point{keys: 5, sum: bytes.Repeat([]byte{0xcc}, 32)}
	sum, err := head.newSum().(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	rest := held{id: head.snapshotID, from: 2, keys: 5, bytes: 900, last: []byte("row"), state: sum, files: []heldFile{{"a", 700}}}
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"key of an entry", entryKey(3, 301),
			"01000310000000000000012d"},
		{"entry", encodeEntry(3, entry, 4200),
			"010000000000000000020000000000001068131f2a78010000000100000000000000040000000000000007636d64"},
		{"key of the hard state", groupKey(3, logHardState),
			"01000300"},
		{"hard state", encodeHardState(hardState(2, 1, 300)),
			"010201ac02"},
		{"truncated", cut.encode(),
			"01c8010209802006080108020803"},
		{"intent", in.encode(),
			"01ac0202090608010802080310aa0000000000000000000000000000bb0201ac0201016101"},
		{"tombstone", encodeTombstone(300),
			"01ac02"},
		{"key of the applied record", stateKey(3, stateApplied),
			"67000300"},
		{"key of the generation", groupKey(3, logGeneration),
			"01000305"},
		{"generation, or for which one a replica is set aside", encodeGeneration(1_700_000_000_000),
			"0180d095ffbc31"},
		{"applied", at.encode(),
			"01ac0202090608010802080310aa0000000000000000000000000000bb"},
		{"key of a row", append(stateKey(3, stateData), "row"...),
			"67000301726f77"},
		{"slot of the mark file", encodeMark(77),
			"646673646d726b31000000000000004d4e9045c4"},
		{"batch of messages", batch,
			"0113010003ab02a00205080810021801200240ac020402000309030300030804000302ad0204010505000004010987000380d095ffbc31d6ce10b3"},
		{"head of a snapshot", head.encode(),
			"010205030408ac0202090608010802080310aa0000000000000000000000000000bb2905e243"},
		{"offer, beginning, point or end of a snapshot", seam.encode(),
			"0105cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"},
		{"record of a held snapshot", rest.encode(),
			"01030408ac0202090608010802080310aa0000000000000000000000000000bb0205840703726f776c736861036a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19030408ac0202090608010802080310aa0000000000000000000000000000bb000000000000000000000000000000000000000000000000000000000000000000000000000000001f010161bc05cb0e68e1"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
	if e, bytes, err := decodeEntry(3, 301, encodeEntry(dfs.GroupID(3), entry, 4200)); err != nil || bytes != 4200 || !proto.Equal(e, entry) {
		t.Errorf("the entry is read as %v, %d, %v", e, bytes, err)
	}
}
