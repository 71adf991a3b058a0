package wire_test

import (
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
