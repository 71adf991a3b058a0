package engine

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"dfsd/dfs"

	"github.com/cockroachdb/datadriven"
)

// image is a segment built in memory by the writer's own code.
type image struct {
	w    writer
	p    []byte
	recs []record
}

func newImage(number uint64, size int64) *image {
	h := segmentHeader{mark: testMark, segment: number, size: size}
	m := &image{p: make([]byte, size)}
	m.w.appender = appender{s: &Store{mark: testMark}, active: &segment{number: number, size: size}, end: pageSize}
	copy(m.p, h.page())
	return m
}

// batch appends one batch. A size below 0 is a tombstone.
func (m *image) batch(sizes map[uint64]int, order ...uint64) {
	var ops []*op
	for _, n := range order {
		req := putRequest(n, max(0, sizes[n]), dfs.Epoch(n+10))
		r := record{kind: kindPut, id: req.ID, epoch: req.Epoch, info: req.Info, stored: uint32(len(req.Payload)), hint: req.Hint}
		if sizes[n] < 0 {
			r, req.Payload = record{kind: kindTombstone, id: req.ID, epoch: req.Epoch}, nil
		}
		ops = append(ops, newOp(r, req.Payload))
	}
	buf := m.w.encode(ops)
	copy(m.p[m.w.end:], buf)
	m.w.appended(ops, int64(len(buf)))
	for _, o := range ops {
		m.recs = append(m.recs, o.rec)
	}
}

func (m *image) seal() {
	f := encodeFooter(m.w.entries, m.w.end, logStream, segmentHeader{mark: testMark, segment: m.w.active.number})
	copy(m.p[len(m.p)-len(f):], f)
}

func (m *image) scan(p []byte, closed bool, synced int64) ([]group, scanResult, error) {
	var groups []group
	sc := &segmentScan{file: bytes.NewReader(p), mark: testMark, segment: m.w.active.number, size: int64(len(p)), closed: closed, synced: synced}
	res, err := sc.run(func(g group) error {
		groups = append(groups, g)
		return nil
	})
	return groups, res, err
}

// TestScanScripts runs testdata/scan: what a scan makes of whole, torn and
// rotten segments.
func TestScanScripts(t *testing.T) {
	var m *image
	datadriven.RunTest(t, "testdata/scan", func(t *testing.T, d *datadriven.TestData) string {
		arg := func(name string) int {
			n := 0
			d.MaybeScanArgs(t, name, &n)
			return n
		}
		switch d.Cmd {
		case "new":
			m = newImage(uint64(max(1, arg("segment"))), int64(arg("size")))
		case "recycle": // the same bytes under a new number: everything before is stale
			old := m.p
			m = newImage(uint64(arg("segment")), int64(len(old)))
			copy(m.p[pageSize:], old[pageSize:])
		case "batch":
			sizes, order := map[uint64]int{}, []uint64(nil)
			for line := range strings.SplitSeq(d.Input, "\n") {
				var n uint64
				size := -1
				if _, err := fmt.Sscanf(line, "put %d %d", &n, &size); err != nil {
					if _, err := fmt.Sscanf(line, "delete %d", &n); err != nil {
						d.Fatalf(t, "%q", line)
					}
				}
				sizes[n], order = size, append(order, n)
			}
			at := m.w.end
			m.batch(sizes, order...)
			return fmt.Sprintf("%d to %d\n", at, m.w.end)
		case "seal":
			m.seal()
		case "flip":
			m.p[arg("at")] ^= 0xff
		case "zero":
			clear(m.p[arg("from"):arg("to")])
		case "cut":
			m.p = m.p[:arg("to")]
		case "scan":
			groups, res, err := m.scan(m.p, d.HasArg("closed"), int64(arg("synced")))
			return drawScan(groups, res, err)
		default:
			d.Fatalf(t, "unknown command")
		}
		return ""
	})
}

func drawScan(groups []group, res scanResult, err error) string {
	var b strings.Builder
	for _, g := range groups {
		fmt.Fprintf(&b, "%d to %d", g.offset, g.end)
		if !g.headed {
			b.WriteString(", header lost")
		}
		if g.unproved {
			b.WriteString(", sync not proved")
		}
		b.WriteString("\n")
		for _, r := range g.records {
			what := "put"
			if r.kind == kindTombstone {
				what = "delete"
			}
			fmt.Fprintf(&b, "  %s %d at %d seq %d, %d bytes\n", what, r.id.Counter, r.offset, r.seq, r.stored)
		}
		for _, r := range g.rot {
			fmt.Fprintf(&b, "  rot %d to %d\n", r.offset, r.end)
		}
	}
	for _, e := range res.lost {
		fmt.Fprintf(&b, "lost: block %d at %d seq %d\n", e.id.Counter, e.offset, e.seq)
	}
	fmt.Fprintf(&b, "end %d", res.end)
	if res.torn {
		b.WriteString(", torn")
	}
	if res.leftover > 0 {
		fmt.Fprintf(&b, ", to be wiped up to %d", res.leftover)
	}
	if err != nil {
		fmt.Fprintf(&b, ", error: %v", err)
	}
	return b.String() + "\n"
}

func sampleImage() *image {
	m := newImage(9, 24<<10)
	m.batch(map[uint64]int{1: 600, 2: 100, 3: -1}, 1, 2, 3)
	m.batch(map[uint64]int{4: 3000}, 4)
	m.batch(map[uint64]int{1: -1, 5: 1, 6: 2000}, 1, 5, 6)
	return m
}

// TestGoldenSegment pins the format: a release that writes other bytes for the
// same records has another version.
func TestGoldenSegment(t *testing.T) {
	m := sampleImage()
	m.seal()
	const name = "testdata/segment-v1.golden"
	if f := flag.Lookup("rewrite"); f != nil && f.Value.String() == "true" {
		if err := os.WriteFile(name, m.p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(golden, m.p) {
		t.Error("the same records make other bytes than release 1 wrote")
	}
	groups, res, err := m.scan(golden, true, 0)
	if err != nil || len(groups) != 3 || len(res.lost) != 0 {
		t.Fatalf("%d groups, %d lost, %v", len(groups), len(res.lost), err)
	}
}

// TestFlippedBytes damages every byte of a segment, one at a time: every
// record is read as it was, or its loss is known.
func TestFlippedBytes(t *testing.T) {
	for _, sealed := range []bool{true, false} {
		m := sampleImage()
		if sealed {
			m.seal()
		}
		for at := range m.p {
			if m.p[at] == 0 && at%8 != 0 {
				continue // most zeros are alike
			}
			bits := byte(0xff)
			if at%2 == 0 {
				bits = 1 << (at / 2 % 8)
			}
			m.p[at] ^= bits
			checkFlip(t, m, at, sealed)
			m.p[at] ^= bits
		}
	}
}

func checkFlip(t *testing.T, m *image, at int, sealed bool) {
	t.Helper()
	groups, res, err := m.scan(m.p, sealed, m.w.end)
	if dfs.KindOf(err) == dfs.Unsupported {
		t.Fatalf("byte %d: taken for another version: %v", at, err)
	}
	if err != nil {
		t.Fatalf("byte %d: %v", at, err)
	}
	found := map[int64]*record{}
	var rot []span
	for i := range groups {
		for j := range groups[i].records {
			r := &groups[i].records[j]
			found[r.offset] = r
		}
		rot = append(rot, groups[i].rot...)
	}
	for i := range m.recs {
		want := &m.recs[i]
		r := found[want.offset]
		if r == nil {
			known := false
			for _, e := range res.lost {
				known = known || e.offset == want.offset
			}
			for _, g := range rot {
				known = known || g.offset <= want.offset && want.offset < g.end
			}
			last := &m.recs[len(m.recs)-1] // a gap in the numbers shows what is missing at the end
			if !known && (sealed && res.foot != nil || found[last.offset] != nil) {
				t.Errorf("byte %d: block %d is missing and nothing says so", at, want.id.Counter)
			}
			continue
		}
		delete(found, want.offset)
		if r.id != want.id || r.seq != want.seq || r.epoch != want.epoch || r.kind != want.kind || infoDigest(&r.info) != infoDigest(&want.info) {
			t.Fatalf("byte %d: block %d reads as something else", at, want.id.Counter)
		}
		payload := m.p[r.offset+int64(r.headerLen()):][:r.stored]
		if checkChunks(r.id, r.shard, 0, r.info.Chunks, payload) == nil && !bytes.Equal(payload, content(want.id.Counter, int(want.stored))) {
			t.Fatalf("byte %d: wrong bytes pass", at)
		}
	}
	if len(found) > 0 {
		t.Fatalf("byte %d: %d records that nobody wrote", at, len(found))
	}
}

// forge makes the checksums right of whatever has the mark of a header, so that
// what they hide is seen too.
func forge(p []byte) {
	b := binary.BigEndian
	for at := 0; at+recordHeaderLen <= len(p); at += recordAlign {
		switch q := p[at:]; b.Uint32(q) {
		case batchMagic:
			b.PutUint32(q[60:], checksum(q[:60]))
		case recordMagic:
			n := recordHeaderLen + chunkLen*int(b.Uint32(q[84:]))
			if n >= recordHeaderLen && n <= len(q) {
				b.PutUint32(q[recordHeaderLen-4:], recordSum(q[:n]))
			}
		}
	}
	if len(p) < 2*pageSize {
		return
	}
	t := p[len(p)-trailerLen:]
	if n := int64(b.Uint32(t[32:])) * footerEntryLen; b.Uint32(t) == footerMagic && n <= int64(len(p)-trailerLen) {
		b.PutUint32(t[36:], checksum(p[len(p)-trailerLen-int(n):len(p)-trailerLen]))
		b.PutUint32(t[60:], checksum(t[:60]))
	}
}

// FuzzScan feeds a scan any bytes: it neither panics nor reports what lies
// outside the segment, nor takes much more memory than that has bytes, also
// where all checksums are right. Inputs are big: run it with -fuzzminimizetime 10x.
func FuzzScan(f *testing.F) {
	m := sampleImage()
	f.Add(bytes.Clone(m.p), false, true)
	m.seal()
	f.Add(bytes.Clone(m.p), true, true)
	f.Add([]byte{}, true, false)
	f.Fuzz(func(t *testing.T, p []byte, closed, forged bool) {
		if len(p) > 64<<10 {
			return
		}
		if forged {
			p = bytes.Clone(p)
			forge(p)
		}
		var groups []group
		var res scanResult
		allocated, err := bytesOf(func() (err error) {
			groups, res, err = m.scan(p, closed, int64(len(p)/2))
			return err
		})
		// A record and its chunk table take more in memory than in 64 bytes and
		// more on the disk, each group and list some growth, the window once.
		if allocated > uint64(16*len(p)+2*scanWindow) {
			t.Errorf("%d bytes were allocated for %d", allocated, len(p))
		}
		if err != nil {
			return
		}
		end := int64(pageSize)
		for _, g := range groups {
			if g.offset != end || g.end <= g.offset {
				t.Fatalf("group %d to %d after %d", g.offset, g.end, end)
			}
			end = g.end
			for _, r := range g.records {
				if r.offset < g.offset || r.offset+int64(r.length()) > g.end || g.end > int64(len(p))+pageSize {
					t.Fatalf("record at %d of %d bytes in %d to %d of %d", r.offset, r.length(), g.offset, g.end, len(p))
				}
			}
		}
		if res.end != end {
			t.Fatalf("end %d, groups end at %d", res.end, end)
		}
	})
}
