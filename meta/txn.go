package meta

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/meta/namespace"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// Limits of operations over several groups.
const (
	// maxDrives is how many of them a node drives at a time, in all groups that it
	// leads: each has a goroutine.
	maxDrives = 4096

	// txnLifetime is how long one attempt may be undecided.
	txnLifetime = 10 * time.Second

	// txnPatience is how long an operation that meets others begins again before
	// its client is told, and txnWait how long one that holds nothing, or a
	// reader, waits for the end of what is in its way.
	txnPatience = 5 * time.Second
	txnWait     = time.Second

	// shareAge is how long a share lies here before its coordinator is asked.
	shareAge = time.Second

	// dropPause is for how long decided transactions are collected, to be dropped
	// in one entry.
	dropPause = 20 * time.Millisecond

	// manyPatience is how long the other answers of a request wait for those of
	// operations over several groups.
	manyPatience = 100 * time.Millisecond

	// walkTries is how often the way up from a new parent is tried that others hold.
	walkTries = 10

	// starved is how many transactions a reader meets, one after the other, before
	// its group takes no more shares until it has read.
	starved = 3
)

// TxnStep is a step of an operation over several groups, for tests.
type TxnStep uint8

// The steps. What the coordinator's leader does is told by its group, the rest by
// that of the participant.
const (
	TxnBegin     TxnStep = iota + 1 // the coordinator's leader is about to begin
	TxnBegun                        // it has
	TxnPrepare                      // a participant's leader is about to prepare its share
	TxnPrepared                     // it has, and not answered yet
	TxnCommit                       // all have, and the coordinator's leader is about to commit
	TxnCommitted                    // it has, and not answered the client
	TxnFinish                       // a participant's leader is about to carry its share out, or to drop it
	TxnFinished                     // it has
	TxnDrop                         // the coordinator's leader is about to forget what all have finished
	TxnDropped                      // it has
	numTxnSteps
)

// TxnSteps are all steps, in order.
func TxnSteps() []TxnStep {
	var out []TxnStep
	for s := TxnBegin; s < numTxnSteps; s++ {
		out = append(out, s)
	}
	return out
}

func (s *Service) txnStep(g dfs.GroupID, step TxnStep) {
	if f := s.opts.TxnStep; f != nil {
		f(g, step)
	}
}

// Hooks are planted bugs: tests prove with them that they notice. OldRelease is none: it
// has a node say that its release is from before operations over several groups.
type Hooks struct {
	OldRelease  bool
	DropShares  bool // a share that lies here is dropped, and the coordinator not asked
	FinishFirst bool // participants carry their shares out before the commit
}

// txnKey names a client's command in its coordinator's group.
type txnKey struct {
	group   dfs.GroupID
	session dfs.SessionID
	seq     uint64
}

// share names a share of another group's transaction.
type share struct {
	group, coordinator dfs.GroupID
	begun              uint64
}

// txns is what a node knows in memory about operations over several groups: those
// that it drives, as leader of their coordinators, and who waits for some. All
// else is in the rows of the groups.
type txns struct {
	s  *Service
	wg sync.WaitGroup

	mu       sync.Mutex // guards what follows
	closed   bool
	drives   map[txnKey]*drive
	drops    map[dfs.GroupID][]*wire.TxnID // decided and finished; a group that has an entry has a goroutine that drops
	waiters  map[dfs.GroupID]chan struct{} // closed when something is applied
	asking   map[txnKey]bool               // have their coordinators decide, for who waits
	starving map[dfs.GroupID]int           // readers that hold new shares back
	seen     map[share]time.Time           // since when shares lie in groups that this node leads
	stats    TxnStats
}

// TxnStats is what a node counts of the operations over several groups that it drove.
type TxnStats struct {
	Driven    int           // under way now
	Oldest    time.Duration // of those under way, since when
	Shares    int           // of other coordinators, in groups that this node leads, that lie there for a while
	Committed uint64
	Aborted   map[dfs.Kind]uint64 // attempts, by what the client was told or would have been
}

func newTxns(s *Service) *txns {
	return &txns{
		s: s, drives: map[txnKey]*drive{}, drops: map[dfs.GroupID][]*wire.TxnID{}, waiters: map[dfs.GroupID]chan struct{}{},
		asking: map[txnKey]bool{}, starving: map[dfs.GroupID]int{}, seen: map[share]time.Time{}, stats: TxnStats{Aborted: map[dfs.Kind]uint64{dfs.Frozen: 0, dfs.Unavailable: 0}},
	}
}

// Txns returns what this node counts of operations over several groups.
func (s *Service) Txns() TxnStats {
	t := s.txns
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.stats
	out.Aborted = maps.Clone(t.stats.Aborted)
	out.Driven, out.Shares = len(t.drives), len(t.seen)
	for _, d := range t.drives {
		out.Oldest = max(out.Oldest, time.Since(d.begun))
	}
	return out
}

// close waits for what is under way; the service's context has ended.
func (t *txns) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.wg.Wait()
}

// find returns who drives a command, nil when nobody does.
func (t *txns) find(k txnKey) *drive {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.drives[k]
}

// start has a goroutine drive a command, unless one does. Error: Busy.
func (t *txns) start(d *drive, run func(context.Context)) (*drive, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch old := t.drives[d.key]; {
	case old != nil:
		return old, nil
	case t.closed:
		return nil, dfs.Errorf(dfs.Unavailable, "change", "this node is about to end")
	case len(t.drives) >= maxDrives:
		return nil, dfs.Errorf(dfs.Busy, "change", "%d operations over several groups are under way", maxDrives)
	}
	t.drives[d.key] = d
	t.wg.Go(func() {
		defer func() {
			t.mu.Lock()
			delete(t.drives, d.key)
			t.mu.Unlock()
			close(d.ended)
			d.answer(nil, dfs.Errorf(dfs.Unknown, "change", "the operation was left to the group"))
			t.s.agenda.touch(d.key.group) // what it left is taken up
		}()
		run(t.s.ctx)
	})
	return d, nil
}

// overlapping returns a drive that has its answer, whose participants have not carried
// their shares out yet, and which holds what a plan needs there; nil when there is none.
func (t *txns) overlapping(parts []*wire.TxnPart) *drive {
	needs := inodesOf(parts)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range t.drives {
		for ino := range d.holds {
			if needs[ino] {
				return d
			}
		}
	}
	return nil
}

// holding notes which inodes a drive holds at participants after its answer.
func (t *txns) holding(d *drive, parts []*wire.TxnPart) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d.holds = inodesOf(parts)
}

// inodesOf lists the inodes that shares hold alone.
func inodesOf(parts []*wire.TxnPart) map[uint64]bool {
	out := map[uint64]bool{}
	for _, p := range parts {
		for _, st := range p.GetShare().GetSteps() {
			for _, ino := range []uint64{st.GetLinks().GetIno(), st.GetMoved().GetIno(), st.GetRemoveDir().GetIno()} {
				if ino != 0 {
					out[ino] = true
				}
			}
		}
	}
	return out
}

// count notes how an attempt ended.
func (t *txns) count(kind dfs.Kind) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if kind == 0 {
		t.stats.Committed++
	} else {
		t.stats.Aborted[kind]++
	}
}

// once has something done in the background for a transaction, unless that is under way.
func (t *txns) once(k txnKey, do func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asking[k] || t.closed || len(t.asking) >= maxDrives {
		return
	}
	t.asking[k] = true
	t.wg.Go(func() {
		do()
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.asking, k)
	})
}

// dropping reports whether a transaction is about to be dropped.
func (t *txns) dropping(g dfs.GroupID, id *wire.TxnID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.drops[g], func(other *wire.TxnID) bool { return other.Session == id.Session && other.Seq == id.Seq })
}

// dropSoon has a transaction forgotten, with others that are finished at about
// the same time.
func (t *txns) dropSoon(h *raftgroup.Host, g dfs.GroupID, id *wire.TxnID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	list, running := t.drops[g]
	t.drops[g] = append(list, id)
	if running || t.closed {
		return
	}
	t.wg.Go(func() {
		for t.s.sleep(dropPause) {
			t.mu.Lock()
			n := min(len(t.drops[g]), namespace.MaxDrop)
			batch := slices.Clone(t.drops[g][:n])
			if t.drops[g] = slices.Delete(t.drops[g], 0, n); n == 0 {
				delete(t.drops, g)
			}
			t.mu.Unlock()
			if n == 0 {
				return
			}
			t.s.dropTxns(t.s.ctx, h, g, batch)
		}
		t.mu.Lock()
		delete(t.drops, g)
		t.mu.Unlock()
	})
}

// dropTxns forgets transactions. What fails is found again by tend.
func (s *Service) dropTxns(ctx context.Context, h *raftgroup.Host, g dfs.GroupID, ids []*wire.TxnID) {
	s.txnStep(g, TxnDrop)
	res, err := s.proposeEntry(ctx, h, g, &wire.LogEntry{Entry: &wire.LogEntry_TxnDrop{TxnDrop: &wire.TxnDropOp{Txns: ids}}})
	if err == nil {
		err = res.ToError("drop transactions", g.String())
	}
	s.step(g, "drop transactions", err)
	s.txnStep(g, TxnDropped)
}

// applied wakes who waits for something in a group.
func (t *txns) applied(g dfs.GroupID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ch := t.waiters[g]; ch != nil {
		close(ch)
		delete(t.waiters, g)
	}
}

// watch returns what is closed when something is applied in a group.
func (t *txns) watch(g dfs.GroupID) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	ch := t.waiters[g]
	if ch == nil {
		ch = make(chan struct{})
		t.waiters[g] = ch
	}
	return ch
}

// wait is one caller's wait for what holds rows in a group.
type wait struct {
	t     *txns
	h     *raftgroup.Host
	g     dfs.GroupID
	until time.Time
	met   int // transactions, one after the other
}

func (t *txns) wait(h *raftgroup.Host, g dfs.GroupID) *wait {
	return &wait{t: t, h: h, g: g, until: time.Now().Add(txnWait)}
}

// done ends the wait.
func (w *wait) done() {
	if w.met >= starved {
		w.t.mu.Lock()
		defer w.t.mu.Unlock()
		if w.t.starving[w.g]--; w.t.starving[w.g] == 0 {
			delete(w.t.starving, w.g)
		}
	}
}

// over waits until a transaction has no share in this replica any more, and reports
// whether it is worth to try again. When the time is over its coordinator is to decide.
func (w *wait) over(ctx context.Context, id *wire.TxnID) bool {
	if w.met++; w.met == starved {
		w.t.mu.Lock()
		w.t.starving[w.g]++
		w.t.mu.Unlock()
	}
	timer := time.NewTimer(time.Until(w.until))
	defer timer.Stop()
	for {
		changed := w.t.watch(w.g)
		held := false
		err := w.h.ReadLocal(w.g, func(r raftgroup.Reader) (err error) {
			held, err = namespace.HasShare(r, id)
			return err
		})
		if err != nil {
			return false
		}
		if !held {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			w.t.s.decideSoon(id)
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// starves reports whether a reader of a group waits that has met one transaction
// after the other.
func (t *txns) starves(g dfs.GroupID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.starving[g] > 0
}
