package client_test

import (
	"context"
	"testing"

	"dfsd/client"
	"dfsd/dfs"
)

// TestLostWritesAreReportedAtTheEnd: what was written and could not be stored is
// an error of Close too, whoever met it first.
func TestLostWritesAreReportedAtTheEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		meet func(t *testing.T, f *client.File) error // how the error is met first
	}{
		{"a read", func(t *testing.T, f *client.File) error {
			_, err := f.ReadAt(t.Context(), make([]byte, 10), 0)
			return err
		}},
		{"a truncation", func(t *testing.T, f *client.File) error { return f.Truncate(t.Context(), 5) }},
		{"nobody", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
				cl, ctx := w.client(nil), t.Context()
				put(t, cl, "/f", []byte("before"))
				f, err := cl.Open(ctx, "/f")
				noErr(t, err)
				_, err = f.WriteAt(ctx, []byte("behind"), 0)
				noErr(t, err)
				for _, s := range w.stores {
					s.set(func(context.Context, dfs.BlockID, dfs.Epoch) error { return dfs.Errorf(dfs.Corrupt, "put", "no") }, nil)
				}
				if c.meet != nil {
					if err := c.meet(t, f); err == nil {
						t.Fatal("the loss was not met")
					}
				}
				for _, s := range w.stores {
					s.set(nil, nil)
				}
				if c.meet == nil {
					noErr(t, f.Close(ctx))
					return
				}
				p := make([]byte, 6)
				if _, err := f.ReadAt(ctx, p, 0); err != nil || string(p) != "before" {
					t.Errorf("after the loss: %q, %v", p, err)
				}
				if err := f.Close(ctx); err == nil {
					t.Error("Close reports nothing")
				}
				noErr(t, f.Close(ctx))
			})
		})
	}
}
