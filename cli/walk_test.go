package cli

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

	"dfsd/sim/bubble"
)

// TestWalkOrder walks a tree whose nodes are named by their paths, and checks
// that each is left once, after everything below it.
func TestWalkOrder(t *testing.T) {
	for _, workers := range []int{1, 3, 16} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var entered, left []string
				var running, most atomic.Int64
				w := &walk[string]{workers: workers}
				w.enter = func(_ context.Context, dir string) (children []string) {
					most.Store(max(most.Load(), running.Add(1)))
					defer running.Add(-1)
					mu.Lock()
					defer mu.Unlock()
					entered = append(entered, dir)
					if strings.Count(dir, "/") < 4 {
						for i := range 3 {
							children = append(children, fmt.Sprintf("%s/%d", dir, i))
						}
					}
					return children
				}
				w.leave = func(_ context.Context, dir string) {
					mu.Lock()
					defer mu.Unlock()
					left = append(left, dir)
				}
				w.run(t.Context(), "a", "b")
				if want := 2 * (1 + 3 + 9 + 27 + 81); len(entered) != want || len(left) != want {
					t.Fatalf("entered %d and left %d of %d", len(entered), len(left), want)
				}
				if int(most.Load()) > workers {
					t.Errorf("%d at a time with %d workers", most.Load(), workers)
				}
				at := map[string]int{}
				for i, dir := range left {
					if _, twice := at[dir]; twice {
						t.Errorf("%s was left twice", dir)
					}
					at[dir] = i
				}
				for dir, i := range at {
					if j := strings.LastIndexByte(dir, '/'); j > 0 && at[dir[:j]] < i {
						t.Errorf("%s was left before %s", dir[:j], dir)
					}
				}
				if workers == 1 && !slices.IsSorted(entered) {
					t.Errorf("a single worker jumps about: %v", entered)
				}
			})
		})
	}
}

func TestWalkNothing(t *testing.T) {
	w := &walk[int]{workers: 2}
	w.run(t.Context()) // returns
}

// TestWalkStops: when the context ends, workers that wait wake up, and nothing
// is left that was not finished.
func TestWalkStops(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		left := 0
		w := &walk[int]{workers: 4, leave: func(context.Context, int) { left++ }}
		w.enter = func(ctx context.Context, _ int) []int {
			synctest.Wait() // the others wait for work
			cancel()
			<-ctx.Done()
			return []int{1, 2, 3}
		}
		w.run(ctx, 0)
		if left != 0 {
			t.Errorf("%d were left", left)
		}
	})
}

func TestLinkTable(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var table linkTable[int, string]
		var firsts, others atomic.Int64
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				made, settle, err := table.first(t.Context(), 7, 5)
				switch {
				case err != nil:
					t.Error(err)
				case settle != nil:
					synctest.Wait() // the others wait for this one
					n := firsts.Add(1)
					settle("it", n > 1) // the first attempt fails: another one is the first then
				case made != "it":
					t.Errorf("made %q", made)
				default:
					others.Add(1)
				}
			})
		}
		wg.Wait()
		if firsts.Load() != 2 || others.Load() != 3 {
			t.Errorf("%d made it and %d found it", firsts.Load(), others.Load())
		}
		ctx, cancel := context.WithCancel(t.Context())
		_, settle, err := table.first(ctx, 8, 2)
		if settle == nil || err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, _, err := table.first(ctx, 8, 2); !errors.Is(err, context.Canceled) {
			t.Errorf("a wait whose context ended: %v", err)
		}
		settle("", true)
		if _, _, err := table.first(t.Context(), 8, 2); err != nil {
			t.Error(err)
		}
		if _, left := table.files[8]; left {
			t.Error("a file whose names have all come is remembered")
		}
	})
}

func TestTempNames(t *testing.T) {
	for _, name := range []string{"a", strings.Repeat("n", 255), strings.Repeat("ü", 127)} {
		temp := tempName(name)
		if len(temp) > 255 || temp[0] != '.' || temp == tempName(name) || !strings.Contains(temp, ".dfsd-") {
			t.Errorf("%q for %q", temp, name)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, c := range []struct{ path, dir, name string }{
		{"/", "", ""}, {"///", "", ""}, {"/a", "/", "a"}, {"/a/", "/", "a"}, {"/a/b", "/a", "b"}, {"/a/b//", "/a", "b"}, {"/a/..", "/a", ".."},
	} {
		if dir, name := split(c.path); dir != c.dir || name != c.name {
			t.Errorf("%s: %q, %q", c.path, dir, name)
		}
	}
}
