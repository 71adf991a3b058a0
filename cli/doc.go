// Package cli is the command line: it turns arguments into calls, results into
// text or JSON, and errors into a line on stderr and an exit code. It never
// decides anything about the cluster.
//
// # Nouns
//
//   - [Main] runs a verb, declared with cobra, or, when the arguments name a role
//     or a configuration and no verb, a node.
//   - A walk works through trees of directories, several at a time; put, get, cp
//     and rm are walks.
//   - A transfer counts what such a verb does, shows it, and reports what fails.
//   - A status is the control leader's answer in words; most verbs that look at
//     the cluster show a part of it.
//   - A dev is a cluster of child processes on this machine.
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
// is something that helps, "; " and the next step. A verb that works on many
// objects prints each error when it comes, goes on, and fails at the end; every
// other verb returns its error to Main. Names are quoted as a shell reads them,
// and what would steer a terminal is escaped.
//
// # JSON
//
// What --json prints is an object with a version and named members, never a bare
// list. Names that are not UTF-8 come as base64 too.
//
// # Invariants
//
//   - A file appears whole or not at all, here as in the cluster: get writes beside
//     its place, syncs and renames.
//   - A directory gets its mode and time once everything below it is in place, so a
//     read-only one can be filled.
//   - Memory is bounded by the files under way, and by the directories beside the
//     ones on the way down.
//   - A node that dfsd dev started ends with it, however it ends: it holds the
//     other end of a pipe.
package cli
