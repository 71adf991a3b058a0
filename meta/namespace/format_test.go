package namespace

import (
	"encoding/hex"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// TestRowBytes pins one row of every kind. The bytes are those of
// docs/FORMATS.md: they never change for row format 1.
func TestRowBytes(t *testing.T) {
	const version = dfs.Version(0x0192_0000_0000_0003)
	file, dir, far := dfs.MakeIno(1, 0x102), dfs.MakeIno(1, 0x103), dfs.MakeIno(2, 9)
	block := dfs.BlockID{PG: 7, Ino: file, Session: 5, Counter: 6}
	times := inode{atime: 1, mtime: 2, ctime: 3, version: version}

	f := times
	f.ino, f.typ, f.mode, f.uid, f.gid, f.nlink, f.size, f.class = file, wire.FileType_FILE, 0o644, 1000, 100, 1, 300, "rep3"
	h := f
	h.home = dir
	d := times
	d.ino, d.typ, d.mode, d.nlink, d.parent, d.level, d.frozen = dir, wire.FileType_DIR, 0o1755, 2, dfs.RootIno, 1, true
	l := times
	l.ino, l.typ, l.mode, l.nlink, l.size, l.target = dfs.MakeIno(1, 0x104), wire.FileType_SYMLINK, 0o777, 1, 2, []byte("to")

	entry := &dentry{ino: file, typ: wire.FileType_FILE, version: version}
	x := &extent{offset: 0, end: 300, block: block, blockOffset: 10, blockLength: 400, version: version}
	fence := &fenceRow{highest: 9, index: 8, live: append(key16(0, 2, 3)[1:], key16(0, 7, 9)[1:]...)}
	intent := &Intent{Child: far, Parent: dfs.RootIno, Name: []byte("a"), Kind: IntentRmdir, Session: 5, Version: version}
	var lease leaseRow
	lease.flip(0x102)
	lease.flip(0x1ff)
	reply, err := encodeRefusal(&refusal{kind: dfs.Exist, text: "no"}, version)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(reply, &wire.Result{}); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		name       string
		key, value []byte
		want       string // key, a space, value; in hexadecimal
	}{
		{"account", accountKey(dir), (&account{below: sums{300, 2, 1}}).append(nil),
			"610001000000000103 0100ac020201"},
		{"account in the queue", accountKey(dir), (&account{below: sums{300, 2, 1}, queued: true, told: sums{0, 1, 1}}).append(nil),
			"610001000000000103 0101ac020201000101"},
		{"account that is reported", accountKey(dir), (&account{below: sums{300, 2, 1}, queued: true, elsewhere: true, since: version - 1, changed: version}).append(nil),
			"610001000000000103 0103ac02020101920000000000020192000000000003"},
		{"block", blockKey(block), (&blockRow{count: 2, length: 400}).append(nil),
			"620001000000000102000000070001000000000102000000000005000000000006 01029003"},
		{"child", childKey(far), (&childRow{parent: dfs.RootIno, name: []byte("a")}).append(nil),
			"630002000000000009 01000100000000000161"},
		{"dentry", dentryKey(dfs.RootIno, []byte("a")), entry.append(nil),
			"64000100000000000161 010101920000000000030001000000000102"},
		{"extent", extentKey(file, x.end), x.append(nil),
			"650001000000000102000000000000012c 010192000000000003000000070001000000000102000000000005000000000006ac020a9003"},
		{"fence", []byte{tagFence}, fence.append(nil),
			"66 01000000000000000900000000000000080000000000000002000000000000000300000000000000070000000000000009"},
		{"floor", floorKey(5), floorRow{floor: 4, last: 6}.append(nil),
			"6f0000000000000005 0100000000000000040000000000000006"},
		{"counting", []byte{tagCount}, countRow{raised: version, next: inodeKey(file)}.append(nil),
			"67 010192000000000003690001000000000102"},
		{"history of an entry", historyKey(version+1, dentryKey(dfs.RootIno, []byte("a"))), append([]byte{endedRemoved}, entry.append(nil)...),
			"68019200000000000464000100000000000161 01010101920000000000030001000000000102"},
		{"inode of a file", inodeKey(file), f.append(nil),
			"690001000000000102 0101000192000000000003000000000000000100000000000000020000000000000003a403e8076401ac020472657033"},
		{"inode of a file with a home", inodeKey(file), h.append(nil),
			"690001000000000102 0101040192000000000003000000000000000100000000000000020000000000000003a403e8076401ac0204726570330001000000000103"},
		{"inode of a directory", inodeKey(dir), d.append(nil),
			"690001000000000103 0102010192000000000003000000000000000100000000000000020000000000000003ed070000020000000100000000000101"},
		{"inode of a symlink", inodeKey(l.ino), l.append(nil),
			"690001000000000104 0103000192000000000003000000000000000100000000000000020000000000000003ff030000010200746f"},
		{"intent", intentKey(far), intent.append(nil),
			"6e0002000000000009 010200000000000000050192000000000003000100000000000161"},
		{"lock", lockKey(dentryKey(dfs.RootIno, []byte("a"))), (&lockRow{exclusive: true, holders: []holder{{3, version - 1}}}).append(nil),
			"6b64000100000000000161 010200030192000000000002"},
		{"lock of two", lockKey(inodeKey(dfs.RootIno)), (&lockRow{holders: []holder{{3, version - 1}, {4, 7}}}).append(nil),
			"6b690001000000000001 01010003019200000000000200040000000000000007"},
		{"lease", leaseKey(5, 0x102/leaseChunk), append([]byte{rowFormat}, lease[:]...),
			"6c00000000000000050000000000000001 010400000000000000000000000000000000000000000000000000000000000080"},
		{"mark", markKey(5), key8(rowFormat, 6),
			"6d0000000000000005 010000000000000006"},
		{"part", partKey(holder{3, version - 1}), message(t, &wire.TxnIntent{
			Txn: &wire.TxnID{Group: 3, Session: 5, Seq: 6, Begun: uint64(version - 1)}, Floor: uint64(version),
			Share: &wire.TxnShare{Steps: []*wire.TxnStep{{Step: &wire.TxnStep_Links{Links: &wire.LinksStep{Ino: uint64(file), Less: true}}}}},
		}),
			"7000000000000000030192000000000002 010a100803100518062082808080808080c9011083808080808080c901220e0a0c220a08828280808080401001"},
		{"transaction", txnKey(5, 6), message(t, &wire.TxnRecord{
			Begun: uint64(version - 1), Deadline: uint64(version), Parts: []*wire.TxnPart{{Group: 2, Floor: uint64(version)}}, Committed: uint64(version),
		}),
			"7400000000000000050000000000000006 010882808080808080c9011083808080808080c901220c08021883808080808080c9012883808080808080c901"},
		{"queue", queueKey(block), []byte{rowFormat},
			"71000000070001000000000102000000000005000000000006 01"},
		{"reply", replyKey(5, 6), reply,
			"7200000000000000050000000000000006 080212026e6f1883808080808080c901"},
		{"state", []byte{tagState}, (&state{group: 1, version: version, trimmed: version - 1, next: 0x105, inodes: 4, defaultClass: "rep3", recovered: 300, unfenced: true}).append(nil),
			"73 010192000000000003019200000000000201850204ac020172657033"},
		{"state with a feature level", []byte{tagState}, (&state{group: 1, version: version, trimmed: version - 1, next: 0x105, inodes: 4, defaultClass: "rep3", level: 1, locks: 300, parts: 2, txns: 1, untold: 7, counting: true}).append(nil),
			"73 010192000000000003019200000000000201850204000601ac0202010772657033"},
		{"untold size of a file", untoldKey(file), untoldRow{told: 300}.append(tagUntold),
			"750001000000000102 01ac02"},
		{"untold directory", untoldKey(dir), []byte{rowFormat},
			"750001000000000103 01"},
		{"file that is reported", reportKey(file), untoldRow{changed: version}.append(tagReport),
			"760001000000000102 010192000000000003"},
		{"absorbed", absorbedKey(far, dir), (&absorbedRow{since: version - 1, seq: version, count: 1, sums: sums{300, 2, 1}}).append(nil),
			"7800020000000000090001000000000103 010192000000000002019200000000000301ac020201"},
		{"names", nameKey(file, far), nameRow{since: version, count: 2}.append(nil),
			"7900010000000001020002000000000009 01019200000000000302"},
		{"sweep", []byte{tagSweep}, []byte{rowFormat},
			"77 01"},
	} {
		if got := hex.EncodeToString(c.key) + " " + hex.EncodeToString(c.value); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
		if again, err := recode(c.key, c.value); err != nil || string(again) != string(c.value) {
			t.Errorf("%s is read back as %x, %v", c.name, again, err)
		}
	}
}

func message(t *testing.T, m proto.Message) []byte {
	t.Helper()
	row, err := protoRow(m)
	if err != nil {
		t.Fatal(err)
	}
	return row
}
