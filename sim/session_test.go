package sim

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// TestSessionsNeverOpened sends changes in the name of sessions that do not exist
// yet: the next client would get their number, and what was answered to another.
func TestSessionsNeverOpened(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		put(t, p, "/f", "opens a session")
		for _, id := range []uint64{2, 3, 1000, uint64(dfs.MaxSessionID), uint64(dfs.MaxSessionID) + 1, 1 << 63} {
			cmd := &wire.Command{Session: id, Seq: 1, Floor: 1, Cred: &wire.Cred{}, Op: &wire.Command_Mkdir{Mkdir: &wire.MkdirOp{
				Parent: uint64(dfs.RootIno), Name: []byte("forged"), Mode: 0o755,
			}}}
			data, err := proto.Marshal(cmd)
			if err != nil {
				t.Fatal(err)
			}
			refused := 0
			for i := range c.cfg.Metas {
				_, err := wire.NewDRPCMetaClient(p.pool.Conn(c.nodes[i].name+":"+rpcPort)).Mutate(t.Context(), &wire.MutateRequest{Group: uint32(dfs.RootIno.Group()), Command: data})
				switch dfs.KindOf(err) {
				case dfs.Invalid:
					refused++
				case dfs.NotLeader:
				default:
					t.Errorf("session %d: %v", id, err)
				}
			}
			if refused != 1 {
				t.Errorf("session %d was refused by %d leaders", id, refused)
			}
		}
		if _, err := p.Lstat(t.Context(), "/forged"); dfs.KindOf(err) != dfs.NotExist {
			t.Errorf("a forged change: %v", err)
		}
		second := open(t, c, "second")
		defer second.Close()
		if _, err := second.Mkdir(t.Context(), "/forged", 0o755); err != nil {
			t.Error(err)
		}
	})
}
