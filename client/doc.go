// Package client is the Go client library of a cluster: the command line, the
// mount and the S3 gateway are thin users of it.
//
// # Nouns
//
//   - A [Client] speaks with one cluster: it learns the cluster map from the meta
//     nodes, asks the namespace groups, and moves blocks to and from the stores.
//   - An [Inode] is a handle to a file, directory or symlink by number; the
//     methods of Client that take a path find the inode and use it.
//   - A [File] reads and writes the contents of one file.
//   - A session is the client's lease in the control group, opened at the first
//     mutation. Every mutation has a number in it, so that a repetition takes
//     effect once.
//
// # The way of a write
//
// The bytes are cut into blocks, compressed and sent to every acting member of a
// placement group, and each member acknowledges when its copy is durable. When
// all blocks of a file are there, one metadata command names them: a file
// appears whole or not at all.
//
// # Invariants
//
//   - A mutation is encoded once. The same bytes go to the same group until they
//     are answered or the time is over; then the outcome is dfs.Unknown unless it
//     certainly was not applied.
//   - A block ID is used for one content under one epoch; every further attempt
//     takes a new one.
//   - A session that is lost is never used again, and nothing that was begun
//     under it is repeated under another.
//   - Bytes that a reader gets have passed the checksum their writer made. Zeros
//     are made for holes only.
//   - Memory, goroutines and retries are bounded, and Close waits for all of them.
//
// The package keeps no cache of metadata: every answer comes from the group that
// owns it.
package client
