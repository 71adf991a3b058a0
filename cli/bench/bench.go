package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dfsd/engine"
)

// MinRounds is the least number of rounds of which a median is one, and maxRounds as
// many as anybody waits for.
const (
	MinRounds = 5
	maxRounds = 99
)

// Bounds of a round: shorter ones measure their own beginning and end, longer
// ones drift with the machine.
const (
	minRound = 10 * time.Millisecond
	maxRound = time.Minute

	defaultRound = time.Second
)

// Options say what is measured and how. The zero value measures everything.
type Options struct {
	Figures []string      // sets, or patterns of names as of path.Match; all
	Round   time.Duration // length of a round, 10 ms to 1 min; 1 s
	Rounds  int           // of each figure, MinRounds to 99; MinRounds
	Dir     string        // where the disk is that is measured; /var/tmp, which outlives a restart and so is on one
	Binary  string        // this program, for the processes of a cluster; the running one
	Inodes  int           // that the figures of meta-large load, a tenth of them into one directory; 10 million

	Out io.Writer // the figures; required
	Log io.Writer // what is going on; required

	segment int64 // bytes of an engine's segments and of raw files; the engine's default, and small in tests
}

// setDefaults fills in what is zero.
func (o *Options) setDefaults() (err error) {
	if o.Round == 0 {
		o.Round = defaultRound
	}
	if o.Rounds == 0 {
		o.Rounds = MinRounds
	}
	if o.Inodes == 0 {
		o.Inodes = largeInodes
	}
	if o.segment == 0 {
		o.segment = engine.DefaultSegmentSize
	}
	if o.Dir == "" {
		o.Dir = "/var/tmp"
	}
	if o.Binary == "" {
		o.Binary, err = os.Executable()
	}
	return err
}

// Validate names the first option that cannot be used. Zero values mean the defaults.
func (o *Options) Validate() error {
	full := *o
	if err := full.setDefaults(); err != nil {
		return err
	}
	return full.check()
}

// check is Validate of options that are all given, such as those of a command line.
func (o *Options) check() error {
	switch {
	case o.Round < minRound || o.Round > maxRound:
		return fmt.Errorf("--round %v: want %v to %v", o.Round, minRound, maxRound)
	case o.Inodes < minInodes || o.Inodes > maxInodes:
		return fmt.Errorf("--inodes %d: want %d to %d", o.Inodes, minInodes, maxInodes)
	case o.Rounds < MinRounds || o.Rounds > maxRounds:
		return fmt.Errorf("--rounds %d: want %d to %d", o.Rounds, MinRounds, maxRounds)
	}
	_, err := selected(o.Figures)
	return err
}

// figure is one line of the output.
type figure struct {
	name  string // stable: it is followed from commit to commit
	of    string // the baseline
	bytes int    // that one operation moves; 0: none to speak of
	open  func(ctx context.Context, e *env) (*pair, error)
	value func(ctx context.Context, e *env) (string, error) // instead of open: what is printed behind the name
}

// set is what the figure is named among.
func (f *figure) set() string {
	set, _, _ := strings.Cut(f.name, "/")
	return set
}

// large reports whether the figure takes so long that it is measured only when
// it is named.
func (f *figure) large() bool { return strings.HasSuffix(f.set(), "-large") }

// pair is a figure that is ready to be measured.
type pair struct {
	work, base func(ctx context.Context, d time.Duration) (sample, error) // one round
	settle     func(ctx context.Context) error                            // before each round: waits for background work; nil: nothing to wait for
	cpu        func() (cpuTime, error)                                    // of everything that the work keeps busy
	close      func() error
}

// figures lists all figures, in the order in which they are measured.
func figures() []figure {
	return slices.Concat(engineFigures(), engineValues(), clientFigures(), metaFigures(), metaValues(), growthFigures(), idleFigures())
}

// selected returns the figures that any of the patterns names.
func selected(patterns []string) ([]figure, error) {
	all := figures()
	if len(patterns) == 0 {
		patterns = []string{"all"}
	}
	wanted := map[string]bool{}
	for _, p := range patterns {
		found := false
		for _, f := range all {
			match, err := path.Match(p, f.name)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", p, err)
			}
			if p == "all" && !f.large() || p == f.set() || match {
				wanted[f.name], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("%q: there is no such figure: want engine, engine-large, client, meta, meta-large, all, or a pattern of names such as client/put-*", p)
		}
	}
	return slices.DeleteFunc(all, func(f figure) bool { return !wanted[f.name] }), nil
}

// env is what figures share.
type env struct {
	opts   Options
	dir    string // of this run; removed at its end
	cancel context.CancelCauseFunc
	data   []byte   // random bytes, which no codec shrinks
	shared *cluster // the one that was asked for last
	loaded *loaded  // of the figures meta-large
	full   *fullDir // likewise
}

// dataSize is how many random bytes there are: more than one write of any
// figure takes, so that neighbours differ.
const dataSize = 16 << 20

// Run measures the figures, and prints each as soon as it is known.
func Run(ctx context.Context, opts Options) (err error) {
	if err := opts.Validate(); err != nil {
		return err
	}
	if err := opts.setDefaults(); err != nil {
		return err
	}
	chosen, err := selected(opts.Figures)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(opts.Dir, "dfsd-bench-")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	e := &env{opts: opts, dir: dir, cancel: cancel, data: make([]byte, dataSize)}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(e.data) // never fails
	defer func() {
		if cause := context.Cause(ctx); cause != nil {
			err = cause // what followed from it says less
		}
		if e.shared != nil {
			err = errors.Join(err, e.shared.stop())
		}
		err = errors.Join(err, os.RemoveAll(dir))
		cancel(nil)
	}()
	fmt.Fprintf(opts.Log, "bench: %d figures, %d rounds of %v each way, below %s\n", len(chosen), opts.Rounds, opts.Round, dir)
	for _, f := range chosen {
		line, err := e.line(ctx, f)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if _, err := fmt.Fprintln(opts.Out, line); err != nil {
			return err
		}
	}
	return nil
}

// line measures a figure.
func (e *env) line(ctx context.Context, f figure) (string, error) {
	if f.value == nil {
		r, err := e.measure(ctx, f)
		if err != nil {
			return "", err
		}
		return r.line(), nil
	}
	fmt.Fprintf(e.opts.Log, "bench: %s\n", f.name)
	v, err := f.value(ctx, e)
	return fmt.Sprintf("%-20s %s", f.name, v), err
}

// subdir makes a directory of a figure.
func (e *env) subdir(name string) (string, error) {
	dir := filepath.Join(e.dir, strings.ReplaceAll(name, "/", "-"))
	return dir, os.Mkdir(dir, 0o755)
}

// piece is size random bytes, other ones for another n.
func (e *env) piece(n uint64, size int) []byte {
	at := int(n * 4096 % uint64(len(e.data)-size+1))
	return e.data[at : at+size]
}
