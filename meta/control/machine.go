package control

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/repair"
	"dfsd/transport/wire"
)

// Machine applies the control group's entries. It keeps the decoded map
// between entries; everything else is read through the transaction.
type Machine struct {
	rules repair.Rules

	m   *dfs.Map // as of revision; nil: read it from the transaction
	rev uint64
}

// New returns the state machine of the control group. Rules are those of
// placement groups; their zero value is right, others are for tests.
func New(rules repair.Rules) *Machine { return &Machine{rules: rules} }

// entry is the evaluation of one log entry.
type entry struct {
	tx    raftgroup.Tx
	rules repair.Rules
	st    *wire.ControlState
	m     *dfs.Map // a private copy of what this entry may change
	now   int64

	changed  bool // the map: its epoch is raised
	nodes    map[dfs.NodeID]bool
	stores   map[dfs.StoreID]bool
	pgs      map[dfs.PGID]bool
	groups   map[dfs.GroupID]bool
	marks    map[uint64][]byte // rows of incarnation marks that this entry changed
	sessions bool
}

// Apply implements raftgroup.StateMachine. Refusals are replies; an error is
// damage or a broken invariant.
func (mc *Machine) Apply(tx raftgroup.Tx, e raftgroup.Entry) ([]byte, error) {
	reply, err := mc.apply(tx, e.Data)
	if err != nil {
		var refused *dfs.Error
		if !errors.As(err, &refused) || refused.Kind == dfs.Corrupt || refused.Kind == dfs.Internal {
			mc.m = nil
			return nil, err
		}
		reply = &wire.ControlReply{Kind: uint32(refused.Kind), Text: refused.Error()}
	}
	return deterministic.Marshal(reply)
}

func (mc *Machine) apply(tx raftgroup.Tx, data []byte) (*wire.ControlReply, error) {
	ce := &wire.ControlEntry{}
	if err := proto.Unmarshal(data, ce); err != nil {
		return nil, dfs.Errorf(dfs.Invalid, "apply", "control entry is malformed")
	}
	st, err := ReadState(tx)
	if err != nil {
		return nil, err
	}
	if form := ce.GetForm(); form != nil {
		return mc.form(tx, st, form, ce.Now)
	}
	if st == nil {
		return nil, dfs.Errorf(dfs.Unavailable, "apply", "the cluster is not formed yet")
	}
	if mc.m == nil || mc.rev != st.Revision {
		if mc.m, err = readMap(tx, st); err != nil {
			return nil, err
		}
	}
	ev := &entry{
		tx: tx, rules: mc.rules, st: st, m: cloneMap(mc.m), now: max(st.Now, ce.Now),
		nodes: map[dfs.NodeID]bool{}, stores: map[dfs.StoreID]bool{}, pgs: map[dfs.PGID]bool{},
		groups: map[dfs.GroupID]bool{}, marks: map[uint64][]byte{},
	}
	reply, err := ev.dispatch(ce)
	if err != nil {
		return nil, err // nothing was written: a refused entry leaves no trace
	}
	if err := ev.finish(); err != nil {
		return nil, err
	}
	mc.m, mc.rev = ev.m, st.Revision
	return reply, nil
}

func (ev *entry) dispatch(ce *wire.ControlEntry) (*wire.ControlReply, error) {
	ok := &wire.ControlReply{}
	switch op := ce.Entry.(type) {
	case *wire.ControlEntry_Register:
		r, err := ev.register(op.Register)
		return &wire.ControlReply{Reply: &wire.ControlReply_Register{Register: r}}, err
	case *wire.ControlEntry_OpenSession:
		r, err := ev.openSession(op.OpenSession)
		return &wire.ControlReply{Reply: &wire.ControlReply_OpenSession{OpenSession: r}}, err
	case *wire.ControlEntry_CloseSession:
		return ok, ev.endSession(dfs.SessionID(op.CloseSession.Session))
	case *wire.ControlEntry_Expire:
		return ok, ev.expire(op.Expire.Sessions)
	case *wire.ControlEntry_Expired:
		return ok, ev.expired(op.Expired)
	case *wire.ControlEntry_Plan:
		return ok, ev.plan(op.Plan)
	case *wire.ControlEntry_RefillDone:
		return ok, ev.refillDone(op.RefillDone)
	case *wire.ControlEntry_WantClass:
		return ok, ev.wantClass(op.WantClass)
	case *wire.ControlEntry_SetClass:
		return ok, ev.setClass(op.SetClass.GetSetting())
	case *wire.ControlEntry_CreateGroup:
		r, err := ev.createGroup(op.CreateGroup.GetReplicas())
		return &wire.ControlReply{Reply: &wire.ControlReply_CreateGroup{CreateGroup: r}}, err
	case *wire.ControlEntry_GroupReady:
		return ok, ev.groupReady(op.GroupReady)
	case *wire.ControlEntry_ChangeReplicas:
		return ok, ev.changeReplicas(op.ChangeReplicas)
	case *wire.ControlEntry_Bar:
		return ok, ev.bar(op.Bar)
	case *wire.ControlEntry_Recovered:
		return ok, ev.recovered(op.Recovered)
	case *wire.ControlEntry_GiveUp:
		return ok, ev.giveUp(op.GiveUp)
	case *wire.ControlEntry_Acknowledge:
		return ok, ev.acknowledge()
	case *wire.ControlEntry_Formed:
		ev.st.Formed = true
		return ok, nil
	}
	return nil, dfs.Errorf(dfs.Unsupported, "apply", "control entry of an unknown kind")
}

// form makes the cluster.
func (mc *Machine) form(tx raftgroup.Tx, st *wire.ControlState, op *wire.FormOp, now int64) (*wire.ControlReply, error) {
	if st != nil {
		return nil, dfs.Errorf(dfs.Exist, "form cluster", "cluster %x exists", st.Form.Cluster)
	}
	if len(op.Cluster) != len(dfs.ClusterID{}) || op.Groups == 0 || op.Groups > dfs.MaxGroups || op.BlockSize == 0 || op.BlockSize > dfs.MaxBlockSize || op.PgsPerClass == 0 || len(op.Metas) == 0 {
		return nil, dfs.Errorf(dfs.Invalid, "form cluster", "malformed settings")
	}
	if _, err := dfs.ParseClass(op.DefaultClass); err != nil {
		return nil, err
	}
	mc.m = nil
	for _, g := range founded(op) {
		if err := put(tx, key32(tagGroup, uint32(g.ID)), wire.FromGroup(g)); err != nil {
			return nil, err
		}
	}
	return &wire.ControlReply{}, put(tx, stateKey, &wire.ControlState{Form: op, Epoch: 1, Now: now, Revision: 1, LastGroup: op.Groups})
}

// finish writes what the entry changed.
func (ev *entry) finish() error {
	if ev.changed {
		ev.st.Epoch++
		ev.m.Epoch = dfs.Epoch(ev.st.Epoch)
	}
	if ev.sessions {
		ev.st.SessionIndex++
	}
	ev.st.Now = ev.now
	ev.st.Revision++
	for id := range ev.nodes {
		if err := put(ev.tx, key32(tagNode, uint32(id)), &wire.NodeRow{Node: wire.FromNode(ev.m.Node(id))}); err != nil {
			return err
		}
	}
	for id := range ev.stores {
		if err := put(ev.tx, key32(tagStore, uint32(id)), wire.FromStore(ev.m.Store(id))); err != nil {
			return err
		}
	}
	for id := range ev.pgs {
		if err := put(ev.tx, key32(tagPG, uint32(id)), wire.FromPG(ev.m.PG(id))); err != nil {
			return err
		}
	}
	for id := range ev.groups {
		key := key32(tagGroup, uint32(id))
		g := ev.m.Group(id)
		if g == nil {
			if err := ev.tx.Delete(key); err != nil {
				return err
			}
			continue
		}
		if err := put(ev.tx, key, wire.FromGroup(g)); err != nil {
			return err
		}
	}
	for mark, row := range ev.marks {
		if err := ev.tx.Set(key64(tagIncarnations, mark), row); err != nil {
			return err
		}
	}
	return put(ev.tx, stateKey, ev.st)
}

// epoch is the epoch that the map has after this entry, if it changes it.
func (ev *entry) epoch() dfs.Epoch { return dfs.Epoch(ev.st.Epoch + 1) }

// node, store and pg give the row for change: a copy that replaces the shared
// one, written at the end of the entry.
func (ev *entry) node(id dfs.NodeID) *dfs.Node {
	for i, n := range ev.m.Nodes {
		if n.ID == id {
			if !ev.nodes[id] {
				c := *n
				ev.m.Nodes[i] = &c
				ev.nodes[id] = true
			}
			ev.changed = true
			return ev.m.Nodes[i]
		}
	}
	panic(fmt.Sprintf("control: node %v is not in the map", id))
}

func (ev *entry) store(id dfs.StoreID) *dfs.Store {
	for i, s := range ev.m.Stores {
		if s.ID == id {
			if !ev.stores[id] {
				c := *s
				ev.m.Stores[i] = &c
				ev.stores[id] = true
			}
			ev.changed = true
			return ev.m.Stores[i]
		}
	}
	panic(fmt.Sprintf("control: store %v is not in the map", id))
}

func (ev *entry) setPG(p *dfs.PG) {
	i, ok := slices.BinarySearchFunc(ev.m.PGs, p.ID, func(p *dfs.PG, id dfs.PGID) int { return cmp.Compare(p.ID, id) })
	if !ok {
		panic(fmt.Sprintf("control: %v is not in the map", p.ID))
	}
	ev.m.PGs[i] = p
	ev.pgs[p.ID] = true
	ev.changed = true
}

// cloneMap copies the lists, not what they point to: rows are replaced, never
// changed in place, so published maps stay as they were.
func cloneMap(m *dfs.Map) *dfs.Map {
	c := *m
	c.Nodes = append([]*dfs.Node(nil), m.Nodes...)
	c.Stores = append([]*dfs.Store(nil), m.Stores...)
	c.PGs = append([]*dfs.PG(nil), m.PGs...)
	c.Groups = append([]*dfs.Group(nil), m.Groups...)
	return &c
}
