package client

import (
	"sync"

	"dfsd/dfs"
)

// buffer is memory for the bytes of one block. Whoever holds it may use it; it
// has one holder, who gives it back.
type buffer struct {
	b    []byte // with the capacity of its size class
	pool *sync.Pool
}

// buffers keeps the memory of blocks that are done: in classes, since most files
// are much smaller than a block.
type buffers struct {
	classes []sizeClass // smallest first
}

type sizeClass struct {
	size int
	pool *sync.Pool
}

// slack is what compression needs behind the place of the last chunk (bytes): more
// than s2.MaxEncodedLen of a chunk, which a test checks.
const slack = dfs.ChunkSize + dfs.ChunkSize/4

func newBuffers() *buffers {
	out := &buffers{}
	for _, size := range []int{dfs.ChunkSize, dfs.DefaultBlockSize / 8, dfs.DefaultBlockSize, dfs.MaxBlockSize} {
		pool := &sync.Pool{}
		pool.New = func() any { return &buffer{b: make([]byte, 0, size+slack), pool: pool} }
		out.classes = append(out.classes, sizeClass{size, pool})
	}
	return out
}

// get returns an empty buffer with room for n bytes and the slack. REQUIRES: n <= dfs.MaxBlockSize.
func (p *buffers) get(n int) *buffer {
	for _, c := range p.classes {
		if n <= c.size {
			return c.pool.Get().(*buffer)
		}
	}
	panic("a buffer for more than a block")
}

// release gives the buffer back; nil is nothing.
func (b *buffer) release() {
	if b != nil {
		b.b = b.b[:0]
		b.pool.Put(b)
	}
}
