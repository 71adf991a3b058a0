package sim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/node"
)

// TestFullStoreHoldsWrites fills one of three stores: nothing can be written any
// more, and status says so, and why. Another store helps.
func TestFullStoreHoldsWrites(t *testing.T) {
	cfg := Config{Stores: 3, Tweak: func(o *node.Options) {
		if o.Name == "store2" {
			o.Engine.Capacity = 12 * simSegment
		}
	}}
	inBubble(t, cfg, func(t *testing.T, c *Cluster) {
		open(t, c, "first").Close()
		p, err := c.clientWithin(t.Context(), "client", 1, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		awaitReady(t, p)
		noise := rand.NewChaCha8([32]byte{}) // it does not shrink
		n := 0
		for n < 1000 {
			if _, err = p.PutFile(t.Context(), fmt.Sprintf("/%d", n), client.PutOptions{Mode: 0o644}, io.LimitReader(noise, simBlockSize)); err != nil {
				break
			}
			n++
		}
		if err == nil {
			t.Fatal("nothing is ever full")
		}
		await(t, 10*time.Second, func() string {
			st, err := p.Status(t.Context())
			if err != nil {
				return err.Error()
			}
			if all := strings.Join(st.Problems, "; "); !strings.Contains(all, "full to its reserve") || !strings.Contains(all, "on store2") {
				return fmt.Sprintf("after %d files and %v: problems %q", n, dfs.KindOf(err), all)
			}
			return ""
		})
		start(t, c, c.AddStorage())
		awaitReady(t, p)
	})
}
