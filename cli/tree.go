package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"dfsd/client"
)

func newTree(a *app) *cobra.Command {
	var all, asJSON bool
	var level int
	cmd := &cobra.Command{
		Use:   "tree [-a] [-L LEVELS] [PATH]",
		Short: "Draw a directory tree",
		Args:  checked(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/"
			if len(args) > 0 {
				path = args[0]
			}
			if level < 0 {
				return usagef("tree: --level %d: want 1 or more", level)
			}
			if err := checkRemote("tree", path); err != nil {
				return err
			}
			ctx := cmd.Context()
			return a.withClient(ctx, func(c *client.Client) error {
				t := &treeWalk{c: c, all: all, levels: level, w: bufio.NewWriter(a.proc.Out), name: func(s string) string { return shown(a.proc.Out, s) }}
				if asJSON {
					t.w, t.json = bufio.NewWriter(io.Discard), newJSONList(a.proc.Out, "entries")
				}
				err := t.run(ctx, path)
				if err != nil {
					err = failed("tree", path, err)
				}
				if t.json != nil {
					return cmpErr(err, t.json.end())
				}
				return cmpErr(err, t.w.Flush())
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also names that begin with a dot")
	cmd.Flags().IntVarP(&level, "level", "L", 0, "how many levels to go down; 0: all")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object with a list of entries")
	return cmd
}

// treeWalk draws a tree, depth first.
type treeWalk struct {
	c           *client.Client
	all         bool
	levels      int // 0: all
	w           *bufio.Writer
	json        *jsonList // nil: for people
	name        func(string) string
	dirs, files int
}

func (t *treeWalk) run(ctx context.Context, path string) error {
	a, err := t.c.Stat(ctx, path)
	if err != nil {
		return err
	}
	fmt.Fprintln(t.w, t.name(path))
	if t.json != nil {
		if err := t.json.add(toJSONAttr(path, a)); err != nil {
			return err
		}
	}
	if a.Type == client.TypeDir {
		if err := t.below(ctx, path, t.c.Inode(a.Ino), "", 1); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(t.w, "\n%s, %s\n", plural(t.dirs, "directory"), plural(t.files, "file"))
	return err
}

// below draws what is in a directory. It looks one entry ahead: the last one is
// drawn differently.
func (t *treeWalk) below(ctx context.Context, path string, dir client.Inode, indent string, level int) error {
	var held *client.DirEntry
	for e, err := range visible(dir.List(ctx, "", true), t.all) {
		if err != nil {
			return err
		}
		if held != nil {
			if err := t.entry(ctx, path, *held, indent, "├── ", "│   ", level); err != nil {
				return err
			}
		}
		held = &e
	}
	if held == nil {
		return nil
	}
	return t.entry(ctx, path, *held, indent, "└── ", "    ", level)
}

func (t *treeWalk) entry(ctx context.Context, dir string, e client.DirEntry, indent, branch, deeper string, level int) error {
	line := indent + branch + t.name(e.Name)
	if e.Type == client.TypeSymlink {
		line += " -> " + t.name(e.Attr.Target)
	}
	if _, err := fmt.Fprintln(t.w, line); err != nil {
		return err
	}
	path := join(dir, e.Name)
	if t.json != nil {
		if err := t.json.add(toJSONAttr(path, e.Attr)); err != nil {
			return err
		}
	}
	if e.Type != client.TypeDir {
		t.files++
		return nil
	}
	t.dirs++
	if t.levels > 0 && level >= t.levels {
		return nil
	}
	return t.below(ctx, path, t.c.Inode(e.Ino), indent+deeper, level+1)
}
