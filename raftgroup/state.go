package raftgroup

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/raft/v3/raftpb"

	"dfsd/dfs"
)

// Every checkEvery entries a replica keeps its state hash, the last checkKept
// of them, for comparing it with the leader's.
const (
	checkEvery = 16
	checkKept  = 64
)

// state is one group's part of the state store.
type state struct {
	db     *pebble.DB
	g      dfs.GroupID
	prefix []byte

	// gate is held for reading by what uses the group's keys, and for writing
	// while a snapshot replaces them all.
	gate sync.RWMutex

	mu    sync.Mutex
	cur   applied // what is visible; the conf is replaced, never changed
	lost  bool    // the state is older than the log's beginning: it comes anew from a peer
	doubt bool    // it differs from the leader's: not served until it is known whose is right
	fault error   // why nothing is served any more

	receiving bool // a snapshot stream is arriving
	arriving  *arrival
	held      *held // what arrived of one that broke off; its stream's while receiving

	checks [checkKept]checkpoint
	newest checkpoint
	leader checkpoint // to be compared when this replica has applied as much

	incoming map[uint64]*install // received snapshots that the library has not seen yet, by token
}

// checkpoint is the state hash at an applied index; the zero value is none.
type checkpoint struct{ index, hash uint64 }

// readApplied reads the applied record; durable asks for what a crash now would
// leave. The zero value says that there is none.
func readApplied(db pebble.Reader, g dfs.GroupID, durable bool) (a applied, err error) {
	key := stateKey(g, stateApplied)
	it, err := db.NewIter(&pebble.IterOptions{
		LowerBound:                key,
		UpperBound:                prefixEnd(key),
		OnlyReadGuaranteedDurable: durable,
	})
	if err != nil {
		return applied{}, wrapStore("read raft state", g.String(), err)
	}
	defer closeInto(&err, it)
	if !it.First() {
		return applied{conf: &pb.ConfState{}}, wrapStore("read raft state", g.String(), it.Error())
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return applied{}, wrapStore("read raft state", g.String(), err)
	}
	return decodeApplied(v, g)
}

func (s *state) now() applied {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur
}

// missing reports whether the state must come from a peer before it serves.
func (s *state) missing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// members returns the configuration that is applied; read-only.
func (s *state) members() *pb.ConfState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur.conf
}

func (s *state) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault == nil {
		s.fault = err
	}
}

// failed returns why the replica serves and acknowledges nothing any more.
func (s *state) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

// advance makes a committed batch's record current.
func (s *state) advance(a applied, checks []checkpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cur = a
	for _, c := range checks {
		s.checks[c.index/checkEvery%checkKept] = c
		s.newest = c
	}
}

// checkpoint returns the newest checkpoint, zeros when there is none.
func (s *state) checkpoint() (index, hash uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest.index, s.newest.hash
}

// compare checks a leader's checkpoint against this replica's, now or, when it
// has not applied as much, with the first one that comes once it has.
func (s *state) compare(index, hash uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range []checkpoint{s.leader, {index, hash}} {
		own := s.checks[c.index/checkEvery%checkKept]
		if c.index > 0 && own.index == c.index && own.hash != c.hash {
			return dfs.Errorf(dfs.Corrupt, "compare state", "%v differs from the leader's state at entry %d", s.g, c.index)
		}
	}
	if s.leader.index <= s.cur.index {
		s.leader = checkpoint{index, hash}
	}
	return nil
}

// extend is the state hash after one more entry.
func (h StateHash) extend(e *pb.Entry, writes uint64, reply []byte) StateHash {
	d := sha256.New()
	var b [8]byte
	_, _ = d.Write(h[:])
	for _, v := range []uint64{e.GetIndex(), e.GetTerm(), uint64(e.GetType()), writes, uint64(len(e.GetData()))} {
		binary.BigEndian.PutUint64(b[:], v)
		_, _ = d.Write(b[:])
	}
	_, _ = d.Write(e.GetData())
	_, _ = d.Write(reply)
	var sum [sha256.Size]byte
	return StateHash(d.Sum(sum[:0])[:len(h)])
}

// view calls fn with the visible state.
func (r *replica) view(fn func(Reader) error) (err error) {
	if !r.h.enter() {
		return errClosing("read")
	}
	defer r.h.leave()
	s := &r.state
	s.gate.RLock()
	defer s.gate.RUnlock()
	if err := s.failed(); err != nil {
		return &dfs.Error{Kind: dfs.Unavailable, Op: "read", Object: r.id.String(), Err: err}
	}
	if s.unfit() {
		return dfs.Errorf(dfs.Unavailable, "read", "%v: the state is being fetched from another node, or in doubt", r.id)
	}
	snap := s.db.NewSnapshot()
	defer closeInto(&err, snap)
	return fn(NewReader(snap, s.prefix))
}
