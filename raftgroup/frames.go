package raftgroup

import (
	"bytes"
	"encoding/binary"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// A batch of messages: version, frames, CRC32C over all before it. A frame is
// its length (uvarint) and: kind, group (16 bits, big endian), of a group that was
// recovered, which bit 7 of the kind says, its generation (uvarint), then
//
//	frameRaft:      acknowledged, checkpoint index, checkpoint hash (uvarints),
//	                raftpb.Message
//	frameRemoved:   index of the change that removed the receiver (uvarint)
//	frameNeedState: nothing
//	frameQuiesce:   term, index of the last entry, which is of that term, start
//	                counter and alarms of the sender (uvarints)
//	frameBeat:      start counter and alarms of the sender (uvarints); its group is 0
//	frameDiffers:   index at which the receiver's state is a minority's (uvarint)
//	frameRecovered: nothing: its generation is what the receiver must hear of
//
// Frames of an unknown kind are refused: nothing new is sent before every
// member knows it.
const batchVersion = 1

type frameKind byte

const (
	frameRaft      frameKind = 1
	frameRemoved   frameKind = 2
	frameNeedState frameKind = 3
	frameQuiesce   frameKind = 4
	frameBeat      frameKind = 5
	frameDiffers   frameKind = 6
	frameRecovered frameKind = 7

	// kindRecovered marks the kind of a frame with a generation.
	kindRecovered = 0x80
)

// frame is one message between two hosts.
type frame struct {
	kind  frameKind
	group dfs.GroupID

	// generation is that of the sender's replica, see recover.go.
	generation uint64

	// acked is, from a leader, the highest index that the receiver has
	// acknowledged in the message's term; 0 says nothing. A receiver with
	// a shorter log has lost what it promised to keep.
	acked uint64

	// checkIndex and checkHash are the state hash of the sender at one applied
	// index; 0 says nothing.
	checkIndex, checkHash uint64

	msg     *pb.Message // frameRaft
	size    int         // bytes that it came in; of a parsed frame
	removed uint64      // frameRemoved

	from        dfs.NodeID // set by the receiver
	term, index uint64     // frameQuiesce
	sign        sign       // frameQuiesce, frameBeat
	differs     uint64     // frameDiffers
}

// appendFrame appends a frame with its length.
func appendFrame(b []byte, f *frame) ([]byte, error) {
	body := append(make([]byte, 0, 64), byte(f.kind), byte(f.group>>8), byte(f.group))
	if f.generation > 0 {
		body[0] |= kindRecovered
		body = appendUints(body, f.generation)
	}
	switch f.kind {
	case frameRaft:
		body = appendUints(body, f.acked, f.checkIndex, f.checkHash)
		n := proto.Size(f.msg)
		b = binary.AppendUvarint(b, uint64(len(body)+n))
		return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(append(b, body...), f.msg)
	case frameRemoved:
		body = appendUints(body, f.removed)
	case frameQuiesce:
		body = appendUints(body, f.term, f.index, f.sign.start, f.sign.alarms)
	case frameBeat:
		body = appendUints(body, f.sign.start, f.sign.alarms)
	case frameDiffers:
		body = appendUints(body, f.differs)
	}
	return appendBytes(b, body), nil
}

// sealBatch ends a batch of frames that starts with batchVersion.
func sealBatch(b []byte) []byte { return binary.BigEndian.AppendUint32(b, crc(0, b)) }

func badBatch(why string) error {
	return dfs.Errorf(dfs.Invalid, "read raft messages", "%s", why)
}

// parseBatch reads a batch. Nothing is returned unless all of it is well formed
// and between the two nodes.
func parseBatch(b []byte, from, to dfs.NodeID) ([]frame, error) {
	if len(b) < 5 || len(b) > MaxBatch {
		return nil, badBatch("impossible length")
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc(0, body) != sum {
		return nil, dfs.Errorf(dfs.Corrupt, "read raft messages", "bad checksum")
	}
	if body[0] != batchVersion {
		return nil, dfs.Errorf(dfs.Unsupported, "read raft messages", "batch version %d is not known", body[0])
	}
	var out []frame
	d := decoder{b: body[1:]}
	for len(d.b) > 0 {
		raw := d.bytes()
		if d.bad || len(raw) < 3 {
			return nil, badBatch("torn frame")
		}
		f := frame{kind: frameKind(raw[0] &^ kindRecovered), size: len(raw), group: dfs.GroupID(binary.BigEndian.Uint16(raw[1:])), from: from}
		rest := decoder{b: raw[3:]}
		if raw[0]&kindRecovered != 0 {
			if f.generation = rest.uint(); rest.bad || f.generation == 0 {
				return nil, badBatch("malformed generation")
			}
		}
		if err := f.parse(rest.b, from, to); err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

func (f *frame) parse(b []byte, from, to dfs.NodeID) error {
	d := decoder{b: b}
	switch f.kind {
	case frameRaft:
		f.acked, f.checkIndex, f.checkHash = d.uint(), d.uint(), d.uint()
		if d.bad {
			return badBatch("torn frame")
		}
		f.msg = &pb.Message{}
		if err := proto.Unmarshal(d.b, f.msg); err != nil {
			return badBatch("no Raft message")
		}
		return checkMessage(f.msg, from, to)
	case frameRemoved:
		if f.removed = d.uint(); !d.end() {
			return badBatch("torn frame")
		}
	case frameDiffers:
		if f.differs = d.uint(); !d.end() {
			return badBatch("torn frame")
		}
	case frameNeedState, frameRecovered:
		if !d.end() {
			return badBatch("torn frame")
		}
	case frameQuiesce:
		if f.term, f.index, f.sign.start, f.sign.alarms = d.uint(), d.uint(), d.uint(), d.uint(); !d.end() {
			return badBatch("torn frame")
		}
	case frameBeat:
		if f.sign.start, f.sign.alarms = d.uint(), d.uint(); !d.end() {
			return badBatch("torn frame")
		}
	default:
		return dfs.Errorf(dfs.Unsupported, "read raft messages", "frame kind %d is not known", f.kind)
	}
	return nil
}

// checkMessage refuses what no honest peer sends: the library would panic on
// some of it.
func checkMessage(m *pb.Message, from, to dfs.NodeID) error {
	if m.GetFrom() != uint64(from) || m.GetTo() != uint64(to) {
		return badBatch("message between other nodes")
	}
	if m.GetSnapshot() != nil || len(m.GetResponses()) > 0 {
		return badBatch("message with foreign parts")
	}
	switch m.GetType() {
	case pb.MsgApp:
		return checkEntries(m)
	case pb.MsgReadIndex, pb.MsgReadIndexResp:
		if len(m.GetEntries()) != 1 || len(m.GetEntries()[0].GetData()) != readKeyLen {
			return badBatch("malformed ReadIndex")
		}
		if m.GetType() == pb.MsgReadIndex && m.GetTerm() != 0 {
			return badBatch("malformed ReadIndex")
		}
		return nil
	case pb.MsgHeartbeat, pb.MsgHeartbeatResp:
		if n := len(m.GetContext()); n != 0 && n != 8 || m.GetTerm() == 0 {
			return badBatch("malformed heartbeat")
		}
	case pb.MsgAppResp, pb.MsgVote, pb.MsgVoteResp, pb.MsgPreVote, pb.MsgPreVoteResp, pb.MsgTimeoutNow:
		if m.GetTerm() == 0 {
			return badBatch("message without a term")
		}
	default:
		return badBatch("message of a type that does not cross the network")
	}
	if len(m.GetEntries()) > 0 {
		return badBatch("message with foreign parts")
	}
	return nil
}

func checkEntries(m *pb.Message) error {
	term, index := m.GetLogTerm(), m.GetIndex()
	for _, e := range m.GetEntries() {
		index++
		if e.GetIndex() != index || e.GetTerm() < term || e.GetTerm() > m.GetTerm() {
			return badBatch("append with entries out of order")
		}
		term = e.GetTerm()
	}
	if m.GetTerm() == 0 || m.GetLogTerm() > m.GetTerm() {
		return badBatch("append with an impossible term")
	}
	return nil
}

func laneOf(m *pb.Message) Lane {
	switch m.GetType() {
	case pb.MsgApp, pb.MsgAppResp:
		return LaneBulk
	default:
		return LaneControl
	}
}

// outbox gathers the messages of one round, so that one batch carries what
// many groups have for one peer. It belongs to one goroutine.
type outbox struct {
	h    *Host
	bufs map[lanePeer]*outBatch
	keys []lanePeer // in order of first use, so that a round sends in one order
}

type lanePeer struct {
	to   dfs.NodeID
	lane Lane
}

type outBatch struct {
	b      []byte
	groups []dfs.GroupID // with messages in b
}

func newOutbox(h *Host) *outbox { return &outbox{h: h, bufs: map[lanePeer]*outBatch{}} }

func (o *outbox) add(to dfs.NodeID, lane Lane, f *frame) {
	k := lanePeer{to, lane}
	ob := o.batch(k)
	begin := len(ob.b)
	b, err := appendFrame(ob.b, f)
	size := len(b) - begin
	if err != nil || size+5 > MaxBatch {
		o.h.log.Error("message left out", "group", uint16(f.group), "to", uint32(to), "bytes", size, "cause", err)
		return
	}
	if len(b)+4 > MaxBatch {
		enc := bytes.Clone(b[begin:])
		o.send(k, ob)
		ob = o.batch(k)
		b = append(ob.b, enc...)
	}
	ob.b = b
	if n := len(ob.groups); n == 0 || ob.groups[n-1] != f.group {
		ob.groups = append(ob.groups, f.group)
	}
}

// batch returns the batch that a peer's next message goes into.
func (o *outbox) batch(k lanePeer) *outBatch {
	ob := o.bufs[k]
	if ob == nil || len(ob.b) == 0 {
		ob = &outBatch{b: append(make([]byte, 0, 512), batchVersion)}
		o.bufs[k] = ob
		o.keys = append(o.keys, k)
	}
	return ob
}

// flush sends what was gathered.
func (o *outbox) flush() {
	for _, k := range o.keys {
		if ob := o.bufs[k]; len(ob.b) > 1 {
			o.send(k, ob)
		}
	}
	clear(o.bufs)
	o.keys = o.keys[:0]
}

func (o *outbox) send(k lanePeer, ob *outBatch) {
	if o.h.silent.Load() {
		return
	}
	ok := o.h.opts.Send(k.to, k.lane, sealBatch(ob.b))
	groups := ob.groups
	ob.b, ob.groups = nil, nil
	if ok || k.lane != LaneBulk {
		return
	}
	for _, g := range groups {
		if r := o.h.replica(g); r != nil {
			r.unreachable(k.to)
		}
	}
}
