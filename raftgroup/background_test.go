package raftgroup

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

// A snapshot that is installed cancels a flush of what lies around it, which
// Pebble then repeats, and reports as it reports one that failed.
func TestCancelledFlushIsNoFailure(t *testing.T) {
	var failed error
	l := newGate("state", func(err error) { failed = err }).listener()
	l.BackgroundError(fmt.Errorf("flush: %w", pebble.ErrCancelledCompaction))
	if failed != nil {
		t.Errorf("failed: %v", failed)
	}
	l.BackgroundError(errors.New("input/output error"))
	if failed == nil {
		t.Error("a flush that failed is taken for a cancelled one")
	}
}
