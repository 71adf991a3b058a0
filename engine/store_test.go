package engine

import (
	"testing"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestPutGetDeleteReopen(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 3)
	for n := range uint64(40) {
		mustPut(t, s, n, int(n)*977+1, 3)
	}
	mustDelete(t, s, 5, 3)
	check := func() {
		t.Helper()
		for n := range uint64(40) {
			if n == 5 {
				_, err := read(t, s, n)
				wantKind(t, err, dfs.NotExist)
				continue
			}
			wantBlock(t, s, n, int(n)*977+1)
		}
	}
	check()
	mustClose(t, s)
	s = mustOpen(t, testOptions(fs))
	check()
	if st := s.Stats(); st.Blocks != 39 || st.Tombstones != 1 {
		t.Errorf("%d blocks, %d tombstones", st.Blocks, st.Tombstones)
	}
	mustClose(t, s)
}
