package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"dfsd/client"
	"dfsd/dfs"
)

const (
	// metaWorkers is how many workers share one client: as many as one busy
	// process has.
	metaWorkers = 64

	// rawLog is the length of the raw files beside the log (bytes): about that
	// of one file of the write-ahead log.
	rawLog = 16 << 20

	// minStock is how many files each worker has to remove in a round, at least.
	minStock = 50
)

// heavyCred makes a command of about 256 bytes out of one that sets a time: a
// user with 51 supplementary groups, which every command carries.
func heavyCred() (c client.Cred) {
	for i := range uint32(51) {
		c.Groups = append(c.Groups, 1<<21+i)
	}
	return c
}

func metaFigures() (out []figure) {
	add := func(name, of string, workers []int, spread bool, fn func(context.Context, *env, *metaRig) (*pair, error)) {
		for _, w := range workers {
			name := fmt.Sprintf("meta/%s-w%d", name, w)
			out = append(out, figure{name: name, of: of, open: func(ctx context.Context, e *env) (*pair, error) {
				return openMeta(ctx, e, &metaRig{name: name, workers: w, spread: spread, any: strings.HasPrefix(name, "meta/read-any")}, fn)
			}})
		}
	}
	add("commit", "raw-append", []int{1, 16, 64, 256}, false, openCommits)
	add("commit-8g", "raw-append", []int{64, 256}, true, openCommits)
	add("read", "loopback", []int{1, 64, 256}, false, openReads)
	add("read-any", "loopback", []int{64, 256}, false, openReads)
	few := []int{1, 16, 64}
	add("create", "raw-append", few, true, openCreates)
	add("batch", "raw-append", []int{1, 16}, true, openBatches)
	add("stat", "loopback", few, true, openReads)
	add("lookup", "loopback", few, true, openLookups)
	add("rename", "raw-append", few, true, openRenames)
	add("unlink", "raw-append", few, true, openUnlinks)
	ends := []int{1, 64}
	add("link", "raw-append", ends, true, openLinks)
	add("mkdir", "raw-append", ends, true, openMkdirs)
	add("rename-x", "raw-append", ends, true, openRenamesOver)
	add("link-x", "raw-append", ends, true, openLinksOver)
	add("mkdir-x", "raw-append", ends, true, openMkdirsOver)
	return out
}

// metaRig is what a figure of the metadata has in the cluster.
type metaRig struct {
	name    string // of the figure, and of its directory in the cluster
	workers int
	spread  bool // the workers' directories are in all groups, not in one
	any     bool // any replica is asked
	each    int  // changes that one operation of a worker makes; 0: one

	cluster *cluster
	cred    client.Cred
	clients []func()         // closes them
	owners  []*client.Client // one for each worker, several of whom share one
	dirs    []client.Inode   // one for each worker
	files   []client.Inode   // likewise
	made    []uint64         // files that each worker has made

	raw  []*rawAppend // one for each meta node
	last logged       // of the round of work before
	ops  float64      // likewise
}

// logged is what each meta node has synced of its log.
type logged []struct{ syncs, bytes float64 }

// openMeta makes the directories of a figure with a file in each, and then what
// fn does.
func openMeta(ctx context.Context, e *env, r *metaRig, fn func(context.Context, *env, *metaRig) (*pair, error)) (_ *pair, err error) {
	if r.cluster, err = e.cluster(ctx, metaCluster); err != nil {
		return nil, err
	}
	if strings.HasPrefix(r.name, "meta/commit") {
		r.cred = heavyCred()
	}
	defer func() {
		if err != nil {
			r.closeClients()
		}
	}()
	if err := r.furnish(ctx, e); err != nil {
		return nil, err
	}
	p, err := fn(ctx, e, r)
	if err != nil {
		return nil, err
	}
	done := p.close
	p.cpu = r.cluster.cpu
	p.close = func() error {
		r.closeClients()
		if done != nil {
			return done()
		}
		return nil
	}
	return p, nil
}

// furnish makes the workers' directories with a file in each, and clients for them.
func (r *metaRig) furnish(ctx context.Context, e *env) error {
	above := path.Join("/", r.name)
	if !r.spread {
		above = path.Join(above, "one") // so deep that what is below stays in its group
	}
	if _, err := r.cluster.client.MkdirAll(ctx, above, 0o777); err != nil {
		return err
	}
	mode := uint32(0o777) // whatever the umask of the cluster's defaults
	if _, err := r.cluster.client.SetAttr(ctx, above, client.SetAttr{Mode: &mode}); err != nil {
		return err
	}
	for i := range r.workers {
		if i%metaWorkers == 0 {
			c, done, err := r.cluster.connectClient(ctx, e, client.Options{Cred: r.cred, SpreadReads: r.any})
			if err != nil {
				return err
			}
			r.clients = append(r.clients, done)
			if err := r.populate(ctx, c, above, i, min(metaWorkers, r.workers-i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *metaRig) closeClients() {
	for _, done := range r.clients {
		done()
	}
}

// populate makes directories and files of n workers from the first one on.
func (r *metaRig) populate(ctx context.Context, c *client.Client, above string, first, n int) error {
	for i := first; i < first+n; i++ {
		dir := path.Join(above, workerName(i))
		a, err := c.Mkdir(ctx, dir, 0o755)
		if err != nil {
			return err
		}
		h := c.Inode(a.Ino)
		if a, err = h.PutFile(ctx, "file", client.PutOptions{Mode: 0o644}, nil); err != nil {
			return err
		}
		r.owners = append(r.owners, c)
		r.dirs, r.files, r.made = append(r.dirs, h), append(r.files, c.Inode(a.Ino)), append(r.made, 0)
	}
	return nil
}

// openChanges measures what changes the metadata beside raw appends: each meta
// node's syncs of the round before, of their mean size, each node's by a thread
// of its own.
func openChanges(e *env, r *metaRig, change func(ctx context.Context, worker int) error) (*pair, error) {
	dir, err := e.subdir(r.name)
	if err != nil {
		return nil, err
	}
	closeRaw := func() error {
		var errs []error
		for _, raw := range r.raw {
			errs = append(errs, raw.file.Close())
		}
		return errors.Join(append(errs, os.RemoveAll(dir))...)
	}
	for i := range r.cluster.metas {
		sub := filepath.Join(dir, strconv.Itoa(i))
		err := os.Mkdir(sub, 0o755)
		if err == nil {
			var raw *rawAppend
			if raw, err = openRawAppend(sub, rawLog, e.data); err == nil {
				r.raw = append(r.raw, raw)
			}
		}
		if err != nil {
			return nil, errors.Join(err, closeRaw())
		}
	}
	return &pair{base: r.replay, close: closeRaw, work: func(ctx context.Context, d time.Duration) (sample, error) {
		before, err := r.cluster.logged(ctx)
		if err != nil {
			return sample{}, err
		}
		s, err := loop(ctx, d, r.workers, change)
		if err != nil {
			return s, err
		}
		s.ops *= float64(max(r.each, 1))
		after, err := r.cluster.logged(ctx)
		if err != nil {
			return s, err
		}
		for i := range after {
			after[i].syncs -= before[i].syncs
			after[i].bytes -= before[i].bytes
		}
		r.last, r.ops = after, s.ops
		fmt.Fprintf(e.opts.Log, "bench:   %.0f commits by %.0f %.0f-byte syncs of one node\n", s.ops, after[0].syncs, after[0].bytes/max(after[0].syncs, 1))
		return s, nil
	}}, nil
}

// replay writes what the meta nodes wrote in the round before.
func (r *metaRig) replay(ctx context.Context, _ time.Duration) (sample, error) {
	errs := make([]error, len(r.raw))
	var work sync.WaitGroup
	begun := time.Now()
	for i, raw := range r.raw {
		n := int(r.last[i].syncs)
		sizes := make([]int, n)
		for j := range sizes {
			sizes[j] = int(r.last[i].bytes) / n
		}
		work.Go(func() { _, errs[i] = raw.replay(ctx, sizes, r.ops) })
	}
	work.Wait()
	return sample{ops: r.ops, took: time.Since(begun)}, errors.Join(errs...)
}

// logged returns what each meta node has synced of its log since it started.
func (c *cluster) logged(ctx context.Context) (logged, error) {
	out := make(logged, c.metas)
	for i, n := range c.nodes[:c.metas] {
		v, err := n.metrics(ctx, "dfsd_raft_log_syncs_total", "dfsd_raft_log_bytes_total")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n.name, err)
		}
		out[i].syncs, out[i].bytes = v[0], v[1]
	}
	return out, nil
}

// metrics returns figures without labels of a node's /metrics.
func (n *node) metrics(ctx context.Context, names ...string) ([]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.http+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out, found := make([]float64, len(names)), 0
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		for i := range names {
			if name == names[i] {
				if out[i], err = strconv.ParseFloat(value, 64); err != nil {
					return nil, err
				}
				found++
			}
		}
	}
	if found != len(names) {
		return nil, fmt.Errorf("%d of the metrics %q", found, names)
	}
	return out, nil
}

// openCommits measures the least that a command can change: one row of a file.
func openCommits(_ context.Context, e *env, r *metaRig) (*pair, error) {
	return openChanges(e, r, func(ctx context.Context, worker int) error {
		now := time.Now()
		_, err := r.files[worker].SetAttr(ctx, client.SetAttr{Mtime: &now})
		return err
	})
}

// openCreates measures new empty files.
func openCreates(_ context.Context, e *env, r *metaRig) (*pair, error) {
	return openChanges(e, r, r.create)
}

func (r *metaRig) create(ctx context.Context, worker int) error {
	r.made[worker]++
	_, err := r.dirs[worker].PutFile(ctx, fileName(r.made[worker]), client.PutOptions{Mode: 0o644}, nil)
	return err
}

// batchFiles is how many files one batch makes.
const batchFiles = 64

// openBatches measures new empty files that are made by batches: every worker has
// one under way. The figures are those of single files.
func openBatches(_ context.Context, e *env, r *metaRig) (*pair, error) {
	r.each = batchFiles
	return openChanges(e, r, func(ctx context.Context, worker int) error {
		files := make([]*client.NewFile, batchFiles)
		for i := range files {
			r.made[worker]++
			files[i] = &client.NewFile{Name: fileName(r.made[worker]), Options: client.PutOptions{Mode: 0o644}}
		}
		r.dirs[worker].PutFiles(ctx, files)
		for _, f := range files {
			if f.Err != nil {
				return f.Err
			}
		}
		return nil
	})
}

// openRenames measures a file that goes from one name to another and back.
func openRenames(_ context.Context, e *env, r *metaRig) (*pair, error) {
	return openChanges(e, r, func(ctx context.Context, worker int) error {
		names := [2]string{"file", "other"}
		from := r.made[worker] % 2
		r.made[worker]++
		return r.dirs[worker].Rename(ctx, names[from], r.dirs[worker], names[1-from], false)
	})
}

// openLinks measures further names of a file, in its own directory.
func openLinks(_ context.Context, e *env, r *metaRig) (*pair, error) {
	return openChanges(e, r, func(ctx context.Context, worker int) error {
		r.made[worker]++
		_, err := r.dirs[worker].Link(ctx, fileName(r.made[worker]), r.files[worker])
		return err
	})
}

// openMkdirs measures directories of the group of their parent.
func openMkdirs(_ context.Context, e *env, r *metaRig) (*pair, error) {
	return openChanges(e, r, func(ctx context.Context, worker int) error {
		r.made[worker]++
		_, err := r.dirs[worker].Mkdir(ctx, fileName(r.made[worker]), 0o755)
		return err
	})
}

// openRenamesOver measures a file that goes from a directory of one group to one of
// another, and back.
func openRenamesOver(ctx context.Context, e *env, r *metaRig) (*pair, error) {
	others, err := r.elsewhere(ctx)
	if err != nil {
		return nil, err
	}
	return openChanges(e, r, func(ctx context.Context, worker int) error {
		from, to := r.dirs[worker], others[worker]
		if r.made[worker]++; r.made[worker]%2 == 0 {
			from, to = to, from
		}
		return from.Rename(ctx, "file", to, "file", false)
	})
}

// openLinksOver measures further names of a file in a directory of another group.
func openLinksOver(ctx context.Context, e *env, r *metaRig) (*pair, error) {
	others, err := r.elsewhere(ctx)
	if err != nil {
		return nil, err
	}
	return openChanges(e, r, func(ctx context.Context, worker int) error {
		r.made[worker]++
		_, err := others[worker].Link(ctx, fileName(r.made[worker]), r.files[worker])
		return err
	})
}

// openMkdirsOver measures directories just below the root, which are spread over all
// groups: most of them go to another one than that of the root.
func openMkdirsOver(_ context.Context, e *env, r *metaRig) (*pair, error) {
	return openChanges(e, r, func(ctx context.Context, worker int) error {
		r.made[worker]++
		_, err := r.owners[worker].Inode(dfs.RootIno).Mkdir(ctx, fmt.Sprintf("%s-%d-%d", path.Base(r.name), worker, r.made[worker]), 0o755)
		return err
	})
}

// elsewhere makes a directory for each worker in another group than the one that it
// has: below one of a figure before, so deep that what is below stays in its group, or
// else just below the root until the placement has come to another group.
func (r *metaRig) elsewhere(ctx context.Context) (out []client.Inode, err error) {
	const tries = 100
	deep := map[dfs.GroupID]string{}
	for f, err := range r.cluster.client.ReadDir(ctx, "/meta", false) {
		if err != nil {
			return nil, err
		}
		for d, err := range r.cluster.client.ReadDir(ctx, "/meta/"+f.Name, false) {
			if err != nil {
				return nil, err
			}
			deep[d.Ino.Group()] = path.Join("/meta", f.Name, d.Name)
		}
	}
	for i, dir := range r.dirs {
		own := dir.Ino().Group()
		above := "/"
		for g, p := range deep {
			if g != own {
				above = p
			}
		}
		for n := 0; n < tries && len(out) == i; n++ {
			a, err := r.cluster.client.Mkdir(ctx, path.Join(above, fmt.Sprintf("%s-%d-%d", path.Base(r.name), i, n)), 0o777)
			if err != nil {
				return nil, err
			}
			if a.Ino.Group() != own {
				out = append(out, r.owners[i].Inode(a.Ino))
			}
		}
		if len(out) == i {
			return nil, errors.New("no directory goes to another group")
		}
	}
	return out, nil
}

// openUnlinks measures the removal of empty files, which are made between the
// rounds: as many as twice of what the round before removed.
func openUnlinks(_ context.Context, e *env, r *metaRig) (*pair, error) {
	removed := make([]uint64, r.workers)
	p, err := openChanges(e, r, func(ctx context.Context, worker int) error {
		if removed[worker] == r.made[worker] {
			return errEnough
		}
		removed[worker]++
		return r.dirs[worker].Remove(ctx, fileName(removed[worker]))
	})
	if err != nil {
		return nil, err
	}
	p.settle = func(ctx context.Context) error {
		stock := max(minStock, 2*uint64(r.ops)/uint64(r.workers))
		_, err := loop(ctx, fillTime, r.workers, func(ctx context.Context, worker int) error {
			if r.made[worker]-removed[worker] >= stock {
				return errEnough
			}
			return r.create(ctx, worker)
		})
		return err
	}
	return p, nil
}

// openReads measures the attributes of each worker's file, by its number.
func openReads(_ context.Context, e *env, r *metaRig) (*pair, error) {
	return openMetaAsking(e, r, func(ctx context.Context, worker int) error {
		_, err := r.files[worker].Attr(ctx)
		return err
	})
}

// openLookups measures names in the workers' directories.
func openLookups(_ context.Context, e *env, r *metaRig) (*pair, error) {
	return openMetaAsking(e, r, func(ctx context.Context, worker int) error {
		_, err := r.dirs[worker].Lookup(ctx, "file")
		return err
	})
}

// openMetaAsking measures what only asks, beside bare requests over as many
// sockets.
func openMetaAsking(e *env, r *metaRig, ask func(ctx context.Context, worker int) error) (*pair, error) {
	raw, err := openRawSocket(r.workers, e.data)
	if err != nil {
		return nil, err
	}
	return &pair{base: raw.rounds(rawRequest), close: raw.close, work: func(ctx context.Context, d time.Duration) (sample, error) {
		return loop(ctx, d, r.workers, ask)
	}}, nil
}
