package sim

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/node"
	"dfsd/sim/bubble"
	"dfsd/transport"
)

// inBubble runs a test of a new cluster in virtual time.
func inBubble(t *testing.T, cfg Config, fn func(t *testing.T, c *Cluster)) {
	t.Helper()
	if cfg.Seed == 0 {
		cfg.Seed = 1
	}
	cfg.Logger, cfg.Tweak = testLogger(), quietly(cfg.Tweak)
	bubble.Test(t, func(t *testing.T) {
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fn(t, c)
	})
}

// quietly loses no answers but those that the test itself loses.
func quietly(tweak func(*node.Options)) func(*node.Options) {
	return func(o *node.Options) {
		o.DropReply = nil
		if tweak != nil {
			tweak(o)
		}
	}
}

// await waits until ok returns an empty string, for at most limit of virtual
// time, and returns how long that took.
func await(t *testing.T, limit time.Duration, ok func() string) time.Duration {
	t.Helper()
	begun := time.Now()
	for {
		why := ok()
		took := time.Since(begun)
		if why == "" {
			return took
		}
		if took >= limit {
			t.Fatalf("not within %v: %s", limit, why)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// open opens a client on a host of its own.
func open(t *testing.T, c *Cluster, name string) *Peer {
	t.Helper()
	var p *Peer
	await(t, time.Minute, func() string {
		var err error
		if p, err = c.Client(t.Context(), name, c.cfg.Seed); err != nil {
			return err.Error()
		}
		return ""
	})
	return p
}

// awaitReady waits until the cluster takes reads and writes.
func awaitReady(t *testing.T, p *Peer) time.Duration {
	t.Helper()
	return await(t, 2*time.Minute, func() string {
		st, err := p.Status(t.Context())
		if err != nil {
			return err.Error()
		}
		return strings.Join(st.Problems, "; ")
	})
}

// awaitFull waits until every placement group is whole.
func awaitFull(t *testing.T, c *Cluster, p *Peer, limit time.Duration) time.Duration {
	t.Helper()
	return await(t, limit, func() string {
		st, err := p.Status(t.Context())
		switch {
		case err != nil:
			return err.Error()
		case !st.Redundancy.AllFull || len(st.Problems) > 0:
			r := &run{c: c}
			return fmt.Sprintf("%v, problems %q\n%s", st.Redundancy, st.Problems, r.describeMap())
		}
		return ""
	})
}

// sound checks that replicas agree and that the tree holds together.
func sound(t *testing.T, c *Cluster) {
	t.Helper()
	r := &run{c: c, counts: Counts{}}
	if err := r.checkReplicas(); err != nil {
		t.Error(err)
	}
}

func content(t *testing.T, p *Peer, path string) []byte {
	t.Helper()
	b, err := slurp(t.Context(), p, path)
	if err != nil {
		t.Errorf("read %s: %v", path, err)
	}
	return b
}

func slurp(ctx context.Context, p *Peer, path string) ([]byte, error) {
	f, err := p.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	_, err = f.WriteTo(ctx, &buf)
	return buf.Bytes(), err
}

// lossy loses answers, counted by caller, server and method, from the first on:
// of what changes something every other one, so that no attempt but the second
// is answered; of the rest every fourth, or circuit breakers would open.
type lossy struct {
	mu    sync.Mutex
	seen  map[string]int
	lost  Counts // by method, of clients
	among int    // lost between nodes
}

func (l *lossy) drop(server string, peer transport.Peer, method string) bool {
	if strings.HasPrefix(method, "/dfsd.wire.Raft/") {
		return false // Raft repeats by itself, and its streams have no answers
	}
	host, _, _ := net.SplitHostPort(peer.Addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	key := server + " " + host + " " + method
	l.seen[key]++
	every := 4
	switch method {
	case "/dfsd.wire.Meta/Mutate", "/dfsd.wire.Meta/MutateBatch", "/dfsd.wire.Meta/OpenSession", "/dfsd.wire.Meta/CloseSession", "/dfsd.wire.Meta/KeepAlive":
		every = 2
	}
	lose := l.seen[key]%every == 1
	switch {
	case lose && peer.Kind == transport.KindClient:
		l.lost[method[strings.LastIndex(method, "/")+1:]]++
	case lose:
		l.among++
	}
	return lose
}

// TestEveryAnswerIsLostOnce makes every request be carried out twice at least:
// each verb must take effect once and give the answer of that time.
func TestEveryAnswerIsLostOnce(t *testing.T) {
	l := &lossy{seen: map[string]int{}, lost: Counts{}}
	tweak := func(o *node.Options) {
		name := o.Name
		o.DropReply = func(peer transport.Peer, method string, _ error) bool { return l.drop(name, peer, method) }
	}
	inBubble(t, Config{Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		awaitReady(t, p)
		verbs(t, p, func(format string, args ...any) { t.Errorf(format, args...) })
		time.Sleep(15 * time.Second) // the session is renewed
		p.Close()
		if n := sessionsOf(t, c); n != 0 {
			t.Errorf("%d sessions are open after the last was closed", n)
		}
		sound(t, c)
		t.Logf("answers lost: %v; between nodes %d", l.lost, l.among)
		for _, m := range []string{"Probe", "GetMap", "Status", "OpenSession", "KeepAlive", "CloseSession", "Mutate", "Read", "Put", "Get"} {
			if l.lost[m] == 0 {
				t.Errorf("no answer of %s was lost: the test proves nothing for it", m)
			}
		}
	})
}

// sessionsOf returns how many sessions the control leader knows.
func sessionsOf(t *testing.T, c *Cluster) int {
	t.Helper()
	p := open(t, c, "observer")
	defer p.Close()
	st, err := p.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return int(st.Sessions)
}

// TestForgottenRepliesAreFound plants what the test above must see: a group that
// does not remember its replies.
func TestForgottenRepliesAreFound(t *testing.T) {
	l := &lossy{seen: map[string]int{}, lost: Counts{}}
	tweak := func(o *node.Options) {
		name := o.Name
		o.Meta.Namespace.ForgetReplies = true
		o.DropReply = func(peer transport.Peer, method string, _ error) bool { return l.drop(name, peer, method) }
	}
	inBubble(t, Config{Tweak: tweak}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		faults := 0
		verbs(t, p, func(string, ...any) { faults++ })
		if faults < 8 {
			t.Errorf("a group that forgets its replies shows %d wrong answers: want one for most verbs", faults)
		}
	})
}

// verbs does everything a client can do, each thing once, and holds every answer
// against the one that is right.
func verbs(t *testing.T, p *Peer, fault func(format string, args ...any)) {
	ctx := t.Context()
	want := func(what string, err error, kind dfs.Kind) {
		t.Helper()
		if err == nil && kind != dfs.Other || err != nil && (kind == dfs.Other || dfs.KindOf(err) != kind) {
			fault("%s: %v, want %v", what, err, kind)
		}
	}
	const fine = dfs.Other
	put := func(path, data string, replace bool) error {
		_, err := p.PutFile(ctx, path, client.PutOptions{Mode: 0o644, Replace: replace}, strings.NewReader(data))
		return err
	}
	stat := func(path string) *client.Attr {
		a, err := p.Lstat(ctx, path)
		if err != nil {
			fault("stat %s: %v", path, err)
			return &client.Attr{}
		}
		return a
	}

	// Directories, over a boundary and within a group.
	crossed, stayed := 0, 0
	dirs := []string{"/a", "/b", "/c", "/a/a", "/a/a/a", "/a/a/a/a", "/a/a/a/a/a", "/b/a", "/b/a/a"}
	for _, d := range dirs {
		a, err := p.Mkdir(ctx, d, 0o755)
		want("mkdir "+d, err, fine)
		if err == nil {
			if a.Ino.Group() != a.Parent.Group() {
				crossed++
			} else {
				stayed++
			}
		}
		_, err = p.Mkdir(ctx, d, 0o755)
		want("mkdir again "+d, err, dfs.Exist)
	}
	if crossed == 0 || stayed == 0 {
		fault("%d directories crossed a boundary, %d did not: want some of both", crossed, stayed)
	}
	if n := stat("/").Size; n != 3 {
		fault("the root has %d entries, want 3", n)
	}

	big := strings.Repeat("block ", 2*simBlockSize/6)
	want("create", put("/a/f", big, false), fine)
	want("create again", put("/a/f", "other", false), dfs.Exist)
	want("replace", put("/a/f", big+"!", true), fine)
	want("replace what is not there", put("/a/g", "g", true), fine)
	if got, err := slurp(ctx, p, "/a/f"); string(got) != big+"!" {
		fault("a file has %d bytes, want %d, %v", len(got), len(big)+1, err)
	}
	if n := stat("/a").Size; n != 3 {
		fault("/a has %d entries, want 3", n)
	}

	// Write, append and truncate.
	f, err := p.Open(ctx, "/a/g")
	want("open", err, fine)
	if err == nil {
		_, err = f.WriteAt(ctx, []byte("hello"), 0)
		want("write", err, fine)
		want("sync", f.Sync(ctx), fine)
		_, err = f.WriteAt(ctx, []byte(", world"), 5)
		want("append", err, fine)
		want("sync", f.Sync(ctx), fine)
		want("truncate", f.Truncate(ctx, 8), fine)
		want("grow", f.Truncate(ctx, 10), fine)
		want("close", f.Close(ctx), fine)
		if got, err := slurp(ctx, p, "/a/g"); string(got) != "hello, w\x00\x00" {
			fault("the file holds %q, %v", got, err)
		}
	}

	mode := uint32(0o600)
	version := stat("/a/g").Version
	a, err := p.SetAttr(ctx, "/a/g", client.SetAttr{Mode: &mode})
	want("set attributes", err, fine)
	if err == nil && (a.Mode != mode || a.Version <= version || a.Version != stat("/a/g").Version) {
		fault("set attributes answered %+v after version %d, it is %+v now", a, version, stat("/a/g"))
	}
	want("set policy", p.SetPolicy(ctx, "/c", dfs.Replicated(3)), fine)

	// Names.
	_, err = p.Symlink(ctx, "f", "/a/s", client.PutOptions{})
	want("symlink", err, fine)
	_, err = p.Symlink(ctx, "f", "/a/s", client.PutOptions{})
	want("symlink again", err, dfs.Exist)
	a, err = p.Link(ctx, "/a/f", "/a/l")
	want("link", err, fine)
	if err == nil && a.Nlink != 2 {
		fault("a link was answered with %d links", a.Nlink)
	}
	_, err = p.Link(ctx, "/a/f", "/a/l")
	want("link again", err, dfs.Exist)
	want("rename", p.Rename(ctx, "/a/f", "/a/r", true), fine)
	want("rename again", p.Rename(ctx, "/a/f", "/a/r", true), dfs.NotExist)
	want("rename onto", p.Rename(ctx, "/a/g", "/a/r", false), fine)
	if n := stat("/a/l").Nlink; n != 1 {
		fault("%d links are left, want 1", n)
	}
	want("remove", p.Remove(ctx, "/a/l"), fine)
	want("remove again", p.Remove(ctx, "/a/l"), dfs.NotExist)

	// Rmdir, over a boundary and within a group.
	want("rmdir of a full directory", p.Rmdir(ctx, "/a"), dfs.NotEmpty)
	for _, d := range []string{"/b/a/a", "/b/a", "/b", "/a/a/a/a/a", "/a/a/a/a", "/a/a/a", "/a/a"} {
		want("rmdir "+d, p.Rmdir(ctx, d), fine)
		want("rmdir again "+d, p.Rmdir(ctx, d), dfs.NotExist)
	}
	if n := stat("/").Size; n != 2 {
		fault("the root has %d entries, want 2", n)
	}
	if n := stat("/a").Size; n != 2 {
		fault("/a has %d entries, want 2", n)
	}
}
