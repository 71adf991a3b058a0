package raftgroup

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

// TestDamageSaysWhatToDo: bad bytes of a store are refused as such, with the
// remedy, be they in a table or in the write-ahead log.
func TestDamageSaysWhatToDo(t *testing.T) {
	mem := vfs.NewMem()
	o := &Options{FS: mem, Logger: slog.New(slog.DiscardHandler), CacheSize: 1 << 20, MemTableSize: 1 << 20}
	db, err := openStore(o, "store", true, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := firstError(db.Set([]byte("key"), make([]byte, 1000), pebble.Sync), db.Flush(), db.Close()); err != nil {
		t.Fatal(err)
	}
	names, err := mem.List("store")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		f, err := mem.OpenReadWrite("store/"+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("rot"), 10); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	db, err = openStore(o, "store", true, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_, _, bad := db.Get([]byte("key"))
	for _, err := range []error{bad, record.ErrInvalidChunk} {
		if err = wrapStore("read", "store", err); dfs.KindOf(err) != dfs.Corrupt || !strings.Contains(err.Error(), "replace the node") {
			t.Errorf("%v: of kind %v, or without the remedy", err, dfs.KindOf(err))
		}
	}
}
