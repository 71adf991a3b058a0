package raftgroup

import (
	"sort"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// tidyTicks is how often, in ticks, logs are looked at for a cut and the mark
// file is synced.
const tidyTicks = 10

// liveTimeouts is for how many election time-outs a silent peer counts as live.
const liveTimeouts = 3

// spareEntries is how many applied entries a log keeps while space is short: so
// few that they are not worth a thought, and enough not to cut at each look.
const spareEntries = 256

// Spare says whether space is short: then logs keep only what live peers need.
func (h *Host) Spare(short bool) { h.spare.Store(short) }

// tidy cuts logs and syncs the mark until the host ends.
func (h *Host) tidy() {
	t := time.NewTicker(tidyTicks * h.opts.Tick)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-h.ctx.Done():
			return
		}
		if err := h.store.mark.sync(); err != nil {
			h.fail(wrapStore("sync mark file", h.opts.Dir, err))
			return
		}
		if err := h.dropAside(); err != nil {
			h.log.Warn("the damaged state store cannot be removed", "cause", err)
		}
		flush := false
		for _, r := range h.sorted() {
			r.tidyTransfers()
			if err := h.tidyHeld(r); err != nil {
				h.fail(err)
				return
			}
			f, err := r.trim()
			if err != nil {
				h.fail(err)
				return
			}
			flush = flush || f
		}
		if flush {
			if _, err := h.state.AsyncFlush(); err != nil {
				h.fail(wrapStore("flush raft state", h.opts.Dir, err))
				return
			}
		}
	}
}

// trim cuts the log where nobody needs it any more. It reports whether a flush
// of the state store would let it cut more.
func (r *replica) trim() (flush bool, err error) {
	if r.state.failed() != nil || r.state.missing() {
		return false, nil
	}
	trunc := r.l.truncation()
	_, last := r.l.bounds()
	keep, limit := uint64(r.h.opts.KeepEntries), uint64(r.h.opts.LogBytes)
	if r.h.spare.Load() {
		keep = min(keep, spareEntries)
	} else {
		limit += r.logSlack()
	}
	over := r.l.size() > limit
	if !over && last-trunc.index <= keep+keep/4 {
		return false, nil
	}
	durable, err := readApplied(r.state.db, r.id, !r.h.opts.Hooks.CutUnflushed)
	if err != nil {
		return false, inState(err)
	}
	target := r.neededFrom(last - min(last, keep))
	if over {
		if target, err = r.l.lastWithin(limit / 2); err != nil {
			return false, ignoreCut(err)
		}
		if from, ok := r.transfersFrom(); ok && from >= trunc.index {
			least, err := r.l.lastWithin(limit)
			if err != nil {
				return false, ignoreCut(err)
			}
			if from >= least {
				target = min(target, from)
			}
		}
	}
	if target > durable.index {
		flush, target = true, durable.index
	}
	if over && target < durable.confIndex {
		target = durable.confIndex
	}
	// The configuration at a cut before the last change is not known. Changes
	// are rare, so the log waits for the cut to pass it.
	if target <= trunc.index || target < durable.confIndex {
		return flush, nil
	}
	cut := truncated{index: target, confIndex: durable.confIndex, conf: durable.conf}
	if cut.term, err = r.l.Term(target); err != nil {
		return false, ignoreCut(err)
	}
	if cut.bytes, err = r.l.bytesThrough(target); err != nil {
		return false, ignoreCut(err)
	}
	r.h.failpoint(r.id, FailCutting)
	r.h.writer.push(&logWrite{r: r, cut: &cut})
	return flush, nil
}

// ignoreCut drops the error of a read that a snapshot install overtook.
func ignoreCut(err error) error {
	if err == raft.ErrCompacted || err == raft.ErrUnavailable {
		return nil
	}
	return err
}

// neededFrom lowers target to what live peers and snapshots under way need.
func (r *replica) neededFrom(target uint64) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.sending {
		target = min(target, t.index)
	}
	if r.fault != nil || r.role != raft.StateLeader {
		return target
	}
	r.raw.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if r.liveLocked(id) && p.State != tracker.StateSnapshot {
			target = min(target, p.Match)
		}
	})
	return target
}

// lastWithin returns the first index after which at most limit bytes of
// entries are left.
func (l *groupLog) lastWithin(limit uint64) (uint64, error) {
	first, last := l.bounds()
	total, err := l.bytesThrough(last)
	if err != nil {
		return 0, err
	}
	n := sort.Search(int(last-first+1), func(i int) bool {
		through, e := l.bytesThrough(first + uint64(i))
		if e != nil {
			err = e
			return true
		}
		return total-through <= limit
	})
	return min(first+uint64(n), last), err
}
