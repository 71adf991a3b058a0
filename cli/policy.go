package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

func newPolicy(a *app) *cobra.Command {
	var asJSON, force bool
	get := &cobra.Command{
		Use: "get PATH", Short: "Show the storage class of what is made in a directory", Args: checked(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRemote("policy get", args...); err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error {
				p, err := policyOf(cmd.Context(), c, args[0])
				if err != nil {
					return failed("policy get", args[0], err)
				}
				if asJSON {
					return printJSON(a.proc.Out, struct {
						Version int `json:"version"`
						jsonPath
						Class string `json:"class"`
						From  string `json:"from"` // a directory; empty: the cluster's default_class
					}{jsonVersion, toJSONPath(args[0]), p.class, strings.ToValidUTF8(p.from, "\uFFFD")})
				}
				_, err = fmt.Fprintf(a.proc.Out, "class %s, by %s\n", p.class, p)
				return err
			})
		},
	}
	get.Flags().BoolVar(&asJSON, "json", false, "print an object")
	set := &cobra.Command{
		Use:   "set PATH CLASS",
		Short: "Set the storage class of what is made in a directory from now on",
		Long: `Set the storage class of files and directories that are made in a directory from now on: rep1 to
rep16, or inherit for that of the directory above. What exists keeps the class it has. The cluster makes
placement groups of a class when it is first asked for, once it has stores enough; they are not taken
back, so a class with more copies than there are storage nodes is refused.`,
		Args: checked(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRemote("policy set", args[0]); err != nil {
				return err
			}
			var class dfs.Class
			if args[1] != "inherit" {
				var err error
				if class, err = dfs.ParseClass(args[1]); err != nil {
					return usagef("policy set: %v", cause(err))
				}
				if class.Erasure() {
					return usagef("policy set: %v: this release stores replicated classes only, rep1 to rep16", class)
				}
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error {
				if err := tooWide(c.Map(), class); err != nil && !force {
					return withHint(failed("policy set", args[0], err), "add storage nodes first; --force sets it all the same")
				}
				if err := c.SetPolicy(cmd.Context(), args[0], class); err != nil {
					if a, look := c.Stat(cmd.Context(), args[0]); look == nil && a.Type != client.TypeDir {
						err = dfs.NotDir
					}
					return failed("policy set", args[0], err)
				}
				if why := lacking(c.Map(), class); why != "" {
					fmt.Fprintln(a.proc.Err, "dfsd: policy set", quote(args[0])+":", why)
				}
				return nil
			})
		},
	}
	set.Flags().BoolVar(&force, "force", false, "also a class with more copies than there are storage nodes: the cluster stays degraded until there are enough")
	return family("policy", "Show and set the policies of directories", get, set)
}

// tooWide refuses a class that the cluster cannot hold in full with the nodes
// it has.
func tooWide(m *dfs.Map, class dfs.Class) error {
	nodes := map[dfs.NodeID]bool{}
	for _, s := range m.Stores {
		if s.State != dfs.StoreOut {
			nodes[s.Node] = true
		}
	}
	if class.IsZero() || len(nodes) >= class.Width() {
		return nil
	}
	return fmt.Errorf("class %v wants %d copies on as many storage nodes, and the cluster has %d", class, class.Width(), len(nodes))
}

// lacking says what a class lacks to be written to, "" for nothing.
func lacking(m *dfs.Map, class dfs.Class) string {
	up := 0
	for _, s := range m.Stores {
		if s.State == dfs.StoreUp {
			up++
		}
	}
	if class.IsZero() || up >= class.MinActing() {
		return ""
	}
	return fmt.Sprintf("class %v needs %d stores, at least %d to take writes, and %d are up: what is made there can hold no bytes until there are more",
		class, class.Width(), class.MinActing(), up)
}

// policy is the storage class of what is made in a directory.
type policy struct {
	class string
	from  string // the topmost directory, of those above without a break, that has the class; "": the cluster's default
}

func (p policy) String() string {
	if p.from == "" {
		return "the default_class of the cluster"
	}
	return "the policy of " + quote(p.from)
}

// policyOf finds the policy of a directory. A directory takes its class from the
// one that it is made in, so the topmost one that has it is where it comes from.
func policyOf(ctx context.Context, c *client.Client, path string) (policy, error) {
	a, err := c.Stat(ctx, path)
	if err != nil {
		return policy{}, err
	}
	if a.Type != client.TypeDir {
		return policy{}, dfs.NotDir
	}
	p := policy{class: a.Class, from: path}
	for a.Ino != dfs.RootIno && p.class != "" {
		if a, err = c.Inode(a.Parent).Attr(ctx); err != nil {
			return policy{}, err
		}
		if a.Class != p.class {
			break
		}
		p.from = above(p.from)
	}
	if p.class == "" {
		p = policy{class: c.Map().DefaultClass.String()}
	}
	return p, nil
}

// above is the path of the directory above one: without its last name where
// that is sure to lead there.
func above(path string) string {
	dir, name := split(path)
	if unnamed(name) {
		return join(path, "..")
	}
	return dir
}
