package cli

import (
	"errors"
	"fmt"
)

// exitCode is the exit code of the process.
type exitCode int

// The exit codes. Scripts rely on them: they never change their meaning.
const (
	exitDone        exitCode = 0
	exitFailed      exitCode = 1
	exitUsage       exitCode = 2 // wrong usage or configuration: nothing was done
	exitUnreachable exitCode = 3 // no meta node answered
)

// verbError is an error with what only the command line knows about it.
type verbError struct {
	err  error
	code exitCode // exitDone: that of err
	hint string   // the next step; may be empty
}

func (e *verbError) Error() string { return e.err.Error() }
func (e *verbError) Unwrap() error { return e.err }

// usagef makes the error of a command that was written wrongly.
func usagef(format string, args ...any) error {
	return &verbError{err: fmt.Errorf(format, args...), code: exitUsage}
}

// withHint adds the next step to an error. The outermost hint is printed.
func withHint(err error, hint string) error { return &verbError{err: err, hint: hint} }

// errorLine is what is printed of an error.
func errorLine(err error) string {
	line := "dfsd: " + err.Error()
	for v := (*verbError)(nil); errors.As(err, &v); err = v.err {
		if v.hint != "" {
			return line + "; " + v.hint
		}
	}
	return line
}

// exitCodeOf returns the outermost exit code in err's chain, exitFailed where
// there is none.
func exitCodeOf(err error) exitCode {
	if err == nil {
		return exitDone
	}
	for v := (*verbError)(nil); errors.As(err, &v); err = v.err {
		if v.code != exitDone {
			return v.code
		}
	}
	return exitFailed
}
