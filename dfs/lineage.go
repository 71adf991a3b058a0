package dfs

import "slices"

// MaxOffered bounds Lineage.Offered: as many starts in a row that reached a meta
// node and never heard its answer do not happen, and a lineage fits a page.
const MaxOffered = 256

// Lineage is what a data directory remembers of its own starts. By it a start
// proves that it has the directory on record before it, and neither a copy of it
// nor an older state of it: those do not know the start that has registered since.
//
//	draw a start ──▶ Offer, synced ──▶ Register ──▶ Accept, synced
//	                    ▲    the answer is lost │
//	                    └──── next start ◀──────┘
//
// Starts are the random numbers of Incarnation.Start. Invariant: of a directory
// that is no copy, the start on record is Accepted or in Offered.
type Lineage struct {
	Accepted uint64   // the last start whose registration was answered; 0: none yet
	Offered  []uint64 // starts that may have registered since, oldest first; at most MaxOffered
}

// Offer returns the lineage with a start added, of which it must be durable
// before the start is sent to anyone who may record it.
//
// One that is full loses the start in its middle. If that is the one on record,
// the directory will be taken for a copy, which costs a refill and no data: it
// takes MaxOffered/2 answers lost one after the other. The first ones stay, since
// a copy may be barred by them.
func (l Lineage) Offer(start uint64) Lineage {
	if l.Holds(start) {
		return l
	}
	offered := slices.Clone(l.Offered)
	if len(offered) >= MaxOffered {
		offered = slices.Delete(offered, MaxOffered/2, len(offered)-MaxOffered/2+1)
	}
	return Lineage{Accepted: l.Accepted, Offered: append(offered, start)}
}

// Holds reports whether a start is one that this directory remembers.
func (l Lineage) Holds(start uint64) bool {
	return start != 0 && (l.Accepted == start || slices.Contains(l.Offered, start))
}

// Since returns the first start that was offered after one that the lineage
// holds, 0 when there is none. It is the same at every later start of a
// directory, and differs between a directory and its copies.
func (l Lineage) Since(start uint64) uint64 {
	next := slices.Index(l.Offered, start) + 1 // 0: it is Accepted, or not held
	if !l.Holds(start) || next == len(l.Offered) {
		return 0
	}
	return l.Offered[next]
}
