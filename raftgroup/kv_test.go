package raftgroup

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestTxReadsItsWrites: a Tx answers from what it was asked before as the batch
// itself would, scans included, and its callers may do what they like with the
// answers; in the end the batch has it all, and of a row that was asked for before
// it was written, with deferred writes, the last value only.
func TestTxReadsItsWrites(t *testing.T) {
	for _, deferred := range []bool{false, true} {
		db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem()})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Set([]byte("p/there"), []byte("old"), nil); err != nil {
			t.Fatal(err)
		}
		testTx(t, db, deferred)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func testTx(t *testing.T, db *pebble.DB, deferred bool) {
	tx := newTx(db.NewIndexedBatch(), []byte("p/"))
	if deferred {
		tx = applyTx(db, []byte("p/"))
	}
	defer func() { _ = tx.b.Close() }()
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
	scan := func(want string) {
		t.Helper()
		got := ""
		err := tx.Scan(nil, nil, func(key, value []byte) (bool, error) {
			got += fmt.Sprintf("%s=%s ", key, value)
			return true, nil
		})
		if err != nil || got != want {
			t.Errorf("scan: %q and %v, want %q", got, err, want)
		}
	}
	expect("there", "old", true)
	expect("new", "", false)
	before := tx.b.Count()
	for i := range 10 {
		set("there", fmt.Sprint("newer", i))
	}
	set("new", "")
	set("unread", "1")
	if n, want := tx.b.Count()-before, map[bool]uint32{false: 12, true: 1}[deferred]; n != want {
		t.Errorf("deferred %v: %d writes in the batch, want %d", deferred, n, want)
	}
	expect("there", "newer9", true)
	expect("new", "", true)
	if deferred && tx.db == nil {
		t.Error("the batch has an index that nobody needed")
	}
	expect("unread", "1", true)
	set("unread too", "2")
	if err := tx.Delete([]byte("unread too")); err != nil {
		t.Fatal(err)
	}
	scan("new= there=newer9 unread=1 ")
	for _, key := range []string{"there", "new", "unread"} {
		if err := tx.Delete([]byte(key)); err != nil {
			t.Fatal(err)
		}
		expect(key, "", false)
	}
	scan("")
	set("there", "again")
	set("new", "2")
	if err := tx.Delete([]byte("new")); err != nil {
		t.Fatal(err)
	}
	expect("there", "again", true)
	if err := firstError(tx.flush(), tx.b.Commit(nil)); err != nil {
		t.Fatal(err)
	}
	all := NewReader(db, []byte("p/"))
	if got, ok, err := all.Get([]byte("there")); err != nil || !ok || string(got) != "again" {
		t.Errorf("in the end: %q, %v and %v", got, ok, err)
	}
	if _, ok, err := all.Get([]byte("new")); err != nil || ok {
		t.Errorf("what was deleted is there: %v", err)
	}
}
