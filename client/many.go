package client

import (
	"context"
	"io"
	"slices"
	"sync"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// MaxFiles is how many files PutFiles takes: one commit makes them.
const MaxFiles = maxBatch

// RemoveAll removes files and symlinks of this directory, each as [Inode.Remove]
// does, in their order, and many by one commit. It returns an error or nil for each
// name.
func (i Inode) RemoveAll(ctx context.Context, names []string) []error {
	errs := make([]error, 0, len(names))
	for part := range slices.Chunk(names, maxBatch) {
		got, err := op(ctx, i.c, "remove", i.ino.String(), func(ctx context.Context) ([]error, error) { return i.c.unlinkAll(ctx, i.ino, part) })
		if err != nil {
			got = slices.Repeat([]error{err}, len(part))
		}
		errs = append(errs, got...)
	}
	return errs
}

func (c *Client) unlinkAll(ctx context.Context, dir dfs.Ino, names []string) ([]error, error) {
	s, err := c.session(ctx)
	if err != nil {
		return nil, err
	}
	errs := make([]error, len(names))
	var cmds []*wire.Command
	var of []int // the names of the commands
	for k, name := range names {
		if err := checkName(name); err != nil {
			errs[k] = dfs.Wrap("remove", name, err)
			continue
		}
		op := &wire.UnlinkOp{Parent: uint64(dir), Name: []byte(name)}
		cmds, of = append(cmds, &wire.Command{Op: &wire.Command_Unlink{Unlink: op}}), append(of, k)
	}
	for j, m := range s.mutateBatch(ctx, dir.Group(), cmds, false) {
		errs[of[j]] = dfs.Wrap("remove", names[of[j]], m.err)
	}
	return errs, nil
}

// NewFile is one of several files that PutFiles makes.
type NewFile struct {
	Name    string
	Options PutOptions
	Content io.Reader // nil: an empty file

	Attr *Attr // of the file that was made
	Err  error // why it was not
}

// PutFiles makes files in this directory, each as [Inode.PutFile] does: their
// contents are stored at the same time, and then one commit makes them, in their
// order. What became of each is in it. It takes at most MaxFiles, which should be
// small: all of them are under way together.
func (i Inode) PutFiles(ctx context.Context, files []*NewFile) {
	_, err := run(ctx, i.c, "put", i.ino.String(), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, i.c.putFiles(ctx, place{ino: i.ino, attr: i.attr}, files)
	})
	for _, f := range files {
		if f.Err == nil && f.Attr == nil {
			f.Err = err
		}
	}
}

func (c *Client) putFiles(ctx context.Context, dir place, files []*NewFile) error {
	if len(files) > MaxFiles {
		return dfs.Errorf(dfs.Invalid, "", "%d files: at most %d", len(files), MaxFiles)
	}
	first := &put{c: c, dir: dir}
	if err := first.open(ctx); err != nil {
		return err
	}
	puts := make([]*put, len(files))
	var storing sync.WaitGroup
	for k, f := range files {
		p := &put{c: c, s: first.s, dir: first.dir, name: f.Name, opts: f.Options}
		puts[k] = p
		storing.Go(func() { f.Err = p.store(ctx, f.Content) })
	}
	storing.Wait()
	ctx, cancel := c.timed(ctx)
	defer cancel()
	var cmds []*wire.Command
	var of []*NewFile // of the commands
	for k, f := range files {
		p := puts[k]
		if f.Err != nil {
			continue
		}
		defer p.s.letGoAll(p.extents)
		if p.whole() {
			cmds, of = append(cmds, p.command()), append(of, f)
		}
	}
	for k, m := range first.s.mutateBatch(ctx, dir.ino.Group(), cmds, false) {
		if of[k].Err = m.err; m.err == nil {
			of[k].Attr = toAttr(m.res.GetAttr())
		}
	}
	for k, f := range files {
		if f.Err == nil && f.Attr == nil {
			f.Attr, f.Err = puts[k].inSteps(ctx)
		}
		f.Err = dfs.Wrap("put", f.Name, f.Err)
	}
	return nil
}
