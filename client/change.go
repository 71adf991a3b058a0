package client

import (
	"context"
	"slices"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// change carries one command out in a group.
func (c *Client) change(ctx context.Context, g dfs.GroupID, cmd *wire.Command) (*wire.Result, error) {
	s, err := c.session(ctx)
	if err != nil {
		return nil, err
	}
	return s.mutate(ctx, g, cmd)
}

// changeAttr is change for commands that answer with attributes.
func (c *Client) changeAttr(ctx context.Context, g dfs.GroupID, cmd *wire.Command) (*Attr, error) {
	res, err := c.change(ctx, g, cmd)
	if err != nil {
		return nil, err
	}
	if res.GetAttr() == nil {
		return nil, dfs.Errorf(dfs.Internal, "", "group %v answered without attributes", g)
	}
	return toAttr(res.Attr), nil
}

// mkdir makes a directory, in the group that the leader of the parent's chooses.
func (c *Client) mkdir(ctx context.Context, parent dfs.Ino, name string, mode uint32) (*Attr, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	op := &wire.MkdirOp{Parent: uint64(parent), Name: []byte(name), Mode: mode}
	return c.changeAttr(ctx, parent.Group(), &wire.Command{Op: &wire.Command_Mkdir{Mkdir: op}})
}

// rmdir removes an empty directory.
func (c *Client) rmdir(ctx context.Context, parent dfs.Ino, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	op := &wire.RmdirOp{Parent: uint64(parent), Name: []byte(name)}
	_, err := c.change(ctx, parent.Group(), &wire.Command{Op: &wire.Command_Rmdir{Rmdir: op}})
	return err
}

func (c *Client) unlink(ctx context.Context, dir dfs.Ino, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	op := &wire.UnlinkOp{Parent: uint64(dir), Name: []byte(name)}
	_, err := c.change(ctx, dir.Group(), &wire.Command{Op: &wire.Command_Unlink{Unlink: op}})
	return err
}

func (c *Client) symlink(ctx context.Context, dir dfs.Ino, name, target string, opts PutOptions) (*Attr, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	op := opts.create(dir, name)
	op.Type, op.Mode, op.Class, op.Target = wire.FileType_SYMLINK, 0, "", []byte(target)
	a, err := c.changeAttr(ctx, dir.Group(), &wire.Command{Op: &wire.Command_Create{Create: op}})
	if err != nil || opts.Owner == nil || opts.Owner.is(a) {
		return a, err
	}
	return c.setAttr(ctx, a.Ino, SetAttr{UID: &opts.Owner.UID, GID: &opts.Owner.GID})
}

func (c *Client) link(ctx context.Context, dir dfs.Ino, name string, ino dfs.Ino) (*Attr, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	op := &wire.LinkOp{Ino: uint64(ino), Parent: uint64(dir), Name: []byte(name)}
	return c.changeAttr(ctx, dir.Group(), &wire.Command{Op: &wire.Command_Link{Link: op}})
}

func (c *Client) rename(ctx context.Context, dir dfs.Ino, name string, to dfs.Ino, newName string, noReplace bool) error {
	for _, n := range []string{name, newName} {
		if err := checkName(n); err != nil {
			return err
		}
	}
	op := &wire.RenameOp{Parent: uint64(dir), Name: []byte(name), NewParent: uint64(to), NewName: []byte(newName), NoReplace: noReplace}
	_, err := c.change(ctx, dir.Group(), &wire.Command{Op: &wire.Command_Rename{Rename: op}})
	return err
}

func (c *Client) setAttr(ctx context.Context, ino dfs.Ino, set SetAttr) (*Attr, error) {
	return c.changeAttr(ctx, ino.Group(), set.command(ino))
}

func (c *Client) setPolicy(ctx context.Context, ino dfs.Ino, class dfs.Class) error {
	op := &wire.SetPolicyOp{Ino: uint64(ino)}
	var err error
	if class.IsZero() {
		op.Inherited, err = c.inheritedClass(ctx, ino)
	} else {
		op.Class = class.String()
		err = c.wantClass(ctx, class)
	}
	if err != nil {
		return err
	}
	_, err = c.change(ctx, ino.Group(), &wire.Command{Op: &wire.Command_SetPolicy{SetPolicy: op}})
	return err
}

// inheritedClass names the class that a directory inherits where its group cannot
// tell, because the parent lives in another one; else it is nil.
func (c *Client) inheritedClass(ctx context.Context, ino dfs.Ino) (*string, error) {
	a, err := c.attr(ctx, ino)
	if err != nil || dfs.Ino(a.GetParent()).Group() == ino.Group() || a.GetParent() == 0 {
		return nil, err
	}
	parent, err := c.attr(ctx, dfs.Ino(a.GetParent()))
	if err != nil {
		return nil, err
	}
	class := parent.GetClass()
	return &class, nil
}

// wantClass has the control group make placement groups of a class that has
// none. They are in a later map, once there are stores enough.
func (c *Client) wantClass(ctx context.Context, class dfs.Class) error {
	if slices.ContainsFunc(c.Map().PGs, func(pg *dfs.PG) bool { return pg.Class == class }) {
		return nil
	}
	return c.book.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, m wire.DRPCMetaClient) error {
		_, err := m.WantClass(ctx, &wire.WantClassRequest{Class: class.String()})
		return err
	})
}
