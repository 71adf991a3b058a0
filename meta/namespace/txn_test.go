package namespace

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// newTxnWorld is a world of groups at the newest feature level.
func newTxnWorld(t testing.TB, groups int) *world {
	w := newWorld(t, groups)
	for g := range groups {
		if res := w.apply(dfs.GroupID(g+1), &wire.LogEntry{Entry: &wire.LogEntry_Level{Level: &wire.LevelOp{Level: NewestLevel}}}); res.Kind != 0 {
			t.Fatalf("level: %v", res)
		}
	}
	return w
}

// errCrash is what a driver that has been stopped returns.
var errCrash = errors.New("the driver crashed")

// driver carries commands out over several groups, as the leader of the
// coordinator's group does. It can be stopped before any entry of a transaction.
type driver struct {
	w       *world
	crash   int // entries that it may still propose; negative: any number
	place   dfs.GroupID
	life    uint32
	pause   func() bool                                                  // before each step of a walk; false: it crashes. May be nil
	rng     *rand.Rand                                                   // nil: shares are prepared in order
	refused func(id *wire.TxnID, kind dfs.Kind, text string)             // told of a refusal that counts; may be nil
	apply   func(g dfs.GroupID, le *wire.LogEntry) (*wire.Result, error) // nil: applied at once
}

func newDriver(w *world) *driver { return &driver{w: w, crash: -1, life: 10_000} }

func (d *driver) propose(g dfs.GroupID, le *wire.LogEntry) (*wire.Result, error) {
	if d.crash == 0 {
		return nil, errCrash
	}
	d.crash--
	if d.apply != nil {
		return d.apply(g, le)
	}
	return d.w.apply(g, le), nil
}

func (d *driver) command(g dfs.GroupID, cmd *wire.Command) (*wire.Result, error) {
	return d.propose(g, &wire.LogEntry{Entry: &wire.LogEntry_Command{Command: cmd}})
}

func (d *driver) entry(parent uint64, name []byte) (Entry, error) {
	g := dfs.Ino(parent).Group()
	res, err := d.w.query(g, &wire.Query{Query: &wire.Query_Entry{Entry: &wire.EntryQuery{Parent: parent, Name: name}}})
	if err != nil {
		return Entry{}, err
	}
	e := res.GetEntry()
	return Entry{dfs.Ino(e.Ino), e.Type}, nil
}

// facts reads what a plan needs.
func (d *driver) facts(cmd *wire.Command) (f Facts, err error) {
	switch op := cmd.Op.(type) {
	case *wire.Command_Mkdir:
		f.Place = d.place
		f.Entry, err = d.entry(op.Mkdir.Parent, op.Mkdir.Name)
	case *wire.Command_Rmdir:
		f.Entry, err = d.entry(op.Rmdir.Parent, op.Rmdir.Name)
	case *wire.Command_Create:
		f.Entry, err = d.entry(op.Create.Parent, op.Create.Name)
	case *wire.Command_Unlink:
		f.Entry, err = d.entry(op.Unlink.Parent, op.Unlink.Name)
	case *wire.Command_Link:
		var res *wire.QueryResult
		res, err = d.w.query(dfs.Ino(op.Link.Ino).Group(), &wire.Query{Query: &wire.Query_Attr{Attr: &wire.AttrQuery{Inos: []uint64{op.Link.Ino}}}})
		if err == nil {
			f.Entry = Entry{dfs.Ino(op.Link.Ino), res.GetAttr().Attrs[0].Type}
		}
	case *wire.Command_Rename:
		if f.Entry, err = d.entry(op.Rename.Parent, op.Rename.Name); err == nil {
			f.Target, err = d.entry(op.Rename.NewParent, op.Rename.NewName)
		}
	}
	return f, err
}

// do carries a command out: alone where one group can, else as a transaction.
func (d *driver) do(cmd *wire.Command) (*wire.Result, error) {
	g := Coordinator(cmd)
	if cmd.GetMkdir() == nil || d.place == 0 || d.place == g {
		res, err := d.command(g, cmd)
		if err != nil || dfs.Kind(res.Kind) != dfs.CrossGroup && dfs.Kind(res.Kind) != dfs.Busy {
			return res, err
		}
	}
	for range 10 {
		f, err := d.facts(cmd)
		if err != nil {
			return nil, err
		}
		plan := MakePlan(cmd, f)
		if plan == nil {
			return d.command(g, cmd)
		}
		res, err := d.transact(g, cmd, plan)
		if err != nil || !res.Outdated {
			return res, err
		}
	}
	return &wire.Result{Kind: uint32(dfs.Busy), Text: "every plan is outdated"}, nil
}

// transact begins a transaction and brings it to its end.
func (d *driver) transact(g dfs.GroupID, cmd *wire.Command, plan *Plan) (*wire.Result, error) {
	op := &wire.TxnBeginOp{Command: &wire.Command{Session: cmd.Session, Seq: cmd.Seq, Floor: cmd.Floor, Cred: cmd.Cred}, Parts: plan.Parts, Lifetime: d.life}
	res, err := d.propose(g, &wire.LogEntry{Entry: &wire.LogEntry_TxnBegin{TxnBegin: op}})
	if err != nil || res.Kind != 0 || res.Txn == nil {
		return res, err
	}
	return d.run(res.Txn)
}

// run brings a transaction that has begun to its end.
func (d *driver) run(id *wire.TxnID) (*wire.Result, error) {
	txn, err := FindTransaction(d.w.reader(dfs.GroupID(id.Group)), dfs.SessionID(id.Session), id.Seq)
	if err != nil {
		return nil, err
	}
	if txn == nil { // somebody else has brought it to its end
		return &wire.Result{Kind: uint32(dfs.Unavailable), Text: "it is over"}, nil
	}
	if txn.Commit == 0 {
		return d.decide(txn)
	}
	return &wire.Result{Kind: uint32(dfs.Unavailable), Text: "it is done: ask again"}, d.finish(txn)
}

func (d *driver) decide(txn *Transaction) (*wire.Result, error) {
	commit := &wire.TxnCommitOp{Txn: txn.ID, Prepared: make([]*wire.TxnPrepared, len(txn.Parts))}
	prepare := func(i int) (*wire.Result, error) {
		p := txn.Parts[i]
		res, err := d.propose(dfs.GroupID(p.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnPrepare{TxnPrepare: &wire.TxnPrepareOp{Txn: txn.ID, Cred: txn.Cred, Share: p.Share}}})
		if err == nil && res.Kind == 0 {
			commit.Prepared[i] = &wire.TxnPrepared{Group: p.Group, Floor: res.Version, Attr: res.Attr}
		}
		return res, err
	}
	// In any order; but a refusal counts only when all before it are prepared.
	order := make([]int, len(txn.Parts))
	for i := range order {
		order[i] = i
	}
	if d.rng != nil {
		d.rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	for _, i := range order {
		res, err := prepare(i)
		if err != nil {
			return nil, err
		}
		if dfs.Kind(res.Kind).Retryable() {
			return d.abort(txn, res)
		}
	}
	for i := range txn.Parts {
		if commit.Prepared[i] != nil {
			continue
		}
		res, err := prepare(i)
		if err != nil {
			return nil, err
		}
		if res.Kind != 0 {
			if d.refused != nil {
				d.refused(txn.ID, dfs.Kind(res.Kind), res.Text)
			}
			return d.abort(txn, res)
		}
	}
	if txn.Moved != 0 {
		below, err := d.below(txn.ID, txn.Under, txn.Moved)
		if err != nil {
			return nil, err
		}
		if below {
			return d.abort(txn, &wire.Result{Kind: uint32(dfs.Invalid), Text: "it would lie below itself"})
		}
	}
	res, err := d.propose(dfs.GroupID(txn.ID.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnCommit{TxnCommit: commit}})
	if err != nil {
		return nil, err
	}
	if res.Kind != 0 {
		return res, d.drop(txn)
	}
	txn, err = FindTransaction(d.w.reader(dfs.GroupID(txn.ID.Group)), dfs.SessionID(txn.ID.Session), txn.ID.Seq)
	if err != nil || txn == nil || txn.Commit == 0 {
		return res, err
	}
	return res, d.finish(txn)
}

// below reports whether a directory is another one or lies below it.
func (d *driver) below(id *wire.TxnID, dir, above dfs.Ino) (bool, error) {
	for dir != 0 {
		if d.pause != nil && !d.pause() {
			return false, errCrash
		}
		res, err := d.w.query(dir.Group(), &wire.Query{Query: &wire.Query_Above{Above: &wire.AboveQuery{Ino: uint64(dir), Txn: id}}})
		if err != nil {
			return false, err
		}
		if slices.Contains(res.GetAbove().Path, uint64(above)) {
			return true, nil
		}
		dir = dfs.Ino(res.GetAbove().Next)
	}
	return false, nil
}

// abort ends a transaction with what a participant refused it with.
func (d *driver) abort(txn *Transaction, why *wire.Result) (*wire.Result, error) {
	res, err := d.propose(dfs.GroupID(txn.ID.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnAbort{TxnAbort: &wire.TxnAbortOp{Txn: txn.ID, Kind: why.Kind, Text: why.Text}}})
	if err != nil {
		return nil, err
	}
	res.Locked, res.Outdated = why.Locked, why.Outdated
	return res, d.drop(txn)
}

// drop has the participants drop their shares.
func (d *driver) drop(txn *Transaction) error {
	for _, p := range txn.Parts {
		if err := d.ask(dfs.GroupID(p.Group), txn.ID); err != nil {
			return err
		}
	}
	return nil
}

// ask has a participant ask the coordinator, and do as it says.
func (d *driver) ask(g dfs.GroupID, id *wire.TxnID) error {
	in, err := readPart(d.w.reader(g), holderOf(id))
	if err != nil || in == nil {
		return err
	}
	q := &wire.TxnQuery{Txn: id, Group: uint32(g), Floor: in.Floor}
	res, err := d.w.query(dfs.GroupID(id.Group), &wire.Query{Query: &wire.Query_Txn{Txn: q}})
	if err != nil || res.GetTxn().State == wire.TxnResult_UNDECIDED {
		return err
	}
	op := &wire.TxnFinishOp{Txn: id, Floor: in.Floor, Commit: res.GetTxn().State == wire.TxnResult_COMMITTED, Version: res.GetTxn().Version}
	_, err = d.propose(g, &wire.LogEntry{Entry: &wire.LogEntry_TxnFinish{TxnFinish: op}})
	return err
}

// finish has every participant carry a committed transaction out, and forgets it.
func (d *driver) finish(txn *Transaction) error {
	for _, p := range txn.Parts {
		op := &wire.TxnFinishOp{Txn: txn.ID, Floor: p.Floor, Commit: true, Version: uint64(txn.Commit)}
		res, err := d.propose(dfs.GroupID(p.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnFinish{TxnFinish: op}})
		if err != nil {
			return err
		}
		if res.Kind != 0 {
			return fmt.Errorf("finish: %v", res)
		}
	}
	_, err := d.propose(dfs.GroupID(txn.ID.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnDrop{TxnDrop: &wire.TxnDropOp{Txns: []*wire.TxnID{txn.ID}}}})
	return err
}

// settle ends everything that drivers have left, as the leaders of the groups do:
// the coordinators abort what is undecided and finish the rest, and the
// participants ask.
func (d *driver) settle(groups int) error {
	d.crash = -1
	for g := range groups {
		list, err := Transactions(d.w.reader(dfs.GroupID(g+1)), nil, 1<<20)
		if err != nil {
			return err
		}
		for _, txn := range list {
			if txn.Commit != 0 {
				err = d.finish(txn)
			} else {
				_, err = d.abort(txn, &wire.Result{Kind: uint32(dfs.Unavailable), Text: "its driver is gone"})
			}
			if err != nil {
				return err
			}
		}
	}
	for g := range groups {
		parts, err := Parts(d.w.reader(dfs.GroupID(g+1)), nil, 1<<20)
		if err != nil {
			return err
		}
		for _, p := range parts {
			if err := d.ask(dfs.GroupID(g+1), p.Txn); err != nil {
				return err
			}
		}
	}
	return nil
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
		if rows := w.rows(dfs.GroupID(g+1), "bcdefhilmnoqrsw"); len(rows) > 0 {
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
		for _, row := range w.rows(dfs.GroupID(g+1), "bcefhiklmnopqrstw") {
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
