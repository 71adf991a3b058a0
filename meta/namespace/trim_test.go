package namespace

import (
	"bytes"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// spy notes from where a machine looks for history.
type spy struct {
	raftgroup.Tx
	from []byte
}

func (s *spy) Scan(lower, upper []byte, fn func(key, value []byte) (bool, error)) error {
	if len(lower) > 0 && lower[0] == tagHistory {
		s.from = bytes.Clone(lower)
	}
	return s.Tx.Scan(lower, upper, fn)
}

// TestTrimGoesOn: each trim begins where the last one ended, and all of them
// drop everything, whatever their limits.
func TestTrimGoesOn(t *testing.T) {
	for _, limit := range []uint32{1, 2, 3, 7, 1000} {
		w := newWorld(t, 1)
		c := &client{t: t, w: w, session: 1}
		m := New(1, Options{})
		file := func(name string) {
			res := c.do(1, &wire.Command{Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: 1}}})
			ino := dfs.Ino(res.Leased[0].First)
			op := &wire.CreateOp{Parent: uint64(dfs.RootIno), Name: []byte(name), Ino: uint64(ino), Type: wire.FileType_FILE, Size: 300, Replace: true}
			for i := range 3 {
				op.Extents = append(op.Extents, &wire.Extent{Offset: int64(100 * i), Length: 100, Block: blockID(ino, 1, uint64(i+1)).Bytes(), BlockLength: 100})
			}
			c.do(1, &wire.Command{Op: &wire.Command_Create{Create: op}})
		}
		trim := func(before dfs.Version) (from []byte) {
			data, err := proto.Marshal(&wire.LogEntry{Entry: &wire.LogEntry_Trim{Trim: &wire.TrimOp{Before: uint64(before), Limit: limit}}})
			if err != nil {
				t.Fatal(err)
			}
			b := w.db.NewIndexedBatch()
			tx := &spy{Tx: raftgroup.NewTx(b, prefix(1))}
			if _, err := m.Apply(tx, raftgroup.Entry{Data: data}); err != nil {
				t.Fatal(err)
			}
			if err := b.Commit(pebble.NoSync); err != nil {
				t.Fatal(err)
			}
			for _, err := range Check(w.reader(1)) {
				t.Errorf("limit %d: %v", limit, err)
			}
			return tx.from
		}
		for range 3 {
			file("a")
			file("b")
			oldest, err := HistoryOldest(w.reader(1))
			for ; oldest != 0 && err == nil; oldest, err = HistoryOldest(w.reader(1)) {
				if from := trim(maxVersion); bytes.Compare(from, historyKey(oldest, nil)) > 0 {
					t.Fatalf("limit %d: a trim begins at %x, past the oldest row at %v", limit, from, oldest)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			st, err := readState(w.reader(1))
			if err != nil || st.trimmed == 0 {
				t.Fatalf("limit %d: trimmed up to %v, %v", limit, st.trimmed, err)
			}
			file("a") // its history is later than what was trimmed
			if from := trim(maxVersion); bytes.Compare(from, historyKey(st.trimmed, nil)) < 0 {
				t.Errorf("limit %d: a trim begins at %x, what was before %v is gone", limit, from, st.trimmed)
			}
		}
	}
}
