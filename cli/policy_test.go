package cli

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/meta"
	"dfsd/node"
	"dfsd/transport"
)

// explained is what dfsd explain --json tells of a file.
type explained struct {
	Class      string
	WantCopies int `json:"want_copies"`

	BlockBytes  int64 `json:"block_bytes"`
	StoredBytes int64 `json:"stored_bytes"`
	Unasked     int
	Extents     []struct {
		Codec  string
		Stored int
	}
	PGs []struct {
		PG       uint32
		Class    string
		State    string
		Complete []any
	}
}

func (c *cluster) explained(path string) (e explained) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.ok("explain", "--json", path)), &e); err != nil {
		c.t.Fatal(err)
	}
	return e
}

// TestPolicy sets a class of two copies on a directory of a cluster of three:
// that is what its files have, and have again after a store is lost for good, with
// the compression that is set for that class.
func TestPolicy(t *testing.T) {
	network := transport.NewMemory(transport.MemoryOptions{Seed: 1})
	var last *node.Node
	for i, name := range []string{"one", "two", "three", "four"} {
		marks := rand.New(rand.NewPCG(1, uint64(i)))
		o := node.Options{
			FS: vfs.NewMem(), Network: network.Host(name), Name: name, Roles: dfs.RoleStorage, Listen: name + ":7400", Dir: "data",
			PID: 1, Insecure: true, Release: "test", NewMark: func() uint64 { return marks.Uint64() | 1 },
			Peers:  []meta.Peer{{Name: "one", Addr: "one:7400"}},
			Engine: engine.Options{SegmentSize: 1 << 20, CacheSize: 1 << 20, MemTableSize: 256 << 10, Capacity: 1 << 30},
		}
		if name == "one" {
			o.Roles |= dfs.RoleMeta
		}
		o.Meta.Groups, o.Meta.PGsPerClass, o.Meta.DefaultClass, o.Meta.BlockSize = 4, 8, dfs.Replicated(3), 128<<10
		o.Meta.Grace = time.Second
		o.Meta.Raft.Tick, o.Meta.Raft.CacheSize, o.Meta.Raft.MemTableSize = 20*time.Millisecond, 1<<20, 256<<10
		n, err := node.Start(o)
		if err != nil {
			t.Fatal(err)
		}
		last = n
		t.Cleanup(func() { _ = n.Close() })
	}
	c := &cluster{t: t, proc: Process{Network: network.Host("client"), Env: []string{"DFSD_META=one:7400", "DFSD_TIMEOUT=5m"}}}
	c.ok("status", "--wait", "full")
	c.ok("mkdir", "-p", "/two")
	if _, _, stderr := c.run("policy", "set", "/two", "rep2"); stderr != "" {
		t.Errorf("with stores enough: %s", stderr)
	}
	for { // a busy machine keeps a store waiting for longer than the grace period, and it is out for a moment
		code, _, stderr := c.run("policy", "set", "/two", "rep5")
		if code != 1 || !strings.Contains(stderr, "class rep5 wants 5 copies on as many storage nodes, and the cluster has ") {
			t.Fatalf("with stores too few: exit code %d: %s", code, stderr)
		}
		if strings.Contains(stderr, "the cluster has 4; add storage nodes first") {
			break
		}
		c.ok("status", "--wait", "full")
	}
	text := strings.Repeat("two copies of this ", 50_000)
	c.ok("class", "set", "rep2", "--compression", "zstd")
	c.proc.In = strings.NewReader(text)
	c.ok("put", "-", "/three")
	if e := c.explained("/three"); e.Class != "rep3" || e.Extents[0].Codec != "s2" {
		t.Errorf("explained: %+v", e)
	}
	for i := range 6 {
		c.ok("mkdir", fmt.Sprintf("/two/%d", i))
		c.proc.In = strings.NewReader(text)
		c.ok("put", "-", fmt.Sprintf("/two/%d/file", i))
		if out := c.ok("policy", "get", fmt.Sprintf("/two/%d", i)); out != "class rep2, by the policy of /two\n" {
			t.Errorf("policy: %q", out)
		}
	}
	check := func() {
		t.Helper()
		c.ok("status", "--wait", "full")
		for i := range 6 {
			e := c.explained(fmt.Sprintf("/two/%d/file", i))
			if e.BlockBytes != int64(len(text)) || e.StoredBytes == 0 || e.StoredBytes > e.BlockBytes/20 || e.Unasked != 0 {
				t.Errorf("explained: %+v", e)
			}
			for _, x := range e.Extents {
				if x.Codec != "zstd" || x.Stored == 0 {
					t.Errorf("explained: %+v", x)
				}
			}
			if e.Class != "rep2" || e.WantCopies != 2 || len(e.PGs) == 0 {
				t.Errorf("explained: %+v", e)
			}
			for _, pg := range e.PGs {
				if pg.Class != "rep2" || pg.State != "full" || len(pg.Complete) != 2 {
					t.Errorf("explained: %+v", pg)
				}
			}
			if out := c.ok("cat", fmt.Sprintf("/two/%d/file", i)); out != text {
				t.Errorf("file %d has %d bytes of %d", i, len(out), len(text))
			}
		}
		groups := map[string]int{}
		for _, line := range strings.Split(c.ok("pg", "ls"), "\n")[1:] {
			if f := strings.Fields(line); len(f) > 1 {
				groups[f[1]]++
			}
		}
		if groups["rep3"] != 8 || groups["rep2"] != 8 {
			t.Errorf("placement groups: %v", groups)
		}
		if out := c.ok("class", "ls"); out != "CLASS  COMPRESSION  PGS  DEFAULT\nrep2   zstd         8    no\nrep3   s2           8    yes\n" {
			t.Errorf("classes: %q", out)
		}
	}
	check()
	if err := last.Close(); err != nil {
		t.Fatal(err)
	}
	for { // it counts until it is missed
		if _, out, _ := c.run("status"); strings.Contains(out, " out ") {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	check()
}
