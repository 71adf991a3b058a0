package raftgroup

import (
	"bufio"
	"bytes"
	"context"
	"encoding"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// install is a received snapshot on its way into the stores.
type install struct {
	to    applied
	files []string // in raft-snap/, synced; ingesting them removes them
	term  uint64   // of the leader; 0: the state alone
	from  dfs.NodeID
	token uint64

	taken bool       // the library asked for it; guarded by replica.mu
	done  chan error // one buffered: how it ended
}

// message is the library's word for the snapshot. Its data names the install.
func (i *install) message(to dfs.NodeID) *pb.Message {
	return &pb.Message{
		Type: pb.MsgSnap.Enum(),
		From: proto.Uint64(uint64(i.from)),
		To:   proto.Uint64(uint64(to)),
		Term: proto.Uint64(i.term),
		Snapshot: &pb.Snapshot{
			Data: binary.BigEndian.AppendUint64(nil, i.token),
			Metadata: &pb.SnapshotMetadata{
				Index: proto.Uint64(i.to.index), Term: proto.Uint64(i.to.term), ConfState: i.to.conf,
			},
		},
	}
}

func (h *Host) snapDir() string { return h.opts.FS.PathJoin(h.opts.Dir, "raft-snap") }

func (h *Host) prepareSnapDir() error {
	return wrapStore("open raft host", h.snapDir(), makeDir(h.opts.FS, h.snapDir()))
}

// ReceiveSnapshot takes the stream that a peer opened with OpenSnapshot. It
// returns nil once the snapshot is installed, durably. An error leaves the old
// state, and the peer will try again, going on where a stream broke: Exist when
// this replica has as much already, Busy when too many come at once, Corrupt or
// Invalid for a damaged or malformed stream.
//
// A stream takes memory for one chunk, a read buffer, one row and one table's
// index: with rows of ordinary size about 2 MiB, however large the state.
func (h *Host) ReceiveSnapshot(ctx context.Context, from dfs.NodeID, stream SnapshotStream) error {
	select {
	case h.receiving <- struct{}{}:
		defer func() { <-h.receiving }()
	default:
		return dfs.Errorf(dfs.Busy, "receive snapshot", "too many at a time")
	}
	first, err := recvKind(stream, chunkHead)
	if err != nil {
		return err
	}
	head, err := decodeSnapshotHead(first)
	if err != nil {
		return err
	}
	r, err := h.expectSnapshot(from, &head)
	if r == nil {
		return err
	}
	inst := &install{to: head.at, term: head.term, from: from, token: h.sequence.Add(1), done: make(chan error, 1)}
	if err != nil {
		return firstError(r.offer(ctx, inst), err)
	}
	defer h.endReceiving(r)
	w, err := h.beginReceiving(r, inst, &head, stream)
	if err != nil {
		return err
	}
	if err := w.run(); err != nil {
		return w.abandon(err)
	}
	// From here on the tables are the install's.
	inst.files = w.have.names()
	r.state.setHeld(nil)
	if err := r.offer(ctx, inst); err != nil {
		return firstError(err, h.forget(r.id, nil))
	}
	h.snaps.installed.Add(1)
	return stream.Send([]byte{chunkInstalled})
}

// expectSnapshot finds the replica that a stream is for and checks that it
// needs it. On success the caller must call endReceiving. A replica with an
// error has as much already. Its library has to be offered the snapshot all the
// same: it refuses, and tells the leader what it has. The leader may have missed
// that, and would send snapshots until the group, which may need this replica for
// a majority, had committed more.
func (h *Host) expectSnapshot(from dfs.NodeID, head *snapshotHead) (*replica, error) {
	if !h.enter() {
		return nil, errClosing("receive snapshot")
	}
	defer h.leave()
	r, err := h.accept(head.group)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, dfs.Errorf(dfs.NotExist, "receive snapshot", "%v has no replica on node %v", head.group, h.opts.Node)
	}
	if head.generation != r.generation && !h.opts.Hooks.IgnoreGeneration {
		h.otherGeneration(r, from, head.generation)
		return nil, dfs.Errorf(dfs.Unavailable, "receive snapshot", "%v is of generation %d here, the snapshot of %d", head.group, r.generation, head.generation)
	}
	newer := r.office.Load().Term > head.term
	s := &r.state
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.fault != nil:
		return nil, dfs.Wrap("receive snapshot", head.group.String(), s.fault)
	case s.receiving:
		return nil, dfs.Errorf(dfs.Busy, "receive snapshot", "%v receives one already", head.group)
	case head.term == 0 && !s.lost:
		return nil, dfs.Errorf(dfs.Exist, "receive snapshot", "%v has its state", head.group)
	case head.term > 0 && newer:
		return nil, dfs.Errorf(dfs.Exist, "receive snapshot", "%v has a newer leader", head.group)
	case head.at.index < s.cur.index, head.at.index == s.cur.index && !s.lost:
		return r, dfs.Errorf(dfs.Exist, "receive snapshot", "%v is at entry %d, the snapshot at %d", head.group, s.cur.index, head.at.index)
	}
	s.receiving = true
	return r, nil
}

// endReceiving ends a stream. What it leaves of one to a replica that was
// destroyed meanwhile is no use to anybody: the record may even have been written
// after the burial.
func (h *Host) endReceiving(r *replica) {
	r.state.endReceiving()
	if r.state.failed() == nil {
		return
	}
	if err := h.forgetHeld(r); err != nil {
		h.log.Warn("received snapshot not removed", "group", uint16(r.id), "cause", err)
	}
}

func (s *state) endReceiving() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.receiving, s.arriving = false, nil
	if s.held != nil {
		s.held.since = time.Now()
	}
}

// beginReceiving agrees with the sender on where to go on. What is held of
// another transfer, or damaged, is removed.
func (h *Host) beginReceiving(r *replica, inst *install, head *snapshotHead, stream SnapshotStream) (*snapshotReader, error) {
	begin := &held{id: head.snapshotID, from: inst.from, checked: true}
	var err error
	if begin.state, err = begin.id.newSum().(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
		return nil, dfs.Errorf(dfs.Internal, "receive snapshot", "%v", err)
	}
	have := begin
	if old := r.state.held; old != nil && old.same(head, inst.from) {
		if err := h.check(old); err != nil {
			h.log.Warn("rest of a snapshot not used", "group", uint16(r.id), "cause", err)
		} else {
			have = old
		}
	}
	offer, err := have.point()
	if err != nil {
		return nil, err
	}
	if err := stream.Send(append([]byte{chunkOffer}, offer.encode()...)); err != nil {
		return nil, torn(err)
	}
	payload, err := recvKind(stream, chunkFrom)
	if err != nil {
		return nil, err
	}
	from, err := decodePoint(payload)
	if err != nil {
		return nil, err
	}
	if from.keys == 0 {
		have = begin
	} else if from.keys != offer.keys || !bytes.Equal(from.sum, offer.sum) {
		return nil, dfs.Errorf(dfs.Invalid, "receive snapshot", "it begins at key %d, want %d or the beginning", from.keys, offer.keys)
	}
	if old := r.state.held; old != nil && old != have {
		r.state.setHeld(nil)
		if err := h.forget(r.id, old.names()); err != nil {
			return nil, err
		}
	}
	if have.keys > 0 {
		h.snaps.resumed.Add(1)
		h.log.Info("snapshot goes on", "group", uint16(r.id), "from", uint32(inst.from), "bytes", have.bytes, "keys", have.keys)
	}
	return newSnapshotReader(h, r, inst, have, stream)
}

// snapshotReader stores one stream in tables that can be ingested.
type snapshotReader struct {
	h    *Host
	r    *replica
	in   *chunkReader
	buf  *bufio.Reader
	out  *tableWriter
	have *held // what is stored for good, through the last point
	keys uint64
	told time.Time
}

func newSnapshotReader(h *Host, r *replica, inst *install, have *held, stream SnapshotStream) (*snapshotReader, error) {
	sum, err := have.sum()
	if err != nil {
		return nil, err
	}
	in := &chunkReader{h: h, stream: stream, sum: sum, seen: r.state.arrive(have)}
	return &snapshotReader{
		h: h, r: r, in: in, buf: bufio.NewReaderSize(in, 64<<10),
		out:  &tableWriter{h: h, group: r.id, token: inst.token, base: len(have.files), last: bytes.Clone(have.last)},
		have: have, keys: have.keys, told: time.Now(),
	}, nil
}

// run stores the rest of the snapshot and checks all of it.
func (s *snapshotReader) run() error {
	s.h.snapStep(s.r.id, SnapRecvStart)
	if s.have.keys == 0 {
		if err := s.out.add(stateKey(s.r.id, stateApplied), s.have.id.at.encode()); err != nil {
			return err
		}
	}
	for {
		more, err := s.pair()
		if err != nil {
			return err
		}
		if more {
			continue
		}
		if err := s.in.check(s.keys); err != nil {
			return err
		}
		if s.in.end {
			s.h.snapStep(s.r.id, SnapRecvEnd)
			return s.seal()
		}
		if err := s.note(); err != nil {
			return err
		}
		s.in.at = nil
	}
}

// pair stores a key and its value; false at a point and at the end.
func (s *snapshotReader) pair() (bool, error) {
	if _, err := s.buf.Peek(1); errors.Is(err, io.EOF) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	key, err := readSized(s.buf)
	if err != nil {
		return false, err
	}
	value, err := readSized(s.buf)
	if err != nil {
		return false, err
	}
	s.keys++
	s.in.seen.keys.Store(s.keys)
	return true, s.out.add(append(stateKey(s.r.id, stateData), key...), value)
}

// note makes a point one to go on from, when enough has come since the last.
func (s *snapshotReader) note() error {
	if s.out.size < s.h.opts.SnapshotFileBytes/2 {
		return nil
	}
	s.h.snapStep(s.r.id, SnapRecvSeal)
	if err := s.seal(); err != nil {
		return err
	}
	s.h.snapStep(s.r.id, SnapRecvNote)
	if err := s.h.saveHeld(s.have); err != nil {
		return err
	}
	s.r.state.setHeld(s.have)
	s.h.snapStep(s.r.id, SnapRecvNoted)
	if err := s.r.state.failed(); err != nil {
		return err // for good, in this start
	}
	if time.Since(s.told) >= snapshotLogEvery {
		s.told = time.Now()
		s.h.log.Info("snapshot being received", "group", uint16(s.r.id), "from", uint32(s.have.from), "bytes", s.have.bytes, "keys", s.have.keys)
	}
	return nil
}

// seal finishes the table in the making and adds what is new to what is had.
func (s *snapshotReader) seal() error {
	if err := s.out.closeTable(); err != nil {
		return err
	}
	if err := syncDir(s.h.opts.FS, s.h.snapDir()); err != nil {
		return wrapStore("receive snapshot", s.r.id.String(), err)
	}
	state, err := s.in.sum.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return dfs.Errorf(dfs.Internal, "receive snapshot", "%v", err)
	}
	next := *s.have
	next.keys, next.bytes, next.state = s.keys, s.in.seen.bytes.Load(), state
	next.last = bytes.Clone(s.out.last)
	next.files = append(slices.Clip(next.files), s.out.files...)
	s.out.base, s.out.files = len(next.files), nil
	s.have = &next
	return nil
}

// abandon removes what a stream that failed has left after its last point, and
// all when none can go on from there.
func (s *snapshotReader) abandon(err error) error {
	_ = s.out.closeTable() // removed next
	held := s.r.state.held
	if goesOn(err) && held != nil {
		return firstError(err, s.h.removeSnapFiles(s.out.names()), s.h.removeSnapFiles(s.have.names()[len(held.files):]))
	}
	s.r.state.setHeld(nil)
	return firstError(err, s.h.forget(s.r.id, append(s.have.names(), s.out.names()...)))
}

// errNotNeeded says that the library had no use for a snapshot.
func (i *install) notNeeded(g dfs.GroupID) error {
	return dfs.Errorf(dfs.Exist, "receive snapshot", "%v: the log has entry %d already, or a newer leader", g, i.to.index)
}

// offer gives a stored snapshot to the replica and waits for its end.
func (r *replica) offer(ctx context.Context, inst *install) error {
	r.in.addInstall(inst)
	r.h.workers.schedule(r)
	select {
	case err := <-inst.done:
		return err
	case <-ctx.Done():
		return dfs.Errorf(dfs.Unavailable, "receive snapshot", "%v: not installed in the time given", r.id)
	case <-r.h.closing:
		return errClosing("receive snapshot")
	}
}

// stepInstallLocked offers a stored snapshot to the library, or, when only the
// state was lost, hands it to the log writer past the library.
func (r *replica) stepInstallLocked(inst *install) {
	if inst.term > 0 {
		r.leaving = false
		if inst.term >= r.logTerm {
			r.passive = false // a leader that has us as a member
		}
		r.state.expect(inst)
		_ = r.raw.Step(inst.message(r.h.opts.Node))
		return
	}
	first, last := r.l.bounds()
	if !r.state.missing() || inst.to.index < first-1 || inst.to.index > last {
		return
	}
	if term, err := r.l.Term(inst.to.index); err != nil || term != inst.to.term {
		return
	}
	inst.taken = true
	r.h.writer.push(&logWrite{r: r, install: inst})
}

// dropInstallLocked ends a snapshot that nobody asked for.
func (r *replica) dropInstallLocked(inst *install) {
	if inst.taken {
		return
	}
	r.state.forget(inst)
	inst.done <- firstError(inst.notNeeded(r.id), r.h.removeSnapFiles(inst.files))
}
