package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"storj.io/drpc"
	"storj.io/drpc/drpcconn"
	"storj.io/drpc/drpcenc"
	"storj.io/drpc/drpcstream"
	"storj.io/drpc/drpcwire"

	"dfsd/dfs"
)

// Defaults and limits of a pool, each with its reason.
const (
	// DefaultDialTimeout covers the connection, TLS and the handshake: a few
	// lost packets of a busy network pass, a dead host does not hold a caller up.
	DefaultDialTimeout = 5 * time.Second

	// DefaultCallTimeout ends calls whose context has no deadline.
	DefaultCallTimeout = 60 * time.Second

	// DefaultMaxPerPeer bounds the calls and streams that one process has under
	// way with another: many times what keeps a disk or a Raft group busy.
	DefaultMaxPerPeer = 128

	// DefaultMaxIdlePerPeer keeps enough connections for the usual load. Those above
	// it stay while they are used every IdleTimeout/sweepsPerIdle: calls that share
	// a sync are answered at the same time, and followed by as many.
	DefaultMaxIdlePerPeer = 16

	// DefaultPoolIdle is well under DefaultServerIdle, see there.
	DefaultPoolIdle = 60 * time.Second

	// sweepsPerIdle is how often in IdleTimeout idle connections are looked at.
	sweepsPerIdle = 4

	// maxPeers bounds the addresses that a pool knows: no cluster has as many nodes.
	maxPeers = 4096

	// forgetPeer is how long a pool remembers an address without calls, its
	// breaker's state included.
	forgetPeer = 10 * time.Minute
)

// PoolOptions configures a Pool. The zero value of a field but Network and
// Identity means its default.
type PoolOptions struct {
	Network  Network
	Identity func() Identity // what this process is now; connections made under another are not used again
	TLS      *tls.Config     // nil: no TLS

	DialTimeout    time.Duration // DefaultDialTimeout
	CallTimeout    time.Duration // of calls without a deadline; DefaultCallTimeout
	MaxPerPeer     int           // connections in use; further calls wait; DefaultMaxPerPeer
	MaxIdlePerPeer int           // for IdleTimeout, and more for a part of it; DefaultMaxIdlePerPeer
	IdleTimeout    time.Duration // DefaultPoolIdle
	MessageTimeout time.Duration // DefaultMessageTimeout
	WriteTimeout   time.Duration // DefaultWriteTimeout
	Breaker        BreakerOptions

	// The hooks are called from many goroutines and must not block nor call
	// the pool; nil: not called. OnPeer comes after each handshake, Observe
	// after each call or stream, OnBreaker when a breaker becomes "closed",
	// as each begins, "open" or "half-open".
	OnPeer    func(addr string, peer Identity)
	Observe   func(addr, method string, err error, took time.Duration)
	OnBreaker func(addr, state string)
}

// Pool holds connections to peers by address. A connection carries one call or
// stream at a time; one whose call was given up is closed, since the other
// side may still be busy with it.
type Pool struct {
	opts PoolOptions
	ctx  context.Context // ends with Close
	stop context.CancelFunc
	done sync.WaitGroup // the sweeper, and one goroutine a stream

	mu     sync.Mutex // guards what follows, and the idle lists and times of peers
	peers  map[string]*peer
	conns  map[*poolConn]struct{} // open
	closed bool
}

// peer is what a pool knows of one address.
type peer struct {
	pool    *Pool
	addr    string
	breaker *breaker
	slots   chan struct{}          // one element a call under way
	failed  atomic.Pointer[string] // how the last call failed that the breaker counted

	// Guarded by Pool.mu.
	idle []*poolConn // the longest idle first; Invariant: len <= MaxPerPeer
	used time.Time   // last
}

// poolConn is one connection.
type poolConn struct {
	*drpcconn.Conn
	guard *guard
	own   Identity  // that it was made under
	other Identity  // who answered
	since time.Time // when it became idle; guarded by Pool.mu

	request []byte // buffer of the call under way
}

// NewPool returns a pool without connections. Close it.
func NewPool(opts PoolOptions) *Pool {
	opts.DialTimeout = cmp.Or(opts.DialTimeout, DefaultDialTimeout)
	opts.CallTimeout = cmp.Or(opts.CallTimeout, DefaultCallTimeout)
	opts.MaxPerPeer = cmp.Or(opts.MaxPerPeer, DefaultMaxPerPeer)
	opts.MaxIdlePerPeer = cmp.Or(opts.MaxIdlePerPeer, DefaultMaxIdlePerPeer)
	opts.IdleTimeout = cmp.Or(opts.IdleTimeout, DefaultPoolIdle)
	opts.MessageTimeout = cmp.Or(opts.MessageTimeout, DefaultMessageTimeout)
	opts.WriteTimeout = cmp.Or(opts.WriteTimeout, DefaultWriteTimeout)
	p := &Pool{opts: opts, peers: make(map[string]*peer), conns: make(map[*poolConn]struct{})}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.done.Go(p.sweep)
	return p
}

// Conn returns a connection to addr for the generated clients. It costs
// nothing: connections are made and reused call by call.
func (p *Pool) Conn(addr string) *PeerConn { return &PeerConn{pool: p, addr: addr} }

// Identify connects to addr anew and returns who answers there. It asks for
// nothing else: the other side need not know its cluster, and the breaker has no
// say. Errors: as of a call that cannot connect.
func (p *Pool) Identify(ctx context.Context, addr string) (Identity, error) {
	q, err := p.peer(addr)
	if err != nil {
		return Identity{}, err
	}
	if err := q.enter(ctx); err != nil {
		return Identity{}, err
	}
	defer q.leave()
	c, err := q.dial(ctx)
	if err != nil {
		return Identity{}, err
	}
	q.give(c)
	return c.other, nil
}

// BreakerState returns the state of the breaker of addr: "closed", "open" or
// "half-open".
func (p *Pool) BreakerState(addr string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if peer := p.peers[addr]; peer != nil {
		return peer.breaker.State().String()
	}
	return "closed"
}

// Close closes all connections: calls and streams under way fail. It waits for
// the pool's goroutines and may be called more than once.
func (p *Pool) Close() {
	p.stop()
	p.mu.Lock()
	p.closed = true
	open := make([]*poolConn, 0, len(p.conns))
	for c := range p.conns {
		open = append(open, c)
	}
	clear(p.conns)
	clear(p.peers)
	p.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
	p.done.Wait()
}

// peer returns what is known of an address. Errors: Unavailable, Busy.
func (p *Pool) peer(addr string) (*peer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, p.errClosed(addr)
	}
	q := p.peers[addr]
	if q == nil {
		if len(p.peers) >= maxPeers {
			return nil, dfs.Errorf(dfs.Busy, "call", "%d addresses are in use already", maxPeers)
		}
		q = &peer{pool: p, addr: addr, breaker: newBreaker(addr, p.opts.Breaker, p.opts.OnBreaker), slots: make(chan struct{}, p.opts.MaxPerPeer)}
		p.peers[addr] = q
		if p.opts.OnBreaker != nil {
			p.opts.OnBreaker(addr, q.breaker.State().String())
		}
	}
	q.used = time.Now()
	return q, nil
}

func (p *Pool) errClosed(addr string) error {
	return &dfs.Error{Kind: dfs.Unavailable, Op: "call", Object: addr, Text: "this process is closing its connections"}
}

// enter waits until a call to the peer may begin. leave must follow.
func (q *peer) enter(ctx context.Context) error {
	select {
	case q.slots <- struct{}{}:
		return nil
	default:
	}
	select {
	case q.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return failure(ctx, q.addr, ctx.Err(), false)
	case <-q.pool.ctx.Done():
		return q.pool.errClosed(q.addr)
	}
}

func (q *peer) leave() { <-q.slots }

// take returns an idle connection, the one used last, nil when there is none.
func (q *peer) take() *poolConn {
	own := q.pool.opts.Identity()
	var stale []*poolConn
	defer func() { q.pool.discard(stale...) }()
	q.pool.mu.Lock()
	defer q.pool.mu.Unlock()
	for len(q.idle) > 0 {
		c := q.idle[len(q.idle)-1]
		q.idle = q.idle[:len(q.idle)-1]
		if c.own == own && !c.isClosed() {
			return c
		}
		stale = append(stale, c)
	}
	return nil
}

// give makes a connection idle, or closes it when it cannot be used again.
func (q *peer) give(c *poolConn) {
	if c.isClosed() || !q.keep(c) {
		q.pool.discard(c)
	}
}

func (q *peer) keep(c *poolConn) bool {
	q.pool.mu.Lock()
	defer q.pool.mu.Unlock()
	if q.pool.closed {
		return false
	}
	c.since = time.Now()
	q.idle = append(q.idle, c)
	return true
}

func (p *Pool) discard(conns ...*poolConn) {
	for _, c := range conns {
		_ = c.Close()
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	}
}

func (c *poolConn) isClosed() bool {
	select {
	case <-c.Closed():
		return true
	default:
		return false
	}
}

// invoke makes a unary call: one write there, one back. It is dRPC's Invoke, but
// waits for the end that follows the answer: dRPC would tell the other side that
// it does not, which costs either a packet.
func (c *poolConn) invoke(ctx context.Context, method string, enc drpc.Encoding, in, out drpc.Message) error {
	request, err := drpcenc.MarshalAppend(in, enc, c.request[:0])
	if err != nil {
		return err
	}
	if cap(request) <= keepBuffer {
		c.request = request
	}
	conn, err := c.NewStream(ctx, method, enc)
	if err != nil {
		return err
	}
	stream := conn.(*drpcstream.Stream)
	defer func() { _ = stream.Close() }() // no-op where the other side has ended it too
	if err := stream.RawWrite(drpcwire.KindMessage, request); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil { // sends all of it
		return err
	}
	if err := stream.MsgRecv(out, enc); err != nil {
		return err
	}
	_ = stream.MsgRecv(nil, nothing{}) // the answer is there, whatever comes
	return nil
}

// dial makes a connection. Errors: Unavailable; WrongCluster, Unsupported,
// Permission, Busy and others when one side refuses the other; Deadline or
// context.Canceled when ctx ends first.
func (q *peer) dial(ctx context.Context) (*poolConn, error) {
	p := q.pool
	dctx, cancel := context.WithTimeout(ctx, p.opts.DialTimeout)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	conn, err := p.opts.Network.Dial(dctx, q.addr)
	if err != nil {
		return nil, q.dialError(ctx, err)
	}
	own := p.opts.Identity()
	// Whatever happens to dctx from here on must end a wait for the peer.
	unwatch := context.AfterFunc(dctx, func() { _ = conn.Close() })
	secure, other, err := q.introduce(dctx, conn, own)
	if !unwatch() && err == nil {
		err = dctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, q.dialError(ctx, cmp.Or(dctx.Err(), err))
	}
	if p.opts.OnPeer != nil {
		p.opts.OnPeer(q.addr, other)
	}
	g := &guard{Conn: secure, messageTimeout: p.opts.MessageTimeout, writeTimeout: p.opts.WriteTimeout}
	c := &poolConn{Conn: drpcconn.NewWithOptions(g, drpcconn.Options{Manager: managerOptions(0)}), guard: g, own: own, other: other}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		_ = c.Close()
		return nil, p.errClosed(q.addr)
	}
	p.conns[c] = struct{}{}
	p.mu.Unlock()
	return c, nil
}

// introduce does TLS and the handshake on a new connection.
func (q *peer) introduce(ctx context.Context, conn net.Conn, own Identity) (net.Conn, Identity, error) {
	if q.pool.opts.TLS != nil {
		config := q.pool.opts.TLS.Clone()
		if host, _, err := net.SplitHostPort(q.addr); err == nil {
			config.ServerName = host
		}
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, Identity{}, err
		}
		conn = secure
	}
	other, err := greet(conn, own)
	return conn, other, err
}

// dialError gives a failed attempt its kind: no request was sent.
func (q *peer) dialError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return failure(ctx, q.addr, err, false)
	}
	p := q.pool
	e := &dfs.Error{Kind: dfs.KindOf(err), Op: "connect to", Object: q.addr, Err: err}
	var alert *net.OpError // with which crypto/tls reports the other side's alert
	var record tls.RecordHeaderError
	var foreign *tls.CertificateVerificationError
	switch {
	case e.Kind != dfs.Other:
	case errors.As(err, &foreign):
		e.Kind, e.Text = dfs.Permission, "its certificate is refused here"
	case errors.As(err, &alert) && alert.Op == "remote error":
		e.Kind, e.Text = dfs.Permission, "it refuses this side's certificate or version of TLS"
	case errors.As(err, &record):
		e.Kind, e.Text = dfs.Unsupported, "it does not speak TLS"
	case p.ctx.Err() != nil:
		return p.errClosed(q.addr)
	case errors.Is(err, context.DeadlineExceeded):
		e.Kind, e.Text, e.Err = dfs.Unavailable, "no answer within "+p.opts.DialTimeout.String(), nil
	default:
		e.Kind = dfs.Unavailable
	}
	return e
}

func (p *Pool) sweepTick() time.Duration {
	return max(p.opts.IdleTimeout/sweepsPerIdle, time.Millisecond)
}

// sweep closes connections that were idle for too long, and forgets peers.
func (p *Pool) sweep() {
	tick := time.NewTicker(p.sweepTick())
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.discard(p.expired(time.Now())...)
		case <-p.ctx.Done():
			return
		}
	}
}

// patience is for how long the longest idle of so many connections may be idle.
func (p *Pool) patience(idle int) time.Duration {
	if idle > p.opts.MaxIdlePerPeer {
		return p.sweepTick()
	}
	return p.opts.IdleTimeout
}

func (p *Pool) expired(now time.Time) []*poolConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*poolConn
	for addr, q := range p.peers {
		n := 0
		for n < len(q.idle) && (now.Sub(q.idle[n].since) >= p.patience(len(q.idle)-n) || q.idle[n].isClosed()) {
			n++
		}
		out = append(out, q.idle[:n]...)
		q.idle = append([]*poolConn(nil), q.idle[n:]...)
		if len(q.idle) == 0 && len(q.slots) == 0 && now.Sub(q.used) >= forgetPeer {
			delete(p.peers, addr)
		}
	}
	return out
}
