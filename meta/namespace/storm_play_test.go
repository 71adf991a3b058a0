package namespace

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// node picks something that exists, or sometimes something that did.
func (s *storm) node(dir bool) dfs.Ino {
	for range 20 {
		if ino := s.tree.live[s.rng.IntN(len(s.tree.live))]; s.tree.nodes[ino].isDir() == dir {
			return ino
		}
	}
	if s.rng.IntN(4) == 0 {
		inos := slices.Sorted(maps.Keys(s.tree.nodes))
		return inos[s.rng.IntN(len(inos))]
	}
	return dfs.RootIno
}

// name picks one that is there, mostly.
func (s *storm) name(dir dfs.Ino) string {
	names := slices.Sorted(maps.Keys(s.tree.nodes[dir].entries))
	if len(names) > 0 && s.rng.IntN(4) > 0 {
		return names[s.rng.IntN(len(names))]
	}
	return s.free()
}

func (s *storm) free() string { return string(rune('a' + s.rng.IntN(6))) }

func (s *storm) operation() *wire.Command {
	if s.loops {
		return s.move()
	}
	dir := s.node(true)
	switch n := s.rng.IntN(20); {
	case n < 4 && len(s.tree.live) < 60:
		return mkdirCmd(dir, s.free())
	case n < 7:
		return createCmd(dir, s.free(), s.rng.IntN(2) == 0)
	case n < 9:
		return unlinkCmd(dir, s.name(dir))
	case n < 11:
		return rmdirCmd(dir, s.name(dir))
	case n < 13:
		return linkCmd(s.node(s.rng.IntN(10) == 0), dir, s.free())
	default:
		to := s.node(true)
		cmd := renameCmd(dir, s.name(dir), to, s.free())
		if s.rng.IntN(3) == 0 {
			cmd.GetRename().NewName = []byte(s.name(to))
		}
		cmd.GetRename().NoReplace = s.rng.IntN(5) == 0
		return cmd
	}
}

// move moves a directory to below another one, best of all so that it would make a
// loop together with what is under way; now and then it makes one.
func (s *storm) move() *wire.Command {
	n, to := s.tree.nodes[s.node(true)], s.node(true)
	if len(s.flights) > 0 && s.rng.IntN(2) == 0 {
		if op := s.commands[s.flights[s.rng.IntN(len(s.flights))].of].GetRename(); op != nil {
			moves, under := s.tree.nodes[dfs.Ino(op.Parent)].entries[string(op.Name)], s.tree.nodes[dfs.Ino(op.NewParent)]
			for under.parent != nil && s.rng.IntN(2) == 0 {
				under = under.parent
			}
			if moves != nil && under.parent != nil {
				n, to = under, moves.ino
			}
		}
	}
	if n.parent == nil || n.dead || len(s.tree.live) < 10 {
		return mkdirCmd(n.ino, fmt.Sprint(len(s.commands)))
	}
	for name, e := range n.parent.entries {
		if e == n {
			return renameCmd(n.parent.ino, name, to, name)
		}
	}
	panic("a directory without a name")
}

// begin has a session ask for something: its driver has proposed nothing yet.
func (s *storm) begin() {
	ss := s.sessions[s.rng.IntN(len(s.sessions))]
	cmd := s.operation()
	ss.seq++
	cmd.Session, cmd.Seq, cmd.Cred = ss.id, ss.seq, &wire.Cred{Uid: 1, Gid: 2}
	place := s.rng.IntN(stormGroups) + 1
	if s.loops && s.rng.IntN(2) == 0 {
		place = int(Coordinator(cmd))
	}
	s.fly(cmd, place)
}

func (s *storm) fly(cmd *wire.Command, place int) {
	of := command{cmd.Session, cmd.Seq}
	s.commands[of] = cmd
	f := &flight{of: of}
	f.next, f.stop = iter.Pull(func(yield func(struct{}) bool) {
		d := &driver{w: s.w, crash: -1, rng: s.rng, place: dfs.GroupID(place), life: uint32(200 + s.rng.IntN(10_000))}
		d.apply = func(g dfs.GroupID, le *wire.LogEntry) (*wire.Result, error) {
			if !yield(struct{}{}) {
				return nil, errCrash
			}
			return s.apply(g, le), nil
		}
		d.pause = func() bool { return yield(struct{}{}) }
		d.refused = s.refusedBy
		res, err := d.do(cmd)
		var locked *LockedError
		if err != nil && !errors.Is(err, errCrash) && !errors.As(err, &locked) {
			s.fatalf("%v: %v", cmd, err)
		}
		if err == nil && dfs.Kind(res.Kind) == dfs.CrossGroup {
			s.fatalf("%v was answered %v", cmd, res)
		}
		if err == nil && res.Kind == 0 && s.done[of] == nil {
			s.fatalf("%v was answered %v, and not done", cmd, res)
		}
	})
	s.flights = append(s.flights, f)
}

func (s *storm) advance() {
	if len(s.flights) == 0 {
		return
	}
	i := s.rng.IntN(len(s.flights))
	if _, more := s.flights[i].next(); !more {
		of := s.flights[i].of
		s.flights = slices.Delete(s.flights, i, i+1)
		if s.rng.IntN(4) == 0 && len(s.flights) < 12 { // its client asks again, as if no answer had come
			s.fly(s.commands[of], s.rng.IntN(stormGroups)+1)
		}
	}
}

func (s *storm) crash() {
	if len(s.flights) == 0 {
		return
	}
	i := s.rng.IntN(len(s.flights))
	s.flights[i].stop()
	s.flights = slices.Delete(s.flights, i, i+1)
	s.did["crash"]++
}

// sendLate has the second copy of an entry arrive.
func (s *storm) sendLate() {
	if len(s.late) == 0 {
		return
	}
	i := s.rng.IntN(len(s.late))
	l := s.late[i]
	if s.rng.IntN(3) > 0 {
		s.late = slices.Delete(s.late, i, i+1)
	}
	res := s.apply(l.g, l.le)
	s.did["late"]++
	switch {
	case l.le.GetTxnBegin() != nil && res.Txn != nil:
		s.did["late begin"]++
	case l.le.GetTxnPrepare() != nil && res.Kind == 0:
		s.did["late share"]++
	}
	if len(s.late) > 200 {
		s.late = s.late[100:]
	}
}

// resolver is a driver of a leader that has just taken over.
func (s *storm) resolver() *driver {
	d := newDriver(s.w)
	d.rng, d.refused = s.rng, s.refusedBy
	d.apply = func(g dfs.GroupID, le *wire.LogEntry) (*wire.Result, error) { return s.apply(g, le), nil }
	return d
}

// resolve has a new leader of a group end some transaction, whoever else drives it.
func (s *storm) resolve() {
	g := dfs.GroupID(s.rng.IntN(stormGroups) + 1)
	list, err := Transactions(s.w.reader(g), nil, 100)
	if err != nil {
		s.fatalf("%v", err)
	}
	if len(list) == 0 {
		return
	}
	txn := list[s.rng.IntN(len(list))]
	switch {
	case txn.Commit != 0:
		s.did["resolve finish"]++
		err = s.resolver().finish(txn)
	case s.rng.IntN(2) == 0:
		s.did["resolve abort"]++
		_, err = s.resolver().abort(txn, &wire.Result{Kind: uint32(dfs.Unavailable), Text: "its driver is gone"})
	default:
		s.did["resolve on"]++
		_, err = s.resolver().decide(txn)
	}
	var locked *LockedError
	if err != nil && !errors.As(err, &locked) {
		s.fatalf("%v: %v", txn.ID, err)
	}
}

func (s *storm) askOne() {
	g := dfs.GroupID(s.rng.IntN(stormGroups) + 1)
	parts, err := Parts(s.w.reader(g), nil, 100)
	if err == nil && len(parts) > 0 {
		s.did["ask"]++
		err = s.resolver().ask(g, parts[s.rng.IntN(len(parts))].Txn)
	}
	if err != nil {
		s.fatalf("%v", err)
	}
}

// fence ends a session, or goes on to fence those that end.
func (s *storm) fence() {
	var dying []*stormSession
	for _, ss := range s.sessions {
		if ss.dying {
			dying = append(dying, ss)
		}
	}
	if len(dying) == 0 {
		if s.rng.IntN(3) == 0 {
			s.sessions[s.rng.IntN(len(s.sessions))].dying = true
			s.open()
		}
		return
	}
	// One group after the other; a new session is opened when all have it.
	s.fences++
	op := &wire.FenceOp{Highest: s.lastID, Index: s.fences}
	for _, ss := range s.sessions {
		if !ss.dying {
			op.Live = append(op.Live, &wire.InoRange{First: ss.id, Count: 1})
		}
	}
	slices.SortFunc(op.Live, func(a, b *wire.InoRange) int { return int(a.First) - int(b.First) })
	g := s.rng.IntN(stormGroups) + 1
	if res := s.apply(dfs.GroupID(g), &wire.LogEntry{Entry: &wire.LogEntry_Fence{Fence: op}}); res.Kind != 0 {
		s.fatalf("fence: %v", res)
	}
	s.did["fence"]++
	for _, ss := range dying {
		s.fenced[g][ss.id] = true
	}
	s.sessions = slices.DeleteFunc(s.sessions, func(ss *stormSession) bool {
		for g := 1; g <= stormGroups; g++ {
			if !s.fenced[g][ss.id] {
				return false
			}
		}
		return true
	})
}

func (s *storm) trim() {
	g := dfs.GroupID(s.rng.IntN(stormGroups) + 1)
	before, err := LastVersion(s.w.reader(g))
	if err != nil {
		s.fatalf("%v", err)
	}
	op := &wire.TrimOp{Before: uint64(before + 1000<<16), Limit: uint32(1 + s.rng.IntN(50))}
	for n := 0; ; n++ { // as the group's leader does, until nothing is left that may go
		bound, err := HistoryBound(s.w.reader(g))
		if err != nil {
			s.fatalf("%v", err)
		}
		oldest, err := HistoryOldest(s.w.reader(g))
		if err != nil || n > 10_000 {
			s.fatalf("history from %d on, bound %d, is trimmed for the %dth time, %v", oldest, bound, n, err)
		}
		if oldest == 0 || oldest >= bound || s.rng.IntN(20) == 0 {
			break
		}
		if res := s.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Trim{Trim: op}}); res.Kind != 0 {
			s.fatalf("trim: %v", res)
		}
	}
	s.trimmed = true
	s.did["trim"]++
}
