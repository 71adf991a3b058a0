package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"dfsd/dfs"
	"dfsd/transport/wire"
	"google.golang.org/protobuf/proto"
)

// denied says that every complete member of a placement group denies a block.
type denied struct {
	id    dfs.BlockID
	epoch dfs.Epoch // of the map that named the members
}

func (d *denied) Error() string {
	return fmt.Sprintf("block %v: no complete member has it, by map epoch %d", d.id, d.epoch)
}

// readBlock reads logical bytes of a block, from offset on, into dst. Errors:
// *denied; Corrupt when every copy is damaged; Unavailable when no copy could be
// reached in time. REQUIRES: the range lies within length, the block's.
func (c *Client) readBlock(ctx context.Context, id dfs.BlockID, length, offset uint32, dst []byte) error {
	ctx, cancel := c.timed(ctx)
	defer cancel()
	c.watch()
	r := &blockRead{c: c, id: id, length: length, offset: offset, want: uint32(len(dst))}
	for try := 1; ; try++ {
		m, newer := c.maps.current()
		got, err := r.round(ctx, m)
		if err == nil {
			scratch := c.buffers.get(dfs.ChunkSize)
			defer scratch.release()
			defer got.release()
			return c.packers.decode(&got.info, got.first, got.buf.b, offset, dst, scratch.b[:dfs.ChunkSize])
		}
		var d *denied
		if errors.As(err, &d) || dfs.KindOf(err) == dfs.Unsupported || dfs.KindOf(err) == dfs.Corrupt && try > 1 {
			return err
		}
		if !c.awaitMap(ctx, newer, try) {
			return &dfs.Error{Kind: dfs.Unavailable, Op: "read block", Object: id.String(), Text: whereIs(m, id.PG), Err: err}
		}
	}
}

// describePatience bounds the time to learn of one block how it is stored: who asks
// wants to see what there is, not to wait for what is not.
const describePatience = 5 * time.Second

// Describe asks a store how a block is stored, by reading its last byte. Errors are
// those of a read that does not wait for stores that are away.
func (c *Client) Describe(ctx context.Context, e Extent) (dfs.BlockInfo, error) {
	return run(ctx, c, "describe block", e.Block.String(), func(ctx context.Context) (dfs.BlockInfo, error) {
		ctx, cancel := context.WithTimeout(ctx, describePatience)
		defer cancel()
		r := &blockRead{c: c, id: e.Block, length: e.BlockLength, offset: e.BlockLength - 1, want: 1}
		got, err := r.round(ctx, c.Map())
		if err != nil {
			return dfs.BlockInfo{}, err
		}
		defer got.release()
		return got.info, nil
	})
}

// whereIs says on which stores the copies are that could not be read, and what
// the map knows of these.
func whereIs(m *dfs.Map, id dfs.PGID) string {
	pg := m.PG(id)
	if pg == nil {
		return ""
	}
	var at []string
	for _, s := range pg.Complete() {
		text := s.String()
		if st := m.Store(s); st != nil {
			if n := m.Node(st.Node); n != nil {
				text += "@" + n.Name
			}
			text += " (" + st.State.String() + ")"
		}
		at = append(at, text)
	}
	if len(at) == 0 {
		return "no store has all of its placement group"
	}
	return "its copies are on " + strings.Join(at, ", ")
}

// blockRead is one range of a block on its way from the stores.
type blockRead struct {
	c            *Client
	id           dfs.BlockID
	length       uint32 // of the block
	offset, want uint32
}

// fetched is what one store sent: checked, not yet inflated.
type fetched struct {
	store dfs.StoreID
	info  dfs.BlockInfo
	first int
	buf   *buffer
	err   error
	took  time.Duration
}

func (f *fetched) release() { f.buf.release() }

// round asks the stores that may hold the block, the best first, another one
// when a store fails, and another one beside it when it is slow: as the budget
// allows, and in any case when it is silent for long.
func (r *blockRead) round(ctx context.Context, m *dfs.Map) (*fetched, error) {
	pg := m.PG(r.id.PG)
	if pg == nil {
		return nil, dfs.Errorf(dfs.Unavailable, "read block", "the map of epoch %d has no placement group %v", m.Epoch, r.id.PG)
	}
	if pg.Class.Erasure() {
		return nil, dfs.Errorf(dfs.Unsupported, "read block", "this release does not read blocks of class %v", pg.Class)
	}
	stores, complete := r.c.readOrder(m, pg)
	r.c.health.request()
	v := &verdict{id: r.id, epoch: m.Epoch, complete: complete, stores: stores}
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan *fetched, len(stores))
	asked, running := 0, 0
	var last time.Time // when a store was asked
	var failed []dfs.StoreID
	defer func() { // every request ends here, and what it brought is given back
		cancel()
		for ; running > 0; running-- {
			(<-answers).release()
		}
	}()
	ask := func() {
		store := stores[asked]
		last = time.Now()
		asked++
		running++
		r.c.work.Go(func() { answers <- r.fetch(ctx, store, m.StoreAddr(store)) })
	}
	hedge := time.NewTimer(r.c.health.readHedge())
	defer hedge.Stop()
	if len(stores) > 0 {
		ask()
	}
	for running > 0 {
		select {
		case got := <-answers:
			running--
			if got.err == nil {
				r.c.health.readDone(got.store, got.took)
				for _, s := range stores[:asked] {
					if s == got.store {
						break
					}
					if !slices.Contains(failed, s) { // it was asked earlier, and has nothing to say yet
						r.c.health.lag(s)
					}
				}
				return got, nil
			}
			got.release()
			v.note(ctx, r.c, got)
			failed = append(failed, got.store)
			if asked < len(stores) {
				ask()
				hedge.Reset(r.c.health.readHedge())
			}
		case <-hedge.C:
			if asked == len(stores) {
				continue
			}
			if silent := time.Since(last); silent < patience && !r.c.health.mayHedge() {
				hedge.Reset(patience - silent)
				continue
			}
			ask()
			hedge.Reset(r.c.health.readHedge())
		}
	}
	return nil, v.err()
}

// verdict is what a round without a good answer comes to.
type verdict struct {
	id       dfs.BlockID
	epoch    dfs.Epoch
	stores   []dfs.StoreID // as asked; the first complete of them are complete members
	complete int

	denials int   // by complete members
	corrupt error // of a copy
	other   error // of a store that may have a good copy
}

func (v *verdict) note(ctx context.Context, c *Client, got *fetched) {
	err := dfs.Wrap("get from", got.store.String(), got.err)
	isComplete := false
	for _, s := range v.stores[:v.complete] {
		isComplete = isComplete || s == got.store
	}
	switch kind := dfs.KindOf(err); {
	case kind == dfs.NotExist && isComplete:
		v.denials++
	case kind == dfs.NotExist || kind == dfs.Unknowable && !isComplete:
		// An incomplete member says nothing by not having a block.
	case kind == dfs.Corrupt:
		c.log.Warn("a copy is damaged", "block", v.id.String(), "store", got.store.String(), "cause", got.err)
		v.corrupt = err
	default:
		v.other = err
		if ctx.Err() == nil && kind != dfs.Unknowable && kind != dfs.Unsupported {
			c.health.fail(got.store)
		}
	}
}

// err is the round's error. Only if all complete members deny the block does it
// not exist; while any store may still have it, it is just not to be had.
func (v *verdict) err() error {
	switch {
	case v.complete > 0 && v.denials == v.complete:
		return &denied{id: v.id, epoch: v.epoch}
	case v.other != nil:
		return v.other
	case v.corrupt != nil:
		return v.corrupt
	}
	return dfs.Errorf(dfs.Unavailable, "read block", "no store that is known to have all of placement group %v answers", v.id.PG)
}

// fetch asks one store.
func (r *blockRead) fetch(ctx context.Context, store dfs.StoreID, addr string) *fetched {
	f := &fetched{store: store}
	start := time.Now()
	if addr == "" {
		f.err = dfs.Errorf(dfs.Unavailable, "", "the map does not say where the store is")
		return f
	}
	f.err = r.receive(ctx, f, addr)
	f.took = time.Since(start)
	return f
}

func (r *blockRead) receive(ctx context.Context, f *fetched, addr string) error {
	stream, err := wire.NewDRPCBlockClient(r.c.opts.Dial(addr)).Get(ctx, &wire.GetRequest{
		Id: r.id.Bytes(), Store: uint32(f.store), Offset: r.offset, Length: r.want,
	})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	first, last := r.offset/dfs.ChunkSize, (r.offset+r.want-1)/dfs.ChunkSize
	room := int(last-first+1) * dfs.ChunkSize // what the chunks hold at the most
	f.buf = r.c.buffers.get(min(room, dfs.MaxBlockSize))
	stored := 0 // bytes to come, by the description
	frames := stream.(interface{ RecvMsg(*wire.BlockFrame) error })
	frame := &wire.BlockFrame{}
	for n := 0; ; n++ {
		// The frame's data is decoded to where it belongs, unless it is too long.
		frame.Data = f.buf.b[len(f.buf.b):]
		err := frames.RecvMsg(frame)
		if errors.Is(err, io.EOF) && n > 0 {
			break
		}
		if err != nil {
			return err
		}
		if n == 0 {
			if stored, err = r.head(f, frame.Head); err != nil {
				return err
			}
		}
		if len(frame.Data) > stored-len(f.buf.b) {
			return dfs.Errorf(dfs.Corrupt, "", "more than the %d bytes that were announced", stored)
		}
		f.buf.b = append(f.buf.b, frame.Data...) // in place
	}
	if len(f.buf.b) != stored {
		return dfs.Errorf(dfs.Corrupt, "", "%d bytes of %d", len(f.buf.b), stored)
	}
	return verify(r.id, &f.info, f.first, f.buf.b)
}

// head takes the answer's head in, and returns how many stored bytes follow.
func (r *blockRead) head(f *fetched, b []byte) (int, error) {
	head := &wire.GetHead{}
	if err := proto.Unmarshal(b, head); err != nil {
		return 0, &dfs.Error{Kind: dfs.Corrupt, Text: "the head of the answer cannot be read", Err: err}
	}
	var err error
	if f.info, err = head.GetDesc().ToDFS(); err != nil {
		kind := dfs.Corrupt
		if dfs.KindOf(err) == dfs.Unsupported { // of a later release: no other copy is better
			kind = dfs.Unsupported
		}
		return 0, &dfs.Error{Kind: kind, Text: "the block's description is wrong", Err: err}
	}
	if f.info.Length != r.length {
		return 0, dfs.Errorf(dfs.Corrupt, "", "the block has %d bytes, and the metadata say %d", f.info.Length, r.length)
	}
	first, end := f.info.Range(r.offset, r.want)
	if head.GetFirst() != uint32(first) {
		return 0, dfs.Errorf(dfs.Corrupt, "", "chunks from %d on, in place of %d", head.GetFirst(), first)
	}
	f.first = first
	stored := 0
	for _, c := range f.info.Chunks[first:end] {
		stored += int(c.Len)
	}
	return stored, nil
}
