package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

func newDu(a *app) *cobra.Command {
	var total, human, asJSON bool
	cmd := &cobra.Command{
		Use:   "du [-s] [-h] [PATH…]",
		Short: "Sum up the sizes of files",
		Long: `Sum up the sizes of the files in each directory and below it, in bytes. A file with several names
counts once. What the copies of a file take on the stores is not counted: multiply by the class.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"/"}
			}
			if err := checkRemote("du", args...); err != nil {
				return err
			}
			ctx := cmd.Context()
			return a.withClient(ctx, func(c *client.Client) error {
				d := &du{c: c, all: !total, seen: map[dfs.Ino]bool{}}
				d.print = func(path string, u usage) error {
					size := fmt.Sprint(u.bytes)
					if human {
						size = shortSize(u.bytes)
					}
					_, err := fmt.Fprintf(a.proc.Out, "%s\t%s\n", size, shown(a.proc.Out, path))
					return err
				}
				var list *jsonList
				if asJSON {
					list = newJSONList(a.proc.Out, "entries")
					d.print = func(path string, u usage) error {
						return list.add(struct {
							jsonPath
							Bytes       int64 `json:"bytes"`
							Files       int   `json:"files"`
							Directories int   `json:"directories"`
						}{toJSONPath(path), u.bytes, u.files, u.dirs})
					}
				}
				err := a.eachOf(args, func(path string) error { return d.path(ctx, path, list) })
				if list != nil {
					return cmpErr(err, list.end())
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&total, "summarize", "s", false, "only the sum of each PATH")
	humanFlag(cmd, &human, "sizes with a unit")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object with a list of entries")
	return cmd
}

// usage is what a tree holds.
type usage struct {
	bytes       int64
	files, dirs int // entries that are no directories, and directories
}

// du sums trees up.
type du struct {
	c     *client.Client
	all   bool             // print every directory
	seen  map[dfs.Ino]bool // files with several names
	print func(path string, u usage) error
}

func (d *du) path(ctx context.Context, path string, list *jsonList) error {
	a, err := d.c.Lstat(ctx, path)
	if err == nil {
		var u usage
		if u, err = d.sum(ctx, path, a); err == nil && (!d.all || a.Type != client.TypeDir) {
			err = d.print(path, u)
		}
	}
	if err == nil {
		return nil
	}
	if err = failed("du", path, err); list != nil {
		list.fail(path, err)
	}
	return err
}

func (d *du) sum(ctx context.Context, path string, a *client.Attr) (usage, error) {
	if a.Type != client.TypeDir {
		if a.Nlink > 1 && d.seen[a.Ino] {
			return usage{files: 1}, nil
		}
		if a.Nlink > 1 {
			d.seen[a.Ino] = true
		}
		return usage{bytes: a.Size, files: 1}, nil
	}
	u := usage{dirs: 1}
	for e, err := range d.c.Inode(a.Ino).List(ctx, "", true) {
		if err != nil {
			return u, err
		}
		below, err := d.sum(ctx, join(path, e.Name), e.Attr)
		if err != nil {
			return u, err
		}
		u.bytes += below.bytes
		u.files += below.files
		u.dirs += below.dirs
	}
	if d.all {
		return u, d.print(path, u)
	}
	return u, nil
}
