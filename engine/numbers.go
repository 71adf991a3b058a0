package engine

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// numbers is a set of segment numbers as ranges, both ends included.
// Invariant: sorted, and between two ranges there is a number.
type numbers [][2]uint64

// joined sorts ranges and joins what touches.
func joined(list [][2]uint64) numbers {
	slices.SortFunc(list, func(a, b [2]uint64) int { return cmp.Compare(a[0], b[0]) })
	var r numbers
	for _, x := range list {
		if last := len(r) - 1; last >= 0 && x[0] <= r[last][1]+1 {
			r[last][1] = max(r[last][1], x[1])
		} else {
			r = append(r, x)
		}
	}
	return r
}

// union adds all of another set.
func (r numbers) union(other numbers) numbers { return joined(slices.Concat(r, other)) }

// without is what another set does not have.
func (r numbers) without(other numbers) numbers {
	var left numbers
	at := 0
	for _, x := range r {
		from, rest := x[0], true
		for ; at < len(other) && other[at][1] < from; at++ {
		}
		for i := at; rest && i < len(other) && other[i][0] <= x[1]; i++ {
			if other[i][0] > from {
				left = append(left, [2]uint64{from, other[i][0] - 1})
			}
			from, rest = other[i][1]+1, other[i][1] < x[1]
		}
		if rest {
			left = append(left, [2]uint64{from, x[1]})
		}
	}
	return left
}

func (r numbers) has(n uint64) bool {
	return slices.ContainsFunc(r, func(x [2]uint64) bool { return n >= x[0] && n <= x[1] })
}

// highest is the highest number, 0 when there is none.
func (r numbers) highest() uint64 {
	if len(r) == 0 {
		return 0
	}
	return r[len(r)-1][1]
}

// valid reports whether the invariant holds of what was read.
func (r numbers) valid() bool {
	for i, x := range r {
		if x[0] == 0 || x[0] > x[1] || x[1]+1 == 0 || i > 0 && x[0] <= r[i-1][1]+1 {
			return false
		}
	}
	return true
}

// String names the segments.
func (r numbers) String() string {
	var list []string
	for _, x := range r {
		if x[0] == x[1] {
			list = append(list, segmentName(x[0]))
		} else {
			list = append(list, fmt.Sprintf("%s to %s", segmentName(x[0]), segmentName(x[1])))
		}
	}
	return strings.Join(list, ", ")
}
