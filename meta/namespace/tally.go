package namespace

import (
	"bytes"
	"cmp"
	"math"
	"slices"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// MaxTally is how many rows one entry looks at that moves sums up: it bounds its work.
const MaxTally = 1024

// tally moves up what inodes count for and their homes, in this group, do not know:
// both the home's account and what the inode has told change in this one entry, so
// that what is told and what is not are always all there is. Deep ones come first,
// so that a directory moves once with all that comes from below. What the limit
// leaves, the next entry finds in the queue.
func (c *change) tally(op *wire.TallyOp) error {
	switch {
	case !c.accounts():
		return refuse(dfs.Unsupported, "group %v is of feature level %d, and keeps no accounts", c.st.group, c.st.level)
	case op.GetLimit() == 0 || op.Limit > MaxTally:
		return refuse(dfs.Invalid, "a tally of %d rows: want 1 to %d", op.GetLimit(), MaxTally)
	}
	left := int(op.Limit)
	if c.st.counting {
		looked, err := c.countOld(left)
		if err != nil {
			return err
		}
		left -= looked
	}
	keys, values, err := gather(c.tx, []byte{tagUntold}, []byte{tagUntold + 1}, left)
	if err != nil {
		return err
	}
	climb := &climb{c: c, seen: map[dfs.Ino]bool{}}
	for i, key := range keys {
		if err := climb.add(keyIno(key), values[i]); err != nil {
			return err
		}
	}
	for ; left > 0 && len(climb.todo) > 0; left-- {
		if err := climb.step(); err != nil {
			return err
		}
	}
	return nil
}

// climb moves sums up, from the deepest.
type climb struct {
	c    *change
	todo []rung // the deepest last
	seen map[dfs.Ino]bool
}

// rung is an inode that counts for something else than its home knows.
type rung struct {
	n     *inode
	level uint32 // of a directory, as it was made: it orders the work and nothing depends on it
	told  sums   // of a file
}

func (b *climb) add(ino dfs.Ino, value []byte) error {
	if b.seen[ino] {
		return nil
	}
	n, err := readInode(b.c.tx, ino)
	switch {
	case err != nil:
		return err
	case n == nil:
		return broken("inode %v waits to tell what it counts for, and does not exist", ino)
	}
	r := rung{n: n, level: n.level}
	if !n.isDir() {
		row, err := decodeUntold(untoldKey(ino), value)
		if err != nil {
			return err
		}
		r.level, r.told = math.MaxUint32, sums{bytes: row.told, files: 1}
	}
	b.seen[ino] = true
	i, _ := slices.BinarySearchFunc(b.todo, r, func(a, b rung) int {
		return cmp.Or(cmp.Compare(a.level, b.level), -cmp.Compare(a.n.ino, b.n.ino))
	})
	b.todo = slices.Insert(b.todo, i, r)
	return nil
}

func (b *climb) step() error {
	r := b.todo[len(b.todo)-1]
	b.todo = b.todo[:len(b.todo)-1]
	delete(b.seen, r.n.ino)
	if !r.n.isDir() {
		b.c.st.untold--
		if err := b.c.delete(untoldKey(r.n.ino)); err != nil {
			return err
		}
		return b.tell(r.n.home, r.n.counts(), r.told)
	}
	a, err := b.c.account(r.n.ino)
	if err != nil {
		return err
	}
	told := a.taken()
	a.queued, a.told, a.dirty = false, sums{}, true
	return b.tell(r.n.parent, a.counts(), told)
}

// tell has a home take in what is told, and climb on if it is not the end of the way.
func (b *climb) tell(home dfs.Ino, now, told sums) error {
	if err := b.c.tell(home, now, told); err != nil {
		return err
	}
	a, err := b.c.account(home)
	if err != nil || !a.queued || a.elsewhere {
		return err
	}
	return b.add(home, nil)
}

// beginCounting has a group count what it has: it keeps accounts from now on.
func (c *change) beginCounting() error {
	c.st.counting = true
	return c.set([]byte{tagCount}, countRow{raised: c.version, next: []byte{tagDentry}}.append(nil))
}

// countOld goes on counting what was there before accounts, and returns how many rows
// it has looked at: first entries, which give files their homes, then inodes, of which
// the directories get accounts that have told nothing.
func (c *change) countOld(limit int) (looked int, err error) {
	row, err := readCount(c.tx)
	if err != nil {
		return 0, err
	}
	end := []byte{row.next[0] + 1}
	keys, values, err := gather(c.tx, row.next, end, limit)
	if err != nil {
		return 0, err
	}
	for i, key := range keys {
		if key[0] == tagDentry {
			err = c.countEntry(key, values[i], row.raised)
		} else {
			err = c.countDir(keyIno(key), values[i])
		}
		if err != nil {
			return 0, err
		}
	}
	switch {
	case len(keys) == limit:
		row.next = append(bytes.Clone(keys[limit-1]), 0)
	case row.next[0] == tagDentry:
		row.next = []byte{tagInode}
	default:
		c.st.counting = false
		return len(keys), c.delete([]byte{tagCount})
	}
	return len(keys), c.set([]byte{tagCount}, row.append(nil))
}

// countEntry counts a name that is older than the accounts: of a file, or of a directory
// of another group.
func (c *change) countEntry(key, value []byte, raised dfs.Version) error {
	e, err := decodeDentry(key, value)
	switch {
	case err != nil || e.version > raised:
		return err
	case e.typ != wire.FileType_DIR:
	case e.ino.Group() != c.st.group:
		return c.meet(e.ino, keyIno(key))
	default:
		return nil
	}
	c.name(e.ino, keyIno(key), 1)
	return nil
}

// countDir gives a directory an account, unless it has one.
func (c *change) countDir(ino dfs.Ino, value []byte) error {
	n, err := decodeInode(ino, value)
	if err != nil || !n.isDir() || ino == dfs.RootIno {
		return err
	}
	a, err := c.account(ino)
	if err == nil && a.stored == nil {
		a.dirty, a.changed = true, c.counted()
	}
	return err
}
