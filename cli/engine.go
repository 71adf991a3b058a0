package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"dfsd/dfs"
	"dfsd/engine"
)

func newEngine(a *app) *cobra.Command {
	cmd := family("engine", "Look into the directory of a store that no process uses",
		a.engineStats(), a.engineLs(), a.engineVerify(), a.engineDump(), a.engineRebuild())
	cmd.Long = `Look into the directory of a store (one disk of a storage node, such as DIR/store0) that no process
uses. All but rebuild-index change nothing in it. They exit 1 when something in it is wrong.

What to do then: start the store. It has what is damaged replaced by good copies of other stores, and makes
an index anew that it cannot use. docs/OPERATIONS.md says when that is not enough.`
	return cmd
}

// engineVerb is a verb of engine about a directory. The path is made absolute, so
// that errors name it wholly.
func (a *app) engineVerb(use, short string, args int, run func(ctx context.Context, dir string, asJSON bool, args []string) error) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: use, Short: short, Args: checked(cobra.ExactArgs(args))}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		dir, err := filepath.Abs(args[0])
		if err == nil {
			err = run(cmd.Context(), dir, asJSON, args[1:])
		}
		if err == nil || exitCodeOf(err) != exitFailed {
			return err
		}
		return engineFailed(verbName(cmd), args[0], err)
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}

// engineFailed names the verb, the directory, and what helps.
func engineFailed(verb, dir string, err error) error {
	err = failed(verb, dir, err)
	switch dfs.KindOf(err) {
	case dfs.Unavailable:
		return withHint(err, "stop it first")
	case dfs.NotExist:
		return withHint(err, "give the directory of one store, which has the files STORE, EPOCH and MARK")
	}
	return err
}

// inspect runs fn on a directory, and then fails if something in it is wrong.
func (a *app) inspect(ctx context.Context, dir string, fn func(*engine.Inspection) error) (err error) {
	in, err := engine.Inspect(vfs.Default, dir)
	if err != nil {
		return err
	}
	defer func() { err = cmpErr(err, in.Close()) }()
	return fn(in)
}

// complainOf prints what is wrong in a directory on stderr. Its error says so.
func (a *app) complainOf(faults []engine.Fault) error {
	for _, f := range faults {
		fmt.Fprintln(a.proc.Err, printable("wrong: "+f.String()))
	}
	if len(faults) > 0 {
		return somethingWrong(len(faults))
	}
	return nil
}

func somethingWrong(n int) error {
	if n == 1 {
		return fmt.Errorf("1 thing is wrong")
	}
	return fmt.Errorf("%d things are wrong", n)
}

func (a *app) engineStats() *cobra.Command {
	return a.engineVerb("stats DIR", "Show what a store holds, and how full its segments are", 1, func(ctx context.Context, dir string, asJSON bool, _ []string) error {
		return a.inspect(ctx, dir, func(in *engine.Inspection) error {
			o, err := in.Overview(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(a.proc.Out, toEngineStats(o))
			} else {
				err = printEngineStats(a.proc.Out, o)
			}
			return cmpErr(err, a.complainOf(o.Problems))
		})
	})
}

// engineStats is what stats prints.
type engineStats struct {
	Version    int             `json:"version"`
	Cluster    string          `json:"cluster"`
	Node       uint32          `json:"node"`
	Store      uint32          `json:"store"`
	Mark       string          `json:"mark"`
	RolledBack bool            `json:"rolled_back"`
	MapEpoch   uint64          `json:"map_epoch"`
	LastSeq    uint64          `json:"last_seq"`
	Blocks     uint64          `json:"blocks"`
	Tombstones uint64          `json:"tombstones"`
	Logical    uint64          `json:"logical"`
	Stored     uint64          `json:"stored"`
	Live       uint64          `json:"live"`
	Dead       uint64          `json:"dead"`
	Allocated  uint64          `json:"allocated"`
	Index      uint64          `json:"index"`
	Behind     uint64          `json:"index_behind"`
	Forgotten  int             `json:"forgotten_pgs"` // of which records may still lie in segments
	Damaged    int             `json:"damaged"`
	Unnamed    bool            `json:"damaged_unnamed"`
	Segments   []engineSegment `json:"segments"`
	Problems   []engineFault   `json:"problems"`
	Notes      []string        `json:"notes"`
}

type engineSegment struct {
	Segment    uint64 `json:"segment"`
	State      string `json:"state"`
	Moved      bool   `json:"moved"`
	Size       int64  `json:"size"`
	End        int64  `json:"end"`
	Live       uint64 `json:"live"`
	Dead       uint64 `json:"dead"`
	Puts       uint64 `json:"puts"`
	Tombstones uint64 `json:"tombstones"`
}

// engineFault is a thing that is wrong.
type engineFault struct {
	File    string `json:"file"`
	Segment uint64 `json:"segment,omitempty"`
	Offset  int64  `json:"offset"`
	Length  int64  `json:"length"` // 0: the file as a whole
	Block   string `json:"block,omitempty"`
	Shard   uint8  `json:"shard,omitempty"`
	Known   bool   `json:"known"`
	Text    string `json:"text"`
}

func toEngineFaults(faults []engine.Fault) []engineFault {
	out := []engineFault{}
	for _, f := range faults {
		e := engineFault{File: f.File, Segment: f.Segment, Offset: f.Offset, Length: f.Length, Known: f.Known, Text: f.Text}
		if f.Named {
			e.Block, e.Shard = f.ID.String(), f.Shard
		}
		out = append(out, e)
	}
	return out
}

func toEngineStats(o *engine.Overview) *engineStats {
	s := &engineStats{
		Version: jsonVersion, Node: uint32(o.Node), Store: uint32(o.Store), Mark: fmt.Sprintf("%016x", o.Incarnation.Mark), RolledBack: o.RolledBack,
		MapEpoch: uint64(o.MapEpoch), LastSeq: o.LastSeq, Blocks: o.Blocks, Tombstones: o.Tombstones, Logical: o.Logical, Stored: o.Stored, Live: o.LiveBytes, Dead: o.DeadBytes,
		Allocated: o.FileBytes, Index: o.IndexBytes, Behind: o.Behind, Forgotten: o.Forgotten, Damaged: len(o.Damage), Unnamed: o.Unnamed,
		Segments: []engineSegment{}, Problems: toEngineFaults(o.Problems), Notes: append([]string{}, o.Notes...),
	}
	if !o.Cluster.IsZero() {
		s.Cluster = o.Cluster.String()
	}
	for _, g := range o.Segments {
		s.Segments = append(s.Segments, engineSegment{g.Number, g.State.String(), g.Moved, g.Size, g.End, g.Live, g.Dead, g.Puts, g.Tombstones})
	}
	return s
}

func printEngineStats(w io.Writer, o *engine.Overview) error {
	who := "not registered yet"
	if o.Store != 0 {
		who = fmt.Sprintf("%s of %s, cluster %s", o.Store, o.Node, o.Cluster)
	}
	fmt.Fprintf(w, "store       %s\nmark        %016x\nmap epoch   %d\nlast record %d\n", who, o.Incarnation.Mark, o.MapEpoch, o.LastSeq)
	fmt.Fprintf(w, "blocks      %d, %s, stored in %s\ntombstones  %d\nlive        %s\ndead        %s\nallocated   %s\nindex       %s", o.Blocks, sizeText(o.Logical), sizeText(o.Stored), o.Tombstones,
		sizeText(o.LiveBytes), sizeText(o.DeadBytes), sizeText(o.FileBytes), sizeText(o.IndexBytes))
	if o.Behind > 0 {
		fmt.Fprintf(w, ", %s of log behind", sizeText(o.Behind))
	}
	fmt.Fprintln(w)
	if o.Forgotten > 0 {
		fmt.Fprintf(w, "forgotten   %s, of which dead records are left\n", plural(o.Forgotten, "placement group"))
	}
	if len(o.Damage) > 0 {
		fmt.Fprintf(w, "damaged     %s\n", plural(len(o.Damage), "place"))
	}
	if o.Unnamed {
		fmt.Fprintln(w, "incomplete  records are lost that nobody can name: once started the store is filled again")
	}
	for _, n := range o.Notes {
		fmt.Fprintf(w, "note        %s\n", printable(n))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "\nSEGMENT\tSTREAM\tSTATE\tSIZE\tLOG\tLIVE\tDEAD\tLIVE/LOG\tBLOCKS\tTOMBSTONES\n")
	for _, g := range o.Segments {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%.0f %%\t%d\t%d\n", g.Number, streamText(g), g.State, sizeText(uint64(g.Size)), sizeText(uint64(g.End)),
			sizeText(g.Live), sizeText(g.Dead), 100*float64(g.Live)/float64(max(g.End, 1)), g.Puts, g.Tombstones)
	}
	return t.Flush()
}

// streamText says whose batches a segment has.
func streamText(g engine.SegmentOverview) string {
	switch {
	case g.State != engine.SegmentActive && g.State != engine.SegmentSealed:
		return "-"
	case g.Moved:
		return "moved"
	}
	return "log"
}

// meter shows progress on a terminal.
type meter struct {
	a    *app
	verb string
	bar  *progressbar.ProgressBar
}

func (a *app) newMeter(verb string) *meter { return &meter{a: a, verb: verb} }

func (m *meter) progress(done, total int64) {
	if !terminal(m.a.proc.Err) {
		return
	}
	if m.bar == nil {
		m.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(m.a.proc.Err), progressbar.OptionSetDescription(m.verb), progressbar.OptionShowBytes(true),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetWidth(30),
			progressbar.OptionSetSpinnerChangeInterval(0), // without a goroutine of its own
		)
	}
	_ = m.bar.Set64(done)
}

func (m *meter) end() {
	if m.bar != nil {
		_ = m.bar.Clear()
		_ = m.bar.Exit()
	}
}
