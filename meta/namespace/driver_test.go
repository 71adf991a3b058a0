package namespace

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// errCrash is what a driver that has been stopped returns.
var errCrash = errors.New("the driver crashed")

// driver carries commands out over several groups, as the leader of the
// coordinator's group does. It can be stopped before any entry of a transaction.
type driver struct {
	w       *world
	crash   int // entries that it may still propose; negative: any number
	place   dfs.GroupID
	life    uint32
	pause   func() bool                                                  // before each step of a walk; false: it crashes. May be nil
	rng     *rand.Rand                                                   // nil: shares are prepared in order
	refused func(id *wire.TxnID, kind dfs.Kind, text string)             // told of a refusal that counts; may be nil
	apply   func(g dfs.GroupID, le *wire.LogEntry) (*wire.Result, error) // nil: applied at once
}

func newDriver(w *world) *driver { return &driver{w: w, crash: -1, life: 10_000} }

func (d *driver) propose(g dfs.GroupID, le *wire.LogEntry) (*wire.Result, error) {
	if d.crash == 0 {
		return nil, errCrash
	}
	d.crash--
	if d.apply != nil {
		return d.apply(g, le)
	}
	return d.w.apply(g, le), nil
}

func (d *driver) command(g dfs.GroupID, cmd *wire.Command) (*wire.Result, error) {
	return d.propose(g, &wire.LogEntry{Entry: &wire.LogEntry_Command{Command: cmd}})
}

func (d *driver) entry(parent uint64, name []byte) (Entry, error) {
	g := dfs.Ino(parent).Group()
	res, err := d.w.query(g, &wire.Query{Query: &wire.Query_Entry{Entry: &wire.EntryQuery{Parent: parent, Name: name}}})
	if kind := dfs.KindOf(err); kind == dfs.NotExist || kind == dfs.NotDir {
		return Entry{}, nil // a group says so again by an entry of its log, which is remembered
	}
	if err != nil {
		return Entry{}, err
	}
	e := res.GetEntry()
	return Entry{dfs.Ino(e.Ino), e.Type}, nil
}

// facts reads what a plan needs.
func (d *driver) facts(cmd *wire.Command) (f Facts, err error) {
	switch op := cmd.Op.(type) {
	case *wire.Command_Mkdir:
		f.Place = d.place
		f.Entry, err = d.entry(op.Mkdir.Parent, op.Mkdir.Name)
	case *wire.Command_Rmdir:
		f.Entry, err = d.entry(op.Rmdir.Parent, op.Rmdir.Name)
	case *wire.Command_Create:
		f.Entry, err = d.entry(op.Create.Parent, op.Create.Name)
	case *wire.Command_Unlink:
		f.Entry, err = d.entry(op.Unlink.Parent, op.Unlink.Name)
	case *wire.Command_Link:
		var res *wire.QueryResult
		res, err = d.w.query(dfs.Ino(op.Link.Ino).Group(), &wire.Query{Query: &wire.Query_Attr{Attr: &wire.AttrQuery{Inos: []uint64{op.Link.Ino}}}})
		if err == nil {
			f.Entry = Entry{dfs.Ino(op.Link.Ino), res.GetAttr().Attrs[0].Type}
		}
	case *wire.Command_Rename:
		if f.Entry, err = d.entry(op.Rename.Parent, op.Rename.Name); err == nil {
			f.Target, err = d.entry(op.Rename.NewParent, op.Rename.NewName)
		}
	}
	return f, err
}

// do carries a command out: alone where one group can, else as a transaction.
func (d *driver) do(cmd *wire.Command) (*wire.Result, error) {
	g := Coordinator(cmd)
	if cmd.GetMkdir() == nil || d.place == 0 || d.place == g {
		res, err := d.command(g, cmd)
		if err != nil || dfs.Kind(res.Kind) != dfs.CrossGroup && dfs.Kind(res.Kind) != dfs.Busy {
			return res, err
		}
	}
	for range 10 {
		f, err := d.facts(cmd)
		if err != nil {
			return nil, err
		}
		plan := MakePlan(cmd, f)
		if plan == nil {
			return d.command(g, cmd)
		}
		res, err := d.transact(g, cmd, plan)
		if err != nil || !res.Outdated {
			return res, err
		}
	}
	return &wire.Result{Kind: uint32(dfs.Busy), Text: "every plan is outdated"}, nil
}

// transact begins a transaction and brings it to its end.
func (d *driver) transact(g dfs.GroupID, cmd *wire.Command, plan *Plan) (*wire.Result, error) {
	op := &wire.TxnBeginOp{Command: &wire.Command{Session: cmd.Session, Seq: cmd.Seq, Floor: cmd.Floor, Cred: cmd.Cred}, Parts: plan.Parts, Lifetime: d.life}
	res, err := d.propose(g, &wire.LogEntry{Entry: &wire.LogEntry_TxnBegin{TxnBegin: op}})
	if err != nil || res.Kind != 0 || res.Txn == nil {
		return res, err
	}
	return d.run(res.Txn)
}

// run brings a transaction that has begun to its end.
func (d *driver) run(id *wire.TxnID) (*wire.Result, error) {
	txn, err := FindTransaction(d.w.reader(dfs.GroupID(id.Group)), dfs.SessionID(id.Session), id.Seq)
	if err != nil {
		return nil, err
	}
	if txn == nil { // somebody else has brought it to its end
		return &wire.Result{Kind: uint32(dfs.Unavailable), Text: "it is over"}, nil
	}
	if txn.Commit == 0 {
		return d.decide(txn)
	}
	return &wire.Result{Kind: uint32(dfs.Unavailable), Text: "it is done: ask again"}, d.finish(txn)
}

func (d *driver) decide(txn *Transaction) (*wire.Result, error) {
	commit := &wire.TxnCommitOp{Txn: txn.ID, Prepared: make([]*wire.TxnPrepared, len(txn.Parts))}
	prepare := func(i int) (*wire.Result, error) {
		p := txn.Parts[i]
		res, err := d.propose(dfs.GroupID(p.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnPrepare{TxnPrepare: &wire.TxnPrepareOp{Txn: txn.ID, Cred: txn.Cred, Share: p.Share}}})
		if err == nil && res.Kind == 0 {
			commit.Prepared[i] = &wire.TxnPrepared{Group: p.Group, Floor: res.Version, Attr: res.Attr}
		}
		return res, err
	}
	// In any order; but a refusal counts only when all before it are prepared.
	order := make([]int, len(txn.Parts))
	for i := range order {
		order[i] = i
	}
	if d.rng != nil {
		d.rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	for _, i := range order {
		res, err := prepare(i)
		if err != nil {
			return nil, err
		}
		if dfs.Kind(res.Kind).Retryable() {
			return d.abort(txn, res)
		}
	}
	for i := range txn.Parts {
		if commit.Prepared[i] != nil {
			continue
		}
		res, err := prepare(i)
		if err != nil {
			return nil, err
		}
		if res.Kind != 0 {
			if d.refused != nil {
				d.refused(txn.ID, dfs.Kind(res.Kind), res.Text)
			}
			return d.abort(txn, res)
		}
	}
	if txn.Moved != 0 {
		below, err := d.below(txn.ID, txn.Under, txn.Moved)
		if err != nil {
			return nil, err
		}
		if below {
			return d.abort(txn, &wire.Result{Kind: uint32(dfs.Invalid), Text: "it would lie below itself"})
		}
	}
	res, err := d.propose(dfs.GroupID(txn.ID.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnCommit{TxnCommit: commit}})
	if err != nil {
		return nil, err
	}
	if res.Kind != 0 {
		return res, d.drop(txn)
	}
	txn, err = FindTransaction(d.w.reader(dfs.GroupID(txn.ID.Group)), dfs.SessionID(txn.ID.Session), txn.ID.Seq)
	if err != nil || txn == nil || txn.Commit == 0 {
		return res, err
	}
	return res, d.finish(txn)
}

// below reports whether a directory is another one or lies below it.
func (d *driver) below(id *wire.TxnID, dir, above dfs.Ino) (bool, error) {
	for dir != 0 {
		if d.pause != nil && !d.pause() {
			return false, errCrash
		}
		res, err := d.w.query(dir.Group(), &wire.Query{Query: &wire.Query_Above{Above: &wire.AboveQuery{Ino: uint64(dir), Txn: id}}})
		if err != nil {
			return false, err
		}
		if slices.Contains(res.GetAbove().Path, uint64(above)) {
			return true, nil
		}
		dir = dfs.Ino(res.GetAbove().Next)
	}
	return false, nil
}

// abort ends a transaction with what a participant refused it with.
func (d *driver) abort(txn *Transaction, why *wire.Result) (*wire.Result, error) {
	res, err := d.propose(dfs.GroupID(txn.ID.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnAbort{TxnAbort: &wire.TxnAbortOp{Txn: txn.ID, Kind: why.Kind, Text: why.Text}}})
	if err != nil {
		return nil, err
	}
	res.Locked, res.Outdated = why.Locked, why.Outdated
	return res, d.drop(txn)
}

// drop has the participants drop their shares.
func (d *driver) drop(txn *Transaction) error {
	for _, p := range txn.Parts {
		if err := d.ask(dfs.GroupID(p.Group), txn.ID); err != nil {
			return err
		}
	}
	return nil
}

// ask has a participant ask the coordinator, and do as it says.
func (d *driver) ask(g dfs.GroupID, id *wire.TxnID) error {
	in, err := readPart(d.w.reader(g), holderOf(id))
	if err != nil || in == nil {
		return err
	}
	q := &wire.TxnQuery{Txn: id, Group: uint32(g), Floor: in.Floor}
	res, err := d.w.query(dfs.GroupID(id.Group), &wire.Query{Query: &wire.Query_Txn{Txn: q}})
	if err != nil || res.GetTxn().State == wire.TxnResult_UNDECIDED {
		return err
	}
	op := &wire.TxnFinishOp{Txn: id, Floor: in.Floor, Commit: res.GetTxn().State == wire.TxnResult_COMMITTED, Version: res.GetTxn().Version}
	_, err = d.propose(g, &wire.LogEntry{Entry: &wire.LogEntry_TxnFinish{TxnFinish: op}})
	return err
}

// finish has every participant carry a committed transaction out, and forgets it.
func (d *driver) finish(txn *Transaction) error {
	for _, p := range txn.Parts {
		op := &wire.TxnFinishOp{Txn: txn.ID, Floor: p.Floor, Commit: true, Version: uint64(txn.Commit)}
		res, err := d.propose(dfs.GroupID(p.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnFinish{TxnFinish: op}})
		if err != nil {
			return err
		}
		if res.Kind != 0 {
			return fmt.Errorf("finish: %v", res)
		}
	}
	_, err := d.propose(dfs.GroupID(txn.ID.Group), &wire.LogEntry{Entry: &wire.LogEntry_TxnDrop{TxnDrop: &wire.TxnDropOp{Txns: []*wire.TxnID{txn.ID}}}})
	return err
}

// settle ends everything that drivers have left, as the leaders of the groups do:
// the coordinators abort what is undecided and finish the rest, and the
// participants ask.
func (d *driver) settle(groups int) error {
	d.crash = -1
	for g := range groups {
		list, err := Transactions(d.w.reader(dfs.GroupID(g+1)), nil, 1<<20)
		if err != nil {
			return err
		}
		for _, txn := range list {
			if txn.Commit != 0 {
				err = d.finish(txn)
			} else {
				_, err = d.abort(txn, &wire.Result{Kind: uint32(dfs.Unavailable), Text: "its driver is gone"})
			}
			if err != nil {
				return err
			}
		}
	}
	for g := range groups {
		parts, err := Parts(d.w.reader(dfs.GroupID(g+1)), nil, 1<<20)
		if err != nil {
			return err
		}
		for _, p := range parts {
			if err := d.ask(dfs.GroupID(g+1), p.Txn); err != nil {
				return err
			}
		}
	}
	return nil
}
