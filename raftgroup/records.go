package raftgroup

import (
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// recordVersion starts every value of both stores.
const recordVersion = 1

// Keys of the log store. A group's keys start with (keyGroup, group), so one
// range holds them all; an entry's index is its last 8 bytes, big endian.
const (
	keyHost  = 0x00
	keyGroup = 0x01

	hostIdentity = 0x01
	hostBatch    = 0x02
	hostStarts   = 0x03

	logHardState  = 0x00
	logTruncated  = 0x01
	logIntent     = 0x02
	logTombstone  = 0x03
	logHeld       = 0x04
	logGeneration = 0x05
	logAside      = 0x06
	logEntry      = 0x10
)

// Keys of the state store: (keyState, group, stateApplied) and
// (keyState, group, stateData, key of the state machine).
const (
	keyState     = 'g'
	stateApplied = 0x00
	stateData    = 0x01
)

func groupKey(g dfs.GroupID, kind byte) []byte {
	return []byte{keyGroup, byte(g >> 8), byte(g), kind}
}

func entryKey(g dfs.GroupID, index uint64) []byte {
	return binary.BigEndian.AppendUint64(groupKey(g, logEntry), index)
}

func stateKey(g dfs.GroupID, kind byte) []byte {
	return []byte{keyState, byte(g >> 8), byte(g), kind}
}

// stateSpan is the range of all keys of one group in the state store.
func stateSpan(g dfs.GroupID) (start, end []byte) {
	start = []byte{keyState, byte(g >> 8), byte(g)}
	return start, prefixEnd(start)
}

// StateHash is a running hash over what a replica applied: each entry, its
// reply and its writes. Equal at equal index on every replica.
type StateHash [16]byte

func (h StateHash) String() string { return hex.EncodeToString(h[:]) }

// applied is the state store's record of how far a group's state is, written
// in the same batch as the state.
type applied struct {
	index, term uint64
	confIndex   uint64 // of the last configuration change; confIndex <= index
	conf        *pb.ConfState
	hash        StateHash
}

// truncated is the log store's record of where a group's log begins: the
// entries after index. With index 0 the replica has never had a state.
type truncated struct {
	index, term uint64
	confIndex   uint64
	conf        *pb.ConfState // at index
	bytes       uint64        // size of all entries through index
}

// intent is the log store's record of a snapshot install that has begun.
type intent struct {
	to        applied
	hard      *pb.HardState
	files     []string // in raft-snap/
	stateOnly bool     // the log stays: only the state store was lost
}

// decoder reads fixed and variable fields and remembers the first fault.
type decoder struct {
	b   []byte
	bad bool
}

func newDecoder(b []byte) *decoder {
	if len(b) == 0 || b[0] != recordVersion {
		return &decoder{bad: true}
	}
	return &decoder{b: b[1:]}
}

// newSummedDecoder reads what appendSum ended.
func newSummedDecoder(b []byte) *decoder {
	n := len(b) - 4
	if n < 0 || binary.BigEndian.Uint32(b[n:]) != crc(0, b[:n]) {
		return &decoder{bad: true}
	}
	return newDecoder(b[:n])
}

// appendSum ends a record with a sum over all of it.
func appendSum(b []byte) []byte { return binary.BigEndian.AppendUint32(b, crc(0, b)) }

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad = true
		d.b = nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) message(m proto.Message) {
	if raw := d.bytes(); !d.bad && proto.Unmarshal(raw, m) != nil {
		d.bad = true
	}
}

// end reports whether everything was read and nothing was wrong.
func (d *decoder) end() bool { return !d.bad && len(d.b) == 0 }

func appendBytes(b, v []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func appendMessage(b []byte, m proto.Message) []byte {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err) // raftpb messages without required fields always marshal
	}
	return appendBytes(b, raw)
}

func appendUints(b []byte, vs ...uint64) []byte {
	for _, v := range vs {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func badRecord(what string, g dfs.GroupID) error {
	return dfs.Errorf(dfs.Corrupt, "read raft store", "%s of %v is damaged or of an unknown version", what, g)
}

func (a *applied) append(b []byte) []byte {
	b = appendUints(b, a.index, a.term, a.confIndex)
	return appendBytes(appendMessage(b, a.conf), a.hash[:])
}

func (a *applied) encode() []byte { return a.append([]byte{recordVersion}) }

func (a *applied) read(d *decoder) {
	a.index, a.term, a.confIndex = d.uint(), d.uint(), d.uint()
	a.conf = &pb.ConfState{}
	d.message(a.conf)
	if h := d.bytes(); copy(a.hash[:], h) != len(a.hash) || len(h) != len(a.hash) {
		d.bad = true
	}
}

func decodeApplied(b []byte, g dfs.GroupID) (applied, error) {
	var a applied
	d := newDecoder(b)
	if a.read(d); !d.end() {
		return applied{}, badRecord("applied record", g)
	}
	return a, nil
}

func (t *truncated) encode() []byte {
	b := appendUints([]byte{recordVersion}, t.index, t.term, t.confIndex, t.bytes)
	return appendMessage(b, t.conf)
}

func decodeTruncated(b []byte, g dfs.GroupID) (truncated, error) {
	d := newDecoder(b)
	t := truncated{index: d.uint(), term: d.uint(), confIndex: d.uint(), bytes: d.uint(), conf: &pb.ConfState{}}
	if d.message(t.conf); !d.end() {
		return truncated{}, badRecord("truncated record", g)
	}
	return t, nil
}

func encodeHardState(h *pb.HardState) []byte {
	return appendUints([]byte{recordVersion}, h.GetTerm(), h.GetVote(), h.GetCommit())
}

func decodeHardState(b []byte, g dfs.GroupID) (*pb.HardState, error) {
	d := newDecoder(b)
	h := hardState(d.uint(), d.uint(), d.uint())
	if !d.end() {
		return nil, badRecord("hard state", g)
	}
	return h, nil
}

func hardState(term, vote, commit uint64) *pb.HardState {
	return &pb.HardState{Term: &term, Vote: &vote, Commit: &commit}
}

func (n *intent) encode() []byte {
	b := n.to.append([]byte{recordVersion})
	b = appendUints(b, n.hard.GetTerm(), n.hard.GetVote(), n.hard.GetCommit(), uint64(len(n.files)))
	for _, f := range n.files {
		b = appendBytes(b, []byte(f))
	}
	if n.stateOnly {
		return append(b, 1)
	}
	return append(b, 0)
}

func decodeIntent(b []byte, g dfs.GroupID) (intent, error) {
	var n intent
	d := newDecoder(b)
	n.to.read(d)
	n.hard = hardState(d.uint(), d.uint(), d.uint())
	for i := d.uint(); i > 0 && !d.bad; i-- {
		n.files = append(n.files, string(d.bytes()))
	}
	n.stateOnly = d.uint() == 1
	if !d.end() {
		return intent{}, badRecord("snapshot intent", g)
	}
	return n, nil
}

// The value of an entry: version, Raft's entry type, term, the size of all
// entries through this one, CRC32C over (group, index, all other bytes), data.
const entryHead = 1 + 1 + 8 + 8 + 4

func encodeEntry(g dfs.GroupID, e *pb.Entry, bytes uint64) []byte {
	b := make([]byte, 0, entryHead+len(e.GetData()))
	b = append(b, recordVersion, byte(e.GetType()))
	b = binary.BigEndian.AppendUint64(b, e.GetTerm())
	b = binary.BigEndian.AppendUint64(b, bytes)
	b = binary.BigEndian.AppendUint32(b, entrySum(g, e.GetIndex(), b, e.GetData()))
	return append(b, e.GetData()...)
}

func entrySum(g dfs.GroupID, index uint64, head, data []byte) uint32 {
	sum := crc(0, entryKey(g, index))
	return crc(crc(sum, head), data)
}

// decodeEntry reads an entry; its data is copied.
func decodeEntry(g dfs.GroupID, index uint64, b []byte) (*pb.Entry, uint64, error) {
	if len(b) < entryHead || b[0] != recordVersion || b[1] > byte(pb.EntryConfChangeV2) ||
		binary.BigEndian.Uint32(b[18:]) != entrySum(g, index, b[:18], b[entryHead:]) {
		return nil, 0, dfs.Errorf(dfs.Corrupt, "read raft log", "entry %d of %v is damaged or of an unknown version", index, g)
	}
	e := &pb.Entry{
		Type:  pb.EntryType(b[1]).Enum(),
		Term:  proto.Uint64(binary.BigEndian.Uint64(b[2:])),
		Index: proto.Uint64(index),
	}
	if data := b[entryHead:]; len(data) > 0 {
		e.Data = append(make([]byte, 0, len(data)), data...)
	}
	return e, binary.BigEndian.Uint64(b[10:]), nil
}

func crc(sum uint32, b []byte) uint32 { return crc32.Update(sum, dfs.Castagnoli, b) }
