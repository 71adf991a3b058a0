package raftgroup

import (
	"encoding/binary"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
)

// groupLog is one group's part of the log store and a raft.Storage. Raft reads
// it from a worker; the log writer alone appends.
type groupLog struct {
	store *logStore
	g     dfs.GroupID
	limit int // bytes of cache

	// snapshot describes the applied state, for peers that need it whole.
	snapshot func() (*pb.SnapshotMetadata, error)
	ended    bool // nothing more is written; the log writer's alone
	// initial is what Raft starts from.
	initialHard *pb.HardState
	initialConf *pb.ConfState

	mu    sync.Mutex
	trunc truncated
	last  uint64 // Invariant: trunc.index <= last
	bytes uint64 // size of all entries through last, so a log's size is a difference
	cache []cached
	held  int // bytes in cache
}

// cached is an entry in memory. The cache is a run of indexes that ends at last.
type cached struct {
	e     *pb.Entry
	bytes uint64 // size of all entries through this one
}

func entrySize(e *pb.Entry) int { return entryHead + len(e.GetData()) }

// loadGroupLog opens a group's log; nil when there is none.
func loadGroupLog(s *logStore, g dfs.GroupID, limit int) (*groupLog, error) {
	v, err := s.get(groupKey(g, logTruncated))
	if v == nil || err != nil {
		return nil, err
	}
	l := &groupLog{store: s, g: g, limit: limit}
	if l.trunc, err = decodeTruncated(v, g); err != nil {
		return nil, err
	}
	l.last, l.bytes = l.trunc.index, l.trunc.bytes
	if err := l.findLast(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *groupLog) findLast() (err error) {
	it, err := l.store.db.NewIter(&pebble.IterOptions{
		LowerBound: entryKey(l.g, 0),
		UpperBound: groupKey(l.g, logEntry+1),
	})
	if err != nil {
		return wrapStore("read raft log", l.g.String(), err)
	}
	defer closeInto(&err, it)
	if !it.Last() {
		return it.Error()
	}
	k := it.Key()
	index := binary.BigEndian.Uint64(k[len(k)-8:])
	if index <= l.trunc.index {
		return dfs.Errorf(dfs.Corrupt, "read raft log", "entry %d of %v is below its beginning %d", index, l.g, l.trunc.index)
	}
	_, l.bytes, err = decodeEntry(l.g, index, it.Value())
	l.last = index
	return err
}

func (l *groupLog) hardState() (*pb.HardState, error) {
	v, err := l.store.get(groupKey(l.g, logHardState))
	if v == nil || err != nil {
		return hardState(0, 0, 0), err
	}
	return decodeHardState(v, l.g)
}

// size is the bytes of the entries that are kept.
func (l *groupLog) size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes - l.trunc.bytes
}

// bounds returns the first and the last index.
func (l *groupLog) bounds() (first, last uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trunc.index + 1, l.last
}

func (l *groupLog) truncation() truncated {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trunc
}

// InitialState implements raft.Storage.
func (l *groupLog) InitialState() (*pb.HardState, *pb.ConfState, error) {
	return l.initialHard, l.initialConf, nil
}

// FirstIndex implements raft.Storage.
func (l *groupLog) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trunc.index + 1, nil
}

// LastIndex implements raft.Storage.
func (l *groupLog) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, nil
}

// Term implements raft.Storage.
func (l *groupLog) Term(i uint64) (uint64, error) {
	l.mu.Lock()
	switch {
	case i == l.trunc.index:
		defer l.mu.Unlock()
		return l.trunc.term, nil
	case i < l.trunc.index:
		l.mu.Unlock()
		return 0, raft.ErrCompacted
	case i > l.last:
		l.mu.Unlock()
		return 0, raft.ErrUnavailable
	}
	if c := l.cachedLocked(i); c != nil {
		defer l.mu.Unlock()
		return c.e.GetTerm(), nil
	}
	l.mu.Unlock()
	e, _, err := l.read(i)
	return e.GetTerm(), err
}

// cachedLocked returns entry i when it is in memory.
func (l *groupLog) cachedLocked(i uint64) *cached {
	if len(l.cache) == 0 || i < l.cache[0].e.GetIndex() || i > l.last {
		return nil
	}
	return &l.cache[i-l.cache[0].e.GetIndex()]
}

// read reads one entry from the store. An entry that was cut meanwhile is
// raft.ErrCompacted.
func (l *groupLog) read(i uint64) (*pb.Entry, uint64, error) {
	v, err := l.store.get(entryKey(l.g, i))
	if err != nil {
		return nil, 0, err
	}
	if v == nil {
		return nil, 0, l.missing(i)
	}
	e, n, err := decodeEntry(l.g, i, v)
	return e, n, l.found(err)
}

// found tells the host of damage that a read met: the library has no answer to
// it, and takes it for a broken invariant of its own.
func (l *groupLog) found(err error) error {
	if dfs.KindOf(err) == dfs.Corrupt {
		l.store.tell(err)
	}
	return err
}

// missing explains why entry i is not in the store: it was cut or replaced
// meanwhile, or it is lost.
func (l *groupLog) missing(i uint64) error {
	switch first, last := l.bounds(); {
	case i < first:
		return raft.ErrCompacted
	case i > last:
		return raft.ErrUnavailable
	}
	return dfs.Errorf(dfs.Corrupt, "read raft log", "entry %d of %v is missing", i, l.g)
}

// Entries implements raft.Storage.
func (l *groupLog) Entries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	l.mu.Lock()
	switch {
	case lo <= l.trunc.index:
		l.mu.Unlock()
		return nil, raft.ErrCompacted
	case hi > l.last+1:
		l.mu.Unlock()
		return nil, raft.ErrUnavailable
	}
	if c := l.cachedLocked(lo); c != nil {
		defer l.mu.Unlock()
		first := l.cache[0].e.GetIndex()
		return limitEntries(l.cache[lo-first:hi-first], maxSize), nil
	}
	l.mu.Unlock()
	return l.readRange(lo, hi, maxSize)
}

func limitEntries(cs []cached, maxSize uint64) []*pb.Entry {
	var size uint64
	out := make([]*pb.Entry, 0, len(cs))
	for _, c := range cs {
		size += uint64(proto.Size(c.e))
		if len(out) > 0 && size > maxSize {
			break
		}
		out = append(out, c.e)
	}
	return out
}

func (l *groupLog) readRange(lo, hi, maxSize uint64) (out []*pb.Entry, err error) {
	it, err := l.store.db.NewIter(&pebble.IterOptions{LowerBound: entryKey(l.g, lo), UpperBound: entryKey(l.g, hi)})
	if err != nil {
		return nil, wrapStore("read raft log", l.g.String(), err)
	}
	defer closeInto(&err, it)
	var size uint64
	for ok := it.First(); ok; ok = it.Next() {
		k := it.Key()
		want := lo + uint64(len(out))
		if index := binary.BigEndian.Uint64(k[len(k)-8:]); index != want {
			return nil, l.missing(want)
		}
		e, _, err := decodeEntry(l.g, want, it.Value())
		if err != nil {
			return nil, l.found(err)
		}
		size += uint64(proto.Size(e))
		if len(out) > 0 && size > maxSize {
			return out, nil
		}
		out = append(out, e)
	}
	if err := it.Error(); err != nil {
		return nil, wrapStore("read raft log", l.g.String(), err)
	}
	if len(out) == 0 || out[len(out)-1].GetIndex() != hi-1 {
		return nil, l.missing(lo + uint64(len(out)))
	}
	return out, nil
}

// Snapshot implements raft.Storage. It carries the metadata only; the bytes are
// streamed by the host.
func (l *groupLog) Snapshot() (*pb.Snapshot, error) {
	m, err := l.snapshot()
	if err != nil {
		return nil, err
	}
	return &pb.Snapshot{Metadata: m}, nil
}

// bytesThrough is the size of all entries through index i.
func (l *groupLog) bytesThrough(i uint64) (uint64, error) {
	l.mu.Lock()
	if i == l.trunc.index {
		defer l.mu.Unlock()
		return l.trunc.bytes, nil
	}
	if i == l.last {
		defer l.mu.Unlock()
		return l.bytes, nil
	}
	if c := l.cachedLocked(i); c != nil {
		defer l.mu.Unlock()
		return c.bytes, nil
	}
	l.mu.Unlock()
	_, n, err := l.read(i)
	return n, err
}

// stage adds entries to a batch. Retract must come before the batch is committed,
// and publish, which makes them visible, after it, with nothing staged in between.
func (l *groupLog) stage(b *pebble.Batch, entries []*pb.Entry) ([]cached, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	first, last := entries[0].GetIndex(), entries[len(entries)-1].GetIndex()
	l.mu.Lock()
	trunc, oldLast := l.trunc.index, l.last
	l.mu.Unlock()
	if first <= trunc || first > oldLast+1 {
		return nil, dfs.Errorf(dfs.Internal, "append to raft log", "%v: entries from %d to a log of %d to %d", l.g, first, trunc+1, oldLast)
	}
	bytes, err := l.bytesThrough(first - 1)
	if err != nil {
		return nil, err
	}
	out := make([]cached, len(entries))
	for i, e := range entries {
		bytes += uint64(entrySize(e))
		out[i] = cached{e, bytes}
		if err := b.Set(entryKey(l.g, e.GetIndex()), encodeEntry(l.g, e, bytes), nil); err != nil {
			return nil, err
		}
	}
	if oldLast > last {
		return out, b.DeleteRange(entryKey(l.g, last+1), entryKey(l.g, oldLast+1), nil)
	}
	return out, nil
}

// retract forgets the entries that staged ones take the place of, before the
// batch is committed. Raft has the new ones in memory until they are synced.
func (l *groupLog) retract(entries []cached) {
	if len(entries) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	first := entries[0].e.GetIndex()
	l.last, l.bytes = first-1, entries[0].bytes-uint64(entrySize(entries[0].e))
	if len(l.cache) == 0 {
		return
	}
	keep := 0
	if c0 := l.cache[0].e.GetIndex(); c0 < first {
		keep = int(first - c0)
	}
	for _, c := range l.cache[keep:] {
		l.held -= entrySize(c.e)
	}
	clear(l.cache[keep:])
	l.cache = l.cache[:keep]
}

// publish makes staged entries visible.
func (l *groupLog) publish(entries []cached) {
	if len(entries) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cache = append(l.cache, entries...)
	for _, c := range entries {
		l.held += entrySize(c.e)
	}
	end := entries[len(entries)-1]
	l.last, l.bytes = end.e.GetIndex(), end.bytes
	drop := 0
	for l.held > l.limit && drop < len(l.cache)-1 {
		l.held -= entrySize(l.cache[drop].e)
		drop++
	}
	l.dropLocked(drop)
}

// dropLocked forgets the first n entries of the cache, whose bytes are no
// longer counted.
func (l *groupLog) dropLocked(n int) {
	rest := copy(l.cache, l.cache[n:])
	clear(l.cache[rest:])
	l.cache = l.cache[:rest]
}

// cut forgets the entries up to and including t.index, before the batch that
// takes them away is committed.
func (l *groupLog) cut(t truncated) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trunc = t
	drop := 0
	for drop < len(l.cache) && l.cache[drop].e.GetIndex() <= t.index {
		l.held -= entrySize(l.cache[drop].e)
		drop++
	}
	l.dropLocked(drop)
}

// end is a cut that leaves nothing, of a log that is about to go.
func (l *groupLog) end() truncated {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.trunc
	t.index, t.bytes = l.last, l.bytes
	return t
}

// reset makes the log begin, empty, after t.index.
func (l *groupLog) reset(t truncated) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trunc, l.last, l.bytes = t, t.index, t.bytes
	l.cache, l.held = nil, 0
}
