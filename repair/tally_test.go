package repair

import (
	"slices"
	"testing"
	"time"

	"dfsd/dfs"
)

func TestCount(t *testing.T) {
	const fresh = 2 * time.Second
	now := start
	vote := func(voter dfs.NodeID, age time.Duration, suspects ...dfs.StoreID) Vote {
		return Vote{Voter: voter, Suspects: suspects, At: now.Add(-age)}
	}
	for _, c := range []struct {
		name     string
		voters   []dfs.NodeID
		votes    []Vote
		by       []dfs.NodeID // who suspects s1
		majority bool
	}{
		{"nobody", []dfs.NodeID{1, 2, 3}, nil, nil, false},
		{"one of three", []dfs.NodeID{1, 2, 3}, []Vote{vote(2, 0, 1)}, []dfs.NodeID{2}, false},
		{"two of three", []dfs.NodeID{1, 2, 3}, []Vote{vote(3, 0, 1), vote(2, 0, 4, 1)}, []dfs.NodeID{2, 3}, true},
		{"one of one", []dfs.NodeID{1}, []Vote{vote(1, 0, 1)}, []dfs.NodeID{1}, true},
		{"two of four", []dfs.NodeID{1, 2, 3, 4}, []Vote{vote(1, 0, 1), vote(2, 0, 1)}, []dfs.NodeID{1, 2}, false},
		{"stale votes", []dfs.NodeID{1, 2, 3}, []Vote{vote(1, 0, 1), vote(2, 3*time.Second, 1)}, []dfs.NodeID{1}, false},
		{"learners", []dfs.NodeID{1, 2, 3}, []Vote{vote(1, 0, 1), vote(7, 0, 1), vote(8, 0, 1)}, []dfs.NodeID{1}, false},
		{"one voter twice", []dfs.NodeID{1, 2, 3}, []Vote{vote(1, 0, 1), vote(1, time.Second, 1)}, []dfs.NodeID{1}, false},
		{"one store twice", []dfs.NodeID{1, 2, 3}, []Vote{vote(1, 0, 1, 1)}, []dfs.NodeID{1}, false},
		{"changed its mind", []dfs.NodeID{1, 2, 3}, []Vote{vote(1, time.Second, 1), vote(1, 0)}, nil, false},
		{"no voters known", nil, []Vote{vote(1, 0, 1)}, nil, false},
	} {
		tally := Count(c.voters, c.votes, now, fresh)
		if !slices.Equal(tally.By[1], c.by) || tally.Majority(1) != c.majority || tally.Suspected(1) != (len(c.by) > 0) {
			t.Errorf("%s: suspected by %v, majority %v", c.name, tally.By[1], tally.Majority(1))
		}
	}
}

func TestNoDownBefore(t *testing.T) {
	if got := NoDownBefore(start, 5*time.Second); !got.IsZero() {
		t.Errorf("a change of leader holds verdicts back until %v", got)
	}
	if got := NoDownBefore(start, time.Minute); got != start.Add(StartGrace) {
		t.Errorf("after a start of the whole cluster verdicts are held until %v", got)
	}
}
