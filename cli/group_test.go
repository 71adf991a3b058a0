package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/meta"
	"dfsd/node"
	"dfsd/sim/bubble"
)

// spare starts a second meta node beside a cluster of one. The returned function ends it.
func (c *cluster) spare() (end func()) {
	c.t.Helper()
	marks := rand.New(rand.NewPCG(3, 4))
	o := node.Options{
		FS: vfs.NewMem(), Network: c.net.Host("extra"), Name: "extra", Roles: dfs.RoleMeta, Listen: "extra:7400", Dir: "data",
		PID: 2, Insecure: true, Release: "test", NewMark: func() uint64 { return marks.Uint64() | 1 },
		Peers: []meta.Peer{{Name: "solo", Addr: "solo:7400"}},
	}
	o.Meta.Raft.Tick, o.Meta.Raft.CacheSize, o.Meta.Raft.MemTableSize = 20*time.Millisecond, 1<<20, 256<<10
	n, err := node.Start(o)
	if err != nil {
		c.t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		if err := n.Close(); err != nil {
			c.t.Error(err)
		}
	})
	c.t.Cleanup(end)
	return end
}

// TestRecoverVerb: a group of two voters loses one for good. What is said to the operator,
// what is refused, and that nothing is deleted until it is acknowledged.
func TestRecoverVerb(t *testing.T) {
	c := startCluster(t)
	end := c.spare()
	for { // until it is registered
		if code, _, _ := c.run("group", "add-replica", "1", "extra", "--yes", "--wait"); code == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.no(2, "--lost is missing", "group", "recover", "--all")
	c.no(2, "say --all, or --group", "group", "recover", "--lost", "extra")
	c.no(2, "stand alone", "group", "recover", "--acknowledge", "--all")
	c.no(2, "is no number of a group", "group", "recover", "--lost", "extra", "--group", "first")
	c.no(1, "extra (n2) is not lost: it answers at extra:7400", "group", "recover", "--lost", "extra", "--all")
	if out := c.ok("group", "recover", "--acknowledge"); !strings.Contains(out, "nothing to acknowledge") { // and nobody is asked
		t.Errorf("without a recovery: %s", out)
	}
	c.ok("mkdir", "/d")
	end()
	c.no(1, "nobody is no meta node", "group", "recover", "--lost", "nobody,n2", "--all")
	c.no(1, "has its majority", "group", "recover", "--lost", "n2", "--group", "2")
	c.no(2, "say --yes", "group", "recover", "--lost", "extra", "--all")
	code, stdout, stderr := c.run("group", "recover", "--lost", "extra", "--group", "1", "--yes", "--json")
	for _, want := range []string{"Group 1, voters [n1 n2], goes on from solo (n1)", "MAY BE LOST", "solo (n1) is its only voter", "given up"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in %s", want, stderr)
		}
	}
	if code != 0 || !strings.Contains(stdout, `"from":"solo"`) {
		t.Errorf("exit code %d: %s", code, stdout)
	}
	c.ok("mkdir", "/e")
	if out := c.ok("status"); !strings.Contains(out, "deletes are held") || !strings.Contains(out, "degraded") {
		t.Errorf("the status says %s", out)
	}
	nothingLeft := func() {
		t.Helper()
		code, stdout, stderr := c.run("group", "recover", "--lost", "extra", "--all") // nobody is asked
		if code != 0 || stdout != "there is nothing to recover: every group has its majority, and extra (n2) was given up before\n" || stderr != "" {
			t.Errorf("a second recovery: exit code %d: %s%s", code, stdout, stderr)
		}
	}
	nothingLeft()
	c.no(2, "say --yes", "group", "recover", "--acknowledge")
	if out := c.ok("group", "recover", "--acknowledge", "--yes"); out != "acknowledged: deletes go on\n" {
		t.Errorf("the acknowledgement: %s", out)
	}
	nothingLeft()
	if out := c.ok("status"); strings.Contains(out, "deletes are held") {
		t.Errorf("the status says %s", out)
	}
	if out := c.ok("group", "recover", "--acknowledge", "--json"); !strings.Contains(out, `"acknowledged":false`) {
		t.Errorf("a second acknowledgement: %s", out)
	}
	c.ok("group", "recover", "--take-back", "--yes")
}

type groupAnswer struct {
	Group    groupStatus
	Groups   []groupStatus
	Replicas []replicaStatus
}

func (c *cluster) group(args ...string) (out groupAnswer) {
	c.t.Helper()
	text := c.ok(append([]string{"group"}, args...)...)
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		c.t.Fatalf("dfsd group %q: %v: %s", args, err, text)
	}
	return out
}

// TestWhatFollowsARecovery: fresh nodes are told who knows the cluster, since among
// themselves they would make another one.
func TestWhatFollowsARecovery(t *testing.T) {
	var out strings.Builder
	plan := &client.RecoveryPlan{Nodes: []client.RecoveryNode{{ID: 4, Name: "d", Addr: "d:7400"}, {ID: 7, Name: "e", Addr: "e:7400"}}}
	if err := printNext(&out, plan, dfs.ClusterID{0xab}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"d=d:7400, e=e:7400", "cluster_id be ab00"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q: %s", want, &out)
		}
	}
}

// TestVotersOfAGroupWithoutLeader: of a group that has no leader it is not known who votes.
func TestVotersOfAGroupWithoutLeader(t *testing.T) {
	for _, c := range []struct {
		members []string
		want    bool
	}{{nil, false}, {[]string{"a", "b"}, false}, {[]string{"b"}, true}} {
		if g := (&groupStatus{Members: c.members}); g.withoutVote("a") != c.want {
			t.Errorf("%v: without a vote: %v", c.members, !c.want)
		}
	}
}

// TestGroupVerbs has a cluster of one meta node, which keeps one replica of each
// group, and one that joined it.
func TestGroupVerbs(t *testing.T) {
	c := startCluster(t)
	c.spare()
	has := func(g *groupStatus, names ...string) bool {
		return slices.Equal(sorted(g.Members), names) && slices.Equal(sorted(g.Target), names)
	}
	// The five groups spread over both by themselves.
	for {
		led := map[string]int{}
		for _, g := range c.group("ls", "--json").Groups {
			if g.State == groupReady && len(g.Members) == 1 && slices.Equal(g.Members, g.Target) {
				led[g.Leader]++
			}
		}
		if led["solo"]+led["extra"] == 5 && led["extra"] >= 2 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}

	c.no(2, "say --yes", "group", "create")
	c.no(1, "does not exist", "group", "create", "--yes", "--replicas", "nobody")
	made := c.group("create", "--yes", "--wait", "--json", "--replicas", "extra").Group
	if made.Group != 5 || made.State != groupReady || !has(&made, "extra") || made.Leader != "extra" {
		t.Errorf("made: %+v", made)
	}
	c.no(1, "solo (n1) does not vote in it: extra do", "group", "move-leader", "5", "solo")
	c.no(2, "say --yes", "group", "add-replica", "5", "solo")
	c.no(1, "keeps 1: first dfsd group add-replica 5 NODE", "group", "remove-replica", "5", "extra", "--yes")
	if g := c.group("add-replica", "g5", "n1", "--yes", "--wait", "--json").Group; !has(&g, "extra", "solo") {
		t.Errorf("after add-replica: %+v", g)
	}
	c.no(1, "group add-replica 5: solo (n1) has a place in it already", "group", "add-replica", "5", "solo") // before anybody is asked
	c.ok("group", "move-leader", "5", "solo")
	shown := c.group("show", "5", "--json")
	if len(shown.Replicas) != 2 || shown.Replicas[0].StateHash == "" {
		t.Errorf("shown: %+v", shown)
	}
	for _, r := range shown.Replicas {
		if want := map[string]string{"solo": "leader", "extra": "follower"}[r.Node]; r.Role != want && shown.Group.Leader == "solo" || r.Fault != "" || r.Snapshot {
			t.Errorf("shown: %+v", shown)
		}
	}
	if g := c.group("remove-replica", "5", "extra", "--yes", "--wait", "--json").Group; !has(&g, "solo") {
		t.Errorf("after remove-replica: %+v", g)
	}
	c.no(1, "group remove-replica 5: extra (n2) has no place in it: solo have", "group", "remove-replica", "5", "extra")
	for { // what extra had is destroyed
		if r := c.group("show", "5", "--json").Replicas; len(r) == 1 && r[0].Node == "solo" {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if out := c.ok("group", "show", "5"); !strings.Contains(out, "STATE HASH") || !strings.Contains(out, "solo") {
		t.Error(out)
	}
	c.no(1, "see dfsd group ls", "group", "move-leader", "77", "solo")
	for _, args := range [][]string{{"show", "x"}, {"show", "70000"}, {"move-leader", "-", "solo"}, {"add-replica", "1.5", "solo", "--yes"}, {"remove-replica", "g", "solo", "--yes"}} {
		c.no(2, "dfsd: group "+args[0]+": "+args[1]+" is no number of a group", append([]string{"group"}, args...)...)
	}
}

// TestAwaitGroup waits for groups that are given up meanwhile: the next ones have
// numbers after all that there were.
func TestAwaitGroup(t *testing.T) {
	for _, c := range []struct {
		name  string
		looks string // at the states of the groups from 8 on; -: none, f: forming, r: ready
		want  uint32
		err   string
	}{
		{name: "ready", looks: "rf rf rr", want: 9},
		{name: "given up, the last one", looks: "rf r-f r-r", want: 10},
		{name: "given up, others came after it", looks: "rff r-rf r-rr", want: 11},
		{name: "given up again", looks: "rf r-f r--f r--r", want: 11},
		{name: "never", looks: "rf", err: "dfsd: group create 9: too late"},
	} {
		bubble.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("too late"))
			defer cancel()
			looks := strings.Fields(c.looks)
			look := func(context.Context) (*status, error) {
				s := &status{}
				for i, state := range looks[0] {
					switch state {
					case 'f':
						s.Groups = append(s.Groups, groupStatus{Group: uint32(8 + i), State: "forming"})
					case 'r':
						s.Groups = append(s.Groups, groupStatus{Group: uint32(8 + i), State: groupReady, Leader: "a", Members: []string{"a"}, Target: []string{"a"}})
					}
				}
				if len(looks) > 1 {
					looks = looks[1:]
				}
				return s, nil
			}
			var out bytes.Buffer
			a := &app{proc: Process{Err: &out}}
			g, err := a.awaitGroup(ctx, look, "group create", 9)
			text := ""
			if err != nil {
				text = errorLine(err)
			}
			if g.Group != c.want || text != c.err {
				t.Errorf("%s: group %d, %q, want %d, %q; said %s", c.name, g.Group, text, c.want, c.err, out.String())
			}
		})
	}
}
