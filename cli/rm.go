package cli

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

func newRm(a *app) *cobra.Command {
	flags := &transferFlags{quiet: true}
	var force, dirs bool
	cmd := &cobra.Command{
		Use:   "rm [-r] [-f] PATH…",
		Short: "Remove files, symlinks and directories",
		Long: `Remove files and symlinks; with -r directories with everything below them, with -d empty ones.
The root directory is never removed, and nothing is asked.`,
		Args: checked(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cmpErr(flags.check("rm"), checkRemote("rm", args...)); err != nil {
				return err
			}
			for _, p := range args {
				if _, name := split(p); unnamed(name) {
					return usagef("rm %s: refused: name what is to be removed", quote(p))
				}
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error {
				return a.rm(cmd.Context(), &remover{c: c, force: force, dirs: dirs}, flags, args)
			})
		},
	}
	cmd.Flags().BoolVarP(&flags.recursive, "recursive", "r", false, "remove directories with everything below them")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "what does not exist is no error")
	cmd.Flags().BoolVarP(&dirs, "dir", "d", false, "remove empty directories")
	cmd.Flags().IntVarP(&flags.jobs, "jobs", "j", defaultJobs, "removals under way at a time, each of a directory or of several names in one")
	return cmd
}

// remover removes trees.
type remover struct {
	*transfer
	c           *client.Client
	force, dirs bool
	slots       slots
}

// removeDir is a directory that shall go when everything in it is gone.
type removeDir struct {
	path string
	in   client.Inode // that it is in
	name string
	ino  dfs.Ino
}

func (a *app) rm(ctx context.Context, r *remover, flags *transferFlags, paths []string) error {
	ctx, r.transfer = a.newTransfer(ctx, "rm", flags, -1)
	r.slots = make(slots, flags.jobs)
	var dirs []*removeDir
	for _, p := range paths {
		d, err := r.one(ctx, p)
		if err != nil && !(r.force && dfs.KindOf(err) == dfs.NotExist) {
			r.fail(p, err)
		}
		if d != nil {
			dirs = append(dirs, d)
		}
	}
	w := &walk[*removeDir]{workers: flags.dirWorkers(), enter: r.enter, leave: r.leave}
	w.run(ctx, dirs...)
	return r.finish(ctx)
}

// one removes what a path names, or returns the directory to remove with -r.
func (r *remover) one(ctx context.Context, path string) (*removeDir, error) {
	attr, err := r.c.Lstat(ctx, strings.TrimRight(path, "/"))
	if err != nil {
		return nil, err
	}
	switch {
	case attr.Type != client.TypeDir:
		return nil, r.c.Remove(ctx, path)
	case r.flags.recursive:
		above, name := split(path)
		in, err := r.c.Resolve(ctx, above)
		return &removeDir{path: path, in: in, name: name, ino: attr.Ino}, err
	case r.dirs:
		if err := r.c.Rmdir(ctx, path); dfs.KindOf(err) == dfs.NotEmpty {
			return nil, withHint(dfs.NotEmpty, "use -r to remove it with everything below it")
		} else {
			return nil, err
		}
	}
	return nil, withHint(dfs.IsDir, "use -r to remove it with everything below it, or -d if it is empty")
}

// removeMany is how many names of a directory go by one commit.
const removeMany = 128

// enter removes what is in a directory but directories, which it returns.
func (r *remover) enter(ctx context.Context, d *removeDir) (children []*removeDir) {
	dir := r.c.Inode(d.ino)
	b := &batch{slots: r.slots}
	defer b.wg.Wait()
	names := make([]string, 0, removeMany)
	for e, err := range dir.List(ctx, "", false) {
		if err != nil {
			if dfs.KindOf(err) != dfs.NotExist { // it has gone meanwhile
				r.fail(d.path, err)
			}
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		if e.Type == client.TypeDir {
			children = append(children, &removeDir{path: join(d.path, e.Name), in: dir, name: e.Name, ino: e.Ino})
			continue
		}
		if names = append(names, e.Name); len(names) == removeMany {
			r.removeAll(ctx, b, d, names)
			names = make([]string, 0, removeMany)
		}
	}
	r.removeAll(ctx, b, d, names)
	return children
}

// removeAll removes entries of a directory.
func (r *remover) removeAll(ctx context.Context, b *batch, d *removeDir, names []string) {
	if len(names) == 0 {
		return
	}
	b.do(ctx, func() {
		for i, err := range r.c.Inode(d.ino).RemoveAll(ctx, names) {
			if err != nil && dfs.KindOf(err) != dfs.NotExist {
				r.fail(join(d.path, names[i]), err)
			}
		}
	})
}

func (r *remover) leave(ctx context.Context, d *removeDir) {
	err := d.in.Rmdir(ctx, d.name)
	if err == nil || dfs.KindOf(err) == dfs.NotExist {
		return
	}
	if dfs.KindOf(err) == dfs.NotEmpty {
		err = errors.New("not empty: something in it was not removed, or was made meanwhile")
	}
	r.fail(d.path, err)
}
