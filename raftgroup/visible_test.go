package raftgroup

import (
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"dfsd/dfs"
)

// slowLogs calls during while a write-ahead log is synced.
type slowLogs struct {
	vfs.FS
	during atomic.Pointer[func()]
}

func (f *slowLogs) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	if err == nil && strings.HasSuffix(name, ".log") {
		file = &slowLog{file, f}
	}
	return file, err
}

type slowLog struct {
	vfs.File
	fs *slowLogs
}

func (f *slowLog) Sync() error {
	if during := f.fs.during.Swap(nil); during != nil {
		(*during)()
	}
	return f.File.Sync()
}

func (f *slowLog) SyncData() error { return f.Sync() }

// TestLogIsReadWhileItIsCut: a batch of the log store is seen by readers before it
// is synced. An entry that it takes away is gone for them then, and not missing,
// which would be damage and the end of the node's vote.
func TestLogIsReadWhileItIsCut(t *testing.T) {
	for _, test := range []struct {
		what string
		gone uint64 // an entry that the write takes away
		lw   func(b *logBook) *logWrite
		want error
	}{
		{"its beginning", 1, func(b *logBook) *logWrite {
			cut := truncated{index: 5, term: 1, conf: confState(nil)}
			cut.bytes, _ = b.r.l.bytesThrough(5)
			return &logWrite{cut: &cut}
		}, raft.ErrCompacted},
		{"all of it", 9, func(*logBook) *logWrite { return &logWrite{tombstone: 7} }, raft.ErrCompacted},
		{"its end", 9, func(*logBook) *logWrite { return &logWrite{entries: logEntries(4, 2, 2, 1)} }, raft.ErrUnavailable},
	} {
		t.Run(test.what, func(t *testing.T) {
			fs := &slowLogs{FS: vfs.NewMem()}
			b := &logBook{t: t, opts: Options{FS: fs, Dir: "data", Node: 1}} // nothing is cached
			b.opts.setDefaults()
			defer b.close()
			b.begin(truncated{conf: confState([]uint64{1})})
			if err := b.write(&logWrite{entries: logEntries(1, 9, 1, 1)}); err != nil {
				t.Fatal(err)
			}
			lw, looked := test.lw(b), false
			during := func() {
				for { // the commit makes the batch visible while this sync is under way
					v, err := b.h.store.get(entryKey(3, test.gone))
					if err != nil {
						t.Error(err)
					}
					if v == nil {
						break
					}
					runtime.Gosched()
				}
				looked = true
				_, read := b.r.l.Entries(test.gone, test.gone+1, 1<<20)
				if !errors.Is(read, test.want) {
					t.Errorf("entry %d while it is taken away: %v, want %v", test.gone, read, test.want)
				}
				_, term := b.r.l.Term(test.gone)
				_, bytes := b.r.l.bytesThrough(test.gone)
				_, within := b.r.l.lastWithin(20)
				for _, err := range []error{term, bytes, within} {
					if ignoreCut(err) != nil {
						t.Errorf("entry %d while it is taken away: %v", test.gone, err)
					}
				}
			}
			fs.during.Store(&during)
			if err := b.write(lw); err != nil {
				t.Fatal(err)
			}
			if !looked {
				t.Fatal("nothing was synced")
			}
		})
	}
}

// TestProposalSaysWhyTheHostEnded: a proposal that a failed host never answers has
// the failure for its reason, not the patience of its caller.
func TestProposalSaysWhyTheHostEnded(t *testing.T) {
	for _, stepped := range []bool{true, false} {
		h := &Host{closing: make(chan struct{}), why: dfs.Errorf(dfs.NoSpace, "write raft log", "the disk is full")}
		close(h.closing)
		ps := &proposals{g: 3, all: &budget{limit: 1 << 20}, bySeq: map[uint64]*proposal{}}
		p := &proposal{set: ps, entry: &pb.Entry{}, done: make(chan outcome, 1), stepped: stepped}
		_, err := p.await(t.Context(), h)
		want := map[bool]dfs.Kind{true: dfs.Unknown, false: dfs.Unavailable}[stepped]
		if dfs.KindOf(err) != want || !errors.Is(err, h.why) {
			t.Errorf("in the log %v: %v, want %v because of %v", stepped, err, want, h.why)
		}
	}
}
