package engine

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// fate is what the model knows of a block.
type fate uint8

const (
	absent fate = iota
	present
	deleted
)

// bit is a fate in a set.
func (f fate) bit() uint8 { return 1 << f }

// modelBlock is one block of the model. At most one operation on it runs at a
// time.
type modelBlock struct {
	n     uint64
	size  int
	fate  fate
	may   uint8     // fates that an operation may have given it which runs, or which nobody answered for
	epoch dfs.Epoch // of the put or delete; 0: the lists will say

	// below: it is deleted and the floor of its PG is above its epoch. The
	// tombstone may be dropped at any time; no operation is about it any more.
	below bool

	settled bool // somebody has said, or tried to say, whether it is garbage
}

// garbage blocks may be thrown away, all others may be decided.
func (b *modelBlock) garbage() bool { return b.n%4 == 3 }

func (b *modelBlock) shard() uint8 {
	if b.n%5 == 4 {
		return uint8(b.n % dfs.MaxShards)
	}
	return 0
}

// put is the request for the block. Every third block is compressed: its chunks
// are shorter than what they stand for.
func (b *modelBlock) put(e dfs.Epoch) PutRequest {
	req := PutRequest{ID: blockID(b.n), Shard: b.shard(), Epoch: e, Info: dfs.BlockInfo{Length: uint32(b.size)}}
	req.Hint = dfs.Hint{Ino: req.ID.Ino, Offset: int64(b.n), Version: dfs.Version(b.n)}
	if b.n%3 == 2 {
		req.Info.Codec = dfs.CodecS2
	}
	for i, left := 0, b.size; left > 0; i, left = i+1, left-dfs.ChunkSize {
		n := min(left, dfs.ChunkSize)
		if req.Info.Codec != dfs.CodecNone {
			n = 1 + n/3
		}
		req.Info.Chunks = append(req.Info.Chunks, dfs.Chunk{Len: uint32(n)})
	}
	req.Payload = noise(b.n, req.Info.StoredLen())
	p := req.Payload
	for i := range req.Info.Chunks {
		c := &req.Info.Chunks[i]
		c.Sum = dfs.ChunkSum(req.ID, req.Shard, i, p[:c.Len])
		p = p[c.Len:]
	}
	return req
}

// noiseBytes are the bytes that payloads are cut from: making others for each
// would be most of a test's time.
var noiseBytes = content(1<<40, 1<<20)

// noise is the payload of block n, another for each.
func noise(n uint64, size int) []byte {
	p := make([]byte, size)
	copy(p, noiseBytes[n*7919%(512<<10):])
	for i := range min(8, size) {
		p[i] ^= byte(n >> (8 * i))
	}
	return p
}

// world is a store, its disk, and the model that they are compared with.
type world struct {
	rng    *rand.Rand
	hooks  Hooks
	knobs  knobs
	fs     *crashFS
	faults *faults
	store  *Store
	counts tally
	ops    int    // that were run
	pass   uint64 // of reading everything, when the store was last closed
	book   logBook

	slots []int // of the blocks that operations are about

	// mu guards what follows.
	mu      sync.Mutex
	blocks  []modelBlock
	epoch   dfs.Epoch    // the last that SetEpochs returned for
	floors  [5]dfs.Epoch // of tombstones, by PG; not taken back by a crash: it is a permission
	atCrash *world       // the model when the clone was taken; only blocks and epoch
}

// knobs are the options of a store and of its load, drawn at random.
type knobs struct {
	Segment, Checkpoint, MemTable, Cache, Queue int64
	Rate                                        int64 // of compaction
	Age, Scrub                                  time.Duration
	Dead                                        int
	Capacity, Reserve                           uint64
	slots                                       int
	small, big                                  int // sizes of most blocks, and of some
	calm                                        int // of a thousand actions, how many are no crash, no fault, no restart
}

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

func drawKnobs(rng *rand.Rand) knobs {
	k := knobs{
		Segment:    pick[int64](rng, 256<<10, 256<<10, 320<<10, 512<<10),
		MemTable:   pick[int64](rng, 64<<10, 128<<10, 512<<10),
		Cache:      pick[int64](rng, 0, 64<<10, 1<<20),
		Queue:      pick[int64](rng, 64<<10, 256<<10, 4<<20),
		slots:      pick(rng, 8, 40, 120),
		small:      pick(rng, 100, 1500, 6000),
		big:        pick(rng, 20_000, 100_000, 220_000),
		calm:       pick(rng, 980, 990, 996),
		Checkpoint: pick[int64](rng, 1, 64<<10, 512<<10, 4<<20),
		Rate:       pick[int64](rng, 100<<10, 1<<20, 1<<30),
		Age:        pick(rng, time.Millisecond, time.Second, 20*time.Second),
		Dead:       pick(rng, 1, 20, 60, 90),
		Scrub:      pick(rng, time.Minute, time.Hour),
	}
	k.Reserve = uint64(k.Segment) * pick[uint64](rng, 2, 4)
	// Some are full soon.
	k.Capacity = k.Reserve + uint64(k.Segment)*pick[uint64](rng, 5, 12, 200, 200)
	return k
}

func (k *knobs) options(fs vfs.FS) Options {
	return Options{
		FS: fs, Dir: "/disk/store", NewMark: func() uint64 { return testMark }, PID: 4711,
		SegmentSize: k.Segment, CheckpointBytes: k.Checkpoint, MemTableSize: k.MemTable, CacheSize: max(1, k.Cache),
		MaxQueueBytes: k.Queue, Capacity: k.Capacity, ReserveBytes: k.Reserve,
		CompactRate: k.Rate, CompactAge: k.Age, DeadPercent: k.Dead, ScrubPeriod: k.Scrub,
	}
}

func newWorld(seed uint64, hooks Hooks) *world {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := &world{
		rng: rng, hooks: hooks, knobs: drawKnobs(rng), fs: &crashFS{MemFS: vfs.NewCrashableMem()}, faults: &faults{},
		epoch: 1,
	}
	w.renew()
	return w
}

// renew puts new blocks in the place of deleted ones, so that there is always
// something to do; the old ones' tombstones stay and are still compared.
func (w *world) renew() {
	fresh := func() int {
		size := 1 + w.rng.IntN(w.knobs.small)
		if w.rng.IntN(30) == 0 {
			size = 1 + w.rng.IntN(w.knobs.big)
		}
		w.blocks = append(w.blocks, modelBlock{n: uint64(len(w.blocks)), size: size})
		return len(w.blocks) - 1
	}
	for i, at := range w.slots {
		if b := &w.blocks[at]; b.below || b.fate == deleted && w.rng.IntN(2) == 0 {
			w.slots[i] = fresh()
		}
	}
	for len(w.slots) < w.knobs.slots {
		w.slots = append(w.slots, fresh())
	}
}

// open opens the store and compares it with the model.
func (w *world) open() error {
	o := w.knobs.options(errorfs.Wrap(w.fs, w.faults))
	o.Hooks = w.hooks
	o.Logger = slog.New(slog.NewTextHandler(&w.book, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := Open(o)
	if err != nil {
		return err
	}
	w.store = s
	if s.failure() != nil {
		return s.failure() // a fault, if one is about
	}
	if s.DamagedUnnamed() || len(s.Damage()) > 0 && !w.faults.misread.Load() {
		return fmt.Errorf("false alarm: rolled back %v, damage %+v", s.Identity().RolledBack, s.Damage())
	}
	if s.MapEpoch() < w.epoch && w.counts.of("epoch") > 0 {
		return fmt.Errorf("map epoch %d: %d was persisted", s.MapEpoch(), w.epoch)
	}
	w.epoch = max(w.epoch, s.MapEpoch())
	if err := w.compare(); err != nil {
		return err
	}
	stray := modelBlock{n: 1 << 30, size: 10}
	if err := s.Put(context.Background(), stray.put(w.epoch)); dfs.KindOf(err) != dfs.Stale && dfs.KindOf(err) != dfs.NoSpace && !w.excused(err) && !w.hooks.SkipEpochCheck {
		return fmt.Errorf("a put before SetEpochs: %v", err)
	}
	return s.SetEpochs(w.epoch, fences(w.epoch))
}

// compare checks every block, and takes over what operations that were cut
// short have become.
func (w *world) compare() error {
	if err := checkStore(w.store); err != nil {
		return err
	}
	w.mu.Lock() // a crash may be coming, and takes a copy of the blocks
	defer w.mu.Unlock()
	lists := map[string]map[dfs.BlockID]Entry{}
	page := 1 + w.rng.IntN(maxPage)
	for name, list := range map[string]func(pg dfs.PGID, cursor []byte) ([]Entry, []byte, error){
		"inventory": func(pg dfs.PGID, c []byte) ([]Entry, []byte, error) { return w.store.Inventory(pg, c, page) },
		"epochs":    func(pg dfs.PGID, c []byte) ([]Entry, []byte, error) { return w.store.ScanEpochs(pg, 0, 1<<40, c, page) },
	} {
		listed := map[dfs.BlockID]Entry{}
		for pg := range dfs.PGID(4) {
			for cursor := []byte(nil); ; {
				entries, next, err := list(pg+1, cursor)
				if err != nil {
					return err
				}
				for _, e := range entries {
					if _, twice := listed[e.ID]; twice || e.ID.PG != pg+1 || e.ID.Counter >= uint64(len(w.blocks)) {
						return fmt.Errorf("%s: %+v is listed twice, elsewhere, or was never put", name, e)
					}
					listed[e.ID] = e
				}
				if cursor = next; next == nil {
					break
				}
			}
		}
		lists[name] = listed
	}
	for i := range w.blocks {
		if err := w.compareLocked(&w.blocks[i], lists["inventory"], lists["epochs"]); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) compareLocked(b *modelBlock, inventory, epochs map[dfs.BlockID]Entry) error {
	id := blockID(b.n)
	e, listed := inventory[id]
	other, too := epochs[id]
	if b.below && listed != too && (e.Tombstone || other.Tombstone) { // compaction dropped it between the two lists
		e, listed, other, too = Entry{}, false, Entry{}, false
	}
	got := absent
	if listed {
		if got = present; e.Tombstone {
			got = deleted
		}
	}
	if b.below && got != present {
		b.fate = got
	}
	if got != b.fate && b.may&got.bit() == 0 {
		return fmt.Errorf("block %d is %d, want %d (or of %03b)", b.n, got, b.fate, b.may)
	}
	if b.may != 0 {
		b.epoch = 0 // a tombstone that was stamped anew, or not
		b.below = b.below || b.may&absent.bit() != 0
	}
	b.fate, b.may = got, 0
	if listed != too || e.Tombstone != other.Tombstone || e.Epoch != other.Epoch || e.Length != other.Length || e.Stored != other.Stored || e.Shard != other.Shard {
		return fmt.Errorf("block %d: inventory %+v, epochs %+v", b.n, e, other)
	}
	if listed && b.epoch != 0 && b.epoch != e.Epoch {
		return fmt.Errorf("block %d has epoch %d, want %d", b.n, e.Epoch, b.epoch)
	}
	if e.Undecided && e.Trashed || (e.Undecided || e.Trashed) && got != present || e.Trashed && !(b.garbage() && b.settled) ||
		got == present && !b.settled && !e.Undecided || got == present && b.garbage() && !e.Undecided && !e.Trashed ||
		e.Undecided != other.Undecided || e.Trashed != other.Trashed {
		return fmt.Errorf("block %d: listed as %+v and %+v, garbage %v, settled %v", b.n, e, other, b.garbage(), b.settled)
	}
	if b.epoch = e.Epoch; got == present && (int(e.Length) != b.size || e.Shard != b.shard()) {
		return fmt.Errorf("block %d: listed as %+v", b.n, e)
	}
	if got == deleted && b.n%16 != 0 {
		return nil // there are many of them
	}
	return w.get(b, 0, dfs.MaxBlockSize)
}

// get reads a range of a block and checks what comes back.
func (w *world) get(b *modelBlock, offset, length uint32) error {
	r, err := w.store.Get(context.Background(), blockID(b.n), b.shard(), offset, length)
	if err != nil {
		switch kind := dfs.KindOf(err); {
		case kind == dfs.NotExist && !(b.fate == present && b.may == 0):
			return nil
		case (kind == dfs.Corrupt || kind == dfs.Unavailable) && w.faults.excuseReads():
			w.counts.add("read in vain", 1)
			return nil
		}
		return fmt.Errorf("block %d, %d bytes from %d: %w", b.n, length, offset, err)
	}
	defer r.Release()
	want := b.put(0)
	first, end := want.Info.Range(offset, length)
	p := want.Payload
	for i, c := range want.Info.Chunks[:end] {
		if i < first {
			p = p[c.Len:]
		}
	}
	stored := 0
	for _, c := range want.Info.Chunks[first:end] {
		stored += int(c.Len)
	}
	if b.fate != present && b.may&present.bit() == 0 || r.First != first || !bytes.Equal(r.Data, p[:stored]) || (first == 0 && stored > 0 && r.Hint != want.Hint) || r.HeaderLost && w.faults.fired.Load() == 0 {
		return fmt.Errorf("block %d, %d bytes from %d: wrong bytes, or bytes of what is not there", b.n, length, offset)
	}
	return nil
}

// tally counts what happened, by name.
type tally struct {
	// mu guards n.
	mu sync.Mutex
	n  map[string]int
}

func (c *tally) add(what string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[what] += n
}

func (c *tally) of(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[what]
}

// close closes the store; what a failed one says of that is known.
func (w *world) close() error {
	st := w.store.Stats()
	w.counts.add("given up", int(st.SegmentsGiven))
	w.counts.add("scrubbed", int(w.store.Scrub().Pass-w.pass))
	w.pass = w.store.Scrub().Pass
	w.counts.add("compacted", int(st.Compactions))
	w.counts.add("moved", int(st.MovedRecords))
	w.counts.add("tombstones dropped", int(st.TombstonesDropped))
	failed := w.store.failure()
	err := w.store.Close()
	w.store = nil
	if err != nil && (failed != nil || w.faults.fired.Load() > 0) {
		return nil
	}
	if err == nil && !w.faults.misread.Load() { // the directory must be sound
		err = fsckErr(w.fs, "/disk/store")
	}
	return err
}

// logBook keeps the last lines of what happened.
type logBook struct {
	// mu guards lines.
	mu    sync.Mutex
	lines []string
}

const bookLines = 60

func (b *logBook) Write(p []byte) (int, error) {
	b.note(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (b *logBook) note(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lines) >= 2*bookLines {
		b.lines = append(b.lines[:0], b.lines[bookLines:]...)
	}
	b.lines = append(b.lines, line)
}

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.lines[max(0, len(b.lines)-bookLines):], "\n")
}
