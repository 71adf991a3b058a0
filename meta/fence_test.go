package meta

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/meta/control"
	"dfsd/transport/wire"
)

// TestFenceFits: however the live sessions are spread, a fence, and the entry
// that ends as many sessions, are commands that a group takes.
func TestFenceFits(t *testing.T) {
	var live []dfs.SessionID
	for i := range control.MaxSessions {
		live = append(live, dfs.MaxSessionID-dfs.SessionID(2*(control.MaxSessions-i)))
	}
	for _, m := range []proto.Message{
		&wire.LogEntry{Version: 1 << 62, Entry: &wire.LogEntry_Fence{Fence: &wire.FenceOp{Highest: uint64(dfs.MaxSessionID), Live: ranges(live), Index: 1 << 62}}},
		&wire.ControlEntry{Now: 1 << 62, Entry: &wire.ControlEntry_Expired{Expired: &wire.ExpiredOp{Sessions: sessionInts(live), Index: 1 << 62}}},
	} {
		if n := proto.Size(m); n > MaxCommand {
			t.Errorf("an entry of %d bytes about %d sessions: at most %d", n, len(live), MaxCommand)
		}
	}
}
