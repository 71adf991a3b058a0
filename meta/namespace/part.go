package namespace

import (
	"math"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// Limits of a transaction.
const (
	// MaxTxnGroups is how many groups take part: a rename has two directories, what
	// moves, what it takes the place of, and the tree lock.
	MaxTxnGroups = 5

	// MaxSteps is how many things a share does.
	MaxSteps = 8

	// MaxShare bounds the encoded share of a participant (bytes): names are short.
	MaxShare = 16 << 10

	// MaxParts is how many shares may be prepared in a group at a time, as
	// coordinator or participant: it bounds the locks and what a trim looks at.
	MaxParts = 1024
)

// leavePart locks what a share holds and keeps the share until the decision.
func (c *change) leavePart(in *wire.TxnIntent) error {
	if c.st.parts >= MaxParts {
		return refuse(dfs.Busy, "%d operations over several groups are under way in group %v", MaxParts, c.st.group)
	}
	rows := c.locksFor(in)
	for _, h := range rows {
		if err := c.room(h); err != nil {
			return err
		}
	}
	for _, h := range rows {
		if err := c.lock(h); err != nil {
			return err
		}
	}
	value, err := protoRow(in)
	if err != nil {
		return err
	}
	c.st.parts++
	return c.set(partKey(holderOf(in.Txn)), value)
}

// locksFor lists what a share of this group locks.
func (c *change) locksFor(in *wire.TxnIntent) []held {
	if c.opts.SkipShareLocks && dfs.GroupID(in.Txn.Group) != c.st.group {
		return nil
	}
	return locksOf(in.Share)
}

// endPart drops a share and its locks.
func (c *change) endPart(in *wire.TxnIntent) error {
	for _, h := range c.locksFor(in) {
		if err := c.unlock(h.row); err != nil {
			return err
		}
	}
	c.st.parts--
	return c.delete(partKey(holderOf(in.Txn)))
}

// prepare checks the share of another group's transaction, locks what it touches,
// and answers with its floor. From then on only the coordinator's decision ends it.
func (c *change) prepare(op *wire.TxnPrepareOp) (outcome, error) {
	if err := c.checkTxn(op.GetTxn()); err != nil {
		return outcome{}, err
	}
	id := op.Txn
	switch {
	case dfs.GroupID(id.Group) == c.st.group:
		return outcome{}, refuse(dfs.Invalid, "the coordinator prepares its own share when the transaction begins")
	case c.st.unfenced:
		return outcome{}, refuse(dfs.Unavailable, "group %v was recovered and waits to be told which sessions have ended", c.st.group)
	case proto.Size(op.Share) > MaxShare:
		return outcome{}, refuse(dfs.TooLarge, "a share of %d bytes: at most %d", proto.Size(op.Share), MaxShare)
	}
	if err := checkShare(op.Share, false); err != nil {
		return outcome{}, err
	}
	in, err := readPart(c.tx, holderOf(id))
	if err != nil {
		return outcome{}, err
	}
	if in != nil {
		return outcome{attr: in.Attr, version: dfs.Version(in.Floor)}, nil
	}
	fence, err := readFence(c.tx)
	if err != nil {
		return outcome{}, err
	}
	if fence.fenced(dfs.SessionID(id.Session)) {
		return outcome{}, refuse(dfs.Fenced, "session %d has expired", id.Session)
	}
	c.session, c.cred, c.txn = dfs.SessionID(id.Session), op.GetCred(), holderOf(id)
	p, err := c.evaluate(op.Share)
	if err != nil {
		return outcome{}, err
	}
	in = &wire.TxnIntent{Txn: id, Floor: uint64(c.version), Cred: op.Cred, Share: op.Share, Attr: p.out.attr}
	return outcome{attr: in.Attr}, c.leavePart(in)
}

// finishPart ends a share as the coordinator has decided. It is idempotent: a share
// that is gone is a success, and so is one that was prepared anew by a request
// which was late.
func (c *change) finishPart(op *wire.TxnFinishOp) error {
	if err := c.checkTxn(op.GetTxn()); err != nil {
		return err
	}
	if dfs.GroupID(op.Txn.Group) == c.st.group {
		return refuse(dfs.Invalid, "the coordinator's own share ends with the decision")
	}
	in, err := readPart(c.tx, holderOf(op.Txn))
	if err != nil || in == nil || in.Floor != op.Floor && !c.opts.TakeLateShares {
		return err
	}
	c.txn = holderOf(op.Txn)
	if !op.Commit {
		return c.endPart(in)
	}
	if op.Version < in.Floor || dfs.Version(op.Version) > maxVersion {
		return refuse(dfs.Invalid, "a commit at version %d of a share that was prepared at %d", op.Version, in.Floor)
	}
	c.session, c.cred = dfs.SessionID(in.Txn.Session), in.Cred
	c.stamp(dfs.Version(op.Version))
	p, err := c.evaluate(in.Share)
	if err == nil {
		_, err = c.carryOutShare(p)
	}
	if err != nil {
		return broken("a share that was prepared at %d cannot be carried out: %v", in.Floor, err)
	}
	return c.endPart(in)
}

// Part is a group's share of a transaction that another group coordinates.
type Part struct {
	Txn   *wire.TxnID
	Floor dfs.Version // of the entry that prepared it
}

// Parts returns up to limit shares of transactions of other groups, in the order
// of their coordinators and beginnings, past one; nil begins.
func Parts(r raftgroup.Reader, past *wire.TxnID, limit int) (out []Part, err error) {
	st, err := readState(r)
	if err != nil || st == nil || st.parts == 0 {
		return nil, err
	}
	err = scanParts(r, st.group, holderOf(past), func(in *wire.TxnIntent) bool {
		out = append(out, Part{in.Txn, dfs.Version(in.Floor)})
		return len(out) < limit
	})
	return out, err
}

// HasShare reports whether a group holds a share of a transaction, its own ones
// among them.
func HasShare(r raftgroup.Reader, id *wire.TxnID) (bool, error) {
	_, ok, err := r.Get(partKey(holderOf(id)))
	return ok, err
}

// ShareFloor returns the version of the entry that prepared a share, 0 when there is none.
func ShareFloor(r raftgroup.Reader, id *wire.TxnID) (dfs.Version, error) {
	in, err := readPart(r, holderOf(id))
	return dfs.Version(in.GetFloor()), err
}

// Underway returns how many transactions a group coordinates that are not dropped,
// and how many shares lie in it.
func Underway(r raftgroup.Reader) (txns, shares uint64, err error) {
	st, err := readState(r)
	if st == nil {
		return 0, 0, err
	}
	return st.txns, st.parts, err
}

// scanParts calls fn with a group's shares of transactions of other groups, past
// one, until it returns false. The own ones may be long.
func scanParts(r raftgroup.Reader, own dfs.GroupID, past holder, fn func(*wire.TxnIntent) bool) error {
	return scan(r, append(partKey(past), 0), []byte{tagPart + 1}, func(key, value []byte) (bool, error) {
		if len(key) == 17 && keyGroup(key) == own {
			return true, nil
		}
		in, err := decodePart(key, value)
		if err != nil {
			return false, err
		}
		return fn(in), nil
	})
}

// settled returns the version before which nothing can change any more, by a
// transaction that is under way: no share that another group may commit was
// prepared earlier. The own ones are committed above every version so far.
func settled(r raftgroup.Reader, st *state) (dfs.Version, error) {
	v := dfs.Version(math.MaxUint64)
	if st.parts == 0 {
		return v, nil
	}
	err := scanParts(r, st.group, holder{}, func(in *wire.TxnIntent) bool {
		v = min(v, dfs.Version(in.Floor))
		return true
	})
	return v, err
}

// protoRow is the value of a row that holds a message.
func protoRow(m proto.Message) ([]byte, error) {
	return deterministic.MarshalAppend([]byte{rowFormat}, m)
}

// decodeProto reads the value of a row that holds a message.
func decodeProto(key, value []byte, m proto.Message) error {
	if len(value) == 0 || value[0] != rowFormat || proto.Unmarshal(value[1:], m) != nil || len(m.ProtoReflect().GetUnknown()) > 0 {
		return damaged(key, "malformed value")
	}
	return nil
}

// readPart returns this group's share of a transaction, nil when it has none.
func readPart(r raftgroup.Reader, h holder) (*wire.TxnIntent, error) {
	key := partKey(h)
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return nil, err
	}
	return decodePart(key, v)
}

func decodePart(key, value []byte) (*wire.TxnIntent, error) {
	in := &wire.TxnIntent{}
	if err := decodeProto(key, value, in); err != nil {
		return nil, err
	}
	if string(partKey(holderOf(in.Txn))) != string(key) {
		return nil, damaged(key, "the share of another transaction")
	}
	return in, nil
}
