// Package dfs is the vocabulary of the file system: identifiers, epochs,
// incarnations, limits, error kinds and the cluster map. Every other package
// speaks in these types; this one imports the standard library only and does
// no I/O.
//
// # Nouns
//
//   - A [Node] is one process with an identity; it has one or more [Role]s.
//   - A [Store] is one disk of a storage node, the unit of placement and failure.
//   - A [PG] (placement group) is a list of stores; a block belongs to one PG.
//   - A block is immutable bytes named by a [BlockID] that is never reused.
//   - A [Map] is the cluster map at one [Epoch].
//
// # Invariants
//
// Identifiers are never reused. Every number with a meaning has its own type,
// so that the compiler catches a swap.
package dfs
