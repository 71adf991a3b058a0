package repair

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"dfsd/dfs"
)

// TestScript runs testdata/: clusters that live through something, as a log
// book. Commands:
//
//	cluster nodes=4 class=rep3 pgs=2   a new cluster of nodes with one store each
//	add-node [stores=2] [rack=r]       one node more
//	plan                               plans, applies, and says what and why not
//	persist [s1 …]                     stores persist the map, all living ones by default
//	settle                             everything goes on until nothing is left to do
//	kill s1 …                          stores die; all voters suspect them
//	suspect s1 … [by=2]                so many voters suspect stores; default 1
//	trust s1 …                         nobody suspects them any more
//	register s1 …                      stores start again
//	reset s1 …                         stores may lack anything
//	refill-done s1 [joined=5]          a store reports all its refills, or those of one time
//	wait 10m                           time passes
//	hold 60s                           the cluster has just started
//	show                               draws the cluster
func TestScript(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var w *world
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			ids := func() []dfs.StoreID {
				var ids []dfs.StoreID
				for _, arg := range d.CmdArgs {
					if len(arg.Vals) > 0 {
						continue
					}
					var id dfs.StoreID
					if _, err := fmt.Sscanf(arg.Key, "s%d", &id); err != nil || w.m.Store(id) == nil {
						d.Fatalf(t, "%q is no store", arg.Key)
					}
					ids = append(ids, id)
				}
				return ids
			}
			duration := func() time.Duration {
				v, err := time.ParseDuration(d.CmdArgs[0].Key)
				if err != nil {
					d.Fatalf(t, "%v", err)
				}
				return v
			}
			switch d.Cmd {
			case "cluster":
				w = scriptWorld(t, d)
			case "add-node":
				stores, rack := 1, ""
				d.MaybeScanArgs(t, "stores", &stores)
				d.MaybeScanArgs(t, "rack", &rack)
				w.addNode(stores, map[string]string{"rack": rack})
			case "plan":
				plan := w.plan()
				for _, dec := range plan.Decisions {
					fmt.Fprintln(&out, dec)
				}
				for _, n := range plan.Notes {
					fmt.Fprintf(&out, "(%s)\n", n)
				}
				for _, err := range w.apply(plan.Decisions) {
					fmt.Fprintln(&out, "refused:", err)
				}
				if out.Len() == 0 {
					return "nothing to do"
				}
			case "persist":
				list := ids()
				if len(list) == 0 {
					for _, s := range w.m.Stores {
						if w.disks[s.ID].alive {
							list = append(list, s.ID)
						}
					}
				}
				for _, id := range list {
					w.persist(id)
				}
			case "settle":
				n, err := w.settle()
				if err != nil {
					d.Fatalf(t, "%v", err)
				}
				fmt.Fprintf(&out, "settled after %d plans\n%s", n, w)
			case "kill":
				for _, id := range ids() {
					w.disks[id].alive = false
					w.tally.By[id] = []dfs.NodeID{1, 2, 3}
				}
			case "suspect":
				by := 1
				d.MaybeScanArgs(t, "by", &by)
				for _, id := range ids() {
					w.tally.By[id] = []dfs.NodeID{1, 2, 3}[:by]
				}
			case "trust":
				for _, id := range ids() {
					delete(w.tally.By, id)
				}
			case "register":
				for _, id := range ids() {
					w.register(id)
				}
			case "reset":
				for _, id := range ids() {
					w.reset(id)
				}
			case "refill-done":
				scriptRefillDone(t, w, d, ids()[0], &out)
			case "wait":
				w.now = w.now.Add(duration())
			case "hold":
				w.notBefore = w.now.Add(duration())
			case "show":
				return w.String()
			default:
				d.Fatalf(t, "unknown command %q", d.Cmd)
			}
			if err := w.check(nil); err != nil {
				d.Fatalf(t, "%v", err)
			}
			if out.Len() == 0 {
				return "ok"
			}
			return out.String()
		})
	})
}

func scriptWorld(t *testing.T, d *datadriven.TestData) *world {
	var nodes, pgs int
	var name string
	d.ScanArgs(t, "nodes", &nodes)
	d.ScanArgs(t, "class", &name)
	d.ScanArgs(t, "pgs", &pgs)
	class, err := dfs.ParseClass(name)
	if err != nil {
		d.Fatalf(t, "%v", err)
	}
	w := newWorld(class, pgs)
	d.MaybeScanArgs(t, "max-moves", &w.set.MaxMoves)
	d.MaybeScanArgs(t, "max-refills", &w.set.MaxRefills)
	for range nodes {
		w.addNode(1, nil)
	}
	return w
}

func scriptRefillDone(t *testing.T, w *world, d *datadriven.TestData, store dfs.StoreID, out *strings.Builder) {
	joined := 0
	d.MaybeScanArgs(t, "joined", &joined)
	for _, pg := range w.m.PGs {
		m := pg.Member(store)
		if m == nil || !pg.Active.Has(store) || pg.IsComplete(store) {
			continue
		}
		at := m.Joined
		if joined > 0 {
			at = dfs.Epoch(joined)
		}
		if err := w.refillDone(pg.ID, store, m.Mark, at); err != nil {
			fmt.Fprintln(out, "refused:", err)
		}
	}
}
