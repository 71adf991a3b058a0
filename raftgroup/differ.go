package raftgroup

import (
	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"

	"dfsd/dfs"
)

// A replica whose state differs from its leader's has a whole log and a wrong state,
// or its leader has. Members tell the leader their checkpoints with their answers
// to heartbeats, and it counts:
//
//	           differs from the leader's
//	serving ◀────────────────────────────▶ in doubt: votes, neither serves nor campaigns
//	   ▲       the leader is silent          │ the leader: a majority has my state
//	   │                                     ▼
//	   └──────── state installed ─────── needs state
//
// When a majority agrees on another state than the leader's, it is the leader that
// drops its own and hands over. Where there is no majority, as among two, nobody
// knows who is right: who is in doubt for long is quarantined.

// doubtTimeouts is for how many election time-outs a replica waits for the verdict.
const doubtTimeouts = 30

// differing is a verdict for a peer: its state at index is that of a minority.
type differing struct {
	to    dfs.NodeID
	index uint64
}

// checkLocked compares a peer's checkpoint with this replica's: on a leader for
// the count, on others with what the leader says.
func (r *replica) checkLocked(from uint64, at checkpoint, rd *round) {
	if r.role == raft.StateLeader {
		r.judgeLocked(from, at, rd)
		return
	}
	err := r.state.compare(at.index, at.hash)
	switch {
	case err != nil && r.doubted == 0:
		r.h.log.Error("the state differs from the leader's: it is served no more until it is known whose is right", "group", uint16(r.id), "leader", from, "cause", err)
		r.doubted, r.doubt = r.ticks, err
	case err == nil && r.doubted != 0 && r.state.checkAt(at.index) == at:
		r.doubted, r.doubt = 0, nil // another leads, whose state is the same
	default:
		return
	}
	r.state.setDoubt(r.doubted != 0)
}

// judgeLocked counts whose state is that of a majority of the voters. A state that is
// the same at one index was so at every one before.
func (r *replica) judgeLocked(from uint64, at checkpoint, rd *round) {
	if r.reportTerm != r.term {
		r.reportTerm = r.term
		clear(r.reports)
	}
	r.reports[from] = at
	own := r.state.checkAt(at.index)
	if own.index == 0 || own == at || r.state.missing() {
		return
	}
	r.busy = r.ticks // the group does not sleep over it
	voters := r.raw.Status().Config.Voters.IDs()
	same, other := 0, 0
	for id := range voters {
		c := r.reports[id]
		switch {
		case id == uint64(r.h.opts.Node), c.index >= at.index && r.state.checkAt(c.index) == c:
			same++
		case c == at:
			other++
		}
	}
	switch {
	case same > len(voters)/2:
		rd.differs = append(rd.differs, differing{dfs.NodeID(from), at.index})
	case other > len(voters)/2:
		r.raw.TransferLeader(from) // no proposal is taken any more
		r.dropStateLocked(at.index)
	}
}

// verdictLocked takes a leader's word that this replica's state is a minority's.
func (r *replica) verdictLocked(index uint64) {
	if r.doubted != 0 {
		r.dropStateLocked(index)
	}
}

// awaitVerdictLocked ends the doubt of a replica whose leader is silent, as one is that
// gave its own state up: the next one's is compared again. It gives up on a verdict
// after a while.
func (r *replica) awaitVerdictLocked() {
	timeout := uint64(r.h.opts.ElectionTicks)
	switch {
	case r.doubted == 0:
	case r.lead == raft.None || r.ticks-r.seen[r.lead] >= timeout:
		r.doubted, r.doubt = 0, nil
		r.state.setDoubt(false)
	case r.ticks-r.doubted > doubtTimeouts*timeout:
		r.quarantineLocked(r.doubt)
	}
}

// dropStateLocked gives the state up; the log has what it votes with.
func (r *replica) dropStateLocked(index uint64) {
	if r.dropping {
		return
	}
	r.dropping = r.h.spawn(func() {
		if err := r.dropState(); err != nil {
			r.h.fail(inState(err))
		}
	})
	r.h.log.Error("the state is not that of the majority: it is fetched anew", "group", uint16(r.id), "index", index)
}

func (r *replica) dropState() error {
	s := &r.state
	s.gate.Lock()
	if s.failed() != nil { // above all: destroyed, and what is there now is another's
		s.gate.Unlock()
		return nil
	}
	r.spoilTransfers()
	s.mu.Lock()
	s.lost, s.doubt = true, false
	s.checks, s.newest, s.leader = [checkKept]checkpoint{}, checkpoint{}, checkpoint{}
	s.mu.Unlock()
	start, end := stateSpan(r.id)
	err := s.db.DeleteRange(start, end, pebble.NoSync)
	s.gate.Unlock()
	if err == nil {
		err = s.db.Flush() // or the next start would have it again
	}
	r.mu.Lock()
	r.dropping, r.doubted, r.doubt = false, 0, nil
	r.mu.Unlock()
	r.h.workers.schedule(r)
	return wrapStore("drop state", r.id.String(), err)
}

// checkAt returns the checkpoint of an index, zeros when there is none.
func (s *state) checkAt(index uint64) checkpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.checks[index/checkEvery%checkKept]; c.index == index {
		return c
	}
	return checkpoint{}
}

func (s *state) setDoubt(is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubt = is
}

// unfit reports whether the replica must not lead: its state is missing, or in doubt.
func (s *state) unfit() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost || s.doubt
}
