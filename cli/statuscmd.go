package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

// Times of dfsd status.
const (
	watchInterval = time.Second            // between two looks of --watch
	waitInterval  = 200 * time.Millisecond // between two looks of --wait
	rateInterval  = time.Second            // between the two looks that tell how fast repair goes

	// lookTimeout bounds one look of --watch and --wait: an election takes less.
	lookTimeout = 5 * time.Second

	// statusTimeout bounds a single look, unless --timeout says something else: who
	// asks for the status of a sick cluster is not to be left waiting.
	statusTimeout = 15 * time.Second
)

// statusFlags are the flags of status.
type statusFlags struct {
	json, watch bool
	wait        string
	limit       time.Duration // of wait; 0: none
}

func newStatus(a *app) *cobra.Command {
	f := &statusFlags{}
	cmd := &cobra.Command{
		Use:   "status [--json] [--watch] [--wait ready|full]",
		Short: "Show health, capacity, redundancy and repair",
		Long: `Show the health of the cluster: its nodes, stores and groups, how many copies there are, what is
being repaired and why. The exit code is 0 when the cluster takes reads and writes, 1 with the
reason when it does not, 3 when it cannot be reached.

--wait ready waits until it takes reads and writes; --wait full until every placement group has
all its copies where they should be, every store that is up has reported since the wait began and
under the current map, none is suspected, and no meta node that a group lists is down. --timeout bounds the wait; there is no bound without it.`,
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case f.wait != "" && f.wait != "ready" && f.wait != "full":
				return usagef("status: --wait %q: want ready or full", f.wait)
			case f.wait != "" && f.watch:
				return usagef("status: --wait and --watch exclude each other")
			}
			if f.wait == "" && !f.watch {
				return a.withLook(cmd.Context(), func(c *client.Client) error { return a.status(cmd.Context(), c, f) })
			}
			cfg, err := a.config()
			if err != nil {
				return err
			}
			if a.flags.Changed("timeout") {
				f.limit = cfg.Timeout
			}
			cfg.Timeout = min(cfg.Timeout, lookTimeout)
			p := &poll{a: a, look: func(ctx context.Context) (*client.Client, func(), error) { return a.connectTo(ctx, cfg) }}
			defer p.close()
			if f.watch {
				return p.watch(cmd.Context(), f)
			}
			return p.wait(cmd.Context(), f)
		},
	}
	cmd.Flags().BoolVar(&f.json, "json", false, "print an object; with --watch one a line")
	cmd.Flags().BoolVarP(&f.watch, "watch", "w", false, "show it anew every second until interrupted")
	cmd.Flags().StringVar(&f.wait, "wait", "", "wait until the cluster is ready or full")
	return cmd
}

const statusVerb = "status"

// lookAt asks the control leader, for a verb.
func lookAt(ctx context.Context, c *client.Client, verb string) (*status, error) {
	reply, err := c.Status(ctx)
	if err != nil {
		return nil, lookFailed(verb, err)
	}
	s, err := toStatus(reply, time.Now())
	if err != nil {
		return nil, lookFailed(verb, err)
	}
	return s, nil
}

// lookFailed is failed for a look at the cluster, whose user needs another next step
// than dfsd status.
func lookFailed(verb string, err error) error {
	hint := ""
	switch dfs.KindOf(err) {
	case dfs.Unavailable, dfs.Deadline:
		hint = "no meta node that leads the control group answers: start meta nodes, for a majority is needed, or wait for an election; if the disks of a majority are gone for good see dfsd group recover --help"
	}
	return &verbError{err: fmt.Errorf("%s: %w", verb, cause(err)), hint: hint}
}

// status looks once; for people twice, when repair goes on, to know how fast.
func (a *app) status(ctx context.Context, c *client.Client, f *statusFlags) error {
	s, err := lookAt(ctx, c, statusVerb)
	if err != nil {
		return err
	}
	if s.Repair.Active && !f.json && pause(ctx, rateInterval) {
		if again, err := lookAt(ctx, c, statusVerb); err == nil {
			again.progress(s, rateInterval)
			s = again
		}
	}
	if f.json {
		err = printJSON(a.proc.Out, s)
	} else {
		err = s.print(a.proc.Out)
	}
	if v := s.verdict(); v != nil && err == nil {
		return &verbError{err: v, printed: true} // the reason is in what was printed
	}
	return err
}

// verdict is the error of a cluster that does not take reads and writes.
func (s *status) verdict() error {
	if s.Cluster.Health == healthUnavailable {
		return fmt.Errorf("status: reads or writes are not taken: %s", strings.Join(s.Cluster.Problems, "; "))
	}
	return nil
}

// pause waits; it reports false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// poll looks again and again, also at a cluster that does not answer yet.
type poll struct {
	a    *app
	look func(context.Context) (*client.Client, func(), error)

	c    *client.Client // nil: not connected
	done func()
	last *status
	at   time.Time // of last
}

func (p *poll) close() {
	if p.c != nil {
		p.done()
		p.c = nil
	}
}

func (p *poll) next(ctx context.Context) (*status, error) {
	if p.c == nil {
		var err error
		if p.c, p.done, err = p.look(ctx); err != nil {
			p.c = nil
			return nil, err
		}
	}
	s, err := lookAt(ctx, p.c, statusVerb)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	s.progress(p.last, now.Sub(p.at))
	p.last, p.at = s, now
	return s, nil
}

// watch shows the status until it is interrupted.
func (p *poll) watch(ctx context.Context, f *statusFlags) error {
	out := p.a.proc.Out
	for {
		s, err := p.next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var page bytes.Buffer
		switch {
		case f.json && err == nil:
			err = printJSON(out, s)
		case f.json:
			p.a.complain(err)
			err = nil
		default:
			if terminal(out) {
				page.WriteString("\x1b[H\x1b[2J") // home, clear
			}
			fmt.Fprintln(&page, time.Now().Format(time.DateTime))
			if err != nil {
				fmt.Fprintln(&page, errorLine(err))
			} else if err := s.print(&page); err != nil {
				return err
			}
			_, err = out.Write(page.Bytes())
		}
		if err != nil {
			return err
		}
		if !pause(ctx, watchInterval) {
			return nil
		}
	}
}

// wait looks until the cluster is ready or full.
func (p *poll) wait(ctx context.Context, f *statusFlags) error {
	if f.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.limit)
		defer cancel()
	}
	line := &statusLine{w: p.a.proc.Err, on: terminal(p.a.proc.Err)}
	defer line.clear()
	begun := time.Now()
	var err error // of the last look
	var s *status // of the last look that succeeded
	for {
		var now *status
		asked := time.Since(begun)
		if now, err = p.next(ctx); err == nil {
			s = now
			if f.wait == "ready" && s.Cluster.Health != healthUnavailable || s.Cluster.Health == healthOK && s.heard(asked) {
				break
			}
			line.show(s.summary())
		} else if exitCodeOf(err) == exitUsage || p.c == nil && (dfs.KindOf(err) == dfs.WrongCluster || dfs.KindOf(err) == dfs.Permission || dfs.KindOf(err) == dfs.Unsupported) {
			return err // time does not help
		} else if ctx.Err() == nil {
			line.show(errorLine(err))
		}
		if !pause(ctx, waitInterval) {
			return p.late(ctx, f, s, err)
		}
	}
	line.clear()
	if f.json {
		return printJSON(p.a.proc.Out, s)
	}
	_, err = fmt.Fprintln(p.a.proc.Out, s.summary())
	return err
}

// heard reports whether every store that is up has reported in the given time
// before now: one that died just before has not, though nobody suspects it yet.
func (s *status) heard(within time.Duration) bool {
	for _, st := range s.Stores {
		if st.State == "up" && (st.BeatAge < 0 || st.BeatAge >= within.Milliseconds()) {
			return false
		}
	}
	return true
}

// late is the error of a wait that took too long.
func (p *poll) late(ctx context.Context, f *statusFlags, s *status, err error) error {
	what := "status: not " + f.wait
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		what += " within " + f.limit.String()
	}
	switch {
	case p.c == nil && err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case s == nil:
		return &verbError{err: fmt.Errorf("%s: %w", what, err), code: exitFailed}
	}
	text := s.summary()
	if s.Cluster.Health == healthOK {
		text += ", but not every store that is up has reported since the wait began"
	}
	return errors.New(what + ": " + text)
}

// statusLine is a line on a terminal that is written anew.
type statusLine struct {
	w    io.Writer
	on   bool
	text string
}

func (l *statusLine) show(text string) {
	text, _, _ = strings.Cut(text, "\n")
	if l.on && text != l.text {
		l.text = text
		fmt.Fprintf(l.w, "\r\x1b[K%s", text)
	}
}

func (l *statusLine) clear() {
	if l.on && l.text != "" {
		l.text = ""
		fmt.Fprint(l.w, "\r\x1b[K")
	}
}

// summary is the status in one line.
func (s *status) summary() string {
	r := s.Redundancy
	line := s.Cluster.Health
	switch {
	case s.Cluster.Health == healthUnavailable:
		line += ": " + strings.Join(s.Cluster.Problems, "; ")
	case r.Full:
		line += fmt.Sprintf(": all %d placement groups have all their copies", r.PGs)
	case r.FullPGs == r.PGs:
		line += fmt.Sprintf(": all %d placement groups have all their copies; a store is suspected, or has not confirmed the newest map", r.PGs)
	default:
		line += fmt.Sprintf(": %d of %d placement groups have all their copies where they should be", r.FullPGs, r.PGs)
	}
	if n := s.shortGroups(); n > 0 {
		line += ", " + plural(n, "group") + " of metadata short of voters"
	}
	if s.Repair.Active {
		line += ", " + sizeText(r.BytesToRepair) + " to repair"
	}
	if s.Repair.ETA != nil {
		line += ", done in " + ageText(time.Duration(*s.Repair.ETA*float64(time.Second)))
	}
	return line
}

// print shows the status to people.
func (s *status) print(w io.Writer) error {
	c := s.Cluster
	fmt.Fprintf(w, "cluster %s  map epoch %d\nhealth  %s\n", c.ID, c.MapEpoch, s.summary())
	shared := ""
	if c.Shared {
		shared = " (one that several stores of a machine share counts once)"
	}
	fmt.Fprintf(w, "space   %s of blocks, copies included, on disks of %s%s; new files are %s\n", sizeText(c.Used), sizeText(c.Capacity), shared, c.DefaultClass)
	if c.Trash > 0 {
		fmt.Fprintf(w, "trash   %s of these are blocks that no file names: they are deleted after the time that trash_keep says\n", sizeText(c.Trash))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "\nNODE\tROLES\tSTATE\tADDRESS\tRELEASE\n")
	for _, n := range s.Nodes {
		state := n.State
		if n.Disk != nil && n.Disk.Full {
			state += ", disk full"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", n.Name, strings.Join(n.Roles, ","), state, n.Addr, n.Release)
	}
	fmt.Fprint(t, "\nSTORE\tNODE\tSTATE\tUSED\tCAPACITY\tBLOCKS\tPGS\tLAST REPORT\n")
	for _, st := range s.Stores {
		s.printStore(t, st)
	}
	fmt.Fprint(t, "\nGROUP\tLEADER\tMEMBERS\tAPPLIED\tINODES\n")
	for _, g := range s.Groups {
		printGroup(t, g)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	r := s.Redundancy
	fmt.Fprintf(w, "\nredundancy  %d of %d placement groups full, %d short of copies, %d below the minimum for writes, %d stalled\n", r.FullPGs, r.PGs, r.Degraded, r.BelowMinimum, r.Stalled)
	for _, why := range s.Repair.Why {
		fmt.Fprintf(w, "  %s\n", why)
	}
	return s.printRepair(w)
}

func (s *status) printRepair(w io.Writer) error {
	if !s.Repair.Active {
		return nil
	}
	line := fmt.Sprintf("repair      %s done, %s left", sizeText(s.Repair.BytesDone), sizeText(s.Repair.BytesLeft))
	if s.Repair.Rate != nil {
		line += fmt.Sprintf(", %.1f MB/s", *s.Repair.Rate/1e6)
	}
	if s.Repair.ETA != nil {
		line += ", about " + ageText(time.Duration(*s.Repair.ETA*float64(time.Second)))
	}
	fmt.Fprintln(w, line)
	for _, f := range s.Repair.Refills {
		fmt.Fprintf(w, "  store s%d on %s: %s, %s of %s\n", f.Store, f.Node, plural(f.PGs, "placement group"), sizeText(f.Done), sizeText(f.Done+f.Left))
	}
	return nil
}

func (s *status) printStore(w io.Writer, st storeStatus) {
	state, beat := st.State, "none"
	if st.Suspect && st.State == "up" {
		state += ", suspect"
	}
	if st.Condition != "ok" {
		state += ", " + st.Condition
	}
	if st.BeatAge >= 0 {
		beat = ageText(time.Duration(st.BeatAge)*time.Millisecond) + " ago"
	}
	fmt.Fprintf(w, "s%d\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", st.ID, st.Node, state, sizeText(st.Used), sizeText(st.Capacity), st.Blocks, st.PGs, beat)
}

func printGroup(w io.Writer, g groupStatus) {
	leader := g.Leader
	if leader == "" {
		leader = "none"
	}
	members := strings.Join(g.Members, ",")
	if len(g.Learners) > 0 {
		members += " (learning: " + strings.Join(g.Learners, ",") + ")"
	}
	fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%d\n", g.Group, leader, members, g.Applied, g.Inodes)
}
