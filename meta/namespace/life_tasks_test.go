package namespace

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// beginTask takes the first step of a mkdir or rmdir over a boundary.
func (l *life) beginTask(s *mortal) {
	if l.rng.IntN(2) == 0 {
		l.prepare(s, l.dir())
		return
	}
	p, name := l.remoteChild()
	if p == nil {
		return
	}
	child := p.entries[name]
	op := &wire.RmdirFreezeOp{Child: uint64(child.ino), Parent: uint64(p.ino), Name: []byte(name)}
	res, _ := l.send(s, child.group(), &wire.Command{Op: &wire.Command_RmdirFreeze{RmdirFreeze: op}})
	if l.fenced(res) {
		return
	}
	if l.expect(res, "freeze", l.m.freeze(child)) {
		s.tasks = append(s.tasks, &task{kind: IntentRmdir, parent: p, name: name, child: child, intent: res.Version, step: 1})
	}
}

// interfere renames or takes the place of what a task is about.
func (l *life) interfere(s *mortal) {
	owner := pick(l, l.sessions)
	if len(owner.tasks) == 0 {
		return
	}
	t := pick(l, owner.tasks)
	if t.kind == IntentMkdir {
		l.mkdirAt(s, t.parent, t.name)
	} else {
		l.renameAt(s, t.parent, t.name, t.parent, l.name())
	}
}

// remoteChild picks the entry of a directory of another group, of an empty one
// mostly.
func (l *life) remoteChild() (*mnode, string) {
	type entry struct {
		p    *mnode
		name string
	}
	var empty, all []entry
	for _, p := range l.m.sortedNodes() {
		for _, name := range slices.Sorted(maps.Keys(p.entries)) {
			if n := p.entries[name]; n.isDir() && n.group() != p.group() {
				all = append(all, entry{p, name})
				if len(n.entries) == 0 {
					empty = append(empty, entry{p, name})
				}
			}
		}
	}
	if len(empty) > 0 && l.rng.IntN(4) > 0 {
		all = empty
	}
	if len(all) == 0 {
		return nil, ""
	}
	e := pick(l, all)
	return e.p, e.name
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
	if l.expect(res, fmt.Sprintf("resolve %v linked=%v", t.kind, t.linked), done) {
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
	l.expect(res, "decide "+t.kind.String(), want)
	t.step = 2
}

// resolver asks the parents' groups about intents, and acts on what they said,
// now or later, once or twice.
func (l *life) resolver() {
	g := dfs.GroupID(1 + l.rng.IntN(lifeGroups))
	list, err := Intents(l.w.reader(g), 0, 100)
	if err != nil {
		l.t.Fatal(err)
	}
	for i, in := range list {
		if rest, err := Intents(l.w.reader(g), in.Child, 100); err != nil || !reflect.DeepEqual(append([]Intent{}, rest...), append([]Intent{}, list[i+1:]...)) {
			l.t.Fatalf("%d intents past %v: %v, %v", len(rest), in.Child, rest, err)
		}
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
	what := fmt.Sprintf("resolve %v for another linked=%v", a.in.Kind, a.linked)
	if !pending {
		what = "resolve too late"
	}
	if l.expect(res, what, want) && pending {
		l.m.resolved(l.m.nodes[a.in.Child], a.linked)
	}
}
