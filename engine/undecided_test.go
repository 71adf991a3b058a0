package engine

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func keysOf(blocks ...uint64) (keys []Key) {
	for _, n := range blocks {
		keys = append(keys, Key{ID: blockID(n)})
	}
	return keys
}

// listSet reads a list of blocks in pages.
func listSet(t *testing.T, list func(cursor []byte, limit int) ([]Entry, []byte, error)) (blocks []uint64) {
	t.Helper()
	var cursor []byte
	for {
		page, next, err := list(cursor, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page {
			blocks = append(blocks, e.ID.Counter)
		}
		if cursor = next; next == nil {
			return blocks
		}
	}
}

func wantSets(t *testing.T, s *Store, undecided, trashed []uint64) {
	t.Helper()
	if got := listSet(t, s.Undecided); !slices.Equal(slices.Sorted(slices.Values(got)), undecided) {
		t.Errorf("undecided: %v, want %v", got, undecided)
	}
	if got := listSet(t, s.Trashed); !slices.Equal(slices.Sorted(slices.Values(got)), trashed) {
		t.Errorf("in the trash: %v, want %v", got, trashed)
	}
	if st := s.Stats(); st.Undecided != uint64(len(undecided)) || st.Trash != uint64(len(trashed)) || (st.TrashBytes > 0) != (st.Trash > 0) {
		t.Errorf("%d undecided, %d of %d bytes in the trash", st.Undecided, st.Trash, st.TrashBytes)
	}
	if err := checkStore(s); err != nil {
		t.Error(err)
	}
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestBlocksAreDecidedOnce takes blocks through all of their states.
func TestBlocksAreDecidedOnce(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 3)
	for n := range uint64(8) {
		mustPut(t, s, n, 500, 3)
	}
	refill := func(n uint64, decided bool) {
		t.Helper()
		r := putRequest(n, 500, 2)
		r.Refill, r.Decided = true, decided
		do(t, s.Put(t.Context(), r))
	}
	refill(8, false)
	refill(9, true)
	client := putRequest(10, 500, 3)
	client.Decided = true // not for a client to say
	do(t, s.Put(t.Context(), client))
	wantSets(t, s, []uint64{0, 1, 2, 3, 4, 5, 6, 7, 8, 10}, nil)

	do(t, s.Decide(keysOf(0, 1, 9, 77)))
	do(t, s.Decide(keysOf(0)))
	do(t, s.Trash(keysOf(1, 2, 3, 4, 9, 77))) // 1 and 9 are decided, 77 is not there
	do(t, s.Trash(keysOf(2)))
	wantSets(t, s, []uint64{5, 6, 7, 8, 10}, []uint64{2, 3, 4})
	do(t, s.Restore(keysOf(3, 0, 5)))
	do(t, s.Decide(keysOf(4)))
	mustDelete(t, s, 5, 3)
	wantSets(t, s, []uint64{3, 6, 7, 8, 10}, []uint64{2})

	// The state is as durable as the index.
	mustClose(t, s)
	s = openPGs(t, testOptions(fs), 3)
	wantSets(t, s, []uint64{3, 6, 7, 8, 10}, []uint64{2})
	if e, err := s.Stat(blockID(2), 0); err != nil || !e.Trashed || e.Undecided {
		t.Errorf("%+v, %v", e, err)
	}
	r, err := s.Get(t.Context(), blockID(2), 0, 0, 1)
	do(t, err)
	if !r.Trashed {
		t.Error("a read does not say that its block is in the trash")
	}
	r.Release()

	n, err := s.EmptyTrash(t.Context(), time.Now().Add(time.Hour))
	do(t, err)
	if n != 1 {
		t.Errorf("%d blocks deleted", n)
	}
	wantSets(t, s, []uint64{3, 6, 7, 8, 10}, nil)
	if e, err := s.Stat(blockID(2), 0); err != nil || !e.Tombstone || e.Epoch != 3 {
		t.Errorf("%+v, %v", e, err)
	}
	wantKind(t, s.Put(t.Context(), putRequest(2, 500, 3)), dfs.Stale)

	// A lost index is made anew: only what a record says itself is known.
	mustClose(t, s)
	do(t, fs.RemoveAll("/disk/store/"+indexName))
	s = openPGs(t, testOptions(fs), 3)
	defer mustClose(t, s)
	wantSets(t, s, []uint64{0, 1, 3, 4, 6, 7, 8, 10}, nil)
}

// TestUndecidedGoBySession reads one session after the other and leaves one out.
func TestUndecidedGoBySession(t *testing.T) {
	s := openPGs(t, testOptions(vfs.NewMem()), 1)
	defer mustClose(t, s)
	for n := range uint64(6) {
		r := putRequest(n, 100, 1)
		r.ID.Session = dfs.SessionID(9 - n/2)
		r.Info = describe(r.ID, 0, r.Payload)
		do(t, s.Put(t.Context(), r))
	}
	if got := listSet(t, s.Undecided); !slices.Equal(got, []uint64{4, 5, 2, 3, 0, 1}) {
		t.Errorf("%v", got)
	}
	page, next, err := s.Undecided(PastSession(7), 2)
	do(t, err)
	if len(page) != 2 || page[0].ID.Counter != 2 || page[0].ID.Session != 8 || next == nil {
		t.Errorf("%+v", page)
	}
	page, next, err = s.Undecided(PastSession(dfs.MaxSessionID), 2)
	do(t, err)
	if len(page) != 0 || next != nil {
		t.Errorf("%+v", page)
	}
}

// TestTrashIsEmptiedByAge: what was thrown away later stays.
func TestTrashIsEmptiedByAge(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openPGs(t, testOptions(vfs.NewMem()), 1)
		defer mustClose(t, s)
		for n := range uint64(300) {
			mustPut(t, s, n, 100, 1)
			do(t, s.Trash(keysOf(n)))
			if n == 199 {
				time.Sleep(time.Hour)
			}
		}
		n, err := s.EmptyTrash(t.Context(), time.Now().Add(-time.Minute))
		do(t, err)
		if st := s.Stats(); n != 200 || st.Trash != 100 || st.Tombstones != 200 {
			t.Errorf("%d deleted, %d left, %d tombstones", n, st.Trash, st.Tombstones)
		}
		synctest.Wait()
		do(t, checkStore(s))
	})
}

// TestMendedBlockKeepsItsState: a good copy in place of a damaged one is not
// asked about anew, also when the index is lost.
func TestMendedBlockKeepsItsState(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 1)
	for n := range uint64(3) {
		mustPut(t, s, n, 500, 1)
	}
	do(t, s.Decide(keysOf(1)))
	do(t, s.Trash(keysOf(2)))
	for n := range uint64(3) {
		s.damage.add(Damage{Named: true, ID: blockID(n)})
		r := putRequest(n, 500, 1)
		r.Refill = true
		do(t, s.Put(t.Context(), r))
	}
	if st := s.Stats(); st.Puts != 6 {
		t.Fatalf("%d puts were written", st.Puts)
	}
	wantSets(t, s, []uint64{0}, []uint64{2})
	mustClose(t, s)
	do(t, fs.RemoveAll("/disk/store/"+indexName))
	s = openPGs(t, testOptions(fs), 1)
	defer mustClose(t, s)
	wantSets(t, s, []uint64{0, 2}, nil)
}

// TestCopiesSayThatTheirBlockIsDecided: compaction keeps the state of a block,
// and of a decided one also for an index that is made anew.
func TestCopiesSayThatTheirBlockIsDecided(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := testOptions(fs)
		o.CompactAge = time.Second
		s := openPGs(t, o, 1)
		const blocks = 200
		var undecided, trashed, lost []uint64 // lost: whose state only the index knows
		for n := range uint64(blocks) {
			mustPut(t, s, n, 8<<10, 1)
			switch {
			case n%20 == 0:
				do(t, s.Decide(keysOf(n)))
			case n%20 == 1:
				do(t, s.Trash(keysOf(n)))
				trashed, lost = append(trashed, n), append(lost, n)
			case n%20 == 2:
				undecided, lost = append(undecided, n), append(lost, n)
			default:
				mustDelete(t, s, n, 1)
			}
		}
		time.Sleep(time.Minute)
		if st := s.Stats(); st.MovedRecords < blocks/20 {
			t.Fatalf("%d records were moved", st.MovedRecords)
		}
		wantSets(t, s, undecided, trashed)
		moved := map[uint64]bool{}
		for n := uint64(0); n < blocks; n += 20 {
			w, err := s.index.get(blockKey(blockID(n), 0))
			do(t, err)
			moved[n] = s.segs.get(w.segment).stream == movedStream || s.index.position()[movedStream].segment == w.segment
		}
		mustClose(t, s)
		do(t, fs.RemoveAll("/disk/store/"+indexName))
		s = openPGs(t, o, 1)
		defer mustClose(t, s)
		for n, ok := range moved {
			if !ok {
				lost = append(lost, n)
			}
		}
		slices.Sort(lost)
		wantSets(t, s, lost, nil)
	})
}

// TestDoubtIsDurable: blocks of a member that came back are asked about once more,
// whatever happens once Doubt has returned, and a crash before it did takes all of
// it back, so that it must be called again.
func TestDoubtIsDurable(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openPGs(t, testOptions(fs), 3)
	for n := range uint64(6) {
		mustPut(t, s, n, 500, 3)
	}
	for n, epoch := range []dfs.Epoch{1, 2, 3} {
		r := putRequest(uint64(10+n), 500, epoch)
		r.Refill, r.Decided = true, true
		do(t, s.Put(t.Context(), r))
	}
	mustDelete(t, s, 0, 3)
	do(t, s.Trash(keysOf(1)))
	do(t, s.Decide(keysOf(3, 4, 5)))
	pgs := map[dfs.PGID]bool{}
	for _, k := range keysOf(0, 1, 2, 3, 4, 5, 10, 11, 12) {
		pgs[k.ID.PG] = true
	}
	doubt := func(fn func(pg dfs.PGID) (int, error)) (doubted int) {
		t.Helper()
		for pg := range pgs {
			n, err := fn(pg)
			do(t, err)
			doubted += n
		}
		return doubted
	}
	crash := func() {
		t.Helper()
		clone := fs.CrashClone(vfs.CrashCloneCfg{})
		mustClose(t, s)
		fs = clone
		s = openPGs(t, testOptions(fs), 3)
	}
	do(t, s.checkpoint())
	wantSets(t, s, []uint64{2}, []uint64{1})

	// A crash in the middle.
	if n := doubt(func(pg dfs.PGID) (int, error) { _, n, err := s.doubt(t.Context(), pg, 3); return n, err }); n != 2 {
		t.Errorf("%d blocks doubted", n)
	}
	wantSets(t, s, []uint64{2, 10, 11}, []uint64{1})
	crash()
	wantSets(t, s, []uint64{2}, []uint64{1})

	// It may be given up.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for pg := range pgs {
		_, err := s.Doubt(ended, pg, 3)
		wantKind(t, err, dfs.Deadline)
	}
	wantSets(t, s, []uint64{2}, []uint64{1})

	// Each epoch below the given one, and no other state but decided.
	if n := doubt(func(pg dfs.PGID) (int, error) { return s.Doubt(t.Context(), pg, 3) }); n != 2 {
		t.Errorf("%d blocks doubted", n)
	}
	crash()
	wantSets(t, s, []uint64{2, 10, 11}, []uint64{1})

	// What an earlier call has left undecided, and not made durable, is made so.
	doubt(func(pg dfs.PGID) (int, error) { _, n, err := s.doubt(t.Context(), pg, 4); return n, err })
	if n := doubt(func(pg dfs.PGID) (int, error) { return s.Doubt(t.Context(), pg, 4) }); n != 0 {
		t.Errorf("%d blocks doubted twice", n)
	}
	crash()
	wantSets(t, s, []uint64{2, 3, 4, 5, 10, 11, 12}, []uint64{1})
	if n, err := s.Doubt(t.Context(), 77, 4); n != 0 || err != nil {
		t.Errorf("of an unknown group: %d, %v", n, err)
	}
	mustClose(t, s)
}

// holdFS holds back a data sync of a segment while it has a channel to wait for, and
// keeps what a power cut right after that sync would leave.
type holdFS struct {
	*vfs.MemFS
	hold  atomic.Pointer[chan struct{}]
	after atomic.Pointer[vfs.MemFS]
}

type heldFile struct {
	vfs.File
	fs *holdFS
}

func (f *holdFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.MemFS.OpenReadWrite(name, c, opts...)
	if _, ok := parseSegmentName(f.PathBase(name)); !ok || err != nil {
		return file, err
	}
	return heldFile{file, f}, nil
}

func (f heldFile) SyncData() error {
	c := f.fs.hold.Load()
	if c != nil {
		<-*c
	}
	err := f.File.SyncData()
	if c != nil {
		f.fs.after.CompareAndSwap(nil, f.fs.CrashClone(vfs.CrashCloneCfg{}))
	}
	return err
}

// TestACopyDecidesNothing: compaction has read a block that was decided, and its copy
// says so; then the block is doubted, and the index names the copy. A crash that
// finds the copy behind the last checkpoint does not decide the block.
func TestACopyDecidesNothing(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := &holdFS{MemFS: vfs.NewCrashableMem()}
		o := testOptions(fs)
		o.CompactAge = time.Minute
		s := openPGs(t, o, 1)
		var keep []uint64
		for n := range uint64(200) {
			mustPut(t, s, n, 8<<10, 1)
			if n%20 == 0 {
				do(t, s.Decide(keysOf(n)))
				keep = append(keep, n)
			} else {
				mustDelete(t, s, n, 1)
			}
		}
		time.Sleep(30 * time.Second)
		free := make(chan struct{})
		fs.hold.Store(&free)
		time.Sleep(time.Minute)
		for _, p := range fences(1) {
			_, err := s.Doubt(t.Context(), p.PG, 2)
			do(t, err)
		}
		if st := s.Stats(); st.MovedRecords != 0 {
			t.Fatalf("%d records were moved before", st.MovedRecords)
		}
		fs.hold.Store(nil)
		close(free)
		synctest.Wait()
		wantSets(t, s, keep, nil)
		if st := s.Stats(); st.MovedRecords == 0 {
			t.Fatal("no record was moved")
		}
		mustClose(t, s)
		s = openPGs(t, testOptions(fs.after.Load()), 1)
		defer mustClose(t, s)
		wantSets(t, s, keep, nil)
	})
}
