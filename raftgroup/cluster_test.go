package raftgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/sim/bubble"
)

// cluster is a few hosts on crashable file systems joined by a bad network. It
// lives inside a synctest bubble.
type cluster struct {
	t      *testing.T
	groups []dfs.GroupID
	tune   func(*Options)

	timers sync.WaitGroup // messages under way and receivers of snapshots

	mu      sync.Mutex // guards what follows
	rng     *rand.Rand
	nodes   map[dfs.NodeID]*node
	cut     map[[2]dfs.NodeID]bool // one-way
	drop    float64                // of messages
	dup     float64
	jitter  time.Duration // messages take up to so long, so they overtake each other
	late    float64       // of messages take up to maxLate: what an old stream still had
	offices map[office]dfs.NodeID
	stopped bool

	tap        func(from, to dfs.NodeID, msg []byte)    // sees what is sent
	lose       func(from, to dfs.NodeID, f *frame) bool // loses single frames
	chunks     func(from, to dfs.NodeID, n int) error   // may fail a snapshot's n-th chunk
	snapshots  int                                      // streams opened
	unexpected error
}

type node struct {
	c    *cluster
	id   dfs.NodeID
	fs   *vfs.MemFS
	dead atomic.Bool // what it answers from now on does not count

	paused chan struct{} // nil, or closed when the node goes on; guarded by c.mu

	host *Host
}

func newCluster(t *testing.T, seed uint64, nodes int, groups ...dfs.GroupID) *cluster {
	c := &cluster{
		t: t, groups: groups,
		rng:   rand.New(rand.NewPCG(seed, 1)),
		nodes: map[dfs.NodeID]*node{},
		cut:   map[[2]dfs.NodeID]bool{},

		offices: map[office]dfs.NodeID{},
	}
	for i := range nodes {
		id := dfs.NodeID(i + 1)
		c.nodes[id] = &node{c: c, id: id, fs: vfs.NewCrashableMem()}
	}
	return c
}

// testGroups are as many groups as a node has in practice, less a few.
func testGroups(n int) []dfs.GroupID {
	out := make([]dfs.GroupID, n)
	for i := range out {
		out[i] = dfs.GroupID(i)
	}
	return out
}

func testLogger(id dfs.NodeID) *slog.Logger {
	if os.Getenv("RAFTGROUP_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func (n *node) options() Options {
	c := n.c
	o := Options{
		FS: n.fs, Dir: "data", Node: n.id,
		CacheSize: 1 << 20, MemTableSize: 256 << 10, Workers: 2,
		KeepEntries: 64, LogBytes: 256 << 10, EntryCache: 16 << 10,
		SnapshotFileBytes: 16 << 10, MaxSnapshots: 2,
		StateMachine: func(dfs.GroupID) StateMachine { return kvMachine{} },
		Send: func(to dfs.NodeID, lane Lane, msg []byte) bool {
			return c.send(n, to, msg)
		},
		OpenSnapshot: func(ctx context.Context, to dfs.NodeID) (SnapshotStream, error) {
			return c.openSnapshot(ctx, n, to)
		},
		OnLeaderChange: func(g dfs.GroupID, leader dfs.NodeID, term uint64) { c.elected(g, leader, term) },
		Logger:         testLogger(n.id),
	}
	if c.tune != nil {
		c.tune(&o)
	}
	return o
}

func (n *node) start() error {
	h, err := Open(n.options())
	if err != nil {
		return err
	}
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.host = h
	return nil
}

// h returns the running host of a node, nil while it is down.
func (c *cluster) h(id dfs.NodeID) *Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id].host
}

// boot starts every node and makes every group with all of them as voters.
func (c *cluster) boot() {
	c.t.Helper()
	voters := c.all()
	for _, id := range voters {
		n := c.nodes[id]
		if err := n.start(); err != nil {
			c.t.Fatal(err)
		}
		for _, g := range c.groups {
			if err := n.host.CreateGroup(g, voters); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

func (c *cluster) send(n *node, to dfs.NodeID, msg []byte) bool {
	c.await(n)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tap != nil {
		c.tap(n.id, to, msg)
	}
	if c.lose != nil {
		msg = c.thin(n.id, to, msg)
	}
	if c.stopped || n.dead.Load() || c.cut[[2]dfs.NodeID{n.id, to}] || c.rng.Float64() < c.drop {
		return true
	}
	copies := 1
	if c.rng.Float64() < c.dup {
		copies = 2
	}
	for range copies {
		delay := time.Millisecond
		if c.jitter > 0 {
			delay += time.Duration(c.rng.Int64N(int64(c.jitter)))
		}
		if c.rng.Float64() < c.late {
			delay += time.Duration(c.rng.Int64N(int64(maxLate)))
		}
		c.timers.Add(1)
		time.AfterFunc(delay, func() {
			defer c.timers.Done()
			c.deliver(n.id, to, msg)
		})
	}
	return true
}

// thin takes the frames out of a batch that are lost.
func (c *cluster) thin(from, to dfs.NodeID, msg []byte) []byte {
	fs, err := parseBatch(msg, from, to)
	if err != nil {
		c.t.Error(err)
	}
	return batchOf(c.t, slices.DeleteFunc(fs, func(f frame) bool { return c.lose(from, to, &f) })...)
}

func (c *cluster) deliver(from, to dfs.NodeID, msg []byte) {
	c.mu.Lock()
	dst := c.nodes[to]
	if dst == nil || dst.host == nil || dst.dead.Load() || c.cut[[2]dfs.NodeID{from, to}] {
		c.mu.Unlock()
		return
	}
	h := dst.host
	c.mu.Unlock()
	c.await(dst)
	if err := h.Step(from, msg); err != nil && dfs.KindOf(err) != dfs.Unavailable {
		c.mu.Lock()
		c.unexpected = errors.Join(c.unexpected, err)
		c.mu.Unlock()
	}
}

// pipe is a snapshot stream, as its sender sees it.
type pipe struct {
	c       *cluster
	ctx     context.Context
	cancel  context.CancelFunc
	from    *node
	to      *node
	ch, ans chan []byte
	done    chan struct{} // the receiver has returned
	err     error
	n       int
}

func (c *cluster) openSnapshot(ctx context.Context, from *node, to dfs.NodeID) (SnapshotStream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	dst := c.nodes[to]
	if c.stopped || from.dead.Load() || dst.host == nil || dst.dead.Load() || c.cut[[2]dfs.NodeID{from.id, to}] {
		return nil, dfs.Errorf(dfs.Unavailable, "open snapshot", "node %v is away", to)
	}
	c.snapshots++
	p := &pipe{c: c, from: from, to: dst, ch: make(chan []byte), ans: make(chan []byte, 1), done: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(ctx)
	h := dst.host
	c.timers.Go(func() {
		p.err = h.ReceiveSnapshot(p.ctx, from.id, pipeEnd{p})
		close(p.done)
	})
	return p, nil
}

func (p *pipe) down() bool {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return p.from.dead.Load() || p.to.dead.Load() || p.c.cut[[2]dfs.NodeID{p.from.id, p.to.id}]
}

// mute reports whether no answer arrives.
func (p *pipe) mute() bool {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return p.c.cut[[2]dfs.NodeID{p.to.id, p.from.id}]
}

func (p *pipe) Send(chunk []byte) error {
	p.c.mu.Lock()
	hook := p.c.chunks
	p.n++
	p.c.mu.Unlock()
	if len(chunk) > SnapshotChunk {
		return fmt.Errorf("a chunk of %d bytes", len(chunk))
	}
	if hook != nil {
		if err := hook(p.from.id, p.to.id, p.n); err != nil {
			return err
		}
	}
	if p.down() {
		return dfs.Errorf(dfs.Unavailable, "send chunk", "link is down")
	}
	p.c.await(p.from)
	time.Sleep(time.Millisecond)
	select {
	case p.ch <- append([]byte(nil), chunk...):
		return nil
	case <-p.done:
		return firstError(p.err, io.EOF)
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *pipe) Recv() ([]byte, error) {
	select {
	case b := <-p.ans:
		return b, nil
	case <-p.done:
		select {
		case b := <-p.ans:
			return b, nil
		default:
			return nil, firstError(p.err, io.EOF)
		}
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

func (p *pipe) Close() error {
	p.cancel()
	<-p.done
	return nil
}

// pipeEnd is a pipe as its receiver sees it.
type pipeEnd struct{ p *pipe }

func (e pipeEnd) Send(chunk []byte) error {
	if e.p.down() || e.p.mute() {
		return dfs.Errorf(dfs.Unavailable, "answer", "link is down")
	}
	select {
	case e.p.ans <- append([]byte(nil), chunk...):
		return nil
	case <-e.p.ctx.Done():
		return e.p.ctx.Err()
	}
}

func (e pipeEnd) Recv() ([]byte, error) {
	select {
	case b := <-e.p.ch:
		return b, nil
	case <-e.p.ctx.Done():
		return nil, e.p.ctx.Err()
	}
}

func (e pipeEnd) Close() error { return nil }

// crash replaces a node's disk by what a power loss leaves of it and its host
// by one on that disk. What the old host says from now on does not count.
func (c *cluster) crash(id dfs.NodeID, keepUnsynced int) {
	n := c.kill(id, keepUnsynced)
	c.revive(n)
}

// kill takes a node down with a power loss and returns it with its disk.
func (c *cluster) kill(id dfs.NodeID, keepUnsynced int) *node {
	c.mu.Lock()
	old := c.nodes[id]
	old.dead.Store(true)
	c.resumeLocked(old)
	rng := rand.New(rand.NewPCG(c.rng.Uint64(), 2))
	c.mu.Unlock()
	next := &node{c: c, id: id, fs: old.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keepUnsynced, RNG: rng})}
	c.mu.Lock()
	c.nodes[id] = next
	c.mu.Unlock()
	if old.host != nil {
		if err := old.host.Close(); err != nil {
			c.t.Errorf("close node %v: %v", id, err)
		}
	}
	return next
}

func (c *cluster) revive(n *node) {
	if err := n.start(); err != nil {
		c.t.Errorf("restart node %v: %v", n.id, err)
	}
}

// stop ends every host and the network.
func (c *cluster) stop() {
	c.mu.Lock()
	c.stopped = true
	for _, n := range c.nodes {
		c.resumeLocked(n)
	}
	c.mu.Unlock()
	for _, id := range c.all() {
		n := c.nodes[id]
		if n.host != nil {
			if err := n.host.Close(); err != nil {
				c.t.Errorf("close node %v: %v", n.id, err)
			}
		}
	}
	c.timers.Wait()
	if c.unexpected != nil {
		c.t.Errorf("a host refused another's messages: %v", c.unexpected)
	}
}

// isolate cuts a node off, or joins it again.
func (c *cluster) isolate(id dfs.NodeID, off bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for other := range c.nodes {
		c.cut[[2]dfs.NodeID{id, other}] = off
		c.cut[[2]dfs.NodeID{other, id}] = off
	}
}

func (c *cluster) heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.cut)
	c.drop, c.dup, c.jitter, c.late = 0, 0, 0, 0
	for _, n := range c.nodes {
		c.resumeLocked(n)
	}
}

// leader waits until a group has one and returns its node.
func (c *cluster) leader(g dfs.GroupID) dfs.NodeID {
	c.t.Helper()
	id, err := c.findLeader(g)
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

func (c *cluster) findLeader(g dfs.GroupID) (dfs.NodeID, error) {
	for range 600 {
		for _, id := range c.all() {
			h := c.h(id)
			if h == nil {
				continue
			}
			if st, ok := h.Status(g); ok && st.Role == RoleLeader {
				return id, nil
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return 0, fmt.Errorf("%v has no leader after a minute", g)
}

// propose commits a command wherever the leader is.
func (c *cluster) propose(g dfs.GroupID, cmd string) string {
	c.t.Helper()
	for range 600 {
		out, err := c.h(c.leader(g)).Propose(c.t.Context(), g, []byte(cmd))
		if err == nil {
			return string(out)
		}
		if k := dfs.KindOf(err); !k.Retryable() {
			c.t.Fatalf("propose %q to %v: %v", cmd, g, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatalf("%v took no proposal for a minute", g)
	return ""
}

func (c *cluster) read(id dfs.NodeID, g dfs.GroupID, key string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var out []byte
	err := c.h(id).Read(ctx, g, func(r Reader) (err error) {
		out, _, err = r.Get([]byte(key))
		return err
	})
	return string(out), err
}

// converge waits until every replica of the given nodes has applied the same
// and checks that they agree on what that came to.
func (c *cluster) converge(ids ...dfs.NodeID) {
	c.t.Helper()
	if err := c.agree(ids...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) agree(ids ...dfs.NodeID) error {
	for _, g := range c.groups {
		if err := c.agreeOn(g, ids...); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) agreeOn(g dfs.GroupID, ids ...dfs.NodeID) error {
	if _, err := c.findLeader(g); err != nil {
		return err
	}
	var sts []Status
	for n := 0; ; n++ {
		sts = sts[:0]
		for _, id := range ids {
			st, _ := c.h(id).Status(g)
			sts = append(sts, st)
		}
		if settled(sts) {
			break
		}
		if n == 1200 {
			return fmt.Errorf("%v does not converge: %+v", g, sts)
		}
		time.Sleep(100 * time.Millisecond)
	}
	for i, st := range sts {
		if st.Hash != sts[0].Hash {
			return fmt.Errorf("%v: replicas differ at entry %d: %+v", g, st.Applied, sts)
		}
		a, err := c.tryDump(ids[0], g)
		if err != nil {
			return fmt.Errorf("dump %v of node %v: %w", g, ids[0], err)
		}
		b, err := c.tryDump(ids[i], g)
		if err != nil {
			return fmt.Errorf("dump %v of node %v: %w", g, ids[i], err)
		}
		if a != b {
			return fmt.Errorf("%v: nodes %v and %v hold different state:\n%s\n%s", g, ids[0], ids[i], a, b)
		}
	}
	return nil
}

func settled(sts []Status) bool {
	for _, st := range sts {
		if st.Applied != sts[0].Applied || st.Applied != st.Last || st.Fault != nil || st.NeedState {
			return false
		}
	}
	return true
}

func (c *cluster) dump(id dfs.NodeID, g dfs.GroupID) string {
	c.t.Helper()
	out, err := c.tryDump(id, g)
	if err != nil {
		c.t.Fatalf("dump %v of node %v: %v", g, id, err)
	}
	return out
}

func (c *cluster) tryDump(id dfs.NodeID, g dfs.GroupID) (string, error) {
	var out []byte
	err := c.h(id).ReadLocal(g, func(r Reader) error {
		return r.Scan(nil, nil, func(k, v []byte) (bool, error) {
			out = fmt.Appendf(out, "%s=%s\n", k, v)
			return true, nil
		})
	})
	return string(out), err
}

func (c *cluster) all() []dfs.NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.nodes))
}

// inBubble runs fn with a cluster of voters inside a synctest bubble.
func inBubble(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	bubble.Test(t, fn)
}

// chunkList is a stream of chunks in memory.
type chunkList struct {
	chunks  [][]byte
	answers [][]byte
}

func (l *chunkList) Send(chunk []byte) error {
	l.answers = append(l.answers, bytes.Clone(chunk))
	return nil
}

func (l *chunkList) Recv() ([]byte, error) {
	if len(l.chunks) == 0 {
		return nil, io.EOF
	}
	next := l.chunks[0]
	l.chunks = l.chunks[1:]
	return next, nil
}

func (l *chunkList) Close() error { return nil }
