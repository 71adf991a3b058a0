package storage

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/transport/wire"
)

// beats sends heartbeats to every meta node, each on its own, so that a slow
// one delays no other.
//
// A goroutine a meta node; retarget starts and stops them as the map says, run
// waits for them.
type beats struct {
	s      *Service
	senses sync.WaitGroup

	mu      sync.Mutex // guards what follows
	senders map[string]*sender
	running bool
}

// sender sends heartbeats to one meta node, one at a time.
type sender struct {
	addr   string
	now    chan struct{} // a beat is due before the next tick
	cancel context.CancelFunc
}

func newBeats(s *Service) *beats { return &beats{s: s, senders: map[string]*sender{}} }

// run sends heartbeats until the service ends.
func (b *beats) run() {
	b.mu.Lock()
	b.running = true
	b.mu.Unlock()
	b.retarget()
	<-b.s.ctx.Done()
	b.mu.Lock()
	b.running = false
	b.mu.Unlock()
	b.senses.Wait()
}

// retarget makes the senders those of the known meta nodes.
func (b *beats) retarget() {
	addrs := b.s.opts.Metas.Addrs()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.running {
		return
	}
	for addr, snd := range b.senders {
		if !slices.Contains(addrs, addr) {
			snd.cancel()
			delete(b.senders, addr)
		}
	}
	for _, addr := range addrs {
		if b.senders[addr] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(b.s.ctx)
		snd := &sender{addr: addr, now: make(chan struct{}, 1), cancel: cancel}
		b.senders[addr] = snd
		b.senses.Go(func() {
			defer cancel()
			b.send(ctx, snd)
		})
	}
}

// wake sends heartbeats to all at once: there is something new to tell.
func (b *beats) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, snd := range b.senders {
		poke(snd.now)
	}
}

// send is the life of a sender.
func (b *beats) send(ctx context.Context, snd *sender) {
	tick := time.NewTicker(b.s.opts.Heartbeat)
	defer tick.Stop()
	failing, worry := false, slog.LevelInfo // as it was logged
	for {
		err := b.beat(ctx, snd.addr)
		if ctx.Err() != nil {
			return
		}
		if level := b.s.worry(); err != nil && (!failing || level > worry) {
			b.s.log.Log(ctx, level, "heartbeats do not reach a meta node", "meta", snd.addr, "cause", err)
			worry = level
		}
		failing = err != nil
		select {
		case <-tick.C:
		case <-snd.now:
		case <-ctx.Done():
			return
		}
	}
}

// beat sends one heartbeat. It is given up after two ticks, or a second: the
// next one has newer news.
func (b *beats) beat(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, max(2*b.s.opts.Heartbeat, time.Second))
	defer cancel()
	reply, err := wire.NewDRPCMetaClient(b.s.opts.Dial(addr)).Heartbeat(ctx, b.request())
	if err != nil {
		return err
	}
	b.s.maps.heard(dfs.Epoch(reply.Epoch))
	// A meta node that has not applied the registration yet does not know.
	if reply.Register && reply.Epoch >= b.s.registered.Load() {
		poke(b.s.registerNow)
	}
	return nil
}

// request says how the stores are. It waits for no disk.
func (b *beats) request() *wire.HeartbeatRequest {
	req := &wire.HeartbeatRequest{
		Node: uint32(b.s.opts.Node()), Incarnation: wire.FromIncarnation(b.s.opts.Incarnation()),
	}
	for _, st := range b.s.stores {
		if st.ID() == 0 || st.refused.Load() != nil {
			continue
		}
		x := st.sample.Load()
		if x == nil {
			x = &sample{}
		}
		state := x.State
		if st.failed() {
			state = engine.StateFailed
		}
		write, sync, read := st.ages()
		req.Stores = append(req.Stores, &wire.StoreBeat{
			Store: uint32(st.ID()), Incarnation: wire.FromIncarnation(st.Identity().Incarnation),
			Persisted: uint64(st.MapEpoch()), State: uint32(state),
			WriteAge: write.Milliseconds(), SyncAge: sync.Milliseconds(), ReadAge: read.Milliseconds(),
			Capacity: x.capacity, Used: x.used, Blocks: x.Blocks, LastSeq: x.LastSeq,
			Live: x.LiveBytes, Device: st.disk, Undecided: x.Undecided, Trash: x.Trash, TrashBytes: x.TrashBytes,
			Refills: b.s.refill.progressOf(st),
		})
	}
	return req
}
