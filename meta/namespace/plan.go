package namespace

import (
	"dfsd/dfs"
	"dfsd/transport/wire"
)

// Entry is what a name is, or an inode: number and type, zero when it does not exist.
type Entry struct {
	Ino  dfs.Ino
	Type wire.FileType
}

// Facts is what the plan of a transaction goes by. Whatever is not so any more
// when a share is prepared makes the plan outdated, and no harm. An entry of a
// directory that does not exist, or is none, does not exist: the refusal of the
// command, or of the share, says more.
type Facts struct {
	Entry  Entry       // what the command's name is; of a link: the inode
	Target Entry       // of a rename: what the new name is
	Place  dfs.GroupID // of a mkdir: the group of the new directory
}

// Plan is who does what.
type Plan struct {
	Parts []*wire.TxnPart // the coordinator's first

	// Of a directory that gets a new parent: it and that. Once the tree lock is
	// held (the part of the root's group is prepared), Moved must not lie above
	// Under, nor be it.
	Moved, Under dfs.Ino
}

// Coordinator returns the group that a command goes to, and which coordinates it
// where it takes more than one: 0 for what is no command about names.
func Coordinator(cmd *wire.Command) dfs.GroupID {
	switch op := cmd.GetOp().(type) {
	case *wire.Command_Mkdir:
		return dfs.Ino(op.Mkdir.GetParent()).Group()
	case *wire.Command_Rmdir:
		return dfs.Ino(op.Rmdir.GetParent()).Group()
	case *wire.Command_Create:
		return dfs.Ino(op.Create.GetParent()).Group()
	case *wire.Command_Unlink:
		return dfs.Ino(op.Unlink.GetParent()).Group()
	case *wire.Command_Link:
		return dfs.Ino(op.Link.GetParent()).Group()
	case *wire.Command_Rename:
		return dfs.Ino(op.Rename.GetParent()).Group()
	}
	return 0
}

// MakePlan says which groups take part in a command and what each does. Nil: the
// coordinator's group carries the command out, or refuses it, alone. It is for
// commands that were answered CrossGroup, and those of which that is clear: a
// directory that gets a new parent always has a plan, though the root's group can
// mostly do without one.
func MakePlan(cmd *wire.Command, f Facts) *Plan {
	p := &planner{own: Coordinator(cmd)}
	switch op := cmd.GetOp().(type) {
	case *wire.Command_Mkdir:
		p.mkdir(op.Mkdir, f)
	case *wire.Command_Rmdir:
		p.rmdir(op.Rmdir, f)
	case *wire.Command_Create:
		p.create(op.Create, f)
	case *wire.Command_Unlink:
		p.unlink(op.Unlink, f)
	case *wire.Command_Link:
		p.link(op.Link, f)
	case *wire.Command_Rename:
		p.rename(op.Rename, f)
	}
	plan := &Plan{Parts: p.parts}
	if plan.Moved, plan.Under = moveOf(p.parts); len(p.parts) < 2 && plan.Moved == 0 {
		return nil
	}
	return plan
}

// moveOf returns the directory that gets a new parent by some shares, and that.
func moveOf(parts []*wire.TxnPart) (moved, under dfs.Ino) {
	holdsTree := false
	for _, p := range parts {
		for _, s := range p.GetShare().GetSteps() {
			holdsTree = holdsTree || s.GetTree() != nil
			if m := s.GetMoved(); m.GetParent() != 0 {
				moved, under = dfs.Ino(m.Ino), dfs.Ino(m.Parent)
			}
		}
	}
	if !holdsTree {
		return 0, 0
	}
	return moved, under
}

type planner struct {
	own   dfs.GroupID
	parts []*wire.TxnPart
}

// in has a group take a step.
func (p *planner) in(g dfs.GroupID, step *wire.TxnStep) {
	for _, part := range p.parts {
		if dfs.GroupID(part.Group) == g {
			part.Share.Steps = append(part.Share.Steps, step)
			return
		}
	}
	p.parts = append(p.parts, &wire.TxnPart{Group: uint32(g), Share: &wire.TxnShare{Steps: []*wire.TxnStep{step}}})
}

func (p *planner) leave(parent uint64, name []byte, e Entry) {
	p.in(dfs.Ino(parent).Group(), &wire.TxnStep{Step: &wire.TxnStep_Leave{Leave: &wire.LeaveStep{Parent: parent, Name: name, Ino: uint64(e.Ino), Type: e.Type}}})
}

func (p *planner) enter(op *wire.EnterStep) {
	p.in(dfs.Ino(op.Parent).Group(), &wire.TxnStep{Step: &wire.TxnStep_Enter{Enter: op}})
}

func (p *planner) links(ino dfs.Ino, dir uint64, less bool) {
	p.in(ino.Group(), &wire.TxnStep{Step: &wire.TxnStep_Links{Links: &wire.LinksStep{Ino: uint64(ino), Less: less, Dir: dir}}})
}

func (p *planner) removeDir(ino dfs.Ino) {
	p.in(ino.Group(), &wire.TxnStep{Step: &wire.TxnStep_RemoveDir{RemoveDir: &wire.RemoveDirStep{Ino: uint64(ino)}}})
}

func (p *planner) mkdir(op *wire.MkdirOp, f Facts) {
	if f.Entry.Ino != 0 || f.Place == p.own || f.Place == 0 {
		return
	}
	p.enter(&wire.EnterStep{Parent: op.Parent, Name: op.Name, Type: wire.FileType_DIR, NoReplace: true})
	p.in(f.Place, &wire.TxnStep{Step: &wire.TxnStep_MakeDir{MakeDir: &wire.MakeDirStep{Parent: op.Parent, Mode: op.Mode}}})
}

func (p *planner) rmdir(op *wire.RmdirOp, f Facts) {
	if f.Entry.Type != wire.FileType_DIR || f.Entry.Ino.Group() == p.own {
		return
	}
	p.leave(op.Parent, op.Name, f.Entry)
	p.removeDir(f.Entry.Ino)
}

func (p *planner) create(op *wire.CreateOp, f Facts) {
	if f.Entry.Ino == 0 || f.Entry.Ino.Group() == p.own || f.Entry.Type == wire.FileType_DIR || !op.Replace {
		return
	}
	p.in(p.own, &wire.TxnStep{Step: &wire.TxnStep_Create{Create: &wire.CreateStep{Op: op, Old: uint64(f.Entry.Ino)}}})
	p.links(f.Entry.Ino, op.Parent, true)
}

func (p *planner) unlink(op *wire.UnlinkOp, f Facts) {
	if f.Entry.Ino == 0 || f.Entry.Ino.Group() == p.own || f.Entry.Type == wire.FileType_DIR {
		return
	}
	p.leave(op.Parent, op.Name, f.Entry)
	p.links(f.Entry.Ino, op.Parent, true)
}

func (p *planner) link(op *wire.LinkOp, f Facts) {
	ino := dfs.Ino(op.Ino)
	if ino.Group() == p.own || ino.Group() == dfs.ControlGroup {
		return
	}
	typ := f.Entry.Type
	if typ == wire.FileType_NONE || typ == wire.FileType_DIR {
		typ = wire.FileType_FILE // the inode's group refuses
	}
	p.enter(&wire.EnterStep{Parent: op.Parent, Name: op.Name, Ino: op.Ino, Type: typ, NoReplace: true})
	p.links(ino, op.Parent, false)
}

func (p *planner) rename(op *wire.RenameOp, f Facts) {
	from, to, e := dfs.Ino(op.Parent), dfs.Ino(op.NewParent), f.Entry
	if e.Ino == 0 || to.Group() == dfs.ControlGroup {
		return
	}
	if f.Target.Ino == e.Ino { // two names of one inode: both stay
		for _, side := range []*wire.KeepStep{
			{Parent: op.Parent, Name: op.Name, Ino: uint64(e.Ino), Type: e.Type}, {Parent: op.NewParent, Name: op.NewName, Ino: uint64(e.Ino), Type: e.Type},
		} {
			p.in(dfs.Ino(side.Parent).Group(), &wire.TxnStep{Step: &wire.TxnStep_Keep{Keep: side}})
		}
		return
	}
	isDir := e.Type == wire.FileType_DIR
	p.leave(op.Parent, op.Name, e)
	p.enter(&wire.EnterStep{
		Parent: op.NewParent, Name: op.NewName, Ino: uint64(e.Ino), Type: e.Type, Old: uint64(f.Target.Ino), NoReplace: op.NoReplace,
	})
	moved := &wire.MovedStep{Ino: uint64(e.Ino)}
	switch {
	case isDir && from != to:
		moved.Parent = op.NewParent
		p.in(dfs.RootIno.Group(), &wire.TxnStep{Step: &wire.TxnStep_Tree{Tree: &wire.TreeStep{}}})
		p.in(e.Ino.Group(), &wire.TxnStep{Step: &wire.TxnStep_Moved{Moved: moved}})
	case from != to:
		moved.From, moved.To = op.Parent, op.NewParent
		p.in(e.Ino.Group(), &wire.TxnStep{Step: &wire.TxnStep_Moved{Moved: moved}})
	case e.Ino.Group() == p.own: // elsewhere only the names change
		if isDir {
			moved.Parent = op.Parent
		}
		p.in(p.own, &wire.TxnStep{Step: &wire.TxnStep_Moved{Moved: moved}})
	}
	switch {
	case f.Target.Ino == 0:
	case (f.Target.Type == wire.FileType_DIR) != isDir: // the new parent's group refuses
	case isDir:
		p.removeDir(f.Target.Ino)
	default:
		p.links(f.Target.Ino, op.NewParent, true)
	}
}

// entryOf answers what a name is.
func (v view) entryOf(q *wire.EntryQuery) (*wire.EntryResult, error) {
	if err := checkName(q.GetName()); err != nil {
		return nil, err
	}
	dir, err := v.directory(dfs.Ino(q.Parent))
	if err != nil {
		return nil, err
	}
	e, err := v.dentry(dir.ino, q.Name)
	if err != nil {
		return nil, err
	}
	out := &wire.EntryResult{Parent: dir.wire()}
	if e != nil {
		out.Ino, out.Type = uint64(e.ino), e.typ
	}
	return out, nil
}

// above lists a directory and those above it as far as they are of this group. Who
// holds the tree lock and asks group after group gets all of the way to the root,
// as it is until the lock ends.
func (v view) above(q *wire.AboveQuery, st *state) (*wire.AboveResult, error) {
	v.own = holderOf(q.GetTxn())
	out := &wire.AboveResult{Level: st.level}
	n, err := v.directory(dfs.Ino(q.GetIno()))
	for range MaxDepth {
		if err != nil {
			return nil, err
		}
		out.Path = append(out.Path, uint64(n.ino))
		switch {
		case n.ino == dfs.RootIno:
			return out, nil
		case n.parent.Group() != v.g:
			out.Next = uint64(n.parent)
			return out, nil
		}
		n, err = v.need(n.parent)
	}
	return nil, refuse(dfs.TooLarge, "more than %d directories lie above", MaxDepth)
}
