package storage

import (
	"errors"
	"io"
	"math/bits"
	"sync"

	"storj.io/drpc"

	"dfsd/dfs"
	"dfsd/transport/wire"
	"dfsd/transport/wire/codec"
)

// smallestBuffer and bufferSizes: 256 KiB, 512 KiB, … 16 MiB, dfs.MaxBlockSize.
const (
	smallestBuffer = dfs.FrameSize
	bufferSizes    = 7
)

// buffers keeps payload buffers and frames for reuse. Its callers bound how
// much of it is in use at a time.
type buffers struct {
	pools  [bufferSizes]sync.Pool // of *[]byte, smallestBuffer << i
	frames sync.Pool              // of *wire.BlockFrame with room for FrameSize
}

// get returns n bytes of unknown content; put takes them back.
// REQUIRES: 0 < n <= dfs.MaxBlockSize.
func (b *buffers) get(n int) []byte {
	i := bits.Len(uint(n-1) / smallestBuffer)
	if p, ok := b.pools[i].Get().(*[]byte); ok {
		return (*p)[:n]
	}
	return make([]byte, n, smallestBuffer<<i)
}

func (b *buffers) put(p []byte) {
	p = p[:cap(p)]
	b.pools[bits.Len(uint(cap(p)-1)/smallestBuffer)].Put(&p)
}

// frame returns an empty frame whose data has room for FrameSize bytes.
func (b *buffers) frame() *wire.BlockFrame {
	if f, ok := b.frames.Get().(*wire.BlockFrame); ok {
		f.Head, f.Data = f.Head[:0], f.Data[:0]
		return f
	}
	return &wire.BlockFrame{Data: make([]byte, 0, dfs.FrameSize)}
}

// free takes a frame back. REQUIRES: its data is the frame's own.
func (b *buffers) free(f *wire.BlockFrame) { b.frames.Put(f) }

// recvFrame receives a frame into the room that f has, which the Recv methods
// of the generated streams do not.
func recvFrame(in drpc.Stream, f *wire.BlockFrame) error { return in.MsgRecv(f, frameEncoding{}) }

// frameEncoding is the encoding of the generated code.
type frameEncoding struct{}

func (frameEncoding) Marshal(m drpc.Message) ([]byte, error)     { return codec.Marshal(m) }
func (frameEncoding) Unmarshal(buf []byte, m drpc.Message) error { return codec.Unmarshal(buf, m) }

// receivePayload receives stored bytes that lie end to end in the data of frames. It
// takes what the first frame held and decodes the others where they belong.
// Errors: Invalid when there is more or less than the buffer holds, or a frame
// but the first has a head; else the stream's.
func receivePayload(in drpc.Stream, first, buf []byte) error {
	if len(first) > len(buf) {
		return tooMuch(len(buf))
	}
	n := copy(buf, first)
	var f wire.BlockFrame
	for n < len(buf) {
		f.Data = buf[n:n:len(buf)]
		switch err := recvFrame(in, &f); {
		case errors.Is(err, io.EOF):
			return dfs.Errorf(dfs.Invalid, "receive block", "%d bytes came, the head says %d", n, len(buf))
		case err != nil:
			return err
		case len(f.Head) > 0:
			return dfs.Errorf(dfs.Invalid, "receive block", "a second head after %d bytes", n)
		case len(f.Data) > len(buf)-n:
			return tooMuch(len(buf))
		}
		n += len(f.Data)
	}
	f.Data = nil
	switch err := recvFrame(in, &f); {
	case err == nil:
		return tooMuch(len(buf))
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

func tooMuch(want int) error {
	return dfs.Errorf(dfs.Invalid, "receive block", "more comes than the %d bytes that the head says", want)
}
