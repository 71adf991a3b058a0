package storage

import (
	"context"
	"sync"
	"time"

	"dfsd/dfs"
)

// latest holds the newest cluster map of some kind and wakes those who wait
// for a newer one.
type latest struct {
	mu   sync.Mutex // guards what follows
	m    *dfs.Map   // nil before the first. Invariant: its epoch only grows
	next chan struct{}
}

func newLatest() *latest { return &latest{next: make(chan struct{})} }

// get returns the map, nil before the first, and a channel that is closed when
// there is a newer one.
func (l *latest) get() (*dfs.Map, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m, l.next
}

// set publishes a map unless it is no newer, and reports whether it did.
func (l *latest) set(m *dfs.Map) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m != nil && m.Epoch <= l.m.Epoch {
		return false
	}
	l.m = m
	close(l.next)
	l.next = make(chan struct{})
	return true
}

// reach waits until the map's epoch is at least e, and returns the map. It
// gives up after a time, or with ctx, and returns what there is.
func (l *latest) reach(ctx context.Context, e dfs.Epoch, limit time.Duration) *dfs.Map {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		m, next := l.get()
		if m != nil && m.Epoch >= e {
			return m
		}
		select {
		case <-next:
		case <-timer.C:
			return m
		case <-ctx.Done():
			return m
		}
	}
}
