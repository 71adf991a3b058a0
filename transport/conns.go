package transport

import (
	"net"
	"time"

	"dfsd/dfs"
)

// serverConn is one accepted connection.
//
//	connGreeting → connIdle ⇄ connBusy
type serverConn struct {
	net net.Conn // as accepted

	// What follows is guarded by Server.mu.

	state  connState
	since  time.Time // when it came into its state
	client bool      // counted in Server.clients
}

type connState uint8

const (
	connGreeting connState = iota // in TLS or the handshake
	connIdle                      // between requests
	connBusy                      // with a request under way
)

func (c *serverConn) enterLocked(state connState) { c.state, c.since = state, time.Now() }

// admit starts to serve a connection, or to tell it that there are too many.
func (s *Server) admit(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed || s.draining:
		_ = conn.Close()
	case len(s.conns) < s.opts.MaxConns || s.evictLocked(connIdle) || s.evictLocked(connGreeting):
		c := &serverConn{net: conn}
		c.enterLocked(connGreeting)
		s.conns[c] = struct{}{}
		s.done.Go(func() {
			s.serve(c)
			_ = conn.Close()
			s.mu.Lock()
			s.removeLocked(c)
			s.mu.Unlock()
		})
	case len(s.refusals) < maxRefusals:
		s.refusals[conn] = struct{}{}
		s.done.Go(func() {
			_, _, err := s.handshake(conn, func(Identity) error {
				return dfs.Errorf(dfs.Busy, "accept", "%d connections are open already: the limit", s.opts.MaxConns)
			})
			linger(conn, err)
			_ = conn.Close()
			s.mu.Lock()
			delete(s.refusals, conn)
			s.mu.Unlock()
		})
	default:
		_ = conn.Close()
	}
}

// evictLocked closes the connection that has been in a state for longest, to
// make room: of the idle ones a client's, which connects again when it wants
// something. So neither clients nor strangers that just hold connections keep
// others out, and a node's connection stays. It reports false where there is none.
func (s *Server) evictLocked(state connState) bool {
	var oldest *serverConn
	for c := range s.conns {
		if c.state == state && (c.client || state == connGreeting) && (oldest == nil || c.since.Before(oldest.since)) {
			oldest = c
		}
	}
	if oldest == nil {
		return false
	}
	s.log.Debug("connection closed for a newer one", "peer", oldest.net.RemoteAddr().String())
	_ = oldest.net.Close()
	s.removeLocked(oldest)
	return true
}

// removeLocked takes a connection out of the count. It may be out already.
func (s *Server) removeLocked(c *serverConn) {
	delete(s.conns, c)
	if c.client {
		c.client = false
		s.clients--
	}
}

// introduce admits the peer of a connection, or says why not. A node that does
// not know its cluster counts among the clients.
func (s *Server) introduce(c *serverConn, peer Identity) error {
	own := s.opts.Identity().Cluster
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.presentLocked(c); err != nil {
		return err
	}
	if peer.Kind == KindNode && peer.Cluster == own {
		return nil
	}
	share := max(1, s.opts.MaxConns*clientShare/8)
	if s.clients >= share && !s.evictLocked(connIdle) {
		return dfs.Errorf(dfs.Busy, "accept", "%d connections of clients are open already: the limit", share)
	}
	c.client = true
	s.clients++
	return nil
}

// presentLocked refuses a connection that was closed for another one meanwhile.
func (s *Server) presentLocked(c *serverConn) error {
	if _, ok := s.conns[c]; !ok {
		return dfs.Errorf(dfs.Busy, "accept", "%d connections are open already: the limit", s.opts.MaxConns)
	}
	return nil
}

// settle notes that a connection is past its handshake.
func (s *Server) settle(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.enterLocked(connIdle)
}

// begin notes that a request is under way and says why it is refused, if it is.
func (s *Server) begin(c *serverConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.enterLocked(connBusy)
	s.active++
	if s.draining {
		return dfs.Errorf(dfs.Unavailable, "serve", "this node is shutting down")
	}
	return s.presentLocked(c)
}

// end notes that a request is answered. It reports whether the connection
// shall be closed.
func (s *Server) end(c *serverConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.enterLocked(connIdle)
	s.active--
	s.checkDrainedLocked()
	return s.draining || s.closed
}
