package sim

import (
	"testing"
	"time"

	"dfsd/node"
)

// TestUnreachableStoresAreNotEntered starts storage nodes that say that they are
// where nobody is, and where another node is: they get no share, and writes go on.
// With the right address they join.
func TestUnreachableStoresAreNotEntered(t *testing.T) {
	wrong := map[string]string{"store4": "store4:9999", "store5": "store3:" + rpcPort}
	cfg := Config{Stores: 5, Tweak: func(o *node.Options) { o.Advertise = wrong[o.Name] }}
	inBubble(t, cfg, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		time.Sleep(time.Minute)
		if _, stores := storesOf(t, p); len(stores) != 3 || stores["store4"] != nil || stores["store5"] != nil {
			t.Fatalf("the cluster has the stores %v", stores)
		}
		put(t, p, "/before", "three stores")
		c.Crash(6, 7)
		clear(wrong)
		start(t, c, 6, 7)
		await(t, time.Minute, func() string {
			if _, stores := storesOf(t, p); stores["store4"] == nil || stores["store5"] == nil {
				return "they do not join"
			}
			return ""
		})
		awaitFull(t, c, p, time.Minute)
		put(t, p, "/after", "five stores")
	})
}
