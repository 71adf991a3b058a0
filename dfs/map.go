package dfs

import (
	"cmp"
	"slices"
)

// StoreState is the control group's judgement of a store.
//
//	          declared by a majority           grace period over
//	┌────┐ ─────────────────────────▶ ┌──────┐ ─────────────────▶ ┌─────┐
//	│ up │                            │ down │                    │ out │
//	└────┘ ◀───────────────────────── └──────┘                    └─────┘
//	   ▲          registers again                                    │
//	   └─────────────────────────────────────────────────────────────┘
//
// Up stores may act. Down stores do not act, and stay in the target. Out
// stores do not act and are in no target: their share is refilled elsewhere.
type StoreState uint8

// The states of a store.
const (
	StoreUp StoreState = iota + 1
	StoreDown
	StoreOut
)

func (s StoreState) String() string {
	switch s {
	case StoreUp:
		return "up"
	case StoreDown:
		return "down"
	case StoreOut:
		return "out"
	}
	return "unknown"
}

// Node is what the map says of a node.
type Node struct {
	ID          NodeID
	Name        string // unique among the nodes that are not Replaced
	Addr        string // host:port of its RPC listener
	Roles       Role
	Incarnation Incarnation
	Release     string            // the software's version
	Labels      map[string]string // failure domains: rack, zone; host defaults to the name
	Replaced    bool              // another incarnation mark took the name over: this one never returns
}

// Store is what the map says of a store.
type Store struct {
	ID          StoreID
	Node        NodeID
	Incarnation Incarnation
	Capacity    uint64 // bytes; also its weight in placement
	State       StoreState
	StateSince  int64 // milliseconds since 1970 UTC, by the control leader's clock
}

// Group is what the map says of a Raft group: who should vote in it. Who does
// is in the group's own log; its leader brings the one to the other.
//
//	create ─▶ forming ──every listed replica votes──▶ ready
//	             └──the founder is gone: abandoned, and begun under the next number
type Group struct {
	ID       GroupID
	Founder  NodeID   // of a forming group: it alone makes a first replica; 0: ready
	Replicas []NodeID // that should vote; ascending, 1 to MaxReplicas
}

// Ready reports whether the group may be used.
func (g *Group) Ready() bool { return g.Founder == 0 }

// Has reports whether a node should vote in the group.
func (g *Group) Has(n NodeID) bool { return slices.Contains(g.Replicas, n) }

// ActingSet is a list of stores bound to the epoch that proposed it.
// Epoch 0: no set.
type ActingSet struct {
	Epoch  Epoch
	Stores []StoreID // sorted; for erasure codes positional, 0 is a hole
}

// Has reports whether the store is in the set.
func (a ActingSet) Has(s StoreID) bool { return s != 0 && slices.Contains(a.Stores, s) }

// Size is the number of stores, holes not counted.
func (a ActingSet) Size() int {
	n := 0
	for _, s := range a.Stores {
		if s != 0 {
			n++
		}
	}
	return n
}

// Member is what the control group knows of one store's share of a PG.
type Member struct {
	Store StoreID
	Mark  uint64 // incarnation mark that the facts below hold for

	// Complete is c: the member holds every acknowledged block of the PG with
	// epoch <= c. While a complete member stays acting, c follows the active
	// epoch.
	Complete Epoch

	// Joined is the epoch of the activation since which the member has been
	// acting without a break; 0 when it is not acting, or when it must be
	// activated anew before it may refill (a rolled-back disk).
	Joined Epoch
}

// PG is a placement group. See the package's map for the two-step change of
// its acting set: a proposal under a new epoch, which every proposed store
// persists, and the activation, after which clients see it.
type PG struct {
	ID       PGID
	Class    Class
	Target   []StoreID // where it should be; sorted
	Active   ActingSet // what clients use; Epoch 0: never activated
	Proposed ActingSet // not yet activated; Epoch 0: none. Invariant: Epoch > Active.Epoch
	Members  []Member  // sorted by store; each store that acts or acted
}

// Newest is the latest epoch the PG has in this map, proposals included: a
// store refuses requests under an earlier one.
func (p *PG) Newest() Epoch { return max(p.Active.Epoch, p.Proposed.Epoch) }

// Member returns the facts about a store, nil when it never was a member.
func (p *PG) Member(s StoreID) *Member {
	for i := range p.Members {
		if p.Members[i].Store == s {
			return &p.Members[i]
		}
	}
	return nil
}

// IsComplete reports whether the store is in the active set and holds every
// acknowledged block of the PG: only such members count as copies, deny the
// existence of a block, or are the source of a refill.
func (p *PG) IsComplete(s StoreID) bool {
	m := p.Member(s)
	return m != nil && p.Active.Epoch > 0 && p.Active.Has(s) && m.Complete >= p.Active.Epoch
}

// Complete returns the complete members, sorted.
func (p *PG) Complete() []StoreID {
	var out []StoreID
	for _, s := range p.Active.Stores {
		if s != 0 && p.IsComplete(s) {
			out = append(out, s)
		}
	}
	return out
}

// Writable reports whether the active set may take writes: at least the
// class's minimum, with nothing known to be in its way.
func (p *PG) Writable() bool {
	return p.Active.Epoch > 0 && p.Active.Size() >= p.Class.MinActing()
}

// Full reports whether every copy exists where it should be: the active set is
// the target, of full width, and all of it is complete.
func (p *PG) Full() bool {
	return p.Active.Epoch > 0 && p.Proposed.Epoch == 0 && p.Active.Size() >= p.Class.Width() &&
		slices.Equal(p.Active.Stores, p.Target) && len(p.Complete()) == p.Active.Size()
}

// TombstoneFloor is the epoch below which tombstones of the PG need not be kept by
// anybody any more; 0 and 1: all are kept. It follows from the map alone:
//
//	floor = 1 + the least c of all members, also of those that do not act
//
// A store may act on the highest floor that it ever learned, since:
//
//   - A delete ends when all acting members have acknowledged it under the active
//     epoch E. Those that are complete then have c = E, or go on to a later one;
//     those that refill hold it too. A member with c < E holds the floor at
//     c + 1 <= E until it has pulled the tombstones above c, or is no member
//     any more. A delete that only some have acknowledged stays in the delete queue,
//     and goes to all under the epoch that is active then.
//   - So a member with 0 < c has c + 1 >= every floor there ever was: what it lacks
//     is still there to be pulled. c falls to 0 only, and a store that comes back
//     after it was forgotten begins with 0. That one asks the owners about every
//     block that it has from before (storage/refill.go).
//   - While it refills, deletes come to it under the epoch j at which it joined, or a
//     later one. No floor is above j by then: the acting set had an earlier
//     epoch before. So these tombstones stay until its refill is over, and no block
//     that is on its way from a source gets past them.
//   - A put that was long under way and comes after the tombstone is gone leaves an
//     undecided block, which is asked about. Block IDs are never used twice, so
//     whatever comes back is space and never wrong bytes.
//
// The epoch of a tombstone may thus be that of the present acting set: a cluster in
// which nothing fails drops them, too.
func (p *PG) TombstoneFloor() Epoch {
	if p.Active.Epoch == 0 || p.Class.Erasure() {
		return 0
	}
	least := p.Active.Epoch
	for _, m := range p.Members {
		least = min(least, m.Complete)
	}
	return least + 1
}

// Clone returns a deep copy.
func (p *PG) Clone() *PG {
	c := *p
	c.Target = slices.Clone(p.Target)
	c.Active.Stores = slices.Clone(p.Active.Stores)
	c.Proposed.Stores = slices.Clone(p.Proposed.Stores)
	c.Members = slices.Clone(p.Members)
	return &c
}

// Map is the cluster map. A Map that has been published is never changed;
// every change makes a new one with a later Epoch.
type Map struct {
	Cluster      ClusterID
	Epoch        Epoch
	DefaultClass Class    // of files whose directory says nothing else
	BlockSize    int      // bytes
	Groups       []*Group // the control group first; numbers of abandoned ones are missing
	Nodes        []*Node
	Stores       []*Store
	PGs          []*PG          // each slice sorted by ID
	Settings     []ClassSetting // of classes for which something is set; sorted by class, at most one a class
}

// ClassSetting is what writers go by in a storage class.
type ClassSetting struct {
	Class Class
	Codec Codec // what new blocks are compressed with; it may be of a later release
}

// Codec is what new blocks of a class are compressed with, as far as this release
// can.
func (m *Map) Codec(class Class) Codec {
	i, ok := slices.BinarySearchFunc(m.Settings, class, func(s ClassSetting, c Class) int { return s.Class.Compare(c) })
	if !ok || !m.Settings[i].Codec.Known() {
		return DefaultCodec
	}
	return m.Settings[i].Codec
}

// Group returns a Raft group, nil when there is none.
func (m *Map) Group(id GroupID) *Group {
	i, ok := slices.BinarySearchFunc(m.Groups, id, func(g *Group, id GroupID) int { return cmp.Compare(g.ID, id) })
	if !ok {
		return nil
	}
	return m.Groups[i]
}

// Namespace returns the numbers of the namespace groups that are ready, ascending.
func (m *Map) Namespace() []GroupID {
	var out []GroupID
	for _, g := range m.Groups {
		if g.ID != ControlGroup && g.Ready() {
			out = append(out, g.ID)
		}
	}
	return out
}

// Node returns a node, nil when there is none.
func (m *Map) Node(id NodeID) *Node {
	i, ok := slices.BinarySearchFunc(m.Nodes, id, func(n *Node, id NodeID) int { return cmp.Compare(n.ID, id) })
	if !ok {
		return nil
	}
	return m.Nodes[i]
}

// Store returns a store, nil when there is none.
func (m *Map) Store(id StoreID) *Store {
	i, ok := slices.BinarySearchFunc(m.Stores, id, func(s *Store, id StoreID) int { return cmp.Compare(s.ID, id) })
	if !ok {
		return nil
	}
	return m.Stores[i]
}

// PG returns a placement group, nil when there is none.
func (m *Map) PG(id PGID) *PG {
	i, ok := slices.BinarySearchFunc(m.PGs, id, func(p *PG, id PGID) int { return cmp.Compare(p.ID, id) })
	if !ok {
		return nil
	}
	return m.PGs[i]
}

// StoreAddr returns the RPC address of the node that holds the store, "" when
// it is not known.
func (m *Map) StoreAddr(id StoreID) string {
	if s := m.Store(id); s != nil {
		if n := m.Node(s.Node); n != nil {
			return n.Addr
		}
	}
	return ""
}

// MetaNodes returns the meta nodes that are not replaced, by ID.
func (m *Map) MetaNodes() []*Node {
	var out []*Node
	for _, n := range m.Nodes {
		if n.Roles.Has(RoleMeta) && !n.Replaced {
			out = append(out, n)
		}
	}
	return out
}
