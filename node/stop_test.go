package node

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/meta"
	"dfsd/transport"
)

// lockedBuffer takes log lines from many goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestANodeWithAFailedStoreStops: what a store that failed says when it is closed
// is no failure of the shutdown, which finished everything that was accepted.
func TestANodeWithAFailedStoreStops(t *testing.T) {
	var broken atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && strings.HasPrefix(op.Path, "bad/") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return errors.New("the disk is gone")
		}
		return nil
	}))
	log := &lockedBuffer{}
	n, err := Start(Options{
		FS: fs, Network: transport.NewMemory(transport.MemoryOptions{}).Host("h"), Name: "n", Roles: dfs.RoleStorage, Listen: "h:1", Dir: "d",
		Stores: []string{"good", "bad"}, Peers: []meta.Peer{{Addr: "nobody:1"}}, PID: 1, Insecure: true,
		NewMark: func() uint64 { return 7 }, Logger: slog.New(slog.NewTextHandler(log, nil)),
		Engine: engine.Options{SegmentSize: 1 << 20, CacheSize: 1 << 20, MemTableSize: 256 << 10, Capacity: 1 << 30},
	})
	if err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	if err := n.Engines()[1].SetEpochs(5, nil); err == nil {
		t.Fatal("the store has not failed")
	}
	if err := n.Shutdown(t.Context()); err != nil {
		t.Errorf("the shutdown failed: %v", err)
	}
	text := log.String()
	if n := strings.Count(text, "a failed store is closed"); n != 1 || !strings.Contains(text, "dir=bad") {
		t.Errorf("%d lines say that a failed store was closed:\n%s", n, text)
	}
}

// TestStoresThatCannotBeOpened: one store's directory keeps no other out.
func TestStoresThatCannotBeOpened(t *testing.T) {
	fs := vfs.NewMem()
	if err := fs.MkdirAll("photos/2025", 0o755); err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	n, err := Start(Options{
		FS: fs, Network: transport.NewMemory(transport.MemoryOptions{}).Host("h"), Name: "n", Roles: dfs.RoleStorage, Listen: "h:1", Dir: "d",
		Stores: []string{"photos", "good"}, Peers: []meta.Peer{{Addr: "nobody:1"}}, PID: 1, Insecure: true,
		NewMark: func() uint64 { return 7 }, Logger: slog.New(slog.NewTextHandler(log, nil)),
		Engine: engine.Options{SegmentSize: 1 << 20, CacheSize: 1 << 20, MemTableSize: 256 << 10, Capacity: 1 << 30},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(n.Engines()) != 1 || n.Engines()[0].Dir() != "good" {
		t.Errorf("%d stores are open", len(n.Engines()))
	}
	if err := n.unused(); dfs.KindOf(err) != dfs.Invalid || !strings.Contains(log.String(), "stores cannot be opened") {
		t.Errorf("unused: %v; the log:\n%s", err, log)
	}
	if err := n.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestOpenSaysOnceWhatItOpens: the reason of a refused store directory.
func TestOpenSaysOnceWhatItOpens(t *testing.T) {
	fs := vfs.NewMem()
	if err := fs.MkdirAll("photos/2025", 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Start(Options{
		FS: fs, Network: transport.NewMemory(transport.MemoryOptions{}).Host("h"), Name: "n", Roles: dfs.RoleStorage, Listen: "h:1", Dir: "d",
		Stores: []string{"photos"}, PID: 1, Insecure: true, NewMark: func() uint64 { return 7 },
		Engine: engine.Options{SegmentSize: 1 << 20, MemTableSize: 256 << 10, Capacity: 1 << 30},
	})
	if dfs.KindOf(err) != dfs.Invalid || strings.Count(err.Error(), "open store") != 1 || !strings.Contains(err.Error(), "not empty (2025)") {
		t.Errorf("got %v", err)
	}
}
