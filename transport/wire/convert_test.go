package wire_test

import (
	"context"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// TestClassSettings: what is set for classes survives the way, a codec of a later
// release too; what cannot be is refused or is the default.
func TestClassSettings(t *testing.T) {
	m := &dfs.Map{DefaultClass: dfs.Replicated(3), Settings: []dfs.ClassSetting{
		{Class: dfs.Replicated(1), Codec: dfs.CodecNone}, {Class: dfs.Replicated(3), Codec: dfs.CodecZstd}, {Class: dfs.Replicated(4), Codec: 9},
		{Class: dfs.Class{Data: 4, Parity: 2}, Codec: dfs.CodecS2},
	}}
	sent := wire.FromMap(m)
	raw, err := proto.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	got := &wire.ClusterMap{}
	if err := proto.Unmarshal(raw, got); err != nil {
		t.Fatal(err)
	}
	back, err := got.ToDFS()
	if err != nil || !reflect.DeepEqual(back.Settings, m.Settings) {
		t.Fatalf("%v, %v", back, err)
	}
	for class, want := range map[string]dfs.Codec{"rep1": dfs.CodecNone, "rep2": dfs.CodecS2, "rep3": dfs.CodecZstd, "rep4": dfs.CodecS2} {
		c, _ := dfs.ParseClass(class)
		if got := back.Codec(c); got != want {
			t.Errorf("%s: %v, want %v", class, got, want)
		}
	}
	huge := uint32(1 << 20)
	for _, s := range []*wire.ClassSetting{{Class: "rep2"}, {Class: "rep2", Codec: &huge}} {
		if set, err := s.ToDFS(); err != nil || set.Codec != dfs.DefaultCodec {
			t.Errorf("%v: %v, %v", s, set, err)
		}
	}
	one, two := wire.FromClassSetting(m.Settings[0]), wire.FromClassSetting(m.Settings[1])
	for _, bad := range [][]*wire.ClassSetting{{two, one}, {one, one}, {{Class: "gold"}}} {
		c := wire.FromMap(m)
		c.Settings = bad
		if _, err := c.ToDFS(); dfs.KindOf(err) != dfs.Invalid {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestGroups: what a map says of Raft groups survives the way; what no group can
// be is refused.
func TestGroups(t *testing.T) {
	m := &dfs.Map{DefaultClass: dfs.Replicated(3), Groups: []*dfs.Group{
		{ID: 0, Replicas: []dfs.NodeID{1, 2, 3}}, {ID: 1, Replicas: []dfs.NodeID{7}}, {ID: 65535, Founder: 2, Replicas: []dfs.NodeID{2, 5, 6, 7, 8, 9, 10}},
	}}
	raw, err := proto.Marshal(wire.FromMap(m))
	if err != nil {
		t.Fatal(err)
	}
	got := &wire.ClusterMap{}
	if err := proto.Unmarshal(raw, got); err != nil {
		t.Fatal(err)
	}
	back, err := got.ToDFS()
	if err != nil || !reflect.DeepEqual(back.Groups, m.Groups) {
		t.Fatalf("%v, %v", back, err)
	}
	if g := back.Group(65535); g == nil || g.Ready() || back.Group(2) != nil || !reflect.DeepEqual(back.Namespace(), []dfs.GroupID{1}) {
		t.Errorf("%v, %v, %v", g, back.Group(2), back.Namespace())
	}
	ok := func(id uint32) *wire.MapGroup { return &wire.MapGroup{Id: id, Replicas: []uint32{1}} }
	var many []*wire.MapGroup
	for i := range uint32(dfs.MaxGroups + 2) {
		many = append(many, ok(i))
	}
	for _, bad := range [][]*wire.MapGroup{
		{ok(1), ok(1)}, {ok(2), ok(1)}, {ok(65536)}, many,
		{{Id: 1}}, {{Id: 1, Replicas: []uint32{0}}}, {{Id: 1, Replicas: []uint32{2, 1}}}, {{Id: 1, Replicas: []uint32{1, 1}}},
		{{Id: 1, Replicas: []uint32{1, 2, 3, 4, 5, 6, 7, 8}}}, {{Id: 1, Founder: 2, Replicas: []uint32{1}}},
	} {
		c := wire.FromMap(m)
		c.Groups = bad
		if _, err := c.ToDFS(); dfs.KindOf(err) != dfs.Invalid {
			t.Errorf("%v: %v", bad[:min(len(bad), 3)], err)
		}
	}
}

// TestRefusalsAreSent: an error may name a path of any bytes.
func TestRefusalsAreSent(t *testing.T) {
	sent, err := proto.Marshal(wire.FromError(dfs.Errorf(dfs.NoSpace, "write", "/srv/\xff\xfe/raft")))
	if err != nil {
		t.Fatal(err)
	}
	got := &wire.Refusal{}
	if err := proto.Unmarshal(sent, got); err != nil || got.ToError().Error() != "write: /srv/\uFFFD/raft" {
		t.Errorf("%q, %v", got.ToError(), err)
	}
}

// TestRefusalsOfAnEndedContext: what a handler had no time for is no final answer.
func TestRefusalsOfAnEndedContext(t *testing.T) {
	for err, want := range map[error]dfs.Kind{
		context.DeadlineExceeded: dfs.Deadline,
		context.Canceled:         dfs.Unknown,
		dfs.Wrap("change", "g1", context.DeadlineExceeded): dfs.Deadline,
	} {
		if got := dfs.KindOf(wire.FromError(err).ToError()); got != want {
			t.Errorf("%v is sent as %v, want %v", err, got, want)
		}
	}
}
