package raftgroup

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	"golang.org/x/time/rate"

	"dfsd/dfs"
)

// Host is this node's end of all its Raft groups. Its methods may be called
// from any goroutine.
type Host struct {
	opts  Options
	log   *slog.Logger
	store *logStore
	state *pebble.DB

	workers   *scheduler
	appliers  *scheduler
	writer    *logWriter
	beats     *beats
	awake     awakeSet
	holders   holders
	applying  sync.Mutex    // see drive
	queued    *budget       // of proposals
	messages  *budget       // of inboxes
	sequence  atomic.Uint64 // of proposals and reads
	spare     atomic.Bool   // see Spare
	transfers chan struct{} // one token for each snapshot that may be sent
	receiving chan struct{} // one token for each that may be received
	waiting   atomic.Int64  // transfers that wait to go on
	pace      *rate.Limiter // bytes of snapshots, both ways
	snaps     snapshotCounts

	ctx     context.Context // ends when Close begins
	cancel  context.CancelFunc
	closing chan struct{}  // closed when Close begins
	failed  chan struct{}  // closed at the first failure of a store
	loops   sync.WaitGroup // workers, appliers, writer, ticker, reminder, janitor
	tasks   sync.WaitGroup // snapshots sent and installed
	users   sync.WaitGroup // callers that read the stores
	once    sync.Once
	closed  chan struct{} // closed when everything is released
	err     error         // of closing; set before closed is closed

	mu     sync.Mutex
	groups map[dfs.GroupID]*replica
	order  []*replica                    // of groups, ascending, for sorted; nil once they change
	dying  map[dfs.GroupID]bool          // whose replica is being destroyed: none is made meanwhile
	owned  map[dfs.GroupID]chan struct{} // see own
	ended  bool                          // Close has begun: no task or user may start
	why    error                         // of the failure; set before failed is closed
	opened bool                          // the stores are open, and a failure of one ends the host

	stateFault error // of the state store while it is opened

	silent atomic.Bool // the log is damaged: nothing is sent any more
}

// Open opens the host of a data directory, finishes what a crash interrupted
// and starts every replica found there. A damaged state store is put aside and
// begun anew. Kinds of errors: Corrupt when the log has lost what this node may
// have acknowledged, see IsLogDamage; Invalid when the directory is another node's.
func Open(o Options) (*Host, error) {
	o.setDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	h := &Host{
		opts: o, log: o.Logger,
		closing: make(chan struct{}), failed: make(chan struct{}), closed: make(chan struct{}),
		groups: map[dfs.GroupID]*replica{}, dying: map[dfs.GroupID]bool{}, owned: map[dfs.GroupID]chan struct{}{},
		queued: newBudget(o.MaxQueued), messages: newBudget(o.MaxQueued),
		transfers: make(chan struct{}, o.MaxSnapshots),
		receiving: make(chan struct{}, o.MaxSnapshots),
		pace:      rate.NewLimiter(rate.Inf, SnapshotChunk),
		holders:   holders{some: make(chan struct{}, 1)},
	}
	if o.SnapshotRate > 0 {
		h.pace.SetLimit(rate.Limit(max(o.SnapshotRate, SnapshotChunk)))
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.workers = newScheduler(func(r *replica) *slot { return &r.work })
	h.appliers = newScheduler(func(r *replica) *slot { return &r.apply })
	h.writer = newLogWriter(h)
	h.beats = newBeats(o.ElectionTicks)
	if err := h.openStores(); err != nil {
		h.cancel()
		return nil, firstError(err, h.closeStores())
	}
	h.start()
	return h, nil
}

func (h *Host) openStores() error {
	if err := makeDir(h.opts.FS, h.opts.Dir); err != nil {
		return wrapStore("open raft host", h.opts.Dir, err)
	}
	if err := checkDamaged(&h.opts); err != nil {
		return err
	}
	var err error
	if h.store, err = openLogStore(&h.opts, h.failLog); err != nil {
		return logDamage(err)
	}
	h.beats.own.start = h.store.starts
	for again := false; ; again = true {
		err := h.openState()
		if err == nil || again || !isStateDamage(err) {
			return logDamage(err)
		}
		if h.state != nil {
			_ = h.state.Close() // it is damaged, and says so
			h.state = nil
		}
		if err := h.putStateAside(err); err != nil {
			return err
		}
	}
}

// openState opens the state store and starts every replica from both.
func (h *Host) openState() error {
	clear(h.groups)
	h.order = nil
	if err := h.openReplicas(); err != nil {
		return firstError(h.takeStateFault(), err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened = h.stateFault == nil
	return h.stateFault
}

func (h *Host) openReplicas() (err error) {
	if h.state, err = openStore(&h.opts, h.opts.FS.PathJoin(h.opts.Dir, "raft-state"), stateStore, h.failState); err != nil {
		return inState(err)
	}
	if err := h.prepareSnapDir(); err != nil {
		return err
	}
	groups, err := h.store.groups()
	if err != nil {
		return err
	}
	for _, g := range groups {
		r, err := h.loadReplica(g)
		if err != nil {
			return err
		}
		if r == nil {
			if err := h.wipeRest(g); err != nil {
				return err
			}
			continue
		}
		h.groups[g], h.order = r, nil
	}
	return h.cleanSnapDir()
}

func (h *Host) start() {
	for range h.opts.Workers {
		h.loops.Go(h.work)
		h.loops.Go(h.applyAll)
	}
	h.loops.Go(h.writer.run)
	h.loops.Go(h.tick)
	h.loops.Go(h.remind)
	h.loops.Go(h.tidy)
	go h.undertake()
	for _, r := range h.sorted() {
		h.begin(r)
	}
}

// begin starts a replica, awake. A message may have come before, and put it to
// sleep or into quarantine.
func (h *Host) begin(r *replica) {
	r.mu.Lock()
	if r.fault == nil && !r.asleep {
		h.awake.add(r)
	}
	r.mu.Unlock()
	h.workers.schedule(r)
}

// undertake releases the host once a store has failed, so that Pebble does not
// try again what failed. It ends with the host; Close waits for it.
func (h *Host) undertake() {
	select {
	case <-h.failed:
		if why := h.failure(); IsLogDamage(why) {
			h.recordDamage(why)
		}
	case <-h.closing:
	}
	h.shutdown()
}

// fail ends the host: nothing is acknowledged after it, on any group.
func (h *Host) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.why != nil {
		return
	}
	h.why = err
	if IsLogDamage(err) {
		h.silent.Store(true)
	}
	h.log.Error("raft host failed", "cause", err)
	if h.store != nil {
		h.store.stop(err)
	}
	close(h.failed)
}

// failure returns why the host failed, nil while it has not.
func (h *Host) failure() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.why
}

// Failed is closed when a store of the host has failed. The host then serves
// nothing any more; Failure says why. After Corrupt that is no IsLogDamage the
// directory may be opened again at once: the state store was put aside by Close.
func (h *Host) Failed() <-chan struct{} { return h.failed }

// Failure returns why the host failed, nil while it has not.
func (h *Host) Failure() error { return h.failure() }

// Close ends every group's replica on this node and releases the directory.
// Proposals without an outcome end as Unknown, or as Unavailable when they were
// surely not applied.
func (h *Host) Close() error {
	h.end()
	<-h.closed
	return h.err
}

// end lets no caller, task or wait begin or go on.
func (h *Host) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ended {
		h.ended = true
		close(h.closing)
		h.cancel()
	}
}

// shutdown stops everything in the order in which it depends on each other.
func (h *Host) shutdown() {
	h.once.Do(func() {
		h.end()
		h.workers.close()
		h.appliers.close()
		h.writer.close()
		h.loops.Wait()
		h.tasks.Wait()
		err := h.failure()
		if err == nil {
			err = errClosing("raft")
		}
		for _, r := range h.sorted() {
			r.mu.Lock()
			if r.fault == nil {
				r.fault = err
			}
			r.office.Store(&Office{Term: r.term})
			r.proposals.close(err)
			r.reads.close(err)
			r.refuseLocked(r.in.take())
			r.mu.Unlock()
		}
		h.users.Wait()
		for _, r := range h.sorted() {
			r.closeTransfers()
		}
		h.err = h.closeStores()
		close(h.closed)
	})
}

func (h *Host) closeStores() error {
	var err error
	before := h.failure()
	if h.state != nil {
		if before == nil {
			err = wrapStore("close raft state", "", h.state.Flush()) // spares the next start the replay
		}
		err = firstError(err, wrapStore("close raft state", "", h.state.Close()))
	}
	if h.store != nil {
		err = firstError(err, h.store.close())
	}
	if before == nil {
		err = firstError(err, h.failure()) // a gate tells of it in no other way
	}
	if isStateDamage(before) {
		return h.putStateAside(before)
	}
	return err
}

// errClosing says that the host is on its way out.
func errClosing(op string) error {
	return dfs.Errorf(dfs.Unavailable, op, "this node is shutting down")
}

// enter registers a caller that uses the stores; false once Close has begun.
func (h *Host) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended || h.why != nil {
		return false
	}
	h.users.Add(1)
	return true
}

func (h *Host) leave() { h.users.Done() }

// spawn runs a task that Close waits for; false once Close has begun.
func (h *Host) spawn(fn func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended || h.why != nil {
		return false
	}
	h.tasks.Go(fn)
	return true
}

// own keeps all others from making a group's replica, or putting another in its
// place, until disown. Whoever has it may wait for the disk, and for an install: so
// each group has its own. Unavailable: ctx or the host ended before it was free.
func (h *Host) own(ctx context.Context, g dfs.GroupID) error {
	for {
		h.mu.Lock()
		free, taken := h.owned[g]
		if !taken {
			h.owned[g] = make(chan struct{})
		}
		h.mu.Unlock()
		if !taken {
			return nil
		}
		select {
		case <-free:
		case <-ctx.Done():
			return dfs.Errorf(dfs.Unavailable, "change replica", "%v: another change of its replica is under way on node %v", g, h.opts.Node)
		case <-h.closing:
			return errClosing("change replica")
		}
	}
}

func (h *Host) disown(g dfs.GroupID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.owned[g])
	delete(h.owned, g)
}

// replica returns a group's replica, nil when there is none.
func (h *Host) replica(g dfs.GroupID) *replica {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.groups[g]
}

func (h *Host) find(g dfs.GroupID) (*replica, error) {
	if r := h.replica(g); r != nil {
		return r, nil
	}
	return nil, dfs.Errorf(dfs.NotExist, "find group", "%v has no replica on node %v", g, h.opts.Node)
}

// sorted lists the replicas by group; read-only.
func (h *Host) sorted() []*replica {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.order == nil {
		h.order = slices.SortedFunc(maps.Values(h.groups), func(a, b *replica) int { return cmp.Compare(a.id, b.id) })
	}
	return h.order
}

func (h *Host) newProposalID() proposalID {
	return proposalID{node: h.opts.Node, start: h.store.starts, seq: h.sequence.Add(1)}
}

// Step takes a batch of messages from a peer. It waits for nothing but the sync
// that makes an empty replica: what the host has no room for is dropped, and
// Raft sends it again. Kinds of errors: Invalid,
// Corrupt and Unsupported for a batch that no peer of this version sends, of
// which nothing is taken; Unavailable once the host is closing.
func (h *Host) Step(from dfs.NodeID, batch []byte) error {
	frames, err := parseBatch(batch, from, h.opts.Node)
	if err != nil {
		return err
	}
	if !h.enter() {
		return errClosing("step")
	}
	defer h.leave()
	for _, f := range frames {
		if f.kind == frameBeat {
			h.beats.hear(from, f.sign)
			continue
		}
		r, err := h.accept(f.group)
		if err != nil {
			return err
		}
		if r == nil {
			continue
		}
		if f.generation != r.generation && !h.opts.Hooks.IgnoreGeneration {
			h.otherGeneration(r, from, f.generation)
			continue
		}
		if f.kind == frameNeedState {
			h.sendSnapshot(r, from, 0) // and the replica wakes: see wantStateLocked
		}
		if r.in.addFrame(f) {
			h.workers.schedule(r)
		}
	}
	return nil
}

// accept returns a group's replica and makes an empty one when the options
// say so; nil when there is to be none.
func (h *Host) accept(g dfs.GroupID) (*replica, error) {
	if r := h.replica(g); r != nil {
		return r, nil
	}
	if h.opts.AcceptGroup == nil || !h.opts.AcceptGroup(g) {
		return nil, nil
	}
	if err := h.JoinGroup(g); err != nil && dfs.KindOf(err) != dfs.Exist {
		return nil, err
	}
	return h.replica(g), nil
}

// CreateGroup starts a new group with this node among its first voters. All of
// them must call it with the same list, and none may ever have had the group;
// a founding node calls it with itself alone. Exist: there is a replica already.
func (h *Host) CreateGroup(g dfs.GroupID, voters []dfs.NodeID) error {
	if !slices.Contains(voters, h.opts.Node) {
		return dfs.Errorf(dfs.Invalid, "create group", "%v: node %v is not among its voters %v", g, h.opts.Node, voters)
	}
	ids := make([]uint64, len(voters))
	for i, v := range voters {
		ids[i] = uint64(v)
	}
	slices.Sort(ids)
	return h.addReplica(g, truncated{index: firstIndex, term: firstTerm, conf: confState(ids)}, hardState(firstTerm, raft.None, firstIndex))
}

// JoinGroup makes an empty replica that waits for a leader, which sends it the
// state. Exist: there is a replica already, or one that is being destroyed.
func (h *Host) JoinGroup(g dfs.GroupID) error {
	return h.addReplica(g, truncated{conf: confState(nil)}, hardState(0, 0, 0))
}
