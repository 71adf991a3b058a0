package raftgroup

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"hash"
	"io"

	"dfsd/dfs"
)

// recvKind returns the payload of the next chunk, which must be of a kind.
func recvKind(stream SnapshotStream, kind byte) ([]byte, error) {
	chunk, err := stream.Recv()
	if err != nil {
		return nil, torn(err)
	}
	if len(chunk) == 0 || len(chunk) > SnapshotChunk || chunk[0] != kind {
		return nil, dfs.Errorf(dfs.Invalid, "receive snapshot", "not the chunk that belongs here")
	}
	return chunk[1:], nil
}

// torn is the error of a stream that broke. It does not wrap err: io.EOF is no
// end of the data.
func torn(err error) error {
	return dfs.Errorf(dfs.Unavailable, "receive snapshot", "torn stream: %v", err)
}

// chunkReader reads the data of a stream up to the next point or the end.
type chunkReader struct {
	h      *Host
	stream SnapshotStream
	sum    hash.Hash
	seen   *arrival
	rest   []byte
	at     *point // where the data stopped; nil while it goes on
	end    bool   // at is the end
}

// Read returns io.EOF at a point and at the end.
func (c *chunkReader) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.at != nil {
			return 0, io.EOF
		}
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *chunkReader) next() error {
	chunk, err := c.stream.Recv()
	if err != nil {
		return torn(err)
	}
	if len(chunk) == 0 || len(chunk) > SnapshotChunk {
		return dfs.Errorf(dfs.Invalid, "receive snapshot", "a chunk of %d bytes", len(chunk))
	}
	switch chunk[0] {
	case chunkData:
		c.rest = chunk[1:]
		_, _ = c.sum.Write(c.rest)
		c.seen.bytes.Add(uint64(len(c.rest)))
		c.h.snaps.received.Add(uint64(len(c.rest)))
		if err := c.h.pace.WaitN(c.h.ctx, len(chunk)); err != nil {
			return errClosing("receive snapshot")
		}
		return nil
	case chunkPoint, chunkEnd:
		at, err := decodePoint(chunk[1:])
		c.at, c.end = &at, chunk[0] == chunkEnd
		return err
	}
	return dfs.Errorf(dfs.Invalid, "receive snapshot", "a chunk of unknown kind %d", chunk[0])
}

// check compares what was read with what the point or end says.
func (c *chunkReader) check(keys uint64) error {
	if c.at.keys != keys || !bytes.Equal(c.at.sum, c.sum.Sum(nil)) {
		return dfs.Errorf(dfs.Corrupt, "receive snapshot", "%d keys arrived, and they are not what was sent", keys)
	}
	return nil
}

// readSized reads a length and so many bytes.
func readSized(r *bufio.Reader) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, tornRow(err)
	}
	if n > maxSnapshotValue {
		return nil, dfs.Errorf(dfs.Invalid, "receive snapshot", "a key or value of %d bytes", n)
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r, b)
	return b, tornRow(err)
}

// tornRow gives the end of the data inside of a row its kind.
func tornRow(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return dfs.Errorf(dfs.Invalid, "receive snapshot", "a torn key or value")
	}
	return err
}
