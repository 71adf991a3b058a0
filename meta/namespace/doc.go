// Package namespace is the state machine of a namespace group: a part of the
// one file tree, its exactly-once replies, fences, history and delete queue. It
// is a pure core: no I/O of its own, no clock, no randomness, no goroutine.
//
// # Nouns
//
//   - A [Machine] applies the entries of one group's log, one by one, to rows
//     that it reads and writes through a [raftgroup.Tx]. Nothing of the state
//     is held in memory between entries.
//   - A directory's entries and the inodes of its files live in the group of
//     the directory's inode number. An entry may name a directory of another
//     group, a remote child: the entry's group keeps a child row (inode →
//     parent, name), which alone says whether the child is linked. It may name a
//     file of another group too: the file's group counts its links.
//   - A transaction changes rows of several groups. Its coordinator keeps a record
//     of it, and every group a share, from prepare to the decision, with locks
//     on what that touches. docs/ARCHITECTURE.md has the protocol; the driver is in
//     package meta.
//   - An account says how much lies below a directory. An inode counts in one directory,
//     its home; what the home has not taken in yet waits in a queue. accounting.go
//     has the rules.
//   - An intent is what a mkdir or rmdir over a group boundary leaves in the
//     child's group until the parent's group has decided.
//   - History holds every replaced or removed value until a trim drops it.
//
// # Time and versions
//
// Every entry that changes something gets a version above the group's last
// one. Its upper bits are the milliseconds that mtime and ctime show.
//
// A transaction's rows get the version of its commit in every group, which may be
// below the last one of a participant.
//
// # Classes
//
// A directory stores the storage class in force for what is created below it;
// a new directory copies that of its parent. A later change of policy counts
// for the directory itself and what is created in it from then on, not for
// directories that exist below it. A file keeps the class it was created with.
// The empty class is the cluster's default.
//
// # Invariants
//
//   - An entry is refused before its first change or carried out whole. What is
//     refused leaves no trace but the session's floor and, when the refusal is
//     final, its own reply.
//   - A command of a session and sequence number takes effect at most once, and
//     each retry of it gets the same bytes, until the session's floor passes
//     it; from then on, and once the session is fenced, it is refused.
//   - A refusal whose kind is Retryable is not remembered: the same command may
//     succeed later.
//   - From the rows that stand and those in history follows the tree at every
//     version that no trim has passed. The extents of a removed file stand until
//     the last history row of its inode is trimmed; they count only where the
//     inode does.
//   - A block row counts the extents and history rows that name the block. Only
//     a trim takes a count to zero; the same commit moves the block to the
//     delete queue.
//   - Every linked inode is reachable from the root, link counts and directory
//     sizes are exact. [Check] and [CheckTree] verify these.
//   - An account is the sum of what all that has its home there has told; what is in no
//     queue has told what it counts for.
//   - Inode numbers are never given out twice.
//
// Package meta calls it, and tests of what stands above.
package namespace
