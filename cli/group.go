package cli

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

func newGroup(a *app) *cobra.Command {
	return family("group", "List, show, create, move and recover Raft groups",
		newGroupLs(a), newGroupShow(a), newGroupCreate(a), newGroupAdd(a), newGroupRemove(a), newGroupMove(a), newGroupRecover(a))
}

func newGroupLs(a *app) *cobra.Command {
	return a.look("ls", "List the Raft groups", cobra.NoArgs, func(w io.Writer, s *status, _ []string) error {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprint(t, groupHead)
		for _, g := range s.Groups {
			printGroupRow(t, &g)
		}
		return t.Flush()
	}, func(s *status, _ []string) (any, error) {
		return struct {
			Version int           `json:"version"`
			Groups  []groupStatus `json:"groups"`
		}{jsonVersion, s.Groups}, nil
	})
}

const groupHead = "GROUP\tSTATE\tLEADER\tVOTERS\tLEARNERS\tTARGET\tAPPLIED\tLOG\tINODES\n"

func printGroupRow(w io.Writer, g *groupStatus) {
	list := func(names []string) string { return cmp.Or(strings.Join(names, ","), "-") }
	fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%d\n", g.Group, g.State, cmp.Or(g.Leader, "none"), list(g.Members), list(g.Learners), list(g.Target),
		g.Applied, sizeText(g.LogBytes), g.Inodes)
}

// replicaStatus is a group's replica on one meta node, as that node and the
// group's leader have it.
type replicaStatus struct {
	Node      string `json:"node"`
	Role      string `json:"role"` // of raftgroup; "none": it has no replica; "silent": it does not answer; "replaced"
	Term      uint64 `json:"term"`
	Applied   uint64 `json:"applied"`
	Log       uint64 `json:"log_bytes"`
	Match     uint64 `json:"match"`    // the last entry that the leader knows it has
	Lag       uint64 `json:"lag"`      // entries that it lacks
	Snapshot  bool   `json:"snapshot"` // one is on its way to it, or its state comes anew
	Fault     string `json:"fault"`    // why it takes no part
	StateHash string `json:"state_hash"`
}

// replicas asks each meta node that should have, or has, a replica of a group.
func (s *status) replicas(ctx context.Context, c *client.Client, g *groupStatus) []replicaStatus {
	id := dfs.GroupID(g.Group)
	answers := map[dfs.NodeID]*wire.ReplicaReply{}
	errs := map[dfs.NodeID]error{}
	peers := map[uint32]*wire.PeerProgress{}
	last := uint64(0)
	for _, n := range s.m.MetaNodes() {
		reply, err := c.Replica(ctx, id, n)
		if err != nil {
			errs[n.ID] = err
			continue
		}
		answers[n.ID] = reply
		if len(reply.Peers) > 0 && reply.Last >= last {
			last = reply.Last
			for _, p := range reply.Peers {
				peers[p.Node] = p
			}
		}
	}
	out := []replicaStatus{}
	for _, n := range s.m.Nodes {
		p, reply, listed := peers[uint32(n.ID)], answers[n.ID], s.m.Group(id) != nil && s.m.Group(id).Has(n.ID)
		if p == nil && reply.GetRole() == 0 && !listed {
			continue
		}
		r := replicaStatus{
			Node: s.memberName(n.ID), Role: "none", Term: reply.GetTerm(), Applied: reply.GetApplied(), Log: reply.GetLogBytes(), Match: p.GetMatch(),
			Snapshot: p.GetSnapshot() || reply.GetNeedState(), Fault: reply.GetFault(),
		}
		switch {
		case reply.GetRole() > 0:
			r.Role, r.StateHash = raftgroup.Role(reply.Role-1).String(), fmt.Sprintf("%x", reply.Hash)
		case errs[n.ID] != nil:
			r.Role, r.Fault = "silent", errs[n.ID].Error()
		case n.Replaced:
			r.Role = "replaced"
		}
		if p != nil && last > p.Match {
			r.Lag = last - p.Match
		}
		out = append(out, r)
	}
	return out
}

func newGroupShow(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show GROUP", Short: "Show one Raft group and each of its replicas", Args: checked(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			const verb = "group show"
			id, err := parseGroup(verb, args[0])
			if err != nil {
				return err
			}
			return a.withLook(cmd.Context(), func(c *client.Client) error {
				s, err := lookAt(cmd.Context(), c, verb)
				if err != nil {
					return err
				}
				g, err := s.group(verb, id)
				if err != nil {
					return err
				}
				replicas := s.replicas(cmd.Context(), c, &g)
				if asJSON {
					return printJSON(a.proc.Out, struct {
						Version  int             `json:"version"`
						Group    groupStatus     `json:"group"`
						Replicas []replicaStatus `json:"replicas"`
					}{jsonVersion, g, replicas})
				}
				t := tabwriter.NewWriter(a.proc.Out, 0, 0, 2, ' ', 0)
				fmt.Fprint(t, groupHead)
				printGroupRow(t, &g)
				if err := t.Flush(); err != nil {
					return err
				}
				if g.Group != 0 {
					fmt.Fprintf(t, "\nfeature level %d, coordinates %d operations over several groups, and has shares of %d\n", g.Level, g.Transactions, g.Shares)
				}
				fmt.Fprint(t, "\nNODE\tROLE\tTERM\tMATCH\tLAG\tAPPLIED\tLOG\tSNAPSHOT\tSTATE HASH\tFAULT\n")
				for _, r := range replicas {
					fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%s\n", r.Node, r.Role, r.Term, r.Match, r.Lag, r.Applied, sizeText(r.Log), yesNo(r.Snapshot),
						cmp.Or(r.StateHash, "-"), cmp.Or(r.Fault, "-"))
				}
				return t.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}

// parseGroup reads 7 or g7.
func parseGroup(verb, name string) (dfs.GroupID, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(name, "g"), 10, 16)
	if err != nil {
		return 0, usagef("%s: %s is no number of a group: dfsd group ls lists them", verb, quote(name))
	}
	return dfs.GroupID(n), nil
}

func (s *status) group(verb string, id dfs.GroupID) (groupStatus, error) {
	for _, g := range s.Groups {
		if g.Group == uint32(id) {
			return g, nil
		}
	}
	return groupStatus{}, withHint(failed(verb, strconv.Itoa(int(id)), dfs.NotExist), "see dfsd group ls")
}

// metaNode finds a meta node by its name or number.
func (s *status) metaNode(verb, name string) (*dfs.Node, error) {
	for _, n := range s.m.Nodes {
		if n.ID.String() == name || n.Name == name && !n.Replaced {
			if !n.Roles.Has(dfs.RoleMeta) {
				return nil, withHint(failedf(verb, name, "it is no meta node"), "see dfsd node ls")
			}
			return n, nil
		}
	}
	return nil, withHint(failed(verb, name, dfs.NotExist), "see dfsd node ls")
}

// groupInterval is between two looks of --wait.
const groupInterval = 500 * time.Millisecond

// groupFlags are those of the verbs that change groups.
type groupFlags struct {
	json, yes, wait bool
}

func (f *groupFlags) add(cmd *cobra.Command, moves bool) *cobra.Command {
	cmd.Flags().BoolVar(&f.json, "json", false, "print an object")
	if moves {
		cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
		cmd.Flags().BoolVar(&f.wait, "wait", false, "wait until it is done, and not only decided; --timeout bounds the wait")
	}
	return cmd
}

// ask prints what is to be done and, without --yes, has it confirmed.
func (a *app) ask(verb, plan string, f *groupFlags) error {
	fmt.Fprintln(a.proc.Err, plan)
	if f.yes {
		return nil
	}
	if !terminal(a.proc.In) {
		return usagef("%s: nobody can be asked, since the standard input is no terminal: say --yes if that is what you want", verb)
	}
	fmt.Fprint(a.proc.Err, "Go on? [y/N] ")
	line, err := bufio.NewReader(a.proc.In).ReadString('\n')
	if err != nil && line == "" {
		return failed(verb, "", err)
	}
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return failedf(verb, "", "not confirmed: nothing was done")
	}
	return nil
}

// awaitGroup looks until a group is ready and exactly its list votes. One that was
// abandoned meanwhile is begun again under a number that is later than any before.
func (a *app) awaitGroup(ctx context.Context, look func(context.Context) (*status, error), verb string, id uint32) (groupStatus, error) {
	last := id // of the numbers that there were when the group was seen last
	for {
		s, err := look(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return groupStatus{}, failed(verb, strconv.Itoa(int(id)), context.Cause(ctx))
		case err != nil:
			return groupStatus{}, err
		}
		i := slices.IndexFunc(s.Groups, func(g groupStatus) bool { return g.Group == id })
		next := slices.IndexFunc(s.Groups, func(g groupStatus) bool { return g.Group > last })
		switch {
		case i < 0 && next >= 0:
			fmt.Fprintf(a.proc.Err, "dfsd: %s: group %d lost its founder and is begun again: waiting for group %d\n", verb, id, s.Groups[next].Group)
			id = s.Groups[next].Group
			last = id
			continue
		case i >= 0:
			last = s.Groups[len(s.Groups)-1].Group
			if g := s.Groups[i]; g.State == groupReady && g.Leader != "" && slices.Equal(sorted(g.Members), sorted(g.Target)) && (id == 0 || len(g.Learners) == 0) {
				return g, nil
			}
		}
		if !pause(ctx, groupInterval) {
			return groupStatus{}, failed(verb, strconv.Itoa(int(id)), context.Cause(ctx))
		}
	}
}

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return names
}

// done waits if that is wanted, and prints the group.
func (f *groupFlags) done(ctx context.Context, a *app, c *client.Client, verb string, id uint32) error {
	g := groupStatus{}
	if f.wait {
		cfg, err := a.config()
		if err != nil {
			return err
		}
		if a.flags.Changed("timeout") {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, cfg.Timeout, fmt.Errorf("it is decided, and was not done within %v: see dfsd group show %d", cfg.Timeout, id))
			defer cancel()
		}
		look := func(ctx context.Context) (*status, error) { return lookAt(ctx, c, verb) }
		if g, err = a.awaitGroup(ctx, look, verb, id); err != nil {
			return err
		}
	} else {
		s, err := lookAt(ctx, c, verb)
		if err != nil {
			return err
		}
		if g, err = s.group(verb, dfs.GroupID(id)); err != nil {
			return err
		}
	}
	if f.json {
		return printJSON(a.proc.Out, struct {
			Version int         `json:"version"`
			Group   groupStatus `json:"group"`
		}{jsonVersion, g})
	}
	t := tabwriter.NewWriter(a.proc.Out, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, groupHead)
	printGroupRow(t, &g)
	return t.Flush()
}

func newGroupCreate(a *app) *cobra.Command {
	const verb = "group create"
	var f groupFlags
	var nodes []string
	cmd := &cobra.Command{
		Use: "create", Short: "Create one more namespace group",
		Long: `Create one more namespace group. New directories near the root go to the groups with the fewest inodes,
so it fills by itself; what exists stays where it is. It can be used as soon as all of its replicas vote.
Without --replicas the cluster chooses the meta nodes that have the fewest.`,
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(c *client.Client) error {
				s, err := lookAt(cmd.Context(), c, verb)
				if err != nil {
					return err
				}
				var ids []dfs.NodeID
				where := "the meta nodes with the fewest replicas"
				for i, name := range nodes {
					n, err := s.metaNode(verb, name)
					if err != nil {
						return err
					}
					if ids = append(ids, n.ID); i == 0 {
						where = n.Name
					} else {
						where += ", " + n.Name
					}
				}
				if err := a.ask(verb, "A namespace group is created on "+where+". It cannot be removed again.", &f); err != nil {
					return err
				}
				g, err := c.CreateGroup(cmd.Context(), ids)
				if err != nil {
					return failed(verb, "", err)
				}
				return f.done(cmd.Context(), a, c, verb, uint32(g))
			})
		},
	}
	cmd.Flags().StringSliceVar(&nodes, "replicas", nil, "names or IDs of meta nodes, the first to begin it")
	return f.add(cmd, true)
}

// groupAndNode finds a group and the node that a verb names beside it.
func groupAndNode(ctx context.Context, c *client.Client, verb string, id dfs.GroupID, node string) (s *status, g groupStatus, n *dfs.Node, err error) {
	if s, err = lookAt(ctx, c, verb); err != nil {
		return nil, g, nil, err
	}
	if g, err = s.group(verb, id); err != nil {
		return nil, g, nil, err
	}
	n, err = s.metaNode(verb, node)
	return s, g, n, err
}

// changeReplicas is a verb with a group and a node that changes who should vote.
func (a *app) changeReplicas(verb, use, short, long string, do func(g *groupStatus, row *dfs.Group, n *dfs.Node) (plan string, add, remove dfs.NodeID, refused string)) *cobra.Command {
	var f groupFlags
	return f.add(&cobra.Command{
		Use: use, Short: short, Long: long, Args: checked(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseGroup(verb, args[0])
			if err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error {
				s, g, n, err := groupAndNode(cmd.Context(), c, verb, id, args[1])
				if err != nil {
					return err
				}
				plan, add, remove, refused := do(&g, s.m.Group(dfs.GroupID(g.Group)), n)
				if refused != "" {
					return failedf(verb, args[0], "%s", refused)
				}
				if err := a.ask(verb, plan, &f); err != nil {
					return err
				}
				if err := c.ChangeReplicas(cmd.Context(), dfs.GroupID(g.Group), add, remove); err != nil {
					return failed(verb, args[0], err)
				}
				return f.done(cmd.Context(), a, c, verb, g.Group)
			})
		},
	}, true)
}

func newGroupAdd(a *app) *cobra.Command {
	return a.changeReplicas("group add-replica", "add-replica GROUP NODE", "Have a meta node hold one more replica of a group",
		`Have a meta node hold one more replica of a group, up to 7. It is sent the group's state, and votes once
it has caught up. To move a replica, add the new one, wait, and remove the old one.`,
		func(g *groupStatus, row *dfs.Group, n *dfs.Node) (plan string, add, remove dfs.NodeID, refused string) {
			if row.Has(n.ID) {
				return "", 0, 0, fmt.Sprintf("%s (%v) has a place in it already", n.Name, n.ID)
			}
			return fmt.Sprintf("Group %d is copied to %s (%v): %d inodes and a log of %s. It votes once it has caught up.", g.Group, n.Name, n.ID, g.Inodes, sizeText(g.LogBytes)), n.ID, 0, ""
		})
}

func newGroupRemove(a *app) *cobra.Command {
	return a.changeReplicas("group remove-replica", "remove-replica GROUP NODE", "Take the replica of a group from a meta node",
		`Take the replica of a group from a meta node, which then destroys what it has of it; of group 0 it goes on
learning. Refused when fewer replicas would be left than this cluster keeps of each group, or no majority
that answers.`,
		func(g *groupStatus, row *dfs.Group, n *dfs.Node) (plan string, add, remove dfs.NodeID, refused string) {
			if !row.Has(n.ID) {
				return "", 0, 0, fmt.Sprintf("%s (%v) has no place in it: %s have", n.Name, n.ID, strings.Join(g.Target, ", "))
			}
			rest := "destroys its replica"
			if g.Group == uint32(dfs.ControlGroup) {
				rest = "goes on learning, as each meta node does"
			}
			return fmt.Sprintf("%s (%v) does not vote in group %d any more and %s; %d others stay.", n.Name, n.ID, g.Group, rest, len(g.Target)-1), 0, n.ID, ""
		})
}

// withoutVote says that a node does not vote in the group; without a leader nobody
// knows who does.
func (g *groupStatus) withoutVote(node string) bool {
	return len(g.Members) > 0 && !slices.Contains(g.Members, node)
}

func newGroupMove(a *app) *cobra.Command {
	const verb = "group move-leader"
	var f groupFlags
	return f.add(&cobra.Command{
		Use: "move-leader GROUP NODE", Short: "Have another meta node lead a group",
		Long: `Have another meta node lead a group that it votes in. Leaders even out by themselves: a node that leads
more than its share hands one over again.`,
		Args: checked(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseGroup(verb, args[0])
			if err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error {
				_, g, n, err := groupAndNode(cmd.Context(), c, verb, id, args[1])
				if err != nil {
					return err
				}
				if g.withoutVote(n.Name) {
					return withHint(failedf(verb, args[0], "%s (%v) does not vote in it: %s do", n.Name, n.ID, strings.Join(g.Members, ", ")), fmt.Sprintf("dfsd group add-replica %d %s", g.Group, n.Name))
				}
				if err := c.MoveLeader(cmd.Context(), dfs.GroupID(g.Group), n.ID); err != nil {
					return failed(verb, args[0], err)
				}
				if f.json {
					return printJSON(a.proc.Out, struct {
						Version int    `json:"version"`
						Group   uint32 `json:"group"`
						Leader  string `json:"leader"`
					}{jsonVersion, g.Group, n.Name})
				}
				_, err = fmt.Fprintf(a.proc.Out, "group %d is led by %s\n", g.Group, n.Name)
				return err
			})
		},
	}, false)
}
