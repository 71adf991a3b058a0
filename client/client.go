package client

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"storj.io/drpc"

	"dfsd/dfs"
	"dfsd/transport"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

// Defaults and limits, each with its reason.
const (
	// DefaultTimeout bounds one metadata operation, and the transfer of one
	// block: longer than an election and a failure detection together.
	DefaultTimeout = 60 * time.Second

	// DefaultConnectTimeout is how long Open waits for any answer at all. A
	// user who mistyped an address learns it soon.
	DefaultConnectTimeout = 10 * time.Second

	// DefaultHedge is the least time after which a slow store is given
	// company: shorter would double the load of a disk that is merely busy.
	DefaultHedge = 50 * time.Millisecond

	// DefaultHedgeFactor lets a store be as late as stores sometimes are.
	DefaultHedgeFactor = 3

	// windowBlocks is how many blocks of one file are under way at a time: it
	// hides the latency of the stores.
	windowBlocks = 4

	// readAhead and writeBehind bound the bytes of all blocks under way, beyond
	// the one that every file may always have: four windows of full blocks.
	readAhead   = 4 * windowBlocks * dfs.DefaultBlockSize
	writeBehind = 4 * windowBlocks * dfs.DefaultBlockSize

	// closeTimeout bounds the farewell to the control group: a session that is
	// not closed expires by itself.
	closeTimeout = 2 * time.Second
)

// Cred is the user on whose behalf a client acts. It is recorded with every
// mutation and owns what is created.
type Cred struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// Retry says how long the pauses between attempts are: each is drawn between 0
// and a bound that grows. Zero values mean the defaults of transport.Policy.
type Retry struct {
	Base   time.Duration // bound of the first pause
	Factor float64       // by which the bound grows
	Max    time.Duration // where it stops to grow
}

// Options configures a Client. The zero value of a field but Metas and Dial means
// its default.
type Options struct {
	// Metas are addresses of meta nodes, host:port. One that answers is enough.
	Metas []string

	// Dial returns a connection to host:port that is made when it is first used
	// and may be used by many goroutines, as those of a transport.Pool.
	Dial func(addr string) drpc.Conn

	// Cluster pins the cluster: another one is refused. Zero: the first that answers.
	Cluster dfs.ClusterID

	// OnCluster is told the cluster before anything is asked that only its
	// members may ask, so that connections can name it in their handshakes.
	OnCluster func(dfs.ClusterID)

	Cred           Cred
	ReadOnly       bool          // refuse mutations
	Timeout        time.Duration // of one metadata operation, and of one block; DefaultTimeout
	ConnectTimeout time.Duration // until a first meta node answers Open; DefaultConnectTimeout
	Hedge          time.Duration // least delay before a second store is asked; DefaultHedge
	HedgeFactor    float64       // that delay in 95th percentiles of the answers so far; DefaultHedgeFactor
	Retry          Retry         // pauses between attempts
	Holder         string        // names this process to people who look at sessions
	BlockSize      int           // bytes, 1..dfs.MaxBlockSize; 0: the cluster's
	Uncompressed   bool          // store blocks as they are
	SpreadReads    bool          // ask any replica of a group, not its leader: each has the leader's word fetched, which takes longer, but they share the work
	Logger         *slog.Logger

	// Rand returns random numbers, from many goroutines; nil: the process's generator.
	Rand func() uint64
}

func (o *Options) setDefaults() {
	o.Timeout = cmp.Or(o.Timeout, DefaultTimeout)
	o.ConnectTimeout = cmp.Or(o.ConnectTimeout, DefaultConnectTimeout)
	o.Hedge = cmp.Or(o.Hedge, DefaultHedge)
	o.HedgeFactor = cmp.Or(o.HedgeFactor, DefaultHedgeFactor)
	o.Holder = cmp.Or(o.Holder, "client")
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	if o.Rand == nil {
		o.Rand = rand.Uint64
	}
}

func (o *Options) validate() error {
	switch {
	case len(o.Metas) == 0:
		return dfs.Errorf(dfs.Invalid, "open client", "no address of a meta node is given")
	case o.Dial == nil:
		return dfs.Errorf(dfs.Invalid, "open client", "no way to connect is given")
	case o.BlockSize < 0 || o.BlockSize > dfs.MaxBlockSize:
		return dfs.Errorf(dfs.Invalid, "open client", "block size %d: want 1 to %d bytes", o.BlockSize, dfs.MaxBlockSize)
	}
	return nil
}

// Client speaks with one cluster. Its methods may be called from many
// goroutines. Paths are absolute, separated by slashes, and may hold any bytes
// but NUL; ".", ".." and symbolic links are followed as a POSIX system does.
//
// Errors are *dfs.Error with operation, path and cause. Unknown says that a
// mutation may or may not have taken effect; Unavailable that it has not.
type Client struct {
	opts    Options
	log     *slog.Logger
	book    *metas.Book
	cluster dfs.ClusterID
	maps    *mapCache
	health  *health
	buffers *buffers
	packers packers
	ahead   *semaphore.Weighted // bytes of blocks being read, see readAhead
	behind  *semaphore.Weighted // bytes of blocks being written, see writeBehind
	policy  transport.Policy    // of pauses
	seen    atomic.Uint64       // the highest version seen

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // operations and the goroutines they started

	opening lock // held while the session is looked for or opened; guards current
	current *session

	mu      sync.Mutex // guards what follows, and that nothing is added to work after closed
	closed  bool
	readers map[dfs.GroupID]*sharer[*wire.Query, *wire.QueryResult]
}

// Open finds the cluster and learns its map. Close the client. Errors:
// Unavailable when no meta node answers (the error says which were tried and
// why each failed), WrongCluster, Invalid.
func Open(ctx context.Context, opts Options) (*Client, error) {
	opts.setDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	c := &Client{
		opts:    opts,
		log:     opts.Logger,
		book:    metas.New(opts.Dial, opts.Metas),
		maps:    newMapCache(),
		health:  newHealth(opts.Hedge, opts.HedgeFactor),
		buffers: newBuffers(),
		ahead:   semaphore.NewWeighted(readAhead),
		behind:  semaphore.NewWeighted(writeBehind),
		opening: newLock(),
		readers: map[dfs.GroupID]*sharer[*wire.Query, *wire.QueryResult]{},
	}
	c.policy = transport.Policy{
		Base: opts.Retry.Base, Factor: opts.Retry.Factor, Max: opts.Retry.Max,
		Random: func() float64 { return float64(opts.Rand()>>11) / (1 << 53) },
	}
	c.book.SetDelay(c.policy.Delay)
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if err := c.connect(ctx); err != nil {
		c.Close()
		return nil, dfs.Wrap("reach the cluster", "", err)
	}
	return c, nil
}

// Connect makes a pool of connections that introduces itself as a client of the
// cluster, and opens a client over it. The pool's Identity, and the client's
// Dial and OnCluster, are filled in here. The returned function closes both.
func Connect(ctx context.Context, pool transport.PoolOptions, opts Options) (*Client, func(), error) {
	var cluster atomic.Pointer[dfs.ClusterID]
	cluster.Store(&opts.Cluster)
	pool.Identity = func() transport.Identity {
		return transport.Identity{Cluster: *cluster.Load(), Kind: transport.KindClient}
	}
	p := transport.NewPool(pool)
	opts.Dial = func(addr string) drpc.Conn { return p.Conn(addr) }
	opts.OnCluster = func(id dfs.ClusterID) { cluster.Store(&id) }
	c, err := Open(ctx, opts)
	if err != nil {
		p.Close()
		return nil, nil, err
	}
	return c, func() { c.Close(); p.Close() }, nil
}

// Cluster returns the identifier of the cluster.
func (c *Client) Cluster() dfs.ClusterID { return c.cluster }

// Close ends what is under way, waits for it, and closes the session. It may be
// called more than once.
func (c *Client) Close() {
	c.mu.Lock()
	again := c.closed
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	if again || c.current == nil {
		return
	}
	// Nothing runs any more: the session belongs to this goroutine.
	if s := c.current; s.usable() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		err := c.book.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, m wire.DRPCMetaClient) error {
			_, err := m.CloseSession(ctx, &wire.CloseSessionRequest{Session: uint64(s.id)})
			return err
		})
		if err != nil {
			c.log.Debug("the session is left to expire", "session", uint64(s.id), "cause", err)
		}
	}
}

// begin notes an operation that Close waits for, and returns a context that ends
// with the client too. The caller must call end.
func (c *Client) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, dfs.Errorf(dfs.Unavailable, "", "the client is closed")
	}
	c.work.Add(1)
	ctx, cancel := join(ctx, c.ctx)
	return ctx, func() { cancel(); c.work.Done() }, nil
}

// timed limits the time of one metadata operation or block.
func (c *Client) timed(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.opts.Timeout)
}

// run is an operation of the API without a limit of its own on the time.
func run[T any](ctx context.Context, c *Client, verb, object string, fn func(context.Context) (T, error)) (T, error) {
	ctx, end, err := c.begin(ctx)
	if err != nil {
		var none T
		return none, dfs.Wrap(verb, object, err)
	}
	defer end()
	out, err := fn(ctx)
	return out, dfs.Wrap(verb, object, err)
}

// op is a metadata operation of the API.
func op[T any](ctx context.Context, c *Client, verb, object string, fn func(context.Context) (T, error)) (T, error) {
	return run(ctx, c, verb, object, func(ctx context.Context) (T, error) {
		ctx, cancel := c.timed(ctx)
		defer cancel()
		return fn(ctx)
	})
}

// opErr is op for what returns nothing.
func opErr(ctx context.Context, c *Client, verb, object string, fn func(context.Context) error) error {
	_, err := op(ctx, c, verb, object, func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) })
	return err
}

// saw notes a version of an answer: later requests carry the highest.
func (c *Client) saw(v uint64) {
	for {
		old := c.seen.Load()
		if v <= old || c.seen.CompareAndSwap(old, v) {
			return
		}
	}
}

// pause waits before another attempt. It reports false when ctx ended.
func (c *Client) pause(ctx context.Context, attempt int) bool {
	t := time.NewTimer(c.policy.Delay(attempt) + time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// join returns a context that ends with either, for the cause of the first.
func join(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return ctx, func() { stop(); cancel(context.Canceled) }
}

// lock is a mutex that may be held across waits, and waited for until a context
// ends.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) acquire(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

func (l lock) release() { <-l }

// ended is the error of a wait that its context ended.
func ended(ctx context.Context) error {
	if ctx.Err() == context.DeadlineExceeded {
		return &dfs.Error{Kind: dfs.Deadline, Err: ctx.Err()}
	}
	return context.Cause(ctx)
}
