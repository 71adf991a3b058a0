// Package engine is the log-structured block store of one disk.
//
// # Nouns
//
//   - A [Store] is one data directory: segments, an index, and some small record
//     files beside them.
//   - A segment is a file of fixed size that is zero-filled once and then only
//     appended to. It has a header, batches, and, when it is full, a footer.
//   - A batch is what one write and one data sync made durable: the records
//     of every put and delete that waited when it began.
//   - A record is one put or one tombstone. It carries its own place, its
//     sequence number and the checksums of its payload.
//   - The index is a Pebble database that says where each block lies. It is
//     derived: what it lost is read from the segments again.
//   - A tombstone says that a block was deleted. It beats every put of its block,
//     whatever their order.
//   - The log is the stream of segments that puts and deletes fill; the moved
//     stream is that of compaction's copies.
//   - A block is undecided until somebody has said whether metadata names it.
//     One that metadata does not name lies in the trash before it is deleted.
//
// # The way of a put
//
//	caller: check sizes and chunk sums, take room in the queue
//	        under the lock of the PG: epoch, index, tombstone → sequence number, queue
//	who has the writer's turn, the caller itself when nobody else is at it:
//	        everything that waits → one buffer → one WriteAt → one SyncData
//	there and then, or beside the next write when more waits:
//	        index batch (not synced) → callers return
//
// # Invariants
//
//   - A call that returned nil is on the disk.
//   - The index names only records that are on the disk. It holds the effect
//     of a prefix of the log, whose end (the anchor) is in the same batch.
//   - One batch is in flight: the next is written after the sync. So bytes that do not read back are either the
//     last batch, which nobody was promised, or rot.
//   - A PG's fence only grows, and no append admitted under an epoch below it
//     is unfinished when SetEpochs returns.
//   - A segment is given up only when none of its records is needed, after a
//     synced checkpoint of the index that knows it, a mark that covers what took
//     its place, and a line in the ledger.
//   - A copy replaces its original in the index only after it was synced and read
//     back. It keeps sequence number and epoch.
//   - A tombstone is dropped only below its PG's floor and when no other segment
//     on the disk can hold a put of its block, not even after a crash.
//   - What a store has forgotten of a PG it has left stays forgotten, whatever becomes
//     of the index: a bound lasts for as long as a segment may have a record of it.
//   - The first failed write or sync is the last: the store takes no more of
//     them until it is opened again, and goes on reading.
//
// # Looking into a directory
//
// [Inspect] opens a directory that no process uses, and changes nothing in it: a
// start is acted out over an overlay in memory. Its Verify compares everything
// with everything else, and is what every test of this package ends with.
//
// The storage role and the offline tools call this package. It never talks to
// the network, never decides what should be deleted, and never ends the
// process. Everything on disk is described in docs/FORMATS.md.
package engine
