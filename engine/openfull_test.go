package engine

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
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

// TestOpenWithMuchToReplay: there is more to replay than the memtables of the
// index hold, and no table can be written. Open ends with the cause.
func TestOpenWithMuchToReplay(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.EIO} {
		bubble.Test(t, func(t *testing.T) {
			var armed atomic.Bool
			mem := vfs.NewMem()
			o := testOptions(errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind != errorfs.OpFileWrite || !strings.HasSuffix(op.Path, tableSuffix) || !armed.Load() {
					return nil
				}
				time.Sleep(time.Second) // the memtables are full before the error comes
				return cause
			})))
			o.MemTableSize = 64 << 10
			s := openPGs(t, o, 1)
			for n := range uint64(3000) {
				mustPut(t, s, n, 10, 1)
			}
			mustClose(t, s)
			if err := mem.RemoveAll(dir + indexName); err != nil {
				t.Fatal(err)
			}
			armed.Store(true)
			done := make(chan error, 1)
			go func() {
				s, err := Open(o)
				if err == nil {
					_ = s.Close()
				}
				done <- err
			}()
			select {
			case err := <-done:
				wantKind(t, err, dfs.Unavailable)
				if !errors.Is(err, cause) {
					t.Error(err)
				}
			case <-time.After(time.Hour):
				panic("Open does not end") // and nothing else would end this test
			}
			armed.Store(false)
			s = mustOpen(t, o)
			for n := range uint64(3000) {
				wantBlock(t, s, n, 10)
			}
			mustClose(t, s)
		})
	}
}
