package raftgroup

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/sim/rot"
)

// snapFS calls snap before and after each call that makes something durable.
type snapFS struct {
	*vfs.MemFS
	snap func()
}

func (f snapFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.MemFS.Create(name, c)
	f.snap()
	return snapFile{file, f}, err
}

func (f snapFS) OpenDir(name string) (vfs.File, error) {
	file, err := f.MemFS.OpenDir(name)
	return snapFile{file, f}, err
}

type snapFile struct {
	vfs.File
	fs snapFS
}

func (f snapFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.fs.snap()
	return n, err
}

func (f snapFile) Sync() error {
	f.fs.snap()
	err := f.File.Sync()
	f.fs.snap()
	return err
}

// TestMarkIsWholeOrAbsent: whatever a power loss leaves of the making of a mark
// file, the next start makes it anew or reads it: a half one would refuse the
// store for ever.
func TestMarkIsWholeOrAbsent(t *testing.T) {
	rng, states := rand.New(rand.NewPCG(1, 2)), 0
	for range 50 {
		mem := vfs.NewCrashableMem()
		if err := mem.MkdirAll("raft", 0o755); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"", "raft"} {
			if err := syncDir(mem, dir); err != nil {
				t.Fatal(err)
			}
		}
		check := func() {
			left := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng})
			if _, err := left.Stat("raft/raft-mark"); errors.Is(err, fs.ErrNotExist) {
				if err := createMark(left, "raft", "raft/raft-mark"); err != nil {
					t.Fatal(err)
				}
			}
			m, err := openMark(left, "raft/raft-mark")
			if err != nil {
				t.Fatal(err)
			}
			_ = m.file.Close()
			states++
		}
		if err := createMark(snapFS{mem, check}, "raft", "raft/raft-mark"); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d states", states)
}

// tornFile is a mark file of which a power loss may leave any part of each write
// since the last sync.
type tornFile struct {
	vfs.File          // nil: nothing else is called
	durable  []byte   // what was synced
	writes   [][]byte // since, in order
	offsets  []int64  // of writes
	syncing  func()   // called in the middle of each sync
}

func (f *tornFile) WriteAt(p []byte, off int64) (int, error) {
	f.writes, f.offsets = append(f.writes, bytes.Clone(p)), append(f.offsets, off)
	return len(p), nil
}

func (f *tornFile) SyncData() error {
	f.syncing()
	f.durable = f.left(func(int64) int { return markLen })
	f.writes, f.offsets = nil, nil
	return nil
}

// left is the file after a power loss that cut the last write to each slot after
// so many bytes; those before it to the same slot are there.
func (f *tornFile) left(cut func(off int64) int) []byte {
	out := bytes.Clone(f.durable)
	for i, w := range f.writes {
		n := len(w)
		if !slices.Contains(f.offsets[i+1:], f.offsets[i]) {
			n = cut(f.offsets[i])
		}
		copy(out[f.offsets[i]:], w[:n])
	}
	return out
}

// readMark opens a file with the given content.
func readMark(t *testing.T, content []byte) (uint64, error) {
	t.Helper()
	fs := vfs.NewMem()
	f, err := fs.Create("m", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(bytes.Clone(content)); err != nil { // which a build with -race spoils
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := openMark(fs, "m")
	if err != nil {
		return 0, err
	}
	return m.noted, m.file.Close()
}

// newTornMark is a mark of number 0, as after its making.
func newTornMark(syncing func()) (*mark, *tornFile) {
	f := &tornFile{durable: make([]byte, 2*markSlot), syncing: syncing}
	copy(f.durable, encodeMark(0))
	return &mark{file: f, slot: 1}, f
}

// TestTornMark: wherever a power loss cuts the writes of the mark file, in both
// slots at once too, before, in and after each sync, it can be read. It says no less
// than at the last sync, so that a store which lost what was synced before is found,
// and no more than is in the log store, so that a whole one is not refused.
func TestTornMark(t *testing.T) {
	states, synced, noted := 0, uint64(0), uint64(0)
	var m *mark
	var f *tornFile
	check := func(when string) {
		t.Helper()
		for a := range markLen + 1 {
			for b := range markLen + 1 {
				cut := [2]int{a, b}
				n, err := readMark(t, f.left(func(off int64) int { return cut[off/markSlot] }))
				if err != nil || n < synced || n > noted {
					t.Fatalf("%s, writes cut after %v bytes: it says %d, %v, of %d synced and %d noted", when, cut, n, err, synced, noted)
				}
				states++
			}
		}
	}
	note := func() {
		noted++
		if err := m.note(noted); err != nil {
			t.Fatal(err)
		}
	}
	m, f = newTornMark(func() {
		check("in a sync")
		note()
		check("noted in a sync")
		note()
		check("noted twice in a sync")
	})
	for _, notes := range []int{1, 2, 3, 1, 1, 4} {
		for range notes {
			note()
			check("noted")
		}
		before := noted
		if err := m.sync(); err != nil {
			t.Fatal(err)
		}
		synced = before
		check("synced")
	}
	t.Logf("%d states", states)
}

// TestRottenMark: with a bit of either slot flipped, or the file cut within it, the
// other says what was synced last or before; with both there is no mark, and the
// store is refused.
func TestRottenMark(t *testing.T) {
	m, f := newTornMark(func() {})
	var at [2]uint64 // what was synced last, and before
	for n := uint64(1); n <= 9; n++ {
		if err := firstError(m.note(10*n), m.note(10*n+1), m.sync()); err != nil {
			t.Fatal(err)
		}
		at = [2]uint64{10*n + 1, at[0]}
		newest := slices.IndexFunc([]int{0, 1}, func(slot int) bool {
			got, ok := decodeMark(f.durable[slot*markSlot:])
			return ok && got == at[0]
		})
		if n < 2 {
			continue // the second slot was never synced before
		}
		for i := range markLen {
			for bit := range 8 {
				for _, slots := range [][]int{{newest}, {1 - newest}, {0, 1}} {
					rotten := bytes.Clone(f.durable)
					for _, s := range slots {
						rotten[s*markSlot+i] ^= 1 << bit
					}
					got, err := readMark(t, rotten)
					want := at[0]
					if slots[0] == newest {
						want = at[1]
					}
					if len(slots) == 2 {
						if !errors.Is(err, dfs.Corrupt) {
							t.Fatalf("bit %d of byte %d of both slots flipped: %d, %v", bit, i, got, err)
						}
					} else if err != nil || got != want {
						t.Fatalf("bit %d of byte %d of slot %d flipped: %d, %v, want %d", bit, i, slots[0], got, err, want)
					}
				}
			}
		}
		for size := range markSlot + markLen {
			got, err := readMark(t, f.durable[:size])
			if whole := size >= markLen; whole != (err == nil) || whole && got != at[newest] {
				t.Fatalf("cut to %d bytes: %d, %v", size, got, err)
			}
		}
	}
}

// TestMarkRefusesWhatWasLost: a log store that ends before what its mark says,
// whichever slot is rotten, is refused, and a whole one with a rotten slot is not.
func TestMarkRefusesWhatWasLost(t *testing.T) {
	open := func(fs vfs.FS) (*logStore, error) {
		o := Options{FS: fs, Dir: "data", Node: 1, CacheSize: 1 << 20, MemTableSize: 256 << 10, Logger: testLogger(1)}
		o.setDefaults()
		return openLogStore(&o, func(error) {})
	}
	fs := vfs.NewMem()
	if err := makeDir(fs, "data"); err != nil {
		t.Fatal(err)
	}
	var early *vfs.MemFS // the store three syncs of its mark ago
	for i := range 5 {
		s, err := open(fs)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			b := s.db.NewBatch()
			if err := firstError(putUint(b, 99, uint64(i)), s.commit(b, true), b.Close(), s.mark.sync()); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			early = copyOf(t, fs)
		}
	}
	lost := copyOf(t, early)
	if err := firstError(lost.Remove("data/raft-mark"), func() error { _, err := vfs.Clone(fs, lost, "data/raft-mark", "data/raft-mark"); return err }()); err != nil {
		t.Fatal(err)
	}
	for _, slots := range [][]int{{}, {0}, {1}, {0, 1}} {
		for name, of := range map[string]*vfs.MemFS{"whole": fs, "rolled back": lost} {
			c := copyOf(t, of)
			rot.Rewrite(t, c, "data/raft-mark", func(b []byte) []byte {
				for _, s := range slots {
					b[s*markSlot+10] ^= 1
				}
				return b
			})
			s, err := open(c)
			if err == nil {
				err = s.close()
			}
			if refused := name == "rolled back" || len(slots) == 2; refused != errors.Is(err, dfs.Corrupt) || !refused && err != nil {
				t.Errorf("a store that is %s, with slots %v of its mark rotten: %v", name, slots, err)
			}
		}
	}
}
