package client

import (
	"context"
	"io"
	"iter"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// Stat returns the attributes of what a path names; symlinks are followed.
func (c *Client) Stat(ctx context.Context, path string) (*Attr, error) {
	return c.stat(ctx, path, true)
}

// Lstat is Stat, but a symlink at the end of the path is not followed.
func (c *Client) Lstat(ctx context.Context, path string) (*Attr, error) {
	return c.stat(ctx, path, false)
}

func (c *Client) stat(ctx context.Context, path string, follow bool) (*Attr, error) {
	return op(ctx, c, "stat", path, func(ctx context.Context) (*Attr, error) {
		a, err := c.find(ctx, path, follow)
		if err != nil {
			return nil, err
		}
		return toAttr(a), nil
	})
}

// ReadDir lists a directory: see [Inode.List].
func (c *Client) ReadDir(ctx context.Context, path string, plus bool) iter.Seq2[DirEntry, error] {
	return func(yield func(DirEntry, error) bool) {
		dir, err := c.Resolve(ctx, path)
		if err != nil {
			yield(DirEntry{}, err)
			return
		}
		for e, err := range dir.List(ctx, "", plus) {
			if !yield(e, dfs.Wrap("list", path, err)) {
				return
			}
		}
	}
}

// ReadLink returns the target of a symlink. Error: Invalid when it is none.
func (c *Client) ReadLink(ctx context.Context, path string) (string, error) {
	return op(ctx, c, "read link", path, func(ctx context.Context) (string, error) {
		a, err := c.find(ctx, path, false)
		if err != nil {
			return "", err
		}
		if a.GetType() != wire.FileType_SYMLINK {
			return "", dfs.Errorf(dfs.Invalid, "", "it is a %v", Type(a.GetType()))
		}
		return string(a.GetTarget()), nil
	})
}

// Mkdir makes a directory: see [Inode.Mkdir].
func (c *Client) Mkdir(ctx context.Context, path string, mode uint32) (*Attr, error) {
	return op(ctx, c, "mkdir", path, func(ctx context.Context) (*Attr, error) {
		e, err := c.newEntry(ctx, path)
		if err != nil {
			return nil, err
		}
		return c.mkdir(ctx, e.dir.ino, e.name, mode)
	})
}

// newEntry is findEntry for a directory or other entry that shall be made: what
// has no name of its own exists.
func (c *Client) newEntry(ctx context.Context, path string) (entry, error) {
	e, err := c.findEntry(ctx, path)
	if dfs.KindOf(err) == dfs.Invalid {
		if _, ferr := c.find(ctx, path, true); ferr == nil {
			return entry{}, dfs.Errorf(dfs.Exist, "", "")
		}
	}
	return e, err
}

// MkdirAll makes a directory and those above it that are missing, all with the
// same mode. It is no error when it exists.
func (c *Client) MkdirAll(ctx context.Context, path string, mode uint32) (*Attr, error) {
	return op(ctx, c, "mkdir", path, func(ctx context.Context) (*Attr, error) {
		names, _, err := splitPath(path)
		if err != nil {
			return nil, err
		}
		w := c.walker(names, true, true)
		for {
			_, missing, err := w.run(ctx)
			switch {
			case err == nil && missing == nil:
				a, err := w.top(ctx)
				if err != nil {
					return nil, err
				}
				return toAttr(a), nil
			case err != nil && (dfs.KindOf(err) != dfs.NotExist || len(w.names) == 0):
				return nil, err
			}
			_, err = c.mkdir(ctx, w.stack[len(w.stack)-1].ino, string(w.names[0]), mode)
			if err != nil && dfs.KindOf(err) != dfs.Exist {
				return nil, err
			}
		}
	})
}

// PutFile makes a file with content: see [Inode.PutFile]. A symlink at the end
// of the path is not followed.
func (c *Client) PutFile(ctx context.Context, path string, opts PutOptions, r io.Reader) (*Attr, error) {
	return run(ctx, c, "put", path, func(ctx context.Context) (*Attr, error) {
		find, cancel := c.timed(ctx)
		e, err := c.findEntry(find, path)
		cancel()
		if err != nil {
			return nil, err
		}
		if e.mustDir {
			return nil, dfs.Errorf(dfs.IsDir, "", "the path ends like a directory's")
		}
		return c.putFile(ctx, e.dir, e.name, opts, r)
	})
}

// Open opens a file: see [Inode.Open]. Symlinks are followed.
func (c *Client) Open(ctx context.Context, path string) (*File, error) {
	return op(ctx, c, "open", path, func(ctx context.Context) (*File, error) {
		a, err := c.find(ctx, path, true)
		if err != nil {
			return nil, err
		}
		return c.open(a)
	})
}

// GetFile writes the whole file to w, as [File.WriteTo] does: the answer that
// finds the file says where its bytes are too. Symlinks are followed.
func (c *Client) GetFile(ctx context.Context, path string, w io.Writer) (int64, error) {
	return run(ctx, c, "get", path, func(ctx context.Context) (int64, error) {
		a, found, err := c.findFile(ctx, path)
		if err != nil {
			return 0, err
		}
		s := &stream{c: c, ino: dfs.Ino(a.GetIno()), w: w}
		if found != nil {
			s.found = &layout{}
			if err := s.found.add(s.ino, found.Extents); err != nil {
				return 0, err
			}
			s.attr = a
		}
		return s.all(ctx)
	})
}

// Symlink makes a symlink: see [Inode.Symlink].
func (c *Client) Symlink(ctx context.Context, target, path string, opts PutOptions) (*Attr, error) {
	return op(ctx, c, "symlink", path, func(ctx context.Context) (*Attr, error) {
		e, err := c.newEntry(ctx, path)
		if err != nil {
			return nil, err
		}
		if e.mustDir {
			return nil, dfs.Errorf(dfs.NotExist, "", "the path ends like a directory's")
		}
		return c.symlink(ctx, e.dir.ino, e.name, target, opts)
	})
}

// Link gives the file or symlink at a path one more: see [Inode.Link].
func (c *Client) Link(ctx context.Context, path, newPath string) (*Attr, error) {
	return op(ctx, c, "link", newPath, func(ctx context.Context) (*Attr, error) {
		a, err := c.find(ctx, path, false)
		if err != nil {
			return nil, dfs.Wrap("find", path, err)
		}
		e, err := c.newEntry(ctx, newPath)
		if err != nil {
			return nil, err
		}
		return c.link(ctx, e.dir.ino, e.name, dfs.Ino(a.GetIno()))
	})
}

// Rename moves what is at a path to another: see [Inode.Rename].
func (c *Client) Rename(ctx context.Context, path, newPath string, noReplace bool) error {
	return opErr(ctx, c, "rename", path, func(ctx context.Context) error {
		from, err := c.findEntry(ctx, path)
		if err != nil {
			return err
		}
		to, err := c.findEntry(ctx, newPath)
		if err != nil {
			return dfs.Wrap("rename to", newPath, err)
		}
		if from.mustDir || to.mustDir {
			if a, err := c.find(ctx, path, false); err != nil {
				return err
			} else if a.GetType() != wire.FileType_DIR {
				return dfs.Errorf(dfs.NotDir, "", "")
			}
		}
		return c.rename(ctx, from.dir.ino, from.name, to.dir.ino, to.name, noReplace)
	})
}

// Remove removes a file or symlink: see [Inode.Remove].
func (c *Client) Remove(ctx context.Context, path string) error {
	return opErr(ctx, c, "remove", path, func(ctx context.Context) error {
		e, err := c.findEntry(ctx, path)
		if err != nil {
			return err
		}
		if e.mustDir {
			if _, err := c.find(ctx, path, true); err != nil {
				return err
			}
			return dfs.Errorf(dfs.IsDir, "", "")
		}
		return c.unlink(ctx, e.dir.ino, e.name)
	})
}

// Rmdir removes an empty directory: see [Inode.Rmdir].
func (c *Client) Rmdir(ctx context.Context, path string) error {
	return opErr(ctx, c, "rmdir", path, func(ctx context.Context) error {
		e, err := c.findEntry(ctx, path)
		if err != nil {
			return err
		}
		return c.rmdir(ctx, e.dir.ino, e.name)
	})
}

// SetAttr changes attributes of what a path names and returns all of them;
// symlinks are followed.
func (c *Client) SetAttr(ctx context.Context, path string, set SetAttr) (*Attr, error) {
	return op(ctx, c, "set attributes", path, func(ctx context.Context) (*Attr, error) {
		a, err := c.find(ctx, path, true)
		if err != nil {
			return nil, err
		}
		return c.setAttr(ctx, dfs.Ino(a.GetIno()), set)
	})
}

// SetCompression sets what new blocks of a class are compressed with. Blocks that
// exist keep their codec. Other clients follow with their next map, within seconds.
func (c *Client) SetCompression(ctx context.Context, class dfs.Class, codec dfs.Codec) error {
	return opErr(ctx, c, "set class", class.String(), func(ctx context.Context) error {
		if c.opts.ReadOnly {
			return dfs.Errorf(dfs.ReadOnly, "", "the client is read-only")
		}
		setting := wire.FromClassSetting(dfs.ClassSetting{Class: class, Codec: codec})
		return c.book.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, m wire.DRPCMetaClient) error {
			_, err := m.SetClass(ctx, &wire.SetClassRequest{Setting: setting})
			return err
		})
	})
}

// SetPolicy sets the storage class of a directory: see [Inode.SetPolicy].
func (c *Client) SetPolicy(ctx context.Context, path string, class dfs.Class) error {
	return opErr(ctx, c, "set policy", path, func(ctx context.Context) error {
		a, err := c.find(ctx, path, true)
		if err != nil {
			return err
		}
		return c.setPolicy(ctx, dfs.Ino(a.GetIno()), class)
	})
}
