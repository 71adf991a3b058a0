package engine

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestOpenOnADiskThatTakesNoWrites: the index of a store cannot be written while
// the store opens. Open ends with the cause, however often Pebble tries, and
// leaves the store as it was.
func TestOpenOnADiskThatTakesNoWrites(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.EIO} {
		for _, word := range []string{"MANIFEST", ".sst", "OPTIONS", "marker", indexName} {
			for _, op := range []string{"fill", "sync"} {
				fs := &faultFS{MemFS: vfs.NewMem(), word: word, op: op, err: cause}
				s := openPGs(t, testOptions(fs), 1)
				mustPut(t, s, 1, 100, 1)
				mustClose(t, s)
				s = mustOpen(t, testOptions(fs)) // the log that it replays is empty now
				mustClose(t, s)

				fs.armed.Store(true)
				done := make(chan error, 1)
				go func() {
					s, err := Open(testOptions(fs))
					if err == nil {
						_ = s.Close()
					}
					done <- err
				}()
				select {
				case err := <-done:
					if err != nil && (dfs.KindOf(err) != dfs.Unavailable || !errors.Is(err, cause)) || err == nil && fs.hits.Load() > 0 && !strings.Contains(word, ".sst") {
						t.Errorf("%v of %s, %v: %v", op, word, cause, err)
					}
				case <-time.After(30 * time.Second): // it takes milliseconds
					t.Fatalf("%v of %s, %v: Open does not end", op, word, cause)
				}
				fs.armed.Store(false)
				s = mustOpen(t, testOptions(fs))
				wantBlock(t, s, 1, 100)
				if err := checkStore(s); err != nil {
					t.Error(err)
				}
				mustClose(t, s)
			}
		}
	}
}
