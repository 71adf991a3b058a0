package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

func newCp(a *app) *cobra.Command {
	flags := &transferFlags{}
	cmd := &cobra.Command{
		Use:   "cp [-r] SOURCE… DESTINATION",
		Short: "Copy files within the cluster",
		Long: `Copy files or directories (-r) from one place of the cluster to another. The bytes are copied.

When DESTINATION is a directory the sources go into it, each under its own name. A file appears
whole or not at all. Modes, modification times, symlinks and hard links are kept; owners too for
root. Hard links over namespace groups become copies, are reported, and the exit code is 1.`,
		Args: checked(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cmpErr(flags.check("cp"), checkRemote("cp", args...)); err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error {
				return a.cp(cmd.Context(), c, flags, args[:len(args)-1], args[len(args)-1])
			})
		},
	}
	flags.add(cmd)
	return cmd
}

func (a *app) cp(ctx context.Context, c *client.Client, flags *transferFlags, sources []string, dest string) error {
	to, err := findTarget(ctx, c, "cp", dest, len(sources))
	if err != nil {
		return err
	}
	ctx, t := a.newTransfer(ctx, "cp", flags, -1)
	p := &copier{transfer: t, c: c, root: os.Geteuid() == 0, slots: make(slots, flags.jobs)}
	var dirs []*copyDir
	top := &batch{slots: p.slots}
	for _, src := range sources {
		switch d, err := p.source(ctx, top, to, src); {
		case err != nil:
			t.fail(src, err)
		case d != nil:
			dirs = append(dirs, d)
		}
	}
	top.wg.Wait()
	w := &walk[*copyDir]{workers: flags.dirWorkers(), enter: p.enter, leave: p.leave}
	w.run(ctx, dirs...)
	return t.finish(ctx)
}

// copier copies within the cluster.
type copier struct {
	*transfer
	c     *client.Client
	root  bool
	slots slots
	links linkTable[dfs.Ino, client.Inode]
}

// copyDir is a directory on its way to another place.
type copyDir struct {
	path string // of the source
	attr *client.Attr
	to   place
	made *client.Inode // nil: it could not be made
}

// source begins with one of the sources: it puts a file into the batch, and
// returns a directory.
func (p *copier) source(ctx context.Context, top *batch, to target, src string) (*copyDir, error) {
	look := p.c.Stat
	if p.flags.recursive && !strings.HasSuffix(src, "/") {
		look = p.c.Lstat
	}
	attr, err := look(ctx, src)
	if err != nil {
		return nil, err
	}
	_, name := split(src)
	at := to.of(name)
	switch {
	case attr.Type == client.TypeDir && !p.flags.recursive:
		return nil, withHint(dfs.IsDir, "use -r")
	case attr.Type == client.TypeDir:
		inside, err := within(ctx, p.c, at.dir, attr.Ino)
		if err == nil && inside {
			err = fmt.Errorf("%s is within it", quote(at.full()))
		}
		if err != nil {
			return nil, err
		}
		return &copyDir{path: src, attr: attr, to: at}, nil
	case to.slash:
		return nil, withHint(fmt.Errorf("the directory %s does not exist", quote(at.full())), "make it with dfsd mkdir")
	}
	if old, err := at.dir.Lookup(ctx, at.name); err == nil && old.Ino == attr.Ino {
		return nil, fmt.Errorf("%s is the same file", quote(at.full()))
	}
	top.do(ctx, func() { p.entry(ctx, src, attr, at) })
	return nil, nil
}

// within reports whether a directory is another one or below it.
func within(ctx context.Context, c *client.Client, dir client.Inode, above dfs.Ino) (bool, error) {
	for ino := dir.Ino(); ; {
		if ino == above {
			return true, nil
		}
		if ino == dfs.RootIno {
			return false, nil
		}
		a, err := c.Inode(ino).Attr(ctx)
		if err != nil {
			return false, err
		}
		ino = a.Parent
	}
}

// enter makes a directory and copies what is in it but directories, which it
// returns.
func (p *copier) enter(ctx context.Context, d *copyDir) (children []*copyDir) {
	if d.to.name == "" {
		d.made = &d.to.dir
	} else {
		made, err := makeDir(ctx, p.c, d.to, d.attr.Mode|0o700)
		if err != nil {
			p.fail(d.path, err)
			return nil
		}
		d.made = &made
	}
	b := &batch{slots: p.slots}
	defer b.wg.Wait()
	to := d.to.full()
	for e, err := range p.c.Inode(d.attr.Ino).List(ctx, "", true) {
		if err != nil {
			p.fail(d.path, err)
			break
		}
		path, at := join(d.path, e.Name), place{*d.made, to, e.Name}
		switch {
		case ctx.Err() != nil:
			return nil
		case e.Type == client.TypeDir:
			children = append(children, &copyDir{path: path, attr: e.Attr, to: at})
		default:
			b.do(ctx, func() { p.entry(ctx, path, e.Attr, at) })
		}
	}
	return children
}

// leave gives a directory its mode, owner and time.
func (p *copier) leave(ctx context.Context, d *copyDir) {
	if d.made == nil {
		return
	}
	if d.to.name != "" {
		set := client.SetAttr{Mode: &d.attr.Mode, Mtime: &d.attr.Mtime}
		if p.root {
			set.UID, set.GID = &d.attr.UID, &d.attr.GID
		}
		if _, err := d.made.SetAttr(ctx, set); err != nil {
			p.fail(d.path, err)
			return
		}
	}
	p.done(counts{Directories: 1})
}

func (p *copier) options(a *client.Attr) client.PutOptions {
	opts := client.PutOptions{Mode: a.Mode, Mtime: a.Mtime, Replace: !p.flags.noClobber}
	if p.root {
		opts.Owner = &client.Owner{UID: a.UID, GID: a.GID}
	}
	return opts
}

// entry copies what is no directory.
func (p *copier) entry(ctx context.Context, path string, a *client.Attr, at place) {
	var err error
	switch a.Type {
	case client.TypeFile:
		err = p.file(ctx, a, at)
	case client.TypeSymlink:
		if _, err = at.dir.Symlink(ctx, at.name, a.Target, p.options(a)); err == nil {
			p.done(counts{Symlinks: 1})
		}
	default:
		err = dfs.Errorf(dfs.Unsupported, "", "skipped: this release knows no such type of file")
	}
	switch {
	case err == nil:
	case p.flags.noClobber && dfs.KindOf(err) == dfs.Exist:
		p.done(counts{Skipped: 1})
	default:
		p.fail(path, err)
	}
}

// file copies a regular file, or links it where another name of it was copied.
func (p *copier) file(ctx context.Context, a *client.Attr, at place) error {
	if a.Nlink < 2 {
		_, err := p.content(ctx, a, at)
		return err
	}
	made, settle, err := p.links.first(ctx, a.Ino, int(a.Nlink))
	switch {
	case err != nil:
		return err
	case settle != nil:
		ino, err := p.content(ctx, a, at)
		settle(p.c.Inode(ino), err == nil)
		return err
	}
	err = hardLink(ctx, at, made, !p.flags.noClobber)
	if err == nil {
		p.done(counts{HardLinks: 1})
	}
	return err
}

// content copies a file's bytes.
func (p *copier) content(ctx context.Context, a *client.Attr, at place) (dfs.Ino, error) {
	r, w := io.Pipe()
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, err := p.c.Inode(a.Ino).WriteTo(ctx, w)
		_ = w.CloseWithError(err) // never fails
	}()
	made, err := at.dir.PutFile(ctx, at.name, p.options(a), meterReader{r, p.transfer})
	_ = r.CloseWithError(io.ErrClosedPipe) // ends the reading when the writing failed
	<-read
	if err != nil {
		return 0, err
	}
	p.done(counts{Files: 1})
	return made.Ino, nil
}
