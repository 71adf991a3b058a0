package namespace

import (
	"errors"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// prepared is a share that has been read and checked.
type prepared struct {
	do   []func() error
	out  outcome          // of the one step that has some
	left map[dfs.Ino]bool // what loses its name here
}

// outdated refuses a share whose plan does not fit what is there.
func outdated(format string, args ...any) error {
	r := refuse(dfs.Unavailable, format, args...).(*refusal)
	r.outdated = true
	return r
}

// checkShare refuses what no plan holds. Own says that it is the coordinator's share.
func checkShare(share *wire.TxnShare, own bool) error {
	if n := len(share.GetSteps()); n == 0 || n > MaxSteps {
		return refuse(dfs.Invalid, "a share of %d steps: want 1 to %d", n, MaxSteps)
	}
	for _, s := range share.Steps {
		switch s := s.GetStep().(type) {
		case *wire.TxnStep_Create:
			if !own {
				return refuse(dfs.Invalid, "a file is made by the coordinator")
			}
		case *wire.TxnStep_Enter:
			if !own && s.Enter.GetIno() == 0 {
				return refuse(dfs.Invalid, "a directory that is made gets its name from the coordinator")
			}
		case *wire.TxnStep_MakeDir:
			if own || s.MakeDir.GetIno() != 0 {
				return refuse(dfs.Invalid, "a directory is made by a participant, which picks its number")
			}
		}
	}
	return nil
}

// evaluate reads and checks all steps of a share: what they find is what was
// before any of them.
func (c *change) evaluate(share *wire.TxnShare) (*prepared, error) { return c.evaluateBut(share, nil) }

// evaluateBut does not look at inodes that lose a name and are looked at later: they
// must be free, no more.
func (c *change) evaluateBut(share *wire.TxnShare, later map[dfs.Ino]bool) (*prepared, error) {
	p := &prepared{left: map[dfs.Ino]bool{}}
	for _, s := range share.GetSteps() {
		var err error
		if ino := victimOf(s); later[ino] {
			if err = c.free(inodeKey(ino), true); err != nil {
				return nil, err
			}
			continue
		}
		switch s := s.GetStep().(type) {
		case *wire.TxnStep_Leave:
			err = c.leaveStep(p, s.Leave)
		case *wire.TxnStep_Enter:
			err = c.enterStep(p, s.Enter)
		case *wire.TxnStep_Keep:
			err = c.keepStep(s.Keep)
		case *wire.TxnStep_Links:
			err = c.linksStep(p, s.Links)
		case *wire.TxnStep_Moved:
			err = c.movedStep(p, s.Moved)
		case *wire.TxnStep_RemoveDir:
			err = c.removeDirStep(p, s.RemoveDir)
		case *wire.TxnStep_MakeDir:
			err = c.makeDirStep(p, s.MakeDir)
		case *wire.TxnStep_Create:
			err = c.createStep(p, s.Create)
		case *wire.TxnStep_Tree:
			err = c.treeStep()
		default:
			err = refuse(dfs.Unsupported, "a step of an unknown kind")
		}
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

// victimOf returns the inode that loses a name by a step, 0 for none.
func victimOf(s *wire.TxnStep) dfs.Ino {
	if op := s.GetRemoveDir(); op != nil {
		return dfs.Ino(op.Ino)
	}
	if op := s.GetLinks(); op.GetLess() {
		return dfs.Ino(op.Ino)
	}
	return 0
}

// unnamed lists the inodes that lose a name which is an entry of another group:
// until that is prepared too, nobody knows whether they have it.
func unnamed(share *wire.TxnShare) map[dfs.Ino]bool {
	out := map[dfs.Ino]bool{}
	for _, s := range share.GetSteps() {
		if ino := victimOf(s); ino != 0 {
			out[ino] = true
		}
	}
	for _, s := range share.GetSteps() {
		delete(out, dfs.Ino(s.GetLeave().GetIno()))
		delete(out, dfs.Ino(s.GetEnter().GetOld()))
		delete(out, dfs.Ino(s.GetCreate().GetOld()))
	}
	return out
}

// namedEntry returns a directory and an entry of it that must name an inode.
func (c *change) namedEntry(parent uint64, name []byte, ino uint64, typ wire.FileType) (*inode, *dentry, error) {
	if err := checkName(name); err != nil {
		return nil, nil, err
	}
	dir, err := c.openDirectory(dfs.Ino(parent))
	if err != nil {
		return nil, nil, err
	}
	e, err := c.needEntry(dir, name)
	if err != nil {
		return nil, nil, err
	}
	if e.ino != dfs.Ino(ino) || e.typ != typ {
		return nil, nil, outdated("%q is inode %v now", name, e.ino)
	}
	return dir, e, nil
}

// subdirs is how many subdirectories an entry of a type is.
func subdirs(typ wire.FileType) int {
	if typ == wire.FileType_DIR {
		return 1
	}
	return 0
}

func (c *change) leaveStep(p *prepared, op *wire.LeaveStep) error {
	dir, e, err := c.namedEntry(op.GetParent(), op.GetName(), op.GetIno(), op.GetType())
	if err != nil {
		return err
	}
	p.left[e.ino] = true
	p.do = append(p.do, func() error {
		c.resize(dir, -1, -subdirs(e.typ))
		if err := c.dropChild(e.ino, e.typ); err != nil {
			return err
		}
		return c.leave(dir.ino, op.Name, e)
	})
	return nil
}

// dropChild removes the child row of a directory of another group.
func (c *change) dropChild(ino dfs.Ino, typ wire.FileType) error {
	if typ != wire.FileType_DIR || ino.Group() == c.st.group {
		return nil
	}
	return c.delete(childKey(ino))
}

func (c *change) enterStep(p *prepared, op *wire.EnterStep) error {
	if err := checkName(op.GetName()); err != nil {
		return err
	}
	if op.Type < wire.FileType_FILE || op.Type > wire.FileType_SYMLINK {
		return refuse(dfs.Invalid, "an entry of type %v", op.Type)
	}
	dir, err := c.openDirectory(dfs.Ino(op.Parent))
	if err != nil {
		return err
	}
	old, err := c.entry(dir.ino, op.Name)
	if err != nil {
		return err
	}
	switch {
	case old == nil && op.Old != 0:
		return outdated("%q does not exist any more", op.Name)
	case old == nil:
	case op.NoReplace:
		return refuse(dfs.Exist, "%q exists", op.Name)
	case op.Type == wire.FileType_DIR && old.typ != wire.FileType_DIR:
		return refuse(dfs.NotDir, "%q is not a directory", op.Name)
	case op.Type != wire.FileType_DIR && old.typ == wire.FileType_DIR:
		return refuse(dfs.IsDir, "%q is a directory", op.Name)
	case old.ino != dfs.Ino(op.Old):
		return outdated("%q is inode %v now", op.Name, old.ino)
	}
	row, err := readChild(c.tx, dfs.Ino(op.Ino))
	if err != nil {
		return err
	}
	if row != nil && op.Type == wire.FileType_DIR && !p.left[dfs.Ino(op.Ino)] {
		return outdated("directory %v is %q here", dfs.Ino(op.Ino), row.name)
	}
	p.do = append(p.do, func() error {
		ino := dfs.Ino(op.Ino)
		if ino == 0 {
			ino = c.made
		}
		c.resize(dir, 1, subdirs(op.Type))
		if old != nil {
			c.resize(dir, -1, -subdirs(old.typ))
			if err := c.dropChild(old.ino, old.typ); err != nil {
				return err
			}
		}
		if op.Type == wire.FileType_DIR && ino.Group() != c.st.group {
			row := childRow{parent: dir.ino, name: op.Name}
			if err := c.set(childKey(ino), row.append(nil)); err != nil {
				return err
			}
		}
		return c.enter(dir.ino, op.Name, ino, op.Type, old)
	})
	return nil
}

func (c *change) keepStep(op *wire.KeepStep) error {
	_, _, err := c.namedEntry(op.GetParent(), op.GetName(), op.GetIno(), op.GetType())
	var r *refusal
	if errors.As(err, &r) && r.kind == dfs.NotExist {
		err = outdated("%q does not exist any more", op.Name)
	}
	return err
}

func (c *change) linksStep(p *prepared, op *wire.LinksStep) error {
	var n *inode
	var err error
	if op.GetLess() {
		n, err = c.take(dfs.Ino(op.Ino))
	} else {
		n, err = c.linkable(dfs.Ino(op.GetIno()))
	}
	if err != nil {
		return err
	}
	if n.isDir() {
		return outdated("inode %v is a directory", n.ino)
	}
	if op.Less {
		p.do = append(p.do, func() error {
			c.otherwhere(n.ino, dfs.Ino(op.Dir), -1)
			c.unlinkOne(n)
			return nil
		})
		return nil
	}
	p.out.attr = n.wire()
	p.out.attr.Nlink++
	p.do = append(p.do, func() error {
		c.otherwhere(n.ino, dfs.Ino(op.Dir), 1)
		n.nlink++
		c.mark(n)
		p.out.inode = n
		return nil
	})
	return nil
}

// stepInode returns an inode that a share changes, and that no one-sided intent holds.
func (c *change) stepInode(ino uint64) (*inode, error) {
	n, err := c.take(dfs.Ino(ino))
	if err != nil {
		return nil, err
	}
	if n.frozen || n.unlinked {
		return nil, refuse(dfs.Frozen, "directory %v is being made or removed", n.ino)
	}
	return n, nil
}

func (c *change) movedStep(p *prepared, op *wire.MovedStep) error {
	n, err := c.stepInode(op.GetIno())
	if err != nil {
		return err
	}
	if n.isDir() == (op.Parent == 0) {
		return outdated("inode %v is a %v", n.ino, n.typ)
	}
	p.out.attr = n.wire()
	p.out.attr.Parent = op.Parent
	p.do = append(p.do, func() error {
		if n.isDir() {
			n.parent = dfs.Ino(op.Parent)
		} else {
			c.otherwhere(n.ino, dfs.Ino(op.From), -1)
			c.otherwhere(n.ino, dfs.Ino(op.To), 1)
		}
		c.mark(n)
		p.out.inode = n
		return nil
	})
	return nil
}

func (c *change) removeDirStep(p *prepared, op *wire.RemoveDirStep) error {
	n, err := c.stepInode(op.GetIno())
	switch {
	case err != nil:
		return err
	case !n.isDir():
		return outdated("inode %v is no directory", n.ino)
	case n.size > 0:
		return refuse(dfs.NotEmpty, "directory %v has %d entries", n.ino, n.size)
	}
	p.do = append(p.do, func() error {
		c.drop(n)
		return nil
	})
	return nil
}

func (c *change) makeDirStep(p *prepared, op *wire.MakeDirStep) error {
	if op.GetMode() > modeBits {
		return refuse(dfs.Invalid, "mode %o has bits beyond %o", op.Mode, modeBits)
	}
	if err := checkClass(op.GetClass()); err != nil {
		return err
	}
	parent := dfs.Ino(op.GetParent())
	if err := c.checkElsewhere(parent); err != nil {
		return err
	}
	ino := dfs.Ino(op.Ino)
	if ino == 0 {
		var err error
		if ino, err = c.pick(); err != nil {
			return err
		}
		op.Ino = uint64(ino)
	}
	n := c.draft(ino, wire.FileType_DIR, op.Mode, op.ParentMode, op.ParentGid)
	n.nlink, n.parent, n.level, n.class = 2, parent, op.Level, op.Class
	p.out.attr = n.wire()
	p.do = append(p.do, func() error {
		c.add(n)
		p.out.inode = n
		return nil
	})
	return nil
}

func (c *change) createStep(p *prepared, op *wire.CreateStep) error {
	if op.GetOp() == nil {
		return refuse(dfs.Invalid, "a step that creates nothing")
	}
	k, err := c.readCreation(op.Op)
	if err != nil {
		return err
	}
	if k.old == nil || k.old.ino != dfs.Ino(op.Old) || k.old.ino.Group() == c.st.group {
		return outdated("%q is not inode %v of another group any more", op.Op.Name, dfs.Ino(op.Old))
	}
	p.do = append(p.do, func() (err error) {
		p.out, err = c.carryOutCreation(k)
		return err
	})
	return nil
}

func (c *change) treeStep() error {
	if c.st.group != dfs.RootIno.Group() {
		return refuse(dfs.Invalid, "the tree lock is in group %v", dfs.RootIno.Group())
	}
	return c.free(treeKey(), true)
}

// carryOutShare does what a share has been found fit for, and returns what it answers.
func (c *change) carryOutShare(p *prepared) (outcome, error) {
	for _, do := range p.do {
		if err := do(); err != nil {
			return outcome{}, err
		}
	}
	return p.out, nil
}
