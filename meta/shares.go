package meta

import (
	"context"
	"errors"
	"time"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

// maxAsks bounds the shares of a group whose coordinators are asked at a time.
const maxAsks = 16

// shareLeader refuses who is no meta node, and with a hint unless this node leads the group.
func (s *Service) shareLeader(ctx context.Context, group uint32) (dfs.GroupID, *raftgroup.Host, error) {
	if err := metaOnly(ctx, s.maps.current()); err != nil {
		return 0, nil, err
	}
	g, h, err := s.namespaceLeader(group)
	if err == nil && !s.mutable() {
		err = s.notFormed()
	}
	return g, h, err
}

// PrepareShare implements the meta service.
func (s *Service) PrepareShare(ctx context.Context, req *wire.PrepareShareRequest) (*wire.ShareReply, error) {
	g, h, err := s.shareLeader(ctx, req.Group)
	if err != nil {
		return nil, err
	}
	res, err := s.prepareHere(ctx, h, g, req.Prepare)
	return &wire.ShareReply{Result: res}, err
}

// FinishShare implements the meta service.
func (s *Service) FinishShare(ctx context.Context, req *wire.FinishShareRequest) (*wire.ShareReply, error) {
	g, h, err := s.shareLeader(ctx, req.Group)
	if err != nil {
		return nil, err
	}
	if req.Finish == nil {
		return nil, dfs.Errorf(dfs.Invalid, "finish", "there is no share")
	}
	res, err := s.finishHere(ctx, h, g, req.Finish)
	return &wire.ShareReply{Result: res}, err
}

// DecideTxn implements the meta service.
func (s *Service) DecideTxn(ctx context.Context, req *wire.DecideTxnRequest) (*wire.DecideTxnReply, error) {
	g, h, err := s.shareLeader(ctx, req.GetQuery().GetTxn().GetGroup())
	if err != nil {
		return nil, err
	}
	res, err := s.decideHere(ctx, h, g, req.Query)
	return &wire.DecideTxnReply{Result: res}, err
}

// prepareHere prepares a share in a group that this node leads. While readers
// of the group starve, it takes no further ones.
func (s *Service) prepareHere(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, op *wire.TxnPrepareOp) (*wire.Result, error) {
	if s.txns.starves(g) {
		return &wire.Result{Kind: uint32(dfs.Frozen), Text: "readers of the group wait"}, nil
	}
	if err := s.refusal(h, g); err != nil && shareGrows(op.GetShare()) {
		return &wire.Result{Kind: uint32(dfs.KindOf(err)), Text: wire.Text(err.Error())}, nil
	}
	s.txnStep(g, TxnPrepare)
	res, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_TxnPrepare{TxnPrepare: op}})
	if err == nil {
		s.txnStep(g, TxnPrepared)
	}
	return res, err
}

// shareGrows reports whether a share may make the state of its group larger for good.
func shareGrows(share *wire.TxnShare) bool {
	for _, st := range share.GetSteps() {
		if st.GetEnter() != nil || st.GetMakeDir() != nil {
			return true
		}
	}
	return false
}

// finishHere ends a share in a group that this node leads. Of an aborted transaction,
// which never comes back, any share goes.
func (s *Service) finishHere(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, op *wire.TxnFinishOp) (*wire.Result, error) {
	if op.Floor == 0 && !op.Commit {
		var err error
		if op.Floor, err = floorOf(h, g, op.Txn); err != nil || op.Floor == 0 {
			return &wire.Result{}, err
		}
	}
	s.txnStep(g, TxnFinish)
	res, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_TxnFinish{TxnFinish: op}})
	if err == nil {
		s.txnStep(g, TxnFinished)
	}
	return res, err
}

// floorOf returns the version at which a share was prepared, 0 when there is none.
func floorOf(h *raftgroup.Host, g dfs.GroupID, id *wire.TxnID) (floor uint64, err error) {
	err = h.ReadLocal(g, func(r raftgroup.Reader) error {
		v, err := namespace.ShareFloor(r, id)
		floor = uint64(v)
		return err
	})
	return floor, err
}

// prepareShare has a group prepare a share, wherever it is led.
func (s *Service) prepareShare(ctx context.Context, g dfs.GroupID, op *wire.TxnPrepareOp) (*wire.Result, error) {
	return s.atLeader(ctx, g,
		func(h *raftgroup.Host) (*wire.Result, error) { return s.prepareHere(ctx, h, g, op) },
		func(ctx context.Context, c wire.DRPCMetaClient) (*wire.ShareReply, error) {
			return c.PrepareShare(ctx, &wire.PrepareShareRequest{Group: uint32(g), Prepare: op})
		})
}

// finishShare has a group end a share, wherever it is led.
func (s *Service) finishShare(ctx context.Context, g dfs.GroupID, op *wire.TxnFinishOp) error {
	res, err := s.atLeader(ctx, g,
		func(h *raftgroup.Host) (*wire.Result, error) { return s.finishHere(ctx, h, g, op) },
		func(ctx context.Context, c wire.DRPCMetaClient) (*wire.ShareReply, error) {
			return c.FinishShare(ctx, &wire.FinishShareRequest{Group: uint32(g), Finish: op})
		})
	if err != nil {
		return err
	}
	return res.ToError("finish a share", g.String())
}

// atLeader asks the leader of a group, which may be this node.
func (s *Service) atLeader(ctx context.Context, g dfs.GroupID, here func(*raftgroup.Host) (*wire.Result, error), there func(context.Context, wire.DRPCMetaClient) (*wire.ShareReply, error)) (res *wire.Result, err error) {
	if h := s.host.Load(); h != nil {
		if _, leads := s.leads(g); leads {
			if res, err = here(h); err == nil {
				return res, nil
			}
		}
	}
	err = s.opts.Metas.Call(ctx, g, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		reply, err := there(ctx, c)
		res = reply.GetResult()
		return err
	})
	if err == nil && res == nil {
		err = dfs.Errorf(dfs.Internal, "ask group", "%v sent an empty answer", g)
	}
	return res, err
}

// readNow asks a group, linearizably, without waiting for what is undecided: that is
// Frozen at once.
func (s *Service) readNow(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, q *wire.Query) (out *wire.QueryResult, err error) {
	if _, ok := h.Leader(g); ok {
		err := h.Read(ctx, g, func(r raftgroup.Reader) (err error) {
			out, err = namespace.Query(r, g, q)
			return err
		})
		if dfs.KindOf(err) != dfs.Unavailable { // else another replica may be able to
			return out, err
		}
	}
	var frozen error
	err = s.opts.Metas.Call(ctx, g, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		reply, err := c.Read(ctx, &wire.ReadRequest{Group: uint32(g), Query: q, Now: true})
		if frozen = nil; dfs.KindOf(err) == dfs.Frozen {
			frozen = err
			return nil
		}
		out = reply.GetResult()
		return err
	})
	if frozen != nil {
		return nil, frozen
	}
	return out, err
}

// decideHere says what a group that this node leads has decided about a transaction. One
// that is undecided and that nobody drives is decided first.
func (s *Service) decideHere(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, q *wire.TxnQuery) (*wire.TxnResult, error) {
	for range 2 {
		var out *wire.QueryResult
		err := h.Read(ctx, g, func(r raftgroup.Reader) (err error) {
			out, err = namespace.Query(r, g, &wire.Query{Query: &wire.Query_Txn{Txn: q}})
			return err
		})
		if err != nil || out.GetTxn().GetState() != wire.TxnResult_UNDECIDED {
			return out.GetTxn(), err
		}
		key := txnKey{g, dfs.SessionID(q.Txn.Session), q.Txn.Seq}
		if s.txns.find(key) != nil {
			return out.GetTxn(), nil
		}
		d := newDrive(s, h, key)
		if d, err = s.txns.start(d, d.resume); err != nil {
			return nil, err
		}
		if _, err := d.await(ctx); err != nil {
			return nil, err
		}
	}
	return &wire.TxnResult{State: wire.TxnResult_UNDECIDED}, nil
}

// ask asks the coordinator about a share.
func (s *Service) ask(ctx context.Context, q *wire.TxnQuery) (res *wire.TxnResult, err error) {
	g := dfs.GroupID(q.Txn.Group)
	ctx, cancel := context.WithTimeout(ctx, metas.AttemptTimeout)
	defer cancel()
	if h := s.host.Load(); h != nil {
		if _, leads := s.leads(g); leads {
			if res, err := s.decideHere(ctx, h, g, q); err == nil {
				return res, nil
			}
		}
	}
	err = s.opts.Metas.Call(ctx, g, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		reply, err := c.DecideTxn(ctx, &wire.DecideTxnRequest{Query: q})
		res = reply.GetResult()
		return err
	})
	if err == nil && res == nil {
		err = dfs.Errorf(dfs.Internal, "ask group", "%v sent an empty answer", g)
	}
	return res, err
}

// decideSoon has a coordinator decide about a transaction that somebody has waited for.
func (s *Service) decideSoon(id *wire.TxnID) {
	key := txnKey{dfs.GroupID(id.Group), dfs.SessionID(id.Session), id.Seq}
	if s.txns.find(key) != nil {
		return // it is on its way
	}
	s.txns.once(key, func() {
		_, err := s.ask(s.ctx, &wire.TxnQuery{Txn: id})
		s.step(key.group, "have a transaction decided", err)
	})
}

// settleTxns ends what nobody drives: transactions of this group whose driver is gone,
// and shares of other groups' that have lain here for a while. It returns when to look again.
func (s *Service) settleTxns(ctx context.Context, h *raftgroup.Host, g dfs.GroupID) (next time.Time, err error) {
	var txns []*namespace.Transaction
	var parts []namespace.Part
	err = h.ReadLocal(g, func(r raftgroup.Reader) (err error) {
		if txns, err = namespace.Transactions(r, nil, namespace.MaxTxns); err != nil {
			return err
		}
		parts, err = namespace.Parts(r, nil, namespace.MaxParts)
		return err
	})
	if err != nil {
		return time.Time{}, err
	}
	for _, txn := range txns {
		key := txnKey{g, dfs.SessionID(txn.ID.Session), txn.ID.Seq}
		if s.txns.find(key) != nil || s.txns.dropping(g, txn.ID) {
			continue
		}
		d := newDrive(s, h, key)
		if _, err := s.txns.start(d, d.resume); err != nil {
			return time.Time{}, err
		}
	}
	old, next := s.txns.age(g, parts)
	for len(old) > 0 && err == nil {
		n := min(len(old), maxAsks)
		err = each(old[:n], func(p namespace.Part) error { return s.settleShare(ctx, h, g, p) })
		old = old[n:]
	}
	if len(txns) > 0 && next.IsZero() {
		next = time.Now().Add(shareAge)
	}
	return next, err
}

// settleShare ends a share as its coordinator has decided. Until it has, the share stays.
func (s *Service) settleShare(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, p namespace.Part) error {
	op := &wire.TxnFinishOp{Txn: p.Txn, Floor: uint64(p.Floor)}
	if !s.opts.Hooks.DropShares {
		res, err := s.ask(ctx, &wire.TxnQuery{Txn: p.Txn, Group: uint32(g), Floor: uint64(p.Floor)})
		if err != nil || res.State == wire.TxnResult_UNDECIDED {
			return err
		}
		op.Commit, op.Version = res.State == wire.TxnResult_COMMITTED, res.Version
	}
	res, err := s.finishHere(ctx, h, g, op)
	if err == nil {
		err = res.ToError("finish a share", g.String())
	}
	return err
}

// age notes which shares of other groups lie in a group that this node leads. It returns
// those that have for long, by this node's own watch, and when there will be more.
func (t *txns) age(g dfs.GroupID, parts []namespace.Part) (old []namespace.Part, next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	here := make(map[share]bool, len(parts))
	for _, p := range parts {
		k := share{g, dfs.GroupID(p.Txn.Group), p.Txn.Begun}
		here[k] = true
		since, ok := t.seen[k]
		if !ok {
			since = now
			t.seen[k] = now
		}
		due := since.Add(shareAge)
		if t.s.opts.Hooks.DropShares {
			due = now
		}
		if !due.After(now) {
			old = append(old, p)
			due = now.Add(shareAge)
		}
		if next.IsZero() || due.Before(next) {
			next = due
		}
	}
	for k := range t.seen {
		if k.group == g && !here[k] {
			delete(t.seen, k)
		}
	}
	return old, next
}

// waitOut answers a read that meets locks: it waits for their ends, for no longer than
// txnWait.
func (s *Service) waitOut(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, read func() error) error {
	err := read()
	var locked *namespace.LockedError
	if !errors.As(err, &locked) {
		return err
	}
	w := s.txns.wait(h, g)
	defer w.done()
	for errors.As(err, &locked) && w.over(ctx, locked.Txn) {
		err = read()
	}
	return err
}
