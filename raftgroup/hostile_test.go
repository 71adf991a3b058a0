package raftgroup

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// maxStepGrowth bounds what the batches of an input may allocate, besides what the host does
// meanwhile: a length that is believed would be far more.
const maxStepGrowth = 256 << 20

// FuzzStep has a host take batches of a peer, with right checksums, and work on them: a batch is taken
// or refused for what it is, a replica may end in quarantine or its host by damage, since a
// member is believed, and nothing panics. An input is batches, each after a length of two
// bytes, without version and checksum.
func FuzzStep(f *testing.F) {
	input := func(batches ...[]frame) (out []byte) {
		for _, frames := range batches {
			b := batchOf(f, frames...)
			b = b[1 : len(b)-4]
			out = append(binary.BigEndian.AppendUint16(out, uint16(len(b))), b...)
		}
		return out
	}
	raft := func(g dfs.GroupID, typ pb.MessageType, change ...func(*pb.Message)) frame {
		m := message(typ, change...)
		m.From, m.To = proto.Uint64(2), proto.Uint64(1)
		return frame{kind: frameRaft, group: g, msg: m}
	}
	from := func(index, term uint64, es ...*pb.Entry) func(*pb.Message) {
		return func(m *pb.Message) {
			m.Index, m.LogTerm, m.Commit, m.Entries = proto.Uint64(index), proto.Uint64(term), proto.Uint64(index+9), es
		}
	}
	late := func(m *pb.Message) { m.Term, m.Commit = proto.Uint64(1<<64-1), proto.Uint64(1<<64-1) }
	change := func(cc *pb.ConfChangeV2) *pb.Entry {
		data, err := proto.Marshal(cc)
		if err != nil {
			f.Fatal(err)
		}
		e := entry(2, 5)
		e.Type, e.Data = pb.EntryConfChangeV2.Enum(), data
		return e
	}
	f.Add(input([]frame{raft(0, pb.MsgApp, from(1, 1, entry(2, 5), entry(3, 5)))}, []frame{raft(0, pb.MsgApp, from(3, 5, entry(4, 5)))}))
	f.Add(input([]frame{raft(0, pb.MsgApp, from(1, 1, change(&pb.ConfChangeV2{Changes: []*pb.ConfChangeSingle{
		{Type: pb.ConfChangeRemoveNode.Enum(), NodeId: proto.Uint64(1)}, {Type: pb.ConfChangeAddNode.Enum(), NodeId: proto.Uint64(1<<64 - 1)},
	}})))}))
	f.Add(input([]frame{raft(0, pb.MsgVote), raft(0, pb.MsgPreVote, late), raft(0, pb.MsgHeartbeat, late), raft(0, pb.MsgTimeoutNow)}))
	f.Add(input([]frame{raft(0, pb.MsgAppResp), raft(0, pb.MsgVoteResp), raft(0, pb.MsgPreVoteResp), raft(0, pb.MsgHeartbeatResp)}))
	f.Add(input([]frame{
		{kind: frameRemoved, group: 0, removed: 1 << 60}, {kind: frameDiffers, group: 0, differs: 1}, {kind: frameNeedState, group: 0},
		{kind: frameQuiesce, group: 0, term: 5, index: 1, sign: sign{start: 1, alarms: 1}}, {kind: frameBeat, sign: sign{start: 1 << 63}},
	}))
	f.Add(input([]frame{{kind: frameRecovered, group: 0, generation: 1<<64 - 1}, {kind: frameNeedState, group: 1, generation: 7}, {kind: frameNeedState, group: 65535}}))
	f.Add(input([]frame{raft(1, pb.MsgApp, from(1, 1, entry(2, 5))), raft(2, pb.MsgHeartbeat)}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		inBubble(t, func(t *testing.T) {
			h, err := Open(Options{
				FS: vfs.NewMem(), Dir: "data", Node: 1, CacheSize: 1 << 20, MemTableSize: 256 << 10, Workers: 1,
				AcceptGroup:  func(g dfs.GroupID) bool { return g < 4 },
				StateMachine: func(dfs.GroupID) StateMachine { return kvMachine{} },
				Send:         func(dfs.NodeID, Lane, []byte) bool { return true },
				Logger:       testLogger(1),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = h.Close() }() // it says why it failed
			if err := h.CreateGroup(0, []dfs.NodeID{1, 2, 3}); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for n := 0; len(b) >= 2 && n < 64; n++ {
				size := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
				batch := sealBatch(append([]byte{batchVersion}, b[2:2+size]...))
				b = b[2+size:]
				switch err := h.Step(2, batch); dfs.KindOf(err) {
				case dfs.Invalid, dfs.Corrupt, dfs.Unsupported, dfs.Unavailable:
				default:
					if err != nil {
						t.Errorf("a batch is refused with %v", err)
					}
				}
				time.Sleep(time.Second)
			}
			runtime.ReadMemStats(&after)
			if grew := after.TotalAlloc - before.TotalAlloc; grew > maxStepGrowth {
				t.Errorf("%d bytes were allocated", grew)
			}
		})
	})
}
