package sim

import (
	"context"
	"log/slog"
	"slices"
	"testing"
)

// checkedLog fails the test for a line that has an attribute twice, or calls
// the cause something else: lines are looked for by these keys.
type checkedLog struct {
	slog.Handler
	t    *testing.T
	keys []string // of the attributes that every line has
}

// Enabled implements slog.Handler.
func (h checkedLog) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs implements slog.Handler.
func (h checkedLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.keys = slices.Clip(h.keys)
	for _, a := range attrs {
		h.keys = append(h.keys, a.Key)
	}
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

// Handle implements slog.Handler.
func (h checkedLog) Handle(ctx context.Context, r slog.Record) error {
	keys := slices.Clip(h.keys)
	r.Attrs(func(a slog.Attr) bool {
		if slices.Contains(keys, a.Key) || a.Key == "err" || a.Key == "error" {
			h.t.Errorf("the line %q has %q twice, or no cause: %v %s", r.Message, a.Key, h.keys, a)
		}
		keys = append(keys, a.Key)
		return true
	})
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}
