package client

import (
	"context"
	"io"
	"iter"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// Inode is a handle to a file, directory or symlink: by number, so that it stays
// what it is when names change. Its methods take names of entries, not paths,
// and follow no symlinks.
type Inode struct {
	c    *Client
	ino  dfs.Ino
	attr *wire.Attr // as it was when the handle was made; nil: not known
}

// Inode returns the handle of an inode number; nothing is asked.
func (c *Client) Inode(ino dfs.Ino) Inode { return Inode{c: c, ino: ino} }

// Resolve returns the handle of what a path names; symlinks are followed.
func (c *Client) Resolve(ctx context.Context, path string) (Inode, error) {
	return op(ctx, c, "resolve", path, func(ctx context.Context) (Inode, error) {
		a, err := c.find(ctx, path, true)
		return Inode{c: c, ino: dfs.Ino(a.GetIno()), attr: a}, err
	})
}

// Ino returns the inode number.
func (i Inode) Ino() dfs.Ino { return i.ino }

// Attr returns the attributes.
func (i Inode) Attr(ctx context.Context) (*Attr, error) {
	return op(ctx, i.c, "stat", i.ino.String(), func(ctx context.Context) (*Attr, error) {
		a, err := i.c.attr(ctx, i.ino)
		if err != nil {
			return nil, err
		}
		return toAttr(a), nil
	})
}

// Lookup returns the attributes of a directory's entry.
func (i Inode) Lookup(ctx context.Context, name string) (*Attr, error) {
	return op(ctx, i.c, "look up", name, func(ctx context.Context) (*Attr, error) {
		if err := checkName(name); err != nil {
			return nil, err
		}
		a, err := i.c.entryAttr(ctx, i.ino, []byte(name))
		if err != nil {
			return nil, err
		}
		return toAttr(a), nil
	})
}

// List returns the entries of a directory that come after a name, "" for all, in
// the order of their bytes; with attributes when plus is set. Entries made or
// removed meanwhile may or may not be among them. An error ends the sequence.
func (i Inode) List(ctx context.Context, after string, plus bool) iter.Seq2[DirEntry, error] {
	return func(yield func(DirEntry, error) bool) {
		for {
			page, err := op(ctx, i.c, "list", i.ino.String(), func(ctx context.Context) (dirPage, error) {
				return i.c.readDir(ctx, i.ino, after, plus)
			})
			if err != nil {
				yield(DirEntry{}, err)
				return
			}
			for _, e := range page.entries {
				if !yield(e, nil) {
					return
				}
			}
			if !page.more {
				return
			}
			after = page.last
		}
	}
}

// dirPage is one answer of a listing.
type dirPage struct {
	entries []DirEntry
	more    bool
	last    string // where the next page goes on
}

func (c *Client) readDir(ctx context.Context, dir dfs.Ino, after string, plus bool) (dirPage, error) {
	res, err := c.query(ctx, dir.Group(), &wire.Query{Query: &wire.Query_ReadDir{ReadDir: &wire.ReadDirQuery{
		Ino: uint64(dir), After: []byte(after), Limit: maxPage, Plus: plus,
	}}})
	if err != nil {
		return dirPage{}, err
	}
	rd := res.GetReadDir()
	if rd.GetMore() && len(rd.GetEntries()) == 0 {
		return dirPage{}, dfs.Errorf(dfs.Internal, "", "a page of the listing is empty")
	}
	out := dirPage{more: rd.GetMore()}
	elsewhere := map[dfs.GroupID][]uint64{} // inodes that the group has no attributes of
	for _, e := range rd.GetEntries() {
		out.last = string(e.GetName())
		if plus && e.GetAttr() == nil {
			g := dfs.Ino(e.GetIno()).Group()
			elsewhere[g] = append(elsewhere[g], e.GetIno())
		}
	}
	found := map[uint64]*wire.Attr{}
	for g, inos := range elsewhere {
		got, err := c.attrs(ctx, g, inos)
		if err != nil {
			return dirPage{}, err
		}
		for n, a := range got {
			found[inos[n]] = a
		}
	}
	for _, e := range rd.GetEntries() {
		d := DirEntry{Name: string(e.GetName()), Ino: dfs.Ino(e.GetIno()), Type: Type(e.GetType())}
		if plus {
			a := e.GetAttr()
			if a == nil {
				a = found[e.GetIno()]
			}
			if a == nil { // it is gone, and something else may have its name
				var err error
				if a, err = c.entryAttr(ctx, dir, e.GetName()); dfs.KindOf(err) == dfs.NotExist {
					continue
				} else if err != nil {
					return dirPage{}, err
				}
				d.Ino, d.Type = dfs.Ino(a.GetIno()), Type(a.GetType())
			}
			d.Attr = toAttr(a)
		}
		out.entries = append(out.entries, d)
	}
	return out, nil
}

// Mkdir makes a directory in this one. Errors: Exist, NotDir, NotExist and others.
func (i Inode) Mkdir(ctx context.Context, name string, mode uint32) (*Attr, error) {
	return op(ctx, i.c, "mkdir", name, func(ctx context.Context) (*Attr, error) { return i.c.mkdir(ctx, i.ino, name, mode) })
}

// Rmdir removes an empty directory from this one. Errors: NotEmpty, NotDir, NotExist and others.
func (i Inode) Rmdir(ctx context.Context, name string) error {
	return opErr(ctx, i.c, "rmdir", name, func(ctx context.Context) error { return i.c.rmdir(ctx, i.ino, name) })
}

// Remove removes the name of a file or symlink from this directory, and the
// inode with its last name. Errors: IsDir, NotExist and others.
func (i Inode) Remove(ctx context.Context, name string) error {
	return opErr(ctx, i.c, "remove", name, func(ctx context.Context) error { return i.c.unlink(ctx, i.ino, name) })
}

// PutFile makes a file in this directory with everything that r gives: the whole
// of it or nothing appears. R is read until io.EOF; nil is an empty file. A
// handle that Resolve made goes by the directory's storage class as it was then.
func (i Inode) PutFile(ctx context.Context, name string, opts PutOptions, r io.Reader) (*Attr, error) {
	return run(ctx, i.c, "put", name, func(ctx context.Context) (*Attr, error) {
		return i.c.putFile(ctx, place{ino: i.ino, attr: i.attr}, name, opts, r)
	})
}

// Symlink makes a symlink in this directory. Mode and Class of the options mean nothing.
func (i Inode) Symlink(ctx context.Context, name, target string, opts PutOptions) (*Attr, error) {
	return op(ctx, i.c, "symlink", name, func(ctx context.Context) (*Attr, error) {
		return i.c.symlink(ctx, i.ino, name, target, opts)
	})
}

// Link gives a file one more name, in this directory. Errors: Exist, IsDir and others.
func (i Inode) Link(ctx context.Context, name string, file Inode) (*Attr, error) {
	return op(ctx, i.c, "link", name, func(ctx context.Context) (*Attr, error) { return i.c.link(ctx, i.ino, name, file.ino) })
}

// Rename moves an entry of this directory to a name in another one, or the
// same, atomically, in place of what has the name unless noReplace is set.
// Errors: Exist, NotEmpty, IsDir, NotDir; Invalid for a directory that would lie below itself.
func (i Inode) Rename(ctx context.Context, name string, to Inode, newName string, noReplace bool) error {
	return opErr(ctx, i.c, "rename", name, func(ctx context.Context) error {
		return i.c.rename(ctx, i.ino, name, to.ino, newName, noReplace)
	})
}

// SetAttr changes attributes and returns all of them.
func (i Inode) SetAttr(ctx context.Context, set SetAttr) (*Attr, error) {
	return op(ctx, i.c, "set attributes", i.ino.String(), func(ctx context.Context) (*Attr, error) { return i.c.setAttr(ctx, i.ino, set) })
}

// SetPolicy sets the storage class for what is created in this directory from
// now on; the zero class is what the parent has now.
func (i Inode) SetPolicy(ctx context.Context, class dfs.Class) error {
	return opErr(ctx, i.c, "set policy", i.ino.String(), func(ctx context.Context) error { return i.c.setPolicy(ctx, i.ino, class) })
}

// Extents returns where the bytes of a file are, in order; gaps are holes. An
// error ends the sequence.
func (i Inode) Extents(ctx context.Context) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		offset := int64(0)
		for {
			page, err := op(ctx, i.c, "list extents", i.ino.String(), func(ctx context.Context) (*wire.ExtentsResult, error) {
				return i.c.extentPage(ctx, i.ino, offset, 0)
			})
			if err != nil {
				yield(Extent{}, err)
				return
			}
			for _, w := range page.Extents {
				e, err := toExtent(w)
				if !yield(e, err) || err != nil {
					return
				}
				offset = e.end()
			}
			if !page.More || len(page.Extents) == 0 {
				return
			}
		}
	}
}

// WriteTo writes the whole file to w, as [File.WriteTo] does, with one request
// less than a file that is opened for it. Errors: IsDir, Invalid for a symlink,
// NotExist and others.
func (i Inode) WriteTo(ctx context.Context, w io.Writer) (int64, error) {
	return run(ctx, i.c, "read", i.ino.String(), func(ctx context.Context) (int64, error) {
		return (&stream{c: i.c, ino: i.ino, w: w}).all(ctx)
	})
}

// Open returns a file to read and write. Close it. Errors: IsDir, Invalid for a
// symlink, NotExist.
func (i Inode) Open(ctx context.Context) (*File, error) {
	return op(ctx, i.c, "open", i.ino.String(), func(ctx context.Context) (*File, error) {
		a, err := i.c.attr(ctx, i.ino)
		if err != nil {
			return nil, err
		}
		return i.c.open(a)
	})
}
