package node

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/meta"
	"dfsd/sim/bubble"
	"dfsd/transport"
)

// TestMetricsAreDocumented: a node with both roles has the metrics that the
// table of docs/OPERATIONS.md lists, and no others.
func TestMetricsAreDocumented(t *testing.T) {
	raw, err := os.ReadFile("../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `dfsd_.*$").FindAllString(string(raw), -1) {
		for _, m := range regexp.MustCompile("`(dfsd_[a-z_]+)`").FindAllStringSubmatch(row, -1) {
			want[m[1]] = true
		}
	}
	bubble.Test(t, func(t *testing.T) {
		metrics := NewMetrics()
		mark := uint64(0)
		n, err := Start(Options{
			FS: vfs.NewMem(), Network: transport.NewMemory(transport.MemoryOptions{}).Host("h"), Name: "n", Roles: dfs.RoleMeta | dfs.RoleStorage, Listen: "h:1", Dir: "d",
			Stores: []string{"s"}, Peers: []meta.Peer{{Name: "n", Addr: "h:1"}}, PID: 1, Insecure: true, Metrics: metrics,
			NewMark: func() uint64 { mark++; return mark },
			Engine:  engine.Options{SegmentSize: 1 << 20, CacheSize: 1 << 20, MemTableSize: 256 << 10, Capacity: 1 << 30},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		time.Sleep(time.Minute)
		metrics.Registry.MustRegister(collector{n})
		families, err := metrics.Registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, f := range families {
			got[f.GetName()] = true
			if f.GetName() == "dfsd_raft_log_syncs_total" && f.Metric[0].Counter.GetValue() == 0 {
				t.Error("a node that made a cluster synced no log")
			}
		}
		if n.meta.Disk() == nil { // this disk cannot tell
			got["dfsd_meta_disk_free_bytes"], got["dfsd_meta_disk_full"] = true, true
		}
		got["dfsd_raft_snapshot_progress_bytes"] = true // no snapshot is on its way
		if !maps.Equal(got, want) {
			t.Errorf("the node has\n%v\nthe table lists\n%v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
	})
}
