package meta

import (
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// TestWhatIsSaidIsSent: what a node says of its disk and of damage may name paths of
// any bytes, and is cut anywhere. None of it may keep a message from being sent.
func TestWhatIsSaidIsSent(t *testing.T) {
	long := "x" + strings.Repeat("é", maxDamage)
	r := newRegistry(&Service{})
	r.ail(&wire.RegisterRequest{Name: "m1", Replaces: 1, Damage: clip(long)}, dfs.Errorf(dfs.Unavailable, "register", "\xff is down"))
	sp := newSpace(&Service{opts: Options{Dir: "/srv/\xff", FS: withSpace{vfs.NewMem()}, Identity: stranger{}}})
	sp.look()
	for what, m := range map[string]proto.Message{
		"a registration that was cut": &wire.RegisterRequest{Damage: clip(long)},
		"one that was not":            &wire.RegisterRequest{Damage: clip("\xff")},
		"notes":                       &wire.StatusReply{Notes: r.ailments()},
		"a disk":                      sp.disk(),
	} {
		if data, err := proto.Marshal(m); err != nil || len(data) == 0 {
			t.Errorf("%s: %d bytes, %v", what, len(data), err)
		}
	}
}

type withSpace struct{ vfs.FS }

func (withSpace) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: 1 << 30, TotalBytes: 1 << 31}, nil
}
