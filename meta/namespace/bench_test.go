package namespace

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// BenchmarkCreate applies creates with content, a hundred entries a batch, as
// a group under load does. Of the commands of a session, every one comes to this
// group, or one of 16. At level 0 the group keeps no accounts.
func BenchmarkCreate(b *testing.B) {
	for _, step := range []int{1, 16} {
		for _, level := range []uint32{0, NewestLevel} {
			b.Run(fmt.Sprintf("step=%d/level=%d", step, level), func(b *testing.B) { benchmarkCreate(b, step, level) })
		}
	}
}

func benchmarkCreate(b *testing.B, step int, level uint32) {
	w := newWorld(b, 1)
	w.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_Level{Level: &wire.LevelOp{Level: level}}})
	w.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_Tally{Tally: &wire.TallyOp{Limit: MaxTally}}})
	w.apply(1, &wire.LogEntry{Entry: &wire.LogEntry_Tally{Tally: &wire.TallyOp{Limit: MaxTally}}})
	m := New(1, Options{})
	var entries [][]byte
	add := func(cmd *wire.Command) {
		seq := uint64(step*len(entries) + 1)
		cmd.Session, cmd.Seq, cmd.Floor = 1, seq, seq
		data, err := proto.Marshal(&wire.LogEntry{Version: 2000 << 16, Entry: &wire.LogEntry_Command{Command: cmd}})
		if err != nil {
			b.Fatal(err)
		}
		entries = append(entries, data)
	}
	made := w.command(1, &wire.Command{Session: 2, Seq: 1, Op: &wire.Command_Mkdir{Mkdir: &wire.MkdirOp{Parent: uint64(dfs.RootIno), Name: []byte("dir")}}})
	parent, ino := made.Attr.Ino, dfs.Ino(made.Attr.Ino)
	for i := range b.N {
		if i%dfs.InoLease == 0 {
			add(&wire.Command{Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: dfs.InoLease}}})
		}
		ino++
		add(&wire.Command{Op: &wire.Command_Create{Create: &wire.CreateOp{
			Parent: parent, Name: fmt.Appendf(nil, "file-%d", i), Ino: uint64(ino), Type: wire.FileType_FILE, Size: 4096,
			Extents: []*wire.Extent{{Length: 4096, Block: blockID(ino, 1, uint64(i)).Bytes(), BlockLength: 4096}},
		}}})
	}
	b.ReportAllocs()
	b.ResetTimer()
	batch := w.db.NewIndexedBatch()
	for i, data := range entries {
		if _, err := m.Apply(raftgroup.NewTx(batch, prefix(1)), raftgroup.Entry{Data: data}); err != nil {
			b.Fatal(err)
		}
		if i%100 == 99 {
			if err := batch.Commit(pebble.NoSync); err != nil {
				b.Fatal(err)
			}
			batch = w.db.NewIndexedBatch()
		}
	}
	if err := batch.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkLookup walks three names to a file among a thousand.
func BenchmarkLookup(b *testing.B) {
	w := newWorld(b, 1)
	c := &client{t: b, w: w, session: 1}
	parent := uint64(dfs.RootIno)
	for range 2 {
		parent = c.do(1, &wire.Command{Op: &wire.Command_Mkdir{Mkdir: &wire.MkdirOp{Parent: parent, Name: []byte("dir")}}}).Attr.Ino
	}
	for i := range 1000 {
		c.do(1, &wire.Command{Op: &wire.Command_Create{Create: &wire.CreateOp{Parent: parent, Name: fmt.Appendf(nil, "%d", i), Type: wire.FileType_FILE}}})
	}
	r := w.reader(1)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		q := &wire.Query{Query: &wire.Query_Walk{Walk: &wire.WalkQuery{
			Start: uint64(dfs.RootIno), Names: [][]byte{[]byte("dir"), []byte("dir"), fmt.Appendf(nil, "%d", i%1000)},
		}}}
		res, err := Query(r, 1, q)
		if err != nil || len(res.GetWalk().Steps) != 3 {
			b.Fatal(res, err)
		}
	}
}
