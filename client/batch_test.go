package client_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/transport/wire"
)

func symlinkTo(name, target string) *wire.Command {
	return &wire.Command{Op: &wire.Command_Create{Create: &wire.CreateOp{Parent: uint64(dfs.RootIno), Name: []byte(name), Type: wire.FileType_SYMLINK, Target: []byte(target)}}}
}

// leaseAll asks for more inode numbers than a session may hold, if it is sent
// twice: the second is refused for the moment, for ever.
func leaseAll() *wire.Command {
	return &wire.Command{Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: 4096}}}
}

// wantKinds compares errors with their kinds; Other is none.
func wantKinds(t *testing.T, errs []error, kinds ...dfs.Kind) {
	t.Helper()
	if len(errs) != len(kinds) {
		t.Fatalf("%d outcomes, want %d", len(errs), len(kinds))
	}
	for i, err := range errs {
		if kinds[i] == dfs.Other && err != nil || kinds[i] != dfs.Other && dfs.KindOf(err) != kinds[i] {
			t.Errorf("outcome %d: %v, want %v", i, err, kinds[i])
		}
	}
}

func namesOf(t *testing.T, c *client.Client, path string) (out []string) {
	t.Helper()
	for e, err := range c.ReadDir(t.Context(), path, false) {
		noErr(t, err)
		out = append(out, e.Name)
	}
	return out
}

// TestBatchesLoseAnswers: files are made and removed by batches every answer of
// which is lost once; each has the outcome of the first time.
func TestBatchesLoseAnswers(t *testing.T) {
	inWorld(t, worldOptions{loseReplies: true}, func(t *testing.T, w *world) {
		c, ctx := w.client(nil), t.Context()
		_, err := c.Mkdir(ctx, "/d", 0o755)
		noErr(t, err)
		put(t, c, "/d/f3", content(1, 10))
		dir, err := c.Resolve(ctx, "/d")
		noErr(t, err)
		w.meta.take()
		var files []*client.NewFile
		for i := range 20 {
			files = append(files, &client.NewFile{Name: fmt.Sprint("f", i), Content: bytes.NewReader(content(uint64(i), 100*i))})
		}
		files = append(files, &client.NewFile{Name: "a/b"}, &client.NewFile{Name: "owned", Options: client.PutOptions{Owner: &client.Owner{UID: 7, GID: 8}}})
		dir.PutFiles(ctx, files)
		for i, f := range files {
			switch {
			case i == 3:
				wantKind(t, f.Err, dfs.Exist)
			case f.Name == "a/b":
				wantKind(t, f.Err, dfs.Invalid)
			case f.Err != nil || f.Attr == nil:
				t.Errorf("%s: %v", f.Name, f.Err)
			case f.Name == "owned" && (f.Attr.UID != 7 || f.Attr.GID != 8):
				t.Errorf("%s belongs to %d:%d", f.Name, f.Attr.UID, f.Attr.GID)
			case i < 20:
				wantContent(t, c, "/d/"+f.Name, content(uint64(i), 100*i))
			}
		}
		if want := []int{20, 20}; !slices.Equal(w.meta.batches, want) {
			t.Errorf("batches of %v came, want %v: one whose answer is lost, and it again", w.meta.batches, want)
		}

		names := []string{"f0", "gone", ".", "f1"}
		wantKinds(t, dir.RemoveAll(ctx, names), dfs.Other, dfs.NotExist, dfs.Invalid, dfs.Other)
		if got := namesOf(t, c, "/d"); len(got) != 19 || slices.Contains(got, "f0") {
			t.Errorf("left: %q", got)
		}
		w.meta.check(t)
	})
}

// TestBatchStops: what comes behind a failure is not carried out if the caller
// wants that, and certainly not, though an answer was lost.
func TestBatchStops(t *testing.T) {
	for _, lose := range []bool{false, true} {
		for _, stop := range []bool{false, true} {
			inWorld(t, worldOptions{loseReplies: lose}, func(t *testing.T, w *world) {
				c := w.client(nil)
				cmds := []*wire.Command{symlinkTo("a", "x"), symlinkTo("a", "y"), symlinkTo("b", "x"), symlinkTo("c", "x")}
				errs := client.Batch(t.Context(), c, 1, cmds, stop)
				names := namesOf(t, c, "/")
				if stop {
					wantKinds(t, errs, dfs.Other, dfs.Exist, dfs.Unavailable, dfs.Unavailable)
					if len(names) != 1 {
						t.Errorf("%q were made", names)
					}
				} else {
					wantKinds(t, errs, dfs.Other, dfs.Exist, dfs.Other, dfs.Other)
					if len(names) != 3 {
						t.Errorf("%q were made", names)
					}
				}
				w.meta.check(t)
			})
		}
	}
}

// TestBatchIsHeldUp: what comes behind a command that has to wait does not
// overtake it.
func TestBatchIsHeldUp(t *testing.T) {
	for _, stop := range []bool{false, true} {
		inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
			c := w.client(nil)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			errs := client.Batch(ctx, c, 1, []*wire.Command{symlinkTo("a", "x"), leaseAll(), leaseAll(), symlinkTo("b", "x")}, stop)
			wantKinds(t, errs[:3], dfs.Other, dfs.Other, dfs.Busy)
			if kind := dfs.KindOf(errs[3]); kind != dfs.Deadline && kind != dfs.Unavailable {
				t.Errorf("what comes behind: %v", errs[3])
			}
			if names := namesOf(t, c, "/"); len(names) != 1 {
				t.Errorf("%q were made", names)
			}
			w.meta.check(t)
		})
	}
	// It waits for a leader, and then all goes on.
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c, n := w.client(nil), 0
		w.meta.intercept(func(context.Context, dfs.GroupID) error {
			if n++; n < 20 {
				return []error{dfs.Errorf(dfs.Unavailable, "change", "an election"), dfs.Errorf(dfs.Unknown, "change", "it is lost")}[n%2]
			}
			return nil
		})
		wantKinds(t, client.Batch(t.Context(), c, 1, []*wire.Command{symlinkTo("a", "x"), symlinkTo("b", "x")}, true), dfs.Other, dfs.Other)
	})
}

// TestBatchOutcomeIsUnknown: without an answer in time nobody knows; what was not
// sent was not done.
func TestBatchOutcomeIsUnknown(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c := w.client(nil)
		w.meta.intercept(func(ctx context.Context, _ dfs.GroupID) error { return hang(ctx) })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		wantKinds(t, client.Batch(ctx, c, 1, []*wire.Command{symlinkTo("a", "x"), symlinkTo("b", "x")}, true), dfs.Unknown, dfs.Unknown)
		w.meta.intercept(nil)
		wantKinds(t, client.Batch(ctx, c, 1, []*wire.Command{symlinkTo("c", "x")}, true), dfs.Deadline)
		if names := namesOf(t, c, "/"); len(names) != 0 {
			t.Errorf("%q were made", names)
		}
	})
}

// TestBatchOfAnEarlierRelease: meta nodes that know no batches are asked once, and
// then for each command.
func TestBatchOfAnEarlierRelease(t *testing.T) {
	inWorld(t, worldOptions{loseReplies: true}, func(t *testing.T, w *world) {
		w.meta.unbatched = true
		c := w.client(nil)
		for i := range 2 {
			a, b := fmt.Sprint("a", i), fmt.Sprint("b", i)
			errs := client.Batch(t.Context(), c, 1, []*wire.Command{symlinkTo(a, "x"), symlinkTo(a, "x"), symlinkTo(b, "x")}, false)
			wantKinds(t, errs, dfs.Other, dfs.Exist, dfs.Other)
		}
		if len(w.meta.batches) != 1 {
			t.Errorf("batches of %v came", w.meta.batches)
		}
		w.meta.check(t)
	})
}

// TestBatchBounds: requests hold so many bytes, and a client has so many changes
// under way, whatever comes.
func TestBatchBounds(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c := w.client(nil)
		var callers sync.WaitGroup
		for i := range 5 {
			callers.Go(func() {
				var cmds []*wire.Command
				for k := range 128 {
					cmds = append(cmds, symlinkTo(fmt.Sprint("n", i, "-", k), strings.Repeat("x", 4000)))
				}
				for _, m := range client.Batch(t.Context(), c, 1, cmds, true) {
					noErr(t, m)
				}
			})
		}
		callers.Wait()
		if n := len(namesOf(t, c, "/")); n != 5*128 {
			t.Errorf("%d were made", n)
		}
		for _, n := range w.meta.batches {
			if n*4000 > 256<<10 {
				t.Errorf("%d commands of 4000 bytes shared a request", n)
			}
		}
		w.meta.check(t)
	})
}
