package namespace

import (
	"dfsd/dfs"
	"dfsd/transport/wire"
)

// Directories whose parent lives in another group are made and removed in
// three steps. The child's group holds an intent from the first to the last;
// the parent's group decides in the second, with its child row.
//
//	            child's group           parent's group       child's group
//	mkdir    ── mkdirPrepare ─────────▶ mkdirCommit ───────▶ resolve(linked)
//	            child made, unlinked    entry, child row     linked
//	rmdir    ── rmdirFreeze ──────────▶ rmdirCommit ───────▶ resolve(not linked)
//	            empty child frozen      both removed         child removed
//
// A refusal by the parent's group, or a session that dies on the way, ends in
// resolve with what the child row says. Once the parent's log holds the fence
// of the session, no commit of it can follow, so that answer is final.

// mkdirPrepare makes a directory for a parent in another group.
func (c *change) mkdirPrepare(op *wire.MkdirPrepareOp) (outcome, error) {
	if err := checkMkdir(op.Name, op.Mode); err != nil {
		return outcome{}, err
	}
	if err := checkClass(op.Class); err != nil {
		return outcome{}, err
	}
	parent := dfs.Ino(op.Parent)
	if err := c.checkElsewhere(parent); err != nil {
		return outcome{}, err
	}
	ino, err := c.pick()
	if err != nil {
		return outcome{}, err
	}
	n := c.newInode(ino, wire.FileType_DIR, op.Mode, op.ParentMode, op.ParentGid)
	n.nlink, n.parent, n.level, n.class, n.unlinked = 2, parent, op.Level, op.Class, true
	return outcome{inode: n}, c.leaveIntent(n, op.Name, IntentMkdir)
}

func (c *change) leaveIntent(child *inode, name []byte, kind IntentKind) error {
	in := Intent{Child: child.ino, Parent: child.parent, Name: name, Kind: kind, Session: c.session, Version: c.version}
	return c.set(intentKey(child.ino), in.append(nil))
}

// checkElsewhere refuses an inode number of this group, or of none.
func (c *change) checkElsewhere(ino dfs.Ino) error {
	if g := ino.Group(); g == c.st.group || g == dfs.ControlGroup || ino.Local() == 0 {
		return refuse(dfs.Invalid, "inode %v: want one of another namespace group than %v", ino, c.st.group)
	}
	return nil
}

// mkdirCommit enters a directory that another group has prepared.
func (c *change) mkdirCommit(op *wire.MkdirCommitOp) (outcome, error) {
	if err := checkName(op.Name); err != nil {
		return outcome{}, err
	}
	child := dfs.Ino(op.Child)
	if err := c.checkElsewhere(child); err != nil {
		return outcome{}, err
	}
	dir, err := c.openDirectory(dfs.Ino(op.Parent))
	if err != nil {
		return outcome{}, err
	}
	if err := c.checkFree(dir, op.Name); err != nil {
		return outcome{}, err
	}
	row, err := readChild(c.tx, child)
	if err != nil {
		return outcome{}, err
	}
	if row != nil {
		return outcome{}, refuse(dfs.Exist, "directory %v is linked already, as %q", child, row.name)
	}
	c.resize(dir, 1, 1)
	row = &childRow{parent: dir.ino, name: op.Name}
	if err := c.set(childKey(child), row.append(nil)); err != nil {
		return outcome{}, err
	}
	return outcome{}, c.enter(dir.ino, op.Name, child, wire.FileType_DIR, nil)
}

// rmdirFreeze keeps an empty directory, whose parent is in another group, empty.
func (c *change) rmdirFreeze(op *wire.RmdirFreezeOp) (outcome, error) {
	if err := checkName(op.Name); err != nil {
		return outcome{}, err
	}
	if err := c.checkElsewhere(dfs.Ino(op.Parent)); err != nil {
		return outcome{}, err
	}
	n, err := c.openDirectory(dfs.Ino(op.Child))
	if err != nil {
		return outcome{}, err
	}
	if err := c.free(inodeKey(n.ino), true); err != nil {
		return outcome{}, err
	}
	switch {
	case n.parent != dfs.Ino(op.Parent):
		return outcome{}, refuse(dfs.NotExist, "directory %v is not in directory %v", n.ino, dfs.Ino(op.Parent))
	case n.size > 0:
		return outcome{}, refuse(dfs.NotEmpty, "directory %v has %d entries", n.ino, n.size)
	}
	n.frozen, n.changed = true, true
	return outcome{inode: n}, c.leaveIntent(n, op.Name, IntentRmdir)
}

// rmdirCommit removes the entry of a frozen directory, if it still names it.
func (c *change) rmdirCommit(op *wire.RmdirCommitOp) (outcome, error) {
	if err := checkName(op.Name); err != nil {
		return outcome{}, err
	}
	child := dfs.Ino(op.Child)
	if err := c.checkElsewhere(child); err != nil {
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
	if e.ino != child {
		return outcome{}, refuse(dfs.NotExist, "%q is no longer directory %v", op.Name, child)
	}
	row, err := readChild(c.tx, child)
	if err != nil {
		return outcome{}, err
	}
	if row == nil || row.parent != dir.ino {
		return outcome{}, broken("%q of %v names directory %v, whose row says %+v", op.Name, dir.ino, child, row)
	}
	c.resize(dir, -1, -1)
	if err := c.delete(childKey(child)); err != nil {
		return outcome{}, err
	}
	return outcome{}, c.leave(dir.ino, op.Name, e)
}

// resolve ends an intent as the parent's group has decided. It comes from the
// session that left the intent or, once this group holds that session's
// fence, from anyone.
func (c *change) resolve(op *wire.ResolveOp) (outcome, error) {
	n, err := c.inode(dfs.Ino(op.GetChild()))
	if err != nil {
		return outcome{}, err
	}
	in, err := readIntent(c.tx, dfs.Ino(op.Child))
	if err != nil {
		return outcome{}, err
	}
	if in == nil || in.Version != dfs.Version(op.Intent) {
		return outcome{inode: n}, nil // ended before
	}
	if in.Session != c.session {
		f, err := readFence(c.tx)
		if err != nil {
			return outcome{}, err
		}
		if !f.fenced(in.Session) {
			return outcome{}, refuse(dfs.Frozen, "the %v of directory %v by session %d is not decided", in.Kind, in.Child, in.Session)
		}
	}
	switch {
	case n == nil:
		return outcome{}, broken("an intent for directory %v, which does not exist", in.Child)
	case op.Linked:
		n.unlinked, n.frozen, n.changed = false, false, true
	case n.size > 0:
		return outcome{}, broken("directory %v is held by an intent and has %d entries", n.ino, n.size)
	default:
		c.drop(n)
		n = nil
	}
	return outcome{inode: n}, c.delete(intentKey(in.Child))
}
