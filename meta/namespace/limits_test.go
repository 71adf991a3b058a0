package namespace

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// client numbers the commands of one session of a world.
type client struct {
	t       testing.TB
	w       *world
	session uint64
	seq     uint64
}

// try sends a command; its floor says that all before it are answered.
func (c *client) try(g dfs.GroupID, cmd *wire.Command) *wire.Result {
	c.t.Helper()
	c.seq++
	cmd.Session, cmd.Seq, cmd.Floor = c.session, c.seq, c.seq
	return c.w.command(g, cmd)
}

func (c *client) do(g dfs.GroupID, cmd *wire.Command) *wire.Result {
	c.t.Helper()
	res := c.try(g, cmd)
	if res.Kind != 0 {
		c.t.Fatalf("%v: %s", dfs.Kind(res.Kind), res.Text)
	}
	return res
}

func (c *client) file(name string) dfs.Ino {
	c.t.Helper()
	res := c.do(1, &wire.Command{Op: &wire.Command_Create{Create: &wire.CreateOp{Parent: uint64(dfs.RootIno), Name: []byte(name), Type: wire.FileType_FILE}}})
	return dfs.Ino(res.Attr.Ino)
}

func (c *client) write(ino dfs.Ino, extents ...*wire.Extent) *wire.Result {
	c.t.Helper()
	return c.try(1, &wire.Command{Op: &wire.Command_Write{Write: &wire.WriteOp{Ino: uint64(ino), Extents: extents}}})
}

func (c *client) resize(ino dfs.Ino, size int64) *wire.Result {
	c.t.Helper()
	return c.try(1, &wire.Command{Op: &wire.Command_SetAttr{SetAttr: &wire.SetAttrOp{Ino: uint64(ino), Size: &size}}})
}

// fill gives an empty file of group 1 n extents of one byte, as many writes
// would.
func (w *world) fill(ino dfs.Ino, n int) {
	w.t.Helper()
	b := w.db.NewIndexedBatch()
	tx := raftgroup.NewTx(b, prefix(1))
	st, err := readState(tx)
	if err != nil {
		w.t.Fatal(err)
	}
	c := newChange(tx, st, w.clock)
	file, err := c.need(ino)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range n {
		e := extent{offset: int64(i), end: int64(i) + 1, block: blockID(ino, 1, uint64(i)), blockLength: 1}
		if err := c.putExtent(ino, &e); err != nil {
			w.t.Fatal(err)
		}
		c.known[e.block] = blockRow{}
		c.count(e.block, 1, 1)
	}
	file.size = int64(n)
	c.mark(file)
	if _, err := c.finish(); err != nil {
		w.t.Fatal(err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		w.t.Fatal(err)
	}
}

// TestCutLimit makes a file of more extents than one command may cut: cutting
// them all at once is refused, in parts it is not, and removal costs nothing.
func TestCutLimit(t *testing.T) {
	w := newWorld(t, 1)
	c := &client{t: t, w: w, session: 1}
	ino := c.file("f")
	n := MaxCut + 1000
	w.fill(ino, n)
	if res := c.resize(ino, 0); dfs.Kind(res.Kind) != dfs.TooLarge {
		t.Fatalf("all cut at once: %v", res)
	}
	big := &wire.Extent{Length: int64(n), Block: blockID(ino, 1, 1<<40).Bytes(), BlockLength: uint32(n)}
	if res := c.write(ino, big); dfs.Kind(res.Kind) != dfs.TooLarge {
		t.Fatalf("all replaced at once: %v", res)
	}
	if res := c.resize(ino, int64(n-100)); res.Kind != 0 {
		t.Fatal(res)
	}
	before := len(w.rows(1, ""))
	c.do(1, &wire.Command{Op: &wire.Command_Unlink{Unlink: &wire.UnlinkOp{Parent: uint64(dfs.RootIno), Name: []byte("f")}}})
	if after := len(w.rows(1, "")); after > before+4 {
		t.Errorf("removing the file wrote %d rows", after-before)
	}
	// A trim takes its limit of the extents, and the last of them the inode's row.
	w.clock += 1000 << 16
	w.trim(1, w.clock, MaxTrim)
	w.trim(1, w.clock, MaxTrim)
	blocks, _, err := DeleteQueue(w.reader(1), nil, n)
	if want := 2*MaxTrim - 3; err != nil || len(blocks) > 2*MaxTrim || len(blocks) < want-100 {
		t.Errorf("two trims released %d blocks, %v", len(blocks), err)
	}
	w.check(1)
}

// TestSweepLimit fences sessions with more rows than one entry sweeps: later
// trims go on.
func TestSweepLimit(t *testing.T) {
	w := newWorld(t, 1)
	for s := range uint64(6) {
		for seq := range uint64(MaxUnacknowledged) {
			cmd := &wire.Command{Session: s + 1, Seq: seq + 1, Floor: 1, Op: &wire.Command_SetAttr{SetAttr: &wire.SetAttrOp{Ino: uint64(dfs.RootIno)}}}
			if seq == 0 {
				cmd.Op = &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: 100}}
			}
			if res := w.command(1, cmd); res.Kind != 0 {
				t.Fatal(res)
			}
		}
	}
	left := func() int { return len(w.rows(1, "bcdefhinqs")) }
	w.fence(1, 1, 6, 3)
	if n := left(); n < MaxUnacknowledged*6-MaxSweep {
		t.Fatalf("%d rows are left after the fence: more than %d were swept", n, MaxSweep)
	}
	w.check(1)
	for range 2 {
		w.trim(1, 1, 10)
		w.check(1)
	}
	// Of session 3: its replies, its floor and a lease row; and no mark to sweep.
	for _, row := range w.rows(1, "bcdefhinqs") {
		if !bytes.Equal(row[0][1:9], floorKey(3)[1:]) {
			t.Errorf("row %x is left", row[0])
		}
	}
}

// TestAnswersFit asks for more than an answer may hold.
func TestAnswersFit(t *testing.T) {
	w := newWorld(t, 1)
	c := &client{t: t, w: w, session: 1}
	var inos []uint64
	for i := range 200 {
		res := c.do(1, &wire.Command{Op: &wire.Command_Create{Create: &wire.CreateOp{
			Parent: uint64(dfs.RootIno), Name: fmt.Appendf(nil, "%03d", i), Type: wire.FileType_SYMLINK, Target: bytes.Repeat([]byte("t"), dfs.MaxSymlink),
		}}})
		inos = append(inos, res.Attr.Ino)
	}
	ask := func(q *wire.Query) *wire.QueryResult {
		t.Helper()
		res, err := w.query(1, q)
		if err != nil {
			t.Fatal(err)
		}
		if n := proto.Size(res); n > MaxAnswer+1024 {
			t.Fatalf("an answer of %d bytes", n)
		}
		return res
	}
	seen := 0
	var after []byte
	for more := true; more; {
		page := ask(&wire.Query{Query: &wire.Query_ReadDir{ReadDir: &wire.ReadDirQuery{Ino: uint64(dfs.RootIno), After: after, Plus: true}}}).GetReadDir()
		if len(page.Entries) == 0 {
			t.Fatal("a page without entries")
		}
		seen, after, more = seen+len(page.Entries), page.Entries[len(page.Entries)-1].Name, page.More
	}
	if seen != len(inos) {
		t.Errorf("%d entries in all pages, want %d", seen, len(inos))
	}
	for left := inos; len(left) > 0; {
		attrs := ask(&wire.Query{Query: &wire.Query_Attr{Attr: &wire.AttrQuery{Inos: left}}}).GetAttr().Attrs
		if len(attrs) == 0 || attrs[0].Ino != left[0] {
			t.Fatalf("%d attributes for %d inodes", len(attrs), len(left))
		}
		left = left[len(attrs):]
	}
	for _, q := range []*wire.Query{
		{Query: &wire.Query_Attr{Attr: &wire.AttrQuery{Inos: make([]uint64, maxInodes+1)}}},
		{Query: &wire.Query_Walk{Walk: &wire.WalkQuery{Start: uint64(dfs.RootIno), Names: make([][]byte, maxNames+1)}}},
	} {
		if _, err := w.query(1, q); dfs.KindOf(err) != dfs.TooLarge {
			t.Errorf("too long a question: %v", err)
		}
	}
}

// TestVersions proposes versions behind, far ahead and out of all bounds.
func TestVersions(t *testing.T) {
	w := newWorld(t, 1)
	entry := func(v dfs.Version) *wire.Result {
		data, err := proto.Marshal(&wire.LogEntry{Version: uint64(v), Entry: &wire.LogEntry_Fence{Fence: &wire.FenceOp{Index: w.index + 1}}})
		if err != nil {
			t.Fatal(err)
		}
		res := &wire.Result{}
		if err := proto.Unmarshal(w.applyBytes(1, data), res); err != nil {
			t.Fatal(err)
		}
		return res
	}
	first := entry(5000 << 16).Version
	if first != 5000<<16 {
		t.Errorf("version %d", first)
	}
	for i, v := range []dfs.Version{0, 1, 5000 << 16, 4000 << 16} {
		if got := entry(v).Version; got != first+uint64(i)+1 {
			t.Errorf("version %d for one proposed at %d, want the last plus one", got, v)
		}
	}
	for _, v := range []dfs.Version{maxVersion + 1, 1 << 63, 1<<64 - 1} {
		if res := entry(v); dfs.Kind(res.Kind) != dfs.Invalid || w.wrote != "" {
			t.Errorf("version %d: %v", v, res)
		}
	}
	if got := entry(maxVersion).Version; got != uint64(maxVersion) {
		t.Errorf("version %d", got)
	}
	c := &client{t: t, w: w, session: 1}
	c.file("late")
	if v, err := LastVersion(w.reader(1)); v != maxVersion+1 || err != nil {
		t.Errorf("last version %d, %v", v, err)
	}
	res, err := w.query(1, &wire.Query{Query: &wire.Query_Walk{Walk: &wire.WalkQuery{Start: uint64(dfs.RootIno), Names: [][]byte{[]byte("late")}}}})
	if err != nil || res.GetWalk().Steps[0].Mtime != int64(maxVersion>>16)*1e6 {
		t.Errorf("%v, %v", res, err)
	}
	w.check(1)
}

// TestNumbersRunOut lets a group give out its last inode numbers.
func TestNumbersRunOut(t *testing.T) {
	w := newWorld(t, 1)
	c := &client{t: t, w: w, session: 1}
	st, err := readState(w.reader(1))
	if err != nil {
		t.Fatal(err)
	}
	st.next = 1<<48 - 2
	if err := w.db.Set(append(prefix(1), tagState), st.append(nil), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if res := c.try(1, &wire.Command{Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: 3}}}); dfs.Kind(res.Kind) != dfs.NoSpace {
		t.Errorf("a lease beyond the last number: %v", res)
	}
	c.file("a")
	if ino := c.file("b"); ino != dfs.MakeIno(1, 1<<48-1) {
		t.Errorf("the last number is %v", ino)
	}
	if res := c.try(1, &wire.Command{Op: &wire.Command_Mkdir{Mkdir: &wire.MkdirOp{Parent: uint64(dfs.RootIno), Name: []byte("c")}}}); dfs.Kind(res.Kind) != dfs.NoSpace {
		t.Errorf("a directory beyond the last number: %v", res)
	}
	w.check(1)
}

// TestExtentsAgainstBytes plays writes, appends and truncations on one file
// beside an array of bytes, blocks of the file being named again among them.
func TestExtentsAgainstBytes(t *testing.T) {
	const limit = 2000
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 7))
		w := newWorld(t, 1)
		c := &client{t: t, w: w, session: 1}
		n := &mnode{ino: c.file("f")}
		lengths := []int{0} // of each block, by counter
		for range 200 {
			if rng.IntN(4) == 0 {
				size := int64(rng.IntN(limit))
				if rng.IntN(2) == 0 {
					size = max(0, n.size-int64(rng.IntN(3)))
				}
				if res := c.resize(n.ino, size); res.Kind != 0 {
					t.Fatal(res)
				}
				n.truncate(size)
				continue
			}
			op := &wire.WriteOp{Ino: uint64(n.ino), Append: rng.IntN(4) == 0}
			base := int64(0)
			if op.Append {
				base = n.size
			}
			was := len(n.data)
			for at := int64(rng.IntN(limit / 2)); len(op.Extents) < 1+rng.IntN(6); {
				counter := 1 + rng.IntN(len(lengths))
				if counter == len(lengths) {
					lengths = append(lengths, 1+rng.IntN(300))
				}
				offset := rng.IntN(lengths[counter])
				length := 1 + rng.IntN(lengths[counter]-offset)
				op.Extents = append(op.Extents, &wire.Extent{
					Offset: at, Length: int64(length), Block: blockID(n.ino, 1, uint64(counter)).Bytes(),
					BlockOffset: uint32(offset), BlockLength: uint32(lengths[counter]),
				})
				n.put(base+at, length, offset, uint64(counter))
				at += int64(length)
				if rng.IntN(2) == 0 {
					at += int64(rng.IntN(200))
				}
			}
			if res := c.try(1, &wire.Command{Op: &wire.Command_Write{Write: op}}); res.Kind != 0 {
				t.Fatalf("seed %d, %d bytes: %v", seed, was, res)
			}
		}
		l := &life{t: t, w: w, seed: seed}
		l.compareData(n)
		w.check(1)
	}
}
