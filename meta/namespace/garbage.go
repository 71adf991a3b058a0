package namespace

import (
	"encoding/binary"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// A block is stored before a commit names it. A store that holds one asks the
// group of its inode what has become of it, and the group may call it garbage
// only when nothing names it and nothing ever will:
//
//	named by a block row ──────────────────────────▶ referenced
//	in the delete queue ───────────────────────────▶ pending
//	its session is fenced here ────────────────────▶ garbage
//	its counter is below its session's mark here ──▶ garbage
//	else ──────────────────────────────────────────▶ pending
//
// Extents and history are counted in the block row. Fence and mark refuse every
// later commit that would name the block, that of a transaction too, which checks
// its share once more. They are rows of the same state as the block row that is
// missing: so an answer from a state that the group has committed holds for ever.

// Verdicts says what has become of blocks of this group's inodes.
func Verdicts(r raftgroup.Reader, ids []dfs.BlockID, opts Options) ([]dfs.Verdict, error) {
	fence, err := readFence(r)
	if err != nil {
		return nil, err
	}
	marks := map[dfs.SessionID]uint64{}
	out := make([]dfs.Verdict, len(ids))
	for i, id := range ids {
		row, err := readBlock(r, id)
		if err != nil {
			return nil, err
		}
		if row.count > 0 {
			out[i] = dfs.Referenced
			continue
		}
		_, released, err := r.Get(queueKey(id))
		if err != nil {
			return nil, err
		}
		if released {
			continue
		}
		mark, ok := marks[id.Session]
		if !ok {
			if mark, err = readMark(r, id.Session); err != nil {
				return nil, err
			}
			marks[id.Session] = mark
		}
		if fence.fenced(id.Session) || id.Counter < mark || opts.GuessGarbage {
			out[i] = dfs.Garbage
		}
	}
	return out, nil
}

// readMark returns a session's low-water mark, 0 when none is known: every block
// of the session whose counter is below it has been committed or never will be.
func readMark(r raftgroup.Reader, s dfs.SessionID) (uint64, error) {
	key := markKey(s)
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return 0, err
	}
	d := decode(v)
	mark := d.u64()
	return mark, d.done(key)
}

// marks raises the low-water marks of sessions. A mark never falls, and a fenced
// session has none: the fence says more.
func (c *change) marks(op *wire.MarksOp) error {
	if len(op.GetMarks()) > MaxMarks {
		return refuse(dfs.TooLarge, "marks of %d sessions: at most %d", len(op.GetMarks()), MaxMarks)
	}
	for _, m := range op.GetMarks() {
		if s := dfs.SessionID(m.GetSession()); s == 0 || s > dfs.MaxSessionID || m.Below > dfs.MaxBlockCounter+1 {
			return refuse(dfs.Invalid, "mark %d of session %d", m.GetBelow(), s)
		}
	}
	fence, err := readFence(c.tx)
	if err != nil {
		return err
	}
	for _, m := range op.GetMarks() {
		s := dfs.SessionID(m.GetSession())
		if fence.fenced(s) {
			continue
		}
		have, err := readMark(c.tx, s)
		if err != nil {
			return err
		}
		if m.Below <= have {
			continue
		}
		if err := c.set(markKey(s), binary.BigEndian.AppendUint64([]byte{rowFormat}, m.Below)); err != nil {
			return err
		}
	}
	return nil
}

// checkMark refuses a block that is below its session's low-water mark: a store
// may have been told that it is garbage.
func (c *change) checkMark(id dfs.BlockID) error {
	if c.lowest == nil {
		mark, err := readMark(c.tx, c.session)
		if err != nil {
			return err
		}
		c.lowest = &mark
	}
	if id.Counter < *c.lowest {
		return refuse(dfs.Invalid, "block %v was given up: session %d has said so of every one below %d", id, c.session, *c.lowest)
	}
	return nil
}
