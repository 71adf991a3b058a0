package client

import (
	"context"
	"io"
	"slices"
	"time"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// writer stores the contents of one file, block by block, several at a time. It
// belongs to one goroutine.
type writer struct {
	c     *Client
	s     *session
	ino   dfs.Ino
	class dfs.Class

	ctx     context.Context // of the blocks under way
	cancel  context.CancelFunc
	results chan written
	running int // Invariant: running <= windowBlocks
	extents []*wire.Extent
	err     error // the first
}

// written is a block that is stored, or not.
type written struct {
	extent *wire.Extent
	err    error
}

func (c *Client) writer(ctx context.Context, s *session, ino dfs.Ino, class dfs.Class) *writer {
	w := &writer{c: c, s: s, ino: ino, class: class, results: make(chan written, windowBlocks)}
	w.ctx, w.cancel = context.WithCancel(ctx)
	return w
}

// put stores what buf holds as the file's bytes from offset on, in the
// background; buf is the writer's. It waits until there is room for one more
// block: each file may have one under way, and further ones as memory allows.
func (w *writer) put(buf *buffer, offset int64) error {
	size := int64(2 * cap(buf.b)) // plain and compressed
	extra := false
	for w.err == nil && w.running > 0 {
		if w.running < windowBlocks && w.c.behind.TryAcquire(size) {
			extra = true
			break
		}
		w.collect(<-w.results)
	}
	if w.err != nil {
		buf.release()
		return w.err
	}
	w.running++
	w.c.work.Go(func() {
		var out written
		out.extent, out.err = w.store(buf, offset)
		if extra {
			w.c.behind.Release(size)
		}
		w.results <- out
	})
	return nil
}

func (w *writer) store(buf *buffer, offset int64) (*wire.Extent, error) {
	defer buf.release()
	length := len(buf.b)
	var room *buffer
	var into []byte
	codec := w.c.codec(w.class)
	if codec != dfs.CodecNone {
		room = w.c.buffers.get(length)
		defer room.release()
		into = room.b
	}
	b := w.c.packers.encode(codec, buf.b, into)
	hint := &wire.BlockHint{Ino: uint64(w.ino), Offset: offset, Version: w.c.seen.Load()}
	id, err := w.c.writeBlock(w.ctx, w.s, w.class, w.ino, hint, b)
	if err != nil {
		return nil, err
	}
	return &wire.Extent{Offset: offset, Length: int64(length), Block: id.Bytes(), BlockLength: uint32(length)}, nil
}

// codec is what new blocks of a class are compressed with.
func (c *Client) codec(class dfs.Class) dfs.Codec {
	if c.opts.Uncompressed {
		return dfs.CodecNone
	}
	return c.Map().Codec(class)
}

func (w *writer) collect(r written) {
	w.running--
	switch {
	case r.err == nil:
		w.extents = append(w.extents, r.extent)
	case w.err == nil:
		w.err = r.err
		w.cancel()
	}
}

// finish waits for all blocks and returns the extents that name them, in the
// file's order: the caller lets their blocks go. The writer can be used again.
// With an error there are none.
func (w *writer) finish() ([]*wire.Extent, error) {
	for w.running > 0 {
		w.collect(<-w.results)
	}
	out := w.extents
	w.extents = nil
	if w.err != nil {
		w.s.letGoAll(out)
		return nil, w.err
	}
	slices.SortFunc(out, func(a, b *wire.Extent) int {
		if a.Offset < b.Offset {
			return -1
		}
		return 1
	})
	return out, nil
}

// close gives up what is under way and waits for it.
func (w *writer) close() {
	w.cancel()
	out, _ := w.finish()
	w.s.letGoAll(out)
}

// blockSize is how many bytes of a file go into one block.
func (c *Client) blockSize() int {
	if c.opts.BlockSize > 0 {
		return c.opts.BlockSize
	}
	return min(max(c.Map().BlockSize, 1), dfs.MaxBlockSize)
}

// fill reads up to size bytes. Files are mostly small, so it begins with a small
// buffer. The error is io.EOF at the end, with the last bytes.
func (c *Client) fill(r io.Reader, size int) (*buffer, error) {
	small := c.buffers.get(min(size, dfs.ChunkSize))
	n, err := io.ReadFull(r, small.b[:min(size, dfs.ChunkSize)])
	small.b = small.b[:n]
	if err != nil || n == size {
		return small, endOf(err)
	}
	buf := c.buffers.get(size)
	buf.b = append(buf.b, small.b...)
	small.release()
	n, err = io.ReadFull(r, buf.b[len(buf.b):size])
	buf.b = buf.b[:len(buf.b)+n]
	return buf, endOf(err)
}

func endOf(err error) error {
	if err == io.ErrUnexpectedEOF {
		return io.EOF
	}
	return err
}

// Owner is a user and a group.
type Owner struct{ UID, GID uint32 }

func (o *Owner) is(a *Attr) bool { return o.UID == a.UID && o.GID == a.GID }

// PutOptions says how a file is made. The zero value makes one without any
// permission bit, that belongs to the client's user, now, where nothing exists.
type PutOptions struct {
	Mode         uint32 // 0 to 07777
	Mtime, Atime time.Time
	Owner        *Owner    // nil: the client's user, and the group that the directory says
	Replace      bool      // take the place of a file or symlink, whose other names stay; else Exist
	Class        dfs.Class // storage class; zero: the directory's
}

func (o *PutOptions) create(dir dfs.Ino, name string) *wire.CreateOp {
	op := &wire.CreateOp{Parent: uint64(dir), Name: []byte(name), Type: wire.FileType_FILE, Mode: o.Mode, Replace: o.Replace}
	if !o.Mtime.IsZero() {
		op.Mtime = o.Mtime.UnixNano()
	}
	if !o.Atime.IsZero() {
		op.Atime = o.Atime.UnixNano()
	}
	return op
}
