package raftgroup

import (
	"cmp"
	"slices"
	"sync/atomic"

	"dfsd/dfs"
)

// snapshotCounts are counted since the start.
type snapshotCounts struct{ sent, received, delivered, installed, resumed atomic.Uint64 }

// SnapshotStats counts what snapshots came to since the start.
type SnapshotStats struct {
	Sent, Received uint64 // bytes of rows
	Delivered      uint64 // snapshots sent that were installed
	Installed      uint64 // snapshots received and installed
	Resumed        uint64 // streams of either kind that went on where another broke
}

// SnapshotStats returns what snapshots came to.
func (h *Host) SnapshotStats() SnapshotStats {
	return SnapshotStats{
		Sent: h.snaps.sent.Load(), Received: h.snaps.received.Load(),
		Delivered: h.snaps.delivered.Load(), Installed: h.snaps.installed.Load(), Resumed: h.snaps.resumed.Load(),
	}
}

// SnapshotStatus describes one snapshot on its way.
type SnapshotStatus struct {
	Group   dfs.GroupID
	Peer    dfs.NodeID
	Sending bool   // to Peer; else it comes from there
	Waiting bool   // its stream broke, and it waits to go on
	Bytes   uint64 // so far
	Keys    uint64 // so far
	Resumed int    // how often it went on; of what is sent
}

// Snapshots describes every snapshot on its way, by group and peer.
func (h *Host) Snapshots() []SnapshotStatus {
	var out []SnapshotStatus
	for _, r := range h.sorted() {
		out = append(out, r.snapshots()...)
	}
	return out
}

func (r *replica) snapshots() []SnapshotStatus {
	var out []SnapshotStatus
	if st, ok := r.state.snapshot(r.id); ok {
		out = append(out, st)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.sending {
		if t.phase == following {
			continue
		}
		out = append(out, SnapshotStatus{
			Group: r.id, Peer: t.to, Sending: true, Waiting: t.phase == waiting,
			Bytes: t.bytes.Load(), Keys: t.keys.Load(), Resumed: t.resumed,
		})
	}
	slices.SortFunc(out, func(a, b SnapshotStatus) int { return cmp.Compare(a.Peer, b.Peer) })
	return out
}

// arrival is how far a stream that is being received is.
type arrival struct {
	from        dfs.NodeID
	bytes, keys atomic.Uint64
}

// arrive notes that a stream goes on from what is had.
func (s *state) arrive(have *held) *arrival {
	a := &arrival{from: have.from}
	a.bytes.Store(have.bytes)
	a.keys.Store(have.keys)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arriving = a
	return a
}

// snapshot describes what is arriving or held; ok is false when nothing is.
func (s *state) snapshot(g dfs.GroupID) (st SnapshotStatus, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Group = g
	switch {
	case s.arriving != nil:
		st.Peer, st.Bytes, st.Keys = s.arriving.from, s.arriving.bytes.Load(), s.arriving.keys.Load()
	case s.held != nil && !s.receiving:
		st.Peer, st.Bytes, st.Keys, st.Waiting = s.held.from, s.held.bytes, s.held.keys, true
	default:
		return st, false
	}
	return st, true
}
