package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"
	"dfsd/transport"
)

// TestHeldHTTPConnections opens connections to the HTTP listener and sends
// nothing: more than the limit are closed at once, and when those that are held
// have timed out it answers again.
func TestHeldHTTPConnections(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		network := transport.NewMemory(transport.MemoryOptions{})
		n := &Node{opts: Options{Roles: dfs.RoleMeta}, log: slog.New(slog.DiscardHandler)}
		h, err := startHTTP(n, network.Host("node"), "node:7500")
		if err != nil {
			t.Fatal(err)
		}
		defer h.close()
		host := network.Host("client")
		closed := 0
		for range httpMaxConns + 10 {
			conn, err := host.Dial(t.Context(), "node:7500")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetReadDeadline(time.Now().Add(httpHeaderTimeout / 1000))
			if _, err := conn.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
				closed++
			}
		}
		if closed != 10 {
			t.Errorf("%d connections over the limit were closed, want 10", closed)
		}
		time.Sleep(2 * httpHeaderTimeout)
		web := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return host.Dial(ctx, addr)
		}, DisableKeepAlives: true}}
		resp, err := web.Get("http://node:7500/healthz")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("healthz: %v", resp.Status)
		}
	})
}

// TestHTTPComplaintsAreLogLines: what the HTTP server has to say of a caller is a
// line of the node's log, not a text of another form on stderr.
func TestHTTPComplaintsAreLogLines(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		network := transport.NewMemory(transport.MemoryOptions{})
		var out bytes.Buffer // read after h has closed
		n := &Node{opts: Options{Roles: dfs.RoleMeta, TLS: &tls.Config{Certificates: []tls.Certificate{{}}}}, log: slog.New(slog.NewTextHandler(&out, nil))}
		h, err := startHTTP(n, network.Host("node"), "node:7500")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := network.Host("client").Dial(t.Context(), "node:7500")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(strings.Repeat("no TLS ", 10)))
		_, _ = io.ReadAll(conn)
		_ = conn.Close()
		h.close()
		if line := out.String(); !strings.Contains(line, "level=INFO") || !strings.Contains(line, "TLS handshake") {
			t.Errorf("the log says %q", line)
		}
	})
}
