package config

import (
	"flag"
	"os"
	"strings"
	"testing"
)

// TestOperationsHasTheTable compares the settings in docs/OPERATIONS.md with
// the table; -rewrite replaces them.
func TestOperationsHasTheTable(t *testing.T) {
	const name, from, to = "../docs/OPERATIONS.md", "<!-- settings: config.Table(); a test compares them -->\n", "<!-- end of settings -->\n"
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(raw), from)
	have, tail, ok2 := strings.Cut(rest, to)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no %q with %q after it", name, from, to)
	}
	want := "\n" + Table() + "\n"
	if f := flag.Lookup("rewrite"); f != nil && f.Value.String() == "true" {
		if err := os.WriteFile(name, []byte(head+from+want+to+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if have != want {
		t.Error("the settings differ from the table: go test ./config -rewrite")
	}
}
