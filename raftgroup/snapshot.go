package raftgroup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"math"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"dfsd/dfs"
)

// A snapshot stream is chunks of one kind byte and a payload, at most
// SnapshotChunk bytes together. The sender says what it has, the receiver what
// it holds of that from a stream that broke, and the sender goes on from there:
//
//	sender ─▶   chunkHead
//	receiver ─▶ chunkOffer
//	sender ─▶   chunkFrom, then chunkData with a chunkPoint after every
//	            SnapshotFileBytes or so, and chunkEnd
//	receiver ─▶ chunkInstalled
//
// The data is the concatenation of (key length, key, value length, value) of
// every key of the group, ascending, keys without prefix; a point stands
// between two keys. docs/FORMATS.md has the payloads. A stream that ends without its end
// is torn: what came before its last point need not be sent again.
const (
	chunkHead      = 'H'
	chunkOffer     = 'O'
	chunkFrom      = 'F'
	chunkData      = 'D'
	chunkPoint     = 'P'
	chunkEnd       = 'E'
	chunkInstalled = 'I'
)

// maxSnapshotValue bounds one key and one value of a stream, so that a receiver
// needs no more memory than that.
const maxSnapshotValue = 16 << 20

// snapshotLogEvery is how often a long transfer is told of.
const snapshotLogEvery = 30 * time.Second

// snapshotID names a transfer: what was read at one moment of one group on one
// node. Streams with the same one carry the same bytes.
type snapshotID struct {
	group  dfs.GroupID
	start  uint64 // how often the sender's log store was opened
	number uint64 // of the transfer since
	at     applied
}

func (s *snapshotID) append(b []byte) []byte {
	return s.at.append(appendUints(b, uint64(s.group), s.start, s.number))
}

func (s *snapshotID) read(d *decoder) {
	g := d.uint()
	d.bad = d.bad || g > math.MaxUint16
	s.group, s.start, s.number = dfs.GroupID(g), d.uint(), d.uint()
	if s.at.read(d); s.at.index == 0 {
		d.bad = true
	}
}

// newSum begins the check sum of a transfer, which runs over all its streams.
func (s *snapshotID) newSum() hash.Hash {
	sum := sha256.New()
	_, _ = sum.Write(s.append(nil))
	return sum
}

// snapshotHead is the first chunk of a stream. Term 0 sends the state alone, to
// a replica that keeps its log.
type snapshotHead struct {
	term       uint64 // of the sender
	generation uint64 // of the sender's replica
	snapshotID
}

func (s *snapshotHead) encode() []byte {
	b := appendUints([]byte{recordVersion}, s.term, s.generation)
	return appendSum(s.snapshotID.append(b))
}

func decodeSnapshotHead(b []byte) (s snapshotHead, err error) {
	d := newSummedDecoder(b)
	s.term, s.generation = d.uint(), d.uint()
	if s.snapshotID.read(d); !d.end() {
		return s, dfs.Errorf(dfs.Invalid, "receive snapshot", "malformed head")
	}
	return s, nil
}

// point is a place between two keys of a transfer: so many keys before it, and
// the sum over the identity and the data up to it. Without keys it is the
// beginning.
type point struct {
	keys uint64
	sum  []byte
}

func (p *point) encode() []byte {
	return append(binary.AppendUvarint([]byte{recordVersion}, p.keys), p.sum...)
}

func decodePoint(b []byte) (p point, err error) {
	d := newDecoder(b)
	p.keys, p.sum = d.uint(), d.b
	if d.bad || len(p.sum) != sha256.Size {
		return p, dfs.Errorf(dfs.Invalid, "read snapshot stream", "malformed point")
	}
	return p, nil
}

// passed is a point with what it takes to go on from it.
type passed struct {
	point
	key   []byte // the last one before it
	bytes uint64 // of data before it
	state []byte // of the sum
}

// maxPassed bounds the points that a sender remembers. What is under way between
// two nodes is far less than so many times SnapshotFileBytes.
const maxPassed = 64

// sendSnapshot starts a stream to a peer unless one is under way. Term 0 sends
// the state alone.
func (h *Host) sendSnapshot(r *replica, to dfs.NodeID, term uint64) {
	t := r.beginSending(to, term)
	if t == nil {
		return
	}
	select {
	case h.transfers <- struct{}{}:
	default:
		r.endSending(t, dfs.Errorf(dfs.Busy, "send snapshot", "too many at a time"))
		return
	}
	ok := h.spawn(func() {
		err := h.streamSnapshot(t, term)
		<-h.transfers
		if err != nil {
			h.log.Info("snapshot not delivered", "group", uint16(r.id), "to", uint32(to), "bytes", t.bytes.Load(), "cause", err)
		}
		r.endSending(t, err)
	})
	if !ok {
		<-h.transfers
	}
}

func (h *Host) streamSnapshot(t *transfer, term uint64) (err error) {
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	t.streams(cancel)
	stream, err := h.opts.OpenSnapshot(ctx, t.to)
	if err != nil {
		return err
	}
	// A peer that takes or says nothing for so long is as good as gone.
	stuck := time.AfterFunc(snapshotStall, cancel)
	w := &snapshotWriter{h: h, t: t, ctx: ctx, stream: stream, stuck: stuck}
	if err = w.run(term); err != nil {
		cancel() // the receiver sees a torn stream, never a whole one
	}
	stuck.Stop()
	if cerr := stream.Close(); err == nil {
		err = cerr
	}
	return err
}

// snapshotStall is how long a peer may take for one chunk, and snapshotAnswer how
// long to read what it holds, or to install.
const (
	snapshotStall  = 30 * time.Second
	snapshotAnswer = 5 * time.Minute
)

func isMember(c *pb.ConfState, n dfs.NodeID) bool {
	id := uint64(n)
	return slices.Contains(c.GetVoters(), id) || slices.Contains(c.GetLearners(), id) || slices.Contains(c.GetVotersOutgoing(), id)
}

// snapshotWriter sends one stream of a transfer.
type snapshotWriter struct {
	h      *Host
	t      *transfer
	ctx    context.Context
	stream SnapshotStream
	stuck  *time.Timer

	sum   hash.Hash
	buf   []byte // the data chunk in the making
	keys  uint64
	since int // bytes since the last point
	told  time.Time
}

func (w *snapshotWriter) run(term uint64) error {
	t := w.t
	if err := t.open(); err != nil {
		return err
	}
	head := snapshotHead{term: term, generation: t.r.generation, snapshotID: t.id}
	if err := w.send(chunkHead, head.encode()); err != nil {
		return err
	}
	offer, err := w.recv(chunkOffer)
	if err != nil {
		return err
	}
	have, err := decodePoint(offer)
	if err != nil {
		return err
	}
	from, err := t.resume(have)
	if err != nil {
		return err
	}
	if err := w.send(chunkFrom, from.encode()); err != nil {
		return err
	}
	if err := w.data(from); err != nil {
		return err
	}
	_, err = w.recv(chunkInstalled)
	return err
}

// data sends the keys after a point, and the end.
func (w *snapshotWriter) data(from *passed) (err error) {
	it, err := w.t.iterator(from)
	if err != nil {
		return err
	}
	defer closeInto(&err, it)
	prefix := len(stateKey(w.t.id.group, stateData))
	w.sum, w.keys = w.t.id.newSum(), from.keys
	if from.keys > 0 {
		if err := w.sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(from.state); err != nil {
			return dfs.Errorf(dfs.Internal, "send snapshot", "%v", err)
		}
	}
	w.buf, w.told = append(make([]byte, 0, SnapshotChunk), chunkData), time.Now()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return wrapStore("send snapshot", "", err)
		}
		if err := w.pair(it.Key()[prefix:], v); err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return wrapStore("send snapshot", "", err)
	}
	if err := w.flush(); err != nil {
		return err
	}
	w.h.snapStep(w.t.id.group, SnapSendEnd)
	end := point{keys: w.keys, sum: w.sum.Sum(nil)}
	return w.send(chunkEnd, end.encode())
}

// pair adds a key and its value, and a point where enough has come together.
func (w *snapshotWriter) pair(key, value []byte) error {
	if err := w.write(key); err != nil {
		return err
	}
	if err := w.write(value); err != nil {
		return err
	}
	w.keys++
	w.t.keys.Store(w.keys)
	if w.since += len(key) + len(value); w.since < w.h.opts.SnapshotFileBytes {
		return nil
	}
	w.since = 0
	if err := w.flush(); err != nil {
		return err
	}
	w.h.snapStep(w.t.id.group, SnapSendPoint)
	state, err := w.sum.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return dfs.Errorf(dfs.Internal, "send snapshot", "%v", err)
	}
	p := passed{point: point{w.keys, w.sum.Sum(nil)}, key: bytes.Clone(key), bytes: w.t.bytes.Load(), state: state}
	w.t.pass(p)
	return w.send(chunkPoint, p.encode())
}

// write adds a length and so many bytes to the stream.
func (w *snapshotWriter) write(p []byte) error {
	if len(p) > maxSnapshotValue {
		return dfs.Errorf(dfs.TooLarge, "send snapshot", "a key or value of %d bytes, at most %d", len(p), maxSnapshotValue)
	}
	if len(w.buf)+binary.MaxVarintLen64 > SnapshotChunk {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.buf = binary.AppendUvarint(w.buf, uint64(len(p)))
	for len(p) > 0 {
		n := min(len(p), SnapshotChunk-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		if p = p[n:]; len(w.buf) == SnapshotChunk {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *snapshotWriter) flush() error {
	if len(w.buf) == 1 {
		return nil
	}
	w.h.snapStep(w.t.id.group, SnapSendData)
	w.stuck.Stop()
	if err := w.h.pace.WaitN(w.ctx, len(w.buf)); err != nil {
		return dfs.Errorf(dfs.Unavailable, "send snapshot", "the stream was given up")
	}
	_, _ = w.sum.Write(w.buf[1:])
	if err := w.sendChunk(w.buf); err != nil {
		return err
	}
	n := uint64(len(w.buf) - 1)
	w.buf = w.buf[:1]
	w.h.snaps.sent.Add(n)
	sent := w.t.bytes.Add(n)
	if time.Since(w.told) >= snapshotLogEvery {
		w.told = time.Now()
		w.h.log.Info("snapshot being sent", "group", uint16(w.t.id.group), "to", uint32(w.t.to), "bytes", sent, "keys", w.keys)
	}
	return nil
}

func (w *snapshotWriter) send(kind byte, payload []byte) error {
	return w.sendChunk(append([]byte{kind}, payload...))
}

func (w *snapshotWriter) sendChunk(chunk []byte) error {
	w.stuck.Reset(snapshotStall)
	if err := w.stream.Send(chunk); err != nil {
		return err
	}
	w.stuck.Reset(snapshotStall)
	return nil
}

// recv returns the payload of the receiver's next chunk.
func (w *snapshotWriter) recv(kind byte) ([]byte, error) {
	w.stuck.Reset(snapshotAnswer)
	chunk, err := w.stream.Recv()
	switch {
	case errors.Is(err, io.EOF):
		return nil, dfs.Errorf(dfs.Unavailable, "send snapshot", "the receiver ended the stream")
	case err != nil:
		return nil, err
	case len(chunk) == 0 || chunk[0] != kind:
		return nil, dfs.Errorf(dfs.Invalid, "send snapshot", "not the answer that belongs here")
	}
	return chunk[1:], nil
}

// wantStateLocked asks the leader for the state that this replica has lost. While
// none is known all members are asked: the group sleeps, and whom it reaches wakes.
func (r *replica) wantStateLocked(rd *round) {
	if r.lead == uint64(r.h.opts.Node) || r.ticks < r.lastWants+uint64(r.h.opts.ElectionTicks) {
		return
	}
	r.lastWants = r.ticks
	if r.lead != raft.None {
		rd.wantState = []dfs.NodeID{dfs.NodeID(r.lead)}
		return
	}
	for id := range r.progressLocked() {
		if n := dfs.NodeID(id); n != r.h.opts.Node {
			rd.wantState = append(rd.wantState, n)
		}
	}
	slices.Sort(rd.wantState)
}
