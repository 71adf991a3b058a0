package control

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// FuzzApply feeds arbitrary entries to a formed cluster: each is carried out or
// refused, alike on both replicas, and what is stored stays sound. A log entry
// comes from a meta node, but a registration in it comes from the network.
func FuzzApply(f *testing.F) {
	inc := func(mark, start uint64) *wire.Incarnation { return &wire.Incarnation{Mark: mark, Start: start} }
	lineage := func(accepted uint64, offered ...uint64) *wire.Lineage {
		return &wire.Lineage{Accepted: accepted, Offered: offered}
	}
	for _, ce := range []*wire.ControlEntry{
		{Entry: &wire.ControlEntry_Form{Form: &wire.FormOp{Cluster: make([]byte, 16), Groups: 1, DefaultClass: "rep1", BlockSize: 1, Metas: []string{"m"}, PgsPerClass: 1}}},
		{Entry: &wire.ControlEntry_Register{Register: &wire.RegisterRequest{
			Name: "d2", Addr: "d2:1", Roles: 2, Incarnation: inc(99, 1), Lineage: lineage(0, 1),
			Stores: []*wire.RegisterStore{{Incarnation: inc(98, 1), Lineage: lineage(0, 1), Capacity: 5}},
		}}},
		{Entry: &wire.ControlEntry_Register{Register: &wire.RegisterRequest{
			Name: "d1", Addr: "d1:1", Roles: 2, Node: 2, Incarnation: inc(21, 3), Lineage: lineage(1, 2, 3),
			Stores: []*wire.RegisterStore{{Store: 1, Incarnation: inc(31, 3), Lineage: lineage(1, 3), Incomplete: true}},
		}}},
		{Entry: &wire.ControlEntry_SetClass{SetClass: &wire.SetClassRequest{Setting: wire.FromClassSetting(dfs.ClassSetting{Class: dfs.Replicated(2), Codec: dfs.CodecZstd})}}},
		{Entry: &wire.ControlEntry_Bar{Bar: &wire.BarOp{Mark: 21, Start: 5}}},
		{Entry: &wire.ControlEntry_OpenSession{OpenSession: &wire.OpenSessionRequest{Mark: 5, Holder: "h"}}},
		{Entry: &wire.ControlEntry_CloseSession{CloseSession: &wire.CloseSessionRequest{Session: 1}}},
		{Entry: &wire.ControlEntry_Expire{Expire: &wire.ExpireOp{Sessions: []uint64{1, 2, 1 << 60}}}},
		{Entry: &wire.ControlEntry_Expired{Expired: &wire.ExpiredOp{Sessions: []uint64{1, 1}}}},
		{Entry: &wire.ControlEntry_Formed{Formed: &wire.FormedOp{}}},
		{Entry: &wire.ControlEntry_RefillDone{RefillDone: &wire.RefillDoneRequest{Store: 1, Done: []*wire.RefillDone{{Pg: 1, Mark: 31, Joined: 1}}}}},
		{Entry: &wire.ControlEntry_Plan{Plan: &wire.PlanOp{Decisions: []*wire.Decision{
			decision("target pg=1 stores=1,2"), decision("propose pg=1 newest=7 stores=1,2"), decision("activate pg=1 epoch=8 persisted=1:31:9,2:32:9"),
			decision("down store=1 mark=31 start=1 voters=1"), decision("out store=1 mark=31 start=1"), decision("create class=rep1 count=3"), {},
		}}}},
		{Entry: &wire.ControlEntry_CreateGroup{CreateGroup: &wire.CreateGroupRequest{Replicas: []uint32{1}}}},
		{Entry: &wire.ControlEntry_GroupReady{GroupReady: &wire.GroupReadyOp{Group: 3, Replicas: []uint32{1}}}},
		{Entry: &wire.ControlEntry_ChangeReplicas{ChangeReplicas: &wire.ChangeReplicasRequest{Group: 1, Add: 2, Remove: 1}}},
		{Entry: &wire.ControlEntry_Plan{Plan: &wire.PlanOp{Decisions: []*wire.Decision{
			decision("replicas group=1 was=1 to=1,2"), decision("replicas group=65537 was=1 to=1"), decision("abandon group=3 founder=1 to=1"),
		}}}},
		{Entry: &wire.ControlEntry_Recovered{Recovered: &wire.RecoveredOp{
			Generation: 1 << 40, Lost: []uint32{1, 2, 9}, Found: []*wire.MapGroup{
				{Id: 9, Replicas: []uint32{2, 1, 2}}, {Id: 4, Replicas: []uint32{1}}, {Id: 9, Replicas: []uint32{1}}, {Id: 1}, {Id: 1<<16 + 9, Replicas: []uint32{1}},
			}, Persisted: []*wire.PersistedMark{{Store: 1, Mark: 31, Epoch: 99}, {Store: 7}},
		}}},
		{Entry: &wire.ControlEntry_GiveUp{GiveUp: &wire.GiveUpOp{Generation: 5, Lost: []uint32{2, 2, 1 << 31}}}},
		{Entry: &wire.ControlEntry_Acknowledge{Acknowledge: &wire.AcknowledgeOp{}}},
		{Entry: &wire.ControlEntry_Plan{}},
		{},
	} {
		data, err := proto.Marshal(ce)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("no protobuf"))
	f.Fuzz(func(t *testing.T, data []byte) {
		w := newWorld(t)
		formed(w)
		w.applyBytes(data)
		w.check()
		w.applyBytes(data)
		w.check()
	})
}

// formed fills a world: one meta node, two stores, one active placement group
// and two sessions, one of them expiring.
func formed(w *world) {
	w.apply(&wire.ControlEntry{Entry: &wire.ControlEntry_Form{Form: &wire.FormOp{
		Cluster: []byte("0123456789abcdef"), Groups: 2, DefaultClass: "rep2", BlockSize: 1 << 20, PgsPerClass: 2, Metas: []string{"meta1"},
	}}})
	for _, reg := range []struct {
		head  fields
		store string
	}{
		{fields{"name": "meta1", "mark": "11", "start": "1"}, ""},
		{fields{"name": "d1", "mark": "21", "start": "1"}, "store mark=31 start=1 capacity=100"},
		{fields{"name": "d2", "mark": "22", "start": "1"}, "store mark=32 start=1 capacity=100"},
	} {
		w.apply(&wire.ControlEntry{Entry: &wire.ControlEntry_Register{Register: registration(reg.head, reg.store)}})
	}
	w.apply(&wire.ControlEntry{Entry: &wire.ControlEntry_Plan{Plan: &wire.PlanOp{Decisions: []*wire.Decision{
		decision("create class=rep2 count=1"), decision("target pg=1 stores=1,2"), decision("propose pg=1 newest=0 stores=1,2"),
	}}}})
	m, err := ReadMap(w.reader())
	if err != nil || len(m.PGs) != 1 || m.PGs[0].Proposed.Size() != 2 {
		w.t.Fatalf("map %+v, %v", m, err)
	}
	for mark := range uint64(2) {
		w.apply(&wire.ControlEntry{Entry: &wire.ControlEntry_OpenSession{OpenSession: &wire.OpenSessionRequest{Mark: mark + 1}}})
	}
	w.apply(&wire.ControlEntry{Entry: &wire.ControlEntry_Expire{Expire: &wire.ExpireOp{Sessions: []uint64{1}}}})
}

// TestMapsOfTheMachineAreNotChanged holds a map that readers may have been given
// against what later entries do: rows are replaced, never changed in place.
func TestMapsOfTheMachineAreNotChanged(t *testing.T) {
	w := newWorld(t)
	formed(w)
	old := w.lives.m
	before := wire.FromMap(old)
	if old.Store(1).State != dfs.StoreUp || old.PG(1).Active.Epoch != 0 {
		t.Fatalf("store %+v, %+v", old.Store(1), old.PG(1))
	}
	w.apply(&wire.ControlEntry{Entry: &wire.ControlEntry_Plan{Plan: &wire.PlanOp{Decisions: []*wire.Decision{
		decision("activate pg=1 epoch=5 persisted=1:31:9,2:32:9"), decision("down store=1 mark=31 start=1 voters=1"),
	}}}})
	w.apply(&wire.ControlEntry{Entry: &wire.ControlEntry_Register{
		Register: registration(fields{"name": "d1", "mark": "21", "start": "2", "after": "1"}, "store mark=31 start=2 after=1 capacity=7"),
	}})
	if m := w.lives.m; m.PG(1).Active.Epoch != 5 || m.Store(1).Capacity != 7 {
		t.Fatalf("the entries were not carried out: %+v %+v", m.PG(1), m.Store(1))
	}
	if !proto.Equal(before, wire.FromMap(old)) {
		t.Errorf("an earlier map has changed:\n%v\n%v", before, wire.FromMap(old))
	}
}
