package namespace

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// newTxnWorld is a world of groups at the newest feature level.
func newTxnWorld(t testing.TB, groups int) *world {
	w := newWorld(t, groups)
	w.raise(groups)
	return w
}

// raise brings the first groups to the newest feature level.
func (w *world) raise(groups int) {
	w.t.Helper()
	for g := range groups {
		if res := w.apply(dfs.GroupID(g+1), &wire.LogEntry{Entry: &wire.LogEntry_Level{Level: &wire.LevelOp{Level: NewestLevel}}}); res.Kind != 0 {
			w.t.Fatalf("level: %v", res)
		}
	}
}

// txnClient sends commands by a driver.
type txnClient struct {
	t       *testing.T
	d       *driver
	session uint64
	seq     uint64
}

func (c *txnClient) send(cmd *wire.Command) (*wire.Result, error) {
	c.t.Helper()
	c.seq++
	cmd.Session, cmd.Seq, cmd.Cred = c.session, c.seq, &wire.Cred{Uid: 1, Gid: 2}
	return c.d.do(cmd)
}

func (c *txnClient) must(cmd *wire.Command) *wire.Result {
	c.t.Helper()
	res, err := c.send(cmd)
	if err != nil || res.Kind != 0 {
		c.t.Fatalf("%v: %v, %v", cmd, res, err)
	}
	return res
}

func (c *txnClient) mkdir(place dfs.GroupID, parent dfs.Ino, name string) dfs.Ino {
	c.t.Helper()
	c.d.place = place
	return dfs.Ino(c.must(mkdirCmd(parent, name)).Attr.Ino)
}

func (c *txnClient) file(parent dfs.Ino, name string) dfs.Ino {
	c.t.Helper()
	return dfs.Ino(c.must(createCmd(parent, name, false)).Attr.Ino)
}

func mkdirCmd(parent dfs.Ino, name string) *wire.Command {
	return &wire.Command{Op: &wire.Command_Mkdir{Mkdir: &wire.MkdirOp{Parent: uint64(parent), Name: []byte(name), Mode: 0o755}}}
}

func createCmd(parent dfs.Ino, name string, replace bool) *wire.Command {
	return &wire.Command{Op: &wire.Command_Create{Create: &wire.CreateOp{Parent: uint64(parent), Name: []byte(name), Type: wire.FileType_FILE, Replace: replace}}}
}

func unlinkCmd(parent dfs.Ino, name string) *wire.Command {
	return &wire.Command{Op: &wire.Command_Unlink{Unlink: &wire.UnlinkOp{Parent: uint64(parent), Name: []byte(name)}}}
}

func rmdirCmd(parent dfs.Ino, name string) *wire.Command {
	return &wire.Command{Op: &wire.Command_Rmdir{Rmdir: &wire.RmdirOp{Parent: uint64(parent), Name: []byte(name)}}}
}

func linkCmd(ino, parent dfs.Ino, name string) *wire.Command {
	return &wire.Command{Op: &wire.Command_Link{Link: &wire.LinkOp{Ino: uint64(ino), Parent: uint64(parent), Name: []byte(name)}}}
}

func renameCmd(parent dfs.Ino, name string, to dfs.Ino, as string) *wire.Command {
	return &wire.Command{Op: &wire.Command_Rename{Rename: &wire.RenameOp{Parent: uint64(parent), Name: []byte(name), NewParent: uint64(to), NewName: []byte(as)}}}
}

// TestOverGroups does each operation over two and more groups once, and looks at
// the tree.
func TestOverGroups(t *testing.T) {
	w := newTxnWorld(t, 4)
	d := newDriver(w)
	c := &txnClient{t: t, d: d, session: 1}
	root := dfs.RootIno
	two := c.mkdir(2, root, "two")
	three := c.mkdir(3, root, "three")
	if two.Group() != 2 || three.Group() != 3 {
		t.Fatalf("directories %v and %v", two, three)
	}
	w.check(4)

	f := c.file(two, "f")
	if a := c.must(linkCmd(f, three, "hard")).Attr; dfs.Ino(a.Ino) != f || a.Nlink != 2 {
		t.Errorf("link: %v", a)
	}
	w.check(4)
	c.must(renameCmd(two, "f", root, "f"))
	w.check(4)
	c.must(renameCmd(root, "f", three, "hard")) // two names of one file: both stay
	w.check(4)
	c.must(unlinkCmd(three, "hard"))
	w.check(4)
	if res, err := c.send(renameCmd(two, "none", three, "x")); err != nil || dfs.Kind(res.Kind) != dfs.NotExist {
		t.Errorf("what does not exist, to another group: %v, %v", res, err)
	}
	if res, err := c.send(linkCmd(two, root, "dir")); err != nil || dfs.Kind(res.Kind) != dfs.Permission {
		t.Errorf("a second name of a directory of another group: %v, %v", res, err)
	}
	for _, nowhere := range []dfs.Ino{dfs.MakeIno(0, 5), dfs.MakeIno(3, 0)} {
		if res := w.command(2, &wire.Command{Session: 9, Seq: 1 + uint64(nowhere.Group()), Op: linkCmd(nowhere, two, "x").Op}); dfs.Kind(res.Kind) != dfs.Invalid {
			t.Errorf("a link of %v: %v", nowhere, res)
		}
		if res := w.command(1, &wire.Command{Session: 9, Seq: 1 + uint64(nowhere.Group()), Op: renameCmd(root, "two", nowhere, "x").Op}); dfs.Kind(res.Kind) != dfs.Invalid {
			t.Errorf("a rename to below %v: %v", nowhere, res)
		}
	}
	g := c.file(three, "g")
	c.must(renameCmd(three, "g", root, "f")) // over a file of a third group
	w.check(4)
	c.must(createCmd(root, "f", true)) // in place of a file of another group
	w.check(4)
	if n, err := readInode(w.reader(3), g); n != nil || err != nil {
		t.Errorf("what was replaced is there: %+v, %v", n, err)
	}

	sub := c.mkdir(4, two, "sub")
	c.mkdir(2, sub, "below")
	c.must(renameCmd(two, "sub", three, "moved"))
	w.check(4)
	if res, err := c.send(renameCmd(root, "three", sub, "loop")); err != nil || dfs.Kind(res.Kind) != dfs.Invalid {
		t.Errorf("a loop: %v, %v", res, err)
	}
	w.check(4)
	d1 := c.mkdir(1, two, "one")
	if res, err := c.send(renameCmd(two, "one", c.mkdir(3, d1, "three"), "loop")); err != nil || dfs.Kind(res.Kind) != dfs.Invalid {
		t.Errorf("a loop through what the root's group has locked: %v, %v", res, err)
	}
	w.check(4)
	c.mkdir(2, root, "empty")
	c.must(renameCmd(three, "moved", root, "empty")) // over an empty directory of another group
	w.check(4)
	if res, err := c.send(rmdirCmd(root, "empty")); err != nil || dfs.Kind(res.Kind) != dfs.NotEmpty {
		t.Errorf("a directory with entries: %v, %v", res, err)
	}
	c.must(rmdirCmd(sub, "below"))
	c.must(rmdirCmd(root, "empty"))
	w.check(4)
	for g := range 4 {
		if rows := w.rows(dfs.GroupID(g+1), "abcdefghilmnoqrsuvwxy"); len(rows) > 0 {
			t.Errorf("group %d has rows of transactions left: %x", g+1, rows)
		}
	}
}

// crossing is a tree of four groups and an operation over several of them.
type crossing struct {
	name  string
	place dfs.GroupID
	make  func(c *txnClient) *wire.Command // builds the tree
}

var crossings = []crossing{
	{"mkdir", 2, func(c *txnClient) *wire.Command { return mkdirCmd(dfs.RootIno, "new") }},
	{"rmdir", 0, func(c *txnClient) *wire.Command {
		c.mkdir(3, dfs.RootIno, "old")
		return rmdirCmd(dfs.RootIno, "old")
	}},
	{"link", 0, func(c *txnClient) *wire.Command {
		return linkCmd(c.file(dfs.RootIno, "f"), c.mkdir(2, dfs.RootIno, "two"), "hard")
	}},
	{"unlink", 0, func(c *txnClient) *wire.Command {
		two := c.mkdir(2, dfs.RootIno, "two")
		c.must(linkCmd(c.file(dfs.RootIno, "f"), two, "hard"))
		return unlinkCmd(two, "hard")
	}},
	{"create in place of a file of another group", 0, func(c *txnClient) *wire.Command {
		two := c.mkdir(2, dfs.RootIno, "two")
		c.file(dfs.RootIno, "f")
		c.must(renameCmd(dfs.RootIno, "f", two, "f"))
		return createCmd(two, "f", true)
	}},
	{"rename a file over one of a third group", 0, func(c *txnClient) *wire.Command {
		two, three, four := c.mkdir(2, dfs.RootIno, "two"), c.mkdir(3, dfs.RootIno, "three"), c.mkdir(4, dfs.RootIno, "four")
		c.file(two, "f")
		c.file(four, "g")
		c.must(renameCmd(four, "g", three, "g"))
		return renameCmd(two, "f", three, "g")
	}},
	{"rename a directory of a third group over one of a fourth", 0, func(c *txnClient) *wire.Command {
		two, three := c.mkdir(2, dfs.RootIno, "two"), c.mkdir(3, dfs.RootIno, "three")
		c.file(c.mkdir(4, two, "d"), "f")
		c.mkdir(1, three, "e")
		return renameCmd(two, "d", three, "e")
	}},
	{"rename a directory within the root's group, to below another group", 0, func(c *txnClient) *wire.Command {
		one := c.mkdir(1, c.mkdir(2, dfs.RootIno, "two"), "one")
		c.mkdir(1, dfs.RootIno, "d")
		return renameCmd(dfs.RootIno, "d", one, "d")
	}},
	{"rename between two names of one file", 0, func(c *txnClient) *wire.Command {
		two := c.mkdir(2, dfs.RootIno, "two")
		c.must(linkCmd(c.file(dfs.RootIno, "f"), two, "hard"))
		return renameCmd(dfs.RootIno, "f", two, "hard")
	}},
}

// treeText draws all names of all groups.
func treeText(t *testing.T, w *world, groups int) string {
	t.Helper()
	out := ""
	for g := range groups {
		for _, row := range w.rows(dfs.GroupID(g+1), "abcefghiklmnopqrstuvwxy") {
			e, err := decodeDentry(row[0], row[1])
			if err != nil {
				t.Fatal(err)
			}
			out += fmt.Sprintf("%v/%s %v\n", keyIno(row[0]), row[0][9:], e.typ)
		}
	}
	return out
}

// TestDriverCrashes stops the driver before every entry of every operation. The
// leaders that come after it settle what it left; then all of the operation is done
// or nothing, and the client, who sends it again, sees it done once.
func TestDriverCrashes(t *testing.T) {
	for _, x := range crossings {
		t.Run(x.name, func(t *testing.T) {
			play := func(crash int) (before, middle, after string, stopped bool) {
				w := newTxnWorld(t, 4)
				d := newDriver(w)
				c := &txnClient{t: t, d: d, session: 1}
				cmd := x.make(c)
				before = treeText(t, w, 4)
				d.place, d.crash = x.place, crash
				res, err := c.send(cmd)
				stopped = errors.Is(err, errCrash)
				if err != nil && !stopped || err == nil && res.Kind != 0 {
					t.Fatalf("%v, %v", res, err)
				}
				if err := d.settle(4); err != nil {
					t.Fatal(err)
				}
				w.check(4)
				middle = treeText(t, w, 4)
				first := res
				if res, err = d.do(cmd); err != nil || res.Kind != 0 {
					t.Fatalf("sent again after a crash before entry %d: %v, %v", crash, res, err)
				}
				if first != nil && !proto.Equal(first, res) {
					t.Errorf("answered %v, then %v", first, res)
				}
				w.check(4)
				return before, middle, treeText(t, w, 4), stopped
			}
			before, want, _, _ := play(-1)
			outcomes := map[string]bool{}
			n := 0
			for stopped := true; stopped; n++ {
				var middle, after string
				_, middle, after, stopped = play(n)
				if middle != before && middle != want {
					t.Errorf("stopped before entry %d:\n%swant\n%sor\n%s", n, middle, before, want)
				}
				if after != want {
					t.Errorf("stopped before entry %d, and then done:\n%swant\n%s", n, after, want)
				}
				outcomes[middle] = true
			}
			if n < 4 || len(outcomes) < 2 && before != want {
				t.Errorf("%d entries, %d outcomes", n, len(outcomes))
			}
		})
	}
}

// TestMadeDirectoryInherits: a directory that another group makes has what its parent
// hands on when the transaction begins, not what it had when it was planned.
func TestMadeDirectoryInherits(t *testing.T) {
	w := newTxnWorld(t, 2)
	d := newDriver(w)
	c := &txnClient{t: t, d: d, session: 1}
	parent := c.mkdir(1, dfs.RootIno, "parent")
	cmd := mkdirCmd(parent, "made")
	plan := MakePlan(cmd, Facts{Place: 2})

	mode, gid := uint32(0o2770), uint32(77)
	do := &client{t: t, w: w, session: 2}
	do.do(1, &wire.Command{Op: &wire.Command_SetAttr{SetAttr: &wire.SetAttrOp{Ino: uint64(parent), Mode: &mode, Gid: &gid}}})
	do.do(1, &wire.Command{Op: &wire.Command_SetPolicy{SetPolicy: &wire.SetPolicyOp{Ino: uint64(parent), Class: "rep2"}}})

	cmd.Session, cmd.Seq, cmd.Cred = 1, 100, &wire.Cred{Uid: 1, Gid: 2}
	res, err := d.transact(1, cmd, plan)
	if err != nil || res.Kind != 0 {
		t.Fatalf("%v, %v", res, err)
	}
	if a := res.Attr; a.Gid != gid || a.Mode != 0o2755 || a.Class != "rep2" || a.Level != 2 {
		t.Errorf("made: %v", a)
	}
	n, err := readInode(w.reader(2), dfs.Ino(res.Attr.Ino))
	if err != nil || !proto.Equal(n.wire(), res.Attr) {
		t.Errorf("made %v, %v; answered %v", n.wire(), err, res.Attr)
	}
	w.check(2)
}

// TestContentOverGroups replaces a file of another group by one with content: what
// comes between begin and commit decides about its blocks as it does for a create.
func TestContentOverGroups(t *testing.T) {
	for _, c := range []struct {
		name    string
		between func(w *world, d *driver, id *wire.TxnID)
		want    dfs.Kind // done: it is carried out
		verdict dfs.Verdict
	}{
		{"done", func(*world, *driver, *wire.TxnID) {}, done, dfs.Referenced},
		{"aborted", func(_ *world, d *driver, id *wire.TxnID) {
			txn, err := FindTransaction(d.w.reader(2), 1, id.Seq)
			if err == nil {
				_, err = d.abort(txn, &wire.Result{Kind: uint32(dfs.Unavailable)})
			}
			if err != nil {
				t.Fatal(err)
			}
		}, dfs.Unavailable, dfs.Pending},
		{"fenced", func(w *world, _ *driver, _ *wire.TxnID) { w.fence(2, 1, 9) }, dfs.Fenced, dfs.Garbage},
		{"given up", func(w *world, _ *driver, _ *wire.TxnID) {
			w.apply(2, &wire.LogEntry{Entry: &wire.LogEntry_Marks{Marks: &wire.MarksOp{Marks: []*wire.SessionMark{{Session: 1, Below: 100}}}}})
		}, dfs.Invalid, dfs.Garbage},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTxnWorld(t, 2)
			d := newDriver(w)
			cl := &txnClient{t: t, d: d, session: 1}
			two := cl.mkdir(2, dfs.RootIno, "two")
			cl.file(dfs.RootIno, "f")
			cl.must(renameCmd(dfs.RootIno, "f", two, "f"))

			cl.seq++
			lease := w.command(2, &wire.Command{Session: 1, Seq: cl.seq, Cred: &wire.Cred{}, Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: 1}}})
			ino := dfs.Ino(lease.Leased[0].First)
			id := blockID(ino, 1, 7)
			cmd := createCmd(two, "f", true)
			op := cmd.GetCreate()
			op.Ino, op.Size = uint64(ino), 50
			op.Extents = []*wire.Extent{{Length: 50, Block: id.Bytes(), BlockLength: 50}}
			cl.seq++
			cmd.Session, cmd.Seq, cmd.Cred = 1, cl.seq, &wire.Cred{}
			facts, err := d.facts(cmd)
			if err != nil {
				t.Fatal(err)
			}
			begin := &wire.TxnBeginOp{Command: &wire.Command{Session: 1, Seq: cl.seq, Cred: cmd.Cred}, Parts: MakePlan(cmd, facts).Parts, Lifetime: 1000}
			res := w.apply(2, &wire.LogEntry{Entry: &wire.LogEntry_TxnBegin{TxnBegin: begin}})
			if res.Txn == nil {
				t.Fatalf("begin: %v", res)
			}
			other := createCmd(two, "other", false)
			other.GetCreate().Ino = uint64(ino)
			if res := w.command(2, &wire.Command{Session: 1, Seq: 100, Cred: cmd.Cred, Op: other.Op}); dfs.Kind(res.Kind) != dfs.Frozen {
				t.Errorf("another file of the number: %v", res)
			}
			if v, err := Verdicts(w.reader(2), []dfs.BlockID{id}, Options{}); err != nil || v[0] != dfs.Pending {
				t.Errorf("while it is undecided: %v, %v", v, err)
			}
			c.between(w, d, res.Txn)
			if res, err = d.run(res.Txn); err != nil || dfs.Kind(res.Kind) != c.want {
				t.Errorf("%v, %v", res, err)
			}
			if v, err := Verdicts(w.reader(2), []dfs.BlockID{id}, Options{}); err != nil || v[0] != c.verdict {
				t.Errorf("then: %v, %v", v, err)
			}
			w.check(2)
		})
	}
}
