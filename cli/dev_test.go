package cli

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dfsd/config"
	"dfsd/dfs"
)

func TestDevPlan(t *testing.T) {
	old := devPlan{Format: 1, Meta: 3, Storage: 4, Port: 7400, Class: "rep3"}
	for _, c := range []struct {
		name  string
		old   devPlan
		want  devPlan
		given string
		plan  devPlan
		err   string
	}{
		{"new", devPlan{}, devPlan{1, 3, 4, 7400, ""}, "", old, ""},
		{"new, two stores", devPlan{}, devPlan{1, 1, 2, 7400, ""}, "", devPlan{1, 1, 2, 7400, "rep2"}, ""},
		{"new, one store", devPlan{}, devPlan{1, 1, 1, 9000, ""}, "", devPlan{1, 1, 1, 9000, "rep1"}, ""},
		{"again", old, devPlan{1, 3, 4, 7400, ""}, "", old, ""},
		{"again, other defaults", devPlan{1, 1, 2, 9000, "rep2"}, devPlan{1, 3, 4, 7400, ""}, "", devPlan{1, 1, 2, 9000, "rep2"}, ""},
		{"more storage", old, devPlan{1, 3, 6, 7400, ""}, "storage", devPlan{1, 3, 6, 7400, "rep3"}, ""},
		{"more storage, old class", devPlan{1, 1, 1, 7400, "rep1"}, devPlan{1, 3, 4, 7400, ""}, "storage", devPlan{1, 1, 4, 7400, "rep1"}, ""},
		{"less storage", old, devPlan{1, 3, 3, 7400, ""}, "storage", old, "never taken away"},
		{"other metas", old, devPlan{1, 5, 4, 7400, ""}, "meta", old, "formed with 3 meta nodes"},
		{"other port", old, devPlan{1, 3, 4, 7500, ""}, "port", old, "formed at port 7400"},
	} {
		plan, err := c.old.merge(c.want, func(flag string) bool { return flag == c.given })
		if plan != c.plan || (err != nil) != (c.err != "") || err != nil && (!strings.Contains(err.Error(), c.err) || exitCodeOf(err) != exitUsage) {
			t.Errorf("%s: %+v, %v", c.name, plan, err)
		}
	}
}

// TestDevNodes: the largest cluster has no port twice, and every configuration
// that is written is one that a server takes.
func TestDevNodes(t *testing.T) {
	d := &dev{dir: filepath.Join(t.TempDir(), `odd "dir": #1`), plan: devPlan{1, maxDevMeta, maxDevStorage, maxDevPort, "rep3"}}
	d.nodes = d.plan.nodes(d.dir)
	ports := map[string]bool{}
	for _, n := range d.nodes {
		for _, addr := range []string{n.addr(), n.http()} {
			if ports[addr] {
				t.Errorf("%s twice", addr)
			}
			ports[addr] = true
		}
		read := func(string) ([]byte, error) { return d.config(n), nil }
		cfg, err := config.LoadServer(config.Input{Env: []string{"DFSD_CONFIG=f"}, ReadFile: read})
		if err != nil {
			t.Fatalf("%s: %v", n.name, err)
		}
		if cfg.Name != n.name || cfg.Roles != n.role || cfg.Dir != n.data() || cfg.Listen != n.addr() || cfg.HTTP != n.http() || len(cfg.Meta) != maxDevMeta {
			t.Errorf("%s: %+v", n.name, cfg)
		}
	}
	if len(d.nodes) != maxDevMeta+maxDevStorage || len(d.metas()) != maxDevMeta {
		t.Errorf("%d nodes", len(d.nodes))
	}
}

func TestDevDirectory(t *testing.T) {
	never := func(string) bool { return false }
	plan := devPlan{Format: devFormat, Meta: 3, Storage: 4, Port: devPort}
	dir := t.TempDir()
	d, err := openDev(&app{}, dir, plan, never)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openDev(&app{}, dir, plan, never); err == nil || !strings.Contains(err.Error(), "another dfsd dev (PID ") {
		t.Errorf("a second one: %v", err)
	}
	if err := d.save(); err != nil {
		t.Fatal(err)
	}
	d.close()
	if d, err = openDev(&app{}, dir, devPlan{Format: devFormat, Meta: 1, Storage: 1, Port: 9000}, never); err != nil || d.plan.Meta != 3 || d.plan.Storage != 4 {
		t.Fatalf("%+v, %v", d, err)
	}
	d.close()

	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "thesis.tex"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := openDev(&app{}, foreign, plan, never); err == nil || !strings.Contains(err.Error(), "thesis.tex") {
		t.Errorf("a foreign directory: %v", err)
	}
	if entries, err := os.ReadDir(foreign); err != nil || len(entries) != 1 {
		t.Errorf("something was written into a foreign directory: %v, %v", entries, err)
	}
	for name, text := range map[string]string{
		"damaged": "{", "newer": `{"format":2}`, "unknown": `{"format":1,"meta":3,"storage":4,"port":7400,"class":"rep3","x":1}`,
		"absurd": `{"format":1,"meta":99,"storage":4,"port":7400,"class":"rep3"}`,
	} {
		bad := t.TempDir()
		if err := os.WriteFile(filepath.Join(bad, devFile), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := openDev(&app{}, bad, plan, never); err == nil || !strings.Contains(err.Error(), devFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDevSettings: a fault is found before anything is started, and a new
// cluster's class is the one that will be used.
func TestDevSettings(t *testing.T) {
	plan := devPlan{Format: devFormat, Meta: 1, Storage: 2, Port: 9000}
	never := func(string) bool { return false }
	for kv, want := range map[string]string{"DFSD_GRACE_PERIOD=5": "DFSD_GRACE_PERIOD", "DFSD_GRACE_PERIODE=5s": "the nearest is DFSD_GRACE_PERIOD"} {
		_, err := openDev(&app{proc: Process{Env: []string{kv}}}, t.TempDir(), plan, never)
		if err == nil || !strings.Contains(err.Error(), want) || exitCodeOf(err) != exitUsage {
			t.Errorf("%s: %v", kv, err)
		}
	}
	d, err := openDev(&app{proc: Process{Env: []string{"DFSD_DEFAULT_CLASS=rep1"}}}, t.TempDir(), plan, never)
	if err != nil || d.plan.Class != "rep1" {
		t.Fatalf("class %s, %v", d.plan.Class, err)
	}
	d.close()
}

func TestDevEnvironment(t *testing.T) {
	got := devEnv([]string{"PATH=/bin", "DFSD_GRACE_PERIOD=5s", "DFSD_META=a:1", "DFSD_CONFIG=x", "DFSD_NAME=me", "DFSD_METAL=1"})
	if want := []string{"PATH=/bin", "DFSD_GRACE_PERIOD=5s", "DFSD_METAL=1"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDevCommand(t *testing.T) {
	n := &devNode{dir: "/my data", name: "store2", role: dfs.RoleStorage}
	env := []string{"HOME=/", "DFSD_LABELS=a=b", "DFSD_TEST_SEED=1", "DFSD_GRACE_PERIOD=5s"}
	if got, want := n.command("/usr/bin/dfsd", env), "DFSD_GRACE_PERIOD=5s /usr/bin/dfsd --role=storage --config '/my data/store2.yaml'"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestLastLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	for _, c := range []struct{ text, want string }{
		{"", ""}, {"one", "one"}, {"one\ntwo\n", "two"}, {"one\ntwo\n\n", "two"}, {strings.Repeat("x", 10000), strings.Repeat("x", 4096)},
	} {
		if err := os.WriteFile(file, []byte(c.text), fs.FileMode(0o644)); err != nil {
			t.Fatal(err)
		}
		if got := lastLine(file); got != c.want {
			t.Errorf("%.20q: got %.20q", c.text, got)
		}
	}
	if got := lastLine(file + "x"); got != "" {
		t.Errorf("no file: %q", got)
	}
}
