package wire

import (
	"encoding/binary"

	"dfsd/dfs"
)

// Limits of a [BlockFrame].
const (
	// MaxFrameHead bounds the head: a PutHead of a block of 16 MiB holds 256
	// chunk descriptions of 8 bytes, so 60 KiB leave room for what later
	// releases add.
	MaxFrameHead = 60 << 10

	// MaxFrame bounds the encoded frame (bytes): head, data and the length
	// before the head.
	MaxFrame = dfs.FrameSize + 64<<10
)

// AppendFrame appends uvarint(len(head)), head and data to dst: the one copy
// of a block's bytes on their way to the connection's buffer. Errors: TooLarge.
func (m *BlockFrame) AppendFrame(dst []byte) ([]byte, error) {
	if err := checkFrame(len(m.GetHead()), len(m.GetData())); err != nil {
		return nil, err
	}
	dst = binary.AppendUvarint(dst, uint64(len(m.GetHead())))
	dst = append(dst, m.GetHead()...)
	return append(dst, m.GetData()...), nil
}

// DecodeFrame reads what AppendFrame wrote. It copies into the capacity that
// Head and Data already have, so that a frame can be reused, and keeps no
// reference to src. Errors: TooLarge, Invalid; the frame is then unchanged.
func (m *BlockFrame) DecodeFrame(src []byte) error {
	n, w := binary.Uvarint(src)
	if w <= 0 || n > uint64(len(src)-w) {
		return dfs.Errorf(dfs.Invalid, "decode", "block frame of %d bytes: its head is cut short", len(src))
	}
	head, data := src[w:w+int(n)], src[w+int(n):]
	if err := checkFrame(len(head), len(data)); err != nil {
		return err
	}
	m.Head = append(m.Head[:0], head...)
	m.Data = append(m.Data[:0], data...)
	return nil
}

func checkFrame(head, data int) error {
	if head > MaxFrameHead || data > dfs.FrameSize {
		return dfs.Errorf(dfs.TooLarge, "check", "block frame with %d bytes of head and %d of data: the limits are %d and %d",
			head, data, MaxFrameHead, dfs.FrameSize)
	}
	return nil
}
