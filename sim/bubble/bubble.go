package bubble

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// Test runs fn in a bubble of its own, as synctest.Test does.
func Test(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	if Race {
		processors.take()
		// fn may end the goroutine, by t.FailNow.
		defer processors.release()
	}
	synctest.Test(t, fn)
}

// processors is how many the process may use: one while there is a bubble.
var processors limit

type limit struct {
	mu      sync.Mutex
	bubbles int
	before  int // of GOMAXPROCS, while bubbles > 0
}

func (l *limit) take() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bubbles == 0 {
		l.before = runtime.GOMAXPROCS(1)
	}
	l.bubbles++
}

func (l *limit) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bubbles--
	if l.bubbles == 0 {
		runtime.GOMAXPROCS(l.before)
	}
}
