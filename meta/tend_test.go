package meta

import (
	"errors"
	"slices"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
)

// TestAgenda reads as the life of the groups that a node leads.
func TestAgenda(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a := newAgenda()
		start := time.Now()
		take := func(wantNext time.Duration, want ...dfs.GroupID) {
			t.Helper()
			got, next := a.take(time.Now())
			if !slices.Equal(got, want) {
				t.Errorf("at %v: take %v, want %v", time.Since(start), got, want)
			}
			if wantNext == 0 && !next.IsZero() || wantNext != 0 && next.Sub(start) != wantNext {
				t.Errorf("at %v: next at %v, want %v", time.Since(start), next.Sub(start), wantNext)
			}
		}
		poked := func(want bool) {
			t.Helper()
			select {
			case <-a.poke:
				if !want {
					t.Errorf("at %v: woken for nothing", time.Since(start))
				}
			default:
				if want {
					t.Errorf("at %v: not woken", time.Since(start))
				}
			}
		}
		take(0)
		a.touch(7) // somebody else leads it
		poked(false)
		a.lead(3, true)
		a.lead(1, true)
		poked(true)
		take(groupTick)
		time.Sleep(groupTick / 2)
		a.touch(3) // it is due already
		poked(false)
		time.Sleep(groupTick / 2)
		take(0, 1, 3)
		a.touch(1) // while it is tended: it is not taken twice, and not forgotten
		time.Sleep(2 * groupTick)
		take(0)
		a.done(3, time.Now().Add(time.Minute))
		take(time.Minute + 3*groupTick)
		<-a.poke
		a.done(1, time.Now().Add(time.Minute))
		poked(true)
		take(time.Minute+3*groupTick, 1)
		a.lead(3, false)
		a.done(1, time.Now().Add(time.Hour))
		take(time.Hour + 3*groupTick)
		gs, changed := a.leads()
		if !slices.Equal(gs, []dfs.GroupID{1}) || !changed[1] {
			t.Errorf("leads %v, changed %v", gs, changed)
		}
		if _, changed = a.leads(); len(changed) != 0 {
			t.Errorf("changed %v since the last question", changed)
		}
		a.touchAll()
		if _, changed = a.leads(); !changed[1] || len(changed) != 1 {
			t.Errorf("changed %v, want group 1", changed)
		}
	})
}

// TestNextLook: the next look at a group is as early as one of its steps wants
// it, at least a tick away, and a step that failed is taken again.
func TestNextLook(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := New(Options{})
		for _, c := range []struct {
			in   []time.Duration // 0: nothing to do, -1: fails
			want time.Duration
		}{
			{nil, settledTick},
			{[]time.Duration{0, 0}, settledTick},
			{[]time.Duration{time.Hour, 0}, settledTick},
			{[]time.Duration{3 * time.Second, 2 * time.Second, 0}, 2 * time.Second},
			{[]time.Duration{time.Millisecond}, groupTick},
			{[]time.Duration{5 * time.Second, -1}, groupTick},
		} {
			now := time.Now()
			l := &tending{s: s, g: 1, next: now.Add(settledTick), soon: now.Add(groupTick)}
			for _, d := range c.in {
				l.step("test", func() (time.Time, error) {
					switch d {
					case 0:
						return time.Time{}, nil
					case -1:
						return time.Time{}, errors.New("test")
					}
					return now.Add(d), nil
				})
			}
			if got := l.next.Sub(now); got != c.want {
				t.Errorf("%v: the next look is in %v, want %v", c.in, got, c.want)
			}
		}
	})
}

// TestTendLoopEnds although groups are due faster than they are tended.
func TestTendLoopEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := New(Options{})
		for g := range dfs.GroupID(3 * maxTending) {
			s.agenda.lead(g, true)
		}
		s.wg.Go(s.tendLoop)
		time.Sleep(time.Minute)
		s.agenda.touchAll()
		time.Sleep(groupTick)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
