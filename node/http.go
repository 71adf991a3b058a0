package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"dfsd/dfs"
	"dfsd/transport"
)

// Limits of the HTTP listener: it serves people and scrapers, a few at a time.
const (
	httpHeaderTimeout = 5 * time.Second
	httpTimeout       = 2 * time.Minute // a CPU profile takes as long as it is asked to
	httpMaxHeader     = 16 << 10
	httpMaxConns      = 256 // many scrapers; connections that are held must not take the descriptors of Raft and the stores
)

// httpServer serves /metrics, /healthz, /readyz and, on loopback, pprof.
type httpServer struct {
	srv  *http.Server
	lis  net.Listener
	done chan struct{}
}

// notListening is the error of an address that cannot be listened on, with what
// to do about it.
func notListening(addr, flag string, err error) error {
	text := "end what uses it, or choose another address with " + flag
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		text = "this machine does not have that address: choose another with " + flag
	}
	return &dfs.Error{Kind: dfs.Busy, Op: "listen", Object: addr, Text: text, Err: err}
}

// startHTTP listens on addr, with the node's TLS where it has one.
func startHTTP(n *Node, network transport.Network, addr string) (*httpServer, error) {
	lis, err := network.Listen(addr)
	if err != nil {
		return nil, notListening(addr, "--http", err)
	}
	lis = &boundedListener{Listener: lis}
	if n.opts.TLS != nil {
		lis = tls.NewListener(lis, n.opts.TLS)
	}
	h := &httpServer{
		srv: &http.Server{
			Handler: n.handler(addr), ReadHeaderTimeout: httpHeaderTimeout, ReadTimeout: httpHeaderTimeout, WriteTimeout: httpTimeout, MaxHeaderBytes: httpMaxHeader,
			ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelInfo),
		},
		lis:  lis,
		done: make(chan struct{}),
	}
	go func() {
		defer close(h.done)
		if err := h.srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("the HTTP listener ended", "addr", addr, "cause", err)
		}
	}()
	return h, nil
}

// boundedListener closes what comes while httpMaxConns connections are open.
type boundedListener struct {
	net.Listener
	open atomic.Int32
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= httpMaxConns {
			return &boundedConn{conn, sync.OnceFunc(func() { l.open.Add(-1) })}, nil
		}
		l.open.Add(-1)
		_ = conn.Close()
	}
}

type boundedConn struct {
	net.Conn
	gone func()
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.gone()
	return c.Conn.Close()
}

func (h *httpServer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if h.srv.Shutdown(ctx) != nil {
		_ = h.srv.Close()
	}
	<-h.done
}

func (n *Node) handler(addr string) http.Handler {
	mux := http.NewServeMux()
	if n.opts.Metrics != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(n.opts.Metrics.Registry, promhttp.HandlerOpts{}))
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, n.Err(), "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		err := n.Err()
		if err == nil && !n.Ready() {
			err = errors.New("not part of the cluster yet")
		}
		answer(w, cmp.Or(err, n.unused()), "ready")
	})
	if loopback(addr) {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

func answer(w http.ResponseWriter, err error, good string) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte(good + "\n"))
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
