package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gofrs/flock"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"dfsd/dfs"
)

// The ports of a dev cluster, from the first on, and so how many nodes there can
// be: with the ports of HTTP no two are the same.
const (
	devPort        = 7400 // the first, of the first meta node
	devStoragePort = 10   // of the first storage node, after the first
	devHTTPPort    = 100  // of a node's HTTP, after the node's

	maxDevMeta    = devStoragePort
	maxDevStorage = 60
	maxDevPort    = 65535 - devStoragePort - maxDevStorage - devHTTPPort
)

// Files in the directory of a dev cluster, beside NAME, NAME.yaml and NAME.log
// of each node.
const (
	devFile   = "dev.json"
	devLock   = "LOCK"
	devFormat = 1
)

// devPlan is what a dev cluster is made of; its directory keeps it.
type devPlan struct {
	Format  int    `json:"format"`
	Meta    int    `json:"meta"`    // nodes
	Storage int    `json:"storage"` // nodes
	Port    int    `json:"port"`    // the first
	Class   string `json:"class"`   // default_class of the cluster
}

func newDev(a *app) *cobra.Command {
	dir, plan := "", devPlan{Format: devFormat}
	cmd := &cobra.Command{
		Use:   "dev [--dir DIR] [--meta N] [--storage N]",
		Short: "Run a whole replicated cluster on this machine",
		Long: `Run a whole replicated cluster on this machine: processes of this binary on loopback, with their
data, configuration and logs below DIR. Interrupt it (Ctrl-C) to stop all of them; the next start
goes on with the same data. Settings come from the environment, such as DFSD_GRACE_PERIOD=5s; the file
that DFSD_CONFIG names is not read, for each process has one below DIR.

A process that ends by itself is reported, with the command that starts it again, and is not
started again by itself: repair should be seen. One that you start again by hand is yours:
Ctrl-C in its own terminal stops it, and Ctrl-C here leaves it running.`,
		Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var given error
			cmd.InheritedFlags().Visit(func(f *pflag.Flag) {
				given = usagef("dev: --%s is for commands that use a cluster: settings of this one come from the environment, as DFSD_…", f.Name)
			})
			if given != nil {
				return given
			}
			d, err := openDev(a, dir, plan, cmd.Flags().Changed)
			if err != nil {
				return fmt.Errorf("dev: %w", err)
			}
			defer d.close()
			if err := d.run(cmd.Context()); err != nil {
				return fmt.Errorf("dev: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "dfsd-data", "directory of the cluster")
	cmd.Flags().IntVar(&plan.Meta, "meta", 3, fmt.Sprintf("number of meta nodes, 1 to %d", maxDevMeta))
	cmd.Flags().IntVar(&plan.Storage, "storage", 4, fmt.Sprintf("number of storage nodes, 1 to %d; a later start may add some", maxDevStorage))
	cmd.Flags().IntVar(&plan.Port, "port", devPort, fmt.Sprintf("first port: meta nodes from there, storage nodes %d after it, HTTP of each node %d after its own", devStoragePort, devHTTPPort))
	return cmd
}

// dev is a cluster of processes on this machine.
type dev struct {
	a     *app
	dir   string // absolute
	plan  devPlan
	lock  *flock.Flock
	nodes []*devNode
}

// openDev takes the directory, and makes out of what is in it and the flags
// what the cluster consists of.
func openDev(a *app, dir string, want devPlan, given func(flag string) bool) (_ *dev, err error) {
	switch {
	case want.Meta < 1 || want.Meta > maxDevMeta:
		return nil, usagef("--meta %d: want 1 to %d", want.Meta, maxDevMeta)
	case want.Storage < 1 || want.Storage > maxDevStorage:
		return nil, usagef("--storage %d: want 1 to %d", want.Storage, maxDevStorage)
	case want.Port < 1024 || want.Port > maxDevPort:
		return nil, usagef("--port %d: want 1024 to %d", want.Port, maxDevPort)
	}
	d := &dev{a: a}
	if d.dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, fmt.Errorf("%s: %w", quote(d.dir), cause(err))
	}
	if _, err := d.load(); err != nil { // before anything is written into a directory of somebody else
		return nil, fmt.Errorf("%s: %w", quote(d.dir), err)
	}
	if err := d.takeLock(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	old, err := d.load()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", quote(d.dir), err)
	}
	if d.plan, err = old.merge(want, given); err != nil {
		return nil, fmt.Errorf("%s: %w", quote(d.dir), err)
	}
	d.nodes = d.plan.nodes(d.dir)
	return d, d.checkSettings(old.Meta == 0)
}

// takeLock keeps a second dfsd dev out of the directory.
func (d *dev) takeLock() error {
	name := filepath.Join(d.dir, devLock)
	d.lock = flock.New(name)
	ok, err := d.lock.TryLock()
	if err != nil {
		return fmt.Errorf("%s: %w", quote(name), cause(err))
	}
	if !ok {
		pid, _ := os.ReadFile(name) // for people only
		return withHint(fmt.Errorf("%s: another dfsd dev%s runs there", quote(d.dir), pidText(pid)), "stop it, or name another directory with --dir")
	}
	return os.WriteFile(name, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644)
}

// pidText names the process whose number a file holds.
func pidText(file []byte) string {
	if pid := strings.TrimSpace(string(file)); pid != "" {
		return " (PID " + pid + ")"
	}
	return ""
}

func (d *dev) close() { _ = d.lock.Close() } // the process is about to end anyway

// load reads what the directory says; a plan without nodes: nothing yet.
func (d *dev) load() (plan devPlan, err error) {
	b, err := os.ReadFile(filepath.Join(d.dir, devFile))
	if errors.Is(err, fs.ErrNotExist) {
		return devPlan{}, d.checkEmpty()
	}
	if err != nil {
		return plan, err
	}
	r := json.NewDecoder(bytes.NewReader(b))
	r.DisallowUnknownFields()
	if err := r.Decode(&plan); err != nil {
		return plan, fmt.Errorf("%s cannot be read: %w", devFile, err)
	}
	if plan.Format != devFormat {
		return plan, fmt.Errorf("%s has format %d, and this release knows %d", devFile, plan.Format, devFormat)
	}
	if plan.Meta < 1 || plan.Meta > maxDevMeta || plan.Storage < 1 || plan.Storage > maxDevStorage || plan.Port < 1 || plan.Port > maxDevPort {
		return plan, fmt.Errorf("%s is damaged: %d meta nodes, %d storage nodes from port %d", devFile, plan.Meta, plan.Storage, plan.Port)
	}
	return plan, nil
}

// checkEmpty refuses a directory of somebody else.
func (d *dev) checkEmpty() error {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); !slices.Contains([]string{devLock, devFile + ".tmp", "lost+found"}, name) {
			return withHint(fmt.Errorf("it holds %s and no %s: this is no directory of dfsd dev", quote(name), devFile), "name another one with --dir")
		}
	}
	return nil
}

// merge makes the plan of this start out of that of the last one, which may be
// none, and the flags.
func (old devPlan) merge(want devPlan, given func(flag string) bool) (devPlan, error) {
	if old.Meta == 0 {
		want.Class = dfs.Replicated(min(3, want.Storage)).String()
		return want, nil
	}
	switch {
	case given("meta") && want.Meta != old.Meta:
		return old, usagef("--meta %d: the cluster was formed with %s, and this release does not change that", want.Meta, plural(old.Meta, "meta node"))
	case given("storage") && want.Storage < old.Storage:
		return old, usagef("--storage %d: the cluster has %s, which hold its data: nodes are added here, never taken away", want.Storage, plural(old.Storage, "storage node"))
	case given("port") && want.Port != old.Port:
		return old, usagef("--port %d: the cluster was formed at port %d, and its meta nodes stay where they are", want.Port, old.Port)
	case given("storage"):
		old.Storage = want.Storage
	}
	return old, nil
}

// save keeps the plan, and writes the configuration of each node anew.
func (d *dev) save() error {
	b, err := json.Marshal(d.plan)
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(d.dir, devFile), append(b, '\n')); err != nil {
		return err
	}
	for _, n := range d.nodes {
		if err := replaceFile(n.config(), d.config(n)); err != nil {
			return err
		}
	}
	return nil
}

// config is the configuration file of a node.
func (d *dev) config(n *devNode) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Written by dfsd dev at each start: settings come from the environment, DFSD_*.\n")
	fmt.Fprintf(&b, "role: %s\nname: %s\ndir: %q\nlisten: %s\nmeta:\n", n.role, n.name, n.data(), n.addr())
	for _, m := range d.nodes {
		if m.role == dfs.RoleMeta {
			fmt.Fprintf(&b, "  - %s=%s\n", m.name, m.addr())
		}
	}
	if n.role == dfs.RoleMeta {
		fmt.Fprintf(&b, "default_class: %s\n", d.plan.Class)
	} else {
		b.WriteString("segment_size: 64MiB # all stores share one disk, and a segment is filled with zeros first\n")
	}
	return b.Bytes()
}

// replaceFile writes a file durably, whole or not at all.
func replaceFile(name string, content []byte) error {
	temp := name + ".tmp"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
