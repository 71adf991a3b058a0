package namespace

import (
	"bytes"
	"fmt"
	"testing"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// beginner begins transactions, 512 of each session.
type beginner struct {
	w   *world
	n   uint64
	ids []*wire.TxnID
}

func (b *beginner) begin(op *wire.TxnBeginOp) *wire.Result {
	op.Command = &wire.Command{Session: 3 + b.n/512, Seq: 1 + b.n%512, Cred: &wire.Cred{}}
	b.n++
	res := b.w.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_TxnBegin{TxnBegin: op}})
	if res.Txn != nil {
		b.ids = append(b.ids, res.Txn)
	}
	return res
}

func (b *beginner) mkdir(parent dfs.Ino, name string) *wire.Result {
	plan := MakePlan(mkdirCmd(parent, name), Facts{Place: 2})
	return b.begin(&wire.TxnBeginOp{Parts: plan.Parts, Lifetime: 1000})
}

// TestTransactionsOutOfShape: what no plan looks like is refused, and changes nothing.
func TestTransactionsOutOfShape(t *testing.T) {
	w := newTxnWorld(t, 2)
	b := &beginner{w: w}
	step := func(name string) *wire.TxnStep {
		return &wire.TxnStep{Step: &wire.TxnStep_Enter{Enter: &wire.EnterStep{Parent: uint64(dfs.RootIno), Name: []byte(name), Ino: uint64(dfs.MakeIno(2, 9)), Type: wire.FileType_FILE}}}
	}
	makeDir := &wire.TxnStep{Step: &wire.TxnStep_MakeDir{MakeDir: &wire.MakeDirStep{Parent: uint64(dfs.RootIno)}}}
	part := func(g uint32, steps ...*wire.TxnStep) *wire.TxnPart {
		return &wire.TxnPart{Group: g, Share: &wire.TxnShare{Steps: steps}}
	}
	var long []*wire.TxnStep
	for i := range MaxSteps + 1 {
		long = append(long, step(fmt.Sprint(i)))
	}
	good := part(2, makeDir)
	big := step(string(bytes.Repeat([]byte("n"), MaxShare)))
	for _, c := range []struct {
		what string
		op   *wire.TxnBeginOp
		want dfs.Kind
	}{
		{"no parts", &wire.TxnBeginOp{Lifetime: 1}, dfs.Invalid},
		{"no lifetime", &wire.TxnBeginOp{Parts: []*wire.TxnPart{part(1, step("a")), good}}, dfs.Invalid},
		{"a long lifetime", &wire.TxnBeginOp{Parts: []*wire.TxnPart{part(1, step("a")), good}, Lifetime: MaxLifetime + 1}, dfs.Invalid},
		{"without its coordinator", &wire.TxnBeginOp{Parts: []*wire.TxnPart{good}, Lifetime: 1}, dfs.Invalid},
		{"a group twice", &wire.TxnBeginOp{Parts: []*wire.TxnPart{part(1, step("a")), good, good}, Lifetime: 1}, dfs.Invalid},
		{"a group that cannot be", &wire.TxnBeginOp{Parts: []*wire.TxnPart{part(1, step("a")), part(1<<16, makeDir)}, Lifetime: 1}, dfs.Invalid},
		{"many groups", &wire.TxnBeginOp{Parts: []*wire.TxnPart{part(1, step("a")), good, part(3, step("a")), part(4, step("a")), part(5, step("a")), part(6, step("a"))}, Lifetime: 1}, dfs.Invalid},
		{"a share of nothing", &wire.TxnBeginOp{Parts: []*wire.TxnPart{part(1), good}, Lifetime: 1}, dfs.Invalid},
		{"a long share", &wire.TxnBeginOp{Parts: []*wire.TxnPart{part(1, long...), good}, Lifetime: 1}, dfs.Invalid},
		{"a big share", &wire.TxnBeginOp{Parts: []*wire.TxnPart{part(1, step("a")), part(2, big)}, Lifetime: 1}, dfs.TooLarge},
		{"an empty step", &wire.TxnBeginOp{Parts: []*wire.TxnPart{part(1, &wire.TxnStep{}), good}, Lifetime: 1}, dfs.Unsupported},
		{"a directory that the coordinator makes", &wire.TxnBeginOp{Parts: []*wire.TxnPart{part(1, makeDir), part(2, step("a"))}, Lifetime: 1}, dfs.Invalid},
	} {
		res := b.begin(c.op)
		if dfs.Kind(res.Kind) != c.want || len(w.rows(1, "sor")) != len(w.rows(1, "sorkpt")) {
			t.Errorf("%s: %v %s, want %v", c.what, dfs.Kind(res.Kind), res.Text, c.want)
		}
		if len(c.op.Parts) < 2 {
			continue
		}
		id := &wire.TxnID{Group: 1, Session: 1, Seq: 1, Begun: 1}
		if p := c.op.Parts[1]; p.Group == 2 && p != good {
			res := w.apply(2, &wire.LogEntry{Entry: &wire.LogEntry_TxnPrepare{TxnPrepare: &wire.TxnPrepareOp{Txn: id, Share: p.Share}}})
			if res.Kind == 0 {
				t.Errorf("%s was prepared", c.what)
			}
		}
	}
	for _, id := range []*wire.TxnID{nil, {}, {Group: 1, Session: 1, Seq: 1}, {Group: 1 << 16, Session: 1, Seq: 1, Begun: 1}, {Group: 2, Session: 1, Seq: 1, Begun: 1}} {
		for _, le := range []*wire.LogEntry{
			{Entry: &wire.LogEntry_TxnPrepare{TxnPrepare: &wire.TxnPrepareOp{Txn: id, Share: good.Share}}},
			{Entry: &wire.LogEntry_TxnCommit{TxnCommit: &wire.TxnCommitOp{Txn: id}}},
			{Entry: &wire.LogEntry_TxnAbort{TxnAbort: &wire.TxnAbortOp{Txn: id, Kind: 1}}},
			{Entry: &wire.LogEntry_TxnFinish{TxnFinish: &wire.TxnFinishOp{Txn: id}}},
			{Entry: &wire.LogEntry_TxnDrop{TxnDrop: &wire.TxnDropOp{Txns: []*wire.TxnID{id}}}},
		} {
			own := id.GetGroup() == 2 // prepare and finish are for other groups' transactions, the others for the own
			if res := w.apply(1, le); res.Kind == 0 && !(own && (le.GetTxnPrepare() != nil || le.GetTxnFinish() != nil)) {
				t.Errorf("%v: %v", le, res)
			}
		}
	}
}

// TestTransactionsBelowTheLevel: a group that has not been told that all members know
// them takes no transactions.
func TestTransactionsBelowTheLevel(t *testing.T) {
	w := newWorld(t, 2)
	b := &beginner{w: w}
	if res := b.mkdir(dfs.RootIno, "a"); dfs.Kind(res.Kind) != dfs.Unsupported {
		t.Errorf("begin: %v", res)
	}
	id := &wire.TxnID{Group: 1, Session: 1, Seq: 1, Begun: 1}
	share := MakePlan(mkdirCmd(dfs.RootIno, "a"), Facts{Place: 2}).Parts[1].Share
	if res := w.apply(2, &wire.LogEntry{Entry: &wire.LogEntry_TxnPrepare{TxnPrepare: &wire.TxnPrepareOp{Txn: id, Share: share}}}); dfs.Kind(res.Kind) != dfs.Unsupported {
		t.Errorf("prepare: %v", res)
	}
	if res := w.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_Level{Level: &wire.LevelOp{Level: NewestLevel + 1}}}); dfs.Kind(res.Kind) != dfs.Unsupported {
		t.Errorf("a level of the future: %v", res)
	}
	if res := w.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_Level{Level: &wire.LevelOp{Level: NewestLevel}}}); res.Kind != 0 {
		t.Errorf("level: %v", res)
	}
	if res := w.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_Level{Level: &wire.LevelOp{}}}); res.Kind != 0 {
		t.Errorf("a lower level: %v", res)
	}
	if level, err := Level(w.reader(1)); level != NewestLevel || err != nil {
		t.Errorf("level %d, %v", level, err)
	}
	if res := b.mkdir(dfs.RootIno, "a"); res.Txn == nil {
		t.Errorf("begin: %v", res)
	}
}

// TestTransactionsAreBounded fills a directory, and both groups, with transactions.
func TestTransactionsAreBounded(t *testing.T) {
	w := newTxnWorld(t, 2)
	b := &beginner{w: w}
	c := &txnClient{t: t, d: newDriver(w), session: 2}
	var dirs []dfs.Ino
	for i := range MaxTxns / MaxHolders {
		dirs = append(dirs, c.mkdir(1, dfs.RootIno, fmt.Sprint(i)))
	}
	busy := func(what string, res *wire.Result) {
		t.Helper()
		if dfs.Kind(res.Kind) != dfs.Busy {
			t.Errorf("%s: %v", what, res)
		}
	}
	for i := range MaxTxns {
		if res := b.mkdir(dirs[i/MaxHolders], fmt.Sprint(i)); res.Txn == nil {
			t.Fatalf("transaction %d: %v", i, res)
		}
		if i == MaxHolders-1 {
			busy("one more in a directory", b.mkdir(dirs[0], "more"))
		}
	}
	busy("one more in a group", b.mkdir(dfs.RootIno, "more"))

	share := MakePlan(mkdirCmd(dfs.RootIno, "a"), Facts{Place: 2}).Parts[1].Share
	prepare := func(id *wire.TxnID) *wire.Result {
		return w.apply(2, &wire.LogEntry{Entry: &wire.LogEntry_TxnPrepare{TxnPrepare: &wire.TxnPrepareOp{Txn: id, Share: share}}})
	}
	for _, id := range b.ids {
		if res := prepare(id); res.Kind != 0 {
			t.Fatalf("prepare: %v", res)
		}
	}
	busy("one more share", prepare(&wire.TxnID{Group: 1, Session: 1, Seq: 5000, Begun: 1}))
	w.check(2)
	if res := w.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_TxnDrop{TxnDrop: &wire.TxnDropOp{Txns: b.ids[:MaxDrop+1]}}}); dfs.Kind(res.Kind) != dfs.TooLarge {
		t.Errorf("a long drop: %v", res)
	}
	if res := w.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_TxnDrop{TxnDrop: &wire.TxnDropOp{Txns: b.ids[:1]}}}); dfs.Kind(res.Kind) != dfs.Invalid {
		t.Errorf("the drop of what is undecided: %v", res)
	}
	for n, past := 0, (*wire.TxnID)(nil); ; {
		page, err := Transactions(w.reader(1), past, 100)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			if n != MaxTxns {
				t.Errorf("%d transactions are listed", n)
			}
			break
		}
		n += len(page)
		past = page[len(page)-1].ID
	}
	if err := c.d.settle(2); err != nil {
		t.Fatal(err)
	}
	w.check(2)
	for g := range 2 {
		if rows := w.rows(dfs.GroupID(g+1), "abcdefghilmnoqrsuvwxy"); len(rows) > 0 {
			t.Errorf("group %d has %d rows of transactions left", g+1, len(rows))
		}
	}
}
