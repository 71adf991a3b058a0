package raftgroup

import (
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestTxReadsItsWrites: a Tx answers from what it was asked before as the batch
// itself would, and its callers may do what they like with the answers.
func TestTxReadsItsWrites(t *testing.T) {
	db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Set([]byte("p/there"), []byte("old"), nil); err != nil {
		t.Fatal(err)
	}
	b := db.NewIndexedBatch()
	defer b.Close()
	tx := newTx(b, []byte("p/"))
	expect := func(key, want string, there bool) {
		t.Helper()
		for range 2 { // from the store, and from memory
			got, ok, err := tx.Get([]byte(key))
			if err != nil || ok != there || string(got) != want {
				t.Errorf("%s: %q, %v and %v, want %q", key, got, ok, err, want)
			}
			for i := range got {
				got[i] = 'x'
			}
		}
	}
	set := func(key, value string) {
		t.Helper()
		v := []byte(value)
		if err := tx.Set([]byte(key), v); err != nil {
			t.Fatal(err)
		}
		for i := range v {
			v[i] = 'x'
		}
	}
	expect("there", "old", true)
	expect("new", "", false)
	set("there", "newer")
	set("new", "")
	set("unread", "1")
	expect("there", "newer", true)
	expect("new", "", true)
	expect("unread", "1", true)
	for _, key := range []string{"there", "new", "unread"} {
		if err := tx.Delete([]byte(key)); err != nil {
			t.Fatal(err)
		}
		expect(key, "", false)
	}
	set("there", "again")
	expect("there", "again", true)
}
