package control

import (
	"encoding/binary"
	"maps"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/repair"
	"dfsd/transport/wire"
)

const (
	markOfNode  = 'n'
	markOfStore = 's'
)

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
	case op.Incarnation.GetMark() == 0 || op.Incarnation.GetStart() <= op.Found:
		return dfs.Errorf(dfs.Invalid, "register "+op.Name, "malformed incarnation")
	case ev.st.LastNode == 0 && op.Name != ev.st.Form.Metas[0]:
		return dfs.Errorf(dfs.Unavailable, "register "+op.Name, "%s makes this cluster and has not registered yet", ev.st.Form.Metas[0])
	case len(op.Stores) > dfs.MaxStoresPerNode:
		return dfs.Errorf(dfs.TooLarge, "register "+op.Name, "%d stores: at most %d", len(op.Stores), dfs.MaxStoresPerNode)
	}
	for _, s := range op.Stores {
		if s.Incarnation.GetMark() == 0 || s.Incarnation.GetStart() <= s.Found {
			return dfs.Errorf(dfs.Invalid, "register "+op.Name, "malformed incarnation of a store")
		}
	}
	return nil
}

func (ev *entry) registerNode(op *wire.RegisterRequest) (dfs.NodeID, error) {
	inc := op.Incarnation.ToDFS()
	known, err := ev.byMark(markOfNode, inc.Mark)
	if err != nil {
		return 0, err
	}
	id := dfs.NodeID(known)
	if id == 0 {
		if op.Node != 0 {
			return 0, dfs.Errorf(dfs.Invalid, "register "+op.Name, "node %d was never registered with this data directory", op.Node)
		}
		return ev.newNode(op, inc)
	}
	n := ev.m.Node(id)
	switch {
	case op.Node != 0 && dfs.NodeID(op.Node) != id:
		return 0, dfs.Errorf(dfs.Invalid, "register "+op.Name, "the data directory is that of node %v, not n%d", id, op.Node)
	case n.Replaced:
		return 0, dfs.Errorf(dfs.Stale, "register "+op.Name, "another data directory took this name over; empty the directory to join as a new node")
	case n.Name != op.Name:
		return 0, dfs.Errorf(dfs.Invalid, "register "+op.Name, "the data directory is that of node %q", n.Name)
	case !sameDirectory(n.Incarnation, inc, op.Found) || inc.Start == n.Incarnation.Start && n.Addr != op.Addr:
		return 0, dfs.Errorf(dfs.Stale, "register "+op.Name, "the data directory is a copy or was rolled back: it is at start %d, the cluster saw %d; empty it to join as a new node", inc.Start, n.Incarnation.Start)
	}
	if n.Incarnation == inc && n.Addr == op.Addr && n.Roles == dfs.Role(op.Roles) && n.Release == op.Release && maps.Equal(n.Labels, op.Labels) {
		return id, nil
	}
	n = ev.node(id)
	n.Incarnation, n.Addr, n.Roles, n.Release, n.Labels = inc, op.Addr, dfs.Role(op.Roles), op.Release, op.Labels
	return id, nil
}

// newNode enters a node that was never seen. One that takes the name of
// another over replaces it for good: the old data directory is gone.
func (ev *entry) newNode(op *wire.RegisterRequest, inc dfs.Incarnation) (dfs.NodeID, error) {
	for _, n := range ev.m.Nodes {
		if n.Name != op.Name || n.Replaced {
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
	ev.setMark(markOfNode, inc.Mark, uint32(id))
	return id, nil
}

func (ev *entry) registerStore(node dfs.NodeID, op *wire.RegisterStore) (dfs.StoreID, error) {
	inc := op.Incarnation.ToDFS()
	known, err := ev.byMark(markOfStore, inc.Mark)
	if err != nil {
		return 0, err
	}
	id := dfs.StoreID(known)
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
		ev.setMark(markOfStore, inc.Mark, uint32(id))
		return id, nil
	}
	s := ev.m.Store(id)
	switch {
	case op.Store != 0 && dfs.StoreID(op.Store) != id:
		return 0, dfs.Errorf(dfs.Invalid, "register store", "the directory is that of store %v, not s%d", id, op.Store)
	case s.Node != node && ev.m.Node(s.Node).Name != ev.m.Node(node).Name:
		return 0, dfs.Errorf(dfs.Invalid, "register store", "store %v belongs to node %q: put the disk back, or empty its directory", id, ev.m.Node(s.Node).Name)
	case !sameDirectory(s.Incarnation, inc, op.Found):
		return 0, dfs.Errorf(dfs.Stale, "register store", "the directory of store %v is a copy or was rolled back: it is at start %d, the cluster saw %d; empty it to have it filled anew", id, inc.Start, s.Incarnation.Start)
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

// sameDirectory reports whether a start belongs to the directory on record:
// the same start again, or a later one that found at least what was recorded.
func sameDirectory(on dfs.Incarnation, inc dfs.Incarnation, found uint64) bool {
	return on.Mark == inc.Mark && (inc.Start == on.Start || found >= on.Start)
}

// byMark finds the ID that an incarnation mark was given; 0 is none.
func (ev *entry) byMark(kind byte, mark uint64) (uint32, error) {
	v, ok := ev.marks[mark]
	if !ok {
		var err error
		if v, ok, err = ev.tx.Get(key64(tagIncarnations, mark)); err != nil || !ok {
			return 0, err
		}
	}
	if len(v) != 5 || v[0] != kind {
		return 0, dfs.Errorf(dfs.Invalid, "register", "incarnation mark %016x is in use for something else", mark)
	}
	return binary.BigEndian.Uint32(v[1:]), nil
}

func (ev *entry) setMark(kind byte, mark uint64, id uint32) {
	ev.marks[mark] = binary.BigEndian.AppendUint32([]byte{kind}, id)
}
