package storage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/transport/wire"
)

const (
	// sourceTimeout bounds one request to a source: a block of 16 MiB at half
	// a MiB per second.
	sourceTimeout = 30 * time.Second

	// refillMemory bounds the payloads that the node's refills hold at a time.
	refillMemory = 128 << 20

	// passFailures is after how many failed blocks a pass is given up: the
	// next one starts with fresh sources.
	passFailures = 64
)

// source is a complete member that can be pulled from.
type source struct {
	id   dfs.StoreID
	addr string
}

// sources lists the complete members of a PG in the newest map but one, those
// that are up first, in random order.
func (r *refiller) sources(pg dfs.PGID, but dfs.StoreID) []source {
	m, _ := r.s.maps.current.get()
	if m == nil || m.PG(pg) == nil {
		return nil
	}
	type ranked struct {
		source
		order float64
	}
	var all []ranked
	for _, id := range m.PG(pg).Complete() {
		addr := m.StoreAddr(id)
		if id == but || addr == "" {
			continue
		}
		order := r.s.opts.Random()
		if m.Store(id).State != dfs.StoreUp {
			order++ // after those that are up
		}
		all = append(all, ranked{source{id, addr}, order})
	}
	slices.SortFunc(all, func(a, b ranked) int { return cmp.Compare(a.order, b.order) })
	out := make([]source, len(all))
	for i, x := range all {
		out[i] = x.source
	}
	return out
}

// pass scans one complete member and pulls what is listed and not here. It
// returns nil when everything that is listed is here and durable. One source
// suffices: it holds everything that was acknowledged. Another pass begins
// from the start, since a tombstone may lie at another epoch at another member;
// what is here already costs a look into the index.
func (r *refiller) pass(job *refill) error {
	sources := r.sources(job.pg, job.store.ID())
	if len(sources) == 0 {
		return dfs.Errorf(dfs.Unavailable, "refill", "%v has no complete member to pull from", job.pg)
	}
	if err := job.doubt(); err != nil {
		return dfs.Wrap("doubt old blocks", job.pg.String(), err)
	}
	job.done.Store(0)
	job.left.Store(0)
	ctx := job.ctx
	if r.s.opts.Hooks.RefillDoneBeforeDurable {
		ctx = r.s.ctx
	}
	p := &pass{r: r, job: job, work: make(chan engine.Entry, maxScan)}
	var fetchers sync.WaitGroup
	for range refillFetches {
		fetchers.Go(func() { p.fetch(ctx) })
	}
	err := p.scan(ctx, sources[0])
	close(p.work)
	if r.s.opts.Hooks.RefillDoneBeforeDurable {
		r.pulls.Go(fetchers.Wait)
		return err
	}
	fetchers.Wait()
	return errors.Join(err, p.failure())
}

// doubt has the owners asked about every block that a member which is complete
// through nothing has from before: blocks of a share that it once had and was
// relieved of, or of a disk that was put back. They may have been deleted, and
// everybody have dropped the tombstones (dfs.PG.TombstoneFloor): then no source
// lists anything, and nobody would ever delete them. A member that is complete
// through something gets every tombstone that it lacks from its source.
//
// It is durable before the refill goes on, so that a crash before the member is
// complete finds the refill, and this, to do again, and one after it finds the
// blocks undecided. What the passes pull comes with the source's state.
func (job *refill) doubt() error {
	if job.after > 0 || job.doubted || job.store.s.opts.Hooks.TrustOldBlocks {
		return nil
	}
	n, err := job.store.Doubt(job.ctx, job.pg, job.joined)
	if err != nil {
		return err
	}
	job.doubted = true
	if n > 0 {
		job.store.log().Info("the owners are asked about the blocks from before", "pg", job.pg, "joined", job.joined, "blocks", n)
		job.store.s.count.doubted.Add(uint64(n))
	}
	return nil
}

// pass is one pass of a refill under way.
type pass struct {
	r    *refiller
	job  *refill
	work chan engine.Entry // listed and not here

	mu     sync.Mutex // guards what follows
	failed int
	cause  error // of the first failure
}

func (p *pass) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed++
	p.cause = cmp.Or(p.cause, err)
}

func (p *pass) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == 0 {
		return nil
	}
	return &dfs.Error{Kind: dfs.KindOf(p.cause), Op: "refill", Object: p.job.pg.String(), Text: "some blocks are missing", Err: p.cause}
}

func (p *pass) hopeless() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed >= passFailures
}

// scan lists what a source holds of c < epoch < j and queues what is not here.
func (p *pass) scan(ctx context.Context, from source) error {
	var cursor []byte
	for !p.hopeless() {
		reply, err := p.scanPage(ctx, from, cursor)
		if err != nil {
			return dfs.Wrap("scan", from.id.String(), err)
		}
		for _, we := range reply.Entries {
			e, err := p.entry(we)
			if err != nil {
				return dfs.Wrap("scan", from.id.String(), err)
			}
			needed, err := p.job.store.needs(e)
			if err != nil {
				return err
			}
			if !needed {
				continue
			}
			p.job.left.Add(uint64(e.Stored))
			select {
			case p.work <- e:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if len(reply.Next) == 0 {
			return nil
		}
		if bytes.Equal(reply.Next, cursor) {
			return dfs.Errorf(dfs.Invalid, "scan", "store %v repeats itself", from.id)
		}
		cursor = reply.Next
	}
	return nil // the failures say why
}

func (p *pass) scanPage(ctx context.Context, from source, cursor []byte) (*wire.ScanReply, error) {
	ctx, cancel := context.WithTimeout(ctx, sourceTimeout)
	defer cancel()
	return wire.NewDRPCBlockClient(p.r.s.opts.Dial(from.addr)).Scan(ctx, &wire.ScanRequest{
		Store: uint32(from.id), Pg: uint32(p.job.pg), After: uint64(p.job.after), Before: uint64(p.job.joined), Cursor: cursor, Limit: maxScan,
	})
}

// entry reads an entry of a scan and refuses one that was not asked for.
func (p *pass) entry(we *wire.ScanEntry) (engine.Entry, error) {
	id, err := blockID(we.Id, we.Shard)
	if err != nil {
		return engine.Entry{}, err
	}
	e := engine.Entry{ID: id, Epoch: dfs.Epoch(we.Epoch), Tombstone: we.Tombstone, Length: we.Length, Stored: we.Stored}
	if id.PG != p.job.pg || e.Epoch <= p.job.after || e.Epoch >= p.job.joined || e.Stored > dfs.MaxBlockSize {
		return engine.Entry{}, dfs.Errorf(dfs.Invalid, "read scan", "block %v of epoch %d with %d bytes was not asked for", id, e.Epoch, e.Stored)
	}
	return e, nil
}

// needs reports whether an entry of another member is not here yet.
func (st *store) needs(e engine.Entry) (bool, error) {
	have, err := st.Stat(e.ID, e.Shard)
	switch {
	case dfs.KindOf(err) == dfs.NotExist:
		return true, nil
	case err != nil:
		return false, err
	case e.Tombstone:
		return !have.Tombstone || have.Epoch < e.Epoch, nil
	}
	return have.Lost, nil // present, or deleted since
}

// fetch pulls what is queued until the queue ends.
func (p *pass) fetch(ctx context.Context) {
	for e := range p.work {
		if ctx.Err() != nil || p.hopeless() {
			p.fail(dfs.Errorf(dfs.Unavailable, "refill", "the pass was given up"))
			continue
		}
		if err := p.take(ctx, e); err != nil {
			p.fail(err)
			continue
		}
		p.job.left.Add(-uint64(e.Stored))
		p.job.done.Add(uint64(e.Stored))
	}
}

// take makes one entry durable here.
func (p *pass) take(ctx context.Context, e engine.Entry) error {
	st := p.job.store
	if e.Tombstone {
		return st.tombstone(ctx, engine.DeleteRequest{ID: e.ID, Shard: e.Shard, Epoch: e.Epoch, Refill: true})
	}
	for left := int(e.Stored); left > 0; left -= refillBurst {
		if err := p.r.limit.WaitN(ctx, min(left, refillBurst)); err != nil {
			return err
		}
	}
	return p.r.pullBlock(ctx, st, e)
}

// pullBlock is pullHeld with memory for the block: for the greatest, when its entry
// has no size.
func (r *refiller) pullBlock(ctx context.Context, st *store, e engine.Entry) error {
	reserve := int64(cmp.Or(e.Stored, dfs.MaxBlockSize))
	if err := r.memory.Acquire(ctx, reserve); err != nil {
		return err
	}
	defer r.memory.Release(reserve)
	return r.pullHeld(ctx, st, e)
}

// pullHeld fetches a block from a complete member, checks it, and puts it
// into the store under its epoch. A source that fails is followed by another.
func (r *refiller) pullHeld(ctx context.Context, st *store, e engine.Entry) error {
	var failures []error
	for _, from := range r.sources(e.ID.PG, st.ID()) {
		req, err := r.fetchBlock(ctx, from, e)
		if err == nil {
			err = st.writing.do(func() error { return st.Put(ctx, req) })
			r.s.buffers.put(req.Payload)
			if err == nil {
				r.s.count.pulled.Add(1)
				r.s.count.pulledBytes.Add(uint64(len(req.Payload)))
			}
			return err
		}
		if ctx.Err() != nil {
			return err
		}
		failures = append(failures, dfs.Wrap("fetch block from "+from.id.String(), e.ID.String(), err))
	}
	if len(failures) == 0 {
		return dfs.Errorf(dfs.Unavailable, "fetch block", "%v: no complete member to pull from", e.ID)
	}
	// Listed a moment ago and gone everywhere: it was deleted. Either the
	// tombstone has come here too, or the next scan does not list it.
	if needed, err := st.needs(e); err == nil && !needed {
		return nil
	}
	return errors.Join(failures...)
}

// fetchBlock reads a whole block from a source into a buffer of its own.
// Errors: Corrupt when what came does not fit its checksums.
func (r *refiller) fetchBlock(ctx context.Context, from source, e engine.Entry) (_ engine.PutRequest, err error) {
	ctx, cancel := context.WithTimeout(ctx, sourceTimeout)
	defer cancel()
	stream, err := wire.NewDRPCBlockClient(r.s.opts.Dial(from.addr)).Get(ctx, &wire.GetRequest{
		Id: e.ID.Bytes(), Shard: uint32(e.Shard), Store: uint32(from.id), Pull: true,
	})
	if err != nil {
		return engine.PutRequest{}, err
	}
	defer func() { _ = stream.Close() }()
	frame := r.s.buffers.frame()
	defer r.s.buffers.free(frame)
	if err := recvFrame(stream, frame); err != nil {
		return engine.PutRequest{}, err
	}
	req, err := blockOf(frame.Head, e)
	if err != nil {
		return engine.PutRequest{}, err
	}
	req.Payload = r.s.buffers.get(req.Info.StoredLen())
	if err = receivePayload(stream, frame.Data, req.Payload); err == nil {
		err = checkSums(&req)
	}
	if err != nil {
		r.s.buffers.put(req.Payload)
		return engine.PutRequest{}, err
	}
	return req, nil
}

// blockOf reads the head of an answer to a Get of a whole block.
func blockOf(head []byte, e engine.Entry) (engine.PutRequest, error) {
	var h wire.GetHead
	if len(head) == 0 || proto.Unmarshal(head, &h) != nil {
		return engine.PutRequest{}, dfs.Errorf(dfs.Invalid, "read block", "the first frame has no head")
	}
	info, err := h.Desc.ToDFS()
	if err != nil {
		return engine.PutRequest{}, err
	}
	if h.First != 0 || h.Epoch == 0 || e.Stored != 0 && (info.StoredLen() != int(e.Stored) || dfs.Epoch(h.Epoch) != e.Epoch) {
		return engine.PutRequest{}, dfs.Errorf(dfs.Invalid, "read block", "%v: %d bytes of epoch %d came, the scan said %d of %d",
			e.ID, info.StoredLen(), h.Epoch, e.Stored, e.Epoch)
	}
	return engine.PutRequest{
		ID: e.ID, Shard: e.Shard, Epoch: dfs.Epoch(h.Epoch), Info: info, Hint: h.Hint.ToDFS(), Refill: true,
		// The repair of a block that is here keeps its state. If it was deleted
		// meanwhile, and the tombstone dropped, the block is asked about.
		Decided: !h.Undecided && e.Stored != 0,
	}, nil
}

// checkSums holds the source, and not this store, to what it sent.
func checkSums(req *engine.PutRequest) error {
	rest := req.Payload
	for i, c := range req.Info.Chunks {
		if dfs.ChunkSum(req.ID, req.Shard, i, rest[:c.Len]) != c.Sum {
			return dfs.Errorf(dfs.Corrupt, "read block", "%v: checksum of chunk %d is wrong", req.ID, i)
		}
		rest = rest[c.Len:]
	}
	return nil
}
