package transport_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
	"dfsd/transport"
	"dfsd/transport/wire"
)

func TestUnaryCall(t *testing.T) {
	opts := worldOptions{memory: transport.MemoryOptions{Seed: 1, MinLatency: time.Millisecond, MaxLatency: 3 * time.Millisecond}}
	opts.pool.Identity = identity(nodeOf(clusterA, 7))
	inBubble(t, opts, func(t *testing.T, w *world) {
		for range 20 {
			reply, err := w.metaClient().Probe(t.Context(), &wire.ProbeRequest{Name: "meta1"})
			if err != nil || reply.GetName() != "meta1" || reply.GetNode() != 7 {
				t.Fatalf("got %v, %v", reply, err)
			}
		}
	})
}

// Every kind of error arrives as it was: kind, text and leader hint.
func TestErrorsKeepTheirKind(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		for kind := dfs.Other; kind <= dfs.Frozen; kind++ {
			sent := &dfs.Error{Kind: kind, Op: "read", Object: "/a/b", Text: "why", LeaderHint: 0xfffffffe}
			w.meta.keepAlive = func(context.Context) error { return dfs.Wrap("serve", "g1", sent) }
			err := w.keepAlive(t.Context())
			var got *dfs.Error
			if !errors.As(err, &got) {
				t.Fatalf("%v: got %v", kind, err)
			}
			if got.Kind != kind || got.LeaderHint != sent.LeaderHint || got.Error() != "serve g1: read /a/b: why" {
				t.Errorf("%v: got kind %v, hint %v, %q", kind, got.Kind, got.LeaderHint, got.Error())
			}
		}
		for _, c := range []struct {
			err  error
			want dfs.Kind
		}{
			{errors.New("plain"), dfs.Other},
			{dfs.NotExist, dfs.NotExist},
			{context.DeadlineExceeded, dfs.Deadline},
			{context.Canceled, dfs.Unknown},
			{io.EOF, dfs.Other},
		} {
			w.meta.keepAlive = func(context.Context) error { return c.err }
			err := w.keepAlive(t.Context())
			wantKind(t, err, c.want)
			if err.Error() != c.err.Error() {
				t.Errorf("got text %q, want %q", err, c.err)
			}
		}
		w.meta.keepAlive = func(context.Context) error { return errors.New(strings.Repeat("é", 1<<20)) }
		if err := w.keepAlive(t.Context()); len(err.Error()) > 5<<10 {
			t.Errorf("an error text of %d bytes crossed", len(err.Error()))
		}
		w.meta.keepAlive = func(context.Context) error { panic("a bug") }
		wantKind(t, w.keepAlive(t.Context()), dfs.Internal)
		_, err := w.metaClient().Heartbeat(t.Context(), &wire.HeartbeatRequest{})
		wantKind(t, err, dfs.Unsupported)
		w.meta.keepAlive = nil
		if err := w.keepAlive(t.Context()); err != nil {
			t.Errorf("after all the errors: %v", err)
		}
	})
}

func TestUnknownMethodIsUnsupported(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		net := transport.NewMemory(transport.MemoryOptions{})
		s := serve(t, net.Host("srv"), "srv:1", transport.ServerOptions{Identity: identity(nodeOf(clusterA, 1))}, &metaService{})
		defer s.Close()
		pool := transport.NewPool(transport.PoolOptions{Network: net.Host("cli"), Identity: identity(clientOf(clusterA))})
		defer pool.Close()
		_, err := wire.NewDRPCBlockClient(pool.Conn("srv:1")).Scan(t.Context(), &wire.ScanRequest{})
		wantKind(t, err, dfs.Unsupported)
	})
}

func TestTooLargeIsRefusedBeforeItIsSent(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		_, err := w.metaClient().Probe(t.Context(), &wire.ProbeRequest{Name: strings.Repeat("x", dfs.MaxMessage)})
		wantKind(t, err, dfs.TooLarge)
		if n := w.meta.calls.Load(); n != 0 {
			t.Errorf("%d calls reached the handler", n)
		}
		if err := w.probe(within(t, time.Second)); err != nil {
			t.Errorf("the next call: %v", err)
		}
		big := strings.Repeat("x", dfs.MaxMessage-64)
		reply, err := w.metaClient().Probe(within(t, time.Second), &wire.ProbeRequest{Name: big})
		if err != nil || reply.GetName() != big {
			t.Errorf("just under the limit: %v", err)
		}
	})
}

func TestStreams(t *testing.T) {
	opts := worldOptions{memory: transport.MemoryOptions{Seed: 3, MinLatency: time.Millisecond}}
	inBubble(t, opts, func(t *testing.T, w *world) {
		client := wire.NewDRPCBlockClient(w.pool.Conn("srv:1"))
		for range 3 {
			w.block.got.Store(0)
			put, err := client.Put(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for range 16 {
				if err := put.Send(&wire.BlockFrame{Head: []byte("h"), Data: make([]byte, dfs.FrameSize)}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := put.CloseAndRecv(); err != nil {
				t.Fatal(err)
			}
			if got := w.block.got.Load(); got != 16*dfs.FrameSize {
				t.Errorf("the server got %d bytes", got)
			}
			get, err := client.Get(t.Context(), &wire.GetRequest{Length: 16})
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for {
				frame, err := get.Recv()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				n += len(frame.Data)
			}
			if n != 16*dfs.FrameSize {
				t.Errorf("got %d bytes", n)
			}
		}
	})
}

// A handler that refuses half-way is heard by a sender that never receives.
func TestStreamErrorReachesTheSender(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		w.block.refuseAfter = 3
		put, err := wire.NewDRPCBlockClient(w.pool.Conn("srv:1")).Put(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; err == nil; n++ {
			if n > 100 {
				t.Fatal("100 frames were sent to a handler that has refused")
			}
			err = put.Send(&wire.BlockFrame{Data: make([]byte, dfs.FrameSize)})
		}
		wantKind(t, err, dfs.NoSpace)
		_, err = put.CloseAndRecv()
		wantKind(t, err, dfs.NoSpace)
		if err := w.probe(within(t, time.Second)); err != nil {
			t.Errorf("the next call: %v", err)
		}
	})
}

// Closing a stream before all was sent must not look like the end of it.
func TestAbandonedStreamIsNotTakenForAll(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		w.block.ended = make(chan error, 1)
		put, err := wire.NewDRPCBlockClient(w.pool.Conn("srv:1")).Put(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := put.Send(&wire.BlockFrame{Data: []byte("half")}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := put.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-w.block.ended; err == nil {
			t.Error("the handler took an abandoned stream for a whole one")
		}
	})
}

func TestPeerFromStream(t *testing.T) {
	opts := worldOptions{}
	opts.pool.Identity = identity(nodeOf(clusterA, 9))
	inBubble(t, opts, func(t *testing.T, w *world) {
		stream, err := wire.NewDRPCRaftClient(w.pool.Conn("srv:1")).Messages(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.CloseAndRecv(); err != nil {
			t.Fatal(err)
		}
		if peer := <-w.raft.peers; peer.Identity != nodeOf(clusterA, 9) || !strings.HasPrefix(peer.Addr, "cli:") {
			t.Errorf("the handler saw %+v", peer)
		}
		if _, ok := transport.PeerFrom(t.Context()); ok || transport.Draining(t.Context()) != nil {
			t.Error("a context of no request has a peer or a server")
		}
	})
}

// A sender that is blocked by a peer that does not read is freed by Close, by
// its context, and by the write time-out.
func TestBlockedSenderIsFreed(t *testing.T) {
	for _, c := range []struct {
		name string
		free func(cancel context.CancelFunc, stream wire.DRPCRaft_MessagesClient)
	}{
		{"close", func(_ context.CancelFunc, s wire.DRPCRaft_MessagesClient) { _ = s.Close() }},
		{"cancel", func(cancel context.CancelFunc, _ wire.DRPCRaft_MessagesClient) { cancel() }},
		{"time-out", func(context.CancelFunc, wire.DRPCRaft_MessagesClient) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				stream, err := wire.NewDRPCRaftClient(w.pool.Conn("srv:1")).Messages(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if err := stream.Send(&wire.RaftBatch{Data: []byte("first")}); err != nil {
					t.Fatal(err)
				}
				w.net.Isolate("srv")
				ended := make(chan error)
				go func() {
					var err error
					for err == nil {
						err = stream.Send(&wire.RaftBatch{Data: make([]byte, 100<<10)})
					}
					ended <- err
				}()
				synctest.Wait()
				start := time.Now()
				c.free(cancel, stream)
				err = <-ended
				if err == nil || time.Since(start) > transport.DefaultWriteTimeout {
					t.Errorf("freed after %v with %v", time.Since(start), err)
				}
				w.net.Heal()
				synctest.Wait()
				if n := w.net.Break("cli", "srv"); n != 0 {
					t.Errorf("%d connections are still open", n)
				}
			})
		})
	}
}

// The server learns how long the caller waits, also when nobody can tell it
// that the caller is gone.
func TestDeadlineCrossesTheWire(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		ended := make(chan time.Duration, 1)
		w.meta.keepAlive = func(ctx context.Context) error {
			w.net.Isolate("srv")
			start := time.Now()
			<-ctx.Done()
			ended <- time.Since(start)
			return ctx.Err()
		}
		err := w.keepAlive(within(t, 3*time.Second))
		wantKind(t, err, dfs.Deadline)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v is no context.DeadlineExceeded", err)
		}
		if took := <-ended; took > 3*time.Second {
			t.Errorf("the handler's context ended after %v", took)
		}
	})
}

// A call made by a handler does not carry the handler's own request's time on.
func TestTimeLeftIsNotInherited(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		var outer time.Duration
		w.meta.keepAlive = func(ctx context.Context) error {
			deadline, _ := ctx.Deadline()
			outer = time.Until(deadline)
			stream, err := wire.NewDRPCRaftClient(w.pool.Conn("srv:1")).Messages(context.WithoutCancel(ctx))
			if err != nil {
				return err
			}
			time.Sleep(time.Second)
			_, err = stream.CloseAndRecv()
			return err
		}
		if err := w.keepAlive(within(t, 2*time.Second)); err != nil || outer != 2*time.Second {
			t.Fatalf("%v; %v were left", err, outer)
		}
		if deadline := <-w.raft.deadlines; !deadline.IsZero() {
			t.Errorf("the inner request ends at %v", deadline)
		}
	})
}

func TestCancelledCall(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		seen := make(chan struct{})
		w.meta.keepAlive = func(ctx context.Context) error {
			cancel()
			<-ctx.Done() // the server hears of it
			close(seen)
			return ctx.Err()
		}
		err := w.keepAlive(ctx)
		if !errors.Is(err, context.Canceled) || dfs.KindOf(err).Retryable() {
			t.Errorf("got %v", err)
		}
		<-seen
		w.meta.keepAlive = nil
		if err := w.keepAlive(t.Context()); err != nil {
			t.Errorf("the next call: %v", err)
		}
	})
}

// Unavailable says that no handler saw the request, Unknown that one may have.
func TestConnectionFailures(t *testing.T) {
	t.Run("nobody there", func(t *testing.T) {
		inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
			_, err := wire.NewDRPCMetaClient(w.pool.Conn("srv:2")).Probe(t.Context(), &wire.ProbeRequest{})
			wantKind(t, err, dfs.Unavailable)
		})
	})
	t.Run("unreachable", func(t *testing.T) {
		inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
			w.net.Isolate("srv")
			start := time.Now()
			wantKind(t, w.probe(t.Context()), dfs.Unavailable)
			if took := time.Since(start); took != transport.DefaultDialTimeout {
				t.Errorf("given up after %v", took)
			}
		})
	})
	t.Run("broken while idle", func(t *testing.T) {
		inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
			for range 3 {
				if err := w.probe(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := w.net.Break("cli", "srv"); n != 1 {
					t.Fatalf("%d connections", n)
				}
			}
		})
	})
	t.Run("broken in the handler", func(t *testing.T) {
		inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
			w.meta.keepAlive = func(context.Context) error { w.net.Break("srv", "cli"); return nil }
			wantKind(t, w.keepAlive(t.Context()), dfs.Unknown)
		})
	})
	t.Run("server killed", func(t *testing.T) {
		inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
			w.meta.keepAlive = func(context.Context) error { w.net.Cut("srv"); return nil }
			wantKind(t, w.keepAlive(t.Context()), dfs.Unknown)
			wantKind(t, w.keepAlive(t.Context()), dfs.Unavailable)
		})
	})
	t.Run("answer lost", func(t *testing.T) {
		inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
			if err := w.probe(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.net.DropReplyOnce("srv", "cli")
			wantKind(t, w.probe(t.Context()), dfs.Unknown)
			if err := w.probe(t.Context()); err != nil || w.meta.calls.Load() != 3 {
				t.Errorf("%v; %d calls reached the handler", err, w.meta.calls.Load())
			}
		})
	})
}

// Every first answer is lost; the request was carried out each time.
func TestDropReply(t *testing.T) {
	drop := false
	opts := worldOptions{}
	opts.server.DropReply = func(peer transport.Peer, method string, err error) bool { drop = !drop; return drop }
	inBubble(t, opts, func(t *testing.T, w *world) {
		for n := range int64(5) {
			wantKind(t, w.probe(t.Context()), dfs.Unknown)
			if err := w.probe(t.Context()); err != nil {
				t.Fatal(err)
			}
			if calls := w.meta.calls.Load(); calls != 2*n+2 {
				t.Fatalf("%d calls", calls)
			}
		}
		w.meta.keepAlive = func(context.Context) error { return dfs.NotExist }
		wantKind(t, w.keepAlive(t.Context()), dfs.Unknown)
		wantKind(t, w.keepAlive(t.Context()), dfs.NotExist)
	})
}
