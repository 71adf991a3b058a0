package transport

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"time"

	"storj.io/drpc"
	"storj.io/drpc/drpcmetadata"

	"dfsd/dfs"
)

// PeerConn is a drpc.Conn to one address over the connections of a Pool. It may
// be used by many goroutines at once: each call or stream has a connection of
// its own meanwhile.
//
// Errors are *dfs.Error: what the other side answered, with its kind, text and
// leader hint; Unavailable when no handler saw the request; Unknown when one
// may have; Deadline when the time ran out, with no word about the outcome.
// When the caller cancelled, errors.Is(err, context.Canceled) holds.
type PeerConn struct {
	pool *Pool
	addr string
}

var _ drpc.Conn = (*PeerConn)(nil)

// Addr returns the address.
func (c *PeerConn) Addr() string { return c.addr }

// Close does nothing: the connections are the pool's.
func (c *PeerConn) Close() error { return nil }

// Closed returns a channel that is closed when the pool is.
func (c *PeerConn) Closed() <-chan struct{} { return c.pool.ctx.Done() }

// Invoke makes a unary call. The other side learns how much time is left. A
// context without a deadline gets the pool's CallTimeout.
func (c *PeerConn) Invoke(ctx context.Context, method string, enc drpc.Encoding, in, out drpc.Message) error {
	start := time.Now()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.pool.opts.CallTimeout)
		defer cancel()
	}
	err := c.invoke(ctx, method, enc, in, out)
	c.pool.observe(c.addr, method, err, time.Since(start))
	return err
}

func (c *PeerConn) invoke(ctx context.Context, method string, enc drpc.Encoding, in, out drpc.Message) error {
	q, report, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer q.leave()
	t := &tracked{Encoding: enc}
	err = q.call(ctx, t, func(conn *poolConn) error {
		return conn.invoke(withTimeLeft(ctx), method, t, in, out)
	}, q.give)
	report(err)
	return err
}

// begin asks for leave to make a call. The caller must call report and q.leave.
func (c *PeerConn) begin(ctx context.Context) (q *peer, report func(error), err error) {
	if q, err = c.pool.peer(c.addr); err != nil {
		return nil, nil, err
	}
	if err := q.enter(ctx); err != nil {
		return nil, nil, err
	}
	if report, err = q.admitted(); err != nil {
		q.leave()
		return nil, nil, err
	}
	return q, report, nil
}

// call runs use on an idle connection or a new one, and then hands the
// connection on if it is still good. An idle one that turns out to be dead
// before anything was sent is replaced; a new one is not.
func (q *peer) call(ctx context.Context, t *tracked, use func(*poolConn) error, handOn func(*poolConn)) error {
	for {
		conn := q.take()
		fresh := conn == nil
		if fresh {
			var err error
			if conn, err = q.dial(ctx); err != nil {
				return err
			}
		}
		before := conn.guard.sent.Load()
		err := use(conn)
		sent := conn.guard.sent.Load() != before
		answered := err == nil || fromWire(err) != nil
		if answered {
			handOn(conn)
		} else {
			q.pool.discard(conn)
		}
		err = t.failure(ctx, q.addr, err, sent)
		if answered || fresh || sent || ctx.Err() != nil || dfs.KindOf(err) != dfs.Unavailable {
			return err
		}
	}
}

// withTimeLeft adds to the request how long its caller will wait.
func withTimeLeft(ctx context.Context) context.Context {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx
	}
	left := max(1, time.Until(deadline).Milliseconds())
	return drpcmetadata.Add(ctx, timeoutKey, strconv.FormatInt(left, 10))
}

func (p *Pool) observe(addr, method string, err error, took time.Duration) {
	if p.opts.Observe != nil {
		p.opts.Observe(addr, method, err, took)
	}
}

// NewStream opens a stream, which keeps its connection until it is read to its
// end, an operation on it fails, it is closed, or ctx ends: one of these must
// happen. A context without a deadline gives the stream none.
func (c *PeerConn) NewStream(ctx context.Context, method string, enc drpc.Encoding) (drpc.Stream, error) {
	start := time.Now()
	q, report, err := c.begin(ctx)
	if err != nil {
		c.pool.observe(c.addr, method, err, time.Since(start))
		return nil, err
	}
	s := &clientStream{peer: q, caller: ctx, sending: make(chan struct{}, 1)}
	ctx, s.cancel = context.WithCancel(ctx)
	s.ctx = ctx
	err = q.call(ctx, &tracked{Encoding: enc}, func(conn *poolConn) (err error) {
		s.before = conn.guard.sent.Load()
		s.Stream, err = conn.NewStream(withTimeLeft(ctx), method, enc)
		return err
	}, func(conn *poolConn) { s.conn = conn })
	report(err)
	if err == nil && !c.pool.watch(s, func() { c.pool.observe(c.addr, method, s.outcome(), time.Since(start)) }) {
		_ = s.Stream.Close()
		c.pool.discard(s.conn)
		err = c.pool.errClosed(c.addr)
	}
	if err != nil {
		s.cancel()
		q.leave()
		c.pool.observe(c.addr, method, err, time.Since(start))
		return nil, err
	}
	return s, nil
}

// watch gives the stream's connection back when it is over, and calls ended
// then. It reports false when the pool is closed.
func (p *Pool) watch(s *clientStream, ended func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.done.Go(func() {
		<-s.Stream.Context().Done()
		s.cancel()
		s.peer.give(s.conn)
		s.peer.leave()
		ended()
	})
	return true
}

// clientStream is a stream that owns a connection.
type clientStream struct {
	drpc.Stream
	peer   *peer
	conn   *poolConn
	before uint64          // bytes sent on the connection before the stream
	caller context.Context // as given to NewStream
	ctx    context.Context // ends with the stream
	cancel context.CancelFunc

	// sending holds an element while a message is being sent: dRPC must not
	// be asked to close a stream whose sender is blocked, it would wait for it.
	sending chan struct{}

	mu       sync.Mutex // guards what follows
	err      error      // the first failure
	sendDone bool       // CloseSend was called
	closed   bool       // Close was called
}

// outcome returns what a stream that is over has ended with.
func (s *clientStream) outcome() error {
	s.mu.Lock()
	err, closed := s.err, s.closed
	s.mu.Unlock()
	if err != nil {
		return err
	}
	// Nobody has asked the stream yet since it failed, or it did not.
	rerr := s.Stream.MsgRecv(nil, nothing{})
	if errors.Is(rerr, io.EOF) || closed {
		return nil
	}
	return failure(s.caller, s.peer.addr, rerr, true)
}

// fail turns an operation's error into the caller's and remembers it. Unless
// the other side has ended the stream, this does. A failure of the connection
// counts against the peer once.
func (s *clientStream) fail(t *tracked, err error) error {
	if fromWire(err) == nil {
		s.cancel()
	}
	err = t.failure(s.caller, s.peer.addr, err, s.conn.guard.sent.Load() != s.before)
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
	}
	s.mu.Unlock()
	if first && connectionFailed(err) {
		if report, aerr := s.peer.admitted(); aerr == nil {
			report(err)
		}
	}
	return err
}

// over is the error of an operation on a stream that has ended.
func (s *clientStream) over() error {
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.fail(new(tracked), s.cause(s.ctx.Err()))
}

// MsgSend sends a message. When the other side has ended the stream with an
// error, it returns that error. A message that cannot be encoded is refused
// and leaves the stream as it was.
func (s *clientStream) MsgSend(msg drpc.Message, enc drpc.Encoding) error {
	select {
	case s.sending <- struct{}{}:
	case <-s.ctx.Done():
		return s.over()
	}
	t := &tracked{Encoding: enc}
	err := s.Stream.MsgSend(msg, t)
	<-s.sending
	switch {
	case err == nil:
		return nil
	case t.encodeErr != nil:
		return t.failure(s.caller, s.peer.addr, err, false)
	case errors.Is(err, io.EOF): // dRPC's way to say: look what was received
		err = s.cause(err)
	}
	return s.fail(t, err)
}

// cause returns why a stream has ended, err when nothing better is known:
// dRPC tells a sender only that it has, and a receiver the reason.
func (s *clientStream) cause(err error) error {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if s.caller.Err() != nil || closed {
		return err
	}
	if rerr := s.Stream.MsgRecv(nil, nothing{}); rerr != nil && !errors.Is(rerr, io.EOF) {
		return rerr
	}
	return err
}

// nothing is the encoding of a message that never comes.
type nothing struct{}

func (nothing) Marshal(drpc.Message) ([]byte, error) { return nil, nil }
func (nothing) Unmarshal([]byte, drpc.Message) error { return nil }

// MsgRecv receives a message. io.EOF means that the other side has sent all.
func (s *clientStream) MsgRecv(msg drpc.Message, enc drpc.Encoding) error {
	t := &tracked{Encoding: enc}
	err := s.Stream.MsgRecv(msg, t)
	if err == nil || err == io.EOF {
		return err
	}
	return s.fail(t, err)
}

// CloseSend says that all is sent.
func (s *clientStream) CloseSend() error {
	select {
	case s.sending <- struct{}{}:
	case <-s.ctx.Done():
		return s.over()
	}
	defer func() { <-s.sending }()
	if err := s.Stream.CloseSend(); err != nil {
		return s.fail(new(tracked), err)
	}
	s.mu.Lock()
	s.sendDone = true
	s.mu.Unlock()
	return nil
}

// Close ends the stream. Before CloseSend it breaks the connection off: dRPC
// would let the other side take what was sent so far for all.
func (s *clientStream) Close() error {
	s.mu.Lock()
	done := s.sendDone
	s.closed = true
	s.mu.Unlock()
	if done {
		select {
		case s.sending <- struct{}{}:
			defer func() { <-s.sending }()
			if err := s.Stream.Close(); err == nil {
				return nil
			}
		default:
		}
	}
	s.cancel()
	return nil
}
