package raftgroup

import (
	"cmp"
	"slices"
	"sync"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"dfsd/dfs"
)

// A group that is idle sleeps: no replica of it ticks, and nothing is sent.
//
//	awake ──leader: idle, all that are heard have everything──▶ asleep
//	  ▲     follower: its leader's quiesce frame, and it agrees    │
//	  │     outsider: nothing to do                                │
//	  └── anything comes for it; news of its leader's node; ───────┘
//	      on a leader: news of a member's node
//
// A replica that does not agree stays awake, and wakes the others by its
// campaign. Waking never waits for anybody: a leader that wakes sends
// heartbeats, which wake its followers. While a replica sleeps, the heartbeats
// of nodes stand for those of its leader or members.

// quietTicks is for how long a leader that is about to sleep sends no heartbeat,
// so that no answer that is under way wakes it at once.
func (o *Options) quietTicks() uint64 { return uint64(min(2, o.ElectionTicks/4)) }

// awakeSet holds the replicas that tick.
type awakeSet struct {
	mu   sync.Mutex
	list []*replica // ascending by group
}

func (s *awakeSet) find(r *replica) (int, bool) {
	return slices.BinarySearchFunc(s.list, r.id, func(o *replica, g dfs.GroupID) int { return cmp.Compare(o.id, g) })
}

func (s *awakeSet) add(r *replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, ok := s.find(r); !ok {
		s.list = slices.Insert(s.list, i, r)
	}
}

func (s *awakeSet) remove(r *replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, ok := s.find(r); ok {
		s.list = slices.Delete(s.list, i, i+1)
	}
}

func (s *awakeSet) appendTo(buf []*replica) []*replica {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(buf, s.list...)
}

// idle reports whether there is nothing but ticks.
func (l *inboxLoad) idle() bool {
	return len(l.frames)+len(l.local)+len(l.unreachable)+len(l.installs)+len(l.proposals) == 0
}

// busy reports whether there is more than ticks and answers to heartbeats.
func (l *inboxLoad) busy() bool {
	for i := range l.frames {
		if m := l.frames[i].msg; m.GetType() != pb.MsgHeartbeatResp || len(m.GetContext()) > 0 {
			return true
		}
	}
	return len(l.local)+len(l.unreachable)+len(l.installs)+len(l.proposals) > 0
}

// rousedLocked reports whether a replica that sleeps has a reason to wake.
func (r *replica) rousedLocked(got *inboxLoad) bool {
	return !got.idle() || r.reads.pending() || r.raw.HasReady()
}

// timeLocked is the tick of this replica, those that it has slept through
// included.
func (r *replica) timeLocked() uint64 {
	if !r.asleep {
		return r.ticks
	}
	now, _ := r.h.beats.self()
	return r.ticks + now - r.slept
}

// wakeLocked goes on as if the heartbeats of nodes had been those of replicas.
func (r *replica) wakeLocked() {
	if !r.asleep {
		return
	}
	shown := r.ticks - r.seen[r.lead] // by the library's election clock
	r.ticks = r.timeLocked()
	r.asleep = false
	r.nap.Store(0)
	r.busy = r.ticks
	r.h.awake.add(r)
	r.raw.WithProgress(func(id uint64, _ raft.ProgressType, _ tracker.Progress) {
		if age, ok := r.h.beats.heardSince(dfs.NodeID(id), r.slept); ok {
			at := r.ticks - min(age, r.ticks)
			r.seen[id] = max(r.seen[id], at)
			r.answered[id] = max(r.answered[id], at)
		}
	})
	if r.lead == raft.None || r.lead == uint64(r.h.opts.Node) {
		return
	}
	silent, heard := r.h.beats.heardSince(dfs.NodeID(r.lead), r.slept)
	if !heard {
		silent = r.h.beats.limit
	}
	for ; shown < silent; shown++ {
		r.raw.Tick()
	}
}

// wakeFor wakes a replica that leans on a node, which has fallen silent, is
// heard again, or is not what it was. What that node's replica answered before
// does not count: a leader stays awake until it has answered again, and so knows
// its leader.
func (r *replica) wakeFor(node dfs.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	leans := r.lead == uint64(node) || r.role == raft.StateLeader && isMember(r.state.members(), node)
	if r.fault != nil || !leans {
		return
	}
	delete(r.answered, uint64(node))
	if !r.asleep {
		return
	}
	r.guardLocked(r.wakeLocked)
	r.h.workers.schedule(r)
}

// restLocked ends a round: the replica goes to sleep if it may.
func (r *replica) restLocked(got *inboxLoad, rd *round, out *outbox) {
	switch {
	case r.raw.HasReady() || !r.restfulLocked():
	case rd.quiesce != nil:
		if r.agreesLocked(rd.quiesce) {
			r.sleepLocked()
		}
	case got.ticks == 0:
	case r.drowsyLocked():
		if r.ticks-r.lastFrame >= r.h.opts.quietTicks() {
			r.quiesceLocked(out)
		}
	case r.lead == raft.None && (r.passive || !r.memberLocked()):
		r.sleepLocked()
	}
}

// restfulLocked reports whether nothing of this replica waits for time to pass.
func (r *replica) restfulLocked() bool {
	return !r.state.unfit() && len(r.sending)+len(r.held) == 0 && r.proposals.none() && r.reads.none()
}

func (r *replica) memberLocked() bool {
	_, ok := r.progressLocked()[uint64(r.h.opts.Node)]
	return ok
}

func (r *replica) sleepLocked() {
	r.asleep = true
	r.naps++
	r.nap.Store(r.naps)
	r.slept, _ = r.h.beats.self()
	r.h.awake.remove(r)
}

// drowsyLocked reports whether this replica leads a group that has been idle for
// long enough and may sleep. Such a leader sends no heartbeats.
func (r *replica) drowsyLocked() bool {
	return r.role == raft.StateLeader && r.ticks-r.busy >= uint64(r.h.opts.QuiesceTicks) && r.restfulLocked() && r.settledLocked()
}

// sleepsLocked reports whether a leader that says nothing may be asleep: its node
// was heard, with one sign, for an election time-out.
func (r *replica) sleepsLocked(lead uint64) bool {
	now, _ := r.h.beats.self()
	_, heard := r.h.beats.heardSince(dfs.NodeID(lead), now-min(now, r.h.beats.limit))
	return heard
}

// settledLocked reports whether, on a leader, every member that is heard has
// everything, and a majority is heard. Of a voter either both the node and the
// replica are heard, or neither: then the group does not wait for it, and wakes
// when the node is heard again. For a learner it waits: one without a log yet knows
// of no member that its node would send heartbeats to.
func (r *replica) settledLocked() bool {
	st, now := r.raw.BasicStatus(), r.state.now()
	if st.RaftState != raft.StateLeader || st.LeadTransferee != raft.None || len(now.conf.GetVotersOutgoing()) > 0 ||
		st.GetCommit() != r.logEnd || st.Applied != r.logEnd || now.index != r.logEnd || now.term != st.GetTerm() {
		return false
	}
	tick, _ := r.h.beats.self()
	settled, voters, heard := true, 0, 0
	r.raw.WithProgress(func(id uint64, typ raft.ProgressType, p tracker.Progress) {
		replica := r.heardLocked(id)
		if id != uint64(r.h.opts.Node) {
			_, node := r.h.beats.heardSince(dfs.NodeID(id), tick)
			settled = settled && node == replica && (!replica || p.Match == r.logEnd)
		}
		if typ == raft.ProgressTypeLearner {
			settled = settled && replica
		} else {
			voters++
			if replica {
				heard++
			}
		}
	})
	return settled && heard > voters/2
}

// quiesceLocked puts the group to sleep.
func (r *replica) quiesceLocked(out *outbox) {
	_, own := r.h.beats.self()
	f := frame{kind: frameQuiesce, group: r.id, generation: r.generation, term: r.term, index: r.logEnd, sign: own}
	r.raw.WithProgress(func(id uint64, _ raft.ProgressType, _ tracker.Progress) {
		if id != uint64(r.h.opts.Node) {
			out.add(dfs.NodeID(id), LaneControl, &f)
		}
	})
	r.sleepLocked()
}

// agreesLocked reports whether a follower is where its leader says that all are.
// The last entry is one of the leader's own term, so its index and term name it.
func (r *replica) agreesLocked(f *frame) bool {
	st, now := r.raw.BasicStatus(), r.state.now()
	return st.RaftState == raft.StateFollower && !r.passive &&
		st.Lead == uint64(f.from) && r.lead == st.Lead && st.GetTerm() == f.term &&
		st.GetCommit() == f.index && st.Applied == f.index && r.logEnd == f.index &&
		now.index == f.index && now.term == f.term &&
		r.h.beats.says(f.from, f.sign)
}

// removes reports whether a change takes a member away.
func removes(cc *pb.ConfChangeV2) bool {
	return slices.ContainsFunc(cc.GetChanges(), func(c *pb.ConfChangeSingle) bool {
		return c.GetType() == pb.ConfChangeType_ConfChangeRemoveNode
	})
}
