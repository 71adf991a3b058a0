package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"dfsd/client"
	"dfsd/dfs"
)

// Limits of a transfer.
const (
	// defaultJobs is how many files are under way: enough to hide the syncs of
	// small files, each of which waits for several disks.
	defaultJobs = 16

	// maxJobs bounds the memory: a file under way may hold two blocks, which is more
	// than small files that go together.
	maxJobs = 256

	// listBatch is how many entries of a directory are read at a time.
	listBatch = 1024
)

// transferFlags are the flags that put, get and cp share.
type transferFlags struct {
	recursive, noClobber, quiet, json bool
	jobs                              int
}

func (f *transferFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&f.recursive, "recursive", "r", false, "copy directories with everything below them")
	cmd.Flags().BoolVarP(&f.noClobber, "no-clobber", "n", false, "leave files that exist as they are")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "no progress and no summary")
	cmd.Flags().IntVarP(&f.jobs, "jobs", "j", defaultJobs, "files under way at a time; several small ones of a directory count as one")
	cmd.Flags().BoolVar(&f.json, "json", false, "print the summary as an object")
}

func (f *transferFlags) check(verb string) error {
	if f.jobs < 1 || f.jobs > maxJobs {
		return usagef("%s: --jobs %d: want 1 to %d", verb, f.jobs, maxJobs)
	}
	return nil
}

// dirWorkers is how many directories are filled at a time: several, because
// most are small, and not many, because where a new one goes is decided by how
// full the groups are.
func (f *transferFlags) dirWorkers() int { return max(2, f.jobs/2) }

// transfer counts what one put, get, cp or rm does, shows it, and reports what
// fails. Its methods may be called from many goroutines.
type transfer struct {
	a     *app
	verb  string
	flags *transferFlags
	begun time.Time
	stop  context.CancelCauseFunc // gives up the whole

	mu       sync.Mutex // guards what follows
	sum      counts
	failures []jsonError // at most maxListedErrors
	streak   int         // failures one after the other that say that the cluster does not serve
	bar      *progressbar.ProgressBar
	clean    bool // the terminal's line has no bar on it
}

// counts is what a transfer did.
type counts struct {
	Files       int   `json:"files"`
	Directories int   `json:"directories"`
	Symlinks    int   `json:"symlinks"`
	HardLinks   int   `json:"hard_links"` // further names of files
	Skipped     int   `json:"skipped"`    // existed already, with --no-clobber
	Failed      int   `json:"failed"`
	Bytes       int64 `json:"bytes"`
}

// newTransfer begins a transfer of so many bytes, -1 when it is not known how
// many. The context ends when the transfer gives up.
func (a *app) newTransfer(ctx context.Context, verb string, flags *transferFlags, total int64) (context.Context, *transfer) {
	ctx, stop := context.WithCancelCause(ctx)
	t := &transfer{a: a, verb: verb, flags: flags, begun: time.Now(), stop: stop, clean: true}
	if !flags.quiet && terminal(a.proc.Err) {
		t.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(a.proc.Err), progressbar.OptionSetDescription(verb), progressbar.OptionShowBytes(true),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetWidth(30),
			progressbar.OptionSetSpinnerChangeInterval(0), // without a goroutine of its own
		)
	}
	return ctx, t
}

// errGaveUp ends a transfer whose cluster does not serve.
var errGaveUp = errors.New("given up: the cluster does not serve")

// fail reports that something was not done.
func (t *transfer) fail(object string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sum.Failed++
	if errors.Is(err, context.Canceled) || errors.Is(err, errGaveUp) {
		return // the end of the whole is reported, not of each part
	}
	line := failed(t.verb, object, err)
	if len(t.failures) < maxListedErrors {
		t.failures = append(t.failures, jsonError{toJSONPath(object), cause(err).Error()})
	}
	if t.bar != nil && !t.clean {
		_ = t.bar.Clear()
		t.clean = true
	}
	t.a.complain(line)
	switch dfs.KindOf(err) {
	case dfs.Unavailable, dfs.Deadline, dfs.Unknown, dfs.Busy, dfs.Fenced, dfs.NoSpace, dfs.ReadOnly:
		if t.streak++; t.streak >= max(8, t.flags.jobs) {
			t.stop(errGaveUp)
		}
	}
}

// done counts what was done.
func (t *transfer) done(c counts) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.streak = 0
	t.sum.Files += c.Files
	t.sum.Directories += c.Directories
	t.sum.Symlinks += c.Symlinks
	t.sum.HardLinks += c.HardLinks
	t.sum.Skipped += c.Skipped
	if t.bar != nil {
		t.bar.Describe(fmt.Sprintf("%s: %s", t.verb, plural(t.sum.Files+t.sum.Symlinks+t.sum.HardLinks, "file")))
	}
}

// moved counts bytes that came along.
func (t *transfer) moved(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sum.Bytes += int64(n)
	if t.bar != nil {
		_ = t.bar.Add(n)
		t.clean = false
	}
}

// finish prints the summary. Its error says how much was not done.
func (t *transfer) finish(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bar != nil {
		_ = t.bar.Clear()
		_ = t.bar.Exit()
	}
	took := time.Since(t.begun)
	err := context.Cause(ctx)
	t.stop(nil)
	if t.flags.json {
		failures := t.failures
		if failures == nil {
			failures = []jsonError{}
		}
		jerr := printJSON(t.a.proc.Out, struct {
			Version int `json:"version"`
			counts
			Seconds float64     `json:"seconds"`
			Errors  []jsonError `json:"errors"`
		}{jsonVersion, t.sum, took.Seconds(), failures})
		err = cmpErr(err, jerr)
	} else if !t.flags.quiet && t.sum.entries() > 0 {
		fmt.Fprintf(t.a.proc.Err, "%s in %.2f s, %s\n", t.sum, took.Seconds(), rateText(t.sum.Bytes, took))
	}
	switch {
	case errors.Is(err, errGaveUp):
		return withHint(fmt.Errorf("%s: %w", t.verb, err), "see dfsd status")
	case err != nil:
		return fmt.Errorf("%s: %w", t.verb, err)
	case t.sum.Failed == 1 && len(t.failures) == 1:
		return &verbError{err: errors.New("one failed"), printed: true}
	case t.sum.Failed > 0:
		return fmt.Errorf("%s: %d of %d failed", t.verb, t.sum.Failed, t.sum.Failed+t.sum.entries())
	}
	return nil
}

// cmpErr is the first error that is one.
func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (c counts) entries() int { return c.Files + c.Directories + c.Symlinks + c.HardLinks + c.Skipped }

func (c counts) String() string {
	s := plural(c.Files, "file")
	for _, k := range []struct {
		n    int
		noun string
	}{{c.Directories, "directory"}, {c.Symlinks, "symlink"}, {c.HardLinks, "hard link"}} {
		if k.n > 0 {
			s += ", " + plural(k.n, k.noun)
		}
	}
	if c.Skipped > 0 {
		s += fmt.Sprintf(", %d skipped", c.Skipped)
	}
	return s + ", " + sizeText(uint64(c.Bytes))
}

// meterReader counts what is read through it, meterWriter what is written.
type meterReader struct {
	r io.Reader
	t *transfer
}

func (m meterReader) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.t.moved(n)
	return n, err
}

type meterWriter struct {
	w io.Writer
	t *transfer
}

func (m meterWriter) Write(p []byte) (int, error) {
	n, err := m.w.Write(p)
	m.t.moved(n)
	return n, err
}

// dirHandle returns the handle of a directory. One that was found by its path
// knows its attributes, which saves a request for each file in it.
func dirHandle(ctx context.Context, c *client.Client, path string, ino dfs.Ino) client.Inode {
	if len(path) <= dfs.MaxPath {
		if h, err := c.Resolve(ctx, path); err == nil && h.Ino() == ino {
			return h
		}
	}
	return c.Inode(ino)
}

// makeDir makes a directory in the cluster, or finds the one that is there.
func makeDir(ctx context.Context, c *client.Client, p place, mode uint32) (client.Inode, error) {
	a, err := p.dir.Mkdir(ctx, p.name, mode)
	if dfs.KindOf(err) == dfs.Exist {
		if a, err = p.dir.Lookup(ctx, p.name); err == nil && a.Type != client.TypeDir {
			err = dfs.Errorf(dfs.Exist, "", "it exists and is a %v", a.Type)
		}
	}
	if err != nil {
		return client.Inode{}, err
	}
	return dirHandle(ctx, c, p.full(), a.Ino), nil
}

// hardLink gives a file one more name, also in place of what has the name.
func hardLink(ctx context.Context, p place, file client.Inode, replace bool) error {
	_, err := p.dir.Link(ctx, p.name, file)
	if dfs.KindOf(err) != dfs.Exist || !replace {
		return err
	}
	old, err := p.dir.Lookup(ctx, p.name)
	switch {
	case err != nil:
		return err
	case old.Ino == file.Ino():
		return nil
	case old.Type == client.TypeDir:
		return dfs.Errorf(dfs.IsDir, "", "")
	}
	temp := tempName(p.name)
	if _, err := p.dir.Link(ctx, temp, file); err != nil {
		return err
	}
	if err := p.dir.Rename(ctx, temp, p.dir, p.name, false); err != nil {
		_ = p.dir.Remove(context.WithoutCancel(ctx), temp) // the first error counts
		return err
	}
	return nil
}
