package transport_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"dfsd/sim/bubble"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// countedNetwork counts the writes of its connections.
type countedNetwork struct {
	transport.Network
	writes atomic.Int64
}

func (n *countedNetwork) Dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := n.Network.Dial(ctx, addr)
	return &countedConn{c, n}, err
}

func (n *countedNetwork) Listen(addr string) (net.Listener, error) {
	l, err := n.Network.Listen(addr)
	return &countedListener{l, n}, err
}

type countedListener struct {
	net.Listener
	n *countedNetwork
}

func (l *countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countedConn{c, l.n}, nil
}

type countedConn struct {
	net.Conn
	n *countedNetwork
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.n.writes.Add(1)
	return c.Conn.Write(p)
}

// Each write is a system call here, and wakes a reader there.
func TestUnaryCallIsOneWriteEachWay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		memory := transport.NewMemory(transport.MemoryOptions{})
		here, there := &countedNetwork{Network: memory.Host("cli")}, &countedNetwork{Network: memory.Host("srv")}
		s := serve(t, there, "srv:1", transport.ServerOptions{Identity: identity(nodeOf(clusterA, 1))}, &metaService{})
		defer s.Close()
		pool := transport.NewPool(transport.PoolOptions{Network: here, Identity: identity(clientOf(clusterA))})
		defer pool.Close()
		c := wire.NewDRPCMetaClient(pool.Conn("srv:1"))
		call := func() {
			if _, err := c.Probe(t.Context(), &wire.ProbeRequest{Name: "meta1"}); err != nil {
				t.Fatal(err)
			}
		}
		call() // the handshake
		requests, answers := here.writes.Load(), there.writes.Load()
		const calls = 100
		for range calls {
			call()
		}
		requests, answers = here.writes.Load()-requests, there.writes.Load()-answers
		if requests != calls || answers != calls {
			t.Fatalf("%d calls took %d writes there and %d back", calls, requests, answers)
		}
	})
}
