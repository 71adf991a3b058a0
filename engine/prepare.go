package engine

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// fillChunk is how much is zero-filled by one write and one sync, so that the
// batches of the writer never queue behind a whole segment of zeros.
const fillChunk = 1 << 20

// The rest after each chunk while another segment is ready.
const (
	fillPause = 10 * time.Millisecond // while something is appended
	fillLong  = 50 * time.Millisecond // likewise, and two are ready
	fillBrief = time.Millisecond      // nothing was appended for quietTime
	quietTime = 20 * time.Millisecond
)

// fullRetry is how often a full disk is looked at again.
const fullRetry = time.Second

// deadList holds retired segments whose files will be used again.
type deadList struct {
	// mu guards files.
	mu    sync.Mutex
	files []*segment // Invariant: at most readySegments, so that little space lies idle
}

// offer keeps the segment's file for use again; false when there are enough, or
// it has another size.
func (d *deadList) offer(g *segment, size int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g.size != size || len(d.files) >= readySegments {
		return false
	}
	d.files = append(d.files, g)
	return true
}

// take returns a file, nil when there is none.
func (d *deadList) take() *segment {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.files) == 0 {
		return nil
	}
	g := d.files[0]
	d.files = slices.Delete(d.files, 0, 1)
	return g
}

func (d *deadList) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.files)
}

// prepare keeps segments ready for the writer until ctx ends.
func (s *Store) prepare(ctx context.Context) {
	for s.failure() == nil {
		if s.prepareOne(ctx) {
			signal(s.prepared)
			signal(s.preparedMoved)
			continue
		}
		signal(s.prepared)
		signal(s.preparedMoved)
		var retry <-chan time.Time
		var timer *time.Timer
		if s.full.Load() {
			timer = time.NewTimer(fullRetry)
			retry = timer.C
		}
		select {
		case <-ctx.Done():
		case <-s.failed:
		case <-s.prepareWake:
		case <-retry:
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// prepareOne makes one segment ready, and reports whether it did; false when
// there are enough, or no space for another.
func (s *Store) prepareOne(ctx context.Context) bool {
	_, ready := s.segs.counts()
	dead := s.dead.take()
	above, any := s.space()
	s.full.Store((!above || s.noSpace) && dead == nil)
	s.exhausted.Store(!any && dead == nil)
	if !s.full.Load() || ready > keepForDeletes+keepForMoves {
		s.readOnly.Store(false)
	}
	// Without space above the reserve segments are still kept ready: they are what
	// the reserve is for, and only deletes and compaction take them.
	if ready >= readySegments || ctx.Err() != nil || dead == nil && !above && !any {
		if dead != nil && !s.dead.offer(dead, s.opts.SegmentSize) {
			s.removeSegment(dead)
		}
		return false
	}
	var g *segment
	var err error
	if dead != nil {
		g, err = s.recycle(dead)
	} else {
		g, err = s.fill(ctx)
	}
	switch {
	case err != nil && vfs.IsNoSpaceError(err):
		s.log.Warn("no space for another segment", "dir", s.opts.Dir)
		s.noSpace = true
		s.full.Store(true)
		s.exhausted.Store(true)
		return false
	case err != nil && ctx.Err() != nil:
		return false
	case err != nil:
		s.fail(err)
		return false
	}
	s.noSpace = false
	s.segs.addReady(g)
	return true
}

// space reports whether another segment fits above the reserve, and whether
// one fits at all: a part of the reserve is the index's, which grows with every
// record.
func (s *Store) space() (above, any bool) {
	size := uint64(s.opts.SegmentSize)
	free := uint64(math.MaxUint64)
	if usage, err := s.opts.FS.GetDiskUsage(s.opts.Dir); err == nil {
		free = usage.AvailBytes
	}
	if s.opts.Capacity > 0 {
		inUse, ready := s.segs.counts()
		taken := uint64(inUse+ready+s.dead.count()) * size
		free = min(free, s.opts.Capacity-min(s.opts.Capacity, taken))
	}
	return free >= size && free-size >= s.opts.ReserveBytes, free >= size && free-size >= s.opts.ReserveBytes/indexShare
}

// newSegment describes a segment with the next number.
func (s *Store) newSegment() *segment {
	n := s.segs.nextNumber()
	fs := s.opts.FS
	return &segment{
		number: n, size: s.opts.SegmentSize, fs: fs, open: &s.segs.open,
		path: fs.PathJoin(s.opts.Dir, segmentsName, segmentName(n)),
	}
}

// fill makes a new segment file and writes all of it, so that later writes
// change no metadata.
func (s *Store) fill(ctx context.Context) (_ *segment, err error) {
	g, fs := s.newSegment(), s.opts.FS
	defer func() {
		if err == nil {
			return
		}
		// On a full disk it is tried every second: each number is forgotten again.
		if rerr := fs.Remove(g.path); (rerr == nil || isNotExist(rerr)) && syncDir(fs, s.path(segmentsName)) == nil {
			s.segs.forget(g.number)
		}
	}()
	f, err := fs.Create(g.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	h := segmentHeader{mark: s.mark, segment: g.number, size: g.size}
	if err := cmp.Or(fillFile(f, h.page(), g.size, func() error { return s.fillRest(ctx) }), f.Close()); err != nil {
		return nil, err
	}
	return g, syncDir(fs, s.path(segmentsName))
}

// fillRest gives way to the writer, unless that waits for the segment.
func (s *Store) fillRest(ctx context.Context) error {
	_, ready := s.segs.counts()
	waiting, _ := s.queue.depth()
	rest := fillBrief
	switch busy := waiting > 0 || time.Since(at(s.clock.lastSync.Load())) < quietTime; {
	case ready <= keepForDeletes+keepForMoves:
		return ctx.Err()
	case busy && ready > keepForDeletes+keepForMoves+1:
		rest = fillLong
	case busy:
		rest = fillPause
	}
	select {
	case <-ctx.Done():
	case <-time.After(rest):
	}
	return ctx.Err()
}

// fillFile writes the first page and zeros up to size, durably, and rests
// after each chunk.
func fillFile(f vfs.File, first []byte, size int64, rest func() error) error {
	if err := f.Preallocate(0, size); err != nil && vfs.IsNoSpaceError(err) {
		return err // any other error only says that this file system cannot
	}
	if _, err := f.Write(first); err != nil {
		return err
	}
	zeros := make([]byte, min(fillChunk, size))
	for at := int64(len(first)); at < size; {
		n, err := f.Write(zeros[:min(int64(len(zeros)), size-at)])
		if err != nil {
			return err
		}
		if err := f.SyncData(); err != nil {
			return err // without a rest: the store fails at once
		}
		if err := rest(); err != nil {
			return err
		}
		at += int64(n)
	}
	return f.Sync()
}

// PrepareFile makes a file that is written in the way of a segment's, so that
// a benchmark's raw loop appends to what the store appends to.
func PrepareFile(fs vfs.FS, name string, size int64) (vfs.File, error) {
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	if err := cmp.Or(fillFile(f, make([]byte, pageSize), size, func() error { return nil }), f.Close()); err != nil {
		return nil, err
	}
	return fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
}

// recycle makes a dead segment's file a ready segment. The new name is durable
// before the header is touched: a crash in between leaves a file above the
// mark whose header names another segment, which the next start removes.
//
// Where there is no room even for that, the file is removed.
func (s *Store) recycle(dead *segment) (_ *segment, err error) {
	g, fs := s.newSegment(), s.opts.FS
	now := dead // whose name the file has
	defer func() {
		if err != nil && vfs.IsNoSpaceError(err) {
			_, _ = now.closeFile()
			if s.removeSegment(now) { // and with it the file under its old name
				s.segs.forget(dead.number)
			}
		}
	}()
	if err := fs.Rename(dead.path, g.path); err != nil {
		s.segs.forget(g.number)
		return nil, err
	}
	now = g
	if err := syncDir(fs, s.path(segmentsName)); err != nil {
		return nil, err
	}
	s.segs.forget(dead.number)
	f, err := g.acquire()
	if err != nil {
		return nil, err
	}
	defer g.release()
	h := segmentHeader{mark: s.mark, segment: g.number, size: g.size}
	if _, err := f.WriteAt(h.page(), 0); err != nil {
		return nil, err
	}
	return g, f.SyncData()
}

// removeSegment gives a retired segment's space back, and reports whether that is
// durable.
func (s *Store) removeSegment(g *segment) bool {
	err := cmp.Or(s.opts.FS.Remove(g.path), syncDir(s.opts.FS, s.path(segmentsName)))
	if err != nil {
		s.log.Error("a dead segment cannot be removed", "segment", g.path, "cause", err)
		return false
	}
	s.segs.forget(g.number)
	return true
}
