package client

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
)

// shareWorld is a sharer whose requests wait until the test lets them go.
type shareWorld struct {
	sharer[int, int]
	open chan struct{} // closed: requests are answered

	mu   sync.Mutex
	asks [][]int // the requests, in order
	fail error   // of requests of several
	fit  int     // how many answers fit
}

func newShareWorld() *shareWorld {
	w := &shareWorld{open: make(chan struct{}), fit: maxShared}
	wait := func(ctx context.Context, qs []int) error {
		w.mu.Lock()
		w.asks = append(w.asks, qs)
		w.mu.Unlock()
		select {
		case <-w.open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	w.size = func(q int) int { return q }
	w.one = func(ctx context.Context, q int) turn[int] {
		return turn[int]{answer: -q, err: wait(ctx, []int{q})}
	}
	w.many = func(ctx context.Context, qs []int) ([]turn[int], bool) {
		err := wait(ctx, qs)
		if err == nil {
			err = w.fail
		}
		if err != nil {
			return nil, true
		}
		var out []turn[int]
		for _, q := range qs[:min(len(qs), w.fit)] {
			out = append(out, turn[int]{answer: -q})
		}
		return out, false
	}
	return w
}

// begin has callers ask from first on, one after the other, and returns where
// their turns come.
func (w *shareWorld) begin(ctx context.Context, first, n int) []chan turn[int] {
	out := make([]chan turn[int], n)
	for i := range out {
		out[i] = make(chan turn[int], 1)
		go func() { out[i] <- w.do(ctx, first+i) }()
		synctest.Wait()
	}
	return out
}

// TestShare: what comes while enough is under way shares one request, and each
// caller gets his own answer.
func TestShare(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newShareWorld()
		got := w.begin(t.Context(), 1, maxAsking+10)
		if len(w.asks) != maxAsking {
			t.Fatalf("%v are asked, want the first %d", w.asks, maxAsking)
		}
		close(w.open)
		for i, c := range got {
			if turn := <-c; turn.answer != -1-i || turn.err != nil || turn.alone {
				t.Errorf("caller %d: %+v", i+1, turn)
			}
		}
		if len(w.asks) != maxAsking+1 || len(w.asks[maxAsking]) != 10 {
			t.Errorf("%v were asked, want one request of the last 10", w.asks)
		}
		if w.asking != 0 || len(w.waiting) != 0 {
			t.Errorf("%d are under way and %d wait in the end", w.asking, len(w.waiting))
		}
	})
}

// TestShareBounds: a request takes so many, so long ones, and no more.
func TestShareBounds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct{ q, callers, want int }{
			"count": {1, maxShared + 5, maxShared},
			"bytes": {maxSharedBytes / 3, 7, 3},
			"large": {2 * maxSharedBytes, 2, 1},
		} {
			w := newShareWorld()
			w.begin(t.Context(), 1, maxAsking)
			done := make(chan turn[int], c.callers)
			for range c.callers {
				go func() { done <- w.do(t.Context(), c.q) }()
			}
			synctest.Wait()
			close(w.open)
			for range c.callers {
				if turn := <-done; turn.answer != -c.q || turn.err != nil {
					t.Errorf("%s: %+v", name, turn)
				}
			}
			synctest.Wait()
			most := 0
			for _, qs := range w.asks {
				most = max(most, len(qs))
			}
			if most != c.want {
				t.Errorf("%s: %d share a request, want %d", name, most, c.want)
			}
		}
	})
}

// TestShareLeave: who leaves while he waits was not asked for; who leaves while
// others ask for him does not know; and the others get what they wait for.
func TestShareLeave(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newShareWorld()
		first, cancelFirst := context.WithCancel(t.Context())
		w.begin(first, 1, 1)
		w.begin(t.Context(), 2, maxAsking-1)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		gone := w.begin(short, 100, 1)
		time.Sleep(2 * time.Second)
		if turn := <-gone[0]; !turn.alone || turn.maybe {
			t.Errorf("who waited: %+v", turn)
		}
		asker, cancelAsker := context.WithCancel(t.Context())
		lead := w.begin(asker, 200, 1)
		other := w.begin(t.Context(), 300, 1)
		long, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		late := w.begin(long, 400, 1)
		cancelFirst() // its place is taken by a request of the three
		synctest.Wait()
		time.Sleep(2 * time.Second)
		if turn := <-late[0]; turn.alone || !turn.maybe || dfs.KindOf(turn.err) != dfs.Deadline {
			t.Errorf("who was asked for: %+v", turn)
		}
		cancelAsker()
		if turn := <-lead[0]; !turn.alone || !turn.maybe {
			t.Errorf("who asked: %+v", turn)
		}
		if turn := <-other[0]; !turn.alone || !turn.maybe {
			t.Errorf("whose asker has gone: %+v", turn)
		}
		close(w.open)
		synctest.Wait()
		if w.asking != 0 || len(w.waiting) != 0 {
			t.Errorf("%d are under way and %d wait in the end", w.asking, len(w.waiting))
		}
	})
}

// TestShareFails: whoever shared a request that failed asks alone, and so does
// who did not fit into the answer.
func TestShareFails(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		for _, fail := range []error{nil, errors.New("bad")} {
			w := newShareWorld()
			w.fail, w.fit = fail, 2
			w.begin(t.Context(), 1, maxAsking)
			got := w.begin(t.Context(), 10, 3)
			close(w.open)
			for i, c := range got {
				turn := <-c
				switch {
				case fail != nil || i == 2:
					if !turn.alone || turn.maybe != (fail != nil) {
						t.Errorf("caller %d after %v: %+v", i, fail, turn)
					}
				case turn.err != nil || turn.answer != -10-i:
					t.Errorf("caller %d: %+v", i, turn)
				}
			}
		}
	})
}
