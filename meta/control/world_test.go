package control

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/repair"
	"dfsd/transport/wire"
)

// world is two replicas of the control group that apply the same log: one
// machine that lives on, and one that is restarted before every entry. They
// must agree in every reply and in every row, and an entry that is refused
// must leave both as they were.
type world struct {
	t     testing.TB
	db    *pebble.DB
	lives *Machine
	index uint64
	now   int64 // milliseconds; proposed with the next entry
}

// prefixes of the two replicas in the database.
var (
	livesOn   = []byte{'a'}
	restarted = []byte{'b'}
)

func newWorld(t testing.TB) *world {
	t.Helper()
	db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem(), DisableWAL: true, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{t: t, db: db, lives: New(repair.Rules{}), now: 1000}
}

type quiet struct{}

func (quiet) Infof(string, ...any)              {}
func (quiet) Errorf(string, ...any)             {}
func (quiet) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func (w *world) reader() raftgroup.Reader { return raftgroup.NewReader(w.db, livesOn) }

func (w *world) apply(ce *wire.ControlEntry) *wire.ControlReply {
	w.t.Helper()
	ce.Now = w.now
	data, err := deterministic.Marshal(ce)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.applyBytes(data)
}

// applyBytes applies an entry to both replicas.
func (w *world) applyBytes(data []byte) *wire.ControlReply {
	w.t.Helper()
	before := w.dump(livesOn)
	w.index++
	raw := w.step(w.lives, livesOn, data)
	if again := w.step(New(repair.Rules{}), restarted, data); !bytes.Equal(raw, again) {
		w.t.Fatalf("entry %d: the replicas answer %x and %x", w.index, raw, again)
	}
	after := w.dump(livesOn)
	if other := w.dump(restarted); after != other {
		w.t.Fatalf("entry %d: the replicas differ:\n%s\n%s", w.index, after, other)
	}
	reply := &wire.ControlReply{}
	if err := proto.Unmarshal(raw, reply); err != nil {
		w.t.Fatal(err)
	}
	if (reply.Kind != 0 || reply.Text != "") && before != after {
		w.t.Fatalf("entry %d was refused (%s) and has left a trace:\n%s\n%s", w.index, reply.Text, before, after)
	}
	return reply
}

func (w *world) step(m *Machine, prefix, data []byte) []byte {
	w.t.Helper()
	b := w.db.NewIndexedBatch()
	defer b.Close()
	reply, err := m.Apply(raftgroup.NewTx(b, prefix), raftgroup.Entry{Index: w.index + 1, Term: 1, Data: data})
	if err != nil {
		w.t.Fatalf("apply: %v", err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		w.t.Fatal(err)
	}
	return reply
}

// dump draws every row of a replica.
func (w *world) dump(prefix []byte) string {
	w.t.Helper()
	var b strings.Builder
	err := raftgroup.NewReader(w.db, prefix).Scan(nil, nil, func(key, value []byte) (bool, error) {
		fmt.Fprintf(&b, "%x %x\n", key, value)
		return true, nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return b.String()
}

func nodeIDs(m *dfs.Map) (out []dfs.NodeID) {
	for _, n := range m.Nodes {
		out = append(out, n.ID)
	}
	return out
}

// check holds what is stored against the package's invariants.
func (w *world) check() {
	w.t.Helper()
	st, err := ReadState(w.reader())
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := ReadMap(w.reader())
	if err != nil || m == nil {
		if err != nil || st != nil {
			w.t.Fatalf("map %v, %v", m, err)
		}
		return
	}
	for _, g := range m.Groups {
		if uint32(g.ID) > st.LastGroup || without(g.Replicas, nodeIDs(m)) > 0 && st.LastNode > 0 {
			w.t.Errorf("group %+v; the last number given is %d", g, st.LastGroup)
		}
	}
	for _, n := range m.Nodes {
		if uint32(n.ID) > st.LastNode {
			w.t.Errorf("node %v is above the last number given, %d", n.ID, st.LastNode)
		}
	}
	for _, s := range m.Stores {
		if uint32(s.ID) > st.LastStore || m.Node(s.Node) == nil {
			w.t.Errorf("store %+v: the last number given is %d", s, st.LastStore)
		}
	}
	for _, p := range m.PGs {
		if err := repair.Check(p); err != nil || uint32(p.ID) > st.LastPg || p.Newest() > m.Epoch {
			w.t.Errorf("%v: %v; the last number given is %d, the epoch %d, its newest %d", p.ID, err, st.LastPg, m.Epoch, p.Newest())
		}
	}
	ss, err := ReadSessions(w.reader())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, id := range append(ss.Live, ss.Expiring...) {
		if id > ss.Highest {
			w.t.Errorf("session %d is above the highest, %d", id, ss.Highest)
		}
	}
	marks := 0
	err = w.reader().Scan([]byte{tagSessionMark}, []byte{tagSessionMark + 1}, func(_, value []byte) (bool, error) {
		marks++
		_, ok, err := w.reader().Get(key64(tagSession, binary.BigEndian.Uint64(value)))
		if !ok {
			w.t.Errorf("a mark names session %x, which does not exist", value)
		}
		return true, err
	})
	if err != nil || marks != len(ss.Live)+len(ss.Expiring) {
		w.t.Errorf("%d marks for %d sessions, %v", marks, len(ss.Live)+len(ss.Expiring), err)
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
}
