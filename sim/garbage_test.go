package sim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/node"
)

// garbageOf counts the copies of blocks by what their stores say of them.
func garbageOf(c *Cluster) (undecided, trash uint64) {
	for _, e := range c.engines() {
		st := e.Stats()
		undecided, trash = undecided+st.Undecided, trash+st.Trash
	}
	return undecided, trash
}

func awaitGarbage(t *testing.T, c *Cluster, what string, undecided, trash uint64) {
	t.Helper()
	took := await(t, 10*time.Minute, func() string {
		if u, n := garbageOf(c); u != undecided || n != trash {
			return fmt.Sprintf("%s: %d copies undecided and %d in the trash, want %d and %d", what, u, n, undecided, trash)
		}
		return ""
	})
	t.Logf("%s: after %v", what, took)
}

// stalled gives its bytes, and after a while an error.
func stalled(data []byte) io.Reader {
	return io.MultiReader(bytes.NewReader(data), stall{})
}

type stall struct{}

func (stall) Read([]byte) (int, error) {
	time.Sleep(10 * time.Second)
	return 0, errors.New("no more")
}

// write writes to a file and leaves it open: its blocks are stored, but the last.
func write(t *testing.T, p *Peer, path string, data []byte) *client.File {
	t.Helper()
	f, err := p.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(t.Context(), data, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestBlocksThatWereNeverCommitted: they are collected when their session has
// given them up, or has died, and not before; what is committed late is there.
func TestBlocksThatWereNeverCommitted(t *testing.T) {
	inBubble(t, Config{Tweak: func(o *node.Options) { o.Storage.TrashKeep = 20 * time.Minute }}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		put(t, p, "/open", "old")
		put(t, p, "/dead", "old")
		awaitGarbage(t, c, "committed", 0, 0)

		// A put that ends in the middle, and a file that is written and not closed.
		three := bytes.Repeat([]byte("0123456789abcdef"), 3*simBlockSize/16)
		if _, err := p.PutFile(t.Context(), "/never", client.PutOptions{}, stalled(three)); err == nil || !strings.Contains(err.Error(), "no more") {
			t.Fatal(err)
		}
		f := write(t, p, "/open", append(three, "tail"...))
		awaitGarbage(t, c, "given up", 9, 9)
		time.Sleep(3 * time.Minute)
		awaitGarbage(t, c, "a file is open", 9, 9)

		// Another control leader learns the marks anew.
		i := leader(t, c, 0, 1, 2)
		c.Crash(i)
		if err := c.Start(i); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		awaitGarbage(t, c, "closed", 0, 9)
		if _, err := p.PutFile(t.Context(), "/never", client.PutOptions{}, stalled(three)); err == nil {
			t.Fatal("a put without its end")
		}
		awaitGarbage(t, c, "given up under another leader", 0, 18)

		// A client that dies with its blocks.
		dead := open(t, c, "dead")
		defer dead.Close()
		write(t, dead, "/dead", append(three, "tail"...))
		time.Sleep(3 * time.Second) // its blocks are stored in the background
		dead.pool.Close()
		awaitGarbage(t, c, "dead", 0, 27)

		for path, want := range map[string]string{"/open": string(three) + "tail", "/dead": "old"} {
			var got bytes.Buffer
			in, err := p.Resolve(t.Context(), path)
			if err == nil {
				_, err = in.WriteTo(t.Context(), &got)
			}
			if err != nil || got.String() != want {
				t.Errorf("%s: %d bytes, %v", path, got.Len(), err)
			}
		}
		time.Sleep(15 * time.Minute)
		awaitGarbage(t, c, "the trash is emptied", 0, 0)
		checkOnlyNamed(t, c, p)
	})
}

// checkOnlyNamed fails when a store holds a block that no file names.
func checkOnlyNamed(t *testing.T, c *Cluster, p *Peer) {
	t.Helper()
	named := map[dfs.BlockID]bool{}
	for d, err := range p.ReadDir(t.Context(), "/", false) {
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range p.Inode(d.Ino).Extents(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			named[e.Block] = true
		}
	}
	m, _ := storesOf(t, p)
	copies := 0
	for id, e := range c.engines() {
		for _, pg := range m.PGs {
			err := eachEntry(e, pg.ID, func(x engine.Entry) error {
				if !x.Tombstone {
					copies++
				}
				if !x.Tombstone && !named[x.ID] {
					return fmt.Errorf("store %v holds block %v, which no file names", id, x.ID)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
	if copies != 3*len(named) {
		t.Errorf("%d copies of %d blocks", copies, len(named))
	}
}

// TestGuessedGarbageIsMissed proves that the test above can fail: a group that
// does not wait for fence or mark has a block deleted that is committed later.
func TestGuessedGarbageIsMissed(t *testing.T) {
	inBubble(t, Config{Tweak: func(o *node.Options) { o.Meta.Namespace.GuessGarbage = true }}, func(t *testing.T, c *Cluster) {
		p := open(t, c, "client")
		defer p.Close()
		awaitReady(t, p)
		put(t, p, "/open", "old")
		data := bytes.Repeat([]byte("0123456789abcdef"), 2*simBlockSize/16)
		f := write(t, p, "/open", data)
		time.Sleep(simTrashKeep + time.Minute)
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n, err := p.Inode(f.Inode().Ino()).WriteTo(t.Context(), io.Discard); err == nil {
			t.Errorf("%d bytes could be read", n)
		}
	})
}
