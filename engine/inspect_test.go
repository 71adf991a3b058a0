package engine

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// inspected is the disk of an inspection script.
type inspected struct {
	t    *testing.T
	disk *vfs.MemFS
	now  *vfs.MemFS // what the last store command left; the others work on a copy
}

// TestInspectScripts runs testdata/inspect: what the offline tools say of sound,
// crashed and damaged directories.
func TestInspectScripts(t *testing.T) {
	in := &inspected{t: t}
	datadriven.RunTest(t, "testdata/inspect", func(t *testing.T, d *datadriven.TestData) string {
		in.t = t
		file := func(key string) string {
			var name string
			d.MaybeScanArgs(t, key, &name)
			return dir + name
		}
		switch d.Cmd {
		case "store":
			in.now = vfs.NewCrashableMem()
			in.live(d, in.now)
			in.disk = cloneAll(in.now)
		case "more": // another life of the store
			in.live(d, in.disk)
		case "again": // as the last store command left it
			in.disk = cloneAll(in.now)
		case "flip":
			var at int
			d.ScanArgs(t, "at", &at)
			fileBytes(t, in.disk, strings.TrimPrefix(file("file"), dir))[at] ^= 1
		case "remove":
			in.must(in.disk.RemoveAll(file("file")))
		case "move":
			in.must(in.disk.Rename(file("file"), file("to")))
		case "keep": // for use with put-back
			in.must(in.disk.RemoveAll("/disk/kept"))
			_, err := vfs.Clone(in.disk, in.disk, file("file"), "/disk/kept")
			in.must(err)
		case "put-back":
			in.must(in.disk.RemoveAll(file("file")))
			_, err := vfs.Clone(in.disk, in.disk, "/disk/kept", file("file"))
			in.must(err)
		case "foreign": // a segment of a store with another mark
			var n uint64
			d.ScanArgs(t, "segment", &n)
			h := segmentHeader{mark: 99, segment: n, size: 256 << 10}
			f, err := in.disk.Create(dir+segmentsName+"/"+segmentName(n), vfs.WriteCategoryUnspecified)
			in.must(err)
			_, err = f.Write(append(h.page(), make([]byte, h.size-pageSize)...))
			in.must(cmp.Or(err, f.Close()))
		case "row":
			in.row(d)
		case "verify":
			return in.unchanged(func() string { return in.verify() })
		case "ls":
			return in.unchanged(func() string { return in.ls(d.HasArg("all")) })
		case "dump":
			return in.unchanged(func() string { return in.dump(d) })
		case "rebuild":
			o := testOptions(in.disk)
			r, err := RebuildIndex(t.Context(), o, nil)
			if err != nil {
				return err.Error() + "\n"
			}
			return fmt.Sprintf("%d blocks, %d tombstones, %d segments, %d damaged, unnamed: %v\n", r.Blocks, r.Tombstones, r.Segments, len(r.Damage), r.Unnamed)
		default:
			d.Fatalf(t, "unknown command")
		}
		return ""
	})
}

func (in *inspected) must(err error) {
	in.t.Helper()
	if err != nil {
		in.t.Fatal(err)
	}
}

// live opens a store, does what the lines say, each in a batch of its own, and
// closes it, or with crash leaves what lies on the disk then.
func (in *inspected) live(d *datadriven.TestData, fs *vfs.MemFS) {
	s := openPGs(in.t, testOptions(fs), 1)
	for line := range strings.SplitSeq(d.Input, "\n") {
		var n, to uint64
		var size int
		if _, err := fmt.Sscanf(line, "put %d-%d %d", &n, &to, &size); err == nil {
			for ; n <= to; n++ {
				mustPut(in.t, s, n, size, 1)
			}
		} else if _, err := fmt.Sscanf(line, "delete %d", &n); err == nil {
			mustDelete(in.t, s, n, 1)
		} else if line == "compact" { // in its own time
			for s.Stats().Compactions == 0 || s.dead.count() == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		} else if line == "ready" { // so that the file of a segment given up from now on is kept, and not used again at once
			for s.Stats().Ready < readySegments {
				time.Sleep(time.Millisecond)
			}
		} else if line == "give-up" {
			in.must(s.giveUp())
		} else if line == "acknowledge" {
			in.must(s.AcknowledgeDamage())
		} else if line != "" {
			d.Fatalf(in.t, "%q", line)
		}
	}
	for s.Stats().Ready < readySegments {
		time.Sleep(time.Millisecond) // so that the same files are there each time
	}
	closeSpoiled(in.t, s)
}

// row writes a row of the index as it should not be.
func (in *inspected) row(d *datadriven.TestData) {
	ix, err := openIndex(indexOptions{
		fs: in.disk, dir: dir + indexName, mark: testMark, cacheSize: 1 << 20, memTableSize: 128 << 10, log: slog.New(slog.DiscardHandler),
		failed: func(error) {}, corrupt: func(error) {},
	})
	in.must(err)
	var n, like uint64
	d.ScanArgs(in.t, "block", &n)
	id := blockID(n)
	key := blockKey(id, 0)
	w, err := ix.get(key)
	in.must(err)
	switch {
	case d.HasArg("like"): // a block that was never stored, where another one lies
		d.ScanArgs(in.t, "like", &like)
		w, err = ix.get(blockKey(blockID(like), 0))
		in.must(err)
		in.must(ix.db.Set(epochKey(id, 0, w.epoch), w.encodeEpoch(), pebble.NoSync))
	case d.HasArg("gone"):
		in.must(ix.db.Delete(key, pebble.NoSync))
		in.must(ix.checkpoint())
		in.must(ix.close())
		return
	case d.HasArg("segment"):
		d.ScanArgs(in.t, "segment", &w.segment)
	case d.HasArg("offset"):
		d.ScanArgs(in.t, "offset", &w.offset)
	case d.HasArg("epoch"):
		var e uint64
		d.ScanArgs(in.t, "epoch", &e)
		w.epoch = dfs.Epoch(e)
	}
	in.must(ix.db.Set(key, w.encode(), pebble.NoSync))
	in.must(ix.checkpoint())
	in.must(ix.close())
}

// unchanged fails the test when fn changes anything on the disk.
func (in *inspected) unchanged(fn func() string) string {
	before := in.contents()
	out := fn()
	if after := in.contents(); after != before {
		in.t.Errorf("the disk was changed: before\n%s\nafter\n%s", before, after)
	}
	return out
}

// contents are the names and checksums of all files.
func (in *inspected) contents() string {
	var b strings.Builder
	var walk func(name string)
	walk = func(name string) {
		info, err := in.disk.Stat(name)
		in.must(err)
		if !info.IsDir() {
			p, err := in.disk.UnsafeGetFileDataBuffer(name)
			in.must(err)
			fmt.Fprintf(&b, "%s %d %08x\n", name, len(p), checksum(p))
			return
		}
		names, err := in.disk.List(name)
		in.must(err)
		slices.Sort(names)
		for _, n := range names {
			walk(in.disk.PathJoin(name, n))
		}
	}
	walk("/disk/store")
	return b.String()
}

func (in *inspected) verify() string {
	r, err := verifyDir(in.disk, "/disk/store")
	if err != nil {
		return err.Error() + "\n"
	}
	var b strings.Builder
	for _, f := range r.Faults {
		fmt.Fprintf(&b, "%s", f.String())
		if f.Known {
			b.WriteString(" (known)")
		}
		b.WriteString("\n")
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	fmt.Fprintf(&b, "%d segments, %d batches, %d records; %d blocks, %d tombstones\n", r.Segments, r.Batches, r.Records, r.Blocks, r.Tombstones)
	return b.String()
}

func (in *inspected) ls(all bool) string {
	i, err := Inspect(in.disk, "/disk/store")
	in.must(err)
	var b strings.Builder
	err = i.Blocks(context.Background(), 0, all, func(p BlockPlace) error {
		fmt.Fprintf(&b, "%s epoch %d #%d at %d:%d, %d bytes, stored %d", p.ID, p.Epoch, p.Seq, p.Segment, p.Offset, p.Length, p.Stored)
		if p.Tombstone {
			b.WriteString(" tombstone")
		}
		if p.Lost {
			b.WriteString(" lost")
		}
		b.WriteString("\n")
		return nil
	})
	in.must(cmp.Or(err, i.Close()))
	return b.String()
}

func (in *inspected) dump(d *datadriven.TestData) string {
	var n uint64
	d.ScanArgs(in.t, "segment", &n)
	i, err := Inspect(in.disk, "/disk/store")
	in.must(err)
	var b strings.Builder
	err = i.Dump(context.Background(), n, func(p Piece) error {
		fmt.Fprintf(&b, "%6d +%d", p.Offset, p.Length)
		switch {
		case p.Header != nil:
			fmt.Fprintf(&b, " header %+v", *p.Header)
		case p.Batch != nil:
			fmt.Fprintf(&b, " batch %+v", *p.Batch)
		case p.Record != nil:
			r := p.Record
			fmt.Fprintf(&b, "   #%d %s tombstone %v, %d bytes, %d chunks, hint %+v, footer %v", r.Seq, r.ID, r.Tombstone, r.Length, r.Chunks, r.Hint, r.Footer)
		case p.Footer != nil:
			fmt.Fprintf(&b, " footer %+v", *p.Footer)
		case p.Tail:
			fmt.Fprintf(&b, " end, torn %v", p.Torn)
		}
		if p.Fault != "" {
			b.WriteString(" !! " + p.Fault)
		}
		b.WriteString("\n")
		return nil
	})
	if cerr := i.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		fmt.Fprintf(&b, "%v\n", err)
	}
	return b.String()
}
