package raftgroup

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"dfsd/dfs"
)

// logStore is the Pebble database of every group's log, with its mark file.
type logStore struct {
	dir  string
	db   *pebble.DB
	mark *mark

	starts uint64 // how often this directory was opened, this time included

	// noSync leaves out every sync of commit: Hooks.AckBeforeSync.
	noSync bool

	tell func(error) // of damage that a read finds

	syncs  atomic.Uint64         // since the start
	bytes  atomic.Uint64         // of the batches synced, since the start
	failed atomic.Pointer[error] // the first failure; nothing is committed after it

	mu     sync.Mutex // serialises commits
	number uint64     // of the last synced batch
}

// openLogStore opens or makes the log store of a directory. A store that is
// below its mark, another node's, or half gone is refused.
func openLogStore(o *Options, fail func(error)) (*logStore, error) {
	dir := o.FS.PathJoin(o.Dir, "raft-log")
	path := o.FS.PathJoin(o.Dir, "raft-mark")
	marked, err := exists(o.FS, path)
	if err != nil {
		return nil, wrapStore("open raft store", path, err)
	}
	there, err := exists(o.FS, dir)
	if err != nil {
		return nil, wrapStore("open raft store", dir, err)
	}
	if marked && !there {
		return nil, dfs.Errorf(dfs.Corrupt, "open raft store", "%s is missing though %s says that it was written: this node's log is lost and must not be made anew", dir, path)
	}
	s := &logStore{dir: dir, noSync: o.Hooks.AckBeforeSync}
	tell := fail
	s.tell = tell
	fail = func(err error) {
		s.stop(err)
		tell(err)
	}
	kind := newLog
	if marked {
		kind = knownLog
	}
	if s.db, err = openStore(o, dir, kind, fail); err != nil {
		return nil, err
	}
	if err := s.start(o, marked, path, fail); err != nil {
		return nil, firstError(err, s.close())
	}
	return s, nil
}

// start checks the store against its mark and counts the start.
func (s *logStore) start(o *Options, marked bool, path string, fail func(error)) error {
	batch, err := s.getUint(hostBatch)
	if err != nil {
		return err
	}
	if !marked {
		if batch > 0 {
			return dfs.Errorf(dfs.Corrupt, "open raft store", "%s is missing, so nothing says whether the log is whole", path)
		}
		if err := s.create(o, path, fail); err != nil {
			return err
		}
	}
	if s.mark, err = openMark(o.FS, path); err != nil {
		return wrapStore("open raft store", path, err)
	}
	if batch < s.mark.noted {
		return dfs.Errorf(dfs.Corrupt, "open raft store", "the log ends at batch %d, but batch %d was synced: acknowledged entries are lost, and this node must not vote with what is left", batch, s.mark.noted)
	}
	s.number = batch
	if err := s.identify(o.Node); err != nil {
		return err
	}
	if s.starts, err = s.getUint(hostStarts); err != nil {
		return err
	}
	s.starts++
	b := s.db.NewBatch()
	defer b.Close()
	if err := putUint(b, hostStarts, s.starts); err != nil {
		return err
	}
	return s.commit(b, true)
}

// create makes the mark file of a new store and opens the store once more:
// Pebble does not find damage in the first write-ahead log of a new store.
func (s *logStore) create(o *Options, path string, fail func(error)) error {
	err := s.db.Close()
	s.db = nil
	if err != nil {
		return wrapStore("make raft store", path, err)
	}
	if err := createMark(o.FS, o.Dir, path); err != nil {
		return wrapStore("make raft store", path, err)
	}
	s.db, err = openStore(o, o.FS.PathJoin(o.Dir, "raft-log"), knownLog, fail)
	return err
}

// identify checks that the store is this node's, or makes it so.
func (s *logStore) identify(node dfs.NodeID) error {
	have, err := s.getUint(hostIdentity)
	switch {
	case err != nil:
		return err
	case have == uint64(node):
		return nil
	case have != 0:
		return dfs.Errorf(dfs.Invalid, "open raft store", "it belongs to node %v, this is %v", dfs.NodeID(have), node)
	}
	b := s.db.NewBatch()
	defer b.Close()
	if err := putUint(b, hostIdentity, uint64(node)); err != nil {
		return err
	}
	return s.commit(b, true)
}

// commit writes a batch. A synced one gets the next number, and the mark
// follows when it is durable. After a failure nothing more is written, and
// nothing that was counts as written.
func (s *logStore) commit(b *pebble.Batch, sync bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failure(); err != nil {
		return err
	}
	if err := s.commitLocked(b, sync && !s.noSync); err != nil {
		s.stop(wrapStore("write raft log", s.dir, err))
	}
	return s.failure()
}

func (s *logStore) commitLocked(b *pebble.Batch, sync bool) error {
	if !sync {
		return b.Commit(pebble.NoSync)
	}
	if err := putUint(b, hostBatch, s.number+1); err != nil {
		return err
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return err
	}
	if err := s.failure(); err != nil {
		return err // Pebble reports a failed sync to its logger only
	}
	s.syncs.Add(1)
	s.bytes.Add(uint64(b.Len()))
	s.number++
	return s.mark.note(s.number)
}

// stop refuses every later commit, and the one under way.
func (s *logStore) stop(err error) { s.failed.CompareAndSwap(nil, &err) }

func (s *logStore) failure() error {
	if p := s.failed.Load(); p != nil {
		return *p
	}
	return nil
}

func (s *logStore) close() error {
	var err error
	if s.mark != nil {
		err = s.mark.close()
	}
	if s.db != nil {
		err = firstError(err, s.db.Close())
	}
	return wrapStore("close raft log", "", err)
}

// get returns a copy of a value, nil when there is none.
func (s *logStore) get(key []byte) ([]byte, error) {
	v, c, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, wrapStore("read raft log", "", err)
	}
	out := append(make([]byte, 0, len(v)), v...)
	return out, c.Close()
}

func (s *logStore) getUint(kind byte) (uint64, error) {
	v, err := s.get([]byte{keyHost, kind})
	if v == nil || err != nil {
		return 0, err
	}
	if len(v) != 9 || v[0] != recordVersion {
		return 0, dfs.Errorf(dfs.Corrupt, "read raft log", "host record %d is damaged or of an unknown version", kind)
	}
	return binary.BigEndian.Uint64(v[1:]), nil
}

// getNumber reads a record of a group that holds one number from 1 up, 0 when
// there is none.
func (s *logStore) getNumber(g dfs.GroupID, kind byte, what string) (uint64, error) {
	v, err := s.get(groupKey(g, kind))
	if v == nil || err != nil {
		return 0, err
	}
	d := newDecoder(v)
	n := d.uint()
	if !d.end() || n == 0 {
		return 0, badRecord(what, g)
	}
	return n, nil
}

func putUint(b *pebble.Batch, kind byte, n uint64) error {
	v := binary.BigEndian.AppendUint64([]byte{recordVersion}, n)
	return b.Set([]byte{keyHost, kind}, v, nil)
}

// groups lists the groups that have a log, ascending.
func (s *logStore) groups() (out []dfs.GroupID, err error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyGroup}, UpperBound: []byte{keyGroup + 1}})
	if err != nil {
		return nil, wrapStore("read raft log", "", err)
	}
	defer closeInto(&err, it)
	for ok := it.First(); ok; {
		k := it.Key()
		g := dfs.GroupID(binary.BigEndian.Uint16(k[1:]))
		out = append(out, g)
		next := prefixEnd([]byte{keyGroup, k[1], k[2]})
		ok = it.SeekGE(next)
	}
	return out, it.Error()
}
