package cli

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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

// engineReport is what verify prints.
type engineReport struct {
	Version    int           `json:"version"`
	OK         bool          `json:"ok"`
	Segments   int           `json:"segments"`
	Bytes      int64         `json:"bytes"`
	Batches    int           `json:"batches"`
	Records    int           `json:"records"`
	Blocks     uint64        `json:"blocks"`
	Tombstones uint64        `json:"tombstones"`
	Faults     []engineFault `json:"faults"`
	More       int           `json:"more_faults"`
	Notes      []string      `json:"notes"`
	Seconds    float64       `json:"seconds"`
}

func (a *app) engineVerify() *cobra.Command {
	cmd := a.engineVerb("verify DIR", "Read everything in a store and check it", 1, func(ctx context.Context, dir string, asJSON bool, _ []string) error {
		return a.inspect(ctx, dir, func(in *engine.Inspection) error {
			begun := time.Now()
			m := a.newMeter("verify")
			r, err := in.Verify(ctx, m.progress)
			m.end()
			if err != nil {
				return err
			}
			took := time.Since(begun)
			if asJSON {
				err = printJSON(a.proc.Out, &engineReport{
					jsonVersion, r.OK(), r.Segments, r.Bytes, r.Batches, r.Records, r.Blocks, r.Tombstones,
					toEngineFaults(r.Faults), r.MoreFaults, append([]string{}, r.Notes...), took.Seconds(),
				})
			} else {
				err = printReport(a.proc.Out, r, took)
			}
			if err == nil && !r.OK() {
				err = somethingWrong(len(r.Faults) + r.MoreFaults)
			}
			return err
		})
	})
	cmd.Long = `Read everything in a store and check it: the small files, every batch and record of every segment with
the checksums of the blocks, footers, and the index against the segments. Nothing is changed. What is
wrong is named by file, offset and block; what is only worth knowing, such as a batch that a crash cut
short, is a note.`
	return cmd
}

func printReport(w io.Writer, r *engine.Report, took time.Duration) error {
	b := bufio.NewWriter(w)
	for _, f := range r.Faults {
		known := ""
		if f.Known {
			known = " (known to the store)"
		}
		fmt.Fprintf(b, "wrong: %s%s\n", printable(f.String()), known)
	}
	if r.MoreFaults > 0 {
		fmt.Fprintf(b, "wrong: and %d more\n", r.MoreFaults)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(b, "note: %s\n", printable(n))
	}
	fmt.Fprintf(b, "read %s with %s in %s, %s in %.2f s, %s; the index has %s, %s\n", plural(r.Segments, "segment"), plural(r.Records, "record"),
		batches(r.Batches), sizeText(uint64(r.Bytes)), took.Seconds(), rateText(r.Bytes, took), plural(r.Blocks, "block"), plural(r.Tombstones, "tombstone"))
	return b.Flush()
}

func batches(n int) string {
	if n == 1 {
		return "1 batch"
	}
	return fmt.Sprintf("%d batches", n)
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

func (a *app) engineRebuild() *cobra.Command {
	cmd := a.engineVerb("rebuild-index DIR", "Make the index of a store anew from its segments", 1, func(ctx context.Context, dir string, asJSON bool, _ []string) error {
		begun := time.Now()
		m := a.newMeter("rebuild-index")
		r, err := engine.RebuildIndex(ctx, engine.Options{
			FS: vfs.Default, Dir: dir, NewMark: newMark, PID: os.Getpid(),
		}, m.progress)
		m.end()
		if err != nil {
			return err
		}
		if asJSON {
			err = printJSON(a.proc.Out, toEngineRebuilt(r, time.Since(begun)))
		} else {
			_, err = fmt.Fprintf(a.proc.Out, "%s, %s from %s with %s of log in %.2f s\n", plural(r.Blocks, "block"), plural(r.Tombstones, "tombstone"),
				plural(r.Segments, "segment"), sizeText(r.Bytes), time.Since(begun).Seconds())
		}
		return cmpErr(err, a.complainOfDamage(r))
	})
	cmd.Long = `Make the index of a store anew from its segments, as a start does that finds it damaged. The index is
derived: nothing is lost by this, and what is damaged in the segments, or which of them is missing, is found
anew: a segment file that was moved away is to be put back first. It is not to be interrupted by Ctrl-C once
it has begun; when it is killed, the next start of the store goes on.`
	return cmd
}

// complainOfDamage prints what a rebuild found damaged. Its error says so.
func (a *app) complainOfDamage(r *engine.Rebuilt) error {
	for _, x := range r.Missing {
		fmt.Fprintf(a.proc.Err, "wrong: %s\n", missingText(x))
	}
	for _, d := range r.Damage {
		what := ""
		if d.Named {
			what = "block " + d.ID.String() + ": "
		}
		fmt.Fprintf(a.proc.Err, "wrong: segment %d at %d: %s%s\n", d.Segment, d.Offset, what, d.Reason)
	}
	switch {
	case len(r.Damage) > 0:
		return fmt.Errorf("the index is made, and %s damaged", places(len(r.Damage)))
	case r.Unnamed:
		return fmt.Errorf("the index is made, and records are lost that nobody can name: the cluster will fill the store again")
	}
	return nil
}

// missingText names segments that are lost.
func missingText(x [2]uint64) string {
	if x[0] == x[1] {
		return fmt.Sprintf("segment %d is missing", x[0])
	}
	return fmt.Sprintf("segments %d to %d are missing", x[0], x[1])
}

func places(n int) string {
	if n == 1 {
		return "1 place in the segments is"
	}
	return fmt.Sprintf("%d places in the segments are", n)
}

// engineRebuilt is what rebuild-index prints.
type engineRebuilt struct {
	Version    int            `json:"version"`
	Blocks     uint64         `json:"blocks"`
	Tombstones uint64         `json:"tombstones"`
	Segments   int            `json:"segments"`
	Bytes      uint64         `json:"bytes"`
	LastSeq    uint64         `json:"last_seq"`
	Unnamed    bool           `json:"damaged_unnamed"`
	Missing    [][2]uint64    `json:"missing"` // first and last number of each range
	Damage     []engineDamage `json:"damage"`
	Seconds    float64        `json:"seconds"`
}

type engineDamage struct {
	Segment uint64 `json:"segment"`
	Offset  int64  `json:"offset"`
	Length  int64  `json:"length"`
	Block   string `json:"block,omitempty"`
	Shard   uint8  `json:"shard,omitempty"`
	Text    string `json:"text"`
}

func toEngineRebuilt(r *engine.Rebuilt, took time.Duration) *engineRebuilt {
	out := &engineRebuilt{
		jsonVersion, r.Blocks, r.Tombstones, r.Segments, r.Bytes, r.LastSeq, r.Unnamed, append([][2]uint64{}, r.Missing...), []engineDamage{}, took.Seconds(),
	}
	for _, d := range r.Damage {
		e := engineDamage{Segment: d.Segment, Offset: d.Offset, Length: d.Length, Text: d.Reason}
		if d.Named {
			e.Block, e.Shard = d.ID.String(), d.Shard
		}
		out.Damage = append(out.Damage, e)
	}
	return out
}

// newMark draws a random number that is not 0.
func newMark() uint64 {
	for {
		var p [8]byte
		_, _ = rand.Read(p[:]) // it never fails
		if n := binary.BigEndian.Uint64(p[:]); n != 0 {
			return n
		}
	}
}
