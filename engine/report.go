package engine

import (
	"cmp"
	"fmt"
	"slices"

	"dfsd/dfs"
)

// The bounds of a report. What is beyond is counted.
const (
	maxFaults = 10_000
	maxNotes  = 1000
)

// Fault is one thing that is wrong in a store's directory.
type Fault struct {
	File    string // in the directory; "": the directory as a whole
	Segment uint64 // when File is one
	Offset  int64  // in File, when Length is not 0
	Length  int64  // bytes; 0: File as a whole

	Named bool // ID and Shard say which block it is about
	ID    dfs.BlockID
	Shard uint8

	// Known: the store has found it itself and acts on it. It refuses reads of
	// the block, and takes a good copy in its place.
	Known bool

	Text string

	gap bool // records may be lost in these bytes, and nothing in them says which
}

func (f *Fault) String() string {
	s := f.File
	if f.Length > 0 {
		s += fmt.Sprintf(" at %d", f.Offset)
	}
	if f.Named {
		if s != "" {
			s += ": "
		}
		s += "block " + f.ID.String()
		if f.Shard != 0 {
			s += fmt.Sprintf(" shard %d", f.Shard)
		}
	}
	if s != "" {
		s += ": "
	}
	return s + f.Text
}

// Report is what Verify found.
type Report struct {
	Faults     []Fault  // in the order of their place, at most 10,000
	MoreFaults int      // that were found and have no room in Faults
	Notes      []string // what is worth knowing and not wrong, at most 1,000

	Segments   int    // that were read
	Bytes      int64  // of segments that were read
	Batches    int    //
	Records    int    // that are sound
	Rows       uint64 // of the index: blocks and tombstones
	Blocks     uint64 // of Rows
	Tombstones uint64 // of Rows
}

// OK reports that nothing is wrong.
func (r *Report) OK() bool { return len(r.Faults) == 0 }

func (r *Report) fault(f Fault) {
	if len(r.Faults) >= maxFaults {
		r.MoreFaults++
		return
	}
	r.Faults = append(r.Faults, f)
}

func (r *Report) note(format string, args ...any) {
	if len(r.Notes) < maxNotes {
		r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
	}
}

// add takes over what another report has found.
func (r *Report) add(from *Report) {
	for _, f := range from.Faults {
		r.fault(f)
	}
	r.MoreFaults += from.MoreFaults
	for _, n := range from.Notes {
		r.note("%s", n)
	}
}

// settle sorts the faults by their place, and drops gaps that others account for
// by the name of a block. indexed: the index was compared with the segments, so
// that what is in the other gaps is needed by nobody, unless the index says that
// it does not know.
func (r *Report) settle(indexed bool) {
	slices.SortStableFunc(r.Faults, func(a, b Fault) int {
		if a.Segment == 0 && b.Segment == 0 {
			return 0
		}
		return cmp.Or(cmp.Compare(a.Segment, b.Segment), cmp.Compare(a.Offset, b.Offset))
	})
	named := map[uint64][]Fault{}
	for _, f := range r.Faults {
		if f.Named && f.Segment != 0 {
			named[f.Segment] = append(named[f.Segment], f)
		}
	}
	r.Faults = slices.DeleteFunc(r.Faults, func(f Fault) bool {
		if !f.gap {
			return false
		}
		if slices.ContainsFunc(named[f.Segment], func(n Fault) bool { return n.Offset >= f.Offset && n.Offset < f.Offset+f.Length }) {
			return true
		}
		if indexed && !f.Known {
			r.note("%s at %d: %d bytes are damaged in which nothing is needed any more: %s", f.File, f.Offset, f.Length, f.Text)
		}
		return indexed && !f.Known
	})
}
