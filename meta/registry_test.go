package meta

import (
	"log/slog"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// TestNamesAreTakenOver: when a node with an empty directory gets the name of
// another one.
func TestNamesAreTakenOver(t *testing.T) {
	m := &dfs.Map{Nodes: []*dfs.Node{
		{ID: 1, Name: "m1", Roles: dfs.RoleMeta, Incarnation: dfs.Incarnation{Mark: 10}},
		{ID: 7, Name: "m7", Roles: dfs.RoleMeta, Incarnation: dfs.Incarnation{Mark: 70}},
	}}
	const long = time.Hour
	for _, c := range []struct {
		what  string
		name  string
		node  uint32
		mark  uint64
		heard time.Duration // of node 7, ago
		led   time.Duration
		asked time.Duration // ago, for the first time of this leader
		from  uint64        // mark of the directory that it says it was
		want  dfs.Kind
	}{
		{what: "it is up", name: "m7", mark: 71, heard: 0, led: long, asked: long, want: dfs.Exist},
		{what: "it was silent for long enough", name: "m7", mark: 71, heard: 2 * voteFresh, led: long, asked: emptyGrace},
		{what: "it may be on a disk that is not mounted", name: "m7", mark: 71, heard: long, led: long, asked: emptyGrace - time.Second, want: dfs.Unavailable},
		{what: "it may be, and asks for the first time", name: "m7", mark: 71, heard: long, led: long, want: dfs.Unavailable},
		{what: "it joins anew", name: "m7", mark: 71, from: 70, heard: long, led: long},
		{what: "it joins anew, and was heard", name: "m7", mark: 71, from: 70, heard: 0, led: long, want: dfs.Exist},
		{what: "nobody has listened for long enough", name: "m7", mark: 71, heard: long, led: voteFresh - 1, asked: long, want: dfs.Unavailable},
		{what: "a leader just elected", name: "m7", mark: 71, heard: long, want: dfs.Unavailable},
		{what: "just elected, and it was heard", name: "m7", mark: 71, heard: 0, want: dfs.Exist},
		{what: "the leader's own", name: "m1", mark: 11, led: long, want: dfs.Exist},
		{what: "the same directory", name: "m7", mark: 70, heard: 0},
		{what: "one that has a number", name: "m7", node: 7, mark: 70, heard: 0},
		{what: "a new name", name: "m8", mark: 80, heard: 0},
	} {
		r := &registry{s: &Service{opts: Options{Identity: stranger{}}, log: slog.New(slog.DiscardHandler)}, claims: map[claim]time.Time{}, votes: map[dfs.NodeID]vote{7: {at: time.Now().Add(-c.heard)}}}
		if c.asked > 0 {
			r.claims[claim{c.mark, 5}] = time.Now().Add(-c.asked)
		}
		r.claims[claim{c.mark, 4}] = time.Now().Add(-long) // of an earlier leader
		req := &wire.RegisterRequest{Name: c.name, Node: c.node, Incarnation: &wire.Incarnation{Mark: c.mark}, Replaces: c.from}
		if err := r.admit(m, req, 5, c.led); dfs.KindOf(err) != c.want || (err == nil) != (c.want == 0) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
}
