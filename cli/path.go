package cli

import (
	"context"
	"strings"

	"dfsd/client"
	"dfsd/dfs"
)

// checkRemote refuses paths of the cluster that are not absolute.
func checkRemote(verb string, paths ...string) error {
	for _, p := range paths {
		if !strings.HasPrefix(p, "/") {
			return usagef("%s %s: a path of the cluster is absolute: it begins with /", verb, brief(p))
		}
	}
	return nil
}

// split cuts a path into the directory and the last name, which is "" for the
// root and may be "." or "..".
func split(path string) (dir, name string) {
	trimmed := strings.TrimRight(path, "/")
	i := strings.LastIndexByte(trimmed, '/')
	name = trimmed[i+1:]
	switch {
	case i < 0:
		return "", name
	case i == 0:
		return "/", name
	}
	return trimmed[:i], name
}

// join appends a name to a path of the cluster.
func join(dir, name string) string {
	if strings.HasSuffix(dir, "/") {
		return dir + name
	}
	return dir + "/" + name
}

// unnamed reports whether what split gave is no name of an entry.
func unnamed(name string) bool { return name == "" || name == "." || name == ".." }

// place is where something goes in the cluster: a name in a directory.
type place struct {
	dir  client.Inode
	path string // of dir
	name string // "" : what goes there is poured into dir itself
}

func (p place) full() string {
	if p.name == "" {
		return p.path
	}
	return join(p.path, p.name)
}

// target is the last argument of cp and its kin: a directory that takes each
// source under its own name, or a new name for the only source.
type target struct {
	dir   client.Inode
	path  string // of dir
	name  string // "": each source's own
	slash bool   // it was written like a directory
}

// findTarget looks at the last argument of a verb with several sources.
func findTarget(ctx context.Context, c *client.Client, verb, path string, sources int) (target, error) {
	attr, err := c.Stat(ctx, path)
	switch {
	case err == nil && attr.Type == client.TypeDir:
		dir, err := c.Resolve(ctx, path)
		if err != nil {
			return target{}, failed(verb, path, err)
		}
		return target{dir: dir, path: path}, nil
	case err != nil && dfs.KindOf(err) != dfs.NotExist:
		return target{}, failed(verb, path, err)
	case sources > 1:
		return target{}, withHint(failedf(verb, path, "not a directory, and there are %d sources", sources), "make it with dfsd mkdir "+quote(path))
	}
	above, name := split(path)
	if unnamed(name) {
		return target{}, failed(verb, path, dfs.NotExist)
	}
	dir, err := c.Resolve(ctx, above)
	if err != nil {
		if dfs.KindOf(err) == dfs.NotExist {
			return target{}, withHint(failedf(verb, path, "the directory %s does not exist", quote(above)), "make it with dfsd mkdir -p "+quote(above))
		}
		return target{}, failed(verb, path, err)
	}
	return target{dir: dir, path: above, name: name, slash: strings.HasSuffix(path, "/")}, nil
}

// of is where a source with a name of its own goes.
func (t target) of(own string) place {
	name := t.name
	if name == "" && !unnamed(own) {
		name = own
	}
	return place{t.dir, t.path, name}
}
