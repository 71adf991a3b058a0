package chaos

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFirstLightLoads(t *testing.T) {
	s, err := Load("../../testdata/scenarios/first-light.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Steps) < 20 || s.Name != "first-light" {
		t.Errorf("%s with %d steps", s.Name, len(s.Steps))
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"version: 2\n", "version 2"},
		{"version: 1\nsteps:\n  - {wait: sometime}\n", "want ready or full"},
		{"version: 1\nsteps:\n  - {}\n", "want one"},
		{"version: 1\nsteps:\n  - {kill: [nobody]}\n", "no node"},
		{"version: 1\nsteps:\n  - {put: {tree: x, path: /}}\n", "not declared"},
		{"version: 1\nsurprise: 1\n", "surprise"},
	} {
		file := filepath.Join(t.TempDir(), "s.yaml")
		if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(file); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.text, err)
		}
	}
}

// TestCompareSees changes one thing at a time in a copy of the odd tree: the
// comparison that the scenarios lean on must see each.
func TestCompareSees(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"nothing": func(string) error { return nil },
		"byte": func(d string) error {
			f, err := os.OpenFile(filepath.Join(d, "sizes/65536"), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte{0}, 65535)
			return err
		},
		"size":       func(d string) error { return os.Truncate(filepath.Join(d, "sizes/1"), 2) },
		"mode":       func(d string) error { return os.Chmod(filepath.Join(d, "modes/0400"), 0o401) },
		"setuid":     func(d string) error { return os.Chmod(filepath.Join(d, "modes/4755"), 0o755) },
		"time":       func(d string) error { return os.Chtimes(filepath.Join(d, "sizes/0"), when, when.Add(1)) },
		"gone":       func(d string) error { return os.Remove(filepath.Join(d, "hard/three")) },
		"surplus":    func(d string) error { return os.WriteFile(filepath.Join(d, "empty/x"), nil, 0o644) },
		"link":       func(d string) error { return relink(filepath.Join(d, "links/relative"), "../sizes/2") },
		"hard link":  func(d string) error { return unshare(filepath.Join(d, "hard/two")) },
		"empty dir":  func(d string) error { return os.Remove(filepath.Join(d, "empty/a/b/c")) },
		"file kind":  func(d string) error { return relink(filepath.Join(d, "sizes/0"), "1") },
		"latin name": func(d string) error { return os.Remove(filepath.Join(d, "names/latin-\xe9-\xff")) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
			for _, d := range []string{a, b} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := makeOdd(d, 256<<10, 2<<20); err != nil {
					t.Fatal(err)
				}
				for _, pair := range []string{"links", "names", "hard", "empty", "sizes", "modes", "."} {
					_ = os.Chtimes(filepath.Join(d, pair), when, when)
				}
			}
			defer makeWritable(a)
			defer makeWritable(b)
			if err := change(b); err != nil {
				t.Fatal(err)
			}
			alignTimes(t, a, b)
			_, _, err := compare(a, b, nil)
			if (err != nil) != (name != "nothing") {
				t.Errorf("compare: %v", err)
			}
		})
	}
}

// alignTimes gives directories of b the times of a, since the change under
// test touched them.
func alignTimes(t *testing.T, a, b string) {
	t.Helper()
	err := filepath.WalkDir(a, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(a, p)
		for _, dir := range []string{p, filepath.Join(b, rel)} {
			_ = os.Chtimes(dir, when, when)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func relink(p, target string) error {
	if err := os.Remove(p); err != nil {
		return err
	}
	return os.Symlink(target, p)
}

func unshare(p string) error {
	info, err := os.Stat(p)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(p)
	if err != nil {
		return err
	}
	if err := os.Remove(p); err != nil {
		return err
	}
	if err := os.WriteFile(p, b, info.Mode()); err != nil {
		return err
	}
	return os.Chtimes(p, info.ModTime(), info.ModTime())
}
