package main_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocsNameTestsThatExist: a fault that is shown by a test is shown by one
// that is there, in the package that the row names.
func TestDocsNameTestsThatExist(t *testing.T) {
	named := regexp.MustCompile("`([a-z/]+)`|\\b((?:Test|Fuzz)[A-Z][A-Za-z0-9]+)")
	defined := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Z][A-Za-z0-9]+)\(`)
	tests := map[string]map[string]bool{} // by directory
	in := func(dir string) map[string]bool {
		if tests[dir] == nil {
			tests[dir] = map[string]bool{}
			files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				src, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range defined.FindAllStringSubmatch(string(src), -1) {
					tests[dir][m[1]] = true
				}
			}
		}
		return tests[dir]
	}
	checked := 0
	for _, doc := range []string{"docs/FAULTS.md", "docs/TESTING.md", "docs/FORMATS.md"} {
		raw, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(raw), "\n") {
			if !strings.HasPrefix(line, "|") {
				continue
			}
			dir := ""
			for _, m := range named.FindAllStringSubmatch(line, -1) {
				switch {
				case m[1] != "":
					if info, err := os.Stat(m[1]); err == nil && info.IsDir() {
						dir = m[1]
					}
				case dir == "" || !in(dir)[m[2]]:
					t.Errorf("%s:%d: there is no %s in %q", doc, i+1, m[2], dir)
				default:
					checked++
				}
			}
		}
	}
	if checked < 80 {
		t.Errorf("only %d names were found: the tables have another form", checked)
	}
}
