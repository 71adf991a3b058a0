package namespace

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// populated is a small world with something of everything in group 1.
func populated(t testing.TB) *world {
	w := newWorld(t, 2)
	do := func(g dfs.GroupID, session, seq uint64, cmd *wire.Command) *wire.Result {
		t.Helper()
		cmd.Session, cmd.Seq, cmd.Cred = session, seq, &wire.Cred{Uid: 1, Gid: 2}
		res := w.command(g, cmd)
		if res.Kind != 0 {
			t.Fatalf("%v: %v", cmd, res)
		}
		return res
	}
	root := uint64(dfs.RootIno)
	extent := func(ino dfs.Ino, counter uint64, offset, length int64) *wire.Extent {
		return &wire.Extent{Offset: offset, Length: length, Block: blockID(ino, 1, counter).Bytes(), BlockLength: 100}
	}
	do(1, 1, 1, &wire.Command{Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: 4}}})
	for i, name := range []string{"f", "gone", "cut"} {
		ino := dfs.MakeIno(1, uint64(2+i))
		do(1, 1, uint64(2+i), &wire.Command{Op: &wire.Command_Create{Create: &wire.CreateOp{
			Parent: root, Name: []byte(name), Ino: uint64(ino), Type: wire.FileType_FILE, Size: 200,
			Extents: []*wire.Extent{extent(ino, 1, 0, 100), extent(ino, 2, 100, 100)},
		}}})
	}
	do(1, 1, 5, &wire.Command{Op: &wire.Command_SetAttr{SetAttr: &wire.SetAttrOp{Ino: uint64(dfs.MakeIno(1, 4)), Size: proto.Int64(50)}}})
	w.clock += 1000 << 16
	w.trim(1, w.clock, 100)
	do(1, 1, 6, &wire.Command{Op: &wire.Command_Write{Write: &wire.WriteOp{Ino: uint64(dfs.MakeIno(1, 2)), Extents: []*wire.Extent{extent(dfs.MakeIno(1, 2), 3, 50, 100)}}}})
	do(1, 1, 7, &wire.Command{Op: &wire.Command_Unlink{Unlink: &wire.UnlinkOp{Parent: root, Name: []byte("gone")}}})
	do(1, 1, 8, &wire.Command{Op: &wire.Command_Create{Create: &wire.CreateOp{Parent: root, Name: []byte("link"), Type: wire.FileType_SYMLINK, Target: []byte("to")}}})
	do(1, 1, 9, &wire.Command{Op: &wire.Command_Mkdir{Mkdir: &wire.MkdirOp{Parent: root, Name: []byte("dir"), Mode: 0o755}}})
	dir := uint64(dfs.MakeIno(1, 7))
	do(1, 1, 10, &wire.Command{Op: &wire.Command_Mkdir{Mkdir: &wire.MkdirOp{Parent: dir, Name: []byte("sub"), Mode: 0o755}}})
	do(1, 1, 11, &wire.Command{Op: &wire.Command_Link{Link: &wire.LinkOp{Ino: uint64(dfs.MakeIno(1, 2)), Parent: dir, Name: []byte("hard")}}})
	child := do(2, 2, 1, &wire.Command{Op: &wire.Command_MkdirPrepare{MkdirPrepare: &wire.MkdirPrepareOp{Parent: root, Name: []byte("far")}}})
	do(1, 2, 1, &wire.Command{Op: &wire.Command_MkdirCommit{MkdirCommit: &wire.MkdirCommitOp{Parent: root, Name: []byte("far"), Child: child.Attr.Ino}}})
	do(2, 2, 2, &wire.Command{Op: &wire.Command_Resolve{Resolve: &wire.ResolveOp{Child: child.Attr.Ino, Linked: true, Intent: child.Version}}})
	do(1, 2, 2, &wire.Command{Op: &wire.Command_MkdirPrepare{MkdirPrepare: &wire.MkdirPrepareOp{Parent: child.Attr.Ino, Name: []byte("made")}}})
	near := do(1, 2, 3, &wire.Command{Op: &wire.Command_MkdirPrepare{MkdirPrepare: &wire.MkdirPrepareOp{Parent: child.Attr.Ino, Name: []byte("near")}}})
	do(2, 2, 4, &wire.Command{Op: &wire.Command_MkdirCommit{MkdirCommit: &wire.MkdirCommitOp{Parent: child.Attr.Ino, Name: []byte("near"), Child: near.Attr.Ino}}})
	do(1, 2, 5, &wire.Command{Op: &wire.Command_Resolve{Resolve: &wire.ResolveOp{Child: near.Attr.Ino, Linked: true, Intent: near.Version}}})
	do(1, 2, 6, &wire.Command{Op: &wire.Command_RmdirFreeze{RmdirFreeze: &wire.RmdirFreezeOp{Child: near.Attr.Ino, Parent: child.Attr.Ino, Name: []byte("near")}}})
	w.fence(1, 1, 4, 1, 2)
	unfinished(t, w)
	w.check(2)
	return w
}

// unfinished gives a world two undecided transactions, one that group 1 coordinates
// and one of group 2, and one of group 1 that waits to be dropped.
func unfinished(t testing.TB, w *world) {
	t.Helper()
	w.raise(2)
	root, far := uint64(dfs.RootIno), uint64(dfs.MakeIno(2, 2))
	begin := func(seq uint64, cmd *wire.Command, f Facts) *wire.TxnID {
		t.Helper()
		plan := MakePlan(cmd, f)
		res := w.apply(Coordinator(cmd), &wire.LogEntry{Entry: &wire.LogEntry_TxnBegin{TxnBegin: &wire.TxnBeginOp{
			Command: &wire.Command{Session: 2, Seq: seq, Cred: &wire.Cred{Uid: 1, Gid: 2}}, Parts: plan.Parts, Lifetime: MaxLifetime,
		}}})
		if res.Kind != 0 {
			t.Fatalf("begin: %v", res)
		}
		return res.Txn
	}
	done := begin(30, mkdirCmd(dfs.RootIno, "done"), Facts{Place: 2})
	txn, err := FindTransaction(w.reader(1), 2, 30)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&driver{w: w, crash: 3}).decide(txn); err != errCrash { // before it is dropped
		t.Fatal(err)
	}
	if res, err := w.query(1, &wire.Query{Query: &wire.Query_Txn{Txn: &wire.TxnQuery{Txn: done}}}); err != nil || res.GetTxn().State != wire.TxnResult_COMMITTED {
		t.Fatalf("%v, %v", res, err)
	}
	begin(31, mkdirCmd(dfs.RootIno, "undecided"), Facts{Place: 2})
	do := &wire.Command{Session: 2, Seq: 32, Cred: &wire.Cred{}, Op: &wire.Command_Create{Create: &wire.CreateOp{Parent: far, Name: []byte("moves"), Type: wire.FileType_FILE}}}
	ino := dfs.Ino(w.command(2, do).Attr.Ino)
	id := begin(33, renameCmd(dfs.Ino(far), "moves", dfs.RootIno, "moved"), Facts{Entry: Entry{ino, wire.FileType_FILE}})
	share := &wire.TxnShare{Steps: []*wire.TxnStep{{Step: &wire.TxnStep_Enter{Enter: &wire.EnterStep{
		Parent: root, Name: []byte("moved"), Ino: uint64(ino), Type: wire.FileType_FILE,
	}}}}}
	if res := w.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_TxnPrepare{TxnPrepare: &wire.TxnPrepareOp{Txn: id, Share: share}}}); res.Kind != 0 {
		t.Fatalf("prepare: %v", res)
	}
}

// txnEntries are entries about the transactions of populated, and about new ones.
func txnEntries(t testing.TB, w *world) (out []*wire.LogEntry) {
	t.Helper()
	list, err := Transactions(w.reader(1), nil, 10)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := Parts(w.reader(1), nil, 10)
	if err != nil || len(list) != 2 || len(parts) != 1 {
		t.Fatalf("%d transactions, %d shares, %v", len(list), len(parts), err)
	}
	for _, txn := range list {
		made := &wire.Attr{Ino: uint64(dfs.MakeIno(2, 99)), Type: wire.FileType_DIR}
		out = append(out,
			&wire.LogEntry{Entry: &wire.LogEntry_TxnCommit{TxnCommit: &wire.TxnCommitOp{Txn: txn.ID, Prepared: []*wire.TxnPrepared{{Group: 2, Floor: 2000 << 16, Attr: made}}}}},
			&wire.LogEntry{Entry: &wire.LogEntry_TxnAbort{TxnAbort: &wire.TxnAbortOp{Txn: txn.ID, Kind: uint32(dfs.Exist), Text: "exists"}}},
			&wire.LogEntry{Entry: &wire.LogEntry_TxnDrop{TxnDrop: &wire.TxnDropOp{Txns: []*wire.TxnID{txn.ID}}}},
		)
	}
	root, f := uint64(dfs.RootIno), uint64(dfs.MakeIno(1, 2))
	id := &wire.TxnID{Group: 2, Session: 2, Seq: 40, Begun: 5000 << 16}
	for _, steps := range [][]*wire.TxnStep{
		{{Step: &wire.TxnStep_Leave{Leave: &wire.LeaveStep{Parent: root, Name: []byte("f"), Ino: f, Type: wire.FileType_FILE}}}, {Step: &wire.TxnStep_Links{Links: &wire.LinksStep{Ino: f, Less: true}}}},
		{{Step: &wire.TxnStep_Moved{Moved: &wire.MovedStep{Ino: f}}}, {Step: &wire.TxnStep_Tree{Tree: &wire.TreeStep{}}}},
		{{Step: &wire.TxnStep_MakeDir{MakeDir: &wire.MakeDirStep{Parent: uint64(dfs.MakeIno(2, 2)), Mode: 0o755}}}},
		{{Step: &wire.TxnStep_RemoveDir{RemoveDir: &wire.RemoveDirStep{Ino: uint64(dfs.MakeIno(1, 8))}}}},
		{{Step: &wire.TxnStep_Keep{Keep: &wire.KeepStep{Parent: root, Name: []byte("f"), Ino: f, Type: wire.FileType_FILE}}}},
	} {
		share := &wire.TxnShare{Steps: steps}
		out = append(out,
			&wire.LogEntry{Entry: &wire.LogEntry_TxnPrepare{TxnPrepare: &wire.TxnPrepareOp{Txn: id, Share: share}}},
			&wire.LogEntry{Entry: &wire.LogEntry_TxnBegin{TxnBegin: &wire.TxnBeginOp{
				Command: &wire.Command{Session: 1, Seq: 50, Floor: 10}, Parts: []*wire.TxnPart{{Group: 1, Share: share}}, Lifetime: 1000,
			}}},
		)
	}
	create := &wire.CreateOp{Parent: root, Name: []byte("f"), Type: wire.FileType_FILE, Replace: true}
	return append(out,
		&wire.LogEntry{Entry: &wire.LogEntry_TxnBegin{TxnBegin: &wire.TxnBeginOp{
			Command: &wire.Command{Session: 1, Seq: 51, Floor: 10}, Lifetime: 1000,
			Parts: []*wire.TxnPart{{Group: 1, Share: &wire.TxnShare{Steps: []*wire.TxnStep{{Step: &wire.TxnStep_Create{Create: &wire.CreateStep{Op: create, Old: f}}}}}}},
		}}},
		&wire.LogEntry{Entry: &wire.LogEntry_TxnFinish{TxnFinish: &wire.TxnFinishOp{Txn: parts[0].Txn, Floor: uint64(parts[0].Floor), Commit: true, Version: uint64(parts[0].Floor) + 9}}},
		&wire.LogEntry{Entry: &wire.LogEntry_TxnFinish{TxnFinish: &wire.TxnFinishOp{Txn: parts[0].Txn, Floor: uint64(parts[0].Floor)}}},
		&wire.LogEntry{Entry: &wire.LogEntry_Level{Level: &wire.LevelOp{Level: NewestLevel}}},
	)
}

// keeping is a populated world whose groups have begun to keep accounts, and are
// somewhere on the way.
func keeping(t testing.TB) *world {
	w := populated(t)
	for g := dfs.GroupID(1); g <= 2; g++ {
		for _, limit := range []uint32{3, 100, 100} {
			w.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Tally{Tally: &wire.TallyOp{Limit: limit}}})
		}
	}
	far := dfs.MakeIno(2, 2)
	u, err := ReadUntold(w.reader(2), 0, 10)
	if err != nil || len(u.Reports) == 0 || dfs.Ino(u.Reports[0].Ino) != far {
		t.Fatalf("%+v, %v", u, err)
	}
	w.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_Absorb{Absorb: &wire.AbsorbOp{Of: u.Reports}}})
	cmd := &wire.Command{Session: 1, Seq: 12, Op: &wire.Command_SetAttr{SetAttr: &wire.SetAttrOp{Ino: uint64(dfs.MakeIno(1, 2)), Size: proto.Int64(170)}}}
	if res := w.command(1, cmd); res.Kind != 0 {
		t.Fatal(res)
	}
	for _, err := range Check(w.reader(1)) {
		t.Error(err)
	}
	return w
}

// entries are encoded log entries of every kind, for fuzzing to start from.
func entries(t testing.TB, w *world) (out [][]byte) {
	root, f, dir := uint64(dfs.RootIno), uint64(dfs.MakeIno(1, 2)), uint64(dfs.MakeIno(1, 7))
	far := uint64(dfs.MakeIno(2, 2))
	name := []byte("f")
	block := blockID(dfs.MakeIno(1, 2), 1, 9).Bytes()
	commands := []*wire.Command{
		{Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: 300}}},
		{Op: &wire.Command_Create{Create: &wire.CreateOp{Parent: root, Name: name, Type: wire.FileType_FILE, Replace: true}}},
		{Op: &wire.Command_Create{Create: &wire.CreateOp{Parent: root, Name: []byte("new"), Ino: uint64(dfs.MakeIno(1, 5)), Type: wire.FileType_FILE, Size: 9}}},
		{Op: &wire.Command_Mkdir{Mkdir: &wire.MkdirOp{Parent: root, Name: []byte("new"), Mode: 0o7777}}},
		{Op: &wire.Command_Unlink{Unlink: &wire.UnlinkOp{Parent: root, Name: name}}},
		{Op: &wire.Command_Rmdir{Rmdir: &wire.RmdirOp{Parent: dir, Name: []byte("sub")}}},
		{Op: &wire.Command_Rename{Rename: &wire.RenameOp{Parent: root, Name: []byte("dir"), NewParent: root, NewName: []byte("cut")}}},
		{Op: &wire.Command_Rename{Rename: &wire.RenameOp{Parent: root, Name: name, NewParent: dir, NewName: name}}},
		{Op: &wire.Command_Rename{Rename: &wire.RenameOp{Parent: root, Name: []byte("far"), NewParent: root, NewName: name}}},
		{Op: &wire.Command_Link{Link: &wire.LinkOp{Ino: f, Parent: dir, Name: []byte("x")}}},
		{Op: &wire.Command_SetAttr{SetAttr: &wire.SetAttrOp{Ino: f, Size: proto.Int64(120), Mode: proto.Uint32(0o600), Mtime: proto.Int64(5)}}},
		{Op: &wire.Command_Write{Write: &wire.WriteOp{Ino: f, Append: true, Extents: []*wire.Extent{{Length: 5, Block: block, BlockLength: 5}}}}},
		{Op: &wire.Command_Write{Write: &wire.WriteOp{Ino: f, Extents: []*wire.Extent{{Offset: 20, Length: 5, Block: block, BlockLength: 5}}}}},
		{Op: &wire.Command_SetPolicy{SetPolicy: &wire.SetPolicyOp{Ino: dir, Class: "rep2"}}},
		{Op: &wire.Command_MkdirPrepare{MkdirPrepare: &wire.MkdirPrepareOp{Parent: far, Name: name}}},
		{Op: &wire.Command_MkdirCommit{MkdirCommit: &wire.MkdirCommitOp{Parent: dir, Name: []byte("x"), Child: uint64(dfs.MakeIno(2, 9))}}},
		{Op: &wire.Command_RmdirFreeze{RmdirFreeze: &wire.RmdirFreezeOp{Child: f, Parent: far, Name: name}}},
		{Op: &wire.Command_RmdirCommit{RmdirCommit: &wire.RmdirCommitOp{Parent: root, Name: []byte("far"), Child: far}}},
		{Op: &wire.Command_Resolve{Resolve: &wire.ResolveOp{Child: uint64(dfs.MakeIno(1, 9)), Linked: true, Intent: 1}}},
		{},
	}
	logs := []*wire.LogEntry{
		{Entry: &wire.LogEntry_Fence{Fence: &wire.FenceOp{Highest: 9, Index: 7, Live: []*wire.InoRange{{First: 1, Count: 1}, {First: 5, Count: 3}}}}},
		{Entry: &wire.LogEntry_Trim{Trim: &wire.TrimOp{Before: 1 << 60, Limit: 3}}},
		{Entry: &wire.LogEntry_Trim{Trim: &wire.TrimOp{Before: 1 << 60, Limit: 4096}}},
		{Entry: &wire.LogEntry_Deleted{Deleted: &wire.DeletedOp{Blocks: [][]byte{block}}}},
		{Entry: &wire.LogEntry_Marks{Marks: &wire.MarksOp{Marks: []*wire.SessionMark{{Session: 1, Below: 8}, {Session: 3, Below: 1}}}}},
		{Entry: &wire.LogEntry_Init{Init: &wire.InitOp{Group: 1}}},
		{Entry: &wire.LogEntry_Level{Level: &wire.LevelOp{Level: NewestLevel}}},
		{Entry: &wire.LogEntry_Tally{Tally: &wire.TallyOp{Limit: 9}}},
		{Entry: &wire.LogEntry_Absorb{Absorb: &wire.AbsorbOp{Of: []*wire.Absorption{{Ino: far, Dir: root, Seq: 1 << 60, Sums: &wire.Sums{Bytes: 300, Files: 2, Directories: 1}}}}}},
		{Entry: &wire.LogEntry_Reported{Reported: &wire.ReportedOp{Of: []*wire.Absorption{{Ino: uint64(dfs.MakeIno(1, 9)), Dir: far, Seq: 1 << 60}}}}},
		{Entry: &wire.LogEntry_Resolve{Resolve: &wire.ResolveOp{Child: f, Intent: 1}}},
		{Entry: &wire.LogEntry_Recovered{Recovered: &wire.NamespaceRecoveredOp{Generation: 1 << 40}}},
		{Entry: &wire.LogEntry_Acknowledge{Acknowledge: &wire.NamespaceAcknowledgeOp{}}},
		{},
	}
	for i, cmd := range commands {
		cmd.Session, cmd.Seq, cmd.Floor = 1, uint64(20+i), 10
		logs = append(logs, &wire.LogEntry{Version: 3000 << 16, Entry: &wire.LogEntry_Command{Command: cmd}})
	}
	logs = append(logs, txnEntries(t, w)...)
	for after := range wire.BatchOp_Refusals_name {
		var cmds []*wire.Command
		for i := range commands {
			cmds = append(cmds, proto.CloneOf(commands[(i*7+int(after))%len(commands)]))
		}
		batch := batchOf(20, wire.BatchOp_Refusals(after), cmds...)
		batch.Version = 3000 << 16
		logs = append(logs, batch)
	}
	for _, le := range logs {
		data, err := proto.Marshal(le)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, data)
	}
	return out
}

// tryEntry applies an entry to a copy of the world: the result must be sane,
// the same on another replica, and the same when it is sent again.
func tryEntry(t *testing.T, w *world, data []byte) *wire.Result {
	t.Helper()
	apply := func(b *pebble.Batch) []byte {
		reply, err := New(1, Options{}).Apply(raftgroup.NewTx(b, prefix(1)), raftgroup.Entry{Index: 9, Term: 1, Data: data})
		if err != nil {
			t.Fatalf("apply %x: %v", data, err)
		}
		return reply
	}
	one, two := w.db.NewIndexedBatch(), w.db.NewIndexedBatch()
	defer one.Close()
	defer two.Close()
	reply, other := apply(one), apply(two)
	if !bytes.Equal(reply, other) || !bytes.Equal(one.Repr(), two.Repr()) {
		t.Fatalf("two replicas differ after %x", data)
	}
	res := &wire.Result{}
	if err := proto.Unmarshal(reply, res); err != nil {
		t.Fatal(err)
	}
	if res.Kind == 0 && res.Text != "" || res.Kind != 0 && res.Text == "" {
		t.Fatalf("result %v", res)
	}
	for _, err := range Check(raftgroup.NewTx(one, prefix(1))) {
		t.Errorf("after %x: %v", data, err)
	}
	le := &wire.LogEntry{}
	malformed := proto.Unmarshal(data, le) != nil
	ends := le.GetTxnCommit() != nil || le.GetTxnAbort() != nil // a refusal is how a transaction ends
	if kind := dfs.Kind(res.Kind); kind != 0 && !ends {
		for _, tag := range tagsOf(t, one) {
			if tag != tagFloor && tag != tagReply {
				t.Errorf("%x was refused (%v) and wrote rows of tag %c", data, kind, tag)
			}
		}
	}
	if !malformed && le.GetCommand() != nil {
		before := bytes.Clone(one.Repr())
		if again := apply(one); !bytes.Equal(again, reply) && !dfs.Kind(res.Kind).Retryable() || !bytes.Equal(before, one.Repr()) {
			t.Errorf("a retry of %x was answered %x, first %x", data, again, reply)
		}
	}
	if le.GetBatch() != nil {
		before := bytes.Clone(one.Repr())
		again, lasting := resultOf(t, apply(one)), true
		for i, m := range res.Members {
			first := dfs.Kind(resultOf(t, m).Kind)
			lasting = lasting && !first.Retryable() && first != dfs.Fenced
			if i < len(again.Members) && !bytes.Equal(again.Members[i], m) && !dfs.Kind(resultOf(t, again.Members[i]).Kind).Retryable() && lasting {
				t.Errorf("command %d of %x was answered %x, first %x", i, data, again.Members[i], m)
			}
		}
		if lasting && !bytes.Equal(before, one.Repr()) {
			t.Errorf("a retry of %x wrote rows", data)
		}
	}
	return res
}

// TestEntriesMutated is what FuzzApply does, for some inputs on every run.
func TestEntriesMutated(t *testing.T) {
	for name, w := range map[string]*world{"populated": populated(t), "keeping accounts": keeping(t)} {
		t.Run(name, func(t *testing.T) { mutateEntries(t, w) })
	}
}

func mutateEntries(t *testing.T, w *world) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, data := range entries(t, w) {
		tryEntry(t, w, data)
		for range 20 {
			mutated := bytes.Clone(data)
			for range 1 + rng.IntN(3) {
				if len(mutated) > 0 {
					mutated[rng.IntN(len(mutated))] = byte(rng.IntN(256))
				}
			}
			tryEntry(t, w, mutated[:rng.IntN(len(mutated)+1)])
			tryEntry(t, w, mutated)
		}
	}
}

// FuzzApply feeds arbitrary entries to a populated group.
func FuzzApply(f *testing.F) {
	w, keeps := populated(f), keeping(f)
	for _, data := range entries(f, w) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tryEntry(t, w, data)
		tryEntry(t, keeps, data)
	})
}

// FuzzQuery feeds arbitrary queries to a populated group.
func FuzzQuery(f *testing.F) {
	w := keeping(f)
	root := uint64(dfs.RootIno)
	for _, q := range []*wire.Query{
		{Query: &wire.Query_Walk{Walk: &wire.WalkQuery{Start: root, Names: [][]byte{[]byte("dir"), []byte("sub")}}}},
		{Query: &wire.Query_Attr{Attr: &wire.AttrQuery{Inos: []uint64{root, 5}, Below: true}}},
		{Query: &wire.Query_ReadDir{ReadDir: &wire.ReadDirQuery{Ino: root, After: []byte("a"), Limit: 2, Plus: true}}},
		{Query: &wire.Query_Extents{Extents: &wire.ExtentsQuery{Ino: uint64(dfs.MakeIno(1, 2)), Offset: 10, Length: 100, Limit: 1}}},
		{Query: &wire.Query_PlaceDir{PlaceDir: &wire.PlaceDirQuery{Parent: root, Name: []byte("x")}}},
		{Query: &wire.Query_Entry{Entry: &wire.EntryQuery{Parent: root, Name: []byte("moved")}}},
		{Query: &wire.Query_Above{Above: &wire.AboveQuery{Ino: uint64(dfs.MakeIno(1, 8)), Txn: &wire.TxnID{Group: 2, Begun: 1}}}},
		{Query: &wire.Query_Txn{Txn: &wire.TxnQuery{Txn: &wire.TxnID{Group: 1, Session: 2, Seq: 31, Begun: 1}, Group: 2, Floor: 1}}},
		{Query: &wire.Query_Child{Child: &wire.ChildQuery{Child: uint64(dfs.MakeIno(2, 2)), Session: 3}}},
		{},
	} {
		data, err := proto.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		q := &wire.Query{}
		if proto.Unmarshal(data, q) != nil {
			return
		}
		res, err := w.query(1, q)
		switch kind := dfs.KindOf(err); {
		case err == nil && res.Result == nil:
			t.Fatalf("no answer to %v", q)
		case err != nil && (kind == dfs.Other || kind == dfs.Corrupt || kind == dfs.Internal):
			t.Fatalf("%v: %v", q, err)
		}
	})
}

// FuzzRows feeds arbitrary values to the decoders of rows: each gives an error
// or a row that encodes to the same bytes.
func FuzzRows(f *testing.F) {
	for _, row := range append(populated(f).rows(1, ""), keeping(f).rows(1, "")...) {
		f.Add(row[0], row[1])
	}
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if again, err := recode(key, value); err == nil && !bytes.Equal(again, value) {
			t.Errorf("%x = %x is written again as %x", key, value, again)
		}
	})
}

// recode decodes a row and encodes it again.
func recode(key, value []byte) ([]byte, error) {
	if len(key) == 0 {
		return value, nil
	}
	switch tag := key[0]; {
	case tag == tagInode && len(key) == 9:
		n, err := decodeInode(keyIno(key), value)
		return n.append(nil), err
	case tag == tagDentry:
		e, err := decodeDentry(key, value)
		return e.append(nil), err
	case tag == tagExtent:
		e, err := decodeExtent(key, value)
		return e.append(nil), err
	case tag == tagBlock:
		b, err := decodeBlock(key, value)
		return b.append(nil), err
	case tag == tagChild:
		c, err := decodeChild(key, value)
		return c.append(nil), err
	case tag == tagState && len(key) == 1:
		st, err := decodeState(key, value)
		return st.append(nil), err
	case tag == tagAccount:
		a, err := decodeAccount(key, value)
		if err != nil {
			return nil, err
		}
		return a.append(nil), nil
	case tag == tagCount:
		row, err := decodeCount(key, value)
		return row.append(nil), err
	case (tag == tagUntold || tag == tagReport) && len(value) != 1:
		row, err := decodeUntold(key, value)
		return row.append(tag), err
	case tag == tagTaken:
		row, err := decodeAbsorbed(key, value)
		return row.append(nil), err
	case tag == tagNames:
		row, err := decodeName(key, value)
		return row.append(nil), err
	case tag == tagLock:
		l, err := decodeLock(key, value)
		return l.append(nil), err
	case tag == tagPart: // messages can be written in many ways
		_, err := decodePart(key, value)
		return value, err
	case tag == tagTxn:
		_, err := decodeTxn(key, value)
		return value, err
	case tag == tagIntent:
		in, err := decodeIntent(key, value)
		if err != nil {
			return nil, err
		}
		return in.append(nil), nil
	}
	return value, nil
}
