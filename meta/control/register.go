package control

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/repair"
	"dfsd/transport/wire"
)

const (
	markOfNode  = 'n'
	markOfStore = 's'
)

// maxBarred bounds the copies of one directory that are barred. Each was started
// while the original was up; when there are more, the first may try again.
const maxBarred = 64

// register enters a node and its stores, or finds them as they were. It is
// idempotent: the same incarnation registers any number of times.
func (ev *entry) register(op *wire.RegisterRequest) (*wire.RegisterReply, error) {
	if err := ev.checkRegister(op); err != nil {
		return nil, err
	}
	id, err := ev.registerNode(op)
	if err != nil {
		return nil, err
	}
	reply := &wire.RegisterReply{Cluster: ev.st.Form.Cluster, Node: uint32(id)}
	for _, s := range op.Stores {
		sid, err := ev.registerStore(id, s)
		if err != nil {
			return nil, err
		}
		reply.Stores = append(reply.Stores, uint32(sid))
	}
	reply.Epoch = ev.st.Epoch
	if ev.changed {
		reply.Epoch++
		return reply, ev.checkRolls()
	}
	return reply, nil
}

// maxRollSize bounds the nodes and stores of the map (bytes, encoded): together
// with MaxPGs placement groups they have to fit into one message.
const maxRollSize = 256 << 10

// checkRolls refuses what would make the map too large to be sent.
func (ev *entry) checkRolls() error {
	size := 0
	for _, n := range ev.m.Nodes {
		size += proto.Size(wire.FromNode(n))
	}
	for _, s := range ev.m.Stores {
		size += proto.Size(wire.FromStore(s))
	}
	if size > maxRollSize {
		return dfs.Errorf(dfs.TooLarge, "register", "%d nodes and %d stores take %d bytes of the map: at most %d", len(ev.m.Nodes), len(ev.m.Stores), size, maxRollSize)
	}
	return nil
}

// maxLabels bounds the labels of a node.
const maxLabels = 16

func fitLabels(labels map[string]string) bool {
	for k, v := range labels {
		if len(k) > dfs.MaxName || len(v) > dfs.MaxName {
			return false
		}
	}
	return len(labels) <= maxLabels
}

// checkRegister refuses what is malformed, of another cluster, or too early:
// the founder is node 1 in every group before it can register, so it comes
// first.
func (ev *entry) checkRegister(op *wire.RegisterRequest) error {
	switch {
	case len(op.Cluster) > 0 && string(op.Cluster) != string(ev.st.Form.Cluster):
		return dfs.Errorf(dfs.WrongCluster, "register "+op.Name, "the data directory belongs to cluster %x, this is %x", op.Cluster, ev.st.Form.Cluster)
	case op.Name == "" || len(op.Name) > dfs.MaxName || op.Addr == "" || len(op.Addr) > dfs.MaxName || len(op.Release) > dfs.MaxName || !fitLabels(op.Labels):
		return dfs.Errorf(dfs.Invalid, "register", "name, address, release or labels are malformed")
	case dfs.Role(op.Roles)&(dfs.RoleMeta|dfs.RoleStorage) == 0:
		return dfs.Errorf(dfs.Invalid, "register "+op.Name, "no role")
	case !wellFormed(op.Incarnation, op.Lineage):
		return dfs.Errorf(dfs.Invalid, "register "+op.Name, "malformed incarnation")
	case ev.st.LastNode == 0 && op.Name != ev.st.Form.Metas[0]:
		return dfs.Errorf(dfs.Unavailable, "register "+op.Name, "%s makes this cluster and has not registered yet", ev.st.Form.Metas[0])
	case len(op.Stores) > dfs.MaxStoresPerNode:
		return dfs.Errorf(dfs.TooLarge, "register "+op.Name, "%d stores: at most %d", len(op.Stores), dfs.MaxStoresPerNode)
	}
	for _, s := range op.Stores {
		if !wellFormed(s.Incarnation, s.Lineage) {
			return dfs.Errorf(dfs.Invalid, "register "+op.Name, "malformed incarnation of a store")
		}
	}
	return nil
}

// wellFormed holds a registration to what every data directory does: a start is
// offered, and the offer synced, before it is sent.
func wellFormed(inc *wire.Incarnation, lineage *wire.Lineage) bool {
	return inc.GetMark() != 0 && len(lineage.GetOffered()) <= dfs.MaxOffered && lineage.ToDFS().Holds(inc.GetStart())
}

func (ev *entry) registerNode(op *wire.RegisterRequest) (dfs.NodeID, error) {
	inc := op.Incarnation.ToDFS()
	known, err := ev.byMark(markOfNode, inc.Mark)
	if err != nil {
		return 0, err
	}
	id := dfs.NodeID(known.id)
	if id == 0 {
		if op.Node != 0 {
			return 0, dfs.Errorf(dfs.Invalid, "register "+op.Name, "node %d was never registered with this data directory", op.Node)
		}
		return ev.newNode(op, inc)
	}
	n := ev.m.Node(id)
	if op.Node != 0 && dfs.NodeID(op.Node) != id {
		return 0, dfs.Errorf(dfs.Invalid, "register "+op.Name, "the data directory is that of node %v, not n%d", id, op.Node)
	}
	if err := ev.isDirectory(n, known, op); err != nil {
		return 0, err
	}
	if n.Incarnation == inc && n.Addr == op.Addr && n.Roles == dfs.Role(op.Roles) && n.Release == op.Release && maps.Equal(n.Labels, op.Labels) {
		return id, nil
	}
	n = ev.node(id)
	n.Incarnation, n.Addr, n.Roles, n.Release, n.Labels = inc, op.Addr, dfs.Role(op.Roles), op.Release, op.Labels
	return id, nil
}

// isDirectory refuses a start of any other directory than the one that a node is on
// record with.
func (ev *entry) isDirectory(n *dfs.Node, known markRow, op *wire.RegisterRequest) error {
	start := op.Incarnation.GetStart()
	switch {
	case n.Replaced:
		return dfs.Errorf(dfs.Stale, "register "+op.Name, "another data directory took this name over, or this one was given up as lost by dfsd group recover; empty the directory to join as a new node")
	case n.Name != op.Name:
		return dfs.Errorf(dfs.Invalid, "register "+op.Name, "the data directory is that of node %q", n.Name)
	case start == n.Incarnation.Start && n.Addr != op.Addr:
		return dfs.Errorf(dfs.Stale, "register "+op.Name, "start %v runs at %s already: this process is a copy of that one; end it, and give its machine an empty data directory", n.Incarnation, n.Addr)
	}
	if why := known.refuses(n.Incarnation, op.Lineage.ToDFS()); why != "" {
		return dfs.Errorf(dfs.Stale, "register "+op.Name, "the data directory %016x of node %v %s", n.Incarnation.Mark, n.ID, why)
	}
	return ev.holderGone(n, op)
}

// predecessor returns the node that a directory was before it took another mark,
// nil when it is nobody's.
func (ev *entry) predecessor(op *wire.RegisterRequest) (*dfs.Node, error) {
	if op.Replaces == 0 {
		return nil, nil
	}
	known, err := ev.byMark(markOfNode, op.Replaces)
	if err != nil {
		return nil, err
	}
	n := ev.m.Node(dfs.NodeID(known.id))
	if n == nil {
		return nil, dfs.Errorf(dfs.Invalid, "register "+op.Name, "the data directory %016x that it is to replace was never registered", op.Replaces)
	}
	return n, ev.isDirectory(n, known, op)
}

// holderGone refuses, for now, a start at another address while stores of the
// start on record are up: one of the two directories is a copy.
func (ev *entry) holderGone(n *dfs.Node, op *wire.RegisterRequest) error {
	if n.Incarnation.Start == op.Incarnation.Start || n.Addr == op.Addr {
		return nil // one address has one process
	}
	for _, s := range ev.m.Stores {
		if s.Node == n.ID && s.State == dfs.StoreUp {
			return dfs.Errorf(dfs.Exist, "register "+op.Name, "a start of this data directory is up at %s", n.Addr)
		}
	}
	return nil
}

// newNode enters a node that was never seen. One that takes the name of
// another over replaces it for good: the old data directory is gone. One that says
// which node it was, since its Raft log is damaged, takes the stores along.
func (ev *entry) newNode(op *wire.RegisterRequest, inc dfs.Incarnation) (dfs.NodeID, error) {
	old, err := ev.predecessor(op)
	if err != nil {
		return 0, err
	}
	for _, n := range ev.m.Nodes {
		if n.Name != op.Name || n.Replaced || n == old {
			continue
		}
		for _, s := range ev.m.Stores {
			if s.Node == n.ID && s.State == dfs.StoreUp {
				return 0, dfs.Errorf(dfs.Exist, "register "+op.Name, "a node of this name is up at %s", n.Addr)
			}
		}
		ev.node(n.ID).Replaced = true
	}
	ev.st.LastNode++
	id := dfs.NodeID(ev.st.LastNode)
	ev.m.Nodes = append(ev.m.Nodes, &dfs.Node{
		ID: id, Name: op.Name, Addr: op.Addr, Roles: dfs.Role(op.Roles), Incarnation: inc, Release: op.Release, Labels: op.Labels,
	})
	ev.node(id)
	ev.setMark(inc.Mark, markRow{kind: markOfNode, id: uint32(id)})
	if old == nil {
		return id, nil
	}
	ev.node(old.ID).Replaced = true
	for _, s := range ev.m.Stores {
		if s.Node == old.ID {
			ev.store(s.ID).Node = id
		}
	}
	return id, nil
}

func (ev *entry) registerStore(node dfs.NodeID, op *wire.RegisterStore) (dfs.StoreID, error) {
	inc := op.Incarnation.ToDFS()
	known, err := ev.byMark(markOfStore, inc.Mark)
	if err != nil {
		return 0, err
	}
	id := dfs.StoreID(known.id)
	if id == 0 {
		if op.Store != 0 {
			return 0, dfs.Errorf(dfs.Invalid, "register store", "store s%d was never registered with this data directory", op.Store)
		}
		ev.st.LastStore++
		id = dfs.StoreID(ev.st.LastStore)
		ev.m.Stores = append(ev.m.Stores, &dfs.Store{
			ID: id, Node: node, Incarnation: inc, Capacity: op.Capacity, State: dfs.StoreUp, StateSince: ev.now,
		})
		ev.store(id)
		ev.setMark(inc.Mark, markRow{kind: markOfStore, id: uint32(id)})
		return id, nil
	}
	s := ev.m.Store(id)
	switch {
	case op.Store != 0 && dfs.StoreID(op.Store) != id:
		return 0, dfs.Errorf(dfs.Invalid, "register store", "the directory is that of store %v, not s%d", id, op.Store)
	case s.Node != node && ev.m.Node(s.Node).Name != ev.m.Node(node).Name:
		return 0, dfs.Errorf(dfs.Invalid, "register store", "store %v belongs to node %q: put the disk back, or empty its directory", id, ev.m.Node(s.Node).Name)
	}
	if why := known.refuses(s.Incarnation, op.Lineage.ToDFS()); why != "" {
		return 0, dfs.Errorf(dfs.Stale, "register store", "the data directory %016x of store %v %s", inc.Mark, id, why)
	}
	if op.Incomplete && s.Incarnation != inc {
		for _, p := range ev.m.PGs {
			if p.Member(id) != nil {
				ev.setPG(repair.ResetMember(p, id, inc.Mark))
			}
		}
	}
	if s.Incarnation == inc && s.Node == node && s.Capacity == op.Capacity && s.State == dfs.StoreUp {
		return id, nil
	}
	s = ev.store(id)
	s.Incarnation, s.Node, s.Capacity = inc, node, op.Capacity
	if s.State != dfs.StoreUp {
		s.State, s.StateSince = dfs.StoreUp, ev.now
	}
	return id, nil
}

// markRow is what is on record about an incarnation mark.
type markRow struct {
	kind   byte
	id     uint32   // of the node or store; 0: the mark is new
	barred []uint64 // starts of copies: what has one in its lineage is refused for ever
}

// refuses says why a directory with this lineage is not the one whose start is on
// record, "" when it is. Every later start of that one holds the start on record;
// a copy, and a state from before it, never come to.
func (r *markRow) refuses(on dfs.Incarnation, lineage dfs.Lineage) string {
	const helps = "empty it: then it joins as new, and the cluster fills it"
	for _, start := range r.barred {
		if lineage.Holds(start) {
			return fmt.Sprintf("is a copy of one that was up when this was started (as %x); %s", start, helps)
		}
	}
	if !lineage.Holds(on.Start) {
		return fmt.Sprintf("is a copy of, or was rolled back behind, one that has since registered: start %x is on record; the last accepted one that this directory knows is %x, and it has offered %d since; %s",
			on.Start, lineage.Accepted, len(lineage.Offered), helps)
	}
	return ""
}

// bar refuses, for ever, what descends from a start that came while the start on
// record was up.
func (ev *entry) bar(op *wire.BarOp) error {
	row, err := ev.readMark(op.Mark)
	if err != nil {
		return err
	}
	if row.id == 0 || op.Start == 0 || row.kind == markOfNode && ev.m.Node(dfs.NodeID(row.id)).Incarnation.Start == op.Start {
		return dfs.Errorf(dfs.Stale, "bar copy", "start %016x of %016x is on record by now", op.Start, op.Mark)
	}
	if slices.Contains(row.barred, op.Start) {
		return nil
	}
	row.barred = append(row.barred, op.Start)
	row.barred = row.barred[max(0, len(row.barred)-maxBarred):]
	ev.setMark(op.Mark, row)
	return nil
}

// byMark reads the row of a mark, which may be that of one kind of thing only.
func (ev *entry) byMark(kind byte, mark uint64) (markRow, error) {
	row, err := ev.readMark(mark)
	if err == nil && row.id != 0 && row.kind != kind {
		err = dfs.Errorf(dfs.Invalid, "register", "incarnation mark %016x is in use for something else", mark)
	}
	return row, err
}

func (ev *entry) readMark(mark uint64) (markRow, error) {
	v, ok := ev.marks[mark]
	if !ok {
		var err error
		if v, ok, err = ev.tx.Get(key64(tagIncarnations, mark)); err != nil || !ok {
			return markRow{}, err
		}
	}
	if len(v) < 5 || len(v)%8 != 5 {
		return markRow{}, dfs.Errorf(dfs.Corrupt, "read control row", "mark %016x: %d bytes", mark, len(v))
	}
	row := markRow{kind: v[0], id: binary.BigEndian.Uint32(v[1:])}
	for v = v[5:]; len(v) > 0; v = v[8:] {
		row.barred = append(row.barred, binary.BigEndian.Uint64(v))
	}
	return row, nil
}

func (ev *entry) setMark(mark uint64, row markRow) { ev.marks[mark] = row.encode() }

func (r *markRow) encode() []byte {
	v := binary.BigEndian.AppendUint32([]byte{r.kind}, r.id)
	for _, start := range r.barred {
		v = binary.BigEndian.AppendUint64(v, start)
	}
	return v
}
