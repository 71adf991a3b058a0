package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/transport/wire"
)

func newExplain(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain PATH",
		Short: "Show where every byte of a file is, how many copies, and which policy says so",
		Long: `Show where every byte of a file is, how many copies, and which policy says so; and of each block, which a
store is asked for, its codec and the bytes it takes there, of those that it holds.`,
		Args: checked(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRemote("explain", args...); err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error {
				e, err := explain(cmd.Context(), c, args[0])
				switch {
				case err != nil:
					return failed("explain", args[0], err)
				case asJSON:
					return printJSON(a.proc.Out, e)
				}
				return e.print(a.proc.Out)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}

// explanation says where the bytes of a file are.
type explanation struct {
	Version int `json:"version"`
	jsonPath
	Type   string `json:"type"`
	Ino    uint64 `json:"ino"`
	Group  int    `json:"group"`  // namespace group of the inode
	Leader string `json:"leader"` // of the group; empty: not known
	Size   int64  `json:"size"`

	Class       string `json:"class"`        // of the file, or of what is made in the directory
	Policy      string `json:"policy"`       // what says so
	LeastCopies int    `json:"least_copies"` // complete copies on stores that are up, of the block with the fewest
	WantCopies  int    `json:"want_copies"`

	// Of the blocks that could be asked for, each counted once.
	BlockBytes  int64 `json:"block_bytes"`  // before compression
	StoredBytes int64 `json:"stored_bytes"` // of one copy
	Unasked     int   `json:"unasked"`      // blocks of which no store said how they are stored

	Extents []extentStatus `json:"extents"`
	PGs     []pgStatus     `json:"pgs"` // those of the extents
}

type extentStatus struct {
	Offset      int64  `json:"offset"`
	Length      int64  `json:"length"`
	Block       string `json:"block"`
	BlockOffset uint32 `json:"block_offset"`
	BlockLength uint32 `json:"block_length"`
	Codec       string `json:"codec"`  // empty: no store said
	Stored      int    `json:"stored"` // bytes of one copy of the block; 0: no store said
	PG          uint32 `json:"pg"`
	Copies      int    `json:"copies"`
}

func explain(ctx context.Context, c *client.Client, path string) (*explanation, error) {
	a, err := c.Lstat(ctx, path)
	if err != nil {
		return nil, err
	}
	e := &explanation{
		Version: jsonVersion, jsonPath: toJSONPath(path), Type: a.Type.String(), Ino: uint64(a.Ino), Group: int(a.Ino.Group()), Size: a.Size,
		Class: a.Class, Extents: []extentStatus{}, PGs: []pgStatus{},
	}
	if err := e.policy(ctx, c, path, a); err != nil {
		return nil, err
	}
	reply, err := c.Status(ctx)
	if err != nil { // what the map alone says is better than nothing
		reply = &wire.StatusReply{Map: wire.FromMap(c.Map())}
	}
	s, err := toStatus(reply, time.Now())
	if err != nil {
		return nil, err
	}
	for _, g := range s.Groups {
		if int(g.Group) == e.Group {
			e.Leader = g.Leader
		}
	}
	if a.Type == client.TypeFile {
		err = e.extents(ctx, c, s, a)
	}
	return e, err
}

// policy says where the class comes from.
func (e *explanation) policy(ctx context.Context, c *client.Client, path string, a *client.Attr) error {
	dir := path
	if a.Type != client.TypeDir {
		dir, _ = split(path)
	}
	p, err := policyOf(ctx, c, dir)
	if err != nil {
		return err
	}
	e.Policy = p.String()
	switch a.Type {
	case client.TypeDir:
		e.Class = p.class
	case client.TypeSymlink:
		e.Policy = "a symlink has no blocks"
	default:
		if p.class != a.Class {
			e.Policy = fmt.Sprintf("what was in force when the file was made; what is made in %s now is %s", quote(dir), p.class)
		}
	}
	if class, err := dfs.ParseClass(e.Class); err == nil {
		e.WantCopies = class.Width()
	}
	return nil
}

func (e *explanation) extents(ctx context.Context, c *client.Client, s *status, a *client.Attr) error {
	seen := map[dfs.PGID]int{}
	var all []client.Extent
	for x, err := range c.Inode(a.Ino).Extents(ctx) {
		if err != nil {
			return err
		}
		copies, known := seen[x.Block.PG]
		if !known {
			copies = copiesOf(s.m, x.Block.PG)
			seen[x.Block.PG] = copies
			if pg := s.m.PG(x.Block.PG); pg != nil {
				e.PGs = append(e.PGs, s.pg(pg))
			}
		}
		if len(e.Extents) == 0 || copies < e.LeastCopies {
			e.LeastCopies = copies
		}
		all = append(all, x)
		e.Extents = append(e.Extents, extentStatus{
			Offset: x.Offset, Length: x.Length, Block: x.Block.String(), BlockOffset: x.BlockOffset, BlockLength: x.BlockLength,
			PG: uint32(x.Block.PG), Copies: copies,
		})
	}
	e.stored(ctx, c, all)
	return ctx.Err()
}

// askBlocks is how many blocks explain asks for at a time.
const askBlocks = 16

// stored finds out how the block of each extent is stored, as far as stores say.
func (e *explanation) stored(ctx context.Context, c *client.Client, extents []client.Extent) {
	first := map[dfs.BlockID]int{} // the extent for which a block is asked
	var ask errgroup.Group
	ask.SetLimit(askBlocks)
	for i, x := range extents {
		if _, known := first[x.Block]; known {
			continue
		}
		first[x.Block] = i
		ask.Go(func() error {
			if info, err := c.Describe(ctx, x); err == nil {
				e.Extents[i].Codec, e.Extents[i].Stored = info.Codec.String(), info.StoredLen()
			}
			return nil
		})
	}
	_ = ask.Wait()
	for i, x := range extents {
		of := e.Extents[first[x.Block]]
		e.Extents[i].Codec, e.Extents[i].Stored = of.Codec, of.Stored
		switch {
		case first[x.Block] != i:
		case of.Codec == "":
			e.Unasked++
		default:
			e.BlockBytes += int64(x.BlockLength)
			e.StoredBytes += int64(of.Stored)
		}
	}
}

func (e *explanation) print(w io.Writer) error {
	leader := ""
	if e.Leader != "" {
		leader = ", led by " + e.Leader
	}
	fmt.Fprintf(w, "%s: %s, %s, inode %v of namespace group %d%s\n", quote(e.Path), e.Type, plural(e.Size, sizeNoun(e.Type)), dfs.Ino(e.Ino), e.Group, leader)
	if e.Class != "" {
		fmt.Fprintf(w, "class   %s, by %s\n", e.Class, e.Policy)
	}
	if e.Type != client.TypeFile.String() {
		return nil
	}
	if len(e.Extents) == 0 {
		_, err := fmt.Fprintln(w, "blocks  none")
		return err
	}
	fmt.Fprintf(w, "copies  %d of %d complete on stores that are up, for every block at least\n", e.LeastCopies, e.WantCopies)
	fmt.Fprintf(w, "stored  %d of %s in each copy", e.StoredBytes, plural(e.BlockBytes, "byte"))
	if e.Unasked > 0 {
		fmt.Fprintf(w, ", and no store said it of %s", plural(int64(e.Unasked), "block"))
	}
	fmt.Fprint(w, "\n\n")
	pgs := map[uint32]pgStatus{}
	for _, p := range e.PGs {
		pgs[p.PG] = p
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "OFFSET\tLENGTH\tBLOCK\tCODEC\tSTORED\tPG\tSTATE\tSTORES\n")
	for _, x := range e.Extents {
		p := pgs[x.PG]
		codec, stored := x.Codec, fmt.Sprintf("%d/%d", x.Stored, x.BlockLength)
		if codec == "" {
			codec, stored = "?", fmt.Sprintf("?/%d", x.BlockLength)
		}
		fmt.Fprintf(t, "%d\t%d\t%s\t%s\t%s\t%d\t%s\t%s\n", x.Offset, x.Length, x.Block, codec, stored, x.PG, p.State, p.where())
	}
	return t.Flush()
}

func sizeNoun(typ string) string {
	if typ == client.TypeDir.String() {
		return "entry"
	}
	return "byte"
}

// where lists the stores of a placement group that matter, with what each has.
func (p pgStatus) where() string {
	var out []string
	for _, m := range p.Members {
		if !m.Acting && m.State == "up" {
			continue // it holds no copy that counts, and is on no way to one
		}
		what := "complete"
		switch {
		case m.State != "up":
			what = m.State
		case !m.Complete:
			what = "incomplete"
		}
		out = append(out, fmt.Sprintf("s%d@%s %s", m.Store, m.Node, what))
	}
	return strings.Join(out, ", ")
}
