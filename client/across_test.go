package client_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/transport/wire"
)

// mutate carries a command out as a leader does: alone, or over several groups, of
// which one such command goes on at a time.
func (n *node) mutate(ctx context.Context, g dfs.GroupID, cmd *wire.Command) (*wire.Result, error) {
	mkdir := cmd.GetMkdir()
	if mkdir == nil || n.place(dfs.Ino(mkdir.Parent), mkdir.Name) == g {
		if res := n.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Command{Command: cmd}}); dfs.Kind(res.Kind) != dfs.CrossGroup {
			return res, nil
		}
	}
	plan := namespace.MakePlan(cmd, n.facts(cmd))
	if plan == nil {
		return n.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Command{Command: cmd}}), nil
	}
	for _, p := range plan.Parts {
		if err := n.asked(ctx, dfs.GroupID(p.Group)); err != nil {
			return nil, err
		}
	}
	n.crossing <- struct{}{}
	defer func() { <-n.crossing }()
	begin := &wire.TxnBeginOp{Command: proto.CloneOf(cmd), Parts: plan.Parts, Lifetime: 10_000}
	begin.Command.Op = nil
	res := n.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_TxnBegin{TxnBegin: begin}})
	if res.Txn == nil {
		return res, nil
	}
	commit := &wire.TxnCommitOp{Txn: res.Txn}
	end := func(done *wire.Result) {
		for _, p := range commit.Prepared {
			finish := &wire.TxnFinishOp{Txn: commit.Txn, Floor: p.Floor, Commit: done.Kind == 0, Version: done.Version}
			n.apply(dfs.GroupID(p.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnFinish{TxnFinish: finish}})
		}
	}
	for _, p := range plan.Parts[1:] {
		res := n.apply(dfs.GroupID(p.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnPrepare{TxnPrepare: &wire.TxnPrepareOp{Txn: commit.Txn, Cred: cmd.Cred, Share: p.Share}}})
		if res.Kind != 0 {
			res = n.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_TxnAbort{TxnAbort: &wire.TxnAbortOp{Txn: commit.Txn, Kind: res.Kind, Text: res.Text}}})
			end(res)
			return res, nil
		}
		commit.Prepared = append(commit.Prepared, &wire.TxnPrepared{Group: p.Group, Floor: res.Version, Attr: res.Attr})
	}
	res = n.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_TxnCommit{TxnCommit: commit}})
	end(res)
	if res.Kind == 0 {
		n.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_TxnDrop{TxnDrop: &wire.TxnDropOp{Txns: []*wire.TxnID{commit.Txn}}}})
	}
	return res, nil
}

func (n *node) facts(cmd *wire.Command) (f namespace.Facts) {
	ask := func(ino uint64, q *wire.Query) *wire.QueryResult {
		reply, err := n.Read(context.Background(), &wire.ReadRequest{Group: uint32(dfs.Ino(ino).Group()), Query: q})
		if err != nil {
			return nil // refused by the group
		}
		return reply.Result
	}
	entry := func(parent uint64, name []byte) (e namespace.Entry) {
		res := ask(parent, &wire.Query{Query: &wire.Query_Entry{Entry: &wire.EntryQuery{Parent: parent, Name: name}}}).GetEntry()
		return namespace.Entry{Ino: dfs.Ino(res.GetIno()), Type: res.GetType()}
	}
	switch op := cmd.Op.(type) {
	case *wire.Command_Mkdir:
		f.Entry, f.Place = entry(op.Mkdir.Parent, op.Mkdir.Name), n.place(dfs.Ino(op.Mkdir.Parent), op.Mkdir.Name)
	case *wire.Command_Rmdir:
		f.Entry = entry(op.Rmdir.Parent, op.Rmdir.Name)
	case *wire.Command_Create:
		f.Entry = entry(op.Create.Parent, op.Create.Name)
	case *wire.Command_Unlink:
		f.Entry = entry(op.Unlink.Parent, op.Unlink.Name)
	case *wire.Command_Rename:
		f.Target = entry(op.Rename.NewParent, op.Rename.NewName)
		f.Entry = entry(op.Rename.Parent, op.Rename.Name)
	}
	return f
}

// TestFilesOfOtherGroups: a name may lead to a file of another group, wherever it
// stands in a path and however it is asked for.
func TestFilesOfOtherGroups(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		w.meta.place = func(_ dfs.Ino, name []byte) dfs.GroupID { return dfs.GroupID(name[0] - '0') }
		c, ctx := w.client(nil), t.Context()
		for _, dir := range []string{"/2", "/3"} {
			_, err := c.Mkdir(ctx, dir, 0o755)
			noErr(t, err)
		}
		big := content(1, 200_000)
		put(t, c, "/2/f", big)
		put(t, c, "/2/g", nil)
		_, err := c.Symlink(ctx, "../3/f", "/2/s", client.PutOptions{})
		noErr(t, err)
		noErr(t, c.Rename(ctx, "/2/f", "/3/f", false))
		noErr(t, c.Rename(ctx, "/2/s", "/3/s", false))
		a, err := c.Link(ctx, "/3/f", "/hard")
		noErr(t, err)
		if a.Ino.Group() != 2 || a.Nlink != 2 {
			t.Errorf("%+v", a)
		}
		for _, path := range []string{"/3/f", "/3/s", "/hard"} {
			wantContent(t, c, path, big)
			var out strings.Builder
			_, err := c.GetFile(ctx, path, &out)
			noErr(t, err)
			if out.String() != string(big) {
				t.Errorf("%s: %d bytes", path, out.Len())
			}
		}
		_, err = c.Stat(ctx, "/3/f/below")
		wantKind(t, err, dfs.NotDir)
		_, err = c.Stat(ctx, "/3/f/")
		wantKind(t, err, dfs.NotDir)
		dir, err := c.Resolve(ctx, "/3")
		noErr(t, err)
		a, err = dir.Lookup(ctx, "f")
		noErr(t, err)
		if a.Size != int64(len(big)) || a.Type != client.TypeFile {
			t.Errorf("%+v", a)
		}
		n := 0
		for e, err := range c.ReadDir(ctx, "/3", true) {
			noErr(t, err)
			n++
			if e.Attr == nil || e.Attr.Ino != e.Ino || e.Type == client.TypeDir {
				t.Errorf("%+v", e)
			}
		}
		if n != 2 {
			t.Errorf("%d entries", n)
		}
		put(t, c, "/3/f", []byte("in its place"))
		wantContent(t, c, "/hard", big)
		noErr(t, c.Remove(ctx, "/hard"))
		noErr(t, c.Rename(ctx, "/3", "/2/4", false))
		wantContent(t, c, "/2/4/f", []byte("in its place"))
		w.meta.check(t)
	})
}
