package namespace

import (
	"fmt"
	"slices"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// plainTree is one tree in memory that knows of no groups. It shares no code with
// the machine.
type plainTree struct {
	nodes map[dfs.Ino]*plainNode // all that ever were
	live  []dfs.Ino              // in the order in which they were made
}

type plainNode struct {
	ino     dfs.Ino
	typ     wire.FileType
	nlink   int // of a file
	entries map[string]*plainNode
	parent  *plainNode
	dead    bool
}

func newPlainTree() *plainTree {
	t := &plainTree{nodes: map[dfs.Ino]*plainNode{}}
	t.add(&plainNode{ino: dfs.RootIno, typ: wire.FileType_DIR})
	return t
}

func (t *plainTree) add(n *plainNode) {
	if n.isDir() {
		n.entries = map[string]*plainNode{}
	}
	t.nodes[n.ino] = n
	t.live = append(t.live, n.ino)
}

func (t *plainTree) kill(n *plainNode) {
	n.dead = true
	t.live = slices.DeleteFunc(t.live, func(ino dfs.Ino) bool { return ino == n.ino })
}

func (n *plainNode) isDir() bool { return n.typ == wire.FileType_DIR }

func (n *plainNode) below(dir *plainNode) bool {
	for ; n != nil; n = n.parent {
		if n == dir {
			return true
		}
	}
	return false
}

func (n *plainNode) attr() string {
	if !n.isDir() {
		return fmt.Sprintf("%v %v links %d", n.ino, n.typ, n.nlink)
	}
	links, parent := 2, dfs.RootIno
	for _, e := range n.entries {
		if e.isDir() {
			links++
		}
	}
	if n.parent != nil {
		parent = n.parent.ino
	}
	return fmt.Sprintf("%v %v links %d, %d entries, in %v", n.ino, n.typ, links, len(n.entries), parent)
}

func plainAttr(a *wire.Attr) string {
	if a.Type != wire.FileType_DIR {
		return fmt.Sprintf("%v %v links %d", dfs.Ino(a.Ino), a.Type, a.Nlink)
	}
	return fmt.Sprintf("%v %v links %d, %d entries, in %v", dfs.Ino(a.Ino), a.Type, a.Nlink, a.Size, dfs.Ino(a.Parent))
}

// faults lists everything that is wrong with a command now; nothing: it succeeds.
func (t *plainTree) faults(cmd *wire.Command) (out []dfs.Kind) {
	fault := func(is bool, kind dfs.Kind) {
		if is {
			out = append(out, kind)
		}
	}
	dir := func(ino uint64) *plainNode {
		p := t.nodes[dfs.Ino(ino)]
		fault(p.dead, dfs.NotExist)
		fault(!p.isDir(), dfs.NotDir)
		return p
	}
	switch op := cmd.Op.(type) {
	case *wire.Command_Mkdir:
		p := dir(op.Mkdir.Parent)
		fault(p.entries[string(op.Mkdir.Name)] != nil, dfs.Exist)
	case *wire.Command_Create:
		old := dir(op.Create.Parent).entries[string(op.Create.Name)]
		fault(old != nil && !op.Create.Replace, dfs.Exist)
		fault(old != nil && old.isDir(), dfs.IsDir)
	case *wire.Command_Unlink:
		n := dir(op.Unlink.Parent).entries[string(op.Unlink.Name)]
		fault(n == nil, dfs.NotExist)
		fault(n != nil && n.isDir(), dfs.IsDir)
	case *wire.Command_Rmdir:
		n := dir(op.Rmdir.Parent).entries[string(op.Rmdir.Name)]
		fault(n == nil, dfs.NotExist)
		fault(n != nil && !n.isDir(), dfs.NotDir)
		fault(n != nil && len(n.entries) > 0, dfs.NotEmpty)
	case *wire.Command_Link:
		n := t.nodes[dfs.Ino(op.Link.Ino)]
		fault(dir(op.Link.Parent).entries[string(op.Link.Name)] != nil, dfs.Exist)
		fault(n.dead, dfs.NotExist)
		fault(n.isDir(), dfs.Permission)
	case *wire.Command_Rename:
		p, q := dir(op.Rename.Parent), dir(op.Rename.NewParent)
		n, old := p.entries[string(op.Rename.Name)], q.entries[string(op.Rename.NewName)]
		fault(n == nil, dfs.NotExist)
		if n == nil || n == old {
			return out
		}
		fault(n.isDir() && p != q && q.below(n), dfs.Invalid)
		fault(old != nil && op.Rename.NoReplace, dfs.Exist)
		fault(old != nil && n.isDir() && !old.isDir(), dfs.NotDir)
		fault(old != nil && !n.isDir() && old.isDir(), dfs.IsDir)
		fault(old != nil && old.isDir() && len(old.entries) > 0, dfs.NotEmpty)
	}
	return out
}

// do carries a command out that has no faults; made is what it makes.
func (t *plainTree) do(cmd *wire.Command, made dfs.Ino) {
	dir := func(ino uint64) *plainNode { return t.nodes[dfs.Ino(ino)] }
	switch op := cmd.Op.(type) {
	case *wire.Command_Mkdir:
		n := &plainNode{ino: made, typ: wire.FileType_DIR}
		t.add(n)
		t.enter(dir(op.Mkdir.Parent), op.Mkdir.Name, n)
	case *wire.Command_Create:
		n := &plainNode{ino: made, typ: wire.FileType_FILE}
		t.add(n)
		t.enter(dir(op.Create.Parent), op.Create.Name, n)
	case *wire.Command_Unlink:
		t.leave(dir(op.Unlink.Parent), op.Unlink.Name, true)
	case *wire.Command_Rmdir:
		t.leave(dir(op.Rmdir.Parent), op.Rmdir.Name, true)
	case *wire.Command_Link:
		t.enter(dir(op.Link.Parent), op.Link.Name, t.nodes[dfs.Ino(op.Link.Ino)])
	case *wire.Command_Rename:
		p, q := dir(op.Rename.Parent), dir(op.Rename.NewParent)
		n := p.entries[string(op.Rename.Name)]
		if n == q.entries[string(op.Rename.NewName)] {
			return
		}
		t.leave(p, op.Rename.Name, false)
		if !n.isDir() {
			n.nlink--
		}
		t.enter(q, op.Rename.NewName, n)
	}
}

func (t *plainTree) enter(p *plainNode, name []byte, n *plainNode) {
	if p.entries[string(name)] != nil {
		t.leave(p, name, true)
	}
	p.entries[string(name)] = n
	if n.isDir() {
		n.parent = p
	} else {
		n.nlink++
	}
}

func (t *plainTree) leave(p *plainNode, name []byte, unlink bool) {
	n := p.entries[string(name)]
	delete(p.entries, string(name))
	switch {
	case !unlink:
	case n.isDir():
		t.kill(n)
	default:
		if n.nlink--; n.nlink == 0 {
			t.kill(n)
		}
	}
}
