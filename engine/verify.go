package engine

import (
	"cmp"
	"context"

	"dfsd/dfs"

	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/time/rate"
)

const (
	// verifyRate is how many bytes of the index are verified a second after a
	// start: little beside what a disk reads, and a GiB in half a minute.
	verifyRate = 32 << 20

	// verifyBurst is more than the largest block of a table, so that one read
	// waits at most once.
	verifyBurst = 1 << 20
)

// verify reads every table that the index had when it was opened, and checks
// its checksums: Pebble itself looks at a block when a key in it is wanted.
// Tables that are made later were checked when they were written from these.
//
// A damaged index says nothing that can be relied on, not even that a block is
// absent. So the store fails, and its next start makes the index anew.
func (s *Store) verify(ctx context.Context) {
	err := s.index.verify(ctx, s.opts.FS, s.path(indexName), verifyRate)
	if err == nil || ctx.Err() != nil {
		return
	}
	s.badIndex.Store(true)
	s.fail(dfs.Wrap("verify", s.path(indexName), err))
}

// verify reads the tables with at most so many bytes a second.
func (ix *index) verify(ctx context.Context, fs vfs.FS, dir string, perSecond rate.Limit) error {
	levels, err := ix.db.SSTables()
	if err != nil {
		return err
	}
	limit := rate.NewLimiter(perSecond, verifyBurst)
	for _, level := range levels {
		for _, table := range level {
			file, err := fs.Open(fs.PathJoin(dir, table.BackingSSTNum.String()+".sst"))
			if isNotExist(err) {
				continue // compacted since; what was missing at the start, Pebble has seen
			}
			if err == nil {
				err = verifyTable(ctx, pacedFile{file, ctx, limit})
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// verifyTable checks all blocks of a table, and closes the file.
func verifyTable(ctx context.Context, file vfs.File) error {
	readable, err := sstable.NewSimpleReadable(file)
	if err != nil {
		return cmp.Or(err, file.Close())
	}
	r, err := sstable.NewReader(ctx, readable, sstable.ReaderOptions{})
	if err != nil {
		return cmp.Or(err, readable.Close())
	}
	return cmp.Or(r.ValidateBlockChecksums(), r.Close())
}

// pacedFile is read no faster than the limit.
type pacedFile struct {
	vfs.File
	ctx   context.Context
	limit *rate.Limiter
}

func (f pacedFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.limit.WaitN(f.ctx, min(len(p), verifyBurst)); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}
