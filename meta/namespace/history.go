package namespace

import (
	"bytes"
	"encoding/binary"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// trim drops history rows that ended before a version, oldest first, and
// releases the blocks that nothing names any more. The extents of a removed
// file go with its last row; where they are more than the limit, that row
// stays for the next trim. How far it came is kept: to look for the oldest row
// from the beginning would be to walk over the marks that the store keeps of
// all that was trimmed. What another group may still commit here ends rows as
// early as it was prepared, so no trim passes that.
func (c *change) trim(op *wire.TrimOp) error {
	if op.GetLimit() == 0 || op.Limit > MaxTrim {
		return refuse(dfs.Invalid, "trim of %d rows: want 1 to %d", op.GetLimit(), MaxTrim)
	}
	if c.st.recovered > 0 {
		return refuse(dfs.Unavailable, "group %v was recovered: deletes wait for dfsd group recover --acknowledge", c.st.group)
	}
	if err := c.goOnSweeping(); err != nil {
		return err
	}
	bound, err := settled(c.tx, c.st)
	if err != nil {
		return err
	}
	before, left := min(dfs.Version(op.Before), bound), int(op.Limit)
	if before <= c.st.trimmed {
		return nil
	}
	keys, values, err := gather(c.tx, historyKey(c.st.trimmed, nil), historyKey(before, nil), left)
	if err != nil {
		return err
	}
	done := 0
	for ; done < len(keys) && left > 0; done++ {
		dropped, err := c.trimRow(keys[done], values[done], left)
		if err != nil {
			return err
		}
		left -= dropped
	}
	switch {
	case left <= 0: // rows of the last one's version may be left, itself among them
		c.st.trimmed = endedAt(keys[done-1])
	case done > 0:
		c.st.trimmed = min(before, c.version)
	}
	return nil
}

// endedAt is the version in the key of a history row.
func endedAt(key []byte) dfs.Version { return dfs.Version(binary.BigEndian.Uint64(key[1:])) }

// trimRow drops one row and what goes with it, limit rows at the most, and
// returns how many that were.
func (c *change) trimRow(key, value []byte, limit int) (dropped int, err error) {
	if len(key) < 10 || len(value) < 1 {
		return 0, damaged(key, "malformed history row")
	}
	row, how, old := key[9:], value[0], value[1:]
	switch {
	case row[0] == tagExtent:
		e, err := decodeExtent(row, old)
		if err != nil {
			return 0, err
		}
		c.count(e.block, e.blockLength, -1)
	case row[0] == tagInode && how == endedRemoved:
		keys, values, err := gather(c.tx, append([]byte{tagExtent}, row[1:]...), after(append([]byte{tagExtent}, row[1:]...)), limit)
		if err != nil {
			return 0, err
		}
		for i, k := range keys {
			e, err := decodeExtent(k, values[i])
			if err != nil {
				return 0, err
			}
			c.count(e.block, e.blockLength, -1)
			if err := c.delete(k); err != nil {
				return 0, err
			}
		}
		if dropped = len(keys); dropped == limit {
			return dropped, nil // there may be more: the row is still needed
		}
	}
	return dropped + 1, c.delete(key)
}

// deleted removes blocks from the delete queue: every store that had to has
// deleted them.
func (c *change) deleted(op *wire.DeletedOp) error {
	ids := make([]dfs.BlockID, 0, len(op.GetBlocks()))
	for _, b := range op.GetBlocks() {
		id, err := dfs.ParseBlockID(b)
		if err != nil {
			return refuse(dfs.Invalid, "a block ID of %d bytes", len(b))
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		_, ok, err := c.tx.Get(queueKey(id))
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := c.delete(queueKey(id)); err != nil {
			return err
		}
	}
	return nil
}

// HistoryBound returns the version from which on no trim drops a row yet, because
// a transaction is under way; without one it is above every version.
func HistoryBound(r raftgroup.Reader) (dfs.Version, error) {
	st, err := readState(r)
	if st == nil {
		return 0, err
	}
	return settled(r, st)
}

// HistoryOldest returns the version at which the oldest history row ended, 0
// when there is none: a trim before a later version drops it.
func HistoryOldest(r raftgroup.Reader) (oldest dfs.Version, err error) {
	st, err := readState(r)
	if st == nil {
		return 0, err
	}
	err = scan(r, historyKey(st.trimmed, nil), []byte{tagHistory + 1}, func(key, _ []byte) (bool, error) {
		if len(key) < 10 {
			return false, damaged(key, "malformed history row")
		}
		oldest = endedAt(key)
		return false, nil
	})
	return oldest, err
}

// DeleteQueue returns up to limit blocks that stores have to delete, in the
// order of their IDs from the cursor on, and the cursor to go on with. An
// empty cursor begins, and ends.
func DeleteQueue(r raftgroup.Reader, cursor []byte, limit int) (blocks []dfs.BlockID, next []byte, err error) {
	lower := append([]byte{tagQueue}, cursor...)
	err = scan(r, lower, []byte{tagQueue + 1}, func(key, _ []byte) (bool, error) {
		id, err := dfs.ParseBlockID(key[1:])
		if err != nil {
			return false, damaged(key, "malformed key of the delete queue")
		}
		if len(blocks) == limit {
			next = bytes.Clone(key[1:])
			return false, nil
		}
		blocks = append(blocks, id)
		return true, nil
	})
	return blocks, next, err
}

// Intents returns up to limit intents of children past one, in their order.
func Intents(r raftgroup.Reader, past dfs.Ino, limit int) (out []Intent, err error) {
	err = scan(r, intentKey(past+1), []byte{tagIntent + 1}, func(key, value []byte) (bool, error) {
		in, err := decodeIntent(key, value)
		if err != nil {
			return false, err
		}
		out = append(out, *in)
		return len(out) < limit, nil
	})
	return out, err
}

// Answered reports whether the group remembers the answer to a command.
func Answered(r raftgroup.Reader, s dfs.SessionID, seq uint64) (bool, error) {
	_, ok, err := r.Get(replyKey(s, seq))
	return ok, err
}

// LastVersion returns the version of the group's last change, 0 before its
// first.
func LastVersion(r raftgroup.Reader) (dfs.Version, error) {
	st, err := readState(r)
	if st == nil {
		return 0, err
	}
	return st.version, err
}

// Inodes returns how many inodes the group owns.
func Inodes(r raftgroup.Reader) (uint64, error) {
	st, err := readState(r)
	if st == nil {
		return 0, err
	}
	return st.inodes, err
}

// Begun reports whether the group has been given its first state.
func Begun(r raftgroup.Reader) (bool, error) {
	st, err := readState(r)
	return st != nil, err
}

// Unfenced reports whether the group was recovered and takes no command yet: the control
// group has not said since which sessions have ended.
func Unfenced(r raftgroup.Reader) (bool, error) {
	st, err := readState(r)
	return st != nil && st.unfenced, err
}

// Fence returns up to which session the group fences those that are not live,
// and the index of the control group's state that it was told so from.
func Fence(r raftgroup.Reader) (highest dfs.SessionID, index uint64, err error) {
	f, err := readFence(r)
	return f.highest, f.index, err
}
