package namespace

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// What a transaction is about to change in a group is locked from its prepare to
// the decision, by the key of the row:
//
//	exclusive   an entry that is made, removed or kept; an inode that gets another
//	            link count or parent, or is made or removed; the tree lock
//	shared      a directory in which an entry is locked: others may make and
//	            remove entries of it, and it stays
//
// Nothing ever waits here: whoever meets a lock is refused, with the name of the
// transaction. Locks are rows, so they are there after any crash, and end with
// their transaction's share alone.

// holder names a transaction within the locks of a group.
type holder struct {
	group dfs.GroupID // its coordinator
	begun dfs.Version
}

func holderOf(id *wire.TxnID) holder {
	return holder{dfs.GroupID(id.GetGroup()), dfs.Version(id.GetBegun())}
}

func (h holder) compare(other holder) int {
	return cmp.Or(cmp.Compare(h.group, other.group), cmp.Compare(h.begun, other.begun))
}

const holderLen = 10

// Locks of a row.
const (
	lockShared    = 1
	lockExclusive = 2
)

// MaxHolders is how many transactions may share a lock: it bounds the lock's row,
// which each of them writes twice.
const MaxHolders = 256

// lockRow says who holds a row. Invariant: holders are in order, at least one,
// and one where the lock is exclusive.
type lockRow struct {
	exclusive bool
	holders   []holder
}

func (l *lockRow) append(b []byte) []byte {
	mode := byte(lockShared)
	if l.exclusive {
		mode = lockExclusive
	}
	b = append(b, rowFormat, mode)
	for _, h := range l.holders {
		b = binary.BigEndian.AppendUint16(b, uint16(h.group))
		b = binary.BigEndian.AppendUint64(b, uint64(h.begun))
	}
	return b
}

func decodeLock(key, value []byte) (*lockRow, error) {
	d := decode(value)
	mode := d.u8()
	l := &lockRow{exclusive: mode == lockExclusive}
	for !d.bad && len(d.b) > 0 {
		p := d.take(holderLen)
		if d.bad {
			break
		}
		h := holder{dfs.GroupID(binary.BigEndian.Uint16(p)), dfs.Version(binary.BigEndian.Uint64(p[2:]))}
		if n := len(l.holders); n > 0 && l.holders[n-1].compare(h) >= 0 {
			d.bad = true
		}
		l.holders = append(l.holders, h)
	}
	if mode != lockShared && mode != lockExclusive || len(l.holders) == 0 || l.exclusive && len(l.holders) > 1 {
		d.bad = true
	}
	return l, d.done(key)
}

// readLock returns who holds a row, nil when nobody does.
func readLock(r raftgroup.Reader, row []byte) (*lockRow, error) {
	key := lockKey(row)
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return nil, err
	}
	return decodeLock(key, v)
}

// free refuses a row that a transaction holds: any other one than that of this
// entry, or, without exclusive, only one that holds the row alone.
func (c *change) free(row []byte, exclusive bool) error {
	if c.st.locks == 0 {
		return nil
	}
	l, err := readLock(c.tx, row)
	if err != nil || l == nil || !exclusive && !l.exclusive {
		return err
	}
	for _, h := range l.holders {
		if h != c.txn {
			return lockedBy(c.tx, h)
		}
	}
	return nil
}

// lockedBy is the refusal of what a transaction holds.
func lockedBy(r raftgroup.Reader, h holder) error {
	in, err := readPart(r, h)
	switch {
	case err != nil:
		return err
	case in == nil:
		return broken("a lock of transaction %v of group %v, which has no share here", h.begun, h.group)
	}
	return &refusal{
		kind: dfs.Frozen, locked: in.Txn,
		text: fmt.Sprintf("an operation of session %d over several groups is under way, which group %v decides", in.Txn.GetSession(), h.group),
	}
}

// held is a row that a share locks.
type held struct {
	row       []byte
	exclusive bool
}

// locksOf lists what a share locks, each row once.
func locksOf(share *wire.TxnShare) []held {
	var out []held
	hold := func(row []byte, exclusive bool) {
		for i := range out {
			if bytes.Equal(out[i].row, row) {
				out[i].exclusive = out[i].exclusive || exclusive
				return
			}
		}
		out = append(out, held{row, exclusive})
	}
	entry := func(parent uint64, name []byte) {
		hold(dentryKey(dfs.Ino(parent), name), true)
		hold(inodeKey(dfs.Ino(parent)), false)
	}
	for _, s := range share.GetSteps() {
		switch s := s.GetStep().(type) {
		case *wire.TxnStep_Leave:
			entry(s.Leave.GetParent(), s.Leave.GetName())
		case *wire.TxnStep_Enter:
			entry(s.Enter.GetParent(), s.Enter.GetName())
		case *wire.TxnStep_Keep:
			entry(s.Keep.GetParent(), s.Keep.GetName())
		case *wire.TxnStep_Links:
			hold(inodeKey(dfs.Ino(s.Links.GetIno())), true)
		case *wire.TxnStep_Moved:
			hold(inodeKey(dfs.Ino(s.Moved.GetIno())), true)
		case *wire.TxnStep_RemoveDir:
			hold(inodeKey(dfs.Ino(s.RemoveDir.GetIno())), true)
		case *wire.TxnStep_MakeDir: // an entry elsewhere may name it before it is made here
			if ino := s.MakeDir.GetIno(); ino != 0 {
				hold(inodeKey(dfs.Ino(ino)), true)
			}
		case *wire.TxnStep_Create:
			op := s.Create.GetOp()
			entry(op.GetParent(), op.GetName())
			if op.GetIno() != 0 { // nobody else makes something of the number
				hold(inodeKey(dfs.Ino(op.Ino)), true)
			}
		case *wire.TxnStep_Tree:
			hold(treeKey(), true)
		}
	}
	return out
}

// room refuses a lock that too many share.
func (c *change) room(h held) error {
	l, err := readLock(c.tx, h.row)
	if err != nil || l == nil || len(l.holders) < MaxHolders {
		return err
	}
	return refuse(dfs.Busy, "%d operations over several groups are under way in one directory", MaxHolders)
}

// lock has the transaction of this entry hold a row. REQUIRES: it is free, and
// there is room.
func (c *change) lock(h held) error {
	row, exclusive := h.row, h.exclusive
	l, err := readLock(c.tx, row)
	if err != nil {
		return err
	}
	if l == nil {
		l = &lockRow{}
		c.st.locks++
	}
	if i, ok := slices.BinarySearchFunc(l.holders, c.txn, holder.compare); !ok {
		l.holders = slices.Insert(l.holders, i, c.txn)
	}
	l.exclusive = l.exclusive || exclusive
	if l.exclusive && len(l.holders) > 1 {
		return broken("row %x is held by %v and wanted alone", row, l.holders)
	}
	return c.set(lockKey(row), l.append(nil))
}

// unlock ends what the transaction of this entry holds of a row.
func (c *change) unlock(row []byte) error {
	l, err := readLock(c.tx, row)
	if err != nil {
		return err
	}
	i, ok := -1, false
	if l != nil {
		i, ok = slices.BinarySearchFunc(l.holders, c.txn, holder.compare)
	}
	if !ok {
		return broken("row %x is not held by the transaction that ends", row)
	}
	if l.holders = slices.Delete(l.holders, i, i+1); len(l.holders) > 0 {
		return c.set(lockKey(row), l.append(nil))
	}
	c.st.locks--
	return c.delete(lockKey(row))
}

// pending reports whether another group decides about a row, and who: until that
// is known the row does not say what is. Exclusive asks for those that hold it alone.
//
// The coordinator's own rows change in the very entry that decides, so readers
// of them are not concerned.
func (v view) pending(row []byte, exclusive bool) error {
	if v.locks == 0 {
		return nil
	}
	l, err := readLock(v.r, row)
	if err != nil || l == nil || exclusive && !l.exclusive {
		return err
	}
	for _, h := range l.holders {
		if h.group != v.g && h != v.own {
			return lockedBy(v.r, h)
		}
	}
	return nil
}

// firstPending returns the first row in [lower, upper) about which another group
// decides, nil for none, and the refusal of what needs it.
func (v view) firstPending(lower, upper []byte) (row []byte, locked error, err error) {
	if v.locks == 0 {
		return nil, nil, nil
	}
	err = scan(v.r, lockKey(lower), lockKey(upper), func(key, value []byte) (bool, error) {
		l, err := decodeLock(key, value)
		if err != nil {
			return false, err
		}
		for _, h := range l.holders {
			if h.group != v.g {
				row = bytes.Clone(key[1:])
				locked = lockedBy(v.r, h)
				return false, nil
			}
		}
		return true, nil
	})
	return row, locked, err
}

func isLocked(err error) bool {
	r, ok := err.(*refusal)
	return ok && r.locked != nil
}

// LockedError says that what a query asks for hangs on a decision of another
// group. Its kind is dfs.Frozen.
type LockedError struct {
	Txn  *wire.TxnID
	text string
}

func (e *LockedError) Error() string { return e.text }

// Unwrap returns the kind.
func (e *LockedError) Unwrap() error { return dfs.Frozen }
