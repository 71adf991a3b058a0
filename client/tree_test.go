package client_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/transport"
)

func TestEveryVerb(t *testing.T) {
	inWorld(t, worldOptions{}, everyVerb)
}

// TestEveryVerbWithLostReplies loses the first answer to each command, and to the
// opening of the session: each verb must take effect once all the same.
func TestEveryVerbWithLostReplies(t *testing.T) {
	inWorld(t, worldOptions{loseReplies: true}, everyVerb)
}

// TestForgottenRepliesAreNoticed plants a fault that the test above must see.
func TestForgottenRepliesAreNoticed(t *testing.T) {
	inWorld(t, worldOptions{loseReplies: true, namespace: namespace.Options{ForgetReplies: true}}, func(t *testing.T, w *world) {
		_, err := w.client(nil).PutFile(t.Context(), "/f", client.PutOptions{}, nil)
		wantKind(t, err, dfs.Exist)
	})
}

// TestEveryVerbOverABadNetwork loses the answers to a third of all requests of
// each kind, with their connections; of blocks a seventh, since all three members
// of an attempt must answer.
func TestEveryVerbOverABadNetwork(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	inWorld(t, worldOptions{dropReply: func(_ transport.Peer, method string, _ error) bool {
		mu.Lock()
		defer mu.Unlock()
		seen[method]++
		every := 3 // more would open the circuit breakers for good
		if strings.HasSuffix(method, "/Put") {
			every = 7
		}
		return seen[method]%every == 1 && !strings.HasSuffix(method, "/GetMap")
	}}, everyVerb)
	for _, method := range []string{"Mutate", "Read", "OpenSession"} {
		if seen["/dfsd.wire.Meta/"+method] < 2 {
			t.Errorf("%s: no answer was lost", method)
		}
	}
}

func everyVerb(t *testing.T, w *world) {
	c, ctx := w.client(nil), t.Context()
	_, err := c.Mkdir(ctx, "/a", 0o755)
	noErr(t, err)
	_, err = c.Mkdir(ctx, "/a", 0o755)
	wantKind(t, err, dfs.Exist)
	_, err = c.MkdirAll(ctx, "/a/b/c/d", 0o700)
	noErr(t, err)
	_, err = c.MkdirAll(ctx, "/a/b/c/d", 0o700)
	noErr(t, err)

	data := content(1, 2*blockSize+100)
	when := time.Unix(1234567890, 987654321)
	a, err := c.PutFile(ctx, "/a/b/f", client.PutOptions{Mode: 0o4751, Mtime: when, Atime: when.Add(time.Second)}, bytes.NewReader(data))
	noErr(t, err)
	if a.Mode != 0o4751 || !a.Mtime.Equal(when) || !a.Atime.Equal(when.Add(time.Second)) || a.Size != int64(len(data)) || a.Nlink != 1 {
		t.Errorf("put: %+v", a)
	}
	_, err = c.PutFile(ctx, "/a/b/f", client.PutOptions{}, strings.NewReader("x"))
	wantKind(t, err, dfs.Exist)
	_, err = c.PutFile(ctx, "/a/b/small", client.PutOptions{Mode: 0o600}, strings.NewReader("old"))
	noErr(t, err)
	_, err = c.PutFile(ctx, "/a/b/small", client.PutOptions{Mode: 0o644, Replace: true}, strings.NewReader("new!"))
	noErr(t, err)
	wantContent(t, c, "/a/b/small", []byte("new!"))
	_, err = c.PutFile(ctx, "/a/b", client.PutOptions{Replace: true}, strings.NewReader("x"))
	wantKind(t, err, dfs.IsDir)
	_, err = c.PutFile(ctx, "/a/b/empty", client.PutOptions{Mode: 0}, nil)
	noErr(t, err)
	wantContent(t, c, "/a/b/empty", nil)
	wantContent(t, c, "/a/b/f", data)

	_, err = c.Symlink(ctx, "../b/f", "/a/b/link", client.PutOptions{Mtime: when})
	noErr(t, err)
	if target, err := c.ReadLink(ctx, "/a/b/link"); err != nil || target != "../b/f" {
		t.Errorf("link reads %q, %v", target, err)
	}
	wantContent(t, c, "/a/b/link", data)
	l, err := c.Link(ctx, "/a/b/f", "/a/b/hard")
	noErr(t, err)
	if l.Ino != a.Ino || l.Nlink != 2 {
		t.Errorf("hard link: %+v", l)
	}
	noErr(t, c.Rename(ctx, "/a/b/hard", "/a/b/hard2", false))
	wantKind(t, c.Rename(ctx, "/a/b/hard2", "/a/b/small", true), dfs.Exist)
	noErr(t, c.Rename(ctx, "/a/b/hard2", "/a/b/small", false))
	wantContent(t, c, "/a/b/small", data)

	mode, uid := uint32(0o640), uint32(77)
	set, err := c.SetAttr(ctx, "/a/b/link", client.SetAttr{Mode: &mode, UID: &uid, Mtime: &when})
	noErr(t, err)
	if set.Mode != mode || set.UID != uid || set.Ino != a.Ino {
		t.Errorf("set attributes: %+v", set)
	}
	noErr(t, c.SetPolicy(ctx, "/a/b", dfs.Replicated(2)))
	if b, err := c.Stat(ctx, "/a/b"); err != nil || b.Class != "rep2" {
		t.Errorf("policy: %+v, %v", b, err)
	}
	noErr(t, c.SetPolicy(ctx, "/a/b", dfs.Class{}))

	var names []string
	for e, err := range c.ReadDir(ctx, "/a/b", true) {
		noErr(t, err)
		if e.Attr == nil || e.Attr.Ino != e.Ino || e.Attr.Type != e.Type {
			t.Errorf("entry %+v", e)
		}
		names = append(names, e.Name)
	}
	if got := strings.Join(names, " "); got != "c empty f link small" {
		t.Errorf("entries: %s", got)
	}

	wantKind(t, c.Rmdir(ctx, "/a/b"), dfs.NotEmpty)
	wantKind(t, c.Remove(ctx, "/a/b/c"), dfs.IsDir)
	wantKind(t, c.Rmdir(ctx, "/a/b/f"), dfs.NotDir)
	for _, p := range []string{"/a/b/empty", "/a/b/f", "/a/b/link", "/a/b/small"} {
		noErr(t, c.Remove(ctx, p))
	}
	wantKind(t, c.Remove(ctx, "/a/b/f"), dfs.NotExist)
	for _, p := range []string{"/a/b/c/d", "/a/b/c", "/a/b", "/a"} {
		noErr(t, c.Rmdir(ctx, p))
	}
	wantKind(t, c.Rmdir(ctx, "/a"), dfs.NotExist)
	for e := range c.ReadDir(ctx, "/", false) {
		t.Errorf("the root still has %q", e.Name)
	}
	w.meta.check(t)
}

func wantContent(t *testing.T, c *client.Client, path string, want []byte) {
	t.Helper()
	f, err := c.Open(t.Context(), path)
	noErr(t, err)
	var got bytes.Buffer
	n, err := f.WriteTo(t.Context(), &got)
	noErr(t, err)
	if n != int64(len(want)) || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s: %d bytes that differ from the %d that were put", path, n, len(want))
	}
	noErr(t, f.Close(t.Context()))
	for how, get := range map[string]func(io.Writer) (int64, error){
		"GetFile": func(w io.Writer) (int64, error) { return c.GetFile(t.Context(), path, w) },
		"WriteTo": func(w io.Writer) (int64, error) { return f.Inode().WriteTo(t.Context(), w) },
	} {
		got.Reset()
		n, err := get(&got)
		noErr(t, err)
		if n != int64(len(want)) || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s: %s gives %d bytes that differ from the %d that were put", path, how, n, len(want))
		}
	}
}

func TestPaths(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c, ctx := w.client(nil), t.Context()
		for _, d := range []string{"/d/e/f/g", "/x"} {
			_, err := c.MkdirAll(ctx, d, 0o755)
			noErr(t, err)
		}
		put := func(path, s string) {
			_, err := c.PutFile(ctx, path, client.PutOptions{Mode: 0o644}, strings.NewReader(s))
			noErr(t, err)
		}
		link := func(target, path string) {
			_, err := c.Symlink(ctx, target, path, client.PutOptions{})
			noErr(t, err)
		}
		odd := "with\nnewline \xff\xfe"
		long := strings.Repeat("n", 255)
		put("/file", "1")
		put("/d/e/file", "22")
		put("/d/"+odd, "333")
		put("/d/"+long, "4444")
		link("/d/e", "/abs")
		link("../../d/e/f", "/d/e/rel")
		link("file", "/d/e/one")
		link("one", "/d/e/two")
		link("loop2", "/loop1")
		link("loop1", "/loop2")
		link("/nowhere/at/all", "/dangling")
		link("/file/", "/slashed")
		link("/d/e/", "/dirlink")
		for i := range 41 {
			link(fmt.Sprintf("chain%d", i+1), fmt.Sprintf("/chain%d", i))
		}
		put("/chain41", "end")

		for _, tc := range []struct {
			path string
			size int64 // -1: a directory
			kind dfs.Kind
		}{
			{"/", -1, 0}, {"//", -1, 0}, {"/.", -1, 0}, {"/..", -1, 0}, {"/../..", -1, 0},
			{"/file", 1, 0}, {"//file", 1, 0}, {"/./file", 1, 0}, {"/d/../file", 1, 0}, {"/d/e/f/g/../../../../file", 1, 0},
			{"/d/e/file", 2, 0}, {"/abs/file", 2, 0}, {"/abs/../e/file", 2, 0}, {"/d/e/rel/g", -1, 0}, {"/d/e/rel/../file", 2, 0},
			{"/d/e/two", 2, 0}, {"/d/" + odd, 3, 0}, {"/d/" + long, 4, 0}, {"/d/", -1, 0}, {"/abs/", -1, 0}, {"/dirlink/file", 2, 0},
			{"/chain1", 3, 0}, {"/chain0", 0, dfs.Loop}, {"/loop1", 0, dfs.Loop}, {"/loop1/x", 0, dfs.Loop},
			{"/dangling", 0, dfs.NotExist}, {"/nope", 0, dfs.NotExist}, {"/nope/x", 0, dfs.NotExist}, {"/d/e/nope/..", 0, dfs.NotExist},
			{"/file/", 0, dfs.NotDir}, {"/file/x", 0, dfs.NotDir}, {"/file/..", 0, dfs.NotDir}, {"/file/.", 0, dfs.NotDir}, {"/slashed", 0, dfs.NotDir},
			{"", 0, dfs.Invalid}, {"file", 0, dfs.Invalid}, {"/a\x00b", 0, dfs.Invalid},
			{"/" + strings.Repeat("n", 256), 0, dfs.TooLarge}, {"/" + strings.Repeat("a/", 2048), 0, dfs.TooLarge},
		} {
			a, err := c.Stat(ctx, tc.path)
			switch {
			case tc.kind != 0:
				wantKind(t, err, tc.kind)
				if err != nil && len(tc.path) < 100 && !strings.Contains(err.Error(), tc.path) {
					t.Errorf("the error does not name %q: %v", tc.path, err)
				}
			case err != nil:
				t.Errorf("%q: %v", tc.path, err)
			case tc.size < 0 && a.Type != client.TypeDir, tc.size >= 0 && a.Size != tc.size:
				t.Errorf("%q: %+v", tc.path, a)
			}
		}
		if a, err := c.Lstat(ctx, "/abs"); err != nil || a.Type != client.TypeSymlink || a.Target != "/d/e" {
			t.Errorf("lstat: %+v, %v", a, err)
		}
		if a, err := c.Lstat(ctx, "/abs/"); err != nil || a.Type != client.TypeDir {
			t.Errorf("lstat with a slash: %+v, %v", a, err)
		}
		put("/abs/new", "55555") // the directory's symlink is followed
		wantContent(t, c, "/d/e/new", []byte("55555"))
		for path, kind := range map[string]dfs.Kind{
			"/": dfs.Invalid, "/x/": dfs.IsDir, "/file/x": dfs.NotDir, "/nope/x": dfs.NotExist, "/x/..": dfs.Invalid, "x": dfs.Invalid,
			"/x/" + strings.Repeat("n", 256): dfs.TooLarge, "/x/a\x00b": dfs.Invalid,
		} {
			_, err := c.PutFile(ctx, path, client.PutOptions{}, strings.NewReader("x"))
			wantKind(t, err, kind)
		}
		_, err := c.Mkdir(ctx, "/", 0o755)
		wantKind(t, err, dfs.Exist)
		_, err = c.Mkdir(ctx, "/x/", 0o755)
		wantKind(t, err, dfs.Exist)
		_, err = c.MkdirAll(ctx, "/file/a/b", 0o755)
		wantKind(t, err, dfs.NotDir)
		wantKind(t, c.Rmdir(ctx, "/"), dfs.Invalid)
		wantKind(t, c.Remove(ctx, "/x/"), dfs.IsDir)
		w.meta.check(t)
	})
}

func TestListingOverPages(t *testing.T) {
	inWorld(t, worldOptions{}, func(t *testing.T, w *world) {
		c, ctx := w.client(nil), t.Context()
		dir, err := c.Resolve(ctx, "/")
		noErr(t, err)
		const files, dirs = 2100, 30
		var wg sync.WaitGroup
		for k := range 8 {
			wg.Go(func() {
				for i := k; i < files; i += 8 {
					_, err := dir.PutFile(ctx, fmt.Sprintf("f%04d", i), client.PutOptions{}, nil)
					noErr(t, err)
				}
			})
		}
		wg.Wait()
		for i := range dirs {
			_, err := dir.Mkdir(ctx, fmt.Sprintf("d%02d", i), 0o755)
			noErr(t, err)
		}
		for _, plus := range []bool{false, true} {
			n, last := 0, ""
			for e, err := range dir.List(ctx, "", plus) {
				noErr(t, err)
				if e.Name <= last || plus != (e.Attr != nil) {
					t.Fatalf("entry %q after %q, attributes %v", e.Name, last, e.Attr)
				}
				last = e.Name
				n++
			}
			if n != files+dirs {
				t.Errorf("%d entries, want %d", n, files+dirs)
			}
		}
		n := 0
		for e, err := range dir.List(ctx, "f2000", false) {
			noErr(t, err)
			if n++; n == 10 || e.Name <= "f2000" {
				break
			}
		}
		if n != 10 {
			t.Errorf("%d entries after f2000", n)
		}
		w.meta.check(t)
	})
}
