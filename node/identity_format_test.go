package node

import (
	"errors"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/meta"
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

// TestRenewal: the mark under which a node joins anew is durable before it is told, and
// stays; what it comes to replaces mark and number at once. Starts that were
// offered meanwhile are kept until then: any of them may be on record.
func TestRenewal(t *testing.T) {
	fs := vfs.NewCrashableMem()
	newMark := numbers(1)
	cluster := dfs.ClusterID{1}
	life := func(do func(id *Identity) error) {
		t.Helper()
		id, err := OpenIdentity(fs, "d", "meta1", 42, newMark)
		if err != nil {
			t.Fatal(err)
		}
		err = do(id)
		crashed := fs.CrashClone(vfs.CrashCloneCfg{})
		if err := errors.Join(err, id.Close()); err != nil {
			t.Fatal(err)
		}
		fs = crashed
	}
	life(func(id *Identity) error {
		if dfs.KindOf(id.Renewed(4, 5)) != dfs.Invalid {
			t.Error("joined anew without being asked")
		}
		return errors.Join(id.Offer(), id.SaveMembership(meta.Membership{Cluster: cluster, Node: 3, Hosted: true}), id.Accept(7))
	})
	var starts []uint64
	for range 3 {
		life(func(id *Identity) error {
			inc, err := id.Renew(uint64(100 + len(starts)))
			if want := (dfs.Incarnation{Mark: 100, Start: id.Incarnation().Start}); inc != want {
				t.Errorf("it asks as %v, want %v", inc, want)
			}
			starts = append(starts, inc.Start)
			// The storage role goes on under the old mark.
			return errors.Join(err, id.Offer(), id.SaveNode(cluster, 3, 8))
		})
	}
	life(func(id *Identity) error {
		l, _ := id.Lineage()
		for _, s := range starts {
			if !l.Holds(s) {
				t.Errorf("%+v lacks %v", l, s)
			}
		}
		if m := id.Membership(); !id.Renewing() || id.Incarnation().Mark != 1 || m.Node != 3 || !m.Hosted {
			t.Errorf("it is %v, %+v", id.Incarnation(), m)
		}
		return id.Renewed(9, 20)
	})
	life(func(id *Identity) error {
		l, since := id.Lineage()
		m := id.Membership()
		if id.Renewing() || id.Incarnation().Mark != 100 || len(l.Offered) != 0 || since != 20 || m != (meta.Membership{Cluster: cluster, Node: 9, Aside: true}) {
			t.Errorf("it is %v, %+v, since %d, %+v", id.Incarnation(), l, since, m)
		}
		return nil
	})
}

// TestInPlace: a disk that is mounted over the directory in which a process was started, a
// new one too, is found out; what the process itself writes there is not.
func TestInPlace(t *testing.T) {
	fs := vfs.NewMem()
	id, err := OpenIdentity(fs, "d", "meta1", 42, numbers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer id.Close()
	if err := errors.Join(id.InPlace(), id.Offer(), id.InPlace()); err != nil {
		t.Error(err)
	}
	for _, mount := range []func() error{
		func() error { return writeSynced(fs, "d/node.json", identityBytes) },
		func() error { return fs.Remove("d/node.json") },
	} {
		if err := mount(); err != nil {
			t.Fatal(err)
		}
		if err := id.InPlace(); dfs.KindOf(err) != dfs.Stale {
			t.Errorf("after another disk was mounted: %v", err)
		}
	}
}
