package meta

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// drive is a command over several groups on its way, driven by the leader of the
// group that coordinates it. It does not end with the request that asked for it, and
// further requests of the same command join it.
//
//	   ┌────────── met another, or was planned by what is not so any more ──────────┐
//	   ▼                                                                            │
//	facts ──▶ begun ──▶ prepared ──▶ committed, answered ──▶ finished ──▶ dropped   │
//	   │                   └──▶ aborted ──▶ shares dropped ──┬──────────────────────┘
//	   └──▶ takes one group, and is an ordinary command      └──▶ answered
//
// An attempt that meets another never waits for it while it holds a share. Whatever
// becomes of the drive, the rows say how far it got: see settleTxns.
type drive struct {
	s     *Service
	h     *raftgroup.Host
	g     dfs.GroupID
	key   txnKey
	cmd   *wire.Command // nil: this ends what another leader left
	place dfs.GroupID   // of the directory that a mkdir makes
	begun time.Time

	holds map[uint64]bool // inodes, while participants carry their shares out; under txns.mu

	ended    chan struct{}
	once     sync.Once
	answered chan struct{}
	res      *wire.Result // nil without err: what the group remembers
	err      error
}

func newDrive(s *Service, h *raftgroup.Host, key txnKey) *drive {
	return &drive{s: s, h: h, g: key.group, key: key, begun: time.Now(), answered: make(chan struct{}), ended: make(chan struct{})}
}

// answer tells whoever waits what came of the command; only the first one counts.
func (d *drive) answer(res *wire.Result, err error) {
	d.once.Do(func() {
		d.res, d.err = res, err
		close(d.answered)
	})
}

// await returns the answer. When ctx ends before, the outcome is not known.
func (d *drive) await(ctx context.Context) (*wire.Result, error) {
	select {
	case <-d.answered:
		return d.res, d.err
	case <-ctx.Done():
		return nil, &dfs.Error{Kind: dfs.Unknown, Op: "change", Text: "the operation goes on", Err: ctx.Err()}
	}
}

// run begins again until the command is carried out or refused.
func (d *drive) run(ctx context.Context) {
	until := d.begun.Add(txnPatience)
	for n := 1; ; n++ {
		again, err := d.attempt(ctx)
		switch {
		case err != nil:
			d.answer(nil, err)
			return
		case again == nil:
			return
		case time.Now().After(until):
			d.answer(again, nil)
			return
		case (!again.Outdated || n > 3) && !d.s.sleep(d.jitter(n)):
			return
		}
	}
}

// jitter is the pause before the next attempt, which other operations do not make.
func (d *drive) jitter(attempt int) time.Duration {
	h := fnv.New64a()
	for _, v := range []uint64{uint64(d.key.session), d.key.seq, uint64(attempt), uint64(d.g)} {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, v)) // never fails
	}
	most := time.Millisecond << min(attempt+1, 7)
	return most/4 + time.Duration(h.Sum64()%uint64(most))
}

// attempt makes one attempt, and answers unless another one may do better: then it
// returns what the answer would be.
func (d *drive) attempt(ctx context.Context) (again *wire.Result, err error) {
	// What another leader has begun of this command holds what its facts ask for.
	if txn, err := d.find(); err == nil && txn != nil && txn.Commit == 0 {
		return d.decide(ctx, txn)
	}
	facts, err := d.facts(ctx)
	if dfs.KindOf(err) == dfs.Frozen {
		return &wire.Result{Kind: uint32(dfs.Frozen), Text: err.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	plan := namespace.MakePlan(d.cmd, facts)
	if plan == nil {
		return d.alone(ctx)
	}
	d.afterOthers(ctx, plan.Parts)
	d.s.txnStep(d.g, TxnBegin)
	op := &wire.TxnBeginOp{
		Command: &wire.Command{Session: d.cmd.Session, Seq: d.cmd.Seq, Floor: d.cmd.Floor, Cred: d.cmd.Cred},
		Parts:   plan.Parts, Lifetime: uint32(txnLifetime.Milliseconds()),
	}
	res, err := d.s.proposeEntry(ctx, d.h, d.g, &wire.LogEntry{Entry: &wire.LogEntry_TxnBegin{TxnBegin: op}})
	switch {
	case err != nil:
		return nil, err
	case res.Outdated:
		return res, nil
	case res.Locked != nil:
		w := d.s.txns.wait(d.h, d.g)
		defer w.done()
		w.over(ctx, res.Locked)
		return res, nil
	case res.Kind != 0 || res.Txn == nil: // refused, or what the group remembers
		d.answer(res, nil)
		return nil, nil
	}
	d.s.txnStep(d.g, TxnBegun)
	txn, err := d.find()
	switch {
	case err != nil:
		return nil, unknown(err)
	case txn == nil: // another leader has ended it
		return &wire.Result{Kind: uint32(dfs.Unavailable), Text: "another leader ended it", Outdated: true}, nil
	case txn.Commit != 0:
		return nil, dfs.Errorf(dfs.Unknown, "change", "the operation was carried out before, and its answer is forgotten")
	}
	return d.decide(ctx, txn)
}

// afterOthers waits for operations of this node that are done but for what their
// participants have to carry out, and would be in the way there: one after the other
// on the same file is what clients do. It holds nothing meanwhile.
func (d *drive) afterOthers(ctx context.Context, parts []*wire.TxnPart) {
	timer := time.NewTimer(txnWait)
	defer timer.Stop()
	for other := d.s.txns.overlapping(parts); other != nil; other = d.s.txns.overlapping(parts) {
		select {
		case <-other.ended:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// unknown is an error after which nobody can say whether the command is carried out.
func unknown(err error) error {
	return &dfs.Error{Kind: dfs.Unknown, Op: "change", Text: "the operation was begun", Err: err}
}

// find returns the command's transaction as applied here, nil when there is none.
func (d *drive) find() (txn *namespace.Transaction, err error) {
	err = d.h.ReadLocal(d.g, func(r raftgroup.Reader) (err error) {
		txn, err = namespace.FindTransaction(r, d.key.session, d.key.seq)
		return err
	})
	return txn, err
}

// alone has the coordinator's group carry the command out or refuse it by itself.
func (d *drive) alone(ctx context.Context) (again *wire.Result, err error) {
	res, err := d.s.proposeEntry(ctx, d.h, d.g, &wire.LogEntry{Entry: &wire.LogEntry_Command{Command: d.cmd}})
	if err != nil {
		return nil, err
	}
	switch dfs.Kind(res.Kind) {
	case dfs.CrossGroup: // what it names is another thing by now
		return &wire.Result{Kind: uint32(dfs.Unavailable), Text: "what the operation names changes all the time", Outdated: true}, nil
	case dfs.Busy:
		txn, err := d.find()
		if err != nil {
			return nil, unknown(err)
		}
		if txn != nil && txn.Commit == 0 { // of a plan that is none any more
			return d.abort(ctx, txn, nil, &wire.Result{Kind: uint32(dfs.Unavailable), Text: "it was begun by another leader", Outdated: true})
		}
	}
	d.answer(res, nil)
	return nil, nil
}

// decide brings a transaction that has begun to its end.
func (d *drive) decide(ctx context.Context, txn *namespace.Transaction) (again *wire.Result, err error) {
	p := &preparing{d: d, txn: txn}
	refused := p.all(ctx)
	if refused != nil {
		return d.abort(ctx, txn, p.sent, refused)
	}
	if d.s.opts.Hooks.FinishFirst {
		d.finishEarly(ctx, txn, p.answers)
	}
	d.s.txnStep(d.g, TxnCommit)
	op := &wire.TxnCommitOp{Txn: txn.ID, Prepared: p.answers}
	res, err := d.s.proposeEntry(ctx, d.h, d.g, &wire.LogEntry{Entry: &wire.LogEntry_TxnCommit{TxnCommit: op}})
	switch {
	case err != nil:
		return nil, unknown(err)
	case dfs.Kind(res.Kind) == dfs.NotExist: // by another leader
		d.release(ctx, txn.ID, p.sent)
		return &wire.Result{Kind: uint32(dfs.Unavailable), Text: "another leader ended it", Outdated: true}, nil
	case res.Kind != 0:
		return d.refused(ctx, txn, p.sent, res), nil
	}
	d.s.txnStep(d.g, TxnCommitted)
	d.s.txns.count(0)
	d.s.txns.holding(d, txn.Parts)
	d.answer(res, nil)
	if txn, err = d.find(); err == nil && txn != nil && txn.Commit != 0 {
		d.finish(ctx, txn)
	}
	return nil, nil
}

// abort ends a transaction that is not decided, for what a participant refused it with.
func (d *drive) abort(ctx context.Context, txn *namespace.Transaction, sent []*wire.TxnPart, why *wire.Result) (again *wire.Result, err error) {
	op := &wire.TxnAbortOp{Txn: txn.ID, Kind: why.Kind, Text: wire.Text(why.Text)}
	res, err := d.s.proposeEntry(ctx, d.h, d.g, &wire.LogEntry{Entry: &wire.LogEntry_TxnAbort{TxnAbort: op}})
	if err != nil {
		return nil, unknown(err)
	}
	switch {
	case dfs.Kind(res.Kind) == dfs.NotExist && dfs.Kind(why.Kind) != dfs.NotExist: // ended by another leader: begin again, and learn how
		d.release(ctx, txn.ID, sent)
		return &wire.Result{Kind: uint32(dfs.Unavailable), Text: "another leader ended it", Outdated: true}, nil
	case res.Kind == 0: // it was committed
		d.answer(res, nil)
		return nil, nil
	}
	res.Locked, res.Outdated = why.Locked, why.Outdated
	if !dfs.Kind(why.Kind).Retryable() {
		res = &wire.Result{Kind: why.Kind, Text: why.Text, Version: res.Version}
	}
	return d.refused(ctx, txn, sent, res), nil
}

// refused answers for a transaction that is aborted, unless another attempt may succeed.
func (d *drive) refused(ctx context.Context, txn *namespace.Transaction, sent []*wire.TxnPart, res *wire.Result) (again *wire.Result) {
	d.s.txns.count(dfs.Kind(res.Kind))
	d.release(ctx, txn.ID, sent)
	if res.Outdated || dfs.Kind(res.Kind) == dfs.Frozen {
		return res
	}
	d.answer(res, nil)
	return nil
}

// release has the participants of an aborted transaction drop their shares at once.
// Those that do not answer ask by themselves, later.
func (d *drive) release(ctx context.Context, id *wire.TxnID, sent []*wire.TxnPart) {
	ctx, cancel := context.WithTimeout(ctx, txnWait)
	defer cancel()
	_ = each(sent, func(p *wire.TxnPart) error {
		return d.s.finishShare(ctx, dfs.GroupID(p.Group), &wire.TxnFinishOp{Txn: id, Floor: p.Floor})
	})
}

// finish has the participants of a committed transaction carry their shares out, and
// forgets it then. What it does not get done is left to tend.
func (d *drive) finish(ctx context.Context, txn *namespace.Transaction) {
	ctx, cancel := context.WithTimeout(ctx, 2*txnLifetime)
	defer cancel()
	err := each(txn.Parts, func(p *wire.TxnPart) error {
		return d.s.finishShare(ctx, dfs.GroupID(p.Group), &wire.TxnFinishOp{Txn: txn.ID, Floor: p.Floor, Commit: true, Version: uint64(txn.Commit)})
	})
	if err != nil {
		d.s.step(d.g, "finish a transaction", err)
		return
	}
	d.s.txns.dropSoon(d.h, d.g, txn.ID)
}

// finishEarly is a planted bug: see Hooks.
func (d *drive) finishEarly(ctx context.Context, txn *namespace.Transaction, answers []*wire.TxnPrepared) {
	version := uint64(0)
	for _, a := range answers {
		version = max(version, a.Floor)
	}
	_ = each(answers, func(a *wire.TxnPrepared) error {
		return d.s.finishShare(ctx, dfs.GroupID(a.Group), &wire.TxnFinishOp{Txn: txn.ID, Floor: a.Floor, Commit: true, Version: version})
	})
}

// resume ends what another leader, or an earlier drive, has left.
func (d *drive) resume(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*txnLifetime)
	defer cancel()
	txn, err := d.find()
	switch {
	case err != nil || txn == nil:
		d.answer(nil, err)
	case txn.Commit != 0:
		d.answer(nil, nil)
		d.finish(ctx, txn)
	default:
		why := &wire.Result{Kind: uint32(dfs.Unavailable), Text: "the node that drove the operation is gone"}
		_, err := d.abort(ctx, txn, txn.Parts, why)
		d.answer(nil, err) // unless there is an answer
	}
}

// each calls fn with all of a list at the same time and returns the first error.
func each[T any](list []T, fn func(T) error) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, x := range list[min(1, len(list)):] {
		wg.Go(func() { errs[i+1] = fn(x) })
	}
	if len(list) > 0 {
		errs[0] = fn(list[0])
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// preparing is the part of a transaction in which its shares are prepared.
type preparing struct {
	d   *drive
	txn *namespace.Transaction

	answers []*wire.TxnPrepared // of the parts, in order; nil: not prepared yet
	sent    []*wire.TxnPart     // which may lie at their participants
}

// all prepares all shares, side by side. It returns why that is not to be. A refusal
// for good counts once all shares before it are prepared: by then what makes it true
// cannot change any more.
func (p *preparing) all(ctx context.Context) (refused *wire.Result) {
	ctx, cancel := context.WithTimeout(ctx, txnLifetime/2)
	defer cancel()
	p.answers = make([]*wire.TxnPrepared, len(p.txn.Parts))
	results := make([]*wire.Result, len(p.txn.Parts))
	parts := make([]int, len(p.txn.Parts))
	for i := range parts {
		parts[i] = i
	}
	// The tree lock first: who does not get it is in nobody's way.
	rest := parts
	if p.txn.Moved != 0 {
		tree := slices.IndexFunc(p.txn.Parts, func(part *wire.TxnPart) bool { return dfs.GroupID(part.Group) == dfs.RootIno.Group() })
		if tree >= 0 {
			if results[tree] = p.one(ctx, tree); results[tree].Kind != 0 {
				rest = nil
			} else {
				rest = slices.Delete(slices.Clone(parts), tree, tree+1)
			}
		}
	}
	_ = each(rest, func(i int) error {
		results[i] = p.one(ctx, i)
		return nil
	})
	for i, res := range results {
		if res == nil {
			continue
		}
		p.note(i, res)
		switch kind := dfs.Kind(res.Kind); {
		case refused != nil:
		case kind == dfs.Unsupported: // of a group of a level that knows of no shares
			refused = &wire.Result{Kind: uint32(dfs.Unavailable), Text: res.Text, Outdated: p.d.elsewhere()}
		case kind.Retryable():
			refused = res
		}
	}
	for i := range parts {
		if refused == nil && p.answers[i] == nil {
			res := p.one(ctx, i)
			if p.note(i, res); res.Kind != 0 {
				refused = res
			}
		}
	}
	if refused == nil && p.txn.Moved != 0 {
		refused = p.d.walk(ctx, p.txn)
	}
	return refused
}

// one prepares one share.
func (p *preparing) one(ctx context.Context, i int) *wire.Result {
	part := p.txn.Parts[i]
	op := &wire.TxnPrepareOp{Txn: p.txn.ID, Cred: p.txn.Cred, Share: part.Share}
	res, err := p.d.s.prepareShare(ctx, dfs.GroupID(part.Group), op)
	if err != nil {
		return &wire.Result{Kind: uint32(dfs.Unavailable), Text: err.Error()}
	}
	return res
}

// note takes in what a participant answered.
func (p *preparing) note(i int, res *wire.Result) {
	part := p.txn.Parts[i]
	kind := dfs.Kind(res.Kind)
	if kind == 0 {
		p.answers[i] = &wire.TxnPrepared{Group: part.Group, Floor: res.Version, Attr: res.Attr}
	}
	if kind == 0 || kind == dfs.Unavailable { // it may be the answer that is missing
		p.sent = append(p.sent, &wire.TxnPart{Group: part.Group, Floor: res.Version})
	}
}

// elsewhere has a directory made in the group of its parent after all, and reports
// whether it is one that is made.
func (d *drive) elsewhere() bool {
	d.place = d.g
	return d.cmd.GetMkdir() != nil
}

// walk refuses a directory that would lie below itself. REQUIRES: the transaction
// holds the tree lock. For what others hold on the way it tries a few times: they
// fail on the tree lock, or are being finished, and wait for nobody.
func (d *drive) walk(ctx context.Context, txn *namespace.Transaction) *wire.Result {
	tries := 0
	for ino := txn.Under; ino != 0; {
		res, err := d.s.readNow(ctx, d.h, ino.Group(), &wire.Query{Query: &wire.Query_Above{Above: &wire.AboveQuery{Ino: uint64(ino), Txn: txn.ID}}})
		if err != nil {
			kind := dfs.KindOf(err)
			if tries++; kind == dfs.Frozen && tries < walkTries && d.s.sleep(d.jitter(1)) {
				continue
			}
			if kind != dfs.Frozen && kind != dfs.TooLarge {
				kind = dfs.Unavailable
			}
			return &wire.Result{Kind: uint32(kind), Text: err.Error()}
		}
		above := res.GetAbove()
		if above.GetLevel() < namespace.LevelTransactions {
			return &wire.Result{Kind: uint32(dfs.Unavailable), Text: levelText(ino.Group())}
		}
		if slices.Contains(above.GetPath(), uint64(txn.Moved)) {
			return &wire.Result{Kind: uint32(dfs.Invalid), Text: "a directory would lie below itself"}
		}
		ino = dfs.Ino(above.GetNext())
	}
	return nil
}

// facts reads what the plan goes by.
func (d *drive) facts(ctx context.Context) (f namespace.Facts, err error) {
	switch op := d.cmd.Op.(type) {
	case *wire.Command_Mkdir:
		f.Place = d.place
		f.Entry, err = d.entry(ctx, op.Mkdir.Parent, op.Mkdir.Name)
	case *wire.Command_Rmdir:
		f.Entry, err = d.entry(ctx, op.Rmdir.Parent, op.Rmdir.Name)
	case *wire.Command_Create:
		f.Entry, err = d.entry(ctx, op.Create.Parent, op.Create.Name)
	case *wire.Command_Unlink:
		f.Entry, err = d.entry(ctx, op.Unlink.Parent, op.Unlink.Name)
	case *wire.Command_Link:
		ino := dfs.Ino(op.Link.Ino)
		if ino.Group() == dfs.ControlGroup {
			break // the own group refuses
		}
		var res *wire.QueryResult
		res, err = d.s.readNow(ctx, d.h, ino.Group(), &wire.Query{Query: &wire.Query_Attr{Attr: &wire.AttrQuery{Inos: []uint64{op.Link.Ino}}}})
		if a := res.GetAttr().GetAttrs(); len(a) == 1 {
			f.Entry = namespace.Entry{Ino: ino, Type: a[0].Type}
		}
	case *wire.Command_Rename:
		if f.Entry, err = d.entry(ctx, op.Rename.Parent, op.Rename.Name); err != nil || dfs.Ino(op.Rename.NewParent).Group() == dfs.ControlGroup {
			break
		}
		f.Target, err = d.entry(ctx, op.Rename.NewParent, op.Rename.NewName)
	}
	// What cannot be found is refused by its group, so that the refusal is remembered.
	if k := dfs.KindOf(err); err != nil && !k.Retryable() && k != dfs.Unknown && k != dfs.Deadline && k != dfs.Internal {
		err = nil
	}
	return f, err
}

func (d *drive) entry(ctx context.Context, parent uint64, name []byte) (namespace.Entry, error) {
	res, err := d.s.readNow(ctx, d.h, dfs.Ino(parent).Group(), &wire.Query{Query: &wire.Query_Entry{Entry: &wire.EntryQuery{Parent: parent, Name: name}}})
	if err != nil {
		return namespace.Entry{}, err
	}
	return namespace.Entry{Ino: dfs.Ino(res.GetEntry().GetIno()), Type: res.GetEntry().GetType()}, nil
}
