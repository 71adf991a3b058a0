package transport

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"dfsd/dfs"
)

// guard is a connection under dRPC: it bounds what the other side may make us
// wait for and hold. Reads come from one goroutine.
type guard struct {
	net.Conn
	messageTimeout time.Duration // reading one message, from its first byte to its last
	writeTimeout   time.Duration // one write

	scan  frameScanner
	left  time.Duration // of messageTimeout for the message under way; the reader's
	timed bool          // a read deadline is set; the reader's

	sent atomic.Uint64 // bytes the network has taken: none means that no one can have seen them
}

// Read limits the time that is spent waiting for the rest of a message. Between
// messages it waits as long as it takes: the idle time-out is the server's.
// Time in which this side does not read is not counted against the other.
func (g *guard) Read(p []byte) (int, error) {
	var start time.Time
	if g.scan.inMessage() {
		start = time.Now()
		if err := g.Conn.SetReadDeadline(start.Add(g.left)); err != nil {
			return 0, err
		}
		g.timed = true
	} else if g.timed {
		if err := g.Conn.SetReadDeadline(time.Time{}); err != nil {
			return 0, err
		}
		g.timed = false
	}
	n, err := g.Conn.Read(p)
	if g.timed {
		g.left -= time.Since(start)
	}
	ended, serr := g.scan.feed(p[:n])
	if serr != nil {
		return 0, serr // nothing of it reaches a buffer
	}
	if ended || !g.timed {
		g.left = g.messageTimeout
	}
	return n, err
}

// Write limits the time of one write, so that a peer which does not read is cut.
func (g *guard) Write(p []byte) (int, error) {
	if err := g.Conn.SetWriteDeadline(time.Now().Add(g.writeTimeout)); err != nil {
		return 0, err
	}
	n, err := g.Conn.Write(p)
	g.sent.Add(uint64(n))
	return n, err
}

// frameScanner follows the dRPC frames in a stream of bytes, at their heads
// only: a control byte (bit 0: last frame of its message) and three varints,
// stream, message and length of the data that follows.
//
// Invariant: 0 <= left; left > 0 only between heads.
type frameScanner struct {
	field  int    // 0: before a frame; 1..3: in that varint of the head
	shift  int    // bits of the varint read so far
	left   uint64 // data bytes of the frame still to come, or the length so far while in field 3
	last   bool   // the frame ends its message
	within bool   // frames of a message came and its last did not
}

// inMessage reports whether a message has begun and not ended.
func (s *frameScanner) inMessage() bool { return s.within || s.field > 0 || s.left > 0 }

// feed takes the next bytes. It reports whether a message ended in them.
// It refuses a frame above dfs.MaxMessage at its head, and what is no frame.
func (s *frameScanner) feed(p []byte) (ended bool, err error) {
	for len(p) > 0 {
		if s.field == 0 && s.left > 0 {
			n := min(s.left, uint64(len(p)))
			p, s.left = p[n:], s.left-n
			ended = s.endOfData() || ended
			continue
		}
		b := p[0]
		p = p[1:]
		if s.field == 0 {
			s.last, s.field, s.shift = b&1 != 0, 1, 0
			continue
		}
		if s.field == 3 {
			s.left |= uint64(b&0x7f) << s.shift
			if s.left > dfs.MaxMessage {
				return ended, fmt.Errorf("a frame of %d bytes or more: the limit is %d", s.left, dfs.MaxMessage)
			}
		}
		s.shift += 7
		if b&0x80 != 0 {
			if s.shift > 63 {
				return ended, errors.New("a number of more than 64 bits in the head of a frame")
			}
			continue
		}
		s.field, s.shift = (s.field+1)%4, 0
		if s.field == 0 {
			ended = s.endOfData() || ended
		}
	}
	return ended, nil
}

// endOfData notes the end of a frame, if it is there, and reports whether it
// ended the message.
func (s *frameScanner) endOfData() bool {
	if s.left > 0 {
		return false
	}
	s.within = !s.last
	return s.last
}
