// Package placement says on which stores the placement groups (PGs) of a class
// should be: a weighted consistent-hash ring with virtual nodes, bounded load
// and failure domains. It consists of pure functions: no I/O, no clock, and the
// same arguments always give the same answer.
//
// # Nouns
//
//   - A [Store] has a weight and a place in a tree of failure domains: its host,
//     and where they are labelled its rack and its zone.
//   - A [Group] wants as many stores as the class is wide, and says which it has.
//   - The ring gives every group an order of preference over all stores.
//   - A store's quota is its fair share of all slots (groups × width), lessened
//     where the domains do not let it take that much and raised elsewhere to
//     make up for it; this is the split with the least possible highest ratio.
//
// # Invariants
//
//   - No group has a store twice, nor two stores of one host while there are
//     hosts enough, nor more of one zone or rack than it must.
//   - A store has at most max(⌈quota⌉, ⌊1.05 × quota⌋) slots, and at least
//     min(⌊quota⌋, ⌈0.95 × quota⌉), so that a new store receives its share.
//   - What a group has it keeps unless one of the above asks for a move.
//
// # How
//
// Per group, the domains are limits on a tree, so a whole assignment is a flow
// through groups, domains and stores. It starts from what the groups have, and
// then missing, overfull and underfull stores are mended by shortest augmenting
// paths: nearly always a single move, and a chain where the domains allow no
// single one. As quotas are a fractional flow within all limits, an integral
// one exists, and augmenting finds it (Ford and Fulkerson). The bounded walk of
// the ring is that of Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing
// with Bounded Loads" (SODA 2018).
//
// Package repair calls it to plan targets.
package placement
