package raftgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dfsd/dfs"
	"dfsd/sim/rot"
)

// blockLen is that of Pebble's log files: damage at the borders of their blocks,
// and in the last one, is told from a torn tail with the least certainty.
const blockLen = 32 << 10

// places lists where a file of size bytes is damaged: its ends, its middle, the
// heads and payloads of chunks on both sides of each kind of block border. Step
// adds every so many bytes; 0: none.
func places(size, step int) []int {
	out := []int{0, 5, 7, 30, size / 2, size - 50, size - 12, size - 1}
	last := size / blockLen * blockLen
	for _, border := range []int{blockLen, last / 2 / blockLen * blockLen, last} {
		out = append(out, border-1, border+5, border+30)
	}
	for at := 0; step > 0 && at < size; at += step {
		out = append(out, at)
	}
	out = slices.DeleteFunc(out, func(at int) bool { return at < 0 || at >= size })
	slices.Sort(out)
	return slices.Compact(out)
}

// promise is what a host may have told the others, by group.
type promise struct {
	term, vote, commit uint64
	first, last        uint64
	sum                uint32 // of the entries
	applied            uint64
	state              string // "missing", or its rows
}

// promises opens the host of a disk, and reads back all that it knows. What it
// sends meanwhile is an error: it was not asked anything.
func promises(c *cluster, id dfs.NodeID, fs vfs.FS) (map[dfs.GroupID]promise, error) {
	n := &node{c: c, id: id, fs: fs.(*vfs.MemFS)}
	o := n.options()
	o.Send = func(to dfs.NodeID, _ Lane, _ []byte) bool {
		c.t.Errorf("node %v speaks to node %v", id, to)
		return true
	}
	h, err := Open(o)
	if err != nil {
		return nil, err
	}
	out := map[dfs.GroupID]promise{}
	for _, r := range h.sorted() {
		var p promise
		if p, err = promiseOf(h, r); err != nil {
			break
		}
		out[r.id] = p
	}
	cerr := h.Close()
	return out, firstError(h.Failure(), err, cerr)
}

func promiseOf(h *Host, r *replica) (p promise, err error) {
	hs, err := r.l.hardState()
	if err != nil {
		return p, err
	}
	p.term, p.vote, p.commit = hs.GetTerm(), hs.GetVote(), hs.GetCommit()
	p.first, p.last = r.l.bounds()
	for i := p.first; i <= p.last; i++ {
		e, _, err := r.l.read(i)
		if err != nil {
			return p, err
		}
		p.sum = crc(p.sum, encodeEntry(r.id, e, 0))
	}
	p.applied = r.state.now().index
	if r.state.missing() {
		p.state = "missing"
		return p, nil
	}
	err = h.ReadLocal(r.id, func(rd Reader) error {
		return rd.Scan(nil, nil, func(k, v []byte) (bool, error) {
			p.state += fmt.Sprintf("%s=%s\n", k, v)
			return true, nil
		})
	})
	return p, err
}

// compare says what a host that opens has lost of what it was.
func (p promise) compare(was promise) error {
	switch {
	case p.term < was.term || p.term == was.term && p.vote != was.vote:
		return fmt.Errorf("term %d, vote %d; it was at term %d and had voted for %d", p.term, p.vote, was.term, was.vote)
	case p.commit < was.commit || p.first != was.first || p.last != was.last || p.sum != was.sum:
		return fmt.Errorf("commit %d, entries %d to %d; it had %d, %d to %d", p.commit, p.first, p.last, was.commit, was.first, was.last)
	}
	return nil
}

// worn runs a cluster and returns it with a member's disk: a new one, of which
// all is in the first log file, or one with tables, cut logs and an old log.
func worn(t *testing.T, old bool) (*cluster, dfs.NodeID, *vfs.MemFS) {
	c := newCluster(t, 1, 3, 0, 1)
	c.boot()
	n := 60
	if old {
		n = 400
	}
	for _, g := range c.groups {
		c.fill(g, n, 1000)
		c.propose(g, "put last value")
	}
	c.converge(c.all()...)
	time.Sleep(2 * time.Second) // the mark is synced in the background
	victim := c.leader(0)%3 + 1
	return c, victim, c.kill(victim, 0).fs
}

// copyOf copies a member's directory to a disk that knows no power loss, which is
// faster.
func copyOf(t *testing.T, fs *vfs.MemFS) *vfs.MemFS {
	t.Helper()
	out := vfs.NewMem()
	if _, err := vfs.Clone(fs, out, "data", "data"); err != nil {
		t.Fatal(err)
	}
	return out
}

// sweep damages every file of a directory of a member's disk, one place at a
// time, and has each judged.
func sweep(t *testing.T, fs *vfs.MemFS, dir string, judge func(t *testing.T, what string, damaged *vfs.MemFS)) (n int) {
	step, stride := 0, 4
	if os.Getenv("DFSD_TEST_SOAK") != "" {
		step, stride = 97, 1
	}
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	try := func(what, file string, change func([]byte) []byte) {
		damaged := copyOf(t, fs)
		if change == nil {
			if err := errors.Join(damaged.Remove(file), syncDir(damaged, dir)); err != nil {
				t.Fatal(err)
			}
		} else {
			rot.Rewrite(t, damaged, file, change)
		}
		n++
		judge(t, file+": "+what, damaged)
	}
	for _, name := range names {
		file := path.Join(dir, name)
		info, err := fs.Stat(file)
		if err != nil || info.IsDir() || name == "LOCK" {
			continue
		}
		try("gone", file, nil)
		try("empty", file, func(b []byte) []byte { return nil })
		for i, at := range places(int(info.Size()), step) {
			if i%stride != 0 && at+1 < int(info.Size()) {
				continue
			}
			try(fmt.Sprintf("a bit flipped at %d of %d", at, info.Size()), file, func(b []byte) []byte { b[at] ^= 0x10; return b })
			try(fmt.Sprintf("torn at %d of %d", at, info.Size()), file, func(b []byte) []byte { return b[:at] })
			try(fmt.Sprintf("zero from %d of %d", at, info.Size()), file, func(b []byte) []byte { clear(b[at:]); return b })
		}
	}
	return n
}

// TestDamagedLogIsFoundOrWhole damages the log store of one member at every kind
// of place: the host is refused, ends at the first read of what is bad, or has
// everything that it ever promised.
func TestDamagedLogIsFoundOrWhole(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(map[bool]string{false: "first log file", true: "with tables"}[old], func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c, id, fs := worn(t, old)
				defer c.stop()
				was, err := promises(c, id, copyOf(t, fs))
				if err != nil || len(was) != len(c.groups) {
					t.Fatalf("the whole disk: %v, %v", was, err)
				}
				found := 0
				n := sweep(t, fs, "data/raft-log", func(t *testing.T, what string, damaged *vfs.MemFS) {
					is, err := promises(c, id, damaged)
					switch {
					case IsLogDamage(err):
						found++
					case err != nil:
						t.Errorf("%s: %v", what, err)
					default:
						for g := range was {
							if err := is[g].compare(was[g]); err != nil {
								t.Errorf("%s: %v opens with %v", what, g, err)
							}
						}
					}
				})
				t.Logf("%d of %d damages found, with the others all is there", found, n)
				if found < n/4 {
					t.Errorf("only %d of %d damages were found", found, n)
				}
			})
		})
	}
}

// TestDamagedStateIsFetchedOrWhole does so with the state store. The log stays
// what it was, the state is right or missing, and so it is after the start that
// follows one which met damage.
func TestDamagedStateIsFetchedOrWhole(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c, id, fs := worn(t, true)
		defer c.stop()
		// A flush at the end of a host leaves the state in tables.
		fs = closedWell(t, c, id, fs)
		was, err := promises(c, id, copyOf(t, fs))
		if err != nil {
			t.Fatal(err)
		}
		met, missing := 0, 0
		n := sweep(t, fs, "data/raft-state", func(t *testing.T, what string, damaged *vfs.MemFS) {
			is, err := promises(c, id, damaged)
			if isStateDamage(err) {
				met++
				is, err = promises(c, id, damaged)
			}
			if err != nil {
				t.Errorf("%s: %v", what, err)
				return
			}
			for g := range was {
				if err := is[g].compare(was[g]); err != nil {
					t.Errorf("%s: %v opens with %v", what, g, err)
				}
				switch {
				case is[g].state == "missing":
					missing++
				case is[g].applied < was[g].applied: // the log has the rest
				case is[g].state != was[g].state:
					t.Errorf("%s: the state of %v at entry %d is wrong: %q", what, g, is[g].applied, is[g].state)
				}
			}
		})
		t.Logf("%d damages; %d were met by a read, %d states are to be fetched", n, met, missing)
		if met == 0 || missing == 0 {
			t.Errorf("%d were met by a read, %d states are missing", met, missing)
		}
	})
}

// closedWell opens and closes the host of a disk.
func closedWell(t *testing.T, c *cluster, id dfs.NodeID, fs *vfs.MemFS) *vfs.MemFS {
	t.Helper()
	h, err := Open((&node{c: c, id: id, fs: fs}).options())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	return fs
}
