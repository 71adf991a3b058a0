package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/spf13/pflag"

	"dfsd/dfs"
)

// testFile is the name under which the tests give the text of a file.
const testFile = "dfsd.yaml"

func testInput(t testing.TB, flags *pflag.FlagSet, env []string, file string) Input {
	t.Helper()
	return Input{Flags: flags, Env: env, ReadFile: func(name string) ([]byte, error) {
		if name != testFile {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return []byte(file), nil
	}}
}

// TestScripts runs testdata/*.txt. A command is server or client with
//
//	flags=(…)  env=(…)  nofile  all
//
// and the text of a file, and prints the faults, or what differs from the
// least configuration there is, or all.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var args, env []string
			var noFile, all bool
			for _, a := range d.CmdArgs {
				switch a.Key {
				case "flags":
					args = append(args, a.Vals...)
				case "env":
					env = append(env, a.Vals...)
				case "nofile":
					noFile = true
				case "all":
					all = true
				}
			}
			if !noFile {
				env = append(env, "DFSD_CONFIG="+testFile)
			}
			got, least, err := loadBoth(t, d.Cmd, args, env, d.Input)
			if err != nil {
				return err.Error() + "\n"
			}
			lines := dump("", reflect.ValueOf(got).Elem())
			if !all {
				base := dump("", reflect.ValueOf(least).Elem())
				lines = slices.DeleteFunc(lines, func(l string) bool { return slices.Contains(base, l) })
			}
			return "ok\n" + strings.Join(lines, "")
		})
	})
}

func loadBoth(t *testing.T, side string, args, env []string, file string) (got, least any, err error) {
	t.Helper()
	if side == "server" {
		flags, err := ParseServerFlags(args)
		if err != nil {
			return nil, nil, err
		}
		got, err := LoadServer(testInput(t, flags, env, file))
		least, errLeast := LoadServer(testInput(t, nil, []string{"DFSD_ROLE=storage", "DFSD_NAME=n", "DFSD_DIR=d"}, ""))
		if errLeast != nil {
			t.Fatal(errLeast)
		}
		return got, least, err
	}
	flags := ClientFlags()
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	got, err = LoadClient(testInput(t, flags, env, file))
	least, errLeast := LoadClient(testInput(t, nil, nil, ""))
	if errLeast != nil {
		t.Fatal(errLeast)
	}
	return got, least, err
}

// dump writes the leaves of a struct, a line each.
func dump(prefix string, v reflect.Value) []string {
	_, isStringer := v.Interface().(fmt.Stringer)
	if v.Kind() != reflect.Struct || isStringer {
		return []string{fmt.Sprintf("%s: %v\n", strings.TrimPrefix(prefix, "."), v.Interface())}
	}
	var lines []string
	for i := range v.NumField() {
		lines = append(lines, dump(prefix+"."+v.Type().Field(i).Name, v.Field(i))...)
	}
	return lines
}

// TestTable checks each row by itself, and pins the documentation's table.
func TestTable(t *testing.T) {
	envs, flags := map[string]bool{}, map[string]bool{}
	for _, s := range table() {
		if s.def != "" {
			v := new(values)
			if wrong := s.kind.parse(v, s.items(s.def)); wrong != nil {
				t.Errorf("%s: its default %q is a fault", s.key, s.def)
			}
		}
		if (s.def == "") == (s.derived == "") {
			t.Errorf("%s: want a default or words for it, not both", s.key)
		}
		if s.doc == "" || s.kind.want == "" || s.kind.typ == "" {
			t.Errorf("%s: not documented", s.key)
		}
		if envs[s.env()] || flags[s.flag()] || s.env() == envConfig || s.flag() == flagConfig || strings.HasPrefix(s.env(), envTests) || strings.HasPrefix(s.env(), envE2E) {
			t.Errorf("%s: its variable or flag is another's", s.key)
		}
		envs[s.env()], flags[s.flag()] = true, true
		if strings.Count(s.key, ".") > 1 || s.key != strings.ToLower(s.key) || len(s.key) >= maxDistanceLen {
			t.Errorf("%s: want a short key in small letters, in one section at most", s.key)
		}
	}
	datadriven.RunTest(t, "testdata/table.txt", func(*testing.T, *datadriven.TestData) string {
		return Table() + ServerFlags().FlagUsages() + ClientFlags().FlagUsages()
	})
}

// TestEveryRowReachesTheStruct sets each setting alone and expects exactly it
// to change something: no row writes to the place of another.
func TestEveryRowReachesTheStruct(t *testing.T) {
	other := map[string]string{
		"role": "meta", "name": "m9", "dir": "/other", "stores": "/a,/b", "listen": "127.0.0.1:9000", "advertise": "127.0.0.1:9001",
		"http": "127.0.0.1:9002", "meta": "127.0.0.1:9003", "cluster_id": strings.Repeat("ab", 16), "tls.ca": "ca.pem", "tls.cert": "c.pem",
		"tls.key": "k.pem", "insecure": "true", "labels": "rack=r1", "groups": "9", "pgs_per_class": "9", "default_class": "rep2",
		"block_size": "1MiB", "heartbeat": "1s", "health_check.mode": "fixed", "health_check.interval": "1s", "health_check.timeout": "9s",
		"health_check.max_failures": "9", "health_check.disk_timeout": "9s", "grace_period": "9s", "session_ttl": "9s", "raft.tick": "9s", "raft.election_ticks": "9", "raft.snapshot_rate": "9",
		"segment_size": "64MiB", "meta_cache_size": "9MiB", "store_cache_size": "9MiB", "reserve": "9MiB", "refill_rate": "9", "undecided_age": "9s", "trash_keep": "9s", "compaction.rate": "9MiB", "compaction.age": "9s",
		"compaction.dead_percent": "9", "scrub.period": "9h", "scrub.rate": "9MiB", "log.level": "warn",
		"log.format": "json", "timeout": "9s", "retry.base": "9ms", "retry.factor": "9", "retry.max": "9s", "hedge.min": "9s", "hedge.factor": "9",
		"circuit_breaker.request_volume_threshold": "9", "circuit_breaker.error_threshold_percentage": "9", "circuit_breaker.sleep_window": "9s",
	}
	flat := func(v *values) []string {
		return slices.Concat(dump("shared", reflect.ValueOf(v.shared)), dump("server", reflect.ValueOf(v.server)), dump("client", reflect.ValueOf(v.client)))
	}
	seen := map[string]string{}
	for _, s := range table() {
		text, ok := other[s.key]
		if !ok {
			t.Errorf("%s: the test has no value for it", s.key)
			continue
		}
		zero, v := new(values), new(values)
		if wrong := s.kind.parse(v, s.items(text)); wrong != nil {
			t.Errorf("%s: %q is a fault", s.key, text)
		}
		before, after := flat(zero), flat(v)
		changed := slices.DeleteFunc(slices.Clone(after), func(l string) bool { return slices.Contains(before, l) })
		if len(changed) != 1 {
			t.Errorf("%s changes %q", s.key, changed)
			continue
		}
		field, _, _ := strings.Cut(changed[0], ":")
		if seen[field] != "" {
			t.Errorf("%s and %s both set %s", s.key, seen[field], field)
		}
		seen[field] = s.key
	}
}

// TestOrder sets one key in every subset of the layers: the uppermost wins.
func TestOrder(t *testing.T) {
	for set := range 1 << 3 {
		want, file := "100ms", "role: storage\nname: n\ndir: d\n"
		var env, args []string
		if set&1 != 0 {
			want, file = "1s", file+"raft:\n  tick: 1s\n"
		}
		if set&2 != 0 {
			want, env = "2s", append(env, "DFSD_RAFT_TICK=2s")
		}
		if set&4 != 0 {
			want, args = "3s", append(args, "--raft.tick=3s")
		}
		flags, err := ParseServerFlags(append(args, "--config", testFile))
		if err != nil {
			t.Fatal(err)
		}
		s, err := LoadServer(testInput(t, flags, append(env, "DFSD_CONFIG=not-read.yaml"), file))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Raft.Tick.String(); got != want {
			t.Errorf("file %v, environment %v, flags %v: %s, want %s", set&1 != 0, env, args, got, want)
		}
	}
}

func TestFaultsAreInvalid(t *testing.T) {
	_, err := LoadServer(testInput(t, nil, nil, ""))
	var faults Faults
	if !errors.Is(err, dfs.Invalid) || !errors.As(err, &faults) || len(faults) != 3 {
		t.Errorf("%v", err)
	}
	if _, err := ParseServerFlags([]string{"--help"}); !errors.Is(err, pflag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
}

// TestSampleConfigs loads the sample cluster of the repository.
func TestSampleConfigs(t *testing.T) {
	files, err := filepath.Glob("../testdata/cluster/*.yaml")
	if err != nil || len(files) != 8 {
		t.Fatalf("%d files, want 3 meta and 5 storage nodes: %v", len(files), err)
	}
	used := map[string]string{}
	var metas []MetaNode
	for _, file := range files {
		s, err := LoadServer(Input{Env: []string{"DFSD_CONFIG=" + file}, ReadFile: os.ReadFile})
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if metas == nil {
			metas = s.Meta
		}
		if !slices.Equal(metas, s.Meta) || len(metas) != 3 {
			t.Errorf("%s: its list of meta nodes is %v, others have %v", file, s.Meta, metas)
		}
		own := slices.Concat([]string{s.Name, s.Dir, s.Listen, s.HTTP}, s.Stores)
		if s.Name+".yaml" != filepath.Base(file) {
			t.Errorf("%s is of node %s", file, s.Name)
		}
		for _, x := range own {
			if used[x] != "" {
				t.Errorf("%s and %s both use %s", file, used[x], x)
			}
			used[x] = file
		}
	}
}

func FuzzFile(f *testing.F) {
	for _, file := range []string{
		"", "name: n\nrole: [meta, storage]\n", "raft: {tick: 1s}\nlabels:\n  rack: r1\n", "a: &x 1\nb: *x\n<<: {}\n",
		"---\nname: a\n---\nname: b\n", "name: |\n  x\n", "? [a]\n: b\n", "tls:\n", "- a\n- b\n", "meta: [a=b:1, !!str c:2]\n", "x: \"\x00\"\n",
	} {
		f.Add(file)
	}
	f.Fuzz(func(t *testing.T, file string) {
		lines := strings.Count(file, "\n") + strings.Count(file, "\r") + 1
		entries, faults := readFile(testFile, []byte(file), table())
		for _, fault := range faults {
			var n int
			if rest, ok := strings.CutPrefix(fault.Where, testFile+":"); ok {
				if _, err := fmt.Sscan(rest, &n); err != nil || n < 1 || n > lines {
					t.Errorf("%v: there are %d lines", fault, lines)
				}
			}
		}
		if entries == nil && len(faults) == 0 {
			t.Error("neither settings nor faults")
		}
		env := []string{"DFSD_CONFIG=" + testFile}
		if s, err := LoadServer(testInput(t, nil, env, file)); (s == nil) == (err == nil) {
			t.Errorf("server: %v, %v", s, err)
		}
		if c, err := LoadClient(testInput(t, nil, env, file)); (c == nil) == (err == nil) {
			t.Errorf("client: %v, %v", c, err)
		} else if err == nil && len(faults) > 0 {
			t.Errorf("loaded in spite of %v", faults)
		}
	})
}
