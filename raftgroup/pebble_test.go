package raftgroup

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
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
	db, err := openStore(o, "store", newLog, func(error) {})
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
	db, err = openStore(o, "store", newLog, func(error) {})
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

// TestBlocksAreCached: the memtables leave the block cache what it was given.
func TestBlocksAreCached(t *testing.T) {
	const keys = 200
	value := make([]byte, 1000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(value) // never fails
	for _, kind := range []storeKind{stateStore, newLog} {
		o := &Options{FS: vfs.NewMem(), Logger: slog.New(slog.DiscardHandler), CacheSize: 4 << 20, MemTableSize: 4 << 20}
		db, err := openStore(o, "store", kind, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		key := func(i int) []byte { return fmt.Appendf(nil, "%06d", i) }
		for range 8 { // memtables grow from flush to flush
			for i := range keys {
				if err := db.Set(key(i), value, pebble.NoSync); err != nil {
					t.Fatal(err)
				}
			}
			if err := db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Compact(t.Context(), key(0), key(keys), false); err != nil { // nothing is left to be compacted later
			t.Fatal(err)
		}
		read := func() int64 {
			before := db.Metrics().BlockCache.Misses
			for i := range keys {
				_, c, err := db.Get(key(i))
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
			}
			return db.Metrics().BlockCache.Misses - before
		}
		first, again := read(), read()
		if first == 0 || again > 0 {
			t.Errorf("kind %v: %d blocks were read, and %d of them again", kind, first, again)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPreallocateFills: what Pebble asks to be reserved is there, as zeros, and
// what was there stays.
func TestPreallocateFills(t *testing.T) {
	name := filepath.Join(t.TempDir(), "000001.log")
	g := newGate("store", func(err error) { t.Error(err) })
	f, err := gateFS{vfs.Default, g}.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, len(zeros)+4096)
	copy(want, "head")
	if _, err := f.Write([]byte("head")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is there
		if err := f.Preallocate(0, int64(len(want))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Write([]byte("more")); err != nil {
		t.Fatal(err)
	}
	copy(want[4:], "more")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, beginning %q, and %v: want %d", len(got), got[:min(8, len(got))], err, len(want))
	}
}

// fullFile has no space beyond what it has.
type fullFile struct{ vfs.File }

func (fullFile) WriteAt([]byte, int64) (int, error) { return 0, syscall.ENOSPC }

// TestPreallocateOnFullDisk: what cannot be reserved is no failure of the store.
func TestPreallocateOnFullDisk(t *testing.T) {
	mem := vfs.NewMem()
	f, err := mem.Create("log", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g := newGate("store", func(err error) { t.Error(err) })
	if err := (gateFile{fullFile{f}, g}).Preallocate(0, 1<<20); err != nil || g.failure() != nil {
		t.Errorf("%v, and the gate says %v", err, g.failure())
	}
}
