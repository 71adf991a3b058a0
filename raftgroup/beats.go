package raftgroup

import (
	"slices"
	"sync"

	"dfsd/dfs"
)

// sign is what a host says of itself in each of its heartbeats: its start, and
// how often in it something happened that a sleeping replica elsewhere has to
// wake for although no message of its group may ever reach it.
type sign struct{ start, alarms uint64 }

func (s sign) before(o sign) bool {
	return s.start < o.start || s.start == o.start && s.alarms < o.alarms
}

// beats are the heartbeats of hosts, which stand for those of all replicas that
// sleep. They are counted in ticks of this host.
//
//	unheard ──heartbeat──▶ heard ──an election time-out without one──▶ unheard
//	                        │  ▲
//	                        └──┘ a newer sign
//
// Each of these transitions is news: the replicas that it concerns wake.
type beats struct {
	limit uint64 // ticks of silence after which a host is unheard: an election time-out

	mu    sync.Mutex
	now   uint64
	own   sign
	peers map[dfs.NodeID]*peer // those that are heard
	news  []dfs.NodeID         // since the last tick; each at most once
}

// peer is a host that is heard.
type peer struct {
	sign
	last  uint64 // tick of its last heartbeat
	since uint64 // the first tick before which it was heard, always with this sign
}

func newBeats(limit int) *beats {
	return &beats{limit: uint64(limit), peers: map[dfs.NodeID]*peer{}}
}

// tick advances time and returns the nodes of which there is news, ascending.
func (b *beats) tick() []dfs.NodeID {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now++
	for id, p := range b.peers {
		if b.now-p.last >= b.limit {
			delete(b.peers, id)
			b.tellLocked(id)
		}
	}
	news := b.news
	b.news = nil
	slices.Sort(news)
	return news
}

func (b *beats) tellLocked(id dfs.NodeID) {
	if !slices.Contains(b.news, id) {
		b.news = append(b.news, id)
	}
}

// hear notes a heartbeat. One that was overtaken by a newer sign says nothing.
func (b *beats) hear(from dfs.NodeID, s sign) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.peers[from]
	switch {
	case p != nil && s.before(p.sign):
		return
	case p == nil || s != p.sign:
		p = &peer{sign: s, since: b.now + 1}
		b.peers[from] = p
		b.tellLocked(from)
	}
	p.last = b.now
}

// alarm makes all replicas wake that sleep in a group with this host.
func (b *beats) alarm() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.own.alarms++
}

// self returns this host's tick and sign.
func (b *beats) self() (now uint64, own sign) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now, b.own
}

// says reports whether a node is heard, and with this sign.
func (b *beats) says(id dfs.NodeID, s sign) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.peers[id]
	return p != nil && p.sign == s
}

// heardSince returns how many ticks ago a node was last heard; ok is false
// unless it has been heard, always with one sign, since a tick.
func (b *beats) heardSince(id dfs.NodeID, since uint64) (age uint64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.peers[id]
	if p == nil || p.since > since {
		return 0, false
	}
	return b.now - p.last, true
}

// sharers lists the other members of this host's groups, ascending.
func (h *Host) sharers() []dfs.NodeID {
	seen := map[dfs.NodeID]bool{h.opts.Node: true}
	var out []dfs.NodeID
	note := func(ids []uint64) {
		for _, id := range ids {
			if n := dfs.NodeID(id); !seen[n] {
				seen[n] = true
				out = append(out, n)
			}
		}
	}
	for _, r := range h.sorted() {
		c := r.state.members()
		note(c.GetVoters())
		note(c.GetVotersOutgoing())
		note(c.GetLearners())
	}
	slices.Sort(out)
	return out
}

// sendBeats queues this host's heartbeat to the given nodes.
func (h *Host) sendBeats(to []dfs.NodeID, out *outbox) {
	_, own := h.beats.self()
	for _, n := range to {
		out.add(n, LaneControl, &frame{kind: frameBeat, sign: own})
	}
	out.flush()
}
