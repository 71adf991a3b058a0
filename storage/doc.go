// Package storage is the storage role: it serves the blocks of a node's stores,
// follows the cluster map with their epochs, tells the meta nodes how the disks
// are, and pulls what a store lacks.
//
// # Nouns
//
//   - A store is one engine and the newest map that it has persisted the epoch
//     of: its applied map. Requests that change blocks are judged by that map,
//     and again by the engine, under the lock of the placement group.
//   - A refill is the work of one incomplete member: pull every block and
//     tombstone of a placement group with c < epoch < j from complete members,
//     where c is what the member is complete through and j the epoch at which
//     it became acting. What there is to refill follows from the map alone.
//   - A pass of a refill is one scan of one complete member and the fetches
//     that come of it. A refill is done after a pass without a failure.
//
// # The life of a service
//
//	Start → register with the control leader → read the map linearizably
//	      → persist its epoch in every store → take writes
//	      → follow the map, heartbeat, refill, until Close
//
// # Invariants
//
//   - No store takes a write before it has persisted the epoch of a map that
//     was read linearizably after this start was registered.
//   - A newer map is acted on, and reported, only after its epoch is on disk.
//   - NotExist is said of a block only by a store that is a complete member of
//     the block's placement group in the newest map; others say Unknowable.
//   - A refill is reported only after everything that it pulled is durable.
//   - A disk that hangs or fails delays its own store only: heartbeats go on
//     and tell how long it has been waited for.
//
// Package node calls it. It opens no file and makes no decision about who
// acts: package repair decides, the control group commits, this package obeys.
package storage
