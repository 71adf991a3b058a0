package raftgroup

import "dfsd/dfs"

// Failpoint is a moment on the way of a proposal, for Hooks.Failpoint. What a
// crash between a write and its sync leaves is the file system's to say.
type Failpoint uint8

// The failpoints, in the order in which a proposal passes them.
const (
	FailTaken     Failpoint = iota // a worker has what waited for the replica
	FailStepped                    // the library was given it, nothing was handed out
	FailHandedOut                  // messages are gathered, writes and committed entries queued
	FailStaged                     // a batch of the log store is about to be committed
	FailSynced                     // it is synced, nobody was told
	FailDelivered                  // its acknowledgements are delivered
	FailCommitted                  // committed entries are about to be applied
	FailApplying                   // one was applied to a batch that is not committed
	FailApplied                    // the batch is committed, nobody was answered
	FailReplied                    // the proposers have their answers
	FailCutting                    // a cut of the log is decided
	FailCut                        // it is committed
	NumFailpoints
)

func (p Failpoint) String() string {
	names := [...]string{
		"taken", "stepped", "handed out", "staged", "synced", "delivered",
		"committed", "applying", "applied", "replied", "cutting", "cut",
	}
	if p < NumFailpoints {
		return names[p]
	}
	return "unknown"
}

// failpoint tells a test that a replica has come to p.
func (h *Host) failpoint(g dfs.GroupID, p Failpoint) {
	if f := h.opts.Hooks.Failpoint; f != nil {
		f(g, p)
	}
}
