// Package wire holds the messages and services that cross the network, and the
// commands that Raft logs store: the .proto files, the code generated from
// them (make generate), and the conversions to and from package dfs.
//
// Commands in Raft logs and messages between releases N−1 and N share one
// rule: fields are added, never changed or reused. docs/FORMATS.md has the
// rest.
package wire

// Regenerate after a change of a .proto file.
//go:generate go run ./gen
