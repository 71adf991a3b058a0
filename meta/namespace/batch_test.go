package namespace

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// batchLife is a client that sends its commands in batches to one world, and a
// second world whose group gets each of them by an entry of its own, as the rules
// of batches say. Answers are lost, batches are cut up and put together anew, and
// old ones come once more.
type batchLife struct {
	t        *testing.T
	rng      *rand.Rand
	one      *world // in batches
	each     *world // command by command
	session  uint64
	seq      uint64
	pending  []*wire.Command // without an answer, in order
	sent     []*wire.BatchOp
	answers  map[uint64][]byte // of a command, once it is lasting
	versions map[uint64]uint64 // of those that were done
	inos     []uint64
	apart    bool // in any order
	did      map[string]int
}

// TestBatchesAreTheirCommands: whatever batches commands come in, the group answers
// and ends up as if each had come by itself; each is carried out once, and in order.
func TestBatchesAreTheirCommands(t *testing.T) {
	did := map[string]int{}
	for seed := range uint64(6) {
		l := &batchLife{
			t: t, rng: rand.New(rand.NewPCG(seed, 3)), one: newWorld(t, 2), each: newWorld(t, 2), session: 1,
			answers: map[uint64][]byte{}, versions: map[uint64]uint64{}, apart: seed%3 == 2, did: did,
		}
		for range 250 {
			l.step()
		}
		for g := range dfs.GroupID(2) {
			l.compare(g + 1)
		}
		l.one.check(2)
	}
	for _, what := range []string{"done", "refused for good", "held up", "stopped", "apart", "lost", "again", "late", "stale", "session has expired", "in part"} {
		if did[what] == 0 {
			t.Errorf("nothing was %s: %v", what, did)
		}
	}
	t.Logf("%v", did)
}

func (l *batchLife) step() {
	if l.rng.IntN(3) == 0 {
		by := dfs.Version(l.rng.IntN(300)) << 14
		l.one.clock, l.each.clock = l.one.clock+by, l.each.clock+by
	}
	for range l.rng.IntN(12) {
		l.command()
	}
	switch n := l.rng.IntN(20); {
	case n < 14 && len(l.pending) > 0:
		l.send(1+l.rng.IntN(min(len(l.pending), 20)), l.rng.IntN(4) > 0)
	case n < 17 && len(l.sent) > 0:
		l.did["late"]++
		l.apply(l.sent[l.rng.IntN(len(l.sent))])
	case n == 17 && len(l.pending) > 0: // its caller does not wait any longer
		l.pending = l.pending[1:]
	case n == 18 && l.rng.IntN(20) == 0:
		for _, w := range []*world{l.one, l.each} {
			w.fence(1, l.session, l.session)
		}
		l.apply(l.sent[len(l.sent)-1])
		l.session, l.seq, l.pending, l.sent, l.inos = l.session+1, 0, nil, nil, nil
		clear(l.answers)
		clear(l.versions)
	}
}

// command makes up one more command, some of which cannot be carried out.
func (l *batchLife) command() {
	name := func() []byte { return []byte(fmt.Sprint("n", l.rng.IntN(12))) }
	root := uint64(dfs.RootIno)
	cmd := &wire.Command{}
	switch n := l.rng.IntN(12); {
	case n < 4:
		op := &wire.CreateOp{Parent: root, Name: name(), Type: wire.FileType_FILE, Replace: l.rng.IntN(3) == 0}
		if len(l.inos) > 0 && l.rng.IntN(2) == 0 {
			op.Ino, op.Size = l.inos[0], 10
			op.Extents = []*wire.Extent{{Length: 10, Block: blockID(dfs.Ino(op.Ino), dfs.SessionID(l.session), l.seq).Bytes(), BlockLength: 10}}
			if l.inos = l.inos[1:]; l.rng.IntN(8) == 0 {
				op.Extents[0].Length = 11 // beyond the block: a number was taken by then, and is given back
				op.Ino = 0
			}
		}
		cmd.Op = &wire.Command_Create{Create: op}
	case n < 6:
		cmd.Op = &wire.Command_Unlink{Unlink: &wire.UnlinkOp{Parent: root, Name: name()}}
	case n < 8:
		cmd.Op = &wire.Command_Rename{Rename: &wire.RenameOp{Parent: root, Name: name(), NewParent: root, NewName: name()}}
	case n < 9:
		cmd.Op = &wire.Command_Mkdir{Mkdir: &wire.MkdirOp{Parent: root, Name: name(), Mode: 0o755}}
	case n < 10:
		cmd.Op = &wire.Command_Rmdir{Rmdir: &wire.RmdirOp{Parent: root, Name: name()}}
	case n < 11:
		cmd.Op = &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: uint32(1 + l.rng.IntN(MaxLeased/4))}} // which is refused for now once enough are held
	default:
		cmd.Op = &wire.Command_SetAttr{SetAttr: &wire.SetAttrOp{Ino: root, Mtime: proto.Int64(l.rng.Int64N(1000))}}
	}
	l.seq++
	cmd.Session, cmd.Seq, cmd.Cred = l.session, l.seq, &wire.Cred{Uid: 1, Gid: 2}
	l.pending = append(l.pending, cmd)
}

// send sends the first n commands that wait, and takes the answers unless they are
// lost.
func (l *batchLife) send(n int, arrives bool) {
	op := &wire.BatchOp{Refusals: wire.BatchOp_Refusals(l.rng.IntN(2))}
	if l.apart {
		op.Refusals = wire.BatchOp_APART
	}
	for _, cmd := range l.pending[:n] {
		c := proto.CloneOf(cmd)
		c.Floor = l.pending[0].Seq
		op.Commands = append(op.Commands, c)
	}
	l.sent = append(l.sent, op)
	members := l.apply(op)
	switch {
	case !arrives:
		l.did["lost"]++
		return
	case len(members) > 1 && l.rng.IntN(4) == 0: // only some are taken note of
		members = members[:1+l.rng.IntN(len(members)-1)]
		l.did["in part"]++
	}
	for _, m := range members {
		if kind := resultOf(l.t, m).Kind; dfs.Kind(kind).Retryable() || dfs.Kind(kind) == dfs.Fenced {
			return
		}
		l.pending = l.pending[1:]
	}
}

// apply sends a batch to one world and what it means to the other.
func (l *batchLife) apply(op *wire.BatchOp) [][]byte {
	l.t.Helper()
	res := l.one.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_Batch{Batch: op}})
	if res.Kind != 0 {
		l.t.Fatalf("%v", res)
	}
	for i, cmd := range op.Commands {
		data, err := proto.Marshal(&wire.LogEntry{Version: uint64(l.each.clock), Entry: &wire.LogEntry_Command{Command: cmd}})
		if err != nil {
			l.t.Fatal(err)
		}
		want := l.each.applyBytes(1, data)
		if i >= len(res.Members) || !bytes.Equal(res.Members[i], want) {
			l.t.Fatalf("command %d of %d, %v: %d answers, it has to have %v", i, len(op.Commands), cmd, len(res.Members), resultOf(l.t, want))
		}
		if l.note(cmd, want, i+1 < len(op.Commands), op.Refusals) {
			if len(res.Members) > i+1 {
				l.t.Fatalf("command %d of %d ends the batch, and %d have answers", i, len(op.Commands), len(res.Members))
			}
			break
		}
	}
	return res.Members
}

// note holds an answer against those before it, and reports whether it ends its
// batch.
func (l *batchLife) note(cmd *wire.Command, reply []byte, more bool, after wire.BatchOp_Refusals) bool {
	l.t.Helper()
	res := resultOf(l.t, reply)
	kind := dfs.Kind(res.Kind)
	if kind == dfs.Stale || kind == dfs.Fenced || kind == dfs.Busy {
		l.did[kind.Error()]++
		if more {
			l.did["held up"]++
		}
		return after != wire.BatchOp_APART
	}
	if old := l.answers[cmd.Seq]; old != nil {
		l.did["again"]++
		if !bytes.Equal(old, reply) {
			l.t.Fatalf("%v has two answers: %v and %v", cmd, resultOf(l.t, old), res)
		}
	} else if l.answers[cmd.Seq] = reply; kind == 0 && cmd.GetSetAttr() == nil {
		l.did["done"]++
		for seq, v := range l.versions {
			if !l.apart && (seq < cmd.Seq) != (v < res.Version) && v != res.Version { // what changes nothing has the version before it
				l.t.Fatalf("command %d has version %x, command %d %x", cmd.Seq, res.Version, seq, v)
			}
		}
		l.versions[cmd.Seq] = res.Version
		for _, r := range res.Leased {
			for i := range min(r.Count, 3) {
				l.inos = append(l.inos, r.First+i)
			}
		}
	}
	if kind == 0 {
		return false
	}
	l.did["refused for good"]++
	switch {
	case after == wire.BatchOp_STOP && more:
		l.did["stopped"]++
	case after == wire.BatchOp_APART && more:
		l.did["apart"]++
	}
	return after == wire.BatchOp_STOP
}

// compare holds the rows of a group in both worlds against each other.
func (l *batchLife) compare(g dfs.GroupID) {
	l.t.Helper()
	one, each := l.one.rows(g, ""), l.each.rows(g, "")
	for i, row := range one {
		if i >= len(each) || !bytes.Equal(row[0], each[i][0]) || !bytes.Equal(row[1], each[i][1]) {
			l.t.Fatalf("%v: row %x = %x in batches, %d rows; %d rows by single commands", g, row[0], row[1], len(one), len(each))
		}
	}
	if len(one) != len(each) {
		l.t.Fatalf("%v: %d rows in batches, %d by single commands", g, len(one), len(each))
	}
}

func resultOf(t testing.TB, reply []byte) *wire.Result {
	t.Helper()
	res := &wire.Result{}
	if err := proto.Unmarshal(reply, res); err != nil {
		t.Fatal(err)
	}
	return res
}

// batchOf makes an entry of commands of session 1, numbered from first on.
func batchOf(first uint64, after wire.BatchOp_Refusals, cmds ...*wire.Command) *wire.LogEntry {
	for i, cmd := range cmds {
		cmd.Session, cmd.Seq, cmd.Floor = 1, first+uint64(i), first
	}
	return &wire.LogEntry{Entry: &wire.LogEntry_Batch{Batch: &wire.BatchOp{Commands: cmds, Refusals: after}}}
}

func symlink(name string) *wire.Command {
	return &wire.Command{Op: &wire.Command_Create{Create: &wire.CreateOp{Parent: uint64(dfs.RootIno), Name: []byte(name), Type: wire.FileType_SYMLINK, Target: []byte("to")}}}
}

// kinds draws the answers to a batch.
func kinds(t testing.TB, res *wire.Result) (out string) {
	t.Helper()
	if res.Kind != 0 {
		return "all " + dfs.Kind(res.Kind).Error()
	}
	for _, m := range res.Members {
		if kind := dfs.Kind(resultOf(t, m).Kind); kind == done {
			out += "done "
		} else {
			out += kind.Error() + " "
		}
	}
	return out
}

// TestBatchRefusals: what a refusal means for the commands behind it.
func TestBatchRefusals(t *testing.T) {
	full := func() *wire.Command {
		return &wire.Command{Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: MaxLeased}}}
	}
	for _, c := range []struct {
		after wire.BatchOp_Refusals
		want  string
		names string // that exist then
	}{
		{wire.BatchOp_KEEP_ORDER, "done exists already done done busy ", "abc"},
		{wire.BatchOp_STOP, "done exists already ", "a"},
		{wire.BatchOp_APART, "done exists already done done busy done ", "abcd"},
	} {
		w := newWorld(t, 1)
		res := w.apply(1, batchOf(1, c.after, symlink("a"), symlink("a"), symlink("b"), full(), full(), symlink("d")))
		if c.names != "a" { // not all were numbers of the lease
			w.apply(1, batchOf(7, c.after, symlink("c")))
		}
		if got := kinds(t, res); got != c.want {
			t.Errorf("%v: %s, want %s", c.after, got, c.want)
		}
		for _, name := range "abcd" {
			e, err := readDentry(w.reader(1), dfs.RootIno, []byte(string(name)))
			if want := bytes.ContainsRune([]byte(c.names), name); err != nil || (e != nil) != want {
				t.Errorf("%v: %c is %v, %v; want it there: %v", c.after, name, e, err, want)
			}
		}
		w.check(1)
	}
}

// TestBatchLimits: what is no batch is refused as a whole, and one that has cut
// enough ends.
func TestBatchLimits(t *testing.T) {
	w := newWorld(t, 1)
	var many []*wire.Command
	for i := range MaxBatch + 1 {
		many = append(many, symlink(fmt.Sprint("many", i)))
	}
	two := batchOf(1, wire.BatchOp_KEEP_ORDER, symlink("a"), symlink("b"))
	two.GetBatch().Commands[1].Session = 2
	for _, c := range []struct {
		what  string
		entry *wire.LogEntry
		want  string
	}{
		{"none", batchOf(1, wire.BatchOp_KEEP_ORDER), "all invalid argument"},
		{"too many", batchOf(1, wire.BatchOp_KEEP_ORDER, many...), "all invalid argument"},
		{"two sessions", two, "all invalid argument"},
		{"unknown", batchOf(1, 3, symlink("a")), "all not supported"},
		{"as many as there may be, and the first again", batchOf(1, wire.BatchOp_KEEP_ORDER, many[:2]...), "done done "},
	} {
		if got := kinds(t, w.apply(1, c.entry)); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}

	c := &client{t: t, w: w, session: 2}
	ino := c.file("f")
	w.fill(ino, MaxCut)
	size := func(n int64) *wire.Command {
		return &wire.Command{Op: &wire.Command_SetAttr{SetAttr: &wire.SetAttrOp{Ino: uint64(ino), Size: &n}}}
	}
	cut := batchOf(10, wire.BatchOp_KEEP_ORDER, symlink("before"), size(MaxCut/2), size(0), symlink("after"))
	if got := kinds(t, w.apply(1, cut)); got != "done done done " {
		t.Errorf("%d extents were cut: %s", MaxCut, got)
	}
	if got := kinds(t, w.apply(1, cut)); got != "done done done done " {
		t.Errorf("sent again: %s", got)
	}
	w.check(1)
}
