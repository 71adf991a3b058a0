package client

import (
	"context"
	"io"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// maxLayout is how many extents of a file are held at a time (256 GiB of full
// blocks in 5 MiB of memory); a longer file is read piece by piece.
const maxLayout = 1 << 16

// layout is a list of extents of one version of a file.
type layout struct {
	extents []Extent
	cut     bool  // there are more
	end     int64 // up to where the list says what the file holds, when cut
}

// add appends a page of extents of a file.
func (l *layout) add(ino dfs.Ino, page []*wire.Extent) error {
	for _, w := range page {
		e, err := toExtent(w)
		if err != nil {
			return err
		}
		if e.end() <= l.end || len(l.extents) > 0 && e.Offset < l.end {
			return dfs.Errorf(dfs.Corrupt, "", "the extents of inode %v are not in order", ino)
		}
		l.extents = append(l.extents, e)
		l.end = e.end()
	}
	return nil
}

// layout lists the extents that reach into a range, length 0 for all that is
// behind offset, of one version: it starts again when the file changes.
func (c *Client) layout(ctx context.Context, ino dfs.Ino, offset, length int64, limit int) (layout, *wire.Attr, error) {
	ctx, cancel := c.timed(ctx)
	defer cancel()
	for attempt := 1; ; attempt++ {
		out, attr, err := c.tryLayout(ctx, ino, offset, length, limit)
		if err != nil || attr != nil {
			return out, attr, err
		}
		if !c.pause(ctx, attempt) {
			return out, nil, dfs.Errorf(dfs.Busy, "", "the file changes faster than its extents can be listed")
		}
	}
}

// tryLayout returns no attributes when the file changed between two pages.
func (c *Client) tryLayout(ctx context.Context, ino dfs.Ino, offset, length int64, limit int) (out layout, attr *wire.Attr, err error) {
	end := offset + length
	out.end = offset
	for {
		want := int64(0)
		if length > 0 {
			want = end - out.end
		}
		page, err := c.extentPage(ctx, ino, out.end, want)
		if err != nil {
			return out, nil, err
		}
		if attr != nil && attr.GetVersion() != page.Attr.GetVersion() {
			return out, nil, nil
		}
		attr = page.Attr
		if err := out.add(ino, page.Extents); err != nil {
			return out, nil, err
		}
		if !page.More || length > 0 && out.end >= end {
			return out, attr, nil
		}
		if len(out.extents) >= limit {
			out.cut = true
			return out, attr, nil
		}
		if len(page.Extents) == 0 {
			return out, nil, dfs.Errorf(dfs.Internal, "", "a page of extents is empty")
		}
	}
}

// WriteTo writes the whole file to w, reading several blocks ahead, and returns
// how many bytes it wrote. They are of one version: a file whose old contents
// are gone before they were read gives Stale. Only a file of more than 65,536
// extents is read in pieces, each of which is of one version.
func (f *File) WriteTo(ctx context.Context, w io.Writer) (int64, error) {
	return run(ctx, f.c, "read", f.ino.String(), func(ctx context.Context) (int64, error) {
		if err := f.flush(ctx); err != nil {
			return 0, err
		}
		return (&stream{c: f.c, ino: f.ino, w: w}).all(ctx)
	})
}

// stream copies a file to a writer.
type stream struct {
	c    *Client
	ino  dfs.Ino
	w    io.Writer
	done int64 // bytes written, and where in the file the stream is

	found *layout    // of the whole file, from an answer to this very call; nil: to be asked for
	attr  *wire.Attr // of the same answer
}

// all copies the whole file, and returns how many bytes it wrote.
func (s *stream) all(ctx context.Context) (int64, error) {
	for more := true; more; {
		var err error
		if more, err = s.piece(ctx); err != nil {
			return s.done, err
		}
	}
	return s.done, nil
}

// layout lists the extents from where the stream is on.
func (s *stream) layout(ctx context.Context) (layout, *wire.Attr, error) {
	if found := s.found; found != nil {
		s.found = nil // of one version, good for one attempt
		return *found, s.attr, nil
	}
	return s.c.layout(ctx, s.ino, s.done, 0, maxLayout)
}

// piece copies what one layout covers, and reports whether there is more.
func (s *stream) piece(ctx context.Context) (more bool, err error) {
	lost := &lossJudge{c: s.c, ino: s.ino}
	start, version := s.done, uint64(0)
	for {
		list, attr, err := s.layout(ctx)
		if err != nil {
			return false, err
		}
		if s.done > start && version != attr.GetVersion() {
			return false, dfs.Errorf(dfs.Stale, "", "the file was changed while it was read, and %d bytes of the old contents were copied", s.done)
		}
		version = attr.GetVersion()
		end := attr.GetSize()
		if list.cut {
			end = min(end, list.end)
		}
		err = s.copy(ctx, list.extents, end)
		if err == nil {
			return list.cut && end < attr.GetSize(), nil
		}
		if again, err := lost.judge(ctx, err); !again {
			return false, err
		}
	}
}

// ahead is a part of a file on its way from the stores.
type ahead struct {
	size  int64 // bytes; a hole when ready is nil
	buf   *buffer
	ready chan error // one element when the bytes are there, or not
	extra int64      // bytes taken from the client's read-ahead
}

// copy writes the file's bytes up to end. Blocks are read ahead and written in order.
func (s *stream) copy(ctx context.Context, extents []Extent, end int64) error {
	ctx, cancel := context.WithCancel(ctx)
	var queue []*ahead // Invariant: at most windowBlocks of them are not holes
	defer func() {     // what was begun ends here
		cancel()
		for _, a := range queue {
			if a.ready != nil {
				<-a.ready
				s.release(a)
			}
		}
	}()
	reading := 0
	at := s.done // up to where the queue goes
	for s.done < end {
		for at < end && reading < windowBlocks {
			if len(extents) > 0 && extents[0].Offset <= at {
				a := s.begin(ctx, &extents[0], at, end, reading == 0)
				if a == nil {
					break // no memory for more than is under way
				}
				queue = append(queue, a)
				reading++
				at += a.size
				extents = extents[1:]
				continue
			}
			stop := end
			if len(extents) > 0 {
				stop = min(end, extents[0].Offset)
			}
			queue = append(queue, &ahead{size: stop - at})
			at = stop
		}
		a := queue[0]
		var err error
		if a.ready == nil {
			err = s.zeros(ctx, a.size)
		} else {
			reading--
			err = s.emit(ctx, a)
		}
		queue = queue[1:]
		if err != nil {
			return err
		}
	}
	return nil
}

// begin starts to read what an extent covers from at on. The first of a file is
// always read; further ones as the client's read-ahead allows: nil when it does not.
func (s *stream) begin(ctx context.Context, e *Extent, at, end int64, first bool) *ahead {
	size := min(e.end(), end) - at
	a := &ahead{size: size, ready: make(chan error, 1)}
	if !first {
		if !s.c.ahead.TryAcquire(size) {
			return nil
		}
		a.extra = size
	}
	a.buf = s.c.buffers.get(int(size))
	block, length, offset := e.Block, e.BlockLength, e.BlockOffset+uint32(at-e.Offset)
	s.c.work.Go(func() { a.ready <- s.c.readBlock(ctx, block, length, offset, a.buf.b[:size]) })
	return a
}

func (s *stream) release(a *ahead) {
	a.buf.release()
	if a.extra > 0 {
		s.c.ahead.Release(a.extra)
	}
}

// emit writes a part once it is there.
func (s *stream) emit(ctx context.Context, a *ahead) error {
	defer s.release(a)
	if err := <-a.ready; err != nil {
		return err
	}
	return s.write(ctx, a.buf.b[:a.size])
}

func (s *stream) write(ctx context.Context, p []byte) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	n, err := s.w.Write(p)
	s.done += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return dfs.Wrap("write", "", err)
}

// zeros writes a hole.
func (s *stream) zeros(ctx context.Context, n int64) error {
	buf := s.c.buffers.get(dfs.ChunkSize)
	defer buf.release()
	p := buf.b[:dfs.ChunkSize]
	clear(p)
	for n > 0 {
		k := min(n, int64(len(p)))
		if err := s.write(ctx, p[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}
