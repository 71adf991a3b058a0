package engine

import (
	"testing"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestNewest(t *testing.T) {
	n := newest{known: 7, counters: map[dfs.SessionID]uint64{}}
	admit := func(session dfs.SessionID, counter uint64, want bool) {
		t.Helper()
		if got := n.admit(dfs.BlockID{PG: 1, Ino: 1, Session: session, Counter: counter}); got != want {
			t.Errorf("session %d, counter %d: first is %v", session, counter, got)
		}
	}
	admit(7, 1, false) // may have been here before the start
	admit(8, 5, true)
	admit(8, 5, false)
	admit(8, 4, false)
	admit(8, 6, true)
	admit(9, 0, true)
	admit(9, 0, false)
	for s := range dfs.SessionID(maxNewest) {
		admit(10+s, 1, true)
	}
	if len(n.counters) != maxNewest || n.known != 9 {
		t.Errorf("%d sessions are remembered, and none up to %d", len(n.counters), n.known)
	}
	admit(8, 7, false)
	admit(9, 1, false)
	admit(10, 1, false)
	admit(10, 2, true)
	admit(9+maxNewest, 2, true)
}

// TestOldBlocksAreKnown puts blocks of one session again, in any order, also
// after a restart and with an index made anew: what is there and what was
// deleted is known.
func TestOldBlocksAreKnown(t *testing.T) {
	fs := vfs.NewMem()
	o := numberedOptions(fs)
	s := openPGs(t, o, 5)
	for _, n := range []uint64{4, 8, 1, 9, 2, 6} {
		mustPut(t, s, n, 300, 5)
	}
	for _, n := range []uint64{8, 3, 10} { // the last two were never put
		mustDelete(t, s, n, 5)
	}
	again := func() {
		t.Helper()
		for n := range uint64(13) {
			err := s.Put(t.Context(), putRequest(n, 300, 5))
			if n == 8 || n == 3 || n == 10 {
				wantKind(t, err, dfs.Stale)
			} else if err != nil {
				t.Errorf("block %d: %v", n, err)
			}
		}
		wantKind(t, s.Put(t.Context(), putRequest(4, 301, 5)), dfs.Exist)
		if st := s.Stats(); st.Blocks != 10 || st.Tombstones != 3 {
			t.Errorf("%d blocks and %d tombstones", st.Blocks, st.Tombstones)
		}
	}
	again()
	mustClose(t, s)
	s = openPGs(t, o, 5)
	again()
	mustClose(t, s)
	if err := fs.RemoveAll(o.Dir + "/" + indexName); err != nil {
		t.Fatal(err)
	}
	s = openPGs(t, o, 5)
	defer mustClose(t, s)
	again()
}
