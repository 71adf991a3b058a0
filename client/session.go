package client

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// Limits of a session.
const (
	// maxInFlight bounds the mutations of a client that have no answer yet: well
	// under the replies that a group keeps for a session.
	maxInFlight = 256

	// maxCrossing bounds those among them that may take several groups: one of those
	// may be stuck, and what takes another one shall have room.
	maxCrossing = maxInFlight / 4

	// maxCommand bounds an encoded command (bytes), as the meta nodes do.
	maxCommand = 512 << 10
)

// session is this process's lease in the control group.
//
//	         OpenSession                 not renewed for the TTL, Fenced
//	(none) ──────────────▶ usable ─────────────────────────────▶ lost
//
// A lost session ends its context; the next mutation opens another one.
type session struct {
	c   *Client
	id  dfs.SessionID
	ttl time.Duration

	ctx   context.Context // ends when the session is lost or the client closed
	lose  context.CancelCauseFunc
	slots *semaphore.Weighted // one of maxInFlight for a mutation under way

	crossing chan struct{} // one element a mutation under way that may take several groups

	mu         sync.Mutex // guards what follows
	renewed    time.Time  // when the last renewal that succeeded was sent; has monotonic and wall time
	lastSeq    uint64     // of mutations
	shared     map[dfs.GroupID]*sharer[[]byte, *wire.Result]
	unanswered map[uint64]dfs.GroupID // by sequence number: who is asked; those given up are not among them
	lastBlock  uint64                 // counter of block IDs
	blocks     map[uint64]struct{}    // counters of blocks that a command may still name. Invariant: <= lastBlock
	lastName   uint64                 // of temporary names
	leases     map[dfs.GroupID]*inoLease
	unbatched  bool // the meta nodes are of a release that knows no batches
}

// expired reports whether the lease has run out, by the monotonic or the wall
// clock: the former stands still while the machine sleeps.
func (s *session) expired() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	return now.Sub(s.renewed) >= s.ttl || now.Round(0).Sub(s.renewed.Round(0)) >= s.ttl
}

// usable reports whether the session may be used, and ends it when its time is over.
func (s *session) usable() bool {
	if context.Cause(s.ctx) == context.Canceled { // the client closes: the session itself is fine
		return !s.expired()
	}
	if s.ctx.Err() != nil {
		return false
	}
	if s.expired() {
		s.lose(errLost(s.id))
		return false
	}
	return true
}

func errLost(id dfs.SessionID) error {
	return dfs.Errorf(dfs.Fenced, "", "session %d was not renewed in time", id)
}

// session returns the client's session and opens one where there is none.
func (c *Client) session(ctx context.Context) (*session, error) {
	if c.opts.ReadOnly {
		return nil, dfs.Errorf(dfs.ReadOnly, "", "this client was opened for reading only")
	}
	if err := c.opening.acquire(ctx); err != nil {
		return nil, err
	}
	defer c.opening.release()
	if c.current != nil && c.current.usable() {
		return c.current, nil
	}
	c.current = nil
	s, err := c.openSession(ctx)
	if err != nil {
		return nil, err
	}
	c.current = s
	return s, nil
}

func (c *Client) openSession(ctx context.Context) (*session, error) {
	s := &session{
		c: c, slots: semaphore.NewWeighted(maxInFlight), crossing: make(chan struct{}, maxCrossing),
		shared:     map[dfs.GroupID]*sharer[[]byte, *wire.Result]{},
		unanswered: map[uint64]dfs.GroupID{}, blocks: map[uint64]struct{}{}, leases: map[dfs.GroupID]*inoLease{},
	}
	req := &wire.OpenSessionRequest{Holder: c.opts.Holder, Mark: max(c.opts.Rand(), 1)}
	err := c.book.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, m wire.DRPCMetaClient) error {
		s.renewed = time.Now()
		reply, err := m.OpenSession(ctx, req)
		if err == nil {
			s.id, s.ttl = dfs.SessionID(reply.GetSession()), time.Duration(reply.GetTtl())*time.Millisecond
		}
		return err
	})
	if err != nil {
		// A session that was opened all the same expires unused.
		return nil, dfs.Wrap("open session", "", readFailed(ctx, err))
	}
	if s.id == 0 || s.id > dfs.MaxSessionID || s.ttl <= 0 {
		return nil, dfs.Errorf(dfs.Internal, "open session", "the answer names session %d with a lease of %v", s.id, s.ttl)
	}
	s.ctx, s.lose = context.WithCancelCause(c.ctx)
	c.work.Go(s.keepAlive)
	return s, nil
}

// keepAlive renews the lease until it is lost or the client closed.
func (s *session) keepAlive() {
	wait := s.ttl / 3
	for {
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-s.ctx.Done():
			t.Stop()
			return
		}
		err := s.renew()
		switch {
		case err == nil:
			wait = s.ttl / 3
		case dfs.KindOf(err) == dfs.Fenced || s.expired():
			if s.ctx.Err() == nil {
				s.c.log.Warn("the session is lost", "session", uint64(s.id), "cause", err)
			}
			s.lose(errLost(s.id))
			return
		default:
			wait = s.ttl / 20
		}
	}
}

func (s *session) renew() error {
	ctx, cancel := context.WithTimeout(s.ctx, s.ttl/3)
	defer cancel()
	var sent time.Time
	err := s.c.book.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, m wire.DRPCMetaClient) error {
		sent = time.Now()
		_, err := m.KeepAlive(ctx, &wire.KeepAliveRequest{Session: uint64(s.id), Below: s.lowWater()})
		return err
	})
	if err == nil {
		s.mu.Lock()
		s.renewed = sent
		s.mu.Unlock()
	}
	return err
}

// blockID makes an identifier that was never used. The block is this client's
// concern until letGo.
func (s *session) blockID(pg dfs.PGID, ino dfs.Ino) (dfs.BlockID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastBlock >= dfs.MaxBlockCounter {
		return dfs.BlockID{}, dfs.Errorf(dfs.Internal, "name block", "session %d has no block numbers left", s.id)
	}
	s.lastBlock++
	s.blocks[s.lastBlock] = struct{}{}
	return dfs.BlockID{PG: pg, Ino: ino, Session: s.id, Counter: s.lastBlock}, nil
}

// letGo says of a block that the command which names it was answered or given
// up, or that there will be none.
func (s *session) letGo(id dfs.BlockID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.blocks, id.Counter)
}

// letGoAll is letGo for the blocks of extents.
func (s *session) letGoAll(extents []*wire.Extent) {
	for _, e := range extents {
		if id, err := dfs.ParseBlockID(e.GetBlock()); err == nil {
			s.letGo(id)
		}
	}
}

// lowWater returns the counter below which no block will be named by a command
// any more: what is there and not named yet is garbage. It never falls.
func (s *session) lowWater() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	low := s.lastBlock + 1
	for n := range s.blocks {
		low = min(low, n)
	}
	return low
}

// issueName gives out a number for a temporary name.
func (s *session) issueName() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastName++
	return s.lastName
}

// issue gives out a sequence number for a command to a group.
func (s *session) issue(g dfs.GroupID) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastSeq++
	s.unanswered[s.lastSeq] = g
	return s.lastSeq
}

// settle notes that a number was answered or given up: the floor may pass it.
// A request of it that is still on its way is then refused by its group as soon
// as the group has seen the floor.
func (s *session) settle(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unanswered, seq)
}

// floor returns the lowest number that a group has not answered: what another
// group leaves unanswered must not keep this one from forgetting its replies.
func (s *session) floor(g dfs.GroupID) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	low := s.lastSeq + 1
	for seq, asked := range s.unanswered {
		if asked == g {
			low = min(low, seq)
		}
	}
	return low
}

// mutate carries a command out in a group, exactly once: the group remembers the
// answer until the floor passes it. Errors: those of the command's result;
// Unknown when it may have been carried out; Fenced when the session is lost and
// it was not; Unavailable, Deadline and others when it was not.
func (s *session) mutate(ctx context.Context, g dfs.GroupID, cmd *wire.Command) (*wire.Result, error) {
	ctx, cancel := join(ctx, s.ctx)
	defer cancel()
	if mayCross(cmd) {
		select {
		case s.crossing <- struct{}{}:
			defer func() { <-s.crossing }()
		case <-ctx.Done():
			return nil, s.gaveUp(ctx, false, ended(ctx))
		}
	}
	if s.slots.Acquire(ctx, 1) != nil {
		return nil, s.gaveUp(ctx, false, ended(ctx))
	}
	defer s.slots.Release(1)
	s.number(g, cmd)
	defer s.settle(cmd.Seq)
	res, err := s.carry(ctx, g, cmd, false)
	if err != nil {
		return nil, err
	}
	return res, nil
}

// number makes a command one of the session's.
func (s *session) number(g dfs.GroupID, cmd *wire.Command) {
	cmd.Session, cmd.Seq = uint64(s.id), s.issue(g)
	cmd.Cred = &wire.Cred{Uid: s.c.opts.Cred.UID, Gid: s.c.opts.Cred.GID, Groups: s.c.opts.Cred.Groups}
}

// carry has a group carry out a command that has its number, however often it has
// to be asked; maybe says that it was asked already. The result is the group's
// answer also where that is the error.
func (s *session) carry(ctx context.Context, g dfs.GroupID, cmd *wire.Command, maybe bool) (*wire.Result, error) {
	for attempt := 1; ; attempt++ {
		// Floor and version may grow here: what was sent before was certainly
		// not carried out, and its number is the same.
		cmd.Floor, cmd.Seen = s.floor(g), s.c.seen.Load()
		res, err := s.send(ctx, g, cmd, &maybe)
		if err != nil {
			return nil, s.gaveUp(ctx, maybe, err)
		}
		s.c.saw(res.GetVersion())
		err = res.ToError("", "")
		switch kind := dfs.KindOf(err); {
		case err == nil:
			return res, nil
		case kind == dfs.Fenced:
			s.lose(errLost(s.id))
			return nil, s.gaveUp(ctx, maybe, err)
		case kind == dfs.Stale || !kind.Retryable():
			return res, err
		}
		if !s.c.pause(ctx, attempt) {
			return nil, s.gaveUp(ctx, maybe, err)
		}
	}
}

// mayCross reports whether a command is likely to take several groups: it may have to
// wait for one of them, and shares no request with what does not.
func mayCross(cmd *wire.Command) bool {
	switch op := cmd.Op.(type) {
	case *wire.Command_Mkdir, *wire.Command_Rmdir:
		return true
	case *wire.Command_Rename:
		return op.Rename.Parent != op.Rename.NewParent
	case *wire.Command_Link:
		return dfs.Ino(op.Link.Ino).Group() != dfs.Ino(op.Link.Parent).Group()
	}
	return false
}

// send has the group's leader answer the command, however often that takes.
func (s *session) send(ctx context.Context, g dfs.GroupID, cmd *wire.Command, maybe *bool) (*wire.Result, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(cmd)
	if err != nil {
		return nil, &dfs.Error{Kind: dfs.Invalid, Op: "encode", Err: err}
	}
	if len(data) > maxCommand {
		return nil, dfs.Errorf(dfs.TooLarge, "encode", "a command of %d bytes: at most %d", len(data), maxCommand)
	}
	if len(data) <= maxSharedItem && !mayCross(cmd) {
		t := s.sharer(g).do(ctx, data)
		*maybe = *maybe || t.maybe
		if !t.alone {
			return t.answer, t.err
		}
	}
	t := s.sendAlone(ctx, g, data)
	*maybe = *maybe || t.maybe
	return t.answer, t.err
}

func (s *session) sendAlone(ctx context.Context, g dfs.GroupID, data []byte) (t turn[*wire.Result]) {
	req := &wire.MutateRequest{Group: uint32(g), Command: data}
	t.err = s.c.book.Call(ctx, g, true, func(ctx context.Context, m wire.DRPCMetaClient) error {
		reply, err := m.Mutate(ctx, req)
		if err == nil {
			t.answer = reply.GetResult()
			return nil
		}
		t.maybe = t.maybe || !notCarriedOut(dfs.KindOf(err))
		return err
	})
	return t
}

// sendMany has the group's leader answer commands that share a request.
func (s *session) sendMany(ctx context.Context, g dfs.GroupID, cmds [][]byte) (out []turn[*wire.Result], maybe bool) {
	req := &wire.MutateManyRequest{Group: uint32(g), Commands: cmds}
	_ = s.c.book.Call(ctx, g, false, func(ctx context.Context, m wire.DRPCMetaClient) error { // each learns the error when it asks alone
		reply, err := m.MutateMany(ctx, req)
		if err != nil {
			maybe = maybe || !notCarriedOut(dfs.KindOf(err))
			return err
		}
		out = make([]turn[*wire.Result], len(reply.GetAnswers()))
		for i, a := range reply.GetAnswers() {
			out[i] = turnOf(a.GetResult(), a.GetRefusal())
			out[i].maybe = out[i].err != nil && !notCarriedOut(dfs.KindOf(out[i].err))
		}
		return nil
	})
	return out, maybe
}

// sharer returns what commands to a group share requests in.
func (s *session) sharer(g dfs.GroupID) *sharer[[]byte, *wire.Result] {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shared[g]
	if sh == nil {
		sh = &sharer[[]byte, *wire.Result]{
			size: func(data []byte) int { return len(data) },
			one:  func(ctx context.Context, data []byte) turn[*wire.Result] { return s.sendAlone(ctx, g, data) },
			many: func(ctx context.Context, cmds [][]byte) ([]turn[*wire.Result], bool) {
				return s.sendMany(ctx, g, cmds)
			},
		}
		s.shared[g] = sh
	}
	return sh
}

// notCarriedOut reports whether an error in place of an answer says for certain
// that the group did nothing.
func notCarriedOut(kind dfs.Kind) bool {
	switch kind {
	case dfs.Invalid, dfs.TooLarge, dfs.Permission, dfs.WrongCluster, dfs.Unsupported, dfs.NoSpace, dfs.ReadOnly:
		return true
	}
	return kind.Retryable()
}

// gaveUp gives the error of a mutation without an answer its kind.
func (s *session) gaveUp(ctx context.Context, maybe bool, err error) error {
	e := &dfs.Error{Kind: dfs.KindOf(err), Err: err}
	if s.ctx.Err() != nil {
		e.Kind, e.Err = dfs.Fenced, context.Cause(s.ctx)
		if s.c.ctx.Err() != nil {
			e.Kind, e.Err = dfs.Unavailable, dfs.Errorf(dfs.Unavailable, "", "the client is closed")
		}
	}
	switch {
	case maybe:
		e.Kind, e.Text = dfs.Unknown, "no answer came: it may or may not have been done"
	case e.Kind == dfs.Unknown || e.Kind == dfs.Other && ctx.Err() != nil:
		e.Kind = dfs.Unavailable
	}
	return e
}

// inoLease is what is left of the inode numbers that a group gave the session.
type inoLease struct {
	turn lock // held while numbers are asked for; guards what follows

	next, end dfs.Ino // [next, end) are unused
	ask       uint32  // how many to ask for next
}

// firstLease is how many inode numbers a session asks a group for at first; each
// further lease is four times as long, up to dfs.InoLease. A command that makes
// one file does not take a thousand.
const firstLease = 16

// inode takes an inode number of a group.
func (s *session) inode(ctx context.Context, g dfs.GroupID) (dfs.Ino, error) {
	s.mu.Lock()
	l := s.leases[g]
	if l == nil {
		l = &inoLease{turn: newLock(), ask: firstLease}
		s.leases[g] = l
	}
	s.mu.Unlock()
	if err := l.turn.acquire(ctx); err != nil {
		return 0, err
	}
	defer l.turn.release()
	if l.next == l.end {
		res, err := s.mutate(ctx, g, &wire.Command{Op: &wire.Command_LeaseInos{LeaseInos: &wire.LeaseInosOp{Count: l.ask}}})
		if err != nil {
			return 0, dfs.Wrap("lease inode numbers", g.String(), err)
		}
		if len(res.GetLeased()) != 1 || res.Leased[0].GetCount() == 0 || dfs.Ino(res.Leased[0].GetFirst()).Group() != g {
			return 0, dfs.Errorf(dfs.Internal, "lease inode numbers", "group %v answered with %d ranges", g, len(res.GetLeased()))
		}
		l.next = dfs.Ino(res.Leased[0].First)
		l.end = l.next + dfs.Ino(res.Leased[0].Count)
		l.ask = min(4*l.ask, dfs.InoLease)
	}
	l.next++
	return l.next - 1, nil
}
