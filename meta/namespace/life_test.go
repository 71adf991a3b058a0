package namespace

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

var (
	lifeSeeds = flag.Int("life.seeds", 12, "random lives to play")
	lifeSteps = flag.Int("life.steps", 700, "steps of each")
	lifeSeed  = flag.Uint64("life.seed", 0, "play this one alone")
)

// TestLives plays random operations of several sessions on several groups
// against the model: sessions die at any step, fences reach the groups one
// after the other, commands are sent again at any time, others resolve what the
// dead have left, history is trimmed. Then everything must add up.
func TestLives(t *testing.T) {
	first, n := uint64(1), uint64(*lifeSeeds)
	if *lifeSeed != 0 {
		first, n = *lifeSeed, 1
	}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			l := newLife(t, seed)
			for range *lifeSteps {
				l.step()
			}
			l.settle()
		})
	}
}

// TestLivesNoticeForgottenReplies proves that the lives would notice a machine
// that carries out retries again.
func TestLivesNoticeForgottenReplies(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		l := newLife(t, seed)
		l.w.opts.ForgetReplies = true
		for range 200 {
			l.retries(true)
			l.step()
			if l.noticed {
				return
			}
		}
	}
	t.Fatal("no retry had another answer in 5 lives of 200 steps")
}

const lifeGroups = 3

type life struct {
	t    *testing.T
	rng  *rand.Rand
	w    *world
	m    *model
	seed uint64

	sessions []*mortal // those that are not fenced everywhere
	lastID   uint64
	counter  uint64
	fenceIdx uint64
	fencedAt [lifeGroups + 1]map[uint64]bool

	sent    []sent
	answers []answer
	blocks  map[dfs.BlockID]bool // every block ever committed
	hinder  bool                 // a failed comparison is noted, not fatal
	noticed bool
}

// mortal is a client's session.
type mortal struct {
	id    uint64
	seq   uint64
	dying bool // its lease is over; it goes on until the fence is everywhere
	inos  map[dfs.GroupID][]dfs.Ino
	tasks []*task // mkdirs and rmdirs over a boundary, between two steps
}

// task is a mkdir or rmdir over a boundary on its way.
type task struct {
	kind   IntentKind
	parent *mnode
	name   string
	child  *mnode
	intent uint64
	step   int // 1: prepared or frozen; 2: decided
	linked bool
}

// sent is a command that was carried out or refused for good.
type sent struct {
	g       dfs.GroupID
	session uint64
	seq     uint64
	entry   []byte
	reply   []byte
}

// answer is what a parent's group said about an intent, for later.
type answer struct {
	in     Intent
	linked bool
}

func newLife(t *testing.T, seed uint64) *life {
	l := &life{t: t, rng: rand.New(rand.NewPCG(seed, 1)), w: newWorld(t, lifeGroups), seed: seed, blocks: map[dfs.BlockID]bool{}}
	l.m = newModel(int64(l.w.clock>>16) * 1e6)
	for g := range l.fencedAt {
		l.fencedAt[g] = map[uint64]bool{}
	}
	for range 3 {
		l.open()
	}
	return l
}

func (l *life) open() {
	l.lastID++
	l.sessions = append(l.sessions, &mortal{id: l.lastID, inos: map[dfs.GroupID][]dfs.Ino{}})
}

func pick[T any](l *life, list []T) T { return list[l.rng.IntN(len(list))] }

func (l *life) fatalf(format string, args ...any) {
	l.t.Helper()
	if l.hinder {
		l.noticed = true
		return
	}
	l.t.Fatalf("seed %d: %s", l.seed, fmt.Sprintf(format, args...))
}

// node picks something that exists, or sometimes something that did.
func (l *life) node() *mnode {
	if l.rng.IntN(12) == 0 {
		return pick(l, l.m.ever)
	}
	return pick(l, l.m.sortedNodes())
}

// dir picks a directory, mostly.
func (l *life) dir() *mnode {
	for range 8 {
		if n := l.node(); n.isDir() {
			return n
		}
	}
	return l.node()
}

func (l *life) name() string { return string(rune('a' + l.rng.IntN(6))) }

// used picks a name that is there, mostly.
func (l *life) used(p *mnode) string {
	var names []string
	for n := range p.entries {
		names = append(names, n)
	}
	if len(names) == 0 || l.rng.IntN(8) == 0 {
		return l.name()
	}
	slices.Sort(names)
	return pick(l, names)
}

// send gives a command a sequence number and applies it. A refusal must have
// changed nothing; a fence must have refused.
func (l *life) send(s *mortal, g dfs.GroupID, cmd *wire.Command) (res *wire.Result, now int64) {
	l.t.Helper()
	if l.rng.IntN(3) == 0 {
		l.w.clock += dfs.Version(l.rng.IntN(300)) << 14
	}
	s.seq++
	cmd.Session, cmd.Seq, cmd.Cred = s.id, s.seq, &wire.Cred{Uid: uint32(l.rng.IntN(3)), Gid: uint32(l.rng.IntN(3))}
	cmd.Floor = s.seq - min(s.seq, uint64(l.rng.IntN(6)))
	entry, err := proto.Marshal(&wire.LogEntry{Version: uint64(l.w.clock), Entry: &wire.LogEntry_Command{Command: cmd}})
	if err != nil {
		l.t.Fatal(err)
	}
	reply := l.w.applyBytes(g, entry)
	res = &wire.Result{}
	if err := proto.Unmarshal(reply, res); err != nil {
		l.t.Fatal(err)
	}
	kind := dfs.Kind(res.Kind)
	if kind != done && strings.Trim(l.w.wrote, "or") != "" {
		l.fatalf("%v was refused (%v) and wrote rows %q", cmd, kind, l.w.wrote)
	}
	if fenced := l.fencedAt[g][s.id]; fenced != (kind == dfs.Fenced) {
		l.fatalf("%v in %v: %v, fenced %v", cmd, g, kind, fenced)
	}
	if !kind.Retryable() && kind != dfs.Fenced {
		l.sent = append(l.sent, sent{g, s.id, s.seq, entry, reply})
	}
	return res, int64(res.Version>>16) * 1e6
}

// expect compares an answer with the model's.
func (l *life) expect(res *wire.Result, what string, kinds ...dfs.Kind) bool {
	l.t.Helper()
	kind := dfs.Kind(res.Kind)
	if kind == dfs.Fenced {
		return false
	}
	if !slices.Contains(kinds, kind) {
		l.fatalf("%s: %v %q, the model says %v", what, kind, res.Text, kinds)
	}
	return kind == done
}

func (l *life) step() {
	s := pick(l, l.sessions)
	switch l.rng.IntN(26) {
	case 0, 1, 2, 3:
		l.create(s)
	case 4, 5:
		l.mkdir(s)
	case 6, 7:
		l.unlink(s)
	case 8:
		l.rmdir(s)
	case 9, 10, 11:
		l.rename(s)
	case 12:
		l.link(s)
	case 13, 14, 15:
		l.write(s)
	case 16:
		l.truncate(s)
	case 17, 18:
		l.beginTask(s)
	case 19, 20, 21:
		l.advance(s)
	case 22:
		l.resolver()
	case 23:
		l.retries(false)
	case 24:
		l.trim()
	case 25:
		l.mortality()
	}
	if l.rng.IntN(100) == 0 {
		l.w.check(lifeGroups)
	}
}

func (l *life) ino(s *mortal, g dfs.GroupID) dfs.Ino {
	if len(s.inos[g]) == 0 {
		res, _ := l.send(s, g, &wire.Command{Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: uint32(1 + l.rng.IntN(300))}}})
		if !l.expect(res, "lease", done) {
			return dfs.MakeIno(g, 1<<40)
		}
		for i := range res.Leased[0].Count {
			s.inos[g] = append(s.inos[g], dfs.Ino(res.Leased[0].First+i))
		}
	}
	list := s.inos[g]
	i := l.rng.IntN(min(len(list), 3))
	ino := list[i]
	s.inos[g] = slices.Delete(list, i, i+1)
	return ino
}

// extents makes up extents over a file of a size, and plays them on n.
func (l *life) extents(ino dfs.Ino, s *mortal, limit int64) (out []*wire.Extent) {
	at := int64(0)
	for range 1 + l.rng.IntN(3) {
		at += int64(l.rng.IntN(int(limit)/3 + 1))
		blockLength := 1 + l.rng.IntN(200)
		blockOffset := l.rng.IntN(blockLength)
		length := min(int64(1+l.rng.IntN(blockLength-blockOffset)), limit-at)
		if length <= 0 {
			break
		}
		l.counter++
		out = append(out, &wire.Extent{
			Offset: at, Length: length, Block: blockID(ino, dfs.SessionID(s.id), l.counter).Bytes(),
			BlockOffset: uint32(blockOffset), BlockLength: uint32(blockLength),
		})
		at += length
	}
	return out
}

func (l *life) play(n *mnode, base int64, extents []*wire.Extent) {
	for _, e := range extents {
		id, _ := dfs.ParseBlockID(e.Block)
		n.put(base+e.Offset, int(e.Length), int(e.BlockOffset), id.Counter)
		l.blocks[id] = true
	}
}

func (l *life) create(s *mortal) {
	p, name := l.dir(), l.name()
	if l.rng.IntN(2) == 0 {
		name = l.used(p)
	}
	op := &wire.CreateOp{Parent: uint64(p.ino), Name: []byte(name), Type: wire.FileType_FILE, Mode: uint32(l.rng.IntN(0o10000)), Replace: l.rng.IntN(2) == 0}
	switch l.rng.IntN(4) {
	case 0:
		op.Type, op.Target = wire.FileType_SYMLINK, []byte("to/"+l.name())
	case 1:
	default:
		ino := l.ino(s, p.group())
		op.Ino, op.Size = uint64(ino), int64(l.rng.IntN(1000))
		op.Extents = l.extents(ino, s, op.Size)
	}
	if l.fencedAt[p.group()][s.id] {
		return // it has no leases any more, so the order of refusals is not that of the model
	}
	want := l.m.create(p, name, op.Replace)
	res, now := l.send(s, p.group(), &wire.Command{Op: &wire.Command_Create{Create: op}})
	if !l.expect(res, "create", want) {
		if op.Ino != 0 {
			s.inos[p.group()] = append(s.inos[p.group()], dfs.Ino(op.Ino))
		}
		return
	}
	a := res.Attr
	n := &mnode{
		ino: dfs.Ino(a.Ino), typ: op.Type, mode: op.Mode, uid: a.Uid, gid: a.Gid, nlink: 1, size: op.Size, mtime: now, ctime: now,
		class: p.class, target: string(op.Target),
	}
	if op.Type == wire.FileType_SYMLINK {
		n.mode, n.size, n.class = 0o777, int64(len(op.Target)), ""
	}
	l.play(n, 0, op.Extents)
	l.m.created(p, name, n, now)
}

func (l *life) mkdir(s *mortal) {
	p, name := l.dir(), l.name()
	want := l.m.create(p, name, false)
	op := &wire.MkdirOp{Parent: uint64(p.ino), Name: []byte(name), Mode: uint32(l.rng.IntN(0o2000))}
	res, now := l.send(s, p.group(), &wire.Command{Op: &wire.Command_Mkdir{Mkdir: op}})
	if !l.expect(res, "mkdir", want) {
		return
	}
	n := l.newDir(dfs.Ino(res.Attr.Ino), op.Mode, res.Attr, p, now)
	l.m.created(p, name, n, now)
}

func (l *life) newDir(ino dfs.Ino, mode uint32, a *wire.Attr, p *mnode, now int64) *mnode {
	return &mnode{
		ino: ino, typ: wire.FileType_DIR, mode: mode, uid: a.Uid, gid: a.Gid, nlink: 2, mtime: now, ctime: now,
		class: p.class, parent: p, entries: map[string]*mnode{},
	}
}

func (l *life) unlink(s *mortal) {
	p := l.dir()
	name := l.used(p)
	res, now := l.send(s, p.group(), &wire.Command{Op: &wire.Command_Unlink{Unlink: &wire.UnlinkOp{Parent: uint64(p.ino), Name: []byte(name)}}})
	if l.fenced(res) {
		return
	}
	l.expect(res, "unlink", l.m.unlink(p, name, now))
}

func (l *life) fenced(res *wire.Result) bool { return dfs.Kind(res.Kind) == dfs.Fenced }

func (l *life) rmdir(s *mortal) {
	p := l.dir()
	name := l.used(p)
	res, now := l.send(s, p.group(), &wire.Command{Op: &wire.Command_Rmdir{Rmdir: &wire.RmdirOp{Parent: uint64(p.ino), Name: []byte(name)}}})
	if l.fenced(res) {
		return
	}
	l.expect(res, "rmdir", l.m.rmdir(p, name, now))
}

func (l *life) rename(s *mortal) {
	p, q := l.dir(), l.dir()
	if l.rng.IntN(3) == 0 {
		q = p
	}
	name, name2 := l.used(p), l.name()
	op := &wire.RenameOp{Parent: uint64(p.ino), Name: []byte(name), NewParent: uint64(q.ino), NewName: []byte(name2), NoReplace: l.rng.IntN(4) == 0}
	want := l.m.renameKinds(p, name, q, name2, op.NoReplace)
	res, now := l.send(s, p.group(), &wire.Command{Op: &wire.Command_Rename{Rename: op}})
	if l.expect(res, fmt.Sprintf("rename %v/%s to %v/%s", p.ino, name, q.ino, name2), want...) {
		l.m.renamed(p, name, q, name2, now)
	}
}

func (l *life) link(s *mortal) {
	n, p, name := l.node(), l.dir(), l.name()
	res, now := l.send(s, p.group(), &wire.Command{Op: &wire.Command_Link{Link: &wire.LinkOp{Ino: uint64(n.ino), Parent: uint64(p.ino), Name: []byte(name)}}})
	if l.fenced(res) {
		return
	}
	l.expect(res, "link", l.m.link(n, p, name, now))
}

func fileKind(n *mnode) dfs.Kind {
	switch {
	case n.dead:
		return dfs.NotExist
	case n.isDir():
		return dfs.IsDir
	case n.typ != wire.FileType_FILE:
		return dfs.Invalid
	}
	return done
}

func (l *life) file() *mnode {
	for range 10 {
		if n := l.node(); n.typ == wire.FileType_FILE {
			return n
		}
	}
	return l.node()
}

func (l *life) write(s *mortal) {
	n := l.file()
	op := &wire.WriteOp{Ino: uint64(n.ino), Extents: l.extents(n.ino, s, 1500), Append: l.rng.IntN(3) == 0}
	base := int64(0)
	if op.Append {
		base = n.size
	}
	res, now := l.send(s, n.group(), &wire.Command{Op: &wire.Command_Write{Write: op}})
	if l.expect(res, "write", fileKind(n)) {
		l.play(n, base, op.Extents)
		l.m.touch(n, now)
	}
}

func (l *life) truncate(s *mortal) {
	n := l.file()
	op := &wire.SetAttrOp{Ino: uint64(n.ino)}
	want := fileKind(n)
	if l.rng.IntN(3) > 0 {
		op.Size = proto.Int64(int64(l.rng.IntN(1500)))
	} else if want != dfs.NotExist {
		want = done
	}
	if l.rng.IntN(2) == 0 {
		op.Mode = proto.Uint32(uint32(l.rng.IntN(0o2000)))
	}
	res, now := l.send(s, n.group(), &wire.Command{Op: &wire.Command_SetAttr{SetAttr: op}})
	if !l.expect(res, "setattr", want) {
		return
	}
	n.ctime = now
	if op.Mode != nil {
		n.mode = *op.Mode
	}
	if op.Size != nil {
		n.truncate(*op.Size)
		n.mtime = now
	}
}

// beginTask takes the first step of a mkdir or rmdir over a boundary.
func (l *life) beginTask(s *mortal) {
	p := l.dir()
	if l.rng.IntN(3) > 0 {
		l.prepare(s, p)
		return
	}
	name := l.used(p)
	child := p.entries[name]
	if child == nil || !child.isDir() || child.group() == p.group() {
		return
	}
	op := &wire.RmdirFreezeOp{Child: uint64(child.ino), Parent: uint64(p.ino), Name: []byte(name)}
	res, _ := l.send(s, child.group(), &wire.Command{Op: &wire.Command_RmdirFreeze{RmdirFreeze: op}})
	if l.fenced(res) {
		return
	}
	if l.expect(res, "freeze", l.m.freeze(child)) {
		s.tasks = append(s.tasks, &task{kind: IntentRmdir, parent: p, name: name, child: child, intent: res.Version, step: 1})
	}
}

func (l *life) prepare(s *mortal, p *mnode) {
	g := dfs.GroupID(1 + l.rng.IntN(lifeGroups))
	if g == p.group() || !p.isDir() {
		return
	}
	name := l.name()
	op := &wire.MkdirPrepareOp{Parent: uint64(p.ino), Name: []byte(name), Mode: uint32(l.rng.IntN(0o2000)), Class: p.class}
	res, now := l.send(s, g, &wire.Command{Op: &wire.Command_MkdirPrepare{MkdirPrepare: op}})
	if !l.expect(res, "prepare", done) {
		return
	}
	n := l.newDir(dfs.Ino(res.Attr.Ino), op.Mode, res.Attr, p, now)
	n.held = IntentMkdir
	l.m.add(n)
	s.tasks = append(s.tasks, &task{kind: IntentMkdir, parent: p, name: name, child: n, intent: res.Version, step: 1})
}

// advance takes the next step of one of the session's tasks.
func (l *life) advance(s *mortal) {
	if len(s.tasks) == 0 {
		return
	}
	t := pick(l, s.tasks)
	if t.step == 1 {
		l.decide(s, t)
		return
	}
	op := &wire.ResolveOp{Child: uint64(t.child.ino), Linked: t.linked, Intent: t.intent}
	pending := t.child.held != 0 && !t.child.dead
	res, _ := l.send(s, t.child.group(), &wire.Command{Op: &wire.Command_Resolve{Resolve: op}})
	if l.expect(res, "resolve", done) {
		if pending { // nobody else can have begun another: this one is still held
			l.m.resolved(t.child, t.linked)
		}
		s.tasks = slices.DeleteFunc(s.tasks, func(x *task) bool { return x == t })
	}
}

func (l *life) decide(s *mortal, t *task) {
	var cmd *wire.Command
	if t.kind == IntentMkdir {
		cmd = &wire.Command{Op: &wire.Command_MkdirCommit{MkdirCommit: &wire.MkdirCommitOp{Parent: uint64(t.parent.ino), Name: []byte(t.name), Child: uint64(t.child.ino)}}}
	} else {
		cmd = &wire.Command{Op: &wire.Command_RmdirCommit{RmdirCommit: &wire.RmdirCommitOp{Parent: uint64(t.parent.ino), Name: []byte(t.name), Child: uint64(t.child.ino)}}}
	}
	res, now := l.send(s, t.parent.group(), cmd)
	if l.fenced(res) {
		return // the resolver's business
	}
	var want dfs.Kind
	if t.kind == IntentMkdir {
		want = l.m.commitMkdir(t.parent, t.name, t.child, now)
		t.linked = want == done
	} else {
		want = l.m.commitRmdir(t.parent, t.name, t.child, now)
		t.linked = want != done
	}
	l.expect(res, "decide", want)
	t.step = 2
}

// resolver asks the parents' groups about intents, and acts on what they said,
// now or later, once or twice.
func (l *life) resolver() {
	g := dfs.GroupID(1 + l.rng.IntN(lifeGroups))
	list, err := Intents(l.w.reader(g), 100)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, in := range list {
		if dfs.MakeIno(g, in.Child.Local()) != in.Child {
			l.t.Fatalf("intent of %v in group %v", in.Child, g)
		}
		q := &wire.Query{Query: &wire.Query_Child{Child: &wire.ChildQuery{Child: uint64(in.Child), Session: uint64(in.Session), Parent: uint64(in.Parent)}}}
		res, err := l.w.query(in.Parent.Group(), q)
		if err != nil {
			l.t.Fatal(err)
		}
		if got, want := res.GetChild().Fenced, l.fencedAt[in.Parent.Group()][uint64(in.Session)]; got != want {
			l.fatalf("session %d fenced in %v: %v, want %v", in.Session, in.Parent.Group(), got, want)
		}
		if res.GetChild().Fenced {
			l.answers = append(l.answers, answer{in, res.GetChild().Linked})
		}
	}
	for range 2 {
		if len(l.answers) > 0 {
			l.actOn(pick(l, l.answers))
		}
	}
}

func (l *life) actOn(a answer) {
	g := a.in.Child.Group()
	pending := false
	if in, err := readIntent(l.w.reader(g), a.in.Child); err != nil {
		l.t.Fatal(err)
	} else if in != nil {
		pending = in.Version == a.in.Version
	}
	op := &wire.ResolveOp{Child: uint64(a.in.Child), Linked: a.linked, Intent: uint64(a.in.Version)}
	var res *wire.Result
	owner := false
	if s := pick(l, l.sessions); l.rng.IntN(2) == 0 {
		owner = s.id == uint64(a.in.Session)
		res, _ = l.send(s, g, &wire.Command{Op: &wire.Command_Resolve{Resolve: op}})
	} else {
		res = l.w.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Resolve{Resolve: op}})
	}
	if l.fenced(res) {
		return
	}
	want := done
	if pending && !owner && !l.fencedAt[g][uint64(a.in.Session)] {
		want = dfs.Frozen
	}
	if l.expect(res, "resolve for another", want) && pending {
		l.m.resolved(l.m.nodes[a.in.Child], a.linked)
	}
}

// retries sends commands again: the answer is the same bytes and nothing
// changes, or it is refused because the floor or a fence has passed it.
func (l *life) retries(planted bool) {
	l.hinder = planted
	for range 3 {
		if len(l.sent) == 0 {
			return
		}
		c := pick(l, l.sent)
		if l.rng.IntN(2) == 0 {
			c = l.sent[len(l.sent)-1-l.rng.IntN(min(8, len(l.sent)))]
		}
		floor, _, err := readFloor(l.w.reader(c.g), dfs.SessionID(c.session))
		if err != nil {
			l.t.Fatal(err)
		}
		reply := l.w.applyBytes(c.g, c.entry)
		res := &wire.Result{}
		if err := proto.Unmarshal(reply, res); err != nil {
			l.t.Fatal(err)
		}
		switch kind := dfs.Kind(res.Kind); {
		case l.fencedAt[c.g][c.session]:
			if kind != dfs.Fenced {
				l.fatalf("a retry of a fenced session: %v", kind)
			}
		case c.seq < floor:
			if kind != dfs.Stale {
				l.fatalf("a retry below the floor: %v", kind)
			}
		case !bytes.Equal(reply, c.reply):
			l.fatalf("a retry was answered\n%x, first\n%x", reply, c.reply)
		}
		if l.w.wrote != "" {
			l.fatalf("a retry wrote rows %q", l.w.wrote)
		}
		if l.noticed {
			return
		}
	}
}

// trim drops some history; what it releases is looked at in settle.
func (l *life) trim() {
	g := dfs.GroupID(1 + l.rng.IntN(lifeGroups))
	oldest, err := HistoryOldest(l.w.reader(g))
	if err != nil {
		l.t.Fatal(err)
	}
	if oldest == 0 {
		return
	}
	res := l.w.trim(g, oldest+dfs.Version(l.rng.IntN(100_000_000)), uint32(1+l.rng.IntN(60)))
	l.expect(res, "trim", done)
}

// mortality ends the lease of a session, or brings a fence to a group.
func (l *life) mortality() {
	if l.rng.IntN(2) == 0 {
		pick(l, l.sessions).dying = true
		return
	}
	l.bringFence(dfs.GroupID(1 + l.rng.IntN(lifeGroups)))
}

func (l *life) bringFence(g dfs.GroupID) {
	var live []uint64
	for _, s := range l.sessions {
		if !s.dying && !l.fencedAt[g][s.id] {
			live = append(live, s.id)
		}
	}
	l.fenceIdx++
	if res := l.w.fence(g, l.fenceIdx, l.lastID, live...); res.Kind != 0 {
		l.fatalf("fence: %v", res)
	}
	for id := uint64(1); id <= l.lastID; id++ {
		if !slices.Contains(live, id) {
			l.fencedAt[g][id] = true
		}
	}
	l.sessions = slices.DeleteFunc(l.sessions, func(s *mortal) bool {
		for h := 1; h <= lifeGroups; h++ {
			if !l.fencedAt[h][s.id] {
				return false
			}
		}
		return true
	})
	for len(l.sessions) < 3 {
		l.open()
	}
}

// settle lets every session die, resolves everything, compares the tree with
// the model, trims all history and compares what was released.
func (l *life) settle() {
	for _, s := range l.sessions {
		s.dying = true
	}
	for g := range lifeGroups {
		l.bringFence(dfs.GroupID(g + 1))
	}
	for range 1000 {
		left := 0
		for g := range lifeGroups {
			list, err := Intents(l.w.reader(dfs.GroupID(g+1)), 1)
			if err != nil {
				l.t.Fatal(err)
			}
			left += len(list)
		}
		if left == 0 {
			break
		}
		l.answers = nil
		l.resolver()
	}
	l.w.check(lifeGroups)
	l.compare(l.m.root)
	for _, n := range l.m.nodes {
		if n.held != 0 {
			l.fatalf("%v is still held", n.ino)
		}
	}
	l.release()
}

// compare walks the tree below a directory beside the model.
func (l *life) compare(dir *mnode) {
	seen := 0
	var cursor []byte
	for more := true; more; {
		q := &wire.ReadDirQuery{Ino: uint64(dir.ino), After: cursor, Limit: 2, Plus: true}
		res, err := l.w.query(dir.group(), &wire.Query{Query: &wire.Query_ReadDir{ReadDir: q}})
		if err != nil {
			l.t.Fatal(err)
		}
		page := res.GetReadDir()
		if got := wireAttr(page.Dir); got != dir.attr() {
			l.fatalf("directory\n%s, the model says\n%s", got, dir.attr())
		}
		for _, e := range page.Entries {
			seen++
			cursor = e.Name
			n := dir.entries[string(e.Name)]
			if n == nil || n.ino != dfs.Ino(e.Ino) || n.typ != e.Type {
				l.fatalf("entry %v of %v, the model says %+v", e, dir.ino, n)
			}
			if n.isDir() {
				l.compare(n)
				continue
			}
			if got := wireAttr(e.Attr); got != n.attr() {
				l.fatalf("inode\n%s, the model says\n%s", got, n.attr())
			}
			if n.typ == wire.FileType_FILE {
				l.compareData(n)
			}
		}
		more = page.More
	}
	if seen != len(dir.entries) {
		l.fatalf("directory %v has %d entries, the model says %d", dir.ino, seen, len(dir.entries))
	}
}

func (l *life) compareData(n *mnode) {
	got := &mnode{}
	for at, more := int64(0), true; more; {
		res, err := l.w.query(n.group(), &wire.Query{Query: &wire.Query_Extents{Extents: &wire.ExtentsQuery{Ino: uint64(n.ino), Offset: at, Limit: 2}}})
		if err != nil {
			l.t.Fatal(err)
		}
		more = res.GetExtents().More
		for _, e := range res.GetExtents().Extents {
			id, _ := dfs.ParseBlockID(e.Block)
			got.put(e.Offset, int(e.Length), int(e.BlockOffset), id.Counter)
			at = e.Offset + e.Length
		}
	}
	for i := range max(len(got.data), len(n.data)) {
		var a, b cell
		if i < len(got.data) {
			a = got.data[i]
		}
		if i < len(n.data) {
			b = n.data[i]
		}
		if a != b {
			l.fatalf("byte %d of %v is %+v, the model says %+v", i, n.ino, a, b)
		}
	}
}

// release trims everything: exactly the blocks that no file names are in the
// delete queues.
func (l *life) release() {
	want := map[dfs.BlockID]bool{}
	for id := range l.blocks {
		want[id] = true
	}
	for _, n := range l.m.nodes {
		for _, c := range n.counters() {
			for id := range l.blocks {
				if id.Ino == n.ino && id.Counter == c {
					delete(want, id)
				}
			}
		}
	}
	for g := dfs.GroupID(1); g <= lifeGroups; g++ {
		for {
			oldest, err := HistoryOldest(l.w.reader(g))
			if err != nil {
				l.t.Fatal(err)
			}
			if oldest == 0 {
				break
			}
			l.expect(l.w.trim(g, oldest+1, 50), "trim", done)
		}
		var cursor []byte
		for {
			blocks, next, err := DeleteQueue(l.w.reader(g), cursor, 7)
			if err != nil {
				l.t.Fatal(err)
			}
			for _, id := range blocks {
				if !want[id] {
					l.fatalf("block %v was released and is named, or released twice", id)
				}
				delete(want, id)
			}
			if cursor = next; len(next) == 0 {
				break
			}
		}
		for _, row := range l.w.rows(g, "bcdefiqs") {
			if tag := row[0][0]; tag != tagFloor && tag != tagReply && tag != tagLease || l.fencedAt[g][binary.BigEndian.Uint64(row[0][1:])] {
				l.fatalf("%v is left with a row of key %x", g, row[0])
			}
		}
	}
	if len(want) > 0 {
		l.fatalf("%d blocks that nothing names were not released", len(want))
	}
	l.w.check(lifeGroups)
}
