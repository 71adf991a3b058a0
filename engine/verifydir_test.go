package engine

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"dfsd/dfs"
	"dfsd/sim/bubble"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestVerifyFindsFlippedBytes flips bytes of a sealed segment and of the one
// that is written to, one at a time: what Verify says nothing of is nowhere
// used.
func TestVerifyFindsFlippedBytes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		s := openPGs(t, testOptions(fs), 1)
		putTogether(t, s, 1, 4)
		for n := range uint64(3) {
			mustPut(t, s, 10+n, 90_000, 1) // seals the segment
		}
		mustDelete(t, s, 2, 1)
		mustClose(t, s)
		found := 0
		for _, c := range []struct {
			segment        uint64
			from, to, step int
			unused         func(at int) bool
		}{
			{1, 0, 80, 1, func(at int) bool { return at >= segmentHeaderLen }},
			{1, pageSize, pageSize + 200, 1, func(int) bool { return false }},
			{1, pageSize + 200, 3 * pageSize, 173, func(int) bool { return false }},
			{1, 256<<10 - 640, 256 << 10, 5, func(at int) bool { return at < 256<<10-trailerLen-6*footerEntryLen }},
			{2, pageSize, pageSize + 200, 3, func(int) bool { return false }},
			{2, pageSize + 88_000, pageSize + 96_000, 331, func(int) bool { return false }},
		} {
			p := fileBytes(t, fs, "segments/"+segmentName(c.segment))
			for at := c.from; at < c.to; at += c.step {
				p[at] ^= 0x10
				r, err := verifyDir(fs, "/disk/store")
				if err != nil {
					t.Fatalf("segment %d, byte %d: %v", c.segment, at, err)
				}
				if silent := r.OK() && len(r.Notes) == 0; silent != c.unused(at) {
					t.Errorf("segment %d, byte %d: found %v, notes %v", c.segment, at, r.Faults, r.Notes)
				}
				found += len(r.Faults)
				p[at] ^= 0x10
			}
		}
		if found < 400 {
			t.Errorf("only %d faults", found)
		}
		fsckDir(t, fs, "/disk/store")
	})
}

// TestInspectRefuses a directory that is in use, and one that is no store.
func TestInspectRefuses(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 1)
	_, err := Inspect(fs, "/disk/store")
	wantKind(t, err, dfs.Unavailable)
	if !strings.Contains(err.Error(), "in use by process 4711") {
		t.Error(err)
	}
	_, err = RebuildIndex(t.Context(), testOptions(fs), nil)
	wantKind(t, err, dfs.Unavailable)
	mustClose(t, s)

	in, err := Inspect(fs, "/disk/store")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(testOptions(fs))
	wantKind(t, err, dfs.Unavailable)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, mustOpen(t, testOptions(fs)))

	for _, name := range []string{"/nowhere", "/disk"} {
		_, err := Inspect(fs, name)
		wantKind(t, err, dfs.NotExist)
	}
}

// TestInspectRefusesNewerVersions of anything: never guessed.
func TestInspectRefusesNewerVersions(t *testing.T) {
	for _, name := range []string{storeName, segmentsName + "/" + segmentName(1)} {
		fs := vfs.NewMem()
		s := openPGs(t, testOptions(fs), 1)
		mustPut(t, s, 1, 100, 1)
		mustClose(t, s)
		p := fileBytes(t, fs, name)
		p[4]++
		if name == storeName {
			p[pageSize+4]++
			for _, q := range [][]byte{p, p[pageSize:]} {
				putSum(q[20:], slotSum(q, identityLen))
			}
		} else {
			putSum(p[60:], checksum(p[:60]))
		}
		_, err := Inspect(fs, "/disk/store")
		wantKind(t, err, dfs.Unsupported)
	}
}

func putSum(p []byte, sum uint32) {
	copy(p, []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// TestVerifyStops when its context ends, and tells how far it is.
func TestVerifyStops(t *testing.T) {
	fs := vfs.NewMem()
	s := openPGs(t, testOptions(fs), 1)
	for n := range uint64(20) {
		mustPut(t, s, n, 30_000, 1)
	}
	mustClose(t, s)
	in, err := Inspect(fs, "/disk/store")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var last, all int64
	if _, err := in.Verify(t.Context(), func(done, total int64) { last, all = done, total }); err != nil || last != all || all == 0 {
		t.Errorf("%d of %d: %v", last, all, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	if _, err := in.Verify(ctx, func(int64, int64) { stop() }); err == nil {
		t.Error("not stopped")
	}
}

// TestOverview: the figures of a directory are those of the store in it.
func TestOverview(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		s := openPGs(t, testOptions(fs), 1)
		for n := range uint64(20) {
			mustPut(t, s, n, 30_000, 1)
		}
		mustDelete(t, s, 3, 1)
		time.Sleep(time.Second)
		st := s.Stats()
		mustClose(t, s)
		in, err := Inspect(fs, "/disk/store")
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		o, err := in.Overview(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(o.Blocks, o.Tombstones, o.LiveBytes, o.FileBytes, o.LastSeq, o.MapEpoch, len(o.Segments), o.Behind, o.Unnamed, len(o.Problems), len(o.Notes))
		want := fmt.Sprint(st.Blocks, st.Tombstones, st.LiveBytes, st.Used, st.LastSeq, s.MapEpoch(), st.Segments+st.Ready, 0, false, 0, 0)
		if got != want {
			t.Errorf("overview %s\nstats    %s", got, want)
		}
		if o.IndexBytes == 0 || o.DeadBytes < 30_000 || o.DeadBytes > 120_000 {
			t.Errorf("%+v", o)
		}
	})
}
