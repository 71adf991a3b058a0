package namespace

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// checkTransactions verifies that each share holds its locks, that nobody else
// holds any, and that undecided transactions are those of which the coordinator
// has a share.
func (c *checker) checkTransactions() {
	var locks, txns uint64
	undecided := map[holder]bool{}
	c.each(tagTxn, 17, func(key, value []byte) error {
		txns++
		rec, err := decodeTxn(key, value)
		if err == nil && rec.Committed == 0 {
			undecided[holder{c.st.group, dfs.Version(rec.Begun)}] = true
		}
		return err
	})
	want := map[string]*lockRow{}
	c.each(tagPart, 17, func(key, value []byte) error {
		in, err := decodePart(key, value)
		if err != nil {
			return err
		}
		h := holderOf(in.Txn)
		if h.group == c.st.group && !undecided[h] {
			c.fault("the own share of transaction %v, which is decided", in.Txn)
		}
		delete(undecided, h)
		if dfs.Version(in.Floor) > c.st.version || h.group != c.st.group && dfs.Version(in.Floor) < c.st.trimmed {
			c.fault("a share was prepared at %d: version %d, trimmed to %d", in.Floor, c.st.version, c.st.trimmed)
		}
		c.parts = append(c.parts, in)
		for _, l := range locksOf(in.Share) {
			row := want[string(l.row)]
			if row == nil {
				row = &lockRow{}
				want[string(l.row)] = row
			}
			row.exclusive = row.exclusive || l.exclusive
			row.holders = append(row.holders, h)
		}
		return nil
	})
	for h := range undecided {
		c.fault("transaction %d is undecided, and its coordinator has no share", h.begun)
	}
	c.each(tagLock, 2, func(key, value []byte) error {
		locks++
		l, err := decodeLock(key, value)
		if err != nil {
			return err
		}
		row := want[string(key[1:])]
		if row == nil || row.exclusive != l.exclusive || !slices.Equal(row.holders, l.holders) {
			c.fault("row %x is locked by %+v, want %+v", key[1:], l, row)
		}
		delete(want, string(key[1:]))
		return nil
	})
	for _, row := range slices.Sorted(maps.Keys(want)) {
		c.fault("row %x is not locked by %+v", row, want[row].holders)
	}
	if c.st.locks != locks || c.st.parts != uint64(len(c.parts)) || c.st.txns != txns {
		c.fault("%d locks, %d shares, %d transactions; counted %+v", locks, len(c.parts), txns, *c.st)
	}
}

// undecided reports whether a transaction's coordinator has not decided about it.
func (t tree) undecided(id *wire.TxnID) bool {
	c := t.groups[dfs.GroupID(id.GetGroup())]
	if c == nil {
		return false
	}
	return slices.ContainsFunc(c.parts, func(in *wire.TxnIntent) bool { return proto.Equal(in.Txn, id) })
}
