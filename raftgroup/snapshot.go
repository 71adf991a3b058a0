package raftgroup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"dfsd/dfs"
)

// A snapshot stream is chunks of one kind byte and a payload, at most
// SnapshotChunk bytes together:
//
//	chunkHead: version, group, term of the sender (0: the state alone, to
//	           a replica that keeps its log), applied record
//	chunkData: part of the concatenation of (key length, key, value length,
//	           value) of every key of the group, ascending, keys without prefix
//	chunkEnd:  number of keys, SHA-256 of the head's and all data's payloads
//
// Numbers are uvarints. A stream that ends without its end is torn.
const (
	chunkHead = 'H'
	chunkData = 'D'
	chunkEnd  = 'E'
)

// maxSnapshotValue bounds one key and one value of a stream, so that a receiver
// needs no more memory than that.
const maxSnapshotValue = 16 << 20

// snapshotHead is the first chunk of a stream.
type snapshotHead struct {
	group dfs.GroupID
	term  uint64
	at    applied
}

func (s *snapshotHead) encode() []byte {
	b := appendUints([]byte{recordVersion}, uint64(s.group), s.term)
	return s.at.append(b)
}

func decodeSnapshotHead(b []byte) (snapshotHead, error) {
	d := newDecoder(b)
	s := snapshotHead{group: dfs.GroupID(d.uint()), term: d.uint()}
	if s.at.read(d); !d.end() || s.at.index == 0 {
		return s, dfs.Errorf(dfs.Invalid, "receive snapshot", "malformed head")
	}
	return s, nil
}

// sendSnapshot starts a stream to a peer unless one is under way. Term 0 sends
// the state alone.
func (h *Host) sendSnapshot(r *replica, to dfs.NodeID, term uint64) {
	if !r.beginSending(to) {
		return
	}
	select {
	case h.transfers <- struct{}{}:
	default:
		r.endSending(to, dfs.Errorf(dfs.Busy, "send snapshot", "too many at a time"))
		return
	}
	ok := h.spawn(func() {
		err := h.streamSnapshot(r, to, term)
		<-h.transfers
		if err != nil {
			h.log.Info("snapshot not delivered", "group", uint16(r.id), "to", uint32(to), "cause", err)
		}
		r.endSending(to, err)
	})
	if !ok {
		<-h.transfers
	}
}

// beginSending notes a stream to a peer; false when there is one.
func (r *replica) beginSending(to dfs.NodeID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, busy := r.sending[to]; busy || r.fault != nil || r.state.missing() || r.h.opts.OpenSnapshot == nil {
		return false
	}
	// The log from here on stays until the peer can follow it.
	r.sending[to] = r.state.now().index
	return true
}

// endSending tells the library how a stream ended.
func (r *replica) endSending(to dfs.NodeID, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sending, to)
	if r.fault != nil {
		return
	}
	status := raft.SnapshotFinish
	if err != nil {
		status = raft.SnapshotFailure
	}
	r.guardLocked(func() { r.raw.ReportSnapshot(uint64(to), status) })
	r.h.workers.schedule(r)
}

func (h *Host) streamSnapshot(r *replica, to dfs.NodeID, term uint64) (err error) {
	// An iterator sees one moment of the group, also when a snapshot takes the
	// group's place meanwhile.
	lower, upper := stateSpan(r.id)
	it, err := h.state.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return wrapStore("send snapshot", r.id.String(), err)
	}
	defer closeInto(&err, it)
	if !it.First() || it.Key()[len(lower)] != stateApplied {
		return wrapStore("send snapshot", r.id.String(), firstError(it.Error(), errors.New("no state")))
	}
	at, err := decodeApplied(it.Value(), r.id)
	if err != nil {
		return err
	}
	if !isMember(at.conf, to) {
		return dfs.Errorf(dfs.Busy, "send snapshot", "%v: node %v is no member at entry %d", r.id, to, at.index)
	}
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	sink, err := h.opts.OpenSnapshot(ctx, to)
	if err != nil {
		return err
	}
	head := snapshotHead{group: r.id, term: term, at: at}
	w := &snapshotWriter{sink: sink, sum: sha256.New(), buf: append(make([]byte, 0, SnapshotChunk), chunkData)}
	if err = w.stream(head.encode(), it, len(lower)+1); err != nil {
		cancel() // the receiver sees a torn stream, never a whole one
	}
	if werr := sink.CloseAndWait(); err == nil {
		err = werr
	}
	return err
}

func isMember(c *pb.ConfState, n dfs.NodeID) bool {
	id := uint64(n)
	return slices.Contains(c.GetVoters(), id) || slices.Contains(c.GetLearners(), id) || slices.Contains(c.GetVotersOutgoing(), id)
}

// snapshotWriter cuts a stream into chunks.
type snapshotWriter struct {
	sink SnapshotSink
	sum  hash.Hash
	buf  []byte // the data chunk in the making
	keys uint64
}

// stream sends head, the keys that it still has after the applied record, and
// the end.
func (w *snapshotWriter) stream(head []byte, it *pebble.Iterator, prefix int) error {
	_, _ = w.sum.Write(head)
	if err := w.sink.Send(append([]byte{chunkHead}, head...)); err != nil {
		return err
	}
	for ok := it.Next(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return wrapStore("send snapshot", "", err)
		}
		w.keys++
		if err := w.write(it.Key()[prefix:]); err != nil {
			return err
		}
		if err := w.write(v); err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return wrapStore("send snapshot", "", err)
	}
	if err := w.flush(); err != nil {
		return err
	}
	end := binary.AppendUvarint([]byte{chunkEnd}, w.keys)
	return w.sink.Send(w.sum.Sum(end))
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
	_, _ = w.sum.Write(w.buf[1:])
	err := w.sink.Send(w.buf)
	w.buf = w.buf[:1]
	return err
}

// wantStateLocked asks the leader for the state that this replica has lost.
func (r *replica) wantStateLocked(rd *round) {
	if r.lead == raft.None || r.ticks < r.lastWants+uint64(r.h.opts.ElectionTicks) {
		return
	}
	r.lastWants = r.ticks
	rd.wantState, rd.lead = true, r.lead
}
