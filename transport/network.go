package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dfsd/dfs"
)

// Network makes listeners and connections. Its methods may be called from many
// goroutines. The connections honour deadlines with errors whose Timeout
// method reports true.
type Network interface {
	// Listen announces on host:port.
	Listen(addr string) (net.Listener, error)
	// Dial connects to host:port; ctx bounds the attempt only.
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// A peer that vanished without a word is noticed by keep-alive probes, the first
// after keepAliveIdle, at the first that fails once unacknowledged is over: after
// about keepAliveIdle + keepAliveInterval.
const (
	keepAliveIdle     = 15 * time.Second
	keepAliveInterval = 5 * time.Second
	keepAliveCount    = 3
)

// unacknowledged is how long what was sent may remain without TCP's acknowledgement,
// or wait for a peer that takes nothing, before the connection ends. No probe is
// sent meanwhile, and TCP repeats ever more seldom what it has sent, every two
// minutes in the end. So without this, when a cut has been mended, streams of
// before would be silent for as long again, and with them Raft.
const unacknowledged = 10 * time.Second

// TCP returns the network of the host.
func TCP() Network {
	alive := net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount}
	return &tcp{
		dialer:   net.Dialer{KeepAliveConfig: alive, Control: endUnacknowledged},
		listener: net.ListenConfig{KeepAliveConfig: alive, Control: endUnacknowledged},
	}
}

// endUnacknowledged sets that bound for a socket, and for what a listener accepts.
func endUnacknowledged(_, _ string, raw syscall.RawConn) error {
	var fault error
	err := raw.Control(func(fd uintptr) {
		fault = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledged.Milliseconds()))
	})
	return cmp.Or(err, fault)
}

type tcp struct {
	dialer   net.Dialer
	listener net.ListenConfig
}

func (t *tcp) Listen(addr string) (net.Listener, error) {
	return t.listener.Listen(context.Background(), "tcp", addr)
}

func (t *tcp) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return t.dialer.DialContext(ctx, "tcp", addr)
}

// CheckListen refuses a listener that strangers can reach and that anyone may
// talk to: an address that is not on loopback needs TLS, or the operator's word
// that it is wanted so. Error: Invalid.
func CheckListen(addr string, config *tls.Config, insecure bool) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return &dfs.Error{Kind: dfs.Invalid, Op: "listen", Object: addr, Text: "want host:port", Err: err}
	}
	if config != nil || insecure || host == "localhost" {
		return nil
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		return nil
	}
	return &dfs.Error{Kind: dfs.Invalid, Op: "listen", Object: addr,
		Text: "the address is not on loopback and has no TLS: set tls.ca, tls.cert and tls.key, or insecure: true to let anyone in who can reach it"}
}
