package namespace

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// world is some namespace groups over one database, driven entry by entry.
type world struct {
	t     testing.TB
	db    *pebble.DB
	opts  Options
	index uint64
	clock dfs.Version // proposed with the next entry
	wrote string      // tags of the rows that the last entry set or deleted, each once
}

func newWorld(t testing.TB, groups int) *world {
	t.Helper()
	db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem(), DisableWAL: true, MemTableSize: 64 << 20, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, db: db, clock: 1000 << 16}
	for g := range groups {
		res := w.apply(dfs.GroupID(g+1), &wire.LogEntry{Entry: &wire.LogEntry_Init{Init: &wire.InitOp{Group: uint32(g + 1), DefaultClass: "rep3"}}})
		if res.Kind != 0 {
			t.Fatalf("init: %v", res)
		}
	}
	return w
}

type quiet struct{}

func (quiet) Infof(string, ...any)              {}
func (quiet) Errorf(string, ...any)             {}
func (quiet) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func prefix(g dfs.GroupID) []byte { return binary.BigEndian.AppendUint16([]byte{'g'}, uint16(g)) }

func (w *world) reader(g dfs.GroupID) raftgroup.Reader { return raftgroup.NewReader(w.db, prefix(g)) }

// applyBytes applies one entry and returns the reply as it is.
func (w *world) applyBytes(g dfs.GroupID, data []byte) []byte {
	w.t.Helper()
	w.index++
	b := w.db.NewIndexedBatch()
	defer b.Close()
	reply, err := New(g, w.opts).Apply(raftgroup.NewTx(b, prefix(g)), raftgroup.Entry{Index: w.index, Term: 1, Data: data})
	if err != nil {
		w.t.Fatalf("apply: %v", err)
	}
	w.wrote = tagsOf(w.t, b)
	if err := b.Commit(pebble.NoSync); err != nil {
		w.t.Fatal(err)
	}
	return reply
}

// tagsOf lists the tags of the rows that a batch sets or deletes.
func tagsOf(t testing.TB, b *pebble.Batch) string {
	t.Helper()
	tags := ""
	for r := b.Reader(); ; {
		_, key, _, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return tags
		}
		if tag := string(key[len(prefix(1))]); !strings.Contains(tags, tag) {
			tags += tag
		}
	}
}

func (w *world) apply(g dfs.GroupID, le *wire.LogEntry) *wire.Result {
	w.t.Helper()
	le.Version = uint64(w.clock)
	data, err := proto.Marshal(le)
	if err != nil {
		w.t.Fatal(err)
	}
	res := &wire.Result{}
	if err := proto.Unmarshal(w.applyBytes(g, data), res); err != nil {
		w.t.Fatal(err)
	}
	return res
}

func (w *world) command(g dfs.GroupID, cmd *wire.Command) *wire.Result {
	w.t.Helper()
	return w.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Command{Command: cmd}})
}

func (w *world) fence(g dfs.GroupID, index, highest uint64, live ...uint64) *wire.Result {
	w.t.Helper()
	op := &wire.FenceOp{Highest: highest, Index: index}
	for _, s := range live {
		op.Live = append(op.Live, &wire.InoRange{First: s, Count: 1})
	}
	return w.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Fence{Fence: op}})
}

func (w *world) trim(g dfs.GroupID, before dfs.Version, limit uint32) *wire.Result {
	w.t.Helper()
	return w.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Trim{Trim: &wire.TrimOp{Before: uint64(before), Limit: limit}}})
}

func (w *world) query(g dfs.GroupID, q *wire.Query) (*wire.QueryResult, error) {
	return Query(w.reader(g), g, q)
}

// rows returns all rows of a group but those of some tags.
func (w *world) rows(g dfs.GroupID, without string) [][2][]byte {
	w.t.Helper()
	var out [][2][]byte
	err := w.reader(g).Scan(nil, nil, func(key, value []byte) (bool, error) {
		if bytes.IndexByte([]byte(without), key[0]) < 0 {
			out = append(out, [2][]byte{bytes.Clone(key), bytes.Clone(value)})
		}
		return true, nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) check(groups int) {
	w.t.Helper()
	m := map[dfs.GroupID]raftgroup.Reader{}
	for g := range groups {
		m[dfs.GroupID(g+1)] = w.reader(dfs.GroupID(g + 1))
	}
	for _, err := range CheckTree(m) {
		w.t.Errorf("check: %v", err)
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
}

func blockID(ino dfs.Ino, s dfs.SessionID, counter uint64) dfs.BlockID {
	return dfs.BlockID{PG: 7, Ino: ino, Session: s, Counter: counter}
}
