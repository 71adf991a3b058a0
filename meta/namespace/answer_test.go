package namespace

import (
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/proto"

	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// lookups counts the answers that are looked for.
type lookups struct {
	raftgroup.Tx
	answers int
}

func (l *lookups) Get(key []byte) ([]byte, bool, error) {
	if key[0] == tagReply {
		l.answers++
	}
	return l.Tx.Get(key)
}

// TestOnlyOldCommandsLookForAnswers: a store has a long search for a row that is
// not there, and a command later than all before it has none.
func TestOnlyOldCommandsLookForAnswers(t *testing.T) {
	w := newWorld(t, 1)
	for _, c := range []struct{ seq, floor, want uint64 }{
		{1, 0, 0}, {2, 0, 0}, {5, 2, 0}, // 3 and 4 are on their way
		{5, 2, 1}, {3, 2, 1}, {4, 3, 1}, {6, 3, 0},
	} {
		data, err := proto.Marshal(&wire.LogEntry{Version: 1, Entry: &wire.LogEntry_Command{Command: &wire.Command{
			Session: 7, Seq: c.seq, Floor: c.floor, Cred: &wire.Cred{}, Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: 1}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		b := w.db.NewIndexedBatch()
		tx := &lookups{Tx: raftgroup.NewTx(b, prefix(1))}
		if _, err := New(1, Options{}).Apply(tx, raftgroup.Entry{Data: data}); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		if tx.answers != int(c.want) {
			t.Errorf("command %d looks for %d answers, want %d", c.seq, tx.answers, c.want)
		}
	}
	for _, err := range Check(w.reader(1)) {
		t.Error(err)
	}
}
