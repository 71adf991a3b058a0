package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"storj.io/drpc/drpcmanager"
	"storj.io/drpc/drpcstream"
	"storj.io/drpc/drpcwire"

	"dfsd/dfs"
)

// Defaults and limits of connections, each with its reason.
const (
	// DefaultMaxConns leaves a process with the usual 65,536 file descriptors
	// enough of them for its segments and index.
	DefaultMaxConns = 4096

	// DefaultHandshakeTimeout covers TLS and the handshake.
	DefaultHandshakeTimeout = 5 * time.Second

	// DefaultServerIdle is several times DefaultPoolIdle: the side that sends
	// closes first, so that no request meets a closing connection.
	DefaultServerIdle = 5 * time.Minute

	// DefaultMessageTimeout lets 1 MiB come at 35 KiB/s.
	DefaultMessageTimeout = 30 * time.Second

	// DefaultWriteTimeout bounds one write of at most splitSize bytes and the
	// heads around them.
	DefaultWriteTimeout = 30 * time.Second

	// clientShare is the part of MaxConns, in eighths, that clients may have: the
	// rest is for nodes, without which there is nothing to serve, and for
	// handshakes.
	clientShare = 7

	// maxRefusals is how many connections over the limit are told so at a
	// time; further ones are just closed.
	maxRefusals = 64

	// lingerTime and lingerBytes bound how long a refused peer is heard out.
	lingerTime  = time.Second
	lingerBytes = 64 << 10

	// splitSize is the most data in one frame on the wire: small enough that
	// dRPC's reader, which doubles its buffer up to the next frame's end, stays
	// under dfs.MaxMessage with whatever follows the frame.
	splitSize = 64 << 10

	// keepBuffer is the largest marshalling buffer that a stream keeps.
	keepBuffer = 512 << 10

	// acceptBackoff and maxAcceptBackoff pace new attempts after a failed
	// accept: the process is out of file descriptors.
	acceptBackoff    = 5 * time.Millisecond
	maxAcceptBackoff = time.Second
)

// managerOptions are the limits of dRPC on one connection; idle 0 is none.
func managerOptions(idle time.Duration) drpcmanager.Options {
	return drpcmanager.Options{
		Reader:            drpcwire.ReaderOptions{MaximumBufferSize: dfs.MaxMessage},
		Stream:            drpcstream.Options{SplitSize: splitSize, MaximumBufferSize: keepBuffer},
		InactivityTimeout: idle,
	}
}

// ServerOptions configures a Server. The zero value of a field but Identity
// means its default.
type ServerOptions struct {
	// Identity returns what this process is now; it is asked for every
	// connection and request, since a node learns its cluster and number.
	Identity func() Identity

	// OpenMethods are the full names ("/dfsd.wire.Meta/Probe") of the methods
	// that may be called while one of the sides does not know its cluster.
	OpenMethods []string

	TLS *tls.Config // nil: no TLS

	// MaxConns bounds the open connections; DefaultMaxConns. Over it, or over the
	// clients' share of it, the client that was idle for longest makes room.
	MaxConns int

	HandshakeTimeout time.Duration // DefaultHandshakeTimeout
	IdleTimeout      time.Duration // between requests; DefaultServerIdle
	MessageTimeout   time.Duration // for one message to come in; DefaultMessageTimeout
	WriteTimeout     time.Duration // for one write to be taken; DefaultWriteTimeout

	Log *slog.Logger // nil: nothing is logged

	// Observe is called after every request that reached a handler, from many
	// goroutines; nil: not.
	Observe func(method string, err error, took time.Duration)

	// DropReply, for tests, is asked before an answer is sent: an error, the
	// message of a unary method, each message of a stream. When it reports
	// true the connection is closed instead, as if the network had lost the
	// answer to a request that was carried out.
	DropReply func(peer Peer, method string, err error) bool
}

// Server accepts connections and serves the registered services on them.
//
//	NewServer → Register… → Start… → [Shutdown] → Close
type Server struct {
	opts    ServerOptions
	log     *slog.Logger
	methods map[string]*method // by full name; fixed before Start
	ctx     context.Context    // ends with Close; the parent of every request's
	stop    context.CancelFunc
	drain   chan struct{} // closed when Shutdown begins
	done    sync.WaitGroup

	mu        sync.Mutex // guards what follows
	listeners []net.Listener
	conns     map[*serverConn]struct{} // Invariant: len <= opts.MaxConns
	clients   int                      // of conns. Invariant: <= max(1, opts.MaxConns*clientShare/8)
	refusals  map[net.Conn]struct{}    // being told so. Invariant: len <= maxRefusals
	active    int                      // connections with a request under way
	draining  bool
	drained   chan struct{} // closed once draining and active == 0
	closed    bool
}

// NewServer returns a server with no services and no listener.
func NewServer(opts ServerOptions) *Server {
	opts.MaxConns = cmp.Or(opts.MaxConns, DefaultMaxConns)
	opts.HandshakeTimeout = cmp.Or(opts.HandshakeTimeout, DefaultHandshakeTimeout)
	opts.IdleTimeout = cmp.Or(opts.IdleTimeout, DefaultServerIdle)
	opts.MessageTimeout = cmp.Or(opts.MessageTimeout, DefaultMessageTimeout)
	opts.WriteTimeout = cmp.Or(opts.WriteTimeout, DefaultWriteTimeout)
	s := &Server{
		opts:     opts,
		log:      cmp.Or(opts.Log, slog.New(slog.DiscardHandler)),
		methods:  make(map[string]*method),
		drain:    make(chan struct{}),
		conns:    make(map[*serverConn]struct{}),
		refusals: make(map[net.Conn]struct{}),
		drained:  make(chan struct{}),
	}
	s.ctx, s.stop = context.WithCancel(context.WithValue(context.Background(), drainKey{}, s.drain))
	return s
}

type drainKey struct{}

// Draining returns a channel that is closed when the server of the request in
// ctx begins to shut down. Handlers that serve for as long as the other side
// likes end then; others need not look. It is nil outside of requests.
func Draining(ctx context.Context) <-chan struct{} {
	c, _ := ctx.Value(drainKey{}).(chan struct{})
	return c
}

// Start serves the connections that lis accepts, and closes lis in the end.
// After Shutdown or Close it closes lis at once.
func (s *Server) Start(lis net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining || s.closed {
		_ = lis.Close()
		return
	}
	s.listeners = append(s.listeners, lis)
	s.done.Go(func() { s.accept(lis) })
}

// Shutdown stops accepting connections, answers new requests on old ones with
// Unavailable, waits until the requests under way are answered or ctx ends, and
// closes the server. It returns ctx's error when requests were cut. A request
// that crosses with the closing of its idle connection ends as Unknown.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.draining && !s.closed {
		s.draining = true
		close(s.drain)
		s.closeListenersLocked()
		for c := range s.conns {
			if c.state == connIdle {
				_ = c.net.Close()
			}
		}
		s.checkDrainedLocked()
	}
	s.mu.Unlock()
	var err error
	select {
	case <-s.drained:
	case <-s.ctx.Done():
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.Close()
	return err
}

// Close ends every request and connection and waits for the handlers. It may
// be called more than once.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.closeListenersLocked()
	for c := range s.conns {
		_ = c.net.Close()
	}
	for c := range s.refusals {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.stop()
	s.done.Wait()
}

func (s *Server) closeListenersLocked() {
	for _, lis := range s.listeners {
		_ = lis.Close()
	}
	s.listeners = nil
}

func (s *Server) checkDrainedLocked() {
	if s.draining && s.active == 0 {
		select {
		case <-s.drained:
		default:
			close(s.drained)
		}
	}
}

// accept takes connections until the listener or the server is closed. Other
// failures pass (too many open files): it tries again with a growing pause.
func (s *Server) accept(lis net.Listener) {
	pause := acceptBackoff
	for {
		conn, err := lis.Accept()
		switch {
		case err == nil:
			pause = acceptBackoff
			s.admit(conn)
			continue
		case errors.Is(err, net.ErrClosed) || s.ctx.Err() != nil:
			return
		}
		s.log.Warn("accept failed", "addr", lis.Addr().String(), "cause", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-s.drain:
			return
		case <-s.ctx.Done():
			return
		}
		pause = min(2*pause, maxAcceptBackoff)
	}
}

// handshake returns the connection to speak dRPC on and who the peer is. admit
// may refuse a peer that is welcome otherwise.
func (s *Server) handshake(conn net.Conn, admit func(Identity) error) (net.Conn, Peer, error) {
	peer := Peer{Addr: conn.RemoteAddr().String()}
	if err := conn.SetDeadline(time.Now().Add(s.opts.HandshakeTimeout)); err != nil {
		return nil, peer, err
	}
	if s.opts.TLS != nil {
		secure := tls.Server(conn, s.opts.TLS)
		if err := secure.HandshakeContext(s.ctx); err != nil {
			refusePlain(err)
			return nil, peer, err
		}
		conn = secure
		peer.certificate = secure.ConnectionState().PeerCertificates[0]
	}
	var err error
	peer.Identity, err = welcome(conn, s.opts.Identity(), func(id Identity) error {
		if c := peer.certificate; c != nil && id.Kind == KindNode && !isServers(c) {
			return dfs.Errorf(dfs.Permission, "handshake", "a node shows a certificate for servers: this one's extended key usage lacks serverAuth")
		}
		return admit(id)
	})
	if err != nil {
		return nil, peer, err
	}
	return conn, peer, conn.SetDeadline(time.Time{})
}

// linger gives a refused peer the time to read why: if the connection were
// closed while the peer still writes, the reset could overtake the reason.
func linger(conn net.Conn, why error) {
	var timeout net.Error
	if errors.Is(why, io.EOF) || errors.As(why, &timeout) && timeout.Timeout() {
		return
	}
	if conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, conn, lingerBytes)
	}
}

// refusePlain tells a peer that began without TLS why it is refused.
func refusePlain(err error) {
	var record tls.RecordHeaderError
	if errors.As(err, &record) && record.Conn != nil {
		refusal := greeting{b: uint16(dfs.Unsupported), identity: Identity{Kind: KindNode}, text: "this side wants TLS: set tls.ca, tls.cert and tls.key"}
		_, _ = record.Conn.Write(refusal.append(nil)) // it is refused either way
	}
}

// serve speaks with one peer until the connection ends.
func (s *Server) serve(c *serverConn) {
	conn, peer, err := s.handshake(c.net, func(peer Identity) error { return s.introduce(c, peer) })
	if err != nil {
		level := slog.LevelInfo
		var late net.Error
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.As(err, &late) && late.Timeout() {
			level = slog.LevelDebug // the other side thought better of it, or said nothing
		}
		s.log.Log(s.ctx, level, "no handshake with a caller", "peer", peer.Addr, "cause", err)
		linger(c.net, err)
		return
	}
	g := &guard{Conn: conn, messageTimeout: s.opts.MessageTimeout, writeTimeout: s.opts.WriteTimeout}
	manager := drpcmanager.NewWithOptions(g, managerOptions(s.opts.IdleTimeout))
	defer manager.Close()
	s.settle(c)
	ctx := context.WithValue(s.ctx, peerKey{}, peer)
	for {
		stream, method, err := manager.NewServerStream(ctx)
		if err != nil {
			s.log.Debug("connection ended", "peer", peer.Addr, "id", peer.Node, "cause", err)
			return
		}
		err = s.begin(c)
		if err == nil {
			err = s.handle(ctx, stream, c.net, peer, method)
		}
		switch {
		case err == nil:
			err = stream.CloseSend()
		case !errors.Is(err, errDropped):
			err = stream.SendError(toWire(err))
		}
		if last := s.end(c); last || err != nil {
			return
		}
	}
}
