package raftgroup

import (
	"encoding/binary"
	"hash"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

// rowStream is a sender of rows that do not compress, in whole chunks. It never
// ends its snapshot: after the last row its stream breaks.
type rowStream struct {
	rows  int
	next  func() // called before each chunk
	bytes int    // of data, so far

	rng    *rand.ChaCha8
	sum    hash.Hash
	sent   int
	since  int // the last point
	chunks int
}

const rowBytes = 64 << 10

func (s *rowStream) Send([]byte) error { return nil }
func (s *rowStream) Close() error      { return nil }

func (s *rowStream) Recv() ([]byte, error) {
	head := snapshotHead{term: 9, snapshotID: snapshotID{group: 3, start: 1, number: 1, at: sampleApplied()}}
	s.chunks++
	switch {
	case s.chunks == 1:
		s.sum, s.rng = head.newSum(), rand.NewChaCha8([32]byte{1})
		return append([]byte{chunkHead}, head.encode()...), nil
	case s.chunks == 2:
		p := point{sum: s.sum.Sum(nil)}
		return append([]byte{chunkFrom}, p.encode()...), nil
	case s.since >= 4<<20:
		s.since = 0
		p := point{keys: uint64(s.sent), sum: s.sum.Sum(nil)}
		return append([]byte{chunkPoint}, p.encode()...), nil
	case s.sent == s.rows:
		return nil, io.EOF
	}
	s.next()
	b := binary.BigEndian.AppendUint64([]byte{chunkData, 8}, uint64(s.sent))
	b = binary.AppendUvarint(b, rowBytes)
	n := len(b)
	b = append(b, make([]byte, rowBytes)...)
	_, _ = s.rng.Read(b[n:])
	_, _ = s.sum.Write(b[1:])
	s.sent, s.since, s.bytes = s.sent+1, s.since+len(b), s.bytes+len(b)-1
	return b, nil
}

// countedFS counts what is written to raft-snap.
type countedFS struct {
	vfs.FS
	written *atomic.Int64
}

func (f countedFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	if err != nil || !strings.Contains(name, "raft-snap") {
		return file, err
	}
	return countedFile{file, f.written}, nil
}

type countedFile struct {
	vfs.File
	written *atomic.Int64
}

func (f countedFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.written.Add(int64(n))
	return n, err
}

// TestReceivingIsBounded: of a snapshot that arrives, no more than 1 MiB is in
// memory and not on the disk, and it arrives at the rate that is set.
func TestReceivingIsBounded(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		written := new(atomic.Int64)
		h, err := Open(Options{
			FS: countedFS{vfs.NewMem(), written}, Dir: "data", Node: 1, SnapshotFileBytes: 4 << 20, SnapshotRate: 4 << 20,
			AcceptGroup:  func(dfs.GroupID) bool { return true },
			StateMachine: func(dfs.GroupID) StateMachine { return kvMachine{} },
			Send:         func(dfs.NodeID, Lane, []byte) bool { return true },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		s := &rowStream{rows: 32 << 20 / rowBytes}
		var most int
		s.next = func() { most = max(most, s.bytes-int(written.Load())) }
		start := time.Now()
		wantKind(t, h.ReceiveSnapshot(t.Context(), 2, s), dfs.Unavailable)
		if took := time.Since(start); took < 7*time.Second || took > 9*time.Second {
			t.Errorf("32 MiB took %v at 4 MiB/s", took)
		}
		if most > 1<<20 {
			t.Errorf("%d bytes had been received and were not written", most)
		}
		list := h.Snapshots()
		if len(list) != 1 || !list[0].Waiting || list[0].Peer != 2 || list[0].Group != 3 || list[0].Bytes < 28<<20 || list[0].Keys == 0 {
			t.Errorf("what waits is %+v", list)
		}
		if got := h.SnapshotStats(); got.Received != uint64(s.bytes) {
			t.Errorf("of %d bytes %+v was counted", s.bytes, got)
		}
	})
}

// slowFS makes new tables of the state store slowly while it is told to.
type slowFS struct {
	vfs.FS
	slow *atomic.Bool
}

func (f slowFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if f.slow.Load() && strings.Contains(name, "raft-state") {
		time.Sleep(20 * time.Second)
	}
	return f.FS.Create(name, c)
}

func (f slowFS) Unwrap() vfs.FS { return f.FS }

// TestInstallHoldsUpNoOtherGroup: while the old state is flushed out of the way
// of a snapshot, the other groups go on.
func TestInstallHoldsUpNoOtherGroup(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 1, 3, 0, 1)
		defer c.stop()
		slow := new(atomic.Bool)
		reached := make(chan time.Time, 2)
		var sleeper dfs.NodeID
		c.tune = func(o *Options) {
			if slow.Load() {
				return
			}
			o.FS = slowFS{o.FS, slow}
			id := o.Node
			o.Hooks.SnapshotStep = func(g dfs.GroupID, s SnapshotStep) {
				if id == sleeper && g == 0 && s == SnapFlush && slow.CompareAndSwap(false, true) {
					reached <- time.Now()
				}
				if id == sleeper && g == 0 && s == SnapRestart {
					slow.Store(false)
					reached <- time.Now()
				}
			}
		}
		c.boot()
		sleeper = c.leader(0)%3 + 1
		c.propose(0, "put old value")
		c.propose(1, "put old value")
		c.converge(c.all()...)
		c.isolate(sleeper, true)
		c.fill(0, 120, 1000)
		for _, id := range c.all() {
			if id != sleeper {
				c.waitCut(id, 0, 10)
			}
		}
		c.heal()
		began := <-reached
		// The other group's entries reach the sleeper meanwhile.
		c.propose(1, "put new value")
		want, _ := c.h(c.leader(1)).Status(1)
		for {
			if st, _ := c.h(sleeper).Status(1); st.Applied >= want.Applied {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		applied := time.Now()
		ended := <-reached
		if ended.Sub(began) < 20*time.Second || applied.Sub(began) > 10*time.Second {
			t.Errorf("the install took %v, and another group's entry %v", ended.Sub(began), applied.Sub(began))
		}
		c.converge(c.all()...)
	})
}
