package sim

import (
	"bytes"
	"log/slog"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"dfsd/client"
)

// testLogger writes to stderr when DFSD_TEST_LOG is set: the test's own log
// belongs to another bubble.
func testLogger() *slog.Logger {
	if os.Getenv("DFSD_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestPutCrashAllGet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(Config{Seed: 1, Logger: testLogger()})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p, err := c.Client(t.Context(), "client", 1)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		begun := time.Now()
		data := bytes.Repeat([]byte("dfsd "), 100_000)
		for {
			_, err := p.PutFile(t.Context(), "/file", client.PutOptions{Mode: 0o644, Replace: true}, bytes.NewReader(data))
			if err == nil {
				break
			}
			t.Logf("put: %v", err)
			if time.Since(begun) > 5*time.Minute {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		t.Logf("stored after %v", time.Since(begun))
		c.CrashAll()
		if err := c.StartAll(); err != nil {
			t.Fatal(err)
		}
		f, err := p.Open(t.Context(), "/file")
		if err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		if _, err := f.WriteTo(t.Context(), &buf); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf.Bytes(), data) {
			t.Fatalf("%d bytes came back, want %d", buf.Len(), len(data))
		}
	})
}
