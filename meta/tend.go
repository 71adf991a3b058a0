package meta

import (
	"context"
	"slices"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/metas"
)

const (
	// groupTick is how soon a group is looked at after something was applied in
	// it, and again while something is left to do.
	groupTick = 250 * time.Millisecond

	// settledTick is how often a group is looked at in which nothing was applied,
	// whose members are those listed, in the same map: nothing should be left to do.
	settledTick = time.Minute

	// maxTending bounds the groups that are tended at a time: each may wait for
	// other nodes.
	maxTending = 64
)

// agenda says which of the groups that this node leads are to be looked at, and
// when. A group in which nothing happens costs a look at its members now and then.
//
//	             applied, led, new map
//	nothing due ──────────────────────▶ due ──taken──▶ tended ──▶ due, or nothing due
type agenda struct {
	poke chan struct{} // the earliest due time may have changed

	mu      sync.Mutex
	wake    time.Time // for which the loop waits; zero is never
	led     map[dfs.GroupID]bool
	due     map[dfs.GroupID]time.Time
	tended  map[dfs.GroupID]bool
	intents map[dfs.GroupID]dfs.Ino // the child past which the next round goes on; none is 0
	changed map[dfs.GroupID]bool    // since the last report
}

func newAgenda() *agenda {
	return &agenda{
		poke: make(chan struct{}, 1),
		led:  map[dfs.GroupID]bool{}, due: map[dfs.GroupID]time.Time{},
		tended: map[dfs.GroupID]bool{}, changed: map[dfs.GroupID]bool{},
		intents: map[dfs.GroupID]dfs.Ino{},
	}
}

// lead notes whether this node leads a group.
func (a *agenda) lead(g dfs.GroupID, leads bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !leads {
		delete(a.led, g)
		delete(a.due, g)
		return
	}
	a.led[g] = true
	a.touchLocked(g)
}

// touch has a group looked at soon, if this node leads it.
func (a *agenda) touch(g dfs.GroupID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.led[g] {
		a.touchLocked(g)
	}
}

// touchAll does so with every group that this node leads.
func (a *agenda) touchAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for g := range a.led {
		a.touchLocked(g)
	}
}

func (a *agenda) touchLocked(g dfs.GroupID) {
	a.changed[g] = true
	a.setLocked(g, time.Now().Add(groupTick))
}

// setLocked makes a group due at a time, unless it is due before that. Times are
// rounded down to a tick, so that many groups come due together.
func (a *agenda) setLocked(g dfs.GroupID, at time.Time) {
	at = at.Truncate(groupTick)
	if old, ok := a.due[g]; ok && !at.Before(old) {
		return
	}
	a.due[g] = at
	a.pokeLocked(at)
}

// pokeLocked ends the wait of the loop if it would be too long.
func (a *agenda) pokeLocked(at time.Time) {
	if !a.wake.IsZero() && !at.Before(a.wake) {
		return
	}
	a.wake = at
	select {
	case a.poke <- struct{}{}:
	default:
	}
}

// take returns the groups to tend now, ascending, and when the next one is due;
// zero is never.
func (a *agenda) take(now time.Time) (gs []dfs.GroupID, next time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for g, at := range a.due {
		switch {
		case a.tended[g]:
		case !at.After(now):
			gs = append(gs, g)
			delete(a.due, g)
			a.tended[g] = true
		case next.IsZero() || at.Before(next):
			next = at
		}
	}
	slices.Sort(gs)
	a.wake = next
	return gs, next
}

// done ends what take began. The group is due at a time, if this node leads it yet.
func (a *agenda) done(g dfs.GroupID, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.tended, g)
	if a.led[g] {
		a.setLocked(g, at)
		a.pokeLocked(a.due[g]) // it may have come due meanwhile
	}
}

// leads lists the groups that this node leads, ascending, and whether something
// changed in each since the last question. There is one asker, the report loop.
func (a *agenda) leads() (gs []dfs.GroupID, changed map[dfs.GroupID]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	gs = make([]dfs.GroupID, 0, len(a.led))
	for g := range a.led {
		gs = append(gs, g)
	}
	slices.Sort(gs)
	changed, a.changed = a.changed, map[dfs.GroupID]bool{}
	return gs, changed
}

// intentsPast is the child past which the group's next round of intents goes on.
func (a *agenda) intentsPast(g dfs.GroupID) dfs.Ino {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.intents[g]
}

func (a *agenda) setIntentsPast(g dfs.GroupID, past dfs.Ino) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.intents[g] = past; past == 0 {
		delete(a.intents, g)
	}
}

// tendLoop does, for the groups that this node leads, what they need in the
// background.
func (s *Service) tendLoop() {
	var wg sync.WaitGroup
	defer wg.Wait()
	work, workers := make(chan dfs.GroupID), 0
	defer close(work)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		gs, next := s.agenda.take(time.Now())
		for _, g := range gs {
			if workers < maxTending {
				select {
				case work <- g:
					continue
				default:
				}
				workers++
				wg.Go(func() {
					for g := range work {
						s.agenda.done(g, s.tend(g))
					}
				})
			}
			select {
			case work <- g:
			case <-s.ctx.Done():
				return
			}
		}
		wait := settledTick
		if !next.IsZero() {
			wait = time.Until(next)
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-s.agenda.poke:
		case <-s.ctx.Done():
			return
		}
	}
}

// tend takes the steps of one group and returns when to look at it again. Each
// step is idempotent and starts from applied state.
func (s *Service) tend(g dfs.GroupID) time.Time {
	now := time.Now()
	t := &tending{s: s, g: g, next: now.Add(settledTick), soon: now.Add(groupTick)}
	h, m := s.host.Load(), s.maps.current()
	if _, leads := s.leads(g); !leads || h == nil || m == nil || m.Group(g) == nil {
		return t.next
	}
	ctx, cancel := context.WithTimeout(s.ctx, 4*metas.AttemptTimeout)
	defer cancel()
	t.step("membership", func() (time.Time, error) { return t.members(ctx, h) })
	switch {
	case g == dfs.ControlGroup:
	case !m.Group(g).Ready():
		t.step("forming", func() (time.Time, error) { return t.soon, s.formGroup(ctx, h, g) })
	case !s.mutable():
		t.by(t.soon)
	case s.held(h, g): // the acknowledgement is an entry: it has this looked at again
	default:
		t.step("trim", func() (time.Time, error) { return s.trim(ctx, h, g) })
		t.step("delete queue", func() (time.Time, error) { return s.drainDeletes(ctx, h, g) })
		t.step("feature level", func() (time.Time, error) { return s.raiseLevel(ctx, h, g) })
		t.step("transactions", func() (time.Time, error) { return s.settleTxns(ctx, h, g) })
		t.step("accounts", func() (time.Time, error) { return s.settleAccounts(ctx, h, g) })
		t.step("intents", func() (time.Time, error) { return s.resolveIntents(ctx, h, g) })
	}
	return t.next
}

// tending is one look at a group.
type tending struct {
	s    *Service
	g    dfs.GroupID
	soon time.Time // a tick from now: the earliest next look
	next time.Time // the next look so far
}

// by sees to it that the next look is no later than at.
func (t *tending) by(at time.Time) {
	if at.Before(t.soon) {
		at = t.soon
	}
	if at.Before(t.next) {
		t.next = at
	}
}

// step takes a step, which says when there is more to do; zero is never. One that
// fails is taken again soon.
func (t *tending) step(what string, do func() (time.Time, error)) {
	at, err := do()
	if err != nil {
		t.s.step(t.g, what, err)
		at = t.soon
	}
	if !at.IsZero() {
		t.by(at)
	}
}

// members tends the members. While one is on its way in the group's progress is
// watched, of which no entry tells.
func (t *tending) members(ctx context.Context, h *raftgroup.Host) (time.Time, error) {
	if err := t.s.tendMembers(ctx, h, t.g); err != nil {
		return time.Time{}, err
	}
	st, ok := h.Status(t.g)
	row := t.s.maps.current().Group(t.g)
	if ok && row != nil && (st.Joint || len(st.Learners) > 0 || !slices.Equal(st.Voters, row.Replicas)) {
		return t.soon, nil
	}
	return time.Time{}, nil
}
