package engine

import (
	"errors"
	"fmt"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2"
)

// setRow counts a row of an undecided block, or of one in the trash.
func (c *fsck) setRow(k, v []byte) {
	var err error
	if k[0] == trashPrefix {
		c.setRows.trash++
		_, err = parseTrash(k, v)
	} else {
		c.setRows.undecided++
		_, err = parseUndecided(k, v)
	}
	if err != nil {
		c.report.fault(Fault{File: indexName, Text: err.Error()})
	}
}

// stateRows checks that a block has the row that its state asks for. That no other
// is there shows when they are counted.
func (c *fsck) stateRows(id dfs.BlockID, shard uint8, w *row) error {
	c.sets.count(w, 1)
	var key []byte
	switch states := w.flags & (rowUndecided | rowTrashed); {
	case states == rowUndecided|rowTrashed, states != 0 && w.kind != kindPut, (w.trashed != 0) != (states == rowTrashed):
		c.report.fault(indexFault(id, shard, "its row has the flags %d and says that it is in the trash since %d", w.flags, w.trashed))
		return nil
	case states == rowUndecided:
		key = undecidedKey(id, shard)
	case states == rowTrashed:
		key = trashKey(w.trashed, id, shard)
	default:
		return nil
	}
	_, closer, err := c.ix.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		c.report.fault(indexFault(id, shard, "it is undecided or in the trash, and the row that says so (%c) is missing", key[0]))
		return nil
	}
	if err != nil {
		return err
	}
	return closer.Close()
}

// setCounters compares the counters of undecided blocks and of the trash with the
// states of blocks, and with the rows that these have.
func (c *fsck) setCounters() {
	if have := c.ix.setsNow(); have != c.sets {
		c.report.fault(Fault{File: indexName, Text: fmt.Sprintf("the counters of undecided blocks and of the trash are %s, the rows of blocks are %s", have, c.sets)})
	}
	if c.setRows.undecided != c.sets.undecided || c.setRows.trash != c.sets.trash {
		c.report.fault(Fault{File: indexName, Text: fmt.Sprintf("%d blocks are listed as undecided and %d as in the trash, the rows of blocks are %s", c.setRows.undecided, c.setRows.trash, c.sets)})
	}
}

func (n setCounts) String() string {
	return fmt.Sprintf("%d undecided and %d (%d bytes) in the trash", n.undecided, n.trash, n.trashBytes)
}
