// Package control is the state machine of the control group (Raft group 0):
// the cluster map, sessions and the counters that identifiers come from. It is
// a pure core: no I/O, no clock, no goroutine.
//
// # Nouns
//
//   - The cluster map (dfs.Map) is stored row by row: Raft groups, nodes, stores,
//     placement groups. Every entry that changes it raises its epoch by one.
//   - A session is live, then expiring (its fence is on the way to every
//     namespace group), then gone.
//   - A decision of the repair planner is checked again when it is applied,
//     against the state of that moment: a decision made from an older state
//     is dropped, never bent to fit.
//
// # Invariants
//
//   - Node 1 is the founder, the first listed meta node: nobody registers before it.
//   - Node, store, session, group, placement group numbers and epochs only grow.
//   - Entries evaluate alike on every replica: time, random numbers and limits
//     travel in the entry, time never goes back.
//   - A registration whose lineage lacks the start on record is that of a copied
//     or rolled-back directory and is refused. The start on record is the one in
//     the map's row of the node or store.
//
// Package meta calls it; it calls the pure rules of package repair.
package control
