package namespace

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// TestStorms plays random operations of several sessions on several groups against
// one plain tree. Many are under way at a time, entry by entry; their drivers crash
// anywhere, entries come twice and late, other leaders abort and finish what they find,
// clocks are off, sessions are fenced in one group after the other, history is
// trimmed. The tree changes with the entry that commits, and any read that is
// answered must find it as it is at that moment.
func TestStorms(t *testing.T) {
	first, n := uint64(1), uint64(*lifeSeeds)
	if *lifeSeed != 0 {
		first, n = *lifeSeed, 1
	}
	did := map[string]int{}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := newStorm(t, seed)
			for i := range 3 * *lifeSteps {
				s.step()
				if i%200 == 199 {
					s.checkGroups()
				}
				if i%900 == 899 {
					s.calm()
				}
			}
			s.calm()
			for what, n := range s.did {
				did[what] += n
			}
		})
	}
	if t.Failed() || *lifeSeed != 0 {
		return
	}
	for _, what := range []string{
		"commit mkdir", "commit rmdir", "commit create", "commit unlink", "commit link", "commit rename", "alone mkdir", "alone rmdir", "alone create",
		"alone unlink", "alone link", "alone rename", "refused", "refused loop", "refused by a participant", "refused at the commit", "crash", "late", "late begin", "late share", "resolve abort", "resolve finish", "ask",
		"fence", "fenced", "commit refused", "locked read", "read", "locked", "outdated", "trim", "directory moved", "fewer attributes",
	} {
		if did[what] == 0 {
			t.Errorf("no storm has done this: %s; they have done %v", what, did)
		}
	}
	t.Logf("done: %v", did)
}

// TestLoopStorms only moves directories, below each other and back: whatever is under
// way at the same time, no directory comes to lie below itself.
func TestLoopStorms(t *testing.T) {
	first, n := uint64(1), uint64(*lifeSeeds)
	if *lifeSeed != 0 {
		first, n = *lifeSeed, 1
	}
	did := map[string]int{}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := newStorm(t, seed)
			s.loops = true
			for range 3 * *lifeSteps {
				s.step()
			}
			s.calm()
			for what, n := range s.did {
				did[what] += n
			}
		})
	}
	if !t.Failed() && *lifeSeed == 0 && (did["refused loop"] == 0 || did["directory moved"] == 0 || did["alone rename"] == 0 || did["locked"] == 0) {
		t.Errorf("the storms have done %v", did)
	}
	t.Logf("done: %v", did)
}

// TestStormsNoticeLateShares proves that the storms would notice a machine that
// carries a share out twice.
func TestStormsNoticeLateShares(t *testing.T) {
	for seed := uint64(1); seed <= 40; seed++ {
		if noticed := stormNotices(t, seed, Options{TakeLateShares: true}); noticed != "" {
			t.Logf("seed %d: %s", seed, noticed)
			return
		}
	}
	t.Fatal("no share was carried out twice in 40 storms")
}

// stormNotices plays a storm against a machine with a bug, and returns what it finds.
func stormNotices(t *testing.T, seed uint64, opts Options) (noticed string) {
	s := newStorm(watcher{t}, seed)
	s.w.opts = opts
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(finding)
			if !ok {
				panic(r)
			}
			noticed = string(f)
		}
		for _, f := range s.flights {
			f.stop()
		}
	}()
	for range 2000 {
		s.step()
	}
	s.calm()
	return ""
}

// watcher makes a failure a panic, for a test that wants one.
type watcher struct{ testing.TB }

type finding string

func (w watcher) Fatalf(format string, args ...any) { panic(finding(fmt.Sprintf(format, args...))) }
func (w watcher) Fatal(args ...any)                 { panic(finding(fmt.Sprint(args...))) }

const stormGroups = 4

// storm is one such life.
type storm struct {
	t     testing.TB
	rng   *rand.Rand
	seed  uint64
	w     *world
	tree  *plainTree
	loops bool // only directories are moved
	base  dfs.Version
	skew  [stormGroups + 1]dfs.Version

	flights  []*flight
	sessions []*stormSession
	lastID   uint64
	fences   uint64 // index of the last reading of the control group
	fenced   [stormGroups + 1]map[uint64]bool

	commands map[command]*wire.Command
	done     map[command]*wire.Result // what was done, and the answer
	refused  map[command]dfs.Kind     // for good
	late     []lateEntry
	moves    []moved
	trimmed  bool
	seen     map[dfs.Ino]dfs.Version
	did      map[string]int
}

type command struct{ session, seq uint64 }

type stormSession struct {
	id, seq uint64
	dying   bool
}

// flight is an operation whose driver has proposed some of its entries.
type flight struct {
	of   command
	next func() (struct{}, bool)
	stop func()
}

// lateEntry is one that was sent twice, and whose second copy is still on its way.
type lateEntry struct {
	g  dfs.GroupID
	le *wire.LogEntry
}

// moved is a rename between two groups that was committed.
type moved struct {
	op *wire.RenameOp
	at dfs.Version
}

func newStorm(t testing.TB, seed uint64) *storm {
	s := &storm{
		t: t, rng: rand.New(rand.NewPCG(seed, 7)), seed: seed, w: newTxnWorld(t, stormGroups), tree: newPlainTree(),
		commands: map[command]*wire.Command{}, done: map[command]*wire.Result{}, refused: map[command]dfs.Kind{},
		seen: map[dfs.Ino]dfs.Version{}, did: map[string]int{},
	}
	s.base = s.w.clock
	for g := range s.fenced {
		s.fenced[g] = map[uint64]bool{}
	}
	for range 4 {
		s.open()
	}
	return s
}

func (s *storm) open() {
	s.lastID++
	s.sessions = append(s.sessions, &stormSession{id: s.lastID})
}

func (s *storm) fatalf(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("seed %d: %s", s.seed, fmt.Sprintf(format, args...))
}

func (s *storm) step() {
	switch n := s.rng.IntN(100); {
	case n < 15 && len(s.flights) < 12:
		s.begin()
	case n < 70:
		s.advance()
	case n < 74:
		s.crash()
	case n < 80:
		s.sendLate()
	case n < 84:
		s.resolve()
	case n < 88:
		s.askOne()
	case n < 90:
		s.fence()
	case n < 91 && s.seed%2 == 0:
		s.trim()
	default:
		s.read()
	}
}

// apply applies an entry and compares its answer with the tree.
func (s *storm) apply(g dfs.GroupID, le *wire.LogEntry) *wire.Result {
	s.t.Helper()
	if s.rng.IntN(3) == 0 {
		s.base += dfs.Version(s.rng.IntN(300)) << 14
	}
	if s.rng.IntN(100) == 0 {
		s.skew[g] = dfs.Version(s.rng.IntN(3000)) << 16
	}
	if s.rng.IntN(8) == 0 {
		s.late = append(s.late, lateEntry{g, proto.Clone(le).(*wire.LogEntry)})
	}
	s.w.clock = s.base + s.skew[g]
	res := s.w.apply(g, le)
	if s.w.wrote != "" && res.Kind != 0 {
		for _, tag := range s.w.wrote {
			ok := tag == tagFloor || tag == tagReply || le.GetTxnAbort() != nil || le.GetTxnCommit() != nil
			if !ok {
				s.fatalf("%v in %v: refused with %v, and wrote rows %q", le, g, res, s.w.wrote)
			}
		}
	}
	s.observe(g, le, res)
	return res
}

func commandOf(id *wire.TxnID) command { return command{id.GetSession(), id.GetSeq()} }

func (s *storm) observe(g dfs.GroupID, le *wire.LogEntry, res *wire.Result) {
	s.t.Helper()
	kind := dfs.Kind(res.Kind)
	if res.Locked != nil {
		s.did["locked"]++
	}
	if res.Outdated {
		s.did["outdated"]++
	}
	switch e := le.Entry.(type) {
	case *wire.LogEntry_Command:
		of := command{e.Command.Session, e.Command.Seq}
		s.answered(g, of, res, "alone", e.Command.Op != nil)
	case *wire.LogEntry_TxnBegin:
		of := command{e.TxnBegin.Command.Session, e.TxnBegin.Command.Seq}
		if kind != 0 || res.Txn == nil {
			s.answered(g, of, res, "begin", kind != 0)
		}
	case *wire.LogEntry_TxnAbort:
		if kind == dfs.Invalid && e.TxnAbort.Kind == res.Kind && s.w.wrote != "" {
			s.wantFault(commandOf(e.TxnAbort.Txn), kind, res.Text)
			s.did["refused loop"]++
		}
		if kind == dfs.Kind(e.TxnAbort.Kind) && !kind.Retryable() && kind != dfs.Fenced {
			s.refused[commandOf(e.TxnAbort.Txn)] = kind
		}
	case *wire.LogEntry_TxnCommit:
		of := commandOf(e.TxnCommit.Txn)
		switch {
		case kind == 0:
			s.answered(g, of, res, "commit", true)
		case s.w.wrote != "":
			s.did["commit refused"]++
			if kind == dfs.Fenced && !s.fenced[g][of.session] {
				s.fatalf("commit of %v in %v: %v", of, g, res)
			}
			if !kind.Retryable() && kind != dfs.Fenced && s.refused[of] == 0 {
				s.wantFault(of, kind, res.Text)
				s.refused[of] = kind
				s.did["refused at the commit"]++
			}
		}
	}
}

// refusedBy takes in that a participant refuses its share, all others before it
// being prepared; unless the transaction has been aborted, that is how it stands.
func (s *storm) refusedBy(id *wire.TxnID, kind dfs.Kind, text string) {
	res, err := s.w.query(dfs.GroupID(id.Group), &wire.Query{Query: &wire.Query_Txn{Txn: &wire.TxnQuery{Txn: id}}})
	if err != nil {
		s.fatalf("%v", err)
	}
	if res.GetTxn().State == wire.TxnResult_UNDECIDED && !kind.Retryable() && kind != dfs.Fenced {
		s.wantFault(commandOf(id), kind, text)
		s.did["refused by a participant"]++
	}
}

// wantFault demands that a final refusal is right at this moment. What was done
// before and is asked for again is not refused but answered.
func (s *storm) wantFault(of command, kind dfs.Kind, text string) {
	s.t.Helper()
	if f := s.tree.faults(s.commands[of]); !slices.Contains(f, kind) {
		s.fatalf("%v was refused with %v, %s; the tree says %v", s.commands[of], kind, text, f)
	}
}

// answered takes in a group's answer to a command.
func (s *storm) answered(g dfs.GroupID, of command, res *wire.Result, how string, now bool) {
	s.t.Helper()
	kind := dfs.Kind(res.Kind)
	cmd := s.commands[of]
	if s.fenced[g][of.session] && kind != dfs.Fenced {
		if was := s.done[of]; kind != 0 || was == nil {
			s.fatalf("%v of a fenced session in %v: %v", cmd, g, res)
		}
	}
	switch {
	case kind == dfs.Fenced:
		s.did["fenced"]++
	case kind.Retryable() || kind == dfs.CrossGroup:
	case kind != 0:
		if was, ok := s.refused[of]; ok && was == kind {
			return
		}
		if s.done[of] != nil {
			s.fatalf("%v was done, and is refused: %v", cmd, res)
		}
		s.wantFault(of, kind, res.Text)
		s.refused[of] = kind
		s.did["refused"]++
	case s.done[of] != nil:
		if was := s.done[of]; !proto.Equal(was, res) && !(how == "commit" && res.Version == was.Version) {
			s.fatalf("%v was answered %v, then %v", cmd, was, res)
		}
	case !now:
		s.fatalf("%v was answered %v, and never done", cmd, res)
	default:
		s.carriedOut(of, res, how)
	}
}

// carriedOut changes the tree.
func (s *storm) carriedOut(of command, res *wire.Result, how string) {
	s.t.Helper()
	cmd := s.commands[of]
	if was, ok := s.refused[of]; ok {
		s.fatalf("%v was refused with %v, and is done", cmd, was)
	}
	if f := s.tree.faults(cmd); len(f) > 0 {
		s.fatalf("%v was done (%v); the tree says %v", cmd, res, f)
	}
	s.tree.do(cmd, dfs.Ino(res.GetAttr().GetIno()))
	s.done[of] = res
	s.did[how+" "+opName(cmd)]++
	if op := cmd.GetRename(); op != nil && how == "commit" {
		s.moves = append(s.moves, moved{op, dfs.Version(res.Version)})
		if n := s.tree.nodes[dfs.Ino(op.NewParent)].entries[string(op.NewName)]; n != nil && n.isDir() && op.Parent != op.NewParent {
			s.did["directory moved"]++
		}
	}
	if a := res.Attr; a != nil && !s.tree.nodes[dfs.Ino(a.Ino)].dead {
		s.compare(a)
	}
}

// compare compares attributes with the tree; versions only grow.
func (s *storm) compare(a *wire.Attr) {
	s.t.Helper()
	ino := dfs.Ino(a.Ino)
	if n := s.tree.nodes[ino]; n == nil || n.dead || n.attr() != plainAttr(a) {
		s.fatalf("attributes %s; the tree has %+v", plainAttr(a), n)
	}
	if v := dfs.Version(a.Version); v < s.seen[ino] {
		s.fatalf("inode %v is of version %d, and was of %d", ino, v, s.seen[ino])
	}
	s.seen[ino] = dfs.Version(a.Version)
	if a.Ctime != timeOf(dfs.Version(a.Version)) {
		s.fatalf("inode %v of version %d changed at %d", ino, a.Version, a.Ctime)
	}
}

func opName(cmd *wire.Command) string {
	switch cmd.Op.(type) {
	case *wire.Command_Mkdir:
		return "mkdir"
	case *wire.Command_Create:
		return "create"
	case *wire.Command_Unlink:
		return "unlink"
	case *wire.Command_Rmdir:
		return "rmdir"
	case *wire.Command_Link:
		return "link"
	}
	return "rename"
}

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
		if err != nil && !errors.Is(err, errCrash) && !errors.As(err, &locked) && dfs.KindOf(err) != dfs.NotExist && dfs.KindOf(err) != dfs.NotDir {
			s.fatalf("%v: %v", cmd, err)
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
		if rows := s.w.rows(dfs.GroupID(g+1), "bcdefhilmnoqrsw"); len(rows) > 0 {
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
