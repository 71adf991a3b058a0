package config

import (
	"fmt"
	"slices"
	"strings"

	"dfsd/dfs"
)

// Fault is one thing that is wrong with a configuration.
type Fault struct {
	Where string // file:line, a flag or a variable; "" where a setting is missing
	Key   string // of the setting, as it was written; may be empty
	Value string // as it was written, quoted; may be empty
	Want  string // what would be right

	line int // in the file, from 1 up; 0: the fault is not in the file
}

func (f Fault) String() string {
	key := f.Key
	if f.line == 0 && f.Where != "" {
		key = "" // flags and variables have the name of the setting
	}
	parts := slices.DeleteFunc([]string{f.Where, key, f.Value, f.Want}, func(s string) bool { return s == "" })
	return strings.Join(parts, ": ")
}

// Faults is everything that is wrong with a configuration, that of the file
// first and by line, as an error of the kind dfs.Invalid: the process exits
// with code 2.
type Faults []Fault

func (f Faults) Error() string {
	if len(f) == 1 {
		return "configuration: " + f[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "configuration: %d faults", len(f))
	for _, fault := range f {
		b.WriteString("\n  " + fault.String())
	}
	return b.String()
}

// Is reports whether target is dfs.Invalid.
func (f Faults) Is(target error) bool { return target == dfs.Invalid }

// noSuch says that there is no such setting, and which one was most likely
// meant: one in another section, else the one with the fewest letters to
// change. None is named when it would take more than a third of them.
func noSuch(what, prefix, unknown string, known []string) string {
	unknown = strings.TrimPrefix(unknown, prefix)
	last := unknown[strings.LastIndexByte(unknown, '.')+1:]
	best, least := "", max(2, len(unknown)/3)
	for _, k := range known {
		k = strings.TrimPrefix(k, prefix)
		d := distance(unknown, k)
		if k == last || strings.HasSuffix(k, "."+last) {
			d = 0
		}
		if d < len(unknown) && (d < least || d == least && best == "") {
			best, least = k, d
		}
	}
	if best == "" {
		return "there is no such " + what + "; docs/OPERATIONS.md and dfsd --role=meta --help list what there is"
	}
	return "there is no such " + what + "; the nearest is " + prefix + best
}

// distance is the number of bytes to insert, remove or replace to make b of a.
// Only the first maxDistanceLen bytes of each count.
func distance(a, b string) int {
	a, b = a[:min(len(a), maxDistanceLen)], b[:min(len(b), maxDistanceLen)]
	row := make([]int, len(b)+1) // distances from a[:i] to each prefix of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}

// maxDistanceLen keeps the search for a nearest key cheap; keys are shorter.
const maxDistanceLen = 64
