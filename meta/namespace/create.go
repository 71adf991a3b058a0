package namespace

import (
	"bytes"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

const (
	modeBits = 0o7777
	setGID   = 0o2000
)

// create makes a file or symlink with its content, in place of an old one when
// the caller says so.
func (c *change) create(op *wire.CreateOp) (outcome, error) {
	if err := checkCreate(op); err != nil {
		return outcome{}, err
	}
	dir, err := c.openDirectory(dfs.Ino(op.Parent))
	if err != nil {
		return outcome{}, err
	}
	old, victim, err := c.replaced(dir, op)
	if err != nil {
		return outcome{}, err
	}
	ino := dfs.Ino(op.Ino)
	var lease leaseRow
	if ino != 0 {
		lease, err = c.leased(ino)
	} else {
		ino, err = c.pick()
	}
	if err != nil {
		return outcome{}, err
	}
	extents, err := parseExtents(op.Extents, ino, 0, op.Size)
	if err != nil {
		return outcome{}, err
	}
	if err := c.checkBlocks(extents, true); err != nil {
		return outcome{}, err
	}

	if op.Ino != 0 {
		if err := c.use(ino, lease); err != nil {
			return outcome{}, err
		}
	}
	n := c.newInode(ino, op.Type, op.Mode, dir.mode, dir.gid)
	n.size, n.nlink, n.target = op.Size, 1, op.Target
	n.class = firstOf(op.Class, dir.class, c.st.defaultClass)
	if op.Type == wire.FileType_SYMLINK {
		n.mode, n.size, n.class = 0o777, int64(len(op.Target)), ""
	}
	if op.Mtime != 0 {
		n.mtime = op.Mtime
	}
	if op.Atime != 0 {
		n.atime = op.Atime
	}
	for i := range extents {
		if err := c.putExtent(ino, &extents[i]); err != nil {
			return outcome{}, err
		}
		c.count(extents[i].block, extents[i].blockLength, 1)
	}
	added := 1
	if victim != nil {
		c.unlinkOne(victim)
		added = 0
	}
	c.resize(dir, added, 0)
	return outcome{inode: n}, c.enter(dir.ino, op.Name, ino, op.Type, old)
}

func checkCreate(op *wire.CreateOp) error {
	if err := checkName(op.Name); err != nil {
		return err
	}
	if op.Mode > modeBits {
		return refuse(dfs.Invalid, "mode %o has bits beyond %o", op.Mode, modeBits)
	}
	switch op.Type {
	case wire.FileType_FILE:
		if len(op.Target) > 0 {
			return refuse(dfs.Invalid, "a file with the target of a symlink")
		}
		if op.Size < 0 || op.Size > dfs.MaxFileSize {
			return refuse(dfs.TooLarge, "a file of %d bytes: want 0 to %d", op.Size, dfs.MaxFileSize)
		}
	case wire.FileType_SYMLINK:
		switch {
		case len(op.Target) > dfs.MaxSymlink:
			return refuse(dfs.TooLarge, "the target of a symlink has %d bytes: at most %d", len(op.Target), dfs.MaxSymlink)
		case len(op.Target) == 0 || bytes.IndexByte(op.Target, 0) >= 0:
			return refuse(dfs.Invalid, "the target %q of a symlink is empty or holds a zero byte", op.Target)
		case len(op.Extents) > 0 || op.Size != 0:
			return refuse(dfs.Invalid, "a symlink with the content of a file")
		}
	default:
		return refuse(dfs.Invalid, "create makes files and symlinks, not %v", op.Type)
	}
	return checkClass(op.Class)
}

// replaced returns the entry and the inode that the new file takes the place
// of, nil when there is none.
func (c *change) replaced(dir *inode, op *wire.CreateOp) (*dentry, *inode, error) {
	old, err := readDentry(c.tx, dir.ino, op.Name)
	if err != nil || old == nil {
		return nil, nil, err
	}
	switch {
	case !op.Replace:
		return nil, nil, refuse(dfs.Exist, "%q exists", op.Name)
	case old.typ == wire.FileType_DIR:
		return nil, nil, refuse(dfs.IsDir, "%q is a directory", op.Name)
	}
	victim, err := c.needHere(old.ino)
	return old, victim, err
}

// newInode makes an inode that belongs to the caller; a directory with the
// setgid bit hands its group on.
func (c *change) newInode(ino dfs.Ino, typ wire.FileType, mode, parentMode, parentGID uint32) *inode {
	n := &inode{
		ino: ino, typ: typ, mode: mode, uid: c.cred.GetUid(), gid: c.cred.GetGid(),
		atime: c.now, mtime: c.now, ctime: c.now,
	}
	if parentMode&setGID != 0 {
		n.gid = parentGID
		if typ == wire.FileType_DIR {
			n.mode |= setGID
		}
	}
	c.add(n)
	return n
}

func firstOf(classes ...string) string {
	for _, s := range classes {
		if s != "" {
			return s
		}
	}
	return ""
}

// mkdir makes a directory in its parent's group.
func (c *change) mkdir(op *wire.MkdirOp) (outcome, error) {
	if err := checkMkdir(op.Name, op.Mode); err != nil {
		return outcome{}, err
	}
	dir, err := c.openDirectory(dfs.Ino(op.Parent))
	if err != nil {
		return outcome{}, err
	}
	if err := c.checkFree(dir, op.Name); err != nil {
		return outcome{}, err
	}
	ino, err := c.pick()
	if err != nil {
		return outcome{}, err
	}
	n := c.newInode(ino, wire.FileType_DIR, op.Mode, dir.mode, dir.gid)
	n.nlink, n.parent, n.level, n.class = 2, dir.ino, dir.level+1, dir.class
	c.resize(dir, 1, 1)
	return outcome{inode: n}, c.enter(dir.ino, op.Name, ino, wire.FileType_DIR, nil)
}

func checkMkdir(name []byte, mode uint32) error {
	if mode > modeBits {
		return refuse(dfs.Invalid, "mode %o has bits beyond %o", mode, modeBits)
	}
	return checkName(name)
}

// checkFree refuses a name that is taken.
func (c *change) checkFree(dir *inode, name []byte) error {
	old, err := readDentry(c.tx, dir.ino, name)
	if err == nil && old != nil {
		err = refuse(dfs.Exist, "%q exists", name)
	}
	return err
}

// link gives a file or symlink of this group one more name.
func (c *change) link(op *wire.LinkOp) (outcome, error) {
	if err := checkName(op.Name); err != nil {
		return outcome{}, err
	}
	dir, err := c.openDirectory(dfs.Ino(op.Parent))
	if err != nil {
		return outcome{}, err
	}
	if dfs.Ino(op.Ino).Group() != c.st.group {
		return outcome{}, refuse(dfs.CrossGroup, "inode %v and directory %v are of different groups", dfs.Ino(op.Ino), dir.ino)
	}
	n, err := c.need(dfs.Ino(op.Ino))
	if err != nil {
		return outcome{}, err
	}
	switch {
	case n.isDir():
		return outcome{}, refuse(dfs.Permission, "inode %v is a directory: it cannot have a second name", n.ino)
	case n.nlink >= MaxLinks:
		return outcome{}, refuse(dfs.TooLarge, "inode %v has %d links", n.ino, n.nlink)
	}
	if err := c.checkFree(dir, op.Name); err != nil {
		return outcome{}, err
	}
	n.nlink++
	c.mark(n)
	c.resize(dir, 1, 0)
	return outcome{inode: n}, c.enter(dir.ino, op.Name, n.ino, n.typ, nil)
}
