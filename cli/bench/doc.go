// Package bench measures what the program can do on this machine, each figure
// beside a baseline that nothing could beat by much: raw disk, raw socket, the
// local file system.
//
// # Nouns
//
//   - A figure is one kind of work with a stable name, set/work: engine/put-4k-w16
//     is 16 callers that put blocks of 4 KiB into an engine.
//   - Its baseline is what the same work costs without the program.
//   - A round is a short time of either. Rounds of work and baseline alternate,
//     so that what disturbs the machine disturbs both.
//   - A figure's rate is the median of its rounds, its ratio the median of the
//     ratios of each round to the baseline's round that follows it.
//
// # Invariants
//
//   - Standard output holds one line for each figure and nothing else.
//   - No figure is printed of fewer than [MinRounds] rounds, or of work that
//     failed in part.
//   - What was started is ended, and what was written is removed, however it ends.
//
// The set meta runs 3 meta nodes alone, and replays their own syncs as its
// baseline; meta-large loads one with many inodes. The set client runs a cluster
// of 3 meta and 4 storage nodes. All are processes of this binary with default
// settings, but for segments of 64 MiB as in dfsd dev, whose data is in the same
// directory as the baseline's files.
//
// docs/BENCHMARKS.md says what each figure is. The command line calls this
// package; nothing else does.
package bench
