package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/meta/control"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/repair"
	"dfsd/transport/wire"
)

// How many inodes the figures of meta-large load.
const (
	largeInodes = 10_000_000
	minInodes   = 10_000
	maxInodes   = 1_000_000_000
)

const (
	// someInodes is how many inodes meta/disk-inode makes.
	someInodes = 100_000

	// dirFiles is how many files a loaded directory has.
	dirFiles = 1000

	// loaders is how many sessions load at a time: as many as fill a batch, and
	// fewer than the proposals that a group takes.
	loaders = 256

	// loadSession is the first session of the loaders: no client gets so far.
	loadSession = 1 << 30
)

// metaValues are the figures of the metadata that have a bound or a size and no
// baseline.
func metaValues() []figure {
	return []figure{
		{name: "meta/disk-inode", value: diskFigure},
		{name: "meta-large/resident", value: func(ctx context.Context, e *env) (string, error) {
			l, err := e.load(ctx)
			if err != nil {
				return "", err
			}
			return l.resident, nil
		}},
		{name: "meta-large/restart", value: func(ctx context.Context, e *env) (string, error) {
			l, err := e.load(ctx)
			if err != nil {
				return "", err
			}
			return l.restart, nil
		}},
	}
}

// generator loads files into one namespace group of a meta node that is alone, by
// commands as clients send them, proposed, synced and applied like those, but
// in this process: many sessions, each of which makes directories of dirFiles files
// with one block each.
type generator struct {
	host *raftgroup.Host
	made atomic.Int64
}

// loadGroup is the namespace group that is loaded: the root's, so that what is
// loaded can be found from there.
var loadGroup = dfs.RootIno.Group()

// openGenerator opens the stores of a meta node.
func openGenerator(dir string) (*generator, error) {
	h, err := raftgroup.Open(raftgroup.Options{
		FS: vfs.Default, Dir: dir, Node: 1, Tick: 10 * time.Millisecond,
		StateMachine: func(g dfs.GroupID) raftgroup.StateMachine {
			if g == dfs.ControlGroup {
				return control.New(repair.Rules{})
			}
			return namespace.New(g, namespace.Options{})
		},
		Send: func(dfs.NodeID, raftgroup.Lane, []byte) bool { return false },
	})
	if err != nil {
		return nil, err
	}
	return &generator{host: h}, nil
}

// propose commits one entry; until the group has a leader it tries again.
func (g *generator) propose(ctx context.Context, e *wire.LogEntry) (*wire.Result, error) {
	e.Version = uint64(time.Now().UnixMilli()) << 16
	data, err := proto.Marshal(e)
	if err != nil {
		return nil, err
	}
	for {
		reply, err := g.host.Propose(ctx, loadGroup, data)
		switch {
		case err == nil:
			res := &wire.Result{}
			if err := proto.Unmarshal(reply, res); err != nil {
				return nil, err
			}
			return res, res.ToError("load", loadGroup.String())
		case !dfs.KindOf(err).Retryable() || ctx.Err() != nil:
			return nil, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// found makes the group, where there is no cluster that has it.
func (g *generator) found(ctx context.Context) error {
	if err := g.host.CreateGroup(loadGroup, []dfs.NodeID{1}); err != nil {
		return err
	}
	_, err := g.propose(ctx, &wire.LogEntry{Entry: &wire.LogEntry_Init{Init: &wire.InitOp{Group: uint32(loadGroup), DefaultClass: "rep3"}}})
	return err
}

// run loads so many files, and a directory for every dirFiles of them.
func (g *generator) run(ctx context.Context, e *env, files int) error {
	var dirs atomic.Int64
	report := time.Now()
	_, err := loop(ctx, loadTime, loaders, func(ctx context.Context, worker int) error {
		n := int(dirs.Add(1) - 1)
		if n*dirFiles >= files {
			return errEnough
		}
		if worker == 0 && time.Since(report) > 10*time.Second {
			report = time.Now()
			fmt.Fprintf(e.opts.Log, "bench:   %d of %d inodes\n", g.made.Load(), files)
		}
		return g.directory(ctx, n, min(dirFiles, files-n*dirFiles))
	})
	return err
}

// directory makes the n-th directory and its files, as a session of its own.
func (g *generator) directory(ctx context.Context, n, files int) error {
	session, seq := dfs.SessionID(loadSession+n), uint64(0)
	command := func(cmd *wire.Command) (*wire.Result, error) {
		seq++
		cmd.Session, cmd.Seq, cmd.Floor = uint64(session), seq, seq
		return g.propose(ctx, &wire.LogEntry{Entry: &wire.LogEntry_Command{Command: cmd}})
	}
	res, err := command(&wire.Command{Op: &wire.Command_Mkdir{Mkdir: &wire.MkdirOp{Parent: uint64(dfs.RootIno), Name: []byte(loadedDir(n)), Mode: 0o755}}})
	if err != nil {
		return err
	}
	dir := res.GetAttr().GetIno()
	if res, err = command(&wire.Command{Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: uint32(files)}}}); err != nil {
		return err
	}
	first := res.GetLeased()[0].GetFirst()
	for i := range files {
		ino := first + uint64(i)
		block := dfs.BlockID{PG: 1, Ino: dfs.Ino(ino), Session: session, Counter: uint64(i + 1)}
		_, err := command(&wire.Command{Op: &wire.Command_Create{Create: &wire.CreateOp{
			Parent: dir, Name: []byte(loadedFile(i)), Ino: ino, Type: wire.FileType_FILE, Mode: 0o644, Size: 4 << 10,
			Extents: []*wire.Extent{{Length: 4 << 10, Block: block.Bytes(), BlockLength: 4 << 10}},
		}}})
		if err != nil {
			return err
		}
		g.made.Add(1)
	}
	return nil
}

func loadedDir(n int) string  { return fmt.Sprintf("d%07d", n) }
func loadedFile(n int) string { return fmt.Sprintf("file-%06d.dat", n) }

// diskFigure says how many bytes on disk an inode takes: one file with a name of 15
// bytes and one extent, when all has been flushed and compacted. The log is what a
// group keeps for peers that were away, whatever it holds besides.
func diskFigure(ctx context.Context, e *env) (_ string, err error) {
	dir, err := e.subdir("meta/disk-inode")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	g, err := openGenerator(dir)
	if err != nil {
		return "", err
	}
	if err = g.found(ctx); err == nil {
		err = g.run(ctx, e, someInodes)
	}
	if err = errors.Join(err, g.host.Close()); err != nil {
		return "", err
	}
	var sizes [2]float64
	for i, store := range []string{"raft-state", "raft-log"} {
		if sizes[i], err = compactedSize(filepath.Join(dir, store)); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%8s B/inode    log=%s kept-entries=10000 inodes=%d", number(sizes[0]/float64(g.made.Load())), mibs(sizes[1]), g.made.Load()), nil
}

// compactedSize compacts all of a Pebble store that nobody has open, and returns
// the bytes of its tables.
func compactedSize(dir string) (float64, error) {
	db, err := pebble.Open(dir, &pebble.Options{Logger: silent{}})
	if err != nil {
		return 0, err
	}
	err = db.Compact(context.Background(), []byte{0}, []byte{0xff, 0xff, 0xff, 0xff}, true)
	return float64(db.Metrics().Total().TablesSize), errors.Join(err, db.Close())
}

// silent is a Pebble logger. What fails comes back as an error.
type silent struct{}

func (silent) Infof(string, ...any)  {}
func (silent) Errorf(string, ...any) {}
func (silent) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...)) // Pebble cannot go on
}

// loaded is what was found out about a meta node with many inodes.
type loaded struct{ resident, restart string }

// What the node with many inodes is asked before it is measured: as many names as
// fill its caches, and as many changes as an idle flush leaves to be replayed.
const (
	loadedReads   = 200_000
	loadedChanges = 20_000
	loadedWorkers = 64
)

// load loads one meta node, whose caches have 512 MiB, and measures it; once for
// all figures.
func (e *env) load(ctx context.Context) (_ *loaded, err error) {
	if e.loaded != nil {
		return e.loaded, nil
	}
	sh := shape{name: "loaded", metas: 1, settings: "meta_cache_size: 512MiB\n"}
	c, err := e.newCluster(ctx, sh) // which makes the cluster's groups
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.stop(), os.RemoveAll(c.dir)) }()
	n := c.nodes[0]
	c.close()
	c.close = nil
	if err := c.end(n, syscall.SIGTERM); err != nil {
		return nil, err
	}
	g, err := openGenerator(filepath.Join(c.dir, n.name, "raft"))
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := errors.Join(g.run(ctx, e, e.opts.Inodes), g.host.Close()); err != nil {
		return nil, err
	}
	fmt.Fprintf(e.opts.Log, "bench:   %d inodes loaded in %v\n", g.made.Load(), time.Since(begun).Round(time.Second))
	if err := c.begin(ctx, e, n); err != nil {
		return nil, err
	}
	if err := c.use(ctx, e.opts.Inodes); err != nil {
		return nil, err
	}
	rss, err := residentSize(n.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	l := &loaded{resident: fmt.Sprintf("%8s resident    limit=768MiB caches=512MiB inodes=%d", mibs(rss), g.made.Load())}
	if err := c.end(n, syscall.SIGKILL); err != nil {
		return nil, err
	}
	begun = time.Now()
	if err := c.begin(ctx, e, n); err != nil {
		return nil, err
	}
	took := time.Since(begun)
	used, err := n.cpu()
	if err != nil {
		return nil, err
	}
	read, err := bytesRead(n.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	l.restart = fmt.Sprintf("%8s cpu    limit=5s read=%s took=%s inodes=%d", number(used.Seconds())+"s", mibs(read), number(took.Seconds())+"s", g.made.Load())
	e.loaded = l
	return l, nil
}

// begin starts the only node again, and waits until it serves the root.
func (c *cluster) begin(ctx context.Context, e *env, n *node) (err error) {
	if c.close != nil {
		c.close()
		c.close = nil
	}
	if err := c.launch(n, e); err != nil {
		return err
	}
	if c.client, c.close, err = c.connectClient(ctx, e, client.Options{}); err != nil {
		return err
	}
	_, err = c.client.Stat(ctx, "/")
	return err
}

// use has many callers find random files, and change some.
func (c *cluster) use(ctx context.Context, files int) error {
	var asked atomic.Int64
	_, err := loop(ctx, loadTime, loadedWorkers, func(ctx context.Context, _ int) error {
		k := asked.Add(1)
		if k > loadedReads {
			return errEnough
		}
		i := rand.IntN(files)
		name := "/" + loadedDir(i/dirFiles) + "/" + loadedFile(i%dirFiles)
		a, err := c.client.Stat(ctx, name)
		if err != nil || k%(loadedReads/loadedChanges) > 0 {
			return err
		}
		now := time.Now()
		_, err = c.client.Inode(a.Ino).SetAttr(ctx, client.SetAttr{Mtime: &now})
		return err
	})
	return err
}

// loadTime bounds the loading of any number of inodes.
const loadTime = 24 * time.Hour

// residentSize is the memory of a process that is in RAM.
func residentSize(pid int) (float64, error) {
	kib, err := procField(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:")
	return kib * 1024, err
}

// bytesRead is what a process has read of files and sockets, from the page cache
// or not.
func bytesRead(pid int) (float64, error) { return procField(fmt.Sprintf("/proc/%d/io", pid), "rchar:") }

// procField reads the number behind a name in a file of /proc.
func procField(name, field string) (float64, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, field); ok {
			f := strings.Fields(rest)
			if len(f) == 0 {
				break
			}
			return strconv.ParseFloat(f[0], 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", name, field)
}
