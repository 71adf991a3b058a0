package storage

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// warnings counts log lines from WARN up.
type warnings struct{ n atomic.Int64 }

func (w *warnings) Write(p []byte) (int, error) {
	w.n.Add(1)
	return len(p), nil
}

// TestStartWarnsLate: that the others are not there yet is no cause for alarm,
// unless it lasts.
func TestStartWarnsLate(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		seen := &warnings{}
		c.plane.setRefuse(dfs.Errorf(dfs.Unavailable, "register", "the cluster is forming"))
		a := c.newNode("a", 1)
		a.tune = func(o *Options) {
			o.Logger = slog.New(slog.NewTextHandler(seen, &slog.HandlerOptions{Level: slog.LevelWarn}))
		}
		a.run()
		time.Sleep(startTime - time.Second)
		if n := seen.n.Load(); n > 0 {
			t.Errorf("%d warnings within %v of the start", n, startTime)
		}
		time.Sleep(2 * registerPause)
		if seen.n.Load() == 0 {
			t.Errorf("no warning %v after the start", startTime+2*registerPause)
		}
		c.plane.setRefuse(nil)
		a.ready()
	})
}

// TestHeardBeforeTheAnswer: a start whose registration took effect and was not
// answered is heard all the same. Else it is suspected before it knows, and a
// suspected start is not called up.
func TestHeardBeforeTheAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.newNode("a", 1)
		a.run()
		a.ready()
		a.stop()
		heard, lost := false, 0 // guarded by the plane's mutex, under which both are called
		c.plane.mu.Lock()
		c.plane.onBeat = func(*wire.StoreBeat) { heard = lost > 0 }
		c.plane.onReg = func() error {
			if heard {
				return nil
			}
			lost++
			return dfs.Errorf(dfs.Unavailable, "register", "still suspected")
		}
		c.plane.mu.Unlock()
		a.run()
		a.ready()
		c.plane.mu.Lock()
		defer c.plane.mu.Unlock()
		if lost == 0 {
			t.Error("every answer came")
		}
	})
}
