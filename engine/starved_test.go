package engine

import (
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// slowFull is a disk on which, while it is armed, no table of the index finds
// room, and which takes its time to say so.
type slowFull struct {
	armed atomic.Bool
	delay time.Duration
}

func (f *slowFull) String() string { return "slow, then full" }

// MaybeError implements errorfs.Injector.
func (f *slowFull) MaybeError(op errorfs.Op) error {
	if op.Kind != errorfs.OpFileWrite || !strings.HasSuffix(op.Path, tableSuffix) || !f.armed.Load() {
		return nil
	}
	time.Sleep(f.delay)
	return syscall.ENOSPC
}

// inTime panics unless fn ends: nothing else would end a test that hangs.
func inTime(what string, fn func()) {
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(5 * time.Minute): // of virtual time
		panic(what + " does not end")
	}
}

// TestFullDiskEndsNoCallLate: the memtables of the index are full before the disk
// says that there is no room for a table. Whoever waits for them is answered:
// what is on the disk is acknowledged, all else is refused. The store may be
// closed, and goes on by itself when there is room.
func TestFullDiskEndsNoCallLate(t *testing.T) {
	for _, closes := range []bool{true, false} {
		bubble.Test(t, func(t *testing.T) {
			full := &slowFull{delay: 3 * time.Second}
			o := testOptions(errorfs.Wrap(vfs.NewMem(), full))
			o.MemTableSize = 64 << 10
			s := openPGs(t, o, 1)
			mustPut(t, s, 9000, 100, 1)
			full.armed.Store(true)
			var mu sync.Mutex
			stored := map[uint64]bool{9000: true}
			refused := 0
			inTime("a put", func() {
				var work sync.WaitGroup
				for i := range uint64(8) {
					work.Go(func() {
						for n := i; n < 4000; n += 8 {
							err := s.Put(t.Context(), putRequest(n, 10, 1))
							mu.Lock()
							if err == nil {
								stored[n] = true
							} else if refused++; dfs.KindOf(err) != dfs.NoSpace {
								t.Errorf("put %d: %v", n, err)
							}
							mu.Unlock()
						}
					})
				}
				work.Wait()
			})
			if refused == 0 || len(stored) < 100 {
				t.Fatalf("%d puts were taken, %d refused", len(stored), refused)
			}
			inTime("a delete", func() { wantKind(t, s.Delete(t.Context(), DeleteRequest{ID: blockID(9000), Epoch: 1}), dfs.NoSpace) })
			if st := s.Stats(); st.State != StateReadOnly {
				t.Errorf("%+v", st)
			}
			if closes {
				inTime("Close", func() { mustClose(t, s) })
				full.armed.Store(false)
				s = openPGs(t, o, 1)
			} else {
				full.armed.Store(false)
				time.Sleep(10 * time.Second)
			}
			for n := range stored {
				wantBlock(t, s, n, map[bool]int{true: 100, false: 10}[n == 9000])
			}
			mustDelete(t, s, 9000, 1)
			mustPut(t, s, 9001, 100, 1)
			mustClose(t, s)
		})
	}
}

// TestCompactionOnAFullDisk: compaction stops where there is no room for a table.
// It holds nobody up, Close neither, and goes on when there is room.
func TestCompactionOnAFullDisk(t *testing.T) {
	for _, closes := range []bool{true, false} {
		bubble.Test(t, func(t *testing.T) {
			full := &slowFull{}
			o := testOptions(errorfs.Wrap(vfs.NewMem(), full))
			o.MemTableSize, o.CompactAge = 64<<10, 30*time.Second
			s := openPGs(t, o, 1)
			const blocks = 3000
			var work sync.WaitGroup
			for i := range uint64(8) {
				work.Go(func() {
					for n := i; n < blocks; n += 8 {
						mustPut(t, s, n, 10, 1)
					}
				})
			}
			work.Wait()
			for n := range uint64(blocks / 2) {
				work.Go(func() { mustDelete(t, s, 2*n, 1) })
			}
			work.Wait()
			time.Sleep(time.Second) // the keeper may be giving a segment up
			before := s.Stats()
			full.armed.Store(true)
			time.Sleep(2 * time.Minute)
			st := s.Stats()
			if st.State != StateReadOnly || st.SegmentsGiven != before.SegmentsGiven {
				t.Errorf("on a full disk: %+v", st)
			}
			inTime("a delete", func() { wantKind(t, s.Delete(t.Context(), DeleteRequest{ID: blockID(1), Epoch: 1}), dfs.NoSpace) })
			if closes {
				inTime("Close", func() { mustClose(t, s) })
				full.armed.Store(false)
				s = openPGs(t, o, 1)
			}
			full.armed.Store(false)
			time.Sleep(3 * time.Minute)
			if st := s.Stats(); st.State != StateOK || st.SegmentsGiven == 0 || st.Compactions == 0 {
				t.Errorf("with room again: %+v", st)
			}
			for n := range uint64(blocks / 2) {
				wantBlock(t, s, 2*n+1, 10)
			}
			mustClose(t, s)
		})
	}
}

// TestFloorsOnAFullDisk: floors of tombstones are refused likewise, and the
// store's other calls are answered meanwhile.
func TestFloorsOnAFullDisk(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		full := &slowFull{}
		o := testOptions(errorfs.Wrap(vfs.NewMem(), full))
		o.MemTableSize = 64 << 10
		s := openPGs(t, o, 1)
		mustPut(t, s, 1, 100, 1)
		full.armed.Store(true)
		inTime("the change of a floor", func() {
			for pg := range dfs.PGID(10_000) { // some 50 bytes each
				if err := s.SetTombstoneFloor(pg+1, 1); err != nil {
					wantKind(t, err, dfs.NoSpace)
					return
				}
			}
			t.Error("every floor was set")
		})
		inTime("a put", func() { wantKind(t, s.Put(t.Context(), putRequest(2, 100, 1)), dfs.NoSpace) })
		wantBlock(t, s, 1, 100)
		inTime("Close", func() { mustClose(t, s) })
	})
}

// TestStillIndexTakesAnyNumberOfTables: an index of which nothing is compacted, as
// that of the offline tools, waits for no compaction.
func TestStillIndexTakesAnyNumberOfTables(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ix, err := openIndex(indexOptions{
			fs: vfs.NewMem(), dir: "/index", mark: testMark, cacheSize: 1 << 20, memTableSize: 64 << 10, still: true, log: slog.New(slog.DiscardHandler),
			failed: func(error) {}, corrupt: func(error) {}, exists: func(uint64) bool { return false },
		})
		if err != nil {
			t.Fatal(err)
		}
		inTime("a change", func() {
			for n := range uint64(10_000) {
				id := blockID(n * 7919 % 10_007) // so that the tables overlap
				err := ix.update(func(c *change) error {
					return c.apply(id, 0, &row{kind: kindPut, seq: n + 1, epoch: 1, segment: 1, offset: int64(n+1) << 12}, false)
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		})
		if m := ix.db.Metrics(); m.Levels[0].Sublevels <= l0Tables {
			t.Errorf("%d tables lie above each other: too few to say anything", m.Levels[0].Sublevels)
		}
		if err := ix.close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFilesAreClosedOnAFullDisk: a store that has no room for its index is still
// read, and does not keep every segment open that it ever read.
func TestFilesAreClosedOnAFullDisk(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		full := &slowFull{}
		o := testOptions(errorfs.Wrap(vfs.NewMem(), full))
		o.Capacity = 128 << 20
		s := openPGs(t, o, 1)
		const blocks = maxOpenSegments + 20
		full.armed.Store(true)
		for n := range uint64(blocks) {
			if err := s.Put(t.Context(), putRequest(n, 200_000, 1)); err != nil { // one a segment
				wantKind(t, err, dfs.NoSpace)
				full.armed.Store(false)
				time.Sleep(5 * time.Second)
				mustPut(t, s, n, 200_000, 1)
				full.armed.Store(true)
			}
		}
		time.Sleep(5 * time.Second)
		wantKind(t, s.checkpoint(), dfs.NoSpace)
		for n := range uint64(blocks) {
			wantBlock(t, s, n, 200_000)
		}
		time.Sleep(5 * time.Second)
		if n := s.segs.open.Load(); n > maxOpenSegments {
			t.Errorf("%d files are open", n)
		}
		mustClose(t, s)
	})
}
