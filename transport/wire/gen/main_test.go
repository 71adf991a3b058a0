package main

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The committed code must be what the committed .proto files give.
func TestCommittedCodeIsCurrent(t *testing.T) {
	want, err := generate(t.Context(), "..")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range want {
		got, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Errorf("%v: run `make generate`", err)
		} else if !bytes.Equal(got, text) {
			t.Errorf("%s differs from what the .proto files give: run `make generate`", name)
		}
	}
	committed, err := filepath.Glob("../*.pb.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range committed {
		if _, ok := want[filepath.Base(path)]; !ok {
			t.Errorf("%s is left over: no .proto file makes it (%v)", path, slices.Sorted(maps.Keys(want)))
		}
	}
}
