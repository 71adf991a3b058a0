package cli

import (
	"context"
	"path"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

func newMv(a *app) *cobra.Command {
	var noClobber bool
	cmd := &cobra.Command{
		Use:   "mv SOURCE… DESTINATION",
		Short: "Move or rename files and directories",
		Long: `Move files, directories and symlinks. When DESTINATION is a directory the sources go into it,
each under its own name; otherwise the only source takes its name and its place, at once.`,
		Args: checked(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRemote("mv", args...); err != nil {
				return err
			}
			ctx := cmd.Context()
			return a.withClient(ctx, func(c *client.Client) error {
				sources := args[:len(args)-1]
				to, err := findTarget(ctx, c, "mv", args[len(args)-1], len(sources))
				if err != nil {
					return err
				}
				return a.eachOf(sources, func(src string) error { return mv(ctx, c, src, to, noClobber) })
			})
		},
	}
	cmd.Flags().BoolVarP(&noClobber, "no-clobber", "n", false, "leave what exists as it is, and fail")
	return cmd
}

func mv(ctx context.Context, c *client.Client, src string, to target, noClobber bool) error {
	_, name := split(src)
	if unnamed(name) {
		return usagef("mv %s: refused: name what is to be moved", quote(src))
	}
	dest := to.of(name).full()
	if to.slash {
		dest += "/"
	}
	if err := c.Rename(ctx, src, dest, noClobber); err != nil {
		return failed("mv", src, err)
	}
	return nil
}

func newLn(a *app) *cobra.Command {
	var symbolic, force bool
	cmd := &cobra.Command{
		Use:   "ln [-s] TARGET NAME",
		Short: "Give a file one more name, or make a symlink",
		Long: `Give the file TARGET one more name, or with -s make a symlink to TARGET, which may be any text.
When NAME is a directory the new name is made in it.`,
		Args: checked(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRemote("ln", args[1]); err != nil {
				return err
			}
			if !symbolic {
				if err := checkRemote("ln", args[0]); err != nil {
					return err
				}
			}
			ctx := cmd.Context()
			return a.withClient(ctx, func(c *client.Client) error { return ln(ctx, c, args[0], args[1], symbolic, force) })
		},
	}
	cmd.Flags().BoolVarP(&symbolic, "symbolic", "s", false, "make a symlink")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "take the place of a file or symlink")
	return cmd
}

func ln(ctx context.Context, c *client.Client, old, name string, symbolic, force bool) error {
	to, err := findTarget(ctx, c, "ln", name, 1)
	if err != nil {
		return err
	}
	at := to.of(path.Base(old))
	if at.name == "" || to.slash {
		return failedf("ln", name, "a name is missing")
	}
	if symbolic {
		if _, err := at.dir.Symlink(ctx, at.name, old, client.PutOptions{Replace: force}); err != nil {
			return failed("ln", at.full(), err)
		}
		return nil
	}
	attr, err := c.Lstat(ctx, old)
	if err != nil {
		return failed("ln", old, err)
	}
	if err := hardLink(ctx, at, c.Inode(attr.Ino), force); err != nil {
		return failed("ln", at.full(), err)
	}
	return nil
}

func newMkdir(a *app) *cobra.Command {
	var parents bool
	var mode string
	cmd := &cobra.Command{
		Use:   "mkdir [-p] [-m MODE] PATH…",
		Short: "Make directories",
		Args:  checked(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			bits := 0o777 &^ umask()
			if cmd.Flags().Changed("mode") {
				v, err := strconv.ParseUint(mode, 8, 32)
				if err != nil || v > 0o7777 {
					return usagef("mkdir: --mode %q: want an octal number up to 7777", mode)
				}
				bits = uint32(v)
			}
			if err := checkRemote("mkdir", args...); err != nil {
				return err
			}
			ctx := cmd.Context()
			return a.withClient(ctx, func(c *client.Client) error {
				return a.eachOf(args, func(path string) error { return mkdir(ctx, c, path, bits, parents) })
			})
		},
	}
	cmd.Flags().BoolVarP(&parents, "parents", "p", false, "make missing parents too; a directory that exists is no error")
	cmd.Flags().StringVarP(&mode, "mode", "m", "", "permission bits, octal (default 777 less the umask)")
	return cmd
}

func mkdir(ctx context.Context, c *client.Client, path string, mode uint32, parents bool) error {
	if parents {
		above, _ := split(path)
		if above != "" && above != "/" {
			if _, err := c.MkdirAll(ctx, above, 0o777&^umask()); err != nil {
				return failed("mkdir", above, err)
			}
		}
	}
	_, err := c.Mkdir(ctx, path, mode)
	if parents && dfs.KindOf(err) == dfs.Exist {
		a, serr := c.Stat(ctx, path)
		if serr == nil && a.Type == client.TypeDir {
			return nil
		}
	}
	if err == nil {
		return nil
	}
	err = failed("mkdir", path, err)
	if above, _ := split(path); dfs.KindOf(err) == dfs.NotExist {
		return withHint(err, "make "+quote(strings.TrimSuffix(above, "/"))+" too with -p")
	}
	return err
}
