package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	iofs "io/fs"
	"strings"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Identity is what a data directory says of itself.
type Identity struct {
	Cluster dfs.ClusterID // zero until SetIdentity
	Node    dfs.NodeID    // 0 until SetIdentity
	Store   dfs.StoreID   // 0 until SetIdentity

	Incarnation dfs.Incarnation // of this start

	// RolledBack: the log ends before a sequence number that was once recorded
	// as durable. The directory, or part of it, was put back to an earlier
	// state. It stays set over restarts until AcknowledgeDamage.
	RolledBack bool
}

// identityRecord is the payload of the STORE file.
type identityRecord struct {
	mark       uint64
	rolledBack bool
	cluster    dfs.ClusterID
	node       dfs.NodeID
	store      dfs.StoreID
	lineage    dfs.Lineage
	hole       hole
}

// hole is a gap in the sequence numbers of the log: records that were durable once
// and were lost with the end of the log, at the last time that this was found. The
// cluster is told of it once, and no number is given out again.
type hole struct {
	after uint64 // the last record before it
	last  uint64 // the last one lost; 0: there is no hole
}

// passed is the number after which a log goes on whose last record is this.
func (h hole) passed(last uint64) uint64 {
	if last >= h.after && last < h.last {
		return h.last
	}
	return last
}

// The flags of an identity record.
const (
	identityRolledBack = 1
	identityHole       = 2 // the hole follows
)

// identityLen is the length of a record without hole and offered starts.
const identityLen = 48

const holeLen = 16

func (r *identityRecord) encode() []byte {
	b := binary.BigEndian
	p := b.AppendUint64(make([]byte, 0, identityLen+holeLen+8*len(r.lineage.Offered)), r.mark)
	p = b.AppendUint64(p, r.lineage.Accepted)
	p = append(p, r.cluster[:]...)
	p = b.AppendUint32(p, uint32(r.node))
	p = b.AppendUint32(p, uint32(r.store))
	flags := uint64(0)
	if r.rolledBack {
		flags = identityRolledBack
	}
	if r.hole.last != 0 {
		p = b.AppendUint64(p, flags|identityHole)
		p = b.AppendUint64(p, r.hole.after)
		p = b.AppendUint64(p, r.hole.last)
	} else {
		p = b.AppendUint64(p, flags)
	}
	for _, start := range r.lineage.Offered {
		p = b.AppendUint64(p, start)
	}
	return p
}

func decodeIdentity(p []byte) (identityRecord, error) {
	if len(p) < identityLen || len(p)%8 != 0 || len(p) > identityLen+holeLen+8*dfs.MaxOffered {
		return identityRecord{}, dfs.Errorf(dfs.Corrupt, "read identity", "%d bytes", len(p))
	}
	b := binary.BigEndian
	flags := b.Uint64(p[40:])
	r := identityRecord{
		mark: b.Uint64(p), node: dfs.NodeID(b.Uint32(p[32:])), store: dfs.StoreID(b.Uint32(p[36:])),
		rolledBack: flags&identityRolledBack != 0,
	}
	copy(r.cluster[:], p[16:32])
	r.lineage.Accepted = b.Uint64(p[8:])
	p = p[identityLen:]
	if flags&identityHole != 0 {
		if len(p) < holeLen {
			return identityRecord{}, dfs.Errorf(dfs.Corrupt, "read identity", "%d bytes", identityLen+len(p))
		}
		if r.hole = (hole{b.Uint64(p), b.Uint64(p[8:])}); r.hole.after >= r.hole.last {
			return identityRecord{}, dfs.Errorf(dfs.Corrupt, "read identity", "a hole from %d to %d", r.hole.after, r.hole.last)
		}
		p = p[holeLen:]
	}
	for ; len(p) > 0; p = p[8:] {
		r.lineage.Offered = append(r.lineage.Offered, b.Uint64(p))
	}
	return r, nil
}

// epochRecord is the payload of the EPOCH file.
type epochRecord struct {
	epoch dfs.Epoch
	seq   uint64 // the last durable one when the epoch was persisted
}

func (r *epochRecord) encode() []byte {
	p := binary.BigEndian.AppendUint64(make([]byte, 0, 16), uint64(r.epoch))
	return binary.BigEndian.AppendUint64(p, r.seq)
}

// decodeEpoch reads what encode wrote; false when it is something else.
func decodeEpoch(p []byte) (r epochRecord, ok bool) {
	if len(p) != 16 {
		return epochRecord{}, false
	}
	return epochRecord{dfs.Epoch(binary.BigEndian.Uint64(p)), binary.BigEndian.Uint64(p[8:])}, true
}

// markPlace says of a stream that everything of the segment below the offset,
// and of its earlier segments, is durable.
type markPlace struct {
	segment uint64
	offset  int64
	count   uint64 // number in the stream of the last durable record; in the log its sequence number
}

// markRecord is the payload of the MARK file. It may lag, never lead.
// Invariant: segments above both places' are empty.
type markRecord [streams]markPlace

const markLen = int(streams) * 24

func (r *markRecord) encode() []byte {
	p := make([]byte, 0, markLen)
	for _, m := range r {
		p = binary.BigEndian.AppendUint64(p, m.segment)
		p = binary.BigEndian.AppendUint64(p, uint64(m.offset))
		p = binary.BigEndian.AppendUint64(p, m.count)
	}
	return p
}

func decodeMark(p []byte) (r markRecord, ok bool) {
	if len(p) != markLen {
		return r, false
	}
	b := binary.BigEndian
	for i := range r {
		q := p[i*24:]
		r[i] = markPlace{b.Uint64(q), int64(b.Uint64(q[8:])), b.Uint64(q[16:])}
	}
	return r, true
}

// highest is the highest number of a segment that is not empty.
func (r *markRecord) highest() uint64 { return max(r[logStream].segment, r[movedStream].segment) }

// The names in a data directory.
const (
	lockName      = "LOCK"
	holderName    = "HOLDER" // the PID behind the lock
	storeName     = "STORE"
	newStoreName  = "STORE.new" // while the directory is formatted
	epochName     = "EPOCH"
	markName      = "MARK"
	ledgerName    = "LEDGER"
	segmentsName  = "segments"
	indexName     = "index"
	badIndexName  = "INDEX-DAMAGED" // exists: the next start makes the index anew
	segmentSuffix = ".seg"
)

func segmentName(n uint64) string { return fmt.Sprintf("%016x%s", n, segmentSuffix) }

func parseSegmentName(name string) (uint64, bool) {
	hex, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	var n uint64
	if _, err := fmt.Sscanf(hex, "%016x", &n); err != nil || n == 0 || segmentName(n) != name {
		return 0, false
	}
	return n, true
}

// records are the three small files beside the segments.
type records struct {
	store, epoch, mark *slotFile
}

func (r *records) close() {
	for _, f := range []*slotFile{r.store, r.epoch, r.mark} {
		if f != nil {
			_ = f.close()
		}
	}
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		_ = d.Close()
		return err
	}
	return d.Close()
}

// syncParents makes dir itself durable, and what was made above it, by this
// process or by one that was killed before it could.
func syncParents(fs vfs.FS, dir string) error {
	for up := fs.PathDir(dir); up != dir; dir, up = up, fs.PathDir(up) {
		if err := syncDir(fs, up); errors.Is(err, iofs.ErrPermission) {
			return nil // nor may this process have made anything in it
		} else if err != nil {
			return err
		}
	}
	return nil
}

// format makes an empty directory a store. The STORE file comes last and as a
// whole: a directory without it and without segments is still empty.
func format(o *Options) error {
	fs := o.FS
	names, err := fs.List(o.Dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		switch n {
		case lockName, holderName, epochName, markName, scrubName, segmentsName, newStoreName, "lost+found":
		default:
			return dfs.Errorf(dfs.Invalid, "", "it is not empty (%s) and holds no store; give an empty directory", n)
		}
	}
	if err := syncParents(fs, o.Dir); err != nil {
		return err
	}
	segments := fs.PathJoin(o.Dir, segmentsName)
	if err := fs.MkdirAll(segments, 0o755); err != nil {
		return err
	}
	if old, err := fs.List(segments); err != nil {
		return err
	} else if len(old) > 0 {
		return dfs.Errorf(dfs.Corrupt, "", "it has %d segments and no %s file: it was a store; restore the file or move the directory away", len(old), storeName)
	}
	mark, err := o.newMark()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		magic   uint32
		payload []byte
	}{
		{epochName, epochMagic, (&epochRecord{}).encode()},
		{markName, markMagic, (&markRecord{}).encode()},
		{newStoreName, storeMagic, (&identityRecord{mark: mark}).encode()},
	} {
		s, err := createSlots(fs, fs.PathJoin(o.Dir, f.name), f.magic, f.payload)
		if err != nil {
			return err
		}
		if err := s.close(); err != nil {
			return err
		}
		if err := syncDir(fs, o.Dir); err != nil {
			return err
		}
	}
	if err := fs.Rename(fs.PathJoin(o.Dir, newStoreName), fs.PathJoin(o.Dir, storeName)); err != nil {
		return err
	}
	return syncDir(fs, o.Dir)
}
