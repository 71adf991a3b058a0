package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"iter"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dfsd/client"
)

// lsFlags are the flags of ls.
type lsFlags struct {
	long, all, human, recursive, dir, json bool
}

func newLs(a *app) *cobra.Command {
	f := &lsFlags{}
	cmd := &cobra.Command{
		Use:   "ls [-l] [-a] [-R] [PATH…]",
		Short: "List directories",
		Long: `List directories, by name, one entry a line; the root directory where no PATH is given.
Names that a terminal cannot show are quoted on one, and printed as they are elsewhere.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"/"}
			}
			if err := checkRemote("ls", args...); err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(c *client.Client) error { return a.ls(cmd.Context(), c, f, args) })
		},
	}
	cmd.Flags().BoolVarP(&f.long, "long", "l", false, "with mode, links, owner, group, size and time of change")
	cmd.Flags().BoolVarP(&f.all, "all", "a", false, "also names that begin with a dot")
	humanFlag(cmd, &f.human, "with -l: sizes with a unit")
	cmd.Flags().BoolVarP(&f.recursive, "recursive", "R", false, "also the directories below")
	cmd.Flags().BoolVarP(&f.dir, "directory", "d", false, "list directories themselves, not what is in them")
	cmd.Flags().BoolVar(&f.json, "json", false, "print an object with a list of entries")
	return cmd
}

// humanFlag gives -h the meaning that it has in ls and du; help is --help there.
func humanFlag(cmd *cobra.Command, to *bool, usage string) {
	cmd.Flags().Bool("help", false, "help for "+cmd.Name())
	cmd.Flags().BoolVarP(to, "human-readable", "h", false, usage)
}

func (a *app) ls(ctx context.Context, c *client.Client, f *lsFlags, paths []string) error {
	var out lister = newTextLister(a.proc.Out, f, len(paths) > 1 || f.recursive)
	if f.json {
		out = &jsonLister{newJSONList(a.proc.Out, "entries")}
	}
	l := &ls{c: c, flags: f, out: out}
	err := a.eachOf(paths, func(path string) error {
		err := l.path(ctx, path)
		if err == nil {
			return nil
		}
		err = failed("ls", path, err)
		out.fail(path, err)
		return err
	})
	return cmpErr(err, out.end())
}

// lister prints what ls finds.
type lister interface {
	dir(path string) error // its entries follow
	entry(dir, name string, a *client.Attr) error
	fail(path string, err error)
	end() error
}

// ls lists paths.
type ls struct {
	c     *client.Client
	flags *lsFlags
	out   lister
}

func (l *ls) path(ctx context.Context, path string) error {
	look := l.c.Stat
	if l.flags.long || l.flags.dir {
		look = l.c.Lstat
	}
	a, err := look(ctx, path)
	if err != nil {
		return err
	}
	if a.Type != client.TypeDir || l.flags.dir {
		return l.out.entry("", path, a)
	}
	return l.list(ctx, path, l.c.Inode(a.Ino))
}

// list prints a directory, and those below it with -R.
func (l *ls) list(ctx context.Context, path string, dir client.Inode) error {
	if err := l.out.dir(path); err != nil {
		return err
	}
	var below []client.DirEntry
	for e, err := range l.entries(ctx, dir) {
		if err != nil {
			return err
		}
		if err := l.out.entry(path, e.Name, e.Attr); err != nil {
			return err
		}
		if l.flags.recursive && e.Type == client.TypeDir {
			below = append(below, e)
		}
	}
	for _, e := range below {
		if err := l.list(ctx, join(path, e.Name), l.c.Inode(e.Ino)); err != nil {
			return err
		}
	}
	return nil
}

// entries lists what is not hidden.
func (l *ls) entries(ctx context.Context, dir client.Inode) iter.Seq2[client.DirEntry, error] {
	return visible(dir.List(ctx, "", true), l.flags.all)
}

func visible(entries iter.Seq2[client.DirEntry, error], all bool) iter.Seq2[client.DirEntry, error] {
	return func(yield func(client.DirEntry, error) bool) {
		for e, err := range entries {
			if (all || err != nil || !strings.HasPrefix(e.Name, ".")) && !yield(e, err) {
				return
			}
		}
	}
}

// textLister prints for people.
type textLister struct {
	w      *bufio.Writer
	quoted bool
	flags  *lsFlags
	heads  bool // name each directory
	headed int
	owners owners
}

func newTextLister(w io.Writer, f *lsFlags, heads bool) *textLister {
	return &textLister{w: bufio.NewWriter(w), quoted: terminal(w), flags: f, heads: heads, owners: owners{}}
}

func (t *textLister) name(s string) string {
	if t.quoted {
		return quote(s)
	}
	return s
}

func (t *textLister) dir(path string) error {
	if !t.heads {
		return nil
	}
	if t.headed++; t.headed > 1 {
		fmt.Fprintln(t.w)
	}
	_, err := fmt.Fprintf(t.w, "%s:\n", t.name(path))
	return err
}

func (t *textLister) entry(_, name string, a *client.Attr) error {
	line := t.name(name)
	if t.flags.long {
		size := strconv.FormatInt(a.Size, 10)
		if t.flags.human {
			size = shortSize(a.Size)
		}
		line = fmt.Sprintf("%s %3d %-8s %-8s %10s %s %s", modeText(a.Type, a.Mode), a.Nlink, t.owners.user(a.UID), t.owners.group(a.GID), size, listTime(a.Mtime), line)
		if a.Type == client.TypeSymlink {
			line += " -> " + t.name(a.Target)
		}
	}
	_, err := fmt.Fprintln(t.w, line)
	return err
}

func (t *textLister) fail(string, error) { _ = t.w.Flush() } // before the error; its own comes with end

func (t *textLister) end() error { return t.w.Flush() }

// jsonLister prints for programs.
type jsonLister struct{ list *jsonList }

func (j *jsonLister) dir(string) error { return nil }

func (j *jsonLister) entry(dir, name string, a *client.Attr) error {
	path := name
	if dir != "" {
		path = join(dir, name)
	}
	return j.list.add(toJSONAttr(path, a))
}

func (j *jsonLister) fail(path string, err error) { j.list.fail(path, err) }

func (j *jsonLister) end() error { return j.list.end() }

// jsonAttr is an entry of ls, tree and stat.
type jsonAttr struct {
	jsonName
	jsonPath
	Ino          uint64    `json:"ino"`
	Type         string    `json:"type"`
	Mode         string    `json:"mode"` // octal
	UID          uint32    `json:"uid"`
	GID          uint32    `json:"gid"`
	Nlink        uint32    `json:"nlink"`
	Size         int64     `json:"size"`
	Atime        time.Time `json:"atime"`
	Mtime        time.Time `json:"mtime"`
	Ctime        time.Time `json:"ctime"`
	Target       string    `json:"target,omitempty"`
	TargetBase64 string    `json:"target_base64,omitempty"`
	Class        string    `json:"class,omitempty"`
}

func toJSONAttr(path string, a *client.Attr) jsonAttr {
	_, name := split(path)
	if name == "" {
		name = "/"
	}
	return jsonAttr{
		jsonName: toJSONName(name), jsonPath: toJSONPath(path), Ino: uint64(a.Ino), Type: a.Type.String(), Mode: fmt.Sprintf("%04o", a.Mode),
		UID: a.UID, GID: a.GID, Nlink: a.Nlink, Size: a.Size, Atime: a.Atime.UTC(), Mtime: a.Mtime.UTC(), Ctime: a.Ctime.UTC(),
		Target: strings.ToValidUTF8(a.Target, "\uFFFD"), TargetBase64: base64Of(a.Target), Class: a.Class,
	}
}

// modeText is a mode as ls -l shows it.
func modeText(typ client.Type, mode uint32) string {
	b := []byte("?rwxrwxrwx")
	switch typ {
	case client.TypeFile:
		b[0] = '-'
	case client.TypeDir:
		b[0] = 'd'
	case client.TypeSymlink:
		b[0] = 'l'
	}
	for i := range 9 {
		if mode&(0o400>>i) == 0 {
			b[i+1] = '-'
		}
	}
	for i, special := range []struct {
		bit       uint32
		at        int
		on, alone byte // with and without the right to execute
	}{{0o4000, 3, 's', 'S'}, {0o2000, 6, 's', 'S'}, {0o1000, 9, 't', 'T'}} {
		if mode&special.bit == 0 {
			continue
		}
		b[special.at] = special.alone
		if mode&(0o100>>(3*i)) != 0 {
			b[special.at] = special.on
		}
	}
	return string(b)
}

// listTime is a time as ls -l shows it.
func listTime(t time.Time) string {
	const halfYear = 365 * 24 * time.Hour / 2
	if age := time.Since(t); age < -time.Hour || age > halfYear {
		return t.Format("Jan _2  2006")
	}
	return t.Format("Jan _2 15:04")
}

// owners remembers the names of this machine's users and groups.
type owners map[string]string

func (o owners) user(id uint32) string {
	return o.lookup("u", id, func(s string) (string, error) {
		u, err := user.LookupId(s)
		if err != nil {
			return "", err
		}
		return u.Username, nil
	})
}

func (o owners) group(id uint32) string {
	return o.lookup("g", id, func(s string) (string, error) {
		g, err := user.LookupGroupId(s)
		if err != nil {
			return "", err
		}
		return g.Name, nil
	})
}

// lookup finds a name once; the number serves where there is none.
func (o owners) lookup(kind string, id uint32, find func(string) (string, error)) string {
	s := strconv.FormatUint(uint64(id), 10)
	name, ok := o[kind+s]
	if !ok {
		var err error
		if name, err = find(s); err != nil {
			name = s
		}
		o[kind+s] = name
	}
	return name
}
