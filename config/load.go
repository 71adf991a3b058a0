package config

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// The names that settings have outside of a file.
const (
	envPrefix  = "DFSD_"
	envTests   = envPrefix + "TEST_" // variables of the tests begin so,
	envE2E     = envPrefix + "E2E_"  // or so: they are no settings
	envConfig  = envPrefix + "CONFIG"
	flagConfig = "config"
)

// Input is where a configuration comes from.
type Input struct {
	Flags    *pflag.FlagSet                    // parsed, of ServerFlags or ClientFlags; nil: none
	Env      []string                          // name=value, as os.Environ returns it
	ReadFile func(name string) ([]byte, error) // os.ReadFile
}

// IsSetting reports whether a variable of the environment is taken for a
// setting, maybe one that does not exist.
func IsSetting(name string) bool {
	return strings.HasPrefix(name, envPrefix) && !strings.HasPrefix(name, envTests) && !strings.HasPrefix(name, envE2E)
}

// LoadServer returns the configuration of a process with roles. Error: Faults.
func LoadServer(in Input) (*Server, error) {
	l := newLoad(in, forServer)
	v := l.values
	if !l.unread {
		l.parse()
		v.server.Shared = v.shared
		l.completeServer(&v.server)
	}
	if err := l.sorted(); err != nil {
		return nil, err
	}
	return &v.server, nil
}

// LoadClient returns the configuration of a user of a cluster. Error: Faults.
func LoadClient(in Input) (*Client, error) {
	l := newLoad(in, forClient)
	v := l.values
	if !l.unread {
		l.parse()
		v.client.Shared = v.shared
		l.checkClient(&v.client)
	}
	if err := l.sorted(); err != nil {
		return nil, err
	}
	return &v.client, nil
}

// load is one configuration in the making.
type load struct {
	side     side
	settings []setting // of both sides
	flags    *pflag.FlagSet
	env      map[string]string
	path     string           // of the file; "": none
	file     map[string]entry // by key
	unread   bool             // the file: what it would say is not known
	layers   *viper.Viper     // a value is a []string of items, or the string of a flag
	values   *values
	faults   Faults
	bad      map[string]bool // settings with a fault: no consequences are drawn from them
}

func newLoad(in Input, side side) *load {
	l := &load{
		side:     side,
		settings: table(),
		flags:    in.Flags,
		env:      make(map[string]string),
		layers:   viper.New(),
		values:   new(values),
		bad:      make(map[string]bool),
	}
	if l.flags == nil {
		l.flags = pflag.NewFlagSet("none", pflag.ContinueOnError)
	}
	for _, s := range l.settings {
		if s.def != "" {
			l.layers.SetDefault(s.key, s.items(s.def))
		}
	}
	l.readEnv(in.Env) // before the file, which it may name
	l.mergeFile(in.ReadFile)
	l.mergeEnv()
	for _, s := range l.settings {
		if f := l.flags.Lookup(s.flag()); f != nil && s.side&side != 0 {
			if err := l.layers.BindPFlag(s.key, f); err != nil {
				l.fault("--"+f.Name, s.key, "", err.Error())
			}
		}
	}
	return l
}

// fault notes that something is wrong that has no place in the file.
func (l *load) fault(where, key, value, want string) {
	l.faults = append(l.faults, Fault{Where: where, Key: key, Value: value, Want: want})
	l.bad[key] = true
}

// wrong notes that item number i of a setting is.
func (l *load) wrong(key string, i int, value, want string) {
	where, line := l.where(key, i)
	l.faults = append(l.faults, Fault{where, key, strconv.Quote(value), want, line})
	l.bad[key] = true
}

// sorted returns the faults in their order, nil when there are none.
func (l *load) sorted() error {
	if len(l.faults) == 0 {
		return nil
	}
	inFile := func(f Fault) int { return cmp.Or(f.line, math.MaxInt) }
	slices.SortStableFunc(l.faults, func(a, b Fault) int { return cmp.Compare(inFile(a), inFile(b)) })
	return l.faults
}

// readEnv takes the variables with the prefix, and refuses unknown ones.
func (l *load) readEnv(env []string) {
	known := []string{envConfig}
	for _, s := range l.settings {
		known = append(known, s.env())
	}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if !IsSetting(name) || value == "" {
			continue
		}
		if !slices.Contains(known, name) {
			l.fault(name, "", "", noSuch("setting", envPrefix, name, known))
			continue
		}
		l.env[name] = value
	}
}

// mergeFile reads the file that a flag or else the environment names.
func (l *load) mergeFile(read func(string) ([]byte, error)) {
	where := envConfig
	l.path = l.env[envConfig]
	if f := l.flags.Lookup(flagConfig); f != nil && f.Changed {
		where, l.path = "--"+flagConfig, f.Value.String()
		if l.path == "" {
			l.unread = true
			l.fault(where, "", "", "want the path of a file")
		}
	}
	if l.path == "" {
		return
	}
	data, err := read(l.path)
	if err != nil {
		l.unread = true
		l.fault(where, "", strconv.Quote(l.path), "cannot be read: "+err.Error())
		return
	}
	entries, faults := readFile(l.path, data, l.settings)
	l.file, l.unread, l.faults = entries, entries == nil, append(l.faults, faults...)
	for _, f := range faults {
		l.bad[f.Key] = true
	}
	layer := make(map[string][]string)
	for _, s := range l.settings {
		e, ok := entries[s.key]
		if !ok {
			continue
		}
		if e.split {
			layer[s.key] = s.items(e.items[0].text)
			continue
		}
		layer[s.key] = make([]string, 0, len(e.items))
		for _, i := range e.items {
			layer[s.key] = append(layer[s.key], i.text)
		}
	}
	l.merge(layer)
}

func (l *load) mergeEnv() {
	layer := make(map[string][]string)
	for _, s := range l.settings {
		if value, ok := l.env[s.env()]; ok {
			layer[s.key] = s.items(value)
		}
	}
	l.merge(layer)
}

// merge puts a layer over those before.
func (l *load) merge(layer map[string][]string) {
	nested := make(map[string]any)
	for key, items := range layer {
		section, last := nested, key
		if head, tail, ok := strings.Cut(key, "."); ok {
			if nested[head] == nil {
				nested[head] = make(map[string]any)
			}
			section, last = nested[head].(map[string]any), tail
		}
		section[last] = items
	}
	if err := l.layers.MergeConfigMap(nested); err != nil {
		l.fault(l.path, "", "", err.Error())
	}
}

// items splits the text of a list. That of any other setting is one item.
func (s *setting) items(text string) []string {
	if !s.kind.list {
		return []string{text}
	}
	items := strings.Split(text, ",")
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return items
}

// parse turns the uppermost layer of each setting into its value.
func (l *load) parse() {
	for _, s := range l.settings {
		if s.side&l.side == 0 || !l.layers.IsSet(s.key) {
			continue
		}
		var items []string
		switch v := l.layers.Get(s.key).(type) {
		case []string:
			items = v
		case string:
			items = s.items(v)
		}
		if len(items) == 0 {
			l.wrong(s.key, 0, "", "an empty list: want "+s.kind.want)
			continue
		}
		for _, i := range s.kind.parse(l.values, items) {
			l.wrong(s.key, i, items[i], "want "+s.kind.want)
		}
	}
}

// where says where item number i of a setting comes from, and in which line
// of the file, 0 for elsewhere. A default comes from "".
func (l *load) where(key string, i int) (where string, line int) {
	s := l.row(key)
	if f := l.flags.Lookup(s.flag()); f != nil && f.Changed {
		return "--" + f.Name, 0
	}
	if _, ok := l.env[s.env()]; ok {
		return s.env(), 0
	}
	e, ok := l.file[key]
	if !ok {
		return "", 0
	}
	line = e.line
	if i < len(e.items) {
		line = e.items[i].line
	}
	return fmt.Sprintf("%s:%d", l.path, line), line
}

// given reports whether any layer sets the key.
func (l *load) given(key string) bool {
	where, _ := l.where(key, 0)
	return where != ""
}

func (l *load) row(key string) *setting {
	return &l.settings[slices.IndexFunc(l.settings, func(s setting) bool { return s.key == key })]
}

// ServerFlags returns the flags of a process with roles.
func ServerFlags() *pflag.FlagSet { return newFlags(forServer) }

// ClientFlags returns the flags that every command for a cluster takes.
func ClientFlags() *pflag.FlagSet { return newFlags(forClient) }

func newFlags(side side) *pflag.FlagSet {
	fs := pflag.NewFlagSet("dfsd", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})
	fs.String(flagConfig, "", "YAML `file` with settings, before environment and flags ("+envConfig+")")
	for _, s := range table() {
		if s.side&side == 0 {
			continue
		}
		f := fs.VarPF(&flagValue{typ: s.kind.typ, list: s.kind.list}, s.flag(), "", s.doc)
		f.DefValue = cmp.Or(s.def, s.derived)
		if s.derived == required {
			f.DefValue, f.Usage = "", s.doc+" (required)"
		}
		if s.kind.typ == boolType {
			f.NoOptDefVal = "true"
		}
	}
	return fs
}

// ParseServerFlags parses the arguments of a process with roles. Error:
// pflag.ErrHelp, or Faults.
func ParseServerFlags(args []string) (*pflag.FlagSet, error) {
	fs := ServerFlags()
	fs.Usage = func() {}
	err := fs.Parse(args)
	var unknown *pflag.NotExistError
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return nil, err
	case errors.As(err, &unknown):
		var names []string
		fs.VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
		flag := "--" + unknown.GetSpecifiedName()
		return nil, Faults{{Where: flag, Want: noSuch("flag", "--", flag, names)}}
	case err != nil:
		return nil, Faults{{Want: err.Error()}}
	case fs.NArg() > 0:
		return nil, Faults{{Value: strconv.Quote(fs.Arg(0)), Want: "a server takes flags only"}}
	}
	return fs, nil
}

// flagValue keeps the text of a flag; a list that is given again grows.
type flagValue struct {
	typ  string
	list bool
	text string
	set  bool
}

func (f *flagValue) String() string { return f.text }
func (f *flagValue) Type() string   { return f.typ }

func (f *flagValue) Set(text string) error {
	if f.list && f.set {
		text = f.text + "," + text
	}
	f.text, f.set = text, true
	return nil
}
