package transport_test

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dfsd/transport"
)

// After a network that dropped everything is whole again, a connection of before
// waits for as long again until TCP sends once more, up to two minutes. So both
// ends give up one on which nothing was acknowledged for some seconds: a new one
// is there at once.
func TestUnacknowledgedConnectionsEnd(t *testing.T) {
	network := transport.TCP()
	l, err := network.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := network.Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	for name, conn := range map[string]net.Conn{"dialled": dialled, "accepted": accepted} {
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var ms int
		var fault error
		if err := raw.Control(func(fd uintptr) { ms, fault = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); err != nil || fault != nil {
			t.Fatal(err, fault)
		}
		if got := time.Duration(ms) * time.Millisecond; got <= 0 || got > 10*time.Second {
			t.Errorf("%s: a connection waits %v for an acknowledgement, 0 being TCP's own quarter of an hour", name, got)
		}
	}
}
