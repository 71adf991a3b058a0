package meta

import (
	"testing"

	"dfsd/dfs"
	"dfsd/raftgroup"
)

// TestUnreadableSurvivorIsTold: of a replica that cannot be read the reply says that, and
// nothing that could be taken for what it has.
func TestUnreadableSurvivorIsTold(t *testing.T) {
	rot := dfs.Errorf(dfs.Corrupt, "read raft log", "rot")
	got := survivorOf(&raftgroup.Survivor{Group: 3, Unreadable: rot})
	if got.Group != 3 || got.Unreadable != rot.Error() || got.Last != 0 || got.Hash != nil || got.Unfit != "" {
		t.Errorf("said of an unreadable replica: %v", got)
	}
	got = survivorOf(&raftgroup.Survivor{Group: 3, Last: 9, Unfit: rot})
	if got.Last != 9 || got.Unreadable != "" || got.Unfit != rot.Error() {
		t.Errorf("said of an unfit one: %v", got)
	}
}
