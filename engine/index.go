package engine

import (
	"cmp"
	"errors"
	"log/slog"
	"maps"
	"math"
	"sync"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// index is the Pebble database that says where each block lies. It has no log
// of its own: the segments are its log, and the anchor in each batch says how
// far a flushed state has come.
//
// Who changes it takes turns (update); any number read.
type index struct {
	db    *pebble.DB
	cache *pebble.Cache
	gate  *gate
	mark  uint64
	rows  rowCache // what reads have asked for

	exists func(segment uint64) bool // segments.mayExist

	memTableSize int
	still        bool // nothing is compacted
	old          bool // its anchor is of the release before; set by load

	// turn holds a token of who changes the index, from the first look at the rows
	// that the change depends on until it is visible. It guards what follows. A
	// channel and not a mutex: the holder waits for the disk.
	turn      chan struct{}
	unflushed int           // bytes of changes since makeRoom last looked
	session   dfs.SessionID // the highest of all blocks that were ever here

	// mu guards what follows. It is held for map operations only.
	mu     sync.Mutex
	usage  map[uint64]usage // by segment; the same as the segment rows
	sets   setCounts        // the same as its row
	anchor anchor
}

// memTables is how many memtables' bytes there are before a change waits: one to
// fill, one being written, and one more, so that a checkpoint does not wait where
// there is no room to write. Their number says less: Pebble's first ones are
// small, and it writes none before there is half of a whole one.
const memTables = 3

// l0Tables is how many tables a read may have to look at on the first level
// before a change waits. Where nothing is compacted there may be any number.
const l0Tables = 12

type indexOptions struct {
	fs           vfs.FS
	dir          string
	mark         uint64
	cacheSize    int64
	memTableSize uint64
	still        bool // tables stay as they are; flushes go on
	log          *slog.Logger
	exists       func(uint64) bool // segments.mayExist
	failed       func(error)       // told of the first failed write
	corrupt      func(error)       // told of damage in the index itself
}

// openIndex opens or makes the index. Unavailable: the disk does not take
// writes. Any other error but Unsupported: the index is damaged or another
// store's, and must be made anew.
func openIndex(o indexOptions) (*index, error) {
	g := newGate(o.failed)
	cache := pebble.NewCache(o.cacheSize)
	po := &pebble.Options{
		FS: gateFS{o.fs, g}, Cache: cache, MemTableSize: o.memTableSize, DisableWAL: true,
		// Changes wait in makeRoom and never in Pebble, which would let them wait for ever.
		MemTableStopWritesThreshold: math.MaxInt32,
		L0StopWritesThreshold:       math.MaxInt32,
		FormatMajorVersion:          pebble.FormatNewest, Logger: pebbleLog{o.log, g}, EventListener: g.listener(o.corrupt),
	}
	if o.still {
		po.DisableAutomaticCompactions = true
	}
	for i := range po.Levels {
		po.Levels[i].FilterPolicy = bloom.FilterPolicy(10) // most puts ask for a block that is not there
	}
	// Pebble's own, but for the ticker, which the usual one has beside it: what
	// waits is begun when another ends.
	po.Experimental.CompactionScheduler = gateScheduler{pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest(), g}
	db, err := pebble.Open(o.dir, po)
	if err != nil {
		cache.Unref()
		return nil, dfs.Wrap("open", o.dir, cmp.Or(g.check(), err))
	}
	g.opened.Store(true)
	ix := &index{db: db, cache: cache, gate: g, mark: o.mark, memTableSize: int(o.memTableSize), still: o.still, exists: o.exists, turn: make(chan struct{}, 1), usage: map[uint64]usage{}}
	if err := cmp.Or(g.check(), ix.load()); err != nil {
		return nil, cmp.Or(err, ix.close())
	}
	return ix, nil
}

// load reads the anchor and the segment rows. An index without an anchor is
// made this store's own.
func (ix *index) load() error {
	val, c, err := ix.db.Get([]byte(metaKey))
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		it, err := ix.db.NewIter(nil)
		if err != nil {
			return err
		}
		used := it.First()
		if err := cmp.Or(it.Error(), it.Close()); err != nil {
			return err
		}
		if used {
			return dfs.Errorf(dfs.Corrupt, "open index", "it has rows and no anchor")
		}
		return ix.db.Set([]byte(metaKey), (&anchor{}).encode(ix.mark, 0), pebble.NoSync)
	case err != nil:
		return err
	}
	a, mark, session, err := decodeAnchor(val)
	if err = cmp.Or(err, c.Close()); err != nil {
		return err
	}
	if mark != ix.mark {
		return dfs.Errorf(dfs.Corrupt, "open index", "it belongs to store mark %016x, this is %016x", mark, ix.mark)
	}
	ix.anchor, ix.session = a, session
	if ix.old = session == unknownSession; ix.old {
		if err := ix.findSession(); err != nil {
			return err
		}
	}
	if err := ix.loadSets(); err != nil {
		return err
	}
	return ix.scan([]byte{segmentPrefix}, []byte{segmentPrefix + 1}, func(k, v []byte) error {
		if len(k) != 9 {
			return dfs.Errorf(dfs.Corrupt, "read index", "segment key of %d bytes", len(k))
		}
		u, err := decodeUsage(v)
		if err != nil {
			return err
		}
		var n uint64
		for _, c := range k[1:] {
			n = n<<8 | uint64(c)
		}
		ix.usage[n] = u
		return nil
	})
}

// findSession looks for the highest session, which an old anchor does not say.
func (ix *index) findSession() error {
	ix.session = 0
	err := ix.scan([]byte{blockPrefix}, []byte{blockPrefix + 1}, func(k, _ []byte) error {
		id, _, err := parseBlockKey(k)
		ix.session = max(ix.session, id.Session)
		return err
	})
	return cmp.Or(err, ix.db.Set([]byte(metaKey), ix.anchor.encode(ix.mark, ix.session), pebble.NoSync))
}

// scan calls fn for each row in [lower, upper). The slices are valid in fn only.
func (ix *index) scan(lower, upper []byte, fn func(k, v []byte) error) (err error) {
	it, err := ix.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := fn(it.Key(), v); err != nil {
			return err
		}
	}
	return it.Error()
}

// lookup is get for a read, which the row cache may answer. The row is not to
// be changed.
func (ix *index) lookup(id dfs.BlockID, shard uint8) (*row, error) {
	if w := ix.rows.get(id, shard); w != nil {
		return w, nil
	}
	generation := ix.rows.begin(id, shard)
	w, err := ix.get(blockKey(id, shard))
	if err == nil && w != nil && w.kind == kindPut {
		ix.rows.add(id, shard, generation, w)
	}
	return w, err
}

// get returns a block's row, nil when there is none.
func (ix *index) get(key []byte) (*row, error) {
	v, c, err := ix.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, &dfs.Error{Kind: dfs.Unavailable, Op: "read index", Err: err}
	}
	r, err := decodeRow(v)
	return r, cmp.Or(err, c.Close())
}

// checkpoint makes the index's present state durable. NoSpace: there is no room
// for it now.
func (ix *index) checkpoint() error {
	if err := ix.gate.check(); err != nil {
		return err
	}
	select {
	case <-ix.gate.hungry: // of an earlier time
	default:
	}
	if err := ix.room(); err != nil {
		return err
	}
	done, err := ix.db.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-done:
	case <-ix.gate.shut:
	case <-ix.gate.hungry:
		return noRoomForIndex()
	}
	return ix.gate.check()
}

// usageOf returns a copy of all counters.
func (ix *index) usageOf() map[uint64]usage {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return maps.Clone(ix.usage)
}

func (ix *index) position() anchor {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return ix.anchor
}

// close waits for what Pebble still does. The state since the last checkpoint
// is dropped.
func (ix *index) close() error {
	close(ix.gate.closed)
	err := ix.db.Close()
	ix.cache.Unref()
	return err
}

// change is one atomic change of the index. It sees its own rows.
type change struct {
	ix      *index
	b       *pebble.Batch
	rows    map[string]*row // as known or changed; nil: there is none
	usage   map[uint64]usage
	sets    *setCounts // nil: they stay as they are
	time    int64      // of the change, milliseconds since 1970; set with sets
	anchor  *anchor    // nil: it stays where it is
	session dfs.SessionID
}

// update makes the change that fn describes, whole or, when fn fails, not at
// all. Every other change waits. It is visible to readers when update returns,
// and durable with the next checkpoint.
func (ix *index) update(fn func(*change) error) error {
	ix.turn <- struct{}{}
	defer func() { <-ix.turn }()
	c := &change{ix: ix, b: ix.db.NewBatch(), rows: map[string]*row{}, usage: map[uint64]usage{}, session: ix.session}
	err := fn(c)
	if err == nil {
		err = c.commit()
	}
	return cmp.Or(err, c.b.Close())
}

// room reports NoSpace while no table can be written. Who would begin something
// that ends in a change asks first: the rows would pile up in memory.
func (ix *index) room() error {
	if ix.gate.starved.Load() {
		return noRoomForIndex()
	}
	return nil
}

func noRoomForIndex() error {
	return dfs.Errorf(dfs.NoSpace, "write index", "no space left on the disk")
}

// makeRoom waits until a change of n bytes finds room in memory, or the disk is
// full: what was begun before that was known is on the disk already, and cannot
// be refused any more; since nothing else is begun, there is little of it. The
// wait ends too when the gate is shut. Looking costs more than a change, so a part
// of a memtable goes by between two looks.
func (ix *index) makeRoom(n int) error {
	if ix.unflushed += n; ix.unflushed < ix.memTableSize/4 {
		return nil
	}
	ix.unflushed = 0
	for ix.room() == nil {
		if m := ix.db.Metrics(); m.MemTable.Size <= uint64(memTables*ix.memTableSize) && (ix.still || m.Levels[0].Sublevels <= l0Tables) {
			return nil
		}
		select {
		case <-ix.gate.flushed:
		case <-ix.gate.shut:
			return ix.gate.check()
		}
	}
	return nil
}

func (c *change) row(key []byte) (*row, error) {
	if r, ok := c.rows[string(key)]; ok {
		return r, nil
	}
	return c.ix.get(key)
}

// advance moves the anchor of a stream to a batch whose effect the change has.
func (c *change) advance(st stream, at position) {
	if c.anchor == nil {
		a := c.ix.position()
		c.anchor = &a
	}
	c.anchor[st] = at
}

// count adds (or with sign -1 takes away) a row in its segment's counters.
func (c *change) count(w *row, sign int) {
	u, ok := c.usage[w.segment]
	if !ok {
		c.ix.mu.Lock()
		u = c.ix.usage[w.segment]
		c.ix.mu.Unlock()
	}
	u.add(w, sign)
	c.usage[w.segment] = u
}

// apply adds the effect of one durable record. A tombstone beats every put of
// its block, whatever their order, since block IDs are never used twice; among
// equals the higher sequence number wins, and of an original and its copies the
// one that is applied last, unless it is known to be lost.
func (c *change) apply(id dfs.BlockID, shard uint8, w *row, dropTombstone bool) error {
	c.session = max(c.session, id.Session)
	key := blockKey(id, shard)
	old, err := c.row(key)
	if err != nil {
		return err
	}
	if old != nil {
		lost := w.flags&rowLost != 0 && old.flags&rowLost == 0
		switch {
		case old.segment == w.segment && old.offset == w.offset:
			return nil
		case old.kind == kindTombstone && w.kind == kindPut:
			return c.hold(id, shard, old, w.segment)
		case old.kind == w.kind && (old.seq > w.seq || old.seq == w.seq && lost):
			return c.hold(id, shard, old, w.segment)
		}
		w.inherit(old)
		w.holders = old.holders
		w.holds(old.segment, c.ix.exists)
		if err := c.remove(id, shard, old); err != nil {
			return err
		}
	}
	if err := c.track(id, shard, old, w); err != nil {
		return err
	}
	if dropTombstone && w.kind == kindTombstone {
		c.rows[string(key)] = nil
		return c.b.Delete(key, nil)
	}
	c.rows[string(key)] = w
	c.count(w, 1)
	if err := c.b.Set(key, w.encode(), nil); err != nil {
		return err
	}
	return c.b.Set(epochKey(id, shard, w.epoch), w.encodeEpoch(), nil)
}

// hold notes in a block's row that a segment has another put of it.
func (c *change) hold(id dfs.BlockID, shard uint8, w *row, segment uint64) error {
	next := *w
	next.holds(segment, c.ix.exists)
	key := blockKey(id, shard)
	c.rows[string(key)] = &next
	return c.b.Set(key, next.encode(), nil)
}

// remove takes out what goes with a row, but not the row itself.
func (c *change) remove(id dfs.BlockID, shard uint8, w *row) error {
	c.count(w, -1)
	if w.flags&(rowLost|rowDamaged) != 0 {
		if err := c.b.Delete(damageKey(w.segment, w.offset), nil); err != nil {
			return err
		}
	}
	return c.b.Delete(epochKey(id, shard, w.epoch), nil)
}

// drop takes out a row and all that goes with it.
func (c *change) drop(id dfs.BlockID, shard uint8, w *row) error {
	key := blockKey(id, shard)
	c.rows[string(key)] = nil
	if err := cmp.Or(c.track(id, shard, w, nil), c.remove(id, shard, w)); err != nil {
		return err
	}
	return c.b.Delete(key, nil)
}

func (c *change) commit() error {
	for n, u := range c.usage {
		var err error
		if u == (usage{}) {
			err = c.b.Delete(segmentKey(n), nil)
		} else {
			err = c.b.Set(segmentKey(n), u.encode(), nil)
		}
		if err != nil {
			return err
		}
	}
	if c.sets != nil {
		if err := c.b.Set([]byte(setCountsKey), c.sets.encode(), nil); err != nil {
			return err
		}
	}
	if c.anchor == nil && c.session != c.ix.session {
		a := c.ix.position()
		c.anchor = &a
	}
	if c.anchor != nil {
		if err := c.b.Set([]byte(metaKey), c.anchor.encode(c.ix.mark, c.session), nil); err != nil {
			return err
		}
	}
	if err := c.ix.makeRoom(c.b.Len()); err != nil {
		return err
	}
	if err := c.b.Commit(pebble.NoSync); err != nil {
		return err
	}
	for key := range c.rows {
		if id, shard, err := parseBlockKey([]byte(key)); err == nil {
			c.ix.rows.drop(id, shard)
		}
	}
	if err := c.ix.gate.check(); err != nil {
		return err
	}
	c.ix.session = c.session
	c.ix.mu.Lock()
	defer c.ix.mu.Unlock()
	for n, u := range c.usage {
		if u == (usage{}) {
			delete(c.ix.usage, n)
		} else {
			c.ix.usage[n] = u
		}
	}
	if c.sets != nil {
		c.ix.sets = *c.sets
	}
	if c.anchor != nil {
		c.ix.anchor = *c.anchor
	}
	return nil
}

// rowOf is the row that a record makes.
func rowOf(r *record) *row {
	var flags uint8
	if r.kind == kindPut && r.flags&flagDecided == 0 {
		flags = rowUndecided
	}
	return &row{
		flags: flags,
		kind:  r.kind, seq: r.seq, epoch: r.epoch, segment: r.segment, offset: r.offset,
		stored: r.stored, info: r.info, digest: infoDigest(&r.info),
	}
}

// sameBytes reports whether the row describes the same stored bytes.
func (w *row) sameBytes(info *dfs.BlockInfo) bool {
	return w.info.Length == info.Length && w.digest == infoDigest(info)
}
