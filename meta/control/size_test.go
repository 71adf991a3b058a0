package control

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// TestRegistrationsAreBounded: the map, which is one message, stays one
// whatever registers, however often.
func TestRegistrationsAreBounded(t *testing.T) {
	w := newWorld(t)
	form := &wire.FormOp{Cluster: make([]byte, 16), Groups: 1, DefaultClass: "rep1", BlockSize: 1 << 20, PgsPerClass: 1, Metas: []string{"m1"}}
	w.apply(&wire.ControlEntry{Entry: &wire.ControlEntry_Form{Form: form}})
	long := strings.Repeat("x", dfs.MaxName)
	register := func(mark uint64, name string, labels map[string]string, release string) dfs.Kind {
		return dfs.Kind(w.apply(&wire.ControlEntry{Entry: &wire.ControlEntry_Register{Register: &wire.RegisterRequest{
			Name: name, Addr: name, Roles: uint32(dfs.RoleMeta), Labels: labels, Release: release,
			Incarnation: &wire.Incarnation{Mark: mark, Start: 1}, Lineage: &wire.Lineage{Offered: []uint64{1}},
		}}}).GetKind())
	}
	for _, k := range []dfs.Kind{
		register(1, "m1", map[string]string{"rack": strings.Repeat("x", 400<<10)}, ""),
		register(1, "m1", map[string]string{strings.Repeat("x", 400<<10): ""}, ""),
		register(1, "m1", nil, strings.Repeat("x", 400<<10)),
	} {
		if k != dfs.Invalid {
			t.Errorf("a registration of 400 KiB: kind %q, want %q", k, dfs.Invalid)
		}
	}
	if k := register(1, "m1", nil, "1.0"); k != 0 {
		t.Fatalf("the founder is refused: %q", k)
	}
	labels := map[string]string{}
	for i := range 16 {
		labels[fmt.Sprintf("%02d", i)] = long
	}
	n := uint64(2)
	for ; n < 1000; n++ {
		if k := register(n, fmt.Sprintf("%0255d", n), labels, long); k == dfs.TooLarge {
			break
		} else if k != 0 {
			t.Fatalf("registration %d: %q", n, k)
		}
	}
	m, err := ReadMap(w.reader())
	if err != nil {
		t.Fatal(err)
	}
	if size := proto.Size(wire.FromMap(m)); size < maxRollSize/2 || size > dfs.MaxMessage/2 {
		t.Errorf("the map has %d bytes after %d registrations", size, n)
	}
	if k := register(1, "m1", nil, "1.0"); k != 0 { // what is there already is not refused
		t.Errorf("the founder is refused: %q", k)
	}
}
