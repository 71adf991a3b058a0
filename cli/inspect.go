package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

// look is a command that shows a part of the status.
func (a *app) look(use, short string, args cobra.PositionalArgs, text func(io.Writer, *status, []string) error, object func(*status, []string) (any, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: use, Short: short, Args: checked(args),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withLook(cmd.Context(), func(c *client.Client) error {
				s, err := lookAt(cmd.Context(), c, verbName(cmd))
				if err != nil {
					return err
				}
				if !asJSON {
					return text(a.proc.Out, s, args)
				}
				v, err := object(s, args)
				if err != nil {
					return err
				}
				return printJSON(a.proc.Out, v)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}

func newNode(a *app) *cobra.Command {
	ls := a.look("ls", "List the nodes", cobra.NoArgs, func(w io.Writer, s *status, _ []string) error {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprint(t, "NAME\tID\tROLES\tSTATE\tADDRESS\tRELEASE\tSTORES\n")
		for _, n := range s.Nodes {
			fmt.Fprintf(t, "%s\tn%d\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.ID, strings.Join(n.Roles, ","), n.State, n.Addr, n.Release, storeList(n.Stores))
		}
		return t.Flush()
	}, func(s *status, _ []string) (any, error) {
		return struct {
			Version int          `json:"version"`
			Nodes   []nodeStatus `json:"nodes"`
		}{jsonVersion, s.Nodes}, nil
	})
	show := a.look("show NODE", "Show one node", cobra.ExactArgs(1), func(w io.Writer, s *status, args []string) error {
		n, stores, groups, err := s.node(args[0])
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "node     %s (n%d)\nroles    %s\nstate    %s\naddress  %s\nrelease  %s\n", n.Name, n.ID, strings.Join(n.Roles, ","), n.State, n.Addr, n.Release)
		for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
			fmt.Fprintf(w, "label    %s=%s\n", k, n.Labels[k])
		}
		if len(groups) > 0 {
			fmt.Fprintf(w, "leads    groups %s\n", strings.Join(groups, ", "))
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		if len(stores) > 0 {
			fmt.Fprint(t, "\nSTORE\tNODE\tSTATE\tUSED\tCAPACITY\tBLOCKS\tPGS\tLAST REPORT\n")
		}
		for _, st := range stores {
			s.printStore(t, st)
		}
		return t.Flush()
	}, func(s *status, args []string) (any, error) {
		n, stores, groups, err := s.node(args[0])
		if err != nil {
			return nil, err
		}
		return struct {
			Version int           `json:"version"`
			Node    nodeStatus    `json:"node"`
			Stores  []storeStatus `json:"stores"`
			Leads   []string      `json:"leads"`
		}{jsonVersion, n, stores, groups}, nil
	})
	return family("node", "List and show nodes", ls, show)
}

func storeList(ids []uint32) string {
	var out []string
	for _, id := range ids {
		out = append(out, fmt.Sprintf("s%d", id))
	}
	return strings.Join(out, ",")
}

// node finds a node by name or ID, with its stores and the groups it leads.
func (s *status) node(name string) (n nodeStatus, stores []storeStatus, leads []string, err error) {
	i := slices.IndexFunc(s.Nodes, func(n nodeStatus) bool { return n.Name == name })
	if i < 0 {
		i = slices.IndexFunc(s.Nodes, func(n nodeStatus) bool { return fmt.Sprintf("n%d", n.ID) == name })
	}
	if i < 0 {
		return n, nil, nil, withHint(failed("node show", name, dfs.NotExist), "see dfsd node ls")
	}
	n = s.Nodes[i]
	stores, leads = []storeStatus{}, []string{}
	for _, st := range s.Stores {
		if slices.Contains(n.Stores, st.ID) {
			stores = append(stores, st)
		}
	}
	for _, g := range s.Groups {
		if g.Leader == n.Name {
			leads = append(leads, strconv.Itoa(int(g.Group)))
		}
	}
	return n, stores, leads, nil
}

// pgStatus is a placement group.
type pgStatus struct {
	PG       uint32     `json:"pg"`
	Class    string     `json:"class"`
	State    string     `json:"state"` // see pgState
	Writable bool       `json:"writable"`
	Epoch    uint64     `json:"epoch"` // of the acting set; 0: none yet
	Target   []uint32   `json:"target"`
	Acting   []uint32   `json:"acting"`
	Proposed []uint32   `json:"proposed"` // the acting set to come; empty: none
	Complete []uint32   `json:"complete"` // the stores of the acting set that have everything
	Members  []pgMember `json:"members"`

	// Tombstones of earlier epochs may be dropped; 0 and 1: none.
	TombstoneFloor uint64 `json:"tombstone_floor"`
}

type pgMember struct {
	Store           uint32 `json:"store"`
	Node            string `json:"node"`
	State           string `json:"state"`
	Acting          bool   `json:"acting"`
	Complete        bool   `json:"complete"`
	CompleteThrough uint64 `json:"complete_through"`
	Joined          uint64 `json:"joined"`
}

// pgStates are the values of pgState.
func pgStates() []string {
	return []string{"full", "moving", "degraded", "below-minimum", "stalled", "new"}
}

// pgState says how a placement group is: one of pgStates.
func (s *status) pgState(pg *dfs.PG) string {
	copies := copiesOf(s.m, pg.ID)
	switch {
	case pg.Active.Epoch == 0:
		return "new"
	case copies < pg.Class.NeedComplete():
		return "stalled"
	case !pg.Writable():
		return "below-minimum"
	case copies < pg.Class.Width():
		return "degraded"
	case pg.Full():
		return "full"
	}
	return "moving"
}

func (s *status) pg(pg *dfs.PG) pgStatus {
	out := pgStatus{
		PG: uint32(pg.ID), Class: pg.Class.String(), State: s.pgState(pg), Writable: pg.Writable(), Epoch: uint64(pg.Active.Epoch),
		Target: numbers(pg.Target), Acting: numbers(pg.Active.Stores), Proposed: numbers(pg.Proposed.Stores), Complete: numbers(pg.Complete()),
		Members: []pgMember{}, TombstoneFloor: uint64(pg.TombstoneFloor()),
	}
	for _, m := range pg.Members {
		st := s.m.Store(m.Store)
		if st == nil {
			continue
		}
		out.Members = append(out.Members, pgMember{
			Store: uint32(m.Store), Node: s.nodeName(st.Node), State: st.State.String(), Acting: pg.Active.Has(m.Store),
			Complete: pg.IsComplete(m.Store), CompleteThrough: uint64(m.Complete), Joined: uint64(m.Joined),
		})
	}
	return out
}

func numbers(ids []dfs.StoreID) []uint32 {
	out := []uint32{}
	for _, id := range ids {
		out = append(out, uint32(id))
	}
	return out
}

func newPG(a *app) *cobra.Command {
	var state string
	chosen := func(s *status) []pgStatus {
		out := []pgStatus{}
		for _, pg := range s.m.PGs {
			if p := s.pg(pg); state == "" || p.State == state {
				out = append(out, p)
			}
		}
		return out
	}
	ls := a.look("ls", "List the placement groups", cobra.NoArgs, func(w io.Writer, s *status, _ []string) error {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprint(t, "PG\tCLASS\tSTATE\tEPOCH\tTARGET\tACTING\tCOMPLETE\tPROPOSED\n")
		for _, p := range chosen(s) {
			printPG(t, p)
		}
		return t.Flush()
	}, func(s *status, _ []string) (any, error) {
		return struct {
			Version int        `json:"version"`
			PGs     []pgStatus `json:"pgs"`
		}{jsonVersion, chosen(s)}, nil
	})
	choice := strings.Join(pgStates(), ", ")
	ls.Flags().StringVar(&state, "state", "", "only those that are "+choice)
	ls.PreRunE = func(*cobra.Command, []string) error {
		if state != "" && !slices.Contains(pgStates(), state) {
			return usagef("pg ls: --state %q: want %s", state, choice)
		}
		return nil
	}
	find := func(s *status, name string) (pgStatus, error) {
		for _, pg := range s.m.PGs {
			if name == pg.ID.String() || name == strconv.Itoa(int(pg.ID)) {
				return s.pg(pg), nil
			}
		}
		return pgStatus{}, withHint(failed("pg show", name, dfs.NotExist), "see dfsd pg ls")
	}
	show := a.look("show PG", "Show one placement group", cobra.ExactArgs(1), func(w io.Writer, s *status, args []string) error {
		p, err := find(s, args[0])
		if err != nil {
			return err
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprint(t, "PG\tCLASS\tSTATE\tEPOCH\tTARGET\tACTING\tCOMPLETE\tPROPOSED\n")
		printPG(t, p)
		fmt.Fprintf(t, "\ntombstone floor: epoch %d\n", p.TombstoneFloor)
		fmt.Fprint(t, "\nSTORE\tNODE\tSTATE\tACTING\tCOMPLETE\tTHROUGH EPOCH\tJOINED AT EPOCH\n")
		for _, m := range p.Members {
			fmt.Fprintf(t, "s%d\t%s\t%s\t%s\t%s\t%d\t%d\n", m.Store, m.Node, m.State, yesNo(m.Acting), yesNo(m.Complete), m.CompleteThrough, m.Joined)
		}
		return t.Flush()
	}, func(s *status, args []string) (any, error) {
		p, err := find(s, args[0])
		return struct {
			Version int      `json:"version"`
			PG      pgStatus `json:"pg"`
		}{jsonVersion, p}, err
	})
	return family("pg", "List and show placement groups", ls, show)
}

func printPG(w io.Writer, p pgStatus) {
	fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", p.PG, p.Class, p.State, p.Epoch, storeList(p.Target), storeList(p.Acting), storeList(p.Complete), storeList(p.Proposed))
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
