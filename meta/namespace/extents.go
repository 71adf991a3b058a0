package namespace

import (
	"bytes"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// span is the range [from, to) of a file.
type span struct{ from, to int64 }

// parseExtents reads the extents of a command for a file: base is added to each
// offset, and none may reach beyond limit.
func parseExtents(in []*wire.Extent, ino dfs.Ino, base, limit int64) ([]extent, error) {
	if len(in) > dfs.MaxExtentsPerCommit {
		return nil, refuse(dfs.TooLarge, "%d extents in one command: at most %d", len(in), dfs.MaxExtentsPerCommit)
	}
	out := make([]extent, len(in))
	end := base
	for i, w := range in {
		id, err := dfs.ParseBlockID(w.GetBlock())
		switch {
		case err != nil:
			return nil, refuse(dfs.Invalid, "extent %d: a block ID of %d bytes", i, len(w.GetBlock()))
		case id.Ino != ino:
			return nil, refuse(dfs.Invalid, "extent %d: block %v belongs to another inode than %v", i, id, ino)
		case id.PG == 0 || id.Session == 0:
			return nil, refuse(dfs.Invalid, "extent %d: block %v names no placement group or no session", i, id)
		case w.Length <= 0 || w.BlockLength > dfs.MaxBlockSize || uint64(w.BlockOffset)+uint64(w.Length) > uint64(w.BlockLength):
			return nil, refuse(dfs.Invalid, "extent %d: %d bytes from %d of a block of %d", i, w.Length, w.BlockOffset, w.BlockLength)
		case w.Offset < 0 || w.Offset > limit-base || w.Length > limit-base-w.Offset:
			return nil, refuse(dfs.Invalid, "extent %d: %d bytes at %d reach beyond %d", i, w.Length, w.Offset, limit-base)
		case base+w.Offset < end:
			return nil, refuse(dfs.Invalid, "extent %d begins at %d, before the end of the one ahead of it", i, w.Offset)
		}
		end = base + w.Offset + w.Length
		out[i] = extent{offset: base + w.Offset, end: end, block: id, blockOffset: w.BlockOffset, blockLength: w.BlockLength}
	}
	return out, nil
}

// checkBlocks refuses extents of blocks that are neither named by the file
// already nor new from this session. Nothing can name a block of a fresh inode.
func (c *change) checkBlocks(extents []extent, fresh bool) error {
	lengths := map[dfs.BlockID]uint32{}
	for _, e := range extents {
		length, ok := lengths[e.block]
		if !ok {
			row, err := c.checkBlock(e.block, fresh)
			if err != nil {
				return err
			}
			if length = row.length; row.count == 0 {
				length = e.blockLength
			}
			lengths[e.block], c.known[e.block] = length, row
		}
		if length != e.blockLength {
			return refuse(dfs.Invalid, "block %v has %d bytes and %d", e.block, length, e.blockLength)
		}
	}
	return nil
}

// checkBlock returns a block's row. Where there is none it refuses a block of
// another session, and one that was released or given up: the stores may have
// deleted it.
func (c *change) checkBlock(id dfs.BlockID, fresh bool) (row blockRow, err error) {
	if !fresh {
		if row, err = readBlock(c.tx, id); err != nil || row.count > 0 {
			return row, err
		}
	}
	if id.Session != c.session {
		return row, refuse(dfs.Invalid, "block %v is not named by its inode and was not written by session %d", id, c.session)
	}
	if err := c.checkMark(id); err != nil {
		return row, err
	}
	if !fresh {
		_, released, err := c.tx.Get(queueKey(id))
		if err != nil {
			return row, err
		}
		if released {
			return row, refuse(dfs.Invalid, "block %v has been released", id)
		}
	}
	return row, nil
}

// write commits extents to a file in place of what their ranges held.
func (c *change) write(op *wire.WriteOp) (outcome, error) {
	n, err := c.take(dfs.Ino(op.Ino))
	if err != nil {
		return outcome{}, err
	}
	if err := checkFile(n); err != nil {
		return outcome{}, err
	}
	base := int64(0)
	if op.Append {
		base = n.size
	}
	extents, err := parseExtents(op.Extents, n.ino, base, dfs.MaxFileSize)
	if err != nil {
		return outcome{}, err
	}
	if len(extents) == 0 {
		return outcome{}, refuse(dfs.Invalid, "a write without extents")
	}
	if err := c.checkBlocks(extents, false); err != nil {
		return outcome{}, err
	}
	spans := joinSpans(extents)
	old, err := c.overlapped(n, spans)
	if err != nil {
		return outcome{}, err
	}

	if err := c.cut(n.ino, old, spans); err != nil {
		return outcome{}, err
	}
	for i := range extents {
		if err := c.putExtent(n.ino, &extents[i]); err != nil {
			return outcome{}, err
		}
		c.count(extents[i].block, extents[i].blockLength, 1)
	}
	n.size = max(n.size, extents[len(extents)-1].end)
	n.mtime = c.now
	c.mark(n)
	return outcome{inode: n}, nil
}

func checkFile(n *inode) error {
	switch n.typ {
	case wire.FileType_DIR:
		return refuse(dfs.IsDir, "inode %v is a directory", n.ino)
	case wire.FileType_FILE:
		return nil
	}
	return refuse(dfs.Invalid, "inode %v is not a file", n.ino)
}

// truncate sets a file's size. What is cut off is gone: a file that grows
// again reads zeros there.
func (c *change) truncate(n *inode, size int64) error {
	if err := checkFile(n); err != nil {
		return err
	}
	if size < 0 || size > dfs.MaxFileSize {
		return refuse(dfs.TooLarge, "a file of %d bytes: want 0 to %d", size, dfs.MaxFileSize)
	}
	if size < n.size {
		spans := []span{{size, n.size}}
		old, err := c.overlapped(n, spans)
		if err != nil {
			return err
		}
		if err := c.cut(n.ino, old, spans); err != nil {
			return err
		}
	}
	n.size, n.mtime = size, c.now
	return nil
}

// joinSpans returns the ranges of extents, those that touch as one.
func joinSpans(extents []extent) []span {
	var out []span
	for _, e := range extents {
		if n := len(out); n > 0 && out[n-1].to == e.offset {
			out[n-1].to = e.end
		} else {
			out = append(out, span{e.offset, e.end})
		}
	}
	return out
}

// overlapped returns, in order and each once, the extents of a file that reach
// into the spans; it refuses more than MaxCut.
func (c *change) overlapped(n *inode, spans []span) ([]extent, error) {
	var out []extent
	for _, s := range spans {
		if s.from >= n.size {
			break // no extent reaches beyond the size
		}
		err := scanExtents(c.tx, n.ino, s.from, func(e extent) (bool, error) {
			if e.offset >= s.to {
				return false, nil
			}
			if len(out) == 0 || out[len(out)-1].end < e.end {
				out = append(out, e)
			}
			return len(out) <= MaxCut, nil
		})
		if err != nil {
			return nil, err
		}
		if len(out) > MaxCut {
			return nil, refuse(dfs.TooLarge, "more than %d extents would be cut at once", MaxCut)
		}
	}
	c.cuts += len(out)
	return out, nil
}

// scanExtents calls fn with the extents of a file that reach beyond from, in
// order.
func scanExtents(r raftgroup.Reader, ino dfs.Ino, from int64, fn func(extent) (bool, error)) error {
	return scan(r, extentKey(ino, from+1), after(key8(tagExtent, uint64(ino))), func(key, value []byte) (bool, error) {
		e, err := decodeExtent(key, bytes.Clone(value))
		if err != nil {
			return false, err
		}
		return fn(e)
	})
}

// cut takes the spans out of the extents old, which all reach into them: each
// goes to history whole, and what is left of it is entered anew. History takes
// over the count of the extent, so a block row changes with the pieces alone.
func (c *change) cut(ino dfs.Ino, old []extent, spans []span) error {
	for i := range old {
		e := &old[i]
		pieces := subtract(e, spans)
		key := extentKey(ino, e.end)
		how := byte(endedReplaced)
		if len(pieces) == 0 || pieces[len(pieces)-1].end != e.end {
			how = endedRemoved
		}
		if err := c.end(key, e.stored, how); err != nil {
			return err
		}
		if how == endedRemoved {
			if err := c.delete(key); err != nil {
				return err
			}
		}
		for j := range pieces {
			if err := c.putExtent(ino, &pieces[j]); err != nil {
				return err
			}
		}
		if len(pieces) > 0 {
			c.count(e.block, e.blockLength, len(pieces))
		}
	}
	return nil
}

// subtract returns what is left of an extent outside the spans, which are in
// order and apart.
func subtract(e *extent, spans []span) []extent {
	var out []extent
	at := e.offset
	keep := func(from, to int64) {
		if from < to {
			out = append(out, extent{
				offset: from, end: to, block: e.block, blockOffset: e.blockOffset + uint32(from-e.offset), blockLength: e.blockLength,
			})
		}
	}
	for _, s := range spans {
		if s.to <= at {
			continue
		}
		if s.from >= e.end {
			break
		}
		keep(at, s.from)
		at = s.to
	}
	keep(at, e.end)
	return out
}

// putExtent writes an extent's row.
func (c *change) putExtent(ino dfs.Ino, e *extent) error {
	e.version = c.version
	return c.set(extentKey(ino, e.end), e.append(make([]byte, 0, 48)))
}
