package engine

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"

	"dfsd/dfs"

	"golang.org/x/time/rate"
)

// rehearsal is a start that was acted out over an overlay, with the code of a
// real one: its index is what the next start would serve from.
type rehearsal struct {
	over   *overlay
	opts   Options
	heard  *listener
	store  *Store // nil: a start is refused
	writer *writer
	moving *compactor
	err    error // why it is refused

	missing bool   // there was no index to start with
	bad     error  // what is wrong with the tables of the index; nil: nothing
	replay  uint64 // bytes of log that the index did not know
}

// rehearse acts out a start. What would have it refused is put out of the way
// where that can be done: segments of another store are hidden, and a STORE
// file that says nothing is made up.
func rehearse(ctx context.Context, v *survey) *rehearsal {
	r := &rehearsal{over: newOverlay(v.fs), heard: &listener{}}
	for _, f := range v.segments {
		if f.state == SegmentForeign {
			r.over.hide(f.path)
		}
	}
	if !v.identOK {
		if r.err = r.makeIdentity(v); r.err != nil {
			return r
		}
	}
	_, err := v.fs.Stat(v.path(indexName))
	r.missing = isNotExist(err)
	r.opts = Options{
		FS: r.over, Dir: v.dir, NewMark: func() uint64 { return 1 }, SegmentSize: v.segmentSize, MemTableSize: 64 << 20,
		Capacity: math.MaxInt64, ReserveBytes: 1, Logger: slog.New(r.heard), still: true,
	}
	if r.opts.SegmentSize < MinSegmentSize || r.opts.SegmentSize > MaxSegmentSize {
		r.opts.SegmentSize = DefaultSegmentSize
	}
	r.opts.setDefaults()
	r.attempt()
	if r.err != nil {
		return r
	}
	if r.bad = r.store.index.verify(ctx, r.over, v.path(indexName), rate.Inf); r.bad == nil || ctx.Err() != nil {
		return r
	}
	r.store.badIndex.Store(true)
	r.close()
	r.attempt()
	return r
}

// attempt is what Open does, up to the first goroutine.
func (r *rehearsal) attempt() {
	s, w, c, err := attempt(&r.opts)
	if err != nil && s.badIndex.Load() {
		s, w, c, err = attempt(&r.opts)
	}
	if r.err = err; err != nil {
		return
	}
	r.store, r.writer, r.moving = s, w, c
	r.replay = uint64(s.counters.sinceCheckpoint.Load())
}

func (r *rehearsal) makeIdentity(v *survey) error {
	if v.mark == 0 {
		return dfs.Errorf(dfs.Corrupt, "read", "neither %s nor a segment says whose directory it is", storeName)
	}
	name := v.path(storeName)
	r.over.hide(name)
	s, err := createSlots(r.over, name, storeMagic, (&identityRecord{mark: v.mark}).encode())
	if err != nil {
		return err
	}
	return s.close()
}

// close gives back what the acted out start has opened. It may be called again.
func (r *rehearsal) close() {
	if r == nil || r.store == nil {
		return
	}
	r.writer.release()
	r.moving.release()
	r.store.abandon()
	r.store = nil
}

// listener is a log handler that keeps what a start says of the whole store.
// What it says of one segment is left to who reads the segments.
type listener struct {
	// mu guards what follows.
	mu    sync.Mutex
	lines []heardLine // at most maxHeard
}

// heardLine is a line of the log.
type heardLine struct {
	level slog.Level
	text  string
}

// maxHeard bounds the lines that a listener keeps.
const maxHeard = 1000

func (l *listener) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (l *listener) Handle(_ context.Context, r slog.Record) error {
	whole, about := false, []string(nil)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "dir" {
			whole = true
		} else {
			about = append(about, fmt.Sprintf("%s %v", a.Key, a.Value))
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if !whole || len(l.lines) >= maxHeard {
		return nil
	}
	text := r.Message
	if len(about) > 0 {
		text += " (" + strings.Join(about, ", ") + ")"
	}
	l.lines = append(l.lines, heardLine{r.Level, text})
	return nil
}

func (l *listener) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *listener) WithGroup(string) slog.Handler      { return l }

// report adds what was heard, and what is wrong with the index, to a report.
func (r *rehearsal) report(to *Report) {
	r.heard.mu.Lock()
	defer r.heard.mu.Unlock()
	for _, line := range r.heard.lines {
		if line.level >= slog.LevelError {
			to.fault(Fault{Text: "a start says: " + line.text})
		} else {
			to.note("a start says: %s", line.text)
		}
	}
	if r.missing && r.replay > 0 {
		to.fault(Fault{File: indexName, Text: "is missing: the next start makes it anew from the segments"})
	}
	if r.bad != nil {
		to.fault(Fault{File: indexName, Text: fmt.Sprintf("is damaged, and the next start makes it anew from the segments: %v", r.bad)})
	}
	if r.err != nil {
		to.fault(Fault{Text: fmt.Sprintf("a start is refused: %v", r.err)})
	} else if r.replay > 0 {
		to.note("the index is behind: the next start reads %d bytes of log into it", r.replay)
	}
}
