package client

import (
	"bytes"
	"context"
	"strings"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// maxLinks is how many symbolic links one path may lead over.
const maxLinks = 40

// splitPath cuts a path into names; "." and empty ones are dropped, ".." stays.
// MustDir says that the path ends like a directory's. Errors: Invalid, TooLarge.
func splitPath(path string) (names [][]byte, mustDir bool, err error) {
	switch {
	case path == "":
		return nil, false, dfs.Errorf(dfs.Invalid, "", "the path is empty")
	case path[0] != '/':
		return nil, false, dfs.Errorf(dfs.Invalid, "", "the path is not absolute")
	case len(path) > dfs.MaxPath:
		return nil, false, dfs.Errorf(dfs.TooLarge, "", "the path has %d bytes: at most %d", len(path), dfs.MaxPath)
	}
	return splitNames(path)
}

// splitNames is splitPath for what may be relative, and as long as a symlink.
func splitNames(path string) (names [][]byte, mustDir bool, err error) {
	if strings.IndexByte(path, 0) >= 0 {
		return nil, false, dfs.Errorf(dfs.Invalid, "", "the path holds a zero byte")
	}
	for name := range strings.SplitSeq(path, "/") {
		mustDir = name == "" || name == "." || name == ".."
		if len(name) > dfs.MaxName {
			return nil, false, dfs.Errorf(dfs.TooLarge, "", "a name has %d bytes: at most %d", len(name), dfs.MaxName)
		}
		if name != "" && name != "." {
			names = append(names, []byte(name))
		}
	}
	return names, mustDir, nil
}

// checkName refuses what cannot be the name of an entry. Errors: Invalid, TooLarge.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return dfs.Errorf(dfs.Invalid, "", "%q is not the name of an entry", name)
	case strings.IndexByte(name, 0) >= 0 || strings.IndexByte(name, '/') >= 0:
		return dfs.Errorf(dfs.Invalid, "", "the name %q holds a slash or a zero byte", name)
	case len(name) > dfs.MaxName:
		return dfs.Errorf(dfs.TooLarge, "", "the name has %d bytes: at most %d", len(name), dfs.MaxName)
	}
	return nil
}

// place is a directory that a path led through.
type place struct {
	ino  dfs.Ino
	attr *wire.Attr // nil: not asked for yet
}

// walker follows one path.
type walker struct {
	c       *Client
	stack   []place  // from the root down to where the walk is. Invariant: not empty
	names   [][]byte // still to follow
	mustDir bool     // what the path ends at must be a directory
	follow  bool     // a symlink at the end is followed
	links   int      // followed so far
	content bool     // where the bytes of a file at the end are is asked for

	found *wire.ExtentsResult // where they are, as old as the attributes; nil: not known

	gone bool // an inode that a name led to was removed before its own group was asked
}

// vanished notes that what a name led to is gone: another inode may have the name.
func (w *walker) vanished(err error) error {
	w.gone = dfs.KindOf(err) == dfs.NotExist
	return err
}

// followed makes walkers and runs fn with them until none has met an inode that vanished.
func (c *Client) followed(names [][]byte, mustDir, follow bool, fn func(*walker) error) error {
	for n := 1; ; n++ {
		w := c.walker(names, mustDir, follow)
		if err := fn(w); err == nil || !w.gone || n >= maxVanished {
			return err
		}
	}
}

func (c *Client) walker(names [][]byte, mustDir, follow bool) *walker {
	return &walker{c: c, stack: []place{{ino: dfs.RootIno}}, names: names, mustDir: mustDir, follow: follow || mustDir}
}

// run follows the names. It returns what is no directory at their end, or nil,
// and the last name when only that one does not exist. The directory where the
// walk ended, or which holds what it found, is on top of the stack.
func (w *walker) run(ctx context.Context) (leaf *wire.Attr, missing []byte, err error) {
	for len(w.names) > 0 {
		if string(w.names[0]) == ".." {
			w.stack = w.stack[:max(1, len(w.stack)-1)]
			w.names = w.names[1:]
			continue
		}
		n := 1
		for n < len(w.names) && string(w.names[n]) != ".." {
			n++
		}
		top := &w.stack[len(w.stack)-1]
		res, err := w.c.walk(ctx, top.ino, w.names[:n], w.content)
		if err != nil {
			return nil, nil, w.vanished(err)
		}
		top.attr, w.found = res.Start, res.Content
		leaf, jumped, err := w.steps(res.Steps)
		switch {
		case err != nil || leaf != nil:
			return leaf, nil, err
		case jumped:
		case res.Missing && len(w.names) == 1:
			return nil, w.names[0], nil
		case res.Missing:
			return nil, nil, dfs.Errorf(dfs.NotExist, "", "%q does not exist", w.names[0])
		case res.Next != 0 && res.NextType != wire.FileType_DIR && res.NextType != wire.FileType_NONE:
			at, err := w.c.walk(ctx, dfs.Ino(res.Next), nil, w.content)
			if err != nil {
				return nil, nil, w.vanished(err)
			}
			w.found = at.Content
			leaf, _, err := w.steps([]*wire.Attr{at.Start})
			if err != nil || leaf != nil {
				return leaf, nil, err
			}
		case res.Next != 0:
			w.stack = append(w.stack, place{ino: dfs.Ino(res.Next)})
			w.names = w.names[1:]
		case len(res.Steps) == 0:
			return nil, nil, dfs.Errorf(dfs.Internal, "", "a walk of %d names went nowhere", n)
		}
	}
	return nil, nil, nil
}

// steps takes in what one answer found. It stops at a symlink that it follows,
// and reports that it jumped, and at a leaf.
func (w *walker) steps(found []*wire.Attr) (leaf *wire.Attr, jumped bool, err error) {
	for _, a := range found {
		w.names = w.names[1:]
		switch {
		case a.GetType() == wire.FileType_DIR:
			w.stack = append(w.stack, place{ino: dfs.Ino(a.GetIno()), attr: a})
		case a.GetType() == wire.FileType_SYMLINK && (len(w.names) > 0 || w.follow):
			return nil, true, w.jump(a.GetTarget())
		case len(w.names) > 0 || w.mustDir:
			return nil, false, dfs.Errorf(dfs.NotDir, "", "")
		default:
			return a, false, nil
		}
	}
	return nil, false, nil
}

// jump goes on at the target of a symlink.
func (w *walker) jump(target []byte) error {
	if w.links++; w.links > maxLinks {
		return dfs.Errorf(dfs.Loop, "", "more than %d symbolic links", maxLinks)
	}
	names, mustDir, err := splitNames(string(target))
	if err != nil {
		return err
	}
	if len(w.names) == 0 && mustDir {
		w.mustDir = true
	}
	if bytes.HasPrefix(target, []byte("/")) {
		w.stack = w.stack[:1]
	}
	w.names = append(names, w.names...)
	return nil
}

// top returns the attributes of the directory on top of the stack.
func (w *walker) top(ctx context.Context) (*wire.Attr, error) {
	p := &w.stack[len(w.stack)-1]
	if p.attr == nil {
		a, err := w.c.attr(ctx, p.ino)
		if err != nil {
			return nil, w.vanished(err)
		}
		p.attr = a
	}
	return p.attr, nil
}

// find returns the attributes of what a path names.
func (c *Client) find(ctx context.Context, path string, follow bool) (*wire.Attr, error) {
	names, mustDir, err := splitPath(path)
	if err != nil {
		return nil, err
	}
	var a *wire.Attr
	err = c.followed(names, mustDir, follow, func(w *walker) (err error) {
		a, err = w.find(ctx)
		return err
	})
	return a, err
}

// find returns the attributes of what the names lead to.
func (w *walker) find(ctx context.Context) (*wire.Attr, error) {
	leaf, missing, err := w.run(ctx)
	switch {
	case err != nil:
		return nil, err
	case missing != nil:
		return nil, dfs.Errorf(dfs.NotExist, "", "")
	case leaf != nil:
		return leaf, nil
	}
	return w.top(ctx)
}

// findFile returns the attributes of the file that a path names, and where its
// bytes are, nil where the answer does not say all of it.
func (c *Client) findFile(ctx context.Context, path string) (*wire.Attr, *wire.ExtentsResult, error) {
	ctx, cancel := c.timed(ctx)
	defer cancel()
	names, mustDir, err := splitPath(path)
	if err != nil {
		return nil, nil, err
	}
	var a *wire.Attr
	var found *wire.ExtentsResult
	err = c.followed(names, mustDir, true, func(w *walker) (err error) {
		w.content = true
		a, err = w.find(ctx)
		found = w.found
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if err := checkFile(a); err != nil {
		return nil, nil, err
	}
	if found.GetMore() {
		return a, nil, nil
	}
	return a, found, nil
}

// entry is a name in a directory, which may or may not exist.
type entry struct {
	dir     place
	name    string
	mustDir bool // the path was written like a directory's
}

// findEntry returns the entry that a path ends with; its directory exists.
func (c *Client) findEntry(ctx context.Context, path string) (entry, error) {
	names, mustDir, err := splitPath(path)
	if err != nil {
		return entry{}, err
	}
	if len(names) == 0 {
		return entry{}, dfs.Errorf(dfs.Invalid, "", "the root directory has no name")
	}
	last := len(names) - 1
	if string(names[last]) == ".." {
		return entry{}, dfs.Errorf(dfs.Invalid, "", "the path does not end with a name")
	}
	e := entry{name: string(names[last]), mustDir: mustDir}
	err = c.followed(names[:last], true, true, func(w *walker) error {
		_, missing, err := w.run(ctx)
		if err == nil && missing != nil {
			err = dfs.Errorf(dfs.NotExist, "", "%q does not exist", missing)
		}
		e.dir = w.stack[len(w.stack)-1]
		return err
	})
	if err != nil {
		return entry{}, err
	}
	return e, nil
}
