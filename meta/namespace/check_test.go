package namespace

import (
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"dfsd/dfs"
	"dfsd/raftgroup"
)

// TestCheckFindsDamage takes each row of a populated group away, cuts it short,
// and raises its last byte: Check must report whatever can be known to be wrong.
func TestCheckFindsDamage(t *testing.T) {
	w := populated(t)
	// What may happen to rows of a tag without a contradiction: a reply, a block
	// to delete, a lease, the history of a name or of attributes, and a fence
	// can be gone without a trace; mtimes, replies and the names in intents are
	// mere bytes.
	silent := map[byte]string{
		tagReply: "gone raised", tagQueue: "gone cut raised", tagLease: "gone raised", tagFence: "gone raised", tagHistory: "gone raised",
		tagFloor: "raised", tagState: "raised", tagInode: "raised", tagDentry: "", tagExtent: "", tagBlock: "", tagChild: "", tagIntent: "raised cut",
		tagLock: "", tagPart: "cut raised", tagTxn: "cut raised", tagCount: "", tagTaken: "",
	}
	found := map[byte]int{}
	for _, row := range w.rows(1, "") {
		key, value := row[0], row[1]
		cut := value[:len(value)-1]
		raised := append(append([]byte(nil), cut...), value[len(value)-1]+1)
		for how, with := range map[string][]byte{"gone": nil, "cut": cut, "raised": raised} {
			b := w.db.NewIndexedBatch()
			tx := raftgroup.NewTx(b, prefix(1))
			err := tx.Delete(key)
			if with != nil {
				err = tx.Set(key, with)
			}
			if err != nil {
				t.Fatal(err)
			}
			faults := CheckTree(map[dfs.GroupID]raftgroup.Reader{1: tx, 2: w.reader(2)})
			if len(faults) > 0 {
				found[key[0]]++
			} else if !strings.Contains(silent[key[0]], how) {
				t.Errorf("row %c %x = %x: %s, and nothing was found", key[0], key[1:], value, how)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for tag := range silent {
		if found[tag] == 0 && tag != tagQueue {
			t.Errorf("no damage to rows of tag %c was found", tag)
		}
	}
	if faults := Check(raftgroup.NewReader(w.db, []byte("nowhere"))); len(faults) != 1 {
		t.Errorf("an empty group: %v", faults)
	}
}

// TestDamageStopsTheMachine shows that a damaged row is an error of Apply and
// of Query, never a reply.
func TestDamageStopsTheMachine(t *testing.T) {
	w := populated(t)
	broken := map[byte]bool{}
	for _, row := range w.rows(1, "") {
		if row[0][0] == tagReply || row[0][0] == tagQueue || row[0][0] == tagSweep {
			continue // opaque, or empty
		}
		for _, data := range entries(t, w) {
			b := w.db.NewIndexedBatch()
			tx := raftgroup.NewTx(b, prefix(1))
			if err := tx.Set(row[0], []byte{99}); err != nil {
				t.Fatal(err)
			}
			_, err := New(1, Options{}).Apply(tx, raftgroup.Entry{Index: 9, Term: 1, Data: data})
			if err != nil {
				broken[row[0][0]] = true
				if kind := dfs.KindOf(err); kind != dfs.Corrupt && kind != dfs.Internal {
					t.Errorf("row %x: %v", row[0], err)
				}
			}
			closeBatch(t, b)
		}
	}
	for _, tag := range []byte{tagState, tagFence, tagFloor, tagInode, tagDentry, tagExtent, tagBlock, tagLease, tagHistory, tagChild, tagIntent, tagLock, tagPart, tagTxn} {
		if !broken[tag] {
			t.Errorf("no entry met the damaged rows of tag %c", tag)
		}
	}
}

func closeBatch(t *testing.T, b *pebble.Batch) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}
