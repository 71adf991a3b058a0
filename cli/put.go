package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

func newPut(a *app) *cobra.Command {
	flags := &transferFlags{}
	cmd := &cobra.Command{
		Use:   "put [-r] SOURCE… DESTINATION",
		Short: "Store local files in the cluster",
		Long: `Store local files, directories (-r) or standard input (-) in the cluster.

When DESTINATION is a directory the sources go into it, each under its own name. A file appears
whole or not at all. Modes, modification times, symlinks, and hard links are kept; owners too
when root stores. What cannot be stored is reported and the rest goes on; the exit code is 1 then.

Devices, sockets and named pipes are reported and skipped.`,
		Example: "  dfsd put notes.txt /docs/\n  dfsd put -r src /backup/src\n  tar c . | dfsd put - /backup/all.tar",
		Args:    checked(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			sources, dest := args[:len(args)-1], args[len(args)-1]
			if err := cmpErr(flags.check("put"), checkRemote("put", dest)); err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error { return a.put(cmd.Context(), c, flags, sources, dest) })
		},
	}
	flags.add(cmd)
	return cmd
}

func (a *app) put(ctx context.Context, c *client.Client, flags *transferFlags, sources []string, dest string) error {
	to, err := findTarget(ctx, c, "put", dest, len(sources))
	if err != nil {
		return err
	}
	ctx, t := a.newTransfer(ctx, "put", flags, localSize(sources))
	p := &putter{transfer: t, c: c, root: os.Geteuid() == 0, slots: make(slots, flags.jobs)}
	var dirs []*putDir
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
	w := &walk[*putDir]{workers: flags.dirWorkers(), enter: p.enter, leave: p.leave}
	w.run(ctx, dirs...)
	return t.finish(ctx)
}

// localSize is how much the sources hold, -1 where it takes a walk to know.
func localSize(sources []string) int64 {
	total := int64(0)
	for _, src := range sources {
		info, err := os.Stat(src)
		switch {
		case src == "-" || err == nil && !info.Mode().IsRegular():
			return -1
		case err == nil:
			total += info.Size()
		}
	}
	return total
}

// putter stores local files.
type putter struct {
	*transfer
	c     *client.Client
	root  bool // owners can be given away
	slots slots
	links linkTable[fileKey, client.Inode]
}

// fileKey is what a local file is known by, whatever its names.
type fileKey struct{ dev, ino uint64 }

// putDir is a local directory on its way into the cluster.
type putDir struct {
	local string
	to    place
	stat  *syscall.Stat_t
	made  *client.Inode // nil: it could not be made
}

// source begins with one of the sources: it puts a file into the batch, and
// returns a directory.
func (p *putter) source(ctx context.Context, top *batch, to target, src string) (*putDir, error) {
	if src == "-" {
		if to.name == "" || to.slash {
			return nil, withHint(errors.New("standard input needs a name, and the destination is a directory"), "add one")
		}
		top.do(ctx, func() { p.stdin(ctx, to.of("")) })
		return nil, nil
	}
	info, err := os.Lstat(src)
	if err == nil && info.Mode()&fs.ModeSymlink != 0 && (!p.flags.recursive || src[len(src)-1] == '/') {
		info, err = os.Stat(src)
	}
	if err != nil {
		return nil, err
	}
	at := to.of(filepath.Base(src))
	switch {
	case info.IsDir() && !p.flags.recursive:
		return nil, withHint(dfs.IsDir, "use -r")
	case info.IsDir():
		return &putDir{local: src, to: at, stat: info.Sys().(*syscall.Stat_t)}, nil
	case to.slash:
		return nil, withHint(fmt.Errorf("the directory %s does not exist", quote(at.full())), "make it with dfsd mkdir")
	case info.Mode().IsRegular():
		if src, err = filepath.EvalSymlinks(src); err != nil {
			return nil, err
		}
	}
	top.do(ctx, func() { p.entry(ctx, src, at, info.Mode().Type()) })
	return nil, nil
}

// stdin stores standard input.
func (p *putter) stdin(ctx context.Context, at place) {
	opts := client.PutOptions{Mode: 0o666 &^ umask(), Replace: !p.flags.noClobber}
	if _, err := at.dir.PutFile(ctx, at.name, opts, meterReader{p.a.proc.In, p.transfer}); err != nil {
		p.outcome(at.full(), err)
		return
	}
	p.done(counts{Files: 1})
}

// outcome reports an error, unless it only says that a file exists which
// --no-clobber protects.
func (p *putter) outcome(object string, err error) {
	if p.flags.noClobber && dfs.KindOf(err) == dfs.Exist {
		p.done(counts{Skipped: 1})
		return
	}
	p.fail(object, err)
}

// enter makes a directory and stores what is in it but directories, which it
// returns.
func (p *putter) enter(ctx context.Context, d *putDir) (children []*putDir) {
	if d.to.name == "" {
		d.made = &d.to.dir
	} else {
		// Writable until everything is in it.
		made, err := makeDir(ctx, p.c, d.to, d.stat.Mode&0o7777|0o700)
		if err != nil {
			p.fail(d.local, err)
			return nil
		}
		d.made = &made
	}
	f, err := os.OpenFile(d.local, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		p.fail(d.local, err)
		return nil
	}
	defer f.Close()
	b := &batch{slots: p.slots}
	defer b.wg.Wait()
	path := d.to.full()
	var small []localFile
	for ctx.Err() == nil {
		list, err := f.ReadDir(listBatch)
		for _, e := range list {
			local := filepath.Join(d.local, e.Name())
			at := place{*d.made, path, e.Name()}
			if !e.IsDir() && !e.Type().IsRegular() {
				b.do(ctx, func() { p.entry(ctx, local, at, e.Type()) })
				continue
			}
			info, err := e.Info()
			if err != nil {
				p.fail(local, err)
				continue
			}
			st := info.Sys().(*syscall.Stat_t)
			switch {
			case e.IsDir():
				children = append(children, &putDir{local: local, to: at, stat: st})
			case !isSmall(st):
				b.do(ctx, func() { p.file(ctx, local, at) })
			default:
				if small = append(small, localFile{local, at}); len(small) == putTogether {
					p.together(ctx, b, *d.made, small)
					small = nil
				}
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			p.fail(d.local, err)
			break
		}
	}
	p.together(ctx, b, *d.made, small)
	return children
}

// leave gives a directory its mode, owner and time, now that nothing will be
// made in it any more.
func (p *putter) leave(ctx context.Context, d *putDir) {
	if d.made == nil {
		return
	}
	if d.to.name == "" { // it was there before, under a name of its own
		p.done(counts{Directories: 1})
		return
	}
	mode, mtime := d.stat.Mode&0o7777, time.Unix(d.stat.Mtim.Unix())
	set := client.SetAttr{Mode: &mode, Mtime: &mtime}
	if p.root {
		set.UID, set.GID = &d.stat.Uid, &d.stat.Gid
	}
	if _, err := d.made.SetAttr(ctx, set); err != nil {
		p.fail(d.local, err)
		return
	}
	p.done(counts{Directories: 1})
}

// entry stores what is no directory.
func (p *putter) entry(ctx context.Context, local string, at place, typ fs.FileMode) {
	switch typ {
	case 0:
		p.file(ctx, local, at)
	case fs.ModeSymlink:
		p.symlink(ctx, local, at)
	default:
		p.fail(local, fmt.Errorf("skipped: a %s cannot be stored", special(typ)))
	}
}

func special(typ fs.FileMode) string {
	switch {
	case typ&fs.ModeNamedPipe != 0:
		return "named pipe"
	case typ&fs.ModeSocket != 0:
		return "socket"
	case typ&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

func (p *putter) symlink(ctx context.Context, local string, at place) {
	target, err := os.Readlink(local)
	if err != nil {
		p.fail(local, err)
		return
	}
	info, err := os.Lstat(local)
	if err != nil {
		p.fail(local, err)
		return
	}
	if _, err := at.dir.Symlink(ctx, at.name, target, p.options(info.Sys().(*syscall.Stat_t))); err != nil {
		p.outcome(local, err)
		return
	}
	p.done(counts{Symlinks: 1})
}

func (p *putter) options(st *syscall.Stat_t) client.PutOptions {
	opts := client.PutOptions{Mode: st.Mode & 0o7777, Mtime: time.Unix(st.Mtim.Unix()), Replace: !p.flags.noClobber}
	if p.root {
		opts.Owner = &client.Owner{UID: st.Uid, GID: st.Gid}
	}
	return opts
}

// file stores a regular file, or a link where another name of it was stored.
func (p *putter) file(ctx context.Context, local string, at place) {
	f, st, err := openRegular(local)
	if err != nil {
		p.fail(local, err)
		return
	}
	defer f.Close()
	if st.Nlink < 2 {
		p.content(ctx, f, st, local, at)
		return
	}
	made, settle, err := p.links.first(ctx, fileKey{st.Dev, st.Ino}, int(st.Nlink))
	switch {
	case err != nil:
		p.fail(local, err)
	case settle != nil:
		a := p.content(ctx, f, st, local, at)
		if a == nil {
			settle(client.Inode{}, false)
			return
		}
		settle(p.c.Inode(a.Ino), true)
	default:
		p.link(ctx, local, at, made)
	}
}

// openRegular opens a regular file. What became something else since it was listed
// must not block the open.
func openRegular(local string) (*os.File, *syscall.Stat_t, error) {
	f, err := os.OpenFile(local, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it was replaced while it was looked at")
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info.Sys().(*syscall.Stat_t), nil
}

// content stores a file's bytes, and returns nil when that failed.
func (p *putter) content(ctx context.Context, f *os.File, st *syscall.Stat_t, local string, at place) *client.Attr {
	a, err := at.dir.PutFile(ctx, at.name, p.options(st), meterReader{f, p.transfer})
	if err != nil {
		p.outcome(local, err)
		return nil
	}
	p.done(counts{Files: 1})
	return a
}

// link stores a further name of a file.
func (p *putter) link(ctx context.Context, local string, at place, made client.Inode) {
	err := hardLink(ctx, at, made, !p.flags.noClobber)
	switch {
	case err != nil:
		p.outcome(local, err)
	default:
		p.done(counts{HardLinks: 1})
	}
}

// tempName is a name beside another one, that says whose it is and is in nobody's way.
func tempName(name string) string {
	tail := ".dfsd-" + rand.Text()[:8]
	return "." + name[:min(len(name), dfs.MaxName-len(tail)-1)] + tail
}
