package namespace

import (
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
	lifeSteps = flag.Int("life.steps", 1200, "steps of each")
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
	did := map[string]int{}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			l := newLife(t, seed)
			for range *lifeSteps {
				l.step()
			}
			l.settle()
			for what, n := range l.did {
				did[what] += n
			}
		})
	}
	if t.Failed() || *lifeSeed != 0 {
		return
	}
	for _, what := range lifeMust {
		if did[what] == 0 {
			t.Errorf("no life has done this: %s; they have done %v", what, did)
		}
	}
	t.Logf("done: %v", did)
}

// lifeMust lists what lives must have done to prove anything.
var lifeMust = []string{
	"create", "mkdir", "unlink", "rmdir", "link", "write", "setattr", "prepare", "freeze", "trim", "recall",
	"rename", "rename a directory to a new parent", "rename a DIR over a DIR", "rename a FILE over a FILE",
	"decide mkdir", "decide rmdir", "resolve too late",
	"resolve mkdir linked=true", "resolve mkdir linked=false", "resolve rmdir linked=true", "resolve rmdir linked=false",
	"resolve mkdir for another linked=true", "resolve mkdir for another linked=false",
	"resolve rmdir for another linked=true", "resolve rmdir for another linked=false",
	"judge referenced", "judge garbage", "judge pending", "marks", "late",
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
	pasts   []past
	trimmed [lifeGroups + 1]dfs.Version // history that ended before is not whole
	blocks  map[dfs.BlockID]bool        // every block ever committed
	made    []dfs.BlockID               // every block ever made up
	garbage map[dfs.BlockID]bool        // that a group has called so
	marks   [lifeGroups + 1]map[uint64]uint64
	did     map[string]int // what has been carried out, how often
	hinder  bool           // a failed comparison is noted, not fatal
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
	l := &life{t: t, rng: rand.New(rand.NewPCG(seed, 1)), w: newWorld(t, lifeGroups), seed: seed, blocks: map[dfs.BlockID]bool{}, garbage: map[dfs.BlockID]bool{}, did: map[string]int{}}
	l.m = newModel(int64(l.w.clock>>16) * 1e6)
	if seed%2 == 0 { // whatever the level, what one group does alone and the one-sided intents stay what they are
		l.w.raise(lifeGroups)
		l.m.leveled = true
	}
	for g := range l.fencedAt {
		l.fencedAt[g], l.marks[g] = map[uint64]bool{}, map[uint64]uint64{}
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
	if l.rng.IntN(20) == 0 {
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

func (l *life) name() string { return string(rune('a' + l.rng.IntN(8))) }

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
	if !kind.Retryable() && kind != dfs.Fenced && !(kind == dfs.CrossGroup && l.m.leveled) {
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
	if kind == done {
		l.did[what]++
	}
	return kind == done
}

func (l *life) step() {
	s := pick(l, l.sessions)
	switch n := l.rng.IntN(46); {
	case n < 5:
		l.create(s)
	case n < 8:
		l.mkdir(s)
	case n < 11:
		l.unlink(s)
	case n < 12:
		l.rmdir(s)
	case n < 16:
		l.rename(s)
	case n < 17:
		l.link(s)
	case n < 20:
		l.write(s)
	case n < 21:
		l.truncate(s)
	case n < 27:
		l.beginTask(s)
	case n < 35:
		l.advance(s)
	case n < 37:
		l.interfere(s)
	case n < 38:
		l.resolver()
	case n < 39:
		l.retries(false)
	case n < 40:
		l.trim()
	case n < 41:
		l.mortality()
	case n < 43:
		l.judgeSome()
	case n < 44:
		l.raise(s)
	case n < 45:
		l.late(s)
	default:
		if l.rng.IntN(3) == 0 {
			l.recall()
		} else {
			l.remember()
		}
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
	var ids []dfs.BlockID
	for _, e := range out {
		id, _ := dfs.ParseBlockID(e.Block)
		ids = append(ids, id)
	}
	l.made = append(l.made, ids...)
	if l.rng.IntN(4) == 0 { // a store does not know that a commit is on its way
		l.judge(ino.Group(), ids)
	}
	return out
}

func (l *life) play(n *mnode, base int64, extents []*wire.Extent) {
	for _, e := range extents {
		id, _ := dfs.ParseBlockID(e.Block)
		n.put(base+e.Offset, int(e.Length), int(e.BlockOffset), id.Counter)
		l.blocks[id] = true
		if l.garbage[id] {
			l.fatalf("block %v was called garbage, and then it was committed", id)
		}
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

func (l *life) mkdir(s *mortal) { l.mkdirAt(s, l.dir(), l.name()) }

func (l *life) mkdirAt(s *mortal, p *mnode, name string) {
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
	l.renameAt(s, p, l.used(p), q, l.used(q))
}

func (l *life) renameAt(s *mortal, p *mnode, name string, q *mnode, name2 string) {
	op := &wire.RenameOp{Parent: uint64(p.ino), Name: []byte(name), NewParent: uint64(q.ino), NewName: []byte(name2), NoReplace: l.rng.IntN(4) == 0}
	want := l.m.renameKinds(p, name, q, name2, op.NoReplace)
	res, now := l.send(s, p.group(), &wire.Command{Op: &wire.Command_Rename{Rename: op}})
	what := "rename"
	if n, old := p.entries[name], q.entries[name2]; n != nil && old != nil && n != old {
		what = fmt.Sprintf("rename a %v over a %v", n.typ, old.typ)
	} else if n != nil && n.isDir() && p != q {
		what = "rename a directory to a new parent"
	}
	if l.expect(res, what, want...) {
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
		op.Size = proto.Int64(l.size(n))
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

// size picks a file's new size, now and then next to the one it has.
func (l *life) size(n *mnode) int64 {
	if l.rng.IntN(3) == 0 {
		return max(0, n.size+int64(l.rng.IntN(3)-1))
	}
	return int64(l.rng.IntN(1500))
}
