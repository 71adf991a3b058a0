package control

import (
	"slices"

	"dfsd/dfs"
	"dfsd/repair"
	"dfsd/transport/wire"
)

// plan applies the planner's decisions that still hold. One that does not is
// dropped: the planner sees the new state and decides again.
func (ev *entry) plan(op *wire.PlanOp) error {
	dropped := error(nil)
	for _, d := range op.Decisions {
		var err error
		switch d := d.Decision.(type) {
		case *wire.Decision_State:
			err = ev.setState(d.State)
		case *wire.Decision_Target:
			err = ev.retarget(d.Target)
		case *wire.Decision_Propose:
			err = ev.propose(d.Propose)
		case *wire.Decision_Activate:
			err = ev.activate(d.Activate)
		case *wire.Decision_Create:
			err = ev.createPGs(d.Create)
		case *wire.Decision_Replicas:
			err = ev.setReplicas(d.Replicas)
		case *wire.Decision_Abandon:
			err = ev.abandon(d.Abandon)
		default:
			err = dfs.Errorf(dfs.Unsupported, "plan", "decision of an unknown kind")
		}
		if err != nil {
			dropped = err
		}
	}
	if dropped != nil && !ev.changed {
		return dropped
	}
	return nil
}

func (ev *entry) stateOf(id dfs.StoreID) dfs.StoreState {
	if s := ev.m.Store(id); s != nil {
		return s.State
	}
	return 0
}

// setState declares a store down or out.
func (ev *entry) setState(d *wire.StateDecision) error {
	s := ev.m.Store(dfs.StoreID(d.Store))
	if s == nil || s.Incarnation != d.Incarnation.ToDFS() {
		return dfs.Errorf(dfs.Stale, "declare store", "s%d started anew", d.Store)
	}
	switch to := dfs.StoreState(d.State); {
	case to == dfs.StoreDown && s.State == dfs.StoreUp:
		if err := ev.checkMajority(d); err != nil {
			return err
		}
	case to == dfs.StoreOut && s.State == dfs.StoreDown:
		if ev.now-s.StateSince < d.Grace {
			return dfs.Errorf(dfs.Unavailable, "declare store", "s%d is down for less than the grace period", d.Store)
		}
	default:
		return dfs.Errorf(dfs.Stale, "declare store", "s%d is %v", d.Store, s.State)
	}
	s = ev.store(s.ID)
	s.State, s.StateSince = dfs.StoreState(d.State), ev.now
	return nil
}

// checkMajority holds a verdict to a majority of the control group's voters,
// all of which must be meta nodes of the cluster.
func (ev *entry) checkMajority(d *wire.StateDecision) error {
	n := 0
	for _, id := range d.Electorate {
		if m := ev.m.Node(dfs.NodeID(id)); m == nil || !m.Roles.Has(dfs.RoleMeta) {
			return dfs.Errorf(dfs.Invalid, "declare store", "voter n%d is no meta node", id)
		}
		if slices.Contains(d.Voters, id) {
			n++
		}
	}
	if n <= len(d.Electorate)/2 {
		return dfs.Errorf(dfs.Unavailable, "declare store", "%d of %d voters suspect it: no majority", n, len(d.Electorate))
	}
	return nil
}

func (ev *entry) pg(id uint32) (*dfs.PG, error) {
	p := ev.m.PG(dfs.PGID(id))
	if p == nil {
		return nil, dfs.Errorf(dfs.NotExist, "plan", "placement group %d does not exist", id)
	}
	return p, nil
}

func (ev *entry) retarget(d *wire.TargetDecision) error {
	p, err := ev.pg(d.Pg)
	if err != nil {
		return err
	}
	next, err := repair.Retarget(p, wire.IDs[dfs.StoreID](d.Stores), ev.stateOf)
	if err != nil {
		return err
	}
	ev.setPG(next)
	return nil
}

func (ev *entry) propose(d *wire.ProposeDecision) error {
	p, err := ev.pg(d.Pg)
	if err != nil {
		return err
	}
	if uint64(p.Newest()) != d.Newest {
		return dfs.Errorf(dfs.Stale, "propose", "%v has moved on", p.ID)
	}
	acting := wire.IDs[dfs.StoreID](d.Stores)
	if err := ev.rules.CheckPropose(p, acting, ev.stateOf); err != nil {
		return err
	}
	ev.setPG(repair.Propose(p, ev.epoch(), acting))
	return nil
}

func (ev *entry) activate(d *wire.ActivateDecision) error {
	p, err := ev.pg(d.Pg)
	if err != nil {
		return err
	}
	if uint64(p.Proposed.Epoch) != d.Epoch {
		return dfs.Errorf(dfs.Stale, "activate", "%v has moved on", p.ID)
	}
	persisted := func(id dfs.StoreID) dfs.Epoch {
		s := ev.m.Store(id)
		for _, pm := range d.Persisted {
			if s != nil && dfs.StoreID(pm.Store) == id && pm.Mark == s.Incarnation.Mark {
				return dfs.Epoch(pm.Epoch)
			}
		}
		return 0
	}
	if err := ev.rules.CheckActivate(p, persisted); err != nil {
		return err
	}
	next := ev.rules.Activate(p, func(id dfs.StoreID) uint64 { return ev.m.Store(id).Incarnation.Mark })
	if err := repair.Check(next); err != nil {
		return err
	}
	ev.setPG(next)
	return nil
}

// wantClass notes that a class is to have placement groups. They are made when
// there are stores enough.
func (ev *entry) wantClass(op *wire.WantClassRequest) error {
	class, err := dfs.ParseClass(op.Class)
	if err != nil {
		return err
	}
	if class.Erasure() {
		return dfs.Errorf(dfs.Unsupported, "want class", "%v: this release stores replicated classes only, rep1 to rep16", class)
	}
	if class.String() == ev.st.Form.DefaultClass || slices.Contains(ev.st.Classes, class.String()) {
		return nil
	}
	if most := dfs.MaxPGs / int(ev.st.Form.PgsPerClass); 1+len(ev.st.Classes) >= most {
		return dfs.Errorf(dfs.TooLarge, "want class", "%v: with %d placement groups a class this cluster has room for %d classes: %s and %v",
			class, ev.st.Form.PgsPerClass, most, ev.st.Form.DefaultClass, ev.st.Classes)
	}
	ev.st.Classes = append(ev.st.Classes, class.String())
	return nil
}

// setClass changes settings of a class, which may have no placement groups yet. The
// number of a codec is for writers to know: the leader refuses what it does not, and
// replicas of any release agree.
func (ev *entry) setClass(op *wire.ClassSetting) error {
	set, err := op.ToDFS()
	if err != nil {
		return err
	}
	switch {
	case set.Class.Erasure():
		return dfs.Errorf(dfs.Unsupported, "set class", "%v: this release stores replicated classes only, rep1 to rep16", set.Class)
	case op.Codec == nil || *op.Codec > 255:
		return dfs.Errorf(dfs.Invalid, "set class", "%v: no setting is given", set.Class)
	}
	i, found := slices.BinarySearchFunc(ev.m.Settings, set.Class, func(s dfs.ClassSetting, c dfs.Class) int { return s.Class.Compare(c) })
	switch {
	case found && ev.m.Settings[i] == set:
		return nil
	case found:
		ev.m.Settings = slices.Clone(ev.m.Settings) // what is published stays
		ev.m.Settings[i] = set
	default:
		ev.m.Settings = slices.Insert(slices.Clone(ev.m.Settings), i, set)
	}
	ev.st.Settings = nil
	for _, s := range ev.m.Settings {
		ev.st.Settings = append(ev.st.Settings, wire.FromClassSetting(s))
	}
	ev.changed = true
	return nil
}

func (ev *entry) createPGs(d *wire.CreatePGsDecision) error {
	class, err := dfs.ParseClass(d.Class)
	if err != nil {
		return err
	}
	for _, p := range ev.m.PGs {
		if p.Class == class {
			return dfs.Errorf(dfs.Exist, "create placement groups", "class %v has some", class)
		}
	}
	if d.Count == 0 || len(ev.m.PGs)+int(d.Count) > dfs.MaxPGs {
		return dfs.Errorf(dfs.TooLarge, "create placement groups", "%d more: at most %d in all", d.Count, dfs.MaxPGs)
	}
	for range d.Count {
		ev.st.LastPg++
		p := &dfs.PG{ID: dfs.PGID(ev.st.LastPg), Class: class}
		ev.m.PGs = append(ev.m.PGs, p)
		ev.setPG(p)
	}
	return nil
}

// refillDone makes members complete; reports of another time are dropped.
func (ev *entry) refillDone(op *wire.RefillDoneRequest) error {
	dropped := error(nil)
	for _, d := range op.Done {
		p, err := ev.pg(d.Pg)
		if err == nil {
			if p, err = repair.RefillDone(p, dfs.StoreID(op.Store), d.Mark, dfs.Epoch(d.Joined)); err == nil {
				ev.setPG(p)
				continue
			}
		}
		dropped = err
	}
	if dropped != nil && !ev.changed {
		return dropped
	}
	return nil
}
