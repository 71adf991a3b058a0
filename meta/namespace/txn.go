package namespace

import (
	"fmt"
	"math"
	"slices"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// An operation that changes rows of several groups is a transaction. One group,
// that of the (first) directory which the client names, coordinates it:
//
//	      coordinator                     participants
//	begin    own share locked, record
//	prepare                                  share checked and locked, floor answered
//	commit   own share carried out, record
//	         decided, reply remembered
//	finish                                   share carried out at the commit's version
//	drop     record removed
//
//	(none) ──begin──▶ undecided ──commit──▶ committed ──drop──▶ (none)
//	                      └──────abort, or commit too late──────▶ (none)
//
// The commit is one entry of one log, and it is the moment at which the operation
// takes place: whoever meets a lock elsewhere asks the coordinator. No record
// means aborted, so an attempt whose coordinator forgot it harms nobody.
// A record is dropped only once no participant has the share any more, and a
// share that a late request prepared once more has another floor than the record.

// Limits of the coordinator.
const (
	// MaxTxns is how many transactions a group coordinates at a time, decided ones
	// that are not dropped yet among them.
	MaxTxns = 1024

	// MaxDrop is how many one entry drops.
	MaxDrop = 256

	// MaxLifetime bounds how long a transaction may take (milliseconds of log time).
	MaxLifetime = 60_000
)

// checkTxn refuses an identifier that no transaction has, and any at a level that
// knows of none.
func (c *change) checkTxn(id *wire.TxnID) error {
	switch g := id.GetGroup(); {
	case c.st.level < LevelTransactions:
		return refuse(dfs.Unsupported, "group %v is of feature level %d: operations over several groups need %d", c.st.group, c.st.level, LevelTransactions)
	case g == 0 || g > maxGroup || id.Begun == 0 || id.Session == 0 || dfs.SessionID(id.Session) > dfs.MaxSessionID || id.Seq == 0:
		return refuse(dfs.Invalid, "there is no transaction %v", id)
	}
	return nil
}

// begin takes a client's operation up as a transaction, exactly once: the answer is
// the reply that is remembered, the transaction that is under way, or a new one.
func (m *Machine) begin(c *change, op *wire.TxnBeginOp) ([]byte, error) {
	if c.st.level < LevelTransactions {
		return nil, refuse(dfs.Unsupported, "group %v is of feature level %d", c.st.group, c.st.level)
	}
	own, err := c.checkBegin(op)
	if err != nil {
		return nil, err
	}
	cmd := op.Command
	return m.once(c, cmd, func(running *wire.TxnRecord) ([]byte, bool, error) {
		id := &wire.TxnID{Group: uint32(c.st.group), Session: cmd.Session, Seq: cmd.Seq, Begun: uint64(c.version)}
		if running != nil {
			id.Begun = running.Begun
			reply, err := deterministic.Marshal(&wire.Result{Version: uint64(c.st.version), Txn: id})
			return reply, false, err
		}
		if c.st.txns >= MaxTxns {
			return nil, false, refuse(dfs.Busy, "group %v coordinates %d operations", c.st.group, MaxTxns)
		}
		c.txn = holderOf(id)
		if _, err := c.evaluateBut(own.Share, unnamed(own.Share)); err != nil {
			return c.refused(err)
		}
		if err := c.handOn(own.Share, op.Parts); err != nil {
			return nil, false, err
		}
		if err := c.leavePart(&wire.TxnIntent{Txn: id, Floor: uint64(c.version), Cred: c.cred, Share: own.Share}); err != nil {
			return nil, false, err
		}
		rec := &wire.TxnRecord{Begun: id.Begun, Deadline: id.Begun + uint64(op.Lifetime)<<16, Cred: c.cred}
		for _, p := range op.Parts {
			if p != own {
				rec.Parts = append(rec.Parts, &wire.TxnPart{Group: p.Group, Share: p.Share})
			}
		}
		c.st.txns++
		if err := c.writeTxn(id, rec); err != nil {
			return nil, false, err
		}
		reply, err := c.reply(outcome{txn: id}, nil)
		return reply, false, err
	})
}

// handOn gives the directory that another group is to make what it inherits from its
// parent, which the own share enters it in and so holds.
func (c *change) handOn(own *wire.TxnShare, parts []*wire.TxnPart) error {
	for _, p := range parts {
		for _, s := range p.Share.Steps {
			op := s.GetMakeDir()
			if op == nil {
				continue
			}
			if !slices.ContainsFunc(own.Steps, func(s *wire.TxnStep) bool { return givesName(s) && s.GetEnter().Parent == op.Parent }) {
				return refuse(dfs.Invalid, "a directory is made and not entered in directory %v", dfs.Ino(op.Parent))
			}
			dir, err := c.needHere(dfs.Ino(op.Parent))
			if err != nil {
				return err
			}
			op.Level, op.Class, op.ParentMode, op.ParentGid = dir.level+1, firstOf(dir.class, c.st.defaultClass), dir.mode, dir.gid
		}
	}
	return nil
}

// checkBegin returns the coordinator's part.
func (c *change) checkBegin(op *wire.TxnBeginOp) (own *wire.TxnPart, err error) {
	switch n := len(op.GetParts()); {
	case n < 1 || n > MaxTxnGroups:
		return nil, refuse(dfs.Invalid, "a transaction of %d groups: want 1 to %d", n, MaxTxnGroups)
	case op.Command == nil:
		return nil, refuse(dfs.Invalid, "a transaction without a command")
	case op.Lifetime == 0 || op.Lifetime > MaxLifetime:
		return nil, refuse(dfs.Invalid, "a transaction of %d ms: want 1 to %d", op.Lifetime, MaxLifetime)
	}
	seen := map[uint32]bool{}
	for _, p := range op.Parts {
		if p.GetGroup() == 0 || p.Group > maxGroup || seen[p.Group] || p.Floor != 0 {
			return nil, refuse(dfs.Invalid, "a part of group %d", p.GetGroup())
		}
		seen[p.Group] = true
		isOwn := dfs.GroupID(p.Group) == c.st.group
		if isOwn {
			own = p
		} else if proto.Size(p.Share) > MaxShare {
			return nil, refuse(dfs.TooLarge, "a share of %d bytes: at most %d", proto.Size(p.Share), MaxShare)
		}
		if err := checkShare(p.Share, isOwn); err != nil {
			return nil, err
		}
	}
	if own == nil {
		return nil, refuse(dfs.Invalid, "a transaction in which its coordinator has no part")
	}
	return own, nil
}

// commit decides that a transaction is done, and carries the coordinator's share
// out. All of it is checked here, once every other group has prepared: what loses
// a name of another group is checked here for the first time.
//
// What cannot be committed is aborted: too late, by a session that is fenced
// by now, or what its share relies on is not so any more.
func (c *change) commit(op *wire.TxnCommitOp) ([]byte, error) {
	rec, in, err := c.undecided(op.GetTxn())
	if err != nil {
		return nil, err
	}
	if rec.Committed != 0 {
		return c.committed(op.Txn, rec)
	}
	if c.st.unfenced {
		return nil, refuse(dfs.Unavailable, "group %v was recovered and waits to be told which sessions have ended", c.st.group)
	}
	made, err := takeFloors(rec, op.Prepared)
	if err != nil {
		return nil, err
	}
	if entersMade(in.Share) {
		if err := c.checkMade(rec, dfs.Ino(made.GetIno())); err != nil {
			return nil, err
		}
	}
	c.txn, c.session, c.cred = holderOf(op.Txn), dfs.SessionID(op.Txn.Session), rec.Cred
	before := c.version
	p, err := c.committable(rec, in, made)
	if err != nil {
		c.stamp(before)
		r, ok := err.(*refusal)
		if !ok {
			return nil, err
		}
		return c.aborted(op.Txn, in, r)
	}
	out, err := c.carryOutShare(p)
	if err != nil {
		return nil, err
	}
	if out.inode == nil {
		out.attr = c.stamped(made)
	}
	rec.Committed = uint64(c.version)
	if err := c.endPart(in); err != nil {
		return nil, err
	}
	if c.opts.ForgetCommits {
		c.st.txns--
		err = c.delete(txnKey(dfs.SessionID(op.Txn.Session), op.Txn.Seq))
	} else {
		err = c.writeTxn(op.Txn, rec)
	}
	if err != nil {
		return nil, err
	}
	reply, err := c.reply(out, nil)
	if err != nil {
		return nil, err
	}
	return reply, c.remember(op.Txn, reply)
}

// takeFloors notes in a record what its participants answered, and returns the attributes that one of them gave.
func takeFloors(rec *wire.TxnRecord, answers []*wire.TxnPrepared) (attr *wire.Attr, err error) {
	if len(answers) != len(rec.Parts) {
		return nil, refuse(dfs.Invalid, "%d participants have prepared, of %d", len(answers), len(rec.Parts))
	}
	for _, a := range answers {
		found := false
		for _, p := range rec.Parts {
			if p.Group == a.GetGroup() && p.Floor == 0 {
				p.Floor, found = a.Floor, true
			}
		}
		if !found || a.Floor == 0 || dfs.Version(a.Floor) > maxVersion {
			return nil, refuse(dfs.Invalid, "group %d prepared at version %d", a.GetGroup(), a.GetFloor())
		}
		if a.Attr != nil {
			attr = a.Attr
		}
	}
	return attr, nil
}

// entersMade reports whether a share gives a name to the directory that a participant makes.
func entersMade(share *wire.TxnShare) bool {
	return slices.ContainsFunc(share.GetSteps(), givesName)
}

func givesName(s *wire.TxnStep) bool { return s.GetEnter() != nil && s.GetEnter().Ino == 0 }

// checkMade refuses a directory that a participant cannot have made.
func (c *change) checkMade(rec *wire.TxnRecord, ino dfs.Ino) error {
	maker := slices.ContainsFunc(rec.Parts, func(p *wire.TxnPart) bool {
		return dfs.GroupID(p.Group) == ino.Group() && slices.ContainsFunc(p.Share.GetSteps(), func(s *wire.TxnStep) bool { return s.GetMakeDir() != nil })
	})
	row, err := readChild(c.tx, ino)
	if err == nil && (!maker || ino.Local() == 0 || row != nil) {
		err = refuse(dfs.Invalid, "no participant makes directory %v", ino)
	}
	return err
}

// committable reads and checks once more what the coordinator's share needs, at the
// version of the commit: the highest of all floors.
func (c *change) committable(rec *wire.TxnRecord, in *wire.TxnIntent, made *wire.Attr) (*prepared, error) {
	if uint64(c.version) > rec.Deadline {
		return nil, refuse(dfs.Unavailable, "the operation took longer than it may")
	}
	fence, err := readFence(c.tx)
	if err != nil {
		return nil, err
	}
	if fence.fenced(c.session) {
		return nil, refuse(dfs.Fenced, "session %d has expired", c.session)
	}
	v := c.version
	for _, p := range rec.Parts {
		v = max(v, dfs.Version(p.Floor))
	}
	c.stamp(v)
	c.made = dfs.Ino(made.GetIno())
	return c.evaluate(in.Share)
}

// stamped returns the attributes that a participant's inode has once its share is
// carried out at this entry's version.
func (c *change) stamped(a *wire.Attr) *wire.Attr {
	if a == nil {
		return nil
	}
	if a.Version == 0 { // it is made
		a.Atime, a.Mtime = c.now, c.now
	}
	a.Version, a.Ctime = uint64(c.version), c.now
	return a
}

// remember keeps the answer to a transaction's command, unless the session has
// said that it wants none any more.
func (c *change) remember(id *wire.TxnID, reply []byte) error {
	row, known, err := readFloor(c.tx, dfs.SessionID(id.Session))
	if err != nil || !known || id.Seq < row.floor {
		return err
	}
	return c.tx.Set(replyKey(dfs.SessionID(id.Session), id.Seq), reply)
}

// committed answers a commit that was made before.
func (c *change) committed(id *wire.TxnID, rec *wire.TxnRecord) ([]byte, error) {
	reply, ok, err := c.tx.Get(replyKey(dfs.SessionID(id.Session), id.Seq))
	if err != nil || ok {
		return reply, err
	}
	return deterministic.Marshal(&wire.Result{Version: rec.Committed})
}

// abort decides that a transaction is not done.
func (c *change) abort(op *wire.TxnAbortOp) ([]byte, error) {
	rec, in, err := c.undecided(op.GetTxn())
	if err != nil {
		return nil, err
	}
	if rec.Committed != 0 {
		return c.committed(op.Txn, rec)
	}
	kind := dfs.Kind(op.Kind)
	if kind == dfs.Other || op.Kind > math.MaxUint8 || len(op.Text) > maxText {
		return nil, refuse(dfs.Invalid, "an abort of kind %d with a text of %d bytes", op.Kind, len(op.Text))
	}
	c.txn = holderOf(op.Txn)
	return c.aborted(op.Txn, in, &refusal{kind: kind, text: op.Text})
}

// aborted removes the record and the own share of a transaction. The refusal is
// the answer, and is remembered where it is final.
func (c *change) aborted(id *wire.TxnID, in *wire.TxnIntent, r *refusal) ([]byte, error) {
	if err := c.endPart(in); err != nil {
		return nil, err
	}
	c.st.txns--
	if err := c.delete(txnKey(dfs.SessionID(id.Session), id.Seq)); err != nil {
		return nil, err
	}
	version, err := c.finish()
	if err != nil {
		return nil, err
	}
	reply, err := encodeRefusal(r, version)
	if err != nil || !c.final(r.kind) {
		return reply, err
	}
	return reply, c.remember(id, reply)
}

// undecided returns the record of a transaction and, if that is undecided, the own share.
func (c *change) undecided(id *wire.TxnID) (*wire.TxnRecord, *wire.TxnIntent, error) {
	rec, err := c.record(id)
	if err != nil {
		return nil, nil, err
	}
	if rec == nil {
		return nil, nil, &refusal{
			kind: dfs.NotExist, outdated: true, text: fmt.Sprintf("transaction %d of group %v was aborted, or is over", id.Begun, c.st.group),
		}
	}
	if rec.Committed != 0 {
		return rec, nil, nil
	}
	in, err := readPart(c.tx, holderOf(id))
	if err == nil && in == nil {
		err = broken("transaction %v is undecided and its coordinator has no share", id)
	}
	return rec, in, err
}

// record returns the record of a transaction of this group, nil when there is none.
func (c *change) record(id *wire.TxnID) (*wire.TxnRecord, error) {
	if err := c.checkTxn(id); err != nil {
		return nil, err
	}
	if dfs.GroupID(id.Group) != c.st.group {
		return nil, refuse(dfs.Invalid, "group %v coordinates transaction %d", dfs.GroupID(id.Group), id.Begun)
	}
	rec, err := readTxn(c.tx, dfs.SessionID(id.Session), id.Seq)
	if rec != nil && rec.Begun != id.Begun {
		rec = nil // another attempt
	}
	return rec, err
}

// dropRecords forgets transactions that every participant has carried out.
func (c *change) dropRecords(op *wire.TxnDropOp) error {
	if len(op.GetTxns()) > MaxDrop {
		return refuse(dfs.TooLarge, "%d transactions: at most %d", len(op.Txns), MaxDrop)
	}
	recs := make([]*wire.TxnRecord, len(op.GetTxns()))
	for i, id := range op.GetTxns() {
		var err error
		if recs[i], err = c.record(id); err != nil {
			return err
		}
		if recs[i] != nil && recs[i].Committed == 0 {
			return refuse(dfs.Invalid, "transaction %d is not decided", id.Begun)
		}
	}
	for i, id := range op.GetTxns() {
		key := txnKey(dfs.SessionID(id.Session), id.Seq)
		if _, ok, err := c.tx.Get(key); err != nil || !ok || recs[i] == nil {
			if err != nil {
				return err
			}
			continue // dropped before, or named twice
		}
		c.st.txns--
		if err := c.delete(key); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) writeTxn(id *wire.TxnID, rec *wire.TxnRecord) error {
	value, err := protoRow(rec)
	if err != nil {
		return err
	}
	return c.set(txnKey(dfs.SessionID(id.Session), id.Seq), value)
}

// readTxn returns the record of a command's transaction, nil when there is none.
func readTxn(r raftgroup.Reader, s dfs.SessionID, seq uint64) (*wire.TxnRecord, error) {
	key := txnKey(s, seq)
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return nil, err
	}
	return decodeTxn(key, v)
}

func decodeTxn(key, value []byte) (*wire.TxnRecord, error) {
	rec := &wire.TxnRecord{}
	if err := decodeProto(key, value, rec); err != nil {
		return nil, err
	}
	if len(key) != 17 || rec.Begun == 0 {
		return nil, damaged(key, "malformed transaction")
	}
	return rec, nil
}

// Transaction is one that a group coordinates.
type Transaction struct {
	ID       *wire.TxnID
	Deadline dfs.Version // a commit by a later entry aborts it
	Cred     *wire.Cred
	Parts    []*wire.TxnPart // of the other groups; committed ones have their floors
	Commit   dfs.Version     // of the commit; 0: it is not decided

	// Of an undecided one that gives a directory a new parent: as in Plan.
	Moved, Under dfs.Ino
}

func transaction(r raftgroup.Reader, g dfs.GroupID, s dfs.SessionID, seq uint64, rec *wire.TxnRecord) (*Transaction, error) {
	t := &Transaction{
		ID:       &wire.TxnID{Group: uint32(g), Session: uint64(s), Seq: seq, Begun: rec.Begun},
		Deadline: dfs.Version(rec.Deadline), Cred: rec.Cred, Parts: rec.Parts, Commit: dfs.Version(rec.Committed),
	}
	if t.Commit != 0 {
		return t, nil
	}
	own, err := readPart(r, holderOf(t.ID))
	t.Moved, t.Under = moveOf(append([]*wire.TxnPart{{Share: own.GetShare()}}, t.Parts...))
	return t, err
}

// FindTransaction returns the transaction of a client's command, nil when none is
// under way or waits to be dropped.
func FindTransaction(r raftgroup.Reader, s dfs.SessionID, seq uint64) (*Transaction, error) {
	st, err := readState(r)
	if err != nil || st == nil || st.txns == 0 {
		return nil, err
	}
	rec, err := readTxn(r, s, seq)
	if rec == nil {
		return nil, err
	}
	return transaction(r, st.group, s, seq, rec)
}

// Transactions returns up to limit of those that a group coordinates, in the order
// of sessions and sequence numbers, past one; nil begins.
func Transactions(r raftgroup.Reader, past *wire.TxnID, limit int) (out []*Transaction, err error) {
	st, err := readState(r)
	if err != nil || st == nil || st.txns == 0 {
		return nil, err
	}
	lower := append(txnKey(dfs.SessionID(past.GetSession()), past.GetSeq()), 0)
	err = scan(r, lower, []byte{tagTxn + 1}, func(key, value []byte) (bool, error) {
		rec, err := decodeTxn(key, value)
		if err != nil {
			return false, err
		}
		s, seq := sessionSeq(key)
		t, err := transaction(r, st.group, s, seq, rec)
		out = append(out, t)
		return len(out) < limit, err
	})
	return out, err
}

// txn answers what has become of a transaction, for one participant.
func (v view) txn(q *wire.TxnQuery, st *state) (*wire.TxnResult, error) {
	id := q.GetTxn()
	if dfs.GroupID(id.GetGroup()) != v.g {
		return nil, refuse(dfs.Invalid, "group %v coordinates the transaction", dfs.GroupID(id.GetGroup()))
	}
	rec, err := readTxn(v.r, dfs.SessionID(id.Session), id.Seq)
	switch {
	case err != nil:
		return nil, err
	case rec == nil || rec.Begun != id.Begun:
		if st.recovered > 0 { // its record may be among what was lost
			return nil, refuse(dfs.Unavailable, "group %v was recovered: decisions wait for dfsd group recover --acknowledge", v.g)
		}
		return &wire.TxnResult{}, nil
	case rec.Committed == 0:
		return &wire.TxnResult{State: wire.TxnResult_UNDECIDED}, nil
	}
	for _, p := range rec.Parts {
		if q.Floor == 0 || p.Group == q.Group && p.Floor == q.Floor {
			return &wire.TxnResult{State: wire.TxnResult_COMMITTED, Version: rec.Committed}, nil
		}
	}
	return &wire.TxnResult{}, nil // the share was prepared once more, after it had been carried out
}
