package cli

import (
	"context"

	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

func newCat(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "cat PATH…",
		Short: "Print the contents of files",
		Args:  checked(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRemote("cat", args...); err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error { return a.cat(cmd.Context(), c, "cat", args) })
		},
	}
}

// cat streams files to standard output, one after the other.
func (a *app) cat(ctx context.Context, c *client.Client, verb string, paths []string) error {
	return a.eachOf(paths, func(path string) error {
		_, err := c.GetFile(ctx, path, a.proc.Out)
		if err == nil {
			return nil
		}
		err = failed(verb, path, err)
		if dfs.KindOf(err) == dfs.IsDir && verb == "get" {
			return withHint(err, "a directory does not fit into standard output")
		}
		return err
	})
}
