package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"
)

// Limits of the simulated network.
const (
	memoryBuffer  = 256 << 10 // bytes on their way in one direction of a connection, as a socket's buffers
	memoryBacklog = 128       // connections that wait to be accepted by one listener
)

// MemoryOptions configures a Memory network. The zero value is a network
// without delay.
type MemoryOptions struct {
	// Seed fixes the delays: a connection's are drawn from the seed, its two
	// hosts and how many connections they had before.
	Seed uint64

	// MinLatency and MaxLatency bound the time that bytes take from host to
	// host. MaxLatency 0 is MinLatency.
	MinLatency, MaxLatency time.Duration
}

// Memory is a network of named hosts in one process, for simulation. It
// behaves as TCP does: bytes arrive in order or not at all, buffers are bounded,
// deadlines hold, what is sent over a blocked link waits and is delivered when
// the link works again, and a connection to a host that was cut is reset. Inside
// a synctest bubble all of it takes virtual time, and all waits are durable.
type Memory struct {
	opts MemoryOptions

	mu       sync.Mutex // guards what follows, and every host, listener, connection and pipe
	hosts    map[string]*Host
	blocked  map[link]bool
	isolated map[string]bool
	dropNext map[link]int    // answers to lose; link is from the accepting side
	dialled  map[link]uint64 // connections so far
	changed  chan struct{}   // closed and replaced when a link or host changes
}

// link is one direction between two hosts.
type link struct{ from, to string }

// NewMemory returns a network with no hosts.
func NewMemory(opts MemoryOptions) *Memory {
	opts.MaxLatency = max(opts.MinLatency, opts.MaxLatency)
	return &Memory{
		opts:     opts,
		hosts:    make(map[string]*Host),
		blocked:  make(map[link]bool),
		isolated: make(map[string]bool),
		dropNext: make(map[link]int),
		dialled:  make(map[link]uint64),
		changed:  make(chan struct{}),
	}
}

// Host returns the network as the named host sees it: the host's present life,
// or a new one after Cut.
func (m *Memory) Host(name string) *Host {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hosts[name]
	if h == nil {
		h = &Host{m: m, name: name, listeners: make(map[string]*memoryListener), conns: make(map[*memoryConn]struct{}), nextPort: 10000}
		m.hosts[name] = h
	}
	return h
}

// Cut ends a host's life as a power loss does: its listeners close, its
// connections are reset, and the Network of that life can do nothing any more.
func (m *Memory) Cut(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hosts[name]
	if h == nil {
		return
	}
	delete(m.hosts, name)
	h.cut = true
	for _, l := range h.listeners {
		l.closeLocked()
	}
	for c := range h.conns {
		c.resetLocked()
	}
	m.changedLocked()
}

// Block stops what is sent from one host to another, one way: it waits for
// Unblock or Heal.
func (m *Memory) Block(from, to string) { m.set(func() { m.blocked[link{from, to}] = true }) }

// Unblock undoes Block.
func (m *Memory) Unblock(from, to string) { m.set(func() { delete(m.blocked, link{from, to}) }) }

// Partition blocks both ways between the hosts of a and those of b.
func (m *Memory) Partition(a, b []string) {
	m.set(func() {
		for _, x := range a {
			for _, y := range b {
				m.blocked[link{x, y}] = true
				m.blocked[link{y, x}] = true
			}
		}
	})
}

// Isolate blocks all links of a host, both ways, until Heal.
func (m *Memory) Isolate(name string) { m.set(func() { m.isolated[name] = true }) }

// Heal makes every link work.
func (m *Memory) Heal() {
	m.set(func() {
		clear(m.blocked)
		clear(m.isolated)
	})
}

// Break resets the open connections between two hosts and returns how many
// there were.
func (m *Memory) Break(a, b string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		h := m.hosts[pair[0]]
		if h == nil {
			continue
		}
		for c := range h.conns {
			if !c.accepted && c.remote.host() == pair[1] {
				c.resetLocked()
				n++
			}
		}
	}
	return n
}

// DropReplyOnce loses the next thing that server answers to client on a
// connection past its handshake: the bytes vanish and the connection is reset.
// Each call arms it for one more answer.
func (m *Memory) DropReplyOnce(server, client string) {
	m.set(func() { m.dropNext[link{server, client}]++ })
}

func (m *Memory) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
	m.changedLocked()
}

// changedLocked wakes everyone who waits for a link.
func (m *Memory) changedLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
	for _, h := range m.hosts {
		for c := range h.conns {
			c.in.cond.Broadcast()
			c.out.cond.Broadcast()
		}
	}
}

func (m *Memory) blockedLocked(from, to string) bool {
	return from != to && (m.blocked[link{from, to}] || m.isolated[from] || m.isolated[to])
}

// Errors of the simulated network.
var (
	errReset   = errors.New("connection reset by peer")
	errRefused = errors.New("connection refused")
	errInUse   = errors.New("address already in use")
	errCut     = errors.New("network is down")
)

// memoryTimeout is the error of a deadline.
type memoryTimeout struct{}

func (memoryTimeout) Error() string   { return "i/o timeout" }
func (memoryTimeout) Timeout() bool   { return true }
func (memoryTimeout) Temporary() bool { return true }

type memoryAddr string

func (memoryAddr) Network() string  { return "memory" }
func (a memoryAddr) String() string { return string(a) }
func (a memoryAddr) host() string {
	host, _, _ := net.SplitHostPort(string(a))
	return host
}

// Host is the network as one host of a Memory sees it.
type Host struct {
	m    *Memory
	name string

	// Guarded by m.mu.
	cut       bool
	listeners map[string]*memoryListener // by address
	conns     map[*memoryConn]struct{}   // this host's ends
	nextPort  int
}

var _ Network = (*Host)(nil)

// Listen announces on addr, whose host must be this one's name or empty. Port 0
// takes a free one.
func (h *Host) Listen(addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if cmp.Or(host, h.name) != h.name {
		return nil, fmt.Errorf("listen %s: the address is not one of %s", addr, h.name)
	}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if h.cut {
		return nil, errCut
	}
	if port == "0" {
		port = h.portLocked()
	}
	local := net.JoinHostPort(h.name, port)
	if h.listeners[local] != nil {
		return nil, fmt.Errorf("listen %s: %w", local, errInUse)
	}
	l := &memoryListener{host: h, addr: memoryAddr(local), queue: make(chan *memoryConn, memoryBacklog), done: make(chan struct{})}
	h.listeners[local] = l
	return l, nil
}

func (h *Host) portLocked() string {
	h.nextPort++
	return strconv.Itoa(h.nextPort)
}

// Dial connects to a listener of any host. Over a blocked link it waits.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := h.dial(ctx, memoryAddr(addr))
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "memory", Addr: memoryAddr(addr), Err: err}
	}
	return c, nil
}

func (h *Host) dial(ctx context.Context, addr memoryAddr) (*memoryConn, error) {
	m, to := h.m, addr.host()
	m.mu.Lock()
	defer m.mu.Unlock()
	pair := link{h.name, to}
	m.dialled[pair]++
	out, in := m.newPipe(pair, m.dialled[pair]), m.newPipe(link{to, h.name}, m.dialled[pair])
	trip := time.NewTimer(out.latency() + in.latency())
	defer trip.Stop()
	for arrived := false; ; {
		if h.cut {
			return nil, errCut
		}
		if arrived && !m.blockedLocked(h.name, to) && !m.blockedLocked(to, h.name) {
			break
		}
		changed := m.changed
		m.mu.Unlock()
		var err error
		select {
		case <-trip.C:
			arrived = true
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		m.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
	remote := m.hosts[to]
	if remote == nil || remote.listeners[string(addr)] == nil {
		return nil, errRefused
	}
	local := memoryAddr(net.JoinHostPort(h.name, h.portLocked()))
	near := &memoryConn{m: m, host: h, local: local, remote: addr, in: in, out: out}
	far := &memoryConn{m: m, host: remote, local: addr, remote: local, in: out, out: in, accepted: true}
	select {
	case remote.listeners[string(addr)].queue <- far:
	default:
		return nil, errRefused
	}
	h.conns[near], remote.conns[far] = struct{}{}, struct{}{}
	return near, nil
}

func (m *Memory) newPipe(l link, serial uint64) *pipe {
	hash := fnv.New64a()
	fmt.Fprintf(hash, "%d %q %q %d", m.opts.Seed, l.from, l.to, serial)
	return &pipe{link: l, opts: &m.opts, cond: sync.Cond{L: &m.mu}, random: rand.New(rand.NewPCG(m.opts.Seed, hash.Sum64()))}
}

// memoryListener is a net.Listener of a Host.
type memoryListener struct {
	host  *Host
	addr  memoryAddr
	queue chan *memoryConn
	done  chan struct{} // closed with the listener; guarded by Memory.mu for closing
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and resets the connections that nobody accepted.
func (l *memoryListener) Close() error {
	l.host.m.mu.Lock()
	defer l.host.m.mu.Unlock()
	l.closeLocked()
	return nil
}

func (l *memoryListener) closeLocked() {
	if l.host.listeners[string(l.addr)] != l {
		return
	}
	delete(l.host.listeners, string(l.addr))
	close(l.done)
	for {
		select {
		case c := <-l.queue:
			c.resetLocked()
			delete(l.host.conns, c)
		default:
			return
		}
	}
}

func (l *memoryListener) Addr() net.Addr { return l.addr }
