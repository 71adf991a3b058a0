package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"
	"storj.io/drpc"

	"dfsd/dfs"
	"dfsd/engine"
	"dfsd/sim/bubble"
	"dfsd/transport"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

// eventually waits, in a bubble's time, until a condition holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for range 6000 {
		if cond() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s: not within two minutes", what)
}

// cluster is a control plane, storage nodes with real engines and a client, on
// a network in memory. It lives in a synctest bubble.
type cluster struct {
	t      *testing.T
	net    *transport.Memory
	plane  *plane
	meta   *transport.Server
	nodes  map[string]*node
	client *transport.Pool // a client's
	peer   *transport.Pool // the meta node's
	rng    *rand.ChaCha8
	serial uint64
	gap    time.Duration // clients pause after a put's head; 0: not
}

// node is one storage node.
type node struct {
	c       *cluster
	name    string
	fs      []*vfs.MemFS // one a store
	start   uint64
	drawn   uint64     // random numbers
	id      dfs.NodeID // as saved
	cluster dfs.ClusterID

	engines []*engine.Store
	service *Service
	server  *transport.Server
	pool    *transport.Pool
	tune    func(*Options)
	tuneEng func(i int, o *engine.Options)
}

// inBubble runs a test with a cluster in a bubble.
func inBubble(t *testing.T, fn func(t *testing.T, c *cluster)) {
	bubble.Test(t, func(t *testing.T) {
		c := &cluster{
			t: t, net: transport.NewMemory(transport.MemoryOptions{Seed: 1, MinLatency: 100 * time.Microsecond}), plane: newPlane(),
			nodes: map[string]*node{}, rng: rand.NewChaCha8([32]byte{1}),
		}
		c.meta = transport.NewServer(transport.ServerOptions{
			Identity: func() transport.Identity {
				return transport.Identity{Cluster: c.plane.cluster, Kind: transport.KindNode, Node: 1}
			},
			OpenMethods: []string{"/dfsd.wire.Meta/Probe", "/dfsd.wire.Meta/Register"},
		})
		if err := wire.DRPCRegisterMeta(c.meta, c.plane); err != nil {
			t.Fatal(err)
		}
		lis, err := c.net.Host("meta").Listen("meta:1")
		if err != nil {
			t.Fatal(err)
		}
		c.meta.Start(lis)
		c.client = c.pool("client", transport.KindClient, 0)
		c.peer = c.pool("peer", transport.KindNode, 1)
		defer func() {
			for _, n := range c.nodes {
				n.stop()
			}
			c.client.Close()
			c.peer.Close()
			c.meta.Close()
		}()
		fn(t, c)
	})
}

func (c *cluster) pool(host string, kind transport.PeerKind, id dfs.NodeID) *transport.Pool {
	return transport.NewPool(transport.PoolOptions{
		Network:  c.net.Host(host),
		Identity: func() transport.Identity { return transport.Identity{Cluster: c.plane.cluster, Kind: kind, Node: id} },
	})
}

// node starts a node with a number of stores and waits until it serves.
func (c *cluster) node(name string, stores int, tune ...func(*Options)) *node {
	c.t.Helper()
	n := c.newNode(name, stores)
	for _, fn := range tune {
		n.tune = fn
	}
	n.run()
	n.ready()
	return n
}

func (c *cluster) newNode(name string, stores int) *node {
	n := &node{c: c, name: name}
	for range stores {
		n.fs = append(n.fs, vfs.NewCrashableMem())
	}
	c.nodes[name] = n
	return n
}

func (n *node) ready() {
	n.c.t.Helper()
	eventually(n.c.t, n.name+" is ready", func() bool {
		if err := n.service.Err(); err != nil {
			n.c.t.Fatal(err)
		}
		return n.service.Ready()
	})
}

func (n *node) mark() uint64 { return uint64(len(n.name))<<32 + uint64(n.name[len(n.name)-1]) }

// run starts the node on its file systems.
func (n *node) run() {
	t := n.c.t
	t.Helper()
	for i, fs := range n.fs {
		o := engine.Options{
			FS: fs, Dir: "store", SegmentSize: 512 << 10, CacheSize: 1 << 20, MemTableSize: 128 << 10, Capacity: 1 << 30, ReserveBytes: 4 << 20,
			NewMark: func() uint64 { n.drawn++; return n.mark()*1_000_000 + n.drawn*100 + uint64(i) },
		}
		if n.tuneEng != nil {
			n.tuneEng(i, &o)
		}
		e, err := engine.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		n.engines = append(n.engines, e)
	}
	n.start++
	identity := func() transport.Identity {
		return transport.Identity{Cluster: n.cluster, Kind: transport.KindNode, Node: n.id, Incarnation: dfs.Incarnation{Mark: n.mark(), Start: n.start}}
	}
	var mu sync.Mutex
	locked := func() transport.Identity { mu.Lock(); defer mu.Unlock(); return identity() }
	n.pool = transport.NewPool(transport.PoolOptions{Network: n.c.net.Host(n.name), Identity: locked})
	dial := func(addr string) drpc.Conn { return n.pool.Conn(addr) }
	opts := Options{
		Node:    func() dfs.NodeID { return locked().Node },
		Cluster: func() dfs.ClusterID { return locked().Cluster },
		Offer:   func() (dfs.Lineage, error) { return dfs.Lineage{Offered: []uint64{n.start}}, nil },
		SaveNode: func(c dfs.ClusterID, id dfs.NodeID, _ dfs.Epoch) error {
			mu.Lock()
			defer mu.Unlock()
			n.cluster, n.id = c, id
			return nil
		},
		Engines: n.engines, Dial: dial, Metas: metas.New(dial, []string{"meta:1"}),
		Registration: Registration{Name: n.name, Addr: n.name + ":1", Roles: dfs.RoleStorage},
		Incarnation:  func() dfs.Incarnation { return locked().Incarnation },
		Logger:       slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelInfo})).With("node", n.name),
	}
	random := rand.New(rand.NewPCG(7, n.mark()))
	var rmu sync.Mutex
	opts.Random = func() float64 { rmu.Lock(); defer rmu.Unlock(); return random.Float64() }
	if n.tune != nil {
		n.tune(&opts)
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	n.service = s
	n.server = transport.NewServer(transport.ServerOptions{Identity: locked})
	if err := s.Register(n.server); err != nil {
		t.Fatal(err)
	}
	lis, err := n.c.net.Host(n.name).Listen(n.name + ":1")
	if err != nil {
		t.Fatal(err)
	}
	n.server.Start(lis)
	s.Start()
}

// testLog writes log lines to the test's.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSuffix(p, []byte("\n")))
	return len(p), nil
}

// stop ends the node in order.
func (n *node) stop() {
	if n.service == nil {
		return
	}
	n.server.Close()
	n.service.Close()
	n.pool.Close()
	for _, e := range n.engines {
		_ = e.Close()
	}
	n.service, n.engines = nil, nil
}

// crash ends the node as a power loss does: what was not synced is gone.
func (n *node) crash() {
	var after []*vfs.MemFS
	for _, fs := range n.fs {
		after = append(after, fs.CrashClone(vfs.CrashCloneCfg{}))
	}
	n.c.net.Cut(n.name)
	n.stop()
	n.fs = after
}

// store is the ID of a node's store.
func (n *node) store(i int) dfs.StoreID { return n.engines[i].Identity().Store }

// block makes a block's identifier and content.
func (c *cluster) block(pg dfs.PGID, size int) (dfs.BlockID, []byte) {
	c.serial++
	data := make([]byte, size)
	_, _ = c.rng.Read(data)
	return dfs.BlockID{PG: pg, Ino: dfs.MakeIno(1, 7), Session: 3, Counter: c.serial}, data
}

// describe makes the description of a block that is stored as it is.
func describe(id dfs.BlockID, data []byte) dfs.BlockInfo {
	info := dfs.BlockInfo{Length: uint32(len(data))}
	for i := 0; i*dfs.ChunkSize < len(data); i++ {
		chunk := data[i*dfs.ChunkSize : min((i+1)*dfs.ChunkSize, len(data))]
		info.Chunks = append(info.Chunks, dfs.Chunk{Len: uint32(len(chunk)), Sum: dfs.ChunkSum(id, 0, i, chunk)})
	}
	return info
}

func headOf(id dfs.BlockID, store dfs.StoreID, epoch dfs.Epoch, data []byte) *wire.PutHead {
	info := describe(id, data)
	return &wire.PutHead{
		Id: id.Bytes(), Store: uint32(store), Epoch: uint64(epoch), Desc: wire.FromBlockInfo(&info),
		Hint: &wire.BlockHint{Ino: uint64(id.Ino), Offset: 11, Version: 12},
	}
}

// conn is a client's connection to the node of a store.
func (c *cluster) conn(pool *transport.Pool, store dfs.StoreID) wire.DRPCBlockClient {
	return wire.NewDRPCBlockClient(pool.Conn(c.plane.current().StoreAddr(store)))
}

// put stores a block at one store, as a client does.
func (c *cluster) put(store dfs.StoreID, id dfs.BlockID, epoch dfs.Epoch, data []byte) error {
	head, err := proto.Marshal(headOf(id, store, epoch, data))
	if err != nil {
		return err
	}
	return c.putFrames(store, head, data)
}

// putFrames sends a head and data in frames.
func (c *cluster) putFrames(store dfs.StoreID, head, data []byte) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	stream, err := c.conn(c.client, store).Put(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	if c.gap > 0 {
		if err := stream.Send(&wire.BlockFrame{Head: head}); err != nil {
			return err
		}
		head = nil
		time.Sleep(c.gap)
	}
	for first := true; first || len(data) > 0; first = false {
		f := &wire.BlockFrame{Data: data[:min(len(data), dfs.FrameSize)]}
		if first {
			f.Head = head
		}
		data = data[len(f.Data):]
		if err := stream.Send(f); err != nil {
			return err
		}
	}
	_, err = stream.CloseAndRecv()
	return err
}

// putAll stores a block at every acting member.
func (c *cluster) putAll(id dfs.BlockID, data []byte) error {
	set := c.plane.current().PG(id.PG).Active
	for _, s := range set.Stores {
		if err := c.put(s, id, set.Epoch, data); err != nil {
			return fmt.Errorf("%v: %w", s, err)
		}
	}
	return nil
}

// get reads a range of a block; the answer starts at a chunk.
func (c *cluster) get(store dfs.StoreID, id dfs.BlockID, offset, length uint32) (*wire.GetHead, []byte, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	stream, err := c.conn(c.client, store).Get(ctx, &wire.GetRequest{Id: id.Bytes(), Store: uint32(store), Offset: offset, Length: length})
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = stream.Close() }()
	var head *wire.GetHead
	var data []byte
	for {
		f, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return head, data, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if head == nil {
			head = &wire.GetHead{}
			if err := proto.Unmarshal(f.Head, head); err != nil {
				return nil, nil, err
			}
		} else if len(f.Head) > 0 {
			return nil, nil, errors.New("a second head")
		}
		data = append(data, f.Data...)
	}
}

// holds checks that a store has exactly these bytes.
func (c *cluster) holds(store dfs.StoreID, id dfs.BlockID, want []byte) {
	c.t.Helper()
	_, got, err := c.get(store, id, 0, 0)
	if err != nil {
		c.t.Errorf("%v at %v: %v", id, store, err)
	} else if !bytes.Equal(got, want) {
		c.t.Errorf("%v at %v: %d other bytes", id, store, len(got))
	}
}

// delete deletes a block at one store, as a meta node does.
func (c *cluster) delete(store dfs.StoreID, id dfs.BlockID, epoch dfs.Epoch) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	reply, err := c.conn(c.peer, store).Delete(ctx, &wire.DeleteRequest{Store: uint32(store), Items: []*wire.DeleteItem{{Id: id.Bytes(), Epoch: uint64(epoch)}}})
	if err != nil {
		return err
	}
	if k := dfs.Kind(reply.Kinds[0]); k != 0 {
		return k
	}
	return nil
}

func (c *cluster) deleteAll(id dfs.BlockID) error {
	set := c.plane.current().PG(id.PG).Active
	for _, s := range set.Stores {
		if err := c.delete(s, id, set.Epoch); err != nil {
			return fmt.Errorf("%v: %w", s, err)
		}
	}
	return nil
}

// wantKind fails unless err has the kind.
func wantKind(t *testing.T, what string, err error, want dfs.Kind) {
	t.Helper()
	if err == nil || dfs.KindOf(err) != want {
		t.Errorf("%s: %v; want kind %q", what, err, want)
	}
}
