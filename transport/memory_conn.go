package transport

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// memoryConn is one end of a connection of a Memory network.
type memoryConn struct {
	m             *Memory
	host          *Host
	local, remote memoryAddr
	in, out       *pipe
	accepted      bool // this end was accepted, not dialled

	// Guarded by m.mu.
	closed bool
	wrote  bool // this end has sent something: an accepting end is past the handshake
}

// pipe is one direction of a connection. Everything in it is guarded by
// Memory.mu, on which cond waits.
//
// Invariants: size is the sum of the segments' bytes, size <= memoryBuffer; the
// times of segments do not decrease.
type pipe struct {
	link
	opts     *MemoryOptions
	cond     sync.Cond
	random   *rand.Rand
	segments []segment
	size     int
	last     time.Time // when the last thing sent arrives

	ended  bool // the writing end was closed: the reading end sees io.EOF after the segments, from last on
	gone   bool // the reading end was closed
	broken bool // reset

	readBy, writeBy time.Time // deadlines; zero: none
}

// segment is bytes that arrive together.
type segment struct {
	data []byte
	at   time.Time
}

// latency draws the time that the next bytes take. REQUIRES: Memory.mu held.
func (p *pipe) latency() time.Duration {
	if p.from == p.to {
		return 0
	}
	span := p.opts.MaxLatency - p.opts.MinLatency
	if span <= 0 {
		return p.opts.MinLatency
	}
	return p.opts.MinLatency + time.Duration(p.random.Int64N(int64(span)+1))
}

// waitLocked waits for a change of the pipe or its link, or for the earliest
// of the times that is not zero.
func (p *pipe) waitLocked(times ...time.Time) {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if !first.IsZero() {
		timer := time.AfterFunc(time.Until(first), func() {
			p.cond.L.Lock()
			defer p.cond.L.Unlock()
			p.cond.Broadcast()
		})
		defer timer.Stop()
	}
	p.cond.Wait()
}

func expired(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

func (c *memoryConn) Read(b []byte) (int, error) {
	n, err := c.read(b)
	if err != nil && err != io.EOF {
		err = &net.OpError{Op: "read", Net: "memory", Source: c.local, Addr: c.remote, Err: err}
	}
	return n, err
}

func (c *memoryConn) read(b []byte) (int, error) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	p := c.in
	for {
		blocked := c.m.blockedLocked(p.from, p.to)
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case p.broken && (!blocked || c.host.cut):
			return 0, errReset
		case expired(p.readBy):
			return 0, memoryTimeout{}
		case blocked:
			p.waitLocked(p.readBy)
			continue
		}
		var next time.Time
		switch {
		case len(p.segments) > 0:
			next = p.segments[0].at
			if !time.Now().Before(next) {
				return p.takeLocked(b), nil
			}
		case p.ended:
			next = p.last
			if !time.Now().Before(next) {
				return 0, io.EOF
			}
		}
		p.waitLocked(p.readBy, next)
	}
}

// takeLocked moves what has arrived to b.
func (p *pipe) takeLocked(b []byte) int {
	now, n := time.Now(), 0
	for len(p.segments) > 0 && n < len(b) && !now.Before(p.segments[0].at) {
		s := &p.segments[0]
		k := copy(b[n:], s.data)
		n += k
		s.data = s.data[k:]
		if len(s.data) == 0 {
			p.segments[0] = segment{}
			p.segments = p.segments[1:]
		}
	}
	p.size -= n
	p.cond.Broadcast()
	return n
}

func (c *memoryConn) Write(b []byte) (int, error) {
	n, err := c.write(b)
	if err != nil {
		err = &net.OpError{Op: "write", Net: "memory", Source: c.local, Addr: c.remote, Err: err}
	}
	return n, err
}

func (c *memoryConn) write(b []byte) (n int, err error) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	p := c.out
	if answer := (link{p.from, p.to}); c.accepted && c.wrote && c.m.dropNext[answer] > 0 && !c.closed {
		c.m.dropNext[answer]--
		c.resetLocked()
		return len(b), nil
	}
	c.wrote = true
	for len(b) > 0 {
		heard := c.host.cut || !c.m.blockedLocked(p.to, p.from) // a reset comes from the other end
		switch {
		case c.closed:
			return n, net.ErrClosed
		case (p.broken || p.gone) && heard:
			return n, errReset
		case expired(p.writeBy):
			return n, memoryTimeout{}
		case p.size == memoryBuffer || p.broken || p.gone:
			p.waitLocked(p.writeBy)
			continue
		}
		k := min(len(b), memoryBuffer-p.size)
		at := time.Now().Add(p.latency())
		if at.Before(p.last) {
			at = p.last
		}
		p.segments = append(p.segments, segment{data: append([]byte(nil), b[:k]...), at: at})
		p.size, p.last = p.size+k, at
		b, n = b[k:], n+k
		p.cond.Broadcast()
	}
	return n, nil
}

// Close ends the connection: the other end reads what was sent, then io.EOF,
// and its writes fail.
func (c *memoryConn) Close() error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	delete(c.host.conns, c)
	c.out.ended = true
	if at := time.Now().Add(c.out.latency()); at.After(c.out.last) {
		c.out.last = at
	}
	c.in.gone, c.in.segments, c.in.size = true, nil, 0
	c.in.cond.Broadcast()
	c.out.cond.Broadcast()
	return nil
}

// resetLocked breaks the connection at both ends: what is on its way is lost.
func (c *memoryConn) resetLocked() {
	for _, p := range []*pipe{c.in, c.out} {
		p.broken, p.segments, p.size = true, nil, 0
		p.cond.Broadcast()
	}
}

func (c *memoryConn) LocalAddr() net.Addr  { return c.local }
func (c *memoryConn) RemoteAddr() net.Addr { return c.remote }

func (c *memoryConn) SetDeadline(t time.Time) error { return c.setDeadlines(&t, &t) }

func (c *memoryConn) SetReadDeadline(t time.Time) error { return c.setDeadlines(&t, nil) }

func (c *memoryConn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(nil, &t) }

func (c *memoryConn) setDeadlines(read, write *time.Time) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if read != nil {
		c.in.readBy = *read
		c.in.cond.Broadcast()
	}
	if write != nil {
		c.out.writeBy = *write
		c.out.cond.Broadcast()
	}
	return nil
}
