package namespace

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
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
		if kind == dfs.Kind(e.TxnAbort.Kind) && !kind.Retryable() && kind != dfs.Fenced && s.w.wrote != "" {
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
