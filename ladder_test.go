package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// module is the prefix of this module's import paths.
const module = "dfsd/"

// rung is a top-level directory's place on the ladder of imports.
type rung struct {
	imports string // other rungs that it may import
	std     bool   // nothing but these and the standard library
	pure    bool   // no disk, network or state but what it is handed
}

// ladder says who may import whom. Test files are free.
func ladder() map[string]rung {
	const below = "dfs placement engine raftgroup transport repair meta storage client mount s3"
	return map[string]rung{
		"dfs":       {std: true, pure: true},
		"placement": {imports: "dfs", pure: true},
		"engine":    {imports: "dfs", pure: true},
		"raftgroup": {imports: "dfs", pure: true},
		"transport": {imports: "dfs", pure: true},
		"repair":    {imports: "dfs placement", pure: true},
		"meta":      {imports: "dfs raftgroup placement repair transport", pure: true},
		"storage":   {imports: "dfs engine placement transport", pure: true},
		"client":    {imports: "dfs transport placement", pure: true},
		"mount":     {imports: "dfs client", pure: true},
		"s3":        {imports: "dfs client", pure: true},
		"config":    {imports: "dfs"},
		"node":      {imports: below + " config"},
		"sim":       {imports: below + " config node"},
		"cli":       {imports: below + " config node"},
		"main.go":   {imports: "cli config node"},
	}
}

// homes are the only places of modules that would spread otherwise.
func homes() map[string][]string {
	return map[string][]string{
		"github.com/spf13/viper": {"config"},
		"github.com/spf13/pflag": {"config", "cli"},
		"github.com/spf13/cobra": {"cli"},
	}
}

// exceptions are the files and directories that need what the pure packages
// must not have, with the reason.
func exceptions() map[string]string {
	return map[string]string{
		"transport/network.go net": "the host's network is one of those that are handed out",
		"transport/wire/gen os":    "a program that writes the generated code, no part of the binary",
	}
}

func TestLadder(t *testing.T) {
	faults, err := checkLadder(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Error(f)
	}
}

// TestLadderFindsViolations shows that each rule can fail.
func TestLadderFindsViolations(t *testing.T) {
	for _, c := range []struct{ file, text, want string }{
		{"dfs/a.go", `import "dfsd/placement"`, `dfs/a.go:2: dfs must not import dfsd/placement`},
		{"dfs/a.go", `import "golang.org/x/sync/errgroup"`, `dfs/a.go:2: dfs must not import golang.org/x/sync/errgroup: the standard library only`},
		{"engine/a.go", `import _ "dfsd/raftgroup"`, `engine/a.go:2: engine must not import dfsd/raftgroup`},
		{"meta/control/a.go", `import "dfsd/engine"`, `meta/control/a.go:2: meta must not import dfsd/engine`},
		{"client/a.go", `import "dfsd/config"`, `client/a.go:2: client must not import dfsd/config`},
		{"config/a.go", `import "dfsd/node"`, `config/a.go:2: config must not import dfsd/node`},
		{"node/a.go", `import "dfsd/cli"`, `node/a.go:2: node must not import dfsd/cli`},
		{"main.go", `import "dfsd/engine"`, `main.go:2: main.go must not import dfsd/engine`},
		{"common/a.go", ``, `common/a.go:1: common is not on the ladder`},
		{"node/a.go", `import "github.com/spf13/viper"`, `node/a.go:2: node must not import github.com/spf13/viper: it belongs to config`},
		{"engine/a.go", `import "github.com/spf13/pflag"`, `engine/a.go:2: engine must not import github.com/spf13/pflag: it belongs to config, cli`},
		{"engine/a.go", `import "os"`, `engine/a.go:2: imports os: what a pure package needs is handed to it`},
		{"engine/a.go", `import "os/exec"`, `engine/a.go:2: imports os/exec: what a pure package needs is handed to it`},
		{"meta/a.go", `func init() {}`, `meta/a.go:2: func init`},
		{"meta/a.go", "import n \"net\"\nvar x = n.Dial", `meta/a.go:3: uses net.Dial: what a pure package needs is handed to it`},
		{"meta/a.go", "import \"net\"\nfunc f() { (&net.Dialer{}).Dial() }", `meta/a.go:3: uses net.Dialer: what a pure package needs is handed to it`},
		{"meta/a.go", "import \"net\"\nfunc f() { net.Listen() }", `meta/a.go:3: uses net.Listen: what a pure package needs is handed to it`},
		{"meta/a.go", "var n int\nfunc f() { n = 1 }", `meta/a.go:3: changes the package's n`},
		{"meta/a.go", "var n int\nfunc f() { n++ }", `meta/a.go:3: changes the package's n`},
		{"meta/a.go", "var n []int\nfunc f() { n[0], _ = 1, 2 }", `meta/a.go:3: changes the package's n`},
		{"meta/a.go", "var n struct{ m map[int]int }\nfunc f() { (*&n).m[0] += 1 }", `meta/a.go:3: changes the package's n`},
		{"meta/a.go", "var n int\nfunc f() *int { return &n }", `meta/a.go:3: changes the package's n`},
		{"meta/a.go", "var n map[int]int\nfunc f() { delete(n, 1) }", `meta/a.go:3: changes the package's n`},
		{"meta/a.go", "var n map[int]int\nfunc f() { for n[0] = range 3 {} }", `meta/a.go:3: changes the package's n`},
		{"meta/a.go", "import \"sync\"\nvar mu sync.Mutex", `meta/a.go:3: mu of sync is state of the package`},
		{"meta/a.go", "import \"sync/atomic\"\nvar a = atomic.Int64{}", `meta/a.go:3: a of sync/atomic is state of the package`},
		{"meta/a.go", "import \"sync\"\nvar p = &sync.Pool{}", `meta/a.go:3: p of sync is state of the package`},
		{"meta/a.go", "import \"x.org/y\"\nfunc f() { y.Default = nil }", `meta/a.go:3: changes Default of x.org/y`},
		{"meta/a.go", "func f( {", `meta/a.go:2:9: expected ')', found '{'`},
	} {
		faults, err := checkLadder(fixture(c.file, c.text))
		if err != nil {
			faults = []string{err.Error()}
		}
		if !slices.Contains(faults, c.want) {
			t.Errorf("%s: %s:\n got %q\nwant %q", c.file, c.text, faults, c.want)
		}
	}
	for _, c := range []struct{ file, text string }{
		{"meta/control/a.go", "import \"dfsd/meta/other\"\nimport \"dfsd/transport/wire\""},
		{"meta/a_test.go", "import \"os\"\nimport \"dfsd/sim\""},
		{"meta/a.go", "var n = 1\nfunc f() { n := 2; n++; m := n; m = 3; _ = m; _ = n }"},
		{"meta/a.go", "import \"errors\"\nvar e = errors.New(\"\")\ntype t struct{ n int }\nvar n t\nfunc (x *t) f() { x.n = n.n }"},
		{"meta/a.go", "import \"net\"\nfunc f(c net.Conn) { _ = net.JoinHostPort(``, ``) }"},
		{"meta/a.go", "import \"net\"\nvar l net.Listener"},
		{"meta/a.pb.go", "// Code generated by hand. DO NOT EDIT.\n\npackage p\nvar n int\nfunc init() { n = 1 }"},
		{"meta/testdata/a.go", "func init() {}"},
		{"node/a.go", "import \"os\"\nimport \"dfsd/config\""},
	} {
		faults, err := checkLadder(fixture(c.file, c.text))
		if err != nil || len(faults) > 0 {
			t.Errorf("%s: %s: %v, %q", c.file, c.text, err, faults)
		}
	}
}

// fixture is a module of one file, of package p where it does not say so.
func fixture(name, text string) fs.FS {
	if !strings.Contains(text, "package p\n") {
		text = "package p\n" + text + "\n"
	}
	return fstest.MapFS{name: {Data: []byte(text)}}
}

// checkLadder reads every package of the module and returns what breaks a
// rule, as file:line: text.
func checkLadder(fsys fs.FS) ([]string, error) {
	c := &checker{files: token.NewFileSet(), ladder: ladder()}
	packages := make(map[string][]*ast.File) // by directory
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		base := path.Base(name)
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (base == "testdata" || strings.HasPrefix(base, ".")):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go"):
			return nil
		}
		src, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(c.files, name, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		packages[path.Dir(name)] = append(packages[path.Dir(name)], file)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, dir := range slices.Sorted(maps.Keys(packages)) {
		c.check(dir, packages[dir])
	}
	return c.faults, nil
}

// checker gathers the faults of packages.
type checker struct {
	files  *token.FileSet
	ladder map[string]rung
	faults []string

	// Of the package at hand.
	info  types.Info
	scope *types.Scope
}

func (c *checker) fault(at token.Pos, format string, args ...any) {
	p := c.files.Position(at)
	c.faults = append(c.faults, fmt.Sprintf("%s:%d: %s", p.Filename, p.Line, fmt.Sprintf(format, args...)))
}

func (c *checker) check(dir string, files []*ast.File) {
	name, _, _ := strings.Cut(dir, "/")
	if name == "." {
		name = "main.go"
	}
	r, ok := c.ladder[name]
	if !ok {
		c.fault(files[0].Pos(), "%s is not on the ladder", name)
		return
	}
	// Names are resolved within the package; what comes from elsewhere is not
	// known and need not be.
	conf := types.Config{Error: func(error) {}, Importer: noImporter{}}
	c.info = types.Info{Uses: make(map[*ast.Ident]types.Object)}
	pkg, _ := conf.Check(dir, c.files, files, &c.info)
	c.scope = pkg.Scope()
	for _, f := range files {
		c.imports(name, r, f)
		if r.pure && !ast.IsGenerated(f) {
			c.purity(f)
		}
	}
}

// noImporter leaves imported packages empty.
type noImporter struct{}

func (noImporter) Import(path string) (*types.Package, error) {
	return nil, fmt.Errorf("%s is not looked at", path)
}

func (c *checker) imports(name string, r rung, f *ast.File) {
	for _, spec := range f.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value)
		first, _, _ := strings.Cut(imported, "/")
		home, homed := homes()[imported]
		switch {
		case strings.HasPrefix(imported, module):
			to, _, _ := strings.Cut(strings.TrimPrefix(imported, module), "/")
			if to != name && !slices.Contains(strings.Fields(r.imports), to) {
				c.fault(spec.Pos(), "%s must not import %s", name, imported)
			}
		case homed && !slices.Contains(home, name):
			c.fault(spec.Pos(), "%s must not import %s: it belongs to %s", name, imported, strings.Join(home, ", "))
		case r.std && strings.Contains(first, "."):
			c.fault(spec.Pos(), "%s must not import %s: the standard library only", name, imported)
		case r.pure && (first == "os") && !c.excepted(spec.Pos(), "os"):
			c.fault(spec.Pos(), "imports %s: what a pure package needs is handed to it", imported)
		}
	}
}

// excepted reports whether the file, or its directory, may use what.
func (c *checker) excepted(at token.Pos, what string) bool {
	name := c.files.Position(at).Filename
	_, file := exceptions()[name+" "+what]
	_, dir := exceptions()[path.Dir(name)+" "+what]
	return file || dir
}

// purity finds state of the package, and ways around what it is handed.
func (c *checker) purity(f *ast.File) {
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name == "init" {
				c.fault(d.Pos(), "func init")
			}
		case *ast.GenDecl:
			if d.Tok == token.VAR {
				c.variables(d)
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for _, e := range n.Lhs {
				c.changed(e)
			}
		case *ast.RangeStmt:
			c.changed(n.Key)
			c.changed(n.Value)
		case *ast.IncDecStmt:
			c.changed(n.X)
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				c.changed(n.X)
			}
		case *ast.CallExpr:
			if fun, ok := n.Fun.(*ast.Ident); ok && (fun.Name == "delete" || fun.Name == "clear" || fun.Name == "copy") && len(n.Args) > 0 {
				c.changed(n.Args[0])
			}
		case *ast.SelectorExpr:
			if c.packageOf(n.X) == "net" && reachesHost(n.Sel.Name) && !c.excepted(n.Pos(), "net") {
				c.fault(n.Pos(), "uses net.%s: what a pure package needs is handed to it", n.Sel.Name)
			}
		}
		return true
	})
}

// reachesHost reports whether a name of package net leads to the host's
// network. Types of connections and functions over text do not.
func reachesHost(name string) bool {
	way := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
	return name != "Listener" && slices.ContainsFunc([]string{"Dial", "Listen", "Lookup", "Resolve", "DefaultResolver", "Interface"}, way)
}

// variables finds locks, pools and counters among a package's variables.
func (c *checker) variables(d *ast.GenDecl) {
	for _, spec := range d.Specs {
		v := spec.(*ast.ValueSpec)
		for i, name := range v.Names {
			where := []ast.Expr{v.Type}
			if i < len(v.Values) {
				where = append(where, v.Values[i])
			}
			for _, e := range where {
				if from := c.packageOf(typeOf(e)); from == "sync" || from == "sync/atomic" {
					c.fault(name.Pos(), "%s of %s is state of the package", name.Name, from)
				}
			}
		}
	}
}

// typeOf strips an expression of a variable's type or value down to the
// package that a type comes from.
func typeOf(e ast.Expr) ast.Expr {
	switch e := e.(type) {
	case *ast.UnaryExpr:
		return typeOf(e.X)
	case *ast.StarExpr:
		return typeOf(e.X)
	case *ast.CompositeLit:
		return typeOf(e.Type)
	case *ast.IndexExpr: // atomic.Pointer[T]
		return typeOf(e.X)
	case *ast.SelectorExpr:
		return e.X
	}
	return nil
}

// changed reports e when it is, or is part of, a package's variable.
func (c *checker) changed(e ast.Expr) {
	switch e := e.(type) {
	case *ast.ParenExpr:
		c.changed(e.X)
	case *ast.StarExpr:
		c.changed(e.X)
	case *ast.UnaryExpr:
		c.changed(e.X)
	case *ast.IndexExpr:
		c.changed(e.X)
	case *ast.SliceExpr:
		c.changed(e.X)
	case *ast.SelectorExpr:
		if from := c.packageOf(e.X); from != "" {
			c.fault(e.Pos(), "changes %s of %s", e.Sel.Name, from)
			return
		}
		c.changed(e.X)
	case *ast.Ident:
		if v, ok := c.info.Uses[e].(*types.Var); ok && v.Parent() == c.scope {
			c.fault(e.Pos(), "changes the package's %s", e.Name)
		}
	}
}

// packageOf returns the path of the package that an expression names, "" when
// it names none.
func (c *checker) packageOf(e ast.Expr) string {
	if id, ok := e.(*ast.Ident); ok {
		if p, ok := c.info.Uses[id].(*types.PkgName); ok {
			return p.Imported().Path()
		}
	}
	return ""
}

// TestBubbles keeps tests to the bubbles that bear the race detector.
func TestBubbles(t *testing.T) {
	const direct = "synctest." + "Test("
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		src, err := os.ReadFile(name)
		if bytes.Contains(src, []byte(direct)) {
			t.Errorf("%s: %s…): use sim/bubble, which says why", name, direct)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestModules: go.mod tells what this module imports from what comes along
// with it.
func TestModules(t *testing.T) {
	raw, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	direct := make(map[string]bool) // by module, with false for what comes along
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+) v\S+( // indirect)?$`).FindAllStringSubmatch(string(raw), -1) {
		direct[m[1]] = m[2] == ""
	}
	imported := make(map[string]bool)
	err = fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			p, _ := strconv.Unquote(spec.Path.Value)
			for at := p; at != "."; at = path.Dir(at) {
				if _, ok := direct[at]; ok {
					imported[at] = true
					break
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for m, d := range direct {
		if d != imported[m] {
			t.Errorf("%s: imported here %t, go.mod says %t: run go mod tidy", m, imported[m], d)
		}
	}
}
