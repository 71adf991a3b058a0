package meta

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"
	"storj.io/drpc"

	"dfsd/dfs"
	"dfsd/meta/control"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/repair"
	"dfsd/transport"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

// Peer is one of the meta nodes that the configuration lists.
type Peer struct {
	Name string
	Addr string // host:port
}

// Membership is what a node's data directory remembers of its cluster.
type Membership struct {
	Cluster  dfs.ClusterID
	Node     dfs.NodeID
	Founding bool // from just before this node makes a cluster's groups until they have their first state
	Hosted   bool // replicas were opened here once: Raft stores that are missing are lost, not new
	Aside    bool // the Raft stores are those of the number before this one: they are put aside before any is made
}

// Identity is the node's identity in its data directory. Implementations are
// safe for concurrent use.
type Identity interface {
	// Incarnation returns this start's incarnation.
	Incarnation() dfs.Incarnation
	// Lineage returns what the directory remembers of its starts, and the map
	// epoch since which the accepted one is on record.
	Lineage() (dfs.Lineage, dfs.Epoch)
	// Offer adds this start to the lineage, durably: before anything that carries
	// it is sent to the control group. It may be repeated.
	Offer() error
	// Accept notes, durably, that this start is on record since a map epoch.
	Accept(since dfs.Epoch) error

	// InPlace returns an error when the data directory is another one by now than at the
	// start, such as after its disk was mounted.
	InPlace() error

	Membership() Membership
	// SaveMembership stores what the node learnt, durably.
	SaveMembership(Membership) error

	// Renewing reports whether this node is about to join anew: then its Raft stores
	// are not opened any more. Renew makes it so, durably, with a mark to be known
	// by unless it has one, and returns the incarnation to register. Renewed stores,
	// at once and durably, what came of it: mark and number change, and the
	// stores of the old number are to be put aside.
	Renewing() bool
	Renew(mark uint64) (dfs.Incarnation, error)
	Renewed(node dfs.NodeID, since dfs.Epoch) error
}

// Options configures a Service. Zero values of tunables mean the defaults.
type Options struct {
	FS       vfs.FS
	Dir      string // of the Raft stores
	Name     string
	Addr     string // where peers reach this node
	Roles    dfs.Role
	Release  string
	Labels   map[string]string
	Peers    []Peer        // every listed meta node, this one included
	Cluster  dfs.ClusterID // make and join no other; zero: any
	Identity Identity
	Dial     func(addr string) drpc.Conn
	Identify func(ctx context.Context, addr string) (transport.Identity, error) // who answers there
	Metas    *metas.Book

	Groups       int           // namespace groups of a new cluster; default 8
	DefaultClass dfs.Class     // of a new cluster; default rep3
	BlockSize    int           // of a new cluster, bytes; default 4 MiB
	PGsPerClass  int           // of a new cluster; default 256
	Grace        time.Duration // from down to out; default 10 min
	Heartbeat    time.Duration // default 500 ms
	SessionTTL   time.Duration // default 30 s
	HistoryKeep  time.Duration // default 60 s
	Reserve      uint64        // bytes free on the disk of Dir below which only what frees space is taken; default 512 MiB
	Health       repair.HealthCheck
	Raft         raftgroup.Options // FS, Dir, Node and the callbacks are filled in here
	Namespace    namespace.Options
	Planner      repair.Settings

	Now     func() time.Time // the wall clock, which may jump; default time.Now
	NewMark func() uint64    // random numbers that are never 0
	OnMap   func(*dfs.Map)
	Logger  *slog.Logger

	FormStep func(dfs.GroupID, FormStep) // for tests: called before each step of a new group, which waits for it
	TxnStep  func(dfs.GroupID, TxnStep)  // likewise, at each step of an operation over several groups
	Hooks    Hooks
}

func (o *Options) setDefaults() {
	o.Groups = cmp.Or(o.Groups, 8)
	if o.DefaultClass.IsZero() {
		o.DefaultClass = dfs.Replicated(3)
	}
	o.BlockSize = cmp.Or(o.BlockSize, dfs.DefaultBlockSize)
	o.PGsPerClass = cmp.Or(o.PGsPerClass, 256)
	o.Grace = cmp.Or(o.Grace, 10*time.Minute)
	o.Heartbeat = cmp.Or(o.Heartbeat, 500*time.Millisecond)
	o.SessionTTL = cmp.Or(o.SessionTTL, dfs.SessionTTL)
	o.HistoryKeep = cmp.Or(o.HistoryKeep, dfs.HistoryKeep)
	o.Reserve = cmp.Or(o.Reserve, defaultReserve)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	slices.SortFunc(o.Peers, func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
}

// Service is one meta node.
type Service struct {
	opts Options
	log  *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	host  atomic.Pointer[raftgroup.Host] // nil until the node belongs to a cluster
	links *links
	maps  *published
	beats *registry
	lease *sessions
	plan  *planner
	place *placer
	rates *rates
	space *space

	agenda *agenda
	txns   *txns
	levels *levels

	wake struct { // leader loops run at once instead of at their next tick
		control chan struct{}
	}

	waiting atomic.Pointer[string] // why the node is not part of a cluster yet
	away    atomic.Bool            // the host has ended, and another is not open yet
	damaged atomic.Bool            // the log is damaged: the node asks to join anew

	restarts atomic.Uint64         // of the host, after damage that it met
	failed   atomic.Pointer[error] // why it never will be
}

// New makes a Service that is not started.
func New(opts Options) *Service {
	opts.setDefaults()
	s := &Service{opts: opts, log: opts.Logger.With("role", "meta")}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.links = newLinks(s)
	s.maps = newPublished()
	s.beats = newRegistry(s)
	s.lease = newSessions()
	s.plan = newPlanner(s)
	s.place, s.rates = newPlacer(), newRates()
	s.space = newSpace(s)
	s.agenda = newAgenda()
	s.txns = newTxns(s)
	s.levels = newLevels()
	s.wake.control = make(chan struct{}, 1)
	s.setWaiting("starting")
	return s
}

// RegisterServices makes the services known to a server.
func (s *Service) RegisterServices(mux drpc.Mux) error {
	if err := wire.DRPCRegisterMeta(mux, s); err != nil {
		return err
	}
	return wire.DRPCRegisterRaft(mux, &raftServer{s})
}

// Start forms or joins a cluster and serves, in the background.
func (s *Service) Start() {
	s.wg.Go(func() {
		if err := s.run(); err != nil && s.ctx.Err() == nil {
			s.fail(err)
		}
	})
}

// fail ends the role for good.
func (s *Service) fail(err error) {
	s.log.Error("the meta role cannot serve", "cause", err)
	s.failed.Store(&err)
}

// Err returns why the service cannot serve, nil while it may.
func (s *Service) Err() error {
	if p := s.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// Ready reports whether this node takes part in the control group and has a map.
func (s *Service) Ready() bool {
	return s.host.Load() != nil && !s.away.Load() && s.maps.current() != nil
}

// Map returns the newest applied cluster map, nil before there is one.
func (s *Service) Map() *dfs.Map { return s.maps.current() }

// Groups returns the state of this node's replicas.
func (s *Service) Groups() []raftgroup.Status {
	if h := s.host.Load(); h != nil {
		return h.Statuses()
	}
	return nil
}

// Log describes the log store of every group; all zero before there is one.
func (s *Service) Log() raftgroup.LogStats {
	if h := s.host.Load(); h != nil {
		return h.LogStats()
	}
	return raftgroup.LogStats{}
}

// Snapshots describes the snapshots that are on their way to other meta nodes and
// from them, and what all came to.
func (s *Service) Snapshots() ([]raftgroup.SnapshotStatus, raftgroup.SnapshotStats) {
	if h := s.host.Load(); h != nil {
		return h.Snapshots(), h.SnapshotStats()
	}
	return nil, raftgroup.SnapshotStats{}
}

// HandOver moves leadership of every group to other nodes, as far as ctx allows.
func (s *Service) HandOver(ctx context.Context) {
	if h := s.host.Load(); h != nil {
		h.TransferAll(ctx)
	}
}

// Close stops everything and waits for it.
func (s *Service) Close() error {
	s.cancel()
	s.maps.close()
	s.wg.Wait()
	s.txns.close()
	s.links.close()
	if h := s.host.Load(); h != nil {
		return h.Close()
	}
	return nil
}

// run is the life of the node: into a cluster, then the loops.
func (s *Service) run() error {
	if err := s.enter(); err != nil {
		return err
	}
	s.wg.Go(s.tendHost)
	s.wg.Go(s.asideLoop)
	s.wg.Go(s.registerLoop)
	s.wg.Go(s.reportLoop)
	s.wg.Go(s.controlLoop)
	s.wg.Go(s.sessionLoop)
	s.wg.Go(s.balanceLoop)
	s.wg.Go(s.spaceLoop)
	s.wg.Go(s.hostLoop)
	s.wg.Go(s.tendLoop)
	return nil
}

// raft returns the host, or why there is none.
func (s *Service) raft() (*raftgroup.Host, error) {
	if err := s.Err(); err != nil { // above all: a copy that was refused serves nobody
		return nil, &dfs.Error{Kind: dfs.Unavailable, Op: "serve", Object: s.opts.Name, Text: "the meta role has ended", Err: err}
	}
	if h := s.host.Load(); h != nil && !s.away.Load() {
		return h, nil
	}
	return nil, dfs.Errorf(dfs.Unavailable, "serve", "not part of a cluster yet: %s", *s.waiting.Load())
}

func (s *Service) setWaiting(why string) {
	if old := s.waiting.Swap(&why); old == nil || *old != why {
		s.log.Info("not part of a cluster yet", "waiting", why)
	}
}

// openHost opens the Raft host under the node's number.
func (s *Service) openHost() (*raftgroup.Host, error) {
	o := s.opts.Raft
	o.FS, o.Dir, o.Node, o.Logger = s.opts.FS, s.opts.Dir, s.opts.Identity.Membership().Node, s.opts.Logger
	o.StateMachine = func(g dfs.GroupID) raftgroup.StateMachine {
		if g == dfs.ControlGroup {
			return control.New(s.opts.Planner.Rules)
		}
		return namespace.New(g, s.opts.Namespace)
	}
	o.Reserve = s.opts.Reserve
	o.Send = s.links.send
	o.AcceptGroup = s.acceptGroup
	o.OpenSnapshot = s.links.openSnapshot
	o.OnApplied = func(g dfs.GroupID, _ uint64) {
		if g == dfs.ControlGroup {
			s.maps.poke()
		}
		s.txns.applied(g)
		s.agenda.touch(g)
	}
	o.OnLeaderChange = func(g dfs.GroupID, leader dfs.NodeID, _ uint64) {
		s.opts.Metas.SetLeader(g, leader)
		s.agenda.lead(g, leader == o.Node)
		if g == dfs.ControlGroup {
			s.wakeControl()
		}
	}
	return raftgroup.Open(o)
}

func (s *Service) wakeControl() {
	select {
	case s.wake.control <- struct{}{}:
	default:
	}
}

// leads reports whether this node leads a group, and in which term.
func (s *Service) leads(g dfs.GroupID) (uint64, bool) {
	h := s.host.Load()
	if h == nil {
		return 0, false
	}
	o, _ := h.Leader(g)
	return o.Term, o.Leader != 0 && o.Leader == s.opts.Identity.Membership().Node
}

// controlLeader refuses with a hint unless this node leads the control group.
func (s *Service) controlLeader() (*raftgroup.Host, error) {
	h, err := s.raft()
	if err != nil {
		return nil, err
	}
	if o, ok := h.Leader(dfs.ControlGroup); !ok || o.Leader != s.opts.Identity.Membership().Node {
		return nil, &dfs.Error{Kind: dfs.NotLeader, Op: "ask the control group", LeaderHint: o.Leader}
	}
	return h, nil
}

// proposeControl commits an entry of the control group and returns its answer.
func (s *Service) proposeControl(ctx context.Context, e *wire.ControlEntry) (*wire.ControlReply, error) {
	h, err := s.raft()
	if err != nil {
		return nil, err
	}
	e.Now = s.opts.Now().UnixMilli()
	data, err := proto.Marshal(e)
	if err != nil {
		return nil, err
	}
	out, err := h.Propose(ctx, dfs.ControlGroup, data)
	if err != nil {
		return nil, err
	}
	reply := &wire.ControlReply{}
	if err := proto.Unmarshal(out, reply); err != nil {
		return nil, err
	}
	if reply.Kind != 0 || reply.Text != "" {
		return nil, &dfs.Error{Kind: dfs.Kind(reply.Kind), Text: reply.Text}
	}
	return reply, nil
}

// sleep waits for a duration or the end of the service, and reports whether
// the service goes on.
func (s *Service) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// View calls fn with the applied state of this node's replica of a group,
// which may be behind: for checks and tools.
func (s *Service) View(g dfs.GroupID, fn func(raftgroup.Reader) error) error {
	h, err := s.raft()
	if err != nil {
		return err
	}
	return h.ReadLocal(g, fn)
}
