package namespace

import (
	"math"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// setAttr changes the attributes that are present.
func (c *change) setAttr(op *wire.SetAttrOp) (outcome, error) {
	n, err := c.take(dfs.Ino(op.Ino))
	if err != nil {
		return outcome{}, err
	}
	if op.Mode != nil && *op.Mode > modeBits {
		return outcome{}, refuse(dfs.Invalid, "mode %o has bits beyond %o", *op.Mode, modeBits)
	}
	if op.GetUid() == math.MaxUint32 || op.GetGid() == math.MaxUint32 {
		return outcome{}, refuse(dfs.Invalid, "%d is no owner", uint32(math.MaxUint32))
	}
	if op.Size != nil {
		if err := c.truncate(n, *op.Size); err != nil {
			return outcome{}, err
		}
	}
	if op.Mode != nil {
		n.mode = *op.Mode
	}
	if op.Uid != nil {
		n.uid = *op.Uid
	}
	if op.Gid != nil {
		n.gid = *op.Gid
	}
	if op.Atime != nil {
		n.atime = *op.Atime
	}
	if op.Mtime != nil {
		n.mtime = *op.Mtime
	}
	c.mark(n)
	return outcome{inode: n}, nil
}

// setPolicy sets the class of what is created below a directory from now on.
func (c *change) setPolicy(op *wire.SetPolicyOp) (outcome, error) {
	dir, err := c.openDirectory(dfs.Ino(op.Ino))
	if err != nil {
		return outcome{}, err
	}
	if err := c.free(inodeKey(dir.ino), true); err != nil {
		return outcome{}, err
	}
	if err := checkClass(op.Class); err != nil {
		return outcome{}, err
	}
	class := op.Class
	if class == "" {
		if class, err = c.inherited(dir, op); err != nil {
			return outcome{}, err
		}
	}
	dir.class = class
	c.mark(dir)
	return outcome{inode: dir}, nil
}

// inherited returns the class that a directory would get if it were made now.
// What a parent in another group has travels in the command, as in mkdirPrepare.
func (c *change) inherited(dir *inode, op *wire.SetPolicyOp) (string, error) {
	switch {
	case dir.ino == dfs.RootIno:
		return c.st.defaultClass, nil
	case dir.parent.Group() != c.st.group && op.Inherited == nil:
		return "", refuse(dfs.CrossGroup, "the parent of directory %v lives in group %v, and the request does not say what it has", dir.ino, dir.parent.Group())
	case dir.parent.Group() != c.st.group:
		return *op.Inherited, checkClass(*op.Inherited)
	}
	parent, err := c.needHere(dir.parent)
	if err != nil {
		return "", err
	}
	return parent.class, nil
}
