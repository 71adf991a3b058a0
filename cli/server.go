package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"dfsd/config"
	"dfsd/dfs"
)

// parentFlag names the descriptor of a pipe whose other end a parent process
// holds: when that closes, however the parent ended, this process stops.
const parentFlag = "--parent-fd="

// isServer reports whether args ask for a process with roles: no verb among
// them, and a role or a configuration given.
func isServer(root *cobra.Command, args, env []string) bool {
	if len(args) == 0 {
		return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "DFSD_ROLE=") && kv != "DFSD_ROLE=" })
	}
	if cmd, _, err := root.Find(args); err != nil || cmd != root {
		return false
	}
	fs := config.ServerFlags()
	fs.Usage = func() {}
	fs.ParseErrorsAllowlist.UnknownFlags = true
	if err := fs.Parse(args); err != nil && !errors.Is(err, pflag.ErrHelp) || fs.NArg() > 0 {
		return slices.ContainsFunc(args, func(s string) bool { return s == "--role" || strings.HasPrefix(s, "--role=") }) && fs.NArg() == 0
	}
	return fs.Changed("role") || fs.Changed("config")
}

// serve runs a node until ctx ends.
func (a *app) serve(ctx context.Context, args []string) error {
	parent := -1
	var err error
	args = slices.DeleteFunc(slices.Clone(args), func(s string) bool {
		number, ours := strings.CutPrefix(s, parentFlag)
		if ours {
			parent, err = strconv.Atoi(number)
		}
		return ours
	})
	if err != nil || parent >= 0 && parent < 3 {
		return usagef("%sN: want the number of an inherited descriptor", parentFlag)
	}
	flags, err := config.ParseServerFlags(args)
	if errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintf(a.proc.Out, "Usage:\n  dfsd --role=meta|storage[,…] --config FILE\n\nSettings, each also in FILE (as name: value) and the environment (as DFSD_NAME):\n%s", config.ServerFlags().FlagUsages())
		return nil
	}
	if err != nil {
		return err
	}
	cfg, err := config.LoadServer(config.Input{Flags: flags, Env: a.proc.Env, ReadFile: os.ReadFile})
	if err != nil {
		return err
	}
	if parent >= 0 {
		var stop func()
		if ctx, stop, err = untilClosed(ctx, parent); err != nil {
			return usagef("%s%d: %v", parentFlag, parent, err)
		}
		defer stop()
	}
	err = a.proc.Serve(ctx, cfg, Version(), a.proc.Err)
	if dfs.KindOf(err) == dfs.Invalid {
		// What the configuration names cannot be used: no restart helps.
		err = &verbError{err: err, code: exitUsage}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", cfg.Name, err)
	}
	return nil
}

// untilClosed returns a context that ends when the other end of a pipe is
// closed. The returned function, to be called when the work is done, waits for
// what watches the pipe. Nobody is left who could kill a process that then does
// not end, so it ends by itself after devStop.
func untilClosed(ctx context.Context, fd int) (context.Context, func(), error) {
	if err := syscall.SetNonblock(fd, true); err != nil { // so that Close wakes the reader
		return nil, nil, err
	}
	pipe := os.NewFile(uintptr(fd), "parent")
	ctx, cancel := context.WithCancel(ctx)
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, pipe)
		cancel()
		late := time.NewTimer(devStop)
		defer late.Stop()
		select {
		case <-stopped:
		case <-late.C:
			os.Exit(int(exitFailed))
		}
	}()
	return ctx, func() {
		close(stopped)
		_ = pipe.Close()
		<-done
		cancel()
	}, nil
}
