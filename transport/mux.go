package transport

import (
	"context"
	"errors"
	"net"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"storj.io/drpc"
	"storj.io/drpc/drpcmetadata"
	"storj.io/drpc/drpcstream"

	"dfsd/dfs"
)

// timeoutKey is the request's metadata that says how long its caller waits, in
// milliseconds from its arrival: clocks need not agree. 0 or absent: for ever.
const timeoutKey = "timeout-ms"

// method is one registered method of a service.
type method struct {
	name    string
	impl    any
	enc     drpc.Encoding
	receive drpc.Receiver
	input   reflect.Type // of the request message; nil: a stream of them
	unary   bool         // one message there, one back
	open    bool         // served while a side does not know its cluster
}

// Register adds a service; the generated DRPCRegister functions call it. It
// must not be called after Start. Error: Internal for what no generated code
// does.
func (s *Server) Register(impl any, desc drpc.Description) error {
	for i := range desc.NumMethods() {
		name, enc, receive, expr, ok := desc.Method(i)
		if _, again := s.methods[name]; !ok || again {
			return dfs.Errorf(dfs.Internal, "register", "method %d %q: missing or registered before", i, name)
		}
		m := &method{name: name, impl: impl, enc: enc, receive: receive, open: slices.Contains(s.opts.OpenMethods, name)}
		// The expressions are func(impl, ctx, in) (out, error), func(impl, in,
		// stream) error and func(impl, stream) error.
		switch t := reflect.TypeOf(expr); {
		case t.NumOut() == 2 && t.NumIn() == 3:
			m.input, m.unary = t.In(2).Elem(), true
		case t.NumOut() == 1 && t.NumIn() == 3:
			m.input = t.In(1).Elem()
		case t.NumOut() == 1 && t.NumIn() == 2:
		default:
			return dfs.Errorf(dfs.Internal, "register", "method %q: a handler of type %v", name, t)
		}
		s.methods[name] = m
	}
	return nil
}

// errDropped closes the connection without an answer: see ServerOptions.DropReply.
var errDropped = errors.New("answer dropped")

// handle serves one request and returns the error to answer with.
func (s *Server) handle(ctx context.Context, stream *drpcstream.Stream, conn net.Conn, peer Peer, name string) error {
	m := s.methods[name]
	if err := s.allowed(peer, m, name); err != nil {
		return err
	}
	start := time.Now()
	ctx, cancel := requestContext(ctx, stream.Context())
	defer cancel()
	served := &serverStream{Stream: stream, ctx: ctx, conn: conn, wait: s.opts.MessageTimeout}
	stream.SetManualFlush(m.unary) // the answer leaves with the end of the stream, in one write
	if s.opts.DropReply != nil {
		served.drop = func(err error) bool { return s.opts.DropReply(peer, name, err) }
	}
	err := s.call(served, m)
	if s.opts.Observe != nil {
		s.opts.Observe(name, err, time.Since(start))
	}
	if err != nil && !errors.Is(err, errDropped) && served.drop != nil && served.drop(err) {
		return errDropped
	}
	return err
}

// allowed says why a request is refused whatever it asks, nil if it is not.
func (s *Server) allowed(peer Peer, m *method, name string) error {
	if m == nil {
		return dfs.Errorf(dfs.Unsupported, "serve", "method %q is not served here", name)
	}
	own := s.opts.Identity()
	if err := sameCluster(own.Cluster, peer.Cluster); err != nil {
		return err // this side learned its cluster after the handshake
	}
	switch {
	case m.open:
		return nil
	case own.Cluster.IsZero():
		return dfs.Errorf(dfs.Unavailable, "serve", "this node belongs to no cluster yet")
	case peer.Cluster.IsZero():
		return dfs.Errorf(dfs.WrongCluster, "serve", "the caller did not name its cluster: this one is %s", own.Cluster)
	}
	return nil
}

// call runs the handler, turns a panic into an error, and sends the reply of a
// unary method.
func (s *Server) call(stream *serverStream, m *method) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("handler panicked", "method", m.name, "panic", p, "stack", string(debug.Stack()))
			err = dfs.Errorf(dfs.Internal, "serve", "%s panicked: %v", m.name, p)
		}
	}()
	var in drpc.Message = stream
	if m.input != nil {
		in = reflect.New(m.input).Interface()
		if err := stream.MsgRecv(in, m.enc); err != nil {
			return err
		}
	}
	out, err := m.receive(m.impl, stream.ctx, in, stream)
	if err != nil || out == nil || reflect.ValueOf(out).IsNil() {
		return err
	}
	return stream.MsgSend(out, m.enc)
}

// requestCtx ends with its stream, but has the values of its connection: the
// metadata of the request, which dRPC would send on with every call made under
// the context, is left out.
type requestCtx struct {
	context.Context
	conn context.Context
}

func (c requestCtx) Value(key any) any { return c.conn.Value(key) }

func requestContext(conn, stream context.Context) (context.Context, context.CancelFunc) {
	ctx := requestCtx{Context: stream, conn: conn}
	if meta, ok := drpcmetadata.Get(stream); ok {
		if ms, err := strconv.ParseInt(meta[timeoutKey], 10, 32); err == nil && ms > 0 {
			return context.WithTimeout(ctx, time.Duration(ms)*time.Millisecond)
		}
	}
	return context.WithCancel(ctx)
}

// serverStream is what handlers see of a stream.
type serverStream struct {
	drpc.Stream
	ctx      context.Context
	conn     net.Conn
	wait     time.Duration        // for the first message
	received bool                 // the first message came; the receiver's
	drop     func(err error) bool // nil: no
}

// Context ends with the stream, or when the caller's time is over.
func (s *serverStream) Context() context.Context { return s.ctx }

// MsgRecv waits a limited time for the first message: whoever names a method
// has its first message ready. For the others it waits as long as it takes.
func (s *serverStream) MsgRecv(msg drpc.Message, enc drpc.Encoding) error {
	if !s.received {
		timer := time.AfterFunc(s.wait, func() { _ = s.conn.Close() })
		defer timer.Stop()
		s.received = true
	}
	return s.Stream.MsgRecv(msg, enc)
}

// MsgSend sends a message.
func (s *serverStream) MsgSend(msg drpc.Message, enc drpc.Encoding) error {
	if s.drop != nil && s.drop(nil) {
		return errDropped
	}
	return s.Stream.MsgSend(msg, enc)
}
