package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFile bounds a configuration file, in bytes: far above what all settings
// need, and small enough that no nesting keeps the parser for long.
const maxFile = 32 << 10

// item is a scalar of a file with the line where it stands, from 1 up.
type item struct {
	text string
	line int
}

// entry is what a file says of one key.
type entry struct {
	line  int // of the key
	items []item
	split bool // one item that may be several, separated by commas
}

// fileReader flattens a YAML document to dotted keys.
type fileReader struct {
	name    string
	known   map[string]*setting
	keys    []string // of known, in the order of the table
	entries map[string]entry
	faults  Faults
}

// readFile reads the settings of a file. What is wrong with its form, and keys
// that are not known, are faults; values are not looked at. The settings are
// nil when nothing can be said of them.
func readFile(name string, data []byte, settings []setting) (map[string]entry, Faults) {
	if len(data) > maxFile {
		return nil, Faults{{Where: name, Want: fmt.Sprintf("%d bytes long: want at most %d", len(data), maxFile)}}
	}
	doc, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, Faults{syntaxFault(name, err)}
	}
	r := &fileReader{name: name, known: make(map[string]*setting), entries: make(map[string]entry)}
	for i := range settings {
		r.known[settings[i].key] = &settings[i]
		r.keys = append(r.keys, settings[i].key)
	}
	bodies := slices.DeleteFunc(doc.Docs, func(d *ast.DocumentNode) bool { return empty(d.Body) })
	if len(bodies) == 0 {
		return r.entries, nil
	}
	if _, ok := pairs(bodies[0].Body); !ok {
		r.fault(line(bodies[0].Body), "", "want settings as key: value")
		return nil, r.faults
	}
	r.section("", bodies[0].Body)
	for _, d := range bodies[1:] {
		r.fault(line(d.Body), "", "a second document: want all settings in one")
	}
	return r.entries, r.faults
}

func empty(n ast.Node) bool {
	return n == nil || n.Type() == ast.NullType || n.Type() == ast.CommentType || n.Type() == ast.DirectiveType
}

func syntaxFault(name string, err error) Fault {
	var syntax yaml.Error
	if errors.As(err, &syntax) && syntax.GetToken() != nil {
		at := syntax.GetToken().Position.Line
		return Fault{Where: fmt.Sprintf("%s:%d", name, at), Want: "not YAML: " + syntax.GetMessage(), line: at}
	}
	return Fault{Where: name, Want: "not YAML: " + err.Error()}
}

func line(n ast.Node) int {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 1
}

func (r *fileReader) fault(line int, key, want string) {
	r.faults = append(r.faults, Fault{Where: fmt.Sprintf("%s:%d", r.name, line), Key: key, Want: want, line: line})
}

// pairs returns the keys and values of a mapping, false for anything else.
func pairs(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

// section reads the settings below a prefix.
func (r *fileReader) section(prefix string, n ast.Node) {
	values, ok := pairs(n)
	if !ok {
		r.fault(line(n), strings.TrimSuffix(prefix, "."), "want settings as key: value")
		return
	}
	for _, v := range values {
		name, ok := scalarText(v.Key)
		if !ok {
			r.fault(line(v.Key), strings.TrimSuffix(prefix, "."), "want a plain key")
			continue
		}
		r.value(prefix+name, line(v.Key), v.Value)
	}
}

func (r *fileReader) value(key string, at int, n ast.Node) {
	if s := r.known[key]; s != nil {
		r.setting(s, at, n)
		return
	}
	isSection := slices.ContainsFunc(r.keys, func(k string) bool { return strings.HasPrefix(k, key+".") })
	values, _ := pairs(n)
	switch {
	case isSection && empty(n): // all of it is commented out
	case isSection || len(values) > 0:
		r.section(key+".", n)
	default:
		r.fault(at, key, noSuch("setting", "", key, r.keys))
	}
}

// setting reads the value of a known key.
func (r *fileReader) setting(s *setting, at int, n ast.Node) {
	if first, twice := r.entries[s.key]; twice {
		r.fault(at, s.key, fmt.Sprintf("set already in line %d", first.line))
		return
	}
	e := entry{line: at}
	ok := false
	if text, isScalar := scalarText(n); isScalar {
		e.items, e.split, ok = []item{{text, line(n)}}, true, true
	} else if seq, isSeq := n.(*ast.SequenceNode); isSeq && s.kind.list {
		e.items, ok = sequence(seq)
	} else if values, isMapping := pairs(n); isMapping && s.kind.pairs {
		e.items, ok = mapping(values)
	}
	if !ok {
		r.fault(at, s.key, "want "+s.kind.want)
		return
	}
	r.entries[s.key] = e
}

// sequence reads a list of scalars.
func sequence(n *ast.SequenceNode) (items []item, ok bool) {
	for _, v := range n.Values {
		text, isScalar := scalarText(v)
		if !isScalar {
			return nil, false
		}
		items = append(items, item{text, line(v)})
	}
	return items, true
}

// mapping reads a mapping of scalars as a list of name=value.
func mapping(values []*ast.MappingValueNode) (items []item, ok bool) {
	for _, v := range values {
		name, ok1 := scalarText(v.Key)
		text, ok2 := scalarText(v.Value)
		if !ok1 || !ok2 {
			return nil, false
		}
		items = append(items, item{name + "=" + text, line(v.Key)})
	}
	return items, true
}

// scalarText returns a scalar as it was written. Anchors, aliases, tags, merge
// keys and null are not scalars here: no setting needs them.
func scalarText(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}
