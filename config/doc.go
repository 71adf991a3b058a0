// Package config turns a configuration file, the environment and the flags of
// the command line into one checked struct: [Server] for a process with roles,
// [Client] for everything else. It is the only package that knows viper and
// the syntax of the file; what it returns needs no further checks.
//
// # Nouns
//
//   - A setting has a key such as raft.tick, one row in the table of settings,
//     and from its key a flag (--raft.tick) and a variable (DFSD_RAFT_TICK).
//   - A [Fault] is one thing that is wrong, with its place, the value and what
//     would be right.
//
// # Order
//
//	default < file < environment < flags
//
// A list that is given again replaces the earlier one. A variable that is
// empty counts as not set. Servers and clients share files and environment:
// each side reads its own settings and checks the names of all.
//
// # Invariants
//
// A key is known or a fault. All faults of a load are reported together,
// except that flags and files that cannot be parsed end it early. Nothing is
// read but the one file that --config or DFSD_CONFIG names: directories and
// certificates are not looked at.
package config
