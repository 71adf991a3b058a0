package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"dfsd/config"
	"dfsd/dfs"
)

// exitCode is the exit code of the process.
type exitCode int

// The exit codes. Scripts rely on them: they never change their meaning.
const (
	exitDone        exitCode = 0
	exitFailed      exitCode = 1
	exitUsage       exitCode = 2 // wrong usage or configuration: nothing was done
	exitUnreachable exitCode = 3 // no meta node of the cluster answers, or none accepts this client
)

// verbError is an error with what only the command line knows about it.
type verbError struct {
	err     error
	code    exitCode // exitDone: that of err
	hint    string   // the next step; may be empty
	printed bool     // the user has seen it
}

func (e *verbError) Error() string { return e.err.Error() }
func (e *verbError) Unwrap() error { return e.err }

// usagef makes the error of a command that was written wrongly.
func usagef(format string, args ...any) error {
	return &verbError{err: fmt.Errorf(format, args...), code: exitUsage}
}

// withHint adds the next step to an error. The outermost hint is printed.
func withHint(err error, hint string) error { return &verbError{err: err, hint: hint} }

// failed makes the error of a verb about an object: a path, a node, or "".
func failed(verb, object string, err error) error {
	text := verb
	if object != "" {
		text += " " + brief(object)
	}
	return &verbError{err: fmt.Errorf("%s: %w", text, cause(err)), hint: kindHint(err)}
}

// failedf is failed with a text of its own.
func failedf(verb, object, format string, args ...any) error {
	return failed(verb, object, fmt.Errorf(format, args...))
}

// cause drops what a library put around an error to say which operation on
// which object failed: the verb says that in the user's words.
func cause(err error) error {
	for {
		switch e := err.(type) {
		case *dfs.Error:
			if e.Err == nil || e.Text != "" {
				return bare(e)
			}
			err = e.Err
		case *fs.PathError:
			err = e.Err
		case *os.LinkError:
			err = e.Err
		case *os.SyscallError:
			err = e.Err
		default:
			return err
		}
	}
}

// bare is an error without operation and object.
func bare(e *dfs.Error) error {
	c := *e
	c.Op, c.Object = "", ""
	return &c
}

// kindHint is the next step that helps with errors of a kind, "" where there is
// none for all of them.
func kindHint(err error) string {
	switch dfs.KindOf(err) {
	case dfs.Unavailable, dfs.NoSpace, dfs.ReadOnly, dfs.Deadline, dfs.Busy:
		return "see dfsd status"
	case dfs.Unknown:
		return "look whether it was done before you do it again"
	}
	return ""
}

// errorLine is what is printed of an error: one line, but for the list of
// faults of a configuration.
func errorLine(err error) string {
	line := "dfsd: " + err.Error()
	if faults := (config.Faults)(nil); !errors.As(err, &faults) {
		line, _, _ = strings.Cut(line, "\n")
	}
	for v := (*verbError)(nil); errors.As(err, &v); err = v.err {
		if v.hint != "" {
			line += "; " + v.hint
			break
		}
	}
	return printable(line)
}

// exitCodeOf returns the outermost exit code in err's chain, exitFailed where
// there is none.
func exitCodeOf(err error) exitCode {
	if err == nil {
		return exitDone
	}
	if faults := (config.Faults)(nil); errors.As(err, &faults) {
		return exitUsage
	}
	for v := (*verbError)(nil); errors.As(err, &v); err = v.err {
		if v.code != exitDone {
			return v.code
		}
	}
	return exitFailed
}

// wasPrinted reports whether the user has seen the error.
func wasPrinted(err error) bool {
	v := (*verbError)(nil)
	return errors.As(err, &v) && v.printed
}

// eachOf runs fn for each argument and goes on after errors, which it prints as
// they come. Its own error is an already printed one.
func (a *app) eachOf(args []string, fn func(arg string) error) error {
	var worst error
	for _, arg := range args {
		if err := fn(arg); err != nil {
			a.complain(err)
			if exitCodeOf(err) > exitCodeOf(worst) {
				worst = &verbError{err: err, printed: true}
			}
		}
	}
	return worst
}

// complain prints an error.
func (a *app) complain(err error) {
	if !wasPrinted(err) {
		fmt.Fprintln(a.proc.Err, strings.TrimSuffix(errorLine(err), "\n"))
	}
}
