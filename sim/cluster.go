package sim

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"storj.io/drpc"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/meta"
	"dfsd/node"
	"dfsd/transport"
)

// Config describes a simulated cluster.
type Config struct {
	Seed   uint64
	Metas  int // default 3
	Stores int // storage nodes; default 4
	Class  dfs.Class
	Logger *slog.Logger
	Tweak  func(*node.Options) // planted bugs and settings of one test
	Skewed bool                // wall clocks differ, by up to maxSkew from true time
}

// Cluster is a running simulation. Its methods are not safe for concurrent use
// except where they say so.
type Cluster struct {
	cfg  Config
	net  *transport.Memory
	rand *rand.Rand // of faults; the workload has its own

	mu      sync.Mutex      // guards the nodes' fields, and what follows
	nodes   []*simNode      // metas first
	clients map[string]bool // hosts of clients that are open
}

type simNode struct {
	name  string
	roles dfs.Role
	fs    *vfs.MemFS
	slow  atomic.Int64 // see disk
	node  *node.Node   // nil while it is down
	lives int
}

const rpcPort = "7400"

// sizes that fit a disk that is copied whole at each sync.
const (
	simSegment   = 1 << 20
	simMemTable  = 256 << 10
	simCache     = 1 << 20
	simBlockSize = 128 << 10
	simCapacity  = 1 << 30
	simPGs       = 16
	simGroups    = 4

	// simUndecidedAge is less than many a commit takes under faults, and simTrashKeep
	// less than a run: what is called garbage and is none is missed.
	simUndecidedAge, simTrashKeep = 5 * time.Second, time.Minute

	// simCompactAge and simDeadPercent make stores compact while faults go on, and so
	// drop tombstones.
	simCompactAge, simDeadPercent = 5 * time.Second, 5

	// lostReplies of a thousand answers never arrive: what they answer to has
	// been done, and is asked for again.
	lostReplies = 15

	// lostMaps of a thousand maps never reach a client, so that many a write goes
	// out under an epoch that is over.
	lostMaps = 600

	// maxSkew is how far a node's wall clock is off, either way, from one of its
	// starts to the next: less than what checks wait for.
	maxSkew = 20 * time.Second

	// minLatency and maxLatency are those of the network, one way: what is under
	// way when something breaks is where the mistakes are.
	minLatency, maxLatency = 50 * time.Microsecond, 2 * time.Millisecond

	// longTimeout is the client's default. No fault of a run lasts as long, so it
	// hides all of them; shortTimeout is below most.
	longTimeout, shortTimeout = 60 * time.Second, 4 * time.Second
)

// New makes the nodes' disks and starts all of them.
func New(cfg Config) (*Cluster, error) {
	if cfg.Metas == 0 {
		cfg.Metas = 3
	}
	if cfg.Stores == 0 {
		cfg.Stores = 4
	}
	if cfg.Class.IsZero() {
		cfg.Class = dfs.Replicated(3)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Cluster{
		cfg: cfg, rand: rand.New(rand.NewPCG(cfg.Seed, 1)),
		net: transport.NewMemory(transport.MemoryOptions{Seed: cfg.Seed, MinLatency: minLatency, MaxLatency: maxLatency}),
	}
	for i := range cfg.Metas {
		c.nodes = append(c.nodes, &simNode{name: fmt.Sprintf("meta%d", i+1), roles: dfs.RoleMeta, fs: vfs.NewCrashableMem()})
	}
	for range cfg.Stores {
		c.AddStorage()
	}
	for i := range c.nodes {
		if err := c.Start(i); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// AddStorage adds a storage node with an empty disk, not started, and returns
// its number.
func (c *Cluster) AddStorage() int {
	n := len(c.nodes) - c.cfg.Metas + 1
	c.nodes = append(c.nodes, &simNode{name: fmt.Sprintf("store%d", n), roles: dfs.RoleStorage, fs: vfs.NewCrashableMem()})
	return len(c.nodes) - 1
}

// AddMeta adds a meta node that is in nobody's list, with an empty disk, not
// started, and returns its number. REQUIRES: no storage node is added after it.
func (c *Cluster) AddMeta() int {
	n := c.cfg.Metas + 1
	for _, sn := range c.nodes[c.cfg.Metas:] {
		if sn.roles == dfs.RoleMeta {
			n++
		}
	}
	c.nodes = append(c.nodes, &simNode{name: fmt.Sprintf("meta%d", n), roles: dfs.RoleMeta, fs: vfs.NewCrashableMem()})
	return len(c.nodes) - 1
}

// Start starts a node that is down on the disk it has.
func (c *Cluster) Start(i int) error {
	sn := c.nodes[i]
	n, err := node.Start(c.options(sn))
	if err != nil {
		return fmt.Errorf("start %s: %w", sn.name, err)
	}
	c.mu.Lock()
	sn.node = n
	sn.lives++
	c.mu.Unlock()
	return nil
}

func (c *Cluster) options(sn *simNode) node.Options {
	marks := lockedRand(c.cfg.Seed, hash(sn.name)+uint64(sn.lives))
	o := node.Options{
		FS: &disk{sn.fs, lockedRand(c.cfg.Seed, hash("disk of "+sn.name)+uint64(sn.lives)), &sn.slow}, Network: c.net.Host(sn.name), Name: sn.name, Roles: sn.roles, Listen: sn.name + ":" + rpcPort, Dir: "data", PID: 1,
		Insecure: true, Release: "sim", Logger: c.cfg.Logger,
		NewMark: func() uint64 { return marks() | 1 },
		Engine:  engine.Options{SegmentSize: simSegment, CacheSize: simCache, MemTableSize: simMemTable, Capacity: simCapacity, CompactAge: simCompactAge, DeadPercent: simDeadPercent},
	}
	for i := range c.cfg.Metas {
		name := fmt.Sprintf("meta%d", i+1)
		o.Peers = append(o.Peers, meta.Peer{Name: name, Addr: name + ":" + rpcPort})
	}
	o.Meta.Groups, o.Meta.PGsPerClass, o.Meta.BlockSize, o.Meta.DefaultClass = simGroups, simPGs, simBlockSize, c.cfg.Class
	o.Meta.Grace = 30 * time.Second
	o.Storage.UndecidedAge, o.Storage.TrashKeep = simUndecidedAge, simTrashKeep
	o.Meta.Raft.CacheSize, o.Meta.Raft.MemTableSize = simCache, simMemTable
	if c.cfg.Skewed {
		clock := lockedRand(c.cfg.Seed, hash("clock of "+sn.name)+uint64(sn.lives))
		skew := time.Duration(clock()%uint64(2*maxSkew)) - maxSkew
		o.Meta.Now = func() time.Time { return time.Now().Add(skew) }
	}
	lose := lockedRand(c.cfg.Seed, ^hash(sn.name)+uint64(sn.lives))
	o.DropReply = func(peer transport.Peer, method string, _ error) bool {
		if peer.Kind == transport.KindClient && method == "/dfsd.wire.Meta/GetMap" {
			return lose()%1000 < lostMaps
		}
		return lose()%1000 < lostReplies
	}
	if c.cfg.Tweak != nil {
		c.cfg.Tweak(&o)
	}
	return o
}

// Crash ends nodes as a power loss does, at the same moment: what they had not
// synced is gone, or some of it.
func (c *Cluster) Crash(nodes ...int) {
	for _, i := range nodes {
		c.net.Cut(c.nodes[i].name) // first: what was said before it was synced before
	}
	var old []*node.Node
	c.mu.Lock()
	for _, i := range nodes {
		sn := c.nodes[i]
		if sn.node == nil {
			continue
		}
		old = append(old, sn.node)
		sn.node = nil
		cfg := vfs.CrashCloneCfg{}
		if c.rand.IntN(2) == 0 {
			cfg = vfs.CrashCloneCfg{UnsyncedDataPercent: c.rand.IntN(101), RNG: c.rand}
		}
		sn.fs = sn.fs.CrashClone(cfg)
		sn.slow.Store(0)
	}
	c.mu.Unlock()
	var wg sync.WaitGroup
	for _, n := range old {
		wg.Go(func() { _ = n.Close() }) // on the orphaned disk: whatever it says changes nothing
	}
	wg.Wait()
}

// CrashAll ends every node.
func (c *Cluster) CrashAll() {
	all := make([]int, len(c.nodes))
	for i := range all {
		all[i] = i
	}
	c.Crash(all...)
}

// Wipe gives a node that is down an empty disk.
func (c *Cluster) Wipe(i int) { c.nodes[i].fs = vfs.NewCrashableMem() }

// StartAll starts every node that is down.
func (c *Cluster) StartAll() error {
	for i, sn := range c.nodes {
		if sn.node == nil {
			if err := c.Start(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// Up lists the nodes that run.
func (c *Cluster) Up() []int {
	var out []int
	for i, sn := range c.nodes {
		if sn.node != nil {
			out = append(out, i)
		}
	}
	return out
}

// newestMap is the newest map that a running meta node has; nil: none has one.
// Safe for concurrent use.
func (c *Cluster) newestMap() (newest *dfs.Map) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sn := range c.nodes {
		if sn.node == nil || sn.node.Meta() == nil {
			continue
		}
		if m := sn.node.Meta().Map(); m != nil && (newest == nil || m.Epoch > newest.Epoch) {
			newest = m
		}
	}
	return newest
}

// engines are those of the nodes that run. Safe for concurrent use.
func (c *Cluster) engines() map[dfs.StoreID]*engine.Store {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[dfs.StoreID]*engine.Store{}
	for _, sn := range c.nodes {
		if sn.node == nil {
			continue
		}
		for _, e := range sn.node.Engines() {
			out[e.Identity().Store] = e
		}
	}
	return out
}

// Close ends every node.
func (c *Cluster) Close() {
	var wg sync.WaitGroup
	for _, sn := range c.nodes {
		if sn.node != nil {
			wg.Go(func() { _ = sn.node.Close() })
		}
	}
	wg.Wait()
}

// Peer is a client process of the simulation: a client on its own host.
type Peer struct {
	*client.Client
	pool *transport.Pool
	c    *Cluster
	name string
}

// Client opens a client on a host of its own. Safe for concurrent use.
func (c *Cluster) Client(ctx context.Context, name string, seed uint64) (*Peer, error) {
	return c.clientWithin(ctx, name, seed, longTimeout)
}

// clientWithin is Client with a limit on the time of each operation.
func (c *Cluster) clientWithin(ctx context.Context, name string, seed uint64, timeout time.Duration) (*Peer, error) {
	host := c.net.Host(name)
	var cluster atomic.Value // dfs.ClusterID
	pool := transport.NewPool(transport.PoolOptions{
		Network: host, Identity: func() transport.Identity {
			id, _ := cluster.Load().(dfs.ClusterID)
			return transport.Identity{Kind: transport.KindClient, Cluster: id}
		},
	})
	var addrs []string
	for i := range c.cfg.Metas {
		addrs = append(addrs, fmt.Sprintf("meta%d:%s", i+1, rpcPort))
	}
	cl, err := client.Open(ctx, client.Options{
		Metas: addrs, Dial: func(addr string) drpc.Conn { return pool.Conn(addr) }, Holder: name,
		OnCluster: func(id dfs.ClusterID) { cluster.Store(id) },
		Timeout:   timeout, Rand: lockedRand(seed, hash(name)), Logger: c.cfg.Logger.With("client", name),
	})
	if err != nil {
		pool.Close()
		return nil, err
	}
	c.mu.Lock()
	if c.clients == nil {
		c.clients = map[string]bool{}
	}
	c.clients[name] = true
	c.mu.Unlock()
	return &Peer{Client: cl, pool: pool, c: c, name: name}, nil
}

// Close ends the session and the client.
func (p *Peer) Close() {
	p.c.mu.Lock()
	delete(p.c.clients, p.name)
	p.c.mu.Unlock()
	p.Client.Close()
	p.pool.Close()
}

// clientNames are the hosts of the clients that are open, sorted.
func (c *Cluster) clientNames() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.clients))
}

// Kill ends the client as kill -9 does: nothing it leaves is cleaned up.
func (p *Peer) Kill() {
	p.c.net.Cut(p.name)
	p.Close()
}

// lockedRand returns a generator for many goroutines.
func lockedRand(seed, stream uint64) func() uint64 {
	r := rand.New(rand.NewPCG(seed, stream))
	var mu sync.Mutex
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return r.Uint64()
	}
}

func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}
