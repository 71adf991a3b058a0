package client

import (
	"cmp"
	"context"
	"errors"
	"io"

	"golang.org/x/sync/errgroup"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// File is an open file. Its methods may be called from many goroutines. What is
// written becomes visible, and durable, with Sync or Close.
type File struct {
	c     *Client
	ino   dfs.Ino
	class dfs.Class

	turn lock // held by writers; guards what follows
	w    *writer
	cur  *buffer // the block being filled; nil: none
	at   int64   // where it begins in the file
	sent []span  // blocks on their way since the last commit. Invariant: len <= dfs.MaxExtentsPerCommit
	lost error   // why what was written is gone, until Sync or Close has said so
}

// span is the range [from, to) of a file.
type span struct{ from, to int64 }

// checkFile refuses what is no file. Errors: IsDir, Invalid.
func checkFile(a *wire.Attr) error {
	switch a.GetType() {
	case wire.FileType_FILE:
		return nil
	case wire.FileType_DIR:
		return dfs.Errorf(dfs.IsDir, "", "")
	}
	return dfs.Errorf(dfs.Invalid, "", "it is a %v", Type(a.GetType()))
}

func (c *Client) open(a *wire.Attr) (*File, error) {
	if err := checkFile(a); err != nil {
		return nil, err
	}
	class, err := c.classOf(a)
	if err != nil {
		return nil, err
	}
	return &File{c: c, ino: dfs.Ino(a.GetIno()), class: class, turn: newLock()}, nil
}

// Inode returns the file's handle.
func (f *File) Inode() Inode { return Inode{c: f.c, ino: f.ino} }

// ReadAt reads into p from offset on, as io.ReaderAt does: one version of the
// file. What this File has written and not committed is committed first.
func (f *File) ReadAt(ctx context.Context, p []byte, offset int64) (int, error) {
	n, err := run(ctx, f.c, "read", f.ino.String(), func(ctx context.Context) (int, error) {
		if err := f.flush(ctx); err != nil {
			return 0, err
		}
		return f.c.readAt(ctx, f.ino, p, offset)
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// At returns the file as an io.ReaderAt that works under ctx.
func (f *File) At(ctx context.Context) io.ReaderAt { return readerAt{f, ctx} }

type readerAt struct {
	f   *File
	ctx context.Context
}

func (r readerAt) ReadAt(p []byte, offset int64) (int, error) { return r.f.ReadAt(r.ctx, p, offset) }

// readAt returns how much of p the file covers.
func (c *Client) readAt(ctx context.Context, ino dfs.Ino, p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, dfs.Errorf(dfs.Invalid, "", "offset %d", offset)
	}
	if len(p) == 0 || offset >= dfs.MaxFileSize {
		return 0, nil
	}
	lost := &lossJudge{c: c, ino: ino}
	for {
		list, attr, err := c.layout(ctx, ino, offset, int64(len(p)), maxLayout)
		if err != nil {
			return 0, err
		}
		n := int(min(int64(len(p)), max(0, attr.GetSize()-offset)))
		if list.cut && list.end < offset+int64(n) {
			n = int(list.end - offset) // more extents than one call takes
		}
		err = c.readExtents(ctx, list.extents, p[:n], offset)
		if err == nil {
			return n, nil
		}
		if again, err := lost.judge(ctx, err); !again {
			return 0, err
		}
	}
}

// readExtents fills p with the file's bytes from offset on; gaps are zeros.
func (c *Client) readExtents(ctx context.Context, extents []Extent, p []byte, offset int64) error {
	clear(p)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(windowBlocks)
	for _, e := range extents {
		from, to := max(e.Offset, offset), min(e.end(), offset+int64(len(p)))
		if from < to {
			g.Go(func() error {
				return c.readBlock(ctx, e.Block, e.BlockLength, e.BlockOffset+uint32(from-e.Offset), p[from-offset:to-offset])
			})
		}
	}
	return g.Wait()
}

// lossJudge decides what a block that every complete member denies means to one
// read: the file was changed meanwhile, or the block is lost.
type lossJudge struct {
	c    *Client
	ino  dfs.Ino
	last dfs.BlockID // denied before
	read dfs.Epoch   // of the map that was read linearizably after that
}

// judge reports whether to start again from new extents, else the error. A block
// is lost when the metadata name it again and every complete member of a map
// read after the first denial denies it too.
func (l *lossJudge) judge(ctx context.Context, err error) (again bool, _ error) {
	var d *denied
	if !errors.As(err, &d) {
		return false, err
	}
	if d.id == l.last && d.epoch >= l.read {
		l.c.log.Error("a block is lost", "inode", l.ino.String(), "block", d.id.String(), "pg", d.id.PG.String())
		return false, dfs.Errorf(dfs.Corrupt, "", "block %v of inode %v is lost: the metadata name it, and every complete member of %v denies it (map epoch %d)", d.id, l.ino, d.id.PG, d.epoch)
	}
	ctx, cancel := l.c.timed(ctx)
	defer cancel()
	m, merr := l.c.getMap(ctx, &wire.GetMapRequest{Linearizable: true})
	if merr != nil {
		return false, merr
	}
	l.last, l.read = d.id, m.Epoch
	return true, nil
}

// WriteAt writes p at offset: into a buffer, and block by block to the stores.
// Its bytes become part of the file with Sync, Close, or when many blocks have
// come together; an error of theirs may come that late, and comes from Sync or
// Close in any case.
func (f *File) WriteAt(ctx context.Context, p []byte, offset int64) (int, error) {
	return run(ctx, f.c, "write", f.ino.String(), func(ctx context.Context) (int, error) {
		if offset < 0 || offset > dfs.MaxFileSize-int64(len(p)) {
			return 0, dfs.Errorf(dfs.TooLarge, "", "%d bytes at %d: a file ends at %d", len(p), offset, dfs.MaxFileSize)
		}
		if err := f.turn.acquire(ctx); err != nil {
			return 0, err
		}
		defer f.turn.release()
		if err := f.writerLocked(ctx); err != nil {
			return 0, err
		}
		done := 0
		for done < len(p) {
			n, err := f.fillLocked(ctx, p[done:], offset+int64(done))
			if err != nil {
				return done, err
			}
			done += n
		}
		return done, nil
	})
}

// writerLocked makes sure that there is a writer under a usable session. Blocks
// that were written under a lost one are lost with it.
func (f *File) writerLocked(ctx context.Context) error {
	ctx, cancel := f.c.timed(ctx)
	defer cancel()
	s, err := f.c.session(ctx)
	if err != nil {
		return err
	}
	if f.w != nil && f.w.s == s {
		return nil
	}
	if f.w != nil {
		old := f.w.s
		return f.dropLocked(dfs.Errorf(dfs.Unknown, "", "session %d was lost, and with it what was written and not committed", old.id))
	}
	f.w = f.c.writer(f.c.ctx, s, f.ino, f.class)
	return nil
}

// fillLocked takes bytes into the current block, and returns how many.
func (f *File) fillLocked(ctx context.Context, p []byte, offset int64) (int, error) {
	size := f.c.blockSize()
	if f.cur != nil && (offset < f.at || offset > f.at+int64(len(f.cur.b)) || offset-f.at >= int64(size)) {
		if err := f.sendLocked(ctx); err != nil {
			return 0, err
		}
	}
	if f.cur == nil {
		f.cur, f.at = f.c.buffers.get(size), offset
	}
	start := int(offset - f.at)
	n := min(len(p), size-start)
	f.cur.b = f.cur.b[:max(len(f.cur.b), start+n)]
	copy(f.cur.b[start:], p[:n])
	return n, nil
}

// sendLocked sends the current block to the stores. What overlaps blocks that
// are not committed yet waits for their commit: extents of one commit are apart.
func (f *File) sendLocked(ctx context.Context) error {
	if f.cur == nil {
		return nil
	}
	s := span{f.at, f.at + int64(len(f.cur.b))}
	full := len(f.sent) == dfs.MaxExtentsPerCommit
	for _, o := range f.sent {
		full = full || s.from < o.to && o.from < s.to
	}
	if full {
		if err := f.commitLocked(ctx); err != nil {
			return err
		}
	}
	buf := f.cur
	f.cur = nil
	f.sent = append(f.sent, s)
	if err := f.w.put(buf, s.from); err != nil {
		return f.dropLocked(err)
	}
	return nil
}

// commitLocked makes the blocks that were sent part of the file.
func (f *File) commitLocked(ctx context.Context) error {
	if len(f.sent) == 0 {
		return nil
	}
	extents, err := f.w.finish()
	if err == nil {
		defer f.w.s.letGoAll(extents)
		ctx, cancel := f.c.timed(ctx)
		defer cancel()
		op := &wire.WriteOp{Ino: uint64(f.ino), Extents: extents}
		_, err = f.w.s.mutate(ctx, f.ino.Group(), &wire.Command{Op: &wire.Command_Write{Write: op}})
	}
	if err != nil {
		return f.dropLocked(err)
	}
	f.sent = f.sent[:0]
	return nil
}

// dropLocked forgets what was not committed, for an error that it returns.
func (f *File) dropLocked(err error) error {
	f.w.close()
	f.w = nil
	f.cur.release()
	f.cur, f.sent = nil, nil
	f.lost = cmp.Or(f.lost, err)
	return err
}

// flush commits what this File has written.
func (f *File) flush(ctx context.Context) error {
	if err := f.turn.acquire(ctx); err != nil {
		return err
	}
	defer f.turn.release()
	return f.flushLocked(ctx)
}

// settle is flush for who wants to know whether all that was written is there.
func (f *File) settle(ctx context.Context) error {
	if err := f.turn.acquire(ctx); err != nil {
		return err
	}
	defer f.turn.release()
	err := f.flushLocked(ctx)
	err, f.lost = cmp.Or(err, f.lost), nil
	return err
}

func (f *File) flushLocked(ctx context.Context) error {
	if f.w == nil {
		return nil
	}
	if err := f.sendLocked(ctx); err != nil {
		return err
	}
	if err := f.commitLocked(ctx); err != nil {
		return err
	}
	f.w.close() // nothing is under way: it frees the context
	f.w = nil
	return nil
}

// Sync commits what was written since the last Sync: when it returns nil all of
// that is durable and visible. After an error it is dropped: the error comes
// once from Sync, also where another call has met it before; with Unknown it may
// have been committed.
func (f *File) Sync(ctx context.Context) error {
	_, err := run(ctx, f.c, "sync", f.ino.String(), func(ctx context.Context) (struct{}, error) { return struct{}{}, f.settle(ctx) })
	return err
}

// Truncate commits what was written and sets the size.
func (f *File) Truncate(ctx context.Context, size int64) error {
	_, err := run(ctx, f.c, "truncate", f.ino.String(), func(ctx context.Context) (*Attr, error) {
		if err := f.flush(ctx); err != nil {
			return nil, err
		}
		ctx, cancel := f.c.timed(ctx)
		defer cancel()
		return f.c.setAttr(ctx, f.ino, SetAttr{Size: &size})
	})
	return err
}

// Close commits what was written. The File must not be used after it.
func (f *File) Close(ctx context.Context) error { return f.Sync(ctx) }
