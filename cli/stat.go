package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

func newStat(a *app) *cobra.Command {
	var follow, asJSON bool
	cmd := &cobra.Command{
		Use:   "stat [-L] PATH…",
		Short: "Show all attributes of files",
		Args:  checked(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRemote("stat", args...); err != nil {
				return err
			}
			ctx := cmd.Context()
			return a.withClient(ctx, func(c *client.Client) error {
				var list *jsonList
				if asJSON {
					list = newJSONList(a.proc.Out, "entries")
				}
				err := a.eachOf(args, func(path string) error {
					err := a.stat(ctx, c, path, follow, list)
					if err == nil {
						return nil
					}
					if err = failed("stat", path, err); list != nil {
						list.fail(path, err)
					}
					return err
				})
				if list != nil {
					return cmpErr(err, list.end())
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "dereference", "L", false, "follow symlinks")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object with a list of entries")
	return cmd
}

// jsonStat is an entry of stat.
type jsonStat struct {
	jsonAttr
	Version uint64      `json:"change_version"`
	Parent  uint64      `json:"parent,omitempty"` // inode of a directory's parent
	Group   int         `json:"group"`            // namespace group that owns the inode
	Blocks  *jsonBlocks `json:"blocks,omitempty"` // of a file
	Below   *jsonBelow  `json:"below,omitempty"`  // of a directory whose group keeps accounts
}

// jsonBelow is what lies below a directory.
type jsonBelow struct {
	Bytes       uint64 `json:"bytes"`
	Files       uint64 `json:"files"` // and symlinks
	Directories uint64 `json:"directories"`
	Settled     bool   `json:"settled"`
}

// jsonBlocks sums up where the bytes of a file are.
type jsonBlocks struct {
	Extents     int `json:"extents"`
	Blocks      int `json:"blocks"`
	PGs         int `json:"pgs"`
	LeastCopies int `json:"least_copies"` // complete copies on stores that are up, of the block with the fewest; 0 without blocks
}

func (a *app) stat(ctx context.Context, c *client.Client, path string, follow bool, list *jsonList) error {
	look := c.Lstat
	if follow {
		look = c.Stat
	}
	attr, err := look(ctx, path)
	if err != nil {
		return err
	}
	s := jsonStat{jsonAttr: toJSONAttr(path, attr), Version: uint64(attr.Version), Parent: uint64(attr.Parent), Group: int(attr.Ino.Group())}
	if attr.Type == client.TypeFile {
		if s.Blocks, err = placement(ctx, c, attr.Ino); err != nil {
			return err
		}
	}
	if attr.Type == client.TypeDir {
		if s.Below, err = below(ctx, c, attr.Ino); err != nil {
			return err
		}
	}
	if list != nil {
		return list.add(s)
	}
	w := a.proc.Out
	name := quote(path)
	if attr.Type == client.TypeSymlink {
		name += " -> " + quote(attr.Target)
	}
	o := owners{}
	fmt.Fprintf(w, "  Path: %s\n", name)
	fmt.Fprintf(w, "  Type: %-12v Size: %-14d Links: %d\n", attr.Type, attr.Size, attr.Nlink)
	fmt.Fprintf(w, " Inode: %-12v Class: %s\n", attr.Ino, attr.Class)
	fmt.Fprintf(w, "  Mode: %04o/%s  Uid: %d/%s  Gid: %d/%s\n", attr.Mode, modeText(attr.Type, attr.Mode), attr.UID, o.user(attr.UID), attr.GID, o.group(attr.GID))
	fmt.Fprintf(w, "Access: %s\nModify: %s\nChange: %s\n", timeText(attr.Atime), timeText(attr.Mtime), timeText(attr.Ctime))
	if b := s.Below; b != nil {
		note := ""
		if !b.Settled {
			note = ", not everything counted yet"
		}
		_, err = fmt.Fprintf(w, " Below: %d bytes in %s, %s%s\n", b.Bytes, plural(b.Files, "file"), plural(b.Directories, "directory"), note)
	}
	if b := s.Blocks; b != nil && b.Blocks > 0 {
		_, err = fmt.Fprintf(w, "Blocks: %s in %s, %s at least\n", plural(b.Blocks, "block"), plural(b.PGs, "placement group"), plural(b.LeastCopies, "complete copy"))
	}
	return err
}

// below returns what lies below a directory, nil where its group keeps no accounts.
func below(ctx context.Context, c *client.Client, ino dfs.Ino) (*jsonBelow, error) {
	u, err := c.Inode(ino).Usage(ctx)
	switch {
	case errors.Is(err, dfs.Unsupported):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &jsonBelow{u.Bytes, u.Files, u.Dirs, u.Settled}, nil
}

// placement sums up where a file's bytes are.
func placement(ctx context.Context, c *client.Client, ino dfs.Ino) (*jsonBlocks, error) {
	m := c.Map()
	out := &jsonBlocks{}
	copies := map[dfs.PGID]int{}
	var last dfs.BlockID
	for e, err := range c.Inode(ino).Extents(ctx) {
		if err != nil {
			return nil, err
		}
		out.Extents++
		if e.Block != last {
			out.Blocks++
			last = e.Block
		}
		copies[e.Block.PG] = copiesOf(m, e.Block.PG)
	}
	if out.PGs = len(copies); out.PGs > 0 {
		var all []int
		for _, n := range copies {
			all = append(all, n)
		}
		out.LeastCopies = slices.Min(all)
	}
	return out, nil
}

// copiesOf counts the complete copies of a placement group on stores that are up.
func copiesOf(m *dfs.Map, id dfs.PGID) int {
	pg := m.PG(id)
	if pg == nil {
		return 0
	}
	n := 0
	for _, s := range pg.Complete() {
		if st := m.Store(s); st != nil && st.State == dfs.StoreUp {
			n++
		}
	}
	return n
}
