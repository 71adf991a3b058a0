// Package cli is the command line: one verb a file, declared with cobra. It
// turns arguments into calls, results into text or JSON, and errors into a
// line on stderr and an exit code. It never decides anything about the cluster.
//
// # Exit codes
//
//	0  done
//	1  failed
//	2  wrong usage or configuration
//	3  the cluster cannot be reached
//
// # Errors
//
// An error is one line on stderr, "dfsd: verb object: cause", and, where there
// is something that helps, "; " and the next step. Each verb returns its error;
// only [Main] prints it.
//
// # JSON
//
// What --json prints is an object with named members, never a bare list.
package cli
