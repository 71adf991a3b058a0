package raftgroup

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestNoWallClock: a wall clock that jumps moves nothing here. Time is counted
// in ticks, waits are of timers and tickers, and what lies between two moments is
// taken from the monotonic reading that both carry: nothing strips it.
func TestNoWallClock(t *testing.T) {
	names, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	files := token.NewFileSet()
	used := 0
	for _, n := range names {
		if !strings.HasSuffix(n.Name(), ".go") || strings.HasSuffix(n.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(files, n.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(node ast.Node) bool {
			sel, ok := node.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" {
				used++
			}
			if slices.Contains([]string{"Unix", "UnixMilli", "UnixMicro", "UnixNano", "Round", "Truncate", "UTC", "Local", "In"}, sel.Sel.Name) {
				t.Errorf("%v: %s", files.Position(sel.Pos()), sel.Sel.Name)
			}
			return true
		})
	}
	if used == 0 {
		t.Error("no use of package time was seen at all")
	}
}
