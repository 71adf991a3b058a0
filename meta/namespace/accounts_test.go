package namespace

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

var (
	accountSeeds = flag.Int("accounts.seeds", 8, "random trees whose accounts are kept")
	accountSteps = flag.Int("accounts.steps", 400, "steps of each")
	accountSeed  = flag.Uint64("accounts.seed", 0, "play this one alone")
)

const accountGroups = 4

// bookkeeping plays random operations on several groups, and between them entries
// that move sums up, and reports between groups that are lost, late and repeated.
type bookkeeping struct {
	t    *testing.T
	rng  *rand.Rand
	w    *world
	d    *driver
	c    *txnClient
	did  map[string]int
	post []letter // reports and answers on their way; any may come more than once
	sent []letter // all that ever were
}

// letter is an entry for a group that another one's leader proposes or has answered.
type letter struct {
	to    dfs.GroupID
	entry *wire.LogEntry
}

// TestAccounts plays trees whose groups keep accounts from the beginning, or begin in
// the middle. At every moment each account is the sum of what has been told; when
// nothing happens any more all of them become what a walk finds.
func TestAccounts(t *testing.T) {
	first, n := uint64(1), uint64(*accountSeeds)
	if *accountSeed != 0 {
		first, n = *accountSeed, 1
	}
	did := map[string]int{}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			b := newBookkeeping(t, seed)
			for range *accountSteps {
				b.step()
			}
			b.converge()
			for what, n := range b.did {
				did[what] += n
			}
		})
	}
	if t.Failed() || *accountSeed != 0 {
		return
	}
	for _, what := range []string{
		"create", "mkdir", "one-sided mkdir", "one-sided rmdir", "rename", "link", "unlink", "rmdir", "resize", "replace", "crash", "settle", "ask", "level",
		"tally", "report", "taken in", "not taken in", "lost", "late", "repeated", "counting",
	} {
		if did[what] == 0 {
			t.Errorf("no tree has seen this: %s; they have seen %v", what, did)
		}
	}
	t.Logf("seen: %v", did)
}

func newBookkeeping(t *testing.T, seed uint64) *bookkeeping {
	b := &bookkeeping{t: t, rng: rand.New(rand.NewPCG(seed, 3)), w: newWorld(t, accountGroups), did: map[string]int{}}
	b.d = newDriver(b.w)
	b.c = &txnClient{t: t, d: b.d, session: 1}
	if seed%2 == 0 {
		for g := range accountGroups {
			b.raise(dfs.GroupID(g + 1))
		}
	}
	return b
}

func (b *bookkeeping) raise(g dfs.GroupID) {
	b.did["level"]++
	if res := b.w.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Level{Level: &wire.LevelOp{Level: NewestLevel}}}); res.Kind != 0 {
		b.t.Fatalf("level: %v", res)
	}
}

func (b *bookkeeping) group() dfs.GroupID { return dfs.GroupID(1 + b.rng.IntN(accountGroups)) }

// place is an entry that exists, or where one may be made.
type spot struct {
	dir  dfs.Ino
	name string
	ino  dfs.Ino
	typ  wire.FileType
}

// spots lists all directories and all entries, as the rows have them.
func (b *bookkeeping) spots() (dirs []dfs.Ino, entries []spot) {
	for g := range accountGroups {
		for _, row := range b.w.rows(dfs.GroupID(g+1), "abcefghklmnopqrstuvwxy") {
			switch row[0][0] {
			case tagInode:
				if n, err := decodeInode(keyIno(row[0]), row[1]); err != nil {
					b.t.Fatal(err)
				} else if n.isDir() {
					dirs = append(dirs, n.ino)
				}
			case tagDentry:
				e, err := decodeDentry(row[0], row[1])
				if err != nil {
					b.t.Fatal(err)
				}
				entries = append(entries, spot{keyIno(row[0]), string(row[0][9:]), e.ino, e.typ})
			}
		}
	}
	return dirs, entries
}

func (b *bookkeeping) name() string { return string(rune('a' + b.rng.IntN(6))) }

func (b *bookkeeping) step() {
	b.w.clock += dfs.Version(b.rng.IntN(20)) << 16
	dirs, entries := b.spots()
	dir := dirs[b.rng.IntN(len(dirs))]
	e := spot{dir: dir, name: b.name()}
	if len(entries) > 0 {
		e = entries[b.rng.IntN(len(entries))]
	}
	switch n := b.rng.IntN(43); {
	case n > 39:
		b.ask(b.group())
	case n < 6:
		op := &wire.CreateOp{Parent: uint64(dir), Name: []byte(b.name()), Type: wire.FileType_FILE, Size: int64(b.rng.IntN(1000)), Replace: b.rng.IntN(2) == 0}
		if b.rng.IntN(4) == 0 {
			op.Type, op.Size, op.Target = wire.FileType_SYMLINK, 0, []byte("to/"+b.name())
		}
		what := "create"
		if slices.ContainsFunc(entries, func(e spot) bool { return e.dir == dir && e.name == string(op.Name) }) {
			what = "replace"
		}
		b.do(what, &wire.Command{Op: &wire.Command_Create{Create: op}})
	case n < 10:
		b.d.place = b.group()
		b.do("mkdir", mkdirCmd(dir, b.name()))
		b.d.place = 0
	case n < 11:
		b.oneSidedMkdir(dir)
	case n < 12:
		b.oneSidedRmdir(e)
	case n < 16:
		b.do("rename", renameCmd(e.dir, e.name, dir, b.name()))
	case n < 19:
		b.do("link", linkCmd(e.ino, dir, b.name()))
	case n < 22:
		b.do("unlink", unlinkCmd(e.dir, e.name))
	case n < 23:
		b.do("rmdir", rmdirCmd(e.dir, e.name))
	case n < 26:
		b.resize(e.ino)
	case n < 27:
		b.d.crash = b.rng.IntN(6)
		b.did["crash"]++
	case n < 28:
		b.settle()
	case n < 29:
		b.raise(b.group())
	case n < 33:
		b.tally(b.group(), uint32(1+b.rng.IntN(5)))
	case n < 36:
		b.report(b.group(), dfs.Ino(0), 1+b.rng.IntN(3))
	default:
		b.deliver()
	}
	if b.rng.IntN(3) == 0 {
		b.check()
	}
}

// check verifies each group by itself: between them transactions may be under way.
func (b *bookkeeping) check() {
	b.t.Helper()
	for g := dfs.GroupID(1); g <= accountGroups; g++ {
		for _, err := range Check(b.w.reader(g)) {
			b.t.Errorf("%v: %v", g, err)
		}
	}
	if b.t.Failed() {
		b.t.FailNow()
	}
}

// do carries a command out, or finds out that it cannot be.
func (b *bookkeeping) do(what string, cmd *wire.Command) {
	b.t.Helper()
	res, err := b.c.send(cmd)
	if errors.Is(err, errCrash) {
		b.d.crash = -1
	} else if err == nil && res.Kind == 0 {
		b.did[what]++
	}
}

func (b *bookkeeping) settle() {
	b.did["settle"]++
	if err := b.d.settle(accountGroups); err != nil {
		b.t.Fatal(err)
	}
}

// ask has a group ask the coordinators about its shares, as it does when it hears
// nothing of them: so groups carry transactions out in different orders.
func (b *bookkeeping) ask(g dfs.GroupID) {
	list, err := Parts(b.w.reader(g), nil, 100)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, p := range list {
		b.did["ask"]++
		if err := b.d.ask(g, p.Txn); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bookkeeping) resize(ino dfs.Ino) {
	if ino == 0 {
		return
	}
	b.c.seq++
	cmd := &wire.Command{Session: 1, Seq: b.c.seq, Op: &wire.Command_SetAttr{SetAttr: &wire.SetAttrOp{Ino: uint64(ino), Size: proto.Int64(int64(b.rng.IntN(1000)))}}}
	if res := b.w.command(ino.Group(), cmd); res.Kind == 0 {
		b.did["resize"]++
	}
}

// one sends a command to one group.
func (b *bookkeeping) one(g dfs.GroupID, cmd *wire.Command) *wire.Result {
	b.c.seq++
	cmd.Session, cmd.Seq, cmd.Cred = 1, b.c.seq, &wire.Cred{}
	return b.w.command(g, cmd)
}

// oneSidedMkdir makes a directory as releases before transactions do.
func (b *bookkeeping) oneSidedMkdir(dir dfs.Ino) {
	g, name := b.group(), []byte(b.name())
	if g == dir.Group() {
		return
	}
	res := b.one(g, &wire.Command{Op: &wire.Command_MkdirPrepare{MkdirPrepare: &wire.MkdirPrepareOp{Parent: uint64(dir), Name: name}}})
	if res.Kind != 0 {
		return
	}
	b.deliver()
	b.tally(g, 5)
	b.report(g, 0, 3)
	done := b.one(dir.Group(), &wire.Command{Op: &wire.Command_MkdirCommit{MkdirCommit: &wire.MkdirCommitOp{Parent: uint64(dir), Name: name, Child: res.Attr.Ino}}})
	b.check()
	b.one(g, &wire.Command{Op: &wire.Command_Resolve{Resolve: &wire.ResolveOp{Child: res.Attr.Ino, Linked: done.Kind == 0, Intent: res.Version}}})
	if done.Kind == 0 {
		b.did["one-sided mkdir"]++
	}
}

func (b *bookkeeping) oneSidedRmdir(e spot) {
	if e.typ != wire.FileType_DIR || e.ino.Group() == e.dir.Group() {
		return
	}
	g, name := e.ino.Group(), []byte(e.name)
	res := b.one(g, &wire.Command{Op: &wire.Command_RmdirFreeze{RmdirFreeze: &wire.RmdirFreezeOp{Child: uint64(e.ino), Parent: uint64(e.dir), Name: name}}})
	if res.Kind != 0 {
		return
	}
	done := b.one(e.dir.Group(), &wire.Command{Op: &wire.Command_RmdirCommit{RmdirCommit: &wire.RmdirCommitOp{Parent: uint64(e.dir), Name: name, Child: uint64(e.ino)}}})
	b.check()
	b.report(g, 0, 3)
	b.deliver()
	b.one(g, &wire.Command{Op: &wire.Command_Resolve{Resolve: &wire.ResolveOp{Child: uint64(e.ino), Linked: done.Kind != 0, Intent: res.Version}}})
	if done.Kind == 0 {
		b.did["one-sided rmdir"]++
	}
}

func (b *bookkeeping) tally(g dfs.GroupID, limit uint32) {
	res := b.w.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Tally{Tally: &wire.TallyOp{Limit: limit}}})
	switch dfs.Kind(res.Kind) {
	case dfs.Unsupported:
	case 0:
		b.did["tally"]++
		if st, err := readState(b.w.reader(g)); err == nil && st.counting {
			b.did["counting"]++
		}
	default:
		b.t.Fatalf("tally: %v", res)
	}
}

// report has a group's leader write to the groups of homes.
func (b *bookkeeping) report(g dfs.GroupID, past dfs.Ino, limit int) (more bool, last dfs.Ino) {
	u, err := ReadUntold(b.w.reader(g), past, limit)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, a := range u.Reports {
		b.did["report"]++
		last = dfs.Ino(a.Ino)
		b.write(letter{dfs.Ino(a.Dir).Group(), &wire.LogEntry{Entry: &wire.LogEntry_Absorb{Absorb: &wire.AbsorbOp{Of: []*wire.Absorption{a}}}}})
	}
	return u.More, last
}

func (b *bookkeeping) write(l letter) { b.post, b.sent = append(b.post, l), append(b.sent, l) }

// deliver brings one letter, in any order, and may keep or lose it.
func (b *bookkeeping) deliver() {
	if len(b.post) == 0 {
		return
	}
	i := b.rng.IntN(len(b.post))
	if i > 0 {
		b.did["late"]++
	}
	l := b.post[i]
	switch n := b.rng.IntN(6); {
	case n == 0:
		b.did["lost"]++
		b.post = slices.Delete(b.post, i, i+1)
		return
	case n < 3 && len(b.post) < 40:
		b.did["repeated"]++
	default:
		b.post = slices.Delete(b.post, i, i+1)
	}
	b.bring(l)
}

func (b *bookkeeping) bring(l letter) {
	res := b.w.apply(l.to, proto.CloneOf(l.entry))
	if dfs.Kind(res.Kind) != dfs.Unsupported && res.Kind != 0 {
		b.t.Fatalf("%v: %v", l.entry, res)
	}
	op := l.entry.GetAbsorb()
	if op == nil {
		return
	}
	a := op.Of[0]
	if len(res.Absorbed) == 0 {
		b.did["not taken in"]++
		return
	}
	b.did["taken in"]++
	back := &wire.Absorption{Ino: a.Ino, Dir: a.Dir, Since: a.Since, Seq: a.Seq}
	b.write(letter{dfs.Ino(a.Ino).Group(), &wire.LogEntry{Entry: &wire.LogEntry_Reported{Reported: &wire.ReportedOp{Of: []*wire.Absorption{back}}}}})
}

// converge lets nothing happen any more but the bookkeeping, which comes to an end.
func (b *bookkeeping) converge() {
	b.settle()
	b.exact()
	old := b.sent
	b.rng.Shuffle(len(old), func(i, j int) { old[i], old[j] = old[j], old[i] })
	for _, l := range old[:min(len(old), 500)] { // whatever is late says nothing new
		b.bring(l)
	}
	b.post = nil
	b.exact()
}

// exact waits for the accounts to come to rest and compares them with the tree.
func (b *bookkeeping) exact() {
	if !b.rest(300) {
		b.t.Fatal("the accounts do not come to rest")
	}
	b.w.check(accountGroups)
	b.compareRoot()
}

// rest moves sums up and reports until nothing waits, and reports whether it came to that.
func (b *bookkeeping) rest(rounds int) bool {
	for g := range accountGroups {
		b.raise(dfs.GroupID(g + 1))
	}
	for range rounds {
		left := false
		for g := dfs.GroupID(1); g <= accountGroups; g++ {
			b.tally(g, 7)
			for more, past := true, dfs.Ino(0); more; {
				more, past = b.report(g, past, 5)
			}
			for len(b.post) > 0 {
				l := b.post[0]
				b.post = b.post[1:]
				b.bring(l)
			}
		}
		b.check()
		for g := dfs.GroupID(1); g <= accountGroups; g++ {
			u, err := ReadUntold(b.w.reader(g), 0, 1)
			if err != nil {
				b.t.Fatal(err)
			}
			left = left || u.Tally || len(u.Reports) > 0
		}
		if !left {
			return true
		}
	}
	return false
}

// compareRoot walks the tree by its names and counts every inode once.
func (b *bookkeeping) compareRoot() {
	want := &wire.Sums{Settled: true}
	seen := map[dfs.Ino]bool{}
	var walk func(dir dfs.Ino)
	walk = func(dir dfs.Ino) {
		res, err := b.w.query(dir.Group(), &wire.Query{Query: &wire.Query_ReadDir{ReadDir: &wire.ReadDirQuery{Ino: uint64(dir)}}})
		if err != nil {
			b.t.Fatal(err)
		}
		for _, e := range res.GetReadDir().Entries {
			if ino := dfs.Ino(e.Ino); e.Type == wire.FileType_DIR {
				want.Directories++
				walk(ino)
			} else if !seen[ino] {
				seen[ino] = true
				want.Files++
				want.Bytes += uint64(b.attr(ino).Size)
			}
		}
	}
	walk(dfs.RootIno)
	if got := b.attr(dfs.RootIno).Below; !proto.Equal(got, want) {
		b.t.Errorf("below the root: %v, a walk finds %v", got, want)
	}
}

func (b *bookkeeping) attr(ino dfs.Ino) *wire.Attr {
	res, err := b.w.query(ino.Group(), &wire.Query{Query: &wire.Query_Attr{Attr: &wire.AttrQuery{Inos: []uint64{uint64(ino)}, Below: true}}})
	if err != nil {
		b.t.Fatal(err)
	}
	return res.GetAttr().Attrs[0]
}

// decided plays a tree up to a command of which groups have a share that is decided
// and not carried out: the driver stops there.
func decided(t *testing.T, play func(b *bookkeeping) *wire.Command, groups ...dfs.GroupID) *bookkeeping {
	t.Helper()
	for crash := range 12 {
		b := newBookkeeping(t, 2)
		cmd := play(b)
		b.d.crash = crash
		_, err := b.c.send(cmd)
		b.d.crash = -1
		if !errors.Is(err, errCrash) {
			break
		}
		txn, err := FindTransaction(b.w.reader(Coordinator(cmd)), 1, b.c.seq)
		if err != nil {
			t.Fatal(err)
		}
		if txn == nil || txn.Commit == 0 || slices.ContainsFunc(groups, func(g dfs.GroupID) bool { return !b.hasShare(g) }) {
			continue
		}
		return b
	}
	t.Fatalf("no crash leaves decided shares in %v", groups)
	return nil
}

func (b *bookkeeping) hasShare(g dfs.GroupID) bool {
	list, err := Parts(b.w.reader(g), nil, 1)
	if err != nil {
		b.t.Fatal(err)
	}
	return len(list) > 0
}

// TestAccountsOutOfOrder has a directory carry out what two transactions do with the
// names of a file in another order than the file's group does.
func TestAccountsOutOfOrder(t *testing.T) {
	type tree struct {
		three, four, two, f dfs.Ino // f is of group 1 and named in four and two
	}
	for _, x := range []struct {
		name          string
		first, second func(tr tree) *wire.Command
	}{
		{"its only name there goes, and a new one comes before that", func(tr tree) *wire.Command { return renameCmd(tr.three, "x", tr.four, "f") },
			func(tr tree) *wire.Command { return linkCmd(tr.f, tr.four, "b") }},
		{"it gets a second name there, and loses the first before that", func(tr tree) *wire.Command { return renameCmd(tr.two, "g", tr.four, "b") },
			func(tr tree) *wire.Command { return unlinkCmd(tr.four, "f") }},
	} {
		t.Run(x.name, func(t *testing.T) {
			var tr tree
			b := decided(t, func(b *bookkeeping) *wire.Command {
				tr.three, tr.four, tr.two = b.c.mkdir(3, dfs.RootIno, "three"), b.c.mkdir(4, dfs.RootIno, "four"), b.c.mkdir(2, dfs.RootIno, "two")
				b.c.file(tr.three, "x")
				tr.f = b.c.file(dfs.RootIno, "f")
				b.c.must(renameCmd(dfs.RootIno, "f", tr.four, "f"))
				b.c.must(linkCmd(tr.f, tr.two, "g"))
				b.converge()
				return x.first(tr)
			}, 1, 4)
			b.ask(1)
			b.c.must(x.second(tr))
			if !b.hasShare(4) {
				t.Fatal("group 4 has carried out the first one before the second one")
			}
			b.check()
			b.report(1, 0, 10)
			b.converge()
		})
	}
}

// TestAccountsBehind has a group carry out a share at a version that it has passed, and
// has reported of: what the share does is reported too.
func TestAccountsBehind(t *testing.T) {
	var two dfs.Ino
	b := decided(t, func(b *bookkeeping) *wire.Command {
		two = b.c.mkdir(2, dfs.RootIno, "two")
		b.c.file(two, "v")
		b.c.file(dfs.RootIno, "y")
		return renameCmd(dfs.RootIno, "y", two, "v")
	}, 2)
	b.c.file(two, "b")
	b.rest(5)
	before, err := LastVersion(b.w.reader(2))
	if err != nil {
		t.Fatal(err)
	}
	b.ask(2)
	if after, err := LastVersion(b.w.reader(2)); err != nil || after <= before {
		t.Errorf("version %d, then %d, %v", before, after, err)
	}
	b.converge()
}

// TestAccountsChangeUnderway changes what inodes count for while a report of them is
// on its way: it does not take them out of the queue.
func TestAccountsChangeUnderway(t *testing.T) {
	b := newBookkeeping(t, 2)
	two := b.c.mkdir(2, dfs.RootIno, "two")
	f := b.c.file(two, "f")
	b.c.must(renameCmd(two, "f", dfs.RootIno, "f"))
	b.report(2, 0, 10)
	if len(b.post) != 2 {
		t.Fatalf("reports %v, want one of the file and one of the directory", b.post)
	}
	b.resize(f)
	b.c.file(two, "g")
	for len(b.post) > 0 {
		l := b.post[0]
		b.post = b.post[1:]
		b.bring(l)
	}
	if u, err := ReadUntold(b.w.reader(2), 0, 10); err != nil || len(u.Reports) != 2 {
		t.Errorf("left to report: %+v, %v", u, err)
	}
	b.converge()
}
