package namespace

import (
	"dfsd/dfs"
	"dfsd/transport/wire"
)

// move is a rename whose parts have been read.
type move struct {
	from, to    *inode  // directories
	entry       *dentry // what moves
	inode       *inode  // of what moves; nil: it is of another group
	old         *dentry // what is replaced; nil: nothing
	victim      *inode  // its inode
	name, name2 []byte
}

// rename moves an entry within this group, in place of another one unless the
// caller forbids it. A directory gets a new parent only where this group alone
// can tell that the new parent does not lie below it.
func (c *change) rename(op *wire.RenameOp) (outcome, error) {
	m, err := c.readMove(op)
	if err != nil {
		return outcome{}, err
	}
	if m.old != nil && m.old.ino == m.entry.ino {
		return outcome{inode: m.inode}, nil // two names of one inode: both stay, as POSIX has it
	}
	if err := c.checkMove(m, op.NoReplace); err != nil {
		return outcome{}, err
	}

	isDir := m.entry.typ == wire.FileType_DIR
	subdirs := 0
	if isDir {
		subdirs = 1
	}
	c.resize(m.from, -1, -subdirs)
	c.resize(m.to, 1, subdirs)
	if m.victim != nil {
		if isDir {
			c.drop(m.victim)
		} else {
			c.unlinkOne(m.victim)
		}
		c.resize(m.to, -1, -subdirs)
	}
	switch {
	case m.inode == nil && isDir:
		row := childRow{parent: m.to.ino, name: m.name2}
		if err := c.set(childKey(m.entry.ino), row.append(nil)); err != nil {
			return outcome{}, err
		}
	case m.inode != nil:
		if isDir {
			m.inode.parent = m.to.ino
		}
		c.mark(m.inode)
	}
	if err := c.leave(m.from.ino, m.name, m.entry); err != nil {
		return outcome{}, err
	}
	return outcome{inode: m.inode}, c.enter(m.to.ino, m.name2, m.entry.ino, m.entry.typ, m.old)
}

func (c *change) readMove(op *wire.RenameOp) (*move, error) {
	if err := checkName(op.Name); err != nil {
		return nil, err
	}
	if err := checkName(op.NewName); err != nil {
		return nil, err
	}
	m := &move{name: op.Name, name2: op.NewName}
	var err error
	if m.from, err = c.openDirectory(dfs.Ino(op.Parent)); err != nil {
		return nil, err
	}
	if dfs.Ino(op.NewParent).Group() != c.st.group {
		if c.st.level >= LevelTransactions { // for nothing no other group is needed
			if _, err := c.needEntry(m.from, op.Name); err != nil {
				return nil, err
			}
			if err := c.checkElsewhere(dfs.Ino(op.NewParent)); err != nil {
				return nil, err
			}
		}
		return nil, refuse(dfs.CrossGroup, "directories %v and %v are of different groups", m.from.ino, dfs.Ino(op.NewParent))
	}
	if m.to, err = c.openDirectory(dfs.Ino(op.NewParent)); err != nil {
		return nil, err
	}
	if m.entry, err = c.needEntry(m.from, op.Name); err != nil {
		return nil, err
	}
	if m.entry.ino.Group() == c.st.group {
		if m.inode, err = c.takeHere(m.entry.ino); err != nil {
			return nil, err
		}
	}
	m.old, err = c.entry(m.to.ino, op.NewName)
	return m, err
}

// checkMove refuses what must not move, and reads the inode that is replaced.
func (c *change) checkMove(m *move, noReplace bool) error {
	isDir := m.entry.typ == wire.FileType_DIR
	if m.from != m.to && isDir {
		if m.inode == nil {
			return refuse(dfs.CrossGroup, "directory %q lives in group %v and would get another parent", m.name, m.entry.ino.Group())
		}
		if err := c.checkTree(m.name); err != nil {
			return err
		}
		if err := c.checkAbove(m.inode, m.from, m.to); err != nil {
			return err
		}
	}
	if m.from != m.to && m.inode == nil && c.accounts() {
		return refuse(dfs.CrossGroup, "%q lives in group %v, which counts the names of each directory", m.name, m.entry.ino.Group())
	}
	if m.old == nil {
		return nil
	}
	var err error
	switch {
	case noReplace:
		return refuse(dfs.Exist, "%q exists", m.name2)
	case isDir:
		m.victim, err = c.emptyDirectory(m.old, m.name2)
	case m.old.typ == wire.FileType_DIR:
		return refuse(dfs.IsDir, "%q is a directory", m.name2)
	default:
		m.victim, err = c.victim(m.old, m.name2)
	}
	return err
}

// checkTree refuses to give a directory a new parent while a transaction may be
// about to do so: it has walked up from there and relies on what it saw. The lock
// is in the root's group, where one entry sees that nobody has it and makes the
// move; elsewhere a transaction takes it.
func (c *change) checkTree(name []byte) error {
	switch {
	case c.st.level < LevelTransactions:
		return nil
	case c.st.group != dfs.RootIno.Group():
		return refuse(dfs.CrossGroup, "directory %q gets another parent: the tree lock is in group %v", name, dfs.RootIno.Group())
	}
	return c.free(treeKey(), true)
}

// checkAbove refuses to move dir from one parent to another when the new one
// lies below dir, or when that cannot be told in this group. What is an
// ancestor of dir is not below it, so the walk up from the new parent may end
// at any ancestor of the old one. Entries of this group change one at a time:
// the walk stays true until the move is made.
func (c *change) checkAbove(dir, from, to *inode) error {
	above, _, err := c.ancestors(from)
	if err != nil {
		return err
	}
	path, whole, err := c.ancestors(to)
	if err != nil {
		return err
	}
	safe := map[dfs.Ino]bool{}
	for _, ino := range above {
		safe[ino] = true
	}
	for _, ino := range path {
		if ino == dir.ino {
			return refuse(dfs.Invalid, "directory %v would lie below itself", dir.ino)
		}
		if safe[ino] {
			return nil
		}
	}
	if whole {
		return nil
	}
	return refuse(dfs.CrossGroup, "the path from directory %v to that of %v leaves group %v", to.ino, dir.ino, c.st.group)
}

// ancestors lists a directory and those above it as far as they are of this
// group, and whether that is all of them.
func (c *change) ancestors(n *inode) (path []dfs.Ino, whole bool, err error) {
	for range MaxDepth {
		path = append(path, n.ino)
		if n.ino == dfs.RootIno {
			return path, true, nil
		}
		if n.parent.Group() != c.st.group {
			return append(path, n.parent), false, nil
		}
		parent := n.parent
		if err := c.free(inodeKey(parent), false); err != nil {
			return nil, false, err
		}
		if n, err = readInode(c.tx, parent); err != nil {
			return nil, false, err
		}
		if n == nil {
			return nil, false, broken("directory %v, which has subdirectories, does not exist", parent)
		}
	}
	return nil, false, refuse(dfs.TooLarge, "more than %d directories lie above", MaxDepth)
}
