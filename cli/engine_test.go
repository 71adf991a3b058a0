package cli

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/engine"
)

// engineDir makes a small store: 20 blocks of 30 kB in two PGs, the first of
// them deleted.
func engineDir(t *testing.T) string {
	dir := t.TempDir()
	s, err := engine.Open(engine.Options{
		FS: vfs.Default, Dir: dir, NewMark: func() uint64 { return 0x1122334455667788 }, PID: 4711,
		SegmentSize: 256 << 10, ReserveBytes: 1 << 20, Capacity: 64 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetEpochs(3, []engine.PGEpoch{{PG: 1, Newest: 3}, {PG: 2, Newest: 3}}); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(20) {
		id := dfs.BlockID{PG: dfs.PGID(1 + n%2), Ino: dfs.MakeIno(1, 2), Session: 5, Counter: n}
		p := make([]byte, 30_000)
		p[0] = byte(n)
		info := dfs.BlockInfo{Length: uint32(len(p)), Chunks: []dfs.Chunk{{Len: uint32(len(p)), Sum: dfs.ChunkSum(id, 0, 0, p)}}}
		if err := s.Put(context.Background(), engine.PutRequest{ID: id, Epoch: 3, Info: info, Payload: p, Hint: dfs.Hint{Ino: id.Ino, Offset: int64(n) * 30_000}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(context.Background(), engine.DeleteRequest{ID: dfs.BlockID{PG: 1, Ino: dfs.MakeIno(1, 2), Session: 5}, Epoch: 3}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestEngineVerbs runs the offline tools on a sound store, on one with damage,
// and where there is none.
func TestEngineVerbs(t *testing.T) {
	spoil := func(name string, at int64) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			var p [1]byte
			_, err = f.ReadAt(p[:], at)
			p[0] ^= 1
			_, err2 := f.WriteAt(p[:], at)
			if err := errors.Join(err, err2, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	sound := func(*testing.T, string) {}
	lost := func(t *testing.T, dir string) {
		if err := errors.Join(os.RemoveAll(filepath.Join(dir, "index")), os.Remove(filepath.Join(dir, "segments/0000000000000002.seg"))); err != nil {
			t.Fatal(err)
		}
	}
	const first = "segments/0000000000000001.seg"
	for _, c := range []struct {
		name   string
		spoil  func(t *testing.T, dir string)
		args   string
		code   int
		stdout []string // parts of it
		stderr []string // parts of it; empty: nothing at all
	}{
		{"stats", sound, "stats DIR", 0, []string{"blocks      19, 557 KiB, stored in 557 KiB\n", "tombstones  1\n", "1        log     sealed  256 KiB  228 KiB  ", "  177 KiB  51.4 KiB  77 %"}, nil}, // how wide a column is depends on the segments that are ready
		{"ls", sound, "ls DIR", 0, []string{"1/1:2/5/18 ", "2/1:2/5/1  ", "30000     30000 none               1:36928  -\n"}, nil},
		{"ls of one PG", sound, "ls --pg pg1 --all DIR", 0, []string{"1/1:2/5/0                            0       3         0         0 -                 3:200768  tombstone\n"}, nil},
		{"verify", sound, "verify DIR", 0, []string{"read 3 segments with 21 records in 21 batches, 656 KiB in "}, nil},
		{"dump", sound, "dump DIR 1", 0, []string{
			"           0  header       segment 1 of store mark 1122334455667788, 262144 bytes\n",
			"       36864  batch        32768 bytes, 1 record from #2, durable below 36864\n",
			"       36928    put        #2 block 2/1:2/5/1 epoch 3, 30000 bytes, stored 30000 in 1 chunk (none), for inode 1:2 at 30000\n",
			"      261632  footer       7 entries, the log ends at 233472\n"}, nil},
		{"dump by name", sound, "dump DIR 0000000000000003.seg", 0, []string{"      200768    tombstone  #21 block 1/1:2/5/0 epoch 3\n"}, nil},
		{"dump nothing", sound, "dump DIR 99", 1, nil, []string{"dfsd: engine dump DIR: it has no segment 99; see dfsd engine stats"}},
		{"rebuild", sound, "rebuild-index DIR", 0, []string{"19 blocks, 1 tombstone from 3 segments with 644 KiB of log in "}, nil},

		{"verify payload", spoil(first, 40_000), "verify DIR", 1,
			[]string{"wrong: segments/0000000000000001.seg at 36928: block 2/1:2/5/1: the checksum of chunk 0 at 37064 is wrong\n"}, []string{"dfsd: engine verify DIR: 1 thing is wrong\n"}},
		{"dump payload", spoil(first, 40_000), "dump DIR 1", 1, []string{"for inode 1:2 at 30000  !! the checksum of chunk 0 at 37064 is wrong\n"}, []string{"1 thing is wrong"}},
		{"rebuild header", spoil(first, 36_950), "rebuild-index DIR", 1, []string{"19 blocks, 1 tombstone"},
			[]string{"wrong: segment 1 at 36928: block 2/1:2/5/1: the record's header is damaged\n", "dfsd: engine rebuild-index DIR: the index is made, and 1 place in the segments is damaged\n"}},
		{"ls slot", spoil("STORE", 30), "ls DIR", 1, []string{"2/1:2/5/1 "}, []string{"wrong: STORE at 0: slot 0 is damaged\n", "dfsd: engine ls DIR: 1 thing is wrong\n"}},
		{"dump nothing as an object", sound, "dump --json DIR 99", 1, []string{`"errors":[{"path":"DIR","error":"it has no segment 99"}]}`}, []string{"it has no segment 99; see dfsd engine stats"}},
		{"stats of a lost segment", lost, "stats DIR", 1, []string{"incomplete  records are lost that nobody can name: once started the store is filled again\n"}, []string{"wrong: a start says: store is incomplete"}},
		{"verify a lost segment", lost, "verify --json DIR", 1, []string{`{"file":"segments/0000000000000002.seg","segment":2,"offset":0,"length":0,"known":false,"text":"the segment is missing"}`},
			[]string{"dfsd: engine verify DIR: 3 things are wrong\n"}},
		{"rebuild with a lost segment", lost, "rebuild-index DIR", 1, []string{"12 blocks, 1 tombstone from 2 segments"},
			[]string{"wrong: segment 2 is missing\n", "dfsd: engine rebuild-index DIR: the index is made, and records are lost that nobody can name: the cluster will fill the store again\n"}},
		{"rebuild with a lost segment as an object", lost, "rebuild-index --json DIR", 1, []string{`"damaged_unnamed":true,"missing":[[2,2]],"damage":[]`}, []string{"wrong: segment 2 is missing\n"}},
		{"no store", func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}, "stats DIR", 1, nil, []string{"dfsd: engine stats DIR: there is no such directory; give the directory of one store, which has the files STORE, EPOCH and MARK\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := engineDir(t)
			c.spoil(t, dir)
			args := strings.Fields("engine " + strings.Replace(c.args, "DIR", dir, 1))
			code, stdout, stderr := run(t.Context(), Process{}, args...)
			stdout, stderr = strings.ReplaceAll(stdout, dir, "DIR"), strings.ReplaceAll(stderr, dir, "DIR")
			wrong := code != c.code || len(c.stderr) == 0 && stderr != ""
			for _, part := range c.stdout {
				wrong = wrong || !strings.Contains(stdout, part)
			}
			for _, part := range c.stderr {
				wrong = wrong || !strings.Contains(stderr, part)
			}
			if wrong {
				t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", code, c.code, stdout, stderr)
			}
			if c.code == 0 {
				code, stdout, stderr = run(t.Context(), Process{}, append(args, "--json")...)
				var v map[string]any
				if err := json.Unmarshal([]byte(stdout), &v); err != nil || v["version"] != 1.0 || code != 0 || stderr != "" {
					t.Errorf("%v: exit code %d\nstdout: %s\nstderr: %s", err, code, stdout, stderr)
				}
			}
		})
	}
}

// TestEngineLock: a directory that a process uses is refused, and the error says
// which process.
func TestEngineLock(t *testing.T) {
	dir := engineDir(t)
	s, err := engine.Open(engine.Options{FS: vfs.Default, Dir: dir, NewMark: newMark, PID: 4711, SegmentSize: 256 << 10, ReserveBytes: 1 << 20, Capacity: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"stats", "ls", "verify", "rebuild-index"} {
		code, _, stderr := run(t.Context(), Process{}, "engine", verb, dir)
		if code != 1 || !strings.Contains(stderr, "the directory is in use by process 4711") || !strings.HasSuffix(stderr, "; stop it first\n") {
			t.Errorf("%s: exit code %d, %s", verb, code, stderr)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
