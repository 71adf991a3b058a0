package control

import (
	"encoding/hex"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// TestRowBytes pins one row of every kind. The bytes are those of
// docs/FORMATS.md: fields are added to them, never changed.
func TestRowBytes(t *testing.T) {
	inc := dfs.Incarnation{Mark: 0xa1, Start: 2}
	node := &dfs.Node{
		ID: 1, Name: "meta1", Addr: "10.0.0.1:7400", Roles: dfs.RoleMeta | dfs.RoleStorage, Incarnation: inc, Release: "v1",
		Labels: map[string]string{"zone": "z", "rack": "r"},
	}
	store := &dfs.Store{ID: 3, Node: 1, Incarnation: inc, Capacity: 1 << 40, State: dfs.StoreDown, StateSince: 1000}
	pg := &dfs.PG{
		ID: 7, Class: dfs.Replicated(3), Target: []dfs.StoreID{1, 2, 3},
		Active: dfs.ActingSet{Epoch: 5, Stores: []dfs.StoreID{1, 2}}, Proposed: dfs.ActingSet{Epoch: 9, Stores: []dfs.StoreID{1, 2, 3}},
		Members: []dfs.Member{{Store: 1, Mark: 0xb1, Complete: 5, Joined: 4}},
	}
	state := &wire.ControlState{
		Form: &wire.FormOp{
			Cluster: make([]byte, 16), Groups: 8, DefaultClass: "rep3", BlockSize: dfs.DefaultBlockSize, Metas: []string{"meta1"},
			PgsPerClass: 256, Grace: 600_000,
		},
		Epoch: 9, LastNode: 1, LastStore: 3, LastPg: 256, LastSession: 5, SessionIndex: 6, Now: 1000, Formed: true, Revision: 12,
		LastGroup: 8, Classes: []string{"rep2"}, Settings: []*wire.ClassSetting{wire.FromClassSetting(dfs.ClassSetting{Class: dfs.Replicated(3), Codec: dfs.CodecZstd})},
	}
	session := &wire.SessionRow{Holder: "h", Mark: 0xc1, Opened: 1000, Expiring: true}
	marshal := func(m proto.Message) []byte {
		b, err := deterministic.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		name       string
		key, value []byte
		want       string // key, a space, value; in hexadecimal
	}{
		{"state", stateKey, marshal(state),
			"61 0a2d0a100000000000000000000000000000000010081a047265703320808080022a056d6574613130800238c0cf241009180120032880023005380640e8074801500c5a047265703262080a047265703310026808"},
		{"node", key32(tagNode, 1), marshal(&wire.NodeRow{Node: wire.FromNode(node)}),
			"6e00000001 0a42080112056d657461311a0d31302e302e302e313a3734303020032a0c08a101110200000000000000320276313a090a047261636b1201723a090a047a6f6e6512017a"},
		{"store", key32(tagStore, 3), marshal(wire.FromStore(store)),
			"7300000003 080310011a0c08a10111020000000000000020808080808020280230e807"},
		{"placement group", key32(tagPG, 7), marshal(wire.FromPG(pg)),
			"7000000007 08071204726570331a0301020322060805120201022a07080912030102033209080110b10118052004"},
		{"group", key32(tagGroup, 9), marshal(wire.FromGroup(&dfs.Group{ID: 9, Founder: 2, Replicas: []dfs.NodeID{1, 2, 5}})),
			"6700000009 080910021a03010205"},
		{"session", key64(tagSession, 5), marshal(session),
			"760000000000000005 0a016810c10118e8072001"},
		{"mark of a session", key64(tagSessionMark, 0xc1), key64(0, 5)[1:],
			"7700000000000000c1 0000000000000005"},
		{"mark of a node", key64(tagIncarnations, 0xa1), (&markRow{kind: markOfNode, id: 1, barred: []uint64{0xd1}}).encode(),
			"6900000000000000a1 6e0000000100000000000000d1"},
		{"mark of a store", key64(tagIncarnations, 0xb1), (&markRow{kind: markOfStore, id: 3}).encode(),
			"6900000000000000b1 7300000003"},
	} {
		if got := hex.EncodeToString(c.key) + " " + hex.EncodeToString(c.value); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}
