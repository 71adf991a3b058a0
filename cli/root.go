package cli

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"dfsd/cli/bench"
	"dfsd/config"
	"dfsd/transport"
)

// Process is what the program has of its surroundings.
type Process struct {
	In       io.Reader
	Out, Err io.Writer
	Env      []string // name=value, as os.Environ returns it

	// Serve runs a node until ctx ends: node.Run.
	Serve func(ctx context.Context, cfg *config.Server, release string, stderr io.Writer) error

	Network transport.Network // nil: TCP
}

// Main does what args say, which are without the program's own name, and
// returns the exit code of the process. It has printed the error, if any.
func Main(ctx context.Context, args []string, proc Process) int {
	a := &app{proc: proc}
	root := newRoot(a)
	var err error
	if isServer(root, args, proc.Env) {
		err = a.serve(ctx, args)
	} else {
		root.SetArgs(args)
		root.SetIn(proc.In)
		root.SetOut(proc.Out)
		root.SetErr(proc.Err)
		err = root.ExecuteContext(ctx)
	}
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = errors.New("interrupted")
		}
		a.complain(err)
	}
	return int(exitCodeOf(err))
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "dfsd",
		Short: "A distributed file system in one binary",
		Long: `A distributed file system in one binary.

  dfsd --role=meta|storage[,…] --config FILE   run a server; --role=meta --help lists its settings
  dfsd dev                                     run a whole replicated cluster on this machine

Every other command uses a cluster. Where it is: --meta host:port,…, or DFSD_META, or the
configuration file, or 127.0.0.1:7400, 7401 and 7402, where dfsd dev listens.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 cluster unreachable.`,
		SilenceErrors:              true, // Main prints them
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2, // letters: one typed wrongly or two swapped
		Version:                    Version(),
		Args:                       knownVerb,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate(versionLine() + "\n")
	root.SetUsageFunc(plainUsage(root.UsageFunc()))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return withHint(usagef("%v", err), "see "+cmd.CommandPath()+" --help")
	})
	a.flags = config.ClientFlags()
	for _, name := range []string{"retry.base", "retry.factor", "retry.max", "hedge.min", "hedge.factor",
		"circuit-breaker.request-volume-threshold", "circuit-breaker.error-threshold-percentage", "circuit-breaker.sleep-window"} {
		if f := a.flags.Lookup(name); f != nil {
			f.Hidden = true // the documentation has them all
		}
	}
	root.PersistentFlags().AddFlagSet(a.flags)
	root.AddGroup(&cobra.Group{ID: "files", Title: "Files:"}, &cobra.Group{ID: "cluster", Title: "The cluster:"})
	add := func(group string, verbs ...*cobra.Command) {
		for _, v := range verbs {
			v.GroupID = group
			root.AddCommand(v)
		}
	}
	add("files", newLs(a), newTree(a), newStat(a), newDu(a), newCat(a), newPut(a), newGet(a), newCp(a), newMv(a), newRm(a), newMkdir(a), newLn(a))
	add("cluster", newStatus(a), newNode(a), newGroup(a), newPG(a), newExplain(a), newPolicy(a), newClass(a), newEngine(a), newDev(a), bench.Command(usagef))
	root.AddCommand(newVersion())
	root.InitDefaultHelpCmd()
	for _, v := range root.Commands() {
		if v.Name() == "help" {
			v.Args = func(_ *cobra.Command, args []string) error {
				about, rest, err := root.Find(args)
				if err != nil {
					return usagef("help: %v", err)
				}
				return knownVerb(about, rest)
			}
		}
	}
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

// verbName is what a user types to run a command, without the program's name.
func verbName(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}

// plainUsage prints the usage of a command as cobra does, but for the values that
// flags without a value could have too.
func plainUsage(usage func(*cobra.Command) error) func(*cobra.Command) error {
	const value = "[=true|false]"
	return func(cmd *cobra.Command) error {
		out := cmd.OutOrStderr()
		var page strings.Builder
		cmd.SetOut(&page)
		err := usage(cmd)
		cmd.SetOut(out)
		if err != nil {
			return err
		}
		for line := range strings.Lines(page.String()) {
			before, after, found := strings.Cut(line, value)
			if found {
				line = before + strings.Repeat(" ", len(value)) + after
			}
			if _, err := io.WriteString(out, line); err != nil {
				return err
			}
		}
		return nil
	}
}

// checked makes a wrong number of arguments a usage error.
func checked(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			what := "an argument is missing"
			if len(args) > 0 {
				what = plural(len(args), "argument") + " given"
			}
			return withHint(usagef("%s: %s", verbName(cmd), what), "usage: "+strings.TrimSuffix(cmd.UseLine(), " [flags]"))
		}
		return nil
	}
}

// family makes a command that only groups others, such as node ls and node show.
func family(use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: knownVerb, SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withHint(usagef("%s: which command of it?", cmd.Name()), "see "+cmd.CommandPath()+" --help")
		},
	}
	cmd.AddCommand(verbs...)
	return cmd
}
