package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"dfsd/dfs"
	"dfsd/engine"
)

func (a *app) engineLs() *cobra.Command {
	var pgName string
	var all bool
	cmd := a.engineVerb("ls [--pg PG] [--all] DIR", "List the blocks of a store", 1, func(ctx context.Context, dir string, asJSON bool, _ []string) error {
		pg, err := parsePG(pgName)
		if err != nil {
			return err
		}
		return a.inspect(ctx, dir, func(in *engine.Inspection) error {
			out := newBlockLister(a.proc.Out, asJSON)
			err := in.Blocks(ctx, pg, all, out.block)
			problems, _ := in.Problems(ctx)
			for _, f := range problems {
				out.fail(dir, f)
			}
			return cmpErr(err, out.end(), a.complainOf(problems))
		})
	})
	cmd.Flags().StringVar(&pgName, "pg", "", "only the blocks of this placement group")
	cmd.Flags().BoolVar(&all, "all", false, "also tombstones")
	return cmd
}

// parsePG reads 7 or pg7; 0 for an empty name.
func parsePG(name string) (dfs.PGID, error) {
	if name == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(name, "pg"), 10, 32)
	if err != nil || n == 0 {
		return 0, usagef("engine ls: --pg %q: want the number of a placement group, such as 7 or pg7", name)
	}
	return dfs.PGID(n), nil
}

// blockLister prints what engine ls finds.
type blockLister struct {
	w    *bufio.Writer
	list *jsonList // nil: text
}

func newBlockLister(w io.Writer, asJSON bool) *blockLister {
	if asJSON {
		return &blockLister{list: newJSONList(w, "blocks")}
	}
	l := &blockLister{w: bufio.NewWriter(w)}
	fmt.Fprintf(l.w, "%-32s %5s %7s %9s %9s %-5s %20s  %s\n", "BLOCK", "SHARD", "EPOCH", "LENGTH", "STORED", "CODEC", "SEGMENT:OFFSET", "FLAGS")
	return l
}

// jsonBlock is a block of engine ls, and a record of engine dump.
type jsonBlock struct {
	Block     string `json:"block"`
	PG        uint32 `json:"pg"`
	Shard     uint8  `json:"shard"`
	Epoch     uint64 `json:"epoch"`
	Seq       uint64 `json:"seq"`
	Tombstone bool   `json:"tombstone"`
	Lost      bool   `json:"lost"` // the record is known to be damaged
	Length    uint32 `json:"length"`
	Stored    uint32 `json:"stored"`
	Codec     string `json:"codec"`
	Digest    string `json:"digest"`
	Segment   uint64 `json:"segment"`
	Offset    int64  `json:"offset"`
}

func toJSONBlock(e engine.Entry, codec dfs.Codec, seq, segment uint64, offset int64) jsonBlock {
	return jsonBlock{
		Block: e.ID.String(), PG: uint32(e.ID.PG), Shard: e.Shard, Epoch: uint64(e.Epoch), Seq: seq, Tombstone: e.Tombstone, Lost: e.Lost,
		Length: e.Length, Stored: e.Stored, Codec: codecText(e, codec), Digest: fmt.Sprintf("%08x", e.Digest), Segment: segment, Offset: offset,
	}
}

// codecText is a codec's name; "-" for a tombstone.
func codecText(e engine.Entry, c dfs.Codec) string {
	if e.Tombstone {
		return "-"
	}
	return c.String()
}

func (l *blockLister) block(b engine.BlockPlace) error {
	if l.list != nil {
		return l.list.add(struct {
			jsonBlock
			Damaged bool `json:"damaged"`
		}{toJSONBlock(b.Entry, b.Codec, b.Seq, b.Segment, b.Offset), b.Damaged})
	}
	var flags []string
	for _, f := range []struct {
		on   bool
		name string
	}{{b.Tombstone, "tombstone"}, {b.Lost, "lost"}, {b.Damaged, "damaged"}} {
		if f.on {
			flags = append(flags, f.name)
		}
	}
	_, err := fmt.Fprintf(l.w, "%-32s %5d %7d %9d %9d %-5s %20s  %s\n", b.ID, b.Shard, b.Epoch, b.Length, b.Stored, codecText(b.Entry, b.Codec),
		fmt.Sprintf("%d:%d", b.Segment, b.Offset), cmpText(strings.Join(flags, ","), "-"))
	return err
}

func (l *blockLister) fail(dir string, f engine.Fault) {
	if l.list != nil {
		l.list.fail(dir, fmt.Errorf("%s", f.String()))
	}
}

func (l *blockLister) end() error {
	if l.list != nil {
		return l.list.end()
	}
	return l.w.Flush()
}

// cmpText is the first text that is not empty.
func cmpText(texts ...string) string {
	for _, s := range texts {
		if s != "" {
			return s
		}
	}
	return ""
}
