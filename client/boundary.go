package client

import (
	"context"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// mkdir makes a directory in the group that the parent's leader chooses.
func (c *Client) mkdir(ctx context.Context, parent dfs.Ino, name string, mode uint32) (*Attr, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	s, err := c.session(ctx)
	if err != nil {
		return nil, err
	}
	res, err := c.query(ctx, parent.Group(), &wire.Query{Query: &wire.Query_PlaceDir{PlaceDir: &wire.PlaceDirQuery{Parent: uint64(parent), Name: []byte(name)}}})
	if err != nil {
		return nil, err
	}
	where := res.GetPlaceDir()
	g := dfs.GroupID(where.GetGroup())
	if g == parent.Group() {
		op := &wire.MkdirOp{Parent: uint64(parent), Name: []byte(name), Mode: mode}
		return c.changeAttr(ctx, g, &wire.Command{Op: &wire.Command_Mkdir{Mkdir: op}})
	}
	// Placing a directory that exists already would cost two commits for nothing.
	if _, err := c.lookup(ctx, parent, []byte(name)); err == nil {
		return nil, dfs.Errorf(dfs.Exist, "", "")
	} else if dfs.KindOf(err) != dfs.NotExist {
		return nil, err
	}
	b := &boundary{s: s, parent: parent, name: []byte(name)}
	err = b.finish(ctx, func(ctx context.Context) error {
		return b.mkdir(ctx, g, &wire.MkdirPrepareOp{
			Parent: uint64(parent), Name: []byte(name), Mode: mode, Level: where.GetParent().GetLevel() + 1, Class: where.GetClass(),
			ParentMode: where.GetParent().GetMode(), ParentGid: where.GetParent().GetGid(),
		})
	})
	if err != nil {
		return nil, err
	}
	return toAttr(b.attr), nil
}

// rmdir removes an empty directory.
func (c *Client) rmdir(ctx context.Context, parent dfs.Ino, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	s, err := c.session(ctx)
	if err != nil {
		return err
	}
	op := &wire.RmdirOp{Parent: uint64(parent), Name: []byte(name)}
	_, err = s.mutate(ctx, parent.Group(), &wire.Command{Op: &wire.Command_Rmdir{Rmdir: op}})
	if dfs.KindOf(err) != dfs.CrossGroup {
		return err
	}
	child, err := c.lookup(ctx, parent, []byte(name))
	if err != nil {
		return err
	}
	b := &boundary{s: s, parent: parent, name: []byte(name), child: child}
	return b.finish(ctx, b.rmdir)
}

// boundary is a mkdir or rmdir of a directory that lives in another group than
// its parent. It leaves an intent in the child's group, which must be ended as
// the parent's group decides:
//
//	             child's group     parent's group    child's group
//	mkdir  ───▶  prepare  ───────▶ commit  ────────▶ resolve
//	rmdir  ───▶  freeze   ───────▶ commit  ────────▶ resolve
//
// While the session lives nobody else may end the intent, so the steps go on,
// without their caller where its time is over, until they are done or the
// session is lost. The leader of the child's group ends it then.
type boundary struct {
	s      *session
	parent dfs.Ino
	name   []byte
	child  dfs.Ino
	attr   *wire.Attr // of the directory that was made
}

// finish runs the steps, once there is room for them, and waits for them, or until
// ctx ends. B may be used
// after it returned nil only.
func (b *boundary) finish(ctx context.Context, steps func(context.Context) error) error {
	done := make(chan error, 1)
	select {
	case b.s.boundaries <- struct{}{}:
	case <-b.s.ctx.Done():
		return b.s.gaveUp(ctx, false, ended(b.s.ctx))
	case <-ctx.Done():
		return b.s.gaveUp(ctx, false, ended(ctx))
	}
	b.s.c.work.Go(func() {
		defer func() { <-b.s.boundaries }()
		done <- steps(b.s.ctx)
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return &dfs.Error{Kind: dfs.Unknown, Text: "it goes on in the background", Err: ended(ctx)}
	}
}

func (b *boundary) mkdir(ctx context.Context, g dfs.GroupID, prepare *wire.MkdirPrepareOp) error {
	res, err := b.s.mutate(ctx, g, &wire.Command{Op: &wire.Command_MkdirPrepare{MkdirPrepare: prepare}})
	if err != nil {
		return err
	}
	b.attr, b.child = res.GetAttr(), dfs.Ino(res.GetAttr().GetIno())
	commit := &wire.MkdirCommitOp{Parent: uint64(b.parent), Name: b.name, Child: uint64(b.child)}
	_, err = b.s.mutate(ctx, b.parent.Group(), &wire.Command{Op: &wire.Command_MkdirCommit{MkdirCommit: commit}})
	if err != nil {
		return b.abandon(ctx, res.GetVersion(), false, err)
	}
	if linked := b.end(ctx, res.GetVersion(), true); linked != nil {
		b.attr = linked
	}
	return nil
}

func (b *boundary) rmdir(ctx context.Context) error {
	freeze := &wire.RmdirFreezeOp{Child: uint64(b.child), Parent: uint64(b.parent), Name: b.name}
	res, err := b.s.mutate(ctx, b.child.Group(), &wire.Command{Op: &wire.Command_RmdirFreeze{RmdirFreeze: freeze}})
	if err != nil {
		return err
	}
	commit := &wire.RmdirCommitOp{Parent: uint64(b.parent), Name: b.name, Child: uint64(b.child)}
	_, err = b.s.mutate(ctx, b.parent.Group(), &wire.Command{Op: &wire.Command_RmdirCommit{RmdirCommit: commit}})
	if err != nil {
		// It was renamed, or the parent is gone: only the parent's group knows
		// whether the directory has another name now.
		q := &wire.Query{Query: &wire.Query_Child{Child: &wire.ChildQuery{Child: uint64(b.child), Session: uint64(b.s.id), Parent: uint64(b.parent)}}}
		answer, qerr := b.s.c.query(ctx, b.parent.Group(), q)
		if qerr != nil {
			return err
		}
		return b.abandon(ctx, res.GetVersion(), answer.GetChild().GetLinked(), err)
	}
	b.end(ctx, res.GetVersion(), false)
	return nil
}

// abandon ends the intent after the parent's group refused with err, which it
// returns. Without a definite refusal the intent stays: the commit may have
// been carried out.
func (b *boundary) abandon(ctx context.Context, intent uint64, linked bool, err error) error {
	if ctx.Err() == nil && dfs.KindOf(err) != dfs.Unknown {
		b.end(ctx, intent, linked)
	}
	return err
}

// end ends the intent as the parent's group has decided, and returns the
// directory's attributes where it has some then. Whether it succeeds changes
// nothing of what was decided: an intent that stays is ended by the leader of
// the child's group once the session is over.
func (b *boundary) end(ctx context.Context, intent uint64, linked bool) *wire.Attr {
	op := &wire.ResolveOp{Child: uint64(b.child), Linked: linked, Intent: intent}
	res, err := b.s.mutate(ctx, b.child.Group(), &wire.Command{Op: &wire.Command_Resolve{Resolve: op}})
	if err != nil {
		b.s.c.log.Warn("an intent stays until the session ends", "child", b.child.String(), "cause", err)
	}
	return res.GetAttr()
}
