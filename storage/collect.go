package storage

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

const (
	// DefaultUndecidedAge is longer than a writer usually takes from a block to the
	// commit that names it: asked then, nearly every block has an answer.
	DefaultUndecidedAge = 2 * time.Minute

	// DefaultTrashKeep gives an operator a day to find out that garbage is none.
	DefaultTrashKeep = 24 * time.Hour

	// questionSize bounds the blocks of one question, as the meta nodes do, and
	// those that a store looks at in one step.
	questionSize = 1024

	// questionPause is between two steps: it leaves the index to others, and a
	// million blocks are still asked about in half a minute.
	questionPause = 20 * time.Millisecond

	// questionTime bounds one question, the search for the group's leader included.
	questionTime = 2 * metas.AttemptTimeout

	// collectCheck is how often a store looks whether there is something to do, and
	// urgentPause the least time between two rounds while space is short.
	collectCheck = 5 * time.Second
	urgentPause  = 10 * time.Second

	// shortOfSpace: with less than 1/shortOfSpace of a store free, garbage is looked
	// for and deleted at once.
	shortOfSpace = 20

	// collectBackoff is the longest pause after a round with unanswered questions.
	collectBackoff = time.Minute
)

// collect finds out, until the service ends, what has become of the blocks that
// clients have stored here. Nothing is concluded from the map, nor from silence:
// the group that owns a block's inode says what the block is, and a block that
// it says nothing of stays.
//
//	undecided ──older than UndecidedAge──▶ asked about ── pending ──▶ in the next round
//	                                          │  └── referenced ───▶ decided
//	                                          └───── garbage ──────▶ trash ──TrashKeep──▶ deleted
func (st *store) collect() {
	c := collector{st: st}
	c.plan()
	for st.s.sleep(collectCheck) {
		if st.failed() {
			continue
		}
		c.raiseFloors()
		urgent := st.isShort() && time.Since(c.ended) >= urgentPause
		if !urgent && time.Now().Before(c.next) {
			continue
		}
		err := cmp.Or(c.ask(urgent), c.empty(urgent))
		if st.s.ctx.Err() != nil {
			return
		}
		if err == nil {
			c.failures = 0
		} else if c.failures++; c.failures == 1 {
			st.log().Info("garbage is not collected in full", "cause", err)
		}
		c.plan()
	}
}

// isShort reports whether the store's space is about to end.
func (st *store) isShort() bool {
	x := st.sample.Load()
	return x != nil && (x.State == engine.StateReadOnly || x.Available < x.Stats.Capacity/shortOfSpace)
}

// collector is the state of one store's rounds. It belongs to one goroutine.
type collector struct {
	st       *store
	ended    time.Time // of the last round
	next     time.Time // not before then, unless space is short
	failures int       // of rounds, one after the other
	floors   dfs.Epoch // of the map whose tombstone floors the engine has
}

// raiseFloors tells the engine which tombstones nobody needs any more, by the map
// that the store follows. It is done here and not where the map is learned, since
// nothing waits for it, and a full index takes none for a while.
func (c *collector) raiseFloors() {
	m, _ := c.st.applied.get()
	if m == nil || m.Epoch == c.floors {
		return
	}
	for _, pg := range m.PGs {
		if err := c.st.SetTombstoneFloor(pg.ID, pg.TombstoneFloor()); err != nil {
			if c.st.s.ctx.Err() == nil && !c.st.failed() {
				c.st.log().Info("tombstones are kept for longer", "pg", pg.ID, "cause", err)
			}
			return // the next look tries again
		}
	}
	c.floors = m.Epoch
}

// plan sets the time of the next round: stores do not all ask at once.
func (c *collector) plan() {
	s := c.st.s
	c.ended = time.Now()
	pause := time.Duration((0.75 + s.opts.Random()/2) * float64(s.opts.UndecidedAge))
	if c.failures > 0 {
		pause = min(pause, collectBackoff/2+s.backoff(c.failures, collectBackoff/2))
	}
	c.next = c.ended.Add(pause)
}

// ask goes once through the undecided blocks. A group that does not answer is left
// out for the rest of the round; the error is that of the first one.
func (c *collector) ask(urgent bool) (first error) {
	st, s := c.st, c.st.s
	silent := map[dfs.GroupID]bool{}
	var cursor []byte
	for {
		page, next, err := st.Undecided(cursor, questionSize)
		if err != nil {
			return err
		}
		questions := map[dfs.GroupID][]engine.Key{}
		now := time.Now()
		for i := range page {
			e := &page[i]
			// A block from the future is one of a clock that was put right since.
			young := now.Sub(e.Since).Abs() < s.opts.UndecidedAge
			if g := e.ID.Ino.Group(); !silent[g] && (urgent || !young) {
				questions[g] = append(questions[g], e.Key())
			}
		}
		for _, g := range slices.Sorted(maps.Keys(questions)) {
			if err := c.question(g, questions[g]); err != nil {
				silent[g] = true
				first = cmp.Or(first, dfs.Wrap("ask for garbage", g.String(), err))
			}
		}
		if cursor = next; next == nil || !s.sleep(questionPause) {
			return first
		}
	}
}

// question asks a group about blocks of its inodes, and does as it says.
func (c *collector) question(g dfs.GroupID, keys []engine.Key) error {
	st, s := c.st, c.st.s
	req := &wire.GarbageRequest{Group: uint32(g)}
	for _, k := range keys {
		req.Blocks = append(req.Blocks, k.ID.Bytes())
	}
	ctx, cancel := context.WithTimeout(s.ctx, questionTime)
	defer cancel()
	var verdicts []byte
	err := s.opts.Metas.Call(ctx, g, true, func(ctx context.Context, m wire.DRPCMetaClient) error {
		reply, err := m.Garbage(ctx, req)
		verdicts = reply.GetVerdicts()
		return err
	})
	if err == nil && len(verdicts) != len(keys) {
		err = dfs.Errorf(dfs.Invalid, "ask for garbage", "%d answers for %d blocks", len(verdicts), len(keys))
	}
	if err != nil {
		return err
	}
	var referenced, garbage []engine.Key
	for i, v := range verdicts {
		switch dfs.Verdict(v) {
		case dfs.Referenced:
			referenced = append(referenced, keys[i])
		case dfs.Garbage:
			garbage = append(garbage, keys[i])
		}
	}
	if len(garbage) > 0 {
		st.log().Info("blocks that no file will ever name go to the trash", "group", uint16(g), "blocks", len(garbage), "first", garbage[0].ID)
		s.count.garbage.Add(uint64(len(garbage)))
	}
	return errors.Join(st.Decide(referenced), st.Trash(garbage))
}

// empty deletes what has been in the trash for long enough, or all of it.
func (c *collector) empty(urgent bool) error {
	st, s := c.st, c.st.s
	before := time.Now().Add(-s.opts.TrashKeep)
	if urgent {
		before = time.Now().AddDate(1, 0, 0)
	}
	n, err := st.EmptyTrash(s.ctx, before)
	if n > 0 {
		st.log().Info("the trash is emptied", "blocks", n, "short of space", urgent)
		s.count.emptied.Add(uint64(n))
	}
	return err
}

// rescue takes a block out of the trash that somebody reads: its name came from
// metadata, which should not have it. The group is asked anew.
func (st *store) rescue(id dfs.BlockID) {
	st.s.count.rescued.Add(1)
	st.log().Error("a block is read that no file names: it leaves the trash", "pg", id.PG, "block", id)
	if err := st.Restore([]engine.Key{{ID: id}}); err != nil {
		st.log().Error("a block cannot be taken out of the trash", "pg", id.PG, "block", id, "cause", err)
	}
}
