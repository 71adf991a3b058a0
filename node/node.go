package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"storj.io/drpc"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/meta"
	"dfsd/storage"
	"dfsd/transport"
	"dfsd/transport/metas"
)

// openMethods may be called by and on processes that do not know their cluster:
// what forms one, joins one, or learns of one.
var openMethods = []string{"/dfsd.wire.Meta/Probe", "/dfsd.wire.Meta/Register", "/dfsd.wire.Meta/GetMap"}

// Options describes one node. FS, Network, Name, Roles, Listen, Dir and Peers
// are required; the options of the roles carry their tunables, and what this
// package knows is filled in.
type Options struct {
	FS        vfs.FS
	Network   transport.Network
	Name      string
	Roles     dfs.Role
	Listen    string // host:port
	Advertise string // host:port where others reach this node; default Listen
	Dir       string
	Stores    []string // directories of the stores; default Dir/store0
	Peers     []meta.Peer
	Cluster   dfs.ClusterID // refuse any other; zero: any
	Release   string
	Labels    map[string]string
	PID       int
	TLS       *tls.Config
	Insecure  bool // listen beyond loopback without TLS

	Meta    meta.Options
	Storage storage.Options
	Engine  engine.Options
	Breaker transport.BreakerOptions
	Metrics *Metrics // nil: none

	NewMark   func() uint64                                            // random numbers that are never 0
	DropReply func(peer transport.Peer, method string, err error) bool // for tests; see transport.ServerOptions
	Logger    *slog.Logger
}

// Node is a running node.
type Node struct {
	opts    Options
	log     *slog.Logger
	id      *Identity
	engines []*engine.Store
	lost    error // why directories of stores could not be opened; nil: all were
	pool    *transport.Pool
	server  *transport.Server
	lis     net.Listener
	meta    *meta.Service    // nil without the role
	storage *storage.Service // nil without the role

	closeOnce sync.Once
	closeErr  error
}

// Start opens what the options name and starts the roles. On return the node
// listens; whether it takes part in a cluster yet is what Ready says.
func Start(opts Options) (_ *Node, err error) {
	opts.Advertise = cmp.Or(opts.Advertise, opts.Listen)
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)).With("node", opts.Name)
	if err := transport.CheckListen(opts.Listen, opts.TLS, opts.Insecure); err != nil {
		return nil, err
	}
	n := &Node{opts: opts, log: opts.Logger}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.id, err = OpenIdentity(opts.FS, opts.Dir, opts.Name, opts.PID, opts.NewMark); err != nil {
		return nil, err
	}
	if own := n.id.Membership().Cluster; !opts.Cluster.IsZero() && !own.IsZero() && own != opts.Cluster {
		return nil, dfs.Errorf(dfs.WrongCluster, "start", "%s belongs to cluster %v, the configuration says %v", opts.Dir, own, opts.Cluster)
	}
	if opts.Roles.Has(dfs.RoleStorage) {
		if err := n.openEngines(); err != nil {
			return nil, err
		}
	}
	if n.lis, err = opts.Network.Listen(opts.Listen); err != nil {
		return nil, notListening(opts.Listen, "--listen", err)
	}
	if err := n.wire(); err != nil {
		return nil, err
	}
	n.server.Start(n.lis)
	if n.meta != nil {
		n.meta.Start()
	}
	if n.storage != nil {
		n.storage.Start()
	}
	n.log.Info("listening", "addr", n.lis.Addr().String(), "roles", opts.Roles.String())
	return n, nil
}

// storeDirs lists the directories of the stores.
func (n *Node) storeDirs() []string {
	if len(n.opts.Stores) == 0 {
		return []string{n.opts.FS.PathJoin(n.opts.Dir, "store0")}
	}
	return n.opts.Stores
}

// disks says what disk each store is on, "" where the file system does not tell.
func (n *Node) disks() []string {
	out := make([]string, len(n.engines))
	for i, e := range n.engines {
		if info, err := n.opts.FS.Stat(e.Dir()); err == nil && info.DeviceID() != (vfs.DeviceID{}) {
			out[i] = info.DeviceID().String()
		}
	}
	return out
}

// openEngines opens the stores. One that cannot be opened keeps no other out; an
// error says that there is none.
func (n *Node) openEngines() error {
	for _, dir := range n.storeDirs() {
		o := n.opts.Engine
		o.FS, o.Dir, o.Logger = n.opts.FS, dir, n.log
		o.NewMark, o.PID = n.opts.NewMark, n.opts.PID
		e, err := engine.Open(o)
		if err != nil {
			n.lost = errors.Join(n.lost, err)
			continue
		}
		n.engines = append(n.engines, e)
	}
	if len(n.engines) == 0 {
		return n.lost
	}
	if n.lost != nil {
		n.log.Error("stores cannot be opened: they are not used; the others are", "cause", n.lost)
	}
	return nil
}

// unused says why stores of this node are not used, nil when all are.
func (n *Node) unused() error {
	errs := []error{n.lost}
	if n.storage != nil {
		errs = append(errs, n.storage.Refused())
	}
	for _, e := range n.engines {
		if st := e.Stats(); st.State == engine.StateFailed {
			errs = append(errs, fmt.Errorf("store %v has failed, mend its disk and restart the node: %w", e.Identity().Store, st.Err))
		}
	}
	return errors.Join(errs...)
}

// wire makes the pool, the server and the roles, and registers their services.
func (n *Node) wire() error {
	o := n.opts
	n.pool = transport.NewPool(transport.PoolOptions{
		Network: o.Network, Identity: n.identity, TLS: o.TLS, Breaker: o.Breaker,
		Observe: o.Metrics.observeCall(), OnBreaker: o.Metrics.observeBreaker(),
	})
	n.server = transport.NewServer(transport.ServerOptions{
		Identity: n.identity, OpenMethods: openMethods, TLS: o.TLS, Log: n.log, Observe: o.Metrics.observeServed(), DropReply: o.DropReply,
	})
	var seeds []string
	for _, p := range o.Peers {
		seeds = append(seeds, p.Addr)
	}
	dial := func(addr string) drpc.Conn { return n.pool.Conn(addr) }
	book := metas.New(dial, seeds)
	if o.Roles.Has(dfs.RoleMeta) {
		mo := o.Meta
		mo.FS, mo.Dir = o.FS, o.FS.PathJoin(o.Dir, "raft")
		mo.Name, mo.Addr, mo.Roles, mo.Release, mo.Labels = o.Name, o.Advertise, o.Roles, o.Release, o.Labels
		mo.Peers, mo.Cluster, mo.Identity, mo.Dial, mo.Metas, mo.NewMark, mo.Logger = o.Peers, o.Cluster, n.id, dial, book, o.NewMark, n.log
		mo.Identify = n.pool.Identify
		n.meta = meta.New(mo)
		if err := n.meta.RegisterServices(n.server); err != nil {
			return err
		}
	}
	if o.Roles.Has(dfs.RoleStorage) {
		so := o.Storage
		so.Node = func() dfs.NodeID {
			if m := n.id.Membership(); !m.Founding { // its number is not on record yet
				return m.Node
			}
			return 0
		}
		so.Cluster = func() dfs.ClusterID { return n.id.Membership().Cluster }
		so.Disks = n.disks()
		so.Engines, so.Dial, so.Metas, so.Logger = n.engines, dial, book, n.log
		so.Registration = storage.Registration{
			Name: o.Name, Addr: o.Advertise, Roles: o.Roles, Release: o.Release, Labels: o.Labels,
		}
		so.SaveNode, so.Offer = n.saveNode, n.offer
		so.Incarnation, so.Renewing = n.id.Incarnation, n.id.Renewing
		var err error
		if n.storage, err = storage.New(so); err != nil {
			return err
		}
		if err := n.storage.Register(n.server); err != nil {
			return err
		}
	}
	return nil
}

// offer makes this start durable in the node's lineage and returns that.
func (n *Node) offer() (dfs.Lineage, error) {
	if err := n.id.Offer(); err != nil {
		return dfs.Lineage{}, err
	}
	l, _ := n.id.Lineage()
	return l, nil
}

// saveNode notes what registration of the storage role gave; the meta role's
// marks stay as they are.
func (n *Node) saveNode(cluster dfs.ClusterID, id dfs.NodeID, since dfs.Epoch) error {
	if !n.opts.Cluster.IsZero() && cluster != n.opts.Cluster {
		return dfs.Errorf(dfs.WrongCluster, "register", "the meta nodes are of cluster %v, the configuration says %v", cluster, n.opts.Cluster)
	}
	return n.id.SaveNode(cluster, id, since)
}

func (n *Node) identity() transport.Identity {
	m := n.id.Membership()
	return transport.Identity{Cluster: m.Cluster, Kind: transport.KindNode, Node: m.Node, Incarnation: n.id.Incarnation()}
}

// Addr is the address that the node listens on.
func (n *Node) Addr() string { return n.lis.Addr().String() }

// Meta returns the meta role, nil without it.
func (n *Node) Meta() *meta.Service { return n.meta }

// Storage returns the storage role, nil without it.
func (n *Node) Storage() *storage.Service { return n.storage }

// Engines returns the stores, for checks.
func (n *Node) Engines() []*engine.Store { return n.engines }

// Err returns why a role cannot serve, nil while all may.
func (n *Node) Err() error {
	var errs []error
	if n.meta != nil {
		errs = append(errs, n.meta.Err())
	}
	if n.storage != nil {
		errs = append(errs, n.storage.Err())
	}
	return errors.Join(errs...)
}

// Ready reports whether every role takes part in the cluster.
func (n *Node) Ready() bool {
	return n.Err() == nil && (n.meta == nil || n.meta.Ready()) && (n.storage == nil || n.storage.Ready())
}

// drainTime bounds how long requests under way may take at a shutdown.
const drainTime = 5 * time.Second

// Shutdown hands leaders over, finishes what was accepted, and closes.
func (n *Node) Shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	if n.meta != nil {
		n.meta.HandOver(ctx)
	}
	if err := n.server.Shutdown(ctx); err != nil {
		n.log.Info("requests were cut", "cause", err)
	}
	return n.Close()
}

// Close stops the node at once, in order, and waits for everything it started.
// Further calls return the first one's answer.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		var errs []error
		if n.server != nil {
			n.server.Close()
		} else if n.lis != nil {
			errs = append(errs, n.lis.Close())
		}
		if n.storage != nil {
			n.storage.Close()
		}
		if n.meta != nil {
			errs = append(errs, n.meta.Close())
		}
		if n.pool != nil {
			n.pool.Close()
		}
		for _, e := range n.engines {
			failed := e.Stats().State == engine.StateFailed
			err := e.Close()
			if failed {
				// It failed long before, and acknowledged nothing since.
				n.log.Warn("a failed store is closed: the next start verifies it", "store", e.Identity().Store, "dir", e.Dir(), "cause", err)
				continue
			}
			errs = append(errs, err)
		}
		if n.id != nil {
			errs = append(errs, n.id.Close())
		}
		n.closeErr = errors.Join(errs...)
	})
	return n.closeErr
}
