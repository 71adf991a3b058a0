package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

// duFlags are the flags of du.
type duFlags struct {
	all, human, json, summary, walk bool
	depth                           int
}

func newDu(a *app) *cobra.Command {
	f := &duFlags{}
	cmd := &cobra.Command{
		Use:   "du [-d N] [-a] [-h] [PATH…]",
		Short: "Sum up the sizes of files",
		Long: `Sum up the sizes of the files below each PATH, in bytes. Directories know what lies below them, so
that takes one question, however much it is. What was written in the last second may not be counted yet; a warning says
where that is known, and "settled" in the JSON.

A file with several names counts once, in one of the directories that name it, which need not be below PATH: --walk
counts it in the first one that it meets. What the copies of a file take on the stores is not counted: multiply by the class.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"/"}
			}
			if err := checkRemote("du", args...); err != nil {
				return err
			}
			if f.summary {
				f.depth = 0
			}
			if f.depth < 0 {
				return usagef("du: --max-depth %d: want 0 or more", f.depth)
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error { return a.du(cmd.Context(), c, f, args) })
		},
	}
	cmd.Flags().IntVarP(&f.depth, "max-depth", "d", 0, "also directories up to so many levels below PATH")
	cmd.Flags().BoolVarP(&f.all, "all", "a", false, "with -d: also files")
	cmd.Flags().BoolVarP(&f.summary, "summarize", "s", false, "only the sum of each PATH: what -d 0 does")
	cmd.Flags().BoolVar(&f.walk, "walk", false, "count by listing everything, not by what directories know")
	humanFlag(cmd, &f.human, "sizes with a unit")
	cmd.Flags().BoolVar(&f.json, "json", false, "print an object with a list of entries")
	return cmd
}

// jsonUsage is an entry of du.
type jsonUsage struct {
	jsonPath
	Bytes       uint64 `json:"bytes"`
	Files       uint64 `json:"files"`       // and symlinks
	Directories uint64 `json:"directories"` // itself among them
	Settled     bool   `json:"settled"`
}

func (a *app) du(ctx context.Context, c *client.Client, f *duFlags, paths []string) error {
	d := &du{c: c, f: f, seen: map[dfs.Ino]bool{}}
	d.print = func(path string, u client.Usage) error {
		size := fmt.Sprint(u.Bytes)
		if f.human {
			size = shortSize(int64(u.Bytes))
		}
		if _, err := fmt.Fprintf(a.proc.Out, "%s\t%s\n", size, shown(a.proc.Out, path)); err != nil || u.Settled {
			return err
		}
		_, err := fmt.Fprintf(a.proc.Err, "dfsd: du: %s: not everything is counted yet\n", quote(path))
		return err
	}
	var list *jsonList
	if f.json {
		list = newJSONList(a.proc.Out, "entries")
		d.print = func(path string, u client.Usage) error {
			return list.add(jsonUsage{toJSONPath(path), u.Bytes, u.Files, u.Dirs, u.Settled})
		}
	}
	err := a.eachOf(paths, func(path string) error {
		err := d.path(ctx, path)
		if err == nil {
			return nil
		}
		if err = failed("du", path, err); list != nil {
			list.fail(path, err)
		}
		return err
	})
	if list != nil {
		return cmpErr(err, list.end())
	}
	return err
}

// du sums trees up.
type du struct {
	c     *client.Client
	f     *duFlags
	seen  map[dfs.Ino]bool // files with several names, by --walk
	print func(path string, u client.Usage) error
}

func (d *du) path(ctx context.Context, path string) error {
	a, err := d.c.Lstat(ctx, path)
	switch {
	case err != nil:
		return err
	case a.Type != client.TypeDir:
		return d.print(path, client.Usage{Bytes: uint64(a.Size), Files: 1, Settled: true})
	case d.f.walk:
		_, err = d.sum(ctx, path, a, d.f.depth)
		return err
	}
	u, err := d.c.Inode(a.Ino).Usage(ctx)
	if err == nil {
		err = d.list(ctx, path, a.Ino, u, d.f.depth)
	}
	if errors.Is(err, dfs.Unsupported) { // some group keeps no accounts yet
		_, err = d.sum(ctx, path, a, d.f.depth)
	}
	return err
}

// list prints a directory whose account is known, behind what lies below it.
func (d *du) list(ctx context.Context, path string, dir dfs.Ino, u client.Usage, depth int) error {
	if depth > 0 {
		var entries []client.DirEntry
		var dirs []dfs.Ino
		for e, err := range d.c.Inode(dir).List(ctx, "", d.f.all) {
			if err != nil {
				return err
			}
			if e.Type == client.TypeDir {
				dirs = append(dirs, e.Ino)
			}
			if e.Type == client.TypeDir || d.f.all {
				entries = append(entries, e)
			}
		}
		usages, err := d.c.Usages(ctx, dirs)
		if err != nil {
			return err
		}
		for _, e := range entries {
			below, ok := usages[e.Ino]
			switch {
			case e.Type != client.TypeDir:
				err = d.print(join(path, e.Name), client.Usage{Bytes: uint64(e.Attr.Size), Files: 1, Settled: true})
			case ok:
				err = d.list(ctx, join(path, e.Name), e.Ino, below, depth-1)
			}
			if err != nil {
				return err
			}
		}
	}
	u.Dirs++
	return d.print(path, u)
}

// sum walks a tree, and prints it down to a depth.
func (d *du) sum(ctx context.Context, path string, a *client.Attr, depth int) (client.Usage, error) {
	u := client.Usage{Settled: true}
	if a.Type != client.TypeDir {
		if a.Nlink == 1 || !d.seen[a.Ino] {
			u.Bytes, u.Files = uint64(a.Size), 1
		}
		if a.Nlink > 1 {
			d.seen[a.Ino] = true
		}
		if depth >= 0 && d.f.all {
			return u, d.print(path, u)
		}
		return u, nil
	}
	u.Dirs = 1
	for e, err := range d.c.Inode(a.Ino).List(ctx, "", true) {
		if err != nil {
			return u, err
		}
		below, err := d.sum(ctx, join(path, e.Name), e.Attr, depth-1)
		if err != nil {
			return u, err
		}
		u.Bytes += below.Bytes
		u.Files += below.Files
		u.Dirs += below.Dirs
	}
	if depth >= 0 {
		return u, d.print(path, u)
	}
	return u, nil
}
