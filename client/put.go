package client

import (
	"context"
	"fmt"
	"io"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// putFile stores everything that r gives and then makes the file, in one commit
// where that can hold it.
func (c *Client) putFile(ctx context.Context, dir place, name string, opts PutOptions, r io.Reader) (*Attr, error) {
	p := &put{c: c, dir: dir, name: name, opts: opts}
	if err := p.store(ctx, r); err != nil {
		return nil, err
	}
	defer p.s.letGoAll(p.extents)
	ctx, cancel := c.timed(ctx)
	defer cancel()
	if p.whole() {
		return p.create(ctx)
	}
	return p.inSteps(ctx)
}

// put is one file on its way into a directory.
type put struct {
	c     *Client
	s     *session
	dir   place
	name  string
	opts  PutOptions
	op    *wire.CreateOp
	class dfs.Class
	owned bool // the file will belong to opts.Owner without further ado

	extents []*wire.Extent // its content, once that is stored
}

// store stores what r gives; the file is not made yet.
func (p *put) store(ctx context.Context, r io.Reader) (err error) {
	if err := checkName(p.name); err != nil {
		return err
	}
	if err := p.prepare(ctx); err != nil {
		return err
	}
	p.extents, err = p.content(ctx, r)
	return err
}

// whole reports whether one command makes the file.
func (p *put) whole() bool {
	return len(p.extents) <= dfs.MaxExtentsPerCommit && (p.opts.Owner == nil || p.owned)
}

// open finds the session and the directory, unless they are known.
func (p *put) open(ctx context.Context) (err error) {
	ctx, cancel := p.c.timed(ctx)
	defer cancel()
	if p.s == nil {
		if p.s, err = p.c.session(ctx); err != nil {
			return err
		}
	}
	if p.dir.attr == nil {
		if p.dir.attr, err = p.c.attr(ctx, p.dir.ino); err != nil {
			return err
		}
	}
	if p.dir.attr.GetType() != wire.FileType_DIR {
		return dfs.Errorf(dfs.NotDir, "", "")
	}
	return nil
}

// prepare begins the command, with the storage class.
func (p *put) prepare(ctx context.Context) (err error) {
	if err := p.open(ctx); err != nil {
		return err
	}
	p.op = p.opts.create(p.dir.ino, p.name)
	if p.class = p.opts.Class; p.class.IsZero() {
		if p.class, err = p.c.classOf(p.dir.attr); err != nil {
			return err
		}
	}
	if p.class.Erasure() {
		return dfs.Errorf(dfs.Unsupported, "", "this release does not write storage class %v", p.class)
	}
	p.op.Class = p.class.String()
	if o := p.opts.Owner; o != nil {
		gid := p.c.opts.Cred.GID
		if p.dir.attr.GetMode()&0o2000 != 0 {
			gid = p.dir.attr.GetGid()
		}
		p.owned = *o == Owner{p.c.opts.Cred.UID, gid}
	}
	return nil
}

// classOf is the storage class that an inode's attributes name, or the cluster's.
func (c *Client) classOf(a *wire.Attr) (dfs.Class, error) {
	if a.GetClass() == "" {
		return c.Map().DefaultClass, nil
	}
	return dfs.ParseClass(a.GetClass())
}

// content stores what r gives, and sets the command's inode number and size.
func (p *put) content(ctx context.Context, r io.Reader) ([]*wire.Extent, error) {
	if r == nil {
		return nil, nil
	}
	var w *writer
	size := p.c.blockSize()
	for {
		buf, rerr := p.c.fill(r, size)
		if rerr != nil && rerr != io.EOF {
			buf.release()
			rerr = dfs.Wrap("read source", "", rerr)
		} else if n := int64(len(buf.b)); n == 0 {
			buf.release()
		} else {
			if w == nil {
				ino, err := p.inode(ctx)
				if err != nil {
					buf.release()
					return nil, err
				}
				w = p.c.writer(ctx, p.s, ino, p.class)
				defer w.close()
			}
			if p.op.Size > dfs.MaxFileSize-n {
				buf.release()
				return nil, dfs.Errorf(dfs.TooLarge, "", "the file has more than %d bytes", dfs.MaxFileSize)
			}
			if err := w.put(buf, p.op.Size); err != nil {
				return nil, err
			}
			p.op.Size += n
		}
		switch {
		case rerr == nil && ctx.Err() == nil:
		case rerr == nil:
			return nil, ended(ctx)
		case rerr != io.EOF:
			return nil, rerr
		case w == nil:
			return nil, nil
		default:
			return w.finish()
		}
	}
}

func (p *put) inode(ctx context.Context) (dfs.Ino, error) {
	ctx, cancel := p.c.timed(ctx)
	defer cancel()
	ino, err := p.s.inode(ctx, p.dir.ino.Group())
	p.op.Ino = uint64(ino)
	return ino, err
}

// command makes the whole file.
func (p *put) command() *wire.Command {
	p.op.Extents = p.extents
	return &wire.Command{Op: &wire.Command_Create{Create: p.op}}
}

func (p *put) create(ctx context.Context) (*Attr, error) {
	res, err := p.s.mutate(ctx, p.dir.ino.Group(), p.command())
	if err != nil {
		return nil, err
	}
	return toAttr(res.GetAttr()), nil
}

// inSteps makes a file that one commit cannot: under a temporary name, which is
// renamed when the file is whole. Should this process die on the way, the
// temporary name stays.
func (p *put) inSteps(ctx context.Context) (*Attr, error) {
	temp := tempName(p.name, p.s.id, p.s.issueName())
	replace := p.op.Replace
	p.op.Name, p.op.Replace, p.op.Mode = []byte(temp), false, 0o600
	first := p.extents[:min(len(p.extents), dfs.MaxExtentsPerCommit)]
	rest := p.extents[len(first):]
	p.extents = first
	a, err := p.create(ctx)
	if err != nil {
		return nil, err
	}
	err = p.complete(ctx, a, rest)
	if err == nil {
		err = p.c.rename(ctx, p.dir.ino, temp, p.dir.ino, p.name, !replace)
	}
	if err != nil {
		if dfs.KindOf(err) != dfs.Unknown || ctx.Err() == nil {
			p.discard(ctx, temp)
		}
		return nil, err
	}
	got, err := p.c.attr(ctx, a.Ino)
	if err != nil {
		return nil, err
	}
	return toAttr(got), nil
}

// complete adds what the first commit of a file did not hold.
func (p *put) complete(ctx context.Context, a *Attr, extents []*wire.Extent) error {
	for len(extents) > 0 {
		next := extents[:min(len(extents), dfs.MaxExtentsPerCommit)]
		extents = extents[len(next):]
		op := &wire.WriteOp{Ino: uint64(a.Ino), Extents: next}
		if _, err := p.s.mutate(ctx, a.Ino.Group(), &wire.Command{Op: &wire.Command_Write{Write: op}}); err != nil {
			return err
		}
	}
	set := &wire.SetAttrOp{Ino: uint64(a.Ino), Mode: &p.opts.Mode}
	if o := p.opts.Owner; o != nil {
		set.Uid, set.Gid = &o.UID, &o.GID
	}
	if p.op.Mtime != 0 {
		set.Mtime = &p.op.Mtime
	}
	if p.op.Atime != 0 {
		set.Atime = &p.op.Atime
	}
	_, err := p.s.mutate(ctx, a.Ino.Group(), &wire.Command{Op: &wire.Command_SetAttr{SetAttr: set}})
	return err
}

// discard removes the temporary name, also when the caller's time is over.
func (p *put) discard(ctx context.Context, temp string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	ctx, cancel2 := join(ctx, p.c.ctx)
	defer cancel2()
	if err := p.c.unlink(ctx, p.dir.ino, temp); err != nil && dfs.KindOf(err) != dfs.NotExist {
		p.c.log.Warn("a temporary file stays", "dir", p.dir.ino.String(), "name", temp, "cause", err)
	}
}

// tempName makes a name that no other file has, which says what it is.
func tempName(name string, session dfs.SessionID, n uint64) string {
	tail := fmt.Sprintf(".dfsd-%d-%d", session, n)
	return "." + name[:min(len(name), dfs.MaxName-len(tail)-1)] + tail
}
