package node

import (
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"slices"
	"testing"

	"dfsd/config"
	"dfsd/dfs"
)

// TestEverySettingReachesTheNode changes each field of the configuration alone,
// and expects the node's options to change with it.
func TestEverySettingReachesTheNode(t *testing.T) {
	passed := func(cfg *config.Server) string {
		o, err := options(cfg, "r1", slog.New(slog.NewTextHandler(io.Discard, nil)))
		if err != nil {
			t.Fatal(err)
		}
		o.Metrics, o.NewMark = nil, nil // made anew each time
		return fmt.Sprintf("%+v", o)
	}
	load := func() *config.Server {
		cfg, err := config.LoadServer(config.Input{Env: []string{"DFSD_ROLE=storage", "DFSD_NAME=n", "DFSD_DIR=d"}})
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	before := passed(load())
	var each func(name string, at func(*config.Server) reflect.Value)
	each = func(name string, at func(*config.Server) reflect.Value) {
		cfg := load()
		f := at(cfg)
		switch {
		case slices.Contains([]string{".Shared.TLS", ".HTTP", ".Log"}, name): // Run takes these itself
			return
		case name == ".Health.Mode":
			f.SetString("fixed")
		case f.Type() == reflect.TypeFor[dfs.Class]():
			f.Set(reflect.ValueOf(dfs.Replicated(7)))
		case f.Type() == reflect.TypeFor[dfs.ClusterID]():
			f.Set(reflect.ValueOf(dfs.ClusterID{1}))
		case f.Type() == reflect.TypeFor[[]config.MetaNode]():
			f.Set(reflect.ValueOf([]config.MetaNode{{Addr: "other:1"}}))
		case f.Type() == reflect.TypeFor[[]string]():
			f.Set(reflect.ValueOf([]string{"/other"}))
		case f.Type() == reflect.TypeFor[map[string]string]():
			f.Set(reflect.ValueOf(map[string]string{"rack": "r1"}))
		case f.Kind() == reflect.Struct:
			for i := range f.NumField() {
				each(name+"."+f.Type().Field(i).Name, func(cfg *config.Server) reflect.Value { return at(cfg).Field(i) })
			}
			return
		case f.CanInt():
			f.SetInt(f.Int() + 1)
		case f.CanUint():
			f.SetUint(f.Uint() ^ 1)
		case f.Kind() == reflect.Bool:
			f.SetBool(!f.Bool())
		case f.Kind() == reflect.String:
			f.SetString(f.String() + "x")
		default:
			t.Fatalf("%s: the test cannot change a %v", name, f.Type())
		}
		if passed(cfg) == before {
			t.Errorf("%s changes nothing", name)
		}
	}
	each("", func(cfg *config.Server) reflect.Value { return reflect.ValueOf(cfg).Elem() })
}
