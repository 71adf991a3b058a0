package namespace

import (
	"cmp"
	"slices"

	"dfsd/dfs"
)

// fileNames is how often a file is named in each directory, as far as an entry
// changes it. One that has a single name, in a directory of this group, needs no rows:
// its home says it all.
type fileNames struct {
	c    *change
	file dfs.Ino
	home dfs.Ino // as it was; 0: none
	kept bool    // in rows
	list []*nameIn
}

type nameIn struct {
	dir    dfs.Ino
	row    nameRow
	stored bool
	got    bool // a name, by this entry
}

// moveNames counts the names of a file anew and chooses its home: the one that it
// has, as long as a name is there; else the directory in which it has got one, and
// else the least one that names it. Renewed says that the home is in another group
// and has got a name, with which it begins anew to take in what the file counts.
func (c *change) moveNames(n *inode) (renewed bool, err error) {
	if dir := c.onlyName(n); dir != 0 {
		n.home = dir
		return false, nil
	}
	f := &fileNames{c: c, file: n.ino, home: n.was.home, kept: n.was.home != 0 && (n.was.nlink > 1 || !c.local(n.was.home))}
	for _, m := range c.named {
		if m.ino == n.ino && m.delta != 0 {
			if err := f.apply(m); err != nil {
				return false, err
			}
		}
	}
	if n.home, err = f.choose(); err != nil {
		return false, err
	}
	if n.disappeared {
		n.home = 0
	}
	if n.home == 0 {
		return false, f.write(false)
	}
	e, err := f.find(n.home)
	if err != nil {
		return false, err
	}
	return e.got && !c.local(n.home), f.write(n.nlink > 1 || !c.local(n.home))
}

// onlyName returns the directory of this group in which a file has got its only
// name, 0 where there is more to say: most files are never anything else.
func (c *change) onlyName(n *inode) (dir dfs.Ino) {
	if n.was.home != 0 || n.nlink != 1 {
		return 0
	}
	for _, m := range c.named {
		if m.ino != n.ino || m.delta == 0 {
			continue
		}
		if dir != 0 || m.delta != 1 || !c.local(m.dir) {
			return 0
		}
		dir = m.dir
	}
	return dir
}

// find returns what is known of a directory.
func (f *fileNames) find(dir dfs.Ino) (*nameIn, error) {
	for _, e := range f.list {
		if e.dir == dir {
			return e, nil
		}
	}
	e := &nameIn{dir: dir}
	switch {
	case f.kept:
		var err error
		if e.row, err = readName(f.c.tx, f.file, dir); err != nil {
			return nil, err
		}
		e.stored = e.row.count > 0
	case dir == f.home:
		e.row.count = 1
	}
	f.list = append(f.list, e)
	return e, nil
}

func (f *fileNames) apply(m naming) error {
	if f.home != 0 { // where there are no rows yet, what is known of it is written with the others
		if _, err := f.find(f.home); err != nil {
			return err
		}
	}
	e, err := f.find(m.dir)
	if err != nil {
		return err
	}
	if m.delta > 0 {
		e.row.count += uint64(m.delta)
		if e.got = true; !f.c.local(m.dir) {
			e.row.since = f.c.version
		}
		return nil
	}
	less := uint64(-m.delta)
	if less > e.row.count && f.c.local(m.dir) {
		return broken("inode %v loses %d names in %v and has %d", f.file, less, m.dir, e.row.count)
	}
	e.row.count -= min(less, e.row.count) // groups that were recovered to different moments may disagree
	return nil
}

func (f *fileNames) choose() (dfs.Ino, error) {
	if len(f.list) == 0 {
		return f.home, nil
	}
	best := dfs.Ino(0)
	for _, e := range f.list {
		switch {
		case e.row.count == 0:
		case e.dir == f.home:
			return f.home, nil
		case e.got && (best == 0 || e.dir < best):
			best = e.dir
		}
	}
	if best != 0 || !f.kept {
		return best, nil
	}
	prefix := key8(tagNames, uint64(f.file))
	err := scan(f.c.tx, prefix, after(prefix), func(key, _ []byte) (bool, error) {
		dir := keyDir(key)
		if !slices.ContainsFunc(f.list, func(e *nameIn) bool { return e.dir == dir && e.row.count == 0 }) {
			best = dir
		}
		return best == 0, nil
	})
	return best, err
}

// write writes the rows, or removes them.
func (f *fileNames) write(keep bool) error {
	slices.SortFunc(f.list, func(a, b *nameIn) int { return cmp.Compare(a.dir, b.dir) })
	for _, e := range f.list {
		key, err := nameKey(f.file, e.dir), error(nil)
		switch {
		case keep && e.row.count > 0:
			err = f.c.set(key, e.row.append(nil))
		case e.stored:
			err = f.c.delete(key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
