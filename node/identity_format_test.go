package node

import (
	"errors"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
)

// identityBytes is a node.json of docs/FORMATS.md. A release may add fields to
// format 1; it reads this file for ever.
const identityBytes = `{"format":1,"name":"meta1","mark":"1122334455667788","accepted":"112233445566778a","since":7,"offered":["112233445566778b","112233445566778c"],"cluster":"000102030405060708090a0b0c0d0e0f","node":2,"hosted":true}
crc32c a410c5bd
`

// numbers draws numbers one after the other.
func numbers(first uint64) func() uint64 {
	first--
	return func() uint64 { first++; return first }
}

func TestIdentityBytes(t *testing.T) {
	fs := vfs.NewMem()
	newMark := numbers(0x1122334455667788)
	for n := range 4 {
		id, err := OpenIdentity(fs, "d", "meta1", 42, newMark)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 { // the first start reaches nobody
			err = errors.Join(id.Offer(), id.Offer())
		}
		if n == 1 {
			err = errors.Join(err, id.SaveNode(dfs.ClusterID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, 2, 7))
		}
		if m := id.Membership(); n > 0 {
			m.Hosted = true
			err = errors.Join(err, id.SaveMembership(m))
		}
		if err := errors.Join(err, id.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"d/node.json": identityBytes, "d/PID": "42\n"} {
		if got, err := readFile(fs, name); err != nil || string(got) != want {
			t.Errorf("%s, %v:\n got %s\nwant %s", name, err, got, want)
		}
	}
}

// TestOfferIsDurable: an offer is on the disk when Offer returns, and nothing of
// it before; a start that offers nothing leaves no trace.
func TestOfferIsDurable(t *testing.T) {
	fs := vfs.NewCrashableMem()
	newMark := numbers(1)
	want := dfs.Lineage{}
	for n := range 9 {
		id, err := OpenIdentity(fs, "d", "meta1", 42, newMark)
		if err != nil {
			t.Fatal(err)
		}
		got, since := id.Lineage()
		if !slices.Equal(got.Offered, want.Offered) || got.Accepted != want.Accepted || (since != 0) != (got.Accepted != 0) {
			t.Errorf("start %d knows %v since %d, want %v", n, got, since, want)
		}
		start := id.Incarnation().Start
		if n%3 != 0 {
			err = id.Offer()
			want = want.Offer(start)
		}
		if n == 5 {
			err = errors.Join(err, id.Accept(9))
			want = dfs.Lineage{Accepted: start}
		}
		crashed := fs.CrashClone(vfs.CrashCloneCfg{})
		if err := errors.Join(err, id.Close()); err != nil {
			t.Fatal(err)
		}
		fs = crashed
	}
}

func TestReadIdentity(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       dfs.Kind // 0: no error
	}{
		{"as documented", identityBytes, 0},
		{"with a field of a later release", sealed(`{"format":1,"name":"meta1","mark":"0000000000000005","later":true}`), 0},
		{"of another format", sealed(`{"format":2,"name":"meta1","mark":"0000000000000005"}`), dfs.Unsupported},
		{"of another node", sealed(`{"format":1,"name":"meta2","mark":"0000000000000005"}`), dfs.Invalid},
		{"without a mark", sealed(`{"format":1,"name":"meta1"}`), dfs.Corrupt},
		{"with a number of an earlier form", sealed(`{"format":1,"name":"meta1","mark":"1234605616436508552","start":3}`), dfs.Corrupt},
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
			if inc := id.Incarnation(); inc.Start != 9 || inc.Mark == 0 {
				t.Errorf("incarnation %v", inc)
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
