package engine

import (
	"errors"
	"fmt"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2"
)

// knownRow reports whether fsck knows rows of this kind.
func knownRow(prefix byte) bool {
	switch prefix {
	case blockPrefix, epochPrefix, segmentPrefix, damagePrefix, floorPrefix, boundPrefix, undecidedPrefix, trashPrefix, setCountsKey[0], metaKey[0]:
		return true
	}
	return false
}

// indexFault is a fault of a row.
func indexFault(id dfs.BlockID, shard uint8, format string, args ...any) Fault {
	return Fault{File: indexName, Named: true, ID: id, Shard: shard, Text: fmt.Sprintf(format, args...)}
}

// checkIndex compares the rows of the index with each other.
func (c *fsck) checkIndex() error {
	use, epochs, strange := map[uint64]usage{}, uint64(0), 0
	err := c.ix.scan(nil, nil, func(k, v []byte) error {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		switch {
		case k[0] == blockPrefix:
			return c.blockRow(k, v, use)
		case k[0] == epochPrefix:
			epochs++
		case k[0] == damagePrefix:
			c.damageRow(k, v)
		case k[0] == undecidedPrefix, k[0] == trashPrefix:
			c.setRow(k, v)
		case !knownRow(k[0]):
			strange++
		}
		return nil
	})
	if err != nil {
		return err
	}
	if strange > 0 {
		c.report.note("%d rows of the index are of kinds that this release does not know", strange)
	}
	if epochs != c.report.Rows {
		if err := c.strayEpochs(); err != nil {
			return err
		}
	}
	c.counters(use)
	c.setCounters()
	return nil
}

// blockRow checks a block's row and the epoch row that belongs to it.
func (c *fsck) blockRow(k, v []byte, use map[uint64]usage) error {
	c.report.Rows++
	id, shard, err := parseBlockKey(k)
	if err != nil {
		c.report.fault(Fault{File: indexName, Text: err.Error()})
		return nil
	}
	w, err := decodeRow(v)
	if err != nil || w.kind != kindPut && w.kind != kindTombstone {
		c.report.fault(indexFault(id, shard, "its row is damaged (%v)", err))
		return nil
	}
	if c.bounds.cover(id.PG, w.seq) && !c.open {
		c.report.fault(indexFault(id, shard, "it was forgotten with its placement group, and the index has it"))
	}
	u := use[w.segment]
	u.add(w, 1)
	use[w.segment] = u
	if err := c.stateRows(id, shard, w); err != nil {
		return err
	}
	if w.kind == kindPut {
		c.report.Blocks++
	} else {
		c.report.Tombstones++
	}
	if w.flags&rowLost == 0 {
		c.rows[w.segment]++
	} else {
		c.report.fault(Fault{
			File: c.v.segmentFile(w.segment), Segment: w.segment, Offset: w.offset, Length: w.recordLen(), Named: true, ID: id, Shard: shard, Known: true,
			Text: "its record is damaged, as the index knows",
		})
	}
	have, closer, err := c.ix.db.Get(epochKey(id, shard, w.epoch))
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		c.report.fault(indexFault(id, shard, "its epoch row (%d) is missing", w.epoch))
		return nil
	case err != nil:
		return err
	}
	if string(have) != string(w.encodeEpoch()) {
		c.report.fault(indexFault(id, shard, "its epoch row says something else than its row"))
	}
	return closer.Close()
}

// damageRow takes note of damage without a name; named damage has a row that
// says so.
func (c *fsck) damageRow(k, v []byte) {
	d, acked, err := decodeDamage(k, v)
	switch {
	case err != nil:
		c.report.fault(Fault{File: indexName, Text: err.Error()})
	case d.Named:
	default:
		c.noted[spot{d.Segment, d.Offset}] = notedDamage{d, acked}
	}
}

// known reports damage that the store has found itself: wrong as long as the
// cluster has not been told, for then it fetches what is missing.
func (c *fsck) known(d notedDamage, f Fault) {
	if d.acked {
		c.report.note("%s: %d bytes at %d are damaged (%s), and the cluster has been told", f.File, f.Length, f.Offset, f.Text)
		return
	}
	f.Known = true
	c.report.fault(f)
}

// strayEpochs finds epoch rows without a row.
func (c *fsck) strayEpochs() error {
	return c.ix.scan([]byte{epochPrefix}, []byte{epochPrefix + 1}, func(k, _ []byte) error {
		id, shard, epoch, err := parseEpochKey(k)
		if err != nil {
			c.report.fault(Fault{File: indexName, Text: err.Error()})
			return nil
		}
		w, err := c.ix.get(blockKey(id, shard))
		if err != nil {
			return err
		}
		if w == nil || w.epoch != epoch {
			c.report.fault(indexFault(id, shard, "an epoch row (%d) belongs to no row", epoch))
		}
		return nil
	})
}

// counters compares the counters of segments with the rows that they count.
func (c *fsck) counters(use map[uint64]usage) {
	have := c.ix.usageOf()
	for n, u := range use {
		if have[n] != u {
			c.report.fault(Fault{File: indexName, Text: fmt.Sprintf("the counters of segment %d are %s, its rows are %s", n, have[n], u)})
		}
	}
	for n, u := range have {
		if _, ok := use[n]; !ok {
			c.report.fault(Fault{File: indexName, Text: fmt.Sprintf("the counters of segment %d are %s, and no row names it", n, u)})
		}
	}
}

// findMissing names the rows that no record belongs to.
func (c *fsck) findMissing() error {
	suspect := map[uint64]*segmentScan{}
	for n, rows := range c.rows {
		if c.matched[n] == rows {
			continue
		}
		suspect[n] = nil
		f := c.v.segment(n)
		if f == nil {
			c.report.fault(Fault{File: c.v.segmentFile(n), Segment: n, Text: fmt.Sprintf("the segment is missing, and %d rows of the index name it", rows)})
			continue
		}
		file, err := c.v.fs.Open(f.path)
		if err != nil {
			return err
		}
		defer file.Close()
		suspect[n] = &segmentScan{file: file, mark: c.v.mark, segment: n, size: f.size, limit: f.size}
	}
	var named [][2]uint64
	for n := range c.rows {
		named = append(named, [2]uint64{n, n})
	}
	for _, x := range c.missing.without(joined(named)) {
		f := Fault{File: c.v.segmentFile(x[0]), Segment: x[0], Text: "the segment is missing"}
		if x[1] > x[0] {
			f.Text = fmt.Sprintf("the segments from here to %s are missing", segmentName(x[1]))
		}
		c.report.fault(f)
	}
	for key, d := range c.noted {
		c.known(d, Fault{File: c.v.segmentFile(key.segment), Segment: key.segment, Offset: key.offset, Length: d.Length, Text: d.Reason, gap: true})
	}
	if len(suspect) == 0 {
		return nil
	}
	return c.ix.scan([]byte{blockPrefix}, []byte{blockPrefix + 1}, func(k, v []byte) error {
		id, shard, err := parseBlockKey(k)
		if err != nil {
			return nil // reported already
		}
		w, err := decodeRow(v)
		if err != nil || w.flags&rowLost != 0 {
			return nil
		}
		sc, ok := suspect[w.segment]
		if !ok {
			return nil
		}
		f := Fault{File: c.v.segmentFile(w.segment), Segment: w.segment, Offset: w.offset, Length: w.recordLen(), Named: true, ID: id, Shard: shard, Known: w.flags&rowDamaged != 0}
		if sc == nil {
			f.Text = "its segment is missing"
			c.report.fault(f)
			return nil
		}
		r, ok, err := sc.recordAt(w.offset, sc.size)
		switch {
		case err != nil:
			return err
		case !ok:
			f.Text = "no sound record is where the index says"
		case r.id != id || r.shard != shard:
			f.Text = fmt.Sprintf("the index says that it is where a record of block %s is", r.id)
		default:
			return nil
		}
		c.report.fault(f)
		return nil
	})
}

func (u usage) String() string {
	return fmt.Sprintf("%d blocks (%d bytes, of %d stored %d) and %d tombstones (%d bytes)", u.puts, u.putBytes, u.logical, u.payload, u.tombstones, u.tombstoneBytes)
}

// differs says in what a row is not the one that its record makes; "" when it is
// that one.
func (w *row) differs(from *row) string {
	for _, f := range []struct {
		name string
		a, b uint64
	}{
		{"kind", uint64(w.kind), uint64(from.kind)}, {"sequence number", w.seq, from.seq}, {"epoch", uint64(w.epoch), uint64(from.epoch)},
		{"length", uint64(w.info.Length), uint64(from.info.Length)}, {"stored bytes", uint64(w.stored), uint64(from.stored)},
		{"codec", uint64(w.info.Codec), uint64(from.info.Codec)}, {"digest", uint64(w.digest), uint64(from.digest)},
		{"chunks", uint64(infoDigest(&w.info)), uint64(infoDigest(&from.info))},
	} {
		if f.a != f.b {
			return fmt.Sprintf("%s %d, the record has %d", f.name, f.a, f.b)
		}
	}
	return ""
}
