package repair

import (
	"cmp"
	"slices"

	"dfsd/dfs"
	"dfsd/placement"
)

// step takes every PG one step on: a proposal or an activation.
func (p *planner) step() {
	order := slices.Clone(p.pgs)
	copies := map[dfs.PGID]int{}
	for _, pg := range order {
		copies[pg.ID] = len(p.living(pg))
		p.countCopying(pg)
	}
	slices.SortStableFunc(order, func(a, b *dfs.PG) int { return cmp.Compare(copies[a.ID], copies[b.ID]) })
	for _, pg := range order {
		if !pg.Class.Erasure() {
			p.stepPG(pg)
		}
	}
}

// countCopying counts a PG that is copying a whole share, or is about to.
func (p *planner) countCopying(pg *dfs.PG) {
	if pg.Active.Epoch == 0 || len(p.living(pg)) < pg.Class.NeedComplete() {
		return
	}
	set := pg.Active.Stores
	if pg.Proposed.Epoch != 0 {
		set = pg.Proposed.Stores
	}
	if slices.ContainsFunc(set, func(s dfs.StoreID) bool { return p.up(s) && bulk(pg, s) }) {
		p.copying[pg.ID] = true
		*p.budget(pg)++
	}
}

// bulk reports whether a member has the PG's whole share to copy.
func bulk(pg *dfs.PG, s dfs.StoreID) bool {
	m := pg.Member(s)
	return m == nil || m.Complete == 0
}

// budget is the count that a PG's copying falls under.
func (p *planner) budget(pg *dfs.PG) *int {
	if len(p.living(pg)) < pg.Class.Width() {
		return &p.refills
	}
	return &p.moves
}

// stepPG takes one PG one step on. While a proposal is pending the stores that
// know of it refuse the old epoch, so it is activated as soon as it can be and
// superseded only if it cannot.
func (p *planner) stepPG(pg *dfs.PG) {
	if pg.Proposed.Epoch == 0 {
		if want := p.want(pg); want != nil && (!slices.Equal(want, pg.Active.Stores) || p.mustRejoin(pg)) {
			p.propose(pg, want)
		}
		return
	}
	if p.blocked(pg) {
		if want := p.want(pg); want != nil && !slices.Equal(want, pg.Proposed.Stores) {
			p.propose(pg, want)
		}
		return
	}
	persisted := func(s dfs.StoreID) dfs.Epoch { return p.in.Persisted[s] }
	if p.activations < p.set.MaxActivations && p.set.Rules.CheckActivate(pg, persisted) == nil {
		p.activations++
		p.decide(ActivateSet{PG: pg.ID, Epoch: pg.Proposed.Epoch})
	}
}

func (p *planner) propose(pg *dfs.PG, set []dfs.StoreID) {
	if p.proposals >= p.set.MaxProposals || p.set.Rules.CheckPropose(pg, set, p.stateOf) != nil {
		return
	}
	p.proposals++
	joins := func(s dfs.StoreID) bool { return !pg.Active.Has(s) && bulk(pg, s) }
	if pg.Active.Epoch > 0 && !p.copying[pg.ID] && slices.ContainsFunc(set, joins) {
		p.copying[pg.ID] = true
		*p.budget(pg)++
	}
	p.decide(ProposeSet{PG: pg.ID, Newest: pg.Newest(), Acting: set})
}

// blocked reports whether the PG's proposal may never be activated: a member
// is not up, or the survivors are lost.
func (p *planner) blocked(pg *dfs.PG) bool {
	if p.set.Rules.checkSafe("activate", pg, pg.Proposed.Stores) != nil {
		return true
	}
	return slices.ContainsFunc(pg.Proposed.Stores, func(s dfs.StoreID) bool { return s != 0 && !p.steady(s) })
}

// mustRejoin reports whether an acting member may refill only after another
// activation: it was reset.
func (p *planner) mustRejoin(pg *dfs.PG) bool {
	return slices.ContainsFunc(pg.Active.Stores, func(s dfs.StoreID) bool {
		m := pg.Member(s)
		return m != nil && m.Joined == 0
	})
}

// maxSpread bounds an acting set to this many times the class's width: each
// member beyond the width makes writes dearer.
const maxSpread = 2

// want is the set that should act next, sorted; nil when the PG should stay as
// it is because it is stalled or no set is big enough.
func (p *planner) want(pg *dfs.PG) []dfs.StoreID {
	if pg.Active.Epoch == 0 {
		var set []dfs.StoreID
		for _, s := range pg.Target {
			if p.steady(s) {
				set = append(set, s)
			}
		}
		return p.atLeast(pg, set)
	}
	living := 0
	var keep []dfs.StoreID // all that act and are up: what an incomplete one holds may be the second copy of fresh blocks
	for _, s := range pg.Active.Stores {
		if p.up(s) {
			keep = append(keep, s)
			if p.set.Rules.complete(pg, s) {
				living++
			}
		}
	}
	if living < pg.Class.NeedComplete() {
		return nil
	}
	arrived := func(s dfs.StoreID) bool { return p.up(s) && p.set.Rules.complete(pg, s) }
	if len(pg.Target) >= pg.Class.MinActing() && !slices.ContainsFunc(pg.Target, func(s dfs.StoreID) bool { return !arrived(s) }) {
		return slices.Clone(pg.Target)
	}
	set := slices.Clone(keep)
	for _, s := range pg.Target {
		if p.steady(s) && !slices.Contains(set, s) && p.mayJoin(pg, s, len(set)) {
			set = append(set, s)
		}
	}
	return p.atLeast(pg, p.trim(pg, set))
}

// mayJoin reports whether a store of the target may join a set of the given
// size now: always if too few act, if it lacks only what it missed or if the PG
// is copying anyway; else as far as the budget goes.
func (p *planner) mayJoin(pg *dfs.PG, s dfs.StoreID, size int) bool {
	if size < pg.Class.MinActing() || !bulk(pg, s) || p.copying[pg.ID] {
		return true
	}
	if b := p.budget(pg); b == &p.moves {
		return *b < p.set.MaxMoves
	}
	return p.refills < p.set.MaxRefills
}

// trim drops members that are neither complete nor in the target while the set
// is too wide, the latest to join first: targets may change faster than
// members refill.
func (p *planner) trim(pg *dfs.PG, set []dfs.StoreID) []dfs.StoreID {
	for len(set) > maxSpread*pg.Class.Width() {
		drop, joined := -1, dfs.Epoch(0)
		for i, s := range set {
			if slices.Contains(pg.Target, s) || p.set.Rules.complete(pg, s) {
				continue
			}
			if m := pg.Member(s); drop < 0 || m.Joined > joined {
				drop, joined = i, m.Joined
			}
		}
		if drop < 0 {
			break
		}
		set = slices.Delete(set, drop, drop+1)
	}
	return set
}

// atLeast adds stores that stand in while a set is below the class's minimum,
// in the order in which placement would have them. It returns the set sorted,
// nil when there are too few.
func (p *planner) atLeast(pg *dfs.PG, set []dfs.StoreID) []dfs.StoreID {
	least := pg.Class.MinActing()
	if len(set) < least {
		stores := placementStores(p.in.Map, func(s dfs.StoreID) bool { return p.steady(s) || slices.Contains(set, s) })
		res := placement.Assign(stores, least, []placement.Group{{ID: pg.ID, Current: set}})
		for _, s := range res.Targets[0] {
			if len(set) < least && !slices.Contains(set, s) {
				set = append(set, s)
			}
		}
	}
	if len(set) < least {
		return nil
	}
	slices.Sort(set)
	return set
}
