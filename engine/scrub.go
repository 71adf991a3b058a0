package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"time"

	"dfsd/dfs"

	"golang.org/x/time/rate"
)

const (
	// scrubPage is how many rows are looked at a time: between pages the index is
	// let go of, so that it need not keep what it has replaced.
	scrubPage = 256

	// scrubSave is how much may be read again after a crash.
	scrubSave = 64 << 20

	// scrubLeast is the least that is read a second, so that a pass over little
	// data does not take the whole period.
	scrubLeast = 1 << 20

	scrubMagic = 0x44534342 // "DSCB"
	scrubName  = "SCRUB"
)

// scrubRecord is the payload of the SCRUB file: where the pass is.
type scrubRecord struct {
	pass   uint64 // number of the pass under way, or waited for; from 1 up
	last   int64  // when the one before began, Unix milliseconds; 0: there was none
	began  int64  // when it began, likewise; 0: it is waited for
	read   uint64 // bytes that it has read
	found  uint64 // damaged records that it has found
	cursor []byte // block key of the last record that was read; empty: none
}

const scrubHeadLen = 40

func (r *scrubRecord) encode() []byte {
	b := binary.BigEndian
	p := b.AppendUint64(make([]byte, 0, scrubHeadLen+blockKeyLen), r.pass)
	p = b.AppendUint64(p, uint64(r.last))
	p = b.AppendUint64(p, uint64(r.began))
	p = b.AppendUint64(p, r.read)
	p = b.AppendUint64(p, r.found)
	return append(p, r.cursor...)
}

// decodeScrub reads a record. One that is lost begins with the first pass.
func decodeScrub(p []byte) scrubRecord {
	if len(p) != scrubHeadLen && len(p) != scrubHeadLen+blockKeyLen {
		return scrubRecord{pass: 1}
	}
	b := binary.BigEndian
	return scrubRecord{
		pass: b.Uint64(p), last: int64(b.Uint64(p[8:])), began: int64(b.Uint64(p[16:])), read: b.Uint64(p[24:]), found: b.Uint64(p[32:]),
		cursor: bytes.Clone(p[scrubHeadLen:]),
	}
}

// Scrub is how far the reading of everything has come.
type Scrub struct {
	Pass  uint64    // number of the pass under way, or waited for; from 1 up
	Began time.Time // when it began; zero: it is waited for
	Read  uint64    // bytes that it has read
	Found uint64    // damaged records that it has found
}

// Scrub returns how far the pass under way is, over restarts too.
func (s *Store) Scrub() Scrub {
	s.scrubMu.Lock()
	defer s.scrubMu.Unlock()
	r := s.scrubbed
	x := Scrub{Pass: r.pass, Read: r.read, Found: r.found}
	if r.began != 0 {
		x.Began = time.UnixMilli(r.began)
	}
	return x
}

// scrubber reads every record that is needed once a period, in the order of
// the index, which is that of placement groups. What is damaged is listed, for
// the storage role to fetch again; a tombstone is written again by itself.
type scrubber struct {
	s     *Store
	file  *slotFile
	now   scrubRecord
	limit *rate.Limiter
	saved uint64 // now.read when it was saved last
}

// scrub runs passes until ctx ends or the store fails.
func (s *Store) scrub(ctx context.Context) {
	file, p, err := openSlots(s.opts.FS, s.path(scrubName), scrubMagic)
	if isNotExist(err) {
		file, err = createSlots(s.opts.FS, s.path(scrubName), scrubMagic, (&scrubRecord{pass: 1}).encode())
	}
	if err != nil {
		s.fail(dfs.Wrap("open", s.path(scrubName), err))
		return
	}
	x := &scrubber{s: s, file: file, now: decodeScrub(p), limit: rate.NewLimiter(scrubLeast, scrubLeast)}
	defer func() { _ = file.close() }()
	for x.wait(ctx) {
		if err := x.pass(ctx); err != nil {
			if ctx.Err() == nil && s.failure() == nil {
				s.log.Error("scrub: it goes on in a minute", "dir", s.opts.Dir, "cause", err)
				sleep(ctx, time.Minute)
			}
			continue
		}
		s.log.Info("scrub: everything was read", "dir", s.opts.Dir, "pass", x.now.pass, "bytes", x.now.read, "damaged", x.now.found)
		x.now = scrubRecord{pass: x.now.pass + 1, last: x.now.began}
		x.save()
	}
}

// wait returns true when a pass is to begin, or to go on.
func (x *scrubber) wait(ctx context.Context) bool {
	x.publish()
	if x.now.began == 0 {
		// A clock that was set back makes nobody wait for longer than a period.
		if rest := time.Until(time.UnixMilli(x.now.last).Add(x.s.opts.ScrubPeriod)); rest > 0 {
			sleep(ctx, min(rest, x.s.opts.ScrubPeriod))
		}
		if ctx.Err() != nil {
			return false
		}
		x.now.began = time.Now().UnixMilli()
	}
	return ctx.Err() == nil && x.s.failure() == nil
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func (x *scrubber) publish() {
	x.s.scrubMu.Lock()
	defer x.s.scrubMu.Unlock()
	x.s.scrubbed = x.now
}

// save notes where the pass is. A failed write fails the store.
func (x *scrubber) save() {
	x.saved = x.now.read
	if err := x.file.put(x.now.encode()); err != nil {
		x.s.fail(err)
	}
}

// pass reads what lies behind the cursor. What it has read is saved when it is
// interrupted.
func (x *scrubber) pass(ctx context.Context) (err error) {
	defer func() {
		if err != nil && x.s.failure() == nil {
			x.save()
		}
	}()
	for {
		x.setRate()
		keys, rows, err := x.s.index.blocksAfter(x.now.cursor, scrubPage)
		if err != nil || len(keys) == 0 {
			return err
		}
		for i, key := range keys {
			if err := x.record(ctx, key, rows[i]); err != nil {
				return err
			}
			x.now.cursor = key
			x.publish()
		}
		if x.now.read-x.saved >= scrubSave {
			x.save()
		}
	}
}

// setRate spreads a pass over nine tenths of the period.
func (x *scrubber) setRate() {
	var live uint64
	for _, u := range x.s.index.usageOf() {
		live += u.putBytes + u.tombstoneBytes
	}
	r := float64(live) / (x.s.opts.ScrubPeriod.Seconds() * 0.9)
	x.limit.SetLimit(rate.Limit(min(max(r, scrubLeast), float64(x.s.opts.ScrubRate))))
}

// blocksAfter returns at most n block rows behind a key.
func (ix *index) blocksAfter(key []byte, n int) (keys [][]byte, rows []*row, err error) {
	lower := []byte{blockPrefix}
	if len(key) > 0 {
		lower = append(bytes.Clone(key), 0)
	}
	err = ix.scan(lower, []byte{blockPrefix + 1}, func(k, v []byte) error {
		if len(keys) == n {
			return errEnough
		}
		w, err := decodeRow(v)
		keys, rows = append(keys, bytes.Clone(k)), append(rows, w)
		return err
	})
	if err == errEnough {
		err = nil
	}
	return keys, rows, err
}

var errEnough = dfs.Errorf(dfs.Internal, "read index", "enough")

// record reads one record and checks all of it. What has moved or gone
// meanwhile was read by compaction, or is not needed.
func (x *scrubber) record(ctx context.Context, key []byte, w *row) error {
	s := x.s
	id, shard, err := parseBlockKey(key)
	if err != nil {
		return err
	}
	if s.damage.has(string(key)) {
		return nil // it is known
	}
	if w.flags&rowLost != 0 { // it found no place on the list before
		_ = s.readFailed(id, shard, w, dfs.Errorf(dfs.Corrupt, "read record", "it is lost"))
		return nil
	}
	n := recordHeaderLen + len(w.info.Chunks)*chunkLen + int(w.stored)
	for left := n; left > 0; left -= scrubLeast {
		if err := x.limit.WaitN(ctx, min(left, scrubLeast)); err != nil {
			return err
		}
	}
	bad := s.checkRecord(id, shard, w, n)
	switch {
	case bad == nil:
		x.now.read += uint64(n)
		return nil
	case dfs.KindOf(bad) == dfs.Unavailable:
		return bad
	}
	if now, err := s.index.get(key); err != nil {
		return err
	} else if now == nil || now.seq != w.seq || now.segment != w.segment || now.offset != w.offset {
		return nil
	}
	x.now.found++
	s.counters.scrubFound.Add(1)
	if w.kind == kindTombstone {
		s.log.Error("a tombstone is damaged and is written again", "block", id, "segment", segmentName(w.segment), "offset", w.offset, "cause", bad)
		return s.rewriteTombstone(ctx, id, shard, w)
	}
	_ = s.readFailed(id, shard, w, bad)
	return nil
}

// checkRecord reads n bytes of a record, all of it, from the disk. Unavailable:
// its segment is there and cannot be opened, which says nothing of the record.
func (s *Store) checkRecord(id dfs.BlockID, shard uint8, w *row, n int) error {
	g := s.segs.get(w.segment)
	if g == nil {
		return dfs.Errorf(dfs.Corrupt, "read record", "%s is missing", segmentName(w.segment))
	}
	file, err := g.acquire()
	if err != nil {
		if isNotExist(err) || dfs.KindOf(err) == dfs.NotExist {
			return err
		}
		return &dfs.Error{Kind: dfs.Unavailable, Op: "read record", Object: id.String(), Err: err}
	}
	defer g.release()
	b := s.bufs.get(n)
	defer b.release()
	buf := b.room[:n]
	if _, err := file.ReadAt(buf, w.offset); err != nil {
		return &dfs.Error{Kind: dfs.Corrupt, Op: "read record", Object: id.String(), Err: err}
	}
	head := n - int(w.stored)
	if _, err := s.readHeader(buf[:head], id, shard, w); err != nil {
		return err
	}
	return checkChunks(id, shard, 0, w.info.Chunks, buf[head:])
}

// rewriteTombstone writes a tombstone again when the row still names it.
func (s *Store) rewriteTombstone(ctx context.Context, id dfs.BlockID, shard uint8, w *row) error {
	o := newOp(record{kind: kindTombstone, id: id, shard: shard, epoch: w.epoch, flags: flagRefill}, nil)
	err := s.submit(ctx, o, func(p *pg, o *op) (*op, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		now, err := s.index.get([]byte(o.key))
		if err != nil || p.forgetting || now == nil || now.kind != kindTombstone || now.segment != w.segment || now.offset != w.offset || p.latest[o.key] != nil {
			return nil, err
		}
		p.startLocked(o)
		s.queue.push(o)
		return o, nil
	})
	if dfs.KindOf(err) == dfs.NoSpace {
		return nil // the next pass finds it again
	}
	return err
}
