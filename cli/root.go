package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Streams are the standard streams of the process.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Main runs the verb that args name, without the program's own name, and
// returns the exit code of the process. It has printed the error, if any.
func Main(ctx context.Context, args []string, streams Streams) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(streams.Err, errorLine(err))
	}
	return int(exitCodeOf(err))
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:                        "dfsd",
		Short:                      "A distributed file system in one binary",
		SilenceErrors:              true, // Main prints them
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2, // letters: one typed wrongly or two swapped
		Args:                       knownVerb,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return withHint(usagef("%v", err), "see "+cmd.CommandPath()+" --help")
	})
	root.AddCommand(newVersion())
	return root
}

// knownVerb refuses what cobra could not match with a verb.
func knownVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "see " + cmd.CommandPath() + " --help"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return withHint(usagef("%q: there is no such command", args[0]), hint)
}

// checked makes a wrong number of arguments a usage error.
func checked(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return withHint(usagef("%s: %v", cmd.Name(), err), "usage: "+cmd.UseLine())
		}
		return nil
	}
}
