package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"dfsd/dfs"
	"dfsd/engine"
)

func (a *app) engineDump() *cobra.Command {
	cmd := a.engineVerb("dump DIR SEGMENT", "Show what is in a segment", 2, func(ctx context.Context, dir string, asJSON bool, args []string) error {
		segment, err := parseSegment(args[0])
		if err != nil {
			return err
		}
		return a.inspect(ctx, dir, func(in *engine.Inspection) error {
			d := newDumper(a.proc.Out, segment, asJSON)
			err := in.Dump(ctx, segment, d.piece)
			if dfs.KindOf(err) == dfs.NotExist {
				err = fmt.Errorf("it has no segment %d", segment)
				d.fail(dir, err)
				err = withHint(err, "see dfsd engine stats")
			} else if err != nil {
				d.fail(dir, err)
			}
			err = cmpErr(err, d.end())
			if err == nil && d.wrong > 0 {
				err = somethingWrong(d.wrong)
			}
			return err
		})
	})
	cmd.Long = `Show what is in a segment, in the order of its places: the header, batches with their records, bytes in
which records are damaged, where the log ends, and the footer. The checksums of the blocks are checked.
SEGMENT is the number of a segment, or the name of its file.`
	return cmd
}

// parseSegment reads the number of a segment, or the name of its file.
func parseSegment(s string) (uint64, error) {
	base := 10
	name := filepath.Base(s)
	if hex, ok := strings.CutSuffix(name, ".seg"); ok || len(name) == 16 {
		name, base = hex, 16
	}
	n, err := strconv.ParseUint(name, base, 64)
	if err != nil || n == 0 {
		return 0, usagef("engine dump: segment %q: want its number, or the name of its file", s)
	}
	return n, nil
}

// dumper prints the pieces of a segment.
type dumper struct {
	w       *bufio.Writer
	list    *jsonList // nil: text
	segment uint64
	wrong   int
}

func newDumper(w io.Writer, segment uint64, asJSON bool) *dumper {
	d := &dumper{segment: segment}
	if asJSON {
		d.list = newJSONList(w, "pieces")
	} else {
		d.w = bufio.NewWriter(w)
	}
	return d
}

func (d *dumper) end() error {
	if d.list != nil {
		return d.list.end()
	}
	return d.w.Flush()
}

// fail has an object say why it is not whole.
func (d *dumper) fail(dir string, err error) {
	if d.list != nil {
		d.list.fail(dir, err)
	}
}

func (d *dumper) piece(p engine.Piece) error {
	if p.Fault != "" {
		d.wrong++
	}
	if d.list != nil {
		return d.list.add(d.toJSON(p))
	}
	what, text := pieceText(p)
	if p.Fault != "" {
		text = strings.TrimPrefix(text+"  !! "+p.Fault, "  ")
	}
	_, err := fmt.Fprintf(d.w, "%12d  %-11s  %s\n", p.Offset, what, text)
	return err
}

// pieceText is what a piece is, and its line.
func pieceText(p engine.Piece) (what, text string) {
	switch {
	case p.Header != nil:
		return "header", fmt.Sprintf("segment %d of store mark %016x, %d bytes", p.Header.Number, p.Header.Mark, p.Header.Size)
	case p.Batch != nil:
		text = fmt.Sprintf("%d bytes, %s from #%d, durable below %d", p.Length, plural(p.Batch.Records, "record"), p.Batch.First, p.Batch.Synced)
		if p.Batch.Records == 0 {
			text = fmt.Sprintf("%d bytes", p.Length)
		}
		if p.Batch.Moved {
			text += ", copies"
		}
		if p.Batch.Unproved {
			text += ", nothing proves its sync"
		}
		return "batch", text
	case p.Record != nil:
		return recordText(p.Record)
	case p.Footer != nil:
		return "footer", fmt.Sprintf("%d entries, the log ends at %d", p.Footer.Entries, p.Footer.End)
	case p.Torn:
		return "end", fmt.Sprintf("a batch was begun here and not finished; %d bytes follow that are no log", p.Length)
	case p.Tail:
		return "end", fmt.Sprintf("%d bytes follow that are no log", p.Length)
	case p.Header == nil && p.Offset == 0:
		return "header", ""
	}
	return "gap", fmt.Sprintf("%d bytes", p.Length)
}

func recordText(r *engine.RecordPiece) (what, text string) {
	what = "  put"
	text = fmt.Sprintf("#%d block %s", r.Seq, r.ID)
	if r.Shard != 0 {
		text += fmt.Sprintf(" shard %d", r.Shard)
	}
	text += fmt.Sprintf(" epoch %d", r.Epoch)
	if r.Tombstone {
		what = "  tombstone"
	} else if r.Footer {
		text += fmt.Sprintf(", %d bytes, stored %d", r.Length, r.Stored)
	} else {
		text += fmt.Sprintf(", %d bytes, stored %d in %s (%s), for inode %s at %d", r.Length, r.Stored, plural(r.Chunks, "chunk"), r.Codec, r.Hint.Ino, r.Hint.Offset)
	}
	if r.Refill {
		text += ", refill"
	}
	if r.Moved {
		text += ", copy"
	}
	if r.Forgotten {
		text += ", forgotten with its placement group"
	}
	if r.Footer {
		text += ", says the footer"
	}
	return what, text
}

// jsonPiece is a part of a segment.
type jsonPiece struct {
	Kind   string `json:"kind"` // header, batch, put, tombstone, footer, end, gap
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Fault  string `json:"fault,omitempty"`

	Header *jsonHeader `json:"header,omitempty"`
	Batch  *jsonBatch  `json:"batch,omitempty"`
	Record *jsonRecord `json:"record,omitempty"`
	Footer *jsonFooter `json:"footer,omitempty"`
}

type jsonHeader struct {
	Mark    string `json:"mark"`
	Segment uint64 `json:"segment"`
	Size    int64  `json:"size"`
}

type jsonBatch struct {
	Moved    bool   `json:"moved"`
	First    uint64 `json:"first"`
	Synced   int64  `json:"synced"`
	Records  int    `json:"records"`
	Unproved bool   `json:"unproved"`
}

type jsonRecord struct {
	jsonBlock
	Chunks      int    `json:"chunks"`
	Refill      bool   `json:"refill"`
	Moved       bool   `json:"moved"`
	HintIno     uint64 `json:"hint_ino"`
	HintOffset  int64  `json:"hint_offset"`
	HintVersion uint64 `json:"hint_version"`
	Footer      bool   `json:"footer_only"`
	Forgotten   bool   `json:"forgotten"` // with its placement group
}

type jsonFooter struct {
	Entries int   `json:"entries"`
	End     int64 `json:"end"`
}

func (d *dumper) toJSON(p engine.Piece) jsonPiece {
	kind, _ := pieceText(p)
	j := jsonPiece{Kind: strings.TrimSpace(kind), Offset: p.Offset, Length: p.Length, Fault: p.Fault}
	if h := p.Header; h != nil {
		j.Header = &jsonHeader{fmt.Sprintf("%016x", h.Mark), h.Number, h.Size}
	}
	if b := p.Batch; b != nil {
		j.Batch = &jsonBatch{b.Moved, b.First, b.Synced, b.Records, b.Unproved}
	}
	if r := p.Record; r != nil {
		j.Record = &jsonRecord{
			jsonBlock: toJSONBlock(r.Entry, r.Codec, r.Seq, d.segment, p.Offset), Chunks: r.Chunks, Refill: r.Refill, Moved: r.Moved,
			HintIno: uint64(r.Hint.Ino), HintOffset: r.Hint.Offset, HintVersion: uint64(r.Hint.Version), Footer: r.Footer, Forgotten: r.Forgotten,
		}
	}
	if f := p.Footer; f != nil {
		j.Footer = &jsonFooter{f.Entries, f.End}
	}
	return j
}
