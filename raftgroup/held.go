package raftgroup

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"hash"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"

	"dfsd/dfs"
)

// held is what a receiver has of a snapshot whose stream broke off: tables in
// raft-snap/, finished and synced, and the point up to which they reach. Its
// record in the log store is written at each point and removed with the intent,
// or before the tables are.
type held struct {
	id    snapshotID
	from  dfs.NodeID
	keys  uint64 // of the snapshot
	bytes uint64 // of data
	last  []byte // key in the state store, the applied record's to begin with
	state []byte // of the sum
	files []heldFile

	checked bool      // the tables were read since they were written, or were written since the start
	since   time.Time // when the stream broke off, or this host started
}

// heldFile is a table in raft-snap/.
type heldFile struct {
	name string
	size uint64
}

// maxHeldFiles bounds the tables of a record that is read.
const maxHeldFiles = 1 << 20

func (p *held) encode() []byte {
	b := p.id.append([]byte{recordVersion})
	b = appendUints(b, uint64(p.from), p.keys, p.bytes)
	b = appendBytes(appendBytes(b, p.last), p.state)
	b = appendUints(b, uint64(len(p.files)))
	for _, f := range p.files {
		b = appendUints(appendBytes(b, []byte(f.name)), f.size)
	}
	return appendSum(b)
}

func decodeHeld(b []byte, g dfs.GroupID) (*held, error) {
	p := &held{}
	d := newSummedDecoder(b)
	p.id.read(d)
	p.from, p.keys, p.bytes = dfs.NodeID(d.uint()), d.uint(), d.uint()
	p.last, p.state = d.bytes(), d.bytes()
	n := d.uint()
	d.bad = d.bad || n > maxHeldFiles
	for ; n > 0 && !d.bad; n-- {
		p.files = append(p.files, heldFile{string(d.bytes()), d.uint()})
	}
	if !d.end() || p.id.group != g {
		return nil, badRecord("held snapshot", g)
	}
	if _, err := p.sum(); err != nil {
		return nil, err
	}
	return p, nil
}

// sum goes on with the sum at the point.
func (p *held) sum() (hash.Hash, error) {
	sum := sha256.New()
	if err := sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(p.state); err != nil {
		return nil, badRecord("held snapshot", p.id.group)
	}
	return sum, nil
}

// point is what the sender is offered.
func (p *held) point() (point, error) {
	sum, err := p.sum()
	if err != nil {
		return point{}, err
	}
	return point{keys: p.keys, sum: sum.Sum(nil)}, nil
}

func (p *held) names() []string {
	out := make([]string, len(p.files))
	for i, f := range p.files {
		out[i] = f.name
	}
	return out
}

// same reports whether a stream of a peer brings the rest of it.
func (p *held) same(head *snapshotHead, from dfs.NodeID) bool {
	return p.from == from && bytes.Equal(p.id.append(nil), head.snapshotID.append(nil))
}

// check reads the tables once after a start: what was damaged since is not
// built upon.
func (h *Host) check(p *held) error {
	if p.checked {
		return nil
	}
	for _, f := range p.files {
		if err := h.checkTable(f); err != nil {
			return wrapStore("check received snapshot", f.name, err)
		}
	}
	p.checked = true
	return nil
}

func (h *Host) checkTable(f heldFile) error {
	file, err := h.opts.FS.Open(h.opts.FS.PathJoin(h.snapDir(), f.name))
	if err != nil {
		return err
	}
	readable, err := sstable.NewSimpleReadable(file)
	if err != nil {
		return firstError(err, file.Close())
	}
	r, err := sstable.NewReader(h.ctx, readable, sstable.ReaderOptions{})
	if err != nil {
		return firstError(err, readable.Close())
	}
	return firstError(r.ValidateBlockChecksums(), r.Close())
}

// loadHeld finds what a start has of a snapshot. A record that does not fit what
// is there is of no use; the tables go with cleanSnapDir.
func (h *Host) loadHeld(r *replica) error {
	key := groupKey(r.id, logHeld)
	v, err := h.store.get(key)
	if v == nil || err != nil {
		return err
	}
	p, err := decodeHeld(v, r.id)
	if err == nil && h.tablesThere(p) && r.state.wants(p) {
		p.since = time.Now()
		r.state.held = p
		return nil
	}
	return h.removeRecord(r.id)
}

func (h *Host) tablesThere(p *held) bool {
	for _, f := range p.files {
		st, err := h.opts.FS.Stat(h.opts.FS.PathJoin(h.snapDir(), f.name))
		if err != nil || uint64(st.Size()) != f.size {
			return false
		}
	}
	return true
}

// wants reports whether the rest of a snapshot would be taken.
func (s *state) wants(p *held) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault == nil && (s.lost || p.id.at.index > s.cur.index)
}

func (h *Host) removeRecord(g dfs.GroupID) error {
	b := h.store.db.NewBatch()
	defer b.Close()
	if err := b.Delete(groupKey(g, logHeld), nil); err != nil {
		return err
	}
	// Not synced: a record that comes back finds its tables gone.
	return h.store.commit(b, false)
}

// saveHeld notes a point, durably. The tables are synced.
func (h *Host) saveHeld(p *held) error {
	if !h.enter() {
		return errClosing("receive snapshot")
	}
	defer h.leave()
	b := h.store.db.NewBatch()
	defer b.Close()
	if err := b.Set(groupKey(p.id.group, logHeld), p.encode(), pebble.NoSync); err != nil {
		return err
	}
	return h.store.commit(b, true)
}

// forget removes tables that no snapshot needs any more, and the record of them.
func (h *Host) forget(g dfs.GroupID, names []string) error {
	if !h.enter() {
		return nil // the next start does it
	}
	defer h.leave()
	h.snapStep(g, SnapForget)
	if err := h.removeRecord(g); err != nil {
		return err
	}
	h.snapStep(g, SnapForgetFiles)
	return h.removeSnapFiles(names)
}

// forgetHeld forgets what is held, unless a stream is arriving, which does so at
// its end.
func (h *Host) forgetHeld(r *replica) error {
	p := r.state.takeHeld(func(*held) bool { return true })
	if p == nil {
		return nil
	}
	return h.forget(r.id, p.names())
}

// tidyHeld forgets what nobody has sent the rest of for too long, or what the
// log has overtaken.
func (h *Host) tidyHeld(r *replica) error {
	p := r.state.takeHeld(func(p *held) bool {
		return time.Since(p.since) >= h.opts.SnapshotKeep || !r.state.lost && p.id.at.index <= r.state.cur.index
	})
	if p == nil {
		return nil
	}
	h.log.Info("rest of a snapshot given up", "group", uint16(r.id), "from", uint32(p.from), "bytes", p.bytes)
	if err := h.forget(r.id, p.names()); err != nil {
		h.log.Warn("received snapshot not removed", "group", uint16(r.id), "cause", err)
	}
	return h.failure()
}

// takeHeld takes what is held when no stream is arriving and it is of no use any
// more, as useless says with mu held.
func (s *state) takeHeld(useless func(*held) bool) *held {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.held
	if p == nil || s.receiving || !useless(p) {
		return nil
	}
	s.held = nil
	return p
}

// setHeld makes p what is held; nil for nothing.
func (s *state) setHeld(p *held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = p
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

// cleanSnapDir removes what no replica holds.
func (h *Host) cleanSnapDir() error {
	names, err := h.opts.FS.List(h.snapDir())
	if err != nil {
		return wrapStore("open raft host", h.snapDir(), err)
	}
	keep := map[string]bool{}
	for _, r := range h.groups {
		if p := r.state.held; p != nil {
			for _, n := range p.names() {
				keep[n] = true
			}
		}
	}
	var gone []string
	for _, n := range names {
		if !keep[n] {
			gone = append(gone, n)
		}
	}
	return h.removeSnapFiles(gone)
}
