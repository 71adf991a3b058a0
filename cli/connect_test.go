package cli

import (
	"fmt"
	"os"
	"reflect"
	"testing"

	"dfsd/config"
	"dfsd/dfs"
)

// TestEverySettingReachesTheClient changes each field of the configuration alone,
// and expects the client's options to change with it.
func TestEverySettingReachesTheClient(t *testing.T) {
	passed := func(cfg *config.Client) string {
		pool, opts := clientOptions(cfg)
		return fmt.Sprintf("%+v %+v", pool, opts)
	}
	load := func() *config.Client {
		cfg, err := config.LoadClient(config.Input{ReadFile: os.ReadFile})
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	before := passed(load())
	var each func(name string, at func(*config.Client) reflect.Value)
	each = func(name string, at func(*config.Client) reflect.Value) {
		cfg := load()
		f := at(cfg)
		switch {
		case name == ".Shared.TLS": // files, which are read
			return
		case f.Kind() == reflect.Struct:
			for i := range f.NumField() {
				each(name+"."+f.Type().Field(i).Name, func(cfg *config.Client) reflect.Value { return at(cfg).Field(i) })
			}
			return
		case f.CanInt():
			f.SetInt(f.Int() + 1)
		case f.CanFloat():
			f.SetFloat(f.Float() + 1)
		case f.Type() == reflect.TypeFor[dfs.ClusterID]():
			f.Set(reflect.ValueOf(dfs.ClusterID{1}))
		case f.Type() == reflect.TypeFor[[]config.MetaNode]():
			f.Set(reflect.ValueOf([]config.MetaNode{{Addr: "other:1"}}))
		default:
			t.Fatalf("%s: the test cannot change a %v", name, f.Type())
		}
		if passed(cfg) == before {
			t.Errorf("%s changes nothing", name)
		}
	}
	each("", func(cfg *config.Client) reflect.Value { return reflect.ValueOf(cfg).Elem() })
}
