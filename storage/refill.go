package storage

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

const (
	// refillPause is the longest pause after a failed pass: a source that
	// returns is used soon, and one that does not costs little.
	refillPause = 10 * time.Second

	// reportAgain is how long a reported refill may stay incomplete in the map
	// before it is reported once more.
	reportAgain = 5 * time.Second

	// maxRefillBeats bounds the refills in one heartbeat, over all stores of the
	// node: some 350 KiB, a third of the greatest message.
	maxRefillBeats = 16384
)

// refiller pulls what the node's stores lack.
//
//	          slot free             pass without a failure     map: complete
//	waiting ────────────▶ pulling ──────────────────────▶ done ─────────────▶ (gone)
//	   ▲                     │                              │
//	   └───── pass failed ───┘                              └─ reported; again after reportAgain
//
// A refill that the map does not ask for any more is cancelled and gone.
type refiller struct {
	s      *Service
	limit  *rate.Limiter       // bytes that are pulled
	memory *semaphore.Weighted // bytes of blocks that are being pulled, refillMemory
	wake   chan struct{}       // maps, refills or pauses have changed
	done   chan struct{}       // there is something to report
	pulls  sync.WaitGroup      // passes under way

	mu   sync.Mutex // guards what follows
	jobs map[refillKey]*refill
}

// refillKey tells refills apart: a member that acts anew must pull anew.
type refillKey struct {
	store  *store
	pg     dfs.PGID
	joined dfs.Epoch // j
}

// refill is the work of one incomplete member.
type refill struct {
	refillKey
	after  dfs.Epoch // c: entries with c < epoch < j are pulled
	ctx    context.Context
	cancel context.CancelFunc

	done, left atomic.Uint64 // bytes of the pass under way, or the last
	doubted    bool          // see doubt; of the pass under way

	// Guarded by refiller.mu.
	state    refillState
	copies   int       // complete members of the placement group
	failures int       // of passes, one after the other
	until    time.Time // waiting: not before; done: report (again) then
}

type refillState uint8

const (
	refillWaiting refillState = iota
	refillPulling
	refillPulled
)

func newRefiller(s *Service, limit *rate.Limiter) *refiller {
	return &refiller{
		s: s, limit: limit, memory: semaphore.NewWeighted(refillMemory), wake: make(chan struct{}, 1), done: make(chan struct{}, 1),
		jobs: map[refillKey]*refill{},
	}
}

// run schedules the refills until the service ends.
func (r *refiller) run() {
	defer r.pulls.Wait()
	for {
		r.derive()
		pause := time.NewTimer(r.schedule())
		select {
		case <-r.wake:
		case <-pause.C:
		case <-r.s.ctx.Done():
			pause.Stop()
			return
		}
		pause.Stop()
	}
}

// derive makes the refills what the stores' applied maps ask for.
func (r *refiller) derive() {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := map[refillKey]bool{}
	for _, st := range r.s.stores {
		m, _ := st.applied.get()
		if m == nil {
			continue
		}
		for _, pg := range m.PGs {
			after, joined, ok := lacks(pg, st.ID(), st.mark())
			if !ok {
				continue
			}
			key := refillKey{st, pg.ID, joined}
			asked[key] = true
			job := r.jobs[key]
			if job == nil {
				job = &refill{refillKey: key, after: after}
				job.ctx, job.cancel = context.WithCancel(r.s.ctx)
				r.jobs[key] = job
				st.log().Info("refill begins", "pg", pg.ID, "after", after, "joined", joined)
			}
			job.copies = len(pg.Complete())
		}
	}
	for key, job := range r.jobs {
		if !asked[key] {
			job.cancel() // unless it is over
			delete(r.jobs, key)
		}
	}
}

// lacks reports whether a store has to refill a placement group: it acts since
// epoch joined and holds what was acknowledged through epoch after only.
func lacks(pg *dfs.PG, id dfs.StoreID, mark uint64) (after, joined dfs.Epoch, ok bool) {
	m := pg.Member(id)
	if m == nil || m.Mark != mark || m.Joined == 0 || !pg.Active.Has(id) || pg.IsComplete(id) || pg.Class.Erasure() {
		return 0, 0, false
	}
	return m.Complete, m.Joined, true
}

// schedule starts passes where there is room, those of the fewest complete
// copies first, and returns when to look again.
func (r *refiller) schedule() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	next, now := time.Hour, time.Now()
	pulling := map[*store]int{}
	var waiting []*refill
	for _, job := range r.jobs {
		switch {
		case job.state == refillPulling:
			pulling[job.store]++
		case now.Before(job.until):
			next = min(next, job.until.Sub(now))
		case job.state == refillPulled:
			poke(r.done)
		default:
			waiting = append(waiting, job)
		}
	}
	slices.SortFunc(waiting, func(a, b *refill) int {
		return cmp.Or(cmp.Compare(a.copies, b.copies), cmp.Compare(a.pg, b.pg), cmp.Compare(a.store.ID(), b.store.ID()))
	})
	for _, job := range waiting {
		if job.copies == 0 || pulling[job.store] >= r.s.opts.RefillParallel {
			continue // without a source a newer map is what it waits for
		}
		pulling[job.store]++
		job.state = refillPulling
		r.pulls.Go(func() { r.pull(job) })
	}
	return next
}

// pull runs one pass of a refill.
func (r *refiller) pull(job *refill) {
	err := r.pass(job)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		job.state, job.failures, job.until = refillPulled, 0, time.Time{}
		level := slog.LevelInfo
		if job.done.Load() == 0 {
			level = slog.LevelDebug // a start looks through every placement group
		}
		job.store.log().Log(job.ctx, level, "refill is done", "pg", job.pg, "joined", job.joined, "bytes", job.done.Load())
	} else {
		job.failures++
		pause := r.s.backoff(job.failures, refillPause)
		job.state, job.until = refillWaiting, time.Now().Add(pause)
		if job.ctx.Err() == nil {
			job.store.log().Warn("refill has to try again", "pg", job.pg, "joined", job.joined, "pause", pause, "cause", err)
		}
	}
	poke(r.wake)
}

// report tells the control leader of the refills that are done, all of a store
// at once. What it does not take it is told again: the map has the last word.
func (r *refiller) report() {
	for {
		select {
		case <-r.done:
		case <-r.s.ctx.Done():
			return
		}
		for _, st := range r.s.stores {
			req := &wire.RefillDoneRequest{Store: uint32(st.ID()), Done: r.toReport(st)}
			if len(req.Done) == 0 {
				continue
			}
			ctx, cancel := context.WithTimeout(r.s.ctx, reportAgain)
			err := r.s.callLeader(ctx, func(ctx context.Context, c wire.DRPCMetaClient) error {
				_, err := c.RefillDone(ctx, req)
				return err
			})
			cancel()
			if err != nil && r.s.ctx.Err() == nil {
				st.log().Info("a report of refills was not taken", "pgs", len(req.Done), "cause", err)
			}
		}
	}
}

// toReport lists the refills of a store whose report is due, and sets the time
// to repeat it.
func (r *refiller) toReport(st *store) []*wire.RefillDone {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	var out []*wire.RefillDone
	for _, job := range r.jobs {
		if job.store != st || job.state != refillPulled || now.Before(job.until) {
			continue
		}
		job.until = now.Add(reportAgain)
		out = append(out, &wire.RefillDone{Pg: uint32(job.pg), Mark: st.mark(), Joined: uint64(job.joined)})
	}
	if len(out) > 0 {
		poke(r.wake) // the time to repeat it has changed
	}
	slices.SortFunc(out, func(a, b *wire.RefillDone) int { return cmp.Compare(a.Pg, b.Pg) })
	return out
}

// progressOf lists a store's refills for a heartbeat.
func (r *refiller) progressOf(st *store) []*wire.RefillBeat {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*wire.RefillBeat
	for _, job := range r.jobs {
		if job.store == st && len(out) < maxRefillBeats/len(r.s.stores) {
			out = append(out, &wire.RefillBeat{Pg: uint32(job.pg), Done: job.done.Load(), Left: job.left.Load()})
		}
	}
	slices.SortFunc(out, func(a, b *wire.RefillBeat) int { return cmp.Compare(a.Pg, b.Pg) })
	return out
}
