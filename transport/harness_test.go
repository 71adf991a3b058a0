package transport_test

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
	"dfsd/transport"
	"dfsd/transport/wire"
)

var (
	clusterA = dfs.ClusterID{0xa}
	clusterB = dfs.ClusterID{0xb}
)

func identity(id transport.Identity) func() transport.Identity {
	return func() transport.Identity { return id }
}

func nodeOf(cluster dfs.ClusterID, n dfs.NodeID) transport.Identity {
	return transport.Identity{Cluster: cluster, Kind: transport.KindNode, Node: n, Incarnation: dfs.Incarnation{Mark: 0x1234, Start: 5}}
}

func clientOf(cluster dfs.ClusterID) transport.Identity {
	return transport.Identity{Cluster: cluster, Kind: transport.KindClient}
}

const (
	methodProbe     = "/dfsd.wire.Meta/Probe"
	methodKeepAlive = "/dfsd.wire.Meta/KeepAlive"
)

// metaService answers Probe with the caller's name, and KeepAlive as a test says.
type metaService struct {
	wire.DRPCMetaUnimplementedServer
	keepAlive func(ctx context.Context) error
	calls     atomic.Int64
}

func (m *metaService) Probe(ctx context.Context, in *wire.ProbeRequest) (*wire.ProbeReply, error) {
	m.calls.Add(1)
	peer, _ := transport.PeerFrom(ctx)
	return &wire.ProbeReply{Name: in.GetName(), Node: uint32(peer.Node)}, nil
}

func (m *metaService) KeepAlive(ctx context.Context, _ *wire.KeepAliveRequest) (*wire.KeepAliveReply, error) {
	m.calls.Add(1)
	if m.keepAlive != nil {
		if err := m.keepAlive(ctx); err != nil {
			return nil, err
		}
	}
	return &wire.KeepAliveReply{Ttl: 1}, nil
}

// blockService counts what is put, and sends frames for what is got.
type blockService struct {
	wire.DRPCBlockUnimplementedServer
	refuseAfter int // frames; 0: never
	got         atomic.Int64
	ended       chan error // of each Put
}

func (b *blockService) Put(stream wire.DRPCBlock_PutStream) error {
	err := b.put(stream)
	if b.ended != nil {
		b.ended <- err
	}
	if err != nil {
		return err
	}
	return stream.SendAndClose(&wire.PutReply{})
}

func (b *blockService) put(stream wire.DRPCBlock_PutStream) error {
	var frame wire.BlockFrame
	receive := stream.(interface{ RecvMsg(*wire.BlockFrame) error })
	for n := 1; ; n++ {
		err := receive.RecvMsg(&frame)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		b.got.Add(int64(len(frame.Data)))
		if n == b.refuseAfter {
			return dfs.Errorf(dfs.NoSpace, "put", "store s1 is full")
		}
	}
}

func (b *blockService) Get(in *wire.GetRequest, stream wire.DRPCBlock_GetStream) error {
	frame := &wire.BlockFrame{Data: make([]byte, dfs.FrameSize)}
	for range in.GetLength() {
		if err := stream.Send(frame); err != nil {
			return err
		}
	}
	return nil
}

// raftService takes batches until either side ends the stream.
type raftService struct {
	wire.DRPCRaftUnimplementedServer
	got atomic.Int64

	// Of the first call.
	peers     chan transport.Peer
	deadlines chan time.Time // zero: none
}

func (r *raftService) Messages(stream wire.DRPCRaft_MessagesStream) error {
	if peer, ok := transport.PeerFrom(stream.Context()); ok {
		deadline, _ := stream.Context().Deadline()
		select {
		case r.peers <- peer:
			r.deadlines <- deadline
		default:
		}
	}
	for {
		batch, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&wire.RaftDone{})
		}
		if err != nil {
			return err
		}
		r.got.Add(int64(len(batch.Data)))
	}
}

// serve starts a server of the services on a host of the network. It does not
// close it.
func serve(t testing.TB, network transport.Network, addr string, opts transport.ServerOptions, services ...any) *transport.Server {
	t.Helper()
	if opts.OpenMethods == nil {
		opts.OpenMethods = []string{methodProbe}
	}
	s := transport.NewServer(opts)
	for _, service := range services {
		var err error
		switch v := service.(type) {
		case wire.DRPCMetaServer:
			err = wire.DRPCRegisterMeta(s, v)
		case wire.DRPCBlockServer:
			err = wire.DRPCRegisterBlock(s, v)
		case wire.DRPCRaftServer:
			err = wire.DRPCRegisterRaft(s, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	lis, err := network.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	s.Start(lis)
	return s
}

// world is a simulated network with one server, "srv:1", and one pool on "cli".
type world struct {
	net    *transport.Memory
	server *transport.Server
	pool   *transport.Pool
	meta   *metaService
	block  *blockService
	raft   *raftService
}

func (w *world) metaClient() wire.DRPCMetaClient {
	return wire.NewDRPCMetaClient(w.pool.Conn("srv:1"))
}

func (w *world) probe(ctx context.Context) error {
	_, err := w.metaClient().Probe(ctx, &wire.ProbeRequest{Name: "x"})
	return err
}

func (w *world) keepAlive(ctx context.Context) error {
	_, err := w.metaClient().KeepAlive(ctx, &wire.KeepAliveRequest{})
	return err
}

type worldOptions struct {
	memory transport.MemoryOptions
	server transport.ServerOptions
	pool   transport.PoolOptions
}

func newWorld(t testing.TB, opts worldOptions) *world {
	w := &world{net: transport.NewMemory(opts.memory), meta: &metaService{}, block: &blockService{}, raft: &raftService{peers: make(chan transport.Peer, 1), deadlines: make(chan time.Time, 1)}}
	if opts.server.Identity == nil {
		opts.server.Identity = identity(nodeOf(clusterA, 1))
	}
	if opts.pool.Identity == nil {
		opts.pool.Identity = identity(clientOf(clusterA))
	}
	w.server = serve(t, w.net.Host("srv"), "srv:1", opts.server, w.meta, w.block, w.raft)
	opts.pool.Network = w.net.Host("cli")
	w.pool = transport.NewPool(opts.pool)
	return w
}

func (w *world) close() {
	w.pool.Close()
	w.server.Close()
}

// inBubble runs a test in virtual time. Goroutines that outlive it fail it.
func inBubble(t *testing.T, opts worldOptions, f func(t *testing.T, w *world)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, opts)
		defer w.close()
		f(t, w)
	})
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func wantKind(t *testing.T, err error, kind dfs.Kind) {
	t.Helper()
	if dfs.KindOf(err) != kind {
		t.Fatalf("got %v (kind %v), want kind %v", err, dfs.KindOf(err), kind)
	}
}
