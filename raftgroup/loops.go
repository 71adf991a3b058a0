package raftgroup

import (
	"time"

	"dfsd/dfs"
)

// maxTake bounds the replicas that one worker steps before it sends what came
// of it, so that the heartbeats of many groups share a batch.
const maxTake = 64

// work is one worker: it steps replicas and sends what comes of it.
func (h *Host) work() {
	out := newOutbox(h)
	var taken []*replica
	for {
		taken = h.workers.take(taken[:0], h.opts.Workers, maxTake)
		if len(taken) == 0 {
			return
		}
		if len(taken) == 1 {
			h.drive(taken[0], out, true)
			taken[0] = nil
			continue
		}
		for _, r := range taken {
			if h.step(r, out) > 0 {
				h.appliers.schedule(r)
			}
		}
		out.flush()
		for i, r := range taken {
			h.workers.done(r)
			taken[i] = nil
		}
	}
}

// step runs one round of a replica that a worker has, and returns how many
// committed entries wait for an applier.
func (h *Host) step(r *replica, out *outbox) int {
	rd := r.round(out)
	h.finishRound(r, &rd, out)
	return rd.apply
}

// maxDriven is how many committed entries are applied by who drives a replica.
const maxDriven = 4

// drive works for one replica, which the caller has taken, for as long as the
// next step is not worth waking another goroutine. With apply it is its own
// applier for a few entries, but one caller at a time is that: a state store that
// stalls must not stop all workers.
func (h *Host) drive(r *replica, out *outbox, apply bool) {
	for {
		n := h.step(r, out)
		out.flush()
		h.workers.done(r)
		if n == 0 {
			return
		}
		if !apply || n > maxDriven || !h.applying.TryLock() {
			h.appliers.schedule(r)
			return
		}
		applied := h.appliers.claim(r) && h.applyOne(r)
		h.applying.Unlock()
		if !applied || !h.workers.claim(r) {
			return
		}
	}
}

// finishRound does what a round left to be done without locks.
func (h *Host) finishRound(r *replica, rd *round, out *outbox) {
	for _, to := range rd.removed {
		out.add(to, LaneControl, &frame{kind: frameRemoved, group: r.id, generation: r.generation, removed: rd.removedAt})
	}
	for _, d := range rd.differs {
		out.add(d.to, LaneControl, &frame{kind: frameDiffers, group: r.id, generation: r.generation, differs: d.index})
	}
	for _, to := range rd.wantState {
		out.add(to, LaneControl, &frame{kind: frameNeedState, group: r.id, generation: r.generation})
	}
	for _, m := range rd.snapshots {
		h.sendSnapshot(r, dfs.NodeID(m.GetTo()), m.GetTerm())
	}
	if f := h.opts.OnLeaderChange; f != nil && rd.leaderChanged {
		f(r.id, dfs.NodeID(rd.lead), rd.term)
	}
}

// applyAll is one applier.
func (h *Host) applyAll() {
	var taken []*replica
	for {
		taken = h.appliers.take(taken[:0], h.opts.Workers, 1)
		if len(taken) == 0 {
			return
		}
		if r := taken[0]; h.applyOne(r) {
			h.workers.schedule(r)
		}
	}
}

// applyOne applies what is next for a replica that an applier has, and reports
// whether a worker has to look at the outcome.
func (h *Host) applyOne(r *replica) bool {
	applied := r.applyNext()
	h.appliers.done(r)
	return applied
}

// tick advances time for the replicas that are awake, and sends the heartbeats
// of this host, which serve all that sleep.
func (h *Host) tick() {
	t := time.NewTicker(h.opts.Tick)
	defer t.Stop()
	out := newOutbox(h)
	var awake []*replica
	var sharers []dfs.NodeID
	for n := 0; ; n++ {
		select {
		case <-t.C:
		case <-h.ctx.Done():
			return
		}
		for _, node := range h.beats.tick() {
			for _, r := range h.sorted() {
				r.wakeFor(node)
			}
		}
		if n%h.opts.ElectionTicks == 0 {
			sharers = h.sharers()
		}
		if n%h.opts.HeartbeatTicks == 0 {
			h.sendBeats(sharers, out)
		}
		awake = h.awake.appendTo(awake[:0])
		for _, r := range awake {
			r.in.addTick()
			h.workers.schedule(r)
		}
		clear(awake)
	}
}
