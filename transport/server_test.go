package transport_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"

	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"storj.io/drpc/drpcwire"

	"dfsd/dfs"
	"dfsd/sim/bubble"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// greetingBytes is a client of cluster A in the handshake; see TestGreetingBytes.
func greetingBytes() []byte {
	b := append([]byte("dfsd-rpc"), 0, 1, 0, 1, 0, 39)
	b = append(b, clusterA[:]...)
	b = append(b, byte(transport.KindClient))
	return append(b, make([]byte, 4+8+8+2)...)
}

// shake dials the server of the world and does the handshake by hand.
func (w *world) shake(t *testing.T) net.Conn {
	t.Helper()
	conn, err := w.net.Host("raw").Dial(t.Context(), "srv:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(greetingBytes()); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 14+39)
	if _, err := io.ReadFull(conn, answer); err != nil || answer[9] != 1 {
		t.Fatalf("handshake: % x, %v", answer, err)
	}
	return conn
}

// invoke is the bytes of a request as dRPC writes them.
func invoke(method string, message []byte) []byte {
	b := drpcwire.AppendFrame(nil, drpcwire.Frame{ID: drpcwire.ID{Stream: 1, Message: 1}, Kind: drpcwire.KindInvoke, Data: []byte(method), Done: true})
	return drpcwire.AppendFrame(b, drpcwire.Frame{ID: drpcwire.ID{Stream: 1, Message: 2}, Kind: drpcwire.KindMessage, Data: message, Done: true})
}

// endsWithin waits for the server to end the connection.
func endsWithin(t *testing.T, conn net.Conn, limit time.Duration) {
	t.Helper()
	start := time.Now()
	_, err := io.Copy(io.Discard, conn)
	if took := time.Since(start); took > limit {
		t.Errorf("the connection lived for %v, the limit is %v (%v)", took, limit, err)
	}
	_ = conn.Close()
}

// Clients that hold back what they owe are cut when their time is over.
func TestSlowClientsAreCut(t *testing.T) {
	second := drpcwire.AppendFrame(nil, drpcwire.Frame{ID: drpcwire.ID{Stream: 1, Message: 3}, Kind: drpcwire.KindMessage, Data: make([]byte, 500), Done: true})
	for _, c := range []struct {
		name  string
		shake bool
		fast  []byte // at once
		slow  []byte // one byte a second
		limit time.Duration
	}{
		{"silent before the handshake", false, nil, nil, transport.DefaultHandshakeTimeout},
		{"slow in the handshake", false, nil, greetingBytes(), transport.DefaultHandshakeTimeout + time.Second},
		{"idle", true, nil, nil, transport.DefaultServerIdle + time.Second},
		{"slow in a request", true, nil, invoke(methodProbe, make([]byte, 500)), 2 * transport.DefaultMessageTimeout},
		{"slow in a stream", true, invoke("/dfsd.wire.Raft/Messages", nil), second, transport.DefaultMessageTimeout + time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
				var conn net.Conn
				if c.shake {
					conn = w.shake(t)
				} else {
					var err error
					if conn, err = w.net.Host("raw").Dial(t.Context(), "srv:1"); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := conn.Write(c.fast); err != nil {
					t.Fatal(err)
				}
				var sender sync.WaitGroup
				sender.Go(func() {
					for i := range c.slow {
						if _, err := conn.Write(c.slow[i : i+1]); err != nil {
							return
						}
						time.Sleep(time.Second)
					}
				})
				endsWithin(t, conn, c.limit)
				sender.Wait()
				if err := w.probe(t.Context()); err != nil {
					t.Errorf("others are served: %v", err)
				}
			})
		})
	}
}

// A client that names a method and sends no message is cut; one that sends
// its messages slowly but surely is not.
func TestMessageTimeoutIsPerMessage(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		conn := w.shake(t)
		named := drpcwire.AppendFrame(nil, drpcwire.Frame{ID: drpcwire.ID{Stream: 1, Message: 1}, Kind: drpcwire.KindInvoke, Data: []byte(methodProbe), Done: true})
		if _, err := conn.Write(named); err != nil {
			t.Fatal(err)
		}
		endsWithin(t, conn, transport.DefaultMessageTimeout+time.Second)

		stream, err := wire.NewDRPCRaftClient(w.pool.Conn("srv:1")).Messages(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := stream.Send(&wire.RaftBatch{Data: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * transport.DefaultServerIdle)
		}
		if _, err := stream.CloseAndRecv(); err != nil || w.raft.got.Load() != 10 {
			t.Errorf("got %d bytes, %v", w.raft.got.Load(), err)
		}
	})
}

// A handler that is slow to read does not make its honest client time out.
func TestSlowHandlerIsNotTheClientsFault(t *testing.T) {
	opts := worldOptions{}
	opts.server.MessageTimeout, opts.server.WriteTimeout = time.Second, time.Hour
	opts.pool.WriteTimeout = time.Hour
	bubble.Test(t, func(t *testing.T) {
		net := transport.NewMemory(transport.MemoryOptions{})
		opts.server.Identity = identity(nodeOf(clusterA, 1))
		s := serve(t, net.Host("srv"), "srv:1", opts.server, &slowRaft{})
		defer s.Close()
		opts.pool.Network, opts.pool.Identity = net.Host("cli"), identity(clientOf(clusterA))
		pool := transport.NewPool(opts.pool)
		defer pool.Close()
		stream, err := wire.NewDRPCRaftClient(pool.Conn("srv:1")).Messages(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if err := stream.Send(&wire.RaftBatch{Data: make([]byte, 300<<10)}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := stream.CloseAndRecv(); err != nil {
			t.Error(err)
		}
	})
}

type slowRaft struct {
	wire.DRPCRaftUnimplementedServer
}

func (slowRaft) Messages(stream wire.DRPCRaft_MessagesStream) error {
	for {
		_, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&wire.RaftDone{})
		}
		if err != nil {
			return err
		}
		time.Sleep(5 * time.Second)
	}
}

// Whatever bytes come, the server neither panics nor leaks nor stops serving.
func TestRandomBytesDoNoHarm(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		random := rand.New(rand.NewPCG(5, 6))
		noise := func(n int) []byte {
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(random.Uint32())
			}
			return b
		}
		request := invoke(methodProbe, []byte{0x0a, 1, 'x'})
		for i := range 300 {
			var conn net.Conn
			if i%3 == 0 {
				var err error
				if conn, err = w.net.Host("raw").Dial(t.Context(), "srv:1"); err != nil {
					t.Fatal(err)
				}
				_, _ = conn.Write(noise(1 + random.IntN(3000)))
			} else {
				conn = w.shake(t)
				bytes := noise(1 + random.IntN(3000))
				if i%3 == 1 { // a request with a few wrong bytes
					bytes = append([]byte(nil), request...)
					for range 1 + random.IntN(3) {
						bytes[random.IntN(len(bytes))] = byte(random.Uint32())
					}
				}
				_, _ = conn.Write(bytes)
			}
			if i%2 == 0 {
				time.Sleep(time.Millisecond)
				_ = conn.Close()
			} else {
				endsWithin(t, conn, transport.DefaultServerIdle+time.Minute)
			}
		}
		if err := w.probe(t.Context()); err != nil {
			t.Errorf("others are served: %v", err)
		}
	})
}

// Clusters do not mix, and who does not know its cluster gets the open methods only.
func TestClusterCheck(t *testing.T) {
	none := dfs.ClusterID{}
	for _, c := range []struct {
		name           string
		client, server dfs.ClusterID
		open, closed   dfs.Kind // 0: served
	}{
		{"same", clusterA, clusterA, 0, 0},
		{"other cluster", clusterB, clusterA, dfs.WrongCluster, dfs.WrongCluster},
		{"client does not know", none, clusterA, 0, dfs.WrongCluster},
		{"server does not know", clusterA, none, 0, dfs.Unavailable},
		{"neither knows", none, none, 0, dfs.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			var seen transport.Identity
			opts := worldOptions{}
			opts.server.Identity = identity(nodeOf(c.server, 1))
			opts.pool.Identity = identity(clientOf(c.client))
			opts.pool.OnPeer = func(addr string, peer transport.Identity) { seen = peer }
			inBubble(t, opts, func(t *testing.T, w *world) {
				open, closed := w.probe(t.Context()), w.keepAlive(t.Context())
				wantKind(t, open, c.open)
				wantKind(t, closed, c.closed)
				if (open == nil) != (c.open == 0) || (closed == nil) != (c.closed == 0) {
					t.Errorf("open method: %v; closed method: %v", open, closed)
				}
				if c.open == 0 && seen.Cluster != c.server {
					t.Errorf("the client saw %+v", seen)
				}
			})
		})
	}
}

// A node that learns its cluster uses no connection from before, and a server
// that learns it refuses strangers on connections it has.
func TestIdentityChanges(t *testing.T) {
	var mu sync.Mutex
	client, server := clientOf(dfs.ClusterID{}), nodeOf(dfs.ClusterID{}, 0)
	change := func(f func()) { mu.Lock(); defer mu.Unlock(); f() }
	opts := worldOptions{}
	opts.pool.Identity = func() transport.Identity { mu.Lock(); defer mu.Unlock(); return client }
	opts.server.Identity = func() transport.Identity { mu.Lock(); defer mu.Unlock(); return server }
	shakes := 0
	opts.pool.OnPeer = func(string, transport.Identity) { shakes++ }
	inBubble(t, opts, func(t *testing.T, w *world) {
		wantKind(t, w.keepAlive(t.Context()), dfs.Unavailable)
		change(func() { server = nodeOf(clusterA, 1) })
		wantKind(t, w.keepAlive(t.Context()), dfs.WrongCluster)
		change(func() { client = clientOf(clusterA) })
		if err := w.keepAlive(t.Context()); err != nil {
			t.Error(err)
		}
		if shakes != 2 {
			t.Errorf("%d handshakes, want 2", shakes)
		}
		change(func() { server = nodeOf(clusterB, 1) })
		wantKind(t, w.keepAlive(t.Context()), dfs.WrongCluster)
	})
}

// Shutdown answers what was accepted, refuses what comes after, and ends.
func TestShutdownFinishesAcceptedRequests(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		if err := w.probe(t.Context()); err != nil { // leaves an idle connection
			t.Fatal(err)
		}
		idle, idleFor := w.shake(t), make(chan time.Duration, 1)
		begun := make(chan struct{})
		w.meta.keepAlive = func(ctx context.Context) error {
			close(begun)
			<-transport.Draining(ctx)
			time.Sleep(3 * time.Second)
			return dfs.Errorf(dfs.NotExist, "test", "the answer")
		}
		answers := make(chan error, 1)
		go func() { answers <- w.keepAlive(t.Context()) }()
		<-begun
		start := time.Now()
		go func() {
			_, _ = io.Copy(io.Discard, idle)
			idleFor <- time.Since(start)
			_ = idle.Close()
		}()
		if err := w.server.Shutdown(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
		if d := <-idleFor; d != 0 {
			t.Errorf("an idle connection was closed after %v", d)
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("shutdown took %v", took)
		}
		wantKind(t, <-answers, dfs.NotExist)
		wantKind(t, w.probe(t.Context()), dfs.Unavailable)
	})
}

func TestShutdownCutsWhatDoesNotEnd(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		begun := make(chan struct{})
		w.meta.keepAlive = func(ctx context.Context) error {
			close(begun)
			<-ctx.Done()
			return ctx.Err()
		}
		answers := make(chan error, 1)
		go func() { answers <- w.keepAlive(t.Context()) }()
		<-begun
		if err := w.server.Shutdown(within(t, time.Second)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		wantKind(t, <-answers, dfs.Unknown)
	})
}

// failingListener fails to accept a few times, as without file descriptors.
type failingListener struct {
	net.Listener
	failures int
	times    []time.Time
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		l.times = append(l.times, time.Now())
		return nil, errors.New("too many open files")
	}
	return l.Listener.Accept()
}

func TestAcceptBacksOff(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		lis, err := w.net.Host("srv").Listen("srv:2")
		if err != nil {
			t.Fatal(err)
		}
		failing := &failingListener{Listener: lis, failures: 10}
		w.server.Start(failing)
		if _, err := wire.NewDRPCMetaClient(w.pool.Conn("srv:2")).Probe(t.Context(), &wire.ProbeRequest{}); err != nil {
			t.Fatal(err)
		}
		for i := 2; i < len(failing.times); i++ {
			before, pause := failing.times[i-1].Sub(failing.times[i-2]), failing.times[i].Sub(failing.times[i-1])
			if pause < before || pause > time.Second {
				t.Errorf("pause %d is %v after %v", i, pause, before)
			}
		}
	})
}

func TestMetrics(t *testing.T) {
	type call struct {
		method string
		kind   dfs.Kind
		took   time.Duration
	}
	served, called := make(chan call, 10), make(chan call, 10)
	opts := worldOptions{}
	opts.server.Observe = func(method string, err error, took time.Duration) { served <- call{method, dfs.KindOf(err), took} }
	opts.pool.Observe = func(_, method string, err error, took time.Duration) { called <- call{method, dfs.KindOf(err), took} }
	inBubble(t, opts, func(t *testing.T, w *world) {
		w.meta.keepAlive = func(context.Context) error { time.Sleep(time.Second); return dfs.Quota }
		wantKind(t, w.keepAlive(t.Context()), dfs.Quota)
		want := call{methodKeepAlive, dfs.Quota, time.Second}
		if got := <-served; got != want {
			t.Errorf("served %+v, want %+v", got, want)
		}
		if got := <-called; got != want {
			t.Errorf("called %+v, want %+v", got, want)
		}
		w.block.refuseAfter = 1
		put, err := wire.NewDRPCBlockClient(w.pool.Conn("srv:1")).Put(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = put.Send(&wire.BlockFrame{})
		_, _ = put.CloseAndRecv()
		if got := <-called; got.method != "/dfsd.wire.Block/Put" || got.kind != dfs.NoSpace {
			t.Errorf("called %+v", got)
		}
	})
}

// Over real sockets, nothing is left behind either.
func TestTCPLeavesNothingBehind(t *testing.T) {
	network := transport.TCP()
	lis, err := network.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := transport.NewServer(transport.ServerOptions{Identity: identity(nodeOf(clusterA, 1))})
	if err := wire.DRPCRegisterMeta(s, &metaService{}); err != nil {
		t.Fatal(err)
	}
	s.Start(lis)
	pool := transport.NewPool(transport.PoolOptions{Network: network, Identity: identity(clientOf(clusterA))})
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 50 {
				_, err := wire.NewDRPCMetaClient(pool.Conn(lis.Addr().String())).Probe(t.Context(), &wire.ProbeRequest{Name: "x"})
				if err != nil {
					t.Error(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				_, _ = wire.NewDRPCMetaClient(pool.Conn(lis.Addr().String())).Probe(ctx, &wire.ProbeRequest{})
			}
		})
	}
	callers.Wait()
	pool.Close()
	s.Close()
	goleak.VerifyNone(t)
}
