package namespace

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// model is a plain tree in memory that says what every operation must answer
// and do. It shares no code with the machine.
type model struct {
	root  *mnode
	nodes map[dfs.Ino]*mnode // all that exist, linked or not
	ever  []*mnode           // all that existed, to ask for the dead too

	leveled bool // the groups are at a level with operations over several groups
}

type mnode struct {
	ino            dfs.Ino
	typ            wire.FileType
	mode, uid, gid uint32
	nlink          uint32
	size           int64
	mtime, ctime   int64
	class, target  string
	parent         *mnode
	entries        map[string]*mnode
	held           IntentKind
	data           []cell // of a file; cells beyond its length are holes
	dead           bool
}

// cell says which byte of which block is in a place of a file; zero: a hole.
type cell struct {
	counter uint64
	offset  uint32
}

func newModel(rootTime int64) *model {
	root := &mnode{
		ino: dfs.RootIno, typ: wire.FileType_DIR, mode: 0o1777, nlink: 2, mtime: rootTime, ctime: rootTime, class: "rep3",
		entries: map[string]*mnode{},
	}
	return &model{root: root, nodes: map[dfs.Ino]*mnode{root.ino: root}, ever: []*mnode{root}}
}

func (m *model) add(n *mnode) {
	m.nodes[n.ino] = n
	m.ever = append(m.ever, n)
}

func (m *model) kill(n *mnode) {
	n.dead = true
	delete(m.nodes, n.ino)
}

func (n *mnode) group() dfs.GroupID { return n.ino.Group() }
func (n *mnode) isDir() bool        { return n.typ == wire.FileType_DIR }

// below reports whether n is dir or lies below it.
func (n *mnode) below(dir *mnode) bool {
	for ; n != nil; n = n.parent {
		if n == dir {
			return true
		}
	}
	return false
}

// leavesGroup reports whether the way to the root leaves n's group.
func (n *mnode) leavesGroup() bool {
	g := n.group()
	for ; n != nil; n = n.parent {
		if n.group() != g {
			return true
		}
	}
	return false
}

// done is what a step of the model answers: no error kind is dfs.Other.
const done = dfs.Other

// parentOK is what every operation asks of the directory it changes.
func parentOK(p *mnode) dfs.Kind {
	switch {
	case p.dead:
		return dfs.NotExist
	case !p.isDir():
		return dfs.NotDir
	case p.held != 0:
		return dfs.Frozen
	}
	return done
}

func (m *model) touch(p *mnode, now int64) { p.mtime, p.ctime = now, now }

func (m *model) unlinkOne(n *mnode, now int64) {
	n.nlink--
	n.ctime = now
	if n.nlink == 0 {
		m.kill(n)
	}
}

func (m *model) enter(p *mnode, name string, n *mnode) {
	p.entries[name] = n
	if n.isDir() {
		p.nlink++
		n.parent = p
	}
}

func (m *model) leave(p *mnode, name string) {
	if p.entries[name].isDir() {
		p.nlink--
	}
	delete(p.entries, name)
}

func (m *model) create(p *mnode, name string, replace bool) dfs.Kind {
	if k := parentOK(p); k != done {
		return k
	}
	if old := p.entries[name]; old != nil {
		if !replace {
			return dfs.Exist
		}
		if old.isDir() {
			return dfs.IsDir
		}
	}
	return done
}

func (m *model) created(p *mnode, name string, n *mnode, now int64) {
	if old := p.entries[name]; old != nil {
		m.unlinkOne(old, now)
	}
	m.add(n)
	m.enter(p, name, n)
	m.touch(p, now)
}

func (m *model) unlink(p *mnode, name string, now int64) dfs.Kind {
	if k := parentOK(p); k != done {
		return k
	}
	n := p.entries[name]
	switch {
	case n == nil:
		return dfs.NotExist
	case n.isDir():
		return dfs.IsDir
	}
	m.leave(p, name)
	m.touch(p, now)
	m.unlinkOne(n, now)
	return done
}

func (m *model) rmdir(p *mnode, name string, now int64) dfs.Kind {
	if k := parentOK(p); k != done {
		return k
	}
	n := p.entries[name]
	switch {
	case n == nil:
		return dfs.NotExist
	case !n.isDir():
		return dfs.NotDir
	case n.group() != p.group():
		return dfs.CrossGroup
	case len(n.entries) > 0:
		return dfs.NotEmpty
	}
	m.leave(p, name)
	m.touch(p, now)
	m.kill(n)
	return done
}

func (m *model) link(n, p *mnode, name string, now int64) dfs.Kind {
	if k := parentOK(p); k != done {
		return k
	}
	switch {
	case n.group() != p.group():
		return dfs.CrossGroup
	case n.dead:
		return dfs.NotExist
	case n.isDir():
		return dfs.Permission
	case p.entries[name] != nil:
		return dfs.Exist
	}
	n.nlink++
	n.ctime = now
	m.enter(p, name, n)
	m.touch(p, now)
	return done
}

// renameKinds lists what a rename may answer; with done among them it may
// succeed.
func (m *model) renameKinds(p *mnode, name string, q *mnode, name2 string, noReplace bool) []dfs.Kind {
	if k := parentOK(p); k != done {
		return []dfs.Kind{k}
	}
	if p.group() != q.group() {
		if m.leveled && p.entries[name] == nil {
			return []dfs.Kind{dfs.NotExist}
		}
		return []dfs.Kind{dfs.CrossGroup}
	}
	if k := parentOK(q); k != done {
		return []dfs.Kind{k}
	}
	n, old := p.entries[name], q.entries[name2]
	switch {
	case n == nil:
		return []dfs.Kind{dfs.NotExist}
	case n == old:
		return []dfs.Kind{done}
	}
	ok := []dfs.Kind{done}
	if n.isDir() && p != q {
		switch {
		case n.group() != p.group() || m.leveled && p.group() != dfs.RootIno.Group(): // the tree lock is elsewhere
			return []dfs.Kind{dfs.CrossGroup}
		case q.below(n):
			return []dfs.Kind{dfs.Invalid}
		case q.leavesGroup():
			ok = append(ok, dfs.CrossGroup)
		}
	}
	switch {
	case old == nil:
		return ok
	case noReplace:
		return append(ok[1:], dfs.Exist)
	case n.isDir() && !old.isDir():
		return append(ok[1:], dfs.NotDir)
	case !n.isDir() && old.isDir():
		return []dfs.Kind{dfs.IsDir}
	case n.isDir() && old.group() != q.group():
		return append(ok[1:], dfs.CrossGroup)
	case n.isDir() && len(old.entries) > 0:
		return append(ok[1:], dfs.NotEmpty)
	}
	return ok
}

func (m *model) renamed(p *mnode, name string, q *mnode, name2 string, now int64) {
	n, old := p.entries[name], q.entries[name2]
	if n == old {
		return
	}
	if old != nil {
		m.leave(q, name2)
		if old.isDir() {
			m.kill(old)
		} else {
			m.unlinkOne(old, now)
		}
	}
	m.leave(p, name)
	m.enter(q, name2, n)
	m.touch(p, now)
	m.touch(q, now)
	if n.group() == p.group() {
		n.ctime = now
	}
}

func (m *model) commitMkdir(p *mnode, name string, child *mnode, now int64) dfs.Kind {
	if k := parentOK(p); k != done {
		return k
	}
	if p.entries[name] != nil {
		return dfs.Exist
	}
	m.enter(p, name, child)
	m.touch(p, now)
	return done
}

func (m *model) freeze(child *mnode) dfs.Kind {
	if k := parentOK(child); k != done {
		return k
	}
	if len(child.entries) > 0 {
		return dfs.NotEmpty
	}
	child.held = IntentRmdir
	return done
}

func (m *model) commitRmdir(p *mnode, name string, child *mnode, now int64) dfs.Kind {
	if k := parentOK(p); k != done {
		return k
	}
	if p.entries[name] != child {
		return dfs.NotExist
	}
	m.leave(p, name)
	m.touch(p, now)
	return done
}

// resolved ends the intent of a child as its entry says.
func (m *model) resolved(child *mnode, linked bool) {
	child.held = 0
	if !linked {
		m.kill(child)
	}
}

// put writes a block's bytes into a file.
func (n *mnode) put(offset int64, length, blockOffset int, counter uint64) {
	for int64(len(n.data)) < offset+int64(length) {
		n.data = append(n.data, cell{})
	}
	for i := range length {
		n.data[offset+int64(i)] = cell{counter, uint32(blockOffset + i)}
	}
	n.size = max(n.size, offset+int64(length))
}

func (n *mnode) truncate(size int64) {
	n.data = n.data[:min(int64(len(n.data)), size)]
	n.size = size
}

// counters lists the blocks that the file's bytes are in.
func (n *mnode) counters() []uint64 {
	set := map[uint64]bool{}
	for _, c := range n.data {
		if c != (cell{}) {
			set[c.counter] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// sortedNodes lists what exists, for a choice that a seed repeats.
func (m *model) sortedNodes() []*mnode {
	return slices.SortedFunc(maps.Values(m.nodes), func(a, b *mnode) int { return cmp.Compare(a.ino, b.ino) })
}

// attr is what the model knows of an inode's attributes.
func (n *mnode) attr() string {
	size, nlink := n.size, n.nlink
	if n.isDir() {
		size = int64(len(n.entries))
	}
	parent := dfs.Ino(0)
	if n.isDir() {
		parent = dfs.RootIno
		if n.parent != nil {
			parent = n.parent.ino
		}
	}
	return fmt.Sprintf("%v %v %o %d:%d nlink=%d size=%d mtime=%d ctime=%d %s %q parent=%v frozen=%v unlinked=%v",
		n.ino, n.typ, n.mode, n.uid, n.gid, nlink, size, n.mtime, n.ctime, n.class, n.target, parent, n.held == IntentRmdir, n.held == IntentMkdir)
}

func wireAttr(a *wire.Attr) string {
	return fmt.Sprintf("%v %v %o %d:%d nlink=%d size=%d mtime=%d ctime=%d %s %q parent=%v frozen=%v unlinked=%v",
		dfs.Ino(a.Ino), a.Type, a.Mode, a.Uid, a.Gid, a.Nlink, a.Size, a.Mtime, a.Ctime, a.Class, a.Target, dfs.Ino(a.Parent), a.Frozen, a.Unlinked)
}
