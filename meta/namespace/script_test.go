package namespace

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// TestScripts plays the log books of testdata/scripts. A command is given by its
// fields; lines of a script share one world:
//
//	world groups=N                   begin anew
//	at ms=N                          the leader's clock, milliseconds
//	<operation> g=G s=SESSION …      one command; seq counts by itself, the floor stays 0
//	retry                            the last command again, byte for byte
//	fence, trim, deleted, marks, resolve-entry
//	verdict ino=G:N s=SESSION counters=(…)
//	walk, attr, readdir, extents, place, child
//	rows tags=… · intents · queue · check
//	begin op=<operation> …           a transaction, planned by what is there; t counts them from 1 up, 0 is the last
//	prepare g=G · commit · abort kind=K text=… · finish g=G · drop   steps of transaction t=T
//	decision g=G · parts · transactions · level level=N · entry, above
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		s := &script{t: t}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.t, s.d = t, d
			if s.w != nil {
				s.w.t = t
			}
			return s.run()
		})
	})
}

type script struct {
	t      *testing.T
	d      *datadriven.TestData
	w      *world
	groups int
	seqs   map[uint64]uint64 // by session
	last   []byte            // encoded entry
	reply  []byte            // of a transaction's last entry
	lastG  dfs.GroupID
	txns   []*scriptTxn
}

// scriptTxn is a transaction of a script.
type scriptTxn struct {
	id       *wire.TxnID
	parts    []*wire.TxnPart
	prepared map[uint32]*wire.TxnPrepared
}

func (s *script) run() string {
	switch s.d.Cmd {
	case "world":
		s.groups = int(s.num("groups", 1))
		s.w, s.seqs, s.txns = newWorld(s.t, s.groups), map[uint64]uint64{}, nil
		if s.has("leveled") {
			s.w = newTxnWorld(s.t, s.groups)
		}
		return "ok"
	case "at":
		s.w.clock = dfs.Version(s.num("ms", 0)) << 16
		return "ok"
	case "retry":
		return s.result(s.w.applyBytes(s.lastG, s.last))
	case "rows":
		return s.rows()
	case "check":
		s.w.check(s.groups)
		return "ok"
	case "verdict":
		return s.verdict()
	case "intents":
		list, err := Intents(s.w.reader(s.g()), 0, 10)
		var b strings.Builder
		for _, in := range list {
			fmt.Fprintf(&b, "%v of %v in %v as %q by session %d at %s\n", in.Kind, in.Child, in.Parent, in.Name, in.Session, version(uint64(in.Version)))
		}
		return b.String() + errText(err)
	case "queue":
		blocks, next, err := DeleteQueue(s.w.reader(s.g()), nil, int(s.num("limit", 10)))
		return fmt.Sprintf("%v more=%v%s", blocks, len(next) > 0, errText(err))
	}
	if out, ok := s.txn(); ok {
		return out
	}
	if le := s.entry(); le != nil {
		le.Version = uint64(s.w.clock)
		var err error
		if s.last, err = proto.Marshal(le); err != nil {
			s.t.Fatal(err)
		}
		s.lastG = s.g()
		return s.result(s.w.applyBytes(s.lastG, s.last))
	}
	return s.query()
}

func (s *script) verdict() string {
	var b strings.Builder
	for _, a := range s.d.CmdArgs {
		for _, v := range a.Vals {
			if a.Key != "counters" {
				continue
			}
			id := blockID(dfs.Ino(s.num("ino", 0)), dfs.SessionID(s.num("s", 1)), s.parse(v))
			out, err := Verdicts(s.w.reader(s.g()), []dfs.BlockID{id}, Options{})
			if err != nil {
				s.t.Fatal(err)
			}
			fmt.Fprintf(&b, "%d.%d %v\n", id.Session, id.Counter, out[0])
		}
	}
	return b.String()
}

func errText(err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	return ""
}

// version prints milliseconds and the count within one.
func version(v uint64) string { return fmt.Sprintf("%d.%d", v>>16, v&0xffff) }

func (s *script) g() dfs.GroupID { return dfs.GroupID(s.num("g", 1)) }

func (s *script) text(key, otherwise string) string {
	for _, a := range s.d.CmdArgs {
		if a.Key == key {
			return strings.Join(a.Vals, ",")
		}
	}
	return otherwise
}

func (s *script) has(key string) bool { return s.d.HasArg(key) }

// num reads a number; G:N is an inode, 0… is octal.
func (s *script) num(key string, otherwise uint64) uint64 {
	v := s.text(key, "")
	if v == "" {
		return otherwise
	}
	return s.parse(v)
}

func (s *script) parse(v string) uint64 {
	if g, local, ok := strings.Cut(v, ":"); ok {
		return uint64(dfs.MakeIno(dfs.GroupID(s.parse(g)), s.parse(local)))
	}
	if n, err := strconv.ParseInt(v, 0, 64); err == nil {
		return uint64(n)
	}
	n, err := strconv.ParseUint(v, 0, 64)
	if err != nil {
		s.d.Fatalf(s.t, "%q: %v", v, err)
	}
	return n
}

func (s *script) ptr32(key string) *uint32 {
	if !s.has(key) {
		return nil
	}
	return proto.Uint32(uint32(s.num(key, 0)))
}

func (s *script) ptr64(key string) *int64 {
	if !s.has(key) {
		return nil
	}
	return proto.Int64(int64(s.num(key, 0)))
}

// bytesOf reads a name; \x00 and the like are written as in Go.
func (s *script) bytesOf(key string) []byte {
	v := s.text(key, "")
	if strings.Contains(v, `\`) {
		u, err := strconv.Unquote(`"` + v + `"`)
		if err != nil {
			s.d.Fatalf(s.t, "%q: %v", v, err)
		}
		return []byte(u)
	}
	if n, ok := strings.CutPrefix(v, "long="); ok {
		return bytes.Repeat([]byte("n"), int(s.parse(n)))
	}
	return []byte(v)
}

// extents reads x=(OFFSET+LENGTH@[SESSION.]COUNTER:BLOCKOFFSET/BLOCKLENGTH,…).
func (s *script) extents(ino dfs.Ino) (out []*wire.Extent) {
	for _, a := range s.d.CmdArgs {
		if a.Key != "x" {
			continue
		}
		for _, v := range a.Vals {
			var off, length int64
			var session, counter uint64
			var boff, blen uint32
			place, name, _ := strings.Cut(v, "@")
			if _, err := fmt.Sscanf(place, "%d+%d", &off, &length); err != nil {
				s.d.Fatalf(s.t, "%q: %v", v, err)
			}
			session = s.num("s", 1)
			if who, rest, ok := strings.Cut(name, "."); ok {
				session, name = s.parse(who), rest
			}
			if _, err := fmt.Sscanf(name, "%d:%d/%d", &counter, &boff, &blen); err != nil {
				s.d.Fatalf(s.t, "%q: %v", v, err)
			}
			out = append(out, &wire.Extent{
				Offset: off, Length: length, Block: blockID(ino, dfs.SessionID(session), counter).Bytes(), BlockOffset: boff, BlockLength: blen,
			})
		}
	}
	return out
}

func (s *script) entry() *wire.LogEntry {
	switch s.d.Cmd {
	case "init":
		return &wire.LogEntry{Entry: &wire.LogEntry_Init{Init: &wire.InitOp{Group: uint32(s.num("group", 1)), DefaultClass: s.text("class", "")}}}
	case "fence":
		op := &wire.FenceOp{Highest: s.num("highest", 0), Index: s.num("index", 0)}
		for _, a := range s.d.CmdArgs {
			for _, v := range a.Vals {
				if a.Key == "live" {
					first, last, _ := strings.Cut(v, "-")
					op.Live = append(op.Live, &wire.InoRange{First: s.parse(first), Count: s.parse(last) - s.parse(first) + 1})
				}
			}
		}
		return &wire.LogEntry{Entry: &wire.LogEntry_Fence{Fence: op}}
	case "trim":
		return &wire.LogEntry{Entry: &wire.LogEntry_Trim{Trim: &wire.TrimOp{Before: s.num("before", 0) << 16, Limit: uint32(s.num("limit", 100))}}}
	case "deleted":
		id := blockID(dfs.Ino(s.num("ino", 0)), dfs.SessionID(s.num("s", 1)), s.num("counter", 0))
		return &wire.LogEntry{Entry: &wire.LogEntry_Deleted{Deleted: &wire.DeletedOp{Blocks: [][]byte{id.Bytes()}}}}
	case "marks":
		return &wire.LogEntry{Entry: &wire.LogEntry_Marks{Marks: &wire.MarksOp{Marks: []*wire.SessionMark{{Session: s.num("s", 1), Below: s.num("below", 0)}}}}}
	case "recovered":
		return &wire.LogEntry{Entry: &wire.LogEntry_Recovered{Recovered: &wire.NamespaceRecoveredOp{Generation: s.num("generation", 0)}}}
	case "acknowledge":
		return &wire.LogEntry{Entry: &wire.LogEntry_Acknowledge{Acknowledge: &wire.NamespaceAcknowledgeOp{}}}
	case "resolve-entry":
		return &wire.LogEntry{Entry: &wire.LogEntry_Resolve{Resolve: s.resolveOp()}}
	}
	cmd := s.command()
	if cmd == nil {
		return nil
	}
	cmd.Session = s.num("s", 1)
	s.seqs[cmd.Session]++
	if s.has("seq") {
		s.seqs[cmd.Session] = s.num("seq", 0)
	}
	cmd.Seq, cmd.Floor = s.seqs[cmd.Session], s.num("floor", 0)
	cmd.Cred = &wire.Cred{Uid: uint32(s.num("uid", 0)), Gid: uint32(s.num("gid", 0))}
	return &wire.LogEntry{Entry: &wire.LogEntry_Command{Command: cmd}}
}

func (s *script) resolveOp() *wire.ResolveOp {
	at, count, _ := strings.Cut(s.text("intent", "0.0"), ".")
	return &wire.ResolveOp{Child: s.num("child", 0), Linked: s.has("linked"), Intent: s.parse(at)<<16 | s.parse(count)}
}

func (s *script) command() *wire.Command {
	parent, name, mode := s.num("parent", uint64(dfs.RootIno)), s.bytesOf("name"), uint32(s.num("mode", 0o755))
	switch s.d.Cmd {
	case "lease":
		return &wire.Command{Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: uint32(s.num("count", 1))}}}
	case "create":
		ino := s.num("ino", 0)
		return &wire.Command{Op: &wire.Command_Create{Create: &wire.CreateOp{
			Parent: parent, Name: name, Ino: ino, Type: wire.FileType_FILE, Mode: mode, Extents: s.extents(dfs.Ino(ino)),
			Size: int64(s.num("size", 0)), Mtime: int64(s.num("mtime", 0)), Replace: s.has("replace"), Class: s.text("class", ""),
		}}}
	case "symlink":
		return &wire.Command{Op: &wire.Command_Create{Create: &wire.CreateOp{
			Parent: parent, Name: name, Type: wire.FileType_SYMLINK, Target: s.bytesOf("target"), Replace: s.has("replace"),
		}}}
	case "mkdir":
		return &wire.Command{Op: &wire.Command_Mkdir{Mkdir: &wire.MkdirOp{Parent: parent, Name: name, Mode: mode}}}
	case "unlink":
		return &wire.Command{Op: &wire.Command_Unlink{Unlink: &wire.UnlinkOp{Parent: parent, Name: name}}}
	case "rmdir":
		return &wire.Command{Op: &wire.Command_Rmdir{Rmdir: &wire.RmdirOp{Parent: parent, Name: name}}}
	case "rename":
		return &wire.Command{Op: &wire.Command_Rename{Rename: &wire.RenameOp{
			Parent: parent, Name: name, NewParent: s.num("to", parent), NewName: s.bytesOf("as"), NoReplace: s.has("noreplace"),
		}}}
	case "link":
		return &wire.Command{Op: &wire.Command_Link{Link: &wire.LinkOp{Ino: s.num("ino", 0), Parent: parent, Name: name}}}
	case "setattr":
		return &wire.Command{Op: &wire.Command_SetAttr{SetAttr: &wire.SetAttrOp{
			Ino: s.num("ino", 0), Mode: s.ptr32("mode"), Uid: s.ptr32("owner"), Gid: s.ptr32("group"),
			Size: s.ptr64("size"), Atime: s.ptr64("atime"), Mtime: s.ptr64("mtime"),
		}}}
	case "write":
		ino := s.num("ino", 0)
		return &wire.Command{Op: &wire.Command_Write{Write: &wire.WriteOp{Ino: ino, Extents: s.extents(dfs.Ino(ino)), Append: s.has("append")}}}
	case "policy":
		op := &wire.SetPolicyOp{Ino: s.num("ino", 0), Class: s.text("class", "")}
		if s.has("inherited") {
			op.Inherited = proto.String(s.text("inherited", ""))
		}
		return &wire.Command{Op: &wire.Command_SetPolicy{SetPolicy: op}}
	case "mkdir-prepare":
		return &wire.Command{Op: &wire.Command_MkdirPrepare{MkdirPrepare: &wire.MkdirPrepareOp{
			Parent: parent, Name: name, Mode: mode, Level: 1, Class: s.text("class", ""),
			ParentMode: uint32(s.num("pmode", 0o777)), ParentGid: uint32(s.num("pgid", 0)),
		}}}
	case "mkdir-commit":
		return &wire.Command{Op: &wire.Command_MkdirCommit{MkdirCommit: &wire.MkdirCommitOp{Parent: parent, Name: name, Child: s.num("child", 0)}}}
	case "rmdir-freeze":
		return &wire.Command{Op: &wire.Command_RmdirFreeze{RmdirFreeze: &wire.RmdirFreezeOp{Child: s.num("child", 0), Parent: parent, Name: name}}}
	case "rmdir-commit":
		return &wire.Command{Op: &wire.Command_RmdirCommit{RmdirCommit: &wire.RmdirCommitOp{Parent: parent, Name: name, Child: s.num("child", 0)}}}
	case "resolve":
		return &wire.Command{Op: &wire.Command_Resolve{Resolve: s.resolveOp()}}
	}
	return nil
}

func attrText(a *wire.Attr) string {
	if a.GetIno() == 0 {
		return "no inode"
	}
	s := fmt.Sprintf("%v %v %04o %d:%d nlink=%d size=%d mtime=%dms ctime=%dms v=%s", dfs.Ino(a.Ino), strings.ToLower(a.Type.String()),
		a.Mode, a.Uid, a.Gid, a.Nlink, a.Size, a.Mtime/1e6, a.Ctime/1e6, version(a.Version))
	if a.Class != "" {
		s += " " + a.Class
	}
	if a.Type == wire.FileType_DIR {
		s += fmt.Sprintf(" level=%d parent=%v", a.Level, dfs.Ino(a.Parent))
	}
	if len(a.Target) > 0 {
		s += fmt.Sprintf(" -> %q", a.Target)
	}
	if a.Frozen {
		s += " frozen"
	}
	if a.Unlinked {
		s += " unlinked"
	}
	return s
}

func (s *script) result(reply []byte) string {
	res := &wire.Result{}
	if err := proto.Unmarshal(reply, res); err != nil {
		s.t.Fatal(err)
	}
	if err := res.ToError("", ""); err != nil {
		out := fmt.Sprintf("%v: %s", dfs.Kind(res.Kind), res.Text)
		if res.Locked != nil {
			out += " (" + txnText(res.Locked) + ")"
		}
		if res.Outdated {
			out += " (outdated)"
		}
		return out
	}
	out := "ok v=" + version(res.Version)
	if res.Txn != nil {
		out += " transaction " + txnText(res.Txn)
	}
	for _, r := range res.Leased {
		out += fmt.Sprintf(" leased %v+%d", dfs.Ino(r.First), r.Count)
	}
	if res.Attr != nil {
		out += "\n" + attrText(res.Attr)
	}
	return out
}

func (s *script) rows() string {
	var b strings.Builder
	for _, r := range s.w.rows(s.g(), "") {
		if strings.IndexByte(s.text("tags", "bcdefhilmnoqrsw"), r[0][0]) >= 0 {
			fmt.Fprintf(&b, "%c %x = %x\n", r[0][0], r[0][1:], r[1])
		}
	}
	return b.String()
}

func (s *script) query() string {
	ino := s.num("ino", uint64(dfs.RootIno))
	q := &wire.Query{}
	switch s.d.Cmd {
	case "walk":
		w := &wire.WalkQuery{Start: ino}
		for n := range strings.SplitSeq(s.text("names", ""), "/") {
			if n != "" {
				w.Names = append(w.Names, []byte(n))
			}
		}
		q.Query = &wire.Query_Walk{Walk: w}
	case "attr":
		q.Query = &wire.Query_Attr{Attr: &wire.AttrQuery{Inos: []uint64{ino}}}
	case "readdir":
		q.Query = &wire.Query_ReadDir{ReadDir: &wire.ReadDirQuery{Ino: ino, After: s.bytesOf("after"), Limit: uint32(s.num("limit", 0)), Plus: s.has("plus")}}
	case "extents":
		q.Query = &wire.Query_Extents{Extents: &wire.ExtentsQuery{
			Ino: ino, Offset: int64(s.num("offset", 0)), Length: int64(s.num("length", 0)), Limit: uint32(s.num("limit", 0)),
		}}
	case "place":
		q.Query = &wire.Query_PlaceDir{PlaceDir: &wire.PlaceDirQuery{Parent: ino, Name: s.bytesOf("name")}}
	case "child":
		q.Query = &wire.Query_Child{Child: &wire.ChildQuery{Child: s.num("child", 0), Session: s.num("session", 0)}}
	case "entry":
		q.Query = &wire.Query_Entry{Entry: &wire.EntryQuery{Parent: ino, Name: s.bytesOf("name")}}
	case "above":
		q.Query = &wire.Query_Above{Above: &wire.AboveQuery{Ino: ino}}
		if s.has("t") {
			q.GetAbove().Txn = s.theTxn().id
		}
	case "nothing":
	default:
		s.d.Fatalf(s.t, "unknown command %s", s.d.Cmd)
	}
	res, err := s.w.query(s.g(), q)
	if err != nil {
		var locked *LockedError
		if errors.As(err, &locked) {
			return fmt.Sprintf("%v: %s (%s)", dfs.KindOf(err), err, txnText(locked.Txn))
		}
		return fmt.Sprintf("%v: %s", dfs.KindOf(err), err)
	}
	return answerText(res)
}

func answerText(res *wire.QueryResult) string {
	var b strings.Builder
	switch r := res.Result.(type) {
	case *wire.QueryResult_Walk:
		for _, a := range r.Walk.Steps {
			fmt.Fprintln(&b, attrText(a))
		}
		fmt.Fprintf(&b, "missing=%v notdir=%v next=%v\n", r.Walk.Missing, r.Walk.NotDir, dfs.Ino(r.Walk.Next))
	case *wire.QueryResult_Attr:
		for _, a := range r.Attr.Attrs {
			fmt.Fprintln(&b, attrText(a))
		}
	case *wire.QueryResult_ReadDir:
		for _, e := range r.ReadDir.Entries {
			fmt.Fprintf(&b, "%q %v %v", e.Name, dfs.Ino(e.Ino), strings.ToLower(e.Type.String()))
			if e.Attr != nil {
				fmt.Fprintf(&b, " [%s]", attrText(e.Attr))
			}
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "more=%v\n", r.ReadDir.More)
	case *wire.QueryResult_Extents:
		for _, e := range r.Extents.Extents {
			id, _ := dfs.ParseBlockID(e.Block)
			fmt.Fprintf(&b, "%d+%d @%d.%d:%d/%d\n", e.Offset, e.Length, id.Session, id.Counter, e.BlockOffset, e.BlockLength)
		}
		fmt.Fprintf(&b, "size=%d more=%v\n", r.Extents.Attr.Size, r.Extents.More)
	case *wire.QueryResult_PlaceDir:
		fmt.Fprintf(&b, "class=%s parent %s\n", r.PlaceDir.Class, attrText(r.PlaceDir.Parent))
	case *wire.QueryResult_Entry:
		fmt.Fprintf(&b, "%v %v\n", dfs.Ino(r.Entry.Ino), strings.ToLower(r.Entry.Type.String()))
	case *wire.QueryResult_Above:
		for _, ino := range r.Above.Path {
			fmt.Fprintf(&b, "%v ", dfs.Ino(ino))
		}
		fmt.Fprintf(&b, "next=%v level=%d\n", dfs.Ino(r.Above.Next), r.Above.Level)
	case *wire.QueryResult_Txn:
		fmt.Fprintf(&b, "%v v=%s\n", strings.ToLower(r.Txn.State.String()), version(r.Txn.Version))
	case *wire.QueryResult_Child:
		fmt.Fprintf(&b, "linked=%v name=%q parent=%v fenced=%v\n", r.Child.Linked, r.Child.Name, dfs.Ino(r.Child.Parent), r.Child.Fenced)
	}
	return b.String()
}
