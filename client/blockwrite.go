package client

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

const (
	// patience is how long no member at all may answer before the attempt counts
	// as slow, and how long a store that is read may be silent before another one
	// is asked whatever the budget says.
	patience = 2 * time.Second

	// attemptTimeout ends an attempt to store a block: a store that hangs, or
	// lies behind a broken link, must not take the block's whole time.
	attemptTimeout = 20 * time.Second

	// maxRefusals is how many attempts may be refused for good. One store that
	// refuses all is avoided; where different ones do, it is the request.
	maxRefusals = 4
)

// writeBlock stores a block of an inode on every acting member of a placement
// group of the class, durably, and returns its name; the caller lets the block
// go. Errors: Unavailable, Fenced when the session is lost, and others; nothing
// will refer to what was stored then.
func (c *Client) writeBlock(ctx context.Context, s *session, class dfs.Class, ino dfs.Ino, hint *wire.BlockHint, b *encoded) (dfs.BlockID, error) {
	ctx, cancel := c.timed(ctx)
	defer cancel()
	ctx, cancel2 := join(ctx, s.ctx)
	defer cancel2()
	c.watch()
	c.health.request()
	w := &blockWrite{c: c, s: s, class: class, ino: ino, hint: hint, b: b, avoid: c.health.failing()}
	for try := 1; ; try++ {
		id, err := w.try(ctx)
		if err == nil {
			return id, nil
		}
		w.last = err
		if s.ctx.Err() != nil {
			return id, context.Cause(s.ctx)
		}
		switch dfs.KindOf(err) {
		case dfs.Invalid, dfs.TooLarge, dfs.Internal, dfs.WrongCluster, dfs.Permission, dfs.Unsupported:
			if w.refusals++; w.refusals == maxRefusals {
				return id, dfs.Wrap("store block", "", err)
			}
		}
		if ctx.Err() != nil || !w.wait(ctx, try) {
			return id, &dfs.Error{Kind: dfs.Unavailable, Op: "store block", Text: fmt.Sprintf("given up after %d attempts", try), Err: w.last}
		}
	}
}

// blockWrite is one block on its way to the stores.
type blockWrite struct {
	c     *Client
	s     *session
	class dfs.Class
	ino   dfs.Ino
	hint  *wire.BlockHint
	b     *encoded

	avoid map[dfs.StoreID]bool // stores that just failed
	last  error

	wanted   bool // placement groups of the class have been asked for
	refusals int  // attempts that ended as if waiting could not help

	names []dfs.BlockID // of the try under way

	stale dfs.Epoch       // a store refused a map of this epoch: a newer one exists
	newer <-chan struct{} // closed when there is a newer map than the last one tried
}

// wait spaces attempts: none while another placement group is to be had and
// the budget lasts, else until the map changes or a pause is over.
func (w *blockWrite) wait(ctx context.Context, try int) bool {
	if w.stale > 0 {
		if m := w.c.Map(); m.Epoch <= w.stale {
			rctx, cancel := context.WithTimeout(ctx, time.Second+w.c.policy.Delay(try))
			defer cancel()
			_, _ = w.c.getMap(rctx, &wire.GetMapRequest{Known: uint64(w.stale), Floor: uint64(w.stale) + 1})
		}
		w.stale = 0
		if try == 1 {
			return ctx.Err() == nil
		}
	}
	m := w.c.Map()
	if p, clean := w.choose(m); p != nil && clean && w.c.health.mayHedge() {
		return ctx.Err() == nil
	}
	return w.c.awaitMap(ctx, w.newer, try)
}

func (w *blockWrite) choose(m *dfs.Map) (*dfs.PG, bool) {
	return choosePG(m, w.class, w.avoid, w.c.opts.Rand, func(a, b *dfs.PG) bool {
		return w.c.health.load(a.Active.Stores) < w.c.health.load(b.Active.Stores)
	})
}

// want asks for placement groups of the class, once, where there are none: the
// first write to a class may be the first that anyone hears of it. A map that has
// them ends the wait for one; without an answer the write waits all the same.
func (w *blockWrite) want(ctx context.Context) {
	if w.wanted {
		return
	}
	w.wanted = true
	ctx, cancel := context.WithTimeout(ctx, metas.AttemptTimeout)
	defer cancel()
	if err := w.c.wantClass(ctx, w.class); err != nil {
		w.c.log.Warn("no placement groups could be asked for", "class", w.class.String(), "cause", err)
	}
}

// try stores the block once, and beside it a second time, elsewhere and under
// another name, when a member is slow. The first whole one is taken.
func (w *blockWrite) try(ctx context.Context) (stored dfs.BlockID, err error) {
	defer func() { // after every attempt has stopped
		for _, id := range w.names {
			if err != nil || id != stored {
				w.s.letGo(id)
			}
		}
		w.names = w.names[:0]
	}()
	first, err := w.start(ctx)
	if err != nil {
		return dfs.BlockID{}, err
	}
	defer first.stop()
	select {
	case <-first.done:
		return first.id, w.judge(first)
	case <-first.lagging:
	}
	for id := range first.unanswered() {
		w.avoid[id] = true
	}
	if p, clean := w.choose(w.c.Map()); p == nil || !clean || !w.c.health.mayHedge() {
		<-first.done
		return first.id, w.judge(first)
	}
	second, err := w.start(ctx)
	if err != nil {
		<-first.done
		return first.id, w.judge(first)
	}
	defer second.stop()
	select {
	case <-first.done:
	case <-second.done:
		first, second = second, first
	}
	if w.judge(first) == nil {
		return first.id, nil
	}
	<-second.done
	return second.id, w.judge(second)
}

// judge returns how an attempt that is done ended, and notes who failed.
func (w *blockWrite) judge(a *attempt) error {
	switch kind := dfs.KindOf(a.err); {
	case a.err == nil:
		return nil
	case kind == dfs.Stale:
		w.stale = a.epoch
	default:
		w.avoid[a.failed] = true
	}
	return a.err
}

// attempt is one try to store a block under one name.
type attempt struct {
	id     dfs.BlockID
	epoch  dfs.Epoch // of the map
	cancel context.CancelFunc

	lagging chan struct{} // closed when a member is slow
	done    chan struct{} // closed when all members have answered, or were given up after one failed
	err     error         // after done
	failed  dfs.StoreID   // after done: whose error it is

	mu      sync.Mutex
	waiting map[dfs.StoreID]bool
}

func (a *attempt) unanswered() map[dfs.StoreID]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[dfs.StoreID]bool, len(a.waiting))
	for id := range a.waiting {
		out[id] = true
	}
	return out
}

// stop gives the attempt up and waits for its goroutines: the block's bytes are
// the caller's again.
func (a *attempt) stop() {
	a.cancel()
	<-a.done
}

// start chooses a placement group, names the block and begins to send it.
func (w *blockWrite) start(ctx context.Context) (*attempt, error) {
	m, newer := w.c.maps.current()
	w.newer = newer
	pg, _ := w.choose(m)
	if pg == nil {
		w.want(ctx)
		return nil, noPG(m, w.class)
	}
	id, err := w.s.blockID(pg.ID, w.ino)
	if err != nil {
		return nil, err
	}
	w.names = append(w.names, id)
	a := &attempt{id: id, epoch: m.Epoch, lagging: make(chan struct{}), done: make(chan struct{}), waiting: map[dfs.StoreID]bool{}}
	ctx, a.cancel = context.WithTimeout(ctx, attemptTimeout)
	info := w.b.info(id)
	desc := wire.FromBlockInfo(&info)
	results := make(chan putResult, len(pg.Active.Stores))
	for _, store := range pg.Active.Stores {
		head := &wire.PutHead{Id: id.Bytes(), Store: uint32(store), Epoch: uint64(pg.Active.Epoch), Desc: desc, Hint: w.hint}
		a.waiting[store] = true
		w.c.work.Go(func() {
			start := time.Now()
			w.c.health.writeBegun(store)
			err := w.c.putReplica(ctx, m.StoreAddr(store), head, w.b.payload)
			w.c.health.writeDone(store, time.Since(start), err == nil)
			results <- putResult{store, err}
		})
	}
	w.c.work.Go(func() { w.gather(ctx, a, results, len(pg.Active.Stores)) })
	return a, nil
}

// putResult is one member's answer.
type putResult struct {
	store dfs.StoreID
	err   error
}

// gather waits for the members of an attempt.
func (w *blockWrite) gather(ctx context.Context, a *attempt, results <-chan putResult, n int) {
	defer close(a.done)
	defer a.cancel()
	late := time.NewTimer(patience)
	defer late.Stop()
	hedge := w.c.health.writeHedge()
	slow := false
	for acks := 0; n > 0; {
		select {
		case r := <-results:
			n--
			a.mu.Lock()
			delete(a.waiting, r.store)
			a.mu.Unlock()
			switch {
			case r.err == nil:
				if acks++; acks == 1 {
					late.Reset(hedge)
				}
			case a.err == nil:
				a.err = dfs.Wrap("put to", r.store.String(), r.err)
				a.failed = r.store
				if ctx.Err() == nil && dfs.KindOf(r.err) != dfs.Stale {
					w.c.health.fail(r.store)
				}
				a.cancel()
			}
		case <-late.C:
			if !slow {
				slow = true
				close(a.lagging)
			}
		}
	}
}

// putReplica sends one copy and waits until it is durable.
func (c *Client) putReplica(ctx context.Context, addr string, head *wire.PutHead, payload []byte) error {
	if addr == "" {
		return dfs.Errorf(dfs.Unavailable, "", "the map does not say where the store is")
	}
	encodedHead, err := proto.Marshal(head)
	if err != nil {
		return &dfs.Error{Kind: dfs.Internal, Op: "encode", Err: err}
	}
	stream, err := wire.NewDRPCBlockClient(c.opts.Dial(addr)).Put(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	frame := &wire.BlockFrame{Head: encodedHead}
	for first := true; first || len(payload) > 0; first = false {
		n := min(dfs.FrameSize, len(payload))
		frame.Data, payload = payload[:n], payload[n:]
		if err := stream.Send(frame); err != nil {
			return err
		}
		frame.Head = nil
	}
	_, err = stream.CloseAndRecv()
	return err
}
