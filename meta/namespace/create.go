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
	k, err := c.readCreation(op)
	if err != nil {
		return outcome{}, err
	}
	var victim *inode
	if k.old != nil {
		if victim, err = c.victim(k.old, op.Name); err != nil {
			return outcome{}, err
		}
	}
	if victim != nil {
		c.unlinkOne(victim)
	}
	return c.carryOutCreation(k)
}

// creation is a create whose parts have been read and checked.
type creation struct {
	op      *wire.CreateOp
	dir     *inode
	old     *dentry // what it takes the place of; nil: nothing
	ino     dfs.Ino
	lease   leaseRow // of ino, if the caller has it leased
	extents []extent
}

// readCreation reads and checks what a create needs, but for the inode that it
// takes the place of.
func (c *change) readCreation(op *wire.CreateOp) (*creation, error) {
	if err := checkCreate(op); err != nil {
		return nil, err
	}
	k := &creation{op: op, ino: dfs.Ino(op.Ino)}
	var err error
	if k.dir, err = c.openDirectory(dfs.Ino(op.Parent)); err != nil {
		return nil, err
	}
	if k.old, err = c.replaced(k.dir, op); err != nil {
		return nil, err
	}
	if k.ino != 0 {
		if err := c.free(inodeKey(k.ino), true); err != nil {
			return nil, err
		}
		k.lease, err = c.leased(k.ino)
	} else {
		k.ino, err = c.pick()
	}
	if err != nil {
		return nil, err
	}
	if k.extents, err = parseExtents(op.Extents, k.ino, 0, op.Size); err != nil {
		return nil, err
	}
	return k, c.checkBlocks(k.extents, true)
}

// carryOutCreation makes the inode and its entry.
func (c *change) carryOutCreation(k *creation) (outcome, error) {
	op, dir, ino, extents := k.op, k.dir, k.ino, k.extents
	if op.Ino != 0 {
		if err := c.use(ino, k.lease); err != nil {
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
	if k.old != nil {
		added = 0
	}
	c.resize(dir, added, 0)
	return outcome{inode: n}, c.enter(dir.ino, op.Name, ino, op.Type, k.old)
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

// replaced returns the entry that the new file takes the place of, nil when
// there is none.
func (c *change) replaced(dir *inode, op *wire.CreateOp) (*dentry, error) {
	old, err := c.entry(dir.ino, op.Name)
	if err != nil || old == nil {
		return nil, err
	}
	switch {
	case !op.Replace:
		return nil, refuse(dfs.Exist, "%q exists", op.Name)
	case old.typ == wire.FileType_DIR:
		return nil, refuse(dfs.IsDir, "%q is a directory", op.Name)
	}
	return old, nil
}

// victim returns the inode of a file or symlink that loses a name, when it is of
// this group.
func (c *change) victim(e *dentry, name []byte) (*inode, error) {
	if e.ino.Group() != c.st.group {
		return nil, refuse(dfs.CrossGroup, "%q lives in group %v", name, e.ino.Group())
	}
	return c.takeHere(e.ino)
}

// newInode makes an inode that belongs to the caller.
func (c *change) newInode(ino dfs.Ino, typ wire.FileType, mode, parentMode, parentGID uint32) *inode {
	n := c.draft(ino, typ, mode, parentMode, parentGID)
	c.add(n)
	return n
}

// draft is an inode of the caller that is not made yet; a directory with the
// setgid bit hands its group on.
func (c *change) draft(ino dfs.Ino, typ wire.FileType, mode, parentMode, parentGID uint32) *inode {
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
	old, err := c.entry(dir.ino, name)
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
		if c.st.level >= LevelTransactions {
			if err := c.checkElsewhere(dfs.Ino(op.Ino)); err != nil {
				return outcome{}, err
			}
		}
		return outcome{}, refuse(dfs.CrossGroup, "inode %v and directory %v are of different groups", dfs.Ino(op.Ino), dir.ino)
	}
	n, err := c.linkable(dfs.Ino(op.Ino))
	if err != nil {
		return outcome{}, err
	}
	if err := c.checkFree(dir, op.Name); err != nil {
		return outcome{}, err
	}
	n.nlink++
	c.mark(n)
	c.resize(dir, 1, 0)
	return outcome{inode: n}, c.enter(dir.ino, op.Name, n.ino, n.typ, nil)
}

// linkable returns a file or symlink of this group that may get one more name.
func (c *change) linkable(ino dfs.Ino) (*inode, error) {
	n, err := c.take(ino)
	if err != nil {
		return nil, err
	}
	switch {
	case n.isDir():
		return nil, refuse(dfs.Permission, "inode %v is a directory: it cannot have a second name", n.ino)
	case n.nlink >= MaxLinks:
		return nil, refuse(dfs.TooLarge, "inode %v has %d links", n.ino, n.nlink)
	}
	return n, nil
}
