package transport_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dfsd/dfs"
	"dfsd/transport"
	"dfsd/transport/wire"
)

// Connections are reused, and closed when they have been idle for long.
func TestPoolReusesAndExpires(t *testing.T) {
	shakes := 0
	opts := worldOptions{}
	opts.pool.OnPeer = func(string, transport.Identity) { shakes++ }
	inBubble(t, opts, func(t *testing.T, w *world) {
		for range 10 {
			if err := w.probe(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(transport.DefaultPoolIdle / 2)
		}
		if shakes != 1 {
			t.Errorf("%d connections, want 1", shakes)
		}
		time.Sleep(2 * transport.DefaultPoolIdle)
		synctest.Wait()
		if n := w.net.Break("cli", "srv"); n != 0 {
			t.Errorf("%d connections are open after a long idle time", n)
		}
		if err := w.probe(t.Context()); err != nil || shakes != 2 {
			t.Errorf("%v, %d connections", err, shakes)
		}
	})
}

// Calls that are answered all at once, as those are that share a sync, leave many
// connections idle at a time: the next ones use them again. Once there are fewer
// calls the surplus is closed at the next looks, and the rest later.
func TestPoolKeepsWhatBurstsUse(t *testing.T) {
	const callers, bursts = 64, 50
	var shakes atomic.Int64
	opts := worldOptions{}
	opts.pool.OnPeer = func(string, transport.Identity) { shakes.Add(1) }
	inBubble(t, opts, func(t *testing.T, w *world) {
		w.meta.keepAlive = func(context.Context) error { time.Sleep(time.Millisecond); return nil }
		for range bursts {
			var burst sync.WaitGroup
			for range callers {
				burst.Go(func() {
					if err := w.keepAlive(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			burst.Wait()
		}
		if n := shakes.Load(); n != callers {
			t.Errorf("%d connections were made for %d calls, %d at a time", n, callers*bursts, callers)
		}
		time.Sleep(transport.DefaultPoolIdle / 2)
		if err := w.probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := w.net.Break("cli", "srv"); n != transport.DefaultMaxIdlePerPeer {
			t.Errorf("%d connections are idle once the bursts are over, want %d", n, transport.DefaultMaxIdlePerPeer)
		}
	})
}

// Calls above the bound wait for a connection, in vain if their time runs out
// first; idle connections above theirs are closed after a while.
func TestPoolBounds(t *testing.T) {
	opts := worldOptions{}
	opts.pool.MaxPerPeer, opts.pool.MaxIdlePerPeer = 4, 2
	inBubble(t, opts, func(t *testing.T, w *world) {
		var mu sync.Mutex
		now, most := 0, 0
		w.meta.keepAlive = func(context.Context) error {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
			return nil
		}
		start := time.Now()
		var callers sync.WaitGroup
		for range 12 {
			callers.Go(func() {
				if err := w.keepAlive(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		wantKind(t, w.keepAlive(within(t, 500*time.Millisecond)), dfs.Deadline)
		callers.Wait()
		if took := time.Since(start); most != 4 || took != 3*time.Second {
			t.Errorf("%d calls at once, all done after %v", most, took)
		}
		time.Sleep(transport.DefaultPoolIdle / 2)
		synctest.Wait()
		if n := w.net.Break("cli", "srv"); n != 2 {
			t.Errorf("%d connections are idle, want 2", n)
		}
	})
}

// A stream holds a connection of its own; calls go beside it.
func TestStreamsHaveTheirOwnConnection(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		for range 3 {
			stream, err := wire.NewDRPCRaftClient(w.pool.Conn("srv:1")).Messages(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(&wire.RaftBatch{Data: []byte("x")}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		cancel()
		synctest.Wait()
		if n := w.net.Break("cli", "srv"); n != 1 {
			t.Errorf("%d connections are left, want the call's", n)
		}
	})
}

// Close ends calls, streams and dials under way.
func TestPoolClose(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		w.meta.keepAlive = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		stream, err := wire.NewDRPCRaftClient(w.pool.Conn("srv:1")).Messages(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		results := make(chan error, 3)
		go func() { results <- w.keepAlive(t.Context()) }()
		go func() {
			_, err := stream.CloseAndRecv()
			results <- err
		}()
		w.net.Block("cli", "far")
		go func() {
			_, err := wire.NewDRPCMetaClient(w.pool.Conn("far:1")).Probe(t.Context(), &wire.ProbeRequest{})
			results <- err
		}()
		synctest.Wait()
		start := time.Now()
		w.pool.Close()
		for range 3 {
			if err := <-results; err == nil {
				// The stream may have been answered before.
				continue
			} else if k := dfs.KindOf(err); k != dfs.Unknown && k != dfs.Unavailable || errors.Is(err, context.Canceled) {
				t.Errorf("got %v (%v)", err, k)
			}
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v", took)
		}
		wantKind(t, w.probe(t.Context()), dfs.Unavailable)
		w.pool.Close()
	})
}

// The breaker opens when half of twenty calls failed by the connection, lets one
// call through after the sleep window, and closes when that is answered.
func TestBreaker(t *testing.T) {
	var states []string
	opts := worldOptions{}
	opts.pool.OnBreaker = func(addr, state string) { states = append(states, addr+" "+state) }
	inBubble(t, opts, func(t *testing.T, w *world) {
		for range 10 {
			if err := w.probe(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		w.meta.keepAlive = func(context.Context) error { return dfs.Unavailable }
		for range 40 {
			wantKind(t, w.keepAlive(t.Context()), dfs.Unavailable) // an answer, whatever it says
		}
		time.Sleep(11 * time.Second) // those are forgotten
		w.net.Cut("srv")
		for i := range 20 {
			if state := w.pool.BreakerState("srv:1"); state != "closed" {
				t.Fatalf("%s after %d failures", state, i)
			}
			wantKind(t, w.probe(t.Context()), dfs.Unavailable)
		}
		w.net.Isolate("srv") // a dial would take its time now
		start := time.Now()
		err := w.probe(t.Context())
		wantKind(t, err, dfs.Unavailable)
		if time.Since(start) != 0 {
			t.Error("an open breaker lets calls through")
		}
		if !strings.Contains(err.Error(), "connect to srv:1: ") || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: does not say how the last call failed", err)
		}
		w.net.Heal()
		time.Sleep(5*time.Second + 1)
		wantKind(t, w.probe(t.Context()), dfs.Unavailable) // the one call of half-open fails
		again := serve(t, w.net.Host("srv"), "srv:1", transport.ServerOptions{Identity: identity(nodeOf(clusterA, 1))}, w.meta)
		defer again.Close()
		wantKind(t, w.probe(t.Context()), dfs.Unavailable)
		time.Sleep(5*time.Second + 1)
		if err := w.probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := []string{"srv:1 closed", "srv:1 open", "srv:1 half-open", "srv:1 open", "srv:1 half-open", "srv:1 closed"}
		if !slices.Equal(states, want) {
			t.Errorf("states %q, want %q", states, want)
		}
	})
}

// A caller that gives up says nothing about the peer; silence until the
// deadline does.
func TestBreakerCountsSilenceNotCancellation(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		w.meta.keepAlive = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		for range 40 {
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				time.Sleep(time.Millisecond)
				cancel()
			}()
			if err := w.keepAlive(ctx); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		if state := w.pool.BreakerState("srv:1"); state != "closed" {
			t.Fatalf("%s after cancelled calls", state)
		}
		w.net.Block("srv", "cli") // one way: requests arrive, answers do not
		for range 20 {
			wantKind(t, w.keepAlive(within(t, 10*time.Millisecond)), dfs.Deadline)
		}
		if state := w.pool.BreakerState("srv:1"); state != "open" {
			t.Errorf("%s after silence", state)
		}
	})
}

// Failures of streams count too, and a long stream does not keep the breaker
// half-open.
func TestBreakerAndStreams(t *testing.T) {
	inBubble(t, worldOptions{}, func(t *testing.T, w *world) {
		for range 30 {
			put, err := wire.NewDRPCBlockClient(w.pool.Conn("srv:1")).Put(t.Context())
			if err != nil {
				break
			}
			_ = put.Send(&wire.BlockFrame{Data: []byte("x")})
			synctest.Wait()
			w.net.Break("cli", "srv")
			_, err = put.CloseAndRecv()
			if err == nil {
				t.Fatal("a broken stream was answered")
			}
		}
		if state := w.pool.BreakerState("srv:1"); state != "open" {
			t.Fatalf("%s after broken streams", state)
		}
		time.Sleep(5*time.Second + 1)
		stream, err := wire.NewDRPCRaftClient(w.pool.Conn("srv:1")).Messages(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.probe(t.Context()); err != nil {
			t.Errorf("beside a stream: %v", err)
		}
		_ = stream.Close()
	})
}

// Many callers, cancellations, broken connections and a server that comes and
// goes: everything ends, and each request that succeeded reached a handler.
func TestPoolUnderFaults(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			opts := worldOptions{memory: transport.MemoryOptions{Seed: seed, MaxLatency: 5 * time.Millisecond}}
			opts.pool.MaxPerPeer = 8
			inBubble(t, opts, func(t *testing.T, w *world) {
				w.meta.keepAlive = func(ctx context.Context) error { time.Sleep(3 * time.Millisecond); return nil }
				var callers sync.WaitGroup
				var mu sync.Mutex
				good := int64(0)
				for i := range 16 {
					callers.Go(func() {
						for n := range 60 {
							ctx, cancel := context.WithTimeout(t.Context(), time.Duration(5+(i*7+n*13)%40)*time.Millisecond)
							if err := w.keepAlive(ctx); err == nil {
								mu.Lock()
								good++
								mu.Unlock()
							} else if dfs.KindOf(err) == dfs.Other {
								t.Errorf("an error without a kind: %v", err)
							}
							cancel()
							if n%10 == i%10 {
								if put, err := wire.NewDRPCBlockClient(w.pool.Conn("srv:1")).Put(t.Context()); err == nil {
									_ = put.Send(&wire.BlockFrame{Data: make([]byte, dfs.FrameSize)})
									_, _ = put.CloseAndRecv()
								}
							}
						}
					})
				}
				for n := range 20 {
					time.Sleep(7 * time.Millisecond)
					switch n % 4 {
					case 0:
						w.net.Break("cli", "srv")
					case 1:
						w.net.Block("srv", "cli")
					case 2:
						w.net.Heal()
					}
				}
				w.net.Heal()
				callers.Wait()
				if good == 0 || good > w.meta.calls.Load() {
					t.Errorf("%d calls succeeded, %d reached the handler", good, w.meta.calls.Load())
				}
			})
		})
	}
}
