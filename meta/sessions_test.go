package meta

import (
	"slices"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
)

// TestOpeningSessionsAreNotOverdue: what the control group says of its sessions and
// what the leader remembers of their renewals is not of the same moment. Each session
// has its whole lease all the same.
func TestOpeningSessionsAreNotOverdue(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const ttl = 30 * time.Second
		l := newSessions()
		expect := func(when string, live, want []dfs.SessionID) {
			t.Helper()
			if got := l.overdue(live, ttl); !slices.Equal(got, want) {
				t.Errorf("%s: overdue %v, want %v", when, got, want)
			}
		}
		l.lead(1)
		expect("a new leader", []dfs.SessionID{1}, nil)
		time.Sleep(ttl + time.Second)
		expect("not heard for a lease", []dfs.SessionID{1}, []dfs.SessionID{1})

		expect("committed, and its opening not noted yet", []dfs.SessionID{2}, nil)
		l.renew(2, 0)
		l.renew(3, 5)
		expect("opened since the list was read", []dfs.SessionID{2}, nil)
		time.Sleep(time.Second)
		expect("a second after its opening", []dfs.SessionID{2, 3}, nil)
		if marks := l.marksOf([]uint64{3}); len(marks) != 1 {
			t.Errorf("the mark of an open session is forgotten: %v", marks)
		}
		time.Sleep(ttl)
		expect("a lease later", []dfs.SessionID{2, 3}, []dfs.SessionID{2, 3})
		expect("after their end", nil, nil)
		if len(l.renewed) != 0 || len(l.marks) != 0 {
			t.Errorf("sessions that are gone are remembered: %v, %v", l.renewed, l.marks)
		}

		l.renew(4, 0)
		time.Sleep(ttl - time.Second)
		l.lead(2)
		time.Sleep(2 * time.Second)
		expect("another term", []dfs.SessionID{4}, nil)
		time.Sleep(ttl + time.Second)
		expect("a lease into another term", []dfs.SessionID{4}, []dfs.SessionID{4})
	})
}
