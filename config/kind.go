package config

import (
	"fmt"
	"math"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"dfsd/dfs"
)

// kind is how a setting is written.
type kind struct {
	typ  string // one word, for the help
	want string // what would be right, in words
	list bool
	// pairs: items are name=value, and a file may give them as a mapping.
	pairs bool

	// parse puts items, one unless it is a list, to their place in v. It
	// returns the indexes of those that are wrong.
	parse func(v *values, items []string) (wrong []int)
}

// scalar makes a kind of one item from a function that reads it.
func scalar[T any](typ, want string, at func(*values) *T, read func(string) (T, bool)) kind {
	return kind{typ: typ, want: want, parse: func(v *values, items []string) []int {
		x, ok := read(items[0])
		if !ok {
			return []int{0}
		}
		*at(v) = x
		return nil
	}}
}

// list makes a kind of several items; read sees the ones before each.
func list[T any](typ, want string, at func(*values) *[]T, read func(string, []T) (T, bool)) kind {
	return kind{typ: typ, want: want, list: true, parse: func(v *values, items []string) (wrong []int) {
		var all []T
		for i, item := range items {
			if x, ok := read(item, all); ok {
				all = append(all, x)
			} else {
				wrong = append(wrong, i)
			}
		}
		*at(v) = all
		return wrong
	}}
}

func duration(least, most time.Duration, at func(*values) *time.Duration) kind {
	want := fmt.Sprintf("a time from %s to %s with its unit", shortDuration(least), shortDuration(most))
	return scalar("time", want, at, func(s string) (time.Duration, bool) {
		d, err := time.ParseDuration(s)
		return d, err == nil && d >= least && d <= most
	})
}

// shortDuration writes a duration without the zero parts at its end.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func integer(least, most int, at func(*values) *int) kind {
	return scalar("number", fmt.Sprintf("a whole number from %d to %d", least, most), at, func(s string) (int, bool) {
		n, err := strconv.Atoi(s)
		return n, err == nil && n >= least && n <= most
	})
}

func number(least, most float64, at func(*values) *float64) kind {
	return scalar("number", fmt.Sprintf("a number from %g to %g", least, most), at, func(s string) (float64, bool) {
		x, err := strconv.ParseFloat(s, 64)
		return x, err == nil && x >= least && x <= most
	})
}

// size reads bytes, which must be a multiple of step.
func size[T int | int64](least, most, step T, at func(*values) *T) kind {
	want := fmt.Sprintf("a size from %s to %s", formatSize(int64(least)), formatSize(int64(most)))
	if step > 1 {
		want += ", a multiple of " + formatSize(int64(step))
	}
	return scalar("size", want, at, func(s string) (T, bool) {
		n, ok := parseSize(s)
		return T(n), ok && n >= int64(least) && n <= int64(most) && n%int64(step) == 0
	})
}

type sizeUnit struct {
	name  string
	bytes int64
}

// sizeUnits are the units of a size, the long names first.
func sizeUnits() []sizeUnit {
	return []sizeUnit{
		{"PiB", 1 << 50}, {"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
		{"PB", 1e15}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}, {"", 1},
	}
}

// parseSize reads a whole number of bytes or of a unit: 4194304, 4MiB, 4 MB.
func parseSize(s string) (int64, bool) {
	for _, unit := range sizeUnits() {
		digits, ok := strings.CutSuffix(s, unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSuffix(digits, " "), 10, 63)
		return int64(n) * unit.bytes, err == nil && n <= uint64(math.MaxInt64/unit.bytes)
	}
	return 0, false
}

// formatSize writes a size in the largest unit that it is a whole number of.
func formatSize(n int64) string {
	for _, unit := range sizeUnits() {
		if n != 0 && unit.bytes&(unit.bytes-1) == 0 && n%unit.bytes == 0 {
			return strconv.FormatInt(n/unit.bytes, 10) + unit.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// boolType is how pflag knows that a flag may stand without a value. It is not
// "bool", for which viper would guess a value where the text is neither.
const boolType = "boolfunc"

func boolean(at func(*values) *bool) kind {
	return scalar(boolType, "true or false", at, func(s string) (bool, bool) {
		return s == "true", s == "true" || s == "false"
	})
}

func oneOf(at func(*values) *string, choices ...string) kind {
	last := len(choices) - 1
	want := strings.Join(choices[:last], ", ") + " or " + choices[last]
	return scalar("word", want, at, func(s string) (string, bool) { return s, slices.Contains(choices, s) })
}

func class(at func(*values) *dfs.Class) kind {
	want := fmt.Sprintf("a storage class: rep1 to rep16, or ecK+M with K from 2, M from 1 and K+M up to %d", dfs.MaxShards)
	return scalar("class", want, at, func(s string) (dfs.Class, bool) {
		c, err := dfs.ParseClass(s)
		return c, err == nil
	})
}

func clusterID(at func(*values) *dfs.ClusterID) kind {
	return scalar("id", "32 hexadecimal digits", at, func(s string) (dfs.ClusterID, bool) {
		id, err := dfs.ParseClusterID(s)
		return id, err == nil && !id.IsZero()
	})
}

// roles reads meta, storage or meta,storage, in a file as a list too.
func roles(at func(*values) *dfs.Role) kind {
	return kind{typ: "roles", want: "meta, storage, or both", list: true, parse: func(v *values, items []string) (wrong []int) {
		var all dfs.Role
		for i, item := range items {
			if r, err := dfs.ParseRole(item); err != nil || all.Has(r) {
				wrong = append(wrong, i)
			} else {
				all |= r
			}
		}
		*at(v) = all
		return wrong
	}}
}

// maxNameLen bounds names that travel in every map and log line.
const maxNameLen = 63

// isName reports whether s can name a node, a label or its value: what fits
// in a file name, a log line and a command without quotes.
func isName(s string) bool {
	if s == "" || len(s) > maxNameLen {
		return false
	}
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("-_.", rune(c))) {
			return false
		}
	}
	return true
}

func name(at func(*values) *string) kind {
	want := fmt.Sprintf("a name of 1 to %d letters, digits, and after the first also - _ .", maxNameLen)
	return scalar("name", want, at, func(s string) (string, bool) { return s, isName(s) })
}

func path(at func(*values) *string) kind {
	return scalar("path", "a path", at, readPath)
}

func readPath(s string) (string, bool) {
	if s == "" || len(s) > dfs.MaxPath || strings.ContainsRune(s, 0) {
		return "", false
	}
	return filepath.Clean(s), true
}

func paths(at func(*values) *[]string) kind {
	want := fmt.Sprintf("1 to %d paths, none of them within another", dfs.MaxStoresPerNode)
	return list("paths", want, at, func(s string, before []string) (string, bool) {
		p, ok := readPath(s)
		apart := !slices.ContainsFunc(before, func(q string) bool { return within(p, q) || within(q, p) })
		return p, ok && apart && len(before) < dfs.MaxStoresPerNode
	})
}

// within reports whether p is q or below it. Both are clean.
func within(p, q string) bool {
	rel, err := filepath.Rel(q, p)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// splitAddress reads host:port with a port from 1 up.
func splitAddress(s string) (host string, port int, ok bool) {
	host, digits, err := net.SplitHostPort(s)
	if err != nil || strings.ContainsAny(host, " \t/") || len(host) > 255 {
		return "", 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	return host, int(n), err == nil && n > 0
}

func address(at func(*values) *string) kind {
	return scalar("address", "host:port with a port from 1 to 65535", at, func(s string) (string, bool) {
		_, _, ok := splitAddress(s)
		return s, ok
	})
}

// maxMetaNodes bounds the first meta nodes: more voters only make Raft slower.
const maxMetaNodes = 15

func metaNodes(at func(*values) *[]MetaNode) kind {
	want := fmt.Sprintf("1 to %d of host:port or name=host:port, none twice", maxMetaNodes)
	k := list("nodes", want, at, func(s string, before []MetaNode) (MetaNode, bool) {
		n := MetaNode{Addr: s}
		if named, addr, ok := strings.Cut(s, "="); ok {
			if !isName(named) {
				return n, false
			}
			n = MetaNode{named, addr}
		}
		host, _, ok := splitAddress(n.Addr)
		twice := slices.ContainsFunc(before, func(b MetaNode) bool { return b.Addr == n.Addr || n.Name != "" && b.Name == n.Name })
		return n, ok && !unspecified(host) && !twice && len(before) < maxMetaNodes
	})
	k.pairs = true
	return k
}

// maxLabels bounds the labels of a node, which travel in every map.
const maxLabels = 16

func labels(at func(*values) *map[string]string) kind {
	want := fmt.Sprintf("up to %d of label=value, both of letters, digits and - _ ., none twice", maxLabels)
	return kind{typ: "labels", want: want, list: true, pairs: true, parse: func(v *values, items []string) (wrong []int) {
		all := make(map[string]string)
		for i, item := range items {
			label, value, _ := strings.Cut(item, "=")
			if _, twice := all[label]; twice || !isName(label) || !isName(value) || len(all) == maxLabels {
				wrong = append(wrong, i)
			} else {
				all[label] = value
			}
		}
		*at(v) = all
		return wrong
	}}
}
