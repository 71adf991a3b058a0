package wire

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"

	"dfsd/dfs"
)

// Ints converts a list of identifiers to the form of a message.
func Ints[T ~uint32](in []T) []uint32 {
	out := make([]uint32, len(in))
	for i, v := range in {
		out[i] = uint32(v)
	}
	return out
}

// IDs converts a list of a message to identifiers.
func IDs[T ~uint32](in []uint32) []T {
	out := make([]T, len(in))
	for i, v := range in {
		out[i] = T(v)
	}
	return out
}

// FromIncarnation converts to the form of a message.
func FromIncarnation(i dfs.Incarnation) *Incarnation {
	return &Incarnation{Mark: i.Mark, Start: i.Start}
}

// ToDFS converts from the form of a message; nil is the zero value.
func (i *Incarnation) ToDFS() dfs.Incarnation {
	return dfs.Incarnation{Mark: i.GetMark(), Start: i.GetStart()}
}

// FromLineage converts to the form of a message.
func FromLineage(l dfs.Lineage) *Lineage {
	return &Lineage{Accepted: l.Accepted, Offered: l.Offered}
}

// ToDFS converts from the form of a message; nil is the zero value.
func (l *Lineage) ToDFS() dfs.Lineage {
	return dfs.Lineage{Accepted: l.GetAccepted(), Offered: l.GetOffered()}
}

// FromNode, FromStore, FromPG and FromMap convert to the form of a message.
func FromNode(n *dfs.Node) *MapNode {
	return &MapNode{
		Id: uint32(n.ID), Name: n.Name, Addr: n.Addr, Roles: uint32(n.Roles), Incarnation: FromIncarnation(n.Incarnation),
		Release: n.Release, Labels: n.Labels, Replaced: n.Replaced,
	}
}

// FromStore converts a store.
func FromStore(s *dfs.Store) *MapStore {
	return &MapStore{
		Id: uint32(s.ID), Node: uint32(s.Node), Incarnation: FromIncarnation(s.Incarnation), Capacity: s.Capacity,
		State: uint32(s.State), StateSince: s.StateSince,
	}
}

// FromPG converts a placement group.
func FromPG(p *dfs.PG) *MapPG {
	m := &MapPG{Id: uint32(p.ID), Class: p.Class.String(), Target: Ints(p.Target), Active: fromActing(p.Active), Proposed: fromActing(p.Proposed)}
	for _, mem := range p.Members {
		m.Members = append(m.Members, &MapMember{Store: uint32(mem.Store), Mark: mem.Mark, Complete: uint64(mem.Complete), Joined: uint64(mem.Joined)})
	}
	return m
}

// FromGroup converts a Raft group.
func FromGroup(g *dfs.Group) *MapGroup {
	return &MapGroup{Id: uint32(g.ID), Founder: uint32(g.Founder), Replicas: Ints(g.Replicas)}
}

// FromMap converts a whole map.
func FromMap(m *dfs.Map) *ClusterMap {
	c := &ClusterMap{
		Cluster: m.Cluster.Bytes(), Epoch: uint64(m.Epoch),
		DefaultClass: m.DefaultClass.String(), BlockSize: uint32(m.BlockSize),
	}
	for _, g := range m.Groups {
		c.Groups = append(c.Groups, FromGroup(g))
	}
	for _, n := range m.Nodes {
		c.Nodes = append(c.Nodes, FromNode(n))
	}
	for _, s := range m.Stores {
		c.Stores = append(c.Stores, FromStore(s))
	}
	for _, p := range m.PGs {
		c.Pgs = append(c.Pgs, FromPG(p))
	}
	for _, s := range m.Settings {
		c.Settings = append(c.Settings, FromClassSetting(s))
	}
	return c
}

// FromClassSetting converts the setting of a class.
func FromClassSetting(s dfs.ClassSetting) *ClassSetting {
	codec := uint32(s.Codec)
	return &ClassSetting{Class: s.Class.String(), Codec: &codec}
}

// ToDFS converts from the form of a message. A codec that is absent, or no codec,
// is the default.
func (s *ClassSetting) ToDFS() (dfs.ClassSetting, error) {
	class, err := dfs.ParseClass(s.GetClass())
	out := dfs.ClassSetting{Class: class, Codec: dfs.DefaultCodec}
	if s.GetCodec() <= 255 && s != nil && s.Codec != nil {
		out.Codec = dfs.Codec(*s.Codec)
	}
	return out, err
}

func fromActing(a dfs.ActingSet) *MapActing {
	if a.Epoch == 0 {
		return nil
	}
	return &MapActing{Epoch: uint64(a.Epoch), Stores: Ints(a.Stores)}
}

func (a *MapActing) toDFS() dfs.ActingSet {
	if a == nil {
		return dfs.ActingSet{}
	}
	return dfs.ActingSet{Epoch: dfs.Epoch(a.Epoch), Stores: IDs[dfs.StoreID](a.Stores)}
}

// ToDFS converts from the form of a message.
func (n *MapNode) ToDFS() *dfs.Node {
	return &dfs.Node{
		ID: dfs.NodeID(n.Id), Name: n.Name, Addr: n.Addr, Roles: dfs.Role(n.Roles), Incarnation: n.Incarnation.ToDFS(),
		Release: n.Release, Labels: n.Labels, Replaced: n.Replaced,
	}
}

// ToDFS converts from the form of a message.
func (s *MapStore) ToDFS() *dfs.Store {
	return &dfs.Store{
		ID: dfs.StoreID(s.Id), Node: dfs.NodeID(s.Node), Incarnation: s.Incarnation.ToDFS(), Capacity: s.Capacity,
		State: dfs.StoreState(s.State), StateSince: s.StateSince,
	}
}

// ToDFS converts from the form of a message.
func (p *MapPG) ToDFS() (*dfs.PG, error) {
	class, err := dfs.ParseClass(p.Class)
	if err != nil {
		return nil, err
	}
	out := &dfs.PG{
		ID: dfs.PGID(p.Id), Class: class, Target: IDs[dfs.StoreID](p.Target), Active: p.Active.toDFS(), Proposed: p.Proposed.toDFS(),
	}
	for _, m := range p.Members {
		out.Members = append(out.Members, dfs.Member{
			Store: dfs.StoreID(m.Store), Mark: m.Mark, Complete: dfs.Epoch(m.Complete), Joined: dfs.Epoch(m.Joined),
		})
	}
	return out, nil
}

// ToDFS converts from the form of a message and refuses a number or a list that
// no group has.
func (g *MapGroup) ToDFS() (*dfs.Group, error) {
	out := &dfs.Group{ID: dfs.GroupID(g.Id), Founder: dfs.NodeID(g.Founder), Replicas: IDs[dfs.NodeID](g.Replicas)}
	switch n := len(out.Replicas); {
	case g.Id > math.MaxUint16, n == 0, n > dfs.MaxReplicas, out.Replicas[0] == 0, !ascending(out.Replicas), g.Founder != 0 && !out.Has(out.Founder):
		return nil, dfs.Errorf(dfs.Invalid, "read map", "group %d has founder n%d and replicas %v", g.Id, g.Founder, g.Replicas)
	}
	return out, nil
}

// ascending reports whether a list is sorted and names nothing twice.
func ascending[T cmp.Ordered](in []T) bool {
	for i := range in {
		if i > 0 && in[i-1] >= in[i] {
			return false
		}
	}
	return true
}

// ToDFS converts from the form of a message and refuses what is not a map:
// lists out of order, unknown classes.
func (c *ClusterMap) ToDFS() (*dfs.Map, error) {
	id, err := dfs.ClusterIDFromBytes(c.Cluster)
	if err != nil {
		return nil, err
	}
	class, err := dfs.ParseClass(c.DefaultClass)
	if err != nil {
		return nil, err
	}
	m := &dfs.Map{Cluster: id, Epoch: dfs.Epoch(c.Epoch), DefaultClass: class, BlockSize: int(c.BlockSize)}
	if len(c.Groups) > dfs.MaxGroups+1 {
		return nil, dfs.Errorf(dfs.Invalid, "read map", "%d groups: at most %d", len(c.Groups), dfs.MaxGroups+1)
	}
	for i, g := range c.Groups {
		group, err := g.ToDFS()
		switch {
		case err != nil:
			return nil, err
		case i > 0 && m.Groups[i-1].ID >= group.ID:
			return nil, dfs.Errorf(dfs.Invalid, "read map", "groups are not sorted")
		}
		m.Groups = append(m.Groups, group)
	}
	for _, n := range c.Nodes {
		m.Nodes = append(m.Nodes, n.ToDFS())
	}
	for _, s := range c.Stores {
		m.Stores = append(m.Stores, s.ToDFS())
	}
	for _, p := range c.Pgs {
		pg, err := p.ToDFS()
		if err != nil {
			return nil, err
		}
		m.PGs = append(m.PGs, pg)
	}
	for _, s := range c.Settings {
		setting, err := s.ToDFS()
		if err != nil {
			return nil, err
		}
		m.Settings = append(m.Settings, setting)
	}
	sorted := slices.IsSortedFunc(m.Nodes, func(a, b *dfs.Node) int { return cmp.Compare(a.ID, b.ID) }) &&
		slices.IsSortedFunc(m.Stores, func(a, b *dfs.Store) int { return cmp.Compare(a.ID, b.ID) }) &&
		slices.IsSortedFunc(m.PGs, func(a, b *dfs.PG) int { return cmp.Compare(a.ID, b.ID) })
	for i := range m.Settings {
		sorted = sorted && (i == 0 || m.Settings[i-1].Class.Compare(m.Settings[i].Class) < 0)
	}
	if !sorted {
		return nil, dfs.Errorf(dfs.Invalid, "read map", "lists are not sorted")
	}
	return m, nil
}

// FromBlockInfo converts to the form of a message.
func FromBlockInfo(b *dfs.BlockInfo) *BlockDesc {
	d := &BlockDesc{Length: b.Length, Codec: uint32(b.Codec), Chunks: make([]byte, 0, 8*len(b.Chunks))}
	for _, c := range b.Chunks {
		d.Chunks = binary.BigEndian.AppendUint32(d.Chunks, c.Len)
		d.Chunks = binary.BigEndian.AppendUint32(d.Chunks, c.Sum)
	}
	return d
}

// ToDFS converts from the form of a message and validates it.
func (d *BlockDesc) ToDFS() (dfs.BlockInfo, error) {
	if d == nil || len(d.Chunks)%8 != 0 || d.Codec > 255 {
		return dfs.BlockInfo{}, dfs.Errorf(dfs.Invalid, "read block description", "malformed")
	}
	b := dfs.BlockInfo{Length: d.Length, Codec: dfs.Codec(d.Codec), Chunks: make([]dfs.Chunk, len(d.Chunks)/8)}
	for i := range b.Chunks {
		b.Chunks[i] = dfs.Chunk{Len: binary.BigEndian.Uint32(d.Chunks[8*i:]), Sum: binary.BigEndian.Uint32(d.Chunks[8*i+4:])}
	}
	return b, b.Validate()
}

// FromHint converts to the form of a message, nil for the zero value.
func FromHint(h dfs.Hint) *BlockHint {
	if h == (dfs.Hint{}) {
		return nil
	}
	return &BlockHint{Ino: uint64(h.Ino), Offset: h.Offset, Version: uint64(h.Version)}
}

// ToDFS converts from the form of a message.
func (h *BlockHint) ToDFS() dfs.Hint {
	return dfs.Hint{Ino: dfs.Ino(h.GetIno()), Offset: h.GetOffset(), Version: dfs.Version(h.GetVersion())}
}

// FromError returns err as one of many requests sends it.
func FromError(err error) *Refusal {
	r := &Refusal{Kind: uint32(dfs.SentKind(err)), Text: Text(err.Error())}
	var e *dfs.Error
	if errors.As(err, &e) {
		r.Leader = uint32(e.LeaderHint)
	}
	return r
}

// Text is s for a string of a message, which has to be valid UTF-8: paths and what
// others say need not be, and one such byte would keep all of the message from
// being sent.
func Text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// ToError returns the error that was sent.
func (r *Refusal) ToError() error {
	return &dfs.Error{Kind: dfs.Kind(r.GetKind()), Text: r.GetText(), LeaderHint: dfs.NodeID(r.GetLeader())}
}

// ToError returns a result's error, nil when it is done. Op and object are
// what the caller asked for.
func (r *Result) ToError(op, object string) error {
	if r.GetKind() == 0 && r.GetText() == "" {
		return nil
	}
	return &dfs.Error{Kind: dfs.Kind(r.Kind), Op: op, Object: object, Text: r.Text}
}
