package repair

import (
	"slices"
	"time"

	"dfsd/dfs"
)

// Vote is what one meta node said last.
type Vote struct {
	Voter    dfs.NodeID
	Suspects []dfs.StoreID // whom its detector suspects
	At       time.Time     // when it said so
}

// Tally is who suspects whom, among the voters of the control group.
type Tally struct {
	Voters int // of the control group; 0: none known, so nobody has a majority
	By     map[dfs.StoreID][]dfs.NodeID
}

// Count tallies the votes of voters that are at most fresh old. Who is silent
// or no voter counts for nothing, but the majority is still of all voters: a
// minority decides nothing. Of several votes of a voter the latest counts.
func Count(voters []dfs.NodeID, votes []Vote, now time.Time, fresh time.Duration) Tally {
	t := Tally{Voters: len(voters), By: map[dfs.StoreID][]dfs.NodeID{}}
	latest := map[dfs.NodeID]Vote{}
	for _, v := range votes {
		old, ok := latest[v.Voter]
		if slices.Contains(voters, v.Voter) && now.Sub(v.At) <= fresh && (!ok || v.At.After(old.At)) {
			latest[v.Voter] = v
		}
	}
	for _, v := range latest {
		for _, s := range v.Suspects {
			if !slices.Contains(t.By[s], v.Voter) {
				t.By[s] = append(t.By[s], v.Voter)
			}
		}
	}
	for _, by := range t.By {
		slices.Sort(by)
	}
	return t
}

// Suspected reports whether any voter suspects the store: worth showing, and
// grounds for nothing.
func (t Tally) Suspected(s dfs.StoreID) bool { return len(t.By[s]) > 0 }

// Majority reports whether a majority of all voters suspects the store.
func (t Tally) Majority(s dfs.StoreID) bool { return t.Voters > 0 && len(t.By[s]) > t.Voters/2 }

const (
	// LeaderlessAfter is how long a control group must have had no leader for
	// the whole cluster to count as newly started.
	LeaderlessAfter = 30 * time.Second

	// StartGrace is how long after such a start nobody is declared down:
	// machines of one cluster do not come up at the same moment.
	StartGrace = 60 * time.Second
)

// NoDownBefore is the time before which a control leader, elected at elected
// after leaderless without any, declares nobody down: Input.NoDownBefore.
func NoDownBefore(elected time.Time, leaderless time.Duration) time.Time {
	if leaderless < LeaderlessAfter {
		return time.Time{}
	}
	return elected.Add(StartGrace)
}
