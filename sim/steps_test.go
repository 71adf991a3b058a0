package sim

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/node"
	"dfsd/transport"
)

// assassin cuts a client off with the answer to its n-th request, which was
// carried out: no word of the client gets out after it.
type assassin struct {
	mu     sync.Mutex
	c      *Cluster
	victim string // host; empty: nobody
	left   int    // answers until then
	struck chan struct{}
}

func (a *assassin) arm(victim string, after int) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.victim, a.left, a.struck = victim, after, make(chan struct{})
	return a.struck
}

func (a *assassin) drop(peer transport.Peer, method string) bool {
	host, _, _ := net.SplitHostPort(peer.Addr)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.victim == "" || host != a.victim || method == "/dfsd.wire.Meta/GetMap" || method == "/dfsd.wire.Meta/KeepAlive" {
		return false // what runs in the background is no step
	}
	if a.left--; a.left > 0 {
		return false
	}
	a.victim = ""
	a.c.net.Cut(host)
	close(a.struck)
	return true
}

// strike runs an operation of a client that dies with the answer to its n-th
// request, and reports whether it got that far.
func (a *assassin) strike(ctx context.Context, p *Peer, n int, op func(context.Context) error) (died bool, err error) {
	struck := a.arm(p.name, n)
	done := make(chan error, 1)
	go func() { done <- op(ctx) }()
	select {
	case <-struck:
		p.Kill()
		<-done
		return true, nil
	case err := <-done:
		a.arm("", 0)
		return false, err
	}
}

// testSteps kills a client after every single step of an operation on a
// directory of its own: what it began goes on without it, and nothing is left over.
func testSteps(t *testing.T, prepare func(t *testing.T, p *Peer, path string), op func(ctx context.Context, p *Peer, path string) error) {
	a := &assassin{}
	tweak := func(o *node.Options) {
		o.DropReply = func(peer transport.Peer, method string, _ error) bool { return a.drop(peer, method) }
	}
	inBubble(t, Config{Tweak: tweak}, func(t *testing.T, c *Cluster) {
		a.c = c
		other := open(t, c, "other")
		defer other.Close()
		awaitReady(t, other)
		var paths []string
		for n, ended := 1, false; !ended; n++ {
			if n > 30 {
				t.Fatal("the operation does not end")
			}
			ended = true
			for try := range 3 { // placed in different groups
				path := fmt.Sprintf("/d%d-%d", n, try)
				prepare(t, other, path)
				p := open(t, c, fmt.Sprintf("victim%d-%d", n, try))
				if _, err := p.Mkdir(t.Context(), fmt.Sprintf("/own%d-%d", n, try), 0o755); err != nil { // opens the session
					t.Fatal(err)
				}
				died, err := a.strike(t.Context(), p, n, func(ctx context.Context) error { return op(ctx, p, path) })
				if !died {
					if err != nil {
						t.Errorf("%s, undisturbed: %v", path, err)
					}
					p.Close()
				}
				ended = ended && !died
				paths = append(paths, path)
			}
		}
		if len(paths) < 6 {
			t.Error("no client died: the test proves nothing")
		}
		if err := quiet(c); err != nil {
			t.Error(err)
		}
		for _, path := range paths {
			wholeOrNot(t, other, path)
		}
		sound(t, c)
	})
}

// wholeOrNot checks that a directory works if it exists, and that its name is
// free if it does not.
func wholeOrNot(t *testing.T, p *Peer, path string) {
	t.Helper()
	ctx := t.Context()
	if _, err := p.Mkdir(ctx, path, 0o755); err != nil && dfs.KindOf(err) != dfs.Exist {
		t.Errorf("mkdir %s: %v", path, err)
	}
	a, err := p.Lstat(ctx, path)
	if err != nil || a.Type != client.TypeDir || a.Nlink != 2 || a.Size != 0 {
		t.Errorf("%s: %+v, %v", path, a, err)
	}
	if _, err := p.Mkdir(ctx, path+"/sub", 0o755); err != nil {
		t.Errorf("%s takes no entry: %v", path, err)
	}
	for _, name := range []string{path + "/sub", path} {
		if err := p.Rmdir(ctx, name); err != nil {
			t.Errorf("rmdir %s: %v", name, err)
		}
	}
	if _, err := p.Lstat(ctx, path); dfs.KindOf(err) != dfs.NotExist {
		t.Errorf("%s after its removal: %v", path, err)
	}
}

func TestClientDiesAtEveryStepOfMkdir(t *testing.T) {
	testSteps(t, func(*testing.T, *Peer, string) {}, func(ctx context.Context, p *Peer, path string) error {
		_, err := p.Mkdir(ctx, path, 0o755)
		return err
	})
}

func TestClientDiesAtEveryStepOfRmdir(t *testing.T) {
	testSteps(t, func(t *testing.T, p *Peer, path string) {
		if _, err := p.Mkdir(t.Context(), path, 0o755); err != nil {
			t.Fatal(err)
		}
	}, func(ctx context.Context, p *Peer, path string) error { return p.Rmdir(ctx, path) })
}
