package storage

import (
	"context"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

// follower keeps the newest cluster map of the meta nodes.
type follower struct {
	s       *Service
	current *latest
	want    chan struct{} // someone needs a newer map than the poll has brought

	mu     sync.Mutex // guards what follows, and the order of OnMap's calls
	behind time.Time  // since when meta nodes have spoken of a newer map; zero: they have not
	at     dfs.Epoch  // the current epoch at that time
}

func newFollower(s *Service) *follower {
	return &follower{s: s, current: newLatest(), want: make(chan struct{}, 1)}
}

// offer publishes a map if it is newer than the current one. Error: WrongCluster.
func (f *follower) offer(m *dfs.Map) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if cluster := f.s.opts.Cluster(); !cluster.IsZero() && m.Cluster != cluster {
		return dfs.Errorf(dfs.WrongCluster, "get map", "a meta node answered with the map of cluster %v", m.Cluster)
	}
	if !f.current.set(m) {
		return nil
	}
	f.s.opts.Metas.Update(m)
	f.s.beats.retarget()
	if f.s.opts.OnMap != nil {
		f.s.opts.OnMap(m)
	}
	return nil
}

func (f *follower) epoch() dfs.Epoch {
	if m, _ := f.current.get(); m != nil {
		return m.Epoch
	}
	return 0
}

// poll waits for newer maps at one meta node after the other, so that one
// which is cut off from its peers does not keep this node in the past.
func (f *follower) poll() {
	failures := 0
	for i := 0; f.s.ctx.Err() == nil; i++ {
		addrs := f.s.opts.Metas.Addrs()
		if len(addrs) == 0 {
			return // no configuration is without meta nodes
		}
		err := f.pollOnce(addrs[i%len(addrs)])
		if err == nil {
			failures = 0
			continue
		}
		failures++
		f.s.log.Debug("ask for a newer map", "meta", addrs[i%len(addrs)], "cause", err)
		if !f.s.sleep(f.s.backoff(failures, metas.MaxBackoff)) {
			return
		}
	}
}

func (f *follower) pollOnce(addr string) error {
	ctx, cancel := context.WithTimeout(f.s.ctx, pollWait+metas.AttemptTimeout)
	defer cancel()
	start, known := time.Now(), f.epoch()
	c := wire.NewDRPCMetaClient(f.s.opts.Dial(addr))
	reply, err := c.GetMap(ctx, &wire.GetMapRequest{Known: uint64(known), Wait: uint32(pollWait.Milliseconds())})
	if err != nil {
		return err
	}
	f.s.opts.Metas.SetLeader(dfs.ControlGroup, dfs.NodeID(reply.Leader))
	if reply.Map == nil || dfs.Epoch(reply.Map.Epoch) <= known {
		if time.Since(start) < pollWait/2 { // it ends, or does not wait: no reason to hurry
			return dfs.Errorf(dfs.Unavailable, "get map", "nothing newer than epoch %d, at once", known)
		}
		return nil
	}
	m, err := reply.Map.ToDFS()
	if err != nil {
		return err
	}
	return f.offer(m)
}

// fetch reads the map linearizably when someone wants it, one read at a time
// for all who do. A read that fails is not repeated: those who wait ask again.
func (f *follower) fetch() {
	for {
		select {
		case <-f.want:
		case <-f.s.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(f.s.ctx, mapWait)
		m, err := f.linearizable(ctx)
		cancel()
		if err == nil {
			err = f.offer(m)
		}
		if err != nil {
			f.s.log.Info("no current map", "cause", err)
		}
	}
}

// linearizable reads a map that holds everything decided before the call.
func (f *follower) linearizable(ctx context.Context) (*dfs.Map, error) {
	var m *dfs.Map
	err := f.s.opts.Metas.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, c wire.DRPCMetaClient) error {
		reply, err := c.GetMap(ctx, &wire.GetMapRequest{Linearizable: true})
		if err != nil {
			return err
		}
		if reply.Map == nil {
			return dfs.Errorf(dfs.Unavailable, "get map", "the answer holds none")
		}
		m, err = reply.Map.ToDFS()
		return err
	})
	return m, err
}

// heard notes the epoch that a meta node's answer to a heartbeat names. When
// newer maps are spoken of for more than a second and none has come, the map
// is fetched.
func (f *follower) heard(e dfs.Epoch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	own := f.epoch()
	switch {
	case e <= own:
	case f.behind.IsZero() || f.at != own:
		f.behind, f.at = time.Now(), own
	case time.Since(f.behind) > time.Second:
		f.behind = time.Time{}
		poke(f.want)
	}
}

// judged returns a store's applied map once its epoch is at least e: a caller
// may know more than this node. Error: Unavailable, when the store takes no
// requests yet or the epoch does not come in time.
func (st *store) judged(ctx context.Context, e dfs.Epoch) (*dfs.Map, error) {
	m, _ := st.applied.get()
	if m == nil {
		return nil, dfs.Errorf(dfs.Unavailable, "serve", "store %v has not read the current map since its start", st.ID())
	}
	if m.Epoch >= e {
		return m, nil
	}
	poke(st.s.maps.want)
	if m = st.applied.reach(ctx, e, mapWait); m.Epoch < e {
		return nil, dfs.Errorf(dfs.Unavailable, "serve", "store %v has persisted epoch %d, the request is under %d", st.ID(), m.Epoch, e)
	}
	return m, nil
}
