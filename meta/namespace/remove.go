package namespace

import (
	"dfsd/dfs"
	"dfsd/transport/wire"
)

// needEntry returns the entry of a name that must exist.
func (c *change) needEntry(dir *inode, name []byte) (*dentry, error) {
	e, err := c.entry(dir.ino, name)
	if err == nil && e == nil {
		err = refuse(dfs.NotExist, "%q does not exist", name)
	}
	return e, err
}

// unlink removes the name of a file or symlink, and the inode with its last.
func (c *change) unlink(op *wire.UnlinkOp) (outcome, error) {
	if err := checkName(op.Name); err != nil {
		return outcome{}, err
	}
	dir, err := c.openDirectory(dfs.Ino(op.Parent))
	if err != nil {
		return outcome{}, err
	}
	e, err := c.needEntry(dir, op.Name)
	if err != nil {
		return outcome{}, err
	}
	if e.typ == wire.FileType_DIR {
		return outcome{}, refuse(dfs.IsDir, "%q is a directory", op.Name)
	}
	n, err := c.victim(e, op.Name)
	if err != nil {
		return outcome{}, err
	}
	c.unlinkOne(n)
	c.resize(dir, -1, 0)
	return outcome{inode: n}, c.leave(dir.ino, op.Name, e)
}

// rmdir removes an empty directory that lives in its parent's group.
func (c *change) rmdir(op *wire.RmdirOp) (outcome, error) {
	if err := checkName(op.Name); err != nil {
		return outcome{}, err
	}
	dir, err := c.openDirectory(dfs.Ino(op.Parent))
	if err != nil {
		return outcome{}, err
	}
	e, err := c.needEntry(dir, op.Name)
	if err != nil {
		return outcome{}, err
	}
	n, err := c.emptyDirectory(e, op.Name)
	if err != nil {
		return outcome{}, err
	}
	c.drop(n)
	c.resize(dir, -1, -1)
	return outcome{}, c.leave(dir.ino, op.Name, e)
}

// emptyDirectory returns the directory that an entry names, when it is empty
// and of this group.
func (c *change) emptyDirectory(e *dentry, name []byte) (*inode, error) {
	switch {
	case e.typ != wire.FileType_DIR:
		return nil, refuse(dfs.NotDir, "%q is not a directory", name)
	case e.ino.Group() != c.st.group:
		return nil, refuse(dfs.CrossGroup, "directory %q lives in group %v", name, e.ino.Group())
	}
	n, err := c.takeHere(e.ino)
	if err != nil {
		return nil, err
	}
	if n.size > 0 {
		return nil, refuse(dfs.NotEmpty, "directory %q has %d entries", name, n.size)
	}
	return n, nil
}
