package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"dfsd/client"
	"dfsd/dfs"
)

// Counts are how often each thing happened in a run.
type Counts map[string]int

// worker is one client process and the part of the tree that only it changes.
// It does one thing at a time, so the model knows what every answer may be.
type worker struct {
	c     *Cluster
	name  string
	rand  *rand.Rand
	peer  *Peer
	lives int

	named  map[dfs.BlockID]bool // blocks that files were seen to name, at any time
	files  map[string]*entry    // by path
	dirs   map[string]*entry    // by path; a file stands for the directory
	counts Counts
	trace  func(format string, args ...any)
}

const (
	workerNames = 8
	workerDirs  = 3
	opTimeout   = 90 * time.Second // virtual; above the client's own limit

	// maxLate is for how long a directory may come or go after the answer was
	// given up: while the session lives, its client tries to end what it began.
	maxLate = 2 * time.Minute
)

// aDir stands for a directory in dirs.
var aDir = &file{contents: [][]byte{nil}}

func newWorker(c *Cluster, n int, trace func(string, ...any)) *worker {
	w := &worker{
		c: c, name: fmt.Sprintf("w%d", n), rand: rand.New(rand.NewPCG(c.cfg.Seed, uint64(1000+n))),
		named: map[dfs.BlockID]bool{}, files: map[string]*entry{}, dirs: map[string]*entry{}, counts: Counts{}, trace: trace,
	}
	for i := range workerNames {
		w.files[w.path(fmt.Sprintf("f%d", i))] = &entry{may: []*file{nil}}
	}
	for i := range workerDirs {
		w.dirs[w.path(fmt.Sprintf("d%d", i))] = &entry{may: []*file{nil}}
	}
	return w
}

func (w *worker) path(name string) string { return "/" + w.name + "/" + name }

// open starts a client process; it goes on until there is one.
func (w *worker) open(ctx context.Context) error {
	for {
		w.lives++
		timeout := shortTimeout
		if w.rand.IntN(4) == 0 {
			timeout = longTimeout
		}
		p, err := w.c.clientWithin(ctx, fmt.Sprintf("%s-%d", w.name, w.lives), w.c.cfg.Seed, timeout)
		if err == nil {
			w.peer = p
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: open client: %w", w.name, err)
		}
		time.Sleep(time.Second)
	}
}

// outcome is what an answer says about a change.
type outcome int

const (
	done      outcome = iota
	refused           // not applied: the state did not allow it
	untouched         // not applied: could not be served
	unknown
)

func (w *worker) judge(err error) outcome {
	switch kind := dfs.KindOf(err); {
	case err == nil:
		return done
	case kind == dfs.Unknown || kind == dfs.Deadline || kind == dfs.Fenced || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled):
		w.counts["unknown outcomes"]++
		return unknown
	case kind.Retryable() || kind == dfs.ReadOnly:
		w.counts["unavailable"]++
		return untouched
	default:
		return refused
	}
}

// setup makes the worker's directory.
func (w *worker) setup(ctx context.Context) error {
	for {
		_, err := w.peer.Mkdir(ctx, "/"+w.name, 0o755)
		if err == nil || dfs.KindOf(err) == dfs.Exist {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Second)
	}
}

// run does n operations at least, and goes on until more is closed.
func (w *worker) run(ctx context.Context, n int, more <-chan struct{}) error {
	ops := []struct {
		name   string
		weight int
		do     func(context.Context) error
	}{
		{"put", 22, w.put}, {"create", 8, w.create}, {"read", 26, w.read}, {"write", 12, w.write}, {"truncate", 6, w.truncate},
		{"remove", 8, w.remove}, {"rename", 6, w.rename}, {"link", 4, w.link}, {"mkdir", 6, w.mkdir}, {"rmdir", 5, w.rmdir}, {"list", 3, w.readDir},
	}
	total := 0
	for _, o := range ops {
		total += o.weight
	}
	for i := 0; i < n || !closed(more); i++ {
		pick := w.rand.IntN(total)
		for _, o := range ops {
			if pick -= o.weight; pick < 0 {
				w.counts[o.name]++
				octx, cancel := context.WithTimeout(ctx, opTimeout)
				err := o.do(octx)
				cancel()
				if err != nil {
					return fmt.Errorf("%s: operation %d, %s: %w", w.name, i, o.name, err)
				}
				break
			}
		}
		if w.rand.IntN(200) == 0 {
			w.counts["client killed"]++
			w.peer.Kill()
			if err := w.open(ctx); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(time.Duration(w.rand.IntN(300)) * time.Millisecond)
	}
	return nil
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (w *worker) pickFile() (string, *entry) {
	p := w.path(fmt.Sprintf("f%d", w.rand.IntN(workerNames)))
	return p, w.files[p]
}

func (w *worker) pickDir() (string, *entry) {
	p := w.path(fmt.Sprintf("d%d", w.rand.IntN(workerDirs)))
	return p, w.dirs[p]
}

// content is random bytes of a size around the limits.
func (w *worker) content() []byte {
	sizes := []int{0, 1, 100, 4096, dfs.ChunkSize - 1, dfs.ChunkSize, dfs.ChunkSize + 1, simBlockSize - 1, simBlockSize, simBlockSize + 1, 2*simBlockSize + 777}
	b := make([]byte, sizes[w.rand.IntN(len(sizes))])
	for i := 0; i < len(b); i += 1 + w.rand.IntN(40) { // compressible, mostly
		b[i] = byte(w.rand.Uint32())
	}
	return b
}

// fault makes the error of a broken promise.
func (w *worker) fault(path, format string, args ...any) error {
	return fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...))
}

// sample notes the blocks of some files, to look for them when they are gone.
func (w *worker) sample(ctx context.Context, ino dfs.Ino) {
	if w.rand.IntN(3) > 0 {
		return
	}
	for e, err := range w.peer.Inode(ino).Extents(ctx) {
		if err != nil {
			return
		}
		w.named[e.Block] = true
	}
}

func (w *worker) put(ctx context.Context) error {
	path, e := w.pickFile()
	data := w.content()
	attr, err := w.peer.PutFile(ctx, path, client.PutOptions{Mode: 0o644, Replace: true}, bytes.NewReader(data))
	w.trace("%s put %s %d bytes: %v", w.name, path, len(data), err)
	f := &file{contents: [][]byte{data}}
	switch w.judge(err) {
	case done:
		e.set(f)
		w.sample(ctx, attr.Ino)
	case unknown:
		e.add(f)
	case refused:
		return w.fault(path, "put was refused: %v", err)
	}
	return nil
}

func (w *worker) create(ctx context.Context) error {
	path, e := w.pickFile()
	data := w.content()
	_, err := w.peer.PutFile(ctx, path, client.PutOptions{Mode: 0o600}, bytes.NewReader(data))
	w.trace("%s create %s %d bytes: %v", w.name, path, len(data), err)
	old, sure := e.sure()
	f := &file{contents: [][]byte{data}}
	switch w.judge(err) {
	case done:
		if !e.absent() {
			return w.fault(path, "an exclusive create replaced a file")
		}
		e.set(f)
	case unknown:
		if e.absent() {
			e.add(f)
		}
	case refused:
		if dfs.KindOf(err) != dfs.Exist || sure && old == nil {
			return w.fault(path, "an exclusive create was refused: %v", err)
		}
		w.drop(e, nil)
	}
	return nil
}

// drop takes a possibility away that an answer has excluded.
func (w *worker) drop(e *entry, gone *file) {
	var rest []*file
	for _, f := range e.may {
		if f != gone {
			rest = append(rest, f)
		}
	}
	if len(rest) > 0 {
		e.may = rest
	}
}

func (w *worker) read(ctx context.Context) error {
	path, e := w.pickFile()
	if err := w.check(ctx, path, e); !errors.Is(err, errNoAnswer) {
		return err
	}
	return nil
}

// check reads a whole file and holds it against the model, and where its blocks
// are against the map. Error: errNoAnswer.
func (w *worker) check(ctx context.Context, path string, e *entry) error {
	var buf bytes.Buffer
	f, err := w.peer.Open(ctx, path)
	if err == nil {
		_, err = f.WriteTo(ctx, &buf)
	}
	w.trace("%s read %s: %d bytes, %v", w.name, path, buf.Len(), err)
	switch {
	case err == nil && !e.allows(buf.Bytes()):
		return w.fault(path, "read %d bytes that nobody wrote there (%s)", buf.Len(), w.describe(e, buf.Bytes()))
	case dfs.KindOf(err) == dfs.NotExist && !e.absent():
		return w.fault(path, "an acknowledged file is gone: %v", err)
	case err != nil && dfs.KindOf(err) != dfs.NotExist && w.judge(err) == refused:
		return w.fault(path, "read: %v", err)
	case err != nil && w.judge(err) != refused:
		return fmt.Errorf("%s: %w: %w", path, errNoAnswer, err)
	case err != nil:
		return nil // it does not exist
	}
	return w.checkCopies(ctx, path, f.Inode())
}

// errNoAnswer says that a check could not be made: no node could answer.
var errNoAnswer = errors.New("no answer")

// describe says how bytes differ from the nearest that they may be.
func (w *worker) describe(e *entry, got []byte) string {
	for _, f := range e.may {
		if f == nil {
			continue
		}
		for _, c := range f.contents {
			if len(c) == len(got) {
				for i := range c {
					if c[i] != got[i] {
						return fmt.Sprintf("of %d possible files one has the same length and differs at byte %d", len(e.may), i)
					}
				}
			}
		}
	}
	return fmt.Sprintf("%d possible files, none of this length", len(e.may))
}

func (w *worker) write(ctx context.Context) error {
	path, e := w.pickFile()
	f, sure := e.sure()
	if f == nil || !sure {
		return nil
	}
	data := w.content()
	at := w.rand.IntN(simBlockSize + 100)
	h, err := w.peer.Open(ctx, path)
	if err != nil {
		if w.judge(err) == refused {
			return w.fault(path, "open for writing: %v", err)
		}
		return nil
	}
	_, err = h.WriteAt(ctx, data, int64(at))
	if err == nil {
		err = h.Close(ctx)
	}
	w.trace("%s write %s %d bytes at %d: %v", w.name, path, len(data), at, err)
	if len(data) == 0 {
		return nil
	}
	return w.changed(path, f, err, func(c []byte) []byte { return overwrite(c, data, at) })
}

func (w *worker) truncate(ctx context.Context) error {
	path, e := w.pickFile()
	f, sure := e.sure()
	if f == nil || !sure {
		return nil
	}
	size := int64(w.rand.IntN(2 * simBlockSize))
	_, err := w.peer.SetAttr(ctx, path, client.SetAttr{Size: &size})
	w.trace("%s truncate %s to %d: %v", w.name, path, size, err)
	return w.changed(path, f, err, func(c []byte) []byte { return resize(c, int(size)) })
}

// changed notes the outcome of a change of a file's content.
func (w *worker) changed(path string, f *file, err error, change func([]byte) []byte) error {
	var next [][]byte
	for _, c := range f.contents {
		next = append(next, change(c))
	}
	switch w.judge(err) {
	case done:
		f.contents = next
	case unknown:
		f.contents = append(f.contents, next...)
		if len(f.contents) > 64 {
			return w.fault(path, "the model has lost track: %d possible contents", len(f.contents))
		}
	case refused:
		return w.fault(path, "a change was refused: %v", err)
	}
	return nil
}

func (w *worker) remove(ctx context.Context) error {
	path, e := w.pickFile()
	err := w.peer.Remove(ctx, path)
	w.trace("%s remove %s: %v", w.name, path, err)
	old, sure := e.sure()
	switch w.judge(err) {
	case done:
		if sure && old == nil {
			return w.fault(path, "a file that did not exist was removed")
		}
		e.set(nil)
	case unknown:
		e.add(nil)
	case refused:
		if dfs.KindOf(err) != dfs.NotExist || !e.absent() {
			return w.fault(path, "remove was refused: %v", err)
		}
		e.set(nil)
	}
	return nil
}

func (w *worker) rename(ctx context.Context) error {
	from, ef := w.pickFile()
	to, et := w.pickFile()
	f, sure := ef.sure()
	g, sureTo := et.sure()
	if from == to || !sure || f == nil || !sureTo || f == g {
		return nil
	}
	err := w.peer.Rename(ctx, from, to, false)
	w.trace("%s rename %s %s: %v", w.name, from, to, err)
	switch w.judge(err) {
	case done:
		ef.set(nil)
		et.set(f)
	case unknown:
		ef.add(nil)
		et.add(f)
	case refused:
		return w.fault(from, "rename to %s was refused: %v", to, err)
	}
	return nil
}

func (w *worker) link(ctx context.Context) error {
	from, ef := w.pickFile()
	to, et := w.pickFile()
	f, sure := ef.sure()
	g, sureTo := et.sure()
	if from == to || !sure || f == nil || !sureTo || g != nil {
		return nil
	}
	_, err := w.peer.Link(ctx, from, to)
	w.trace("%s link %s %s: %v", w.name, from, to, err)
	switch w.judge(err) {
	case done:
		et.set(f)
	case unknown:
		et.add(f)
	case refused:
		return w.fault(from, "link to %s was refused: %v", to, err)
	}
	return nil
}

func (w *worker) mkdir(ctx context.Context) error {
	path, e := w.pickDir()
	_, err := w.peer.Mkdir(ctx, path, 0o755)
	w.trace("%s mkdir %s: %v", w.name, path, err)
	old, sure := e.sure()
	switch w.judge(err) {
	case done:
		if sure && old != nil {
			return w.fault(path, "a directory that existed was made again")
		}
		e.set(aDir)
	case unknown:
		e.addLate(aDir, time.Now().Add(maxLate))
	case refused:
		if dfs.KindOf(err) != dfs.Exist || sure && old == nil {
			return w.fault(path, "mkdir was refused: %v", err)
		}
		e.set(aDir)
	}
	return nil
}

func (w *worker) rmdir(ctx context.Context) error {
	path, e := w.pickDir()
	err := w.peer.Rmdir(ctx, path)
	w.trace("%s rmdir %s: %v", w.name, path, err)
	old, sure := e.sure()
	switch w.judge(err) {
	case done:
		if sure && old == nil {
			return w.fault(path, "a directory that did not exist was removed")
		}
		e.set(nil)
	case unknown:
		e.addLate(nil, time.Now().Add(maxLate))
	case refused:
		if dfs.KindOf(err) != dfs.NotExist || sure && old != nil {
			return w.fault(path, "rmdir was refused: %v", err)
		}
		e.set(nil)
	}
	return nil
}

func (w *worker) readDir(ctx context.Context) error {
	if err := w.list(ctx); !errors.Is(err, errNoAnswer) {
		return err
	}
	return nil
}

// list holds the worker's directory against the model. Error: errNoAnswer.
func (w *worker) list(ctx context.Context) error {
	seen := map[string]bool{}
	for e, err := range w.peer.ReadDir(ctx, "/"+w.name, false) {
		if err != nil {
			if w.judge(err) == refused {
				return w.fault("/"+w.name, "list: %v", err)
			}
			return fmt.Errorf("%w: %w", errNoAnswer, err)
		}
		if seen[e.Name] {
			return w.fault("/"+w.name, "%q is listed twice", e.Name)
		}
		seen[e.Name] = true
	}
	w.trace("%s list: %d names", w.name, len(seen))
	for _, all := range []map[string]*entry{w.files, w.dirs} {
		for path, e := range all {
			old, sure := e.sure()
			if name := path[len(w.name)+2:]; sure && seen[name] != (old != nil) {
				return w.fault(path, "listed: %v, should be: %v", seen[name], old != nil)
			}
		}
	}
	return nil
}
