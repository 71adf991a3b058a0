package client_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/sim/bubble"
	"dfsd/transport"
	"dfsd/transport/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testCluster = dfs.ClusterID{0xc1}

const (
	groups     = 4
	sessionTTL = 30 * time.Second
	blockSize  = 256 << 10
)

// world is a cluster as a client sees it: two meta nodes that share the state
// of the control group and of the namespace groups, which are the real machines
// over Pebble, and stores in memory. Everything is on a simulated network.
type world struct {
	t      *testing.T
	net    *transport.Memory
	meta   *metaState
	stores map[dfs.StoreID]*store

	closers []func()
}

// metaState is the state of all groups.
type metaState struct {
	wire.DRPCMetaUnimplementedServer
	db       *pebble.DB
	machines map[dfs.GroupID]*namespace.Machine

	mu        sync.Mutex
	index     uint64
	m         *dfs.Map
	newer     chan struct{}
	sessions  map[dfs.SessionID]time.Time // live, and when they were renewed
	marks     map[uint64]dfs.SessionID
	highest   dfs.SessionID
	fences    uint64
	below     uint64          // the mark that came with the last renewal
	commands  []*wire.Command // in order of arrival
	queries   int
	shared    int                                            // requests that carried several
	batches   []int                                          // commands of each batch that came
	unbatched bool                                           // it is of a release that knows no batches
	before    func(ctx context.Context, g dfs.GroupID) error // asked before a mutation
	lose      bool                                           // the first answer to each command and session
	answered  map[string]bool
	crossing  chan struct{} // one element a command over several groups under way
	place     func(parent dfs.Ino, name []byte) dfs.GroupID
}

// node is one of the meta nodes; odd groups are led by the first.
type node struct {
	*metaState
	id dfs.NodeID
}

func (n *node) leads(g dfs.GroupID) error {
	if leader := dfs.NodeID(1 + g%2); leader != n.id {
		return &dfs.Error{Kind: dfs.NotLeader, Op: "ask group", LeaderHint: leader}
	}
	return nil
}

func (n *node) Probe(context.Context, *wire.ProbeRequest) (*wire.ProbeReply, error) {
	return &wire.ProbeReply{Cluster: testCluster.Bytes(), Node: uint32(n.id), Ready: true}, nil
}

func (n *node) GetMap(ctx context.Context, in *wire.GetMapRequest) (*wire.GetMapReply, error) {
	wait := time.NewTimer(max(time.Duration(in.Wait)*time.Millisecond, time.Second))
	defer wait.Stop()
	for {
		n.mu.Lock()
		m, newer := n.m, n.newer
		n.mu.Unlock()
		if uint64(m.Epoch) > in.Known && uint64(m.Epoch) >= in.Floor {
			return &wire.GetMapReply{Map: wire.FromMap(m)}, nil
		}
		select {
		case <-newer:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-wait.C:
			if in.Floor > 0 || in.Linearizable {
				return nil, dfs.Errorf(dfs.Unavailable, "get map", "not there yet")
			}
			return &wire.GetMapReply{}, nil
		}
	}
}

func (n *node) OpenSession(_ context.Context, in *wire.OpenSessionRequest) (*wire.OpenSessionReply, error) {
	if err := n.leads(dfs.ControlGroup); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	id := n.marks[in.Mark]
	if id == 0 {
		n.highest++
		id = n.highest
		n.marks[in.Mark] = id
	}
	n.sessions[id] = time.Now()
	if err := n.lostLocked(fmt.Sprint("session ", in.Mark)); err != nil {
		return nil, err
	}
	return &wire.OpenSessionReply{Session: uint64(id), Ttl: uint32(sessionTTL.Milliseconds())}, nil
}

func (n *node) KeepAlive(_ context.Context, in *wire.KeepAliveRequest) (*wire.KeepAliveReply, error) {
	if err := n.leads(dfs.ControlGroup); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	id := dfs.SessionID(in.Session)
	if _, ok := n.sessions[id]; !ok {
		return nil, dfs.Errorf(dfs.Fenced, "renew session", "session %d has expired", id)
	}
	n.sessions[id] = time.Now()
	n.below = in.Below
	n.mu.Unlock()
	// Each group learns the mark at once: one that is not honest has a commit refused.
	for g := dfs.GroupID(1); g <= groups; g++ {
		n.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Marks{Marks: &wire.MarksOp{Marks: []*wire.SessionMark{{Session: in.Session, Below: in.Below}}}}})
	}
	n.mu.Lock()
	return &wire.KeepAliveReply{Ttl: uint32(sessionTTL.Milliseconds())}, nil
}

func (n *node) CloseSession(_ context.Context, in *wire.CloseSessionRequest) (*wire.CloseSessionReply, error) {
	if err := n.leads(dfs.ControlGroup); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.sessions, dfs.SessionID(in.Session))
	return &wire.CloseSessionReply{}, nil
}

func (n *node) Mutate(ctx context.Context, in *wire.MutateRequest) (*wire.MutateReply, error) {
	g := dfs.GroupID(in.Group)
	if err := n.leads(g); err != nil {
		return nil, err
	}
	cmd := &wire.Command{}
	if err := proto.Unmarshal(in.Command, cmd); err != nil {
		return nil, dfs.Errorf(dfs.Invalid, "change", "malformed command")
	}
	n.mu.Lock()
	n.commands = append(n.commands, cmd)
	n.mu.Unlock()
	if err := n.asked(ctx, g); err != nil {
		return nil, err
	}
	res, err := n.mutate(ctx, g, cmd)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return &wire.MutateReply{Result: res}, n.lostLocked(fmt.Sprint("command ", cmd.Session, " ", cmd.Seq))
}

// asked lets the test have a say before a group changes.
func (n *node) asked(ctx context.Context, g dfs.GroupID) error {
	n.mu.Lock()
	before := n.before
	n.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(ctx, g)
}

func (n *node) MutateMany(ctx context.Context, in *wire.MutateManyRequest) (*wire.MutateManyReply, error) {
	if err := n.leads(dfs.GroupID(in.Group)); err != nil {
		return nil, err
	}
	out := &wire.MutateManyReply{Answers: make([]*wire.MutateAnswer, len(in.Commands))}
	var wg sync.WaitGroup
	for i, cmd := range in.Commands {
		wg.Go(func() {
			a := &wire.MutateAnswer{}
			if reply, err := n.Mutate(ctx, &wire.MutateRequest{Group: in.Group, Command: cmd}); err != nil {
				a.Refusal = wire.FromError(err)
			} else {
				a.Result = reply.Result
			}
			out.Answers[i] = a
		})
	}
	wg.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shared++
	return out, n.lostLocked(fmt.Sprint("commands ", in.Commands))
}

func (n *node) MutateBatch(ctx context.Context, in *wire.MutateBatchRequest) (*wire.MutateBatchReply, error) {
	g := dfs.GroupID(in.Group)
	if err := n.leads(g); err != nil {
		return nil, err
	}
	op := &wire.BatchOp{}
	if in.Stop {
		op.Refusals = wire.BatchOp_STOP
	}
	for _, data := range in.Commands {
		cmd := &wire.Command{}
		if err := proto.Unmarshal(data, cmd); err != nil {
			return nil, dfs.Errorf(dfs.Invalid, "change", "malformed command")
		}
		op.Commands = append(op.Commands, cmd)
	}
	n.mu.Lock()
	before, unbatched := n.before, n.unbatched
	n.batches = append(n.batches, len(op.Commands))
	n.mu.Unlock()
	if unbatched {
		return nil, dfs.Errorf(dfs.Unsupported, "serve", "no such method")
	}
	if before != nil {
		if err := before(ctx, g); err != nil {
			return nil, err
		}
	}
	res := n.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Batch{Batch: op}})
	if err := res.ToError("change", g.String()); err != nil {
		return nil, err
	}
	out := &wire.MutateBatchReply{}
	for _, m := range res.Members {
		a := &wire.MutateAnswer{Result: &wire.Result{}}
		if err := proto.Unmarshal(m, a.Result); err != nil {
			return nil, err
		}
		out.Answers = append(out.Answers, a)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.commands = append(n.commands, op.Commands...)
	return out, n.lostLocked(fmt.Sprint("batch ", in.Commands))
}

func (n *node) ReadMany(ctx context.Context, in *wire.ReadManyRequest) (*wire.ReadManyReply, error) {
	out := &wire.ReadManyReply{}
	for _, q := range in.Queries {
		a := &wire.ReadAnswer{}
		if reply, err := n.Read(ctx, &wire.ReadRequest{Group: in.Group, Query: q}); err != nil {
			a.Refusal = wire.FromError(err)
		} else {
			a.Result = reply.Result
		}
		out.Answers = append(out.Answers, a)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shared++
	return out, nil
}

// lostLocked is an error when this answer is to be lost.
func (s *metaState) lostLocked(what string) error {
	if !s.lose || s.answered[what] {
		return nil
	}
	s.answered[what] = true
	return dfs.Errorf(dfs.Unknown, "answer", "lost, as the test says")
}

func (n *node) Read(_ context.Context, in *wire.ReadRequest) (*wire.ReadReply, error) {
	g := dfs.GroupID(in.Group)
	if g == 0 || g > groups {
		return nil, dfs.Errorf(dfs.Invalid, "read", "no group %v", g)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.queries++
	res, err := namespace.Query(raftgroup.NewReader(n.db, groupPrefix(g)), g, in.Query)
	return &wire.ReadReply{Result: res}, err
}

func groupPrefix(g dfs.GroupID) []byte { return []byte{byte(g)} }

// apply commits an entry of a group.
func (s *metaState) apply(g dfs.GroupID, e *wire.LogEntry) *wire.Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Version = uint64(time.Now().UnixMilli()) << 16
	data, err := proto.Marshal(e)
	if err != nil {
		panic(err)
	}
	s.index++
	batch := s.db.NewIndexedBatch()
	reply, err := s.machines[g].Apply(raftgroup.NewTx(batch, groupPrefix(g)), raftgroup.Entry{Index: s.index, Term: 1, Data: data})
	if err != nil {
		panic(err)
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		panic(err)
	}
	res := &wire.Result{}
	if err := proto.Unmarshal(reply, res); err != nil {
		panic(err)
	}
	return res
}

// expire fences every session in every group.
func (s *metaState) expire() {
	s.mu.Lock()
	clear(s.sessions)
	s.fences++
	fence := &wire.FenceOp{Highest: uint64(s.highest), Index: s.fences}
	s.mu.Unlock()
	for g := range dfs.GroupID(groups) {
		s.apply(g+1, &wire.LogEntry{Entry: &wire.LogEntry_Fence{Fence: fence}})
	}
}

// publish changes the map.
func (s *metaState) publish(change func(m *dfs.Map)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := *s.m
	m.PGs = nil
	for _, p := range s.m.PGs {
		m.PGs = append(m.PGs, p.Clone())
	}
	m.Epoch++
	change(&m)
	s.m = &m
	close(s.newer)
	s.newer = make(chan struct{})
}

// check runs the namespace's own checks over all groups.
func (s *metaState) check(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	readers := map[dfs.GroupID]raftgroup.Reader{}
	for g := range s.machines {
		readers[g] = raftgroup.NewReader(s.db, groupPrefix(g))
		for _, err := range namespace.Check(readers[g]) {
			t.Errorf("group %v: %v", g, err)
		}
		if intents, err := namespace.Intents(readers[g], 0, 10); err != nil || len(intents) > 0 {
			t.Errorf("group %v: intents are left: %v, %v", g, intents, err)
		}
	}
	for _, err := range namespace.CheckTree(readers) {
		t.Errorf("tree: %v", err)
	}
}

// intercept sets what is asked before a mutation.
func (s *metaState) intercept(f func(ctx context.Context, g dfs.GroupID) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

func (s *metaState) take() []*wire.Command {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.commands
	s.commands = nil
	return out
}

// store keeps blocks in memory and does as a test says.
type store struct {
	wire.DRPCBlockUnimplementedServer
	id dfs.StoreID

	mu     sync.Mutex
	blocks map[dfs.BlockID]*block
	tried  map[dfs.BlockID]bool // every block ID that a put named
	reused []dfs.BlockID        // named by two
	gets   int

	onPut func(ctx context.Context, id dfs.BlockID, epoch dfs.Epoch) error // after the block came in
	onGet func(ctx context.Context, id dfs.BlockID) error
}

type block struct {
	desc    *wire.BlockDesc
	payload []byte
}

func (s *store) set(onPut func(context.Context, dfs.BlockID, dfs.Epoch) error, onGet func(context.Context, dfs.BlockID) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onPut, s.onGet = onPut, onGet
}

func (s *store) Put(stream wire.DRPCBlock_PutStream) error {
	var head *wire.PutHead
	var payload []byte
	for stored := -1; len(payload) != stored; {
		frame, err := stream.Recv()
		if err != nil {
			return err
		}
		if head == nil {
			head = &wire.PutHead{}
			if err := proto.Unmarshal(frame.Head, head); err != nil {
				return err
			}
			info, err := head.Desc.ToDFS()
			if err != nil {
				return err
			}
			stored = info.StoredLen()
		}
		payload = append(payload, frame.Data...)
	}
	id, err := dfs.ParseBlockID(head.Id)
	if err != nil {
		return err
	}
	info, err := head.Desc.ToDFS()
	if err != nil {
		return err
	}
	at := 0
	for n, c := range info.Chunks {
		if dfs.ChunkSum(id, 0, n, payload[at:at+int(c.Len)]) != c.Sum {
			return dfs.Errorf(dfs.Corrupt, "put", "chunk %d", n)
		}
		at += int(c.Len)
	}
	s.mu.Lock()
	onPut := s.onPut
	if s.tried[id] {
		s.reused = append(s.reused, id)
	}
	s.tried[id] = true
	s.mu.Unlock()
	if dfs.StoreID(head.Store) != s.id {
		return dfs.Errorf(dfs.Invalid, "put", "store %d is not here", head.Store)
	}
	if onPut != nil {
		if err := onPut(stream.Context(), id, dfs.Epoch(head.Epoch)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.blocks[id] = &block{desc: head.Desc, payload: payload}
	s.mu.Unlock()
	return stream.SendAndClose(&wire.PutReply{})
}

func (s *store) Get(in *wire.GetRequest, stream wire.DRPCBlock_GetStream) error {
	id, err := dfs.ParseBlockID(in.Id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.gets++
	onGet, b := s.onGet, s.blocks[id]
	s.mu.Unlock()
	if onGet != nil {
		if err := onGet(stream.Context(), id); err != nil {
			return err
		}
	}
	if b == nil {
		return dfs.Errorf(dfs.NotExist, "get", "block %v", id)
	}
	info, err := b.desc.ToDFS()
	if err != nil {
		return err
	}
	first, end := info.Range(in.Offset, in.Length)
	from, to := 0, 0
	for n, c := range info.Chunks[:end] {
		if n < first {
			from += int(c.Len)
		}
		to += int(c.Len)
	}
	head, err := proto.Marshal(&wire.GetHead{Desc: b.desc, First: uint32(first)})
	if err != nil {
		return err
	}
	for data := b.payload[from:to]; head != nil || len(data) > 0; head = nil {
		n := min(len(data), dfs.FrameSize)
		if err := stream.Send(&wire.BlockFrame{Head: head, Data: data[:n]}); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (s *store) held() map[dfs.BlockID]*block {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[dfs.BlockID]*block{}
	for id, b := range s.blocks {
		out[id] = b
	}
	return out
}

// worldOptions says what is unusual.
type worldOptions struct {
	stores      int       // default 4
	class       dfs.Class // default rep3
	loseReplies bool
	dropReply   func(peer transport.Peer, method string, err error) bool
	namespace   namespace.Options
	setMap      func(*dfs.Map)
	maxLatency  time.Duration
}

// inWorld runs a test in virtual time. Goroutines that outlive it fail it.
func inWorld(t *testing.T, opts worldOptions, f func(t *testing.T, w *world)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, opts)
		defer w.close()
		f(t, w)
		for id, s := range w.stores {
			if len(s.reused) > 0 {
				t.Errorf("store %v: block IDs that were put twice: %v", id, s.reused)
			}
		}
	})
}

func newWorld(t *testing.T, opts worldOptions) *world {
	if opts.stores == 0 {
		opts.stores = 4
	}
	if opts.class.IsZero() {
		opts.class = dfs.Replicated(3)
	}
	w := &world{t: t, net: transport.NewMemory(transport.MemoryOptions{Seed: 1, MinLatency: 100 * time.Microsecond, MaxLatency: max(opts.maxLatency, time.Millisecond)}), stores: map[dfs.StoreID]*store{}}
	db, err := pebble.Open("db", &pebble.Options{FS: vfs.NewMem(), Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	w.closers = append(w.closers, func() { _ = db.Close() })
	s := &metaState{
		db: db, machines: map[dfs.GroupID]*namespace.Machine{}, newer: make(chan struct{}),
		lose: opts.loseReplies, answered: map[string]bool{}, sessions: map[dfs.SessionID]time.Time{}, marks: map[uint64]dfs.SessionID{},
		crossing: make(chan struct{}, 1), place: func(parent dfs.Ino, name []byte) dfs.GroupID {
			return dfs.GroupID(1 + (int(parent)+len(name)+int(name[0]))%groups)
		},
	}
	w.meta = s
	s.m = testMap(opts.stores, opts.class)
	if opts.setMap != nil {
		opts.setMap(s.m)
	}
	for g := dfs.GroupID(1); g <= groups; g++ {
		s.machines[g] = namespace.New(g, opts.namespace)
		s.apply(g, &wire.LogEntry{Entry: &wire.LogEntry_Init{Init: &wire.InitOp{Group: uint32(g), DefaultClass: opts.class.String(), Level: namespace.NewestLevel}}})
	}
	for id := dfs.NodeID(1); id <= 2; id++ {
		host := fmt.Sprintf("m%d", id)
		w.serve(host, opts, func(srv *transport.Server) error { return wire.DRPCRegisterMeta(srv, &node{s, id}) })
	}
	for _, st := range s.m.Stores {
		b := &store{id: st.ID, blocks: map[dfs.BlockID]*block{}, tried: map[dfs.BlockID]bool{}}
		w.stores[st.ID] = b
		w.serve(st.ID.String(), opts, func(srv *transport.Server) error { return wire.DRPCRegisterBlock(srv, b) })
	}
	return w
}

func (w *world) serve(host string, opts worldOptions, register func(*transport.Server) error) {
	srv := transport.NewServer(transport.ServerOptions{
		Identity: func() transport.Identity {
			return transport.Identity{Cluster: testCluster, Kind: transport.KindNode, Node: 1}
		},
		OpenMethods: []string{"/dfsd.wire.Meta/Probe"},
		DropReply:   opts.dropReply,
	})
	if err := register(srv); err != nil {
		w.t.Fatal(err)
	}
	lis, err := w.net.Host(host).Listen(host + ":1")
	if err != nil {
		w.t.Fatal(err)
	}
	srv.Start(lis)
	w.closers = append(w.closers, srv.Close)
}

func (w *world) close() {
	for _, f := range slices.Backward(w.closers) {
		f()
	}
}

// client opens a client; its close is the caller's when it wants it earlier.
func (w *world) client(change func(*client.Options)) *client.Client {
	w.t.Helper()
	c, err := w.open(change)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) open(change func(*client.Options)) (*client.Client, error) {
	r := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	opts := client.Options{
		Metas: []string{"m1:1", "m2:1"},
		Rand: func() uint64 {
			mu.Lock()
			defer mu.Unlock()
			return r.Uint64()
		},
	}
	if change != nil {
		change(&opts)
	}
	c, stop, err := client.Connect(w.t.Context(), transport.PoolOptions{Network: w.net.Host("cli")}, opts)
	if err == nil {
		w.closers = append(w.closers, stop)
	}
	return c, err
}

// testMap is a map of stores, one a node, and placement groups over them.
func testMap(stores int, class dfs.Class) *dfs.Map {
	m := &dfs.Map{Cluster: testCluster, Epoch: 5, DefaultClass: class, BlockSize: blockSize}
	for g := range groups + 1 {
		m.Groups = append(m.Groups, &dfs.Group{ID: dfs.GroupID(g), Replicas: []dfs.NodeID{1, 2}})
	}
	for n := dfs.NodeID(1); n <= 2; n++ {
		m.Nodes = append(m.Nodes, &dfs.Node{ID: n, Name: fmt.Sprint("m", n), Addr: fmt.Sprintf("m%d:1", n), Roles: dfs.RoleMeta})
	}
	for i := range stores {
		id := dfs.StoreID(i + 1)
		n := dfs.NodeID(10 + i)
		m.Nodes = append(m.Nodes, &dfs.Node{ID: n, Name: id.String(), Addr: id.String() + ":1", Roles: dfs.RoleStorage})
		m.Stores = append(m.Stores, &dfs.Store{ID: id, Node: n, Capacity: 1 << 30, State: dfs.StoreUp})
	}
	for i := range 8 {
		p := &dfs.PG{ID: dfs.PGID(i + 1), Class: class}
		for k := range min(class.Width(), stores) {
			p.Target = append(p.Target, dfs.StoreID(1+(i+k)%stores))
		}
		slices.Sort(p.Target)
		p.Active = dfs.ActingSet{Epoch: 5, Stores: p.Target}
		for _, s := range p.Target {
			p.Members = append(p.Members, dfs.Member{Store: s, Complete: 5, Joined: 5})
		}
		m.PGs = append(m.PGs, p)
	}
	return m
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(f string, a ...any) {
	panic(fmt.Sprintf(f, a...))
}

func wantKind(t *testing.T, err error, kind dfs.Kind) {
	t.Helper()
	if err == nil || dfs.KindOf(err) != kind {
		t.Errorf("error %v of kind %q, want kind %q", err, dfs.KindOf(err), kind)
	}
}

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// content makes bytes of which about half can be compressed.
func content(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	out := make([]byte, 0, n+64)
	for len(out) < n {
		if r.IntN(2) == 0 {
			out = append(out, bytes.Repeat([]byte{byte(r.Uint32())}, r.IntN(30000))...)
			continue
		}
		for range r.IntN(2000) {
			out = append(out, byte(r.Uint32()))
		}
	}
	return out[:n]
}
