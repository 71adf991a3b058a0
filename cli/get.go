package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"dfsd/client"
	"dfsd/dfs"
)

func newGet(a *app) *cobra.Command {
	flags := &transferFlags{}
	cmd := &cobra.Command{
		Use:   "get [-r] SOURCE… DESTINATION",
		Short: "Copy files from the cluster to this machine",
		Long: `Copy files or directories (-r) of the cluster to this machine, or to standard output (-).

When DESTINATION is a directory the sources go into it, each under its own name. A file is
written beside its place under a temporary name, synced, and renamed: it appears whole or not
at all. Modes, modification times, symlinks and hard links are kept; owners too for root. What
DESTINATION is a symlink to is replaced, not the symlink; a device or pipe is written to.`,
		Example: "  dfsd get /docs/notes.txt .\n  dfsd get -r /backup/src /tmp/src\n  dfsd get /backup/all.tar - | tar x",
		Args:    checked(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			sources, dest := args[:len(args)-1], args[len(args)-1]
			if err := cmpErr(flags.check("get"), checkRemote("get", sources...)); err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error { return a.get(cmd.Context(), c, flags, sources, dest) })
		},
	}
	flags.add(cmd)
	return cmd
}

func (a *app) get(ctx context.Context, c *client.Client, flags *transferFlags, sources []string, dest string) error {
	if dest == "-" {
		if flags.json {
			return usagef("get: --json and the contents cannot both go to standard output")
		}
		return a.cat(ctx, c, "get", sources)
	}
	info, err := os.Stat(dest)
	into := err == nil && info.IsDir()
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return failed("get", dest, err)
	case !into && len(sources) > 1:
		return withHint(failedf("get", dest, "not a directory, and there are %d sources", len(sources)), "make it with mkdir")
	}
	total := int64(-1)
	if !flags.recursive && len(sources) == 1 {
		if attr, err := c.Stat(ctx, sources[0]); err == nil {
			total = attr.Size
		}
	}
	var special string
	if err == nil && !into {
		if dest, err = filepath.EvalSymlinks(dest); err != nil {
			return failed("get", dest, err)
		}
		if !info.Mode().IsRegular() {
			special = dest
		}
	}
	ctx, t := a.newTransfer(ctx, "get", flags, total)
	g := &getter{transfer: t, c: c, root: os.Geteuid() == 0, special: special, slots: make(slots, flags.jobs)}
	var dirs []*getDir
	top := &batch{slots: g.slots}
	for _, src := range sources {
		switch d, err := g.source(ctx, top, src, dest, into); {
		case err != nil:
			t.fail(src, err)
		case d != nil:
			dirs = append(dirs, d)
		}
	}
	top.wg.Wait()
	w := &walk[*getDir]{workers: flags.dirWorkers(), enter: g.enter, leave: g.leave}
	w.run(ctx, dirs...)
	return t.finish(ctx)
}

// getter copies files of the cluster to this machine.
type getter struct {
	*transfer
	c       *client.Client
	root    bool
	special string // the destination, when it is a device or a pipe; else ""
	slots   slots
	links   linkTable[dfs.Ino, string]
}

// getDir is a directory of the cluster on its way to this machine.
type getDir struct {
	path  string
	attr  *client.Attr
	local string
	pour  bool // local was there before, under a name of its own: it stays as it is
	made  bool
}

// source begins with one of the sources: it puts a file into the batch, and
// returns a directory.
func (g *getter) source(ctx context.Context, top *batch, src, dest string, into bool) (*getDir, error) {
	look := g.c.Stat
	if g.flags.recursive && !strings.HasSuffix(src, "/") {
		look = g.c.Lstat
	}
	attr, err := look(ctx, src)
	if err != nil {
		return nil, err
	}
	local := dest
	_, name := split(src)
	if into && !unnamed(name) {
		local = filepath.Join(dest, name)
	}
	switch {
	case attr.Type == client.TypeDir && !g.flags.recursive:
		return nil, withHint(dfs.IsDir, "use -r")
	case attr.Type == client.TypeDir:
		return &getDir{path: src, attr: attr, local: local, pour: into && unnamed(name)}, nil
	case !into && strings.HasSuffix(dest, "/"):
		return nil, withHint(fmt.Errorf("the directory %s does not exist", quote(dest)), "make it with mkdir")
	}
	top.do(ctx, func() { g.entry(ctx, src, attr, local) })
	return nil, nil
}

// enter makes a directory and fetches what is in it but directories, which it
// returns.
func (g *getter) enter(ctx context.Context, d *getDir) (children []*getDir) {
	if err := makeLocalDir(d.local); err != nil {
		g.fail(d.path, localError(d.local, err))
		return nil
	}
	d.made = true
	b := &batch{slots: g.slots}
	defer b.wg.Wait()
	for e, err := range g.c.Inode(d.attr.Ino).List(ctx, "", true) {
		if err != nil {
			g.fail(d.path, err)
			break
		}
		path := join(d.path, e.Name)
		switch {
		case ctx.Err() != nil:
			return nil
		case unnamed(e.Name) || strings.ContainsAny(e.Name, "/\x00"):
			g.fail(path, dfs.Errorf(dfs.Corrupt, "", "no name of an entry"))
		case e.Type == client.TypeDir:
			children = append(children, &getDir{path: path, attr: e.Attr, local: filepath.Join(d.local, e.Name)})
		default:
			b.do(ctx, func() { g.entry(ctx, path, e.Attr, filepath.Join(d.local, e.Name)) })
		}
	}
	return children
}

// makeLocalDir makes a directory that can be filled, or makes sure that the one
// that is there can be.
func makeLocalDir(local string) error {
	err := os.Mkdir(local, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(local)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return syscall.ENOTDIR
	case info.Mode().Perm()&0o700 != 0o700:
		return os.Chmod(local, info.Mode().Perm()|0o700)
	}
	return nil
}

// leave gives a directory its owner, mode and time once everything is in it.
func (g *getter) leave(_ context.Context, d *getDir) {
	if !d.made {
		return
	}
	if !d.pour {
		if err := g.leaveDir(d); err != nil {
			g.fail(d.path, localError(d.local, err))
			return
		}
	}
	g.done(counts{Directories: 1})
}

func (g *getter) leaveDir(d *getDir) error {
	f, err := os.OpenFile(d.local, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return cmpErr(g.dress(f, d.attr), f.Sync())
}

// dress gives an open file the owner, mode and time of an inode. The mode comes
// after the owner, whose change drops the setuid bit.
func (g *getter) dress(f *os.File, a *client.Attr) error {
	if g.root {
		if err := f.Chown(int(a.UID), int(a.GID)); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(int(f.Fd()), a.Mode&0o7777); err != nil {
		return &fs.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	return os.Chtimes(f.Name(), time.Time{}, a.Mtime)
}

// entry fetches what is no directory.
func (g *getter) entry(ctx context.Context, path string, a *client.Attr, local string) {
	if g.flags.noClobber {
		if _, err := os.Lstat(local); err == nil {
			g.done(counts{Skipped: 1})
			return
		}
	}
	var err error
	switch a.Type {
	case client.TypeFile:
		err = g.file(ctx, a, local)
	case client.TypeSymlink:
		err = g.symlink(a, local)
	default:
		err = dfs.Errorf(dfs.Unsupported, "", "skipped: this release knows no such type of file")
	}
	if errors.Is(err, fs.ErrExist) && g.flags.noClobber {
		g.done(counts{Skipped: 1})
		return
	}
	if err != nil {
		g.fail(path, err)
	}
}

func (g *getter) symlink(a *client.Attr, local string) error {
	temp := filepath.Join(filepath.Dir(local), tempName(filepath.Base(local)))
	if err := os.Symlink(a.Target, temp); err != nil {
		return localError(local, err)
	}
	err := g.dressSymlink(a, temp)
	if err == nil {
		err = g.place(temp, local)
	}
	if err != nil {
		_ = os.Remove(temp) // the first error counts
		return localError(local, err)
	}
	g.done(counts{Symlinks: 1})
	return nil
}

func (g *getter) dressSymlink(a *client.Attr, local string) error {
	if g.root {
		if err := os.Lchown(local, int(a.UID), int(a.GID)); err != nil {
			return err
		}
	}
	mtime := unix.NsecToTimespec(a.Mtime.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, local, []unix.Timespec{{Nsec: unix.UTIME_NOW}, mtime}, unix.AT_SYMLINK_NOFOLLOW)
}

// place gives a finished file its name.
func (g *getter) place(temp, local string) error {
	if !g.flags.noClobber {
		if info, err := os.Lstat(local); err == nil && info.Mode()&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
			return errors.New("it is a device, pipe or socket: not replaced")
		}
		return os.Rename(temp, local)
	}
	if err := os.Link(temp, local); err != nil { // unlike Rename it spares what is there
		return err
	}
	return os.Remove(temp)
}

// file fetches a regular file, or links it where another name of it was fetched.
func (g *getter) file(ctx context.Context, a *client.Attr, local string) error {
	switch {
	case local == g.special:
		return g.pour(ctx, a, local)
	case a.Nlink < 2:
		return g.content(ctx, a, local)
	}
	made, settle, err := g.links.first(ctx, a.Ino, int(a.Nlink))
	switch {
	case err != nil:
		return err
	case settle != nil:
		err := g.content(ctx, a, local)
		settle(local, err == nil)
		return err
	}
	temp := filepath.Join(filepath.Dir(local), tempName(filepath.Base(local)))
	if err := os.Link(made, temp); err != nil {
		if cerr := g.content(ctx, a, local); cerr != nil {
			return cerr
		}
		return fmt.Errorf("a hard link of %s (%v): fetched as a copy", quote(made), cause(err))
	}
	err = g.place(temp, local)
	_ = os.Remove(temp) // Rename leaves it when both are the same file already
	if err != nil {
		return localError(local, err)
	}
	g.done(counts{HardLinks: 1})
	return nil
}

// content fetches a file's bytes.
func (g *getter) content(ctx context.Context, a *client.Attr, local string) error {
	temp := filepath.Join(filepath.Dir(local), tempName(filepath.Base(local)))
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return localError(local, err)
	}
	_, err = g.c.Inode(a.Ino).WriteTo(ctx, meterWriter{localWriter{f, local}, g.transfer})
	if err == nil {
		err = localError(local, cmpErr(g.dress(f, a), f.Sync()))
	}
	if cerr := f.Close(); err == nil {
		err = localError(local, cerr)
	}
	if err == nil {
		err = localError(local, g.place(temp, local))
	}
	if err != nil {
		_ = os.Remove(temp) // the first error counts
		return err
	}
	g.done(counts{Files: 1})
	return nil
}

// pour writes a file's bytes to a device or a pipe.
func (g *getter) pour(ctx context.Context, a *client.Attr, local string) error {
	f, err := os.OpenFile(local, os.O_WRONLY, 0)
	if err != nil {
		return localError(local, err)
	}
	_, err = g.c.Inode(a.Ino).WriteTo(ctx, meterWriter{localWriter{f, local}, g.transfer})
	if cerr := f.Close(); err == nil {
		err = localError(local, cerr)
	}
	if err == nil {
		g.done(counts{Files: 1})
	}
	return err
}

// localWriter writes a local file; its errors say so.
type localWriter struct {
	w    io.Writer
	name string
}

func (l localWriter) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	return n, localError(l.name, err)
}

// localError says that it was the local side that failed.
func localError(local string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("local file %s: %w", quote(local), cause(err))
}
