package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/transport/wire"
)

// recoverFlags are those of group recover.
type recoverFlags struct {
	groupFlags
	lost        []string
	groups      []string
	all         bool
	acknowledge bool
	takeBack    bool
}

func newGroupRecover(a *app) *cobra.Command {
	var f recoverFlags
	cmd := &cobra.Command{
		Use: "recover --lost NODE[,NODE] (--all | --group N[,N])", Short: "Go on from one replica of a group that lost its majority for good",
		Long: `The last resort when the disks of a majority of a group's meta nodes are gone for good. The survivor with
the longest log becomes the only voter, and the group goes on from what it has: what only the lost nodes
acknowledged is lost with them. No leader is needed: every meta node that is known is asked what it has.

It says what it is going to do and what may be lost, and asks. It refuses while a lost node answers, while a
voter is neither there nor called lost, and where a majority is left. It can be run again after an
interruption, and goes on. The lost nodes are given up: their directories are refused for ever.

Then start fresh meta nodes in their places, look at your files, and say --acknowledge: before that nothing
is deleted. --take-back undoes the first half of a recovery that was called off because the lost were found.`,
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.recoverGroups(cmd.Context(), &f) },
	}
	cmd.Flags().StringSliceVar(&f.lost, "lost", nil, "names or IDs of the meta nodes that are gone for good")
	cmd.Flags().StringSliceVar(&f.groups, "group", nil, "numbers of the groups to recover")
	cmd.Flags().BoolVar(&f.all, "all", false, "recover every group that has lost its majority")
	cmd.Flags().BoolVar(&f.acknowledge, "acknowledge", false, "you have looked: deletes go on")
	cmd.Flags().BoolVar(&f.takeBack, "take-back", false, "replicas that were set aside take part again: the lost were found")
	cmd.Flags().BoolVar(&f.json, "json", false, "print an object")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	return cmd
}

const recoverVerb = "group recover"

// check refuses flags that do not go together.
func (f *recoverFlags) check() error {
	only := f.acknowledge || f.takeBack
	switch {
	case f.acknowledge && f.takeBack, only && (len(f.lost) > 0 || len(f.groups) > 0 || f.all):
		return usagef("%s: --acknowledge and --take-back stand alone", recoverVerb)
	case only:
	case len(f.lost) == 0:
		return usagef("%s: --lost is missing: which meta nodes are gone for good?", recoverVerb)
	case f.all == (len(f.groups) > 0):
		return usagef("%s: say --all, or --group with numbers of dfsd group ls", recoverVerb)
	}
	return nil
}

func (a *app) recoverGroups(ctx context.Context, f *recoverFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	var groups []dfs.GroupID
	for _, name := range f.groups {
		id, err := parseGroup(recoverVerb, name)
		if err != nil {
			return err
		}
		groups = append(groups, id)
	}
	return a.withClient(ctx, func(c *client.Client) error {
		switch {
		case f.acknowledge:
			return a.acknowledge(ctx, c, f)
		case f.takeBack:
			return a.takeBack(ctx, c, f)
		}
		plan, err := c.PlanRecovery(ctx, f.lost, groups)
		if err != nil {
			return failed(recoverVerb, "", err)
		}
		warning := "There is no way back from this, and none to what only the lost nodes had."
		switch {
		case plan.Done:
			return a.nothingToRecover(plan, f)
		case len(plan.Groups) == 0:
			fmt.Fprintf(a.proc.Err, "Every group has its majority: none is recovered. Given up for good: %s.\n", recoveryNames(plan.Lost))
			warning = "There is no way back from this: their directories are refused from then on."
		default:
			if err := printPlan(a.proc.Err, plan); err != nil {
				return err
			}
		}
		if err := a.ask(recoverVerb, warning, &f.groupFlags); err != nil {
			return err
		}
		err = c.Recover(ctx, plan, func(step string) { fmt.Fprintln(a.proc.Err, step) })
		if err != nil {
			return withHint(failed(recoverVerb, "", err), "run the same command again: it goes on where it stopped")
		}
		if f.json {
			return printJSON(a.proc.Out, recoveredJSON(plan))
		}
		return printNext(a.proc.Out, plan, c.Cluster())
	})
}

// printNext says what is left to do. Fresh nodes whose lists name the lost alone would
// find nobody who knows the cluster, and make another one.
func printNext(w io.Writer, plan *client.RecoveryPlan, cluster dfs.ClusterID) error {
	what := fmt.Sprintf("recovered %s as generation %d", plural(len(plan.Groups), "group"), plan.Generation)
	if len(plan.Groups) == 0 {
		what = "given up: " + recoveryNames(plan.Lost)
	}
	var left []string
	for _, n := range plan.Nodes {
		left = append(left, n.Name+"="+n.Addr)
	}
	_, err := fmt.Fprintf(w, `%s. Next:
  1. start fresh meta nodes, with empty data directories, in the place of the lost ones; never their old disks;
     let their setting meta name a node that is left: %s
     and cluster_id be %v, so that they make no second cluster
  2. wait for dfsd group ls to show as many voters as before
  3. look at your files, and at dfsd status
  4. dfsd group recover --acknowledge: nothing is deleted before
`, what, strings.Join(left, ", "), cluster)
	return err
}

// nothingToRecover says so: it is no fault, and nothing was done.
func (a *app) nothingToRecover(p *client.RecoveryPlan, f *recoverFlags) error {
	if f.json {
		return printJSON(a.proc.Out, recoveredJSON(p))
	}
	_, err := fmt.Fprintf(a.proc.Out, "there is nothing to recover: every group has its majority, and %s given up before\n", areText(p.Lost))
	return err
}

// areText names nodes with their verb.
func areText(ns []client.RecoveryNode) string {
	if len(ns) == 1 {
		return recoveryNames(ns) + " was"
	}
	return recoveryNames(ns) + " were"
}

func recoveryNames(ns []client.RecoveryNode) string {
	var out []string
	for _, n := range ns {
		out = append(out, n.String())
	}
	return strings.Join(out, ", ")
}

func (a *app) acknowledge(ctx context.Context, c *client.Client, f *recoverFlags) error {
	held, err := c.Acknowledge(ctx, true)
	if err == nil && held {
		if err := a.ask(recoverVerb, "Deletes go on in all groups: what files do not name any more is gone then.", &f.groupFlags); err != nil {
			return err
		}
		_, err = c.Acknowledge(ctx, false)
	}
	if err != nil {
		return failed(recoverVerb, "", err)
	}
	if f.json {
		return printJSON(a.proc.Out, struct {
			Version      int  `json:"version"`
			Acknowledged bool `json:"acknowledged"`
		}{jsonVersion, held})
	}
	text := "acknowledged: deletes go on"
	if !held {
		text = "there is nothing to acknowledge: no recovery holds deletes back"
	}
	_, err = fmt.Fprintln(a.proc.Out, text)
	return err
}

func (a *app) takeBack(ctx context.Context, c *client.Client, f *recoverFlags) error {
	if err := a.ask(recoverVerb, "Replicas that were set aside for a recovery take part again, in groups that were not recovered meanwhile.", &f.groupFlags); err != nil {
		return err
	}
	back, err := c.TakeBack(ctx)
	if err != nil {
		return failed(recoverVerb, "", err)
	}
	if f.json {
		return printJSON(a.proc.Out, struct {
			Version int      `json:"version"`
			Back    []string `json:"taken_back"`
		}{jsonVersion, append([]string{}, back...)})
	}
	for _, r := range back {
		fmt.Fprintln(a.proc.Out, r)
	}
	_, err = fmt.Fprintf(a.proc.Out, "%d replicas were taken back\n", len(back))
	return err
}

// printPlan shows what is going to be done, group by group.
func printPlan(w io.Writer, p *client.RecoveryPlan) error {
	fmt.Fprintf(w, "Given up for good: %s. Answering: %s.\n\n", recoveryNames(p.Lost), recoveryNames(p.Nodes))
	for i := range p.Groups {
		g := &p.Groups[i]
		fmt.Fprintf(w, "Group %d, voters %v, goes on from %v:\n", g.Group, g.Voters, g.Nodes[g.Chosen])
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprint(t, "  NODE\tTERM OF LAST\tLAST\tCOMMIT\tAPPLIED\tGENERATION\tSTATE\n")
		for j, sv := range g.Survivors {
			fmt.Fprintf(t, "  %s\t%d\t%d\t%d\t%d\t%d\t%s\n", g.Nodes[j].Name, sv.LastTerm, sv.Last, sv.Commit, sv.Applied, sv.Generation, survivorState(g, j, sv))
		}
		for _, u := range g.Unreadable {
			fmt.Fprintf(t, "  %s\t-\t-\t-\t-\t-\t%s\n", u.Node.Name, "unreadable, and left as it is: "+u.Cause)
		}
		if err := t.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(w, "  MAY BE LOST:")
		for _, l := range g.Losses {
			fmt.Fprintf(w, "  - %s\n", l)
		}
		fmt.Fprintln(w)
	}
	if len(p.Whole) > 0 {
		fmt.Fprintf(w, "Left alone, for they have their majority: %v.\n\n", p.Whole)
	}
	return nil
}

func survivorState(g *client.GroupRecovery, i int, sv *wire.Survivor) string {
	switch {
	case i == g.Chosen:
		return "chosen"
	case sv.Unfit != "":
		return "unfit: " + sv.Unfit
	case sv.Aside > 0:
		return "set aside already"
	}
	return "is set aside, and fetches everything anew"
}

// recoveredJSON is what --json prints in the end.
func recoveredJSON(p *client.RecoveryPlan) any {
	type group struct {
		Group  uint16   `json:"group"`
		From   string   `json:"from"`
		Last   uint64   `json:"last"`
		Losses []string `json:"losses"`
	}
	out := struct {
		Version    int      `json:"version"`
		Generation uint64   `json:"generation"`
		Lost       []string `json:"lost"`
		Groups     []group  `json:"groups"`
	}{Version: jsonVersion, Generation: p.Generation, Groups: []group{}}
	for _, n := range p.Lost {
		out.Lost = append(out.Lost, n.ID.String())
	}
	for i := range p.Groups {
		g := &p.Groups[i]
		out.Groups = append(out.Groups, group{uint16(g.Group), g.Nodes[g.Chosen].Name, g.Survivors[g.Chosen].Last, g.Losses})
	}
	return out
}

// recoveredText says of a recovery that nobody has acknowledged what it holds back.
func recoveredText(generation uint64) string {
	at := time.UnixMilli(int64(generation)).UTC().Format(time.DateTime)
	return fmt.Sprintf("groups were recovered on %s UTC after a loss; deletes are held until you have looked: dfsd group recover --acknowledge", at)
}
