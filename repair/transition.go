package repair

import (
	"cmp"
	"slices"

	"dfsd/dfs"
)

// Rules are the checks and transitions that turn on who counts as complete.
// The zero value is the only one for use; the functions of the same names
// apply it.
type Rules struct {
	// CountActingAsComplete is a planted bug: it takes every acting member for
	// a copy. Tests switch it on to prove that they notice.
	CountActingAsComplete bool
}

func (r Rules) complete(pg *dfs.PG, s dfs.StoreID) bool {
	return pg.IsComplete(s) || r.CountActingAsComplete && pg.Active.Epoch > 0 && pg.Active.Has(s)
}

// CheckPropose reports whether acting may be proposed as the PG's next acting
// set: it is well formed, every store in it is up, it has at least the class's
// minimum of members and, unless the PG was never activated, as many complete
// members of the last active set as the class needs to hold every byte (one
// copy, or k shards).
//
// state gives the state of a store, 0 for one that is not in the map. Errors:
// Invalid for a malformed set; Unavailable when members or survivors are
// missing, which may change.
func CheckPropose(pg *dfs.PG, acting []dfs.StoreID, state func(dfs.StoreID) dfs.StoreState) error {
	return Rules{}.CheckPropose(pg, acting, state)
}

// CheckPropose is the function of that name under these rules.
func (r Rules) CheckPropose(pg *dfs.PG, acting []dfs.StoreID, state func(dfs.StoreID) dfs.StoreState) error {
	if err := checkShape(pg, acting); err != nil {
		return err
	}
	for _, s := range acting {
		if s != 0 && state(s) != dfs.StoreUp {
			return dfs.Errorf(dfs.Unavailable, "propose", "%v: store %v is %v, not up", pg.ID, s, state(s))
		}
	}
	return r.checkSafe("propose", pg, acting)
}

// checkShape reports whether a set has the form of the PG's class.
func checkShape(pg *dfs.PG, acting []dfs.StoreID) error {
	if !pg.Class.Erasure() {
		if len(acting) > dfs.MaxShards {
			return dfs.Errorf(dfs.Invalid, "propose", "%v: %d members, at most %d", pg.ID, len(acting), dfs.MaxShards)
		}
		if !sortedIDs(acting) {
			return dfs.Errorf(dfs.Invalid, "propose", "%v: set %v is not sorted and distinct", pg.ID, acting)
		}
		return nil
	}
	if len(acting) != pg.Class.Width() {
		return dfs.Errorf(dfs.Invalid, "propose", "%v: %d positions, class %v has %d", pg.ID, len(acting), pg.Class, pg.Class.Width())
	}
	for i, s := range acting {
		if s == 0 {
			continue
		}
		if slices.Index(acting, s) != i {
			return dfs.Errorf(dfs.Invalid, "propose", "%v: store %v is in set %v twice", pg.ID, s, acting)
		}
		if was := slices.Index(pg.Active.Stores, s); was >= 0 && was != i {
			return dfs.Errorf(dfs.Invalid, "propose", "%v: store %v holds position %d and cannot change to %d", pg.ID, s, was, i)
		}
	}
	return nil
}

// checkSafe reports whether a set is big enough, and keeps what was
// acknowledged.
func (r Rules) checkSafe(op string, pg *dfs.PG, acting []dfs.StoreID) error {
	set := dfs.ActingSet{Stores: acting}
	if n, least := set.Size(), pg.Class.MinActing(); n < least {
		return dfs.Errorf(dfs.Unavailable, op, "%v: set %v has %d members, class %v needs %d", pg.ID, acting, n, pg.Class, least)
	}
	if pg.Active.Epoch == 0 {
		return nil // nothing was ever acknowledged
	}
	survivors := 0
	for _, s := range acting {
		if r.complete(pg, s) {
			survivors++
		}
	}
	if survivors < pg.Class.NeedComplete() {
		return dfs.Errorf(dfs.Unavailable, op, "%v: set %v has %d complete members of the active set %v, needs %d", pg.ID, acting, survivors, pg.Active.Stores, pg.Class.NeedComplete())
	}
	return nil
}

// sortedIDs reports whether the IDs are sorted, distinct and none of them 0.
func sortedIDs(ids []dfs.StoreID) bool {
	prev := dfs.StoreID(0)
	for _, s := range ids {
		if s <= prev {
			return false
		}
		prev = s
	}
	return true
}

// Propose returns the PG with acting proposed under epoch, in place of any
// earlier proposal. The caller has checked it with CheckPropose.
// REQUIRES: epoch > pg.Newest().
func Propose(pg *dfs.PG, epoch dfs.Epoch, acting []dfs.StoreID) *dfs.PG {
	if epoch <= pg.Newest() {
		panic("repair: a proposal needs an epoch of its own")
	}
	next := pg.Clone()
	next.Proposed = dfs.ActingSet{Epoch: epoch, Stores: slices.Clone(acting)}
	return next
}

// CheckActivate reports whether the PG's proposal may become active: every
// member of the proposed set has persisted a map epoch at or above the
// proposal's, and the set still has the survivors it was proposed with (a
// member may have lost its disk since). Members that only leave need not have
// heard of it: they can acknowledge nothing without the survivors.
//
// persisted gives the newest map epoch that a store's current incarnation is
// known to have on disk, 0 when nothing is known. Errors: Stale when there is
// no proposal; Unavailable when something is missing, which may change.
func CheckActivate(pg *dfs.PG, persisted func(dfs.StoreID) dfs.Epoch) error {
	return Rules{}.CheckActivate(pg, persisted)
}

// CheckActivate is the function of that name under these rules.
func (r Rules) CheckActivate(pg *dfs.PG, persisted func(dfs.StoreID) dfs.Epoch) error {
	if pg.Proposed.Epoch == 0 {
		return dfs.Errorf(dfs.Stale, "activate", "%v: nothing is proposed", pg.ID)
	}
	for _, s := range pg.Proposed.Stores {
		if s == 0 {
			continue
		}
		if e := persisted(s); e < pg.Proposed.Epoch {
			return dfs.Errorf(dfs.Unavailable, "activate", "%v: store %v has persisted epoch %d, the proposal is %d", pg.ID, s, e, pg.Proposed.Epoch)
		}
	}
	return r.checkSafe("activate", pg, pg.Proposed.Stores)
}

// Activate returns the PG with its proposal made active. The caller has
// checked it with CheckActivate. mark gives the incarnation mark of a store; it
// is asked for stores that the PG has no facts about.
//
//   - Members that were complete and stay are complete through the new epoch.
//   - At the first activation every member is: there is nothing to hold yet.
//   - Incomplete members that were acting stay as they are, and go on refilling.
//   - Members that were not acting, or were reset, join at this epoch.
//   - Members that leave keep what they were complete through, for the day they
//     return, until the PG is full without them. Of an erasure code they keep
//     nothing: they may return in another position.
func Activate(pg *dfs.PG, mark func(dfs.StoreID) uint64) *dfs.PG {
	return Rules{}.Activate(pg, mark)
}

// Activate is the function of that name under these rules.
func (r Rules) Activate(pg *dfs.PG, mark func(dfs.StoreID) uint64) *dfs.PG {
	next := pg.Clone()
	next.Active, next.Proposed = next.Proposed, dfs.ActingSet{}
	epoch := next.Active.Epoch
	next.Members = next.Members[:0]
	for _, m := range pg.Members {
		if !next.Active.Has(m.Store) && !pg.Class.Erasure() {
			m.Joined = 0
			next.Members = append(next.Members, m)
		}
	}
	for _, s := range next.Active.Stores {
		if s == 0 {
			continue
		}
		m := dfs.Member{Store: s}
		if old := pg.Member(s); old != nil {
			m = *old
		} else {
			m.Mark = mark(s)
		}
		if !pg.Active.Has(s) || m.Joined == 0 {
			m.Joined = epoch
		}
		if pg.Active.Epoch == 0 || r.complete(pg, s) {
			m.Complete = epoch
		}
		next.Members = append(next.Members, m)
	}
	slices.SortFunc(next.Members, func(a, b dfs.Member) int { return cmp.Compare(a.Store, b.Store) })
	forget(next)
	return next
}

// RefillDone returns the PG with a member made complete: it has reported, for
// the incarnation mark and for its unbroken time of acting since joined, that
// it holds and has verified every block with an epoch before joined. A report
// of any other time is Stale: the member acts anew, and must pull anew.
func RefillDone(pg *dfs.PG, store dfs.StoreID, mark uint64, joined dfs.Epoch) (*dfs.PG, error) {
	m := pg.Member(store)
	switch {
	case m == nil || pg.Active.Epoch == 0 || !pg.Active.Has(store):
		return nil, dfs.Errorf(dfs.Stale, "refill", "%v: store %v is not acting", pg.ID, store)
	case m.Mark != mark:
		return nil, dfs.Errorf(dfs.Stale, "refill", "%v: store %v was formatted anew", pg.ID, store)
	case joined == 0 || m.Joined != joined:
		return nil, dfs.Errorf(dfs.Stale, "refill", "%v: store %v is acting since epoch %d, the report is for %d", pg.ID, store, m.Joined, joined)
	}
	next := pg.Clone()
	next.Member(store).Complete = pg.Active.Epoch
	forget(next)
	return next, nil
}

// ResetMember returns the PG with a member that is complete through nothing
// and must be activated anew before it refills: its disk was rolled back,
// formatted, or found damaged in a way that cannot be named. mark is the
// incarnation mark that it now has. A store the PG has no facts about changes
// nothing.
func ResetMember(pg *dfs.PG, store dfs.StoreID, mark uint64) *dfs.PG {
	next := pg.Clone()
	if m := next.Member(store); m != nil {
		*m = dfs.Member{Store: store, Mark: mark}
	}
	return next
}

// Retarget returns the PG with another target, or Invalid when the target is
// malformed, and Unavailable when it names a store that is out or not in the
// map. state is as for CheckPropose.
func Retarget(pg *dfs.PG, target []dfs.StoreID, state func(dfs.StoreID) dfs.StoreState) (*dfs.PG, error) {
	if len(target) == 0 || len(target) > pg.Class.Width() || !sortedIDs(target) {
		return nil, dfs.Errorf(dfs.Invalid, "retarget", "%v: %v is no target for class %v", pg.ID, target, pg.Class)
	}
	for _, s := range target {
		if st := state(s); st != dfs.StoreUp && st != dfs.StoreDown {
			return nil, dfs.Errorf(dfs.Unavailable, "retarget", "%v: store %v is %v", pg.ID, s, st)
		}
	}
	next := pg.Clone()
	next.Target = slices.Clone(target)
	forget(next)
	return next, nil
}

// forget drops the facts about members that no longer act once the PG is full:
// their share exists elsewhere. It bounds the members of a PG, and a store that
// returns later starts from nothing.
func forget(pg *dfs.PG) {
	if pg.Full() {
		pg.Members = slices.DeleteFunc(pg.Members, func(m dfs.Member) bool { return !pg.Active.Has(m.Store) })
	}
}

// Check reports the first broken invariant of a PG, nil when all hold. Errors
// have the kind Internal.
func Check(pg *dfs.PG) error {
	bad := func(format string, args ...any) error {
		return dfs.Errorf(dfs.Internal, "check "+pg.ID.String(), format, args...)
	}
	if pg.Proposed.Epoch != 0 && pg.Proposed.Epoch <= pg.Active.Epoch {
		return bad("proposed epoch %d is not above the active %d", pg.Proposed.Epoch, pg.Active.Epoch)
	}
	if pg.Active.Epoch > 0 && pg.Active.Size() < pg.Class.MinActing() {
		return bad("active set %v is below the minimum of class %v", pg.Active.Stores, pg.Class)
	}
	if !sortedIDs(pg.Target) {
		return bad("target %v is not sorted and distinct", pg.Target)
	}
	prev := dfs.StoreID(0)
	for _, m := range pg.Members {
		switch acting := pg.Active.Epoch > 0 && pg.Active.Has(m.Store); {
		case m.Store <= prev:
			return bad("members are not sorted and distinct at store %v", m.Store)
		case m.Complete > pg.Active.Epoch:
			return bad("store %v is complete through %d, the active epoch is %d", m.Store, m.Complete, pg.Active.Epoch)
		case m.Joined > pg.Active.Epoch:
			return bad("store %v joined at %d, the active epoch is %d", m.Store, m.Joined, pg.Active.Epoch)
		case !acting && m.Joined != 0:
			return bad("store %v does not act and joined at %d", m.Store, m.Joined)
		case acting && m.Joined == 0 && m.Complete != 0:
			return bad("store %v never joined and is complete through %d", m.Store, m.Complete)
		}
		prev = m.Store
	}
	if pg.Active.Epoch > 0 {
		for _, s := range pg.Active.Stores {
			if s != 0 && pg.Member(s) == nil {
				return bad("store %v acts and is no member", s)
			}
		}
	}
	return nil
}
