package engine

import (
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"sync"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Rebuilt is what RebuildIndex found.
type Rebuilt struct {
	Blocks     uint64
	Tombstones uint64
	Segments   int
	Bytes      uint64 // of log that went into the index
	LastSeq    uint64
	Damage     []Damage
	Missing    [][2]uint64 // segments that are lost: first and last number of each range
	Unnamed    bool        // records are lost that nobody can name: the store waits for the cluster to fill it again
}

// RebuildIndex throws the index of a store away and makes it anew from the
// segments, as a start does that finds it damaged, and so finds out anew what in
// the segments is damaged. Only FS, Dir, NewMark, PID and Logger of the options
// are used. Errors are those of Open. progress may be nil; it is told how many
// bytes of segments were gone through, and how many there are.
//
// It is not to be stopped once it has begun: ctx is looked at before. A process
// that is killed on the way leaves a store whose next start goes on.
func RebuildIndex(ctx context.Context, o Options, progress func(done, total int64)) (*Rebuilt, error) {
	built, err := rebuildIndex(ctx, o, progress)
	return built, dfs.Wrap("rebuild index", o.Dir, err)
}

func rebuildIndex(ctx context.Context, o Options, progress func(done, total int64)) (*Rebuilt, error) {
	in, err := Inspect(o.FS, o.Dir)
	if err != nil {
		return nil, err
	}
	v := in.survey
	m := &meterFS{FS: o.FS, progress: progress, through: map[string]int64{}}
	for _, f := range v.segments {
		if f.inUse() {
			m.total += f.size
		}
	}
	if err = ctx.Err(); err == nil {
		err = condemn(o.FS, o.Dir)
	}
	if err := errors.Join(err, in.Close()); err != nil { // the start takes the lock itself
		return nil, err
	}
	o = Options{FS: m, Dir: o.Dir, NewMark: o.NewMark, PID: o.PID, Logger: o.Logger, SegmentSize: v.segmentSize, Capacity: math.MaxInt64, ReserveBytes: 1}
	o.setDefaults()
	if err := o.Validate(); err != nil {
		return nil, err
	}
	s, w, c, err := attempt(&o)
	if err != nil {
		return nil, err
	}
	w.release()
	c.release()
	built := &Rebuilt{Segments: len(*s.segs.byNumber.Load()), Bytes: uint64(s.counters.sinceCheckpoint.Load()), LastSeq: s.durableSeq.Load(), Missing: s.missing}
	for _, u := range s.index.usageOf() {
		built.Blocks += u.puts
		built.Tombstones += u.tombstones
	}
	list, unnamed := s.damage.all()
	built.Damage, built.Unnamed = slices.Clip(list), unnamed || s.identity().rolledBack
	err = s.index.checkpoint()
	s.abandon()
	return built, err
}

// meterFS tells how far segments were read.
type meterFS struct {
	vfs.FS
	progress func(done, total int64)
	total    int64

	// mu guards what follows.
	mu      sync.Mutex
	through map[string]int64 // by file
	done    int64            // the sum of it
}

func (m *meterFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := m.FS.OpenReadWrite(name, c, opts...)
	if _, ok := parseSegmentName(m.PathBase(name)); !ok || err != nil {
		return f, err
	}
	return meterFile{f, m, name}, nil
}

type meterFile struct {
	vfs.File
	m    *meterFS
	name string
}

func (f meterFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	if f.m.progress == nil || err != nil && err != io.EOF {
		return n, err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if end := off + int64(n); end > f.m.through[f.name] {
		f.m.done += end - f.m.through[f.name]
		f.m.through[f.name] = end
		f.m.progress(min(f.m.done, f.m.total), f.m.total)
	}
	return n, err
}
