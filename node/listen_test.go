package node

import (
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/meta"
	"dfsd/transport"
)

// An address that cannot be listened on is refused with what to do about it,
// which depends on why.
func TestListenIsRefused(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	const foreign = "192.0.2.1:7410" // of no machine: RFC 5737
	start := func(listen string) string {
		n, err := Start(Options{
			FS: vfs.NewMem(), Network: transport.TCP(), Name: "n", Roles: dfs.RoleStorage, Listen: listen, Dir: "d",
			Stores: []string{"store"}, Peers: []meta.Peer{{Addr: "127.0.0.1:1"}}, PID: 1, Insecure: true,
			NewMark: func() uint64 { return 7 }, Logger: slog.New(slog.DiscardHandler),
			Engine: engine.Options{SegmentSize: 1 << 20, CacheSize: 1 << 20, MemTableSize: 256 << 10, Capacity: 1 << 30},
		})
		if err == nil {
			_ = n.Shutdown(t.Context())
			return "no error"
		}
		return err.Error()
	}
	web := func(addr string) string {
		h, err := startHTTP(&Node{}, transport.TCP(), addr)
		if err == nil {
			_ = h.lis.Close()
			return "no error"
		}
		return err.Error()
	}
	for _, c := range []struct{ got, want string }{
		{start(taken.Addr().String()), "end what uses it, or choose another address with --listen"},
		{web(taken.Addr().String()), "end what uses it, or choose another address with --http"},
		{start(foreign), "this machine does not have that address: choose another with --listen"},
		{web(foreign), "this machine does not have that address: choose another with --http"},
	} {
		if !strings.Contains(c.got, c.want) {
			t.Errorf("%s: want %q in it", c.got, c.want)
		}
	}
}
