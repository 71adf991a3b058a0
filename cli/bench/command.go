package bench

import (
	"errors"
	"fmt"
	"os"
	"runtime/pprof"

	"github.com/spf13/cobra"
)

// Command returns the verb bench. Usagef makes the error of a command line that
// was written wrongly.
func Command(usagef func(format string, args ...any) error) *cobra.Command {
	var o Options
	profile := ""
	cmd := &cobra.Command{
		Use:   "bench [engine|client|meta|all|PATTERN]...",
		Short: "Measure this release on this machine, beside raw baselines",
		Long: `Measure this release on this machine: one line for each figure on standard output, everything else
on standard error. Each figure is measured in turns with a baseline, raw disk, socket or local file
system, and ratio is how much of that it reached. docs/BENCHMARKS.md says what each figure is.

The sets client and meta start clusters of their own: 7 and 3 processes on free ports of loopback, with
their data in a directory below --dir that is removed at the end. All of it takes some minutes and 20 GB.
The sets engine-large and meta-large take longer, and are measured only when they are named.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Figures, o.Out, o.Log = args, cmd.OutOrStdout(), cmd.ErrOrStderr()
			if err := o.check(); err != nil {
				return usagef("bench: %v", err)
			}
			run := func() error { return Run(cmd.Context(), o) }
			if profile != "" {
				run = func() error { return profiled(profile, func() error { return Run(cmd.Context(), o) }) }
			}
			if err := run(); err != nil {
				return fmt.Errorf("bench: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&o.Round, "round", defaultRound, "length of a round")
	cmd.Flags().IntVar(&o.Rounds, "rounds", MinRounds, "rounds of each figure, of which the median counts")
	cmd.Flags().IntVar(&o.Inodes, "inodes", largeInodes, "inodes that the figures of meta-large load")
	cmd.Flags().StringVar(&o.Dir, "dir", "", "directory on the disk to measure (default /var/tmp)")
	cmd.Flags().StringVar(&profile, "cpuprofile", "", "write a CPU profile of this process, the client, to a file")
	return cmd
}

// profiled writes a CPU profile of fn.
func profiled(name string, fn func() error) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return fn()
}
