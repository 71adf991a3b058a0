package client

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// mapWait is how long one request for a newer map waits at the meta node: less
// than metas.AttemptTimeout, so that a quiet cluster is not taken for a dead node.
const mapWait = 4 * time.Second

// mapCache is the newest map this client has seen, and those who wait for a
// newer one.
type mapCache struct {
	mu       sync.Mutex
	m        *dfs.Map
	next     chan struct{} // closed when m changes
	watching bool          // a goroutine asks for newer maps
}

func newMapCache() *mapCache { return &mapCache{next: make(chan struct{})} }

// current returns the newest map and a channel that is closed when there is a
// newer one.
func (mc *mapCache) current() (*dfs.Map, <-chan struct{}) {
	mc.mu.Lock()
	defer mc.mu.Unlock()
	return mc.m, mc.next
}

func (mc *mapCache) set(m *dfs.Map) {
	mc.mu.Lock()
	defer mc.mu.Unlock()
	if mc.m == nil || m.Epoch > mc.m.Epoch {
		mc.m = m
		close(mc.next)
		mc.next = make(chan struct{})
	}
}

// startWatch reports whether the caller shall start the watcher.
func (mc *mapCache) startWatch() bool {
	mc.mu.Lock()
	defer mc.mu.Unlock()
	first := !mc.watching
	mc.watching = true
	return first
}

// Map returns the newest cluster map that the client has seen. It must not be
// changed.
func (c *Client) Map() *dfs.Map {
	m, _ := c.maps.current()
	return m
}

// Refresh returns the map as the control group has it now.
func (c *Client) Refresh(ctx context.Context) (*dfs.Map, error) {
	return op(ctx, c, "get map", "", func(ctx context.Context) (*dfs.Map, error) {
		return c.getMap(ctx, &wire.GetMapRequest{Linearizable: true})
	})
}

// getMap asks for a map and takes it over. It returns nil when the request
// waits for a newer map and none came.
func (c *Client) getMap(ctx context.Context, req *wire.GetMapRequest) (*dfs.Map, error) {
	var reply *wire.GetMapReply
	err := c.book.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, m wire.DRPCMetaClient) (err error) {
		reply, err = m.GetMap(ctx, req)
		return err
	})
	if err != nil {
		return nil, readFailed(ctx, err)
	}
	for _, l := range reply.GetLeaders() {
		if l.GetNode() != 0 {
			c.book.SetLeader(dfs.GroupID(l.GetGroup()), dfs.NodeID(l.GetNode()))
		}
	}
	if reply.GetMap() == nil {
		if req.GetWait() == 0 {
			return nil, dfs.Errorf(dfs.Unavailable, "get map", "the answer holds no map")
		}
		return nil, nil
	}
	m, err := reply.GetMap().ToDFS()
	if err != nil {
		return nil, err
	}
	if m.Cluster != c.cluster {
		return nil, dfs.Errorf(dfs.WrongCluster, "get map", "the map is of cluster %s, not of %s", m.Cluster, c.cluster)
	}
	c.book.Update(m)
	c.maps.set(m)
	return m, nil
}

// watch starts, once, to follow the map. The caller must be inside an operation.
func (c *Client) watch() {
	if !c.maps.startWatch() {
		return
	}
	c.work.Go(func() {
		for failures := 0; c.ctx.Err() == nil; {
			_, err := c.getMap(c.ctx, &wire.GetMapRequest{Known: uint64(c.Map().Epoch), Wait: uint32(mapWait.Milliseconds())})
			if err == nil {
				failures = 0
				continue
			}
			failures++
			if c.ctx.Err() == nil {
				c.log.Warn("no news of the cluster map", "cause", err)
			}
			c.pause(c.ctx, failures)
		}
	})
}

// awaitMap waits for a map newer than m, at most for the pause of an attempt. It
// reports false when ctx ended.
func (c *Client) awaitMap(ctx context.Context, newer <-chan struct{}, attempt int) bool {
	t := time.NewTimer(c.policy.Delay(attempt) + time.Millisecond)
	defer t.Stop()
	select {
	case <-newer:
		return true
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// connect learns the cluster and its first map.
func (c *Client) connect(ctx context.Context) error {
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	ctx, cancel := c.timed(ctx)
	defer cancel()
	if c.cluster, err = c.findCluster(ctx); err != nil {
		return err
	}
	if c.opts.OnCluster != nil {
		c.opts.OnCluster(c.cluster)
	}
	_, err = c.getMap(ctx, &wire.GetMapRequest{Floor: 1})
	return err
}

// findCluster asks all configured nodes side by side, again and again, until one
// names its cluster. It gives up early while nobody answers at all.
func (c *Client) findCluster(ctx context.Context) (dfs.ClusterID, error) {
	start := time.Now()
	for attempt := 1; ; attempt++ {
		id, answered, err := c.probe(ctx)
		if err == nil {
			return id, nil
		}
		if kind := dfs.KindOf(err); kind != dfs.Unavailable {
			return id, err
		}
		if !answered && time.Since(start) >= c.opts.ConnectTimeout || !c.pause(ctx, attempt) {
			return id, err
		}
	}
}

// probe asks every configured node once. Answered says that one did, and so that
// waiting may help: it has no cluster yet.
func (c *Client) probe(ctx context.Context) (id dfs.ClusterID, answered bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.ConnectTimeout)
	defer cancel()
	type answer struct {
		addr string
		id   dfs.ClusterID
		err  error
	}
	answers := make(chan answer, len(c.opts.Metas))
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel() // before the wait
	for _, addr := range c.opts.Metas {
		asked.Go(func() {
			reply, err := wire.NewDRPCMetaClient(c.opts.Dial(addr)).Probe(ctx, &wire.ProbeRequest{})
			a := answer{addr: addr, err: err}
			if err == nil {
				a.id, a.err = dfs.ClusterIDFromBytes(reply.GetCluster())
			}
			answers <- a
		})
	}
	failures := map[string]string{}
	kind := dfs.Unavailable
	for range c.opts.Metas {
		a := <-answers
		switch {
		case a.err == nil && a.id.IsZero():
			answered = true
			failures[a.addr] = "it belongs to no cluster yet"
		case a.err == nil && !c.opts.Cluster.IsZero() && a.id != c.opts.Cluster:
			kind = dfs.WrongCluster
			failures[a.addr] = fmt.Sprintf("it belongs to cluster %s, not to %s", a.id, c.opts.Cluster)
		case a.err == nil:
			return a.id, true, nil
		default:
			failures[a.addr] = a.err.Error()
			switch k := dfs.KindOf(a.err); k {
			case dfs.WrongCluster, dfs.Permission, dfs.Unsupported:
				kind = k
			}
		}
	}
	var parts []string
	for _, addr := range slices.Sorted(maps.Keys(failures)) {
		parts = append(parts, addr+": "+failures[addr])
	}
	return id, answered, &dfs.Error{Kind: kind, Text: "no meta node can be used: " + strings.Join(parts, "; ")}
}

// Status asks the control leader how the cluster is.
func (c *Client) Status(ctx context.Context) (*wire.StatusReply, error) {
	return op(ctx, c, "status", "", func(ctx context.Context) (*wire.StatusReply, error) {
		var reply *wire.StatusReply
		err := c.book.Call(ctx, dfs.ControlGroup, true, func(ctx context.Context, m wire.DRPCMetaClient) (err error) {
			reply, err = m.Status(ctx, &wire.StatusRequest{})
			return err
		})
		return reply, readFailed(ctx, err)
	})
}
