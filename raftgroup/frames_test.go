package raftgroup

import (
	"bytes"
	"strings"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

func message(typ pb.MessageType, change ...func(*pb.Message)) *pb.Message {
	m := &pb.Message{Type: typ.Enum(), From: proto.Uint64(1), To: proto.Uint64(2), Term: proto.Uint64(5)}
	for _, c := range change {
		c(m)
	}
	return m
}

func batchOf(t testing.TB, frames ...frame) []byte {
	t.Helper()
	b := []byte{batchVersion}
	for i := range frames {
		var err error
		if b, err = appendFrame(b, &frames[i]); err != nil {
			t.Fatal(err)
		}
	}
	return sealBatch(b)
}

func entry(index, term uint64) *pb.Entry {
	return &pb.Entry{Index: proto.Uint64(index), Term: proto.Uint64(term), Data: []byte("x")}
}

func TestBatchRoundTrip(t *testing.T) {
	in := []frame{
		{kind: frameRaft, group: 0, acked: 7, checkIndex: 16, checkHash: 1 << 60, msg: message(pb.MsgHeartbeat)},
		{kind: frameRemoved, group: 300, removed: 99},
		{kind: frameNeedState, group: 65535},
		{kind: frameQuiesce, group: 7, term: 3, index: 1 << 40, sign: sign{start: 9, alarms: 200}},
		{kind: frameBeat, sign: sign{start: 1 << 50}},
		{kind: frameRaft, group: 9, msg: message(pb.MsgApp, func(m *pb.Message) {
			m.Index, m.LogTerm, m.Entries = proto.Uint64(3), proto.Uint64(4), []*pb.Entry{entry(4, 4), entry(5, 5)}
		})},
	}
	out, err := parseBatch(batchOf(t, in...), 1, 2)
	if err != nil || len(out) != len(in) {
		t.Fatalf("%d frames, %v", len(out), err)
	}
	for i, f := range out {
		w := in[i]
		if f.kind != w.kind || f.group != w.group || f.acked != w.acked || f.checkIndex != w.checkIndex ||
			f.checkHash != w.checkHash || f.removed != w.removed ||
			f.from != 1 || f.term != w.term || f.index != w.index || f.sign != w.sign || !proto.Equal(f.msg, w.msg) {
			t.Errorf("frame %d: %+v, want %+v", i, f, w)
		}
	}
}

func TestBatchesRefused(t *testing.T) {
	raft := func(m *pb.Message) []byte { return batchOf(t, frame{kind: frameRaft, msg: m}) }
	whole := raft(message(pb.MsgHeartbeat))
	flipped := bytes.Clone(whole)
	flipped[3] ^= 1
	app := func(change func(*pb.Message)) []byte {
		return raft(message(pb.MsgApp, func(m *pb.Message) {
			m.Index, m.LogTerm, m.Entries = proto.Uint64(3), proto.Uint64(4), []*pb.Entry{entry(4, 4), entry(5, 5)}
			change(m)
		}))
	}
	for name, tc := range map[string]struct {
		batch []byte
		kind  dfs.Kind
	}{
		"nothing":         {nil, dfs.Invalid},
		"too big":         {make([]byte, MaxBatch+1), dfs.Invalid},
		"torn":            {whole[:len(whole)-1], dfs.Corrupt},
		"flipped":         {flipped, dfs.Corrupt},
		"unknown version": {sealBatch([]byte{9, 0}), dfs.Unsupported},
		"unknown kind":    {sealBatch([]byte{batchVersion, 3, 99, 0, 0}), dfs.Unsupported},
		"short frame":     {sealBatch([]byte{batchVersion, 2, 1, 0}), dfs.Invalid},
		"no message":      {sealBatch([]byte{batchVersion, 4, 1, 0, 0, 0}), dfs.Invalid},
		"another sender":  {raft(message(pb.MsgHeartbeat, func(m *pb.Message) { m.From = proto.Uint64(3) })), dfs.Invalid},
		"another target":  {raft(message(pb.MsgHeartbeat, func(m *pb.Message) { m.To = proto.Uint64(3) })), dfs.Invalid},
		"local message":   {raft(message(pb.MsgStorageAppendResp)), dfs.Invalid},
		"proposal":        {raft(message(pb.MsgProp)), dfs.Invalid},
		"snapshot":        {raft(message(pb.MsgSnap)), dfs.Invalid},
		"foreign snap":    {raft(message(pb.MsgHeartbeat, func(m *pb.Message) { m.Snapshot = &pb.Snapshot{} })), dfs.Invalid},
		"short context":   {raft(message(pb.MsgHeartbeatResp, func(m *pb.Message) { m.Context = []byte{1} })), dfs.Invalid},
		"termless":        {raft(message(pb.MsgVote, func(m *pb.Message) { m.Term = nil })), dfs.Invalid},
		"empty ReadIndex": {raft(message(pb.MsgReadIndex, func(m *pb.Message) { m.Term = nil })), dfs.Invalid},
		"gap":             {app(func(m *pb.Message) { m.Entries = []*pb.Entry{entry(5, 5)} }), dfs.Invalid},
		"falling term":    {app(func(m *pb.Message) { m.Entries = []*pb.Entry{entry(4, 5), entry(5, 4)} }), dfs.Invalid},
		"future term":     {app(func(m *pb.Message) { m.Entries = []*pb.Entry{entry(4, 6)} }), dfs.Invalid},
		"foreign entries": {raft(message(pb.MsgVote, func(m *pb.Message) { m.Entries = []*pb.Entry{entry(1, 1)} })), dfs.Invalid},
	} {
		if _, err := parseBatch(tc.batch, 1, 2); dfs.KindOf(err) != tc.kind {
			t.Errorf("%s: %v of kind %v, want %v", name, err, dfs.KindOf(err), tc.kind)
		}
	}
}

// FuzzBatch parses arbitrary batches, with a right checksum so that the fuzzer
// gets past it.
func FuzzBatch(f *testing.F) {
	f.Add(batchOf(f, frame{kind: frameRaft, acked: 3, msg: message(pb.MsgHeartbeat)}, frame{kind: frameRemoved, removed: 1}))
	f.Add([]byte{batchVersion, 3, byte(frameNeedState), 0, 0, 1, 2, 3, 4})
	f.Add(batchOf(f, frame{kind: frameRecovered, group: 3, generation: 1700000000000}, frame{kind: frameNeedState, generation: 1}))
	f.Add([]byte{batchVersion, 7, byte(frameQuiesce), 0, 3, 2, 9, 4, 1, 1, 2, 3, 4})
	f.Add([]byte{batchVersion, 5, byte(frameBeat), 0, 0, 4, 1, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4 {
			return
		}
		frames, err := parseBatch(sealBatch(bytes.Clone(b[:len(b)-4])), 1, 2)
		if err != nil {
			return
		}
		for _, fr := range frames {
			if fr.kind == frameRaft && (fr.msg.GetFrom() != 1 || fr.msg.GetTo() != 2) {
				t.Errorf("took a message between other nodes: %v", fr.msg)
			}
		}
		again, err := parseBatch(batchOf(t, frames...), 1, 2)
		if err != nil || len(again) != len(frames) {
			t.Errorf("%d frames became %d, %v", len(frames), len(again), err)
		}
	})
}

// TestOutboxFillsBatches puts more than one batch's worth into an outbox.
func TestOutboxFillsBatches(t *testing.T) {
	var sent [][]byte
	h := &Host{opts: Options{Send: func(_ dfs.NodeID, _ Lane, b []byte) bool {
		sent = append(sent, b)
		return true
	}}}
	out := newOutbox(h)
	big := message(pb.MsgApp, func(m *pb.Message) {
		m.Index, m.LogTerm = proto.Uint64(3), proto.Uint64(4)
		m.Entries = []*pb.Entry{{Index: proto.Uint64(4), Term: proto.Uint64(4), Data: []byte(strings.Repeat("x", 200<<10))}}
	})
	for i := range 12 {
		out.add(2, laneOf(big), &frame{kind: frameRaft, group: dfs.GroupID(i), msg: big})
	}
	out.flush()
	frames := 0
	for _, b := range sent {
		if len(b) > MaxBatch {
			t.Errorf("a batch of %d bytes", len(b))
		}
		fs, err := parseBatch(b, 1, 2)
		if err != nil {
			t.Error(err)
		}
		frames += len(fs)
	}
	if frames != 12 || len(sent) != 3 {
		t.Errorf("%d frames in %d batches, want 12 in 3", frames, len(sent))
	}
}
