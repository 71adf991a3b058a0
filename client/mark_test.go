package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"dfsd/client"
	"dfsd/dfs"
)

// mark waits for a renewal and returns the low-water mark that came with it.
func (w *world) mark() uint64 {
	time.Sleep(sessionTTL)
	w.meta.mu.Lock()
	defer w.meta.mu.Unlock()
	return w.meta.below
}

// highest is the highest counter of a block that a store has seen.
func highest(w *world) *atomic.Uint64 {
	var n atomic.Uint64
	for _, s := range w.stores {
		s.set(func(_ context.Context, id dfs.BlockID, _ dfs.Epoch) error {
			for {
				if old := n.Load(); id.Counter <= old || n.CompareAndSwap(old, id.Counter) {
					return nil
				}
			}
		}, nil)
	}
	return &n
}

// TestLowWaterMark: blocks in the buffer of an open file, and those whose commit
// has no answer yet, hold the mark down; whatever becomes of them, it goes on.
func TestLowWaterMark(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c, ctx := w.client(nil), t.Context()
		last := highest(w)
		past := func(what string) {
			t.Helper()
			if got := w.mark(); got <= last.Load() {
				t.Errorf("%s: the mark is %d, and blocks up to %d were stored", what, got, last.Load())
			}
		}
		put(t, c, "/a", content(1, 3*blockSize))
		past("a put")
		r := io.MultiReader(bytes.NewReader(content(1, 3*blockSize)), iotest.ErrReader(errors.New("boom")))
		if _, err := c.PutFile(ctx, "/b", client.PutOptions{}, r); err == nil {
			t.Error("a put whose source fails")
		}
		before := w.mark()
		put(t, c, "/b", content(2, 10))
		past("a put after one whose source failed")

		f, err := c.Open(ctx, "/a")
		noErr(t, err)
		first := w.mark()
		if first <= before {
			t.Errorf("the mark was %d and is %d", before, first)
		}
		_, err = f.WriteAt(ctx, content(3, 2*blockSize+1), 0)
		noErr(t, err)
		put(t, c, "/c", content(4, 3*blockSize))
		if got := w.mark(); got != first {
			t.Errorf("blocks from %d on are not committed: the mark is %d", first, got)
		}
		noErr(t, f.Close(ctx))
		past("the file is closed")

		var hung atomic.Bool
		w.meta.intercept(func(ctx context.Context, _ dfs.GroupID) error {
			if hung.CompareAndSwap(false, true) {
				return hang(ctx)
			}
			return nil
		})
		first = last.Load() + 1
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err := c.PutFile(ctx, "/d", client.PutOptions{}, bytes.NewReader(content(5, 3*blockSize)))
			noErr(t, err)
		}()
		<-done
		past("a commit that was sent twice")
		if first == last.Load()+1 {
			t.Error("no block was written")
		}

		stop, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		w.meta.intercept(func(ctx context.Context, _ dfs.GroupID) error { return hang(ctx) })
		if _, err := c.PutFile(stop, "/e", client.PutOptions{}, bytes.NewReader(content(6, 3*blockSize))); err == nil {
			t.Error("a put without an answer")
		}
		w.meta.intercept(nil)
		past("a commit without an answer")
	})
}
