package engine

import (
	"cmp"
	"encoding/json"
	"sync"
	"time"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// maxLedger is how long the ledger gets before it becomes the old one and a new
// one is begun: some ten thousand segments.
const maxLedger = 1 << 20

// ledger is the list of the segments that were given up. A line is on the disk
// before anything of its segment is removed or written over.
type ledger struct {
	fs   vfs.FS
	path string

	// mu guards what follows.
	mu   sync.Mutex
	file vfs.File // nil: not opened yet
	end  int64
}

// ledgerLine is one line of the ledger, in JSON.
type ledgerLine struct {
	Time    time.Time `json:"time"`
	Segment string    `json:"segment"`
	Stream  string    `json:"stream"`
	Bytes   int64     `json:"bytes"` // of its batches
	Seq     uint64    `json:"seq"`   // the last durable record of the log then
}

// add appends lines, durably. NoSpace: there is no room for them now.
func (l *ledger) add(lines []ledgerLine) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.openLocked(); err != nil {
		return err
	}
	var p []byte
	for _, x := range lines {
		text, err := json.Marshal(x)
		if err != nil {
			return err
		}
		p = append(append(p, text...), '\n')
	}
	if _, err := l.file.WriteAt(p, l.end); err != nil {
		return ledgerFull(err)
	}
	if err := l.file.Sync(); err != nil {
		return err
	}
	l.end += int64(len(p))
	return nil
}

// openLocked opens the file, and puts one that has grown too long aside. What a
// crash left of the last line ends with the next one's line break.
func (l *ledger) openLocked() error {
	if l.file != nil && l.end < maxLedger {
		return nil
	}
	dir := l.fs.PathDir(l.path)
	if l.file != nil {
		f := l.file
		l.file = nil
		if err := cmp.Or(f.Close(), ledgerFull(l.fs.Rename(l.path, l.path+".old")), syncDir(l.fs, dir)); err != nil {
			return err
		}
	}
	f, err := l.fs.OpenReadWrite(l.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return ledgerFull(err)
	}
	info, err := f.Stat()
	if err != nil {
		return cmp.Or(err, f.Close())
	}
	l.file, l.end = f, info.Size()
	if l.end > 0 {
		if _, err := f.WriteAt([]byte{'\n'}, l.end); err != nil {
			return ledgerFull(err)
		}
		l.end++
	}
	return syncDir(l.fs, dir)
}

// ledgerFull says of a full disk that it may be waited for: segments stay a little
// longer, and nothing has been promised. What was written in part is written over.
func ledgerFull(err error) error {
	if err != nil && vfs.IsNoSpaceError(err) {
		return &dfs.Error{Kind: dfs.NoSpace, Op: "write", Object: ledgerName, Err: err}
	}
	return err
}

func (l *ledger) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}
