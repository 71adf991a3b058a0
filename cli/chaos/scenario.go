package chaos

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/goccy/go-yaml"
)

// Scenario is a file of steps.
type Scenario struct {
	Version int             `yaml:"version"` // 1
	Name    string          `yaml:"name"`
	About   string          `yaml:"about"`
	Cluster ClusterSpec     `yaml:"cluster"`
	Trees   map[string]Tree `yaml:"trees"`
	Steps   []Step          `yaml:"steps"`
}

// ClusterSpec names the configuration files of the nodes, NAME.yaml each.
type ClusterSpec struct {
	Configs string            `yaml:"configs"` // directory, relative to the scenario
	Nodes   []string          `yaml:"nodes"`
	Env     map[string]string `yaml:"env"` // DFSD_* settings of every node
}

// Tree is something to store: a directory of this machine, or a generated one.
type Tree struct {
	From string `yaml:"from"` // goroot-src, or odd: see makeOdd
}

// Step is one step; exactly one of its actions is set.
type Step struct {
	Start  []string  `yaml:"start,omitempty"` // nodes, or all
	Kill   []string  `yaml:"kill,omitempty"`  // SIGKILL; nodes, all, or leader (of the control group)
	Stop   []string  `yaml:"stop,omitempty"`  // SIGTERM, and exit code 0 is expected
	Wait   string    `yaml:"wait,omitempty"`  // ready or full
	Put    *Transfer `yaml:"put,omitempty"`
	Get    *Transfer `yaml:"get,omitempty"` // and compare
	Spread *Spread   `yaml:"spread,omitempty"`
	Refuse *Refuse   `yaml:"refuse,omitempty"`
	During []Fault   `yaml:"during,omitempty"` // faults while put or get runs
}

// Transfer stores a tree below a path, or reads it back and compares.
type Transfer struct {
	Tree string `yaml:"tree"`
	Path string `yaml:"path"`
}

// Spread demands that every namespace group owns a share of the inodes.
type Spread struct {
	Percent float64 `yaml:"percent"`
}

// Refuse demands that a write is refused, with a text in the error.
type Refuse struct {
	Path string `yaml:"path"`
	Text string `yaml:"text"`
}

// Fault happens during a step, once the cluster holds this many more inodes
// than when the step began, or, at a get, once this many files came back.
type Fault struct {
	After int      `yaml:"after"`
	Kill  []string `yaml:"kill,omitempty"`
	Start []string `yaml:"start,omitempty"` // nodes, all, or killed: what earlier faults of the step killed
}

// Load reads and checks a scenario.
func Load(file string) (*Scenario, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	s := &Scenario{}
	if err := yaml.NewDecoder(bytes.NewReader(raw), yaml.Strict()).Decode(s); err != nil {
		return nil, fmt.Errorf("scenario %s: %w", file, err)
	}
	if s.Version != 1 {
		return nil, fmt.Errorf("scenario %s: version %d: this release knows 1", file, s.Version)
	}
	s.Cluster.Configs = filepath.Join(filepath.Dir(file), s.Cluster.Configs)
	for i, st := range s.Steps {
		if err := s.check(st); err != nil {
			return nil, fmt.Errorf("scenario %s: step %d: %w", file, i+1, err)
		}
	}
	return s, nil
}

func (s *Scenario) check(st Step) error {
	set := 0
	for _, is := range []bool{st.Start != nil, st.Kill != nil, st.Stop != nil, st.Wait != "", st.Put != nil, st.Get != nil, st.Spread != nil, st.Refuse != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		return fmt.Errorf("%d actions: want one", set)
	}
	if st.Wait != "" && st.Wait != "ready" && st.Wait != "full" {
		return fmt.Errorf("wait: %q: want ready or full", st.Wait)
	}
	for _, tr := range []*Transfer{st.Put, st.Get} {
		if tr != nil && s.Trees[tr.Tree].From == "" {
			return fmt.Errorf("tree %q is not declared", tr.Tree)
		}
	}
	for _, t := range s.Trees {
		if t.From != "goroot-src" && t.From != "odd" {
			return fmt.Errorf("tree from %q: want goroot-src or odd", t.From)
		}
	}
	for _, names := range [][]string{st.Start, st.Kill, st.Stop} {
		for _, n := range names {
			if n != "all" && n != "leader" && !slices.Contains(s.Cluster.Nodes, n) {
				return fmt.Errorf("there is no node %q", n)
			}
		}
	}
	return nil
}
