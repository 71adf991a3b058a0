package raftgroup

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
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
