package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// makeOdd fills dir with what a source tree lacks: sizes around every limit,
// links of every kind, modes, names, and a read-only directory with files.
// Sizes are in bytes; big is that of the largest file. The bytes come from a
// fixed seed.
func makeOdd(dir string, blockSize, big int) error {
	rnd := rand.NewChaCha8([32]byte{1})
	data := func(n int) []byte {
		b := make([]byte, n)
		_, _ = rnd.Read(b)
		return b
	}
	w := &oddWriter{dir: dir}
	for _, n := range []int{0, 1, 64<<10 - 1, 64 << 10, 64<<10 + 1, blockSize - 1, blockSize, blockSize + 1} {
		w.file(fmt.Sprintf("sizes/%d", n), data(n), 0o644)
	}
	w.file("sizes/big", bytes.Repeat(append(data(big/200), make([]byte, big/200)...), 100), 0o644)
	w.link("links/dangling", "nowhere/at/all")
	w.link("links/relative", "../sizes/1")
	w.link("links/absolute", "/etc/hostname")
	w.link("links/long", strings.Repeat("x/", 2000)+"end")
	w.file("hard/one", data(1000), 0o644)
	w.hard("hard/one", "hard/two")
	w.hard("hard/one", "hard/three")
	w.mkdir("empty/a/b/c", 0o755)
	for _, mode := range []fs.FileMode{0, 0o400, 0o555, 0o755 | fs.ModeSetuid, 0o777 | fs.ModeSticky} {
		w.file(fmt.Sprintf("modes/%04o", unixMode(mode)), data(100), mode)
	}
	w.mkdir("modes/dir-1777", 0o777|fs.ModeSticky)
	w.mkdir("modes/dir-2750", 0o750|fs.ModeSetgid)
	for _, name := range []string{strings.Repeat("n", 255), "with space", " lead", "new\nline", "tab\tand\x01bell", "latin-\xe9-\xff", "-dash", "'quote\"", "$HOME `x`", "ünïcode"} {
		w.file("names/"+name, []byte(name), 0o644)
	}
	w.file("names/"+strings.Repeat("d", 255)+"/"+strings.Repeat("f", 255), data(10), 0o644)
	for i := range 5 {
		w.file(fmt.Sprintf("read-only/file%d", i), data(300), 0o444)
	}
	w.mkdir("read-only", 0o555)
	return w.err
}

// oddWriter makes files until the first error.
type oddWriter struct {
	dir string
	err error
}

// when is the time stamp of everything generated: with nanoseconds, and past.
var when = time.Date(2020, 2, 29, 12, 34, 56, 123456789, time.UTC)

func (w *oddWriter) at(name string) string {
	p := filepath.Join(w.dir, name)
	if w.err == nil {
		w.err = os.MkdirAll(filepath.Dir(p), 0o755)
	}
	return p
}

func (w *oddWriter) do(step func() error) {
	if w.err == nil {
		w.err = step()
	}
}

func (w *oddWriter) file(name string, data []byte, mode fs.FileMode) {
	p := w.at(name)
	w.do(func() error { return os.WriteFile(p, data, 0o600) })
	w.do(func() error { return os.Chtimes(p, when, when) })
	w.do(func() error { return os.Chmod(p, mode) })
}

func (w *oddWriter) mkdir(name string, mode fs.FileMode) {
	p := w.at(name)
	w.do(func() error { return os.MkdirAll(p, 0o755) })
	w.do(func() error { return os.Chmod(p, mode) })
}

func (w *oddWriter) link(name, target string) {
	p := w.at(name)
	w.do(func() error { return os.Symlink(target, p) })
}

func (w *oddWriter) hard(old, name string) {
	p := w.at(name)
	w.do(func() error { return os.Link(filepath.Join(w.dir, old), p) })
}

func unixMode(m fs.FileMode) uint32 {
	n := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		n |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		n |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		n |= 0o1000
	}
	return n
}

// maxDifferences is how many differences a comparison reports before it stops.
const maxDifferences = 20

// compare reports how got differs from want: missing and surplus names, types,
// modes, sizes, bytes, times, symlink targets, and hard links within a
// directory. Files that missing names (paths relative to want) are expected to
// be absent.
func compare(want, got string, missing map[string]bool) (files int, size int64, err error) {
	c := &comparer{want: want, got: got, missing: missing}
	c.dir(".")
	if len(c.diffs) > 0 {
		return c.files, c.size, fmt.Errorf("%d differences or more:\n  %s", len(c.diffs), strings.Join(c.diffs, "\n  "))
	}
	return c.files, c.size, nil
}

type comparer struct {
	want, got string
	missing   map[string]bool
	files     int
	size      int64
	diffs     []string
}

func (c *comparer) diff(rel, format string, args ...any) {
	if len(c.diffs) < maxDifferences {
		c.diffs = append(c.diffs, fmt.Sprintf("%q: ", rel)+fmt.Sprintf(format, args...))
	}
}

func (c *comparer) dir(rel string) {
	want, err := os.ReadDir(filepath.Join(c.want, rel))
	if err != nil {
		c.diff(rel, "%v", err)
		return
	}
	got, err := os.ReadDir(filepath.Join(c.got, rel))
	if err != nil {
		c.diff(rel, "%v", err)
		return
	}
	surplus := map[string]bool{}
	for _, e := range got {
		surplus[e.Name()] = true
	}
	links := map[uint64]string{} // inode of want to the first of its names that came back
	for _, e := range want {
		sub := filepath.Join(rel, e.Name())
		if c.missing[sub] {
			continue
		}
		if !surplus[e.Name()] {
			c.diff(sub, "did not come back")
			continue
		}
		delete(surplus, e.Name())
		c.entry(sub, links)
		if len(c.diffs) >= maxDifferences {
			return
		}
	}
	for name := range surplus {
		c.diff(filepath.Join(rel, name), "was never stored")
	}
}

func (c *comparer) entry(rel string, links map[uint64]string) {
	wp, gp := filepath.Join(c.want, rel), filepath.Join(c.got, rel)
	w, err1 := os.Lstat(wp)
	g, err2 := os.Lstat(gp)
	if err := errors.Join(err1, err2); err != nil {
		c.diff(rel, "%v", err)
		return
	}
	if w.Mode() != g.Mode() {
		c.diff(rel, "mode %v, came back %v", w.Mode(), g.Mode())
		return
	}
	c.files++
	switch {
	case w.IsDir():
		c.dir(rel)
	case w.Mode()&fs.ModeSymlink != 0:
		wt, _ := os.Readlink(wp)
		gt, _ := os.Readlink(gp)
		if wt != gt {
			c.diff(rel, "points to %q, came back %q", wt, gt)
		}
		return // the time of a symlink is not kept by every tool
	default:
		c.file(rel, wp, gp, w, g, links)
	}
	if !w.ModTime().Equal(g.ModTime()) {
		c.diff(rel, "modified %v, came back %v", w.ModTime().UTC(), g.ModTime().UTC())
	}
}

func (c *comparer) file(rel, wp, gp string, w, g fs.FileInfo, links map[uint64]string) {
	if w.Size() != g.Size() {
		c.diff(rel, "%d bytes, came back %d", w.Size(), g.Size())
		return
	}
	c.size += w.Size()
	ws := w.Sys().(*syscall.Stat_t)
	if ws.Nlink > 1 {
		if first, ok := links[ws.Ino]; ok {
			if fi, err := os.Lstat(first); err != nil || !os.SameFile(fi, g) {
				c.diff(rel, "is a hard link of %s, came back as a file of its own", filepath.Base(first))
			}
			return
		}
		links[ws.Ino] = gp
	}
	if at, err := sameBytes(wp, gp); err != nil {
		c.diff(rel, "%v", err)
	} else if at >= 0 {
		c.diff(rel, "differs at byte %d", at)
	}
}

// sameBytes returns the offset of the first difference within 64 KiB, -1 when
// there is none.
func sameBytes(a, b string) (int64, error) {
	fa, err := os.Open(a)
	if err != nil {
		return 0, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return 0, err
	}
	defer fb.Close()
	var ba, bb [64 << 10]byte
	for at := int64(0); ; {
		n, erra := io.ReadFull(fa, ba[:])
		m, errb := io.ReadFull(fb, bb[:])
		if n != m || !bytes.Equal(ba[:n], bb[:m]) {
			return at, nil
		}
		at += int64(n)
		ended := func(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }
		switch {
		case erra == nil && errb == nil:
		case ended(erra) && ended(errb):
			return -1, nil
		default:
			return 0, errors.Join(erra, errb)
		}
	}
}
