package transport_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// closed reports whether the server has closed a connection.
func closed(conn net.Conn) bool {
	_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := conn.Read(make([]byte, 1))
	return err == io.EOF
}

// asking returns a caller of KeepAlive, which waits in the handler until the test ends.
func asking(t *testing.T, w *world, host string, id transport.Identity) {
	t.Helper()
	pool := transport.NewPool(transport.PoolOptions{Network: w.net.Host(host), Identity: identity(id)})
	ctx, cancel := context.WithCancel(t.Context())
	began, ended := make(chan struct{}), make(chan struct{})
	w.meta.keepAlive = func(ctx context.Context) error {
		close(began)
		<-ctx.Done()
		return ctx.Err()
	}
	go func() {
		defer close(ended)
		_, _ = wire.NewDRPCMetaClient(pool.Conn("srv:1")).KeepAlive(ctx, &wire.KeepAliveRequest{})
	}()
	<-began
	w.meta.keepAlive = nil
	t.Cleanup(func() {
		cancel()
		<-ended
		pool.Close()
	})
}

// Connections that are held and not used keep nobody out: the client that was
// idle for longest makes room, a node's connection stays.
func TestIdleClientsMakeRoom(t *testing.T) {
	opts := worldOptions{}
	opts.server.MaxConns = 16 // 14 of them for clients
	inBubble(t, opts, func(t *testing.T, w *world) {
		dials := 0
		node := transport.NewPool(transport.PoolOptions{
			Network: w.net.Host("node"), Identity: identity(nodeOf(clusterA, 2)),
			OnPeer: func(string, transport.Identity) { dials++ },
		})
		defer node.Close()
		ask := func() {
			t.Helper()
			if _, err := wire.NewDRPCMetaClient(node.Conn("srv:1")).Probe(t.Context(), &wire.ProbeRequest{}); err != nil {
				t.Fatal(err)
			}
		}
		ask()
		if err := w.keepAlive(t.Context()); err != nil { // its connection is idle then, and the first to go
			t.Fatal(err)
		}
		var held []net.Conn
		for range 40 {
			held = append(held, w.shake(t))
			time.Sleep(time.Millisecond)
		}
		for i, conn := range held {
			if got, want := closed(conn), i < len(held)-14; got != want {
				t.Errorf("client %d: closed is %v", i, got)
			}
		}
		if ask(); dials != 1 {
			t.Errorf("the node connected %d times", dials)
		}
		if err := w.keepAlive(t.Context()); err != nil {
			t.Errorf("a client whose connection made room: %v", err)
		}
		for _, conn := range held {
			_ = conn.Close()
		}
	})
}

// Strangers that connect and say nothing keep nobody out either.
func TestSilentStrangersMakeRoom(t *testing.T) {
	opts := worldOptions{}
	opts.server.MaxConns = 16
	inBubble(t, opts, func(t *testing.T, w *world) {
		var held []net.Conn
		for range 40 {
			conn, err := w.net.Host("raw").Dial(t.Context(), "srv:1")
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, conn)
			time.Sleep(time.Millisecond)
		}
		if err := w.probe(t.Context()); err != nil {
			t.Errorf("a client: %v", err)
		}
		for i, conn := range held {
			if got, want := closed(conn), i < len(held)-15; got != want {
				t.Errorf("stranger %d: closed is %v", i, got)
			}
			_ = conn.Close()
		}
	})
}

// Clients with requests under way are not cut. They leave a share to nodes.
func TestTooManyConnections(t *testing.T) {
	opts := worldOptions{}
	opts.server.MaxConns = 8
	inBubble(t, opts, func(t *testing.T, w *world) {
		for range 7 {
			asking(t, w, "cli", clientOf(clusterA))
		}
		wantKind(t, w.probe(t.Context()), dfs.Busy)
		asking(t, w, "node", nodeOf(clusterA, 2))
		node := transport.NewPool(transport.PoolOptions{Network: w.net.Host("node"), Identity: identity(nodeOf(clusterA, 3))})
		defer node.Close()
		_, err := wire.NewDRPCMetaClient(node.Conn("srv:1")).Probe(t.Context(), &wire.ProbeRequest{})
		wantKind(t, err, dfs.Busy) // not even a node's, but nothing was cut
	})
}
