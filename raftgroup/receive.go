package raftgroup

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
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

// cleanSnapDir removes what no install needs any more.
func (h *Host) cleanSnapDir() error {
	names, err := h.opts.FS.List(h.snapDir())
	if err != nil {
		return wrapStore("open raft host", h.snapDir(), err)
	}
	return h.removeSnapFiles(names)
}

func (h *Host) removeSnapFiles(names []string) error {
	var errs []error
	for _, n := range names {
		path := h.opts.FS.PathJoin(h.snapDir(), n)
		if there, err := exists(h.opts.FS, path); err == nil && !there {
			continue
		}
		errs = append(errs, h.opts.FS.Remove(path))
	}
	return wrapStore("clean snapshots", h.snapDir(), firstError(errs...))
}

// ReceiveSnapshot takes a stream that a peer's SnapshotSink sent, chunk by
// chunk from recv, which returns io.EOF at its end. It returns nil once the
// snapshot is installed, durably. An error leaves the old state, and the peer
// will try again: Exist when this replica has as much already, Busy when too
// many come at once, Corrupt or Invalid for a torn or malformed stream.
func (h *Host) ReceiveSnapshot(ctx context.Context, from dfs.NodeID, recv func() ([]byte, error)) error {
	select {
	case h.receiving <- struct{}{}:
		defer func() { <-h.receiving }()
	default:
		return dfs.Errorf(dfs.Busy, "receive snapshot", "too many at a time")
	}
	first, err := recv()
	if err != nil {
		return err
	}
	if len(first) == 0 || first[0] != chunkHead {
		return dfs.Errorf(dfs.Invalid, "receive snapshot", "a stream without a head")
	}
	head, err := decodeSnapshotHead(first[1:])
	if err != nil {
		return err
	}
	r, err := h.expectSnapshot(&head)
	if err != nil {
		return err
	}
	defer r.state.endReceiving()
	inst := &install{to: head.at, term: head.term, from: from, token: h.sequence.Add(1), done: make(chan error, 1)}
	sum := sha256.New()
	_, _ = sum.Write(first[1:])
	in := &chunkReader{h: h, recv: recv, sum: sum}
	if err := h.storeSnapshot(r, inst, in); err != nil {
		return firstError(err, h.removeSnapFiles(inst.files))
	}
	return r.offer(ctx, inst)
}

// expectSnapshot finds the replica that a stream is for and checks that it
// needs it. On success the caller must call endReceiving.
func (h *Host) expectSnapshot(head *snapshotHead) (*replica, error) {
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
	case head.at.index < s.cur.index, head.at.index == s.cur.index && !s.lost:
		return nil, dfs.Errorf(dfs.Exist, "receive snapshot", "%v is at entry %d, the snapshot at %d", head.group, s.cur.index, head.at.index)
	}
	s.receiving = true
	return r, nil
}

func (s *state) endReceiving() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.receiving = false
}

// chunkReader reads the data of a stream and remembers how it ended.
type chunkReader struct {
	h    *Host
	recv func() ([]byte, error)
	sum  hash.Hash
	rest []byte
	end  []byte // payload of chunkEnd
}

func (c *chunkReader) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.end != nil {
			return 0, io.EOF
		}
		chunk, err := c.recv()
		if err != nil {
			// Not wrapped: io.EOF here is no end of the data.
			return 0, dfs.Errorf(dfs.Unavailable, "receive snapshot", "torn stream: %v", err)
		}
		if len(chunk) == 0 || len(chunk) > SnapshotChunk {
			return 0, dfs.Errorf(dfs.Invalid, "receive snapshot", "a chunk of %d bytes", len(chunk))
		}
		switch chunk[0] {
		case chunkData:
			c.rest = chunk[1:]
			_, _ = c.sum.Write(c.rest)
		case chunkEnd:
			c.end = chunk[1:]
		default:
			return 0, dfs.Errorf(dfs.Invalid, "receive snapshot", "a chunk of unknown kind %d", chunk[0])
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// check compares what was read with what the end says.
func (c *chunkReader) check(keys uint64) error {
	n, w := binary.Uvarint(c.end)
	if w <= 0 || n != keys || !bytes.Equal(c.end[w:], c.sum.Sum(nil)) {
		return dfs.Errorf(dfs.Corrupt, "receive snapshot", "%d keys arrived, and they are not what was sent", keys)
	}
	return nil
}

// storeSnapshot writes a stream to files that can be ingested.
func (h *Host) storeSnapshot(r *replica, inst *install, in *chunkReader) (err error) {
	w := &tableWriter{h: h, group: r.id, inst: inst}
	defer func() {
		if cerr := w.closeTable(); err == nil {
			err = cerr
		}
		if err == nil {
			err = wrapStore("receive snapshot", r.id.String(), syncDir(h.opts.FS, h.snapDir()))
		}
	}()
	if err := w.add(stateKey(r.id, stateApplied), inst.to.encode()); err != nil {
		return err
	}
	buf := bufio.NewReaderSize(in, 64<<10)
	prefix := stateKey(r.id, stateData)
	var keys uint64
	for ; ; keys++ {
		key, err := readSized(buf)
		if errors.Is(err, io.EOF) {
			return in.check(keys)
		}
		if err != nil {
			return err
		}
		value, err := readSized(buf)
		if errors.Is(err, io.EOF) {
			return dfs.Errorf(dfs.Invalid, "receive snapshot", "a key without a value")
		}
		if err != nil {
			return err
		}
		if err := w.add(append(prefix[:len(prefix):len(prefix)], key...), value); err != nil {
			return err
		}
	}
}

// readSized reads a length and so many bytes; io.EOF before the length only.
func readSized(r *bufio.Reader) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if n > maxSnapshotValue {
		return nil, dfs.Errorf(dfs.Invalid, "receive snapshot", "a key or value of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, dfs.Errorf(dfs.Invalid, "receive snapshot", "a torn key or value")
		}
		return nil, err
	}
	return b, nil
}

// tableWriter writes ascending keys to tables of bounded size.
type tableWriter struct {
	h     *Host
	group dfs.GroupID
	inst  *install
	table *sstable.Writer
	size  int
	last  []byte
}

func (w *tableWriter) add(key, value []byte) error {
	if !w.h.enter() {
		return errClosing("receive snapshot")
	}
	defer w.h.leave()
	if w.last != nil && bytes.Compare(key, w.last) <= 0 {
		return dfs.Errorf(dfs.Invalid, "receive snapshot", "keys out of order")
	}
	if w.size >= w.h.opts.SnapshotFileBytes {
		if err := w.closeTable(); err != nil {
			return err
		}
	}
	if w.table == nil {
		if err := w.openTable(); err != nil {
			return err
		}
	}
	w.last = append(w.last[:0], key...)
	w.size += len(key) + len(value)
	return w.table.Set(key, value)
}

func (w *tableWriter) openTable() error {
	if err := w.h.roomForTable(); err != nil {
		return err
	}
	name := fmt.Sprintf("%d-%d-%d-%d.sst", w.group, w.h.store.starts, w.inst.token, len(w.inst.files))
	f, err := w.h.opts.FS.Create(w.h.opts.FS.PathJoin(w.h.snapDir(), name), vfs.WriteCategoryUnspecified)
	if err != nil {
		return wrapStore("receive snapshot", name, err)
	}
	w.inst.files = append(w.inst.files, name)
	w.table = sstable.NewWriter(objstorageprovider.NewFileWritable(f), sstable.WriterOptions{
		TableFormat: storeFormat.MaxTableFormat(),
	})
	return nil
}

// roomForTable refuses a table that would take what entries need of the reserve.
// File systems that do not tell their free space have room.
func (h *Host) roomForTable() error {
	usage, err := h.opts.FS.GetDiskUsage(h.opts.Dir)
	if err == nil && usage.AvailBytes < h.opts.Reserve/4+uint64(h.opts.SnapshotFileBytes) && h.opts.Reserve > 0 {
		return dfs.Errorf(dfs.NoSpace, "receive snapshot", "%s: %d bytes are free, and the log needs them", h.opts.Dir, usage.AvailBytes)
	}
	return nil
}

// closeTable finishes and syncs the table in the making.
func (w *tableWriter) closeTable() error {
	if w.table == nil {
		return nil
	}
	err := w.table.Close()
	w.table, w.size = nil, 0
	return wrapStore("receive snapshot", w.group.String(), err)
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
		r.passive, r.leaving = false, false
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
