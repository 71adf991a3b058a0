// Package raftgroup hosts many Raft groups in one process: one log store, one
// state store, a few workers, two lanes to each peer.
//
// # Nouns
//
//   - A [Host] is this node's end of all its groups.
//   - A replica is one group's member on this host: a raft.RawNode, its log and
//     its applied state.
//   - The log store is a Pebble database of every group's entries and hard
//     state. One synced batch serves every group that has something to write.
//   - The state store is a Pebble database of every group's applied state, with
//     its write-ahead log off: the Raft log is its write-ahead log.
//   - The mark file holds the number of a recent synced batch of the log store.
//   - A transfer is a snapshot of a group on its way to a peer, through as many
//     streams as that takes.
//   - A [StateMachine] turns entries into writes and replies, deterministically.
//
// # The way of a proposal
//
//	Propose ─▶ inbox ─▶ worker: RawNode.Step, Ready ──▶ lanes ─▶ followers
//	                       │                    │
//	                       │                    └─▶ log writer: one synced batch
//	                       │◀── responses ◀─────────────┘
//	                       └─▶ applier: one state batch ─▶ reply
//
// Entries go to followers while the host's own append is in flight; what votes
// and acknowledges leaves only after the batch it leans on is synced. Proposals
// wait for that append to end, and a commit for what goes to a follower anyway,
// so that one message serves many.
//
// # Invariants
//
//   - An entry is acknowledged only after a synced batch holds it.
//   - Applied index, term, configuration and state change in one batch, so a
//     restart continues exactly after the last entry that left a trace.
//   - truncated ≤ what the state store has flushed ≤ applied ≤ committed ≤ last.
//   - A configuration change is applied only after a synced hard state whose
//     commit index covers it.
//   - The mark file may lag the log store, never lead it: a log store that opens
//     below its mark has lost acknowledged entries and is refused.
//   - A replica sleeps only while its log, commit index and state end at the same
//     entry and nothing waits for it. A leader that is awake sends heartbeats.
//   - A replica without a log votes for nobody; one that takes the place of a
//     destroyed one begins in a later term than that one ever knew.
//   - A replica whose library or state machine misbehaves is quarantined: it neither
//     votes nor acknowledges nor serves, and no other replica is touched.
//   - A log store that has lost something speaks for no group any more. A state
//     store that is damaged is fetched anew, with log and votes kept.
//
// The package is called by meta, which carries its messages as opaque bytes. It
// never opens a connection, knows no address, and never calls another node.
package raftgroup
