package namespace

import (
	"bytes"
	"cmp"
	"slices"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// change is the evaluation of one entry. An operation checks everything before
// its first change: what it has changed is written, whatever comes after.
type change struct {
	opts    Options // planted bugs
	tx      raftgroup.Tx
	st      *state
	version dfs.Version // of this entry. Invariant: above st.version until finish, but for a share that another group's commit stamped
	now     int64       // the version's milliseconds, in nanoseconds
	latest  dfs.Version // that an inode has got
	session dfs.SessionID
	lowest  *uint64 // the session's low-water mark; nil: not read yet
	cred    *wire.Cred

	// Of a transaction's entry: who does not meet its own locks, and the number of
	// the directory that another group makes for it.
	txn  holder
	made dfs.Ino

	named  []naming   // names that inodes have got and lost, each inode and directory once
	ledger []*account // of directories, as loaded or made, each once

	wrote  bool       // rows other than those of inodes and blocks
	inodes []*inode   // as loaded or made, each once
	blocks []blockRef // changes of block rows
	cuts   int        // extents that were replaced or cut off

	known map[dfs.BlockID]blockRow // as checked, before the changes; zero: no row
}

// blockRef is a change of how often a block is named.
type blockRef struct {
	id     dfs.BlockID
	length uint32 // logical bytes of the block
	delta  int
}

func newChange(tx raftgroup.Tx, st *state, proposed dfs.Version) *change {
	c := &change{tx: tx, st: st, known: map[dfs.BlockID]blockRow{}}
	c.stamp(max(proposed, st.version+1))
	return c
}

// stamp gives the entry its version.
func (c *change) stamp(v dfs.Version) { c.version, c.now = v, timeOf(v) }

// timeOf is what mtime and ctime show of a version, nanoseconds.
func timeOf(v dfs.Version) int64 { return int64(v>>16) * 1e6 }

func (c *change) set(key, value []byte) error {
	c.wrote = true
	return c.tx.Set(key, value)
}

func (c *change) delete(key []byte) error {
	c.wrote = true
	return c.tx.Delete(key)
}

// end puts the value that a row had until now into history.
func (c *change) end(key, value []byte, how byte) error { return c.endAt(c.version, key, value, how) }

func (c *change) endAt(ended dfs.Version, key, value []byte, how byte) error {
	return c.set(historyKey(ended, key), append(append(make([]byte, 0, 1+len(value)), how), value...))
}

// inode returns an inode of this group, the same one each time; nil when there
// is none.
func (c *change) inode(ino dfs.Ino) (*inode, error) {
	for _, n := range c.inodes {
		if n.ino == ino {
			return n, nil
		}
	}
	if ino.Group() != c.st.group {
		return nil, refuse(dfs.Invalid, "inode %v is not of group %v", ino, c.st.group)
	}
	n, err := readInode(c.tx, ino)
	if n != nil {
		c.inodes = append(c.inodes, n)
	}
	return n, err
}

// need is inode, but the inode must exist.
func (c *change) need(ino dfs.Ino) (*inode, error) {
	n, err := c.inode(ino)
	if err == nil && n == nil {
		err = refuse(dfs.NotExist, "inode %v does not exist", ino)
	}
	return n, err
}

// take is need for an inode that the entry changes, or removes: nobody else may hold it.
func (c *change) take(ino dfs.Ino) (*inode, error) {
	if err := c.free(inodeKey(ino), true); err != nil {
		return nil, err
	}
	return c.need(ino)
}

// takeHere is take for an inode of this group that an entry names.
func (c *change) takeHere(ino dfs.Ino) (*inode, error) {
	if err := c.free(inodeKey(ino), true); err != nil {
		return nil, err
	}
	return c.needHere(ino)
}

// entry returns the entry of a name, which nobody else may hold; nil when there
// is none.
func (c *change) entry(parent dfs.Ino, name []byte) (*dentry, error) {
	if err := c.free(dentryKey(parent, name), true); err != nil {
		return nil, err
	}
	return readDentry(c.tx, parent, name)
}

// needHere is need for an inode that an entry of this group names.
func (c *change) needHere(ino dfs.Ino) (*inode, error) {
	n, err := c.inode(ino)
	if err == nil && n == nil {
		err = broken("an entry names inode %v, which does not exist", ino)
	}
	return n, err
}

// directory returns a directory of this group.
func (c *change) directory(ino dfs.Ino) (*inode, error) {
	n, err := c.need(ino)
	if err != nil {
		return nil, err
	}
	if !n.isDir() {
		return nil, refuse(dfs.NotDir, "inode %v is not a directory", ino)
	}
	return n, nil
}

// openDirectory returns a directory of this group whose entries may change:
// those that hold entries of it do not mind.
func (c *change) openDirectory(ino dfs.Ino) (*inode, error) {
	if err := c.free(inodeKey(ino), false); err != nil {
		return nil, err
	}
	n, err := c.directory(ino)
	if err != nil {
		return nil, err
	}
	if n.frozen || n.unlinked {
		return nil, refuse(dfs.Frozen, "directory %v is being made or removed", ino)
	}
	return n, nil
}

// at returns the version that an inode gets by this entry. That of a transaction
// may be behind a directory in which others have made entries since it was
// prepared: what it does to the directory's own row comes after theirs.
func (c *change) at(n *inode) dfs.Version {
	if n.version < c.version {
		return c.version
	}
	return c.st.version + 1
}

// mark notes that an inode has changed and stamps its ctime.
func (c *change) mark(n *inode) {
	n.ctime, n.changed = timeOf(c.at(n)), true
}

// add makes a new inode.
func (c *change) add(n *inode) {
	n.changed = true
	c.inodes = append(c.inodes, n)
	c.st.inodes++
}

// drop removes an inode. The extents of a file stay until its last history row
// is trimmed, so that the cost does not grow with the file.
func (c *change) drop(n *inode) {
	n.disappeared = true
	c.st.inodes--
}

// unlinkOne takes one link from a file or symlink.
func (c *change) unlinkOne(n *inode) {
	n.nlink--
	c.mark(n)
	if n.nlink == 0 {
		c.drop(n)
	}
}

// resize notes entries more or less in a directory, and subdirectories.
func (c *change) resize(dir *inode, entries, subdirs int) {
	dir.size += int64(entries)
	dir.nlink = uint32(int(dir.nlink) + subdirs)
	dir.mtime = timeOf(c.at(dir))
	c.mark(dir)
}

// enter writes a directory's entry in place of old, nil for none.
func (c *change) enter(parent dfs.Ino, name []byte, ino dfs.Ino, typ wire.FileType, old *dentry) error {
	key := dentryKey(parent, name)
	if old != nil {
		if err := c.end(key, old.stored, endedReplaced); err != nil {
			return err
		}
		if err := c.unname(parent, name, old); err != nil {
			return err
		}
	}
	c.name(ino, parent, 1)
	e := dentry{ino: ino, typ: typ, version: c.version}
	return c.set(key, e.append(nil))
}

// leave removes a directory's entry.
func (c *change) leave(parent dfs.Ino, name []byte, old *dentry) error {
	key := dentryKey(parent, name)
	if err := c.end(key, old.stored, endedRemoved); err != nil {
		return err
	}
	if err := c.unname(parent, name, old); err != nil {
		return err
	}
	return c.delete(key)
}

// block returns a block's row as it was before this entry.
func (c *change) block(id dfs.BlockID) (blockRow, error) {
	if row, ok := c.known[id]; ok {
		return row, nil
	}
	return readBlock(c.tx, id)
}

// count notes that a block is named delta times more.
func (c *change) count(id dfs.BlockID, length uint32, delta int) {
	c.blocks = append(c.blocks, blockRef{id, length, delta})
}

// finish writes the inodes, the block rows and the counters, and returns the
// version: that of the last change when this entry changed nothing.
func (c *change) finish() (dfs.Version, error) {
	if err := c.settle(); err != nil {
		return 0, err
	}
	for _, n := range c.inodes {
		if err := c.writeInode(n); err != nil {
			return 0, err
		}
	}
	if err := c.writeBlocks(); err != nil {
		return 0, err
	}
	if !c.wrote {
		return c.st.version, nil
	}
	c.st.version = max(c.st.version, c.latest, c.version)
	return c.version, c.tx.Set([]byte{tagState}, c.st.append(nil))
}

func (c *change) writeInode(n *inode) error {
	key := inodeKey(n.ino)
	if !n.changed && !n.disappeared {
		if n.rehomed { // of which history tells nothing
			return c.set(key, n.append(make([]byte, 0, 96)))
		}
		return nil
	}
	n.version = c.at(n)
	c.latest = max(c.latest, n.version)
	if n.disappeared {
		if err := c.endAt(n.version, key, n.stored, endedRemoved); err != nil {
			return err
		}
		return c.delete(key)
	}
	if n.stored != nil {
		if err := c.endAt(n.version, key, n.stored, endedReplaced); err != nil {
			return err
		}
	}
	return c.set(key, n.append(make([]byte, 0, 96)))
}

// writeBlocks adds up the changes of each block and writes its row. A block
// that nothing names any more goes to the delete queue.
func (c *change) writeBlocks() error {
	if len(c.blocks) == 0 {
		return nil
	}
	slices.SortStableFunc(c.blocks, func(a, b blockRef) int { return compareBlocks(a.id, b.id) })
	for i := 0; i < len(c.blocks); {
		ref := c.blocks[i]
		for i++; i < len(c.blocks) && c.blocks[i].id == ref.id; i++ {
			ref.delta += c.blocks[i].delta
		}
		if ref.delta == 0 {
			continue
		}
		row, err := c.block(ref.id)
		if err != nil {
			return err
		}
		if row.count == 0 {
			row.length = ref.length
		}
		left := int64(row.count) + int64(ref.delta)
		switch {
		case left < 0:
			return broken("block %v is named %d times and let go %d times", ref.id, row.count, -ref.delta)
		case left == 0:
			if err := c.set(queueKey(ref.id), []byte{rowFormat}); err != nil {
				return err
			}
			err = c.delete(blockKey(ref.id))
		default:
			row.count = uint64(left)
			err = c.set(blockKey(ref.id), row.append(nil))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func compareBlocks(a, b dfs.BlockID) int {
	return cmp.Or(cmp.Compare(a.PG, b.PG), cmp.Compare(a.Ino, b.Ino), cmp.Compare(a.Session, b.Session), cmp.Compare(a.Counter, b.Counter))
}

// gather returns the keys and values in [lower, upper), at most limit of them:
// rows must not be written while they are scanned.
func gather(r raftgroup.Reader, lower, upper []byte, limit int) (keys, values [][]byte, err error) {
	if limit <= 0 {
		return nil, nil, nil
	}
	err = scan(r, lower, upper, func(key, value []byte) (bool, error) {
		keys, values = append(keys, bytes.Clone(key)), append(values, bytes.Clone(value))
		return len(keys) < limit, nil
	})
	return keys, values, err
}

// checkName refuses what no directory entry may be called.
func checkName(name []byte) error {
	switch {
	case len(name) > dfs.MaxName:
		return refuse(dfs.TooLarge, "a name of %d bytes: at most %d", len(name), dfs.MaxName)
	case len(name) == 0:
		return refuse(dfs.Invalid, "an empty name")
	case string(name) == "." || string(name) == "..":
		return refuse(dfs.Invalid, "%q is not a name for an entry", name)
	case bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0:
		return refuse(dfs.Invalid, "the name %q holds a slash or a zero byte", name)
	}
	return nil
}
