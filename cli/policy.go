package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

func newPolicy(a *app) *cobra.Command {
	var asJSON bool
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
rep16, or inherit for that of the directory above. What exists keeps the class it has.`,
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
				if err := setPolicy(cmd.Context(), c, args[0], class); err != nil {
					return failed("policy set", args[0], err)
				}
				return nil
			})
		},
	}
	return family("policy", "Show and set the policies of directories", get, set)
}

// setPolicy sets the class of a directory; the zero class is that of the
// directory above. One that no file could be stored in is refused.
func setPolicy(ctx context.Context, c *client.Client, path string, class dfs.Class) error {
	m := c.Map()
	if class.IsZero() {
		a, err := c.Stat(ctx, path)
		if err != nil {
			return err
		}
		up, err := c.Inode(a.Parent).Attr(ctx)
		if err != nil {
			return err
		}
		if class = m.DefaultClass; a.Ino != dfs.RootIno && up.Class != "" {
			if class, err = dfs.ParseClass(up.Class); err != nil {
				return err
			}
		}
	}
	if !slices.ContainsFunc(m.PGs, func(pg *dfs.PG) bool { return pg.Class == class }) {
		return fmt.Errorf("nothing could be stored: this cluster has no placement groups of class %v, only of its default_class, %v", class, m.DefaultClass)
	}
	return c.SetPolicy(ctx, path, class)
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
