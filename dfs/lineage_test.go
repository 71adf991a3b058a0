package dfs

import (
	"slices"
	"testing"
)

func TestLineage(t *testing.T) {
	l := Lineage{}
	if l.Holds(0) || l.Holds(1) || l.Since(1) != 0 {
		t.Errorf("an empty lineage holds something")
	}
	one := l.Offer(1)
	two := one.Offer(2).Offer(2)
	if len(l.Offered) != 0 || !slices.Equal(one.Offered, []uint64{1}) || !slices.Equal(two.Offered, []uint64{1, 2}) {
		t.Errorf("%v %v %v", l, one, two)
	}
	two.Accepted = 9
	for start, want := range map[uint64]uint64{9: 1, 1: 2, 2: 0, 8: 0, 0: 0} {
		if got := two.Since(start); got != want || two.Holds(start) != (start == 9 || start == 1 || start == 2) {
			t.Errorf("since %d comes %d, want %d; held %v", start, got, want, two.Holds(start))
		}
	}
	if accepted := (Lineage{Accepted: 9}).Offer(9); len(accepted.Offered) != 0 {
		t.Errorf("the accepted start was offered again: %v", accepted)
	}
}

// TestLineageIsBounded: what is dropped is in the middle, so that what a copy is
// barred by and the newest starts stay.
func TestLineageIsBounded(t *testing.T) {
	l := Lineage{Accepted: 1}
	for start := uint64(2); start < 5*MaxOffered; start++ {
		l = l.Offer(start)
		if len(l.Offered) > MaxOffered || !slices.IsSorted(l.Offered) || l.Offered[len(l.Offered)-1] != start || l.Since(1) != 2 {
			t.Fatalf("after %d: %v", start, l)
		}
	}
	for _, start := range []uint64{1, 2, MaxOffered/2 + 1, 5*MaxOffered - 1, 5*MaxOffered - MaxOffered/2} {
		if !l.Holds(start) {
			t.Errorf("%d was dropped: %v", start, l)
		}
	}
}
