package engine

import (
	"context"
	"errors"
	"io"
	"slices"
	"syscall"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Inspection is a store's directory that no process uses, opened to be looked
// at. Nothing in the directory is changed: what is read of the index is what
// the next start would serve, by a rehearsal in memory. It is for one caller at
// a time.
type Inspection struct {
	fs     vfs.FS
	dir    string
	lock   io.Closer // nil: the file system is read-only, or there is no lock to take
	survey *survey
	acted  *rehearsal // nil: not acted out yet
}

// Inspect opens the directory of a store. Unavailable: a process uses it, and
// the error says which. NotExist: it holds no store. Unsupported: something in
// it was written by a newer release.
func Inspect(fs vfs.FS, dir string) (*Inspection, error) {
	in := &Inspection{fs: fs, dir: dir}
	if err := in.open(); err != nil {
		_ = in.Close() // the first error counts
		return nil, dfs.Wrap("inspect store", dir, err)
	}
	return in, nil
}

func (in *Inspection) open() (err error) {
	// To take the lock would make its file. Where there is none nobody has it. The
	// lock of a directory that holds no store is not asked about: it is a node's.
	if in.has(lockName) && (in.has(storeName) || in.has(segmentsName)) {
		in.lock, err = lockDir(in.fs, in.dir)
		if err != nil && !errors.Is(err, syscall.EROFS) { // on a read-only file system no store can be in use
			return err
		}
	}
	in.survey, err = look(in.fs, in.dir)
	return err
}

func (in *Inspection) has(name string) bool {
	_, err := in.fs.Stat(in.fs.PathJoin(in.dir, name))
	return err == nil
}

// Close gives the directory up.
func (in *Inspection) Close() error {
	in.acted.close()
	in.acted = nil
	if in.lock == nil {
		return nil
	}
	err := in.lock.Close()
	in.lock = nil
	return err
}

// start acts a start out, once.
func (in *Inspection) start(ctx context.Context) *rehearsal {
	if in.acted == nil {
		in.acted = rehearse(ctx, in.survey)
	}
	return in.acted
}

// Overview is what a directory holds, in figures.
type Overview struct {
	Identity        // Incarnation.Start is 0: this is no start
	Accepted uint64 // the last start that the cluster has on record; 0: none
	MapEpoch dfs.Epoch
	LastSeq  uint64

	Blocks     uint64
	Tombstones uint64
	LiveBytes  uint64 // of records that are needed, tombstones included
	DeadBytes  uint64 // of logs, not needed
	Logical    uint64 // bytes of the blocks before compression
	Stored     uint64 // and after it
	FileBytes  uint64 // of segment files
	IndexBytes uint64 // of the files of the index
	Behind     uint64 // bytes of log that the next start reads into the index
	Forgotten  int    // placement groups of which forgotten records may still lie in segments

	Damage  []Damage
	Unnamed bool // records are lost that nobody can name

	Segments []SegmentOverview // by number

	Problems []Fault // what was found wrong on the way; Verify looks at everything
	Notes    []string
}

// SegmentOverview is a segment in figures.
type SegmentOverview struct {
	Number     uint64
	State      SegmentState
	Moved      bool   // it has copies that compaction made
	Size       int64  // of the file
	End        int64  // past the last batch
	Live       uint64 // bytes of records that are needed
	Dead       uint64 // bytes of the log, not needed
	Puts       uint64 // that are needed
	Tombstones uint64 // that are needed
}

// Overview returns the figures of the directory. An error says why a start
// would be refused.
func (in *Inspection) Overview(ctx context.Context) (*Overview, error) {
	r := in.start(ctx)
	if r.err != nil {
		return nil, dfs.Wrap("inspect store", in.dir, r.err)
	}
	var found Report
	found.add(&in.survey.found)
	r.report(&found)
	s, v := r.store, in.survey
	o := &Overview{
		Identity: Identity{
			Cluster: v.ident.cluster, Node: v.ident.node, Store: v.ident.store, Incarnation: dfs.Incarnation{Mark: v.mark}, RolledBack: v.ident.rolledBack,
		},
		Accepted: v.ident.lineage.Accepted, MapEpoch: v.epoch.epoch, LastSeq: s.durableSeq.Load(), Behind: r.replay,
		Problems: found.Faults, Notes: found.Notes,
	}
	o.Forgotten = s.forgotten()
	o.Damage, o.Unnamed = s.damage.all()
	o.Unnamed = o.Unnamed || s.ident.rolledBack
	var err error
	if o.IndexBytes, err = bytesBelow(in.fs, v.path(indexName)); err != nil {
		return nil, dfs.Wrap("inspect store", in.dir, err)
	}
	return o, dfs.Wrap("inspect store", in.dir, in.segments(ctx, r, o))
}

// segments adds the figures of each segment.
func (in *Inspection) segments(ctx context.Context, r *rehearsal, o *Overview) error {
	use := r.store.index.usageOf()
	for _, f := range in.survey.segments {
		if err := ctx.Err(); err != nil {
			return err
		}
		g := SegmentOverview{Number: f.number, State: f.state, Size: f.size, End: pageSize}
		o.FileBytes += uint64(f.size)
		if f.inUse() {
			u := use[f.number]
			g.Puts, g.Tombstones, g.Live = u.puts, u.tombstones, u.putBytes+u.tombstoneBytes
			g.Moved = f.stream == movedStream
			if t := r.store.segs.get(f.number); t != nil {
				g.End, g.State = t.end.Load(), SegmentActive
				if t.sealed.Load() {
					g.State = SegmentSealed
				}
			}
			g.Dead = uint64(g.End) - min(uint64(g.End), g.Live)
			o.Blocks += u.puts
			o.Tombstones += u.tombstones
			o.LiveBytes += g.Live
			o.Logical += u.logical
			o.Stored += u.payload
			o.DeadBytes += g.Dead
		}
		o.Segments = append(o.Segments, g)
	}
	return nil
}

// bytesBelow is the size of the files in a directory; 0 where there is none.
func bytesBelow(fs vfs.FS, dir string) (n uint64, err error) {
	names, err := fs.List(dir)
	if isNotExist(err) {
		return 0, nil
	}
	for _, name := range names {
		if info, err := fs.Stat(fs.PathJoin(dir, name)); err == nil && !info.IsDir() {
			n += uint64(info.Size())
		}
	}
	return n, err
}

// BlockPlace is a block, or its tombstone, and where its record lies.
type BlockPlace struct {
	Entry
	Damaged bool // a read or scrub has found something of the record damaged
	Codec   dfs.Codec
	Segment uint64
	Offset  int64 // of the record in the segment
	Seq     uint64
}

// Blocks calls fn for each block in the order of (PG, block, shard), of one PG
// when pg is not 0, and for tombstones when these are asked for. It returns what
// fn returned, or why a start would be refused.
func (in *Inspection) Blocks(ctx context.Context, pg dfs.PGID, tombstones bool, fn func(BlockPlace) error) error {
	r := in.start(ctx)
	if r.err != nil {
		return dfs.Wrap("inspect store", in.dir, r.err)
	}
	lower, upper := []byte{blockPrefix}, []byte{blockPrefix + 1}
	if pg != 0 {
		lower, upper = pgBounds(blockPrefix, pg)
	}
	return r.store.index.scan(lower, upper, func(k, v []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		id, shard, err := parseBlockKey(k)
		if err != nil {
			return err
		}
		w, err := decodeRow(v)
		if err != nil || w.kind == kindTombstone && !tombstones {
			return err
		}
		return fn(BlockPlace{Entry: w.entry(id, shard), Damaged: w.flags&rowDamaged != 0, Codec: w.info.Codec, Segment: w.segment, Offset: w.offset, Seq: w.seq})
	})
}

// Problems is what was found wrong in the directory so far, and what is worth
// knowing.
func (in *Inspection) Problems(ctx context.Context) ([]Fault, []string) {
	var found Report
	found.add(&in.survey.found)
	in.start(ctx).report(&found)
	return slices.Clip(found.Faults), found.Notes
}
