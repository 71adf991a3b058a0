package cli

import (
	"fmt"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

// classStatus is a storage class that is used or has settings.
type classStatus struct {
	Class       string `json:"class"`
	Compression string `json:"compression"` // of new blocks
	PGs         int    `json:"pgs"`         // placement groups
	Default     bool   `json:"default"`     // of files whose directory says nothing else
}

// classesOf lists the classes of a map.
func classesOf(m *dfs.Map) []classStatus {
	pgs := map[dfs.Class]int{m.DefaultClass: 0}
	for _, p := range m.PGs {
		pgs[p.Class]++
	}
	for _, s := range m.Settings {
		pgs[s.Class] += 0
	}
	var classes []dfs.Class
	for class := range pgs {
		classes = append(classes, class)
	}
	slices.SortFunc(classes, dfs.Class.Compare)
	var out []classStatus
	for _, class := range classes {
		out = append(out, classStatus{class.String(), m.Codec(class).String(), pgs[class], class == m.DefaultClass})
	}
	return out
}

func newClass(a *app) *cobra.Command {
	var asJSON bool
	ls := &cobra.Command{
		Use: "ls", Short: "List the storage classes that are used or have settings", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(c *client.Client) error {
				m, err := c.Refresh(cmd.Context())
				if err != nil {
					return failed("class ls", "", err)
				}
				if asJSON {
					return printJSON(a.proc.Out, struct {
						Version int           `json:"version"`
						Classes []classStatus `json:"classes"`
					}{jsonVersion, classesOf(m)})
				}
				t := tabwriter.NewWriter(a.proc.Out, 0, 0, 2, ' ', 0)
				fmt.Fprint(t, "CLASS\tCOMPRESSION\tPGS\tDEFAULT\n")
				for _, x := range classesOf(m) {
					fmt.Fprintf(t, "%s\t%s\t%d\t%s\n", x.Class, x.Compression, x.PGs, yesNo(x.Default))
				}
				return t.Flush()
			})
		},
	}
	ls.Flags().BoolVar(&asJSON, "json", false, "print an object")
	var compression string
	set := &cobra.Command{
		Use:   "set CLASS --compression s2|zstd|none",
		Short: "Set how what is written in a storage class from now on is compressed",
		Long: `Set how what is written in a storage class from now on is compressed, in the whole cluster: s2 (the
default) costs little, zstd takes less space and several times the processor time of the writer, none
is for what is compressed already. Contents of which a sample does not shrink are stored as they are in
any case. What is stored stays as it is, and is read whatever the setting. Writers that run follow within
seconds.`,
		Args: checked(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			class, err := dfs.ParseClass(args[0])
			if err != nil {
				return usagef("class set: %v", cause(err))
			}
			if class.Erasure() {
				return usagef("class set: %v: this release stores replicated classes only, rep1 to rep16", class)
			}
			if compression == "" {
				return usagef("class set: what shall be set? --compression s2, zstd or none")
			}
			codec, err := dfs.ParseCodec(compression)
			if err != nil {
				return usagef("class set: --compression: %v", cause(err))
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error {
				if err := c.SetCompression(cmd.Context(), class, codec); err != nil {
					return failed("class set", args[0], err)
				}
				return nil
			})
		},
	}
	set.Flags().StringVar(&compression, "compression", "", "s2, zstd or none")
	return family("class", "List storage classes and set how they compress", ls, set)
}
