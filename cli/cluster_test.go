package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/meta"
	"dfsd/node"
	"dfsd/transport"
)

// cluster is one process with both roles, on a disk and a network in memory, and
// the command line beside it.
type cluster struct {
	t    *testing.T
	proc Process
	net  *transport.Memory
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	network := transport.NewMemory(transport.MemoryOptions{Seed: 1})
	marks := rand.New(rand.NewPCG(1, 2))
	o := node.Options{
		FS: vfs.NewMem(), Network: network.Host("solo"), Name: "solo", Roles: dfs.RoleMeta | dfs.RoleStorage, Listen: "solo:7400", Dir: "data",
		PID: 1, Insecure: true, Release: "test", NewMark: func() uint64 { return marks.Uint64() | 1 },
		Peers:  []meta.Peer{{Name: "solo", Addr: "solo:7400"}},
		Engine: engine.Options{SegmentSize: 4 << 20, CacheSize: 1 << 20, MemTableSize: 256 << 10, Capacity: 4 << 30},
	}
	o.Meta.Groups, o.Meta.PGsPerClass, o.Meta.DefaultClass, o.Meta.BlockSize = 4, 8, dfs.Replicated(1), 128<<10
	o.Meta.Raft.Tick, o.Meta.Raft.CacheSize, o.Meta.Raft.MemTableSize = 20*time.Millisecond, 1<<20, 256<<10
	n, err := node.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, net: network, proc: Process{Network: network.Host("client"), Env: []string{"DFSD_META=solo:7400", "DFSD_TIMEOUT=5m"}}}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	c.ok("status", "--wait", "full")
	return c
}

func (c *cluster) run(args ...string) (code int, stdout, stderr string) {
	c.t.Helper()
	return run(c.t.Context(), c.proc, args...)
}

// ok runs what has to succeed, and returns what it printed.
func (c *cluster) ok(args ...string) string {
	c.t.Helper()
	code, stdout, stderr := c.run(args...)
	if code != 0 {
		c.t.Fatalf("dfsd %q: exit code %d: %s", args, code, stderr)
	}
	return stdout
}

// no runs what has to fail, with a text in the error.
func (c *cluster) no(code int, text string, args ...string) {
	c.t.Helper()
	got, _, stderr := c.run(args...)
	if got != code || !strings.Contains(stderr, text) {
		c.t.Errorf("dfsd %q: exit code %d, want %d and %q: %s", args, got, code, text, stderr)
	}
}

// when is a time with nanoseconds.
func when() time.Time { return time.Date(2020, 2, 29, 12, 34, 56, 123456789, time.UTC) }

// makeTree makes what a copy can get wrong.
func makeTree(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	rnd := rand.NewChaCha8([32]byte{9})
	file := func(name string, size int, mode uint32) {
		t.Helper()
		p := filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(p), 0o755))
		b := make([]byte, size)
		_, _ = rnd.Read(b)
		must(os.WriteFile(p, b, 0o600))
		must(os.Chtimes(p, when(), when()))
		must(unix.Chmod(p, mode))
	}
	for _, n := range []int{0, 1, 128<<10 - 1, 128 << 10, 128<<10 + 1, 1 << 20} {
		file(fmt.Sprintf("sizes/%d", n), n, 0o644)
	}
	for _, m := range []uint32{0o400, 0o555, 0o4755, 0o1777, 0o2711} {
		file(fmt.Sprintf("modes/%04o", m), 10, m)
	}
	for _, name := range []string{strings.Repeat("n", 255), "new\nline", "latin-\xe9-\xff", "-dash", " ", ".hidden"} {
		file("names/"+name, 10, 0o644)
	}
	file("hard/one", 1000, 0o644)
	must(os.Link(filepath.Join(dir, "hard/one"), filepath.Join(dir, "hard/two")))
	must(os.Link(filepath.Join(dir, "hard/one"), filepath.Join(dir, "hard/three")))
	must(os.Mkdir(filepath.Join(dir, "links"), 0o755))
	for name, target := range map[string]string{"dangling": "no/where", "rel": "../sizes/1", "abs": "/etc", "odd": "a\nb\xff"} {
		p := filepath.Join(dir, "links", name)
		must(os.Symlink(target, p))
		must(unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: 5, Nsec: 6}, {Sec: 7, Nsec: 8}}, unix.AT_SYMLINK_NOFOLLOW))
	}
	must(os.MkdirAll(filepath.Join(dir, "empty/a/b"), 0o755))
	file("closed/file", 10, 0o444)
	for i := range 40 {
		file(fmt.Sprintf("many/%d/%d", i%7, i), i, 0o644)
	}
	must(unix.Chmod(filepath.Join(dir, "closed"), 0o555))
	must(unix.Chmod(filepath.Join(dir, "empty/a"), 0o1777))
	for _, sub := range []string{"closed", "empty/a", "names", "."} {
		must(os.Chtimes(filepath.Join(dir, sub), when(), when()))
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, "closed"), 0o755) }) // or it stays
}

// list describes a tree: one line an entry.
func list(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	inodes := map[uint64]int{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%q %o %d.%09d", rel, st.Mode, st.Mtim.Sec, st.Mtim.Nsec)
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if _, known := inodes[st.Ino]; !known {
				inodes[st.Ino] = len(inodes)
			}
			line += fmt.Sprintf(" %d links of #%d, %d bytes %x", st.Nlink, inodes[st.Ino], len(b), dfs.ChunkSum(dfs.BlockID{}, 0, 0, b))
		case !info.IsDir():
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" -> %q", target)
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

func same(t *testing.T, what, want, got string) {
	t.Helper()
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for _, line := range w {
		if !slices.Contains(g, line) {
			t.Errorf("%s: %s did not come back", what, line)
		}
	}
	for _, line := range g {
		if !slices.Contains(w, line) {
			t.Errorf("%s: %s came back", what, line)
		}
	}
}

// TestTreeRoundTrip stores a tree, copies it, and fetches both.
func TestTreeRoundTrip(t *testing.T) {
	c := startCluster(t)
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	makeTree(t, src)
	want := list(t, src)
	var sum struct {
		Files, Directories, Symlinks, Failed int
		HardLinks                            int `json:"hard_links"`
		Errors                               []any
	}
	out := c.ok("put", "-r", "--json", src, "/a")
	if err := json.Unmarshal([]byte(out), &sum); err != nil || sum.Files != 59 || sum.Directories != 18 || sum.Symlinks != 4 || sum.HardLinks != 2 || sum.Failed != 0 {
		t.Errorf("%v: %s", err, out)
	}
	c.ok("put", "-r", src, "/")       // as /src
	c.ok("put", "-r", src+"/.", "/a") // over what is there
	if out := c.ok("ls", "/"); out != "a\nsrc\n" {
		t.Errorf("stored %q", out)
	}
	for i, get := range [][]string{{"get", "-r", "/a"}, {"get", "-r", "-j1", "/a/"}} {
		back := filepath.Join(dir, fmt.Sprint("back", i))
		c.ok(append(get, back)...)
		same(t, fmt.Sprint(get), want, list(t, back))
		c.ok(append(get, dir)...) // into it, as dir/a
		same(t, "into", want, list(t, filepath.Join(dir, "a")))
		c.ok("get", "-r", "/a/.", back) // over what is there
		same(t, "over", want, list(t, back))
		if err := os.Chmod(filepath.Join(back, "closed"), 0o755); err != nil {
			t.Error(err)
		}
	}
	_ = os.Chmod(filepath.Join(dir, "a/closed"), 0o755) // or it stays

	if _, _, stderr := c.run("cp", "-r", "/a", "/b"); !strings.Contains(stderr, "59 files") {
		t.Error(stderr)
	}
	c.ok("get", "-r", "/b", filepath.Join(dir, "b"))
	same(t, "copy", want, list(t, filepath.Join(dir, "b")))
	_ = os.Chmod(filepath.Join(dir, "b/closed"), 0o755) // or it stays

	c.ok("rm", "-r", "/a", "/b", "/src")
	if out := c.ok("ls", "-a", "/"); out != "" {
		t.Errorf("left: %q", out)
	}
}

// TestPutReports: what cannot be stored is reported, and the rest is stored.
func TestPutReports(t *testing.T) {
	c := startCluster(t)
	dir := t.TempDir()
	for _, sub := range []string{"t/a", "t/b"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "t/a/f"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "t/pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.no(1, "/t/pipe: skipped: a named pipe cannot be stored", "put", "-r", filepath.Join(dir, "t"), "/t")
	if out := c.ok("cat", "/t/a/f"); out != "hello" {
		t.Errorf("stored %q", out)
	}
	c.no(1, "is a directory; use -r", "put", filepath.Join(dir, "t"), "/u")
	c.no(1, "no such file", "put", filepath.Join(dir, "none"), "/u")

	// Further names of a file in directories of other groups.
	for i := range 8 {
		sub := filepath.Join(dir, fmt.Sprint("h/", i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(filepath.Join(dir, "t/a/f"), filepath.Join(sub, "f")); err != nil {
			t.Fatal(err)
		}
	}
	c.ok("put", "-r", filepath.Join(dir, "h"), "/h")
	if out := c.ok("stat", "/h/3/f"); !strings.Contains(out, "Links: 8") {
		t.Errorf("%s", out)
	}
	for i := range 8 {
		if out := c.ok("cat", fmt.Sprintf("/h/%d/f", i)); out != "hello" {
			t.Errorf("name %d: %q", i, out)
		}
	}
}

// TestClobber: files are replaced, or spared with --no-clobber.
func TestClobber(t *testing.T) {
	c := startCluster(t)
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	for name, text := range map[string]string{one: "1", two: "2"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c.ok("put", one, "/f")
	c.ok("put", "-n", two, "/f")
	if out := c.ok("cat", "/f"); out != "1" {
		t.Errorf("not spared: %q", out)
	}
	c.ok("get", "-n", "/f", two)
	if b, _ := os.ReadFile(two); string(b) != "2" {
		t.Errorf("not spared: %q", b)
	}
	c.ok("put", two, "/f")
	if out := c.ok("cat", "/f", "/f"); out != "22" {
		t.Errorf("not replaced: %q", out)
	}
	c.ok("get", "/f", one)
	if b, _ := os.ReadFile(one); string(b) != "2" {
		t.Errorf("not replaced: %q", b)
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.ok("mkdir", "/d")
	c.no(1, "", "put", "-r", filepath.Join(dir, "d"), "/f")
	c.no(1, "", "get", "-r", "/d", one)
	if out := c.ok("cat", "/f"); out != "2" {
		t.Errorf("changed: %q", out)
	}
}

// TestGetToWhatIsNoFile: a pipe is written to and a symlink followed; neither
// is replaced.
func TestGetToWhatIsNoFile(t *testing.T) {
	c := startCluster(t)
	dir := t.TempDir()
	c.proc.In = strings.NewReader("contents")
	c.ok("mkdir", "/d")
	c.ok("put", "-", "/d/f")
	pipe := filepath.Join(dir, "f")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan string)
	go func() {
		b, err := os.ReadFile(pipe)
		if err != nil {
			b = []byte(err.Error())
		}
		read <- string(b)
	}()
	c.ok("get", "/d/f", pipe)
	if got := <-read; got != "contents" {
		t.Errorf("through the pipe came %q", got)
	}
	c.no(1, "not replaced", "get", "-r", "/d/.", dir)
	if info, err := os.Lstat(pipe); err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Errorf("the pipe is gone: %v, %v", info, err)
	}

	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("target", link); err != nil {
		t.Fatal(err)
	}
	c.ok("get", "/d/f", link)
	if got, err := os.ReadFile(target); string(got) != "contents" || err != nil {
		t.Errorf("%q, %v where the symlink leads", got, err)
	}
	if _, err := os.Readlink(link); err != nil {
		t.Error(err)
	}
}

func TestStandardStreams(t *testing.T) {
	c := startCluster(t)
	text := strings.Repeat("0123456789", 100_000)
	c.proc.In = strings.NewReader(text)
	c.ok("put", "-", "/f")
	if out := c.ok("get", "/f", "-"); out != text {
		t.Errorf("%d bytes of %d", len(out), len(text))
	}
	c.no(1, "needs a name", "put", "-", "/")
	c.no(1, "does not fit into standard output", "get", "/", "-")
}

func TestNames(t *testing.T) {
	c := startCluster(t)
	c.ok("mkdir", "-p", "-m", "700", "/d/e")
	c.proc.In = strings.NewReader("x")
	c.ok("put", "-", "/d/f")
	c.ok("mv", "/d/f", "/d/new\nname")
	c.ok("ln", "/d/new\nname", "/d/second")
	c.ok("ln", "-s", "second", "/d/sym")
	if out := c.ok("cat", "/d/sym"); out != "x" {
		t.Errorf("through the symlink: %q", out)
	}
	c.no(1, "exists", "ln", "-s", "x", "/d/sym")
	c.ok("ln", "-sf", "third", "/d/sym")
	c.no(1, "/d/sym: does not exist", "cat", "/d/sym")
	c.ok("ln", "-f", "/d/second", "/d/sym")
	out := c.ok("ls", "--json", "/d")
	var got struct {
		Version int
		Entries []struct {
			Name, Path, Type, Mode string
			Nlink                  int
		}
		Errors []any
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Version != 1 || got.Errors == nil {
		t.Fatalf("%v: %s", err, out)
	}
	var names []string
	for _, e := range got.Entries {
		names = append(names, fmt.Sprintf("%s %s %s %d", e.Path, e.Type, e.Mode, e.Nlink))
	}
	want := []string{"/d/e directory 0700 2", "/d/new\nname file 0644 3", "/d/second file 0644 3", "/d/sym file 0644 3"}
	if m := umask(); m == 0o22 && !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
	if out := c.ok("ls", "-R", "/"); out != "/:\nd\n\n/d:\ne\nnew\nname\nsecond\nsym\n\n/d/e:\n" {
		t.Errorf("ls -R: %q", out)
	}
	if out := c.ok("tree", "/"); out != "/\n└── d\n    ├── e\n    ├── new\nname\n    ├── second\n    └── sym\n\n2 directories, 3 files\n" {
		t.Errorf("tree: %q", out)
	}
	if out := c.ok("du", "--walk", "-d", "9", "/"); out != "0\t/d/e\n1\t/d\n1\t/\n" {
		t.Errorf("du: %q", out)
	}
	if out := c.ok("du", "--walk", "-a", "-d", "1", "/d", "/d/second"); out != "0\t/d/e\n1\t/d/new\nname\n0\t/d/second\n0\t/d/sym\n1\t/d\n1\t/d/second\n" {
		t.Errorf("du -a: %q", out)
	}
	for _, args := range [][]string{{"/"}, {"-s", "-d", "9", "/"}} {
		out, deadline := "", time.Now().Add(time.Minute)
		for out != "1\t/\n" { // what directories know follows what is there
			if out = c.ok(append([]string{"du"}, args...)...); time.Now().After(deadline) {
				t.Fatalf("du %q: %q", args, out)
			}
		}
	}
	if out := c.ok("stat", "/d/second"); !strings.Contains(out, "Links: 3") || !strings.Contains(out, "1 block in 1 placement group, 1 complete copy at least") {
		t.Errorf("stat: %q", out)
	}
	if out := c.ok("explain", "/d/second"); !strings.Contains(out, "class   rep1, by the default_class of the cluster") || !strings.Contains(out, "@solo complete") {
		t.Errorf("explain: %q", out)
	}
	for _, args := range [][]string{
		{"ls", "--json", "/"}, {"tree", "--json", "/"}, {"du", "--json", "/"}, {"stat", "--json", "/d/second", "/d"}, {"explain", "--json", "/d/second"},
		{"policy", "get", "--json", "/d"}, {"status", "--json"}, {"node", "ls", "--json"}, {"node", "show", "--json", "solo"}, {"group", "ls", "--json"},
		{"group", "show", "--json", "0"}, {"pg", "ls", "--json"}, {"pg", "show", "--json", "1"}, {"class", "ls", "--json"},
	} {
		var object map[string]any
		if err := json.Unmarshal([]byte(c.ok(args...)), &object); err != nil || object["version"] != 1.0 {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestBadInput(t *testing.T) {
	c := startCluster(t)
	c.proc.In = bytes.NewReader([]byte("x"))
	c.ok("put", "-", "/f")
	c.ok("mkdir", "/d")
	c.ok("mkdir", "/d/e")
	local := filepath.Join(t.TempDir(), "l")
	if err := os.WriteFile(local, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	local2 := filepath.Join(t.TempDir(), "one byte")
	if err := os.WriteFile(local2, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := c.ok("tree", "-a", "/")
	for _, b := range []struct {
		code int
		text string
		args []string
	}{
		{1, "dfsd: ls /x: does not exist", []string{"ls", "/x"}},
		{1, "dfsd: cat /d: is a directory", []string{"cat", "/d"}},
		{1, "dfsd: rm /d: is a directory; use -r", []string{"rm", "/d"}},
		{1, "dfsd: rm /d: directory not empty; use -r", []string{"rm", "-d", "/d"}},
		{1, "dfsd: rm /x: does not exist", []string{"rm", "/x"}},
		{0, "", []string{"rm", "-rf", "/x"}},
		{1, "dfsd: mkdir /d: \"d\" exists", []string{"mkdir", "/d"}},
		{1, "make /x too with -p", []string{"mkdir", "/x/y"}},
		{1, "a name has 256 bytes: at most 255", []string{"mkdir", "/" + strings.Repeat("n", 256)}},
		{1, "the path has 4097 bytes: at most 4096", []string{"mkdir", "/" + strings.Repeat("n/", 2048)}},
		{1, "zero byte", []string{"mkdir", "/a\x00b"}},
		{1, "not a directory", []string{"put", local, "/f/x"}},
		{1, "make it with dfsd mkdir -p /x", []string{"put", local, "/x/y"}},
		{1, "not a directory, and there are 2 sources", []string{"put", local, local, "/x"}},
		{1, "the directory /x does not exist", []string{"put", local, "/x/"}},
		{1, "is the same file", []string{"cp", "/f", "/f"}},
		{1, "/d/e/d is within it", []string{"cp", "-r", "/d", "/d/e"}},
		{1, "", []string{"mv", "/d", "/d/e"}},
		{2, "refused", []string{"mv", "/", "/d"}},
		{1, "not a directory", []string{"policy", "get", "/f"}},
		{1, "class rep2 wants 2 copies on as many storage nodes, and the cluster has 1", []string{"policy", "set", "/d", "rep2"}},
		{0, "class rep2 needs 2 stores, at least 2 to take writes, and 1 are up", []string{"policy", "set", "--force", "/d", "rep2"}},
		{1, "dfsd: policy set /f: not a directory", []string{"policy", "set", "/f", "rep1"}},
		{1, "rep2 needs 2 stores", []string{"--timeout", "2s", "put", local2, "/d/x"}},
		{2, "this release stores replicated classes only", []string{"policy", "set", "/d", "ec4+2"}},
		{2, "want rep1 to rep16", []string{"policy", "set", "/d", "rep17"}},
		{2, "compression \"gzip\": want none, s2 or zstd", []string{"class", "set", "rep1", "--compression", "gzip"}},
		{2, "what shall be set?", []string{"class", "set", "rep1"}},
		{2, "want rep1 to rep16", []string{"class", "set", "gold", "--compression", "s2"}},
		{2, "replicated classes only", []string{"class", "set", "ec4+2", "--compression", "s2"}},
		{1, "node show x: does not exist; see dfsd node ls", []string{"node", "show", "x"}},
		{1, "group show 99: does not exist", []string{"group", "show", "99"}},
		{1, "pg show 99: does not exist", []string{"pg", "show", "99"}},
		{3, "belongs to cluster", []string{"--cluster-id", strings.Repeat("ab", 16), "ls", "/"}},
		{3, "solo:1", []string{"--meta", "solo:1", "--timeout", "1s", "ls", "/"}},
	} {
		c.no(b.code, b.text, b.args...)
	}
	if after := c.ok("tree", "-a", "/"); after != before {
		t.Errorf("changed:\n%s\nto\n%s", before, after)
	}
	c.ok("policy", "set", "/d", "rep1")
	if out := c.ok("policy", "get", "/d"); out != "class rep1, by the policy of /d\n" {
		t.Errorf("policy: %q", out)
	}
	c.ok("policy", "set", "/d", "inherit")
}
