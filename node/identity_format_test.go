package node

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/meta"
)

// identityBytes is a node.json of docs/FORMATS.md. A release may add fields to
// format 1; it reads this file for ever.
const identityBytes = `{"format":1,"name":"meta1","mark":"1234605616436508552","start":3,"cluster":"000102030405060708090a0b0c0d0e0f","node":2,"hosted":true}
crc32c 73e87f1b
`

func TestIdentityBytes(t *testing.T) {
	fs := vfs.NewMem()
	newMark := func() uint64 { return 0x1122334455667788 }
	for range 3 {
		id, err := OpenIdentity(fs, "d", "meta1", 42, newMark)
		if err != nil {
			t.Fatal(err)
		}
		err = id.SaveMembership(meta.Membership{
			Cluster: dfs.ClusterID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, Node: 2, Hosted: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := id.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"d/node.json": identityBytes, "d/PID": "42\n"} {
		if got, err := readFile(fs, name); err != nil || string(got) != want {
			t.Errorf("%s, %v:\n got %s\nwant %s", name, err, got, want)
		}
	}
}

func TestReadIdentity(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       dfs.Kind // 0: no error
	}{
		{"as documented", identityBytes, 0},
		{"with a field of a later release", sealed(`{"format":1,"name":"meta1","mark":"5","start":3,"later":true}`), 0},
		{"of another format", sealed(`{"format":2,"name":"meta1","mark":"5","start":3}`), dfs.Unsupported},
		{"of another node", sealed(`{"format":1,"name":"meta2","mark":"5","start":3}`), dfs.Invalid},
		{"changed by hand", identityBytes[:30] + "9" + identityBytes[31:], dfs.Corrupt},
		{"cut short", identityBytes[:40], dfs.Corrupt},
		{"empty", "", dfs.Corrupt},
		{"no JSON", sealed("{"), dfs.Corrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewMem()
			if err := fs.MkdirAll("d", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := writeSynced(fs, "d/node.json", c.body); err != nil {
				t.Fatal(err)
			}
			id, err := OpenIdentity(fs, "d", "meta1", 1, func() uint64 { return 9 })
			if dfs.KindOf(err) != c.want {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				return
			}
			if inc, found := id.Incarnation(); inc.Start != 4 || found != 3 {
				t.Errorf("start %d, found %d", inc.Start, found)
			}
			if err := id.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func sealed(line string) string { return line + "\n" + checksum(line) + "\n" }

// TestIdentityRefusesDirectories: what is somebody else's is not formatted.
func TestIdentityRefusesDirectories(t *testing.T) {
	fs := vfs.NewMem()
	newMark := func() uint64 { return 9 }
	id, err := OpenIdentity(fs, "d", "meta1", 42, newMark)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenIdentity(fs, "d", "meta1", 43, newMark); dfs.KindOf(err) != dfs.Busy {
		t.Errorf("locked: %v", err)
	}
	if err := id.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fs.MkdirAll("other/photos", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenIdentity(fs, "other", "meta1", 42, newMark); dfs.KindOf(err) != dfs.Invalid {
		t.Errorf("not empty: %v", err)
	}
}
