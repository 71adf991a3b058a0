package meta

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// maxLinkQueue and maxLinkBytes bound the batches that wait for one lane of one
// peer: a peer that is slower than that loses messages, which Raft sends again.
const (
	maxLinkQueue = 256
	maxLinkBytes = 32 << 20
)

// linkRetry is the pause after a stream broke or could not be opened.
const linkRetry = 200 * time.Millisecond

// learnPause is the least time between two fetches of the map for callers that
// are not in it.
const learnPause = time.Second

// linkTimeout is how long one batch may take to be handed to the network.
const linkTimeout = 5 * time.Second

// links carries Raft's bytes to the other meta nodes: one stream a lane and
// peer, each with its own bounded queue.
type links struct {
	s  *Service
	wg sync.WaitGroup

	mu      sync.Mutex // guards what follows
	queues  map[linkKey]*linkQueue
	learned time.Time // when the map was last fetched for a caller
	closed  bool
}

type linkKey struct {
	to   dfs.NodeID
	lane raftgroup.Lane
}

// linkQueue holds the batches that wait for one lane of one peer.
type linkQueue struct {
	batches chan []byte
	bytes   atomic.Int64 // of batches
}

// add queues a batch; false says that there is no room for it. It is called with
// links.mu held.
func (q *linkQueue) add(msg []byte) bool {
	if q.bytes.Load()+int64(len(msg)) > maxLinkBytes {
		return false
	}
	select {
	case q.batches <- msg:
		q.bytes.Add(int64(len(msg)))
		return true
	default:
		return false
	}
}

func newLinks(s *Service) *links {
	return &links{s: s, queues: map[linkKey]*linkQueue{}}
}

func (l *links) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.wg.Wait()
}

// send queues a batch; false says that it was dropped.
func (l *links) send(to dfs.NodeID, lane raftgroup.Lane, msg []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	k := linkKey{to, lane}
	q := l.queues[k]
	if q == nil {
		q = &linkQueue{batches: make(chan []byte, maxLinkQueue)}
		l.queues[k] = q
		l.wg.Go(func() { l.run(k, q) })
	}
	return q.add(msg)
}

// addr is where a meta node is, "" while no map says.
func (l *links) addr(id dfs.NodeID) string {
	if m := l.s.maps.current(); m != nil {
		if n := m.Node(id); n != nil && !n.Replaced {
			return n.Addr
		}
	}
	return ""
}

// run sends what is queued for one lane of one peer until the service ends.
func (l *links) run(k linkKey, q *linkQueue) {
	ctx := l.s.ctx
	var stream wire.DRPCRaft_MessagesClient
	var down time.Time // the stream broke: what waits until then is dropped
	defer func() {
		if stream != nil {
			_ = stream.Close()
		}
	}()
	for {
		var msg []byte
		select {
		case msg = <-q.batches:
			q.bytes.Add(-int64(len(msg)))
		case <-ctx.Done():
			return
		}
		if stream == nil {
			if time.Now().Before(down) {
				continue
			}
			if stream = l.open(ctx, k.to); stream == nil {
				down = time.Now().Add(linkRetry)
				continue
			}
		}
		if !sendWithin(stream, &wire.RaftBatch{Data: msg}) {
			stream, down = nil, time.Now().Add(linkRetry)
		}
	}
}

// sendWithin sends on a stream that is closed when that takes too long: a peer
// that is frozen must not hold messages back that would be stale by then.
func sendWithin(stream wire.DRPCRaft_MessagesClient, b *wire.RaftBatch) bool {
	stuck := time.AfterFunc(linkTimeout, func() { _ = stream.Close() })
	err := stream.Send(b)
	if !stuck.Stop() || err != nil {
		_ = stream.Close()
		return false
	}
	return true
}

func (l *links) open(ctx context.Context, to dfs.NodeID) wire.DRPCRaft_MessagesClient {
	addr := l.addr(to)
	if addr == "" {
		return nil
	}
	stream, err := wire.NewDRPCRaftClient(l.s.opts.Dial(addr)).Messages(ctx)
	if err != nil || !sendWithin(stream, &wire.RaftBatch{Hello: l.hello()}) {
		return nil
	}
	return stream
}

// hello is what this node says of itself at the start of every stream.
func (l *links) hello() *wire.RaftHello {
	lineage, since := l.s.opts.Identity.Lineage()
	return &wire.RaftHello{Lineage: wire.FromLineage(lineage), Epoch: uint64(since), Addr: l.s.opts.Addr}
}

// openSnapshot starts a snapshot stream to a peer.
func (l *links) openSnapshot(ctx context.Context, to dfs.NodeID) (raftgroup.SnapshotStream, error) {
	addr := l.addr(to)
	if addr == "" {
		return nil, dfs.Errorf(dfs.Unavailable, "send snapshot", "the address of node %v is not known", to)
	}
	stream, err := wire.NewDRPCRaftClient(l.s.opts.Dial(addr)).Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&wire.RaftBatch{Hello: l.hello()}); err != nil {
		_ = stream.Close()
		return nil, err
	}
	return &snapshotStream{stream}, nil
}

// snapshotStream carries chunks over either end of the service's stream.
type snapshotStream struct {
	batches interface {
		Send(*wire.RaftBatch) error
		Recv() (*wire.RaftBatch, error)
		Close() error
	}
}

// Send implements raftgroup.SnapshotStream. An end that the other has left says
// why when it is read.
func (k *snapshotStream) Send(chunk []byte) error {
	err := k.batches.Send(&wire.RaftBatch{Data: chunk})
	if errors.Is(err, io.EOF) {
		_, err = k.batches.Recv()
	}
	return err
}

// Recv implements raftgroup.SnapshotStream.
func (k *snapshotStream) Recv() ([]byte, error) {
	b, err := k.batches.Recv()
	if err != nil {
		return nil, err
	}
	return b.Data, nil
}

// Close implements raftgroup.SnapshotStream.
func (k *snapshotStream) Close() error { return k.batches.Close() }

// raftServer is the receiving side.
type raftServer struct{ s *Service }

// caller is who sends on one stream of Raft's bytes.
type caller struct {
	transport.Peer
	hello   *wire.RaftHello
	checked *dfs.Map // check passed by it
}

// accept checks who opened a stream and reads its first message.
func (r *raftServer) accept(ctx context.Context, recv func() (*wire.RaftBatch, error)) (*caller, *raftgroup.Host, error) {
	h, err := r.s.raft()
	if err != nil {
		return nil, nil, err
	}
	p, ok := transport.PeerFrom(ctx)
	if !ok || p.Kind != transport.KindNode || p.Node == 0 {
		return nil, nil, dfs.Errorf(dfs.Permission, "raft", "only meta nodes may send Raft messages")
	}
	b, err := recv()
	if err != nil {
		return nil, nil, err
	}
	if b.Hello == nil || len(b.Hello.Lineage.GetOffered()) > dfs.MaxOffered {
		return nil, nil, dfs.Errorf(dfs.Invalid, "raft", "the stream begins without a greeting")
	}
	if err := p.Proves(b.Hello.Addr); err != nil {
		return nil, nil, err
	}
	c := &caller{Peer: p, hello: b.Hello}
	r.s.meet(c)
	return c, h, c.check(r.s.maps.current())
}

// meet fetches the map when it lacks a caller, at most once a learnPause. The
// entry of the control group's log that would name it may be one that only this
// caller can send, or that needs its vote. A fetch that fails leaves the refusal
// to check: the caller tries again.
func (s *Service) meet(c *caller) {
	m := s.maps.current()
	if m == nil || m.Node(c.Node) != nil {
		return
	}
	s.links.mu.Lock()
	early := time.Since(s.links.learned) < learnPause
	if !early {
		s.links.learned = time.Now()
	}
	s.links.mu.Unlock()
	if early {
		return
	}
	if err := s.learnMap(max(m.Epoch+1, dfs.Epoch(c.hello.Epoch))); err != nil {
		s.log.Info("a node that is not in the map speaks Raft, and no newer map is found", "peer", c.Addr, "id", c.Node, "cause", err)
	}
}

// check holds a sender to the control group's record as far as this node has
// applied it. A wiped node that comes back under an old number is refused here,
// and a copy or an old state of a data directory, which may have forgotten what
// it acknowledged: they do not know the start on record. A node whose last
// accepted registration is not in the map yet knows more than this one.
//
// A start that is not on record yet may speak, since there may be no leader
// to register with, but from the address on record only: one address has one
// process, so it is no copy beside a living original.
func (c *caller) check(m *dfs.Map) error {
	if m == c.checked {
		return nil
	}
	n := m.Node(c.Node)
	switch {
	case n == nil:
		return dfs.Errorf(dfs.Unavailable, "raft", "node %v is not registered here yet", c.Node)
	case n.Replaced || n.Incarnation.Mark != c.Incarnation.Mark:
		return dfs.Errorf(dfs.Stale, "raft", "node %v is not the incarnation on record", c.Node)
	case uint64(m.Epoch) < c.hello.Epoch:
	case !c.hello.Lineage.ToDFS().Holds(n.Incarnation.Start):
		return dfs.Errorf(dfs.Stale, "raft", "the data directory of node %v is a copy or was rolled back: it does not know start %016x", c.Node, n.Incarnation.Start)
	case n.Addr != c.hello.Addr:
		return dfs.Errorf(dfs.Unavailable, "raft", "node %v is on record at %s, not %s", c.Node, n.Addr, c.hello.Addr)
	}
	c.checked = m
	return nil
}

// Messages implements the Raft service.
func (r *raftServer) Messages(stream wire.DRPCRaft_MessagesStream) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	done := make(chan struct{})
	defer close(done)
	wg.Go(func() { // a shutdown does not wait for a stream that has no end
		select {
		case <-transport.Draining(stream.Context()):
			_ = stream.Close()
		case <-done:
		}
	})
	c, h, err := r.accept(stream.Context(), stream.Recv)
	if err != nil {
		return err
	}
	for {
		b, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := c.check(r.s.maps.current()); err != nil { // the node may have started anew
			return err
		}
		if err := h.Step(c.Node, b.Data); err != nil {
			return err
		}
	}
}

// Snapshot implements the Raft service.
func (r *raftServer) Snapshot(stream wire.DRPCRaft_SnapshotStream) error {
	c, h, err := r.accept(stream.Context(), stream.Recv)
	if err != nil {
		return err
	}
	// A sender that is frozen must not keep others from sending.
	stuck := time.AfterFunc(snapshotTimeout, func() { _ = stream.Close() })
	defer stuck.Stop()
	return h.ReceiveSnapshot(stream.Context(), c.Node, &patientStream{snapshotStream{stream}, stuck})
}

// snapshotTimeout is how long a receiver waits for the next chunk of a snapshot.
const snapshotTimeout = 30 * time.Second

// patientStream closes the stream when a chunk takes too long to come.
type patientStream struct {
	snapshotStream
	stuck *time.Timer
}

// Recv implements raftgroup.SnapshotStream.
func (p *patientStream) Recv() ([]byte, error) {
	p.stuck.Reset(snapshotTimeout)
	defer p.stuck.Stop()
	return p.snapshotStream.Recv()
}
