package placement

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"dfsd/dfs"
)

// TestScript runs testdata/assign: clusters drawn with their assignments.
//
//	groups n=64 width=3        as many groups, without a current target
//	stores                     one store a line: ID weight host [rack [zone]]
//	remove s1 s2               takes stores out
//	near pg1 s1                says that a store holds some of a group
//	assign                     assigns and draws: stores with slots and quota, by host
//	show n=4                   draws the first targets
func TestScript(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var (
			stores []Store
			groups []Group
			width  int
		)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			switch d.Cmd {
			case "groups":
				var n int
				d.ScanArgs(t, "n", &n)
				d.ScanArgs(t, "width", &width)
				groups = make([]Group, n)
				for i := range groups {
					groups[i].ID = dfs.PGID(i + 1)
				}
			case "stores":
				for line := range strings.Lines(d.Input) {
					f := strings.Fields(line)
					s := Store{Domains: f[2:]}
					if _, err := fmt.Sscanf(f[0]+" "+f[1], "s%d %d", &s.ID, &s.Weight); err != nil {
						d.Fatalf(t, "%q: %v", line, err)
					}
					stores = append(stores, s)
				}
			case "remove":
				for _, arg := range d.CmdArgs {
					stores = slices.DeleteFunc(stores, func(s Store) bool { return s.ID.String() == arg.Key })
				}
			case "near":
				var g, s int
				if _, err := fmt.Sscanf(d.CmdArgs[0].Key+" "+d.CmdArgs[1].Key, "pg%d s%d", &g, &s); err != nil {
					d.Fatalf(t, "%v", err)
				}
				groups[g-1].Near = append(groups[g-1].Near, dfs.StoreID(s))
			case "assign":
				res := Assign(stores, width, groups)
				loads := map[dfs.StoreID]int{}
				for i, target := range res.Targets {
					groups[i].Current = target
					for _, s := range target {
						loads[s]++
					}
				}
				fmt.Fprintf(&out, "bound %.3f, moves %d\n", res.Bound, res.Moves)
				for _, n := range res.Notes {
					fmt.Fprintln(&out, n)
				}
				for _, s := range stores {
					fmt.Fprintf(&out, "%v: %d slots, weight %d, in %s\n", s.ID, loads[s.ID], s.Weight, strings.Join(s.Domains, " "))
				}
			case "show":
				var n int
				d.ScanArgs(t, "n", &n)
				for _, g := range groups[:n] {
					fmt.Fprintf(&out, "%v: %v\n", g.ID, g.Current)
				}
			default:
				d.Fatalf(t, "unknown command %q", d.Cmd)
			}
			if out.Len() == 0 {
				return "ok"
			}
			return out.String()
		})
	})
}
