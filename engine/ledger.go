package engine

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// maxLedger is how long the ledger gets before it becomes the old one and a new
// one is begun: some seven thousand segments.
const maxLedger = 1 << 20

// ledger is the list of the segment numbers that no file has any more, and of what
// is forgotten (see Forget). Numbers are
// given out one after the other, so that a number below the highest which has
// neither a file nor a place here is that of a segment that was lost.
//
// A line is on the disk before anything of its segment is removed or written
// over. The first line of a file says all that earlier ones said: what is put
// aside is kept for the reader, and for a crash between two renames.
type ledger struct {
	fs   vfs.FS
	path string
	max  int64 // bytes of lines after the first; 0: maxLedger

	// mu guards what follows.
	mu    sync.Mutex
	known accounted
	bad   []int    // lines of the file that cannot be used, from 1 up
	torn  bool     // the last of them was not finished
	whole bool     // the file is there and every line is sound: it can be appended to
	file  vfs.File // nil: not opened yet
	begun int64    // end of the first line
	end   int64
}

// accounted are the numbers without a file of which something is known, and what is
// forgotten.
type accounted struct {
	Gone      numbers `json:"gone,omitempty"`      // given up, or never used
	Lost      numbers `json:"lost,omitempty"`      // found missing: the store was declared incomplete for it
	Forgotten bounds  `json:"forgotten,omitempty"` // PG, number of the last record, segment
}

// ledgerLine is one line of the ledger, in JSON: a segment that was given up, or
// numbers that are accounted for otherwise. A last member is added, the checksum of
// what is before it.
type ledgerLine struct {
	Time    time.Time `json:"time"`
	Segment string    `json:"segment,omitempty"`
	Stream  string    `json:"stream,omitempty"`
	Bytes   int64     `json:"bytes,omitempty"` // of its batches
	Seq     uint64    `json:"seq,omitempty"`   // the last durable record of the log then
	accounted
}

// ledgerSum is the end of a line. Its length is always the same.
const ledgerSum = `,"crc":"%08x"}`

// ledgerSumLen is the length of what ledgerSum makes.
const ledgerSumLen = len(`,"crc":"00000000"}`)

// encode returns the line with its line break.
func (x *ledgerLine) encode() ([]byte, error) {
	p, err := json.Marshal(x)
	if err != nil {
		return nil, err
	}
	p = p[:len(p)-1] // the brace that closes it
	return append(fmt.Appendf(p, ledgerSum, checksum(p)), '\n'), nil
}

// decodeLedgerLine reads a line without its line break; false when it is not what
// was written.
func decodeLedgerLine(p []byte) (x ledgerLine, ok bool) {
	n := len(p) - ledgerSumLen
	if n < 0 || string(p[n:]) != fmt.Sprintf(ledgerSum, checksum(p[:n])) || json.Unmarshal(p, &x) != nil {
		return ledgerLine{}, false
	}
	if n, ok := parseSegmentName(x.Segment); ok {
		x.Gone = x.Gone.union(numbers{{n, n}})
	} else if x.Segment != "" {
		return ledgerLine{}, false
	}
	return x, x.Gone.valid() && x.Lost.valid()
}

// decodeOldLine reads a line as the release before wrote it: about one segment and
// without a checksum. It began each life with an empty one.
func decodeOldLine(p []byte) (x ledgerLine, ok bool) {
	if len(p) == 0 {
		return x, true
	}
	d := json.NewDecoder(bytes.NewReader(p))
	d.DisallowUnknownFields() // a line with a damaged checksum is none of these
	if err := d.Decode(&x); err != nil || d.InputOffset() != int64(len(p)) || len(x.Gone)+len(x.Lost) > 0 {
		return ledgerLine{}, false
	}
	n, ok := parseSegmentName(x.Segment)
	x.Gone = numbers{{n, n}}
	return x, ok
}

// load reads what the ledger says. What cannot be read says nothing.
func (l *ledger) load() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var gone, lost [][2]uint64
	var forgotten bounds
	for _, name := range []string{l.path + ".old", l.path} {
		p, err := readWhole(l.fs, name)
		if isNotExist(err) {
			l.whole = false
			continue
		}
		l.bad, l.torn, l.whole, l.begun, l.end = nil, false, err == nil && len(p) > 0, 0, int64(len(p))
		for n := 1; len(p) > 0; n++ {
			line, rest, finished := bytes.Cut(p, []byte{'\n'})
			p = rest
			x, ok := decodeLedgerLine(line)
			if !ok {
				l.whole = false // what is added goes to a file of this release's lines
				x, ok = decodeOldLine(line)
			}
			if !ok || !finished {
				l.bad = append(l.bad, n)
				l.torn, l.whole = len(p) == 0, false
				continue
			}
			if n == 1 {
				l.begun = int64(len(line)) + 1
			}
			gone, lost = append(gone, x.Gone...), append(lost, x.Lost...)
			forgotten = forgotten.with(x.Forgotten)
		}
		if err != nil {
			l.bad = append(l.bad, len(l.bad)+1)
		}
	}
	l.known = accounted{joined(gone), joined(lost), forgotten}
	return nil
}

// readWhole reads a file.
func readWhole(fs vfs.FS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	p, err := io.ReadAll(f)
	return p, cmp.Or(err, f.Close())
}

// add appends lines, durably. NoSpace: there is no room for them now.
func (l *ledger) add(lines []ledgerLine) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.openLocked(); err != nil {
		return err
	}
	next := l.known
	var p []byte
	for i := range lines {
		text, err := lines[i].encode()
		if err != nil {
			return err
		}
		p = append(p, text...)
		if n, ok := parseSegmentName(lines[i].Segment); ok {
			next.Gone = next.Gone.union(numbers{{n, n}})
		}
		next.Gone, next.Lost = next.Gone.union(lines[i].Gone), next.Lost.union(lines[i].Lost)
		next.Forgotten = next.Forgotten.with(lines[i].Forgotten)
	}
	if _, err := l.file.WriteAt(p, l.end); err != nil {
		return ledgerFull(err)
	}
	if err := l.file.Sync(); err != nil {
		return err
	}
	l.end += int64(len(p))
	l.known = next
	return nil
}

// openLocked opens the file. One that has grown too long, or of which not every
// line is sound, is put aside, and a new one begun.
func (l *ledger) openLocked() error {
	if l.end-l.begun >= cmp.Or(l.max, maxLedger) {
		l.whole = false
	}
	if !l.whole {
		if err := l.beginLocked(); err != nil {
			return err
		}
	}
	if l.file != nil {
		return nil
	}
	f, err := l.fs.OpenReadWrite(l.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return ledgerFull(err)
	}
	l.file = f
	return syncDir(l.fs, l.fs.PathDir(l.path)) // it may be in the page cache only
}

// beginLocked puts the file aside and makes a new one, whose first line says all
// that is known.
func (l *ledger) beginLocked() error {
	if f := l.file; f != nil {
		l.file = nil
		if err := f.Close(); err != nil {
			return err
		}
	}
	first, err := (&ledgerLine{Time: time.Now().UTC(), accounted: l.known}).encode()
	if err != nil {
		return err
	}
	f, err := l.fs.Create(l.path+".new", vfs.WriteCategoryUnspecified)
	if err != nil {
		return ledgerFull(err)
	}
	if _, err := f.Write(first); err != nil {
		return cmp.Or(ledgerFull(err), f.Close())
	}
	if err := cmp.Or(f.Sync(), f.Close()); err != nil {
		return err
	}
	if _, err := l.fs.Stat(l.path); err == nil {
		if err := l.fs.Rename(l.path, l.path+".old"); err != nil {
			return ledgerFull(err)
		}
	}
	if err := l.fs.Rename(l.path+".new", l.path); err != nil {
		return ledgerFull(err)
	}
	if err := syncDir(l.fs, l.fs.PathDir(l.path)); err != nil {
		return err
	}
	l.bad, l.torn, l.whole, l.begun, l.end = nil, false, true, int64(len(first)), int64(len(first))
	return nil
}

// ledgerFull says of a full disk that it may be waited for: segments stay a little
// longer, and nothing has been promised. What was written in part is written over.
// A sync that fails is another matter, whatever it says.
func ledgerFull(err error) error {
	if err != nil && vfs.IsNoSpaceError(err) {
		return &dfs.Error{Kind: dfs.NoSpace, Op: "write", Object: ledgerName, Err: err}
	}
	return err
}

// bounds returns what is forgotten. It is not to be changed.
func (l *ledger) bounds() bounds {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known.Forgotten
}

// learn adds bounds that the file need not have.
func (l *ledger) learn(more bounds) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known.Forgotten = l.known.Forgotten.with(more)
}

// unlearn drops bounds that say nothing any more.
func (l *ledger) unlearn(ended bounds) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known.Forgotten = l.known.Forgotten.without(ended)
}

func (l *ledger) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}
