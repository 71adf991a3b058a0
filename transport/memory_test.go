package transport_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dfsd/sim/bubble"
	"dfsd/transport"
)

// pair returns both ends of a connection from host a to host b.
func pair(t *testing.T, m *transport.Memory) (near, far net.Conn) {
	t.Helper()
	lis, err := m.Host("b").Listen("b:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if near, err = m.Host("a").Dial(t.Context(), lis.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = lis.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func timedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func TestMemoryCarriesBytes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := transport.NewMemory(transport.MemoryOptions{Seed: 1, MinLatency: time.Millisecond, MaxLatency: 9 * time.Millisecond})
		near, far := pair(t, m)
		sent := bytes.Repeat([]byte("0123456789abcdef"), 100<<10)
		var sender sync.WaitGroup
		sender.Go(func() {
			for rest := sent; len(rest) > 0; {
				n, err := near.Write(rest[:min(len(rest), 77777)])
				if err != nil {
					t.Error(err)
				}
				rest = rest[n:]
			}
			near.Close()
		})
		got, err := io.ReadAll(far)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d of %d bytes came, %v", len(got), len(sent), err)
		}
		sender.Wait()
		if _, err := far.Write([]byte("x")); err == nil {
			t.Error("a write to a closed end succeeds")
		}
	})
}

// What is sent together arrives in order, after a time within the bounds, and
// the same seed gives the same times.
func TestMemoryLatency(t *testing.T) {
	run := func(seed uint64) (times []time.Duration) {
		bubble.Test(t, func(t *testing.T) {
			m := transport.NewMemory(transport.MemoryOptions{Seed: seed, MinLatency: 2 * time.Millisecond, MaxLatency: 20 * time.Millisecond})
			near, far := pair(t, m)
			for range 30 {
				start := time.Now()
				if _, err := near.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := far.Read(make([]byte, 10)); err != nil {
					t.Fatal(err)
				}
				took := time.Since(start)
				if took < 2*time.Millisecond || took > 20*time.Millisecond {
					t.Errorf("took %v", took)
				}
				times = append(times, took)
			}
		})
		return times
	}
	if first := run(1); !slices.Equal(first, run(1)) || slices.Equal(first, run(2)) {
		t.Error("the times do not follow the seed")
	}
}

func TestMemoryDeadlines(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		near, far := pair(t, transport.NewMemory(transport.MemoryOptions{}))
		start := time.Now()
		_ = near.SetReadDeadline(start.Add(time.Second))
		if _, err := near.Read(make([]byte, 1)); !timedOut(err) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		_ = near.SetReadDeadline(time.Time{})
		_ = near.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := near.Write(make([]byte, 1<<20))
		if !timedOut(err) || n == 0 || n == 1<<20 || time.Since(start) != 2*time.Second {
			t.Errorf("%d bytes, %v after %v", n, err, time.Since(start))
		}
		// A deadline that is set while a read waits, and one that is moved.
		go func() {
			time.Sleep(time.Second)
			_ = far.SetReadDeadline(time.Now().Add(-time.Second))
		}()
		if _, err := io.Copy(io.Discard, far); !timedOut(err) || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		_ = far.SetDeadline(time.Time{})
		go func() {
			time.Sleep(time.Second)
			far.Close()
		}()
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a read of a closed end: %v", err)
		}
	})
}

// A blocked link holds bytes back, one way, and delivers them in the end.
func TestMemoryBlock(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := transport.NewMemory(transport.MemoryOptions{})
		near, far := pair(t, m)
		m.Block("a", "b")
		if _, err := near.Write([]byte("held")); err != nil {
			t.Fatal(err)
		}
		if _, err := far.Write([]byte("passes")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 16)
		if n, err := near.Read(buf); err != nil || string(buf[:n]) != "passes" {
			t.Errorf("the other way: %q, %v", buf[:n], err)
		}
		_ = far.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := far.Read(buf); !timedOut(err) {
			t.Errorf("read over a blocked link: %v", err)
		}
		_ = far.SetReadDeadline(time.Time{})
		go func() {
			time.Sleep(time.Minute)
			m.Unblock("a", "b")
		}()
		if n, err := far.Read(buf); err != nil || string(buf[:n]) != "held" {
			t.Errorf("after unblocking: %q, %v", buf[:n], err)
		}
		// The end of a connection is held back too.
		m.Isolate("b")
		near.Close()
		_ = far.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := far.Read(buf); !timedOut(err) {
			t.Errorf("the end came over a blocked link: %v", err)
		}
		_ = far.SetReadDeadline(time.Time{})
		m.Heal()
		if _, err := far.Read(buf); err != io.EOF {
			t.Errorf("after healing: %v", err)
		}
	})
}

// Dialling over a partition waits for its end, or the caller's.
func TestMemoryDial(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := transport.NewMemory(transport.MemoryOptions{MinLatency: time.Millisecond})
		a := m.Host("a")
		if _, err := a.Dial(t.Context(), "b:1"); err == nil {
			t.Error("a host that does not exist answers")
		}
		lis, err := m.Host("b").Listen("b:1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Host("b").Listen("b:1"); err == nil {
			t.Error("an address is taken twice")
		}
		if _, err := m.Host("b").Listen("c:1"); err == nil {
			t.Error("a host listens on another's address")
		}
		m.Partition([]string{"a"}, []string{"b", "c"})
		start := time.Now()
		if _, err := a.Dial(within(t, time.Second), "b:1"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		go func() {
			time.Sleep(time.Second)
			m.Heal()
		}()
		c, err := a.Dial(t.Context(), "b:1")
		if err != nil {
			t.Fatal(err)
		}
		_ = lis.Close() // nobody accepted: reset
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("got %v", err)
		}
		_ = c.Close()
		if _, err := lis.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}

// A cut host is gone at once, its old network is dead, and a new life begins
// with the same name.
func TestMemoryCut(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := transport.NewMemory(transport.MemoryOptions{})
		near, far := pair(t, m)
		old := m.Host("b")
		oldLis, err := old.Listen("b:1")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			_, err := near.Read(make([]byte, 1))
			ended <- err
		}()
		synctest.Wait()
		m.Cut("b")
		if err := <-ended; err == nil || err == io.EOF {
			t.Errorf("the peer of a cut host got %v", err)
		}
		if _, err := far.Write([]byte("x")); err == nil {
			t.Error("a cut host writes")
		}
		if _, err := oldLis.Accept(); err == nil {
			t.Error("a cut host accepts")
		}
		if _, err := old.Listen("b:2"); err == nil {
			t.Error("a cut host listens")
		}
		if _, err := old.Dial(t.Context(), "a:1"); err == nil {
			t.Error("a cut host dials")
		}
		lis, err := m.Host("b").Listen("b:1")
		if err != nil {
			t.Fatal(err)
		}
		defer lis.Close()
		again, err := m.Host("a").Dial(t.Context(), "b:1")
		if err != nil {
			t.Fatal(err)
		}
		_ = again.Close()
		_ = oldLis.Close() // must not touch the new life's
		if c, err := m.Host("a").Dial(t.Context(), "b:1"); err != nil {
			t.Error(err)
		} else {
			_ = c.Close()
		}
	})
}

// A power loss is not heard of over a partition.
func TestMemoryCutBehindAPartition(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := transport.NewMemory(transport.MemoryOptions{})
		near, _ := pair(t, m)
		m.Isolate("b")
		m.Cut("b")
		_ = near.SetDeadline(time.Now().Add(time.Hour))
		if _, err := near.Read(make([]byte, 1)); !timedOut(err) {
			t.Errorf("read: %v", err)
		}
		if _, err := near.Write(make([]byte, 1<<20)); !timedOut(err) {
			t.Errorf("write: %v", err)
		}
		_ = near.SetDeadline(time.Time{})
		m.Heal()
		if _, err := near.Read(make([]byte, 1)); err == nil || timedOut(err) {
			t.Errorf("after healing: %v", err)
		}
	})
}
