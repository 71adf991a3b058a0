package namespace

import (
	"bytes"
	"errors"
	"maps"
	"slices"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// read asks something, and compares the answer with the tree.
func (s *storm) read() {
	s.t.Helper()
	inos := slices.Sorted(maps.Keys(s.tree.nodes))
	ino := inos[s.rng.IntN(len(inos))]
	n := s.tree.nodes[ino]
	name := s.free()
	if n.isDir() {
		name = s.name(ino)
	}
	q := &wire.Query{}
	switch s.rng.IntN(4) {
	case 0:
		a := &wire.AttrQuery{Inos: []uint64{uint64(ino)}}
		for _, other := range inos {
			if other.Group() == ino.Group() {
				a.Inos = append(a.Inos, uint64(other))
			}
		}
		q.Query = &wire.Query_Attr{Attr: a}
	case 1:
		q.Query = &wire.Query_Walk{Walk: &wire.WalkQuery{Start: uint64(ino), Names: [][]byte{[]byte(name)}}}
	case 2:
		q.Query = &wire.Query_ReadDir{ReadDir: &wire.ReadDirQuery{Ino: uint64(ino)}}
	default:
		q.Query = &wire.Query_Entry{Entry: &wire.EntryQuery{Parent: uint64(ino), Name: []byte(name)}}
	}
	res, err := s.w.query(ino.Group(), q)
	var locked *LockedError
	switch {
	case errors.As(err, &locked):
		s.did["locked read"]++
		return
	case err != nil:
		if kind := dfs.KindOf(err); !(kind == dfs.NotExist && n.dead || kind == dfs.NotDir && !n.isDir()) {
			s.fatalf("%v: %v; the tree has %+v", q, err, n)
		}
		return
	}
	s.did["read"]++
	switch a := res.Result.(type) {
	case *wire.QueryResult_Attr:
		for i, got := range a.Attr.Attrs {
			if n := s.tree.nodes[dfs.Ino(q.GetAttr().Inos[i])]; got.Ino != 0 {
				s.compare(got)
			} else if !n.dead {
				s.fatalf("inode %v is not there; the tree has %+v", n.ino, n)
			}
		}
		if len(a.Attr.Attrs) < len(q.GetAttr().Inos) {
			s.did["fewer attributes"]++
		}
	case *wire.QueryResult_Walk:
		var found dfs.Ino
		switch want := n.entries[name]; {
		case len(a.Walk.Steps) == 1:
			found = dfs.Ino(a.Walk.Steps[0].Ino)
			s.compare(a.Walk.Steps[0])
		case a.Walk.Next != 0:
			if found = dfs.Ino(a.Walk.Next); want != nil && a.Walk.NextType != want.typ {
				s.fatalf("%v/%s is a %v", ino, name, a.Walk.NextType)
			}
		}
		s.wantEntry(n, name, found)
	case *wire.QueryResult_Entry:
		s.wantEntry(n, name, dfs.Ino(a.Entry.Ino))
	case *wire.QueryResult_ReadDir:
		last := ""
		for _, e := range a.ReadDir.Entries {
			last = string(e.Name)
			s.wantEntry(n, last, dfs.Ino(e.Ino))
		}
		for want := range n.entries {
			if (want <= last || !a.ReadDir.More) && !slices.ContainsFunc(a.ReadDir.Entries, func(e *wire.DirEntry) bool { return string(e.Name) == want }) {
				s.fatalf("%v lists no %q: %v", ino, want, a.ReadDir)
			}
		}
	}
}

func (s *storm) wantEntry(n *plainNode, name string, found dfs.Ino) {
	s.t.Helper()
	var want dfs.Ino
	if e := n.entries[name]; e != nil && !n.dead {
		want = e.ino
	}
	if found != want {
		s.fatalf("%v/%s is %v; the tree has %v", n.ino, name, found, want)
	}
}

// checkGroups holds each group to what must be so at any moment.
func (s *storm) checkGroups() {
	s.t.Helper()
	for g := range stormGroups {
		for _, err := range Check(s.w.reader(dfs.GroupID(g + 1))) {
			s.fatalf("group %d: %v", g+1, err)
		}
	}
}

// calm lets everything come to its end, and compares the whole tree.
func (s *storm) calm() {
	s.t.Helper()
	for len(s.flights) > 0 {
		s.crash()
	}
	if err := s.resolver().settle(stormGroups); err != nil {
		s.fatalf("settle: %v", err)
	}
	groups := map[dfs.GroupID]raftgroup.Reader{}
	for g := range stormGroups {
		groups[dfs.GroupID(g+1)] = s.w.reader(dfs.GroupID(g + 1))
		if rows := s.w.rows(dfs.GroupID(g+1), "abcdefghilmnoqrsuvwxy"); len(rows) > 0 {
			s.fatalf("group %d has rows of transactions left: %x", g+1, rows)
		}
	}
	for _, err := range CheckTree(groups) {
		s.fatalf("check: %v", err)
	}
	for _, ino := range s.tree.live {
		res, err := s.w.query(ino.Group(), &wire.Query{Query: &wire.Query_Attr{Attr: &wire.AttrQuery{Inos: []uint64{uint64(ino)}}}})
		if err != nil {
			s.fatalf("%v", err)
		}
		s.compare(res.GetAttr().Attrs[0])
		n := s.tree.nodes[ino]
		for name := range n.entries {
			res, err := s.w.query(ino.Group(), &wire.Query{Query: &wire.Query_Entry{Entry: &wire.EntryQuery{Parent: uint64(ino), Name: []byte(name)}}})
			if err != nil {
				s.fatalf("%v", err)
			}
			s.wantEntry(n, name, dfs.Ino(res.GetEntry().Ino))
		}
	}
	if !s.trimmed {
		s.checkMoves()
	}
}

// checkMoves looks into history: both names of what was moved from one group to
// another changed at the same version.
func (s *storm) checkMoves() {
	s.t.Helper()
	for _, m := range s.moves {
		left := historyKey(m.at, dentryKey(dfs.Ino(m.op.Parent), m.op.Name))
		_, ok, err := s.w.reader(dfs.Ino(m.op.Parent).Group()).Get(left)
		if err != nil {
			s.fatalf("%v", err)
		}
		entered := false
		to := dentryKey(dfs.Ino(m.op.NewParent), m.op.NewName)
		r := s.w.reader(dfs.Ino(m.op.NewParent).Group())
		e, err := readDentry(r, dfs.Ino(m.op.NewParent), m.op.NewName)
		if err != nil {
			s.fatalf("%v", err)
		}
		entered = e != nil && e.version == m.at
		err = scan(r, []byte{tagHistory}, []byte{tagHistory + 1}, func(key, value []byte) (bool, error) {
			if bytes.Equal(key[9:], to) {
				e, err := decodeDentry(key[9:], value[1:])
				entered = entered || e.version == m.at
				return true, err
			}
			return true, nil
		})
		if err != nil || ok != entered {
			s.fatalf("%v at %d: left %v, entered %v, %v", m.op, m.at, ok, entered, err)
		}
	}
	s.moves = nil
}
