package repair

import "dfsd/dfs"

// Redundancy counts the placement groups of a map by how well they are. A PG
// may be in several of the counts but Full, which excludes the others.
type Redundancy struct {
	PGs int

	// Full: all copies are up, complete and where they should be.
	Full int

	// Moving: all copies are up and complete, some not where they should be yet.
	Moving int

	// Degraded: fewer complete copies are up than the class is wide.
	Degraded int

	// BelowMinimum: fewer acting stores are up than the class needs; writes
	// use other PGs, reads go on while a copy is up.
	BelowMinimum int

	// Stalled: so few complete copies are up that not every byte can be read;
	// nothing is dropped or replaced until one returns.
	Stalled int

	// New: never activated; there is nothing in it. Not counted above.
	New int
}

// Summarize counts the placement groups of a map.
func Summarize(m *dfs.Map) Redundancy {
	up := map[dfs.StoreID]bool{}
	for _, s := range m.Stores {
		up[s.ID] = s.State == dfs.StoreUp
	}
	r := Redundancy{PGs: len(m.PGs)}
	for _, pg := range m.PGs {
		if pg.Active.Epoch == 0 {
			r.New++
			continue
		}
		copies, acting := 0, 0
		for _, s := range pg.Active.Stores {
			if !up[s] {
				continue
			}
			acting++
			if pg.IsComplete(s) {
				copies++
			}
		}
		switch {
		case copies < pg.Class.Width():
			r.Degraded++
		case pg.Full():
			r.Full++
		default:
			r.Moving++
		}
		if acting < pg.Class.MinActing() {
			r.BelowMinimum++
		}
		if copies < pg.Class.NeedComplete() {
			r.Stalled++
		}
	}
	return r
}

// Whole reports whether every placement group is full.
func (r Redundancy) Whole() bool { return r.PGs > 0 && r.Full == r.PGs }
